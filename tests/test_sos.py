"""Global: every proof is checked against all pieces, all faces or all integers, every refusal against what is true."""

import itertools
import pickle
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch
from helpers import SHAPES, random_quadratic
from test_global import KINDS, best_of_all_pieces, random_program
from test_prices import duals, priced

import bigrad as bg
from bigrad import datasets
from bigrad.solvers import certificate, sos
from bigrad.solvers.base import AbstractSolver

INFEASIBLE = {bg.Status.INFEASIBLE_LOWER, bg.Status.INFEASIBLE_UPPER, bg.Status.UNBOUNDED_LOWER}


def best_face(program):
    """The least upper objective over all faces of all pieces, with numpy alone.

    For a strictly convex follower with inequalities, a quadratic leader, curved either way, and bounded x.
    """
    d, sizes = program.quadratic(()), program.quadratic.sizes
    n, m, best = sizes.x, sizes.y, np.inf
    assert sizes.equalities == sizes.upper_equalities == 0
    for count in range(m + 1):
        for tight in map(list, itertools.combinations(range(sizes.pairs), count)):
            A = d.A[tight]
            matrix = np.block([[d.P, A.T], [A, np.zeros((count, count))]])
            if np.linalg.matrix_rank(matrix) < m + count:
                continue
            sides = np.column_stack([np.r_[-d.p, d.b[tight]], np.vstack([-d.C, -d.B[tight]])])
            answer = np.linalg.solve(matrix, sides)
            point, path = np.r_[np.zeros(n), answer[:m, 0]], np.vstack([np.eye(n), answer[:m, 1:]])
            rows = np.vstack([-answer[m:, 1:], np.hstack([d.B, d.A]) @ path, d.G @ path])
            ends = np.r_[answer[m:, 0], d.b - np.hstack([d.B, d.A]) @ point, d.g - d.G @ point]
            H, f = path.T @ d.Q @ path, path.T @ (d.Q @ point + d.c)
            level = point @ d.Q @ point / 2 + d.c @ point + d.c0
            live = abs(rows).max(1) > 1e-9
            if (ends[~live] >= -1e-9).all():
                best = min(best, level + least_on_faces(H, f, rows[live], ends[live]))
    return best


def least_on_faces(H, f, rows, ends):
    """The least 1/2 x'Hx + f'x over the polytope rows x <= ends: it is stationary on some face."""
    best, n = np.inf, len(f)
    for size in range(n + 1):
        for face in map(list, itertools.combinations(range(len(rows)), size)):
            matrix = np.block([[H, rows[face].T], [rows[face], np.zeros((size, size))]])
            if abs(np.linalg.det(matrix)) > 1e-10:
                x = np.linalg.solve(matrix, np.r_[-f, ends[face]])[:n]
                if (rows @ x <= ends + 1e-8).all():
                    best = min(best, x @ H @ x / 2 + f @ x)
    return best


def indefinite_program(seed):
    """A leader with products of prices and demands and squares of any sign; a strictly convex follower."""
    rng = np.random.default_rng(seed)
    n, m, k = [(1, 2, 4), (2, 2, 4), (2, 3, 5)][seed % 3]
    x, y = cp.Variable(n, name="x"), cp.Variable(m, name="y")
    A, B, b = rng.integers(-3, 4, (k, m)), rng.integers(-2, 3, (k, n)), rng.integers(0, 5, k)
    W, C, c = rng.standard_normal((m, m)).round(1), rng.integers(-2, 3, (m, n)), rng.integers(-3, 4, m)
    M, D, E = rng.integers(-2, 3, (n, m)), rng.integers(-2, 3, n), rng.integers(-1, 2, m)
    products = [(float(M[i, j]), x[i] * y[j]) for i in range(n) for j in range(m)]
    squares = [
        *zip(D.astype(float), map(cp.square, x), strict=True),
        *zip(E.astype(float), map(cp.square, y), strict=True),
    ]
    goal = sum(w * e for w, e in (*products, *squares)) + rng.integers(-3, 4, n) @ x + rng.integers(-3, 4, m) @ y
    above = [x <= 3, x >= -2] + ([y[0] <= 1] if rng.random() < 0.4 else [])
    lower = cp.sum_squares(W @ y) + 0.2 * cp.sum_squares(y) + (C @ x + c) @ y
    return bg.bilevel(cp.Problem(cp.Minimize(goal), above), cp.Problem(cp.Minimize(lower), [A @ y + B @ x <= b]), [y])


