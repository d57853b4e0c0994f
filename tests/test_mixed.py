"""CVXPY problems with integer followers: against enumeration, against the same program in MathOpt, refused by name."""

import pickle

import cvxpy as cp
import numpy as np
import pytest
import torch
from games import Enumeration, enumerate_nested
from ortools.math_opt.python import mathopt

import bigrad as bg
from bigrad.solution import Status

NX, NY = 3, 4


def data(seed):
    rng = np.random.default_rng(seed)
    return {
        "A": rng.integers(-2, 3, (2, NX)),
        "B": rng.integers(-2, 3, (2, NY)),
        "b": rng.integers(0, 6, 2),
        "p": rng.integers(-2, 3, NX),
        "q": rng.integers(-2, 3, NY),
        "f": rng.integers(-4, 5, NX),
        "g": rng.integers(-4, 5, NY),
        "h": rng.integers(-4, 5, NY),
        "D": rng.integers(-2, 3, (NX, NY)),
        "maximise": rng.random(2) < 0.5,
    }


def game(seed):
    """A random game, costs f and h as Parameters, products in the follower's objective."""
    d = data(seed)
    x, y = (
        cp.Variable(NX, integer=True, bounds=[0, 2], name="x"),
        cp.Variable(NY, integer=True, bounds=[-1, 2], name="y"),
    )
    f, h = cp.Parameter(NX, name="f"), cp.Parameter(NY, name="h")
    senses = [cp.Maximize if m else cp.Minimize for m in d["maximise"]]
    upper = cp.Problem(senses[0](f @ x + d["g"] @ y), [d["p"] @ x + d["q"] @ y <= 6, d["p"] @ x + d["q"] @ y >= -3])
    lower = cp.Problem(senses[1](h @ y + x @ d["D"] @ y), [d["A"] @ x + d["B"] @ y <= d["b"]])
    f.value, h.value = d["f"], d["h"]
    return bg.bilevel(upper, lower, responds=[y]), [x, y], [f, h]


def same_in_mathopt(seed):
    d = data(seed)
    leader, follower = mathopt.Model(), mathopt.Model()
    x = [leader.add_integer_variable(lb=0, ub=2) for _ in range(NX)]
    seen = [leader.add_integer_variable(lb=-1, ub=2) for _ in range(NY)]
    given = [follower.add_integer_variable(lb=0, ub=2) for _ in range(NX)]
    y = [follower.add_integer_variable(lb=-1, ub=2) for _ in range(NY)]

    def dot(a, v):
        return sum(float(i) * j for i, j in zip(a, v, strict=True))

    leader.add_linear_constraint(lb=-3, expr=dot(d["p"], x) + dot(d["q"], seen), ub=6)
    for a, b, bound in zip(d["A"], d["B"], d["b"], strict=True):
        follower.add_linear_constraint(dot(a, given) + dot(b, y) <= float(bound))
    cross = sum(float(d["D"][i, j]) * given[i] * y[j] for i in range(NX) for j in range(NY))
    leader.set_objective(dot(d["f"], x) + dot(d["g"], seen), is_maximize=bool(d["maximise"][0]))
    follower.set_objective(dot(d["h"], y) + cross, is_maximize=bool(d["maximise"][1]))
    links = dict(zip(x, given, strict=True)), dict(zip(y, seen, strict=True))
    return bg.bilevel(leader, follower, link=links[0], responds=links[1], costs={"f": x, "h": y}), [x, y]


@pytest.mark.parametrize("seed", range(12))
def test_the_optimum_is_that_of_enumeration_and_of_mathopt(seed):
    program, (x, y), parameters = game(seed)
    solution = program.solve(verify=True)
    form = program.combinatorial
    value, w = enumerate_nested(form.at(program.extended(tuple(p.value.astype(float) for p in parameters))))
    other = same_in_mathopt(seed)[0].solve()
    assert solution.status is other.status
    assert (w is not None) == solution.status.ok
    if w is None:
        assert x.value is None
        return
    assert solution.status is Status.GLOBAL
    assert solution.value == pytest.approx(program.sign * value)
    assert solution.value == pytest.approx(other.value)
    assert solution.lower_value == pytest.approx(other.lower_value)
    assert solution.stats.bound == pytest.approx(solution.value)
    assert solution.stats.follower_gap == pytest.approx(0, abs=1e-9)
    assert (x.value == solution[x]).all()
    assert (y.value == solution[y]).all()


