"""A smooth bilevel program at fixed parameter values, as the functions that a solver calls; words of smooth.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ParamConeProg

from bigrad.programs.bilinear import Bilinear
from bigrad.programs.blocks import NO_BLOCKS, Blocks
from bigrad.programs.conic import Conic
from bigrad.programs.engine import Engine


class Layout(NamedTuple):
    """Sizes of the parts of w: leader, follower and auxiliary variables, pairs, follower equalities, then rows of
    stationarity, upper inequalities and upper equalities.
    """

    x: int
    y: int
    extra: int
    pairs: int
    equalities: int
    stationarity: int
    upper: int
    upper_equalities: int

    @property
    def primal(self) -> int:
        """Length of v = (x, y, extra, lam, nu)."""
        return sum(self[:5])

    @property
    def blocks(self) -> list[slice]:
        """Slices of w = (x, y and extra, lam, nu, sigma, kappa, eta, gamma, eps)."""
        x, y, extra, pairs, equalities, stationarity, *upper = self
        ends = np.cumsum([0, x, y + extra, pairs, equalities, stationarity, pairs, equalities, *upper])
        return [slice(int(a), int(b)) for a, b in pairwise(ends)]


class Follower(NamedTuple):
    """The lower level at a fixed x, in all of its variables u, whose places in v are `at`.

    min over u of 1/2 u'Pu + q'u with A u + b >= 0, H u + h == 0, and C u + d in the cones of `blocks`; in a game, an equilibrium
    of stationarity P u + N u + q. P and the rows are taken at the other followers' present answers, if they depend on
    them: `moving`.
    """

    P: np.ndarray
    q: np.ndarray
    A: np.ndarray
    b: np.ndarray
    H: np.ndarray
    h: np.ndarray
    at: np.ndarray
    C: np.ndarray
    d: np.ndarray
    blocks: Blocks = NO_BLOCKS
    N: np.ndarray | None = None
    moving: bool = False


@dataclass(frozen=True, eq=False)
class Compiled:
    """A Smooth program in numbers, for any parameter values.

    lower: its rows of the follower. engine: the upper level. promoted: the same with the wanted parameters as unknowns.
    cone: CVXPY's cone program of the lower level, conic and blocks: its cones and their rows; columns: the place in v of
    each of its variables; inputs: the place in e = (v, theta, 1) of each column of its tensors. low, high: bounds on v.
    origin: a v where all can be evaluated. priced: whether the upper level mentions the follower's multipliers.
    """

    layout: Layout
    lower: Bilinear
    engine: Engine
    promoted: Callable[[tuple[bool, ...]], Engine]
    cone: ParamConeProg
    conic: Conic
    blocks: Blocks
    columns: np.ndarray
    inputs: np.ndarray
    low: np.ndarray
    high: np.ndarray
    origin: np.ndarray
    priced: bool
    convex: Callable[[np.ndarray], bool]


class System:
    """A Smooth program at fixed parameter values: the functions that a solver calls, at v or at w = (v, m)."""

    def __init__(self, compiled: Compiled, theta: np.ndarray):
        self.compiled, self.tail = compiled, np.r_[theta, 1.0]
        self.layout, self.lower, self.engine = compiled.layout, compiled.lower, compiled.engine
        self.low, self.high, self.origin = compiled.low, compiled.high, compiled.origin
        self.priced, engine = compiled.priced, self.engine
        n, count = self.layout.primal, self.lower.count
        self.below = np.flatnonzero(np.isfinite(self.low[: n - self.layout.pairs - self.layout.equalities]))
        self.above = np.flatnonzero(np.isfinite(self.high))
        self.bound_columns = bound = np.r_[self.below, self.above]
        self.bound_rows = count + engine.inequalities + np.arange(len(bound))
        self.blocks = blocks = compiled.blocks
        behind = engine.inequalities + len(bound) + len(blocks.domain)
        self._slot = count + np.r_[np.arange(engine.inequalities), behind + np.arange(engine.equalities)]
        self._signs = np.r_[-np.ones(len(self.below)), np.ones(len(self.above))]
        self.jacobian_at = (
            np.r_[
                self.lower.jacobian_at.rows, self._slot[engine.jacobian_at.rows], self.bound_rows, blocks.jacobian_at[0]
            ],
            np.r_[self.lower.jacobian_at.columns, engine.jacobian_at.columns, bound, blocks.jacobian_at[1]],
        )
        self.hessian_at = (
            np.r_[self.lower.hessian_at.rows, engine.hessian_at.rows, blocks.hessian_at[0]],
            np.r_[self.lower.hessian_at.columns, engine.hessian_at.columns, blocks.hessian_at[1]],
        )

    @property
    def convex(self) -> bool:
        """Whether the high-point relaxation is a convex program."""
        return self.compiled.convex(self.tail[:-1])

    def objective(self, v: np.ndarray) -> float:
        """F(v)."""
        return self.engine.objective(v)

    def gradient(self, v: np.ndarray) -> np.ndarray:
        """Gradient of F, dense."""
        return self.engine.gradient(v)

    def rows(self, v: np.ndarray) -> np.ndarray:
        """All rows r(v), in the order of m."""
        upper, k = self.engine.rows(v), self.engine.inequalities
        bound = np.r_[self.low[self.below] - v[self.below], v[self.above] - self.high[self.above]]
        domain = np.zeros(len(self.blocks.domain))
        rows = np.concatenate([self.lower.values(np.r_[v, self.tail]), upper[:k], bound, domain, upper[k:]])
        rows[self.blocks.rows_at] += self.blocks.values(v)
        return rows

    def jacobian(self, v: np.ndarray) -> np.ndarray:
        """Entries of the Jacobian of r, at `jacobian_at`."""
        below, cones = self.lower.jacobian(np.r_[v, self.tail]), self.blocks.jacobian(v)
        return np.concatenate([below, self.engine.jacobian(v), self._signs, cones])

    def hessian(self, v: np.ndarray, factor: float, m: np.ndarray) -> np.ndarray:
        """Entries of the lower triangle of the Hessian of factor F + m'r, at `hessian_at`; entries may repeat."""
        above, cones = self.engine.hessian(v, factor, m[self._slot]), self.blocks.hessian(v, m)
        return np.concatenate([self.lower.hessian(m), above, cones])

    def matrix(self, w: np.ndarray) -> np.ndarray:
        """The symmetric matrix of second derivatives of L at w, dense."""
        n = self.layout.primal
        v, m = w[:n], w[n:]
        matrix = np.zeros((len(w), len(w)))
        np.add.at(matrix, self.hessian_at, self.hessian(v, 1.0, m))
        matrix[:n, :n] += np.tril(matrix[:n, :n], -1).T
        np.add.at(matrix, (n + self.jacobian_at[0], self.jacobian_at[1]), self.jacobian(v))
        matrix[:n, n:] = matrix[n:, :n].T
        return matrix

    def sparse(self, w: np.ndarray) -> sp.csc_array:
        """The same matrix, sparse."""
        n = self.layout.primal
        v, m = w[:n], w[n:]
        (a, b), (row, column) = self.hessian_at, self.jacobian_at
        H, J = self.hessian(v, 1.0, m), self.jacobian(v)
        low = a > b
        places = np.r_[a, b[low], n + row, column], np.r_[b, a[low], column, n + row]
        return sp.csc_array((np.r_[H, H[low], J, J], places), shape=(len(w), len(w)))

    def residual(self, w: np.ndarray) -> np.ndarray:
        """Gradient of L at w, tau left out."""
        n = self.layout.primal
        v, m = w[:n], w[n:]
        pull = np.bincount(self.jacobian_at[1], self.jacobian(v) * m[self.jacobian_at[0]], n)
        return np.concatenate([self.gradient(v) + pull, self.rows(v)])

    def pull(self, w: np.ndarray, dv: np.ndarray, dm: np.ndarray, wanted: tuple[bool, ...]) -> np.ndarray:
        """Gradient with respect to the inputs, in one vector, of dv' dL/dv + dm' r at w."""
        n = self.layout.primal
        v, m = w[:n], w[n:]
        total = self.lower.pull(np.r_[v, self.tail], m, dv, dm)
        if not any(wanted):
            return total
        promoted = self.compiled.promoted(wanted)
        promoted.give(self.engine.theta)
        both = np.r_[v, self.tail[:-1]]
        multipliers, moved = m[self._slot], np.r_[dv, np.zeros(len(total))]
        rows, columns = promoted.hessian_at.rows, promoted.hessian_at.columns
        mixed = (rows >= n) & (columns < n)
        values = promoted.hessian(both, 1.0, multipliers)[mixed] * moved[columns[mixed]]
        total = total + np.bincount(rows[mixed] - n, values, len(total))
        rows, columns = promoted.jacobian_at.rows, promoted.jacobian_at.columns
        mixed = columns >= n
        values = promoted.jacobian(both)[mixed] * dm[self._slot][rows[mixed]]
        return total + np.bincount(columns[mixed] - n, values, len(total))

    def follower(self, v: np.ndarray) -> Follower:
        """The lower level at the leader's part of v."""
        cone, conic, layout, places = self.compiled.cone, self.compiled.conic, self.layout, self.compiled.inputs
        z, columns = layout.x + layout.y, self.compiled.columns
        inputs = np.r_[v[:z], np.zeros(layout.primal - z), self.tail][places]
        n, rows, rigid = cone.x.size, cone.constr_size, conic.rigid
        P = np.zeros((n, n)) if cone.P is None else (cone.P @ inputs).reshape(n, n)
        every = (cone.A @ inputs).reshape(n + 1, rows).T
        A, H, C = every[~rigid & (conic.where < 0)], every[rigid], conic.gather(every)
        q, N, moving = (cone.q @ inputs)[:n], None, False
        rivals = np.flatnonzero((places >= layout.x) & (places < z))
        if len(rivals):
            N, moving = np.zeros((n, layout.primal)), any(m is not None and m[:, rivals].nnz for m in (cone.A, cone.P))
            N[:, places[rivals]] = cone.q[:n, rivals].toarray()
            q, N = q - N @ np.r_[v[:z], np.zeros(layout.primal - z)], N[:, columns]
        return Follower(
            (P + P.T) / 2, q, A[:, :n], A[:, n], H[:, :n], H[:, n], columns, C[:, :n], C[:, n], self.blocks, N, moving
        )
