"""The optimality conditions of one convex cone program, their derivative, and Newton's method on them.

    min over u of 1/2 u'Pu + q'u + d   subject to   s = b - A u in K

With the multipliers lam in the dual cone, the unknown is w = (u, lam), and by Moreau's theorem w is optimal iff

    R(w) = (P u + q + A'lam,  s - proj(s - lam)) = 0,      dR/dw = [[P, A'], [(D - I) A, D]],

D the derivative of the projection onto K at s - lam. Agrawal, Barratt, Boyd, Busseti and Moursi, "Differentiating through
a cone program", 2019.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from bigrad.programs.projection import Cones

Matrix = Any
"""A numpy array or a sparse matrix."""
DENSE = 250
"""Unknowns up to which a dense factorisation is faster than a sparse one."""
SINGULAR = 1e-11
"""A direction that the matrix, rows and columns of size one, shortens by this factor counts as lost."""
SHIFT = 1e-8
"""Added to the diagonal of a singular matrix, rows and columns of size one."""
LARGEST = 3000
"""Unknowns up to which a singular system is solved by an orthogonal factorisation."""
FINE = 1e-13
"""A residual below this is rounding."""


class Conic(NamedTuple):
    """A convex cone program at given parameter values."""

    P: sp.csc_array
    q: np.ndarray
    d: float
    A: sp.csc_array
    b: np.ndarray
    cones: Cones

    def value(self, u: np.ndarray) -> float:
        """The objective."""
        return float(u @ (self.P @ u) / 2 + self.q @ u + self.d)

    def bound(self, u: np.ndarray, lam: np.ndarray) -> float:
        """The dual objective."""
        return float(self.d - u @ (self.P @ u) / 2 - self.b @ lam)

    def residual(self, u: np.ndarray, lam: np.ndarray) -> np.ndarray:
        """R(w)."""
        s = self.b - self.A @ u
        return np.concatenate([self.P @ u + self.q + self.A.T @ lam, s - self.cones.project(s - lam, s)])

    def slope(self, u: np.ndarray, lam: np.ndarray) -> Matrix:
        """D: dense for a small program, else sparse."""
        s = self.b - self.A @ u
        entries, at = self.cones.slope(s - lam, s)
        m = len(lam)
        if len(u) + m > DENSE:
            return sp.csc_array((entries, at), shape=(m, m))
        D = np.zeros((m, m))
        D[at] = entries
        return D

    def jacobian(self, D: Matrix) -> Matrix:
        """dR/dw, dense for a small program, else sparse."""
        if sp.issparse(D):
            n, corner = len(self.q), (D @ self.A - self.A).tocoo()
            P, A, D = self.P.tocoo(), self.A.tocoo(), D.tocoo()
            rows = np.concatenate([P.coords[0], A.coords[1], corner.coords[0] + n, D.coords[0] + n])
            columns = np.concatenate([P.coords[1], A.coords[0] + n, corner.coords[1], D.coords[1] + n])
            data = np.concatenate([P.data, A.data, corner.data, D.data])
            size = n + D.shape[0]
            return sp.csc_array((data, (rows, columns)), shape=(size, size))
        P, A = self.P.toarray(), self.A.toarray()
        return np.block([[P, A.T], [D @ A - A, D]])

    def measure(self, u: np.ndarray, lam: np.ndarray, gap: np.ndarray) -> tuple[float, float, float]:
        """Errors of stationarity, of the constraints and the multipliers' signs, and the duality gap; each relative to 1 +
        the size of its data.

        gap: R(w). Its second part bounds how far s is from K and lam from the dual cone, for proj(v) is in the one and
        proj(v) - v in the other.
        """
        n, value = len(u), self.value(u)
        return (
            float(abs(gap[:n]).max(initial=0.0) / (1 + abs(self.q).max(initial=0.0))),
            float(abs(gap[n:]).max(initial=0.0) / (1 + abs(self.b).max(initial=0.0))),
            float(abs(value - self.bound(u, lam)) / (1 + abs(value))),
        )

    def polish(self, u: np.ndarray, lam: np.ndarray, steps: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        """A better solution near by, its R(w), and whether dR/dw is singular there: Newton's method, while it gains."""
        n, singular = len(u), False
        gap = self.residual(u, lam)
        for _ in range(steps):
            step, singular = solve(self.jacobian(self.slope(u, lam)), -gap, rough=True)
            after = u + step[:n], lam + step[n:]
            left = self.residual(*after)
            if not np.isfinite(left).all() or np.linalg.norm(left) >= np.linalg.norm(gap):
                break
            (u, lam), gap = after, left
            if np.linalg.norm(gap) <= FINE * (1 + np.linalg.norm(self.q) + np.linalg.norm(self.b)):
                break
        return u, lam, gap, singular


