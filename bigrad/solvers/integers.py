"""Integer leader variables held at values: what is left is a bilevel quadratic program without them, and its answer put
back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bigrad.quadratic import Data, Sizes
from bigrad.solution import Status
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
