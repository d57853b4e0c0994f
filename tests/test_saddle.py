"""Zero-sum games: closed forms, saddle inequalities, gradients, what is recognised and what is not."""

import pickle
import warnings
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from derivatives import compare
from helpers import Case, case, solved
from scipy.optimize import linprog

import bigrad as bg

ROCK = np.array([[0.0, 1, -1], [-1, 0, 1], [1, -1, 0]])
"""Rock, paper, scissors: what the row player pays."""


def game(payoff: Any, y: Any, above: Any = (), below: Any = (), values: Any = None, own: Any = 0.0) -> Case:
    """The leader minimises payoff + own, the follower maximises payoff."""
    return case(cp.Minimize(payoff + own), cp.Maximize(payoff), y, above, below, values)


def mixed(rows: int, columns: int, payoff: np.ndarray) -> tuple[Case, cp.Variable, cp.Variable, cp.Parameter]:
    """A matrix game in mixed strategies."""
    x, y = cp.Variable(rows, nonneg=True, name="x"), cp.Variable(columns, nonneg=True, name="y")
    A = cp.Parameter((rows, columns), name="A")
    return game(x @ A @ y, y, [cp.sum(x) == 1], [cp.sum(y) == 1], {A: payoff}), x, y, A


def value_of(payoff: np.ndarray) -> float:
    """The value of a matrix game by the row player's linear program, HiGHS."""
    rows, columns = payoff.shape
    found = linprog(
        np.r_[np.zeros(rows), 1.0], np.c_[payoff.T, -np.ones(columns)], np.zeros(columns),
        np.r_[np.ones(rows), 0.0][None], [1.0], [(0, None)] * rows + [(None, None)], method="highs",
    )  # fmt: skip
    return float(found.fun)


def check_saddle(made: Case, solution: bg.Solution) -> None:
    """Global, and each player's decision the best against the other's, by another solver."""
    assert solution.status is bg.Status.GLOBAL
    assert solution.stats.solver == "Saddle"
    assert abs(solution.stats.follower_gap) < 1e-7 * (1 + abs(solution.value))
    assert abs(solution.stats.leader_gap) < 1e-7 * (1 + abs(solution.value))


def check(made: Case, *, worst: float = 1e-5) -> bg.Solution:
    """The saddle point and its gradients."""
    solution = made.program.solve(made.values, verify=True)
    check_saddle(made, solution)
    report = compare(made, coordinates=1, random=1)
    assert len(report.agreeing) == len(report.differences)
    assert report.worst < worst
    return solution


def test_rock_paper_scissors():
    made, x, y, A = mixed(3, 3, ROCK)
    solution = check(made)
    for v in (x, y):
        assert np.allclose(solution[v], 1 / 3, atol=1e-10)
    assert solution.value == pytest.approx(0.0, abs=1e-10)
    assert "Saddle()" in made.program.explain()
    layer = bg.Layer(made.program, [A], [x, y])
    payoff = torch.tensor(ROCK, requires_grad=True)
    one, two = layer(payoff)
    (slope,) = torch.autograd.grad(one @ payoff @ two, payoff)
    assert torch.allclose(slope, torch.full((3, 3), 1 / 9, dtype=torch.float64), atol=1e-9)  # dV/dA = x y'


@pytest.mark.parametrize("seed", range(8))
def test_matrix_games_against_their_linear_program(seed):
    rng = np.random.default_rng(seed)
    made, x, y, _ = mixed(4, 5, rng.standard_normal((4, 5)))
    (payoff,) = made.values.values()
    solution = made.program.solve(made.values, verify=True)
    check_saddle(made, solution)
    assert solution.value == pytest.approx(value_of(payoff), abs=1e-9)
    assert solution.value == pytest.approx(float((payoff @ solution[y]).min()), abs=1e-8)
    assert solution.value == pytest.approx(float((solution[x] @ payoff).max()), abs=1e-8)


def test_a_batch_of_games_and_their_values():
    rng = np.random.default_rng(0)
    made, x, y, A = mixed(3, 4, rng.standard_normal((3, 4)))
    payoffs = torch.tensor(rng.standard_normal((6, 3, 4)), requires_grad=True)
    one, two = bg.Layer(made.program, [A], [x, y])(payoffs)
    values = torch.einsum("bi,bij,bj->b", one, payoffs, two)
    assert np.allclose(values.detach(), [value_of(p) for p in payoffs.detach().numpy()], atol=1e-9)
    values.sum().backward()
    assert torch.allclose(payoffs.grad, torch.einsum("bi,bj->bij", one, two).detach(), atol=1e-8)