def solve(matrix: Matrix, rhs: np.ndarray, *, rough: bool = False) -> tuple[np.ndarray, bool]:
    """Solve a square system: (solution, singular). A singular one gets the least-squares solution of least norm, rows and
    columns balanced; rough: that of a slightly regularised system will do, as it does for a step that is checked.
    """
    size = len(rhs)
    if not size:
        return rhs, False
    matrix = sp.csc_array(matrix) if sp.issparse(matrix) else matrix
    left, right = _balance(matrix)
    if sp.issparse(matrix):
        data = matrix.data * left[matrix.indices] * np.repeat(right, np.diff(matrix.indptr))
        even: Matrix = sp.csc_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)
    else:
        even = matrix * left[:, None] * right
    target = rhs * left
    found = _factorised(even, target)
    if found is not None:
        return found * right, False
    if rough:
        shift = sp.eye_array(size, format="csc") if sp.issparse(even) else np.eye(size)
        found = _factorised(even + SHIFT * shift, target)
        if found is not None:
            return found * right, True
    if size <= LARGEST:
        from scipy.linalg import lstsq

        full = even.toarray() if sp.issparse(even) else even
        return lstsq(full, target, cond=SINGULAR, lapack_driver="gelsy", check_finite=False)[0] * right, True
    from scipy.sparse.linalg import lsmr

    return lsmr(even, target, atol=1e-14, btol=1e-14, conlim=0, maxiter=20 * size)[0] * right, True


def _factorised(matrix: Matrix, rhs: np.ndarray) -> np.ndarray | None:
    """The solution by an LU factorisation, None where a probing right-hand side blows up."""
    size = len(rhs)
    sides = np.stack([rhs, np.cos(1.0 + np.arange(size) ** 2)], -1)
    try:
        if sp.issparse(matrix):
            from scipy.sparse.linalg import splu

            both = splu(matrix).solve(sides)
        else:
            both = np.linalg.solve(matrix, sides)
    except (np.linalg.LinAlgError, RuntimeError):
        return None
    fine = np.isfinite(both).all() and abs(both[:, 1]).sum() * SINGULAR < 1.0
    return both[:, 0] if fine else None


def _balance(matrix: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Factors that bring the largest entry of every row and column near one."""
    down, across, size = np.ones(matrix.shape[0]), np.ones(matrix.shape[1]), abs(matrix)
    if sparse := sp.issparse(matrix):
        at = matrix.indices, np.repeat(np.arange(matrix.shape[1]), np.diff(matrix.indptr))
    for _ in range(3):
        for axis in (1, 0):
            if sparse:
                top = np.zeros(matrix.shape[1 - axis])
                np.maximum.at(top, at[1 - axis], size.data * down[at[0]] * across[at[1]])
            else:
                top = (size * down[:, None] * across).max(axis)
            factor = 1 / np.sqrt(np.where(top > 0, top, 1.0))
            down, across = (down * factor, across) if axis else (down, across * factor)
    return down, across
