"""Nested programs declared by OR-Tools models: solved against enumeration, refused with the reason, differentiated."""

import itertools

import numpy as np
import pytest
import torch
from games import Enumeration, enumerate_nested
from ortools.math_opt.python import mathopt
from ortools.sat.python import cp_model

import bigrad as bg
from bigrad.solution import Status

NX, NY = 3, 4


class CpSat:
    """How a model is written in CP-SAT."""

    @staticmethod
    def model():
        return cp_model.CpModel()

    @staticmethod
    def variables(model, count, low, high, name):
        return [model.new_int_var(low, high, f"{name}{k}") for k in range(count)]

    @staticmethod
    def row(model, form, low, high):
        model.add_linear_constraint(form, low, high)


class MathOpt:
    """How a model is written in MathOpt."""

    @staticmethod
    def model():
        return mathopt.Model()

    @staticmethod
    def variables(model, count, low, high, name):
        return [model.add_integer_variable(lb=low, ub=high, name=f"{name}{k}") for k in range(count)]

    @staticmethod
    def row(model, form, low, high):
        model.add_linear_constraint(lb=low, expr=form, ub=high)


fronts = pytest.mark.parametrize("front", [CpSat, MathOpt], ids=["CP-SAT", "MathOpt"])


def dot(values, variables):
    return sum(int(v) * x for v, x in zip(values, variables, strict=True))


def random_game(front, seed, costs=()):
    """Two integer models, coupled both ways, each minimising or maximising; the program and its variables."""
    rng = np.random.default_rng(seed)
    leader, follower = front.model(), front.model()
    x, seen = front.variables(leader, NX, 0, 2, "x"), front.variables(leader, NY, -1, 2, "seen")
    given, y = front.variables(follower, NX, 0, 2, "given"), front.variables(follower, NY, -1, 2, "y")
    low, high = -int(rng.integers(1, 4)), int(rng.integers(4, 9))
    front.row(leader, dot(rng.integers(-2, 3, NX), x) + dot(rng.integers(-2, 3, NY), seen), low, high)
    front.row(leader, dot(rng.integers(0, 3, NX), x), 0, 5)
    for _ in range(2):
        form = dot(rng.integers(-2, 3, NX), given) + dot(rng.integers(-2, 3, NY), y)
        front.row(follower, form, -20, int(rng.integers(0, 6)))
    for model, form in (
        (leader, dot(rng.integers(-4, 5, NX), x) + dot(rng.integers(-4, 5, NY), seen)),
        (follower, dot(rng.integers(-4, 5, NY), y)),
    ):
        model.minimize(form) if rng.random() < 0.5 else model.maximize(form)
    names = {name: {"z": x, "w": y}[name] for name in costs}
    link, responds = dict(zip(x, given, strict=True)), dict(zip(y, seen, strict=True))
    return bg.bilevel(leader, follower, link=link, responds=responds, costs=names), x, y


@fronts
@pytest.mark.parametrize("seed", range(12))
def test_the_optimum_is_that_of_enumeration(front, seed):
    program, x, y = random_game(front, seed)
    value, w = enumerate_nested(program.combinatorial.at([]))
    solution = program.solve(verify=True)
    if w is None:
        assert solution.status in (Status.INFEASIBLE_UPPER, Status.INFEASIBLE_LOWER)
        return
    assert solution.status is Status.GLOBAL
    assert solution.value == pytest.approx(program.sign * value)
    assert solution.stats.follower_gap == pytest.approx(0, abs=1e-9)
    nested = program.combinatorial.at([])
    assert nested.leader(solution[x], solution[y]) == pytest.approx(value)


@fronts
def test_both_fronts_read_the_same_program(front):
    for seed in range(4):
        one, two = (random_game(f, seed)[0].combinatorial.base for f in (front, CpSat))
        for part in ("leader_rows", "follower_rows"):
            a, b = getattr(one, part), getattr(two, part)
            assert abs(a.matrix - b.matrix).sum() == 0
            assert (a.lower == b.lower).all()
            assert (a.upper == b.upper).all()
        assert (one.leader.linear == two.leader.linear).all()
        assert (one.follower.linear == two.follower.linear).all()


