"""Lower levels with cones: closed forms of followers, their derivatives, kinks, statuses, and random programs of many atoms."""

from collections.abc import Callable
from itertools import pairwise

import cvxpy as cp
import numpy as np
import pytest
import torch
from families import W, family
from helpers import Case, case, check_point

import bigrad as bg
from bigrad.programs.blocks import Blocks
from bigrad.programs.cones import Boundary, exponential, power, second_order
from bigrad.programs.spectra import basis, semidefinite
from bigrad.solution import Status

# The cones themselves

CONES = [
    second_order(4),
    exponential(),
    power(0.3),
    semidefinite(3),
    second_order(2),
    exponential(),
    power(0.5),
    semidefinite(4),
]
NUMBERS = [(0, 0, 0, 1, 1, 1, 3, 0), (1, 2, 2, 2, 0, 3, 1, 3), (0, 1, 1, 3, 1, 2, 0, 4), (0, 1, 1, 6, 1, 2, 0, 7)]
"""A form of each cone; the middle one of a semidefinite cone splits its eigenvalues between point and multiplier."""


def blocks() -> tuple[Blocks, np.ndarray]:
    """All cones in one program, and a point of it near the middle of each."""
    size, count = sum(c.size for c in CONES), len(CONES)
    ends = np.cumsum([0, size, count, count, size])
    s, chart, mu, lam = (np.arange(a, b) for a, b in pairwise(ends))
    rows = np.cumsum([0, size, count, count, count])
    coupling, pinned, slack, domain = (np.arange(a, b) for a, b in pairwise(rows))
    made = Blocks(tuple(CONES), np.zeros(count), s, lam, mu, chart, coupling, pinned, slack, domain)
    rng, v = np.random.default_rng(0), np.zeros(ends[-1])
    v[s], v[lam] = (p + 0.1 * rng.standard_normal(size) for p in made.inner())
    v[mu] = rng.random(count)
    return made, v


