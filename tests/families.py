"""Random programs whose followers need cones, one family for each atom, and what an answer to one of them must stand up to.

Shared by the tests and tests/benchmarks/bench_followers.py.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np
from derivatives import Report, compare
from helpers import Case, case, check_point, reply

import bigrad as bg

W = np.array([0.2, 0.3, 0.5])
RADII = 10.0 ** np.repeat([-3.0, -2.0, -1.5], 4)
"""How far the decisions that are tried are from the leader's."""
BETTER, HIGHER = 1e-5, 1e-7
"""An objective is better, or higher, by this much relative to 1 + the objective."""


def family(name: str, seed: int) -> Case:
    """A leader with two variables, a follower of the family with an interior point; unique answers, parameters at both levels."""
    rng = np.random.default_rng([seed, len(name)])
    x = cp.Variable(2, name="x", bounds=[-2, 2])
    y, t, r = cp.Variable(3, name="y"), cp.Parameter(3, name="t"), cp.Parameter(name="r", nonneg=True)
    g = cp.Parameter(2, name="g")
    B = rng.standard_normal((3, 2)).round(2)
    c, near = B @ x + t, cp.sum_squares(y - B @ x - t)
    free: list[cp.Constraint] = []
    below = {
        "a ball that moves": (near, [cp.norm(y - t) <= r + 0.2 * x[0] + 0.5, y[0] <= 1]),
        "two balls": (near, [cp.norm(y[:2]) <= r, cp.norm(y[1:] - x) <= 3]),
        "two norms": (near / 2 + r * cp.norm(y[:2]) + 0.4 * cp.norm(y[1:]), free),
        "the second-order cone": (near, [cp.norm(y[1:]) <= y[0]]),
        "the exponential cone": (near, [cp.ExpCone(y[0], y[1] + 2, y[2] + 2)]),
        "a power cone": (near, [cp.PowCone3D(y[0], y[1], y[2], 0.3)]),
        "a robust row": (c @ y + 0.2 * cp.sum_squares(y), [cp.sum(y) + r * cp.norm(y + W) <= 2, y >= -1.5]),
        "a norm that x scales": (cp.sum_squares(y - t), [cp.norm(cp.multiply(y, W + 0.3)) <= 2 + x[0], y <= r + x[1]]),
        "x in the norm": (cp.sum_squares(y - t), [cp.norm(x[0] * y + r * W) <= 2]),
        "entropy": (c @ y - cp.sum(cp.entr(y)), [cp.sum(y) == r]),
        "exponentials": (cp.sum(cp.exp(y - B @ x)) + cp.sum_squares(y - t), [cp.sum(y) <= r]),
        "log_sum_exp": (cp.log_sum_exp(y + B @ x) + 0.7 * cp.sum_squares(y - t), [y <= r]),
        "log_sum_exp in a row": (near, [cp.log_sum_exp(y[:2] + 0.1 * x) <= r]),
        "logistic": (cp.sum(cp.logistic(y - B @ x)) + 0.5 * cp.sum_squares(y - t), [cp.norm1(y) <= 2 * r]),
        "logarithms": (c @ y + r * cp.sum(y) + 2 * cp.sum(y) - W @ cp.log(y), [y <= 2]),
        "cubes": (cp.sum(cp.power(y, 3)) - c @ y, [cp.sum(y) <= 2 * r]),
        "power 1.5": (cp.sum(cp.power(cp.abs(y), 1.5)) - c @ y, free),
        "power 4": (cp.sum(cp.power(y - t, 4)) - (B @ x) @ y, [cp.sum(y) <= r]),
        "the 3-norm": (near, [cp.pnorm(y, 3) <= r]),
        "a geometric mean": (0.2 * near - cp.geo_mean(y, [2, 3, 5]), [cp.sum(y) <= r + 1]),
        "quad_over_lin": (cp.quad_over_lin(y[:2] - x, y[2] + 3) + 0.1 * cp.sum_squares(y - t), free),
        "inverses": (cp.sum(cp.inv_pos(y)) + near, [cp.sum(y) <= 4 * r]),
        "relative entropy": (cp.sum(cp.kl_div(y, W)) + c @ y, [y <= 3 * r]),
        "everything": (
            cp.sum(cp.exp(y[:2] - x)) + 0.6 * cp.norm(y - t) + 0.2 * cp.sum_squares(y),
            [cp.norm(y[:2]) <= 1.5 * r, y[2] >= x[0] - 1, cp.power(y[1], 4) <= 2, cp.exp(y[0]) <= 3],
        ),
    }[name]  # fmt: skip
    upper = cp.sum_squares(y - 2 * rng.standard_normal(3)) + 0.3 * cp.sum_squares(x - g)
    made = case(upper, below[0], y, [], below[1])
    values = {t: rng.standard_normal(3), r: rng.uniform(0.6, 1.5), g: rng.standard_normal(2)}
    known = {p.id for p in (*made.upper.parameters(), *made.lower.parameters())}
    made.values = {p: v for p, v in values.items() if p.id in known}
    return made


