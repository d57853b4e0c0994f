"""Convex cone programs, by Clarabel: the follower's answer, and whether linear rows and cones leave any point at all.

Goulart and Chen, "Clarabel: an interior-point solver for conic programs with quadratic objectives", 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from bigrad.programs.cones import Cone
from bigrad.programs.system import Follower, Layout

PRECISE, USUAL = 1e-11, 1e-8
"""Tolerances tried in turn: at the edge of its domain a program has no solution to the first."""


def conic_answer(below: Follower, layout: Layout, v: np.ndarray) -> np.ndarray | None:
    """v with the follower's variables and multipliers put to its answer; None if it has none."""
    _, _, lam, nu, *_ = layout.blocks
    rows, offset = np.concatenate([below.H, below.A, below.C]), np.concatenate([below.h, below.b, below.d])
    found = conic_program(below.P, below.q, rows, offset, len(below.H), len(below.A), below.blocks.cones)
    if found is None:
        return None
    u, dual = found
    ends = np.cumsum([len(below.H), len(below.A)])
    out = v.copy()
    out[below.at] = u
    out[lam.start : lam.start + len(below.A)] = np.maximum(dual[ends[0] : ends[1]], 0.0)
    out[nu.start : nu.start + len(below.H)] = -dual[: ends[0]]
    return below.blocks.seat(out, below.C @ u + below.d, dual[ends[1] :])


def conic_program(
    P: np.ndarray, q: np.ndarray, rows: np.ndarray, offset: np.ndarray, zero: int, nonneg: int, cones: Sequence[Cone]
) -> tuple[np.ndarray, np.ndarray] | None:
    """min 1/2 u'Pu + q'u with rows u + offset in (0, the orthant, the cones): (u, multipliers), None if there is none.

    The gradient P u + q is rows'multipliers.
    """
    for tolerance in (PRECISE, USUAL):
        result = _run(P, q, rows, offset, zero, nonneg, cones, tolerance)
        if str(result.status) in ("Solved", "AlmostSolved"):
            return np.array(result.x), np.array(result.z)
    return None


def infeasible(rows: np.ndarray, offset: np.ndarray, zero: int, nonneg: int, cones: Sequence[Cone]) -> bool:
    """Whether no u has rows u + offset in (0, the orthant, the cones), proven by a certificate."""
    n = rows.shape[1]
    result = _run(np.zeros((n, n)), np.zeros(n), rows, offset, zero, nonneg, cones, USUAL)
    return str(result.status) == "PrimalInfeasible"


def _run(
    P: np.ndarray, q: np.ndarray, rows: np.ndarray, offset: np.ndarray, zero: int, nonneg: int,
    cones: Sequence[Cone], tolerance: float,
) -> Any:  # fmt: skip
    import clarabel

    kinds = {
        "SOC": lambda c: clarabel.SecondOrderConeT(c.size),
        "ExpCone": lambda c: clarabel.ExponentialConeT(),
        "PowCone3D": lambda c: clarabel.PowerConeT(c.alpha),
        "PSD": lambda c: clarabel.PSDTriangleConeT(round((2 * c.size + 0.25) ** 0.5 - 0.5)),
    }
    shapes = [clarabel.ZeroConeT(zero), clarabel.NonnegativeConeT(nonneg), *(kinds[c.name](c) for c in cones)]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_threads = 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tolerance
    settings.tol_ktratio = min(tolerance, 1e-6)
    return clarabel.DefaultSolver(sp.csc_matrix(np.triu(P)), q, sp.csc_matrix(-rows), offset, shapes, settings).solve()
