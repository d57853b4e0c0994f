"""The user's two problems after the declaration: filling their variables, their objectives' values, the follower re-solved."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import cvxpy as cp
import numpy as np

from bigrad.programs import expressions
from bigrad.programs.roles import Roles, declared_bounds, declared_shape, known_sign

PRECISE = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}


class Publisher:
    """Fills the user's variables, which hold one call's values at a time."""

    def __init__(self) -> None:
        self.turn = threading.RLock()

    def publish(self, values: Mapping[Any, np.ndarray | None]) -> None:
        """Fill `.value` of the user's variables and dual variables; None clears it."""
        with self.turn:
            for variable, value in values.items():
                variable.save_value(value)

    def infeasible(self, inputs: Mapping[Any, np.ndarray]) -> int | None:
        """None: with at most one follower, nobody is to be named."""
        return None


class Source(Publisher):
    """The user's problems: fills their variables, evaluates their objectives, re-solves the followers."""

    def __init__(self, upper: cp.Problem, lower: Sequence[cp.Problem], roles: Roles):
        super().__init__()
        self.upper, self.lower, self.roles = upper, tuple(lower), roles
        several = roles.follower if len(self.lower) > 1 else ()
        self.plain = {v.id: cp.Variable(v.shape, name=v.name()) for v in (*roles.leader, *roles.follower)}
        self.stand_in = {
            v.id: cp.Parameter(v.shape, name=v.name(), nonneg=s > 0, nonpos=s < 0)
            for v in (*roles.leader, *several)
            for s in [known_sign(v)]
        }
        self.belows = [self._below(problem, own) for problem, own in zip(self.lower, roles.players, strict=True)]

    @property
    def rows(self) -> list[cp.Constraint | None]:
        """The user's constraint behind each one of `belows`; None for declared bounds."""
        found: list[cp.Constraint | None] = []
        for problem, own, below in zip(self.lower, self.roles.players, self.belows, strict=True):
            rows = _involving(problem.constraints, own)
            found += [*rows, *[None] * (len(below.constraints) - len(rows))]
        return found

    @property
    def shared(self) -> list[cp.Constraint]:
        """Constraints of a lower problem that its follower cannot influence: they restrict the leader."""
        pairs = zip(self.lower, self.roles.players, strict=True)
        return [c for p, own in pairs for c in p.constraints if not _involving([c], own)]

    def _below(self, lower: cp.Problem, own: Sequence[cp.Variable]) -> cp.Problem:
        """One follower's problem: minimised, others' variables as parameters, terms that it cannot influence dropped."""
        goal = lower.objective
        expression = goal.expr if isinstance(goal, cp.Minimize) else -goal.expr
        parts = _involving(expressions.terms(expression), own)
        plain = {id(v): self.plain[v.id] for v in own}
        others = (v for v in (*self.roles.leader, *self.roles.follower) if id(v) not in plain)
        swap = plain | {id(v): self.stand_in[v.id] for v in others}
        objective = sum(parts) if parts else cp.Constant(0.0)
        rows = [c.tree_copy(swap) for c in _involving(lower.constraints, own)]
        rows += declared_shape(own, plain) + declared_bounds(own, plain)
        return cp.Problem(cp.Minimize(objective.tree_copy(swap)), rows)

    def lower_value(
        self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]
    ) -> float | tuple[float, ...]:
        """Lower objectives in the user's own sense, the terms that the follower cannot influence included."""
        with self.turn, expressions.Holding({**inputs, **values}), np.errstate(all="ignore"):
            found = [problem.objective.value for problem in self.lower]
        numbers = tuple(np.nan if value is None else float(value) for value in found)
        return numbers if len(numbers) > 1 else numbers[0]

    def follower_gap(self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]) -> float:
        """Lower objective at (x, y) minus its optimum at x by Clarabel, minimised sense; the largest of several followers'.

        Inf if Clarabel finds no optimum.
        """
        known = (v for v in (*self.roles.leader, *self.roles.follower) if v.id in self.stand_in)
        held = {self.stand_in[v.id]: _within(values[v], self.stand_in[v.id]) for v in known}
        here = {self.plain[v.id]: values[v] for v in self.roles.follower}
        with self.turn, expressions.Holding({**inputs, **held}), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CVXPY's own, that a solution may be inaccurate: the gap tells
            return max(_gap(below, here) for below in self.belows)

    def infeasible(self, inputs: Mapping[Any, np.ndarray]) -> int | None:
        """The first follower without a feasible answer, whatever everyone else does within his own constraints."""
        everyone = (*self.roles.leader, *self.roles.follower)
        plain = {id(v): self.plain[v.id] for v in everyone}
        around = [c for c in self.upper.constraints if not _involving([c], self.roles.follower)]
        bounds = declared_bounds(everyone, plain)
        with self.turn, expressions.Holding(inputs), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CVXPY's own, on speed and accuracy: only a proof counts
            for k, problem in enumerate(self.lower):
                if _impossible([c.tree_copy(plain) for c in (*around, *problem.constraints)] + bounds):
                    return k
        return None


def _impossible(rows: Sequence[cp.Constraint]) -> bool:
    """Whether CVXPY proves that no point satisfies the constraints; not where they are not convex in all variables."""
    problem = cp.Problem(cp.Minimize(0.0), list(rows))
    if not (rows and problem.is_dcp()):
        return False
    try:
        problem.solve(solver=cp.CLARABEL)
    except cp.SolverError:
        return False
    return problem.status == cp.INFEASIBLE


def _involving(pieces: Sequence[Any], own: Sequence[cp.Variable]) -> list[Any]:
    """The terms or constraints in which one of these variables stands."""
    ours = {v.id for v in own}
    return [piece for piece in pieces if any(v.id in ours for v in piece.variables())]


def _gap(below: cp.Problem, here: Mapping[Any, np.ndarray]) -> float:
    """A follower's objective here minus its optimum, all parameters held."""
    problem = cp.Problem(below.objective, below.constraints)
    with expressions.Holding(here):
        value = float(problem.objective.value)
    for tolerances in (PRECISE, {}):  # x may lie on the edge of where the follower has an answer
        try:
            problem.solve(solver=cp.CLARABEL, ignore_dpp=True, **tolerances)
        except cp.SolverError:
            continue
        if problem.status in cp.settings.SOLUTION_PRESENT:
            return value - float(problem.value)
    return np.inf


def _within(value: np.ndarray, parameter: cp.Parameter) -> np.ndarray:
    """Rounding below zero (above, for nonpositive ones) taken off a value that the stand-in's sign would refuse."""
    return parameter.project(value)
