"""Exact tours of few cities by dynamic programming over sets, for a whole batch.

    D(S, j) = min over k in S without j of D(S without j, k) + c(k, j)

the shortest way from the last city through all of S to j (Held and Karp, "A dynamic programming approach to sequencing
problems", 1962); n^2 2^n steps.
"""

from __future__ import annotations

from functools import cache

import numpy as np


@cache
def _steps(others: int) -> list[tuple[int, np.ndarray]]:
    """Each city j with the sets of one size that hold it, (count,), bit by bit, smaller sizes first, from two cities on."""
    sets = np.arange(2**others)
    sizes = sum((sets >> k) & 1 for k in range(others))
    return [(j, sets[(sizes == size) & ((sets >> j) & 1 == 1)]) for size in range(2, others + 1) for j in range(others)]


def tours(costs: np.ndarray) -> np.ndarray:
    """The cities in the order of the shortest tours, (n, batch), the last city first.

    costs: (n, n, batch), symmetric. Ties: of the last cities of the way back, the lowest.
    """
    n, batch = len(costs), costs.shape[2]
    others, every = n - 1, np.arange(batch)
    table = np.full((2**others, others, batch), np.inf)
    between, home = np.ascontiguousarray(costs[:-1, :-1]), costs[-1, :-1]
    table[2 ** np.arange(others), np.arange(others)] = home
    for j, sets in _steps(others):
        ways = table[sets ^ (1 << j)]
        ways += between[:, j]
        table[sets, j] = ways.min(axis=1)
    order = np.full((n, batch), others)
    left = np.full(batch, 2**others - 1)
    at = (table[-1] + home).argmin(axis=0)
    order[1] = at
    for place in range(2, n):
        left = left ^ (1 << at)
        at = (table[left, :, every] + between[:, at, every].T).argmin(axis=1)
        order[place] = at
    return order
