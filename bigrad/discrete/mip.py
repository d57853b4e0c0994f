"""One mixed-integer linear program, solved for a whole batch of other costs and other right sides.

HiGHS starts from its last basis, so that a network program, whose relaxation is integral, costs a few pivots; where branching
on a few nodes does not settle it, CP-SAT takes over if all is bounded and whole numbers, else HiGHS's own search. Threads share
the work of a batch: the engines release the interpreter's lock.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bigrad.discrete import whole
from bigrad.discrete.milp import End, Milp, Optimum
from bigrad.discrete.nested import Rows
from bigrad.parallel import thread_map
from bigrad.solution import Status

FEW = 8
"""Programs that a thread of its own is worth."""


class Answers(NamedTuple):
    """values: (batch, variables), NaN where there are none. status: GLOBAL, INFEASIBLE_UPPER, UNBOUNDED_UPPER, TIME_LIMIT or
    FAILED for each. rounding: (batch,), see `bigrad.discrete.whole.rounding`; 0 where costs were not rounded."""

    values: np.ndarray
    status: np.ndarray
    rounding: np.ndarray

    @staticmethod
    def of(found: Sequence[tuple[np.ndarray, Status, float]], size: int) -> Answers:
        """One row an answer; size: variables."""
        values = np.array([v for v, _, _ in found]).reshape(len(found), size)
        return Answers(values, np.array([s for _, s, _ in found], dtype=object), np.array([r for _, _, r in found]))


@dataclass(frozen=True, eq=False)
class Mip:
    """min c'v subject to rows on v, lower <= v <= upper, some of v integer; c and the rows' bounds are given later.

    lower, upper, integer: (variables,). Safe to share between threads; answers are those of a fixed seed and one worker.
    """

    lower: np.ndarray
    upper: np.ndarray
    integer: np.ndarray
    rows: Rows
    _idle: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue, repr=False)

    def solve(self, costs: np.ndarray, shift: np.ndarray | None = None, time_limit: float = np.inf) -> Answers:
        """Solve a batch. costs: (batch, variables). shift: (batch, rows), what other players' decisions already contribute
        to each row. time_limit: seconds an item."""

        def part(items: np.ndarray) -> Answers:
            engine = self._engine()
            try:
                found = [engine.solve(costs[i], None if shift is None else shift[i], time_limit) for i in items]
            finally:
                self._idle.put(engine)
            return Answers.of(found, costs.shape[1])

        parts = thread_map(part, len(costs), FEW)
        return Answers(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _engine(self) -> _Engine:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return _Engine(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Mip, (self.lower, self.upper, self.integer, self.rows)


ENDS = {
    End.OPTIMAL: Status.GLOBAL,
    End.INFEASIBLE: Status.INFEASIBLE_UPPER,
    End.UNBOUNDED: Status.UNBOUNDED_UPPER,
    End.LATE: Status.TIME_LIMIT,
    End.BROKEN: Status.FAILED,
}


class _Engine:
    """One thread's HiGHS, and CP-SAT beyond it."""

    def __init__(self, mip: Mip):
        self.mip, rows = mip, mip.rows
        self.milp = Milp(
            np.zeros(len(mip.lower)), rows.matrix, rows.lower, rows.upper, mip.lower, mip.upper, mip.integer
        )
        self.whole = whole.build(mip.lower, mip.upper, rows) if mip.integer.all() else None

    def solve(self, costs: np.ndarray, shift: np.ndarray | None, time_limit: float) -> tuple[np.ndarray, Status, float]:
        """One program: values, status, and by how much rounded costs may mislead them."""
        rows, rounded = self.mip.rows, 0.0
        self.milp.costs(costs)
        if shift is not None:
            self.milp.row_bounds(rows.lower - shift, rows.upper - shift)

        def beyond(seconds: float) -> Optimum:
            nonlocal rounded
            assert self.whole is not None
            rounded = whole.rounding(costs, self.whole.reach)
            v, status = self.whole.solve(costs, whole.shifted(rows, shift), max(seconds, 0.0))
            end = next(e for e, s in ENDS.items() if s is status)
            return Optimum(end, float(costs @ v), v if status.ok else None)

        found = self.milp.solve(time_limit, beyond if self.whole else None)
        values = np.full(len(costs), np.nan) if found.v is None else found.v + 0.0
        return values, ENDS[found.end], rounded
