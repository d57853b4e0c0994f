"""Front end for two CVXPY problems.

Checks the declaration, sorts the variables into roles, and builds the Program's forms.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.lin_ops import lin_utils
from cvxpy.utilities import scopes

from bigrad.affine import Affine, constant
from bigrad.program import Input, Program, Solver, Unknown
from bigrad.programs import canonical, expressions
from bigrad.programs.canonical import Level
from bigrad.programs.smooth import Smooth
from bigrad.quadratic import Maps
from bigrad.solution import DeclarationError

PRECISE = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}
SPLIT = "Make a product or function of parameters one parameter, or give one factor of a product a variable of its own (t == factor)"
SIGNS = {"nonneg": 1, "pos": 1, "nonpos": -1, "neg": -1}


def declare(upper: cp.Problem, lower: cp.Problem, responds: Sequence[cp.Variable], default: Solver) -> Program:
    """The Program of two CVXPY problems; `bigrad.bilevel` documents the arguments."""
    roles = _roles(upper, lower, responds)
    source = _Source(upper, lower, roles)
    answer, stand_in = source.answer, source.stand_in

    rows: list[cp.Constraint] = []
    shared: list[cp.Constraint] = []
    for constraint in lower.constraints:
        follower = any(v.id in answer for v in constraint.variables())
        (rows if follower else shared).append(constraint)
    plain = {id(v): source.plain[v.id] for v in (*roles.leader, *roles.follower)}
    below = source.below
    _check_lower(below, roles, {p.id: v for v, p in zip(roles.leader, stand_in.values(), strict=True)})
    pseudo = list(stand_in.values())
    inputs = [*roles.parameters, *pseudo]
    cone = canonical.stuff(below.objective.expr, below.constraints)
    if beyond := canonical.cones_beyond_linear(cone):
        raise DeclarationError(
            f"The lower problem needs the cones {', '.join(beyond)}; a lower level must reduce to linear equalities and "
            "inequalities with a convex quadratic objective. Quadratic constraints, norms other than 1 and inf, exponentials and "
            "semidefinite constraints of the follower have no exact road here yet."
        )
    level = canonical.level(cone, [source.plain[v.id] for v in roles.follower], inputs)

    sign = 1.0 if isinstance(upper.objective, cp.Minimize) else -1.0
    objective = (upper.objective.expr if sign > 0 else -upper.objective.expr).tree_copy(plain)
    above = [c.tree_copy(plain) for c in (*upper.constraints, *shared)] + _attributes(roles.leader, plain)
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
        inputs=tuple(Input(p, p.name(), p.shape, _sign(p)) for p in roles.parameters),
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


@dataclass(frozen=True, eq=False)
class _Roles:
    leader: tuple[cp.Variable, ...]
    follower: tuple[cp.Variable, ...]
    parameters: tuple[cp.Parameter, ...]


def _roles(upper: cp.Problem, lower: cp.Problem, responds: Sequence[cp.Variable]) -> _Roles:
    names = f"bilevel(…, responds=[{', '.join(str(v) for v in responds)}])"
    ours, above, below = {v.id for v in responds}, {v.id for v in upper.variables()}, {v.id for v in lower.variables()}
    if not ours:
        raise DeclarationError(
            "bilevel(…, responds=[]): name the variables that the follower chooses; without one there is no lower level."
        )
    for v in responds:
        if v.id not in below:
            raise DeclarationError(
                f"{names}: '{v.name()}' does not appear in the lower problem, so it cannot respond; remove it from responds."
            )
    for v in lower.variables():
        if v.id not in ours and v.id not in above:
            raise DeclarationError(
                f"{names}: variable '{v.name()}' appears in the lower problem only, so it must respond too; add it to responds."
            )
    leader = [v for v in upper.variables() if v.id not in ours]
    for v in (*leader, *responds):
        who = "leader" if v.id not in ours else "follower"
        _check_leaf(v, f"{who} variable '{v.name()}'")
        if v.attributes["boolean"] or v.attributes["integer"]:
            raise DeclarationError(
                f"{who} variable '{v.name()}' is integer; the optimality conditions of the lower level need continuous variables at both "
                "levels. Relax it to bounds=[0, 1], or fix it as a Parameter and compare the solutions."
            )
    parameters = list({p.id: p for p in (*upper.parameters(), *lower.parameters())}.values())
    seen: dict[str, cp.Parameter] = {}
    for p in parameters:
        _check_leaf(p, f"parameter '{p.name()}'")
        if p.name() in seen:
            raise DeclarationError(
                f"Two different parameters have the name '{p.name()}'; rename one, or use the same object at both levels."
            )
        seen[p.name()] = p
    return _Roles(tuple(leader), tuple(dict.fromkeys(responds)), tuple(parameters))


def _check_leaf(leaf: Any, what: str) -> None:
    if leaf.is_complex():
        raise DeclarationError(f"{what} is complex; write its real and imaginary parts as two real ones.")
    if leaf.size == 0:
        raise DeclarationError(f"{what} has shape {leaf.shape}, with no entries; remove it.")
    kinds = (
        ("symmetric", "diag", "PSD", "NSD", "hermitian", "imag", "sparsity")
        if isinstance(leaf, cp.Variable)
        else ("diag", "sparsity", "hermitian", "imag")
    )
    for kind in kinds:
        if leaf.attributes.get(kind):
            raise DeclarationError(
                f"{what} has the attribute {kind}, which is not supported here; state it by constraints on a plain one."
            )


def _sign(leaf: Any) -> int:
    return next((s for kind, s in SIGNS.items() if leaf.attributes.get(kind)), 0)


def _attributes(variables: Sequence[cp.Variable], plain: Mapping[int, cp.Variable]) -> list[cp.Constraint]:
    """Signs and bounds declared on variables, as constraints on their plain copies."""
    rows: list[cp.Constraint] = []
    for v in variables:
        copy, sign = plain[id(v)], _sign(v)
        if sign:
            rows.append(sign * copy >= 0)
        for bound, side in zip(v.attributes.get("bounds") or (None, None), (1, -1), strict=True):
            if bound is None:
                continue
            limit = (
                bound if isinstance(bound, cp.Expression) else np.broadcast_to(np.asarray(bound, dtype=float), v.shape)
            )
            if isinstance(limit, cp.Expression):
                rows.append(side * (copy - limit) >= 0)
            elif v.ndim == 0 and np.isfinite(limit):
                rows.append(side * (copy - float(limit)) >= 0)
            elif v.ndim and np.isfinite(limit).any():
                at = np.flatnonzero(np.isfinite(limit).ravel(order="F"))
                rows.append(side * (cp.vec(copy, order="F")[at] - limit.ravel(order="F")[at]) >= 0)
    return rows


def _check_lower(problem: cp.Problem, roles: _Roles, leader: Mapping[int, cp.Variable]) -> None:
    """The lower problem, leader variables as parameters, must be convex, and affine in all parameters (DPP)."""
    pieces = [("objective", problem.objective), *(("constraint", c) for c in problem.constraints)]
    for what, piece in pieces:
        if not piece.is_dcp():
            culprit = _smallest(piece, lambda e: e.is_convex() or e.is_concave())
            raise DeclarationError(
                f"The lower problem is not convex in the follower's variables: the {what} {_named(piece)} breaks CVXPY's DCP rules"
                f" at {_named(culprit)}. Only a convex lower level is decided by its optimality conditions."
            )
    with scopes.dpp_scope(), scopes.quad_form_dpp_scope():
        for what, piece in pieces:
            if not piece.is_dcp():
                culprit = _smallest(piece, lambda e: e.is_convex() or e.is_concave())
                culprit = next((a for a in culprit.args if a.parameters() and not a.variables() and a.args), culprit)
                text, names = _named(culprit), [p.name() for p in culprit.parameters() if p.id not in leader]
                xs = [leader[p.id].name() for p in culprit.parameters() if p.id in leader]
                why = "it is not affine in the parameters"
                if names and xs:
                    why = f"it multiplies parameter '{names[0]}' by upper variable '{xs[0]}', which is a parameter to the follower"
                elif xs:
                    why = f"it is not affine in upper variable '{xs[0]}', which is a parameter to the follower"
                advice = (
                    f"Introduce an upper variable z with the upper constraint z == {text} and use z" if xs else SPLIT
                )
                raise DeclarationError(
                    f"The lower problem is not DPP in the upper variables and parameters: in the {what} {_named(piece)}, look at {text}: "
                    f"{why}. {advice}."
                )


def _smallest(piece: Any, fine: Any) -> Any:
    """The first deepest subexpression that breaks the rule while its arguments keep it."""
    for arg in piece.args:
        if not (fine(arg) and _all_fine(arg, fine)):
            return _smallest(arg, fine)
    return piece


def _all_fine(expression: Any, fine: Any) -> bool:
    return all(fine(arg) and _all_fine(arg, fine) for arg in expression.args)


def _named(expression: Any) -> str:
    text = str(expression.expr if isinstance(expression, cp.Minimize | cp.Maximize) else expression)
    return text if len(text) < 200 else text[:200] + "…"


def _quadratic(
    objective: cp.Expression, above: list[cp.Constraint], level: Level, roles: _Roles, source: _Source
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
    _check_upper(objective, above, convex)
    if not any(e.variables() for e in (objective, *above)):  # CVXPY stuffs no problem without variables
        objective += 0.0 * cp.sum(source.plain[roles.follower[0].id])
    cone = canonical.stuff(objective, above)
    if beyond := canonical.cones_beyond_linear(cone):
        return None, False, f"the upper level needs the cones {', '.join(beyond)}"
    variables = [source.plain[v.id] for v in (*roles.leader, *roles.follower)]
    return _maps(canonical.level(cone, variables, roles.parameters), level, roles, source, stand_ins), convex, ""


def _check_upper(objective: cp.Expression, above: list[cp.Constraint], convex: bool) -> None:
    """The upper level must be affine in its parameters (DPP).

    Curvature is not asked of an objective that is not convex.
    """
    for what, piece in [("objective", objective), *(("constraint", c) for c in above)]:
        culprit = next((found for arg in _roots(piece) if (found := expressions.beyond_affine(arg)) is not None), None)
        with scopes.dpp_scope(), scopes.quad_form_dpp_scope():
            if culprit is None and (convex or piece is not objective) and not piece.is_dcp():
                culprit = _smallest(piece, lambda e: e.is_convex() or e.is_concave())
        if culprit is not None:
            raise DeclarationError(
                f"The upper {what} {_named(piece)} is not DPP at {_named(culprit)}: it is not affine in the parameters. {SPLIT}."
            )


def _roots(piece: Any) -> list[cp.Expression]:
    return [piece] if isinstance(piece, cp.Expression) else piece.args


def _maps(upper: Level, lower: Level, roles: _Roles, source: _Source, stand_ins: list[int]) -> Maps:
    def columns(level: Level, variables: Sequence[cp.Variable]) -> np.ndarray:
        own = [
            np.arange(v.size) + level.offsets[source.plain[v.id].id]
            if source.plain[v.id].id in level.offsets
            else np.full(v.size, -1)
            for v in variables
        ]
        return np.concatenate([*own, np.zeros(0, int)]).astype(int)

    def auxiliary(level: Level) -> np.ndarray:
        return np.setdiff1d(np.arange(level.size), columns(level, (*roles.leader, *roles.follower)))

    xs, ys = columns(upper, roles.leader), columns(upper, roles.follower)
    extra, below = auxiliary(upper), auxiliary(lower)
    z = np.concatenate([xs, extra, ys, np.full(len(below), -1)])
    y = np.concatenate([columns(lower, roles.follower), below])
    sizes = [v.size for v in roles.leader]

    def slope(block: Affine) -> Affine:
        rows = block.base.size
        return constant(np.hstack([block.slope(stand_ins, sizes), np.zeros((rows, len(extra)))]))

    Q, c, T = _arranged(upper, z)
    P, p, U = _arranged(lower, y)
    eq, ineq = np.arange(upper.equalities), np.arange(upper.equalities, upper.b.shape[0])
    leq, lineq = np.arange(lower.equalities), np.arange(lower.equalities, lower.b.shape[0])
    free = lower.b.without(stand_ins)
    against = slope(lower.b)
    against = constant(-against.base.reshape(against.shape))
    return Maps(
        Q=Q, c=c, d=upper.d, T=T, l=upper.l,
        G=_rows(upper.A, ineq, z), g=upper.b.rows(ineq, (len(ineq),)),
        E=_rows(upper.A, eq, z), e=upper.b.rows(eq, (len(eq),)),
        P=P, p=p.without(stand_ins), W=slope(p), U=U, V=slope(lower.l), m=lower.l.without(stand_ins),
        A=_rows(lower.A, lineq, y), B=_pick(against, lineq), b=free.rows(lineq, (len(lineq),)),
        H=_rows(lower.A, leq, y), K=_pick(against, leq), h=free.rows(leq, (len(leq),)),
    )  # fmt: skip


def _arranged(level: Level, z: np.ndarray) -> tuple[Affine, Affine, Affine]:
    """Objective blocks with the kept variables in the order z (-1: absent from this level)."""
    n = level.q.shape[0]
    u = np.concatenate([z, np.arange(level.size, n)])
    grid = np.where((u[:, None] < 0) | (u < 0), -1, n * u[:, None] + u)
    return (
        level.P.rows(grid.ravel(), grid.shape),
        level.q.rows(u, u.shape),
        _rows(level.T, np.arange(n - level.size), z),
    )


def _rows(block: Affine, rows: np.ndarray, columns: np.ndarray) -> Affine:
    width = block.shape[1]
    index = np.where(columns < 0, -1, rows[:, None] * width + columns)
    return block.rows(index.ravel(), index.shape)


def _pick(block: Affine, rows: np.ndarray) -> Affine:
    return _rows(block, rows, np.arange(block.shape[1]))


def _unknowns(roles: _Roles, maps: Maps | None, leader: int) -> tuple[Unknown, ...]:
    found, at = [], 0
    for v in roles.leader:
        found.append(Unknown(v, v.name(), v.shape, True, slice(at, at + v.size)))
        at += v.size
    at = maps.sizes.x if maps else leader
    for v in roles.follower:
        found.append(Unknown(v, v.name(), v.shape, False, slice(at, at + v.size)))
        at += v.size
    return tuple(found)


class _Source:
    """The user's two problems: fills their variables, evaluates their objectives, re-solves the follower."""

    def __init__(self, upper: cp.Problem, lower: cp.Problem, roles: _Roles):
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
        constraints = [c.tree_copy(swap) for c in rows] + _attributes(self.roles.follower, plain)
        return cp.Problem(cp.Minimize(objective.tree_copy(swap)), constraints)

    def publish(self, values: Mapping[Any, np.ndarray | None]) -> None:
        with self.turn:
            for variable, value in values.items():
                variable.save_value(value)

    def lower_value(self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]) -> float:
        with self.turn, _at({**inputs, **values}), np.errstate(all="ignore"):
            value = self.lower.objective.value
            return np.nan if value is None else float(value)

    def follower_gap(self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]) -> float:
        """Lower objective at (x, y) minus its optimum at x by Clarabel, minimised sense.

        Inf if Clarabel finds no optimum.
        """
        leader = {self.stand_in[v.id]: _within(values[v], self.stand_in[v.id]) for v in self.roles.leader}
        with self.turn, _at({**inputs, **leader}), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CVXPY's own, that a solution may be inaccurate: the gap tells
            problem = cp.Problem(self.below.objective, self.below.constraints)
            with _at({self.plain[v.id]: values[v] for v in self.roles.follower}):
                here = float(problem.objective.value)
            for tolerances in (PRECISE, {}):  # x may lie on the edge of where the follower has an answer
                try:
                    problem.solve(solver=cp.CLARABEL, **tolerances)
                except cp.SolverError:
                    continue
                if problem.status in cp.settings.SOLUTION_PRESENT:
                    return here - float(problem.value)
            return np.inf


def _within(value: np.ndarray, parameter: cp.Parameter) -> np.ndarray:
    """Rounding below zero (above, for nonpositive ones) taken off a value that the stand-in's sign would refuse."""
    return parameter.project(value)


class _at:
    """Hold leaves at given values for a while."""

    def __init__(self, values: Mapping[Any, np.ndarray]):
        self.values = values

    def __enter__(self) -> None:
        self.before = {leaf: leaf.value for leaf in self.values}
        for leaf, value in self.values.items():
            leaf.save_value(value)

    def __exit__(self, *error: Any) -> None:
        for leaf, value in self.before.items():
            leaf.save_value(value)
