"""Integer leader variables held at values: what is left is a bilevel quadratic program without them, and its answer put
back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bigrad.algebra.quadratic import Data, Sizes
from bigrad.programs.system import Follower
from bigrad.solution import Status
from bigrad.solvers.base import EXACT
from bigrad.solvers.stages import System
from bigrad.solvers.verdict import Verdict


@dataclass(frozen=True, eq=False)
class Held:
    """One item's program with its integer variables at values. data, sizes: of the rest.

    at: their places in x. values: what they are held at. keep: the places in the whole w of the rest's unknowns.
    """

    data: Data
    sizes: Sizes
    at: np.ndarray
    values: np.ndarray
    keep: np.ndarray
    width: int

    @staticmethod
    def of(data: Data, sizes: Sizes, at: np.ndarray, values: np.ndarray) -> Held:
        """The rest of the program; upper rows in which nothing is left are dropped."""
        d, k = data, values
        Q, G, E = (np.delete(m, at, -1) for m in (d.Q, d.G, d.E))
        inequality, equality = G.any(-1), E.any(-1)
        held = d._replace(
            Q=np.delete(Q, at, 0),
            c=np.delete(d.c + d.Q[:, at] @ k, at),
            c0=d.c0 + d.c[at] @ k + k @ d.Q[np.ix_(at, at)] @ k / 2,
            G=G[inequality],
            g=(d.g - d.G[:, at] @ k)[inequality],
            E=E[equality],
            e=(d.e - d.E[:, at] @ k)[equality],
            C=np.delete(d.C, at, -1),
            p=d.p + d.C[:, at] @ k,
            B=np.delete(d.B, at, -1),
            b=d.b - d.B[:, at] @ k,
            K=np.delete(d.K, at, -1),
            h=d.h - d.K[:, at] @ k,
        )
        rest = sizes._replace(x=sizes.x - len(at), upper=len(held.g), upper_equalities=len(held.e))
        gamma, eps = (np.arange(s.start, s.stop) for s in sizes.blocks[7:])
        width = sizes.blocks[-1].stop
        gone = np.concatenate([at, gamma[~inequality], eps[~equality]])
        return Held(held, rest, at, values, np.delete(np.arange(width), gone), width)

    def restore(self, verdict: Verdict) -> Verdict:
        """The verdict on the rest as one on the whole: the integer variables are not free, and nothing is proven of others
        than these.
        """
        status = Status.LOCAL if verdict.status is Status.GLOBAL else verdict.status
        verdict = verdict._replace(status=status, bound=-np.inf)
        if verdict.w is None or verdict.free is None:
            return verdict
        w, free = np.zeros(self.width), np.zeros(self.width, bool)
        w[self.at], w[self.keep], free[self.keep] = self.values, verdict.w, verdict.free
        return verdict._replace(w=w, free=free)


class HeldSystem:
    """The same of a smooth program at fixed inputs: a System (bigrad/solvers/stages.py) in what is left of w.

    Upper rows in which nothing is left are dropped; `kept` says whether they hold.
    """

    def __init__(self, whole: System, at: np.ndarray, values: np.ndarray):
        layout, n = whole.layout, whole.layout.primal
        self.whole, self.at, self.values, self.priced = whole, at, values, whole.priced
        self._v = np.setdiff1d(np.arange(n), at)
        self._template = np.zeros(layout.blocks[-1].stop)
        self._template[at] = values
        (rows, columns), (a, b) = whole.jacobian_at, whole.hessian_at
        gamma, eps = (np.arange(s.start, s.stop) - n for s in layout.blocks[7:])
        used = np.isin(columns, self._v)
        empty = np.setdiff1d(np.r_[gamma, eps], rows[used])
        left = whole.rows(self._full(whole.origin[self._v]))[empty]
        off = np.where(np.isin(empty, eps), abs(left), left).max(initial=0.0)
        self.kept = bool(off <= EXACT * (1 + abs(values).max(initial=0.0)))
        self._w = np.r_[self._v, n + np.setdiff1d(np.arange(len(self._template) - n), empty)]
        place = np.cumsum(np.isin(np.arange(len(self._template)), self._w)) - 1
        row = place[n:] - len(self._v)
        self._rows = self._w[len(self._v) :] - n
        inside = np.isin(a, self._v) & np.isin(b, self._v)
        self._used, self._inside = used, inside
        self.jacobian_at = row[rows[used]], place[columns[used]]
        self.hessian_at = place[a[inside]], place[b[inside]]
        self.layout = layout._replace(
            x=layout.x - len(at),
            upper=layout.upper - int(np.isin(gamma, empty).sum()),
            upper_equalities=layout.upper_equalities - int(np.isin(eps, empty).sum()),
        )
        self.low, self.high, self.origin = (u[self._v] for u in (whole.low, whole.high, whole.origin))
        self.bound_rows, self.bound_columns = row[whole.bound_rows], place[whole.bound_columns]
        old = whole.blocks
        moved = {name: place[getattr(old, name)] for name in ("s", "lam", "mu", "chart")}
        self.blocks = replace(old, **moved, domain=row[old.domain])

    def _full(self, v: np.ndarray) -> np.ndarray:
        full = self._template[: self.whole.layout.primal].copy()
        full[self._v] = v
        return full

    def restored(self, w: np.ndarray) -> np.ndarray:
        """The whole w of what is left of it."""
        full = self._template.copy()
        full[self._w] = w
        return full

    def restore(self, verdict: Verdict) -> Verdict:
        """The verdict on the rest as one on the whole, as that of `Held`."""
        status = Status.LOCAL if verdict.status is Status.GLOBAL else verdict.status
        verdict = verdict._replace(status=status, bound=-np.inf)
        if verdict.w is None or verdict.free is None:
            return verdict
        free = np.zeros(len(self._template), bool)
        free[self._w] = verdict.free
        return verdict._replace(w=self.restored(verdict.w), free=free)

    @property
    def convex(self) -> bool:
        """Whether the high-point relaxation is a convex program, as far as that of the whole tells."""
        return self.whole.convex

    def objective(self, v: np.ndarray) -> float:
        """F(v)."""
        return self.whole.objective(self._full(v))

    def gradient(self, v: np.ndarray) -> np.ndarray:
        """Gradient of F."""
        return self.whole.gradient(self._full(v))[self._v]

    def rows(self, v: np.ndarray) -> np.ndarray:
        """All rows r(v)."""
        return self.whole.rows(self._full(v))[self._rows]

    def jacobian(self, v: np.ndarray) -> np.ndarray:
        """Entries of the Jacobian of r."""
        return self.whole.jacobian(self._full(v))[self._used]

    def hessian(self, v: np.ndarray, factor: float, m: np.ndarray) -> np.ndarray:
        """Entries of the lower triangle of the Hessian of factor F + m'r."""
        multipliers = np.zeros(len(self._template) - self.whole.layout.primal)
        multipliers[self._rows] = m
        return self.whole.hessian(self._full(v), factor, multipliers)[self._inside]

    def matrix(self, w: np.ndarray) -> np.ndarray:
        """Second derivatives of L."""
        return self.whole.matrix(self.restored(w))[np.ix_(self._w, self._w)]

    def residual(self, w: np.ndarray) -> np.ndarray:
        """Gradient of L."""
        return self.whole.residual(self.restored(w))[self._w]

    def follower(self, v: np.ndarray) -> Follower:
        """The lower level at the leader's part of v."""
        below = self.whole.follower(self._full(v))
        places = np.searchsorted(self._v, below.at)
        return below._replace(at=places, blocks=self.blocks)
