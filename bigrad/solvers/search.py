"""Local searches over the sides of complementarity pairs, all items and starts of a batch in step.

Every piece is solved once.
"""

from __future__ import annotations

import time

import numpy as np

from bigrad.algebra.affine import mv
from bigrad.algebra.quadratic import Data, Sizes, crossing, value
from bigrad.solvers.active import asking
from bigrad.solvers.convex import SOLVED
from bigrad.solvers.piece import PieceSolver

GAIN = 1e-9
"""A piece is worse, or a bound is not reached, if it differs by more than this relative to 1 + the objective."""


class Search:
    """A table of the pieces seen so far, one row each, and the row at which each search stands.

    item, tight, w, flag, F: the table's columns: whose piece, its sides, its solution, DAQP's flag, the upper objective
    (inf if unsolved). wrong: how strongly each biactive pair's other multiplier asks to cross to the other side, 0
    where it does not. bounded: see `PieceSolver`; all items may be taken for bounded where nothing is to be proven.
    """

    def __init__(self, data: Data, sizes: Sizes, batch: int, bounded: np.ndarray):
        self.data, self.sizes = data, sizes
        self.solve = PieceSolver(data, sizes, batch, bounded)
        self.index: dict[bytes, int] = {}
        self.item = np.zeros(0, int)
        self.tight = np.zeros((0, sizes.pairs), bool)
        self.w = np.zeros((0, sizes.blocks[-1].stop))
        self.flag, self.F = np.zeros(0, int), np.zeros(0)
        self.wrong = np.zeros((0, sizes.pairs))

    def visit(self, items: np.ndarray, tight: np.ndarray) -> np.ndarray:
        """The table's rows for these pieces, solving those that it lacks."""
        keys = _keys(items, tight)
        new: dict[bytes, int] = {}
        for t, key in enumerate(keys):
            if key not in self.index:
                new.setdefault(key, t)
        if new:
            first = np.array(list(new.values()))
            self.index.update(zip(new, range(len(self.flag), len(self.flag) + len(first)), strict=True))
            self._add(items[first], tight[first], *self.solve(items[first], tight[first]))
        return np.array([self.index[k] for k in keys], int)

    def adopt(self, items: np.ndarray, tight: np.ndarray, w: np.ndarray) -> None:
        """Enter pieces, one an item, whose solutions w are known."""
        start = len(self.flag)
        self.index.update(zip(_keys(items, tight), range(start, start + len(items)), strict=True))
        self._add(items, tight, np.full(len(items), SOLVED), w)

    def _add(self, items: np.ndarray, tight: np.ndarray, flag: np.ndarray, w: np.ndarray) -> None:
        data = self.data.pick(items)
        F = value(data, w)
        x, y, lam, _, _, kappa, *_ = (w[:, s] for s in self.sizes.blocks)
        slack = data.b - mv(data.A, y) - mv(data.B, x)
        columns = {
            "item": items,
            "tight": tight,
            "w": w,
            "flag": flag,
            "F": np.where(flag > 0, F, np.inf),
            "wrong": asking(tight, lam, slack, kappa, crossing(data, self.sizes, w)),
        }
        for name, column in columns.items():
            setattr(self, name, np.concatenate([getattr(self, name), column]))

    def descend(self, items: np.ndarray, tight: np.ndarray, rounds: int, limit: float) -> np.ndarray:
        """Move a search from each of these pieces until it is stationary; which items still have one on its way, bool.

        A move crosses all kinks that ask for it; where that gains nothing, one kink after another, the worst first. No
        search visits a piece twice, and none loses ground. Stops after `rounds` moves, or when time.perf_counter()
        passes `limit`.
        """
        at, moving = np.full(len(items), -1), np.ones(len(items), bool)
        tries, proposal = np.zeros(len(items), int), tight.copy()
        seen: set[tuple[int, int]] = set()
        for _ in range(rounds):
            live = np.flatnonzero(moving)
            if not len(live) or time.perf_counter() > limit:
                break
            row = self.visit(items[live], proposal[live])
            steps = list(zip(live.tolist(), row.tolist(), strict=True))
            fresh = np.array([step not in seen for step in steps])
            seen.update(steps)
            now = np.where(at[live] < 0, np.inf, self.F[at[live]])
            moved = fresh & np.isfinite(self.F[row]) & (self.F[row] <= now + GAIN * (1 + abs(now)))
            at[live[moved]], tries[live[moved]] = row[moved], 0
            tries[live[~moved]] += 1
            here, attempt = at[live], tries[live]
            severity = self.wrong[here]
            kinks = (severity > 0).sum(-1)
            moving[live] = (here >= 0) & (kinks > 0) & (attempt <= np.where(kinks > 1, kinks, 0))
            ranking = np.argsort(-severity, axis=-1, kind="stable")
            single = np.zeros(severity.shape, bool)
            if self.sizes.pairs:
                lines = np.arange(len(live))
                single[lines, ranking[lines, np.clip(attempt - 1, 0, self.sizes.pairs - 1)]] = True
            proposal[live] = self.tight[here] ^ np.where((attempt > 0)[:, None], single, severity > 0)
        on_its_way = np.zeros(self.solve.batch, bool)
        on_its_way[items[moving]] = True
        return on_its_way

    def best(self) -> np.ndarray:
        """For each item the row with the lowest objective, -1 where no piece was solved."""
        rows = np.full(self.solve.batch, -1)
        order = np.argsort(-self.F, kind="stable")
        order = order[np.isfinite(self.F[order])]
        rows[self.item[order]] = order
        return rows

    def any_with(self, rows: np.ndarray) -> np.ndarray:
        """Items of which some row of the table is marked, bool (batch,)."""
        marked = np.zeros(self.solve.batch, bool)
        marked[self.item[rows]] = True
        return marked


def _keys(items: np.ndarray, tight: np.ndarray) -> list[bytes]:
    packed = np.concatenate([items[:, None].astype(np.int64).view(np.uint8), np.packbits(tight, axis=-1)], -1)
    return [k.tobytes() for k in packed]