def integer_program(seed, held=False):
    """A program whose leader chooses k among few integers, and those; held: k is continuous and equal to a Parameter."""
    rng = np.random.default_rng(seed)
    n, m, p, size = rng.integers(0, 2), rng.integers(1, 3), rng.integers(2, 4), rng.integers(1, 3)
    kind = ["boolean", "integer"][rng.integers(2)]
    x, y = cp.Variable(2, name="x"), cp.Variable(m, name="y")
    k = cp.Variable(size, name="k", **({} if held else {kind: True}))
    at = cp.Parameter(size, name="at")
    A, B, b = rng.integers(-2, 3, (p, m)), rng.integers(-2, 3, (p, size)), rng.integers(0, 5, p)
    C, c, T = rng.integers(-2, 3, (m, size)), rng.integers(-3, 4, m), rng.integers(-2, 3, (p, 2))
    d, e, g = rng.integers(-3, 4, size), rng.integers(-3, 4, m), rng.integers(-3, 4, 2)
    price = (C @ k + c) @ y + (cp.sum_squares(y) if rng.random() < 0.6 else 0)
    lower = cp.Problem(cp.Minimize(price), [A @ y + B @ k + (T @ x if n else 0) <= b, y <= 3, y >= -3])
    goal = d @ k + e @ y + (g @ x if n else 0)
    if rng.random() < 0.5:
        goal += cp.sum_squares(k - 0.3) + cp.sum_squares(y - 1) + (cp.sum_squares(x - 0.5) if n else 0)
    above = [k <= 2.5, k >= -1.2] + ([x <= 2, x >= -2] if n else [])
    above += [y[0] + k[0] <= 1.5] if rng.random() < 0.5 else []
    above += [k == at] if held else []
    choices = itertools.product(range(2) if kind == "boolean" else range(-1, 3), repeat=size)
    return bg.bilevel(cp.Problem(cp.Minimize(goal), above), lower, responds=[y]), at if held else k, choices


def check_claim(solution, truth, where):
    """The optimum `truth`, None if there is no feasible point, -inf if there is no optimum, must be proven."""
    where = f"{where}: {solution.status.name} {solution.value}, truth {truth}, {solution.stats}"
    if truth is None:
        assert solution.status in INFEASIBLE, where
    elif truth == -np.inf:
        assert solution.status is bg.Status.UNBOUNDED_UPPER, where
    else:
        assert solution.status is bg.Status.GLOBAL, where
        assert abs(solution.value - truth) <= 5e-6 * (1 + abs(truth)), where
        assert solution.stats.bound <= truth + 1e-6 * (1 + abs(truth)), where
        assert solution.stats.follower_gap <= 1e-6, where
        assert solution.stats.violation <= 1e-9, where


def check_degenerate(seed, kind):
    program = random_program(seed, *kind)
    check_claim(program.solve(solver=bg.Global(), verify=True), best_of_all_pieces(program), (seed, kind))


def check_indefinite(seed):
    program = indefinite_program(seed)
    truth = best_face(program)
    check_claim(program.solve(solver=bg.Global(), verify=True), None if truth == np.inf else truth, seed)


def check_integer(seed):
    program, k, choices = integer_program(seed)
    rest, at, _ = integer_program(seed, held=True)
    solver = bg.Pieces(exhaustive=2**12)
    found = [rest.solve({at: np.array(c, float)}, solver=solver) for c in choices]
    values = [s.value for s in found if s.status.ok]
    solution = program.solve(verify=True)
    check_claim(solution, min(values) if values else None, seed)
    if solution.status.ok:
        np.testing.assert_array_equal(solution[k], np.round(solution[k]))


