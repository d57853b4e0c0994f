"""SpanningTree: the cheapest tree that spans an undirected graph, by scipy's Kruskal over the whole batch at once.

Kruskal, "On the shortest spanning subtree of a graph and the traveling salesman problem", 1956. The tree depends on the
order of the costs alone, so scipy is given ranks instead: they have no ties, and none of them is zero or negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from bigrad.oracle import Oracle
from bigrad.oracles.domain import admit, check_clamp, ends
from bigrad.solution import DeclarationError

EDGES_AT_ONCE = 2**14
"""Edges of all items that are sorted together."""


@dataclass(frozen=True, eq=False)
class SpanningTree(Oracle):
    """Cheapest spanning tree; costs and decisions (batch, n), one for each edge.

        y*(c) = argmin { c'y : y in {0, 1}^n are the edges of a spanning tree }

    edges: (n, 2), nodes counted from 0; parallel edges are allowed, and an edge from a node to itself is never taken.
    DeclarationError where the graph is not connected. Costs may have any sign; `clamp` raises lower ones to itself. Ties: the first edge.
    """

    edges: Any
    nodes: int
    clamp: float | None = None

    def __post_init__(self) -> None:
        check_clamp("SpanningTree", self.clamp)
        one, other = self._ends
        graph = sp.csr_array((np.ones(len(one)), (one, other)), shape=(self.nodes, self.nodes))
        count, part = connected_components(graph, directed=False)
        if count > 1:
            apart = int(np.flatnonzero(part != part[0])[0])
            raise DeclarationError(
                f"SpanningTree: no edges connect node 0 with node {apart}, so no tree spans the graph."
            )

    @cached_property
    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        return ends("SpanningTree", self.edges, self.nodes, "edges")

    @cached_property
    def _rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        one, other = self._ends
        by_row = np.argsort(one, kind="stable")
        return by_row, other[by_row], np.searchsorted(one[by_row], np.arange(self.nodes))

    def solve(self, costs: np.ndarray) -> np.ndarray:
        """The edges of the tree, 0 or 1."""
        costs = admit("SpanningTree", costs, len(self._ends[0]), clamp=self.clamp)
        taken, step = np.zeros(costs.shape), max(1, EDGES_AT_ONCE // costs.shape[1])
        for first in range(0, len(costs), step):
            self._solve(costs[first : first + step], taken[first : first + step])
        return taken

    def _solve(self, costs: np.ndarray, taken: np.ndarray) -> None:
        (by_row, to, starts), shift = self._rows, np.arange(len(costs))[:, None]
        order = np.argsort(costs, axis=1, kind="stable")
        rank = np.empty(costs.shape)
        np.put_along_axis(rank, order, np.arange(costs.size, dtype=float).reshape(costs.shape) + 1, axis=1)
        ahead = (to + self.nodes * shift).ravel(), np.r_[(starts + len(to) * shift).ravel(), costs.size]
        size = self.nodes * len(costs)
        tree = minimum_spanning_tree(sp.csr_array((rank[:, by_row].ravel(), *ahead), shape=(size, size)))
        place = tree.data.astype(np.int64) - 1
        row = place // costs.shape[1]
        taken[row, order[row, place % costs.shape[1]]] = 1
