"""One piece of a bilevel quadratic program: every complementarity pair held on a given side, a quadratic program for DAQP.

A pair is `tight` if its slack is held at zero (its multiplier is then >= 0), else its multiplier is held at zero (its slack >= 0).
Two roads to the same answer. Where the follower's Hessian P is positive definite and the tight rows are independent, y and the
multipliers are affine in x, and the piece is a program in x alone, a fraction of the size. Otherwise the
whole vector (x, y, lam, nu) is kept, with a minute cost on (lam, nu) that picks multipliers of minimum norm.
DAQP: Arnstrom, Bemporad and Axehill, "A dual active-set solver for embedded quadratic programming", 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import daqp
import numpy as np

from bigrad.affine import mv
from bigrad.quadratic import Data, Sizes, kkt, stack

INFINITY = 1e30
RIDGE = 1e-8
SETTINGS = {"primal_tol": 1e-9, "dual_tol": 1e-12, "iter_limit": 10_000, "eq_reduction": daqp.EQ_REDUCTION_OFF}
EQUALITY = 5
UNBOUNDED, INFEASIBLE, OVERDETERMINED = -3, -1, -6
SLIT = 1e-8
"""Half width of the interval that stands in for an equality among dependent ones, relative to 1 + its right-hand side."""


@dataclass(frozen=True, eq=False)
class PieceSolver:
    """A batch of programs, prepared once, whose pieces can then be solved by the thousand."""

    data: Data
    sizes: Sizes
    batch: int

    def __call__(self, items: np.ndarray, tight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Solve the piece `tight[t]` of item `items[t]`: DAQP's flags (1: solved) and w (tasks, unknowns), NaN where unsolved."""
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
        """The same with slacks zero on `tight` pairs, multipliers zero on `loose` ones, and both merely nonnegative on the rest.

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
    def _schur(self) -> tuple[np.ndarray, ...]:
        """The follower's rows, P^-1 times [rows', p, C] and itself, the Schur complement of the rows, and their gap at lam = 0."""
        d = self.data
        P = d.P if self._definite.all() else np.where(self._definite[:, None, None], d.P, np.eye(self.sizes.y))
        rows, slopes, limits = stack(d.A, d.H), stack(d.B, d.K), stack(d.b[..., None], d.h[..., None])
        inverse = np.linalg.inv(P)
        PA, PC, Pp = inverse @ rows.mT, inverse @ d.C, inverse @ d.p[..., None]
        gap = stack((-limits - rows @ Pp).mT, (slopes - rows @ PC).mT).mT
        return rows, PA, stack(Pp.mT, PC.mT).mT, rows @ PA, gap, inverse

    def _reduced(self, items: np.ndarray, tight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pieces as programs in x: (done, flags, w). Those with dependent tight rows are left undone."""
        d, s = self.data.pick(items), self.sizes
        rows, PA, PCp, S, gap, inverse_P = (m[items] if m.ndim > 2 else m for m in self._schur)
        q, p, n, tasks = rows.shape[-2], s.pairs, s.x, len(items)
        held = np.concatenate([tight, np.ones((tasks, q - p), bool)], -1)
        inverse, done = _HeldInverse.of(S, held)
        multipliers = inverse @ np.broadcast_to(gap, (tasks, q, n + 1))
        slack = S @ multipliers - gap
        answer = -(PCp + PA @ multipliers)
        path = np.concatenate([np.broadcast_to(np.eye(n, n + 1, 1), (tasks, n, n + 1)), answer], -2)
        curve = path[..., 1:].mT @ (d.Q @ path)
        linear = curve[..., 0] + mv(path[..., 1:].mT, d.c)
        sides = np.where(tight[..., None], multipliers[:, :p], slack[:, :p])
        leader = stack(d.G, d.E) @ path
        ends = np.broadcast_to(stack(d.g[..., None], d.e[..., None])[..., 0], (tasks, s.upper + s.upper_equalities))
        matrix = np.concatenate([-sides[..., 1:], leader[..., 1:]], -2)
        top = np.concatenate([sides[..., 0], ends - leader[..., 0]], -1)
        sense = np.zeros(top.shape, np.int32)
        sense[:, p + s.upper :] = EQUALITY
        bottom = np.where(sense == EQUALITY, top, -INFINITY)
        hessian = np.ascontiguousarray(curve[..., 1:])
        x, dual, flags = _solve_all(
            np.flatnonzero(done), (tasks, n, top.shape[1]), lambda t: (hessian[t], linear[t], matrix[t], top[t], bottom[t], sense[t])
        )
        z = path[..., 0] + mv(path[..., 1:], x)
        lam = multipliers[..., 0] + mv(multipliers[..., 1:], x)
        price, gamma, eps = dual[:, :p], dual[:, p : p + s.upper], dual[:, p + s.upper :]
        none = np.zeros((tasks, q - p))
        loose = np.concatenate([np.where(tight, 0.0, price), none], -1)
        wanted = np.concatenate([np.where(tight, price, 0.0), none], -1)
        pull = (mv(d.Q, z) + d.c + mv(d.G.mT, gamma) + mv(d.E.mT, eps))[:, n:]
        kappa = loose - (inverse @ (wanted + mv(PA.mT, pull + mv(rows.mT, loose)))[..., None])[..., 0]
        sigma = -mv(inverse_P, pull) - mv(PA, kappa)
        return done, flags, np.concatenate([z, lam, sigma, kappa, gamma, eps], -1)

    @cached_property
    def _program(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Hessian, linear term, rows and right-hand sides of the program in (x, y, lam, nu), for all items."""
        matrix, rhs = kkt(self.data, self.sizes, self.batch)
        n, m = self.sizes.x + self.sizes.y, self.sizes.primal
        hessian = matrix[:, :m, :m].copy()
        hessian[:, range(n, m), range(n, m)] = RIDGE
        return hessian, -rhs[:, :m], matrix[:, m:, :m].copy(), rhs[:, m:]


def _solve_all(
    tasks: np.ndarray, shape: tuple[int, int, int], problem: Callable[[int], tuple[np.ndarray, ...]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """DAQP over the tasks, of `shape` (count, variables, bounds and rows): primal and dual solutions, NaN where unsolved, and flags."""
    count, n, rows = shape
    x, dual, flags = np.full((count, n), np.nan), np.full((count, rows), np.nan), np.zeros(count, int)
    for t in tasks.tolist():
        point, _, flag, info = quadratic_program(*problem(t))
        flags[t] = flag
        if flag > 0:
            x[t], dual[t] = point, info["lam"]
    return x, dual, flags


def quadratic_program(*problem: np.ndarray) -> tuple[np.ndarray, float, int, dict[str, np.ndarray]]:
    """DAQP on (H, f, A, upper, lower, sense). Dependent equalities, which it refuses, are given to it as narrow intervals."""
    answer = daqp.solve(*problem, **SETTINGS)
    if answer[2] == OVERDETERMINED:
        H, f, A, top, bottom, sense = problem
        width = np.where(sense == EQUALITY, SLIT * (1 + abs(top)), 0.0)
        answer = daqp.solve(H, f, A, top + width, bottom - width, np.zeros_like(sense), **SETTINGS)
    return answer


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
        both, across = order[:, :, None], order[:, None, :]
        compact = S[both, across] if S.ndim == 2 else S[item[..., None], both, across]
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
