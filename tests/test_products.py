"""Global on programs that are not quadratic: products of integers with answers, cones and curves, against all integers."""

import itertools

import cvxpy as cp
import numpy as np
import pytest
import torch

import bigrad as bg
from tests.test_global import best_of_all_pieces


def random_program(seed, held=None):
    """Products of the leader's integers with the follower's variables everywhere; held: the integers as numbers.

    With the integers that are allowed.
    """
    rng = np.random.default_rng([seed, 77])
    size, m, p = rng.integers(1, 3), rng.integers(1, 3), rng.integers(1, 4)
    boolean, ends = bool(rng.random() < 0.5), [(-1, 2), (-0.6, 1.7), (0.2, 0.9), (0, 3)][rng.integers(4)]
    bounds = {"boolean": True} if boolean else {"integer": True, "bounds": list(ends)}
    k = cp.Variable(size, name="k", **bounds) if held is None else cp.Constant(np.array(held, float))
    x, y = cp.Variable(name="x"), cp.Variable(m, name="y")
    whole = range(2) if boolean else range(int(np.ceil(ends[0])), int(np.floor(ends[1])) + 1)

    def number(*shape):
        return rng.integers(-2, 3, shape).astype(float)

    below = [number(p, m) @ y + cp.multiply(number(p, size) @ k, number(p, m) @ y) + number(p) * x <= number(p) + 2]
    if rng.random() < 0.8:
        below += [y <= 3, y >= -3]
    cost = number(m) @ y + (number(m, size) @ k) @ y + (number(m) * x) @ y
    if rng.random() < 0.5:
        cost = cost + (1 + (k[0] if boolean else 0)) * cp.sum_squares(y) / 2
    goal = number(size) @ k + number(m) @ y + (number(m, size) @ k) @ y + number()[()] * x
    if rng.random() < 0.4:
        goal = goal + cp.sum_squares(y - 1) + cp.square(x)
    above = [x <= 2, x >= -1]
    if rng.random() < 0.4:
        above.append((number(m, size) @ k) @ y <= 1)
    upper = cp.Maximize(-goal) if rng.random() < 0.4 else cp.Minimize(goal)
    lower = cp.Maximize(-cost) if rng.random() < 0.4 else cp.Minimize(cost)
    return bg.bilevel(cp.Problem(upper, above), cp.Problem(lower, below), responds=[y]), k, list(itertools.product(whole, repeat=size))


def truth_of(seed):
    """The best value over all integers and all pieces, and the integers that reach it; None if there is none."""
    best, at = None, []
    for choice in random_program(seed)[2]:
        value = best_of_all_pieces(random_program(seed, choice)[0])
        if value is not None and (best is None or value < best + 1e-9):
            at = [*at, choice] if best is not None and value > best - 1e-9 else [choice]
            best = value if best is None else min(best, value)
    return best, at


PROVEN = (bg.Status.INFEASIBLE_LOWER, bg.Status.INFEASIBLE_UPPER, bg.Status.UNBOUNDED_LOWER)


def check(seed):
    program, k, _ = random_program(seed)
    truth, at = truth_of(seed)
    solution = program.solve(solver=bg.Global(time_limit=20), verify=True)
    where = f"seed {seed}: {solution.status.name} {solution.value}, truth {truth} at {at}, {solution.stats}"
    if truth is None:
        assert solution.status in PROVEN, where
        return solution.status
    if truth == -np.inf:
        assert solution.status in (bg.Status.UNBOUNDED_UPPER, bg.Status.NOT_FOUND), where
        return solution.status
    value = program.sign * solution.value
    assert solution.status.ok, where
    assert value == pytest.approx(truth, abs=1e-6 * (1 + abs(truth))), where
    assert tuple(np.round(solution[k]).astype(int)) in at, where
    assert abs(solution[k] - np.round(solution[k])).max() == 0, where
    assert solution.stats.follower_gap <= 1e-6, where
    assert solution.stats.violation <= 1e-8, where
    assert program.sign * solution.stats.bound <= truth + 1e-6 * (1 + abs(truth)), where
    return solution.status
