"""A minimal driver of Uno (package `unopy`), a solver for smooth nonconvex programs with exact sparse derivatives.

Vanaret and Leyffer, "Unifying nonlinearly constrained nonconvex optimization", 2024. Here: the filterSQP preset (a
trust-region SQP method with a filter, quadratic subproblems by BQPD), which starts warm and ends on an active set.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import unopy

SUCCESS, STALLED, LIMIT, TIME = "success", "stalled", "iterations", "time"
UNBOUNDED, INFEASIBLE, BROKEN = "unbounded", "infeasible", "broken"
OPTIONS = {
    "logger": "SILENT",
    "print_solution": False,
    "unbounded_objective_threshold": -1e12,
}
INFINITE = 1e9
"""An optimum with a larger variable counts as unbounded: Uno takes it for one when the numbers outgrow its tests."""


@dataclass(frozen=True, eq=False)
class Nlp:
    """min objective(x) with low <= x <= high and row_low <= rows(x) <= row_high, all derivatives given.

    jacobian and hessian return entries at the places `jacobian_at` and `hessian_at` = (rows, columns), each once, of
    the second the lower triangle; hessian(x, factor, multipliers) is that of factor * objective + multipliers'rows.
    """

    low: np.ndarray
    high: np.ndarray
    row_low: np.ndarray
    row_high: np.ndarray
    objective: Callable[[np.ndarray], float]
    gradient: Callable[[np.ndarray], np.ndarray]
    rows: Callable[[np.ndarray], np.ndarray]
    jacobian: Callable[[np.ndarray], np.ndarray]
    hessian: Callable[[np.ndarray, float, np.ndarray], np.ndarray]
    jacobian_at: tuple[np.ndarray, np.ndarray]
    hessian_at: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Optimum:
    """Where Uno ended; STALLED is a feasible point whose multipliers are not right.

    At an optimum, gradient + Jacobian'multipliers + bounds == 0; multipliers of active upper limits are positive.
    """

    status: str
    x: np.ndarray
    value: float
    multipliers: np.ndarray
    bounds: np.ndarray
    iterations: int


def minimise(
    nlp: Nlp,
    start: np.ndarray,
    multipliers: np.ndarray | None = None,
    *,
    max_iterations: int = 500,
    time_limit: float = np.inf,
    tolerance: float = 1e-9,
) -> Optimum:
    """Run Uno from a point, silently. Never raises: what goes wrong is in the status."""
    model = unopy.Model(unopy.PROBLEM_NONLINEAR, len(start), nlp.low, nlp.high, unopy.ZERO_BASED_INDEXING)
    model.set_objective(unopy.MINIMIZE, nlp.objective, _into(nlp.gradient))
    if len(nlp.row_low):
        rows, columns = nlp.jacobian_at
        model.set_constraints(
            len(nlp.row_low), _into(nlp.rows), nlp.row_low, nlp.row_high, len(rows), rows, columns, _into(nlp.jacobian)
        )
    rows, columns = nlp.hessian_at
    model.set_lagrangian_hessian(len(rows), unopy.LOWER_TRIANGLE, rows, columns, _into(nlp.hessian))
    model.set_lagrangian_sign_convention(unopy.MULTIPLIER_POSITIVE)
    model.set_initial_primal_iterate(np.clip(start, nlp.low, nlp.high))
    if multipliers is not None:
        model.set_initial_dual_iterate(multipliers)
    solver = unopy.UnoSolver()
    solver.set_preset("filtersqp")
    for name, value in OPTIONS.items():
        solver.set_option(name, value)
    solver.set_option("max_iterations", max_iterations)
    solver.set_option("primal_tolerance", tolerance)
    solver.set_option("dual_tolerance", tolerance)
    if np.isfinite(time_limit):
        solver.set_option("time_limit", max(time_limit, 1e-3))
    try:
        with _muffled:
            result = solver.optimize(model)
    except (RuntimeError, ValueError, ArithmeticError):
        nothing = np.full(len(start), np.nan)
        return Optimum(BROKEN, nothing, np.nan, np.full(len(nlp.row_low), np.nan), nothing, 0)
    x = np.array(result.primal_solution, dtype=float)
    return Optimum(
        status=_status(result, x),
        x=x,
        value=float(result.solution_objective),
        multipliers=np.array(result.constraint_dual_solution, dtype=float),
        bounds=np.array(result.lower_bound_dual_solution, dtype=float)
        + np.array(result.upper_bound_dual_solution, dtype=float),
        iterations=int(result.number_iterations),
    )


class _Muffled:
    """Keeps from stderr the two lines that BQPD prints, whatever the options, whenever it enlarges its workspace.

    Its Fortran runtime, a private copy in unopy's wheel, must be told to flush, else they come out later. Whatever other
    threads write meanwhile follows a millisecond late. One solve at a time: Uno holds the interpreter lock anyway.
    """

    noise = (b"insufficient space available for profile", b"mxws,qrow,len_")

    def __init__(self) -> None:
        self.lock = threading.Lock()

    @cached_property
    def sink(self) -> int:
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())

    @cached_property
    def flush(self) -> Callable[[None], Any]:
        for path in (Path(unopy.__file__).parent.parent / "unopy.libs").glob("libgfortran*"):
            for name in (path.name, str(path)):  # by name alone where another package has loaded its own copy of it
                with contextlib.suppress(OSError, AttributeError):
                    return ctypes.CDLL(name)._gfortran_flush_i4
        return lambda _: None

    def __enter__(self) -> None:
        self.lock.acquire()
        try:
            self.stderr = os.dup(2)
            os.dup2(self.sink, 2)
        except OSError:  # there is no stderr
            self.stderr = -1

    def __exit__(self, *error: object) -> None:
        if self.stderr >= 0:
            self.flush(None)
            os.dup2(self.stderr, 2)
            os.close(self.stderr)
            if size := os.lseek(self.sink, 0, os.SEEK_CUR):
                os.lseek(self.sink, 0, os.SEEK_SET)
                lines = os.read(self.sink, size).splitlines(keepends=True)
                os.lseek(self.sink, 0, os.SEEK_SET)
                os.ftruncate(self.sink, 0)
                os.write(2, b"".join(line for line in lines if not any(noise in line for noise in self.noise)))
        self.lock.release()


_muffled = _Muffled()


def _into(function: Callable[..., np.ndarray]) -> Callable[..., None]:
    """The function, writing its result into its last argument. NaN would send BQPD into an endless loop: it raises."""

    def write(*arguments: Any) -> None:
        result = function(*arguments[:-1])
        if not np.isfinite(result.sum()):
            raise FloatingPointError("derivative is not finite")
        arguments[-1][:] = result

    return write


def _status(result: Any, x: np.ndarray) -> str:
    ending, point = str(result.optimization_status).rpartition(".")[2], str(result.solution_status).rpartition(".")[2]
    if ending == "ITERATION_LIMIT":
        return LIMIT
    if ending == "TIME_LIMIT":
        return TIME
    if point in ("UNBOUNDED_OBJECTIVE", "DIVERGING_ITERATE") or (len(x) and abs(x).max() > INFINITE):
        return UNBOUNDED
    if point in ("INFEASIBLE_STATIONARY_POINT", "INFEASIBLE_SMALL_STEP"):
        return INFEASIBLE
    if not np.isfinite(x).all():
        return BROKEN
    ends = {"FEASIBLE_KKT_POINT": SUCCESS, "FEASIBLE_SMALL_STEP": STALLED, "FEASIBLE_FJ_POINT": STALLED}
    return ends.get(point, BROKEN)
