"""One piece of a bilevel quadratic program: every complementarity pair held on a given side, a quadratic program for
DAQP.

A pair is `tight` if its slack is held at zero (its multiplier is then >= 0), else its multiplier is held at zero (its
slack >= 0). Two roads to the same answer. Where the follower's Hessian P is positive definite and the tight rows are
independent, y and the multipliers are affine in x, and the piece is a program in x alone, a fraction of the size.
Otherwise the whole vector (x, y, lam, nu) is kept; DAQP then adds proximal terms where the objective is flat, and lets
them vanish.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bigrad.algebra.affine import mv
from bigrad.algebra.exchange import inverses
from bigrad.algebra.quadratic import Data, Sizes, kkt, stack
from bigrad.solvers.convex import EQUALITY, INFEASIBLE, INFINITY, if_unbounded, quadratic_program


@dataclass(frozen=True, eq=False)
class PieceSolver:
    """A batch of programs, prepared once, whose pieces can then be solved by the thousand.

    bounded: items whose pieces are known to have bounded objectives, bool (batch,). DAQP calls some unbounded programs
    infeasible, so that elsewhere HiGHS decides between the two.
    """

    data: Data
    sizes: Sizes
    batch: int
    bounded: np.ndarray

    def __call__(self, items: np.ndarray, tight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Solve the piece `tight[t]` of item `items[t]`.

        DAQP's flags (1: solved) and w (tasks, unknowns), NaN where unsolved.
        """
        flags = np.zeros(len(items), int)
        w = np.full((len(items), self.sizes.blocks[-1].stop), np.nan)
        wide = ~self._definite[items]
        small = np.flatnonzero(~wide)
        for part in np.array_split(small, len(small) // 1024 + 1) if len(small) else ():
            done, flags[part], w[part] = self._reduced(items[part], tight[part])
            wide[part] = ~done
        rest = np.flatnonzero(wide)
        if len(rest):
            flags[rest], w[rest] = self.relaxed(items[rest], tight[rest], ~tight[rest])
        return flags, w

    def relaxed(self, items: np.ndarray, tight: np.ndarray, loose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same with slacks zero on `tight` pairs, multipliers zero on `loose` ones, and both merely nonnegative on
        the rest.

        A program in the whole vector (x, y, lam, nu); a piece if every pair is one or the other.
        """
        s = self.sizes
        hessian, linear, rows, rhs = self._program
        m, tasks = s.primal, len(items)
        top = np.concatenate([np.full((tasks, m), INFINITY), rhs[items]], -1)
        bottom = np.full_like(top, -INFINITY)
        sense = np.zeros(top.shape, np.int32)
        _, _, lam, _, sigma, kappa, eta, _, eps = s.blocks
        bottom[:, lam] = 0.0
        top[:, lam][loose] = 0.0
        sense[:, lam][loose] = EQUALITY
        sense[:, kappa][tight] = EQUALITY
        for rigid in (sigma, eta, eps):
            sense[:, rigid] = EQUALITY
        bottom[:, m:] = np.where(sense[:, m:] == EQUALITY, top[:, m:], -INFINITY)
        v, dual, flags = _solve_all(
            np.arange(tasks),
            (tasks, m, top.shape[1]),
            lambda t: (hessian[items[t]], linear[items[t]], rows[items[t]], top[t], bottom[t], sense[t]),
            (tight | loose).all(-1),
            ~self.bounded[items],
        )
        return flags, np.concatenate([v, dual[:, m:]], -1)

    @cached_property
    def _definite(self) -> np.ndarray:
        """Items whose follower Hessian is symmetric and safely positive definite; none where the leader sees multipliers."""
        P, priced = self.data.P, self.data.Q.shape[-1] > self.sizes.answers
        if self.sizes.y == 0 or self.sizes.x == 0 or priced or not np.allclose(P, P.mT, rtol=1e-9, atol=1e-12):
            return np.zeros(self.batch, bool)
        spectrum = np.linalg.eigvalsh(self.data.P)
        return np.broadcast_to(spectrum[..., 0] > 1e-9 * (1 + spectrum[..., -1]), self.batch)

    @cached_property
    def _answer(self) -> tuple[np.ndarray, ...]:
        """The follower's answer, affine in x and in its multipliers, for all items: (start, slope, lift, rows, P^-1).

        With multipliers mu = (nu, lam), the vector (y, minus the slacks of its equalities and of the pairs) is start + slope x - lift mu.
        rows: the coefficients of y in those constraints.
        """
        d = self.data
        P = d.P if self._definite.all() else np.where(self._definite[:, None, None], d.P, np.eye(self.sizes.y))
        rows, slopes, limits = stack(d.H, d.A), stack(d.K, d.B), stack(d.h[..., None], d.b[..., None])
        inverse = np.linalg.inv(P)
        y, turn, lift = -inverse @ d.p[..., None], -inverse @ d.C, inverse @ rows.mT
        return (
            stack(y, rows @ y - limits)[..., 0],
            stack(turn, rows @ turn + slopes),
            stack(lift, rows @ lift),
            rows,
            inverse,
        )

    def _reduced(self, items: np.ndarray, tight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pieces as programs in x: (done, flags, w). Those with dependent tight rows are left undone."""
        d, s, tasks = self.data.pick(items), self.sizes, len(items)
        start, slope, lift, rows, inverse_P = (
            m[items] if m.ndim > r else m for m, r in zip(self._answer, (1, 2, 2, 2, 2), strict=True)
        )
        leader, ends = stack(d.G, d.E), stack(d.g[..., None], d.e[..., None])[..., 0]
        n, m, k, p = s.x, s.y, s.equalities, s.pairs
        held = np.concatenate([np.ones((tasks, k), bool), tight], -1)
        inverse, done = _HeldInverse.of(lift[..., m:, :], held)
        base, change = (inverse @ start[..., m:, None])[..., 0], inverse @ slope[..., m:, :]
        start, slope = start - mv(lift, base), slope - lift @ change
        point = np.concatenate([np.zeros((tasks, n)), start[:, :m]], -1)
        path = np.concatenate([np.broadcast_to(np.eye(n), (tasks, n, n)), slope[:, :m]], -2)
        hessian, linear = path.mT @ (d.Q @ path), mv(path.mT, mv(d.Q, point) + d.c)
        matrix = np.concatenate([np.where(tight[..., None], -change[:, k:], slope[:, m + k :]), leader @ path], -2)
        top = np.concatenate([np.where(tight, base[:, k:], -start[:, m + k :]), ends - mv(leader, point)], -1)
        sense = np.zeros(top.shape, np.int32)
        sense[:, p + s.upper :] = EQUALITY
        bottom = np.where(sense == EQUALITY, top, -INFINITY)
        x, dual, flags = _solve_all(
            np.flatnonzero(done),
            (tasks, n, top.shape[1]),
            lambda t: (hessian[t], linear[t], matrix[t], top[t], bottom[t], sense[t]),
            done,
            ~self.bounded[items],
        )
        z, mu = point + mv(path, x), base + mv(change, x)
        price = np.concatenate([np.zeros((tasks, k)), dual[:, :p]], -1)
        loose, wanted = np.where(held, 0.0, price), np.where(held, price, 0.0)
        pull = (mv(d.Q, z) + d.c + mv(leader.mT, dual[:, p:]))[:, n:]
        sigma = -mv(inverse_P, pull + mv(rows.mT, loose))
        kappa = (inverse @ (mv(rows, sigma) - wanted)[..., None])[..., 0]
        sigma -= mv(lift[..., :m, :], kappa)
        kappa += loose
        return (
            done,
            flags,
            np.concatenate([z, mu[:, k:], mu[:, :k], sigma, kappa[:, k:], kappa[:, :k], dual[:, p:]], -1),
        )

    @cached_property
    def _program(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Hessian, linear term, rows and right-hand sides of the program in (x, y, lam, nu), for all items."""
        matrix, rhs = kkt(self.data, self.sizes, self.batch)
        m = self.sizes.primal
        return matrix[:, :m, :m].copy(), -rhs[:, :m], matrix[:, m:, :m].copy(), rhs[:, m:]


def _solve_all(
    tasks: np.ndarray,
    shape: tuple[int, int, int],
    problem: Callable[[int], tuple[np.ndarray, ...]],
    sure: np.ndarray,
    doubtful: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Programs of `shape` (count, variables, bounds and rows): primal and dual solutions, NaN where unsolved, and
    flags.

    sure: tasks for which `unbounded`, and any breakdown, is decided by HiGHS; for others it is only a hint. doubtful: those for
    which it decides `infeasible` too.
    """
    count, n, rows = shape
    x, dual, flags = np.full((count, n), np.nan), np.full((count, rows), np.nan), np.zeros(count, int)
    for t in tasks.tolist():
        point, _, flag, multipliers = quadratic_program(*problem(t))
        if (doubtful if flag == INFEASIBLE else sure)[t] and flag <= 0:
            point, _, flag, multipliers = if_unbounded(*problem(t))
        flags[t] = flag
        if flag > 0:
            x[t], dual[t] = point, multipliers
    return x, dual, flags


@dataclass(frozen=True, eq=False)
class _HeldInverse:
    """Inverses of S[held, held], kept compact: an operator on (tasks, rows, k) or on (rows, k), zero on rows not held."""

    item: np.ndarray
    order: np.ndarray
    inverse: np.ndarray

    @staticmethod
    def of(S: np.ndarray, held: np.ndarray) -> tuple[_HeldInverse, np.ndarray]:
        """The operator, and which tasks have an inverse that can be trusted."""
        tasks, count = len(held), held.sum(-1)
        size = int(count.max(initial=0))
        order = np.argsort(~held, axis=-1, kind="stable")[:, :size]
        inverse, good = np.zeros((tasks, size, size)), np.ones(tasks, bool)
        for k in np.unique(count[count > 0]).tolist():
            same = np.flatnonzero(count == k)
            first = order[same, :k]
            block = (S[first] if S.ndim == 2 else S[same[:, None], first]).mT[np.arange(len(same))[:, None], first]
            inverse[same, :k, :k], good[same] = _inverse(block)
        return _HeldInverse(np.arange(tasks)[:, None], order, inverse), good

    def __matmul__(self, right: np.ndarray) -> np.ndarray:
        out = np.zeros((*self.item.shape[:1], *right.shape[-2:]))
        out[self.item, self.order] = self.inverse @ (
            right[self.item, self.order] if right.ndim > 2 else right[self.order]
        )
        return out


def _inverse(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverses of a batch of matrices, and which of them can be trusted."""
    inverse, good = inverses(matrix)
    return inverse, good & (abs(inverse).max((-1, -2)) * abs(matrix).max((-1, -2)) < 1e9)
