"""Tables and builders that the tests share, and oracles that answer a second, independent way.

A `Case` is two ordinary CVXPY problems with their parameter values. `check_point` takes an answer apart with the user's
own objects and Clarabel, knowing nothing of bigrad's reformulation; `brute_force` searches a grid of leader decisions,
re-solving the follower at each; `random_quadratic` makes bilevel quadratic programs in which every block is a
Parameter.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import numpy as np
from scipy.optimize import nnls

import bigrad as bg

SHAPES = ((2, 3, 4), (4, 8, 10), (6, 12, 20), (10, 20, 30))
"""Leader variables, follower variables, follower inequalities of the random programs."""


@dataclass
class Case:
    """A bilevel program as its user wrote it, and values for its parameters."""

    upper: cp.Problem
    lower: cp.Problem
    responds: list[cp.Variable]
    values: dict[cp.Parameter, Any] = field(default_factory=dict)

    @property
    def program(self) -> bg.Program:
        return bg.bilevel(self.upper, self.lower, responds=self.responds)

    @property
    def leader(self) -> list[cp.Variable]:
        known = {v.id for v in self.responds}
        return [v for v in self.upper.variables() if v.id not in known]

    @property
    def sense(self) -> float:
        return 1.0 if isinstance(self.upper.objective, cp.Minimize) else -1.0


def case(
    upper: Any, lower: Any, responds: Any, above: Iterable[Any] = (), below: Iterable[Any] = (), values: Any = None
) -> Case:
    """A Case from objectives (an expression is to be minimised) and constraints."""
    goals = [g if isinstance(g, cp.Minimize | cp.Maximize) else cp.Minimize(g) for g in (upper, lower)]
    answers = [responds] if isinstance(responds, cp.Variable) else list(responds)
    return Case(cp.Problem(goals[0], list(above)), cp.Problem(goals[1], list(below)), answers, dict(values or {}))


def fixed(problem: cp.Problem, values: Mapping[Any, Any]) -> cp.Problem:
    """A copy of a problem in which these variables and parameters are constants.

    The other variables keep their bounds, so a parameter that is such a bound is given its value for good.
    """
    swap = {id(leaf): cp.Constant(np.asarray(value, dtype=float)) for leaf, value in values.items()}
    for limit in itertools.chain.from_iterable(v.attributes.get("bounds") or () for v in problem.variables()):
        for p in limit.parameters() if isinstance(limit, cp.Expression) else ():
            p.value = np.asarray(values[p], dtype=float)
    rows = [c.tree_copy(swap) for c in problem.constraints]
    return cp.Problem(type(problem.objective)(_folded(problem.objective.expr.tree_copy(swap))), rows)


def _folded(expression: cp.Expression) -> cp.Expression:
    """Parts without variables as constants: CVXPY solves no problem with a quadratic form of constants."""
    if not expression.variables() and not expression.parameters():
        return cp.Constant(expression.value)
    return expression.copy([_folded(arg) for arg in expression.args]) if expression.args else expression


def solved(problem: cp.Problem) -> float:
    """Clarabel's optimal value in the minimised sense, inf if infeasible, -inf if unbounded."""
    sign = 1.0 if isinstance(problem.objective, cp.Minimize) else -1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return float(sign * problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10))
        except cp.SolverError:
            return float(sign * problem.solve(solver=cp.CLARABEL))


def objective_at(problem: cp.Problem, values: Mapping[Any, Any]) -> float:
    """Objective of a problem at values of all its leaves, minimised sense."""
    sign = 1.0 if isinstance(problem.objective, cp.Minimize) else -1.0
    return sign * float(np.squeeze(fixed(problem, values).objective.value))


def violation_at(problem: cp.Problem, values: Mapping[Any, Any], owned: Iterable[cp.Variable] = ()) -> float:
    """Largest violation of the constraints of a problem, and of the signs and bounds of `owned` variables, at values of all leaves."""
    worst = [0.0, *(float(np.max(c.violation())) for c in fixed(problem, values).constraints)]
    for v in owned:
        at = np.asarray(values[v], dtype=float)
        for limit, side in zip(v.attributes.get("bounds") or (None, None), (1, -1), strict=True):
            if limit is not None:
                worst.append(
                    float(
                        np.max(
                            side
                            * (np.asarray(values.get(limit, limit) if isinstance(limit, cp.Parameter) else limit) - at)
                        )
                    )
                )
        worst.append(float(np.max(-at)) if v.attributes["nonneg"] else 0.0)
        worst.append(float(np.max(at)) if v.attributes["nonpos"] else 0.0)
    return max(worst)


