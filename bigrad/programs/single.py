"""Front end for one CVXPY problem: a program with a single level, stated as an upper level without a follower."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.atoms.affine.wraps import nsd_wrap, symmetric_wrap

from bigrad.algebra.quadratic import Maps
from bigrad.program import Input, Program, Solver, Unknown
from bigrad.programs import canonical
from bigrad.programs.assemble import assemble
from bigrad.programs.ball import Ball
from bigrad.programs.canonical import Level
from bigrad.programs.convex import Convex
from bigrad.programs.cvxpy import renumber, unknowns, upper_level
from bigrad.programs.data import Extraction
from bigrad.programs.expressions import Holding
from bigrad.programs.roles import Roles, declared_bounds, declared_shape, declared_sign, sort_single
from bigrad.programs.smooth import Smooth
from bigrad.programs.source import PRECISE, Publisher


class Single(Publisher):
    """The user's problem after the declaration: fills its variables, re-solves it."""

    def __init__(self, problem: cp.Problem, roles: Roles):
        super().__init__()
        self.problem = problem
        self.plain = {v.id: cp.Variable(v.shape, name=v.name()) for v in roles.leader}

    def lower_value(self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]) -> float:
        """NaN: there is no lower level."""
        return np.nan

    def follower_gap(self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]) -> float:
        """The objective at the point minus its optimum by Clarabel, minimised sense; inf if Clarabel finds no optimum."""
        held = {**inputs, **{v: values[v] for v in self.problem.variables()}}
        with self.turn, Holding(held), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CVXPY's own, that a solution may be inaccurate: the gap tells
            sign = 1.0 if isinstance(self.problem.objective, cp.Minimize) else -1.0
            here = float(self.problem.objective.value)
            problem = cp.Problem(self.problem.objective, [c.copy(c.args) for c in self.problem.constraints])
            for tolerances in (PRECISE, {}):
                try:
                    problem.solve(solver=cp.CLARABEL, **tolerances)
                except (cp.SolverError, cp.DCPError):
                    continue
                if problem.status in cp.settings.SOLUTION_PRESENT:
                    return sign * (here - float(problem.value))
            return np.inf


def declare(problem: cp.Problem, default: Solver, parameters: Sequence[cp.Parameter] | None = None) -> Program:
    """The Program of one CVXPY problem; `bigrad.argmin` documents the arguments.

    parameters: the inputs, where the caller has more than the problem does.
    """
    roles = sort_single(problem)
    if parameters is not None:
        roles = replace(roles, parameters=tuple(parameters))
    source = Single(problem, roles)
    plain = {id(v): _dressed(v, source.plain[v.id]) for v in roles.leader}
    bare = {id(v): source.plain[v.id] for v in roles.leader}
    sign = 1.0 if isinstance(problem.objective, cp.Minimize) else -1.0
    extract = Extraction(roles.parameters, {})
    goal, rows = extract(problem.objective.expr), [extract(c) for c in problem.constraints]
    given = (problem.objective.expr, *problem.constraints)
    changed = any(new is not old for new, old in zip((goal, *rows), given, strict=True))
    stated = cp.Problem(type(problem.objective)(goal), rows) if changed else problem
    objective = (goal if sign > 0 else -goal).tree_copy(plain)
    above = [c.tree_copy(plain) for c in rows] + declared_shape(roles.leader, bare)
    above += [extract(c) for c in declared_bounds(roles.leader, bare)]
    roles = extract.widened(roles)
    level, convex, reason = upper_level(objective, above, canonical.empty(), roles, source.plain)
    pairs = list(zip(problem.constraints, stated.constraints, strict=True))
    maps: Maps | None = None
    smooth: Smooth | Convex
    duals: tuple[Unknown, ...] = ()
    if level is not None:
        maps = assemble(level, canonical.empty(), roles, source.plain)
        duals = _prices(pairs, level, maps)
    variables = unknowns(roles, maps)
    if maps is None and stated.is_dpp(quad_form_dpp="qp"):
        smooth = form = Convex.of(stated, roles.parameters)
        variables = tuple(Unknown(v, v.name(), v.shape, True, form.read[v.id]) for v in roles.leader)
        duals = tuple(
            _price(dual, form.read[own.id])
            for c, row in pairs
            for dual, own in zip(c.dual_variables, row.dual_variables, strict=True)
        )
    else:
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
    program = Program(
        inputs=tuple(Input(p, p.name(), p.shape, declared_sign(p)) for p in extract.parameters),
        unknowns=variables,
        derived=extract.derived(),
        sign=sign,
        quadratic=maps,
        convex=convex,
        why_not_quadratic=reason,
        smooth=smooth,
        source=source,
        default=default,
        rebuild=(_reload, (problem.objective, problem.constraints, default)),
        duals=duals,
    )
    if isinstance(smooth, Convex) and (ball := Ball.of(objective, above, roles, source.plain, program)):
        n = ball.layout.x
        own = [_price(problem.constraints[0].dual_variables[0], sp.csr_array(([1.0], ([0], [n])), shape=(1, n + 1)))]
        return replace(program, smooth=ball, unknowns=unknowns(roles, ball.maps), duals=tuple(own))
    return program


def _dressed(variable: cp.Variable, copy: cp.Variable) -> cp.Expression:
    """The plain copy, known to CVXPY's rules to be what the variable declares."""
    for kind, wrap in (("PSD", cp.psd_wrap), ("NSD", nsd_wrap), ("symmetric", symmetric_wrap)):
        if variable.attributes[kind]:
            return wrap(copy)
    return copy


def _prices(pairs: Sequence[tuple[cp.Constraint, cp.Constraint]], level: Level, maps: Maps) -> tuple[Unknown, ...]:
    """The dual variables of a linear-quadratic problem, read out of the multipliers of its rows; pairs: its constraints,
    and what was canonicalised of each.

    CVXPY's Lagrangian is f + nu'(left - right) for both kinds of constraints, an equality's row here is right - left.
    """
    *_, gamma, eps = maps.sizes.blocks
    equalities = level.equalities
    at = np.r_[eps.start + np.arange(equalities), gamma.start + np.arange(level.b.shape[0] - equalities)]
    signs = np.where(np.arange(len(at)) < equalities, -1.0, 1.0)
    place = sp.csr_array((signs, (np.arange(len(at)), at)), shape=(len(at), eps.stop))
    rows = sp.csr_array(level.origin @ place)
    found = []
    for c, row in pairs:
        own = level.owned.get(row.id)
        for dual in c.dual_variables:
            found.append(_price(dual, rows[own] if own else sp.csr_array((dual.size, eps.stop))))
    return tuple(found)


def _price(dual: cp.Variable, place: sp.csr_array) -> Unknown:
    return Unknown(dual, f"dual variable {dual.name()}", dual.shape, True, place)


def _reload(goal: Any, rows: list[Any], default: Solver) -> Program:
    problem = cp.Problem(goal, rows)
    renumber(problem)
    return declare(problem, default)
