"""Prices: multipliers of lower constraints in the upper problem and among the outputs, against CVXPY's own dual values."""

import pickle
import warnings

import cvxpy as cp
import numpy as np
import pytest
import torch
from derivatives import compare
from helpers import Case, case, check_point, fixed, objective_at, solved

import bigrad as bg
from bigrad.solvers.pieces import Pieces
from bigrad.solvers.relaxation import Relaxation

x = cp.Variable(2, name="x")
y, u = cp.Variable((2, 2), name="y"), cp.Variable(3, name="u")
t, a, k = cp.Parameter((2, 2), name="t"), cp.Parameter(3, name="a"), cp.Parameter(name="k")
VALUES = {t: np.array([[0.4, -0.8], [1.1, 0.3]]), a: np.array([0.9, 0.2, 1.3]), k: 0.7}

CONSTRAINTS = {
    "a scalar equality": lambda: cp.sum(y) + cp.sum(u) == k + x[0],
    "a scalar inequality": lambda: cp.sum(u) <= x[1] + 0.1 * k,
    "a vector": lambda: u <= a,
    "a vector from below": lambda: u >= 2.5 * a,
    "a matrix": lambda: y <= t,
    "a matrix equality": lambda: y[:, :1] + x[0] == t[:, :1],
    "abs": lambda: cp.abs(u) <= 0.5,
    "abs of a matrix": lambda: cp.abs(y - x[0]) <= 0.4,
    "max": lambda: cp.max(u) <= 0.3 + k / 10,
    "norm1": lambda: cp.norm1(u) <= 0.7 + x[1] / 4,
    "norm_inf": lambda: cp.norm_inf(y) <= 0.6,
    "a sum of positive parts": lambda: cp.sum(cp.pos(u)) <= 0.5,
    "Zero": lambda: cp.constraints.Zero(u[0] - x[0] * 0.5 - k),
    "NonNeg": lambda: cp.constraints.NonNeg(u - 2 * a),
}
UPPER = {
    "an output": lambda p: cp.sum_squares(x) + cp.sum_squares(u - 1) + cp.sum_squares(y),
    "a square": lambda p: cp.sum_squares(x - 0.5) + cp.sum_squares(p - 0.4) + 0.2 * cp.sum(u),
    "a product": lambda p: cp.sum_squares(x - 0.5) + cp.sum(p) * u[0] / 4 + 2 * cp.sum_squares(u - y[0, 0]),
    "exp": lambda p: cp.sum_squares(x - 0.5) + 0.3 * cp.exp(cp.sum(p) / 9) + cp.sum_squares(u - y[0, 0]),
}


def duals(made: Case, solution: bg.Solution) -> list[np.ndarray]:
    """CVXPY's dual values of the lower problem alone, the leader's variables and the parameters as numbers."""
    below = fixed(made.lower, {**made.values, **{v: solution[v] for v in made.leader if v in solution.values}})
    solved(below)
    return [c.dual_value for c in below.constraints]


def priced(kind: str, use: str, sense: float = 1.0) -> tuple[Case, cp.Variable]:
    constraint = CONSTRAINTS[kind]()
    price = constraint.dual_variables[0]
    goal = cp.sum_squares(y - t) + cp.sum_squares(u - 2 * a - x[1]) + 0.3 * cp.sum(y) + x @ u[:2]
    goal = goal + cp.square(cp.sum(u) + cp.sum(y)) / 10
    lower = cp.Minimize(goal) if sense > 0 else cp.Maximize(-goal)
    known = {p.id for p in cp.Problem(lower, [constraint]).parameters()}
    values = {p: value for p, value in VALUES.items() if p.id in known}
    return case(UPPER[use](price), lower, [y, u], [x <= 3, x >= -3], [constraint], values), price


