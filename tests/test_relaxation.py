"""Relaxation: nonconvex and smooth upper levels against closed forms, grids of re-solves and known optima.

The smooth adjoint.
"""

import subprocess
import sys
import threading

import cvxpy as cp
import numpy as np
import pytest
from helpers import Case, brute_force, case, check_point

import bigrad as bg
from bigrad.algebra.affine import flatten
from bigrad.datasets import textbook
from bigrad.solution import Outcome, Status
from bigrad.solvers.relaxation import Relaxation

TEXTBOOK = {t.name: t for t in textbook()}
INDEFINITE = ("LucchettiEtal1987", "TollSettingP4", "jump_qp_lower_min")


def scalars() -> tuple[cp.Variable, cp.Variable]:
    return cp.Variable(name="x"), cp.Variable(name="y")


def run(problem: Case, solver: Relaxation | None = None, **options) -> bg.Solution:
    return problem.program.solve(problem.values, solver=solver or Relaxation(), verify=True, **options)


def check(problem: Case, solution: bg.Solution, tolerance: float = 1e-6) -> None:
    """A usable, exact, bilevel-feasible point."""
    assert solution.status in (Status.GLOBAL, Status.LOCAL), solution
    assert solution.stats.residual <= 1e-8
    assert solution.stats.violation <= 1e-8
    assert abs(solution.stats.follower_gap) <= tolerance
    check_point(problem, solution, tolerance)


# Known optima


def from_textbook(name: str) -> Case:
    upper, lower, _, y = TEXTBOOK[name].program_parts()
    return Case(upper, lower, [y])


@pytest.mark.parametrize("name", INDEFINITE)
def test_textbook_with_an_indefinite_upper_objective(name: str) -> None:
    problem = from_textbook(name)
    assert not problem.program.convex
    solution = run(problem)
    check(problem, solution)
    assert solution.value == pytest.approx(TEXTBOOK[name].F_star, abs=1e-4)


def test_textbook_with_convex_upper_objectives() -> None:
    """The convex ones are Pieces' business, but nothing stops a user; 8 starts find every optimum."""
    for name, known in TEXTBOOK.items():
        if known.coefficients is None or name in INDEFINITE:
            continue
        problem = from_textbook(name)
        solution = run(problem)
        if known.F_star is None:
            assert solution.status is Status.INFEASIBLE_UPPER
            continue
        assert solution.status in (Status.GLOBAL, Status.LOCAL), name
        assert max(solution.stats.residual, solution.stats.violation) <= 1e-8
        assert abs(solution.stats.follower_gap) <= 1e-6
        assert abs(solution.value - known.F_star) <= 1e-4 * (1 + abs(known.F_star)), name


def bard_1988() -> Case:
    """The follower's rows have x**2, which becomes the upper variable s."""
    x, s, y = cp.Variable(2, name="x"), cp.Variable(2, name="s"), cp.Variable(2, name="y")
    above = [s == cp.square(x), s[0] + 2 * x[1] <= 4, x >= 0]
    below = [-s[0] + 2 * x[0] - s[1] + 2 * y[0] - y[1] <= 3, -x[1] - 3 * y[0] + 4 * y[1] + 4 <= 0, y >= 0]
    return case(-s[0] - 3 * x[1] - 4 * y[0] + cp.square(y[1]), cp.square(y[0]) - 5 * y[1], y, above, below)


def mitsos_barton_2006() -> Case:
    """The follower's cost has x + exp(x), which becomes the upper variable s; its objective is linear."""
    x, y = scalars()
    s = cp.Variable(name="s")
    above = [s == x + cp.exp(x), x >= -1, x <= 1, y >= -0.1, y <= 0.1]
    return case(cp.square(y), s * y, y, above, [y >= -1, y <= 1])


def colson_2002() -> Case:
    """The follower minimises (x + 2y - 15)**4, so its square as well."""
    x, y = scalars()
    upper = -cp.power(x - 10, 3) - cp.power(y - 10, 3)
    return case(upper, cp.square(x + 2 * y - 15), y, [x <= 5, y <= x, x >= 0], [x + y <= 20, y <= 20, y >= 0])


@pytest.mark.parametrize(
    ("build", "name"),
    [(bard_1988, "Bard1988Ex3"), (mitsos_barton_2006, "MitsosBarton2006Ex38"), (colson_2002, "Colson2002BIPA1")],
)
def test_textbook_with_nonlinear_functions(build, name: str) -> None:
    problem = build()
    assert problem.program.quadratic is None
    solution = run(problem)
    check(problem, solution)
    assert solution.value == pytest.approx(TEXTBOOK[name].F_star, abs=1e-4)


