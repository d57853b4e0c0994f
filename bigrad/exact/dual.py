"""Zero-sum programs whose follower is a linear program, as one mixed-integer program: the follower's dual.

    phi(x) = min over y of (d + D'x)'y,  A y <= h, low <= y <= high
           = max over a, b, c >= 0 of  low'b - high'c - h'a   subject to   d + D'x + A'a - b + c == 0

so that the leader's min over x of c'x - phi(x) is one minimum over x, a, b and c. Rows y_i <= u (1 - x_j), by
which the leader removes y_i, become a cost M x_j of y_i. M is proven, not guessed: where the vertices of the follower's
polytope are integral, M = 1 + max cost - min cost over it makes any use of a removed y_i dearer than any answer, and an
answer is seen to by a copy of y. Integral vertices: the follower's integers may be dropped, and the cost is exact, where
its rows are a network's and its numbers whole. Israeli and Wood, "Shortest-path network interdiction", 2002.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from bigrad.discrete.milp import End, Milp, Optimum
from bigrad.discrete.nested import Nested
from bigrad.exact.answers import Follower, outer


@dataclass(frozen=True, eq=False)
class Dual:
    """The one program, x first; see the module. leaders: how many x."""

    milp: Milp
    leaders: int


def network(rows: np.ndarray) -> bool:
    """Whether rows, equal and opposite ones counted once and rows of one entry not at all, are a network's.

    Entries are 0, 1 or -1, at most two in a column, and the rows fall into two halves so that two entries of one column
    have opposite signs in the same half and equal signs in different ones. Such a matrix is totally unimodular.
    """
    if not np.isin(rows, (-1.0, 0.0, 1.0)).all():
        return False
    kept, seen = [], set()
    for row in rows[(rows != 0).sum(axis=1) > 1]:
        if (row + 0.0).tobytes() not in seen:
            seen.update([(row + 0.0).tobytes(), (0.0 - row).tobytes()])
            kept.append(row)
    if not kept:
        return True
    A = np.array(kept)
    if ((A != 0).sum(axis=0) > 2).any():
        return False
    near: list[list[tuple[int, int]]] = [[] for _ in kept]
    for column in A.T[(A != 0).sum(axis=0) == 2]:
        i, k = (int(place) for place in np.flatnonzero(column))
        turn = 1 if column[i] == column[k] else 0
        near[i].append((k, turn))
        near[k].append((i, turn))
    half = np.full(len(kept), -1)
    for root in range(len(kept)):
        if half[root] >= 0:
            continue
        half[root], stack = 0, [root]
        while stack:
            at = stack.pop()
            for other, turn in near[at]:
                if half[other] < 0:
                    half[other] = half[at] ^ turn
                    stack.append(other)
                elif half[other] != half[at] ^ turn:
                    return False
    return True


def _whole(*arrays: np.ndarray) -> bool:
    return all((a[np.isfinite(a)] == np.round(a[np.isfinite(a)])).all() for a in arrays)


def dualise(nested: Nested, follower: Follower, seed: int) -> Dual | None:
    """The one program, None where the module's conditions do not hold."""
    n, p, f = nested.leaders, nested.followers, follower
    if not nested.zero_sum or nested.leader_rows.matrix[:, n:].nnz:
        return None
    moved = f.G.any(axis=1)
    single = ((f.G[moved] != 0).sum(axis=1) == 1) & ((f.A[moved] != 0).sum(axis=1) == 1)
    if not single.all():
        return None
    A, h = f.A[~moved], f.h[~moved]
    high, penalty = f.high.copy(), np.zeros((p, n))
    integral = _whole(h, f.low, f.high) and network(A)
    if (f.integer.any() or moved.any()) and not integral:
        return None
    binary = nested.integer[:n] & (nested.lower[:n] == 0) & (nested.upper[:n] == 1)
    removed = []
    for g, a, top in zip(f.G[moved], f.A[moved], f.h[moved], strict=True):
        j, i = int(np.flatnonzero(g)[0]), int(np.flatnonzero(a)[0])
        if not binary[j] or a[i] <= 0 or g[j] != top or f.low[i] != 0 or top / a[i] != round(top / a[i]):
            return None
        high[i] = min(high[i], top / a[i])
        removed.append((i, j))
    if removed:
        spread = _spread(nested, f, A, h, high)
        if spread is None:
            return None
        for i, j in removed:
            penalty[i, j] = 1.0 + spread
    c = nested.leader.linear[:n]
    whole = integral and _whole(f.d, f.D, c) and bool(nested.integer[:n][(c != 0) | f.linking].all())
    return Dual(_program(nested, f, A, h, high, penalty, removed, whole, seed), n)


