"""GLOBAL is a claim.

Check it, on programs with many ties, against all pieces solved one by one with HiGHS and Clarabel.
"""

import itertools

import cvxpy as cp
import numpy as np
import pytest
from scipy.optimize import linprog

import bigrad as bg


def random_program(seed, quadratic_lower, quadratic_upper):
    """Small integer data: many degenerate vertices, redundant rows and indifferent followers."""
    rng = np.random.default_rng(seed)
    n, m, p = rng.integers(1, 3), rng.integers(1, 4), rng.integers(2, 5)
    x, y = cp.Variable(n, name="x"), cp.Variable(m, name="y")
    A, B, b = rng.integers(-2, 3, (p, m)), rng.integers(-2, 3, (p, n)), rng.integers(0, 5, p)
    C, c = rng.integers(-2, 3, (m, n)), rng.integers(-3, 4, m)
    P = np.diag(rng.integers(0, 3, m)) if quadratic_lower else np.zeros((m, m))
    d, e = rng.integers(-3, 4, n), rng.integers(-3, 4, m)
    q = 1.0 if quadratic_upper else 0.0
    lower = [A @ y + B @ x <= b, y <= 3] + ([y >= 0] if rng.random() < 0.7 else [])
    if rng.random() < 0.3:
        lower.append(cp.sum(y) == x[0])
    if rng.random() < 0.2:
        lower.append(2 * cp.sum(y) == 2 * cp.sum(y))
    upper = [x <= 4, x >= -4] + ([y[0] <= 2] if rng.random() < 0.3 else [])
    follower = cp.Problem(
        cp.Minimize(cp.quad_form(y, P) / 2 + (C @ x + c) @ y if P.any() else (C @ x + c) @ y + 0 * cp.sum(y)), lower
    )
    leader = cp.Problem(cp.Minimize(d @ x + e @ y + q * (cp.sum_squares(x - 1) + cp.sum_squares(y - 1))), upper)
    return bg.bilevel(leader, follower, responds=[y])


def random_priced(seed, quadratic_lower, quadratic_upper):
    """The same with the prices of lower constraints in the upper problem."""
    rng = np.random.default_rng(seed)
    program = random_program(seed, quadratic_lower, quadratic_upper)
    upper, lower = program.source.upper, program.source.lower[0]
    price = lower.constraints[0].dual_variables[0]
    weight = rng.integers(-2, 4, price.size)
    goal = upper.objective.expr + weight @ price + (cp.sum_squares(price - 1) if quadratic_upper else 0)
    rows = [*upper.constraints, *([cp.sum(price) <= 5] if rng.random() < 0.5 else [])]
    leader = cp.Problem(cp.Minimize(goal), rows)
    return bg.bilevel(leader, lower, responds=[u.handle for u in program.unknowns if not u.leader])


def random_game(seed, quadratic_lower, quadratic_upper):
    """Two followers with small integer data, each of whose objectives depends on the other's variables."""
    rng = np.random.default_rng(seed)
    x, y, z = cp.Variable(name="x"), cp.Variable(rng.integers(1, 3), name="y"), cp.Variable(1, name="z")
    lower = []
    for own, other in ((y, z), (z, y)):
        K, c, C = (
            rng.integers(-2, 3, (own.size, other.size)),
            rng.integers(-2, 3, own.size),
            rng.integers(-2, 3, own.size),
        )
        goal = (K @ other + c + C * x) @ own
        if quadratic_lower:
            goal = goal + rng.integers(0, 3) * cp.sum_squares(own) / 2
        rows = [rng.integers(-2, 3, own.size) @ own + rng.integers(-1, 2) * x <= rng.integers(0, 4), own <= 2]
        lower.append(cp.Problem(cp.Minimize(goal), rows + ([own >= 0] if rng.random() < 0.7 else [])))
    goal = rng.integers(-2, 3) * x + rng.integers(-2, 3, y.size) @ y + rng.integers(-2, 3) * z[0]
    goal = goal + (cp.sum_squares(y - 1) + cp.square(x) if quadratic_upper else 0)
    return bg.bilevel(cp.Problem(cp.Minimize(goal), [x <= 3, x >= -3]), lower, responds=[[y], [z]])


def best_of_all_pieces(program):
    """The optimum over all 2^pairs pieces, by solvers that bigrad does not use; None if every piece is infeasible."""
    data, sizes = program.quadratic(()), program.quadratic.sizes
    n = sizes.primal
    stationary = np.hstack([data.C, data.P, data.A.T, data.H.T])
    slack = np.hstack([data.B, data.A, np.zeros((sizes.pairs, n - sizes.x - sizes.y))])
    equal = np.hstack([data.K, data.H, np.zeros((sizes.equalities, n - sizes.x - sizes.y))])
    wide = [np.pad(M, ((0, 0), (0, n - M.shape[1]))) for M in (data.G, data.E)]
    cost = np.r_[data.c, np.zeros(n - len(data.c))]
    best = None
    for tight in itertools.product([False, True], repeat=sizes.pairs):
        side = np.array(tight)
        rows, ends = np.vstack([slack[~side], wide[0]]), np.r_[data.b[~side], data.g]
        same, at = np.vstack([stationary, equal, wide[1], slack[side]]), np.r_[-data.p, data.h, data.e, data.b[side]]
        bounds = (
            [(None, None)] * (sizes.x + sizes.y)
            + [(0, None if s else 0) for s in side]
            + [(None, None)] * sizes.equalities
        )
        result = linprog(cost, rows, ends, same, at, bounds, method="highs")
        if result.status == 3 and not data.Q.any():
            return -np.inf
        if result.status == 2:
            continue
        value = result.fun
        if data.Q.any():
            v = cp.Variable(n)
            z = v[: len(data.c)]
            inside = [rows @ v <= ends, same @ v == at]
            lam = v[sizes.x + sizes.y : sizes.x + sizes.y + sizes.pairs]
            inside += [lam >= 0, cp.multiply(~side, lam) == 0]
            piece = cp.Problem(cp.Minimize(cp.quad_form(z, cp.psd_wrap(data.Q)) / 2 + data.c @ z), inside)
            value = piece.solve(solver=cp.CLARABEL)
            if piece.status in ("unbounded", "unbounded_inaccurate"):
                return -np.inf
            if piece.status not in ("optimal", "optimal_inaccurate"):
                continue
        best = value if best is None else min(best, value)
    return None if best is None else best + float(data.c0)


