"""Answers: the follower of a nested program as rows in one direction, its answers to a leader's decision, and a pool.

    phi(x) = min over y of (d + D'x)'y   subject to   G x + A y <= h,  y within bounds, some y integer

An answer found for one decision is a rival of the follower's at every decision that leaves it feasible: at those,
(d + D'x)'y <= (d + D'x)'rival for any bilevel-feasible y. It stays one when objectives change, which is why a pool of
rivals can be shared over a batch and over epochs. Lozano and Smith, "A value-function-based exact approach for the
bilevel mixed-integer programming problem", 2017.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from bigrad.discrete.milp import End, Milp
from bigrad.discrete.nested import Nested, Rows
from bigrad.solution import InputError

CLOSE = 1e-6
"""Feasibility of rows: how far a value may be beyond its bound, relative to 1 + |bound|."""
GRIDS = (1, 2, 4, 5, 8, 10, 20, 25, 50, 100, 1000, 10000)
"""Factors that are tried to make the coefficients of a row whole numbers."""


@dataclass(frozen=True, eq=False)
class Follower:
    """The follower of the module's formula.

    G: (rows, leader's), A: (rows, follower's), h: (rows,); only rows that contain y. step: (rows,), the grid on which
    G x lies for integer x, 0 where there is none. linking: (leader's,), which x the rows or costs of y contain.
    """

    G: np.ndarray
    A: np.ndarray
    h: np.ndarray
    low: np.ndarray
    high: np.ndarray
    integer: np.ndarray
    d: np.ndarray
    D: np.ndarray
    step: np.ndarray
    linking: np.ndarray

    @staticmethod
    def of(nested: Nested) -> Follower:
        """The follower of a nested program."""
        n, rows = nested.leaders, nested.follower_rows
        matrix = rows.matrix.toarray()
        kept = matrix[:, n:].any(axis=1)
        above, below = kept & np.isfinite(rows.upper), kept & np.isfinite(rows.lower)
        both = np.concatenate([matrix[above], -matrix[below]])
        G, A, h = both[:, :n], both[:, n:], np.concatenate([rows.upper[above], -rows.lower[below]])
        D = nested.follower.cross.toarray()
        return Follower(
            G,
            A,
            h,
            nested.lower[n:],
            nested.upper[n:],
            nested.integer[n:].astype(bool),
            nested.follower.linear[n:],
            D,
            np.array([_grid(row, nested.integer[:n]) for row in G]),
            G.any(axis=0) | D.any(axis=1),
        )

    def costs(self, x: np.ndarray) -> np.ndarray:
        """The costs of y at a decision, (follower's,)."""
        return self.d + self.D.T @ x

    def fits(self, x: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Which answers (count, follower's) are feasible at a decision, as far as rows with x tell; bool (count,)."""
        return (answers @ self.A.T + self.G @ x <= self.h + CLOSE * (1 + abs(self.h))).all(axis=1)


def _grid(row: np.ndarray, integer: np.ndarray) -> float:
    if not row.any():
        return 1.0
    if not integer[row != 0].all():
        return 0.0
    for factor in GRIDS:
        whole = np.round(row * factor)
        if abs(row * factor - whole).max() < 1e-9 * factor:
            return float(np.gcd.reduce(abs(whole).astype(int))) / factor
    return 0.0


class Pool:
    """Rivals: follower answers that are feasible in their own rows, kept whatever the costs.

    One pool serves all programs with the same follower rows and bounds; another program is refused. Not for several
    threads at once.
    """

    def __init__(self, limit: int = 10000) -> None:
        self.limit, self._rows = limit, ""
        self._answers: list[np.ndarray] = []
        self._known: set[bytes] = set()
        self._array = np.zeros((0, 0))

    def __len__(self) -> int:
        return len(self._answers)

    def claim(self, follower: Follower) -> None:
        """Bind the pool to the rows of its first program; InputError for a program with others."""
        parts = (follower.A, follower.G, follower.h, follower.low, follower.high, follower.integer)
        key = hashlib.sha256(b"".join(np.ascontiguousarray(p).tobytes() for p in parts)).hexdigest()
        if self._rows and self._rows != key:
            raise InputError(
                "Pool: this pool holds answers of another follower, with other rows or bounds; give a new Pool()."
            )
        self._rows = key

    def add(self, y: np.ndarray) -> bool:
        """Keep an answer; returns whether it is a new one."""
        key = (np.round(y, 9) + 0.0).tobytes()
        if key in self._known or len(self._answers) >= self.limit:
            return False
        self._known.add(key)
        self._answers.append(y)
        return True

    @property
    def answers(self) -> np.ndarray:
        """All of them, (count, follower's)."""
        if len(self._array) != len(self._answers):
            self._array = np.array(self._answers)
        return self._array


@dataclass(frozen=True, eq=False)
class Answer:
    """phi(x) without terms in x alone, and an optimal y; how the solve ended."""

    end: End
    value: float
    y: np.ndarray | None


class Responder:
    """Solves the follower, and the leader's side of a decision, by HiGHS. Not for several threads at once."""

    def __init__(self, nested: Nested, follower: Follower, seed: int = 0):
        self.nested, self.follower, self.solves = nested, follower, 0
        f, n = follower, nested.leaders
        free = np.full(len(f.h), -np.inf)
        self._milp = Milp(f.d, sp.csr_array(f.A), free, f.h, f.low, f.high, f.integer, seed)
        self._free = free
        self._seed = seed
        self._blockable = f.G.any(axis=1)
        self._n = n

    def answer(self, x: np.ndarray, seconds: float = np.inf) -> Answer:
        """The follower's optimum at a decision."""
        f = self.follower
        self.solves += 1
        self._milp.costs(f.costs(x))
        self._milp.row_bounds(self._free, f.h - f.G @ x)
        found = self._milp.solve(seconds)
        y = found.v
        return Answer(found.end, float(f.costs(x) @ y) if y is not None else np.nan, y)

    def ray(self, x: np.ndarray) -> np.ndarray | None:
        """A direction in which the follower's answers stay feasible and get cheaper for ever; None if there is none."""
        f = self.follower
        low, high = np.where(np.isfinite(f.low), 0.0, -1.0), np.where(np.isfinite(f.high), 0.0, 1.0)
        if not (high - low).any():
            return None
        none = np.zeros(len(low), dtype=bool)
        top = np.zeros(len(f.h))
        found = Milp(
            f.costs(x), sp.csr_array(f.A), np.full(len(top), -np.inf), top, low, high, none, self._seed
        ).solve()
        return found.v if found.v is not None and found.value < -1e-9 else None

    def sturdy(self, x: np.ndarray, level: float, weights: np.ndarray, seconds: float) -> np.ndarray | None:
        """An answer at a decision, of cost at most `level`, that keeps the most slack in the rows that x moves.

        It has the greatest sum of min(slack_i / weight_i, 1): weight (rows,) is how much the leader can take from a row.
        """
        f = self.follower
        rows = np.flatnonzero(self._blockable & (weights > CLOSE))
        if not len(rows):
            return None
        m, p, k = len(f.h), len(f.d), len(rows)
        weight = sp.csr_array((weights[rows], (rows, np.arange(k))), shape=(m, k))
        level_row = sp.csr_array(np.concatenate([f.costs(x), np.zeros(k)])[None])
        matrix = sp.csr_array(sp.vstack([sp.hstack([sp.csr_array(f.A), weight]), level_row]))
        low, high = np.concatenate([f.low, np.zeros(k)]), np.concatenate([f.high, np.ones(k)])
        integer = np.concatenate([f.integer, np.zeros(k, dtype=bool)])
        costs, upper = np.concatenate([np.zeros(p), -np.ones(k)]), np.concatenate([f.h - f.G @ x, [level]])
        milp = Milp(costs, matrix, np.full(len(upper), -np.inf), upper, low, high, integer, self._seed)
        self.solves += 1
        found = milp.solve(seconds)
        return None if found.v is None else found.v[:p]

    def reaction(self, x: np.ndarray, phi: float, seconds: float = np.inf) -> tuple[End, np.ndarray | None]:
        """The leader's best (x, y) where the linking part of x is as given and y is an optimal answer to it."""
        nested, f, n = self.nested, self.follower, self._n
        last = sp.csr_array(np.concatenate([np.zeros(n), f.costs(x)])[None])
        matrix = sp.csr_array(sp.vstack([nested.leader_rows.matrix, nested.follower_rows.matrix, last]))
        lower = np.concatenate([nested.leader_rows.lower, nested.follower_rows.lower, [-np.inf]])
        upper = np.concatenate([nested.leader_rows.upper, nested.follower_rows.upper, [phi + slack(phi)]])
        low, high = nested.lower.copy(), nested.upper.copy()
        held = f.linking | nested.leader.cross.toarray().any(axis=1)
        low[:n][held] = high[:n][held] = x[held]
        costs = nested.leader.linear.copy()
        costs[n:] += nested.leader.cross.T @ np.where(held, x, 0.0)
        self.solves += 1
        found = Milp(costs, matrix, lower, upper, low, high, nested.integer, self._seed).solve(seconds)
        return found.end, found.v


def slack(phi: float) -> float:
    """How far above its optimum a follower's answer may be and still count as optimal."""
    return 1e-8 * (1 + abs(phi))


def outer(nested: Nested) -> Rows:
    """The leader's rows, and those of the follower's rows that contain no y, which bind the leader just so."""
    rows = nested.follower_rows
    bare = ~rows.matrix[:, nested.leaders :].toarray().any(axis=1)
    return joined([nested.leader_rows, Rows(sp.csr_array(rows.matrix[bare]), rows.lower[bare], rows.upper[bare])])


def joined(parts: list[Rows]) -> Rows:
    """Rows one below the other."""
    return Rows(
        sp.csr_array(sp.vstack([p.matrix for p in parts])),
        np.concatenate([p.lower for p in parts]),
        np.concatenate([p.upper for p in parts]),
    )
