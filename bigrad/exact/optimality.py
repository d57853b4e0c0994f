"""A linear follower by its optimality conditions, for SCIP: multipliers and slacks as special ordered sets.

    A y + s == h - G x,  s >= 0,  d + D'x + A'a - b + c == 0,  a, b, c >= 0,  a's == b'(y - low) == c'(high - y) == 0

No multiplier is bounded, no constant made up, and the leader's linking variables may be continuous: the set of
bilevel-feasible points is closed. Fortuny-Amat and McCarl, "A representation and economic interpretation of a two-level
programming problem", 1981; with ordered sets after Siddiqui and Gabriel, 2013.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from bigrad.discrete.nested import Nested
from bigrad.exact.answers import Follower, outer
from bigrad.solvers.sos import Sos


def conditions(nested: Nested, f: Follower) -> Sos:
    """The one-level program in (x, y, s, a, b, c, distances to the bounds of y)."""
    n, p, m = nested.leaders, nested.followers, len(f.h)
    lows, highs = np.flatnonzero(np.isfinite(f.low)), np.flatnonzero(np.isfinite(f.high))
    k, q = len(lows), len(highs)
    parts = np.cumsum([0, n, p, m, m, k, q, k, q])
    x, y, s, a, b, c, sl, sh = (slice(i, j) for i, j in pairwise(parts))
    size = int(parts[-1])

    def block(rows: int, *entries: tuple[slice, np.ndarray]) -> np.ndarray:
        out = np.zeros((rows, size))
        for place, values in entries:
            out[:, place] = values
        return out

    eye = np.eye(p)
    equal = [
        block(m, (x, f.G), (y, f.A), (s, np.eye(m))),
        block(p, (x, f.D.T), (a, f.A.T), (b, -eye[:, lows]), (c, eye[:, highs])),
        block(k, (y, eye[lows]), (sl, -np.eye(k))),
        block(q, (y, eye[highs]), (sh, np.eye(q))),
    ]
    tops = [f.h, -f.d, f.low[lows], f.high[highs]]
    rows, top, flags = list(equal), list(tops), [np.ones(len(t), dtype=bool) for t in tops]
    bound = outer(nested)
    matrix = bound.matrix.toarray()
    for sign, limit in ((1.0, bound.upper), (-1.0, bound.lower)):
        kept = np.isfinite(limit)
        rows.append(block(int(kept.sum()), (slice(0, n + p), sign * matrix[kept])))
        top.append(sign * limit[kept])
        flags.append(np.zeros(int(kept.sum()), dtype=bool))
    H, linear = np.zeros((size, size)), np.zeros(size)
    C = nested.leader.cross.toarray()
    H[x, y], H[y, x] = C, C.T
    linear[: n + p] = nested.leader.linear
    low, high = np.zeros(size), np.full(size, np.inf)
    low[: n + p], high[: n + p] = nested.lower, nested.upper
    pairs = [(s, a), (sl, b), (sh, c)]
    together = np.concatenate([np.stack([np.arange(u.start, u.stop), np.arange(v.start, v.stop)], 1) for u, v in pairs])
    return Sos(
        H,
        linear,
        nested.leader.constant,
        np.concatenate(rows),
        np.concatenate(top),
        np.concatenate(flags),
        low,
        high,
        together.astype(int),
        np.flatnonzero(nested.integer[:n]),
    )
