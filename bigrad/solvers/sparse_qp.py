"""One convex quadratic program with sparse data, by Clarabel.

    min 1/2 v'Pv + q'v   subject to   E v == e,  G v <= g

Goulart and Chen, "Clarabel: an interior-point solver for conic programs with quadratic objectives", 2024.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

SOLVED, INFEASIBLE, UNBOUNDED, LATE, BROKEN = "solved", "infeasible", "unbounded", "late", "broken"
ENDINGS = {
    "Solved": SOLVED,
    "AlmostSolved": SOLVED,
    "PrimalInfeasible": INFEASIBLE,
    "DualInfeasible": UNBOUNDED,
    "MaxTime": LATE,
}
TOLERANCES = (1e-10, 1e-8)
"""Tried in turn: degenerate programs end short of the first."""


class Optimum(NamedTuple):
    """Where the solver ended: status, point, its value, multipliers of E (free) and of G (nonnegative), and whether all hold to
    the first of the tolerances.

    At an optimum P v + q + E'equal + G'below == 0.
    """

    status: str
    v: np.ndarray
    value: float
    equal: np.ndarray
    below: np.ndarray
    sharp: bool


def solve_qp(
    P: sp.spmatrix, q: np.ndarray, E: sp.spmatrix, e: np.ndarray, G: sp.spmatrix, g: np.ndarray, seconds: float
) -> Optimum:
    """Solve silently, in at most so many seconds; what goes wrong is in the status."""
    import clarabel

    if seconds <= 0:
        return _nothing(LATE, len(q), len(e), len(g))
    cones = [clarabel.ZeroConeT(len(e)), clarabel.NonnegativeConeT(len(g))]
    rows = sp.csc_matrix(sp.vstack([E, G]))
    for tolerance in TOLERANCES:
        settings = clarabel.DefaultSettings()
        settings.verbose, settings.max_threads = False, 1
        settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tolerance
        if np.isfinite(seconds):
            settings.time_limit = seconds
        try:
            found = clarabel.DefaultSolver(sp.csc_matrix(sp.triu(P)), q, rows, np.r_[e, g], cones, settings).solve()
        except (RuntimeError, ValueError, ArithmeticError):
            break
        status, v, z = ENDINGS.get(str(found.status), BROKEN), np.array(found.x), np.array(found.z)
        if status != BROKEN and (status != SOLVED or np.isfinite(v).all()):
            sharp = tolerance == TOLERANCES[0] and str(found.status) == "Solved"
            return Optimum(status, v, float(found.obj_val), z[: len(e)], z[len(e) :], sharp)
    return _nothing(BROKEN, len(q), len(e), len(g))


def _nothing(status: str, n: int, equal: int, below: int) -> Optimum:
    return Optimum(status, np.full(n, np.nan), np.nan, np.full(equal, np.nan), np.full(below, np.nan), False)