@pytest.mark.parametrize("seed", range(4))
def test_costs_replace_coefficients_and_keep_the_rest(seed):
    program, _, _ = random_game(MathOpt, seed, costs=("z", "w"))
    plain, _, _ = random_game(MathOpt, seed)
    given = {i.name: i.value for i in program.inputs}
    values = [program.solve().value, program.solve(given).value, plain.solve().value]
    assert values == pytest.approx(values[:1] * 3, nan_ok=True)
    rng = np.random.default_rng(seed)
    z, w = rng.normal(size=NX), rng.normal(size=NY)
    senses = [p.sense for p in program.combinatorial.places]
    nested = program.combinatorial.at([z, w])
    assert nested.leader.linear[:NX] == pytest.approx(senses[0] * z)
    assert nested.follower.linear[NX:] == pytest.approx(senses[1] * w)
    assert (nested.leader.linear[NX:] == plain.combinatorial.base.leader.linear[NX:]).all()
    value, point = enumerate_nested(nested)
    expected = program.sign * value if point is not None else np.nan
    assert program.solve({"z": z, "w": w}).value == pytest.approx(expected, nan_ok=True)


def path_edges():
    nodes = list(itertools.product(range(3), repeat=2))
    return nodes, [(a, b) for a in nodes for b in nodes if (b[0] - a[0], b[1] - a[1]) in ((0, 1), (1, 0))]


def interdiction(front, budget=2, products=False):
    """Blocked edges of a 3 x 3 grid against the cheapest path; the leader stands against the follower."""
    nodes, edges = path_edges()
    leader, follower, m = front.model(), front.model(), len(edges)
    x, y = front.variables(leader, m, 0, 1, "x"), front.variables(follower, m, 0, 1, "y")
    front.row(leader, sum(x), 0, budget)
    for v in nodes:
        form = dot([(a == v) - (b == v) for a, b in edges], y)
        balance = (v == nodes[0]) - (v == nodes[-1])
        front.row(follower, form, balance, balance)
    link, extra = {}, list(zip(y, x, strict=True))
    if products:
        given, extra = front.variables(follower, m, 0, 1, "given"), front.variables(follower, m, 0, 1, "both")
        for p, a, b in zip(extra, given, y, strict=True):
            follower.add_multiplication_equality(p, [a, b])
        link = dict(zip(x, given, strict=True))
        follower.minimize(sum(y) + sum(extra))
    return bg.bilevel(leader, follower, link=link, responds=y, costs={"w": y, "d": extra}), x, y


@pytest.mark.parametrize(
    "make", [(CpSat, False), (CpSat, True), (MathOpt, False)], ids=["CP-SAT", "products", "MathOpt"]
)
@pytest.mark.parametrize("budget", [1, 3, 6])
def test_interdiction_whichever_way_it_is_written(make, budget):
    program, x, y = interdiction(make[0], budget, make[1])
    rng = np.random.default_rng(budget)
    w, d = rng.uniform(1, 3, (2, len(x)))
    solution = program.solve({"w": w, "d": d}, verify=True)
    value, _ = enumerate_nested(program.combinatorial.at([w, d]))
    assert solution.status is Status.GLOBAL
    assert solution.value == pytest.approx(-value)
    assert solution.value == pytest.approx(solution.lower_value)
    assert solution.value == pytest.approx(w @ solution[y] + d @ (solution[x] * solution[y]))
    assert solution.stats.follower_gap == pytest.approx(0, abs=1e-9)


def test_an_oracle_as_the_follower_is_the_same_game():
    nodes, edges = path_edges()
    arcs = np.array([(nodes.index(a), nodes.index(b)) for a, b in edges])
    oracle = bg.GraphPath(arcs, 9, 0, 8)

    def function(costs):
        return oracle.solve(costs[None])[0]

    rng = np.random.default_rng(0)
    w, d = rng.uniform(1, 3, (2, 5, len(edges)))
    model, _, _ = interdiction(MathOpt, 2)
    expected = torch.stack(bg.Layer(model)(torch.tensor(w), torch.tensor(d)))
    for follower in (oracle, function):
        leader = cp_model.CpModel()
        x = [leader.new_bool_var(f"x{k}") for k in range(len(edges))]
        leader.add(sum(x) <= 2)
        program = bg.bilevel(leader, follower, costs={"w": range(len(edges)), "d": list(enumerate(x))})
        found = torch.stack(bg.Layer(program)(torch.tensor(w), torch.tensor(d)))
        assert torch.equal(found, expected)
        again = program.solve({"w": w[0], "d": d[0]}, verify=True)
        assert again[x] == pytest.approx(expected[0, 0].numpy())
        assert again.stats.follower_gap == pytest.approx(0, abs=1e-12)
        assert again.stats.follower_solves > 0


