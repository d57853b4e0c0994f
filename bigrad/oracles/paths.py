"""GraphPath: the cheapest path in a directed graph, by levels where it has no cycle, else by Dijkstra's algorithm.

Dijkstra, "A note on two problems in connexion with graphs", 1959. The small graphs of many items are put side by side, so
that one call of scipy solves them all. Only the distances are then scipy's: the paths are read off here, so that no path
depends on the other items of its batch. Large graphs take a call each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import breadth_first_order, dijkstra

from bigrad.oracle import Oracle
from bigrad.oracles.domain import admit, by_row, check_clamp, count_items, ends, picked, whole
from bigrad.oracles.network import Network
from bigrad.solution import DeclarationError

ARCS_AT_ONCE = 2**15
"""Arcs of all items that are looked at together."""
MANY_ARCS = 1500
"""Arcs beyond which graphs with cycles are not put side by side: the common heap would take longer than the calls."""


@dataclass(frozen=True, eq=False)
class GraphPath(Oracle):
    """Cheapest path over arcs; costs and decisions (batch, n), one for each arc, 1 on the path.

        y*(c) = argmin { c'y : y in {0, 1}^n are the arcs of a path from source to target }

    arcs: (n, 2), from and to, nodes counted from 0; parallel arcs are allowed. source, target: a node, or one for each
    item, (items,); see `bigrad.oracles.domain` for how rows find their item. Where the graph has no cycle, costs may
    have any sign; otherwise they must be at least 0, and lower ones are refused with InputError. `clamp` (at least 0
    where there are cycles) raises lower ones to itself instead. DeclarationError where a target cannot be reached.

    Ties: walking back from the target, each node is left by the first of the arcs that end a cheapest way to it. With
    cycles, an arc that costs nothing is taken only where none that costs does it, and as few of them as possible; beyond
    1500 arcs, though, ties are broken as scipy does it, the same way for the same costs.
    """

    arcs: Any
    nodes: int
    source: Any = 0
    target: Any = -1
    clamp: float | None = None

    def __post_init__(self) -> None:
        check_clamp("GraphPath", self.clamp, self._least)
        self._check_reach()

    @cached_property
    def _arcs(self) -> tuple[np.ndarray, np.ndarray]:
        return ends("GraphPath", self.arcs, self.nodes)

    @cached_property
    def _network(self) -> Network:
        return Network.of(*self._arcs, self.nodes)

    @property
    def _least(self) -> float:
        return 0.0 if self._network.levels is None else -np.inf

    @cached_property
    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        places = []
        for what, value in (("source", self.source), ("target", self.target)):
            node = whole("GraphPath", what, value)
            if (node < -self.nodes).any() or (node >= self.nodes).any():
                raise DeclarationError(f"GraphPath: {what} {value!r:.80} is not among {self.nodes} nodes.")
            places.append(node % self.nodes)
        return places[0], places[1]

    @cached_property
    def sets(self) -> int | None:
        """How many feasible sets it holds; None for one that all share."""
        source, target = self._ends
        return count_items("GraphPath", source=(source, 0), target=(target, 0))

    def _check_reach(self) -> None:
        rows = self.sets or 1
        source, target = (by_row(e, 0, rows) for e in self._ends)
        tail, head = self._arcs
        graph = sp.csr_array((np.ones(len(tail)), (tail, head)), shape=(self.nodes, self.nodes))
        for start in np.unique(source):
            reached = breadth_first_order(graph, start, return_predecessors=False)
            lost = np.flatnonzero((source == start) & ~np.isin(target, reached))
            if len(lost):
                of = f" of item {lost[0]}" if self.sets else ""
                raise DeclarationError(
                    f"GraphPath: the target {target[lost[0]]}{of} cannot be reached from the source {start} along these arcs."
                )

    def at(self, items: Any) -> GraphPath:
        """The oracle of some of its items, in this order."""
        source, target = (picked(e, 0, items) for e in self._ends)
        return replace(self, source=source, target=target)

    def solve(self, costs: np.ndarray) -> np.ndarray:
        """The arcs of the path, 0 or 1."""
        costs = admit("GraphPath", costs, len(self._arcs[0]), self._least, self.clamp, self.sets)
        network, taken = self._network, np.zeros(costs.shape)
        if network.levels is None and costs.shape[1] > MANY_ARCS:
            self._one_by_one(costs, taken)
            return taken
        source, target = (network.rank[by_row(e, 0, len(costs))] for e in self._ends)
        step = max(8, ARCS_AT_ONCE // costs.shape[1])
        for first in range(0, len(costs), step):
            part = slice(first, first + step)
            by_head = np.take(costs[part].T, network.order, axis=0)
            cyclic = network.levels is None
            found = self._distances(costs[part], source[part]) if cyclic else network.distances(by_head, source[part])
            last = network.last_arcs(by_head, found, source[part])
            taken[part, network.order] = follow(last, network.tail, target[part], source[part])
        return taken

    def _distances(self, costs: np.ndarray, source: np.ndarray) -> np.ndarray:
        """From the source to every node, (nodes, batch), inf where there is no way."""
        (by_tail, to, starts), nodes, shift = self._rows, self.nodes, np.arange(len(costs))[:, None]
        ahead = (to + nodes * shift).ravel(), np.r_[(starts[:-1] + len(to) * shift).ravel(), costs.size]
        graph = sp.csr_array((costs[:, by_tail].ravel(), *ahead), shape=(nodes * len(costs), nodes * len(costs)))
        found = dijkstra(graph, indices=source + nodes * shift[:, 0], min_only=True)
        return np.ascontiguousarray(found.reshape(-1, nodes).T)

    def _one_by_one(self, costs: np.ndarray, taken: np.ndarray) -> None:
        """Mark in `taken` the paths that scipy finds, one call an item."""
        by_tail, to, starts = self._rows
        keys = np.repeat(np.arange(self.nodes), np.diff(starts)) * self.nodes + to
        source, target = (by_row(e, 0, len(costs)) for e in self._ends)
        for cost, answer, path in zip(costs, taken, walks(to, starts, costs[:, by_tail], source, target), strict=True):
            wanted = np.array(path[1:], np.int64) * self.nodes + path[:-1]
            first, stop = np.searchsorted(keys, wanted), np.searchsorted(keys, wanted, "right")
            for k in np.flatnonzero(stop - first > 1):  # of parallel arcs the cheapest
                first[k] += cost[by_tail[first[k] : stop[k]]].argmin()
            answer[by_tail[first]] = 1

    @cached_property
    def _rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The arcs sorted by tail and head, their heads, and where the arcs of each node start."""
        tail, head = self._arcs
        by_tail = np.lexsort((head, tail))
        return by_tail, head[by_tail], np.searchsorted(tail[by_tail], np.arange(self.nodes + 1))


def walks(
    to: np.ndarray, starts: np.ndarray, costs: Iterable[np.ndarray], source: np.ndarray, target: np.ndarray
) -> Iterator[list[int]]:
    """The nodes of each item's cheapest path by scipy's Dijkstra, from the target back to the source.

    to: (n,) heads of the arcs, those from node v in starts[v] to starts[v + 1]; costs: (n,) for each item.
    """
    nodes, to, starts = len(starts) - 1, to.astype(np.int32), starts.astype(np.int32)
    for cost, start, end in zip(costs, source, target, strict=True):
        graph = sp.csr_array((cost, to, starts), shape=(nodes, nodes))
        before = dijkstra(graph, indices=start, return_predecessors=True)[1]
        path = [int(end)]
        while path[-1] != start:
            path.append(int(before[path[-1]]))
        yield path


def follow(last: np.ndarray, tail: np.ndarray, target: np.ndarray, source: np.ndarray) -> np.ndarray:
    """The arcs on the way back from target to source, 0 or 1, (batch, n); last: (nodes, batch), how each is reached."""
    every, at, n = np.arange(len(target)), target, len(tail)
    taken = np.zeros((len(target), n + 1))  # those that have arrived take the last, which is none
    last[source, every] = n
    arcs, ends, step = last.ravel(), np.concatenate([tail, source[:1]]), last.shape[1]
    together, ways = bool((source == source[:1]).all()), [np.full(len(target), n)]
    while True:
        way = arcs.take(at * step + every)
        if (way == n).all():
            break
        ways.append(way)
        at = ends.take(way) if together else np.where(way == n, source, ends.take(way))
    taken[every, ways] = 1
    return taken[:, :n]
