"""Many principal blocks of one symmetric matrix, solved through the inverse of one of them: the principal pivot transform.

Exchange w and g of M w = g on a set A, (w_A, g_R) = T (g_A, w_R). An item that is free on F knows every input of T but
those where F and A differ, and finds these from as many equations; items of one batch mostly differ in a few.
Tsatsomeros, "Principal pivot transforms: properties and applications", Linear Algebra and its Applications, 2000.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg.lapack import dgetrf, dgetri

FEW = 4
"""Items for which one inverse pays."""
ALIKE = 0.25
"""Differences, as a part of the set's size, up to which an item is solved so."""
EXACT = 1e-13
"""Residual of a solution that is kept, relative to its size; a second step is taken for those above it."""
LARGE = 1e11
"""Sum of sizes of a solution for a probing right-hand side, from which a block may be singular."""


@dataclass(frozen=True, eq=False)
class Exchange:
    """T of a symmetric matrix, rows and columns in this order, the first `size` being A. matrix: with entries of order one,
    as which it solves; units: the factors of rows and columns that lead there.
    """

    matrix: np.ndarray
    T: np.ndarray
    order: np.ndarray
    size: int
    units: np.ndarray

    @staticmethod
    def of(matrix: np.ndarray, units: np.ndarray, free: np.ndarray) -> Exchange | None:
        """For items that are free on the rows `free`, bool (batch, n), of matrix (n, n) times `units` on both sides; None if
        they are too few or differ too much, or where there is no inverse.
        """
        if len(free) < FEW:
            return None
        signs = np.where(free, 1.0, -1.0)
        apart = (free.shape[1] - signs @ signs.T) / 2
        base = int(apart.sum(-1).argmin())
        size = int(free[base].sum())
        if not size or np.median(apart[base]) > ALIKE * size:
            return None
        order = np.argsort(~free[base], kind="stable")
        matrix = (matrix * units[:, None] * units)[order][:, order]
        factors, pivots, failed = dgetrf(matrix[:size, :size])
        if failed:
            return None
        inverse = dgetri(factors, pivots)[0]
        mixed = inverse @ matrix[:size, size:]
        corner = matrix[size:, size:] - matrix[size:, :size] @ mixed
        return Exchange(matrix, np.block([[inverse, -mixed], [mixed.T, corner]]), order, size, units)

    def items(self, free: np.ndarray) -> Items:
        """What solves for items that are free on these unknowns, bool (batch, n)."""
        own = free[:, self.order]
        differs = own != (np.arange(len(self.order)) < self.size)
        good = differs.sum(-1) <= ALIKE * self.size
        own, differs = own & good[:, None], differs & good[:, None]
        at = np.argsort(~differs, axis=-1, kind="stable")[:, : int(differs.sum(-1).max(initial=0))]
        _, first, back = np.unique(np.packbits(differs, axis=-1), axis=0, return_index=True, return_inverse=True)
        live = np.take_along_axis(differs, at, -1)
        inverse, regular = _inverse(self.T, at[first], live[first])
        items = Items(self, own, at, inverse[back], good)
        probe = np.where(own, np.cos(1.0 + np.arange(len(self.order)) ** 2), 0.0)
        return replace(items, good=good & regular[back] & (abs(items.balanced(probe)).sum(-1) < LARGE))


@dataclass(frozen=True, eq=False)
class Items:
    """The items of a batch, ready for right-hand sides. own: what they are free on, in the order of the exchange, nothing for
    those that differ too much from it; at, inverse: where they differ, and the inverses of T there. good: items that are
    solved, and not nearly singular.
    """

    exchange: Exchange
    own: np.ndarray
    at: np.ndarray
    inverse: np.ndarray
    good: np.ndarray

    def rescaled(self, factors: np.ndarray) -> Items:
        """For the matrix divided by `factors` on both sides."""
        return replace(self, exchange=replace(self.exchange, units=self.exchange.units * factors))

    def pick(self, rows: np.ndarray) -> Items:
        """Some of them."""
        return Items(self.exchange, self.own[rows], self.at[rows], self.inverse[rows], self.good[rows])

    def exactly(self, rhs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Solutions, and which of them are good and exact."""
        u = self.solve(rhs)
        gap, off = self.off(u, rhs)
        if (off[self.good] > EXACT).any():
            u = u + self.solve(gap)
            off = self.off(u, rhs)[1]
        return u, self.good & (off <= EXACT)

    def solve(self, rhs: np.ndarray) -> np.ndarray:
        """u[free] of M[free, free] u[free] = rhs[free] for each item, zero elsewhere; nothing is checked."""
        u = np.empty(rhs.shape)
        u[:, self.exchange.order] = self.balanced(self._goal(rhs))
        return u * self.exchange.units

    def off(self, u: np.ndarray, rhs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The residual of a solution, and its size in each item relative to that of the numbers in it."""
        e = self.exchange
        goal, w = self._goal(rhs), (u / e.units)[:, e.order]
        short = np.where(self.own, goal - w @ e.matrix, 0.0)
        size = abs(w).max(-1, initial=0.0) + abs(goal).max(-1, initial=0.0)
        gap = np.empty(rhs.shape)
        gap[:, e.order] = short
        return gap / e.units, abs(short).max(-1, initial=0.0) / np.where(size > 0, size, 1.0)

    def balanced(self, goal: np.ndarray) -> np.ndarray:
        """Solutions in the units and the order of the exchange, for right-hand sides that are zero where an item is not free."""
        T, size = self.exchange.T, self.exchange.size
        answer = goal[:, :size] @ T[:, :size].T
        found = (self.inverse @ np.take_along_axis(goal - answer, self.at, -1)[..., None])[..., 0]
        extra = np.zeros(goal.shape)
        np.put_along_axis(extra, self.at, found, -1)
        answer[:, :size] += extra @ T[:size].T
        answer[:, size:] = extra[:, size:]
        return np.where(self.own, answer, 0.0)

    def _goal(self, rhs: np.ndarray) -> np.ndarray:
        return np.where(self.own, (rhs * self.exchange.units)[:, self.exchange.order], 0.0)


def _inverse(T: np.ndarray, at: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverses of T at the places `at` that are `live`, zero elsewhere, and which items have one."""
    both, eye = live[:, :, None] & live[:, None, :], np.eye(at.shape[1])
    small = np.where(both, T[at[:, :, None], at[:, None, :]], eye)
    inverse, good = inverses(small)
    return np.where(both, inverse, 0.0), good


def inverses(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverses of matrices (batch, n, n), the identity's where there is none, and which have one, bool (batch,)."""
    good = np.ones(len(matrices), bool)
    try:
        return np.linalg.inv(matrices), good
    except np.linalg.LinAlgError:
        good = np.linalg.slogdet(matrices)[0] != 0
        return np.linalg.inv(np.where(good[:, None, None], matrices, np.eye(matrices.shape[-1]))), good
