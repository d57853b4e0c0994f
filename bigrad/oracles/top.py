"""TopK: the k largest of n scores, by partial sorting of the whole batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from bigrad.oracle import Oracle
from bigrad.oracles.domain import admit, by_row, check_clamp, count_items, picked, whole
from bigrad.solution import DeclarationError


@dataclass(frozen=True, eq=False)
class TopK(Oracle):
    """The k largest of n costs, which it maximises; costs and decisions (batch, n).

        y*(c) = argmax { c'y : y in {0, 1}^n, sum(y) = k }

    k: a number from 0 to n, or one for each item, (items,); see `bigrad.oracles.domain` for how rows find their item. Costs may
    have any sign; `clamp` raises lower ones to itself. Ties: the first in order are chosen.
    """

    n: int
    k: Any
    clamp: float | None = None

    def __post_init__(self) -> None:
        check_clamp("TopK", self.clamp)
        if (self._k < 0).any() or (self._k > self.n).any():
            raise DeclarationError(f"TopK({self.n}, {self.k!r:.80}): k must be from 0 to n.")
        _ = self.sets

    @cached_property
    def _k(self) -> np.ndarray:
        return whole("TopK", "k", self.k)

    @cached_property
    def sets(self) -> int | None:
        """How many feasible sets it holds; None for one that all share."""
        return count_items("TopK", k=(self._k, 0))

    @property
    def sense(self) -> float:
        """It maximises."""
        return -1.0

    def at(self, items: Any) -> TopK:
        """The oracle of some of its items, in this order."""
        return replace(self, k=picked(self._k, 0, items))

    def solve(self, costs: np.ndarray) -> np.ndarray:
        """1 for those chosen, 0 for the others."""
        costs = admit("TopK", costs, self.n, clamp=self.clamp, items=self.sets)
        k = by_row(self._k, 0, len(costs))[:, None]
        if not self.n or not k.any():
            return np.zeros(costs.shape)
        places = np.unique(self.n - k[k > 0])
        kth = np.take_along_axis(np.partition(costs, places, axis=1), np.minimum(self.n - k, self.n - 1), axis=1)
        chosen = (costs > kth) & (k > 0)
        level = costs == kth
        room = k - chosen.sum(1, keepdims=True)
        return (chosen | (level & (level.cumsum(1) <= room))).astype(np.float64)
