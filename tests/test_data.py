"""Functions of parameters and leader variables that become data: each against the program written out by hand, central
differences of re-solves, and the follower re-solved by CVXPY at the user's own problem.
"""

import pickle

import cvxpy as cp
import numpy as np
import pytest
import torch
from helpers import case, check_point

import bigrad as bg
from bigrad.programs import atoms
from bigrad.programs.data import gathered
from bigrad.programs.expressions import Holding
from bigrad.solution import Status

X, Y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
S, T, N = cp.Parameter(name="s"), cp.Parameter(2, name="t"), cp.Parameter(name="n", nonneg=True)
M = cp.Parameter((2, 2), name="M")
P, D = np.array([[2.0, 0.5], [0.5, 1.0]]), cp.Parameter((2, 2), name="d", PSD=True)
VALUES = {
    D: np.array([[1.5, -0.4], [-0.4, 0.8]]),
    S: 0.7,
    T: np.array([0.3, 0.6]),
    N: 1.3,
    M: np.array([[1.0, 0.2], [-0.3, 0.8]]),
}
WISH = cp.sum_squares(X - 1) + cp.sum_squares(Y - [1.0, 2.0])
NEAR = cp.sum_squares(Y - X)
STEP = 1e-5

# name: upper objective, lower objective, upper constraints, lower constraints
PROGRAMS = {
    "a function of a parameter": (WISH, NEAR + cp.exp(T) @ Y, [], [Y >= 0]),
    "a product of parameters": (WISH, NEAR + (S * T) @ Y, [], []),
    "factors apart": (WISH, NEAR + S * (T @ Y) - 2 * (N * cp.multiply(T, Y))[0], [], []),
    "factors apart, in a sum": (WISH, NEAR + S * (T @ Y + cp.sum(M @ Y) - Y[0]), [], []),
    "matrices apart": (WISH, NEAR, [], [M @ (M @ Y) <= 1.5, S * (M @ Y) <= 1]),
    "a positive weight": (WISH, cp.sum(cp.multiply(cp.exp(T), cp.square(Y))) + X @ Y, [], []),
    "a quadratic form": (WISH, cp.quad_form(Y, cp.psd_wrap(cp.exp(S) * np.eye(2))) + X @ Y, [], []),
    "a form around a target": (WISH, cp.quad_form(Y - T, P) + X @ Y, [], [Y >= -1]),
    "a form around the leader": (WISH, cp.quad_form(cp.vstack([Y[0] - X[0], Y[1] - X[1]]), P) + T @ Y, [], []),
    "a flat form": (WISH, cp.quad_form(Y - X - T, np.ones((2, 2))) + 0.1 * NEAR, [], []),
    "a concave form": (WISH, S * cp.sum(Y) - cp.quad_form(Y - X - T, -P), [], []),
    "a form of parameters around a target": (WISH, cp.quad_form(Y - 2 * T + 1, D) + X @ Y, [], []),
    "a form of parameters around the leader": (WISH, cp.quad_form(Y - X, D) + T @ Y, [], [Y <= 1]),
    "a form of parameters as the upper goal": (cp.quad_form(Y - T, D) + cp.sum_squares(X - 1), NEAR, [], []),
    "a form as the upper goal": (cp.quad_form(X - T, P) - cp.quad_form(Y - T, -P), NEAR, [], [Y <= 1]),
    "a form as a limit": (WISH, NEAR, [], [cp.quad_form(Y - T, P) <= 0.5]),
    "a form as an upper limit": (WISH, NEAR, [cp.quad_form(Y - T, P) <= 0.5], []),
    "division by a parameter": (WISH, NEAR + cp.sum(Y) / N, [], [Y / S >= T / N - 1]),
    "a square over a parameter": (WISH, cp.quad_over_lin(Y - X, N) + T @ Y, [], []),
    "a weight and a target": (WISH + N * cp.square(X[0] - S), N * cp.sum_squares(Y - X - T), [], []),
    "weights and targets": (WISH + cp.sum(cp.multiply(cp.exp(T), cp.square(X - T))), cp.exp(T) @ cp.square(Y - X - T), [], []),
    "a function of parameters as a bound": (WISH, NEAR, [], [cp.maximum(T, 0.4) >= Y, -cp.norm(T) <= Y]),
    "a parameter times the leader": (WISH, NEAR + cp.sum(Y), [], [Y <= S * X]),
    "a matrix times the leader": (WISH, NEAR + (M @ X) @ Y, [], []),
    "the leader squared": (WISH, cp.sum_squares(Y) + cp.square(X) @ Y, [], []),
    "the leader squared, as a limit": (WISH, NEAR, [], [cp.square(X) + T >= Y]),
    "a product of squares": (WISH, cp.sum(cp.multiply(1 + cp.square(X), cp.square(Y))) - 4 * cp.sum(Y) + T @ Y, [], []),
    "the leader and a function": (WISH, NEAR + cp.exp(S) * cp.square(X) @ Y, [X >= 0], []),
    "functions above": (cp.sum_squares(X - cp.exp(T)) + cp.log(N) * cp.sum(X) + S**3, NEAR, [X <= S * T + 2], []),
    "functions above, not quadratic": (cp.sum(cp.exp(X)) / N + cp.sum_squares(X - T) / S + WISH - cp.exp(S) * cp.sum(X), NEAR, [], []),
    "many functions": (
        WISH + cp.max(T) * X[0] + cp.log_sum_exp(T) * X[1],
        NEAR + cp.hstack([cp.quad_form(T, np.array([[2.0, 1], [1, 1]])), cp.norm1(T) * cp.abs(S)]) @ Y,
        [],
        [3 + cp.logistic(T) + cp.entr(N) + cp.inv_pos(N) + cp.sum(M @ M) + cp.trace(M.T @ M) + cp.norm_inf(T) >= Y],
    ),
}  # fmt: skip
SMOOTH = {
    "a form as a limit",
    "a form as an upper limit",
    "functions above, not quadratic",
    "the leader squared",
    "the leader squared, as a limit",
    "a product of squares",
    "the leader and a function",
}


