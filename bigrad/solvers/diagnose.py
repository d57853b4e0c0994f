"""Why an item has no solution: linear feasibility problems, solved by HiGHS, that tell the levels and the causes apart.

Used only after a search has come back empty, so it may be slow. Every verdict here is a proof, up to HiGHS's
tolerances.
"""

from __future__ import annotations

import numpy as np

from bigrad.algebra.quadratic import Data, Sizes
from bigrad.solution import Status


def diagnose(data: Data, sizes: Sizes, game: bool) -> Status:
    """The status of one item (arrays without a batch) for which no bilevel-feasible point was found.

    game: several followers see each other, so that an answer of each is not yet an equilibrium.
    """
    n, m = sizes.x, sizes.y
    own = ~data.G[:, n:].any(-1), ~data.E[:, n:].any(-1)
    width = sizes.primal

    def wide(rows: np.ndarray) -> np.ndarray:
        return np.pad(rows, ((0, 0), (0, width - rows.shape[1])))

    leader = (wide(data.G[own[0]]), data.g[own[0]], wide(data.E[own[1]]), data.e[own[1]])
    answer = (wide(np.hstack([data.B, data.A])), data.b, wide(np.hstack([data.K, data.H])), data.h)
    none = (np.zeros((0, width)), np.zeros(0))
    optimal = (*none, np.hstack([data.C, data.P, data.A.T, data.H.T]), -data.p)
    upper = (wide(data.G), data.g, wide(data.E), data.e)
    low = np.r_[np.full(n + m, -np.inf), np.zeros(sizes.pairs), np.full(sizes.equalities, -np.inf)]

    if not _feasible(low, leader):
        return Status.INFEASIBLE_UPPER
    if not _feasible(low, leader, answer):
        return Status.INFEASIBLE_LOWER
    if not _feasible(low, leader, answer, optimal):
        return Status.NO_EQUILIBRIUM if game else Status.UNBOUNDED_LOWER
    if not _feasible(low, upper, answer, optimal):
        return Status.NO_EQUILIBRIUM if game else Status.INFEASIBLE_UPPER
    return Status.NOT_FOUND


def _feasible(low: np.ndarray, *systems: tuple[np.ndarray, ...]) -> bool:
    from scipy.optimize import linprog

    A, b, E, e = (np.concatenate(parts) for parts in zip(*systems, strict=True))
    result = linprog(np.zeros(len(low)), A, b, E, e, bounds=np.c_[low, np.full(len(low), np.inf)], method="highs")
    return result.status != 2