def dense(at: tuple[np.ndarray, np.ndarray], entries: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    matrix = np.zeros(shape)
    np.add.at(matrix, at, entries)
    return matrix


@pytest.mark.parametrize("numbers", NUMBERS)
def test_first_and_second_derivatives_of_every_form(numbers) -> None:
    made, v = blocks()
    v[made.chart] = numbers
    n, count = len(v), len(made.rows_at)
    m = np.random.default_rng(1).standard_normal(count)

    def jacobian(v: np.ndarray) -> np.ndarray:
        return dense(made.jacobian_at, made.jacobian(v), (count, n))

    def slope(function, h: float = 1e-6) -> np.ndarray:
        return np.stack([(function(v + h * e) - function(v - h * e)) / (2 * h) for e in np.eye(n)], -1)

    half = dense(made.hessian_at, made.hessian(v, m), (n, n))
    assert np.allclose(jacobian(v), slope(made.values), atol=1e-7)
    assert np.allclose(half + np.tril(half, -1).T, slope(lambda u: m @ jacobian(u)), atol=1e-7)


@pytest.mark.parametrize("cone", CONES[:3], ids=lambda c: c.name)
def test_charts_and_lifts_make_dual_pairs(cone) -> None:
    """On the boundary of the cone, grad phi is in the dual cone and orthogonal to the point, in every chart of it."""
    rng, dual_of = np.random.default_rng(0), np.linalg.inv(cone.lift)
    inside = [p for p in rng.standard_normal((400, cone.size)) + cone.inner / 2 if cone.holds(p)]
    met = 0
    for p in inside:
        assert all(dual_of @ q @ p >= -1e-12 for q in inside)
        for chart in (form.chart for form in cone.forms if isinstance(form, Boundary)):
            value, gradient = chart.first(p[None])
            assert value[0] >= 0
            edge = p.copy()
            for _ in range(50):  # to the boundary, by Newton's method along the gradient
                value, gradient = chart.first(edge[None])
                edge -= value[0] * gradient[0] / (gradient[0] @ gradient[0])
            if np.isfinite(edge).all() and chart.floor @ edge > 1e-3:
                assert abs(gradient[0] @ edge) <= 1e-9
                assert cone.holds(cone.lift @ gradient[0] + 1e-9 * cone.inner)
                met += 1
    assert met > 10


def eigenvalues(kind: str, n: int) -> np.ndarray:
    """Of S - Lam: some ranks, one about to cross, repeated ones, none of one sign."""
    return {
        "ranks": np.linspace(-1, 2, n),
        "crossing": np.r_[np.linspace(-2, -1, n // 2), 0, np.linspace(1, 2, n - n // 2 - 1)],
        "repeated": np.repeat([-1.0, 2.0], [n // 2, n - n // 2]),
        "positive": np.ones(n),
        "negative": -np.linspace(1, 2, n),
    }[kind]


@pytest.mark.parametrize("kind", ["ranks", "crossing", "repeated", "positive", "negative"])
@pytest.mark.parametrize("order", [3, 6])
def test_semidefinite_pairs_of_any_ranks_solve_the_equations_of_their_form(order: int, kind: str) -> None:
    cone, units = semidefinite(order), basis(order)
    V, z = np.linalg.qr(np.random.default_rng(order).standard_normal((order, order)))[0], eigenvalues(kind, order)
    s, lam = (np.einsum("aij,ij->a", units, V * np.maximum(side * z, 0) @ V.T) for side in (1, -1))
    number, mu = cone.seat(s, lam, 0.0)
    form, u = cone.forms[number], np.r_[s, lam][None]
    values = form.values(u, np.array([mu]))[0]
    assert abs(values[:-2]).max() <= 1e-12
    assert mu >= 0
    assert values[-2:].max() <= 1e-12
    assert abs(mu * values[-2]) <= 1e-12
    assert not form.edge(u).any()
    moved = form.values(np.r_[s + 0.1 * cone.inner, lam][None], np.array([mu]))[0]
    assert abs(moved[:-2]).max() > 1e-3 or not lam.any()
    assert np.isfinite(form.curved(u, np.array([mu]), np.ones((1, cone.size + 2)))).all()


# Followers with a closed form: the leader wants x == t, so y is the follower's answer to t, and dy/dt its derivative


def orthant(y: torch.Tensor) -> torch.Tensor:
    return y.clamp(min=0)


def norm(y: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(y)


def to_second_order_cone(c: torch.Tensor) -> torch.Tensor:
    t, u = c[0], norm(c[1:])
    if u <= t:
        return c
    return 0 * c if u <= -t else (t + u) / 2 * torch.cat([torch.ones(1, dtype=c.dtype), c[1:] / u])


def dual_power(c: torch.Tensor, p: float) -> torch.Tensor:
    """The y with pnorm(y, p) == 1 along which c falls fastest."""
    q = p / (p - 1)
    return -c.sign() * c.abs() ** (q - 1) / (c.abs() ** q).sum() ** (1 / p)


def square(y: cp.Variable) -> cp.Expression:
    return cp.bmat([[y[0], y[1]], [y[1], y[2]]])


def semidefinite_part(c: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(torch.stack([c[:2], c[1:]]))
    part = vectors @ torch.diag(values.clamp(min=0)) @ vectors.T
    return torch.stack([part[0, 0], part[0, 1], part[1, 1]])


Follower = tuple[Callable, Callable, list[float]]
FOLLOWERS: dict[str, Follower] = {
    "projection on a ball": (
        lambda x, y: (cp.sum_squares(y - x), [cp.norm(y) <= 1.5]),
        lambda t: t / torch.clamp(norm(t) / 1.5, min=1),
        [1.0, 2.0, -1.0],
    ),
    "inside the ball": (
        lambda x, y: (cp.sum_squares(y - x), [cp.norm(y) <= 1.5]),
        lambda t: t,
        [0.3, 0.2, -0.1],
    ),
    "projection on a ball, squared": (
        lambda x, y: (cp.sum_squares(y - x), [cp.sum_squares(y) <= 2.25]),
        lambda t: t / torch.clamp(norm(t) / 1.5, min=1),
        [1.0, 2.0, -1.0],
    ),
    "linear over a ball": (
        lambda x, y: (x @ y, [cp.norm(y) <= 2]),
        lambda t: -2 * t / norm(t),
        [1.0, -0.5, 0.2],
    ),
    "linear over a ball of the 3-norm": (
        lambda x, y: (x @ y, [cp.pnorm(y, 3) <= 1]),
        lambda t: dual_power(t, 3),
        [1.0, -0.5, 0.2],
    ),
    "block soft threshold": (
        lambda x, y: (cp.sum_squares(y - x) / 2 + 0.7 * cp.norm(y), []),
        lambda t: t * torch.clamp(1 - 0.7 / norm(t), min=0),
        [0.5, 0.6, -0.4],
    ),
    "block soft threshold, all zero": (
        lambda x, y: (cp.sum_squares(y - x) / 2 + 0.7 * cp.norm(y), []),
        lambda t: 0 * t,
        [0.3, 0.2, -0.4],
    ),
    "projection on the second-order cone": (
        lambda x, y: (cp.sum_squares(y - x), [cp.norm(y[1:]) <= y[0]]),
        to_second_order_cone,
        [0.5, 1.0, 0.7],
    ),
    "apex of the second-order cone": (
        lambda x, y: (cp.sum_squares(y - x), [cp.norm(y[1:]) <= y[0]]),
        to_second_order_cone,
        [-2.0, 1.0, 0.7],
    ),
    "least |y|^2 / weight": (
        lambda x, y: (cp.quad_over_lin(y[:2] - x[:2], y[2]) + y[2], [y[:2] >= x[2]]),
        lambda t: torch.cat([torch.maximum(t[:2], t[2]), norm(orthant(t[2] - t[:2]))[None]]),
        [0.5, -0.4, 1.0],
    ),
    "projection on semidefinite matrices": (
        lambda x, y: (cp.sum_squares(square(y - x)), [square(y) >> 0]),
        semidefinite_part,
        [1.0, 2.0, -0.5],
    ),
    "negative definite, projected": (
        lambda x, y: (cp.sum_squares(square(y - x)), [square(y) >> 0]),
        semidefinite_part,
        [-1.0, 0.2, -0.5],
    ),
    "softmax": (
        lambda x, y: (x @ y - cp.sum(cp.entr(y)), [cp.sum(y) == 1]),
        lambda t: torch.softmax(-t, 0),
        [0.5, -1.0, 2.0],
    ),
    "Cobb-Douglas consumer": (
        lambda x, y: (-W @ cp.log(y), [x @ y <= 2, x >= 0.1]),
        lambda t: 2 * torch.tensor(W) / t,
        [0.5, 1.0, 2.0],
    ),
    "geometric mean in a budget": (
        lambda x, y: (-cp.geo_mean(y, W), [x @ y <= 2]),
        lambda t: 2 * torch.tensor(W) / t,
        [0.5, 1.0, 2.0],
    ),
    "exponentials": (lambda x, y: (cp.sum(cp.exp(y)) - x @ y, []), torch.log, [0.5, 1.0, 2.0]),
    "logistic": (lambda x, y: (cp.sum(cp.logistic(y)) - x @ y, []), torch.logit, [0.3, 0.5, 0.9]),
    "log_sum_exp": (
        lambda x, y: (cp.log_sum_exp(y) - x[:2] @ y[:2], [y[2] == x[2]]),
        lambda t: torch.cat([torch.log(t[:2]) - torch.log(1 - t[:2].sum()) + t[2], t[2:]]),
        [0.3, 0.5, 0.1],
    ),
    "relative entropy": (
        lambda x, y: (cp.sum(cp.kl_div(y, W)) + x @ y, []),
        lambda t: torch.tensor(W) * torch.exp(-t),
        [0.5, -1.0, 2.0],
    ),
    "power 1.5": (
        lambda x, y: (cp.sum(cp.power(cp.abs(y), 1.5)) / 1.5 - x @ y, []),
        lambda t: t * t.abs(),
        [0.5, -1.0, 2.0],
    ),
    "power 3": (
        lambda x, y: (cp.sum(cp.power(y, 3)) / 3 - x @ y, []),
        lambda t: torch.sqrt(orthant(t)),
        [0.5, 1.0, 2.0],
    ),
    "power 3, at its kink": (
        lambda x, y: (cp.sum(cp.power(y, 3)) / 3 + cp.sum_squares(y) - x @ y, []),
        lambda t: -1 + torch.sqrt(1 + orthant(t)),
        [0.5, -1.0, 2.0],
    ),
    "power 4": (lambda x, y: (cp.sum(cp.power(y, 4)) / 4 - x @ y, []), lambda t: t.sign() * t.abs() ** (1 / 3), [0.5, -1.0, 2.0]),
    "square root": (lambda x, y: (x @ y - 2 * cp.sum(cp.sqrt(y)), []), lambda t: 1 / t**2, [0.5, 1.0, 2.0]),
    "irrational power": (
        lambda x, y: (x @ y - cp.sum(cp.power(y, 1 / np.pi)), []),
        lambda t: (np.pi * t) ** (1 / (1 / np.pi - 1)),
        [0.5, 1.0, 2.0],
    ),
    "inverse": (lambda x, y: (x @ y + cp.sum(cp.inv_pos(y)), []), lambda t: t**-0.5, [0.5, 1.0, 2.0]),
}  # fmt: skip


def pinned(name: str) -> tuple[Case, cp.Variable, cp.Variable, cp.Parameter]:
    build, _, at = FOLLOWERS[name]
    x, y, t = cp.Variable(3, name="x"), cp.Variable(3, name="y"), cp.Parameter(3, name="t")
    goal, rows = build(x, y)
    return case(cp.sum_squares(x - t), goal, y, [], rows, {t: np.array(at)}), x, y, t


@pytest.mark.parametrize("name", FOLLOWERS)
def test_the_follower_and_its_derivative_are_those_of_the_closed_form(name: str) -> None:
    problem, _, y, t = pinned(name)
    program, (_, answer, at) = problem.program, FOLLOWERS[name]
    solution = program.solve({t: at}, verify=True)
    assert solution.status.ok
    assert abs(solution.stats.follower_gap) <= 1e-7
    assert max(solution.stats.residual, solution.stats.violation) <= 1e-8
    batch = torch.tensor([at, [1.02 * a - 0.01 * k for k, a in enumerate(at)]], dtype=torch.float64, requires_grad=True)
    (got,) = bg.Layer(program, [t], [y])(batch)
    expected = torch.stack([answer(row) for row in batch])
    assert torch.allclose(got, expected, atol=1e-7)
    weights = torch.tensor([[1.0, -0.7, 0.4], [0.3, 1.0, -1.2]], dtype=torch.float64)
    slopes = [torch.autograd.grad((weights * z).sum(), batch)[0] for z in (got, expected)]
    assert torch.allclose(*slopes, atol=1e-6, rtol=1e-6)


# Kinks


def line(lower: Callable, pull: Callable) -> tuple[Case, cp.Variable, cp.Parameter]:
    x, y, t = cp.Variable(2, name="x"), cp.Variable(2, name="y"), cp.Parameter(name="t", nonneg=True)
    goal, rows = lower(x, y, t)
    return case(pull(x, y), goal, y, [x[1] == 0], rows, {t: 1.0}), x, t


KINKS = {
    "apex: y = max(|x| - t, 0)": (
        lambda x, y, t: (cp.sum_squares(y - x) / 2 + t * cp.norm(y), []),
        lambda x, y: cp.square(x[0] - 2) - 3 * x[0] + 8 * y[0],
    ),
    "rim: y = min(|x|, t)": (
        lambda x, y, t: (cp.sum_squares(y - x), [cp.norm(y) <= t]),
        lambda x, y: cp.square(x[0]) / 2 - 5 * y[0],
    ),
    "power 3: y = max(x, t) - t, to the half": (
        lambda x, y, t: (cp.sum(cp.power(y, 3)) / 3 + cp.sum_squares(y) / 2 + (t * np.ones(2) - x) @ y, []),
        lambda x, y: cp.square(x[0] - 2) - 3 * x[0] + 8 * y[0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINKS)
def test_the_leader_stays_on_a_kink_of_the_follower(name: str) -> None:
    """Both sides of the kink push back, so the decision moves with it: x == t, dx/dt == 1."""
    problem, x, t = line(*KINKS[name])
    program = problem.program
    solution = program.solve({t: 1.0}, verify=True)
    assert solution.status is Status.LOCAL
    assert solution.stats.biactive >= 1
    assert solution[x] == pytest.approx([1.0, 0.0], abs=1e-8)
    value = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    bg.Layer(program, [t], [x])(value)[0][0].backward()
    assert value.grad.item() == pytest.approx(1.0, abs=1e-7)


def test_a_point_where_cone_and_multiplier_vanish_is_not_claimed_regular() -> None:
    """|y| <= x with x == 0 and a follower who wants y == 0: s and its multiplier are both at the apex."""
    x, y = cp.Variable(name="x", bounds=[-1, 1]), cp.Variable(2, name="y")
    problem = case(cp.square(x) + cp.sum_squares(y - 1) + y[0], cp.sum_squares(y), y, [], [cp.norm(y) <= x])
    solution = problem.program.solve(verify=True)
    assert solution.status.ok
    assert solution[x] == pytest.approx(0.0, abs=1e-6)
    assert solution.stats.degenerate > 0
    check_point(problem, solution)


@pytest.mark.parametrize("zeros", [1, 2])
def test_a_leader_on_a_kink_of_the_spectrum(zeros: int) -> None:
    """The follower's matrix loses an eigenvalue where x == t. Two at once have no chart: the point is right, not proven."""
    x, Y, t = cp.Variable(2, name="x"), cp.Variable((3, 3), name="Y"), cp.Parameter(2, name="t")
    target = cp.diag(cp.hstack([x - t, 1.0]))
    pull = sum(cp.square(x[k] - 2) - 3 * x[k] + 8 * Y[k, k] for k in range(zeros))
    rest = cp.square(x[1] - 1) if zeros == 1 else 0
    problem = case(pull + rest, cp.sum_squares(Y - target), Y, [], [Y == Y.T, Y >> 0])
    value = np.array([1.0, 1.2])
    solution = problem.program.solve({t: value}, solver=bg.Relaxation(starts=2), verify=True)
    assert solution[x] == pytest.approx([1.0, 1.0 if zeros == 1 else 1.2], abs=1e-7)
    assert solution.stats.biactive >= 1
    assert abs(solution.stats.follower_gap) <= 1e-7
    assert solution.status is (Status.LOCAL if zeros == 1 else Status.STATIONARY)
    if zeros == 1:
        moved = torch.tensor(value, requires_grad=True)
        bg.Layer(problem.program, [t], [x], solver=bg.Relaxation(starts=2))(moved)[0][0].backward()
        assert moved.grad.numpy() == pytest.approx([1.0, 0.0], abs=1e-7)


def test_a_leader_who_takes_the_followers_interior_is_not_called_optimal() -> None:
    """y[0]^2 <= x with x falling to 0, where the multiplier has grown without limit: the point is near, its conditions are not."""
    x, y = cp.Variable(name="x", bounds=[-1, 1]), cp.Variable(2, name="y")
    matrix = cp.bmat([[1, y[0], 0], [y[0], x, 0], [0, 0, 1 + y[1]]])
    lower = cp.square(y[0] - 2) + cp.square(y[1] - x)
    problem = case(y[0] + x + cp.square(y[1]), lower, y, [], [matrix >> 0])
    solution = problem.program.solve(solver=bg.Relaxation(starts=2), verify=True)
    assert not solution.stats.strongly_stationary
    assert solution.status not in (Status.GLOBAL, Status.LOCAL)
    if solution.status.ok:
        assert solution.value == pytest.approx(0.0, abs=1e-4)
        assert abs(solution.stats.follower_gap) <= 1e-7


# Honest answers

X, Y, A = cp.Variable(name="x", bounds=[-1, 1]), cp.Variable(2, name="y"), cp.Parameter(name="a")
GOAL = cp.square(X) + cp.sum_squares(Y - 1)
STATUSES = {
    "an empty cone": (cp.sum_squares(Y), [cp.norm(Y - X) <= -1], [], {Status.INFEASIBLE_LOWER}),
    "cone against row": (cp.sum_squares(Y), [cp.norm(Y) <= 1, Y[0] >= 2 + 0.1 * X], [], {Status.INFEASIBLE_LOWER}),
    "logarithms of too little": (-cp.sum(cp.log(Y)), [cp.sum(Y) <= X - 2], [], {Status.INFEASIBLE_LOWER}),
    "the leader's own rows": (cp.sum_squares(Y), [cp.norm(Y) <= 1], [X >= 2], {Status.INFEASIBLE_UPPER}),
    "the leader's wish": (cp.sum_squares(Y - X), [cp.norm(Y) <= 1], [Y[0] >= 3], {Status.INFEASIBLE_UPPER}),
    "an unbounded follower": (cp.sum(Y) + X * Y[0], [cp.norm(Y[0]) <= 1], [], {Status.UNBOUNDED_LOWER}),
    "unbounded, exponential": (cp.exp(Y[0]) - Y[1] + X, [], [], {Status.UNBOUNDED_LOWER}),
    "not a number": (cp.norm(Y) + A * Y[0], [cp.norm(Y) <= 1], [], {Status.INVALID_INPUT}),
}  # fmt: skip


@pytest.mark.parametrize("name", STATUSES)
def test_statuses(name: str) -> None:
    lower, below, above, expected = STATUSES[name]
    program = case(GOAL, lower, Y, above, below).program
    values = {i.handle: np.nan for i in program.inputs}
    solution = program.solve(values, solver=bg.Relaxation(starts=2))
    assert solution.status in expected
    assert np.isnan(solution.value)


def test_a_follower_without_an_optimum_is_never_answered() -> None:
    """The infimum of exp(y) is not attained."""
    solution = case(GOAL, cp.exp(Y[0]) + cp.square(Y[1] - X), Y).program.solve(solver=bg.Relaxation(starts=1))
    assert not solution.status.ok


@pytest.mark.parametrize(
    ("lower", "below", "value"),
    [
        (-cp.sum(cp.entr(Y)), [Y[0] == 0], 1 + (1 / np.e - 1) ** 2),
        (cp.sum(Y), [cp.norm(Y - X) <= 0], 2 / 3),
        (Y[0], [cp.quad_over_lin(Y[0], Y[1] + 2) <= 0, Y[1] == X], 1.5),
    ],
)
def test_a_follower_without_a_slater_point_is_answered_rightly_or_not_at_all(lower, below, value: float) -> None:
    """Where no interior point exists there may be no multipliers."""
    problem = case(GOAL, lower, Y, [], below)
    solution = problem.program.solve(solver=bg.Relaxation(starts=2))
    if solution.status.ok:
        assert solution.value == pytest.approx(value, abs=1e-5)
        check_point(problem, solution, 1e-5)
    else:
        assert solution.status in (Status.NOT_FOUND, Status.ITERATION_LIMIT)


def test_the_face_of_the_exponential_cone_is_answered_rightly_or_not_at_all() -> None:
    """At y[1] == 0 > y[0] the cone is no graph; no atom leads there, a constraint may."""
    x, y = cp.Variable(name="x", bounds=[-1, 1]), cp.Variable(3, name="y")
    target = cp.hstack([-1 + 0.1 * x, -1 + 0.2 * x, 1])
    row = cp.ExpCone(y[0], y[1], y[2])
    problem = case(cp.square(x - 0.5) + cp.sum_squares(y), cp.sum_squares(y - target), y, [], [row])
    solution = problem.program.solve(solver=bg.Relaxation(starts=2))
    if solution.status.ok:
        check_point(problem, solution)
    else:
        assert solution.status in (Status.NOT_FOUND, Status.ITERATION_LIMIT)


def test_one_bad_item_leaves_the_batch_alone() -> None:
    problem, _, y, t = pinned("softmax")
    layer = bg.Layer(problem.program, [t], [y], on_failure="nan")
    batch = torch.tensor([[0.5, 1, 2], [np.nan, 0, 0], [1, 0, 0]], dtype=torch.float64, requires_grad=True)
    (got,) = layer(batch)
    assert torch.isnan(got[1]).all()
    assert torch.allclose(got[[0, 2]], torch.softmax(-batch[[0, 2]], 1), atol=1e-8)
    got[[0, 2]].square().sum().backward()
    assert torch.isfinite(batch.grad).all()
    assert not batch.grad[1].any()


@pytest.mark.parametrize("name", ["a ball that moves", "entropy", "everything"])
def test_warm_starts_cost_less_and_lose_nothing(name: str) -> None:
    problem = family(name, 3)
    program = problem.program
    cold = program.solve(problem.values)
    warm = program.solve(problem.values, warm_start=cold)
    assert warm.stats.iterations < cold.stats.iterations / 3
    assert warm.value <= cold.value + 1e-9 * (1 + abs(cold.value))
    assert warm.status is cold.status


def test_a_time_limit_is_kept() -> None:
    problem = family("everything", 0)
    solution = problem.program.solve(problem.values, solver=bg.Relaxation(time_limit=1e-4))
    assert solution.status is Status.TIME_LIMIT
    assert solution.stats.seconds < 2


def test_second_derivatives_are_an_error() -> None:
    problem, _, y, t = pinned("softmax")
    value = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(bg.Layer(problem.program, [t], [y])(value)[0].sum() ** 2, value, create_graph=False)
    assert slope.abs().max() <= 1e-7
    with pytest.raises(NotImplementedError, match="the lower level needs the cones ExpCone"):
        torch.autograd.grad(bg.Layer(problem.program, [t], [y])(value)[0][0], value, create_graph=True)


def test_many_cones_of_a_pricing_leader() -> None:
    """Twelve customers with logarithmic utility and one budget each; the leader earns price times demand."""
    n = 12
    p, y = cp.Variable(n, name="p", bounds=[0.5, 3]), cp.Variable(n, name="y")
    a, cost = np.linspace(0.5, 2, n), cp.Parameter(n, name="cost", nonneg=True)
    lower = cp.Problem(cp.Maximize(a @ cp.log(y) - p @ y), [y <= 2])
    upper = cp.Problem(cp.Maximize((p - cost) @ y))
    value = np.full(n, 0.2)
    solution = bg.bilevel(upper, lower, responds=[y]).solve({cost: value}, solver=bg.Relaxation(starts=2), verify=True)
    # demand is min(2, a / p): earnings a - cost * a / p grow in p
    assert solution[p] == pytest.approx(np.full(n, 3.0), abs=1e-6)
    assert solution[y] == pytest.approx(np.minimum(2, a / 3), abs=1e-6)
    assert abs(solution.stats.follower_gap) <= 1e-7
