"""A value that is approached but not attained is no optimum; one that is attained, however far or flat, is."""

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp

import bigrad as bg
from bigrad.programs.newton import Conic
from bigrad.programs.projection import Cones
from bigrad.solvers.attain import still

x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
RNG = np.random.default_rng(0)
A = RNG.standard_normal((20, 2))
LABELS = np.sign(A[:, 0] + 0.3)

APPROACHED = {
    "an exponential": (cp.exp(-x[0]) + cp.square(x[1] - 1), []),
    "a shifted one": (cp.exp(-x[0] - 100) + cp.square(x[1] - 1), [x[0] >= -150]),
    "a large one": (1e5 * cp.exp(-x[0]) + cp.square(x[1] - 1), []),
    "an inverse": (cp.inv_pos(x[0]) + cp.square(x[1] - 1), []),
    "a branch of a hyperbola": (cp.norm(cp.hstack([x[0], 1])) - x[0] + cp.square(x[1]), []),
    "above a hyperbola": (x[1], [cp.geo_mean(x) >= 1]),
    "separable classes": (cp.sum(cp.logistic(-cp.multiply(LABELS, A @ x))), []),
}
ATTAINED = {
    "a fourth power": (cp.power(x[0] - 2, 4) + cp.square(x[1]), []),
    "an eighth power": (cp.power(x[0] - 2, 8) + cp.square(x[1]), []),
    "a norm": (cp.norm(x - 1) + 0.1 * x[0], []),
    "a half line of optima": (cp.norm(x[1] - 1) + cp.exp(x[1]), [x[0] >= 3]),
    "a half line of optima behind a curve": (cp.exp(cp.pos(x[0] - 1) + x[1]) - x[1], []),
    "a flat exponential": (cp.maximum(cp.exp(-x[0]), 1) + cp.square(x[1]), []),
    "far away": (cp.exp(x[0] / 1e6) - x[0] / 1e3 + cp.square(x[1] - 1e4), []),
    "farther away": (cp.norm(x - 1e7) + 1e-3 * x[0], []),
    "near": (cp.norm(x - 1e-6) + 1e-3 * x[0], []),
    "an exponential up to a bound": (cp.exp(-x[0]) + cp.square(x[1] - 1), [x[0] <= 30]),
    "an exponential against a small slope": (cp.exp(-x[0]) + 1e-6 * x[0] + cp.square(x[1]), []),
    "separable classes, lightly regularised": (
        cp.sum(cp.logistic(-cp.multiply(LABELS, A @ x))) + 1e-4 * cp.sum_squares(x),
        [],
    ),
    "an entropy": (-cp.sum(cp.entr(x)) + x[0] * 30, [cp.sum(x) == 1]),
    "an eigenvalue": (cp.lambda_max(cp.bmat([[x[0], x[1]], [x[1], 1]])) + cp.square(x[0]), []),
}


def solved(goal, rows):
    return bg.argmin(cp.Problem(cp.Minimize(goal), rows)).solve()


@pytest.mark.parametrize("name", APPROACHED)
def test_a_value_that_is_not_attained_is_no_optimum(name):
    solution = solved(*APPROACHED[name])
    assert solution.status is bg.Status.INEXACT
    assert "approached but not attained" in solution.stats.cause


@pytest.mark.parametrize("name", ATTAINED)
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 1e2, 1e4])
def test_a_value_that_is_attained_is_an_optimum(name, scale):
    goal, rows = ATTAINED[name]
    solution = solved(scale * goal, rows)
    assert solution.status is bg.Status.GLOBAL
    assert not solution.stats.cause


def game(goal, rows=()):
    leader, follower = cp.Problem(cp.Minimize(goal)), cp.Problem(cp.Maximize(goal), list(rows))
    return bg.bilevel(leader, follower, responds=[y]).solve()


@pytest.mark.parametrize(
    ("goal", "rows", "words"),
    [
        (cp.exp(-x[0]) + x[1] * (y[0] - y[1]) + cp.square(x[1]), [cp.norm(y) <= 1], "points that come nearer"),
        (x[0] * y[0] + cp.exp(-x[1]), [y[0] <= 1, y[0] >= -1, y[1] == y[0]], "points that come nearer"),
        (cp.square(x[0]) + x[0] * y[0] - cp.exp(-y[1]) - cp.square(y[0]), [], "the follower's answers"),
    ],
)
def test_a_saddle_value_that_is_not_attained(goal, rows, words):
    solution = game(goal, rows)
    assert solution.status is bg.Status.INEXACT
    assert words in solution.stats.cause
    assert solution.value == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_saddle_value_that_is_attained(scale):
    far = cp.square(x[0] - 1) + x[0] * y[0] - cp.exp(-y[1]) - cp.square(y[0]) - 0.1 * y[1]
    held = cp.square(x[0] - 1) + x[0] * y[0] + x[1] * y[1] + cp.exp(x[1])
    for solution in (game(scale * far), game(scale * held, [cp.norm(y) <= 1])):
        assert solution.status is bg.Status.GLOBAL
        assert not solution.stats.cause


def test_the_cause_is_each_items_own():
    p = cp.Parameter(name="p", nonneg=True)
    layer = bg.argmin(cp.Problem(cp.Minimize(cp.exp(-x[0]) + p * x[0] + cp.square(x[1]))))
    assert layer.solve({p: 0.5}).status is bg.Status.GLOBAL
    theta = (np.array([[0.5], [0.0]]),)
    outcome = bg.Auto().solve(layer, theta)
    assert [s.name for s in outcome.status] == ["GLOBAL", "INEXACT"]
    assert [bool(c) for c in outcome.cause] == [False, True]


def test_what_is_seen_to_stand_still_does():
    """On random cone programs: no place that is called still moves along any direction on which nothing rises."""
    rng, seen, more = np.random.default_rng(3), 0, 0
    for _ in range(60):
        n, zero, nonneg = (int(k) for k in rng.integers((2, 0, 1), (6, 3, 8)))
        soc = [3] * int(rng.integers(3))
        rows = zero + nonneg + sum(soc)
        draw = rng.standard_normal((rows, n)) * (rng.random((rows, n)) < 0.4)
        P = sp.csc_array(np.diag((rng.random(n) < 0.2) * 1.0))
        sides = [np.r_[1.0, np.cos(a), np.sin(a)] * (rng.random() < 0.7) for a in 6 * rng.random(len(soc))]
        prices = np.r_[rng.standard_normal(zero), rng.random(nonneg) * (rng.random(nonneg) < 0.5), *sides]
        q = -draw.T @ prices  # with u = 0 and a slack that is orthogonal to them, they are optimal
        program = Conic(P, q, 0.0, sp.csc_array(draw), np.ones(rows), Cones(zero, nonneg, tuple(soc), (), 0, ()))
        d, move = cp.Variable(n), -draw @ (free := cp.Variable(n))
        allowed = [d == free, cp.abs(d) <= 1, P @ d == 0, q @ d <= 0, move[zero : zero + nonneg] >= 0]
        allowed += [move[:zero] == 0] if zero else []
        for k in range(len(soc)):
            at = zero + nonneg + 3 * k
            allowed.append(cp.SOC(move[at], move[at + 1 : at + 3]))
        more += int(still(program, prices).sum() - still(program).sum())
        for j in np.flatnonzero(still(program, prices)):
            seen += 1
            for sense in (1, -1):
                problem = cp.Problem(cp.Maximize(sense * d[j]), allowed)
                problem.solve(solver=cp.CLARABEL)
                assert problem.value <= 1e-6
    assert seen > 60
    assert more > 5
