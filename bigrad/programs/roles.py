"""Who chooses which variable, what a declaration may hold, and the bounds that variables declare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.constraints.nonpos import Inequality, NonNeg, NonPos
from cvxpy.constraints.zero import Equality, Zero

from bigrad.solution import DeclarationError

SIGNS = {"nonneg": 1, "pos": 1, "nonpos": -1, "neg": -1}


PRICED = (Equality, Inequality, NonNeg, NonPos, Zero)


@dataclass(frozen=True, eq=False)
class Roles:
    """The leader's variables, the followers', and the parameters of both levels, each in the order of appearance.

    players: the variables of each follower. priced: the lower constraints that have a price. asked: the prices (dual
    variables) that stand in the upper problem.
    """

    leader: tuple[cp.Variable, ...]
    follower: tuple[cp.Variable, ...]
    parameters: tuple[cp.Parameter, ...]
    players: tuple[tuple[cp.Variable, ...], ...] = ()
    priced: tuple[cp.Constraint, ...] = ()
    asked: tuple[cp.Variable, ...] = ()


def sort_roles(
    upper: cp.Problem,
    lower: Sequence[cp.Problem],
    responds: Sequence[Sequence[cp.Variable]],
    *,
    matrices: bool = False,
    integers: bool = False,
) -> Roles:
    """Who chooses what, or a DeclarationError that says why the declaration cannot be meant.

    lower, responds: one problem and one list of variables for each follower. matrices: symmetric and semidefinite variables are
    fine. integers: integer variables of a follower are.
    """
    lists = [f"[{', '.join(str(v) for v in answers)}]" for answers in responds]
    names = f"bilevel(…, responds={lists[0] if len(lists) == 1 else '[' + ', '.join(lists) + ']'})"
    above = {v.id for v in upper.variables()}
    owner: dict[int, int] = {}
    for k, (problem, answers) in enumerate(zip(lower, responds, strict=True)):
        where, below = "the lower problem" + which(k, lower), {v.id for v in problem.variables()}
        if not answers:
            raise DeclarationError(
                f"bilevel(…, responds=[]): name the variables that the follower{which(k, lower)} chooses; without one there is "
                "no lower level."
            )
        for v in answers:
            if v.id not in below:
                raise DeclarationError(
                    f"{names}: '{v.name()}' does not appear in {where}, so it cannot respond; remove it from responds."
                )
            if owner.setdefault(v.id, k) != k:
                raise DeclarationError(
                    f"{names}: '{v.name()}' is in the lists of followers {owner[v.id]} and {k}; one of them must choose it."
                )
    duals = _priced(lower, responds)
    for k, problem in enumerate(lower):
        for v in problem.variables():
            if v.id in duals:
                raise DeclarationError(
                    f"{names}: the price of {duals[v.id][0]} stands in the lower problem{which(k, lower)}; prices may stand in the "
                    "upper problem only."
                )
            if v.id not in owner and v.id not in above:
                raise DeclarationError(
                    f"{names}: variable '{v.name()}' appears in the lower problem{which(k, lower)} only, so it must respond too; add "
                    "it to responds. Or, if the leader chooses it, name it in the upper problem, by its bounds for example."
                )
    own = {d.id: c for c in upper.constraints for d in c.dual_variables}
    leader = [v for v in upper.variables() if v.id not in owner and v.id not in duals]
    asked = [v for v in upper.variables() if v.id in duals]
    for v in asked:
        if reason := duals[v.id][1]:
            raise DeclarationError(f"The upper problem mentions the price of {duals[v.id][0]}, but {reason}.")
    follower = list(dict.fromkeys(v for answers in responds for v in answers))
    for v in (*leader, *follower):
        if v.id in own:
            raise DeclarationError(
                f"The upper problem mentions the price of its own constraint {own[v.id]}; only lower constraints have prices here."
            )
        who = "leader" if v.id not in owner else "follower"
        _check_leaf(v, f"{who} variable '{v.name()}'", matrices=matrices)
        if who == "follower" and is_integer(v) and not integers:
            raise DeclarationError(
                f"{who} variable '{v.name()}' is integer; among several followers all need continuous variables, for their optimality "
                "conditions. Relax it to bounds=[0, 1]."
            )
    players = tuple(tuple(dict.fromkeys(answers)) for answers in responds)
    priced = tuple(c for c, reason in {id(c): (c, reason) for c, reason in duals.values()}.values() if not reason)
    return Roles(tuple(leader), tuple(follower), _parameters(upper, *lower), players, priced, tuple(asked))


def sort_single(problem: cp.Problem, *, integers: bool = False) -> Roles:
    """The roles of a problem with one level: whoever solves it chooses all variables; integers: integer ones are fine."""
    variables = tuple(problem.variables())
    if not variables:
        raise DeclarationError("argmin(problem): the problem has no variables, so there is nothing to choose.")
    for v in variables:
        _check_leaf(v, f"variable '{v.name()}'", matrices=not integers)
        if is_integer(v) and not integers:
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


def which(k: int, lower: Sequence[cp.Problem]) -> str:
    """Which of several followers, in words; nothing where there is only one."""
    return f" of follower {k}" if len(lower) > 1 else ""


def _priced(
    lower: Sequence[cp.Problem], responds: Sequence[Sequence[cp.Variable]]
) -> dict[int, tuple[cp.Constraint, str]]:
    """By the id of a dual variable, the lower constraint that it belongs to, and why it is no price, if it is none."""
    found: dict[int, tuple[cp.Constraint, str]] = {}
    for problem, answers in zip(lower, responds, strict=True):
        ours = {v.id for v in answers}
        for c in problem.constraints:
            reason = ""
            if not isinstance(c, PRICED):
                reason = f"a {type(c).__name__} constraint has no price here; equalities and inequalities have"
            elif not any(v.id in ours for v in c.variables()):
                reason = "this constraint does not involve the follower's variables, so it restricts the leader and has no price"
            for dual in c.dual_variables:
                twice = "it stands in the lower level twice, with a price in each place; write it once for each"
                found[dual.id] = (c, twice if dual.id in found else reason)
    return found


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


def known_sign(variable: cp.Variable) -> int:
    """The sign that a variable's attributes leave it: +1, -1, or 0 for any; bounds that are numbers count."""
    if variable.is_nonneg() or variable.is_nonpos():
        return 1 if variable.is_nonneg() else -1
    low, high = (
        b if b is None or isinstance(b, cp.Expression) else np.asarray(b, dtype=float)
        for b in variable.attributes.get("bounds") or (None, None)
    )
    if isinstance(low, np.ndarray) and (low >= 0).all():
        return 1
    return -1 if isinstance(high, np.ndarray) and (high <= 0).all() else 0


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


def is_integer(variable: cp.Variable) -> bool:
    """Whether a variable, or some entry of it, must be a whole number."""
    return bool(variable.attributes["boolean"] or variable.attributes["integer"])


def whole(variable: cp.Variable, kind: str) -> np.ndarray:
    """Places, in column-major order, of the entries that a variable declares to be of a kind: boolean or integer."""
    declared = variable.attributes[kind]
    if isinstance(declared, bool):
        return np.arange(variable.size) if declared else np.zeros(0, int)
    return np.sort(np.ravel_multi_index([list(i) for i in zip(*declared, strict=True)], variable.shape, order="F"))


def declared_bounds(variables: Sequence[cp.Variable], plain: Mapping[int, cp.Variable]) -> list[cp.Constraint]:
    """Signs and bounds declared on variables, as constraints on their plain copies."""
    rows: list[cp.Constraint] = []
    for v in variables:
        copy, sign = plain[id(v)], declared_sign(v)
        if sign:
            rows.append(sign * copy >= 0)
        if len(at := whole(v, "boolean")):
            part = cp.vec(copy, order="F")[at]
            rows += [part >= 0, part <= 1]
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