def reply(case: Case, leader: Mapping[Any, Any], unique: bool = True) -> float:
    """The upper objective (minimised sense) where the leader decides so and the follower answers by Clarabel; inf where
    not allowed.

    unique: the follower has one best answer. If not, it is the leader's favourite among those within 1e-8 of the best.
    """
    known = {**case.values, **leader}
    below = fixed(case.lower, known)
    best = solved(below)
    if not np.isfinite(best) or violation_at(cp.Problem(cp.Minimize(0)), known, leader) > 1e-9:
        return np.inf
    if unique:
        at = {**known, **{v: v.value for v in case.responds}}
        return np.inf if violation_at(case.upper, at) > 1e-7 else objective_at(case.upper, at)
    above = fixed(case.upper, known)
    sign = 1.0 if isinstance(below.objective, cp.Minimize) else -1.0
    enough = [sign * below.objective.expr <= best + 1e-8] if below.objective.variables() else []
    return solved(cp.Problem(above.objective, [*above.constraints, *below.constraints, *enough]))


def check_point(case: Case, solution: bg.Solution, tolerance: float = 1e-6) -> None:
    """Assert that a solution is bilevel feasible and reports its own values rightly, by the user's objects and Clarabel alone."""
    at = {**case.values, **{v: solution[v] for v in (*case.leader, *case.responds)}}
    assert violation_at(case.upper, at, case.leader) <= tolerance
    assert violation_at(case.lower, at, case.responds) <= tolerance
    value, lower_value = objective_at(case.upper, at), objective_at(case.lower, at)
    assert abs(value - case.sense * solution.value) <= 1e-7 * (1 + abs(value))
    sign = 1.0 if isinstance(case.lower.objective, cp.Minimize) else -1.0
    assert abs(lower_value - sign * solution.lower_value) <= 1e-7 * (1 + abs(lower_value))
    best = solved(fixed(case.lower, {k: v for k, v in at.items() if k not in set(case.responds)}))
    assert lower_value - best <= tolerance * (1 + abs(best)), (lower_value, best)


def brute_force(case: Case, grid: Mapping[Any, Sequence[Any]], *, polish: int = 3, unique: bool = True) -> float:
    """The least upper objective (minimised sense) over a grid of leader decisions, refined around its best points.

    grid: for each leader variable the values to try, in its own shape. An upper bound on the bilevel optimum, near it
    if the grid is.
    """
    leaders = list(grid)

    def at(x: np.ndarray) -> float:
        out, start = {}, 0
        for v in leaders:
            out[v] = x[start : start + v.size].reshape(v.shape, order="F")
            start += v.size
        return reply(case, out, unique)

    def flat(point: Sequence[Any]) -> np.ndarray:
        return np.concatenate([np.ravel(np.asarray(p, dtype=float), order="F") for p in point])

    points = [flat(p) for p in itertools.product(*grid.values())]
    scores = [at(x) for x in points]
    step = max(
        (
            float(np.min(np.diff(np.unique([p[i] for p in points]))))
            for i in range(len(points[0]))
            if len({p[i] for p in points}) > 1
        ),
        default=0.1,
    )
    order = np.argsort(scores)[:polish]
    best = float(np.min(scores))
    for k in order:
        x, score, h = points[k], scores[k], step / 2
        while h > 5e-3:
            better = False
            for i, side in itertools.product(range(len(x)), (1, -1)):
                trial = x.copy()
                trial[i] += side * h
                value = at(trial)
                if value < score - 1e-12:
                    x, score, better = trial, value, True
            if not better:
                h /= 2
        best = min(best, score)
    return best


def check_follower(A: np.ndarray, slack: np.ndarray, pull: np.ndarray, H: np.ndarray, tolerance: float = 1e-6) -> None:
    """Assert that multipliers exist.

    Pull + A'lam + H'nu == 0 with lam >= 0 on the rows without slack (nonnegative least squares).
    """
    assert slack.min(initial=0.0) >= -tolerance
    active = A[slack <= tolerance]
    columns = np.hstack([active.T, H.T, -H.T])
    left = nnls(columns, -pull)[1] if columns.size else np.linalg.norm(pull)
    assert left <= tolerance * (1 + np.abs(pull).max())


