"""Knapsack: the most valuable items within a capacity, by dynamic programming over the whole batch.

    best_i(s) = max { best_{i-1}(s), v_i + best_{i-1}(s - w_i) }   over capacities s = 0 .. capacity

(Bellman, "Dynamic programming", 1957) where the weights are whole numbers, or become so times a power of ten, and the
table stays small; else by OR-Tools' KnapsackSolver, one item of the batch after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from bigrad.oracle import Oracle
from bigrad.oracles.domain import admit, by_row, check_clamp, count_items, picked
from bigrad.solution import CapabilityError, DeclarationError

NUMBERS_AT_ONCE = 2**14
"""Entries of one item's line of the table, for all knapsacks that are filled together."""
LARGEST_TABLE = 2**16
"""Entries of the table, items times capacity, beyond which OR-Tools is faster."""
SLACK = 1e-9
"""By how much, relative to the capacity, weights that are not whole numbers may exceed it: their rounding errors."""


@dataclass(frozen=True, eq=False)
class Knapsack(Oracle):
    """Most valuable set of items within a capacity; costs are the values, maximised; costs and decisions (batch, n).

        y*(c) = argmax { c'y : y in {0, 1}^n, weights'y <= capacity }

    weights: (n,), at least 0. capacity: a number at least 0, or one for each item of the batch, (items,); see
    `bigrad.oracles.domain` for how rows find their item. Values may have any sign: what is worth nothing is left out;
    `clamp` raises lower ones to itself. Exact where weights times capacity fit a table (weights whole, or with up to six
    decimals); other weights are compared with a relative slack of 1e-9, and values of a batch item are then rounded to
    2^-40 of their sum, by OR-Tools (extra `ortools`). Ties: an item is taken only if the best without it, among the
    items up to it, is worth less; so later items are left out first.
    """

    weights: Any
    capacity: Any
    clamp: float | None = None

    def __post_init__(self) -> None:
        check_clamp("Knapsack", self.clamp)
        for what, array in (("weights", self._weights), ("capacity", self._capacity)):
            if array.dtype.kind != "f" or not np.isfinite(array).all() or (array < 0).any():
                raise DeclarationError(f"Knapsack: {what} must be finite numbers of at least 0.")
        if self._weights.ndim != 1:
            raise DeclarationError(f"Knapsack: weights must have shape (n,), got {self._weights.shape}.")
        _ = self.sets

    @cached_property
    def _weights(self) -> np.ndarray:
        return _numbers(self.weights)

    @cached_property
    def _capacity(self) -> np.ndarray:
        return _numbers(self.capacity)

    @cached_property
    def sets(self) -> int | None:
        """How many feasible sets it holds; None for one that all share."""
        return count_items("Knapsack", capacity=(self._capacity, 0))

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Weights and capacities as whole numbers small enough for a table, None if there are none."""
        weights, capacity = self._weights, np.minimum(self._capacity, self._weights.sum())
        for scale in 10.0 ** np.arange(7):
            scaled, room = weights * scale, np.floor(capacity * scale * (1 + SLACK))
            if len(weights) * (room.max() + 1) > LARGEST_TABLE:
                return None
            if (abs(scaled - np.rint(scaled)) <= SLACK * scaled).all():
                return np.rint(scaled).astype(np.int64), room.astype(np.int64)
        return None

    @property
    def sense(self) -> float:
        """It maximises."""
        return -1.0

    def at(self, items: Any) -> Knapsack:
        """The oracle of some of its items, in this order."""
        return replace(self, capacity=picked(self._capacity, 0, items))

    def solve(self, costs: np.ndarray) -> np.ndarray:
        """The items taken, 0 or 1."""
        costs = admit("Knapsack", costs, len(self._weights), clamp=self.clamp, items=self.sets)
        taken = np.zeros(costs.shape)
        if self._table is None:
            return _search(costs, self._weights, by_row(self._capacity, 0, len(costs)), taken)
        weights, capacity = self._table
        room = by_row(capacity, 0, len(costs))
        step = max(8, NUMBERS_AT_ONCE // (int(capacity.max()) + 1))
        for first in range(0, len(costs), step):
            part = slice(first, first + step)
            _fill(np.ascontiguousarray(costs[part].T), weights, room[part], taken[part])
        return taken


def _numbers(value: Any) -> np.ndarray:
    given = np.asarray(value)
    return given.astype(np.float64) if given.dtype.kind in "iuf" else given


def _fill(values: np.ndarray, weights: np.ndarray, room: np.ndarray, taken: np.ndarray) -> None:
    """The table for values (n, batch), and the answers read off backwards into `taken`, (batch, n)."""
    most = int(room.max(initial=0)) + 1
    best, better = np.zeros((most, values.shape[1])), np.zeros((len(weights), most, values.shape[1]), bool)
    new = np.empty(best.shape)
    for value, weight, won in zip(values, weights, better, strict=True):
        if weight < most:
            rest = best[weight:]
            np.add(best[: most - weight], value, out=new[weight:])
            np.greater(new[weight:], rest, out=won[weight:])
            np.maximum(rest, new[weight:], out=rest)
    left, every = room.copy(), np.arange(values.shape[1])
    for i in reversed(range(len(weights))):
        won = better[i][left, every]
        taken[:, i] = won
        left -= won * weights[i]


def _search(values: np.ndarray, weights: np.ndarray, capacity: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """OR-Tools' branch and bound; weights and values as integers, weights scaled to 2^40 for the capacity."""
    try:
        from ortools.algorithms.python import knapsack_solver
    except ImportError:
        raise CapabilityError(
            "Knapsack: weights this fine, or a capacity this large, need OR-Tools: pip install 'bigrad[ortools]'."
        ) from None
    kinds = knapsack_solver.SolverType
    for row, (value, most, answer) in enumerate(zip(values, capacity, taken, strict=True)):
        able = np.flatnonzero((value > 0) & (weights <= most * (1 + SLACK)))
        if not len(able) or not most:
            answer[able] = 1
            continue
        kind = (
            kinds.KNAPSACK_64ITEMS_SOLVER if len(able) <= 64 else kinds.KNAPSACK_MULTIDIMENSION_BRANCH_AND_BOUND_SOLVER
        )
        solver = knapsack_solver.KnapsackSolver(kind, f"item {row}")
        profits = np.rint(value[able] * (2.0**40 / value[able].sum())).astype(np.int64)
        sizes = np.rint(weights[able] * (2.0**40 / most)).astype(np.int64)
        solver.init(profits.tolist(), [sizes.tolist()], [int(2.0**40 * (1 + SLACK))])
        solver.solve()
        answer[able] = [solver.best_solution_contains(i) for i in range(len(able))]
    return taken
