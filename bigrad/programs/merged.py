"""The constraints of two levels in one CP-SAT model over (x, y), whatever kinds of constraints they are.

A level that CP-SAT declared brings its constraints as they are, with the places of its variables changed to those in (x,
y); any other brings its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from google.protobuf import text_format
from ortools.sat import cp_model_pb2
from ortools.sat.python import cp_model

from bigrad.discrete.nested import Nested, Rows
from bigrad.discrete.whole import Whole, append
from bigrad.programs.linked import Linked
from bigrad.solution import DeclarationError

VARIABLES = {"vars", "literals", "enforcement_literal", "active_literals", "f_direct", "f_inverse"}
INTERVALS = {"intervals", "x_intervals", "y_intervals"}


@dataclass(frozen=True, eq=False)
class Models:
    """The levels' constraints as text that pickles: `leader` and `follower` hold CP-SAT's or are empty, where the rows of
    `base` say it all. domains: (variables,), the values that each may take. links: the leader's variables that stand in the
    follower's constraints.
    """

    base: Nested
    leader: str
    follower: str
    domains: tuple[tuple[int, ...], ...]
    links: tuple[int, ...]

    def build(self, leader: bool, follower: bool) -> Whole:
        """A solver over (x, y) with the constraints of the leader, of the follower, or of both."""
        model = cp_model.CpModel()
        for domain in self.domains:
            model.new_int_var_from_domain(cp_model.Domain.from_flat_intervals(list(domain)), "")
        for wanted, text, rows in (
            (leader, self.leader, self.base.leader_rows),
            (follower, self.follower, self.base.follower_rows),
        ):
            if wanted:
                append(model, rows)
                model.proto.merge_text_format(_renumbered(text, len(model.proto.constraints)))
        return Whole(model, np.array([max(abs(d[0]), abs(d[-1])) for d in self.domains], dtype=float))


def merge(linked: Linked, base: Nested) -> tuple[Models, Nested]:
    """Both levels' constraints, and the program with the rows that CP-SAT's constraints do not repeat. Raises
    DeclarationError for variables that CP-SAT does not take."""
    if not base.integer.all() or not np.isfinite([base.lower, base.upper]).all():
        names = ", ".join([*linked.leader.rest, *(linked.follower.rest if linked.follower else ())])
        raise DeclarationError(
            f"CP-SAT's {names} needs every variable of both models integer and bounded; make them so."
        )
    domains = [cp_model.Domain(int(np.ceil(a)), int(np.floor(b))) for a, b in zip(base.lower, base.upper, strict=True)]
    texts, rows = ["", ""], [base.leader_rows, base.follower_rows]
    links = set(np.flatnonzero(abs(base.follower_rows.matrix[:, : base.leaders]).sum(0)).tolist())
    for k, (level, at) in enumerate(((linked.leader, linked.leader_at), (linked.follower, linked.follower_at))):
        if level is None or not level.rest:
            continue
        proto = text_format.Parse(str(level.variables.model.proto), cp_model_pb2.CpModelProto())
        for variable, place in zip(proto.variables, at.tolist(), strict=True):
            own = cp_model.Domain.from_flat_intervals(list(variable.domain))
            domains[place] = domains[place].intersection_with(own)
        constraints = cp_model_pb2.CpModelProto(constraints=proto.constraints)
        seen: set[int] = set()
        _renumber(constraints, VARIABLES, _Places(at, seen))
        texts[k], own_rows = str(constraints), len(level.rows.lower)
        rows[k] = Rows(rows[k].matrix[own_rows:], rows[k].lower[own_rows:], rows[k].upper[own_rows:])
        links |= {place for place in seen if place < base.leaders} if k else set()
    base = replace(base, leader_rows=rows[0], follower_rows=rows[1])
    flat = tuple(tuple(d.flattened_intervals()) for d in domains)
    return Models(base, texts[0], texts[1], flat, tuple(sorted(links))), base


@dataclass(frozen=True, eq=False)
class _Places:
    """From a model's variables, negated ones too, to places in (x, y), which are noted in `seen`."""

    at: np.ndarray
    seen: set[int]

    def __call__(self, v: int) -> int:
        place = int(self.at[v if v >= 0 else -v - 1])
        self.seen.add(place)
        return place if v >= 0 else -place - 1


def _renumbered(text: str, before: int) -> str:
    """Constraints that stand behind `before` others: intervals are named by the place of their constraint."""
    proto = text_format.Parse(text, cp_model_pb2.CpModelProto())
    _renumber(proto, INTERVALS, lambda k: k + before)
    return str(proto)


def _renumber(message: Any, fields: set[str], change: Callable[[int], int]) -> None:
    """Changes the numbers in some fields of a message and of all within it."""
    for field, value in message.ListFields():
        if field.name in fields:
            changed = [change(int(v)) for v in value]
            message.ClearField(field.name)
            getattr(message, field.name).extend(changed)
        elif field.message_type is not None:
            for part in value if field.is_repeated else [value]:
                _renumber(part, fields, change)
