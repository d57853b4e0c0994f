"""Programs declared by OR-Tools models, CP-SAT's or MathOpt's, and by oracles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bigrad.combinatorial import Combinatorial
from bigrad.nested import Nested
from bigrad.oracle import Oracle
from bigrad.program import Input, Program, Solver, Unknown, listed
from bigrad.programs import elements
from bigrad.programs.answer import best
from bigrad.programs.level import Level
from bigrad.programs.linked import Linked, assemble, link
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
            return cpsat.read(model, which)
        if isinstance(model, mathopt.Model):
            return front.read(model, which)
    raise DeclarationError(
        f"{which}: got a {type(model).__name__}; give a cp_model.CpModel or a mathopt.Model, or an oracle as the follower."
    )


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
    return Program(
        tuple(_input(name, handles, values[name]) for name, handles in costs.items()),
        _unknowns(linked, form),
        top.sense if top.objective or below is None else -below.sense,
        None,
        False,
        "it is combinatorial",
        None,
        Source(form, linked),
        default,
        (_again, (Declaration(leader, follower, copies, responds, costs, default, (top, own)),)),
        combinatorial=form,
        shown=_shown(linked, form, copies, responds),
    )


def _again(given: tuple[Any, ...]) -> Program:
    return declare(*given)


def linked_together(linked: Linked, copies: Mapping[Any, Any], costs: Mapping[str, Sequence[Any]]) -> bool:
    """Whether anything of one player's matters to the other."""
    products = any(isinstance(e, tuple) for entries in costs.values() for e in listed(entries)[1])
    return bool(copies) or products or bool((linked.leader_at >= linked.leaders).any())


def _input(name: str, handles: Any, values: np.ndarray) -> Input:
    shape, _ = listed(handles)
    from bigrad.affine import unflatten

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


def _shown(linked: Linked, form: Combinatorial, copies: Any, responds: Any) -> tuple[Any, ...]:
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


class Source:
    """The models after the declaration: the follower's objective, and its gap by an independent solver."""

    def __init__(self, form: Combinatorial, linked: Linked):
        self.form, self.linked = form, linked

    def publish(self, values: Mapping[Any, np.ndarray | None]) -> None:
        """Nothing: OR-Tools' variables hold no values."""

    def _at(self, inputs: Mapping[Any, np.ndarray], values: Any) -> tuple[Any, np.ndarray, np.ndarray]:
        from bigrad.affine import flatten

        nested = self.form.at([flatten(np.asarray(v, dtype=float), np.ndim(v)) for v in inputs.values()])
        return nested, values.w[: nested.leaders], values.w[nested.leaders :]

    def lower_value(self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]) -> float:
        """The follower's objective in its own sense; NaN with one level."""
        if self.linked.follower is None:
            return np.nan
        nested, x, y = self._at(inputs, values)
        return self.linked.follower.sense * nested.follower(x, y)

    def follower_gap(self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]) -> float:
        """The follower's objective minus its optimum at x, in the minimised sense; Inf where none is found."""
        if self.linked.follower is None:
            return 0.0
        nested, x, y = self._at(inputs, values)
        costs = nested.follower.on_follower(x)
        found = self._best(nested, costs, x)
        return np.inf if found is None else float(costs @ (y - found))

    def _best(self, nested: Nested, costs: np.ndarray, x: np.ndarray) -> np.ndarray | None:
        """The follower's answer by another solver: scipy's for rows, CP-SAT with all that it has learned forgotten for other
        constraints, the oracle itself for an oracle."""
        n, form = nested.leaders, self.form
        if form.follower is not None:
            return np.asarray(form.follower.solve((form.follower.sense * costs)[None])[0])
        if form.models is not None:
            full = np.concatenate([np.zeros(n), costs])
            w, status = form.models.build(False, True).solve(full, held=dict(enumerate(x.tolist())))
            return w[n:] if status.ok else None
        return best(nested, False, x)

    def infeasible(self, inputs: Mapping[Any, np.ndarray]) -> int | None:
        """Not asked: there is one follower."""
        return None
