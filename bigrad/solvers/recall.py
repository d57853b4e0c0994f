"""A piece that was solved before, solved again by its old active set alone.

From one epoch to the next most items keep their active set. The piece's optimality conditions there are one linear
system; if its solution has every sign right it is the piece's optimum, and no quadratic program need be solved.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bigrad.algebra.exchange import Exchange
from bigrad.algebra.linear import exchange
from bigrad.algebra.quadratic import Data, Sizes, crossing, kkt, residual
from bigrad.solution import Point
from bigrad.solvers.active import measure, sizes_of

SAME = 1e-14
"""Residuals, violations and wrong signs up to this, relative to the data, are rounding."""


def known_sets(starts: Sequence[Point | None], width: int) -> tuple[np.ndarray, np.ndarray]:
    """The active sets (items, width) from which items start, nothing free where none is known; which were singular."""
    free, singular = np.zeros((len(starts), width), bool), np.zeros(len(starts), bool)
    for k, start in enumerate(starts):
        if start is not None and start.free is not None and len(start.free) == width:
            free[k], singular[k] = start.free, start.singular
    return free, singular


def recalled(
    data: Data, sizes: Sizes, tight: np.ndarray, free: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Exchange | None]:
    """(w, solved, what solved them): solutions of the pieces `tight` (batch, pairs) with the active sets `free` (batch,
    unknowns), polished, and which of them are optimal. Only where one inverse serves all: else it would not pay.
    """
    matrix, rhs = kkt(data, sizes, len(free), shared=True)
    ready = exchange(matrix, free)
    if ready is None:
        return np.zeros(free.shape), np.zeros(len(free), bool), None
    items = ready.items(free)
    w = items.solve(rhs)
    w += items.solve(-residual(data, sizes, w))
    scale = sizes_of(data, len(w))
    dual, primal = measure(residual(data, sizes, w), scale, sizes, w, free)
    kappa = w[:, sizes.blocks[5]]
    held = tight & ~free[:, sizes.blocks[2]]
    low = np.where(held, crossing(data, sizes, w), np.where(tight, 0.0, kappa)).min(-1, initial=0.0)
    wrong = np.maximum(np.maximum(dual, primal), -low / scale)
    return w, items.good & (wrong <= SAME), ready
