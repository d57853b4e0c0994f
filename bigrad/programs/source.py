"""The user's two problems after the declaration: filling their variables, their objectives' values, the follower re-solved."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from typing import Any

import cvxpy as cp
import numpy as np

from bigrad.programs import expressions
from bigrad.programs.roles import Roles, declared_bounds

PRECISE = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}


class Source:
    """The user's two problems: fills their variables, evaluates their objectives, re-solves the follower."""

    def __init__(self, upper: cp.Problem, lower: cp.Problem, roles: Roles):
        self.upper, self.lower, self.roles = upper, lower, roles
        self.plain = {v.id: cp.Variable(v.shape, name=v.name()) for v in (*roles.leader, *roles.follower)}
        self.stand_in = {
            v.id: cp.Parameter(v.shape, name=v.name(), nonneg=v.is_nonneg(), nonpos=v.is_nonpos() and not v.is_nonneg())
            for v in roles.leader
        }
        self.answer = {v.id for v in roles.follower}
        self.below = self._below()
        self.turn = threading.RLock()  # the user's leaves hold one call's values at a time

    def _below(self) -> cp.Problem:
        """The follower's problem: minimised, leader variables as parameters, terms that it cannot influence dropped."""
        goal = self.lower.objective
        expression = goal.expr if isinstance(goal, cp.Minimize) else -goal.expr
        parts = [t for t in expressions.terms(expression) if any(v.id in self.answer for v in t.variables())]
        plain = {id(v): self.plain[v.id] for v in self.roles.follower}
        swap = plain | {id(v): self.stand_in[v.id] for v in self.roles.leader}
        rows = [c for c in self.lower.constraints if any(v.id in self.answer for v in c.variables())]
        objective = sum(parts) if parts else cp.Constant(0.0)
        constraints = [c.tree_copy(swap) for c in rows] + declared_bounds(self.roles.follower, plain)
        return cp.Problem(cp.Minimize(objective.tree_copy(swap)), constraints)

    def publish(self, values: Mapping[Any, np.ndarray | None]) -> None:
        """Fill `.value` of the user's variables; None clears it."""
        with self.turn:
            for variable, value in values.items():
                variable.save_value(value)

    def lower_value(self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]) -> float:
        """Lower objective in the user's own sense, the terms that the follower cannot influence included."""
        with self.turn, expressions.Holding({**inputs, **values}), np.errstate(all="ignore"):
            value = self.lower.objective.value
            return np.nan if value is None else float(value)

    def follower_gap(self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]) -> float:
        """Lower objective at (x, y) minus its optimum at x by Clarabel, minimised sense.

        Inf if Clarabel finds no optimum.
        """
        leader = {self.stand_in[v.id]: _within(values[v], self.stand_in[v.id]) for v in self.roles.leader}
        with self.turn, expressions.Holding({**inputs, **leader}), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CVXPY's own, that a solution may be inaccurate: the gap tells
            problem = cp.Problem(self.below.objective, self.below.constraints)
            with expressions.Holding({self.plain[v.id]: values[v] for v in self.roles.follower}):
                here = float(problem.objective.value)
            for tolerances in (PRECISE, {}):  # x may lie on the edge of where the follower has an answer
                try:
                    problem.solve(solver=cp.CLARABEL, ignore_dpp=True, **tolerances)
                except cp.SolverError:
                    continue
                if problem.status in cp.settings.SOLUTION_PRESENT:
                    return here - float(problem.value)
            return np.inf


def _within(value: np.ndarray, parameter: cp.Parameter) -> np.ndarray:
    """Rounding below zero (above, for nonpositive ones) taken off a value that the stand-in's sign would refuse."""
    return parameter.project(value)