def test_quadratic_saddle_in_closed_form():
    """|x|^2/2 + x'By - |y|^2/2 + a'x + b'y has the saddle point of a linear system."""
    rng = np.random.default_rng(1)
    B = rng.standard_normal((3, 4))
    x, y = cp.Variable(3, name="x"), cp.Variable(4, name="y")
    a, b = cp.Parameter(3, name="a"), cp.Parameter(4, name="b")
    made = game(
        cp.sum_squares(x) / 2 + x @ B @ y - cp.sum_squares(y) / 2 + a @ x + b @ y, y,
        values={a: rng.standard_normal(3), b: rng.standard_normal(4)},
    )  # fmt: skip
    solution = check(made)
    matrix = np.block([[np.eye(3), B], [B.T, -np.eye(4)]])
    exact = np.linalg.solve(matrix, -np.concatenate(list(made.values.values())))
    assert np.allclose(np.r_[solution[x], solution[y]], exact, atol=1e-10)
    layer = bg.Layer(made.program, [a, b], [x, y])
    given = [torch.tensor(v, requires_grad=True) for v in made.values.values()]
    jacobian = torch.autograd.functional.jacobian(lambda *v: torch.cat(layer(*v)), tuple(given))
    assert np.allclose(torch.cat(jacobian, 1), -np.linalg.inv(matrix), atol=1e-9)
    assert torch.autograd.gradgradcheck(lambda *v: torch.cat(layer(*v)) ** 2, tuple(given))


@pytest.mark.parametrize("seed", range(3))
def test_ellipsoidal_uncertainty_is_the_known_cone_program(seed):
    """max over |e| <= rho of (c + L e)'x is c'x + rho |L'x|."""
    rng = np.random.default_rng(seed)
    x, e = cp.Variable(4, nonneg=True, name="x"), cp.Variable(3, name="e")
    c, L, rho = cp.Parameter(4, name="c"), cp.Parameter((4, 3), name="L"), cp.Parameter(name="rho", nonneg=True)
    values = {c: rng.standard_normal(4), L: rng.standard_normal((4, 3)), rho: np.array(0.7)}
    made = game(c @ x + (L @ e) @ x, e, [cp.sum(x) == 1], [cp.norm(e) <= rho], values, cp.sum_squares(x) / 5)
    solution = check(made)
    for p, v in values.items():
        p.value = v
    known = cp.Problem(cp.Minimize(c @ x + rho * cp.norm(L.value.T @ x) + cp.sum_squares(x) / 5), [cp.sum(x) == 1])
    known.solve(solver=cp.CLARABEL)
    assert solution.value == pytest.approx(known.value, abs=1e-7)
    assert np.allclose(solution[x], x.value, atol=1e-5)


def test_the_price_of_uncertainty():
    """The dual variable of |e| <= rho in the follower's problem is |L'x|, the slope of the value in rho."""
    rng = np.random.default_rng(7)
    x, e = cp.Variable(4, name="x"), cp.Variable(3, name="e")
    L, rho = rng.standard_normal((4, 3)), cp.Parameter(name="rho", nonneg=True)
    row = cp.norm(e) <= rho
    made = game((L @ e) @ x, e, (), [row], {rho: np.array(0.7)}, cp.sum_squares(x - 2))
    price = row.dual_variables[0]
    layer = bg.Layer(made.program, [rho], [price, x])
    given = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    found, decision = layer(given)
    assert found.item() == pytest.approx(np.linalg.norm(L.T @ decision.detach().numpy()), abs=1e-9)
    (slope,) = torch.autograd.grad(found, given)
    values = [made.program.solve({rho: 0.7 + h}).value for h in (-1e-3, 0, 1e-3)]
    assert found.item() == pytest.approx((values[2] - values[0]) / 2e-3, abs=1e-5)
    assert slope.item() == pytest.approx((values[2] - 2 * values[1] + values[0]) / 1e-6, abs=1e-3)


@pytest.mark.parametrize(("norm", "dual"), [(2, 2), (1, "inf"), ("inf", 1)])
def test_adversarial_regression_is_a_dual_norm(norm, dual):
    """max over |d| <= rho of y'(Xw - t) + d'w over |y|_2 <= 1 is |Xw - t| + rho |w|_dual."""
    rng = np.random.default_rng(5)
    X, w = rng.standard_normal((6, 3)), cp.Variable(3, name="w")
    y, d, t = cp.Variable(6, name="y"), cp.Variable(3, name="d"), cp.Parameter(6, name="t")
    target = rng.standard_normal(6)
    made = game(y @ (X @ w - t) + d @ w, [y, d], (), [cp.norm(y) <= 1, cp.norm(d, norm) <= 0.3], {t: target})
    solution = made.program.solve(made.values, verify=True)
    check_saddle(made, solution)
    known = cp.Problem(cp.Minimize(cp.norm(X @ w - target) + 0.3 * cp.norm(w, dual)))
    assert solution.value == pytest.approx(solved(known), abs=1e-7)
    assert np.allclose(solution[w], w.value, atol=1e-5)