# Closed forms


def tariff(n: int = 3) -> tuple[Case, cp.Variable, cp.Variable]:
    """A monopolist's price against customers with the demand curve y = max(0, (a - p) / b).

    The price a / 2 is best, worth a**2 / 4b.
    """
    p, y = cp.Variable(n, name="p", nonneg=True), cp.Variable(n, name="y")
    a, b = cp.Parameter(n, name="a"), cp.Parameter(n, name="b", nonneg=True)
    lower = cp.sum(cp.multiply(b, cp.square(y))) / 2 - (a - p) @ y
    values = {a: np.linspace(1, 3, n), b: np.linspace(0.5, 2, n)}
    return case(cp.Maximize(p @ y), lower, y, below=[y >= 0], values=values), p, y


def test_price_times_demand() -> None:
    problem, p, y = tariff()
    a, b = problem.values.values()
    solution = run(problem)
    check(problem, solution)
    assert solution.stats.solver == "Relaxation"
    np.testing.assert_allclose(solution[p], a / 2, atol=1e-8)
    np.testing.assert_allclose(solution[y], a / b / 2, atol=1e-8)
    assert solution.value == pytest.approx(np.sum(a**2 / b) / 4)


def test_price_times_demand_in_a_batch_with_bad_items() -> None:
    problem, _, _ = tariff()
    program = problem.program
    a = np.array([[1.0, 2, 3], [np.nan, 1, 1], [3, 2, 1], [1, 1, 1]])
    b = np.array([[1.0, 1, 1], [1, 1, 1], [2, 2, 2], [1, -1, 1]])
    order = [i.name for i in program.inputs]
    theta = tuple({"a": a, "b": b}[name] for name in order)
    outcome = Relaxation().solve(program, theta)
    wrong = [Status.INVALID_INPUT]
    assert [s in wrong for s in outcome.status] == [False, True, False, True]
    assert np.isnan(outcome.z[~outcome.ok]).all()
    np.testing.assert_allclose(outcome.z[outcome.ok, :3], a[outcome.ok] / 2, atol=1e-8)
    np.testing.assert_allclose(-outcome.value[outcome.ok], (a**2 / b).sum(-1)[outcome.ok] / 4)


def test_capacity_makes_a_kink() -> None:
    """With demand capped at 0.4 the best price makes the customer just want it.

    Biactive, and p moves with a one for one.
    """
    p, y = cp.Variable(name="p", nonneg=True), cp.Variable(name="y")
    a = cp.Parameter(name="a", value=1.0)
    problem = case(cp.Maximize(p * y), cp.square(y) / 2 - (a - p) * y, y, below=[y >= 0, y <= 0.4], values={a: 1.0})
    solution = run(problem)
    check(problem, solution)
    assert solution[p] == pytest.approx(0.6)
    assert solution.stats.biactive == 1
    layer = bg.Layer(problem.program, parameters=[a], variables=[p, y], solver=Relaxation())
    import torch

    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    price, demand = layer(theta)
    assert torch.autograd.grad(price, theta, retain_graph=True)[0].item() == pytest.approx(1.0)
    assert torch.autograd.grad(demand, theta)[0].item() == pytest.approx(0.0)


# Grids of leader decisions, the follower re-solved at each


def exponential() -> tuple[Case, dict]:
    x, y = scalars()
    upper = cp.exp(0.5 * x) - cp.log(y + 2) + 0.2 * cp.square(x + 1)
    return case(upper, cp.square(y - x) + y, y, [x >= -2, x <= 2], [y >= -0.5, y <= 1]), {x: np.linspace(-2, 2, 17)}


def moving_rows() -> tuple[Case, dict]:
    """The leader's variable multiplies the follower's in a constraint."""
    x, y = cp.Variable(name="x"), cp.Variable(2, name="y")
    upper = cp.square(x - 1) - y[0] + cp.square(y[1] - 0.3)
    lower = cp.sum_squares(y - np.array([1.0, 0.8]))
    return case(upper, lower, y, [x >= 0, x <= 3], [y[0] + x * y[1] <= 1, y >= 0]), {x: np.linspace(0, 3, 16)}


