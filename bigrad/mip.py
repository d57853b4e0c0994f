"""One mixed-integer linear program, solved many times with other costs and other right sides.

HiGHS keeps the basis of its last linear relaxation, so a network program, whose relaxation is integral, costs a few pivots;
only where the relaxation is fractional is the integer program solved, by CP-SAT where all is bounded and whole numbers,
else by HiGHS. Threads share the work of a batch: the engines release the interpreter's lock.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bigrad import whole
from bigrad.nested import Rows
from bigrad.parallel import thread_map
from bigrad.solution import Status

WHOLE = 1e-7
"""An integer variable this close to a whole number is one."""
FEW = 8
"""Programs that a thread of its own is worth."""


class Answers(NamedTuple):
    """values: (batch, variables), NaN where there are none. status: GLOBAL, INFEASIBLE_UPPER, UNBOUNDED_UPPER, TIME_LIMIT or
    FAILED for each. rounding: (batch,), see `bigrad.whole.rounding`; 0 where costs were not rounded."""

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


class _Engine:
    """One thread's HiGHS."""

    def __init__(self, mip: Mip):
        import highspy

        self.mip, self.highs = mip, highspy.Highs()
        for name, value in (("output_flag", False), ("threads", 1), ("random_seed", 0), ("mip_rel_gap", 0.0)):
            self.highs.setOptionValue(name, value)
        lp, matrix = highspy.HighsLp(), mip.rows.matrix.tocsr()
        lp.num_col_, lp.num_row_ = matrix.shape[1], matrix.shape[0]
        lp.col_cost_ = np.zeros(matrix.shape[1])
        lp.col_lower_, lp.col_upper_ = mip.lower, mip.upper
        lp.row_lower_, lp.row_upper_ = mip.rows.lower, mip.rows.upper
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
        self.columns = np.arange(matrix.shape[1], dtype=np.int32)
        self.row_places = np.arange(matrix.shape[0], dtype=np.int32)
        self.kinds = mip.integer.astype(np.uint8)
        self.ends = highspy.HighsModelStatus
        self.highs.passModel(lp)
        self.whole = whole.build(mip.lower, mip.upper, mip.rows) if mip.integer.all() else None

    def solve(self, costs: np.ndarray, shift: np.ndarray | None, time_limit: float) -> tuple[np.ndarray, Status, float]:
        """One program: its relaxation, and itself where that is not integral; by how much rounded costs may mislead it."""
        mip, highs = self.mip, self.highs
        highs.changeColsCost(len(costs), self.columns, costs)
        if shift is not None and len(shift):
            highs.changeRowsBounds(len(shift), self.row_places, mip.rows.lower - shift, mip.rows.upper - shift)
        highs.setOptionValue("time_limit", highs.getRunTime() + time_limit)  # its clock runs on from solve to solve
        values, status = self._run(relaxed=True)
        highs.setOptionValue("simplex_strategy", 4 if shift is None else 0)  # the last basis stays primal feasible
        if status is not Status.GLOBAL and status is not Status.UNBOUNDED_UPPER:
            return values, status, 0.0
        nearest = np.rint(values[mip.integer])
        if status is Status.GLOBAL and (abs(values[mip.integer] - nearest) <= WHOLE).all():
            return (values if (values[mip.integer] == nearest).all() else self._exact(values)), status, 0.0
        if self.whole is not None:
            values, status = self.whole.solve(costs, whole.shifted(mip.rows, shift), time_limit)
            return values, status, whole.rounding(costs, self.whole.reach)
        values, status = self._run(relaxed=False)
        return (self._exact(values) if status.ok else values), status, 0.0

    def _exact(self, values: np.ndarray) -> np.ndarray:
        """The answer with its integers whole, and the continuous variables solved for once more with these held."""
        mip, highs = self.mip, self.highs
        places = self.columns[mip.integer]
        values[mip.integer] = held = np.rint(values[mip.integer])
        if mip.integer.all():
            return values
        highs.changeColsBounds(len(places), places, held, held)
        again, status = self._run(relaxed=True)
        highs.changeColsBounds(len(places), places, mip.lower[mip.integer], mip.upper[mip.integer])
        again[mip.integer] = held
        return again if status.ok else values

    def _run(self, relaxed: bool) -> tuple[np.ndarray, Status]:
        highs, ends = self.highs, self.ends
        if not relaxed:
            highs.changeColsIntegrality(len(self.columns), self.columns, self.kinds)
        highs.run()
        end = highs.getModelStatus()
        if end not in (ends.kOptimal, ends.kInfeasible, ends.kTimeLimit):
            # presolve's word for unbounded or infeasible, or a warm start that went astray: afresh, by the dual simplex method
            highs.clearSolver()
            highs.setOptionValue("presolve", "off")
            highs.setOptionValue("simplex_strategy", 1)
            highs.run()
            highs.setOptionValue("presolve", "choose")
            highs.setOptionValue("simplex_strategy", 0)
            end = highs.getModelStatus()
        status = {
            ends.kOptimal: Status.GLOBAL,
            ends.kInfeasible: Status.INFEASIBLE_UPPER,
            ends.kUnbounded: Status.UNBOUNDED_UPPER,
            ends.kTimeLimit: Status.TIME_LIMIT,
        }.get(end, Status.FAILED)
        found = (
            np.array(highs.getSolution().col_value) if status is Status.GLOBAL else np.full(len(self.columns), np.nan)
        )
        if not relaxed:
            highs.changeColsIntegrality(len(self.columns), self.columns, np.zeros_like(self.kinds))
        return found, status