@pytest.mark.parametrize("kind", CONSTRAINTS)
@pytest.mark.parametrize("use", UPPER)
@pytest.mark.parametrize("sense", [1.0, -1.0], ids=["min", "max"])
def test_prices_are_the_dual_values_and_have_gradients(kind, use, sense):
    made, price = priced(kind, use, sense)
    report = compare(made, [x, u, price])
    solution = report.solution
    assert solution.status in (bg.Status.GLOBAL, bg.Status.LOCAL)
    np.testing.assert_allclose(
        solution[price], duals(made, solution)[0], atol=1e-4
    )  # Clarabel's, where both sides vanish
    at = {**made.values, **{v: solution[v] for v in (x, y, u, price) if v in solution.values or v is price}}
    assert abs(objective_at(made.upper, at) - solution.value) <= 1e-8 * (1 + abs(solution.value))
    assert made.program.solve(made.values, verify=True).stats.follower_gap <= 1e-6
    assert report.agreeing
    assert report.worst <= 1e-5
    assert all(d.one_sided <= 1e-4 for d in report.kinks)


def check_prices(made: Case, solution: bg.Solution) -> None:
    """Assert that the prices are a dual solution: the Lagrangian's minimum over the follower's variables, by Clarabel, is the
    follower's objective.
    """
    known = {**made.values, **{v: solution[v] for v in made.leader if v in solution.values}}
    prices = [np.asarray(solution[c.dual_variables[0]]) for c in made.lower.constraints]
    for c, price in zip(made.lower.constraints, prices, strict=True):
        assert not isinstance(c, cp.constraints.nonpos.Inequality) or price.min() >= -1e-9
    below = fixed(made.lower, known)
    terms = [cp.sum(cp.multiply(p, c.expr)) for p, c in zip(prices, below.constraints, strict=True)]
    least = solved(cp.Problem(cp.Minimize(below.objective.expr + sum(terms))))
    here = objective_at(made.lower, {**known, **{v: solution[v] for v in made.responds}})
    assert abs(here - least) <= 1e-6 * (1 + abs(here))


def market() -> tuple[Case, cp.Variable, cp.Constraint, dict[str, cp.Parameter]]:
    """A leader who sells q into a market of demand d that a fringe of cost b g^2 / 2 serves otherwise: the price is b (d - q)."""
    b, d, c = (cp.Parameter(name=name, nonneg=True) for name in "bdc")
    q, g = cp.Variable(name="q", nonneg=True), cp.Variable(name="g")
    balance = g + q == d
    price = -balance.dual_variables[0]
    made = case(cp.Maximize(price * q - c * q), b * cp.square(g) / 2, g, [], [balance], {b: 2.0, d: 3.0, c: 1.0})
    return made, q, balance, {"b": b, "d": d, "c": c}


@pytest.mark.parametrize("solver", [None, Relaxation(starts=1)])
def test_strategic_seller_in_closed_form(solver):
    made, sold, balance, p = market()
    solution = made.program.solve(made.values, solver=solver)
    b, d, c = 2.0, 3.0, 1.0
    q = (b * d - c) / (2 * b)
    assert solution[sold] == pytest.approx(q, abs=1e-8)
    assert -solution[balance.dual_variables[0]] == pytest.approx(b * (d - q), abs=1e-8)
    assert solution.value == pytest.approx((b * (d - q) - c) * q, abs=1e-8)
    assert balance.dual_value == pytest.approx(-b * (d - q), abs=1e-8)

    layer = bg.Layer(made.program, list(p.values()), [balance.dual_variables[0], sold], solver=solver)
    tensors = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (b, d, c)]
    dual, quantity = layer(*tensors)
    slopes = torch.autograd.grad(dual, tensors, retain_graph=True)  # the price is (bd + c) / 2
    torch.testing.assert_close(torch.stack(slopes), torch.tensor([-d / 2, -b / 2, -0.5], dtype=torch.float64))
    slopes = torch.autograd.grad(quantity, tensors)
    torch.testing.assert_close(
        torch.stack(slopes), torch.tensor([c / (2 * b * b), 0.5, -1 / (2 * b)], dtype=torch.float64)
    )


@pytest.mark.parametrize("smooth", [False, True])
def test_a_price_cap_binds(smooth):
    made, q, balance, _ = market()
    price, cap = -balance.dual_variables[0], cp.Parameter(name="cap")
    goal = made.upper.objective.expr - (cp.exp(price - 9) if smooth else 0)
    capped = case(
        cp.Maximize(goal), made.lower.objective, made.responds, [price <= cap], [balance], {**made.values, cap: 2.5}
    )
    report = compare(capped, [balance.dual_variables[0], q])
    assert report.solution[balance.dual_variables[0]] == pytest.approx(-2.5, abs=1e-8)
    assert report.solution[q] == pytest.approx(3.0 - 2.5 / 2.0, abs=1e-8)
    assert report.worst <= 1e-5
    assert capped.program.solve({**capped.values, cap: -1.0})[q] == pytest.approx(3.5, abs=1e-8)  # the fringe buys