def made(name):
    upper, lower, above, below = PROGRAMS[name]
    found = case(upper, lower, Y, above, below)
    known = {p.id for p in (*found.upper.parameters(), *found.lower.parameters())}
    found.values = {p: v for p, v in VALUES.items() if p.id in known}
    return found


def torches(values):
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]


def loss_of(layer):
    weight = torch.tensor([1.0, -2.0], dtype=torch.float64)

    def loss(*inputs):
        x, y = layer(*inputs)
        return (x * weight).sum() + (y * weight.flip(0)).sum() + (x * y).sum()

    return loss


@pytest.mark.parametrize("name", PROGRAMS)
def test_right_point_and_right_gradient(name):
    here = made(name)
    program = here.program
    assert {i.handle for i in program.inputs} == set(here.values)
    assert {u.name for u in program.unknowns} == {"x", "y"}
    assert (program.quadratic is None) == (name in SMOOTH)
    solution = program.solve(here.values, verify=True)
    assert solution.status in (Status.GLOBAL, Status.LOCAL)
    assert abs(solution.stats.follower_gap) < 1e-6
    check_point(here, solution)
    if not program.inputs:
        return
    layer = bg.Layer(program, [i.handle for i in program.inputs], [X, Y])
    inputs = torches(here.values[i.handle] for i in program.inputs)
    loss = loss_of(layer)
    grads = torch.autograd.grad(loss(*inputs), inputs)
    with torch.no_grad():
        for value, grad in zip(inputs, grads, strict=True):
            for at in np.ndindex(*value.shape):
                ends = []
                for side in (1, -1):
                    value[at] += side * STEP
                    ends.append(loss(*inputs))
                    value[at] -= side * STEP
                assert float((ends[0] - ends[1]) / (2 * STEP)) == pytest.approx(float(grad[at]), rel=1e-4, abs=1e-5)


def test_as_if_introduced_by_hand():
    z, w = cp.Variable(2, name="z"), cp.Parameter(2, name="w")
    lower = cp.sum_squares(Y) + cp.multiply(np.exp(0.7), z) @ Y + w @ Y
    by_hand = case(WISH, lower, Y, [z == cp.square(X)], values={w: np.exp(VALUES[T]) * VALUES[S]})
    ours = case(WISH, cp.sum_squares(Y) + np.exp(0.7) * cp.square(X) @ Y + (cp.exp(T) * S) @ Y, Y, values=VALUES)
    ours.values = {S: VALUES[S], T: VALUES[T]}
    a, b = by_hand.program.solve(by_hand.values), ours.program.solve(ours.values)
    np.testing.assert_allclose(a[X], b[X], atol=1e-7)
    np.testing.assert_allclose(a[Y], b[Y], atol=1e-7)
    assert a.value == pytest.approx(b.value, abs=1e-9)
    assert a.lower_value == pytest.approx(b.lower_value, abs=1e-9)


def test_second_derivatives_go_through_the_functions():
    program = made("a positive weight").program
    layer = bg.Layer(program, [T], [X, Y])
    t = torches([VALUES[T]])[0]
    assert torch.autograd.gradcheck(layer, t)
    assert torch.autograd.gradgradcheck(layer, t)
    rough = bg.Layer(made("a product of squares").program, [T], [X, Y])
    with pytest.raises(NotImplementedError, match="Second derivatives need a quadratic program"):
        torch.autograd.grad(loss_of(rough)(t), t, create_graph=True)