FAMILIES = [
    "a ball that moves", "two balls", "two norms", "the second-order cone", "the exponential cone", "a power cone", "a robust row",
    "a norm that x scales", "x in the norm", "entropy", "exponentials", "log_sum_exp", "log_sum_exp in a row", "logistic", "logarithms",
    "cubes", "power 1.5", "power 4", "the 3-norm", "a geometric mean", "quad_over_lin", "inverses", "relative entropy", "everything",
]  # fmt: skip


def semidefinite_program(kind: str, order: int, seed: int, leaders: int = 2) -> Case:
    """A follower whose target matrix the leader moves, and who has an interior point for every x; parameters at both levels."""
    rng = np.random.default_rng([order, seed])
    x, Y = cp.Variable(leaders, name="x", bounds=[-2, 2]), cp.Variable((order, order), name="Y")
    t, g = cp.Parameter((order, order), name="t"), cp.Parameter(leaders, name="g")

    def symmetric() -> np.ndarray:
        made = rng.standard_normal((order, order))
        return (made + made.T) / 2

    target = sum(x[k] * symmetric() for k in range(leaders)) + (t + t.T) / 2
    y = cp.Variable(3, name="y")
    pencil = 3 * order**0.5 * np.eye(order) + target / 2 + sum(y[k] * symmetric() for k in range(3))
    lower, rows, answers = {
        "projection": (cp.sum_squares(Y - target), [Y >> 0], Y),
        "largest eigenvalue": (cp.sum_squares(Y - target) / 2 + 0.5 * cp.lambda_max(Y), [], Y),
        "nearest correlation": (cp.sum_squares(Y - target), [Y >> 0, cp.diag(Y) == 1], Y),
        "linear over correlations": (cp.sum(cp.multiply(target, Y)), [Y >> 0, cp.diag(Y) == 1], Y),
        "matrix inequality": (cp.sum_squares(y - 3 * rng.standard_normal(3)), [pencil >> 0], y),
    }[kind]
    wish = 1.5 * symmetric() if answers is Y else rng.standard_normal(3)
    upper = cp.sum_squares(answers - wish) + 0.3 * cp.sum_squares(x - g)
    rows += [Y == Y.T] if answers is Y else []
    return case(upper, lower, answers, [], rows, {t: symmetric(), g: 0.3 * rng.standard_normal(leaders)})


SEMIDEFINITE = [
    "projection",
    "largest eigenvalue",
    "nearest correlation",
    "linear over correlations",
    "matrix inequality",
]


def examined(problem: Case, seed: int, solver: bg.Relaxation) -> Report:
    """Assert what is claimed of the solution by other means, and difference re-solves in the parameters of both levels.

    The follower is re-solved by Clarabel at the leader's decision, and at decisions near by.
    """
    solution = problem.program.solve(problem.values, solver=solver, verify=True)
    assert solution.status in (bg.Status.GLOBAL, bg.Status.LOCAL), solution
    assert abs(solution.stats.follower_gap) <= 1e-7
    assert max(solution.stats.residual, solution.stats.violation) <= 1e-8
    check_point(problem, solution)
    rng, (x,) = np.random.default_rng(seed), problem.leader
    here, scale = solution[x], 1 + abs(solution.value)
    level = min(problem.sense * solution.value, reply(problem, {x: here}))  # Clarabel's own error may be in its favour
    for radius in RADII:
        step = np.clip(here + radius * rng.standard_normal(x.shape), -2, 2) - here
        if reply(problem, {x: here + step}) < level - BETTER * scale:  # allowed in another valley only
            assert max(reply(problem, {x: here + f * step}) for f in 2.0 ** -np.arange(1, 7)) > level + HIGHER * scale
    report = compare(problem, seed=seed, random=1, coordinates=1, solver=solver)
    for difference in report.kinks:  # the gradient is that of one of the two sides
        assert difference.one_sided <= 1e-3, difference
    report.solution = solution
    return report
