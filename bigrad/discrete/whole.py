"""A program of bounded whole numbers, solved by CP-SAT many times with other costs and other right sides.

CP-SAT takes whole costs only: real ones are scaled by a power of two, so that the largest objective is below 2^45, and rounded.
An optimum is then one up to `rounding` = sum over the variables of |v|max / (2 scale).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from bigrad.discrete.nested import Rows
from bigrad.solution import Status

ROOM = 2.0**45
"""The largest objective, and the largest finite bound of a row, in CP-SAT's whole numbers."""
WHOLE = 1e-9
"""A coefficient this close to a whole number is one."""


@dataclass(frozen=True, eq=False)
class Whole:
    """A CP-SAT model whose objective and first rows change; for one thread at a time.

    reach: (variables,), the largest absolute value of each.
    """

    model: Any
    reach: np.ndarray

    def solve(
        self,
        costs: np.ndarray,
        bounds: tuple[np.ndarray, np.ndarray] | None = None,
        time_limit: float = np.inf,
        held: dict[int, float] | None = None,
    ) -> tuple[np.ndarray, Status]:
        """Minimise costs (variables,); bounds: lower and upper ends of the first constraints. held: variables and their
        values."""
        from ortools.sat.python import cp_model

        proto = self.model.proto
        if bounds is not None:
            for constraint, low, high in zip(proto.constraints, *bounds, strict=False):
                constraint.linear.domain.clear()
                constraint.linear.domain.extend(_domain(low, high))
        for place, value in (held or {}).items():
            domain = proto.variables[place].domain
            domain.clear()
            domain.extend([round(value)] * 2)
        scaled = np.rint(costs * scale(costs, self.reach)).astype(int)
        used = np.flatnonzero(scaled)
        proto.objective.vars.clear()
        proto.objective.vars.extend(used.tolist())
        proto.objective.coeffs.clear()
        proto.objective.coeffs.extend(scaled[used].tolist())
        solver = cp_model.CpSolver()
        solver.parameters.num_workers, solver.parameters.random_seed = 1, 0
        solver.parameters.max_time_in_seconds = min(time_limit, 1e9)
        status = {
            cp_model.OPTIMAL: Status.GLOBAL,
            cp_model.INFEASIBLE: Status.INFEASIBLE_UPPER,
            cp_model.FEASIBLE: Status.TIME_LIMIT,
            cp_model.UNKNOWN: Status.TIME_LIMIT,
        }.get(solver.solve(self.model), Status.FAILED)
        if status is not Status.GLOBAL:
            return np.full(len(costs), np.nan), status
        return np.array(list(solver.response_proto.solution)[: len(costs)], dtype=float), status


def scale(costs: np.ndarray, reach: np.ndarray) -> float:
    """The power of two by which real costs become whole ones: 1 if they are whole already."""
    if (costs == np.rint(costs)).all():
        return 1.0
    largest = float(abs(costs) @ reach)
    return 2.0 ** np.floor(np.log2(ROOM / largest)) if largest > 0 else 1.0


def rounding(costs: np.ndarray, reach: np.ndarray) -> float:
    """By how much the rounding of costs may mislead an optimum, in their own units."""
    if (costs == np.rint(costs)).all():
        return 0.0
    return float(reach.sum()) / (2 * scale(costs, reach))


def shifted(rows: Rows, shift: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
    """The rows' ends where something already contributes `shift` to them."""
    return None if shift is None else (rows.lower - shift, rows.upper - shift)


def build(lower: np.ndarray, upper: np.ndarray, rows: Rows) -> Whole | None:
    """The program as a CP-SAT model; None where its bounds are infinite, a coefficient is not whole, or OR-Tools is not
    installed."""
    entries = rows.matrix.data
    fine = np.isfinite(lower).all() and np.isfinite(upper).all() and (abs(entries - np.rint(entries)) <= WHOLE).all()
    if not fine:
        return None
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        return None
    model = cp_model.CpModel()
    ends = zip(np.ceil(lower).astype(int).tolist(), np.floor(upper).astype(int).tolist(), strict=True)
    for low, high in ends:
        model.new_int_var(low, high, "")
    append(model, rows)
    return Whole(model, np.maximum(abs(lower), abs(upper)))


def append(model: Any, rows: Rows) -> None:
    """Adds rows on the first variables of a CP-SAT model; their coefficients are whole numbers."""
    from ortools.sat.python import cp_model

    matrix = sp.csr_array(rows.matrix)
    variables = [model.get_int_var_from_proto_index(k) for k in range(matrix.shape[1])]
    for k in range(matrix.shape[0]):
        part = slice(matrix.indptr[k], matrix.indptr[k + 1])
        own = [variables[j] for j in matrix.indices[part].tolist()]
        form = cp_model.LinearExpr.weighted_sum(own, np.rint(matrix.data[part]).astype(int).tolist())
        model.add_linear_constraint(form, *_domain(rows.lower[k], rows.upper[k]))


def _domain(lower: float, upper: float) -> tuple[int, int]:
    """A row's ends as whole numbers; CP-SAT wants the lower one first."""
    return int(np.ceil(np.clip(lower, -ROOM, ROOM) - 1e-7)), int(np.floor(np.clip(upper, -ROOM, ROOM) + 1e-7))