@dataclass
class RandomQuadratic(Case):
    """A random bilevel quadratic program.

    `arrays` holds its blocks by the letters of bigrad/algebra/quadratic.py where they are there.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def check_lower(self, x: np.ndarray, y: np.ndarray, tolerance: float = 1e-6) -> None:
        """The follower's KKT conditions at (x, y), from the blocks themselves."""
        a = self.arrays
        slack = a["b"] - a["A"] @ y - a["B"] @ x
        pull = a["P"] @ y + a["L"].T @ (a["L"] @ y - a["r"]) + a["C"] @ x + a["w"]
        assert np.abs(a["H"] @ y - a["h"]).max(initial=0.0) <= tolerance
        check_follower(a["A"], slack, pull, a["H"], tolerance)


def psd(rng: np.random.Generator, n: int, least: float) -> np.ndarray:
    """A random positive definite matrix."""
    factor = rng.standard_normal((n, n)) / np.sqrt(n)
    return factor @ factor.T + least * np.eye(n)


def random_quadratic(shape: tuple[int, int, int], seed: int, *, linked: bool | None = None) -> RandomQuadratic:
    """A random feasible and bounded bilevel quadratic program whose every block is a Parameter.

    shape: leader variables, follower variables, follower inequalities. linked: the leader's part of the follower's rows
    and objective goes through further leader variables (s == B x and c == C x), so that B and C are Parameters too, as
    DPP wants it; else B and C are constants. By default so with an even seed. Strictly convex at both levels, a Slater
    point in both.
    """
    n, m, k = shape
    linked = seed % 2 == 0 if linked is None else linked
    rng = np.random.default_rng([n, m, k, seed])
    e, rows, squares = (1 if n >= 4 else 0), 2, 3
    x0, y0 = rng.standard_normal(n), rng.standard_normal(m)
    d: dict[str, np.ndarray] = {
        "P": psd(rng, m, 0.2), "L": rng.standard_normal((squares, m)) / 2, "r": rng.standard_normal(squares),
        "C": rng.standard_normal((m, n)) / 2, "w": rng.standard_normal(m), "A": rng.standard_normal((k, m)),
        "B": rng.standard_normal((k, n)) / 2,
        "H": rng.standard_normal((e, m)), "Q": psd(rng, n, 0.2), "weight": rng.uniform(0.2, 2, m),
        "target": 2 * rng.standard_normal(m), "c": rng.standard_normal(n), "T": rng.standard_normal((2, m)) / 2,
        "G": rng.standard_normal((rows, n)), "J": rng.standard_normal((rows, m)) / 3, "E": rng.standard_normal((e, n)),
    }  # fmt: skip
    d["b"] = d["A"] @ y0 + d["B"] @ x0 + rng.uniform(0.1, 1.0, k)
    d["h"], d["e"] = d["H"] @ y0, d["E"] @ x0
    answer = cp.Variable(m)
    pull = d["C"] @ x0 + d["w"]
    goal = cp.quad_form(answer, cp.psd_wrap(d["P"])) / 2 + cp.sum_squares(d["L"] @ answer - d["r"]) / 2 + pull @ answer
    equal = [d["H"] @ answer == d["h"]] if e else []
    solved(cp.Problem(cp.Minimize(goal), [d["A"] @ answer <= d["b"] - d["B"] @ x0, *equal]))
    d["g"] = d["G"] @ x0 + d["J"] @ answer.value + rng.uniform(0.2, 1.0, rows)
    d["top"] = np.maximum(x0, 0) + rng.uniform(0.1, 1.0, n)

    attributes = {"P": {"PSD": True}, "Q": {"PSD": True}, "weight": {"nonneg": True}}
    constants = set() if linked else {"B", "C"}
    constants |= set() if e else {"H", "h", "E", "e"}
    p = {
        key: cp.Parameter(v.shape, name=key, **attributes.get(key, {})) for key, v in d.items() if key not in constants
    }
    x, y = cp.Variable(n, name="x"), cp.Variable(m, name="y")
    above = [p["G"] @ x + p["J"] @ y <= p["g"], x <= p["top"]]
    if e:
        above.append(p["E"] @ x == p["e"])
    if linked:
        s, c = cp.Variable(k, name="s"), cp.Variable(m, name="cx")
        above += [s == p["B"] @ x, c == p["C"] @ x]
        shift, cost = s, c
    else:
        shift, cost = d["B"] @ x, d["C"] @ x
    below = [p["A"] @ y + shift <= p["b"], *([p["H"] @ y == p["h"]] if e else [])]
    lower = cp.quad_form(y, p["P"]) / 2 + cp.sum_squares(p["L"] @ y - p["r"]) / 2 + cost @ y + p["w"] @ y
    upper = (
        cp.quad_form(x, p["Q"]) / 2
        + p["weight"] @ cp.square(y)
        + cp.sum_squares(y - p["target"])
        + p["c"] @ x
        + cp.sum_squares(p["T"] @ y)
    )
    values = {p[key]: v for key, v in d.items() if key in p}
    return RandomQuadratic(
        cp.Problem(cp.Minimize(upper), above),
        cp.Problem(cp.Minimize(lower), below),
        [y],
        values=values,
        arrays={**d, "x0": x0},
    )