def dispatch() -> tuple[Case, cp.Constraint, cp.Parameter]:
    """Economic dispatch as a linear program: units of cost 1 (3 of it), the leader's bid (4; its cost is 2) and 9 (6)."""
    demand, bid, g = cp.Parameter(name="demand"), cp.Variable(name="bid"), cp.Variable(3, name="g")
    balance = cp.sum(g) == demand
    rows = [balance, g >= 0, g <= np.array([3.0, 4.0, 6.0])]
    profit = -balance.dual_variables[0] * g[1] - 2 * g[1]
    lower = bid * g[1] + np.array([1.0, 0, 9.0]) @ g
    return case(cp.Maximize(profit), lower, g, [bid >= 0, bid <= 20], rows, {demand: 6.0}), balance, demand


@pytest.mark.parametrize(
    ("amount", "price", "profit"),
    [
        (5.0, 9.0, 2 * 7.0),
        (6.0, 9.0, 3 * 7.0),
        (8.0, 9.0, 4 * 7.0),
        (12.0, 20.0, 3 * 18.0),
        (13.0, None, None),
        (14.0, None, None),
    ],
)
def test_strategic_bids_in_economic_dispatch(amount, price, profit):
    made, balance, demand = dispatch()
    made.values[demand] = amount
    solution = made.program.solve(made.values, verify=True)
    if amount > 13:
        assert solution.status is bg.Status.INFEASIBLE_LOWER
    elif amount == 13:  # all units run at their limits: the dual price has no upper end
        assert solution.status is bg.Status.UNBOUNDED_UPPER
    else:
        assert solution.stats.follower_gap <= 1e-7
        check_prices(made, solution)
        assert solution.value == pytest.approx(profit, abs=1e-6)
        assert -solution[balance.dual_variables[0]] == pytest.approx(price, abs=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_claims_hold_against_a_search_of_leader_decisions(seed):
    """One leader variable: no decision of a fine grid, answered by Clarabel with its dual values, beats a proven optimum."""
    rng = np.random.default_rng(seed)
    lead, answer = cp.Variable(name="lead", bounds=[-2, 2]), cp.Variable(3, name="answer")
    rows = [
        rng.standard_normal((2, 3)) @ answer + rng.standard_normal(2) * lead <= rng.uniform(0.1, 1, 2),
        cp.abs(answer) <= 1,
    ]
    price, other = (c.dual_variables[0] for c in rows)
    upper = (
        cp.square(lead - rng.uniform(-2, 2)) / 9
        + cp.sum_squares(price - rng.uniform(0, 1, 2))
        + rng.uniform(-1, 1, 3) @ answer
    )
    upper = upper + 0.3 * cp.sum(other)
    lower = cp.sum_squares(answer - 2 * rng.standard_normal(3)) + lead * (rng.standard_normal(3) @ answer)
    made = case(upper, lower, answer, [cp.sum(other) <= 4], rows)
    solution = made.program.solve()
    best = np.inf
    for value in np.linspace(-2, 2, 161):
        below = fixed(made.lower, {lead: value})
        solved(below)
        found = [c.dual_value for c in below.constraints]
        if found[1].sum() <= 4:
            at = {lead: value, answer: answer.value, price: found[0], other: found[1]}
            best = min(best, objective_at(made.upper, at))
    if solution.status is bg.Status.INFEASIBLE_UPPER:
        assert best == np.inf
        return
    assert solution.status is bg.Status.GLOBAL
    check_prices(made, solution)
    assert solution.value <= best + 1e-5
    assert made.program.solve(solver=Relaxation()).value >= solution.value - 1e-6


def tied() -> tuple[cp.Variable, cp.Variable, list[cp.Constraint], cp.Parameter, cp.Problem]:
    """A constraint written twice: its price w is shared between two multipliers in any way."""
    lead, answer, w = cp.Variable(name="lead"), cp.Variable(name="answer"), cp.Parameter(name="w", nonneg=True)
    rows = [answer >= lead, answer >= lead]
    return lead, answer, rows, w, cp.Problem(cp.Minimize(w * answer), rows)


@pytest.mark.parametrize(("sign", "first"), [(1, 0.0), (-1, 1.5)])
def test_the_leader_picks_among_prices(sign, first):
    lead, answer, rows, w, lower = tied()
    upper = cp.Problem(cp.Minimize(cp.square(lead - 1) + sign * rows[0].dual_variables[0]))
    solution = bg.bilevel(upper, lower, responds=[answer]).solve({w: 1.5})
    prices = [float(solution[c.dual_variables[0]]) for c in rows]
    np.testing.assert_allclose(prices, [first, 1.5 - first], atol=1e-7)


def test_prices_that_are_only_shown_are_one_choice_and_say_so():
    lead, answer, rows, w, lower = tied()
    program = bg.bilevel(cp.Problem(cp.Minimize(cp.square(lead - 1))), lower, responds=[answer])
    solution = program.solve({w: 1.5})
    prices = np.array([float(solution[c.dual_variables[0]]) for c in rows])
    assert prices.sum() == pytest.approx(1.5)
    assert prices.min() >= 0
    assert solution.stats.singular
    total, one = (
        bg.Layer(program, [w], some) for some in ([c.dual_variables[0] for c in rows], [rows[0].dual_variables[0]])
    )
    weight = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (slope,) = torch.autograd.grad(sum(total(weight)), weight)
    assert slope == pytest.approx(1.0)  # the sum is well defined, its parts are not
    (share,) = one(weight)
    with pytest.warns(bg.SingularWarning, match="not unique"):
        share.backward()


def test_a_batch_of_layers_with_prices():
    made, price = priced("a vector", "a square")
    layer = bg.Layer(made.program, [a, t], [price, x, u], on_failure="nan")
    many = torch.tensor(VALUES[a]) + 0.1 * torch.randn(
        5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    many[3, 0] = np.nan
    many.requires_grad_()
    found = layer(many, torch.tensor(VALUES[t]))
    assert [tuple(v.shape) for v in found] == [(5, 3), (5, 2), (5, 3)]
    assert found[0][3].isnan().all()
    slopes = torch.autograd.grad(torch.nan_to_num(found[0]).sum(), many)[0]
    assert not slopes[3].any()
    for i in (0, 1, 2, 4):
        alone = many[i].detach().clone().requires_grad_()
        one = layer(alone, torch.tensor(VALUES[t]))
        for v, w in zip(found, one, strict=True):
            torch.testing.assert_close(v[i], w, atol=1e-9, rtol=0)
        torch.testing.assert_close(slopes[i], torch.autograd.grad(one[0].sum(), alone)[0])
    solutions = layer.solve(many.detach(), torch.tensor(VALUES[t]), verify=True)
    np.testing.assert_allclose(solutions[4][price], found[0][4].detach(), atol=1e-9)
    assert np.isnan(solutions[3][price]).all()
    assert solutions[4].stats.follower_gap <= 1e-7


def test_second_derivatives_of_prices():
    made, q, balance, p = market()
    p["c"].value = 1.0
    layer = bg.Layer(made.program, [p["b"], p["d"]], [balance.dual_variables[0], q])
    inputs = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.0, 3.0)]
    assert torch.autograd.gradcheck(layer, inputs)
    assert torch.autograd.gradgradcheck(layer, inputs)


