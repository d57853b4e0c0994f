"""Front end for CVXPY problems: from the declaration to the Program and the forms that solvers may have it in."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.lin_ops import lin_utils
from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ParamConeProg

from bigrad.algebra.quadratic import Maps
from bigrad.program import Input, Program, Solver, Unknown
from bigrad.programs import canonical, expressions
from bigrad.programs.assemble import assemble
from bigrad.programs.canonical import Level
from bigrad.programs.checks import check_lower, check_upper
from bigrad.programs.conic import conic
from bigrad.programs.data import Extraction
from bigrad.programs.prices import Prices, in_cone, in_level
from bigrad.programs.roles import Roles, declared_bounds, declared_shape, declared_sign, sort_roles, whole
from bigrad.programs.smooth import Smooth
from bigrad.programs.source import Source
from bigrad.solution import DeclarationError

LARGE = 1000
"""Lower variables and constraints up to which a quadratic program is held in dense arrays; then sparse methods are faster."""


def declare(
    upper: cp.Problem,
    lower: Sequence[cp.Problem],
    responds: Sequence[Sequence[cp.Variable]],
    default: Solver,
    rebuild: tuple[Any, ...],
) -> Program:
    """The Program of CVXPY problems, one below for each follower; `bigrad.bilevel` documents the arguments, and Program
    the last two."""
    roles = sort_roles(upper, lower, responds, matrices=True)
    source = Source(upper, lower, roles)
    plain = {id(v): source.plain[v.id] for v in (*roles.leader, *roles.follower)}
    extract = Extraction(roles.parameters, {p.id: source.plain[i] for i, p in source.stand_in.items()})
    belows = [
        cp.Problem(cp.Minimize(extract.goal(b.objective.expr)), [extract(c) for c in b.constraints])
        for b in source.belows
    ]
    sign = 1.0 if isinstance(upper.objective, cp.Minimize) else -1.0
    goal = extract(upper.objective.expr if sign > 0 else -upper.objective.expr)
    limits = [extract(c) for c in (*upper.constraints, *source.shared)]
    bounds = declared_shape(roles.leader, plain) + [extract(c) for c in declared_bounds(roles.leader, plain)]
    bounds += [extract(z == expression) for z, _, expression in extract.defined]
    leaders = len(roles.leader)
    roles = extract.widened(roles)
    source.plain |= {z.id: z for z, _, _ in extract.defined}
    pseudo = list(source.stand_in.values())
    pseudo[leaders:leaders] = [p for _, p, _ in extract.defined]
    known = {p.id: v for v, p in zip((*roles.leader, *roles.follower), pseudo, strict=False)}
    for k, problem in enumerate(belows):
        try:
            check_lower(problem, known)
        except DeclarationError as error:
            raise error if len(lower) == 1 else DeclarationError(f"Follower {k}: {error}") from None
    below = _joined(belows)
    inputs = [*roles.parameters, *pseudo]
    cone, places = canonical.stuff_and_locate(below.objective.expr, below.constraints)
    priced = {c.id for c in roles.priced}
    rows = [(c, at) for c, at in zip(source.rows, places, strict=True) if c is not None and c.id in priced]

    def above(prices: Prices) -> tuple[cp.Expression, list[cp.Constraint]]:
        """The upper level, minimised, in plain variables."""
        swap = plain | prices.swap(roles.asked)
        return goal.tree_copy(swap), [*(c.tree_copy(swap) for c in limits), *bounds]

    answers = [source.plain[v.id] for v in roles.follower]
    in_full = in_cone(rows, conic(cone, answers))
    maps, convex, reason, prices = _quadratic(cone, rows, above, answers, inputs, roles, source.plain)
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
    variables = unknowns(roles, maps, {z.id for z, _, _ in extract.defined})
    return Program(
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
        rebuild=rebuild,
        duals=(prices or in_full).handles(maps.sizes if maps else smooth.layout),
        followers=len(lower),
        integers=_integers(variables),
    )


def _joined(belows: Sequence[cp.Problem]) -> cp.Problem:
    """The followers' problems as one: each chooses its own variables and takes those of the others as parameters."""
    if len(belows) == 1:
        return belows[0]
    return cp.Problem(cp.Minimize(sum(p.objective.expr for p in belows)), [c for p in belows for c in p.constraints])


