"""Knapsack interdiction: the leader removes items within a budget, the follower packs the best of the rest.

    min over x of   max over y of p'y    subject to   w'y <= C,  y <= 1 - x,  v'x <= B,   x and y binary

Items are decided one after the other, the most efficient first. If the follower too decided item by item, seeing only
what the leader has decided so far, it would earn less: that game's value W_i(b, c), with budget b and capacity c left
for the items from i on, is a bound computed by dynamic programming,

    W_i(b, c) = min( W_{i+1}(b - v_i, c),  max( W_{i+1}(b, c),  p_i + W_{i+1}(b, c - w_i) ) ),

and a node with the first i items decided is bounded by max over c of K(c) + W_i(b, C - c), K the plain knapsack of the
items left so far. Where the table would be too large, the leader's prices are rounded down and the follower's weights
up, which keeps it a bound. Weninger and Fukasawa, "A fast combinatorial algorithm for the bilevel knapsack problem with
interdiction constraints", 2023.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from bigrad.discrete.nested import Nested

CELLS = 120_000
"""Entries of the table for one item, at most."""
WIDE = 200_000
"""Capacities, at most, that the exact knapsack of a node is kept for."""


@dataclass(frozen=True, eq=False)
class Interdiction:
    """The program of the module's formula; items that cannot be removed have the price B + 1.

    p, w, v: (items,); w and v whole numbers. remover: (items,) the x that removes item j, -1 if none does.
    """

    p: np.ndarray
    w: np.ndarray
    v: np.ndarray
    C: int
    B: int
    remover: np.ndarray


@dataclass(frozen=True, eq=False)
class Cut:
    """Where the search ended: the items removed, (items,), the follower's best, a proven bound below it, the nodes."""

    x: np.ndarray
    value: float
    bound: float
    nodes: int


def recognise(nested: Nested) -> Interdiction | None:
    """The program as a knapsack interdiction, None if it is none."""
    n, p = nested.leaders, nested.followers
    if not nested.zero_sum or nested.follower.cross.nnz or not n or not p:
        return None
    if (nested.leader.linear[:n] != 0).any() or not nested.integer.all():
        return None
    if (nested.lower != 0).any() or (nested.upper != 1).any():
        return None
    budget, rows = nested.leader_rows, nested.follower_rows
    if len(budget.lower) != 1 or np.isfinite(budget.lower).any() or not np.isfinite(budget.upper).all():
        return None
    prices, limit = budget.matrix.toarray()[0], budget.upper[0]
    matrix, costs = rows.matrix.toarray(), nested.follower.linear[n:]
    if prices[n:].any() or np.isfinite(rows.lower).any() or (costs > 0).any():
        return None
    remover, packing = np.full(p, -1), []
    for row, upper in zip(matrix, rows.upper, strict=True):
        above, below = np.flatnonzero(row[:n]), np.flatnonzero(row[n:])
        if not len(above):
            packing.append((row[n:], upper))
        elif (
            len(above) == len(below) == 1 and row[above[0]] == row[n + below[0]] == upper > 0 and remover[below[0]] < 0
        ):
            remover[below[0]] = above[0]
        else:
            return None
    used = remover[remover >= 0]
    if len(packing) != 1 or len(set(used.tolist())) != len(used):
        return None
    w, C = packing[0]
    if not all(_whole(a) for a in (w, prices)) or (w < 0).any() or (prices < 0).any() or C < 0 or limit < 0:
        return None
    B, room = int(np.floor(limit + 1e-9)), int(np.floor(C + 1e-9))
    if room > WIDE:
        return None
    v = np.where(remover >= 0, prices[remover], B + 1).astype(np.int64)
    return Interdiction(-costs, w.astype(np.int64), v, room, B, remover)


def _whole(a: np.ndarray) -> bool:
    return bool((a == np.round(a)).all() and (abs(a) < 2**40).all())


def solve(program: Interdiction, end: float) -> Cut:
    """Depth first until `end`, a reading of time.perf_counter."""
    order = np.lexsort((program.w, -program.p / np.maximum(program.w, 1e-9)))
    p, w, v = program.p[order], program.w[order], program.v[order]
    n, C, B = len(p), min(program.C, int(w.sum())), min(program.B, int(v.sum()))
    coarse_v, coarse_w = _steps(B, C)
    tables = _tables(p, -(-w // coarse_w), v // coarse_v, B // coarse_v, C // coarse_w)
    places = (C - np.arange(C + 1)) // coarse_w
    grain = 1.0 if _whole(p) else 0.0
    best, chosen, nodes = np.inf, np.zeros(n, dtype=bool), 0

    def bound(i: int, b: int, K: np.ndarray) -> float:
        return float((K + tables[i][b // coarse_v][places]).max())

    K = np.zeros(C + 1)
    stack = [(bound(0, B, K), 0, B, K, np.zeros(n, dtype=bool))]
    while stack:
        if nodes % 64 == 0 and time.perf_counter() > end and np.isfinite(best):
            break
        below, i, b, K, x = stack.pop()
        if _closed(below, best, grain):
            continue
        nodes += 1
        if i == n:
            if K[C] < best:
                best, chosen = float(K[C]), x
            continue
        children = []
        packed = K.copy()
        if w[i] <= C:
            np.maximum(K[w[i] :], K[: C + 1 - w[i]] + p[i], out=packed[w[i] :])
        children.append((bound(i + 1, b, packed), i + 1, b, packed, x))
        if v[i] <= b:
            removed = x.copy()
            removed[i] = True
            children.append((bound(i + 1, b - v[i], K), i + 1, b - int(v[i]), K, removed))
            children.sort(key=lambda child: -child[0])
        stack.extend(children)
    opened = [node[0] for node in stack if not _closed(node[0], best, grain)]
    answer = np.zeros(n, dtype=bool)
    answer[order] = chosen
    return Cut(answer, best, min([best, *opened]), nodes)


def _closed(bound: float, best: float, grain: float) -> bool:
    return bound > best - grain + 1e-6 * (1 + abs(best)) if grain else bound >= best - 1e-9 * (1 + abs(best))


def _steps(B: int, C: int) -> tuple[int, int]:
    """How coarse prices and weights must be for a table of CELLS."""
    by_v = by_w = 1
    while (B // by_v + 1) * (C // by_w + 1) > CELLS:
        if B // by_v > C // by_w:
            by_v += 1
        else:
            by_w += 1
    return by_v, by_w


def _tables(p: np.ndarray, w: np.ndarray, v: np.ndarray, B: int, C: int) -> list[np.ndarray]:
    """W_0 ... W_n, each (B + 1, C + 1)."""
    last = np.zeros((B + 1, C + 1))
    tables = [last]
    for i in range(len(p) - 1, -1, -1):
        kept = last.copy()
        if w[i] <= C:
            np.maximum(last[:, w[i] :], last[:, : C + 1 - w[i]] + p[i], out=kept[:, w[i] :])
        if v[i] <= B:
            np.minimum(kept[v[i] :], last[: B + 1 - v[i]], out=kept[v[i] :])
        last = kept
        tables.append(last)
    return tables[::-1]
