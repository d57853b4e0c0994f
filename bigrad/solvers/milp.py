"""A minimal driver of HiGHS for mixed-integer linear programs that are solved again and again with other numbers.

    min c'v   subject to   lower <= A v <= upper,  low <= v <= high,  v_k integer where `integer`

The matrix stays; costs, bounds of rows and bounds of variables change from solve to solve, and a program without integers
starts from its last basis. Huangfu and Hall, "Parallelizing the dual revised simplex method", 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import scipy.sparse as sp

INTEGRALITY = 1e-6
"""How far from an integer an integer variable may be."""


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
            "mip_rel_gap": 0.0,
            "mip_abs_gap": 1e-9,
            "primal_feasibility_tolerance": 1e-9,
            "dual_feasibility_tolerance": 1e-9,
            "mip_feasibility_tolerance": 1e-9,
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
        if self.integer.any():
            kinds = highspy.HighsVarType
            lp.integrality_ = [kinds.kInteger if whole else kinds.kContinuous for whole in self.integer]
        self.accepted = highs.passModel(lp) != highspy.HighsStatus.kError
        self._all = np.arange(max(self.size, self.rows), dtype=np.int32)

    def costs(self, costs: np.ndarray) -> None:
        """Other costs, (variables,)."""
        self._highs.changeColsCost(self.size, self._all[: self.size], costs.astype(float))

    def row_bounds(self, lower: np.ndarray, upper: np.ndarray) -> None:
        """Other bounds of all rows, (rows,) each."""
        if self.rows:
            self._highs.changeRowsBounds(self.rows, self._all[: self.rows], lower.astype(float), upper.astype(float))

    def column_bounds(self, low: np.ndarray, high: np.ndarray) -> None:
        """Other bounds of all variables, (variables,) each."""
        self._highs.changeColsBounds(self.size, self._all[: self.size], low.astype(float), high.astype(float))

    def solve(self, seconds: float = np.inf) -> Optimum:
        """Solve it as it stands."""
        highs, nothing = self._highs, Optimum(End.BROKEN, np.nan, None)
        if not self.accepted:
            return nothing
        highs.setOptionValue("time_limit", highs.getRunTime() + max(seconds, 1e-3))  # its clock runs on
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
        v[self.integer] = np.round(v[self.integer])
        return Optimum(end, float(highs.getInfo().objective_function_value), v)

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
