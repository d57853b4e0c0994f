"""GridPath: the cheapest path over the tiles of a map, by value iteration on the whole batch.

    d(v) = c(v) + min over neighbours u of d(u),   d(source) = c(source)

in sweeps until nothing changes (Bellman, "On a routing problem", 1958). The minimum over a 3 x 3 window is taken along
rows, then along columns, so a sweep is six passes over contiguous memory for all maps at once; one call of scipy's
Dijkstra a map takes five times as long at 12 x 12. The costs are those of the Warcraft maps of Vlastelica et al.,
"Differentiation of blackbox combinatorial solvers", 2020: a tile costs when it is visited, the first and last included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from bigrad.oracle import Oracle
from bigrad.oracles.domain import admit, by_row, check_clamp, count_items, picked, whole
from bigrad.solution import DeclarationError

NUMBERS_AT_ONCE = 2**14
"""Tiles of all maps that are swept together: what the second cache holds."""


@dataclass(frozen=True, eq=False)
class GridPath(Oracle):
    """Cheapest path on a height x width map; costs and decisions (batch, height * width), tiles row by row.

        y*(c) = argmin { c'y : y in {0, 1}^n visits the tiles of a path from source to target }

    neighbours: 8, or 4 without diagonals. source, target: (row, column), negative ones counted from the end, or one for
    each item, (items, 2); see `bigrad.oracles.domain` for how rows find their item. Costs must be at least 0; `clamp`
    (at least 0) raises lower ones to itself instead of refusing them with InputError. Made for maps of up to about a
    thousand tiles; on larger ones GraphPath, with each arc at the cost of the tile that it enters, is faster.

    Ties: each tile is entered from the neighbour nearest to the source, of these from the one with the fewest tiles
    behind it, of these from the first in the order of the map; other maps of the batch play no part.
    """

    height: int
    width: int
    neighbours: int = 8
    source: Any = (0, 0)
    target: Any = (-1, -1)
    clamp: float | None = None

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1 or self.neighbours not in (4, 8):
            raise DeclarationError(
                f"GridPath({self.height}, {self.width}, {self.neighbours}): give at least one tile and 4 or 8 neighbours."
            )
        check_clamp("GridPath", self.clamp, 0.0)
        _ = self._items

    @cached_property
    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        return self._tile("source", self.source), self._tile("target", self.target)

    def _tile(self, what: str, value: Any) -> np.ndarray:
        place, shape = whole("GridPath", what, value), np.array([self.height, self.width])
        if place.shape[-1:] != (2,) or place.ndim > 2:
            raise DeclarationError(f"GridPath: {what} must be (row, column), or (items, 2), got shape {place.shape}.")
        if (place < -shape).any() or (place >= shape).any():
            raise DeclarationError(f"GridPath: {what} {value!r:.80} is not on the map of {self.height} x {self.width}.")
        return place % shape @ np.array([self.width, 1])

    @cached_property
    def _items(self) -> int | None:
        source, target = self._ends
        return count_items("GridPath", source=(source, 0), target=(target, 0))

    def at(self, items: Any) -> GridPath:
        """The oracle of some of its items, in this order."""
        return replace(
            self, source=picked(np.asarray(self.source), 1, items), target=picked(np.asarray(self.target), 1, items)
        )

    def solve(self, costs: np.ndarray) -> np.ndarray:
        """Visited tiles, 0 or 1."""
        costs = admit("GridPath", costs, self.height * self.width, 0.0, self.clamp, self._items)
        source, target = (by_row(e, 0, len(costs)) for e in self._ends)
        visited = np.zeros(costs.shape)
        step = max(8, NUMBERS_AT_ONCE // costs.shape[1])
        for first in range(0, len(costs), step):
            part = slice(first, first + step)
            jump = self._jumps(costs[part], source[part])
            follow(jump, target[part], source[part], visited[part])
        return visited

    def _jumps(self, costs: np.ndarray, source: np.ndarray) -> np.ndarray:
        """What leads from each tile to the one before it, (n, batch), added to its index; anything at the source."""
        h, w, batch = self.height, self.width, len(costs)
        tile_costs = np.ascontiguousarray(costs.T).reshape(h, w, batch)
        rows, columns, every = source // w, source % w, np.arange(batch)
        small = np.int16 if 9 * h * w < 2**15 else np.int32
        padded = np.full((h + 2, w + 2, batch), np.inf)
        distance, low = padded[1:-1, 1:-1], np.empty((h, w, batch))
        distance[rows, columns, every] = tile_costs[rows, columns, every]
        reached = np.zeros((h + 2, w + 2, batch), small)  # the sweep that found the distance: tiles behind it, times 9
        inside, mark = reached[1:-1, 1:-1], np.empty((h, w, batch), small)
        new, nearer = np.empty((h, w, batch)), np.empty((h, w, batch), bool)
        across = np.empty((h + 2, w, batch))
        for sweep in range(1, h * w + 1):
            nearest(padded, self.neighbours, across, low)
            np.add(low, tile_costs, out=new)
            np.less(new, distance, out=nearer)
            if not nearer.any():
                break
            np.multiply(nearer, small(9 * sweep), out=mark)
            np.maximum(inside, mark, out=inside)
            np.minimum(distance, new, out=distance)
        return self._choose(padded, reached, low)

    def _choose(self, padded: np.ndarray, reached: np.ndarray, low: np.ndarray) -> np.ndarray:
        h, w, batch = low.shape
        none = np.iinfo(reached.dtype).max
        best, key = np.full(low.shape, none, reached.dtype), np.empty(low.shape, reached.dtype)
        moves = [(i, j) for i in (0, 1, 2) for j in (0, 1, 2) if (i, j) != (1, 1)]
        if self.neighbours == 4:
            moves = [m for m in moves if 1 in m]
        for k, (i, j) in enumerate(moves):
            there = slice(i, i + h), slice(j, j + w)
            np.add(reached[there], reached.dtype.type(k), out=key)
            np.copyto(key, none, where=padded[there] != low)
            np.minimum(best, key, out=best)
        jumps = np.array([(i - 1) * w + j - 1 for i, j in moves] + [0])
        np.remainder(best, 9, out=best)
        return jumps[np.minimum(best, len(moves))].reshape(h * w, batch)


def nearest(padded: np.ndarray, neighbours: int, across: np.ndarray, low: np.ndarray) -> None:
    """Write to `low`, (h, w, batch), the least distance among each tile's neighbours, and with 8 of them its own."""
    if neighbours == 8:
        np.minimum(padded[:, :-2], padded[:, 2:], out=across)
        np.minimum(across, padded[:, 1:-1], out=across)
        np.minimum(across[:-2], across[2:], out=low)
        np.minimum(low, across[1:-1], out=low)
    else:
        np.minimum(padded[1:-1, :-2], padded[1:-1, 2:], out=low)
        np.minimum(low, padded[:-2, 1:-1], out=low)
        np.minimum(low, padded[2:, 1:-1], out=low)


def follow(jump: np.ndarray, target: np.ndarray, source: np.ndarray, visited: np.ndarray) -> None:
    """Mark in `visited`, (batch, n), the way back from target to source; jump: (n, batch), what to add to a tile's index."""
    every, at = np.arange(len(target)), target
    jump[source, every] = 0
    visited[every, at] = 1
    while (at != source).any():
        at = at + jump[at, every]
        visited[every, at] = 1