def random_atoms(seed: int) -> Case:
    """A program of a leader with one variable x in [-2, 2] and a follower with two, its objectives and rows from random
    CVXPY atoms.

    The follower's answer is unique. Parameters stand in matrices, shifts and weights.
    """
    rng = np.random.default_rng(seed)
    x, y = cp.Variable(name="x", bounds=[-2, 2]), cp.Variable(2, name="y")
    p, q = cp.Parameter(2, name="p"), cp.Parameter(2, name="q", nonneg=True)
    M = cp.Parameter((3, 2), name="M")

    def number(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).round(2)

    def affine() -> cp.Expression:
        kinds = (
            lambda: number(3, 2) @ y + number(3) * x + number(3),
            lambda: M @ y + number(3) * x,
            lambda: cp.hstack([y[0] - x, y[1] + 2 * x, p[0] - y[0]]),
            lambda: cp.hstack([y, x]) + cp.hstack([p, 1.0]),
            lambda: cp.reshape(cp.vstack([y, y + x]), (4,), order="C")[1:] - 0.5,
        )
        return kinds[rng.integers(len(kinds))]()

    def term(upper: bool) -> cp.Expression:
        a = affine()
        kinds = (
            lambda: cp.sum_squares(a),
            lambda: number(3) @ a,
            lambda: cp.norm1(a),
            lambda: cp.max(a),
            lambda: cp.sum(cp.pos(a)) / 2,
            lambda: cp.sum(cp.huber(a, 0.7)),
            lambda: q @ cp.square(y + number(2) * x) if upper else q @ cp.square(y) + number(2) @ y / 9,
            lambda: cp.norm_inf(a),
            lambda: cp.sum_largest(a, 2),
            lambda: cp.quad_form(y, np.array([[1, 0.3], [0.3, 0.5]])) + p @ y,
            lambda: cp.square(cp.sum(a)) / 3,
        )
        return kinds[rng.integers(len(kinds))]()

    def row() -> cp.Constraint:
        a = affine()
        kinds = (
            lambda: a <= 2,
            lambda: cp.abs(a) <= 3,
            lambda: cp.max(a) <= 2.5,
            lambda: cp.norm1(a) <= 5,
            lambda: cp.sum(a) <= 2,
            lambda: cp.maximum(a, -a + 0.5) <= cp.hstack([x, x, x]) + 4,
            lambda: cp.sum(cp.pos(a)) <= 4,
        )
        return kinds[rng.integers(len(kinds))]()

    lower = 0.3 * cp.sum_squares(y - cp.hstack([x, -x])) + sum(term(False) for _ in range(rng.integers(1, 3)))
    if rng.random() < 0.4:
        lower = lower + (number(2) * x) @ y - 2 * cp.square(x)
    upper = 0.2 * cp.square(x - number()) + sum(term(True) for _ in range(rng.integers(1, 3)))
    goals = [cp.Maximize(-goal) if rng.random() < 0.3 else cp.Minimize(goal) for goal in (upper, lower)]
    above, below = ([row() for _ in range(rng.integers(0, most))] for most in (2, 3))
    if rng.random() < 0.3:
        below.append(cp.sum(affine()) == 0.2)
    made = case(*goals, y, above, below)
    known = {leaf.id for leaf in (*made.upper.parameters(), *made.lower.parameters())}
    values = {p: number(2), q: rng.uniform(0.2, 1, 2).round(2), M: number(3, 2)}
    made.values = {leaf: value for leaf, value in values.items() if leaf.id in known}
    return made
