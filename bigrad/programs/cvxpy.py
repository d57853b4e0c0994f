"""Front end for two CVXPY problems: from the declaration to the Program and the forms that solvers may have it in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cvxpy as cp
from cvxpy.lin_ops import lin_utils

from bigrad.program import Input, Program, Solver, Unknown
from bigrad.programs import canonical, expressions
from bigrad.programs.assemble import assemble
from bigrad.programs.canonical import Level
from bigrad.programs.checks import check_lower, check_upper
from bigrad.programs.roles import Roles, declared_bounds, declared_sign, sort_roles
from bigrad.programs.smooth import Smooth
from bigrad.programs.source import Source
from bigrad.quadratic import Maps
from bigrad.solution import DeclarationError

LARGE = 1000
"""Lower variables and constraints up to which a quadratic program is held in dense arrays; then sparse methods are faster."""


def declare(upper: cp.Problem, lower: cp.Problem, responds: Sequence[cp.Variable], default: Solver) -> Program:
    """The Program of two CVXPY problems; `bigrad.bilevel` documents the arguments."""
    roles = sort_roles(upper, lower, responds)
    source = Source(upper, lower, roles)
    answer, stand_in = source.answer, source.stand_in

    rows: list[cp.Constraint] = []
    shared: list[cp.Constraint] = []
    for constraint in lower.constraints:
        follower = any(v.id in answer for v in constraint.variables())
        (rows if follower else shared).append(constraint)
    plain = {id(v): source.plain[v.id] for v in (*roles.leader, *roles.follower)}
    below = source.below
    check_lower(below, {p.id: v for v, p in zip(roles.leader, stand_in.values(), strict=True)})
    pseudo = list(stand_in.values())
    inputs = [*roles.parameters, *pseudo]
    cone = canonical.stuff(below.objective.expr, below.constraints)
    if beyond := canonical.cones_beyond_linear(cone):
        raise DeclarationError(
            f"The lower problem needs the cones {', '.join(beyond)}; a lower level must reduce to linear equalities and "
            "inequalities with a convex quadratic objective. Quadratic constraints, norms other than 1 and inf, exponentials and "
            "semidefinite constraints of the follower have no exact road here yet."
        )

    sign = 1.0 if isinstance(upper.objective, cp.Minimize) else -1.0
    objective = (upper.objective.expr if sign > 0 else -upper.objective.expr).tree_copy(plain)
    above = [c.tree_copy(plain) for c in (*upper.constraints, *shared)] + declared_bounds(roles.leader, plain)
    count = cone.x.size + cone.constr_size
    if count > LARGE:
        maps, convex = None, False
        reason = f"{count} lower variables and constraints; up to {LARGE} are held in dense arrays"
    else:
        level = canonical.level(cone, [source.plain[v.id] for v in roles.follower], inputs)
        maps, convex, reason = _quadratic(objective, above, level, roles, source)
    smooth = Smooth(
        objective=objective,
        constraints=tuple(above),
        leader=tuple(source.plain[v.id] for v in roles.leader),
        follower=tuple(source.plain[v.id] for v in roles.follower),
        parameters=tuple(roles.parameters),
        cone=cone,
        stand_ins=tuple(pseudo),
    )
    if maps is None:
        smooth.check(reason)
    return Program(
        inputs=tuple(Input(p, p.name(), p.shape, declared_sign(p)) for p in roles.parameters),
        unknowns=_unknowns(roles, maps, sum(v.size for v in roles.leader)),
        sign=sign,
        quadratic=maps,
        convex=convex,
        why_not_quadratic=reason,
        smooth=smooth,
        source=source,
        default=default,
        rebuild=(
            _reload,
            (upper.objective, upper.constraints, lower.objective, lower.constraints, list(responds), default),
        ),
    )


def _reload(
    goal: Any, rows: list[Any], lower_goal: Any, lower_rows: list[Any], responds: list[Any], default: Solver
) -> Program:
    """Declare an unpickled program again; new CVXPY objects must not take the ids that came with it."""
    upper, lower = cp.Problem(goal, rows), cp.Problem(lower_goal, lower_rows)
    ids = [leaf.id for problem in (upper, lower) for leaf in (*problem.variables(), *problem.parameters())]
    lin_utils.ID_COUNTER.count = max(lin_utils.ID_COUNTER.count, *ids) + 1
    return declare(upper, lower, responds, default)


def _quadratic(
    objective: cp.Expression, above: list[cp.Constraint], level: Level, roles: Roles, source: Source
) -> tuple[Maps | None, bool, str]:
    """The Maps of the bilevel quadratic program, whether its upper level is convex, and, if there are none, why."""
    first = len(roles.parameters)
    stand_ins = list(range(first, first + len(roles.leader)))
    for block in (level.P, level.T, level.A):
        if any(k in block.terms for k in stand_ins):
            return None, False, "an upper variable multiplies lower variables in the lower constraints or in a square"
    parts = expressions.terms(objective)
    convex = all(t.is_convex() for t in parts)
    if not convex:
        if not all(t.is_convex() or expressions.is_quadratic(t) for t in parts):
            return None, False, "the upper objective is neither quadratic nor convex"
        objective = sum(t if t.is_convex() else expressions.without_products(t) for t in parts)
    for c in above:
        if not c.is_dcp():
            return None, False, f"the upper constraint {c} is not convex"
    check_upper(objective, above, convex)
    if not any(e.variables() for e in (objective, *above)):  # CVXPY stuffs no problem without variables
        objective += 0.0 * cp.sum(source.plain[roles.follower[0].id])
    cone = canonical.stuff(objective, above)
    if beyond := canonical.cones_beyond_linear(cone):
        return None, False, f"the upper level needs the cones {', '.join(beyond)}"
    variables = [source.plain[v.id] for v in (*roles.leader, *roles.follower)]
    return assemble(canonical.level(cone, variables, roles.parameters), level, roles, source, stand_ins), convex, ""


def _unknowns(roles: Roles, maps: Maps | None, leader: int) -> tuple[Unknown, ...]:
    found, at = [], 0
    for v in roles.leader:
        found.append(Unknown(v, v.name(), v.shape, True, slice(at, at + v.size)))
        at += v.size
    at = maps.sizes.x if maps else leader
    for v in roles.follower:
        found.append(Unknown(v, v.name(), v.shape, False, slice(at, at + v.size)))
        at += v.size
    return tuple(found)
