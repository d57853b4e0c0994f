"""Large symmetric systems that may be singular, and signs of large symmetric matrices, by one sparse factorisation each.

With d small, (M + d I)^-1 acts as the inverse on the range of M and as 1/d on its null space. So powers of d (M + d
I)^-1 project on the null space, which tells singular matrices and unsolvable right-hand sides, and refinement with M +
d I, started at zero, stays in the range and ends at the solution of minimum norm. The factorisation is SuperLU's:
Demmel, Eisenstat, Gilbert, Li and Liu, "A supernodal approach to sparse partial pivoting", 1999.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

SHIFT = 1e-9
"""The d above, for a matrix whose largest entries are one."""
STEPS = 30
"""Refinements at most; two or three are the rule."""
EXACT = 1e-13
"""Relative residual at which refinement ends."""
FLAT = 1e-11
"""Relative eigenvalues above minus this count as not negative."""


class Solved(NamedTuple):
    """Solution of a symmetric system, zero at the unknowns that are not free.

    singular: the matrix has (nearly) a null space. lost: the part of the right-hand side outside the range, relative.
    """

    u: np.ndarray
    singular: bool
    lost: float


def solve_sparse(matrix: sp.csc_array, free: np.ndarray, rhs: np.ndarray) -> Solved:
    """Solve matrix[free, free] u[free] = rhs[free]; minimum norm, least squares, in balanced units.

    matrix: (n, n) symmetric; free: bool (n,); rhs: (n,). Time and memory are those of one sparse factorisation.
    """
    from scipy.sparse.linalg import splu

    out, at = np.zeros(len(rhs)), np.flatnonzero(free)
    if not len(at):
        return Solved(out, False, 0.0)
    short = sp.csc_array(matrix[at][:, at])
    units = balance(short)
    scale = sp.diags_array(units)
    M = sp.csc_array(scale @ short @ scale)
    b, size = rhs[at] * units, len(at)
    lu = None
    for shift in SHIFT * 1.7 ** np.arange(3):  # minus the shift may be an eigenvalue, but not three times
        try:
            lu = splu(sp.csc_matrix(M + shift * sp.eye_array(size)), permc_spec="COLAMD")
            break
        except RuntimeError:
            continue
    if lu is None:
        return Solved(out, True, 1.0)
    null = np.stack([b, np.cos(1.0 + np.arange(size) ** 2)], 1)
    length = np.linalg.norm(null, axis=0) + np.finfo(float).tiny
    for _ in range(3):
        null = shift * lu.solve(null)
    part = np.linalg.norm(null, axis=0) / length
    singular, lost = bool(part[1] * np.sqrt(size) > 1e-3), float(part[0])
    if singular and lost > 1e-9:
        b = b - null[:, 0]
    u, gap = np.zeros(size), b
    best = np.linalg.norm(gap)
    for _ in range(STEPS):
        there = u + lu.solve(gap)
        gap = b - M @ there
        now = np.linalg.norm(gap)
        if not now < best:
            break
        u, best = there, now
        if best <= EXACT * length[0]:
            break
    out[at] = u * units
    return Solved(out, singular, max(lost, float(best / length[0])))


def balance(matrix: sp.csc_array) -> np.ndarray:
    """Factors that bring the largest entry of every row and column of a symmetric matrix near one."""
    size = abs(sp.csr_array(matrix))
    units = np.ones(matrix.shape[0])
    for _ in range(3):
        top = (size @ sp.diags_array(units)).max(axis=1).toarray().ravel() * units
        units = units / np.sqrt(np.where(top > 0, top, 1.0))
    return units


def semidefinite(matrix: sp.csc_array) -> bool:
    """Whether a symmetric matrix has no eigenvalue below -FLAT, its largest entries taken for one."""
    size = abs(matrix).max() if matrix.nnz else 0.0
    if size == 0.0:
        return True
    if matrix.diagonal().min() < -FLAT * size:
        return False
    pivots = _pivots(sp.csc_array(matrix / size + FLAT * sp.eye_array(matrix.shape[0])))
    return pivots is not None and bool((pivots > 0).all())


def curves_upwards(matrix: sp.csc_array, free: np.ndarray, primal: int) -> bool:
    """Whether the objective curves upwards along the active set: the KKT matrix of the free unknowns, of which the first
    `primal` are variables and the others rows, has one negative eigenvalue a row.
    """
    at = np.flatnonzero(free)
    if not len(at):
        return True
    short = sp.csc_array(matrix[at][:, at])
    scale = sp.diags_array(balance(short))
    variable = at < primal
    pivots = _pivots(sp.csc_array(scale @ short @ scale + sp.diags_array(np.where(variable, 1e-6, -1e-6))))
    return pivots is not None and int((pivots < 0).sum()) == int((~variable).sum())


def _pivots(matrix: sp.csc_array) -> np.ndarray | None:
    """The D of L D L' = matrix, of which the signs are those of the eigenvalues; None where there is no such product."""
    from scipy.sparse.linalg import splu

    symmetric = {"SymmetricMode": True, "Equil": False}
    try:
        lu = splu(sp.csc_matrix(matrix), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=symmetric)
    except RuntimeError:
        return None
    return lu.U.diagonal() if np.array_equal(lu.perm_r, lu.perm_c) else None
