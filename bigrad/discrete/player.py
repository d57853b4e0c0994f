"""One player's problem, with the decision of the other held: what both exact solvers and estimators ask again and again."""

from __future__ import annotations

import queue
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from bigrad.discrete.combinatorial import Combinatorial
from bigrad.discrete.mip import FEW, Answers, Mip
from bigrad.discrete.nested import Rows
from bigrad.discrete.whole import rounding
from bigrad.parallel import thread_map
from bigrad.solution import Status


class Player(Protocol):
    """min costs'own subject to the rows of both players in which its own variables stand."""

    def solve(self, costs: np.ndarray, other: np.ndarray, time_limit: float = np.inf) -> Answers:
        """A batch: costs (batch, own variables), other (batch, the other player's decision)."""


@dataclass(frozen=True, eq=False)
class Linear:
    """A player whose constraints are rows; across: what the other's decision contributes to them."""

    mip: Mip
    across: sp.csr_array

    def solve(self, costs: np.ndarray, other: np.ndarray, time_limit: float = np.inf) -> Answers:
        """See Player.solve."""
        return self.mip.solve(costs, (self.across @ other.T).T if self.across.nnz else None, time_limit)


@dataclass(frozen=True, eq=False)
class Budget:
    """A player who may choose any `most` of its booleans: the cheapest ones, of those that cost less than nothing."""

    most: int

    def solve(self, costs: np.ndarray, other: np.ndarray, time_limit: float = np.inf) -> Answers:
        """See Player.solve. Of equal costs the first is taken."""
        found = np.zeros(costs.shape)
        order = np.argsort(costs, axis=1, kind="stable")[:, : self.most]
        np.put_along_axis(found, order, np.take_along_axis(costs, order, 1) < 0, 1)
        return Answers(found, np.full(len(costs), Status.GLOBAL, dtype=object), np.zeros(len(costs)))


@dataclass(frozen=True, eq=False)
class Reasoned:
    """A player whose constraints only CP-SAT can say. own, others: places in (x, y)."""

    models: Any
    leader: bool
    own: slice
    others: slice
    _idle: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue, repr=False)

    def solve(self, costs: np.ndarray, other: np.ndarray, time_limit: float = np.inf) -> Answers:
        """See Player.solve."""
        size = costs.shape[1] + other.shape[1]
        full = np.zeros((len(costs), size))
        full[:, self.own] = costs
        places = np.arange(size)[self.others].tolist()

        def part(items: np.ndarray) -> Answers:
            try:
                engine = self._idle.get_nowait()
            except queue.Empty:
                engine = self.models.build(self.leader, True)
            found = []
            for i in items:
                held = dict(zip(places, other[i].tolist(), strict=True))
                values, status = engine.solve(full[i], None, time_limit, held)
                found.append((values[self.own], status, rounding(full[i], engine.reach)))
            self._idle.put(engine)
            return Answers.of(found, costs.shape[1])

        parts = thread_map(part, len(costs), FEW)
        return Answers(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def player(form: Combinatorial, leader: bool) -> Player:
    """The leader, who sees to the constraints of both, or the follower; kept with the program."""
    key = f"player {leader}"
    if key not in form.memory:
        form.memory[key] = _player(form, leader)
    found: Player = form.memory[key]
    return found


def _player(form: Combinatorial, leader: bool) -> Player:
    base, n = form.base, form.base.leaders
    own, others = (slice(0, n), slice(n, None)) if leader else (slice(n, None), slice(0, n))
    if form.models is not None:
        return Reasoned(form.models, leader, own, others)
    both = (base.leader_rows, base.follower_rows) if leader else (base.follower_rows,)
    matrix = sp.csr_array(sp.vstack([r.matrix for r in both]))
    low, high = (np.concatenate([getattr(r, side) for r in both]) for side in ("lower", "upper"))
    false = (abs(matrix).sum(1) == 0) & ((low > 0) | (high < 0))
    touched = np.flatnonzero((abs(matrix[:, own]).sum(1) > 0) | false)
    rows = Rows(sp.csr_array(matrix[touched][:, own]), low[touched], high[touched])
    across = sp.csr_array(matrix[touched][:, others])
    if not across.nnz and (most := _at_most(base.lower[own], base.upper[own], base.integer[own], rows)) is not None:
        return Budget(most)
    return Linear(Mip(base.lower[own], base.upper[own], base.integer[own], rows), across)


def _at_most(lower: np.ndarray, upper: np.ndarray, integer: np.ndarray, rows: Rows) -> int | None:
    """k where any k of the booleans may be chosen and no other rule holds; else None."""
    if not (integer & (lower == 0) & (upper == 1)).all() or len(rows.lower) > 1:
        return None
    if not len(rows.lower):
        return len(integer)
    weight = rows.matrix.toarray()[0]
    if not (weight[0] > 0 and (weight == weight[0]).all() and rows.lower[0] <= 0 <= rows.upper[0]):
        return None
    return int(min(rows.upper[0] / weight[0] + 1e-9, len(weight)))
