"""A directed graph as arrays in the order in which cheapest paths are computed, and the paths read off from distances."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components


class Level(NamedTuple):
    """Nodes that are as far from the start, the arcs into them, where those come from, and the first of them for each node."""

    nodes: slice
    arcs: slice
    tail: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True, eq=False)
class Network:
    """Nodes and arcs, renumbered: arcs sorted by their head, nodes of a graph without cycles by their level.

    rank: (nodes,) new number of a node. order: (n,) old number of an arc. tail, head: (n,) in new numbers. starts: where
    the arcs into each of the nodes `entered` begin. levels: of a graph without cycles, but for the nodes that nothing enters;
    None for other graphs.
    """

    rank: np.ndarray
    order: np.ndarray
    tail: np.ndarray
    head: np.ndarray
    starts: np.ndarray
    entered: np.ndarray
    levels: list[Level] | None

    @staticmethod
    def of(tail: np.ndarray, head: np.ndarray, nodes: int) -> Network:
        """The network of arcs from tail to head; the last few are remembered."""
        return _network(tail.tobytes(), head.tobytes(), nodes)

    def distances(self, costs: np.ndarray, source: np.ndarray) -> np.ndarray:
        """d(v) = min over arcs (u, v) of d(u) + c(u, v) in a graph without cycles, (nodes, batch), inf if not reached.

        costs: (n, batch) in the order of this network; source: (batch,).
        """
        assert self.levels is not None
        batch = costs.shape[1]
        found = np.full((len(self.rank), batch), np.inf)
        every = np.arange(batch)
        found[source, every] = 0
        entered = len(source) > 0 and source.max() >= len(self.rank) - len(self.entered)
        for nodes, arcs, tail, starts in self.levels:
            ways = found.take(tail, axis=0)
            ways += costs[arcs]
            np.minimum.reduceat(ways, starts, axis=0, out=found[nodes])
            if entered:  # what enters a source is out of its reach
                found[source, every] = 0
        return found

    def last_arcs(self, costs: np.ndarray, found: np.ndarray, source: np.ndarray) -> np.ndarray:
        """The arc at the end of the cheapest path to each node, (nodes, batch), of those reached, but for the source.

        The first arc with d(tail) + c == d(head); with cycles arcs that cost nothing come last, see `_behind`.
        """
        n = len(self.order)
        start, end, place = found.take(self.tail, axis=0), found.take(self.head, axis=0), np.arange(n)[:, None]
        tight = start + costs == end
        last = np.empty(found.shape, np.int64)
        if self.levels is not None:
            last[self.entered] = np.minimum.reduceat(np.where(tight, place, n), self.starts, axis=0)
            return last
        costly = tight & (start < end)
        last[self.entered] = np.minimum.reduceat(np.where(costly, place, n), self.starts, axis=0)
        stuck = (last == n) & np.isfinite(found)
        stuck[source, np.arange(found.shape[1])] = False
        stuck[np.setdiff1d(np.arange(len(found)), self.entered)] = False
        if stuck.any():
            free = tight & ~costly
            key = np.where(free, place + n * self._behind(free, stuck)[self.tail], np.iinfo(np.int64).max)
            last = np.where(stuck, self._least(key, len(found)) % n, last)
        return last

    def _behind(self, free: np.ndarray, stuck: np.ndarray) -> np.ndarray:
        """How many arcs that cost nothing lead to each node from one that is the source or has an arc that costs."""
        far = len(stuck) + 1
        behind = np.where(stuck, far, 0)
        while True:
            closer = self._least(np.where(free, behind[self.tail] + 1, far), len(stuck))
            new = np.where(stuck, np.minimum(closer, far), 0)
            if (new == behind).all():
                return behind
            behind = new

    def _least(self, values: np.ndarray, nodes: int) -> np.ndarray:
        least = np.full((nodes, values.shape[1]), np.iinfo(np.int64).max)
        least[self.entered] = np.minimum.reduceat(values, self.starts, axis=0)
        return least


@lru_cache(maxsize=64)
def _network(tail_bytes: bytes, head_bytes: bytes, nodes: int) -> Network:
    tail, head = np.frombuffer(tail_bytes, np.int64), np.frombuffer(head_bytes, np.int64)
    level = _level(tail, head, nodes)
    by_level = np.arange(nodes) if level is None else np.argsort(level, kind="stable")
    rank = np.empty(nodes, np.int64)
    rank[by_level] = np.arange(nodes)
    order = np.argsort(rank[head], kind="stable")
    tail, head = rank[tail[order]], rank[head[order]]
    starts = np.flatnonzero(np.r_[True, np.diff(head) != 0])
    entered = head[starts]
    if level is None:
        return Network(rank, order, tail, head, starts, entered, None)
    at = level[by_level]
    levels = []
    for k in range(1, int(at.max()) + 1):
        of_nodes, of_arcs, of_starts = (
            slice(*(int(i) for i in np.searchsorted(values, [k, k + 1]))) for values in (at, at[head], at[entered])
        )
        levels.append(Level(of_nodes, of_arcs, tail[of_arcs], starts[of_starts] - of_arcs.start))
    return Network(rank, order, tail, head, starts, entered, levels)


def _level(tail: np.ndarray, head: np.ndarray, nodes: int) -> np.ndarray | None:
    """The largest number of arcs on a way to each node, (nodes,); None for a graph with a cycle."""
    graph = sp.csr_array((np.ones(len(tail)), (tail, head)), shape=(nodes, nodes))
    if (tail == head).any() or connected_components(graph, connection="strong")[0] < nodes:
        return None
    level = np.zeros(nodes, np.int64)
    while (level[head] <= level[tail]).any():
        np.maximum.at(level, head, level[tail] + 1)
    return level
