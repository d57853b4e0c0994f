"""The semidefinite cone in charts: its boundary where the least eigenvalue is simple.

A symmetric matrix S is positive semidefinite where phi(S) = lambda_min(S) >= 0, and lambda_min is smooth where it is a
simple eigenvalue, with unit eigenvector v and R the pseudo-inverse of S - lambda_min I:

    D lambda [A] = v'A v,   D v [A] = -R A v,   D R [A] = -R dM R + R R dM v v' + v v' dM R R,   dM = A - (v'A v) I.

So a matrix and its multiplier are told by one pair where one of them has rank one or less: matrices of order two and
three everywhere but at some kinks, larger ones where the rank is one, or one below full. A matrix is kept as its upper
triangle column by column, entries off the diagonal times sqrt(2). Magnus, "On differentiating eigenvalues and
eigenvectors", 1985.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from bigrad.programs.cones import Cone

SIMPLE = 1e-7
"""A least eigenvalue this near to the next, relative to the largest, is not simple."""


@dataclass(frozen=True, eq=False)
class LeastEigenvalue:
    """phi(p) = lambda_min of the symmetric matrix of some order with coordinates p."""

    order: int

    @cached_property
    def basis(self) -> np.ndarray:
        """The matrix of each coordinate, (size, order, order)."""
        made = []
        for j in range(self.order):
            for i in range(j + 1):
                unit = np.zeros((self.order, self.order))
                unit[i, j] = unit[j, i] = 1.0 if i == j else 0.5**0.5
                made.append(unit)
        return np.array(made)

    @property
    def floor(self) -> np.ndarray:
        """The trace."""
        return np.trace(self.basis, axis1=1, axis2=2)

    def matrix(self, p: np.ndarray) -> np.ndarray:
        """The matrices with coordinates p (..., size)."""
        return np.tensordot(p, self.basis, 1)

    def first(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See Chart."""
        values, vectors = self._split(p)
        v = vectors[:, :, 0]
        return values[:, 0], np.einsum("ki,aij,kj->ka", v, self.basis, v)

    def second(self, p: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See Chart."""
        values, vectors = self._split(p)
        v, others = vectors[:, :, 0], vectors[:, :, 1:]
        R = (others / (values[:, None, 1:] - values[:, None, :1])) @ others.mT
        A = self.matrix(along)
        dM = A - np.einsum("ki,kij,kj->k", v, A, v)[:, None, None] * np.eye(self.order)
        turn = R @ R @ dM @ (v[:, :, None] * v[:, None, :])
        dR = turn + turn.mT - R @ dM @ R
        G = np.einsum("aij,kj->kai", self.basis, v)
        dG = np.einsum("aij,kj->kai", self.basis, -np.einsum("kij,kjl,kl->ki", R, A, v))
        skew = dG @ R @ G.mT
        return -2 * G @ R @ G.mT, -2 * (skew + skew.mT + G @ dR @ G.mT)

    def _split(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues and eigenvectors, the latter not finite where the least eigenvalue is not simple."""
        matrix = self.matrix(p)
        good = np.isfinite(matrix).all((1, 2))
        values, vectors = np.linalg.eigh(np.where(good[:, None, None], matrix, np.eye(self.order)))
        simple = values[:, 1] - values[:, 0] > SIMPLE * abs(values).max(1)
        return values, np.where((good & simple)[:, None, None], vectors, np.nan)


@cache
def semidefinite(order: int) -> Cone:
    """Positive semidefinite matrices of an order of two or more."""
    chart = LeastEigenvalue(order)
    size = order * (order + 1) // 2
    inner = np.einsum("aij,ij->a", chart.basis, np.diag(np.linspace(1.0, 2.0, order)))

    def holds(p: np.ndarray) -> bool:
        return bool(np.linalg.eigvalsh(chart.matrix(p))[0] >= 0)

    return Cone("PSD", size, np.eye(size), inner, (chart,), holds)
