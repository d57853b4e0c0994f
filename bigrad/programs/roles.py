"""Who chooses which variable, what a declaration may hold, and the bounds that variables declare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np

from bigrad.solution import DeclarationError

SIGNS = {"nonneg": 1, "pos": 1, "nonpos": -1, "neg": -1}


@dataclass(frozen=True, eq=False)
class Roles:
    """The leader's variables, the follower's, and the parameters of both levels, each in the order of appearance."""

    leader: tuple[cp.Variable, ...]
    follower: tuple[cp.Variable, ...]
    parameters: tuple[cp.Parameter, ...]


def sort_roles(
    upper: cp.Problem, lower: cp.Problem, responds: Sequence[cp.Variable], *, matrices: bool = False
) -> Roles:
    """Who chooses what, or a DeclarationError that says why the declaration cannot be meant.

    matrices: symmetric and semidefinite variables are fine.
    """
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
        _check_leaf(v, f"{who} variable '{v.name()}'", matrices=matrices)
        if v.attributes["boolean"] or v.attributes["integer"]:
            raise DeclarationError(
                f"{who} variable '{v.name()}' is integer; the optimality conditions of the lower level need continuous variables at both "
                "levels. Relax it to bounds=[0, 1], or fix it as a Parameter and compare the solutions."
            )
    return Roles(tuple(leader), tuple(dict.fromkeys(responds)), _parameters(upper, lower))


def sort_single(problem: cp.Problem) -> Roles:
    """The roles of a problem with one level: whoever solves it chooses all variables."""
    variables = tuple(problem.variables())
    if not variables:
        raise DeclarationError("argmin(problem): the problem has no variables, so there is nothing to choose.")
    for v in variables:
        _check_leaf(v, f"variable '{v.name()}'", matrices=True)
        if v.attributes["boolean"] or v.attributes["integer"]:
            raise DeclarationError(
                f"variable '{v.name()}' is integer, and the solution of an integer program has no derivative. Relax it to bounds=[0, 1]."
            )
    return Roles(variables, (), _parameters(problem))


def _parameters(*problems: cp.Problem) -> tuple[cp.Parameter, ...]:
    parameters = tuple({p.id: p for problem in problems for p in problem.parameters()}.values())
    seen: dict[str, cp.Parameter] = {}
    for p in parameters:
        _check_leaf(p, f"parameter '{p.name()}'")
        if p.name() in seen:
            raise DeclarationError(
                f"Two different parameters have the name '{p.name()}'; rename one, or use the same object at both levels."
            )
        seen[p.name()] = p
    return parameters


def _check_leaf(leaf: Any, what: str, *, matrices: bool = False) -> None:
    """Refuse what a leaf may not declare; matrices: symmetric and semidefinite variables are fine."""
    if leaf.is_complex():
        raise DeclarationError(f"{what} is complex; write its real and imaginary parts as two real ones.")
    if leaf.size == 0:
        raise DeclarationError(f"{what} has shape {leaf.shape}, with no entries; remove it.")
    kinds = (
        ("symmetric", "PSD", "NSD", "diag", "hermitian", "imag", "sparsity")
        if isinstance(leaf, cp.Variable)
        else ("diag", "sparsity", "hermitian", "imag")
    )
    for kind in kinds[3:] if matrices else kinds:
        if leaf.attributes.get(kind):
            raise DeclarationError(
                f"{what} has the attribute {kind}, which is not supported here; state it by constraints on a plain one."
            )


def declared_sign(leaf: Any) -> int:
    """The sign that a variable or parameter declares: +1, -1, or 0 for none."""
    return next((s for kind, s in SIGNS.items() if leaf.attributes.get(kind)), 0)


def declared_shape(variables: Sequence[cp.Variable], plain: Mapping[int, cp.Variable]) -> list[cp.Constraint]:
    """Symmetry and semidefiniteness declared on variables, as constraints on their plain copies."""
    rows: list[cp.Constraint] = []
    for v in variables:
        copy, (psd, nsd) = plain[id(v)], (v.attributes["PSD"], v.attributes["NSD"])
        if (psd or nsd or v.attributes["symmetric"]) and v.size > 1:
            rows.append(cp.upper_tri(copy) == cp.upper_tri(copy.T))
        if psd or nsd:
            rows.append((copy if psd else -copy) >> 0)
    return rows


def declared_bounds(variables: Sequence[cp.Variable], plain: Mapping[int, cp.Variable]) -> list[cp.Constraint]:
    """Signs and bounds declared on variables, as constraints on their plain copies."""
    rows: list[cp.Constraint] = []
    for v in variables:
        copy, sign = plain[id(v)], declared_sign(v)
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