def test_dual_values_are_filled_and_cleared():
    made, _ = priced("a vector", "an output")
    constraint = made.lower.constraints[0]
    solution = made.program.solve(made.values)
    np.testing.assert_array_equal(constraint.dual_value, solution[constraint.dual_variables[0]])
    made.program.solve({**made.values, a: np.full(3, np.nan)})
    assert constraint.dual_value is None
    with pytest.raises(KeyError, match=r"which has .*x.*dual variable of a lower constraint"):
        solution[cp.Variable(name="stranger")]


@pytest.mark.parametrize("use", ["a square", "a product", "exp"])
def test_programs_with_prices_pickle_and_start_warm(use):
    made, price = priced("a scalar inequality", use)
    solution = made.program.solve(made.values)
    again = pickle.loads(pickle.dumps(made.program))
    values = {i.handle: made.values[j.handle] for i, j in zip(again.inputs, made.program.inputs, strict=True)}
    other = again.solve(values)
    assert other.value == pytest.approx(solution.value, abs=1e-9)
    np.testing.assert_allclose(other[again.duals[0].handle], solution[price], atol=1e-8)
    warm = made.program.solve(made.values, warm_start=solution)
    assert warm.value <= solution.value + 1e-9
    np.testing.assert_allclose(warm[price], solution[price], atol=1e-7)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_units_do_not_matter(scale):
    lead, answer = cp.Variable(name="lead"), cp.Variable(2, name="answer")
    limit = cp.sum(answer) <= lead * scale
    price = limit.dual_variables[0] * scale  # the objective of the follower is in units of 1 / scale, too
    lower = cp.Problem(cp.Minimize(cp.sum_squares(answer - np.array([2.0, 1.0]) * scale) / scale**2), [limit])
    upper = cp.Problem(cp.Minimize(cp.square(price - 0.5) + cp.square(lead) / 100))
    solution = bg.bilevel(upper, lower, responds=[answer]).solve()
    assert solution.status is bg.Status.GLOBAL
    # price = (3 - lead) for lead <= 3
    best = (2.5 * 100) / 101
    assert solution[lead] == pytest.approx(best, abs=1e-6)
    assert solution[limit.dual_variables[0]] * scale == pytest.approx(3 - best, abs=1e-6)


