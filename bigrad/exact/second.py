"""A second opinion on the follower's optimum, by SCIP, where HiGHS has given the first.

Koch et al., "Progress in mathematical programming solvers from 2001 to 2020", 2022, on why one solver's word is not enough.
"""

from __future__ import annotations

import numpy as np

from bigrad.exact.answers import Follower
from bigrad.solvers.sos import quiet


def opinion(f: Follower, x: np.ndarray, seconds: float) -> float:
    """The follower's optimum at a decision, NaN where SCIP does not find it in time."""
    import pyscipopt

    model = pyscipopt.Model()
    model.hideOutput()
    model.setParams({"numerics/feastol": 1e-7, "limits/time": min(seconds, 1e15)})
    costs, limits = f.costs(x), f.h - f.G @ x
    y = [
        model.addVar(
            lb=float(a) if np.isfinite(a) else None,
            ub=float(b) if np.isfinite(b) else None,
            vtype="I" if whole else "C",
            obj=float(c),
        )
        for a, b, whole, c in zip(f.low, f.high, f.integer, costs, strict=True)
    ]
    for row, limit in zip(f.A, limits, strict=True):
        model.addCons(pyscipopt.quicksum(float(row[j]) * y[j] for j in np.flatnonzero(row)) <= float(limit))
    with quiet:
        model.optimize()
    return float(model.getObjVal()) if model.getStatus() == "optimal" else np.nan
