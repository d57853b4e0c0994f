"""Front end for one CVXPY problem: a program with a single level, stated as an upper level without a follower."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from typing import Any

import cvxpy as cp
import numpy as np

from bigrad.program import Input, Program, Solver
from bigrad.programs import canonical
from bigrad.programs.cvxpy import quadratic_form, renumber, unknowns
from bigrad.programs.data import Extraction
from bigrad.programs.expressions import Holding
from bigrad.programs.roles import Roles, declared_bounds, declared_sign, sort_single
from bigrad.programs.smooth import Smooth
from bigrad.programs.source import PRECISE


class Single:
    """The user's problem after the declaration: fills its variables, re-solves it."""

    def __init__(self, problem: cp.Problem, roles: Roles):
        self.problem = problem
        self.plain = {v.id: cp.Variable(v.shape, name=v.name()) for v in roles.leader}
        self.turn = threading.RLock()  # the user's leaves hold one call's values at a time

    def publish(self, values: Mapping[Any, np.ndarray | None]) -> None:
        """Fill `.value` of the user's variables; None clears it."""
        with self.turn:
            for variable, value in values.items():
                variable.save_value(value)

    def lower_value(self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]) -> float:
        """NaN: there is no lower level."""
        return np.nan

    def follower_gap(self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]) -> float:
        """The objective at the point minus its optimum by Clarabel, minimised sense; inf if Clarabel finds no optimum."""
        with self.turn, Holding({**inputs, **values}), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CVXPY's own, that a solution may be inaccurate: the gap tells
            sign = 1.0 if isinstance(self.problem.objective, cp.Minimize) else -1.0
            here = float(self.problem.objective.value)
            problem = cp.Problem(self.problem.objective, self.problem.constraints)
            for tolerances in (PRECISE, {}):
                try:
                    problem.solve(solver=cp.CLARABEL, **tolerances)
                except (cp.SolverError, cp.DCPError):
                    continue
                if problem.status in cp.settings.SOLUTION_PRESENT:
                    return sign * (here - float(problem.value))
            return np.inf

    def infeasible(self, inputs: Mapping[Any, np.ndarray]) -> int | None:
        """None: there is no follower."""
        return None


def declare(problem: cp.Problem, default: Solver) -> Program:
    """The Program of one CVXPY problem; `bigrad.argmin` documents the arguments."""
    roles = sort_single(problem)
    source = Single(problem, roles)
    plain = {id(v): source.plain[v.id] for v in roles.leader}
    sign = 1.0 if isinstance(problem.objective, cp.Minimize) else -1.0
    extract = Extraction(roles.parameters, {})
    objective = extract((problem.objective.expr if sign > 0 else -problem.objective.expr).tree_copy(plain))
    above = [c.tree_copy(plain) for c in problem.constraints] + declared_bounds(roles.leader, plain)
    above = [extract(c) for c in above]
    roles = extract.widened(roles)
    maps, convex, reason = quadratic_form(objective, above, canonical.empty(), roles, source.plain)
    smooth = Smooth(
        objective=objective,
        constraints=tuple(above),
        leader=tuple(source.plain[v.id] for v in roles.leader),
        follower=(),
        parameters=roles.parameters,
        cone=canonical.NoCone(),
        stand_ins=tuple(cp.Parameter(v.shape) for v in roles.leader),
    )
    if maps is None:
        smooth.check(reason)
    return Program(
        inputs=tuple(Input(p, p.name(), p.shape, declared_sign(p)) for p in extract.parameters),
        unknowns=unknowns(roles, maps),
        derived=extract.derived(),
        sign=sign,
        quadratic=maps,
        convex=convex,
        why_not_quadratic=reason,
        smooth=smooth,
        source=source,
        default=default,
        rebuild=(_reload, (problem.objective, problem.constraints, default)),
    )


def _reload(goal: Any, rows: list[Any], default: Solver) -> Program:
    problem = cp.Problem(goal, rows)
    renumber(problem)
    return declare(problem, default)
