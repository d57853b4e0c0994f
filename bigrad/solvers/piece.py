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

from bigrad.affine import mv
from bigrad.quadratic import Data, Sizes, beside, kkt, stack
from bigrad.solvers.convex import EQUALITY, INFINITY, UNBOUNDED, if_unbounded, quadratic_program


@dataclass(frozen=True, eq=False)
class PieceSolver:
    """A batch of programs, prepared once, whose pieces can then be solved by the thousand."""

    data: Data
    sizes: Sizes
    batch: int

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
        )
        return flags, np.concatenate([v, dual[:, m:]], -1)

    @cached_property
    def _definite(self) -> np.ndarray:
        """Items whose follower Hessian is safely positive definite."""
        if self.sizes.y == 0 or self.sizes.x == 0:
            return np.zeros(self.batch, bool)
        spectrum = np.linalg.eigvalsh(self.data.P)
        return np.broadcast_to(spectrum[..., 0] > 1e-9 * (1 + spectrum[..., -1]), self.batch)

    @cached_property
    def _answer(self) -> tuple[np.ndarray, ...]:
        """The follower's answer, affine in x and in its multipliers, for all items: (base, lift, rows, P^-1).

        With multipliers (nu, lam) = M [1; x], the vector (y, slacks of the follower's equalities, of the pairs, of the
        upper rows) is (base + lift M) [1; x]. rows: the coefficients of y in those constraints.
        """
        d, s = self.data, self.sizes
        P = d.P if self._definite.all() else np.where(self._definite[:, None, None], d.P, np.eye(s.y))
        rows = stack(d.H, d.A, d.G[..., s.x :], d.E[..., s.x :])
        slopes = stack(d.K, d.B, d.G[..., : s.x], d.E[..., : s.x])
        limits = stack(*(v[..., None] for v in (d.h, d.b, d.g, d.e)))
        inverse = np.linalg.inv(P)
        unheld = -inverse @ beside(d.p[..., None], d.C)
        given = inverse @ rows[..., : s.equalities + s.pairs, :].mT
        return stack(unheld, beside(limits, -slopes) - rows @ unheld), stack(-given, rows @ given), rows, inverse

    def _reduced(self, items: np.ndarray, tight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pieces as programs in x: (done, flags, w). Those with dependent tight rows are left undone."""
        d, s, tasks = self.data.pick(items), self.sizes, len(items)
        base, lift, rows, inverse_P = (m[items] if m.ndim > 2 else m for m in self._answer)
        n, m, k, q = s.x, s.y, s.equalities, s.equalities + s.pairs
        held = np.concatenate([np.ones((tasks, k), bool), tight], -1)
        inverse, done = _HeldInverse.of(lift[..., m : m + q, :], held)
        multipliers = -(inverse @ np.broadcast_to(base[..., m : m + q, :], (tasks, q, 1 + n)))
        lines = base + lift @ multipliers
        path = np.concatenate([np.broadcast_to(np.eye(n, 1 + n, 1), (tasks, n, 1 + n)), lines[:, :m]], -2)
        gaps = lines[:, m + k :]
        np.copyto(gaps[:, : s.pairs], multipliers[:, k:], where=tight[..., None])
        pull = d.Q @ path
        hessian = path[..., 1:].mT @ pull[..., 1:]
        linear = mv(path[..., 1:].mT, pull[..., 0] + d.c)
        matrix, top = -gaps[..., 1:], gaps[..., 0].copy()
        sense = np.zeros(top.shape, np.int32)
        sense[:, s.pairs + s.upper :] = EQUALITY
        bottom = np.where(sense == EQUALITY, top, -INFINITY)
        x, dual, flags = _solve_all(
            np.flatnonzero(done),
            (tasks, n, top.shape[1]),
            lambda t: (hessian[t], linear[t], matrix[t], top[t], bottom[t], sense[t]),
            done,
        )
        z, lam = (a[..., 0] + mv(a[..., 1:], x) for a in (path, multipliers))
        price = np.concatenate([np.zeros((tasks, k)), dual], -1)
        wanted = np.where(held, price[:, :q], 0.0)
        price[:, :q] -= wanted
        sigma = -mv(inverse_P, (mv(d.Q, z) + d.c)[:, n:] + mv(rows.mT, price))
        kappa = (inverse @ (mv(rows[..., :q, :], sigma) - wanted)[..., None])[..., 0]
        sigma += mv(lift[..., :m, :], kappa)
        kappa += price[:, :q]
        parts = z, lam[:, k:], lam[:, :k], sigma, kappa[:, k:], kappa[:, :k], dual[:, s.pairs :]
        return done, flags, np.concatenate(parts, -1)

    @cached_property
    def _program(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Hessian, linear term, rows and right-hand sides of the program in (x, y, lam, nu), for all items."""
        matrix, rhs = kkt(self.data, self.sizes, self.batch)
        m = self.sizes.primal
        return matrix[:, :m, :m].copy(), -rhs[:, :m], matrix[:, m:, :m].copy(), rhs[:, m:]


def _solve_all(
    tasks: np.ndarray, shape: tuple[int, int, int], problem: Callable[[int], tuple[np.ndarray, ...]], sure: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Programs of `shape` (count, variables, bounds and rows): primal and dual solutions, NaN where unsolved, and
    flags.

    sure: tasks for which `unbounded` must be proven; for others it is only a hint.
    """
    count, n, rows = shape
    x, dual, flags = np.full((count, n), np.nan), np.full((count, rows), np.nan), np.zeros(count, int)
    for t in tasks.tolist():
        point, _, flag, multipliers = quadratic_program(*problem(t))
        if flag == UNBOUNDED and sure[t]:
            point, _, flag, multipliers = if_unbounded(*problem(t))
        flags[t] = flag
        if flag > 0:
            x[t], dual[t] = point, multipliers
    return x, dual, flags


@dataclass(frozen=True, eq=False)
class _HeldInverse:
    """Inverses of S[held, held], kept compact: an operator on (tasks, rows, k), zero on rows not held."""

    item: np.ndarray
    order: np.ndarray
    live: np.ndarray
    inverse: np.ndarray

    @staticmethod
    def of(S: np.ndarray, held: np.ndarray) -> tuple[_HeldInverse, np.ndarray]:
        """The operator, and which tasks have an inverse that can be trusted."""
        size = int(held.sum(-1).max(initial=0))
        order = np.argsort(~held, axis=-1, kind="stable")[:, :size]
        item = np.arange(len(held))[:, None]
        live = held[item, order]
        compact = (S[order] if S.ndim == 2 else S[item, order]).mT[item, order]
        compact = np.where(live[:, :, None] & live[:, None, :], compact, np.eye(size))
        good = np.ones(len(held), bool)
        try:
            inverse = np.linalg.inv(compact)
        except np.linalg.LinAlgError:
            good = np.linalg.slogdet(compact)[0] != 0
            inverse = np.linalg.inv(np.where(good[:, None, None], compact, np.eye(size)))
        good &= abs(inverse).max((-1, -2), initial=0.0) * abs(compact).max((-1, -2), initial=0.0) < 1e9
        return _HeldInverse(item, order, live, inverse), good

    def __matmul__(self, right: np.ndarray) -> np.ndarray:
        out = np.zeros_like(right)
        out[self.item, self.order] = self.inverse @ np.where(self.live[..., None], right[self.item, self.order], 0.0)
        return out