RULES = [None, bg.Identity(), bg.Joint(bg.Interpolate()), bg.Joint(bg.Perturbed(sigma=0.5, samples=8))]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_layers_and_gradients_are_those_of_mathopt(rule):
    seed = 1
    program, variables, parameters = game(seed)
    other, handles = same_in_mathopt(seed)
    solver = Enumeration()
    one = bg.Layer(program, parameters=parameters, variables=variables, solver=solver, gradient=rule)
    two = bg.Layer(other, ["f", "h"], handles, solver=solver, gradient=rule)
    generator = torch.Generator().manual_seed(0)
    found = []
    costs = [torch.randn(5, n, generator=generator, dtype=torch.float64) for n in (NX, NY)]
    pushes = [torch.randn(5, n, generator=generator, dtype=torch.float64) for n in (NX, NY)]
    for layer in (one, two):
        torch.manual_seed(0)
        theta = [c.clone().requires_grad_() for c in costs]
        outputs = layer(*theta)
        torch.autograd.backward(outputs, pushes)
        found.append([*(o.detach() for o in outputs), *(t.grad for t in theta)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_shapes_are_cvxpys_and_costs_any_linear_function_of_parameters():
    x, y = cp.Variable((2, 3), boolean=True, name="x"), cp.Variable((2, 3), boolean=True, name="y")
    C, s = cp.Parameter((2, 3), name="C", nonneg=True), cp.Parameter(name="s")
    gain = cp.sum(cp.multiply(C, y)) - s * cp.sum(cp.multiply(x, y)) + 2 * cp.trace(C @ x.T)
    upper = cp.Problem(cp.Minimize(gain + s * cp.sum(1 - x) + cp.sum(C) / 2), [cp.sum(x) <= 2])
    lower = cp.Problem(
        cp.Maximize(cp.sum(cp.multiply(C, cp.multiply(y, 1 - x))) - s), [cp.sum(y, axis=0) == 1, cp.sum(x[0]) <= 1]
    )
    program = bg.bilevel(upper, lower, responds=[y])
    layer = bg.Layer(program, parameters=[s, C], variables=[y, x])
    values = torch.rand(4, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    found_y, found_x = layer(scale, values)
    assert found_y.shape == found_x.shape == (4, 2, 3)
    (found_y * values.detach() ** 2).sum().backward()
    assert values.grad.shape == values.shape
    assert scale.grad is not None
    for i in range(4):
        given = values[i].detach().numpy()
        solution = program.solve({C: given, s: 0.3}, verify=True)
        best, w = enumerate_nested(program.combinatorial.at(program.extended((given.ravel("F"), np.array([0.3])))))
        at = w[:6].reshape((2, 3), order="F"), w[6:].reshape((2, 3), order="F")
        assert solution[x] == pytest.approx(at[0])
        C.value, s.value, x.value, y.value = given, 0.3, *at
        assert solution.value == pytest.approx(upper.objective.value)
        assert solution.lower_value == pytest.approx(lower.objective.value)
        assert solution.stats.follower_gap == pytest.approx(0, abs=1e-9)
        assert best + solution.value - best == pytest.approx(solution.stats.bound)
        assert found_x[i].detach().numpy() == pytest.approx(at[0])
    wrong = program.solve({C: -np.ones((2, 3)), s: 0.3})
    assert wrong.status is Status.INVALID_INPUT
    assert y.value is None


@pytest.mark.filterwarnings("error")
def test_vectors_of_one_entry_and_bounds_written_as_constraints():
    """A product of two vectors of one entry is a number; bounds that only rows tell leave the product's floor infinite."""
    x, y, c = cp.Variable(1, integer=True), cp.Variable(1, integer=True), cp.Parameter(1)
    lower = cp.Problem(cp.Minimize(c @ y), [y >= x - 1, y >= -2, y <= 2])
    upper = cp.Problem(cp.Maximize(3 * x[0] * y[0] - x[0]), [x >= -2, x <= 2])
    program = bg.bilevel(upper, lower, responds=[y])
    for cost in (1.0, -1.0):
        values = [
            3 * a * b - a
            for a in range(-2, 3)
            for b in [min((b for b in range(-2, 3) if b >= a - 1), key=lambda b, s=cost: s * b)]
        ]
        solution = program.solve({c: [cost]})
        assert solution.status is Status.GLOBAL
        assert solution.value == pytest.approx(max(values))


def test_one_level_is_a_layer_too():
    y, c = cp.Variable((2, 2), name="y", boolean=True), cp.Parameter((2, 2), name="c")
    z = cp.Variable(name="z", bounds=[-1, None])
    problem = cp.Problem(cp.Maximize(cp.sum(cp.multiply(c, y)) - z / 2), [cp.sum(y) <= 2, z >= cp.sum(y) - 1])
    program = bg.argmin(problem)
    given = np.array([[3.0, 1.0], [-1.0, 2.0]])
    solution = program.solve({c: given}, verify=True)
    assert solution.status is Status.GLOBAL
    assert y.value == pytest.approx(np.array([[1, 0], [0, 1]]))
    assert z.value == pytest.approx(1.0)
    assert solution.value == pytest.approx(4.5)
    assert solution.stats.follower_gap == pytest.approx(0, abs=1e-9)
    costs = torch.tensor(given, requires_grad=True)
    (found,) = bg.Layer(program, parameters=[c], variables=[y], gradient=bg.Identity())(costs)
    found.sum().backward()
    assert torch.equal(costs.grad, torch.ones_like(costs))


def test_knapsack_interdiction_as_in_the_textbooks():
    rng = np.random.default_rng(4)
    weights, price, profits = rng.integers(1, 8, 6), rng.integers(1, 8, 6), rng.integers(1, 12, 6).astype(float)
    x, y, p = cp.Variable(6, boolean=True), cp.Variable(6, boolean=True), cp.Parameter(6, name="p")
    upper = cp.Problem(cp.Minimize(p @ y), [price @ x <= 9])
    lower = cp.Problem(cp.Maximize(p @ y), [weights @ y <= 12, x + y <= 1])
    program = bg.bilevel(upper, lower, responds=[y])
    solution = program.solve({p: profits})
    value, _ = enumerate_nested(program.combinatorial.at(program.extended((profits,))))
    assert solution.value == pytest.approx(value)
    assert solution.lower_value == pytest.approx(value)


X, Y, K = (
    cp.Variable(2, name="x"),
    cp.Variable(2, name="y", integer=True, bounds=[0, 3]),
    cp.Variable(name="k", integer=True),
)
P = cp.Parameter(name="p", value=1.0)


@pytest.mark.parametrize(
    ("above", "rows", "below", "limits", "message"),
    [
        (cp.sum_squares(X), [], cp.sum(Y), [], "'y' is integer.*quad_over_lin.*is not linear"),
        (cp.sum(X), [], cp.sum(cp.multiply(Y, Y)), [], "multiplies 'y' by 'y'"),
        (X[0] * X[1], [], cp.sum(Y), [], "multiplies 'x' by 'x'"),
        (P * P * X[0], [], cp.sum(Y), [], "multiplies 'p' by 'p'"),
        (cp.exp(P) * X[0], [], cp.sum(Y), [], r"exp\(p\) is not linear"),
        (X[0] / P, [], cp.sum(Y), [], "is not linear"),
        (cp.sum(X), [P * X[0] <= 1], cp.sum(Y), [], "holds parameter 'p'"),
        (cp.sum(X), [], cp.sum(Y), [X @ Y <= 1], "multiplies a leader's variable by a follower's"),
        (cp.sum(X), [cp.norm(X) <= 1], cp.sum(Y), [], "is not linear"),
        (cp.sum(X), [cp.SOC(X[0], X)], cp.sum(Y), [], "is a SOC constraint"),
    ],
)
def test_what_is_not_linear_is_refused_by_name(above, rows, below, limits, message):
    with pytest.raises(bg.DeclarationError, match=message):
        bg.bilevel(cp.Problem(cp.Minimize(above), rows), cp.Problem(cp.Minimize(below), limits), responds=[Y])


def test_other_refusals():
    lower = cp.Problem(cp.Minimize(cp.sum(Y)), [cp.sum(Y) >= X[0]])
    price = lower.constraints[0].dual_variables[0]
    with pytest.raises(bg.DeclarationError, match="has no prices"):
        bg.bilevel(cp.Problem(cp.Minimize(cp.sum(X) + price)), lower, responds=[Y])
    problems = [cp.Problem(cp.Minimize(K + 0 * cp.sum(X))), lower]
    with pytest.raises(bg.DeclarationError, match="among several followers"):
        bg.bilevel(cp.Problem(cp.Minimize(cp.sum(X))), problems, responds=[[K], [Y]])
    program, variables, parameters = game(0)
    with pytest.raises(bg.CapabilityError, match="Interpolate"):
        bg.Layer(program, parameters, variables, gradient=bg.Implicit())
    with pytest.raises(bg.InputError, match="is not a variable"):
        bg.Layer(program, parameters, [X])


def test_programs_pickle():
    program, _, parameters = game(1)
    again = pickle.loads(pickle.dumps(program))
    values = [p.value for p in parameters]
    found = again.solve({i.handle: v for i, v in zip(again.inputs, values, strict=True)})
    assert found.value == pytest.approx(program.solve().value)