def tours(n):
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    rounds = [(0, *p, 0) for p in itertools.permutations(range(1, n))]
    used = [{tuple(sorted(e)) for e in itertools.pairwise(r)} for r in rounds]
    return pairs, np.unique([[e in u for e in pairs] for u in used], axis=0).astype(float)


@pytest.mark.parametrize(("n", "budget"), [(5, 1), (5, 2), (5, 7)])
def test_a_follower_with_a_circuit(n, budget):
    """Travelling salesman with interdiction: CP-SAT's circuit has no rows."""
    pairs, every = tours(n)
    leader, follower = cp_model.CpModel(), cp_model.CpModel()
    x = [leader.new_bool_var(f"x{p}") for p in pairs]
    leader.add(sum(x) <= budget)
    arcs = {(i, j): follower.new_bool_var("") for i in range(n) for j in range(n) if i != j}
    follower.add_circuit([(i, j, a) for (i, j), a in arcs.items()])
    y = [follower.new_bool_var(f"y{p}") for p in pairs]
    for edge, (i, j) in zip(y, pairs, strict=True):
        follower.add(edge == arcs[i, j] + arcs[j, i])
    program = bg.bilevel(leader, follower, responds=y, costs={"w": y, "d": list(zip(y, x, strict=True))})
    w, d = np.random.default_rng(n + budget).uniform(1, 5, (2, len(pairs)))
    blocked = np.array([b for b in itertools.product([0.0, 1.0], repeat=len(pairs)) if sum(b) <= budget])
    best = max((every @ (w + d * b)).min() for b in blocked)
    solution = program.solve({"w": w, "d": d}, verify=True)
    assert solution.status is Status.GLOBAL
    assert solution.value == pytest.approx(best, abs=1e-8)
    assert solution.stats.follower_gap == pytest.approx(0, abs=1e-8)
    assert (every == solution[y]).all(1).any()


@pytest.mark.parametrize("seed", range(6))
def test_a_leader_within_a_follower_that_no_rows_can_say(seed):
    """The follower's values are all different, and different from the leader's: the leader stands in its constraint."""
    rng = np.random.default_rng(seed)
    leader, follower = cp_model.CpModel(), cp_model.CpModel()
    x, seen = CpSat.variables(leader, 2, 0, 3, "x"), CpSat.variables(leader, 3, 0, 4, "seen")
    given, y = CpSat.variables(follower, 2, 0, 3, "given"), CpSat.variables(follower, 3, 0, 4, "y")
    follower.add_all_different(*given, *y)
    leader.add(sum(x) + sum(seen) <= 10)
    f, g = rng.integers(-4, 5, 5), rng.integers(-4, 5, 3)
    leader.minimize(dot(f, [*x, *seen]))
    follower.maximize(dot(g, y))
    program = bg.bilevel(
        leader, follower, link=dict(zip(x, given, strict=True)), responds=dict(zip(y, seen, strict=True))
    )
    best = np.inf
    for a in itertools.product(range(4), repeat=2):
        answers = [b for b in itertools.product(range(5), repeat=3) if len({*a, *b}) == 5]
        top = max((g @ b for b in answers), default=None)
        fine = [b for b in answers if g @ b == top and sum(a) + sum(b) <= 10]
        best = min([best, *(f @ [*a, *b] for b in fine)])
    solution = program.solve()
    if np.isinf(best):
        assert solution.status is Status.INFEASIBLE_UPPER
        return
    assert solution.status is Status.GLOBAL
    assert solution.value == best


