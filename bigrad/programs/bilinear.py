"""Systems of equations that are quadratic in their unknowns and inputs, kept as one list of terms: values and exact
derivatives.

The optimality conditions of a follower with linear constraints and a quadratic objective are of this kind: every
term is a number times a product of two of (leader variable or parameter, follower variable or multiplier, one). So
their Jacobian, their Hessian and the mixed derivatives with respect to parameters cost one pass over the list each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp


@dataclass(frozen=True, eq=False)
class Pattern:
    """A sparsity pattern, each entry once and sorted by rows, into which longer lists of contributions are summed."""

    rows: np.ndarray
    columns: np.ndarray
    into: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, columns: np.ndarray) -> Pattern:
        """The pattern of contributions that stand at (rows, columns), in their order, repeats allowed."""
        both = np.stack([rows, columns]).astype(np.int64).reshape(2, -1)
        places, into = np.unique(both, axis=1, return_inverse=True)
        return cls(places[0], places[1], into.ravel())

    def __call__(self, contributions: np.ndarray) -> np.ndarray:
        """One number per entry of the pattern."""
        return np.bincount(self.into, contributions, len(self.rows))


@dataclass(frozen=True, eq=False)
class Bilinear:
    """The system r_k(v, theta) = sum over terms t with row_t = k of coefficient_t * e[left_t] * e[right_t], e = (v,
    theta, 1).

    count: number of rows. unknowns: length of v. size: length of e.
    """

    count: int
    unknowns: int
    size: int
    row: np.ndarray
    left: np.ndarray
    right: np.ndarray
    coefficient: np.ndarray

    def values(self, e: np.ndarray) -> np.ndarray:
        """All rows."""
        return np.bincount(self.row, self.coefficient * e[self.left] * e[self.right], self.count)

    @cached_property
    def _slopes(self) -> tuple[np.ndarray, ...]:
        """Each term once for each of its factors: (row, factor, the other factor, coefficient)."""
        row, coefficient = np.tile(self.row, 2), np.tile(self.coefficient, 2)
        return row, np.r_[self.left, self.right], np.r_[self.right, self.left], coefficient

    @cached_property
    def _inner(self) -> tuple[np.ndarray, ...]:
        inside = self._slopes[1] < self.unknowns
        return tuple(a[inside] for a in self._slopes)

    @cached_property
    def jacobian_at(self) -> Pattern:
        """Where the Jacobian with respect to v has entries."""
        return Pattern.of(self._inner[0], self._inner[1])

    def jacobian(self, e: np.ndarray) -> np.ndarray:
        """Entries of the Jacobian with respect to v."""
        _, _, other, coefficient = self._inner
        return self.jacobian_at(coefficient * e[other])

    @cached_property
    def _curved(self) -> tuple[np.ndarray, ...]:
        inside = (self.left < self.unknowns) & (self.right < self.unknowns)
        row, a, b, coefficient = (t[inside] for t in (self.row, self.left, self.right, self.coefficient))
        return row, np.maximum(a, b), np.minimum(a, b), coefficient * np.where(a == b, 2.0, 1.0)

    @cached_property
    def hessian_at(self) -> Pattern:
        """Where the lower triangle of the Hessian with respect to v has entries."""
        return Pattern.of(self._curved[1], self._curved[2])

    def hessian(self, multipliers: np.ndarray) -> np.ndarray:
        """Entries of the lower triangle of the Hessian of multipliers' r with respect to v; it does not depend on v."""
        row, _, _, coefficient = self._curved
        return self.hessian_at(coefficient * multipliers[row])

    def pull(self, e: np.ndarray, multipliers: np.ndarray, dv: np.ndarray, dm: np.ndarray) -> np.ndarray:
        """Gradient over the inputs theta of dv' d/dv (multipliers' r) + dm' r, as an adjoint needs it."""
        row, factor, other, coefficient = self._slopes
        moved = np.r_[dv, np.zeros(self.size - self.unknowns)]
        weight = coefficient * (multipliers[row] * moved[other] + dm[row] * e[other])
        return np.bincount(factor, weight, self.size)[self.unknowns : -1]


def entries(tensor: sp.spmatrix, rows: int) -> tuple[np.ndarray, ...]:
    """Nonzeros of a CVXPY tensor, a column-major matrix by inputs: (row, column, input, value)."""
    coo = sp.coo_array(tensor)
    entry, at = coo.coords
    live = coo.data != 0
    entry, at, data = entry[live].astype(np.int64), at[live].astype(np.int64), coo.data[live]
    return entry % max(rows, 1), entry // max(rows, 1), at, data
