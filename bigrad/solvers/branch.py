"""Branching over the sides of complementarity pairs, breadth first and a whole batch at once: proves an optimum, or
finds it.

A node holds some pairs tight, some loose, and asks of the others only that slack and multiplier be nonnegative: a
convex quadratic program whose optimum bounds every piece below it. A node that cannot beat the best known piece is
dropped; one whose solution is complementary is itself a piece; any other is split on its most violated pair, one
without an optimum on any. Bard and Moore, "A branch and bound algorithm for the bilevel programming problem", 1990.
"""

from __future__ import annotations

import time

import numpy as np

from bigrad.algebra.affine import mv
from bigrad.algebra.quadratic import value
from bigrad.solvers.convex import INFEASIBLE, UNBOUNDED
from bigrad.solvers.search import GAIN, Search


def branch(search: Search, items: np.ndarray, nodes: int, limit: float) -> np.ndarray:
    """Improve the search's best pieces of these items with at most `nodes` relaxations each: which are proven, bool
    (batch,).

    Proven: the whole tree was seen, so the best piece is the global optimum, and without any the program is infeasible.
    Pieces met on the way enter the search's table. Stops when time.perf_counter() passes `limit`.
    """
    sizes, batch = search.sizes, search.solve.batch
    proven, spent = np.zeros(batch, bool), np.zeros(batch, int)
    proven[items] = True
    tight = np.zeros((len(items), sizes.pairs), bool)
    loose = tight.copy()
    while len(items):
        spent += np.bincount(items, minlength=batch)
        over = spent > nodes if time.perf_counter() <= limit else spent > 0
        proven[items[over[items]]] = False
        keep = ~over[items]
        items, tight, loose = items[keep], tight[keep], loose[keep]
        if not len(items):
            break
        flag, w = search.solve.relaxed(items, tight, loose)
        open_ = flag != INFEASIBLE
        endless = open_ & (flag <= 0)
        data = search.data.pick(items)
        F = np.where(endless, -np.inf, value(data, w))
        x, y, lam = (w[:, s] for s in sizes.blocks[:3])
        slack = data.b - mv(data.A, y) - mv(data.B, x)
        guess = np.where(loose, False, tight | (lam > slack))
        whole = (tight | loose).all(-1)
        lost = np.flatnonzero(whole & endless)
        if len(lost):  # a piece without an optimum must be known to the table as unbounded, or nothing is proven
            seen = search.visit(items[lost], tight[lost])
            proven[items[lost[(search.flag[seen] != UNBOUNDED) | (flag[lost] != UNBOUNDED)]]] = False
        ready = open_ & (~endless | whole)
        search.descend(items[ready], guess[ready], 3, limit)
        bar = np.append(search.F, np.inf)[search.best()][items]  # row -1, for none, is the infinity at the end
        goal = np.where(np.isfinite(bar), bar - GAIN * (1 + abs(np.nan_to_num(bar, posinf=0.0))), np.inf)
        clash = np.where(tight | loose, 0.0, np.fmax(np.minimum(lam, slack), 0.0))
        split = open_ & ~(goal <= F) & ~whole
        if not split.any():
            break
        items, tight, loose, clash = items[split], tight[split], loose[split], clash[split]
        pair = np.where(tight | loose, -1.0, clash).argmax(-1)
        here = np.zeros(tight.shape, bool)
        here[np.arange(len(items)), pair] = True
        items = np.tile(items, 2)
        tight, loose = np.concatenate([tight | here, tight]), np.concatenate([loose, loose | here])
    return proven