def leader_weighs() -> tuple[Case, dict]:
    """The leader's variable is a weight in the follower's objective."""
    x, y = cp.Variable(name="x", nonneg=True), cp.Variable(2, name="y")
    lower = x * cp.sum_squares(y - 1) + cp.sum_squares(y + np.array([1.0, 2.0]))
    upper = cp.exp(-y[0]) + cp.square(y[1]) + 0.05 * x
    return case(upper, lower, y, [x <= 4], [cp.sum(y) <= 0.5]), {x: np.linspace(0, 4, 17)}


def peak() -> tuple[Case, dict]:
    """A nonsmooth cost beside an exponential one."""
    x, y = cp.Variable(name="x"), cp.Variable(2, name="y")
    upper = cp.max(y) + cp.norm1(y - 0.3) + cp.exp(-x)
    lower = cp.sum_squares(y - np.array([1.0, 0.5]) * x)
    return case(upper, lower, y, [x >= 0, x <= 2], [cp.sum(y) <= 1.5, y >= 0]), {x: np.linspace(0, 2, 17)}


@pytest.mark.parametrize("build", [exponential, moving_rows, leader_weighs, peak])
def test_against_a_grid(build) -> None:
    problem, grid = build()
    assert problem.program.quadratic is None
    solution = run(problem)
    check(problem, solution)
    best = brute_force(problem, grid, polish=3)
    assert problem.sense * solution.value <= best + 1e-6
    assert problem.sense * solution.value >= best - 5e-3


# Statuses


def curved(x: cp.Variable, y: cp.Variable, kind: str) -> cp.Expression:
    return (x * y if kind == "quadratic" else cp.exp(x)) + cp.square(x)


@pytest.mark.parametrize("kind", ["quadratic", "smooth"])
def test_failures_are_told_apart(kind: str) -> None:
    x, y = scalars()
    box, fit = [x >= -1, x <= 1], cp.square(y - x)
    cases = {
        Status.INFEASIBLE_LOWER: case(curved(x, y, kind), fit, y, box, [y >= 3 + x, y <= 1]),
        Status.INFEASIBLE_UPPER: case(curved(x, y, kind), fit, y, [*box, y >= 5], [y >= 0, y <= 2]),
        Status.UNBOUNDED_LOWER: case(curved(x, y, kind), -y, y, box, [y >= x]),
        Status.UNBOUNDED_UPPER: case(cp.Maximize(x * y + (cp.log(1 + x) if kind == "smooth" else 0)), fit, y, [x >= 0]),
    }
    for status, problem in cases.items():
        assert (problem.program.quadratic is None) == (kind == "smooth")
        solution = run(problem)
        assert solution.status is status
        assert np.isnan(solution[x])
    fine = case(curved(x, y, kind) + cp.square(y - 1), fit, y, box, [y >= 0])
    assert run(fine, Relaxation(time_limit=0.0)).status is Status.TIME_LIMIT
    assert run(fine, Relaxation(max_iterations=0)).status is Status.ITERATION_LIMIT
    check(fine, run(fine))


def test_infeasible_by_complementarity_alone() -> None:
    """Both levels' constraints can be met, but not by the follower's answer: found by branching."""
    x, y = scalars()
    problem = case(x * y, cp.square(y - x), y, [x >= -1, x <= 1, y >= 2], [y <= 5])
    assert run(problem).status is Status.INFEASIBLE_UPPER


def test_nonconvex_follower_is_named() -> None:
    y, P = cp.Variable(2, name="y"), cp.Parameter((2, 2), PSD=True, name="P")
    x = cp.Variable(name="x")
    problem = case(cp.exp(x) + cp.sum_squares(y), cp.quad_form(y, P) + x * cp.sum(y), y, [x >= -1], [y >= -1, y <= 1])
    theta = np.array([[1.0, 0, 0, 1], [1, 0, 0, -1]])
    outcome = Relaxation().solve(problem.program, (theta,))
    assert list(outcome.status) == [Status.LOCAL, Status.NONCONVEX_LOWER]


def test_global_only_with_a_proof() -> None:
    x, y = scalars()
    aligned = case(cp.exp(x) + cp.square(x) + cp.square(y - 3), cp.square(y - 1), y, [x >= -1])
    solution = run(aligned)
    assert solution.status is Status.LOCAL
    assert solution.stats.bound < solution.value
    idle = case(cp.exp(x) + cp.square(x) + cp.square(y - 1), cp.square(y - 1), y, [x >= -1])
    solution = run(idle)
    assert solution.status is Status.GLOBAL
    assert solution.stats.bound == pytest.approx(solution.value)