def test_adversarial_weights_on_convex_losses():
    """The worst mean of convex losses is their maximum; the product of a loss and a weight is lifted."""
    rng = np.random.default_rng(2)
    X, w, p = rng.standard_normal((5, 2)), cp.Variable(2, name="w"), cp.Variable(5, nonneg=True, name="p")
    t = cp.Parameter(5, name="t")
    losses = cp.square(X @ w - t)
    made = game(p @ losses, p, (), [cp.sum(p) == 1], {t: rng.standard_normal(5)}, 0.1 * cp.sum_squares(w))
    solution = made.program.solve(made.values, verify=True)
    check_saddle(made, solution)
    (t.value,) = made.values.values()
    known = cp.Problem(cp.Minimize(cp.max(losses) + 0.1 * cp.sum_squares(w)))
    assert solution.value == pytest.approx(known.solve(solver=cp.CLARABEL), abs=1e-7)
    smooth = p @ losses - cp.sum_squares(p)
    check(game(smooth, p, (), [cp.sum(p) == 1], made.values, 0.1 * cp.sum_squares(w)))


def test_an_entropic_follower():
    """max over the simplex of y'A'x + entr(y) is log_sum_exp(A'x), its y the softmax."""
    x, y = cp.Variable(3, nonneg=True, name="x"), cp.Variable(3, nonneg=True, name="y")
    A = cp.Parameter((3, 3), name="A")
    made = game(
        x @ A @ y + cp.sum(cp.entr(y)), y, [cp.sum(x) == 1], [cp.sum(y) == 1], {A: ROCK + 0.2}, cp.sum_squares(x)
    )
    solution = check(made)
    scores = (ROCK + 0.2).T @ solution[x]
    assert np.allclose(solution[y], np.exp(scores) / np.exp(scores).sum(), atol=1e-9)