@pytest.mark.parametrize("batched", [True, False])
def test_a_value_without_a_function_costs_its_item_alone(batched):
    x, y, p, q = cp.Variable(name="x"), cp.Variable(name="y"), cp.Parameter(name="p"), cp.Parameter(name="q")
    here = case(cp.square(x - 1) + cp.square(y), cp.square(y - x) + (cp.sqrt(p) * q) * y, y)
    layer = bg.Layer(here.program, [p, q], [x, y], on_failure="nan")
    values = torches([[1.0, -1.0, 4.0], [1.0, 2.0, 3.0]] if batched else [-1.0, 2.0])
    x_star, y_star = layer(*values)
    good = torch.tensor([True, False, True]) if batched else torch.tensor(False)
    assert torch.equal(torch.isfinite(x_star), good)
    grads = torch.autograd.grad((x_star + 2 * y_star).nansum(), values)
    for grad in grads:
        assert torch.isfinite(grad).all()
        assert torch.equal(grad != 0, good)
    statuses = [s.status for s in layer.solve(*values)]
    assert [s is Status.INVALID_INPUT for s in statuses] == (~good).reshape(-1).tolist()


def test_a_function_that_breaks_the_sign_it_was_taken_to_have():
    x, y, p = cp.Variable(name="x"), cp.Variable(name="y"), cp.Parameter(name="p")
    program = case(cp.square(x - 1) + cp.square(y), cp.quad_over_lin(y - x, p) + y, y).program
    assert program.solve({p: 2.0}).status.ok
    assert program.solve({p: -2.0}).status is Status.INVALID_INPUT
    assert program.solve({p: 0.0}).status is Status.INVALID_INPUT


def test_batches_pickles_warm_starts_and_what_is_said():
    here = made("the leader and a function")
    program = pickle.loads(pickle.dumps(here.program))
    layer = bg.Layer(program, [i.handle for i in program.inputs], [u.handle for u in program.unknowns])
    s = torch.tensor([0.1, 0.7, -0.4])
    first = layer.solve(s)
    again = layer.solve(s, warm_start=first)
    for item, warm, value in zip(first, again, s, strict=True):
        alone = here.program.solve({S: float(value)})
        assert item.value == pytest.approx(alone.value, rel=1e-6)
        assert warm.value <= item.value + 1e-7
    for name in ("exp(s)", "log(n)"):
        kind = here if name == "exp(s)" else made("functions above")
        assert name in kind.program.explain()


@pytest.mark.parametrize(
    ("upper", "lower", "below", "words"),
    [
        (WISH, NEAR, [cp.abs(X) >= Y], "DNLP.*abs"),
        (WISH, NEAR + cp.norm(X) * cp.sum(Y), [], "DNLP"),
        (WISH, NEAR + cp.geo_mean(cp.exp(T)) * cp.sum(Y), [], "not DPP.*one parameter"),
        (WISH, cp.square(X) @ cp.square(Y) * S, [], "not convex"),
        (WISH, cp.log(N) * cp.sum_squares(Y), [], "not convex"),
        (WISH, N * cp.sum_squares(M @ Y - T), [], "not DPP"),
    ],
)
def test_refused_by_name(upper, lower, below, words):
    with pytest.raises(bg.DeclarationError, match=f"(?s){words}"):
        _ = case(upper, lower, Y, below=below).program


A, B, C = cp.Parameter((3, 2), name="A"), cp.Parameter((2, 2), name="B"), cp.Parameter(3, name="C", nonneg=True)
V = cp.Variable((2, 4), name="V")
PRODUCTS = [
    A @ (B @ V), (V.T @ B) @ A.T, C @ (A @ V), (A @ (B @ V)).T @ C, S * (A @ V), (A @ V) * S, cp.multiply(A, S * (A @ V[:, :2])),
    A @ (S * V),
    A @ (B @ V + 2 * V - S * V), A @ -(B @ V), S * cp.sum(B @ V, axis=0), S * (B @ V)[1], S * cp.vstack([T, B @ Y, Y]), S * (T @ (N * Y)),
    (B @ Y) / N, cp.multiply(T, Y / T), cp.quad_over_lin(B @ Y, N), cp.quad_over_lin(Y + T, N), N * cp.square(Y - T), T @ cp.square(Y - T),
    cp.square(Y - T) @ T,
    cp.multiply(T, cp.square(Y[0] - S)), N * cp.square(Y[0] - T), N * cp.sum_squares(Y - T - 1) / 3, N * cp.sum_squares(3 * Y - B @ T),
    N * cp.quad_over_lin(Y - T, 2),
    (T @ B) @ (B @ Y), T @ (B @ (B @ Y)), cp.multiply(T, B @ Y), cp.multiply(B @ Y, T) @ T, A @ cp.multiply(T, Y),
    S * cp.maximum(B @ Y, T),
    N * cp.square(cp.exp(Y) - T), N * cp.abs(B @ Y - T), N * (S + Y), (Y + T) * N / (1 + N), N * cp.reshape(B @ V, (8,), order="F"),
]  # fmt: skip