def test_no_leader_no_pairs() -> None:
    y = cp.Variable(name="y")
    solution = run(case(cp.exp(y), cp.square(y - 1), y))
    assert solution.value == pytest.approx(np.e)
    optimistic = run(case(cp.exp(y), cp.Constant(0.0), y, below=[y >= 1, y <= 3]))
    assert optimistic.value == pytest.approx(np.e)


def test_it_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    run(exponential()[0])
    x, y = scalars()
    run(case(cp.Maximize(cp.log(x) + x * y), cp.square(y - x), y))
    out, err = capfd.readouterr()
    assert out == err == ""


def test_warm_start_is_one_search() -> None:
    problem, _ = exponential()
    program = problem.program
    cold = program.solve(solver=Relaxation())
    warm = program.solve(solver=Relaxation(), warm_start=cold)
    assert (cold.stats.starts, warm.stats.starts) == (8, 1)
    assert warm.value == pytest.approx(cold.value, abs=1e-10)
    again = program.solve(solver=Relaxation())
    assert again.value == cold.value


def test_threads_take_turns() -> None:
    program, theta, _ = kinked(1)
    moved = [tuple(t + 0.01 * k for t in theta) for k in range(6)]
    alone = [Relaxation(starts=1).solve(program, t).z for t in moved]
    found: dict[int, np.ndarray] = {}

    def work(k: int) -> None:
        found[k] = Relaxation(starts=1).solve(program, moved[k]).z

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(moved))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for k, z in enumerate(alone):
        np.testing.assert_array_equal(found[k], z)


# What cannot be smooth is refused at declaration


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda x, y, c: x[0] * cp.max(y) + cp.exp(x[0]), "kink may stand only where"),
        (lambda x, y, c: cp.cumsum(cp.exp(x))[1] + y[0], "derivative engine cannot take"),
        (
            lambda x, y, c: cp.sum_largest(c, 1) * cp.sum(cp.exp(x)) * y[0],
            "make it one parameter|Make it one parameter",
        ),
    ],
)
def test_refusals(build, words: str) -> None:
    x, y, c = cp.Variable(2, name="x"), cp.Variable(2, name="y"), cp.Parameter(2, name="c", nonneg=True)
    with pytest.raises(bg.DeclarationError, match=words):
        case(build(x, y, c), cp.sum_squares(y - x), y).program  # noqa: B018


def test_cones_without_a_smooth_form_are_refused() -> None:
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
    with pytest.raises(bg.DeclarationError, match="norms or squares"):
        case(x @ y + cp.exp(x[0]), cp.sum_squares(y - x), y, [cp.SOC(x[0] + 2, x)]).program  # noqa: B018


# The adjoint, against central differences of re-solves


def kinked(seed: int) -> tuple[bg.Program, tuple[np.ndarray, ...], np.random.Generator]:
    """A random program whose parameters stand everywhere.

    Matrices and vectors of both levels, inside functions, in products with x.
    """
    rng = np.random.default_rng(seed)
    n, m, k = 3, 4, 5
    x, y = cp.Variable(n, name="x"), cp.Variable(m, name="y")
    shapes = {"c": (m,), "g": (n,), "A": (k, m), "t": (m,), "M": (2, n), "b": (k,), "e": ()}
    p = {name: cp.Parameter(shape, name=name) for name, shape in shapes.items()}
    C, B = rng.standard_normal((m, n)), 0.4 * rng.standard_normal((k, n))
    below = [p["A"] @ y + B @ x <= p["b"], y[0] + x[0] * y[1] + p["e"] * y[2] <= 1.5]
    lower = cp.Problem(cp.Minimize(cp.sum_squares(y - C @ x) + p["c"] @ y), below)
    cost = cp.sum_squares(y - p["t"]) + cp.sum(cp.exp(0.3 * cp.multiply(p["g"], x))) + 0.5 * cp.sum_squares(p["M"] @ x)
    cost += 0.2 * cp.sum_squares(x) - cp.sum(cp.log(4 + y)) + 0.3 * cp.max(y - p["t"])
    program = bg.bilevel(cp.Problem(cp.Minimize(cost), [x <= 2, x >= -2, cp.norm(x, 2) <= 3]), lower, [y])
    values = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    values |= {"t": 2 * values["t"], "b": 0.3 + rng.random(k), "e": 0.1 * values["e"]}
    return program, tuple(flatten(np.asarray(values[i.name]), len(i.shape)) for i in program.inputs), rng


