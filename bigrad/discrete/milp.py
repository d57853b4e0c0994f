"""A minimal driver of HiGHS for mixed-integer linear programs that are solved again and again with other numbers.

    min c'v   subject to   lower <= A v <= upper,  low <= v <= high,  v_k integer where `integer`

The matrix stays; costs, bounds of rows and bounds of variables change from solve to solve, and every linear program
starts from the last basis. HiGHS's own search costs some ten milliseconds even where there is nothing to search, so that
a small program is branched here, depth first, and given to HiGHS's search after SMALL nodes.
Huangfu and Hall, "Parallelizing the dual revised simplex method", 2018.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import scipy.sparse as sp

INTEGRALITY = 1e-6
"""How far from an integer an integer variable may be."""
FLAT = 1e-9
"""Two values this close, relatively, are the same."""
SMALL = 60
"""Nodes after which HiGHS's own search takes over."""


class End(Enum):
    """How a solve ended."""

    OPTIMAL = "optimal"
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    LATE = "late"
    BROKEN = "broken"


@dataclass(frozen=True, eq=False)
class Optimum:
    """The end of a solve, its value and its point with integers rounded; NaN and None where there is none."""

    end: End
    value: float
    v: np.ndarray | None


class Milp:
    """One program, kept in HiGHS. Not for several threads at once."""

    def __init__(
        self,
        costs: np.ndarray,
        matrix: sp.csr_array,
        lower: np.ndarray,
        upper: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        integer: np.ndarray,
        seed: int = 0,
    ):
        import highspy

        self.integer = np.asarray(integer, dtype=bool)
        self.size, self.rows = len(low), len(lower)
        self._highs = highs = highspy.Highs()
        for name, value in {
            "output_flag": False,
            "threads": 1,
            "random_seed": seed,
            "simplex_strategy": 0,  # primal where the last basis stays feasible, else dual
            "mip_rel_gap": 0.0,
            "mip_abs_gap": 1e-9,
            "primal_feasibility_tolerance": 1e-9,
            "dual_feasibility_tolerance": 1e-9,
            "mip_feasibility_tolerance": 1e-9,
            "mip_heuristic_run_feasibility_jump": False,
            "mip_heuristic_run_root_reduced_cost": False,
            "mip_heuristic_run_rins": False,
            "mip_heuristic_run_rens": False,
        }.items():
            highs.setOptionValue(name, value)
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = self.size, self.rows
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = costs.astype(float), low.astype(float), high.astype(float)
        lp.row_lower_, lp.row_upper_ = lower.astype(float), upper.astype(float)
        matrix = sp.csr_array(matrix)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_, lp.a_matrix_.index_ = matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32)
        lp.a_matrix_.value_ = matrix.data.astype(float)
        self.accepted = highs.passModel(lp) != highspy.HighsStatus.kError
        self._all = np.arange(max(self.size, self.rows), dtype=np.int32)
        self._low, self._high = low.astype(float), high.astype(float)
        self._whole = np.flatnonzero(self.integer).astype(np.int32)

    def costs(self, costs: np.ndarray) -> None:
        """Other costs, (variables,)."""
        self._highs.changeColsCost(self.size, self._all[: self.size], costs.astype(float))

    def row_bounds(self, lower: np.ndarray, upper: np.ndarray) -> None:
        """Other bounds of all rows, (rows,) each."""
        if self.rows:
            self._highs.changeRowsBounds(self.rows, self._all[: self.rows], lower.astype(float), upper.astype(float))

    def solve(self, seconds: float = np.inf, beyond: Callable[[float], Optimum] | None = None) -> Optimum:
        """Solve it as it stands. beyond: what searches, for so many seconds, where the relaxation is not integral."""
        if not self.accepted:
            return Optimum(End.BROKEN, np.nan, None)
        end = time.perf_counter() + seconds
        if not len(self._whole):
            return self._run(end)
        found = self._branch(end, SMALL if beyond is None else 1)
        if found is None and beyond is not None:
            return beyond(end - time.perf_counter())
        found = found or self._search(end)
        if found.end in (End.UNBOUNDED, End.BROKEN):  # a ray of the relaxation is the program's if that has a point
            costs = np.array(self._highs.getLp().col_cost_)
            self.costs(np.zeros(self.size))
            point = self._branch(end, SMALL) or self._search(end)
            self.costs(costs)
            end_ = found.end if point.end is End.OPTIMAL else point.end
            found = Optimum(end_, np.nan, None)
        return found

    def search(self, seconds: float = np.inf) -> tuple[Optimum, float]:
        """Solve it by HiGHS's own search; LATE may come with a point. Also the proven bound, -inf where there is none."""
        found = self._search(time.perf_counter() + seconds)
        info = self._highs.getInfo()
        if found.end is End.LATE and info.primal_solution_status == 2:  # feasible
            v = np.array(self._highs.getSolution().col_value)
            v[self._whole] = np.round(v[self._whole])
            found = Optimum(End.LATE, float(info.objective_function_value), v)
        bound = float(info.mip_dual_bound) if len(self._whole) else found.value
        return found, bound if found.v is not None and np.isfinite(bound) else -np.inf

    def _run(self, until: float) -> Optimum:
        """Solve the model that HiGHS holds."""
        highs = self._highs
        left = until - time.perf_counter()
        if left <= 0:
            return Optimum(End.LATE, np.nan, None)
        if np.isfinite(left):
            highs.setOptionValue("time_limit", highs.getRunTime() + left)  # its clock runs on
        highs.run()
        end = self._end()
        if end is End.BROKEN:  # not told apart by presolve, or lost from a stale basis
            highs.clearSolver()
            highs.setOptionValue("presolve", "off")
            highs.run()
            highs.setOptionValue("presolve", "choose")
            end = self._end()
        if end is not End.OPTIMAL:
            return Optimum(end, np.nan, None)
        v = np.array(highs.getSolution().col_value)
        return Optimum(end, float(highs.getInfo().objective_function_value), v)

    def _branch(self, until: float, most: int) -> Optimum | None:
        """Depth first on the most fractional variable; None if that takes more than `most` nodes."""
        highs, whole = self._highs, self._whole
        best = Optimum(End.INFEASIBLE, np.nan, None)
        stack, nodes, moved = [(self._low[whole], self._high[whole])], 0, False
        try:
            while stack:
                low, high = stack.pop()
                nodes += 1
                if nodes > most:
                    return None
                if nodes > 1:  # the root has the model's own
                    moved = True
                    highs.changeColsBounds(len(whole), whole, low, high)
                found = self._run(until)
                if found.end is End.INFEASIBLE:
                    continue
                if found.end is not End.OPTIMAL or found.v is None:
                    return None if found.end is End.BROKEN else found
                if best.v is not None and found.value >= best.value - FLAT * (1 + abs(best.value)):
                    continue
                z = found.v[whole]
                off = abs(z - np.round(z))
                k = int(off.argmax())
                if off[k] <= INTEGRALITY:
                    if off[k] > 0:
                        moved = True
                        found = self._rounded(found, until)
                    if found.v is not None:
                        best = found
                    continue
                down, up = (low, high.copy()), (low.copy(), high)
                down[1][k], up[0][k] = np.floor(z[k]), np.ceil(z[k])
                stack.extend([up, down] if z[k] - np.floor(z[k]) < 0.5 else [down, up])
        finally:
            if moved:
                highs.changeColsBounds(len(whole), whole, self._low[whole], self._high[whole])
        return best

    def _rounded(self, found: Optimum, until: float) -> Optimum:
        """The best point with the integers where they nearly are; the given one, rounded, where that has none."""
        assert found.v is not None
        whole, v = self._whole, found.v
        v[whole] = np.round(v[whole])
        if self.integer.all():
            return found
        self._highs.changeColsBounds(len(whole), whole, v[whole], v[whole])
        again = self._run(until)
        if again.v is None:
            return Optimum(found.end, found.value, v)
        again.v[whole] = v[whole]
        return again

    def _search(self, until: float) -> Optimum:
        """HiGHS's own search."""
        import highspy

        highs, whole, kinds = self._highs, self._whole, highspy.HighsVarType
        if not len(whole):
            return self._run(until)
        highs.changeColsIntegrality(len(whole), whole, np.full(len(whole), int(kinds.kInteger), dtype=np.uint8))
        try:
            found = self._run(until)
        finally:
            highs.changeColsIntegrality(len(whole), whole, np.full(len(whole), int(kinds.kContinuous), dtype=np.uint8))
        if found.v is not None:
            found.v[whole] = np.round(found.v[whole])
        return found

    def _end(self) -> End:
        import highspy

        known: dict[Any, End] = {
            highspy.HighsModelStatus.kOptimal: End.OPTIMAL,
            highspy.HighsModelStatus.kModelEmpty: End.OPTIMAL,
            highspy.HighsModelStatus.kInfeasible: End.INFEASIBLE,
            highspy.HighsModelStatus.kUnbounded: End.UNBOUNDED,
            highspy.HighsModelStatus.kTimeLimit: End.LATE,
        }
        return known.get(self._highs.getModelStatus(), End.BROKEN)