def test_one_level_with_a_circuit_and_costs_from_torch():
    pairs, every = tours(5)
    model = cp_model.CpModel()
    arcs = {(i, j): model.new_bool_var("") for i in range(5) for j in range(5) if i != j}
    model.add_circuit([(i, j, a) for (i, j), a in arcs.items()])
    y = [model.new_bool_var(f"y{p}") for p in pairs]
    for edge, (i, j) in zip(y, pairs, strict=True):
        model.add(edge == arcs[i, j] + arcs[j, i])
    costs = torch.rand(6, len(y), generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    layer = bg.Layer(bg.argmin(model, costs={"c": y}), variables=[y], gradient=bg.Identity())
    (found,) = layer(costs)
    assert found.detach().numpy() == pytest.approx(every[(costs.detach().numpy() @ every.T).argmin(1)])
    found.sum().backward()
    assert torch.equal(costs.grad, -torch.ones_like(costs))


def test_what_cannot_be_meant_is_refused():
    leader, follower = cp_model.CpModel(), cp_model.CpModel()
    x, z = leader.new_bool_var("x"), leader.new_bool_var("z")
    copy, y = follower.new_bool_var("copy"), follower.new_bool_var("y")
    follower.minimize(y)
    cases = [
        (lambda: bg.bilevel(leader, leader, link={x: z}), "same model"),
        (lambda: bg.bilevel(leader, follower), "nothing links"),
        (lambda: bg.bilevel(leader, follower, link={copy: x}), "not a variable of the leader's model"),
        (lambda: bg.bilevel(leader, follower, link={x: x}), "not a variable of the follower's model"),
        (lambda: bg.bilevel(leader, follower, link={x: copy, z: copy}), "copy of two variables"),
        (lambda: bg.bilevel(leader, follower, link={x: copy}, costs={"w": [copy]}), "copy of a leader's variable"),
        (lambda: bg.bilevel(leader, follower, link={x: copy}, costs={"w": [x, y]}), "both players"),
        (lambda: bg.bilevel(leader, follower, link={x: copy}, costs={"w": [x]}), "no objective"),
        (lambda: bg.bilevel(leader, follower, link={x: copy}, costs={"w": [y, y]}), "named already"),
        (lambda: bg.bilevel(leader, follower, link={x: copy}, costs={"w": []}), "empty"),
        (lambda: bg.bilevel(leader, follower, link={x: copy}, costs={"w": [(x, z)]}), "needs one of each"),
        (lambda: bg.bilevel(leader, follower, link=[x]), "give a dict"),
        (lambda: bg.bilevel(leader, "follower"), "give a cp_model.CpModel"),
        (lambda: bg.argmin(cp_model.CpModel()), "no variables"),
    ]
    for declare, message in cases:
        with pytest.raises(bg.DeclarationError, match=message):
            declare()
    program = bg.bilevel(leader, follower, link={x: copy}, costs={"w": [y]})
    with pytest.raises(bg.CapabilityError, match="Use Cuts"):
        program.solve(solver=bg.Pieces())
    with pytest.raises(bg.CapabilityError, match="Interpolate"):
        bg.Layer(program, gradient=bg.Implicit())
    with pytest.raises(bg.InputError, match="not a variable"):
        bg.Layer(program, variables=[[cp_model.CpModel().new_bool_var("stranger")]])
    with pytest.raises(bg.InputError, match="not a parameter"):
        program.solve({"v": [1.0]})
    with pytest.raises(bg.InputError, match="shape"):
        program.solve({"w": [1.0, 2.0]})


def test_equal_indices_of_two_models_are_two_variables():
    program, x, y = interdiction(CpSat)
    solution = program.solve({"w": np.ones(12), "d": np.arange(12.0)})
    assert solution[x].sum() <= 2
    assert solution[y].sum() == 4
    stranger = cp_model.CpModel().new_bool_var("stranger")
    with pytest.raises(KeyError):
        solution[stranger]


def test_one_bad_item_does_not_lose_the_batch():
    program, _, _ = interdiction(MathOpt)
    w, d = torch.ones(3, 12), torch.ones(3, 12)
    w[1, 0] = torch.nan
    with pytest.raises(bg.SolveError, match="item 1"):
        bg.Layer(program)(w, d)
    w.requires_grad_()
    layer = bg.Layer(program, on_failure="nan")
    x, y = layer(w, d)
    assert x.isnan().all(1).tolist() == [False, True, False]
    y[[0, 2]].sum().backward()
    assert w.grad.isfinite().all()
    statuses = [s.status for s in layer.solve(w, d)]
    assert statuses == [Status.GLOBAL, Status.INVALID_INPUT, Status.GLOBAL]


def test_an_oracles_refusal_fails_its_item_alone():
    leader = cp_model.CpModel()
    x = [leader.new_bool_var(f"x{k}") for k in range(9)]
    leader.add(sum(x) <= 1)
    program = bg.bilevel(leader, bg.GridPath(3, 3), costs={"w": range(9), "d": list(enumerate(x))})
    w = torch.ones(3, 9)
    w[2, 4] = -1.0
    found = bg.Layer(program).solve(w, torch.ones(3, 9))
    assert [s.status for s in found] == [Status.GLOBAL, Status.GLOBAL, Status.INVALID_INPUT]
    assert "below 0" in found[2].stats.cause


def test_levels_without_an_answer_say_which():
    leader, follower = cp_model.CpModel(), cp_model.CpModel()
    x, copy, y = leader.new_int_var(0, 3, "x"), follower.new_int_var(0, 3, "copy"), follower.new_int_var(0, 3, "y")
    leader.minimize(x)
    follower.minimize(y)
    follower.add(y + copy >= 9)
    assert bg.bilevel(leader, follower, link={x: copy}).solve().status is Status.INFEASIBLE_LOWER
    leader.add(x >= 5)
    assert bg.argmin(leader).solve().status is Status.INFEASIBLE_UPPER
    free = mathopt.Model()
    v = free.add_variable(name="v")
    free.minimize(v)
    assert bg.argmin(free).solve().status is Status.UNBOUNDED_UPPER


def test_levels_are_the_two_formulas_of_bigrad():
    """Interpolate with the loss on one player's decision alone is that player's problem solved again at pushed costs."""
    program, x, y = interdiction(MathOpt)
    form = program.combinatorial
    w, d = np.random.default_rng(3).uniform(1, 3, (2, len(x)))
    solution = program.solve({"w": w, "d": d})
    for loss_on in (0, 1):
        costs = torch.tensor(w, requires_grad=True)
        layer = bg.Layer(program, gradient=bg.Interpolate(bg.Absolute(2.0)), variables=[x, y])
        push = np.random.default_rng(loss_on).normal(size=len(x))
        (layer(costs, torch.tensor(d))[loss_on] @ torch.tensor(push)).backward()
        if loss_on:
            nested = form.at([w, d])
            a = nested.follower.on_follower(solution[x])
            oracle = bg.GraphPath(np.array([(3 * i + j, 3 * k + m) for (i, j), (k, m) in path_edges()[1]]), 9, 0, 8)
            step = (oracle.solve((a + 2 * push)[None]) - oracle.solve(a[None]))[0] / 2
            # the follower's move also moves the leader's push, through y's place in the leader's costs: x has no push here
            assert costs.grad.numpy() == pytest.approx(step)


def test_pass_through_at_both_levels_is_minus_the_push():
    program, x, y = random_game(MathOpt, 1, costs=("z", "w"))
    z, w = (torch.randn(4, n, dtype=torch.float64, requires_grad=True) for n in (NX, NY))
    layer = bg.Layer(program, gradient=bg.Identity(), variables=[x, y])
    found = layer(z, w)
    push = [torch.randn_like(f) for f in found]
    torch.autograd.backward(found, push)
    senses = [p.sense for p in program.combinatorial.places]
    for grad, g, sense in zip((z.grad, w.grad), push, senses, strict=True):
        assert torch.allclose(grad, -sense * g)


@pytest.mark.parametrize("rule", ["Perturbed", "Score"])
def test_joint_gradients_are_those_of_the_smoothed_game(rule):
    """Within four standard errors of the score's mean over samples drawn and answered here, by enumeration."""
    program, x, y = interdiction(MathOpt, 1)
    rng, sigma, m = np.random.default_rng(5), 0.4, len(x)
    w, d = rng.uniform(1, 3, (2, m))
    push = rng.normal(size=2 * m)
    estimates = []
    for seed in range(12):
        costs = [torch.tensor(v, requires_grad=True) for v in (w, d)]
        kind = getattr(bg, rule)(sigma=sigma, samples=400, draws=bg.Fresh(seed))
        found = torch.cat(bg.Layer(program, gradient=bg.Joint(kind), variables=[x, y], solver=Enumeration())(*costs))
        (found @ torch.tensor(push)).backward()
        estimates.append(torch.cat([c.grad for c in costs]).numpy())
    z = rng.normal(size=(20000, 2 * m))
    theta = np.concatenate([w, d]) + sigma * z
    values = Enumeration().solve(program, (theta[:, :m], theta[:, m:])).w @ push
    own = z * (values - values.mean())[:, None] / sigma
    error = np.sqrt(np.var(estimates, 0, ddof=1) / len(estimates) + own.var(0, ddof=1) / len(own))
    assert (abs(np.mean(estimates, 0) - own.mean(0)) <= 4 * error + 1e-12).all()


def test_what_is_remembered_changes_nothing_but_the_time():
    program, _, _ = interdiction(MathOpt, 2)
    rng = np.random.default_rng(7)
    for _ in range(3):
        w, d = (torch.tensor(rng.uniform(1, 3, (8, 12))) for _ in range(2))
        kept, fresh = (bg.Layer(program, solver=bg.Cuts(remember=r)).solve(w, d) for r in (True, False))
        assert [s.value for s in kept] == pytest.approx([s.value for s in fresh])
        assert all(s.status is Status.GLOBAL for s in kept)


def test_a_time_limit_is_honest():
    program, _, _ = interdiction(MathOpt, 6)
    w, d = np.random.default_rng(8).uniform(1, 3, (2, 12))
    solution = program.solve({"w": w, "d": d}, solver=bg.Cuts(time_limit=1e-9))
    assert solution.status in (Status.OPEN, Status.TIME_LIMIT, Status.GLOBAL)
    if solution.status is Status.OPEN:
        best, _ = enumerate_nested(program.combinatorial.at([w, d]))
        assert solution.value <= -best + 1e-9
        assert solution.stats.bound >= -best - 1e-9


@fronts
@pytest.mark.parametrize(
    ("budget", "least", "status"), [(1, 1, "GLOBAL"), (1, 4, "INFEASIBLE_LOWER"), (-1, 1, "INFEASIBLE_UPPER")]
)
def test_booleans_against_a_model_count_what_they_cost_the_follower(front, budget, least, status):
    """min over y of y0 + y1 + 2 x0 + x1, where y0 + y1 >= least: the leader takes x0; y is 0 or 1."""
    leader, follower = front.model(), front.model()
    x, seen = front.variables(leader, 2, 0, 1, "x"), front.variables(follower, 2, 0, 1, "x")
    y = front.variables(follower, 2, 0, 1, "y")
    front.row(leader, x[0] + x[1], -5, budget)
    front.row(follower, y[0] + y[1], least, 5)
    follower.minimize(y[0] + y[1] + 2 * seen[0] + seen[1])
    solution = bg.bilevel(leader, follower, link=dict(zip(x, seen, strict=True)), responds=y).solve()
    assert solution.status is Status[status]
    if solution.status.ok:
        assert solution.value == 3
        assert solution[x].tolist() == [1, 0]


@pytest.mark.parametrize("size", [1e20, -1e300])
def test_costs_beyond_any_solver_fail_their_item_alone(size):
    program, x, _ = interdiction(MathOpt, budget=6)
    w = np.ones((2, len(x)))
    w[1, 0] = size
    fine, huge = bg.Layer(program, parameters=["w"]).solve(torch.tensor(w))
    assert fine.status is Status.GLOBAL
    assert huge.status is Status.FAILED
    assert "infinite" in huge.stats.cause


@pytest.mark.parametrize("rule", [bg.Interpolate(), bg.Joint(bg.Interpolate()), bg.Joint(bg.Perturbed(0.1, 4))])
def test_a_batch_in_which_all_fail_has_gradients_of_zero(rule):
    leader, follower = mathopt.Model(), mathopt.Model()
    x, seen, y = leader.add_binary_variable(), follower.add_binary_variable(), follower.add_binary_variable()
    follower.add_linear_constraint(y >= 2 + seen)
    follower.minimize(y)
    program = bg.bilevel(leader, follower, link={x: seen}, responds=[y], costs={"c": [y]})
    c = torch.ones(2, 1, requires_grad=True)
    found = bg.Layer(program, gradient=rule, on_failure="nan")(c)
    assert all(t.isnan().all() for t in found)
    sum(t.sum() for t in found).backward()
    assert (c.grad == 0).all()


@pytest.mark.parametrize("where", ["cost", "bound", "row", "side"])
def test_numbers_of_a_model_are_numbers(where):
    model, nan = mathopt.Model(), float("nan")
    x = model.add_variable(lb=nan if where == "bound" else 0, ub=1)
    model.add_linear_constraint(lb=nan if where == "side" else -1, expr=(float("inf") if where == "row" else 1) * x)
    model.minimize((nan if where == "cost" else 1) * x)
    with pytest.raises(bg.DeclarationError, match="NaN"):
        bg.argmin(model)


@fronts
def test_a_row_without_variables_that_cannot_hold_is_infeasible(front):
    leader, follower = front.model(), front.model()
    (x,), (seen, y) = front.variables(leader, 1, 0, 1, "x"), front.variables(follower, 2, 0, 1, "y")
    front.row(follower, 0 * y, 1, 2)
    follower.maximize(y)
    assert bg.argmin(follower).solve().status is Status.INFEASIBLE_UPPER
    assert bg.bilevel(leader, follower, link={x: seen}, responds=[y]).solve().status is Status.INFEASIBLE_LOWER


@fronts
def test_a_constant_objective_is_one(front):
    """A leader that says maximise is no opponent, even if there is nothing to maximise."""
    leader, follower = front.model(), front.model()
    (x,), (seen, y) = front.variables(leader, 1, 0, 2, "x"), front.variables(follower, 2, 0, 2, "y")
    front.row(follower, y + seen, 2, 4)
    follower.minimize(y)
    leader.maximize(3 + 0 * x)
    program = bg.bilevel(leader, follower, link={x: seen}, responds=[y])
    assert "against" not in program.explain()
    assert program.solve().value == 3


def test_programs_explain_themselves():
    program, _, _ = interdiction(CpSat)
    said = bg.Layer(program).explain()
    assert "against the follower" in said
    assert "Cuts" in said
    assert "Interpolate" in said


@pytest.mark.parametrize("rule", [bg.Perturbed(sigma=0.3, samples=16), bg.Interpolate()])
def test_a_perturbed_program_without_a_solution_takes_no_other_item_with_it(rule):
    """The leader forbids one of the follower's two answers, so costs near the tie have neighbours without a solution."""
    leader, follower = cp_model.CpModel(), cp_model.CpModel()
    x, seen = leader.new_bool_var("x"), follower.new_bool_var("seen")
    y, copies = ([m.new_bool_var(f"y{k}") for k in range(2)] for m in (follower, leader))
    follower.add_exactly_one(y)
    leader.add(copies[0] == 1)
    leader.minimize(x - copies[0])
    follower.minimize(y[0] + y[1])
    program = bg.bilevel(leader, follower, link={x: seen}, responds=dict(zip(y, copies, strict=True)), costs={"c": y})
    layer = bg.Layer(program, variables=[y], gradient=bg.Joint(rule), on_failure="nan")
    costs = torch.tensor([[0.0, 9.0], [0.0, 0.05], [-9.0, 9.0]], dtype=torch.float64, requires_grad=True)
    early = isinstance(rule, bg.Perturbed)  # it looks around for the values already
    weights = torch.tensor([[0.0, 0.0], [30.0, -30.0], [0.0, 0.0]], dtype=torch.float64)
    with pytest.warns(bg.SolveWarning, match=r"item 1: .*NaN there"):  # noqa: PT031
        (found,) = layer(costs)
        torch.nansum(found * weights).backward()
    assert found.isnan().any(1).tolist() == [False, early, False]
    assert costs.grad.isfinite().all(1).tolist() == [True, early, True]
    if early:
        with pytest.warns(bg.SolveWarning), pytest.raises(bg.SolveError, match="item 1: NOT_FOUND"):
            bg.Layer(program, gradient=bg.Joint(rule))(costs)