@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_programs_against_all_pieces(kind):
    for seed in range(3):
        check_degenerate(seed, kind)


def test_indefinite_programs_against_all_faces():
    for seed in range(6):
        check_indefinite(seed)


def test_integers_against_all_of_them():
    for seed in range(8):
        check_integer(seed)


@pytest.mark.slow
def test_many_programs():
    for seed in range(3, 80):
        check_integer(seed)
        check_indefinite(seed)
        for kind in KINDS:
            check_degenerate(seed, kind)


def check_textbook(problem):
    upper, lower, _, y = problem.program_parts()
    solution = bg.bilevel(upper, lower, responds=[y]).solve(solver=bg.Global(time_limit=60), verify=True)
    check_claim(solution, problem.F_star, problem.name)


QUADRATIC = [problem for problem in datasets.textbook() if problem.coefficients is not None]
HARD = ("CalamaiVicente1994c", "TollSettingP4", "jump_qp_lower_min", "mb_2007_02", "Bard1988Ex2")


@pytest.mark.parametrize("problem", [p for p in QUADRATIC if p.name in HARD], ids=lambda p: p.name)
def test_textbook_programs_with_unbounded_relaxations(problem):
    check_textbook(problem)


@pytest.mark.slow
@pytest.mark.parametrize("problem", QUADRATIC, ids=lambda p: p.name)
def test_every_textbook_program(problem):
    check_textbook(problem)


def test_it_proves_what_local_search_leaves_open():
    case = random_quadratic(SHAPES[2], 1)
    local, proven = (case.program.solve(case.values, solver=s) for s in (bg.Pieces(nodes=0, starts=3), bg.Global()))
    assert local.status is bg.Status.LOCAL
    assert proven.status is bg.Status.GLOBAL
    assert proven.value < local.value - 0.1
    assert proven.stats.gap <= 1e-6


x, y, t = cp.Variable(name="x"), cp.Variable(name="y"), cp.Parameter(name="t")
k, b = cp.Variable(name="k", integer=True), cp.Variable(2, name="b", boolean=True)
TRACK = (cp.square(y - x), [])


def declared(upper, above, lower, below=()):
    goal = upper if isinstance(upper, cp.Maximize) else cp.Minimize(upper)
    return bg.bilevel(cp.Problem(goal, list(above)), cp.Problem(cp.Minimize(lower), list(below)), responds=[y])