def _spread(nested: Nested, f: Follower, A: np.ndarray, h: np.ndarray, high: np.ndarray) -> float | None:
    """The dearest less the cheapest answer, over all x; None without a proof."""
    if (f.low < 0).any():
        return None
    n = nested.leaders
    at_low, at_high = f.D * nested.lower[:n, None], f.D * nested.upper[:n, None]
    dear, cheap = f.d + np.maximum(at_low, at_high).sum(axis=0), f.d + np.minimum(at_low, at_high).sum(axis=0)
    if not (np.isfinite(dear).all() and np.isfinite(cheap).all()):
        return None
    milp = Milp(-dear, sp.csr_array(A), np.full(len(h), -np.inf), h, f.low, high, np.zeros(len(high), dtype=bool))
    most = milp.solve()
    milp.costs(cheap)
    least = milp.solve()
    if most.end is not End.OPTIMAL or least.end is not End.OPTIMAL:
        return None
    return float(np.ceil(-most.value - least.value + 1e-6 * (1 + abs(most.value) + abs(least.value))))


def _program(
    nested: Nested,
    f: Follower,
    A: np.ndarray,
    h: np.ndarray,
    high: np.ndarray,
    penalty: np.ndarray,
    removed: list[tuple[int, int]],
    whole: bool,
    seed: int,
) -> Milp:
    n, p, m = nested.leaders, nested.followers, len(h)
    copy = p if removed else 0
    finite_low, finite_high = np.isfinite(f.low), np.isfinite(high)
    size = n + m + 2 * p + copy
    costs = np.zeros(size)
    costs[:n] = nested.leader.linear[:n]
    costs[n : n + m] = h
    costs[n + m : n + m + p] = np.where(finite_low, -f.low, 0.0)
    costs[n + m + p : n + m + 2 * p] = np.where(finite_high, high, 0.0)
    eye = sp.eye_array(p)
    dual = sp.hstack([sp.csr_array(f.D.T + penalty), sp.csr_array(A.T), -eye, eye, sp.csr_array((p, copy))])
    bound = outer(nested)
    blocks = [dual, sp.hstack([bound.matrix[:, :n], sp.csr_array((len(bound.lower), size - n))])]
    lower, upper = [-f.d, bound.lower], [-f.d, bound.upper]
    if copy:
        k = len(removed)
        at = np.arange(k)
        i, j = (np.array(side) for side in zip(*removed, strict=True))
        blocks.append(sp.hstack([sp.csr_array((m, size - p)), sp.csr_array(A)]))
        off = sp.csr_array(
            (np.concatenate([high[i], np.ones(k)]), (np.tile(at, 2), np.concatenate([j, size - p + i]))),
            shape=(k, size),
        )
        blocks.append(off)
        lower += [np.full(m, -np.inf), np.full(k, -np.inf)]
        upper += [h, high[i]]
    low = np.concatenate([nested.lower[:n], np.zeros(m + 2 * p), f.low[:copy]])
    top = np.concatenate(
        [
            nested.upper[:n],
            np.full(m, np.inf),
            np.where(finite_low, np.inf, 0.0),
            np.where(finite_high, np.inf, 0.0),
            high[:copy],
        ]
    )
    integer = np.concatenate([nested.integer[:n], np.zeros(size - n, dtype=bool)])
    matrix = sp.csr_array(sp.vstack([sp.csr_array(b) for b in blocks]))
    if whole:  # the value is a whole number: bounds may be rounded up to the next
        value = sp.csr_array(np.concatenate([costs, [-1.0]])[None])
        matrix = sp.csr_array(sp.vstack([sp.hstack([matrix, sp.csr_array((matrix.shape[0], 1))]), value]))
        costs = np.concatenate([np.zeros(size), [1.0]])
        lower, upper = [*lower, np.array([-np.inf])], [*upper, np.zeros(1)]
        low, top, integer = np.append(low, -np.inf), np.append(top, np.inf), np.append(integer, True)
    return Milp(costs, matrix, np.concatenate(lower), np.concatenate(upper), low, top, integer, seed)


def solve(dual: Dual, nested: Nested, seconds: float) -> tuple[Optimum, float]:
    """The optimum, and the bound below it that is proven, constants included."""
    found, bound = dual.milp.search(seconds)
    constant = nested.leader.constant
    return Optimum(
        found.end, found.value + constant, None if found.v is None else found.v[: dual.leaders]
    ), bound + constant
