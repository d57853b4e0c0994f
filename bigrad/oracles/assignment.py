"""Assignment: the cheapest matching of rows to columns, by scipy's shortest augmenting paths, in threads.

Crouse, "On implementing 2D rectangular assignment algorithms", 2016. The call releases the interpreter lock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from bigrad.oracle import Oracle
from bigrad.oracles.domain import admit, by_row, check_clamp, count_items, picked
from bigrad.parallel import thread_map
from bigrad.solution import DeclarationError

NUMBERS_A_THREAD = 2**17
"""A thread takes at least so many costs; a part of it, and starting it takes longer than its work."""


@dataclass(frozen=True, eq=False)
class Assignment(Oracle):
    """Cheapest assignment; costs and decisions (batch, rows * columns), pairs row by row.

        y*(c) = argmin { c'y : y in {0, 1}^n, each row in at most one pair, each column too, min(rows, columns) pairs }

    allowed: None, or which pairs may be taken, bool (rows, columns), or (items, rows, columns), one for each item; see
    `bigrad.oracles.domain` for how rows of a batch find theirs. DeclarationError where no assignment is allowed. Costs
    may have any sign; `clamp` raises lower ones to itself. Ties: as scipy breaks them, the same way for the same costs.
    """

    rows: int
    columns: int
    allowed: Any = None
    clamp: float | None = None

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1:
            raise DeclarationError(f"Assignment({self.rows}, {self.columns}): give at least one row and one column.")
        check_clamp("Assignment", self.clamp)
        if self.allowed is not None:
            self._check_allowed()

    @cached_property
    def _allowed(self) -> np.ndarray:
        return np.asarray(self.allowed)

    def _check_allowed(self) -> None:
        if self._allowed.dtype != bool or self._allowed.shape[-2:] != (self.rows, self.columns):
            raise DeclarationError(
                f"Assignment: allowed must be bool ({self.rows}, {self.columns}), got {self._allowed.dtype} {self._allowed.shape}."
            )
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import maximum_bipartite_matching

        for i, pairs in enumerate(self._allowed if self.sets else [self._allowed]):
            if (maximum_bipartite_matching(csr_array(pairs)) >= 0).sum() < min(self.rows, self.columns):
                of = f" of item {i}" if self.sets else ""
                raise DeclarationError(f"Assignment: the allowed pairs{of} leave no complete assignment.")

    @cached_property
    def sets(self) -> int | None:
        """How many feasible sets it holds; None for one that all share."""
        return None if self.allowed is None else count_items("Assignment", allowed=(self._allowed, 2))

    def at(self, items: Any) -> Assignment:
        """The oracle of some of its items, in this order."""
        return self if self.allowed is None else replace(self, allowed=picked(self._allowed, 2, items))

    def solve(self, costs: np.ndarray) -> np.ndarray:
        """The pairs taken, 0 or 1."""
        costs = admit("Assignment", costs, self.rows * self.columns, clamp=self.clamp, items=self.sets)
        taken, shape = np.zeros(costs.shape), (-1, self.rows, self.columns)
        tables, pairs = costs.reshape(shape), taken.reshape(shape)
        if self.allowed is not None:
            tables = np.where(by_row(self._allowed, 2, len(costs)), tables, np.inf)
        if costs.size < 2 * NUMBERS_A_THREAD:
            _assign(tables, pairs)
        else:
            least = NUMBERS_A_THREAD // costs.shape[1] + 1
            thread_map(
                lambda part: _assign(tables[part[0] : part[-1] + 1], pairs[part[0] : part[-1] + 1]), len(costs), least
            )
        return taken


def _assign(tables: np.ndarray, pairs: np.ndarray) -> None:
    from scipy.optimize import linear_sum_assignment

    for table, pair in zip(tables, pairs, strict=True):
        pair[linear_sum_assignment(table)] = 1