KINDS = [(False, False), (True, False), (False, True), (True, True)]


def check(seed, kind, make=random_program):
    program = make(seed, *kind)
    truth = best_of_all_pieces(program)
    solution = program.solve(verify=True)
    where = f"seed {seed}, kind {kind}: {solution.status.name} {solution.value}, truth {truth}, {solution.stats}"
    if truth is None:
        assert not solution.status.ok, where
        proven = (bg.Status.INFEASIBLE_LOWER, bg.Status.INFEASIBLE_UPPER, bg.Status.UNBOUNDED_LOWER)
        assert solution.status in (*proven, bg.Status.NO_EQUILIBRIUM, bg.Status.NOT_FOUND), where
    elif truth == -np.inf:
        assert solution.status is bg.Status.UNBOUNDED_UPPER, where
    else:
        assert solution.status.ok, where
        assert solution.value >= truth - 1e-6 * (1 + abs(truth)), where
        assert solution.stats.follower_gap <= 1e-6, where
        assert solution.stats.violation <= 1e-8, where
        if solution.status is bg.Status.GLOBAL:
            assert solution.value <= truth + 1e-5 * (1 + abs(truth)), where
    return solution.status


@pytest.mark.parametrize("kind", KINDS)
def test_claims_hold_on_degenerate_programs(kind):
    """No GLOBAL that is not, no infeasible that is feasible."""
    statuses = [check(seed, kind) for seed in range(12)]
    assert statuses.count(bg.Status.GLOBAL) >= 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [random_priced, random_game])
def test_claims_hold_with_prices_and_in_games(make, kind):
    """The same where the leader sees the multipliers, and where two followers see each other."""
    statuses = [check(seed, kind, make) for seed in range(12)]
    assert statuses.count(bg.Status.GLOBAL) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [random_priced, random_game])
def test_claims_hold_with_prices_and_in_games_on_many(make, kind):
    """The same, on many."""
    for seed in range(12, 100):
        check(seed, kind, make)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_claims_hold_on_many_degenerate_programs(kind):
    """The same, on many."""
    for seed in range(12, 150):
        check(seed, kind)


def test_pairs_that_scip_presolves_away():
    """Here its presolving lost a pair, and a ray that is none was taken for one."""
    x, y = cp.Variable(2, name="x"), cp.Variable(3, name="y")
    A, B = np.array([[-1, 0, 0], [2, -2, -2], [1, 0, -2], [0, 0, 0]]), np.array([[0, 0], [-1, -2], [1, 1], [0, 0]])
    follower = cp.Minimize(cp.quad_form(y, cp.psd_wrap(np.outer([1, -1, -1], [1, -1, -1]))) - y[0] + y[1] + y[2])
    leader = cp.square(x[0] + x[1] + y[0]) + cp.square(x[1] + y[2]) + x[0] + 2 * y[0] - y[1] - y[2]
    rows = np.array([[0, 1, 1, 0, 1], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [-1, 0, 0, 0, 0], [0, -1, 0, 0, 0]])
    upper = [rows @ cp.hstack([x, y]) <= [2, 3, 3, 0, 0]]
    lower = cp.Problem(follower, [A @ y + B @ x <= [0, 0, -1, 0]])
    program = bg.bilevel(cp.Problem(cp.Minimize(leader), upper), lower, responds=[y])
    solution = program.solve(solver=bg.Global())
    assert solution.status is bg.Status.GLOBAL
    assert solution.value == pytest.approx(best_of_all_pieces(program), abs=1e-6)


def test_a_quadratic_program_that_daqp_calls_unbounded():
    """The follower is indifferent where both its costs vanish, at x == (0, 2), and has no answer elsewhere: F = (y0 - y1)^2 - 4."""
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
    follower = cp.Problem(cp.Minimize((2 - x[0] - x[1]) * y[0] + 2 * x[0] * y[1]))
    leader = cp.Problem(cp.Minimize(cp.square(x[0] + y[0] - y[1]) + 2 * x[0] - 2 * x[1]), [-2 * x[0] <= 2])
    program = bg.bilevel(leader, follower, responds=[y])
    for solver in (bg.Auto(), bg.Global()):
        solution = program.solve(solver=solver, verify=True)
        assert solution.status is bg.Status.GLOBAL, solution
        assert abs(solution.stats.follower_gap) < 1e-6
        assert solution.value == pytest.approx(-4.0)
        np.testing.assert_allclose(solution[x], [0, 2], atol=1e-9)