def differences(
    program: bg.Program, theta: tuple[np.ndarray, ...], base: Outcome, cotangent: np.ndarray, k: int, i: int
) -> tuple[float, ...]:
    """Left and right differences of cotangent'z in entry i of input k."""
    h, ends = 1e-5, []
    for s in (-h, h):
        moved = tuple(t + s * np.eye(len(t))[i] if j == k else t for j, t in enumerate(theta))
        ends.append(Relaxation().solve(program, moved, [base.point(0)]).z[0] @ cotangent)
    here = base.z[0] @ cotangent
    return (here - ends[0]) / h, (ends[1] - here) / h


def test_adjoint_on_random_programs() -> None:
    kinks = 0
    for seed in (0, 1, 2, 4, 5, 11, 12, 13, 16, 19):
        program, theta, rng = kinked(seed)
        base = Relaxation().solve(program, theta)
        assert base.status[0] is Status.LOCAL
        assert base.residual[0] <= 1e-8
        kinks += base.biactive[0] > 0
        cotangent = rng.standard_normal(base.z.shape[1])
        gradients, lost = program.smooth.adjoint(theta, base.w[0], base.free[0], cotangent)
        assert not lost
        for k, g in enumerate(gradients):
            for i in rng.choice(len(g), min(2, len(g)), replace=False):
                left, right = differences(program, theta, base, cotangent, k, i)
                assert abs(left - right) <= 1e-3 * (1 + abs(g[i])), "a kink of the solution map: change the seed"
                assert g[i] == pytest.approx((left + right) / 2, rel=1e-6, abs=1e-6), (seed, program.inputs[k].name, i)
    assert kinks >= 6


def test_adjoint_of_chosen_parameters() -> None:
    program, theta, rng = kinked(0)
    base = Relaxation().solve(program, theta)
    cotangent = rng.standard_normal(base.z.shape[1])
    every, _ = program.smooth.adjoint(theta, base.w[0], base.free[0], cotangent)
    names = [i.name for i in program.inputs]
    some, _ = program.smooth.adjoint(theta, base.w[0], base.free[0], cotangent, [name != "M" for name in names])
    for name, a, b in zip(names, every, some, strict=True):
        if name != "M":
            np.testing.assert_allclose(a, b, atol=1e-12)


UPPER = {
    "max": lambda x, y, c, k: k * cp.max(y - 1) + cp.sum(cp.exp(x - c[:2])) + cp.sum_squares(x),
    "abs": lambda x, y, c, k: k * cp.norm1(y - 0.1) + cp.exp(cp.sum(x)) + cp.sum_squares(x - c[:2]),
    "huber": lambda x, y, c, k: cp.sum(cp.huber(y - c, 0.3)) + cp.exp(x[0]) + cp.sum_squares(x),
    "log_sum_exp": lambda x, y, c, k: cp.log_sum_exp(y - c) + k * cp.sum(y) + cp.sum_squares(x),
    "norm": lambda x, y, c, k: cp.norm(y - c - 2, 2) + cp.exp(x[0]) + cp.sum_squares(x),
    "sqrt": lambda x, y, c, k: -k * cp.sum(cp.sqrt(y + 1)) + cp.sum_squares(x - c[:2]),
    "product": lambda x, y, c, k: cp.prod(y + 2) + k * cp.sum(x) + cp.sum_squares(x - c[:2]),
    "bilinear": lambda x, y, c, k: x @ y[:2] + k * cp.sum(cp.exp(y)) + cp.sum_squares(x - c[:2]),
}


