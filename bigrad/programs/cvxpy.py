"""Front end for CVXPY problems: from the declaration to the Program and the forms that solvers may have it in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.lin_ops import lin_utils

from bigrad.program import Input, Program, Solver, Unknown
from bigrad.programs import canonical, expressions
from bigrad.programs.assemble import assemble
from bigrad.programs.canonical import Level
from bigrad.programs.checks import check_lower, check_upper
from bigrad.programs.prices import Prices, in_cone, in_level
from bigrad.programs.roles import Roles, declared_bounds, declared_sign, sort_roles, whole
from bigrad.programs.smooth import Smooth
from bigrad.programs.source import Source
from bigrad.quadratic import Maps
from bigrad.solution import DeclarationError


def declare(
    upper: cp.Problem, lower: Sequence[cp.Problem], responds: Sequence[Sequence[cp.Variable]], default: Solver
) -> Program:
    """The Program of CVXPY problems, one below for each follower; `bigrad.bilevel` documents the arguments."""
    roles = sort_roles(upper, lower, responds)
    source = Source(upper, lower, roles)
    plain = {id(v): source.plain[v.id] for v in (*roles.leader, *roles.follower)}
    below, pseudo = source.below, list(source.stand_in.values())
    known = {p.id: v for v, p in zip((*roles.leader, *roles.follower), pseudo, strict=False)}
    for k, problem in enumerate(source.belows):
        try:
            check_lower(problem, known)
        except DeclarationError as error:
            raise error if len(lower) == 1 else DeclarationError(f"Follower {k}: {error}") from None
    inputs = [*roles.parameters, *pseudo]
    cone, places = canonical.stuff_and_locate(below.objective.expr, below.constraints)
    if beyond := canonical.cones_beyond_linear(cone):
        raise DeclarationError(
            f"The lower problem needs the cones {', '.join(beyond)}; a lower level must reduce to linear equalities and "
            "inequalities with a convex quadratic objective. Quadratic constraints, norms other than 1 and inf, exponentials and "
            "semidefinite constraints of the follower have no exact road here yet."
        )
    level = canonical.level(cone, [source.plain[v.id] for v in roles.follower], inputs)
    priced = {c.id for c in roles.priced}
    rows = [(c, at) for c, at in zip(source.rows, places, strict=True) if c is not None and c.id in priced]

    sign = 1.0 if isinstance(upper.objective, cp.Minimize) else -1.0
    bounds = declared_bounds(roles.leader, plain)

    def above(prices: Prices) -> tuple[cp.Expression, list[cp.Constraint]]:
        """The upper level, minimised, in plain variables."""
        swap = plain | prices.swap(roles.asked)
        objective = (upper.objective.expr if sign > 0 else -upper.objective.expr).tree_copy(swap)
        return objective, [c.tree_copy(swap) for c in (*upper.constraints, *source.shared)] + bounds

    prices = in_level(rows, level)
    multipliers = prices.multipliers if roles.asked else None
    objective, constraints = above(prices)
    maps, convex, reason = quadratic_form(objective, constraints, level, roles, source.plain, multipliers)
    in_full = in_cone(rows, cone.constr_size, cone.cone_dims.zero)
    if roles.asked:
        objective, constraints = above(in_full)
    smooth = Smooth(
        objective=objective,
        constraints=tuple(constraints),
        leader=tuple(source.plain[v.id] for v in roles.leader),
        follower=tuple(source.plain[v.id] for v in roles.follower),
        parameters=tuple(roles.parameters),
        cone=cone,
        stand_ins=tuple(pseudo),
        multipliers=in_full.multipliers if roles.asked else None,
    )
    if maps is None:
        smooth.check(reason)
    variables = unknowns(roles, maps, sum(v.size for v in roles.leader))
    return Program(
        inputs=tuple(Input(p, p.name(), p.shape, declared_sign(p)) for p in roles.parameters),
        unknowns=variables,
        sign=sign,
        quadratic=maps,
        convex=convex,
        why_not_quadratic=reason,
        smooth=smooth,
        source=source,
        default=default,
        rebuild=(
            _reload,
            (
                (upper.objective, upper.constraints),
                [(problem.objective, problem.constraints) for problem in lower],
                [list(answers) for answers in responds],
                default,
            ),
        ),
        prices=(prices if maps else in_full).handles(),
        followers=len(lower),
        integers=_integers(variables),
    )


def _reload(above: tuple[Any, Any], below: list[tuple[Any, Any]], responds: list[Any], default: Solver) -> Program:
    upper, *lower = (cp.Problem(*pair) for pair in (above, *below))
    renumber(upper, *lower)
    return declare(upper, lower, responds, default)


def renumber(*problems: cp.Problem) -> None:
    """See to it that new CVXPY objects do not take the ids that came with unpickled ones."""
    leaves = [leaf for problem in problems for leaf in (*problem.variables(), *problem.parameters())]
    rows = [c for problem in problems for c in problem.constraints]
    ids = [leaf.id for leaf in (*leaves, *rows, *(d for c in rows for d in c.dual_variables))]
    lin_utils.ID_COUNTER.count = max(lin_utils.ID_COUNTER.count, *ids) + 1


def quadratic_form(
    objective: cp.Expression,
    above: list[cp.Constraint],
    level: Level,
    roles: Roles,
    plain: Mapping[int, cp.Variable],
    multipliers: cp.Variable | None = None,
) -> tuple[Maps | None, bool, str]:
    """The Maps of the bilevel quadratic program, whether its upper level is convex, and, if there are none, why."""
    first = len(roles.parameters)
    rivals = roles.follower if len(roles.players) > 1 else ()
    stand_ins = list(range(first, first + len(roles.leader) + len(rivals)))
    for block in (level.P, level.T, level.A):
        if any(k in block.terms for k in stand_ins):
            what = "an upper variable or another follower's" if rivals else "an upper variable"
            return None, False, f"{what} multiplies lower variables in the lower constraints or in a square"
    if any(k in level.b.terms for k in stand_ins[len(roles.leader) :]):
        return None, False, "the constraints of a follower depend on the answer of another one"
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
        objective += 0.0 * cp.sum(next(iter(plain.values())))
    cone = canonical.stuff(objective, above)
    if beyond := canonical.cones_beyond_linear(cone):
        return None, False, f"the upper level needs the cones {', '.join(beyond)}"
    asked = [] if multipliers is None else [multipliers]
    variables = [*(plain[v.id] for v in (*roles.leader, *roles.follower)), *asked]
    upper = canonical.level(cone, variables, roles.parameters)
    return assemble(upper, level, roles, plain, stand_ins, asked), convex, ""


def _integers(variables: tuple[Unknown, ...]) -> tuple[int, ...]:
    places = [u.place.start + whole(u.handle, kind) for u in variables for kind in ("boolean", "integer")]
    return tuple(int(i) for i in np.unique(np.concatenate([*places, np.zeros(0, int)])))


def unknowns(roles: Roles, maps: Maps | None, leader: int) -> tuple[Unknown, ...]:
    """The program's variables and their places in z."""
    found, at = [], 0
    for v in roles.leader:
        found.append(Unknown(v, v.name(), v.shape, True, slice(at, at + v.size)))
        at += v.size
    at = maps.sizes.x if maps else leader
    for v in roles.follower:
        found.append(Unknown(v, v.name(), v.shape, False, slice(at, at + v.size)))
        at += v.size
    return tuple(found)