def renumber(*problems: cp.Problem) -> None:
    """See to it that new CVXPY objects do not take the ids that came with unpickled ones."""
    leaves = [leaf for problem in problems for leaf in (*problem.variables(), *problem.parameters())]
    rows = [c for problem in problems for c in problem.constraints]
    ids = [leaf.id for leaf in (*leaves, *rows, *(d for c in rows for d in c.dual_variables))]
    lin_utils.ID_COUNTER.count = max(lin_utils.ID_COUNTER.count, *ids) + 1


def _quadratic(
    cone: ParamConeProg,
    rows: Sequence[tuple[cp.Constraint, slice]],
    above: Callable[[Prices], tuple[cp.Expression, list[cp.Constraint]]],
    answers: Sequence[cp.Variable],
    inputs: Sequence[cp.Parameter],
    roles: Roles,
    plain: Mapping[int, cp.Variable],
) -> tuple[Maps | None, bool, str, Prices | None]:
    """The Maps of the bilevel quadratic program, whether its upper level is convex, if there are none why, else its prices.

    cone: the lower level, rows: those of its constraints with prices; above: the upper level with prices put in.
    """
    if beyond := canonical.cones_beyond_linear(cone):
        return None, False, f"the lower level needs the cones {', '.join(beyond)}", None
    count = cone.x.size + cone.constr_size
    if count > LARGE and not any(whole(v, kind).size for v in roles.leader for kind in ("boolean", "integer")):
        return None, False, f"{count} lower variables and constraints; up to {LARGE} are held in dense arrays", None
    level = canonical.level(cone, answers, inputs)
    prices = in_level(rows, level)
    multipliers = prices.multipliers if roles.asked else None
    upper, convex, reason = upper_level(*above(prices), level, roles, plain, multipliers)
    if upper is None:
        return None, convex, reason, None
    asked = [] if multipliers is None else [multipliers]
    return assemble(upper, level, roles, plain, asked), convex, reason, prices


def upper_level(
    objective: cp.Expression,
    above: list[cp.Constraint],
    level: Level,
    roles: Roles,
    plain: Mapping[int, cp.Variable],
    multipliers: cp.Variable | None = None,
) -> tuple[Level | None, bool, str]:
    """The upper level canonicalised, whether it is convex, and, if the program is not quadratic, why."""
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
        if any(expressions.has_parametric_form(arg) for arg in c.args):
            return None, False, f"the upper constraint {c} has a quadratic form with a parameter matrix"
    check_upper(objective, above, convex)
    if not any(e.variables() for e in (objective, *above)):  # CVXPY stuffs no problem without variables
        objective += 0.0 * cp.sum(next(iter(plain.values())))
    cone = canonical.stuff(objective, above)
    if beyond := canonical.cones_beyond_linear(cone):
        return None, False, f"the upper level needs the cones {', '.join(beyond)}"
    asked = [] if multipliers is None else [multipliers]
    variables = [*(plain[v.id] for v in (*roles.leader, *roles.follower)), *asked]
    return canonical.level(cone, variables, roles.parameters), convex, ""


def _integers(variables: tuple[Unknown, ...]) -> tuple[int, ...]:
    places = [u.place.start + whole(u.handle, kind) for u in variables for kind in ("boolean", "integer")]
    return tuple(int(i) for i in np.unique(np.concatenate([*places, np.zeros(0, int)])))


def unknowns(roles: Roles, maps: Maps | None, hidden: Container[int] = ()) -> tuple[Unknown, ...]:
    """The user's variables and their places in z; `hidden` are further ones of the leader, which only have a place."""
    found, at = [], 0
    for v in roles.leader:
        if v.id not in hidden:
            found.append(Unknown(v, v.name(), v.shape, True, slice(at, at + v.size)))
        at += v.size
    at = maps.sizes.x if maps else at
    for v in roles.follower:
        found.append(Unknown(v, v.name(), v.shape, False, slice(at, at + v.size)))
        at += v.size
    return tuple(found)