CASES = {
    "a line down": (x + y, [], *TRACK, bg.Status.UNBOUNDED_UPPER),
    "unbounded but for the response": (-y, [x <= 3], *TRACK, -3.0),
    "unbounded but for an LP response": (-y, [x >= 0, x <= 3], y, [y >= x], -3.0),
    "a parabola down": (y - cp.square(x), [], cp.square(y - x), [y >= 0], bg.Status.UNBOUNDED_UPPER),
    "a product up": (x * y, [], *TRACK, 0.0),
    "a product down": (-x * y, [], *TRACK, bg.Status.UNBOUNDED_UPPER),
    "a saddle, flat along the response": (cp.square(x) - cp.square(y), [], *TRACK, 0.0),
    "a saddle, tilted there": (cp.square(x) - cp.square(y) + x, [], *TRACK, bg.Status.UNBOUNDED_UPPER),
    "a toll without a ceiling": (cp.Maximize(x * y), [], x * y + 3 * (1 - y), [y >= 0, y <= 1], 3.0),
    "a price without a ceiling": (cp.Maximize(x * y), [x >= 0], cp.square(y) - 10 * y + x * y, [y >= 0], 12.5),
    "capacity without a ceiling": (cp.Maximize(x * y), [x >= 0], cp.square(y - 5), [y >= 0, y + x <= 7], 12.25),
    "an unbounded follower": (x, [x >= 0], -y, [y >= x], bg.Status.UNBOUNDED_LOWER),
    "no answer": (x, [x >= 0, x <= 1], y, [y >= x + 1, y <= 0], bg.Status.INFEASIBLE_LOWER),
    "no answer allowed": (x, [y >= 1, x <= 4], y, [y >= 0, x + y <= 20], bg.Status.INFEASIBLE_UPPER),
    "no objective": (0 * x, [x >= 1, x <= 2], *TRACK, 0.0),
    "an integer": (cp.square(k - 2.6) + cp.square(y), [k <= 10], cp.square(y - 0.3 * k), [y >= 0], 0.72),
    "an integer without end": (-k, [], cp.square(y - 0.3 * k), [], bg.Status.UNBOUNDED_UPPER),
    "no integer": (k, [k >= 0.2, k <= 0.8], cp.square(y - 0.3 * k), [], bg.Status.INFEASIBLE_UPPER),
    "integers in a row of their own": (x + 0 * k, [k == 2, x >= k], cp.square(y - x), [], 2.0),
    "a large integer": (k + y, [k >= 1e6 + 0.5], cp.square(y - 0.001 * k), [], 1001001.001),
    "booleans": (cp.sum(b) + cp.square(y - 3), [], cp.square(y - 2 * b[0] - 1.5 * b[1]), [], 2.0),
    "a product of booleans": (2 * b[0] * b[1] - b[0] - b[1] + y, [], cp.square(y - b[0]), [y >= 0], -1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_known_answers(name, capfd):
    *parts, expected = CASES[name]
    solution = declared(*parts).solve(solver=bg.Global(), verify=True)
    if isinstance(expected, bg.Status):
        assert solution.status is expected
        assert solution.stats.gap is None
    else:
        assert solution.status is bg.Status.GLOBAL
        assert solution.value == pytest.approx(expected, abs=1e-5)
        assert solution.stats.follower_gap <= 1e-6
    assert capfd.readouterr() == ("", "")


def test_tolls_without_ceilings_on_forty_routes(capfd):
    """Prices that no row bounds: strong duality takes their products out. Local searches end 10 % below."""
    rng = np.random.default_rng(0)
    tolls, flow = cp.Variable(10, name="tolls", nonneg=True), cp.Variable(40, name="flow", nonneg=True)
    uses, cost = rng.random((10, 40)) < 0.5, rng.uniform(1, 5, 40)
    uses[:, 0], cost[0] = False, 9.0
    revenue = sum(tolls[i] * (uses[i].astype(float) @ flow) for i in range(10))
    follower = cp.Problem(cp.Minimize((uses.T @ tolls + cost) @ flow), [cp.sum(flow) == 1, flow[1:] <= 0.6])
    program = bg.bilevel(cp.Problem(cp.Maximize(revenue)), follower, responds=[flow])
    solution = program.solve(solver=bg.Global(), verify=True)
    assert solution.status is bg.Status.GLOBAL
    assert solution.value > program.solve(solver=bg.Relaxation(starts=2)).value + 0.1
    assert solution.stats.follower_gap <= 1e-6
    assert capfd.readouterr() == ("", "")


def open_program(seed, box=None):
    """An indefinite leader whose variables have few bounds, so that about half of these programs have no optimum."""
    rng = np.random.default_rng(seed)
    n, m, k = [(1, 1, 2), (1, 2, 3), (2, 2, 3)][seed % 3]
    x, y = cp.Variable(n, name="x"), cp.Variable(m, name="y")
    A, B, b = rng.integers(-2, 3, (k, m)), rng.integers(-1, 2, (k, n)), rng.integers(0, 4, k)
    C, c = rng.integers(-1, 2, (m, n)), rng.integers(-2, 3, m)
    M, D, E = rng.integers(-1, 2, (n, m)), rng.integers(-1, 3, n), rng.integers(-1, 3, m)
    goal = sum(float(M[i, j]) * x[i] * y[j] for i in range(n) for j in range(m)) + rng.integers(-2, 3, n) @ x
    goal += sum(float(d) * cp.square(v) for d, v in [*zip(D, x, strict=True), *zip(E, y, strict=True)])
    above = ([x[0] >= -2] if rng.random() < 0.5 else []) + ([x <= box, x >= -box] if box else [])
    lower = cp.Problem(cp.Minimize(cp.sum_squares(y) + (C @ x + c) @ y), [A @ y + B @ x <= b])
    return bg.bilevel(cp.Problem(cp.Minimize(goal), above), lower, responds=[y])


def check_open(seed):
    """No claim of an optimum where there is none, nor of none where there is one; whether there was a claim."""
    near, far = (best_face(open_program(seed, box)) for box in (100.0, 1000.0))
    endless = far < near - 1e-3 * (1 + abs(near))
    solution = open_program(seed).solve(solver=bg.Global(time_limit=5))
    where = (seed, solution.status, solution.value, near, far)
    if solution.status is bg.Status.GLOBAL:
        assert not endless, where
        assert solution.value == pytest.approx(far, rel=1e-5, abs=1e-5), where
    elif solution.status is bg.Status.UNBOUNDED_UPPER:
        assert endless, where
    if solution.stats.bound is not None:
        assert solution.stats.bound <= far + 1e-5 * (1 + abs(far)), where
    return solution.status in (bg.Status.GLOBAL, bg.Status.UNBOUNDED_UPPER)


def test_no_false_claims_where_nothing_is_bounded():
    assert sum(check_open(seed) for seed in (0, 1, 3, 4, 22, 55)) >= 4


@pytest.mark.slow
def test_no_false_claims_on_many_programs_where_nothing_is_bounded():
    for seed in range(60):
        check_open(seed)


def hard_program():
    rng = np.random.default_rng(3)
    x, y = cp.Variable(5, name="x"), cp.Variable(8, name="y")
    A, B, C, M = (rng.standard_normal(s) for s in ((8, 8), (8, 5), (8, 5), (5, 8)))
    lower = cp.Problem(cp.Minimize(cp.sum_squares(y) + (C @ x) @ y), [A @ y + B @ x <= 1, y <= 2, y >= -2])
    goal = sum(float(M[i, j]) * x[i] * y[j] for i in range(5) for j in range(8)) - cp.sum_squares(x)
    return bg.bilevel(cp.Problem(cp.Minimize(goal), [x <= 2, x >= -2]), lower, responds=[y])


def test_a_time_limit_gives_the_best_point_with_its_open_gap():
    program = hard_program()
    solution = program.solve(solver=bg.Global(time_limit=1.0), verify=True)
    assert solution.status is bg.Status.OPEN
    assert solution.stats.follower_gap <= 1e-6
    assert solution.stats.violation <= 1e-9
    assert solution.stats.seconds < 4
    if solution.stats.bound is not None:
        assert solution.stats.bound < solution.value
        gap = (solution.value - solution.stats.bound) / (1 + abs(solution.value))
        assert solution.stats.gap == pytest.approx(gap)
    local = program.solve(solver=bg.Relaxation(starts=8))
    resumed = program.solve(solver=bg.Global(time_limit=1.0), warm_start=local)
    assert resumed.value <= local.value + 1e-9 * (1 + abs(local.value))


def test_a_time_limit_before_any_point():
    """Nothing is claimed: no point, or one that was there before the clock was first read, with its open gap."""
    solution = declared(*CASES["an integer"][:-1]).solve(solver=bg.Global(time_limit=1e-9), verify=True)
    if solution.status is not bg.Status.TIME_LIMIT:
        assert solution.status in (bg.Status.OPEN, bg.Status.LOCAL)
        assert solution.stats.follower_gap < 1e-6


def test_a_start_is_never_lost():
    """Not even where SCIP is given no time; with time, a poor one leads to the optimum."""
    rest, at, choices = integer_program(3, held=True)
    program, _, _ = integer_program(3)
    poor = [s for s in (rest.solve({at: np.array(c, float)}) for c in choices) if s.status.ok][-1]
    start = replace(program.solve(), point=poor.point)
    held = program.solve(solver=bg.Global(time_limit=1e-9), warm_start=start)
    assert held.status in (bg.Status.OPEN, bg.Status.GLOBAL)
    assert held.value <= poor.value + 1e-9
    best = program.solve(warm_start=start)
    assert best.status is bg.Status.GLOBAL
    assert best.value < poor.value - 0.1


def test_a_bound_above_a_feasible_value_is_no_bound(monkeypatch):
    """SCIP's word is not taken where an exact point contradicts it, nor where it broke down."""
    program, honest = declared(*CASES["booleans"][:-1]), sos.minimise
    wrong = {
        "above": lambda found: replace(found, bound=found.bound + 1),
        "broken": lambda found: replace(found, status=sos.BROKEN, bound=-np.inf),
    }
    for lie in wrong.values():
        monkeypatch.setattr(certificate.sos, "minimise", lambda *a, lie=lie, **o: lie(honest(*a, **o)))
        solution = program.solve()
        assert solution.status is bg.Status.LOCAL
        assert solution.stats.bound is None
        assert solution.stats.gap is None


def test_a_batch_keeps_its_good_items_and_its_order():
    program = declared(cp.square(k - t) + cp.square(y), [k <= 10], cp.square(y - 0.3 * k), [y >= 0])
    layer = bg.Layer(program, parameters=[t], variables=[k], on_failure="nan")
    values = torch.tensor([2.6, float("nan"), -3.2, 8.0], dtype=torch.float64)
    solutions = layer.solve(values)
    names = [s.status.name for s in solutions]
    assert names == ["GLOBAL", "INVALID_INPUT", "GLOBAL", "GLOBAL"]
    (found,) = layer(values)
    np.testing.assert_array_equal(found.numpy(), [2, np.nan, -3, 7])
    again = layer.solve(values)
    assert [s.value for s in again[2:]] == [s.value for s in solutions[2:]]


@pytest.mark.parametrize("whole", [False, True])
def test_a_leader_of_several_followers(whole):
    """Stackelberg and Cournot: with n firms, costs c and demand a - q, the leader's revenue is q0 (a - q0 + sum of c) / (n + 1) - c0 q0."""
    a, c, firms = 10.0, np.array([1.0, 1.2, 2.0]), [cp.Variable(name=f"q{i}", nonneg=True) for i in (1, 2)]
    q0 = cp.Variable(name="q0", integer=whole)
    lower = [
        cp.Problem(cp.Maximize((a - cost) * own - cp.square(own) - own * (q0 + other)))
        for own, other, cost in zip(firms, firms[::-1], c[1:], strict=True)
    ]
    upper = cp.Problem(cp.Maximize((a - c[0]) * q0 - (q0 + sum(firms)) * q0), [q0 >= 0, q0 <= 9])
    solution = bg.bilevel(upper, lower, responds=[[q] for q in firms]).solve(solver=bg.Global(), verify=True)
    grid = np.arange(10.0) if whole else np.array([(a - 3 * c[0] + c[1:].sum()) / 2])
    revenue = grid * (a - grid + c[1:].sum()) / 3 - c[0] * grid
    check_claim(solution, revenue.max(), "Cournot")
    assert solution[q0] == pytest.approx(grid[revenue.argmax()], abs=1e-6)


@pytest.mark.parametrize("kind", ["a vector", "a scalar equality"])
@pytest.mark.parametrize("use", ["a square", "a product"])
def test_prices_above(kind, use):
    made, price = priced(kind, use)
    local = made.program.solve(made.values)
    solution = made.program.solve(made.values, solver=bg.Global(), verify=True)
    assert solution.status is bg.Status.GLOBAL
    assert solution.value <= local.value + 1e-9
    assert solution.stats.follower_gap <= 1e-6
    np.testing.assert_allclose(solution[price], duals(made, solution)[0], atol=1e-4)


def test_one_level_that_is_not_convex():
    z = cp.Variable(2, name="z")
    saddle = cp.square(z[0]) - cp.square(z[1]) + z[0] * z[1]
    program = bg.argmin(cp.Problem(cp.Minimize(saddle), [z <= 1, z >= -1]))
    solution = program.solve(solver=bg.Global())
    assert solution.status is bg.Status.GLOBAL
    assert solution.value == pytest.approx(-1.25)


def test_the_gradient_at_integers_is_that_of_the_continuous_part():
    s = cp.Parameter(2, name="s")
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
    k = cp.Variable(2, name="k", integer=True)
    lower = cp.Problem(cp.Minimize(cp.sum_squares(y - x) + s @ y), [y >= 0.3 * k - 1, cp.sum(y) <= 3])
    goal = 2 * cp.sum_squares(x - 0.7) + cp.sum_squares(y - s) + cp.sum_squares(k - 1.3 * s) + x[0] * k[1] - x[1] * y[0]
    program = bg.bilevel(cp.Problem(cp.Minimize(goal), [x <= 2, x >= -2, k <= 4, k >= -4]), lower, responds=[y])
    layer = bg.Layer(program, parameters=[s], variables=[x, k, y])
    weights = [torch.randn(2, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3)]

    def loss(at):
        return sum(w @ v for w, v in zip(weights, layer(at), strict=True))

    at = torch.tensor([0.9, 1.4], dtype=torch.float64, requires_grad=True)
    loss(at).backward()
    step, moved = 1e-5, []
    with torch.no_grad():
        for e in np.eye(2) * step:
            up, down = at + torch.tensor(e), at - torch.tensor(e)
            assert torch.equal(layer(up)[1], layer(down)[1])
            moved.append((loss(up) - loss(down)) / (2 * step))
    assert max(map(abs, moved)) > 0.1
    np.testing.assert_allclose(at.grad, moved, rtol=1e-4, atol=1e-6)
    second = torch.autograd.functional.hessian(loss, at.detach())
    np.testing.assert_allclose(second, np.zeros((2, 2)), atol=1e-8)  # affine on its piece, at its integers


def test_every_solver_takes_integers_or_refuses_by_name():
    program = declared(*CASES["an integer"][:-1])
    assert program.integers == (0,)
    takers = {"Auto", "Global", "Spread"}
    assert {bg.Pieces, bg.Relaxation} <= set(AbstractSolver.__subclasses__())
    ours = [s for s in AbstractSolver.__subclasses__() if s.__module__.startswith("bigrad")]
    for solver in (s for s in ours if s.__name__ not in takers):
        refusal = solver().accepts(program)
        assert refusal is not None, solver
        if solver in (bg.Pieces, bg.Relaxation, bg.Sparse):
            assert f"{solver.__name__}() needs continuous variables" in refusal
            assert "Global()" in refusal
    assert "integer" in program.explain()
    assert "Global(" in program.explain()
    with pytest.raises(bg.CapabilityError, match="leader's k must be integer"):
        program.solve(solver=bg.Pieces())


@pytest.mark.parametrize("solver", [None, bg.Global()])
def test_integers_under_an_upper_level_that_is_not_quadratic(solver):
    program = declared(cp.exp(k) + cp.square(y), [k <= 10], cp.square(y - 0.3 * k))
    solution = program.solve(solver=solver)
    assert solution.status is bg.Status.GLOBAL
    assert solution.value == pytest.approx(np.exp(-1) + 0.09)
    with pytest.raises(bg.CapabilityError, match="Global"):
        program.solve(solver=bg.Relaxation())


def test_some_entries_of_a_variable_may_be_integer():
    n = cp.Variable((2, 2), name="n", integer=[(0, 1), (1, 1)])
    goal = cp.sum_squares(n - np.array([[0.4, 1.6], [2.2, -0.7]])) + y
    program = declared(goal, [], cp.square(y - 0.1 * n[0, 0]), [y >= 0])
    assert program.integers == (2, 3)
    solution = pickle.loads(pickle.dumps(program)).solve()
    assert solution.status is bg.Status.GLOBAL
    assert program.solve()[n] == pytest.approx(np.array([[0.35, 2], [2.2, -1]]))


@pytest.mark.parametrize(
    "options", [{"gap": 0.0}, {"gap": np.nan}, {"gap": np.inf}, {"time_limit": -1}, {"time_limit": "1"}]
)
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(bg.InputError, match="Global"):
        bg.Global(**options)