@pytest.mark.parametrize("expression", PRODUCTS, ids=lambda e: str(e)[:50].replace("\n", ""))
def test_bringing_factors_together_changes_no_value(expression):
    together, rng = gathered(expression), np.random.default_rng(0)
    assert together.shape == expression.shape
    leaves = [*expression.variables(), *expression.parameters()]
    with Holding({leaf: rng.uniform(0.5, 1.5, leaf.shape) for leaf in leaves}):
        np.testing.assert_allclose(together.value, expression.value, rtol=1e-12)


EXPRESSIONS = [
    cp.exp(T) + 1, cp.log(N) * T, cp.log1p(N), cp.sqrt(N) / (1 + cp.square(T)), cp.power(N, -0.5), cp.abs(T) - S, cp.entr(N), cp.xexp(N),
    cp.logistic(3 * T), cp.maximum(T, S, 0.5), cp.minimum(T, 0.4), cp.pos(T - 0.5), cp.multiply(M, T), M @ T, T @ M, M @ M, T @ T, S * M,
    cp.quad_form(T, M.T @ M), cp.quad_form(T, np.eye(2)), cp.sum_squares(M), cp.norm(T), cp.norm(M, "fro"), cp.norm1(M), cp.norm_inf(M),
    cp.max(M), cp.min(M), cp.log_sum_exp(M), cp.sum(cp.exp(M), axis=0), cp.diag(cp.exp(T)), cp.trace(M @ M), cp.vec(M @ M, order="F")[1:3],
    cp.reshape(cp.exp(M), (4,), order="C"), cp.hstack([cp.exp(T), S]), cp.vstack([cp.exp(T), T]), cp.exp(M).T,
    cp.kron(np.eye(2), cp.exp(M)),
    cp.cumsum(cp.exp(T)), cp.diff(cp.exp(T)), cp.outer(cp.exp(T), T), cp.bmat([[cp.exp(S), S], [S, N]]), cp.mean(cp.exp(M)), T**3 / S,
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda e: str(e)[:50].replace("\n", ""))
def test_every_atom_in_numpy_and_torch(expression):
    """Batches of values against CVXPY's own, and autograd against finite differences, first and second."""
    evaluate = atoms.evaluator(expression)
    parameters, rng = expression.parameters(), np.random.default_rng(0)
    draws = [{p: rng.uniform(0.2, 1.5, p.shape) for p in parameters} for _ in range(3)]
    flat = {p.id: np.stack([np.ravel(d[p], order="F") for d in draws]) for p in parameters}
    before = {p: p.value for p in parameters}
    for k, draw in enumerate(draws):
        for p in parameters:
            p.value = draw[p]
        expected = np.ravel(expression.value, order="F")
        np.testing.assert_allclose(evaluate(flat)[k], expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(evaluate({i: v[k] for i, v in flat.items()}), expected, rtol=1e-12, atol=1e-12)
    for p in parameters:
        p.value = before[p]
    inputs = torches(flat.values())

    def call(*values):
        return evaluate(dict(zip(flat, values, strict=True)))

    np.testing.assert_allclose(call(*inputs).detach().numpy(), evaluate(flat), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("rows", [[], [cp.norm(Y) <= 0.4]], ids=["quadratic", "with a cone"])
@pytest.mark.parametrize("sense", [1, -1])
def test_one_level_around_a_target(rows, sense):
    goal = cp.quad_form(Y - T, sense * P) + sense * S * cp.sum(Y)
    problem = cp.Problem((cp.Minimize if sense > 0 else cp.Maximize)(goal), [cp.sum(Y) <= 0.5, *rows])
    layer = bg.Layer(bg.argmin(problem), [T, S], [Y, problem.constraints[0].dual_variables[0]])
    given = {T: VALUES[T], S: -VALUES[S]}
    solution = layer.solve(*torches(given.values()))[0]
    assert solution.status is Status.GLOBAL
    for parameter, value in given.items():
        parameter.value = value
    try:
        assert problem.solve(solver=cp.CLARABEL, ignore_dpp=True) == pytest.approx(solution.value, abs=1e-6)
        np.testing.assert_allclose(solution[Y], Y.value, atol=1e-4)
        np.testing.assert_allclose(
            solution[problem.constraints[0].dual_variables[0]], problem.constraints[0].dual_value, atol=1e-4
        )
    finally:
        T.value = S.value = None
    assert torch.autograd.gradcheck(layer, torches(given.values()), eps=1e-5, atol=1e-4)