@pytest.mark.parametrize("name", UPPER)
def test_adjoint_through_auxiliary_variables(name: str) -> None:
    x, y = cp.Variable(2, name="x"), cp.Variable(3, name="y")
    c, k = cp.Parameter(3, name="c"), cp.Parameter(name="k", nonneg=True)
    M = np.random.default_rng(0).standard_normal((3, 2))
    lower = cp.Problem(cp.Minimize(cp.sum_squares(y - M @ x) + c @ y), [cp.sum(y) <= 1, y >= -0.3])
    program = bg.bilevel(cp.Problem(cp.Minimize(UPPER[name](x, y, c, k)), [x <= 2, x >= -2]), lower, [y])
    values = {"c": np.array([0.3, -0.5, 0.2]), "k": np.array([0.8])}
    theta = tuple(values[i.name] for i in program.inputs)
    base = Relaxation().solve(program, theta)
    assert base.status[0] in (Status.GLOBAL, Status.LOCAL)
    cotangent = np.array([1.0, -0.7, 0.3, 0.5, -0.2])
    gradients, lost = program.smooth.adjoint(theta, base.w[0], base.free[0], cotangent)
    assert not lost
    for k_, g in enumerate(gradients):
        for i in range(len(g)):
            left, right = differences(program, theta, base, cotangent, k_, i)
            assert abs(left - right) <= 1e-3
            assert g[i] == pytest.approx((left + right) / 2, rel=1e-6, abs=1e-6)


def test_bound_needs_the_numbers_to_be_convex() -> None:
    """A Parameter that breaks its PSD promise at the upper level costs the proof, not the answer."""
    x, y = cp.Variable(2, name="x"), cp.Variable(name="y")
    P = cp.Parameter((2, 2), PSD=True, name="P")
    upper = cp.quad_form(x, P) + cp.exp(x[0]) + cp.square(y - 1)
    program = case(upper, cp.square(y - 1), y, [x >= -1, x <= 1]).program
    theta = np.array([[1.0, 0, 0, 1], [1, 0, 0, -1]])
    outcome = Relaxation().solve(program, (theta,))
    assert outcome.status[0] is Status.GLOBAL
    assert outcome.status[1] in (Status.LOCAL, Status.STATIONARY)
    assert np.isinf(outcome.bound[1])


def test_it_prints_nothing_at_exit() -> None:
    """BQPD writes to the Fortran runtime's buffer, which comes out when the process ends."""
    script = """
import cvxpy as cp, numpy as np, bigrad as bg
T = 24
p, y = cp.Variable(T, name="p"), cp.Variable(T, name="y")
d = 1 + 0.5 * np.sin(np.arange(T) / 4)
lower = cp.Problem(cp.Minimize(cp.sum_squares(y - d) + p @ y), [cp.sum(y) == d.sum(), y >= 0, y <= 2])
above = [p >= 0, p <= 3, cp.sum(p) <= 1.5 * T, cp.abs(p[1:] - p[:-1]) <= 0.5]
cost = np.linspace(1, 2, T) @ y + cp.sum(cp.exp(y))
program = bg.bilevel(cp.Problem(cp.Maximize(p @ y - cost), above), lower, responds=[y])
for seed in range(4):
    assert program.solve(solver=bg.Relaxation(starts=3, seed=seed)).status.ok
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_leaves_a_saddle() -> None:
    """From x = 0, where everything is stationary, both ways are down."""
    x, y = scalars()
    problem = case(-x * y, cp.square(y - x), y, [x >= -1, x <= 1], [y >= -3])
    solution = run(problem, Relaxation(starts=1))
    check(problem, solution)
    assert solution.value == pytest.approx(-1.0)


def test_hops_find_what_starts_alone_miss():
    """Sellers of price-elastic goods: the best known answers of four random programs, each found by the usual eight starts."""
    for seed in range(4):
        seller, market, answers = elastic(seed)
        program = bg.bilevel(seller, market, responds=answers)
        usual, long = program.solve(), program.solve(solver=bg.Relaxation(starts=40, seed=5))
        assert usual.value >= long.value - 1e-6 * (1 + abs(long.value)), seed


def elastic(seed):
    """The seller sets prices up to 14; buyers have linear demand, a minimum for each good that other goods can meet too, and a budget."""
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(2, 5)), int(rng.integers(2, 4))
    p, q, z = cp.Variable(n), cp.Variable(n, nonneg=True), cp.Variable(m, nonneg=True)
    wish, slope, outside, link = rng.uniform(5, 15, n), rng.uniform(0.5, 2, n), rng.uniform(3, 8, m), rng.random((n, m))
    spent = p @ q + outside @ z - wish @ q + 0.5 * slope @ cp.square(q) + 0.1 * cp.sum_squares(z)
    market = cp.Problem(cp.Minimize(spent), [q + link @ z >= rng.uniform(1, 4, n), cp.sum(q) <= rng.uniform(4, 12)])
    return cp.Problem(cp.Maximize(p @ q - 2 * cp.sum(q)), [p >= 0, p <= 14]), market, [q, z]
