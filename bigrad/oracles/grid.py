"""GridPath: the cheapest path over the tiles of a map, by value iteration on the whole batch.

    d(v) = c(v) + min over neighbours u of d(u),   d(source) = c(source)

in sweeps until nothing changes (Bellman, "On a routing problem", 1958). The minimum over a 3 x 3 window is taken along
rows, then along columns, so a sweep is a few passes over contiguous memory for all maps at once. One call of scipy's
Dijkstra a map takes three times as long at 12 x 12, and no longer at 25 x 25; larger maps take those calls. The costs
are those of the Warcraft maps of Vlastelica et al., "Differentiation of blackbox combinatorial solvers", 2020: a tile
costs when it is visited, the first and last included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from bigrad.oracle import Oracle
from bigrad.oracles.domain import admit, by_row, check_clamp, count_items, picked, whole
from bigrad.oracles.paths import walks
from bigrad.solution import DeclarationError

NUMBERS_AT_ONCE = 2**14
"""Tiles of all maps that are swept together: what the second cache holds."""
MANY_TILES = 600
"""Tiles beyond which a call of Dijkstra's algorithm a map is faster than sweeps, whose number grows with the map."""


@dataclass(frozen=True, eq=False)
class GridPath(Oracle):
    """Cheapest path on a height x width map; costs and decisions (batch, height * width), tiles row by row.

        y*(c) = argmin { c'y : y in {0, 1}^n visits the tiles of a path from source to target }

    neighbours: 8, or 4 without diagonals. source, target: (row, column), negative ones counted from the end, or one for
    each item, (items, 2); see `bigrad.oracles.domain` for how rows find their item. Costs must be at least 0; `clamp`
    (at least 0) raises lower ones to itself instead of refusing them with InputError.

    Ties: each tile is entered from the neighbour nearest to the source, of these from the one with the fewest tiles
    behind it, of these from the first in the order of the map; on maps of more than 600 tiles as scipy's Dijkstra breaks
    them, the same way for the same costs.
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
        _ = self.sets

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
    def sets(self) -> int | None:
        """How many feasible sets it holds; None for one that all share."""
        source, target = self._ends
        return count_items("GridPath", source=(source, 0), target=(target, 0))

    def at(self, items: Any) -> GridPath:
        """The oracle of some of its items, in this order."""
        return replace(
            self, source=picked(np.asarray(self.source), 1, items), target=picked(np.asarray(self.target), 1, items)
        )

    def solve(self, costs: np.ndarray) -> np.ndarray:
        """Visited tiles, 0 or 1."""
        costs = admit("GridPath", costs, self.height * self.width, 0.0, self.clamp, self.sets)
        source, target = (by_row(e, 0, len(costs)) for e in self._ends)
        visited = np.zeros(costs.shape)
        if costs.shape[1] > MANY_TILES:
            to, starts = self._arcs
            for row, path in zip(visited, walks(to, starts, (cost[to] for cost in costs), source, target), strict=True):
                row[path] = 1
            return visited
        step = max(8, NUMBERS_AT_ONCE // costs.shape[1])
        for first in range(0, len(costs), step):
            part = slice(first, first + step)
            jump = self._jumps(costs[part], source[part])
            follow(jump, target[part], source[part], visited[part])
        return visited

    @cached_property
    def _arcs(self) -> tuple[np.ndarray, np.ndarray]:
        """The neighbours of the tiles, one tile after the other, and where those of each start."""
        down, right = np.array(self._moves).T - 1
        rows, columns = np.divmod(np.arange(self.height * self.width)[:, None], self.width)
        rows, columns = rows + down, columns + right
        there = (rows >= 0) & (rows < self.height) & (columns >= 0) & (columns < self.width)
        return (rows * self.width + columns)[there], np.r_[0, there.sum(axis=1).cumsum()]

    @property
    def _moves(self) -> list[tuple[int, int]]:
        """To the neighbours, in the order of the map: rows down and columns right, plus one."""
        every = [(i, j) for i in (0, 1, 2) for j in (0, 1, 2) if (i, j) != (1, 1)]
        return every if self.neighbours == 8 else [move for move in every if 1 in move]

    def _jumps(self, costs: np.ndarray, source: np.ndarray) -> np.ndarray:
        """What leads from each tile to the one before it, (n, batch), added to its index; anything at the source."""
        h, w, batch = self.height, self.width, len(costs)
        places = source // w, source % w, np.arange(batch)
        tile_costs = np.ascontiguousarray(costs.T).reshape(h, w, batch)
        padded, reached, low = distances(tile_costs, places, self.neighbours)
        moves = self._moves
        none = np.iinfo(reached.dtype).max
        best, key = np.full(low.shape, none, reached.dtype), np.empty(low.shape, reached.dtype)
        for k, (i, j) in enumerate(moves):
            there = slice(i, i + h), slice(j, j + w)
            np.add(reached[there], reached.dtype.type(k), out=key)
            np.copyto(key, none, where=padded[there] != low)
            np.minimum(best, key, out=best)
        jumps = np.array([(i - 1) * w + j - 1 for i, j in moves])
        return jumps[np.minimum(best % 9, len(moves) - 1)].reshape(h * w, batch)


def distances(
    costs: np.ndarray, places: tuple[np.ndarray, np.ndarray, np.ndarray], neighbours: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distance of every tile and how it was reached, (h + 2, w + 2, batch), and the least among its neighbours.

    costs: (h, w, batch); places: rows, columns and numbers of the sources. The distance is infinite around the map. How
    a tile was reached is told by the sweep that found its distance, times 9: the fewest tiles behind it on a cheapest
    path. So tiles that cost nothing lead back in no circle. Sweep k is over the tiles within k of a source.
    """
    h, w, batch = costs.shape
    kind = np.int16 if 9 * h * w < 2**15 else np.int32
    padded, reached = np.full((h + 2, w + 2, batch), np.inf), np.zeros((h + 2, w + 2, batch), kind)
    distance, inside = padded[1:-1, 1:-1], reached[1:-1, 1:-1]
    low, new, across = np.empty_like(costs), np.empty_like(costs), np.empty((h + 2, w, batch))
    nearer, mark = np.empty(costs.shape, bool), np.empty(costs.shape, kind)
    distance[places] = costs[places]
    (top, bottom), (left, right) = ((int(p.min()), int(p.max()) + 1) for p in places[:2])
    sweep, whole = 0, max(top, left, h - bottom, w - right)
    while True:
        sweep += 1
        rows, columns = (max(top - sweep, 0), min(bottom + sweep, h)), (max(left - sweep, 0), min(right + sweep, w))
        part, around = (slice(*rows), slice(*columns)), (slice(rows[0], rows[1] + 2), slice(columns[0], columns[1] + 2))
        nearest(padded[around], neighbours, across[around[0], part[1]], low[part])
        np.add(low[part], costs[part], out=new[part])
        np.less(new[part], distance[part], out=nearer[part])
        if sweep > whole and not nearer.any():
            return padded, reached, low
        np.multiply(nearer[part], kind(9 * sweep), out=mark[part])
        np.maximum(inside[part], mark[part], out=inside[part])
        np.minimum(distance[part], new[part], out=distance[part])


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