def test_a_semidefinite_follower_is_the_largest_eigenvalue():
    rng = np.random.default_rng(3)
    M, C = [(m + m.T) / 2 for m in rng.standard_normal((2, 3, 3))], cp.Parameter((3, 3), symmetric=True, name="C")
    u, S = cp.Variable(2, name="u"), cp.Variable((3, 3), PSD=True, name="S")
    mean, root = C + u[0] * M[0] + u[1] * M[1], rng.standard_normal((3, 3))
    made = game(cp.trace(S @ mean), S, (), [cp.trace(S) == 1], {C: root + root.T}, cp.sum_squares(u))
    solution = check(made)
    (C.value,) = made.values.values()
    known = cp.Problem(cp.Minimize(cp.lambda_max(mean) + cp.sum_squares(u))).solve(solver=cp.CLARABEL)
    assert solution.value == pytest.approx(known, abs=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_parameters_everywhere(seed):
    rng = np.random.default_rng(seed)
    x, y = cp.Variable(3, name="x"), cp.Variable(4, name="y")
    p = [cp.Parameter((4, 4), PSD=True, name="Q"), cp.Parameter((2, 4), name="F"), cp.Parameter(2, name="h"),
         cp.Parameter((3, 4), name="B"), cp.Parameter((3, 3), PSD=True, name="R")]  # fmt: skip
    Q, F, h, B, R = p
    root, stem = rng.standard_normal((4, 4)), rng.standard_normal((3, 3))
    numbers = [root @ root.T + np.eye(4), rng.standard_normal((2, 4)), rng.uniform(0.1, 0.4, 2),
               rng.standard_normal((3, 4)), stem @ stem.T + np.eye(3)]  # fmt: skip
    payoff = cp.quad_form(x, R) + x @ B @ y + cp.sum(x) * y[0] - cp.quad_form(y, Q) - cp.sum_squares(F @ y - 1)
    made = game(payoff, y, [x >= -0.5], [F @ y <= h, y >= -1], dict(zip(p, numbers, strict=True)))
    solution = check(made)
    pieces = made.program.solve(made.values, solver=bg.Relaxation()) if made.program.smooth else None
    assert pieces is None or pieces.value == pytest.approx(solution.value, abs=1e-6)


def quadratic_game() -> Case:
    """A game that both roads take, written out with signs of all kinds."""
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
    goal = cp.sum_squares(x - 1) + 2 * x @ y
    lower = -(2 * (x @ y) - cp.sum_squares(y)) + 3 * cp.sum(x)
    return case(goal - cp.sum_squares(y) + 7, lower, y, [x <= 3], [y <= 0.4, y >= -1])


def test_the_other_road_finds_the_same():
    made = quadratic_game()
    solution = made.program.solve(verify=True)
    check_saddle(made, solution)
    other = made.program.solve(solver=bg.Relaxation())
    assert other.value == pytest.approx(solution.value, abs=1e-9)
    for u in made.program.unknowns:
        assert np.allclose(other[u.handle], solution[u.handle], atol=1e-7)
    assert made.program.solve(solver=bg.Relaxation(), warm_start=solution).value == pytest.approx(
        solution.value, abs=1e-9
    )


def test_the_same_polynomial_written_differently_is_recognised():
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
    made = case(
        cp.sum_squares(x) + x @ y - cp.sum_squares(y), -(y @ x) + cp.square(y[0]) + cp.square(y[1]), y,
        [x >= 1], [y <= 3],
    )  # fmt: skip
    check_saddle(made, made.program.solve(verify=True))


X, Y, G = cp.Variable(2, name="x"), cp.Variable(2, name="y"), cp.Parameter(2, name="g")


@pytest.mark.parametrize(
    ("upper", "lower", "above", "below", "words"),
    [
        (cp.sum_squares(X) + X @ Y, cp.sum_squares(Y) + X @ Y, (), (), "not minus the lower one"),
        (X @ Y - 2 * cp.sum_squares(Y), cp.sum_squares(Y) - X @ Y, (), (), "not minus the lower one"),
        (X @ Y - cp.sum_squares(Y), cp.sum_squares(Y) - X @ Y, [X + Y <= 1], (), "couples"),
        (X @ Y - cp.sum_squares(Y), cp.sum_squares(Y) - X @ Y, (), [X + Y <= 1], "couples"),
        (X @ Y - cp.sum_squares(Y) - cp.sum_squares(X), cp.sum_squares(Y) - X @ Y, [X <= 1, X >= 0], (), "not convex"),
        (-cp.sum_squares(X - Y), cp.sum_squares(X - Y), (), (), "not convex"),
    ],
)
def test_what_is_no_convex_concave_game_takes_the_other_road(upper, lower, above, below, words):
    program = case(upper, lower, Y, above, below).program
    assert "Saddle" not in program.explain()
    with pytest.raises(bg.CapabilityError, match=words):
        program.solve(solver=bg.Saddle())


def test_a_game_that_no_road_takes_says_both_reasons():
    S, y = cp.Variable((2, 2), PSD=True, name="S"), cp.Variable(2, name="y")
    payoff = cp.trace(S) + cp.sum(S @ y)
    upper = cp.Problem(cp.Minimize(payoff), [S[0, 0] >= y[0]])
    with pytest.raises(
        bg.DeclarationError, match=r"(?s)cone without a smooth form.*zero-sum game.*couples the players"
    ):
        bg.bilevel(upper, cp.Problem(cp.Maximize(payoff), [cp.norm(y) <= 1]), responds=[y])


@pytest.mark.parametrize(
    ("above", "below", "status"),
    [
        ([X >= 1, X <= 0], [Y <= 1], bg.Status.INFEASIBLE_UPPER),
        ([X >= 1], [Y >= 1, Y <= 0], bg.Status.INFEASIBLE_LOWER),
        ([X >= 1], [Y >= 0], bg.Status.UNBOUNDED_LOWER),
        ((), [Y >= 1, Y <= 2], bg.Status.UNBOUNDED_UPPER),
        ([cp.norm(X) <= -1], [Y <= 1], bg.Status.INFEASIBLE_UPPER),
        ([X >= 1], [cp.norm(Y) <= -1], bg.Status.INFEASIBLE_LOWER),
        ([cp.norm(X - 9) <= 1], [cp.norm(Y) <= Y[0]], bg.Status.UNBOUNDED_LOWER),
    ],
)
def test_statuses(above, below, status):
    assert game(X @ Y, Y, above, below).program.solve().status is status


def test_a_bad_item_leaves_the_others_alone():
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
    made = game(x @ y + G @ x, y, [cp.norm(x) <= 1], [cp.norm(y - G) <= cp.sum(G)], {G: np.ones(2)})
    layer = bg.Layer(made.program, [G], [x, y], on_failure="nan")
    given = torch.tensor([[1.0, 1], [-1, -1], [np.nan, 0], [2, 1]], dtype=torch.float64, requires_grad=True)
    statuses = [s.status for s in layer.solve(given)]
    good, lower, bad = bg.Status.GLOBAL, bg.Status.INFEASIBLE_LOWER, bg.Status.INVALID_INPUT
    assert statuses == [good, lower, bad, good]
    torch.nansum(layer(given)[1]).backward()
    assert torch.isfinite(given.grad).all()
    assert torch.equal(given.grad[1:3], torch.zeros((2, 2), dtype=torch.float64))


def test_a_game_travels():
    for made in (quadratic_game(), mixed(3, 3, ROCK + np.eye(3))[0]):
        program = pickle.loads(pickle.dumps(made.program))
        values = {i.handle: made.values[j.handle] for i, j in zip(program.inputs, made.program.inputs, strict=True)}
        again = program.solve(values)
        assert again.stats.solver == "Saddle"
        assert again.value == pytest.approx(made.program.solve(made.values).value, abs=1e-10)


@pytest.mark.parametrize("bounds", [[-0.3, 0.4], [0.5, 3.0], [None, 0.2]])
def test_bounds_declared_on_the_follower_s_variable(bounds):
    """What is declared on a variable reads as constraints of its own would."""
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y", bounds=bounds)
    made = game(cp.sum_squares(x - 1) + x @ y, y)
    solution = made.program.solve(verify=True)
    check_saddle(made, solution)
    np.testing.assert_allclose(solution[y], min(bounds[1], 2.0), atol=1e-7)  # until x = 1 - y/2 is zero


def test_forms_around_a_parameter():
    """The follower's best (x + d)'y over (y - c)'P(y - c) <= 1 is (x + d)'c + |x + d| in the norm of P's inverse."""
    P = np.array([[2.0, 0.5], [0.5, 1.0]])
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
    c, d = cp.Parameter(2, name="c"), cp.Parameter(2, name="d")
    ball = cp.quad_form(y - c, P) <= 1
    payoff = (x + d) @ y
    leader = cp.Problem(cp.Minimize(payoff), [cp.quad_form(x - c, P) <= 1])
    game = bg.bilevel(leader, cp.Problem(cp.Maximize(payoff), [ball]), responds=[y])
    at, wish = np.array([0.3, -0.5]), np.array([2.2, 1.5])
    solution = game.solve({c: at, d: wish})
    assert solution.status is bg.Status.GLOBAL
    assert solution.stats.solver == "Saddle"
    z = cp.Variable(2)
    root = np.linalg.cholesky(np.linalg.inv(P)).T
    known = cp.Problem(
        cp.Minimize((z + wish) @ at + cp.norm(root @ (z + wish))), [cp.quad_form(z - at, cp.psd_wrap(P)) <= 1]
    )
    assert solution.value == pytest.approx(known.solve(solver=cp.CLARABEL), abs=1e-6)
    layer = bg.Layer(game, parameters=[c, d], variables=[x, y, ball.dual_variables[0]])
    inputs = [torch.tensor(v, requires_grad=True) for v in (at, wish)]

    def loss(*inputs):
        return sum((k + 1) * out.sum() for k, out in enumerate(layer(*inputs)))

    assert torch.autograd.gradcheck(loss, inputs, eps=1e-5, atol=1e-4)


def test_a_function_that_random_parameters_break_is_no_game():
    """The leader also gains from sum(log q) y, of which the follower knows nothing: no zero-sum game, for any sign of q."""
    for kind in ({"pos": True}, {}):
        x, y, q = cp.Variable(name="x", bounds=[-1, 1]), cp.Variable(name="y"), cp.Parameter(6, name="q", **kind)
        lower = cp.Problem(cp.Maximize(x * y), [y <= 1, y >= -1])
        goal = x * y + 0.1 * cp.square(x) - cp.sum(cp.log(q)) * y
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            program = bg.bilevel(cp.Problem(cp.Minimize(goal)), lower, responds=[y])
        value = np.linspace(0.5, 1.1, 6)
        best = min(
            x * y + 0.1 * x**2 - np.log(value).sum() * y
            for x in np.linspace(-1, 1, 201)
            for y in ([-1, 1] if abs(x) < 1e-9 else [np.sign(x)])
        )
        for solver in (None, bg.Global()):
            assert program.solve({q: value}, solver=solver).value == pytest.approx(best, abs=1e-6)
