"""Programs declared by OR-Tools models, CP-SAT's or MathOpt's, and by oracles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bigrad.discrete.combinatorial import Combinatorial
from bigrad.handles import listed
from bigrad.oracle import Oracle
from bigrad.program import Input, Program, Solver, Unknown
from bigrad.programs import elements
from bigrad.programs.level import Level
from bigrad.programs.linked import Linked, assemble, link
from bigrad.programs.nested import Source, combinatorial
from bigrad.programs.portable import Declaration
from bigrad.solution import DeclarationError


def is_model(model: Any) -> bool:
    """Whether this is a model of OR-Tools; does not import it."""
    return type(model).__module__.startswith("ortools.")


def read(model: Any, which: str) -> Level:
    """A CP-SAT or MathOpt model as a Level; `which` names it in messages."""
    if is_model(model):
        from ortools.math_opt.python import mathopt
        from ortools.sat.python import cp_model

        from bigrad.programs import cpsat
        from bigrad.programs import mathopt as front

        if isinstance(model, cp_model.CpModel):
            return _numbers(cpsat.read(model, which), which)
        if isinstance(model, mathopt.Model):
            return _numbers(front.read(model, which), which)
    raise DeclarationError(
        f"{which}: got a {type(model).__name__}; give a cp_model.CpModel or a mathopt.Model, or an oracle as the follower."
    )


def _numbers(level: Level, which: str) -> Level:
    """The level; DeclarationError for a NaN, or a coefficient that is infinite."""
    terms = {
        "the objective": [*level.linear, *level.quadratic.values(), level.constant],
        "a linear constraint": level.rows.matrix.data,
    }
    ends = {
        "a variable": [*level.lower, *level.upper],
        "a linear constraint": [*level.rows.lower, *level.rows.upper],
    }
    for what, numbers in terms.items():
        if not np.isfinite(np.asarray(numbers, dtype=float)).all():
            raise DeclarationError(f"{which}: a coefficient of {what} is NaN or infinite; give finite numbers.")
    for what, numbers in ends.items():
        if np.isnan(np.asarray(numbers, dtype=float)).any():
            raise DeclarationError(
                f"{which}: a bound of {what} is NaN; give a number, or infinity where there is none."
            )
    return level


def declare(
    leader: Any,
    follower: Any,
    copies: Mapping[Any, Any],
    responds: Mapping[Any, Any] | Sequence[Any],
    costs: Mapping[str, Sequence[Any]],
    default: Solver,
) -> Program:
    """The program of two models, of a model and an oracle, or, with the follower None, of one model."""
    top = read(leader, "argmin(model)" if follower is None else "bilevel(leader, …)")
    below = own = None
    if isinstance(follower, Oracle):
        below = elements.read(follower, costs)
    elif follower is not None:
        below = own = read(follower, "bilevel(…, follower)")
        if below.variables.model is top.variables.model:
            raise DeclarationError(
                "bilevel(model, model): both levels are the same model; give each player a model of its own, and link."
            )
    linked = link(top, below, copies, responds)
    if below is not None and not linked_together(linked, copies, costs):
        if isinstance(follower, Oracle):
            raise DeclarationError(
                "bilevel(leader, oracle): the leader does not touch the oracle's costs; give pairs of an index and a variable of the "
                "leader's, costs={'w': range(n), 'd': [(0, x0), (1, x1), …]}: element k then costs d[k] more where xk is 1."
            )
        raise DeclarationError(
            "bilevel(leader, follower): nothing links the two models; give link={leader's variable: its copy in the follower}, "
            "or costs on products of both players' variables."
        )
    if below is not None and not top.objective and not below.objective and not costs:
        raise DeclarationError("bilevel(leader, follower): neither model has an objective.")
    form, values = assemble(linked, costs)
    form = replace(form, follower=follower if isinstance(follower, Oracle) else None)
    if form.rest:
        from bigrad.programs.merged import merge

        models, base = merge(linked, form.base)
        form = replace(form, models=models, base=base)
    return combinatorial(
        form,
        inputs=tuple(_input(name, handles, values[name]) for name, handles in costs.items()),
        unknowns=_unknowns(linked, form),
        sign=top.sense if top.objective or below is None else -below.sense,
        source=Source(form, None if below is None else below.sense),
        default=default,
        rebuild=(_again, (Declaration(leader, follower, copies, responds, costs, default, (top, own)),)),
        shown=_shown(linked, copies, responds),
    )


def _again(given: tuple[Any, ...]) -> Program:
    return declare(*given)


def linked_together(linked: Linked, copies: Mapping[Any, Any], costs: Mapping[str, Sequence[Any]]) -> bool:
    """Whether anything of one player's matters to the other."""
    products = any(isinstance(e, tuple) for entries in costs.values() for e in listed(entries)[1])
    return bool(copies) or products or bool((linked.leader_at >= linked.leaders).any())


def _input(name: str, handles: Any, values: np.ndarray) -> Input:
    shape, _ = listed(handles)
    from bigrad.algebra.affine import unflatten

    return Input(name, name, shape, default=np.array(unflatten(values, shape)))


def _unknowns(linked: Linked, form: Combinatorial) -> tuple[Unknown, ...]:
    """Every variable of (x, y), by the object of the model that owns it."""
    found: dict[int, Unknown] = {}
    levels = [(linked.leader, linked.leader_at, True)]
    levels += [(linked.follower, linked.follower_at, False)] if linked.follower else []
    for level, at, leads in levels:
        for k, place in enumerate(at.tolist()):
            if place >= 0 and (place < linked.leaders) == leads:
                found[place] = Unknown(level.variables.handle(k), level.names[k], (), leads, slice(place, place + 1))
    return tuple(found[k] for k in range(form.base.leaders + form.base.followers))


def _shown(linked: Linked, copies: Any, responds: Any) -> tuple[Any, ...]:
    """What a layer returns where nothing is named: the leader's linked variables and the follower's visible ones, else all."""
    owners = [
        linked.leader.variables.handle(k)
        for k in np.flatnonzero((linked.leader_at >= 0) & (linked.leader_at < linked.leaders)).tolist()
    ]
    if linked.follower is None:
        return (owners,)
    level, at = linked.follower, linked.follower_at
    answers = list(responds) or [level.variables.handle(k) for k in np.flatnonzero(at >= linked.leaders).tolist()]
    return (list(copies) or owners, answers)