def test_explain_and_accepts():
    made, _ = priced("a vector", "a square")
    assert "upper level convex" in made.program.explain()
    assert Pieces().accepts(made.program) is None
    made, _ = priced("a vector", "exp")
    assert "not quadratic" in made.program.explain()


def _refused(constraint: cp.Constraint, *, above: bool = False, below: bool = False) -> bg.Program:
    price = cp.sum(constraint.dual_variables[0])
    rows = [] if above else [constraint]
    goal = cp.sum_squares(u - x[0]) + (price * cp.sum(u) if below else 0)
    return bg.bilevel(
        cp.Problem(cp.Minimize(cp.sum_squares(x) + (0 if below else price)), [constraint] if above else []),
        cp.Problem(cp.Minimize(goal), rows),
        responds=[u],
    )


REFUSED = {
    "of the leader alone": (lambda: _refused(x <= 1), "does not involve the follower's variables"),
    "of the upper level": (lambda: _refused(u <= 1, above=True), "the price of its own constraint"),
    "in the lower problem": (lambda: _refused(u <= 1, below=True), "prices may stand in the upper problem only"),
    "of a cone": (lambda: _refused(cp.SOC(x[0] + 3, u)), "a SOC constraint has no price here"),
    "to choose": (
        lambda: bg.bilevel(
            cp.Problem(cp.Minimize(cp.sum_squares(x))),
            cp.Problem(cp.Minimize(cp.sum_squares(u)), [u <= 1]),
            [cp.Variable()],
        ),
        "cannot respond",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_prices(name):
    build, words = REFUSED[name]
    with pytest.raises(bg.DeclarationError, match=words):
        build()


def test_a_layer_refuses_what_has_no_price():
    made, _ = priced("a vector", "an output")
    with pytest.raises(bg.InputError, match="not a variable of this program"):
        bg.Layer(made.program, [a], [(x <= 1).dual_variables[0]])


@pytest.mark.filterwarnings(r"ignore:\s*Explicitly invoking")
def test_nonpos_constraints_are_kept():
    limit = cp.constraints.NonPos(u - a)
    made = case(cp.sum_squares(x), cp.sum_squares(u - 2 * a - x[0]), u, [], [limit], {a: VALUES[a]})
    solution = made.program.solve(made.values)
    check_point(made, solution)
    np.testing.assert_allclose(solution[u], VALUES[a], atol=1e-8)
    np.testing.assert_allclose(solution[limit.dual_variables[0]], 2 * VALUES[a], atol=1e-8)
