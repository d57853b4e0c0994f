"""Batched solves of symmetric systems, restricted to the unknowns that are free, with singular items told apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg.blas import dtrsm

from bigrad.algebra.affine import Array, mv, namespace
from bigrad.algebra.exchange import Exchange, Items

SINGULAR = 1e-11
"""Eigenvalues below this fraction of the largest, units balanced, count as zero."""
PIVOT = 1e-6
"""Cholesky pivots below this fraction of the largest are not trusted: the matrix is close to singular."""
LARGE = 24
"""Unknowns from which numpy gathers a matrix faster by rows and columns than entry by entry."""
BLOCK = 16
"""Items solved at a time: few enough for their matrices to stay in the cache."""


def solve_free(matrix: Array, free: Array, rhs: Array, ready: Items | None = None) -> tuple[Array, Array]:
    """Solve matrix[free, free] u[free] = rhs[free] for each item, with u zero elsewhere: (u, singular).

    matrix: (batch, n, n) or (1, n, n) symmetric; free: bool (batch, n); rhs: (batch, n). A singular item (flag True) gets the
    minimum-norm least-squares solution, in units in which the matrix is balanced. Only the free unknowns, padded to the
    largest count in the batch, are factorised. Differentiable in matrix and rhs where these are torch tensors. ready: the
    same items as an `exchange` has them.
    """
    if ready is not None:
        u, solved = ready.exactly(rhs)
        singular, rest = np.zeros(len(free), bool), np.flatnonzero(~solved)
        if len(rest):
            u[rest], singular[rest] = solve_free(matrix if len(matrix) == 1 else matrix[rest], free[rest], rhs[rest])
        return u, singular
    if len(matrix) == 1 < len(free):
        units = _units(matrix)
        u, singular = _solve_free(matrix * units[:, :, None] * units[:, None, :], free, rhs * units, balanced=True)
        return u * units, singular
    return _solve_free(matrix, free, rhs, balanced=False)


def exchange(matrix: Array, free: Array) -> Exchange | None:
    """What solves most items of `solve_free` together, where they share a matrix (1, n, n) and their free unknowns are alike."""
    if len(matrix) != 1 or not isinstance(matrix, np.ndarray):
        return None
    return Exchange.of(matrix[0], _units(matrix)[0], free)


def _solve_free(matrix: Array, free: Array, rhs: Array, *, balanced: bool) -> tuple[Array, Array]:
    """The same. balanced: the matrix is so already."""
    xp = namespace(matrix)
    if len(free) > BLOCK:
        blocks = [slice(i, i + BLOCK) for i in range(0, len(free), BLOCK)]
        parts = [
            _solve_free(matrix if len(matrix) == 1 else matrix[i], free[i], rhs[i], balanced=balanced) for i in blocks
        ]
        return xp.concatenate([u for u, _ in parts]), xp.concatenate([singular for _, singular in parts])
    size = int(free.sum(-1).max()) if len(free) else 0
    if not size:
        return xp.zeros_like(rhs), xp.zeros(len(rhs), dtype=bool, device=rhs.device)
    order = xp.argsort(xp.where(free, 0, 1), stable=True)
    item = xp.arange(len(free), device=order.device)[:, None]
    first = order[:, :size]
    live = free[item, first]
    compact = _restricted(matrix, first, live)
    short = xp.where(live, rhs[item, first], 0.0)
    if balanced:
        short, singular = _solve(compact, short)
    else:
        units = _units(compact)
        short, singular = _solve(compact * units[:, :, None] * units[:, None, :], short * units)
        short = short * units
    padded = xp.concatenate([xp.where(live, short, 0.0), xp.zeros_like(rhs[:, size:])], -1)
    return padded[item, xp.argsort(order, stable=True)], singular


@dataclass(frozen=True, eq=False)
class Bordered:
    """The matrix [P J'; J 0] with P = root root' positive definite and lifted = root^-1 J'; each with or without a batch."""

    root: Array
    lifted: Array

    def solve(self, held: Array, goal: Array, rest: Array) -> tuple[Array, Array]:
        """Solve for (u, v) at the right-hand side (goal, rest), rows of J that are not `held` left out and their v
        zero: ((u, v), singular).

        held: bool (batch, m), goal: (batch, n), rest: (batch, m). Singular items, whose held rows are dependent, get the
        minimum-norm v.
        """
        root, lifted = self.root, self.lifted
        xp, start = namespace(root), lower_solve(root, goal[..., None])[..., 0]
        size = int(held.sum(-1).max()) if held.shape[-1] else 0
        order = xp.argsort(xp.where(held, 0, 1), stable=True)[:, :size]
        item = xp.arange(len(held), device=rest.device)[:, None]
        live = held[item, order]
        rows = lifted.mT[order] if lifted.ndim == 2 else lifted.mT[item, order]
        rows = xp.where(live[:, :, None], rows, 0.0)
        dual, singular = _solve_padded(rows @ rows.mT, live, xp.where(live, mv(rows, start) - rest[item, order], 0.0))
        v = xp.zeros_like(rest)
        v[item, order] = dual
        u = upper_solve(root, (start - mv(rows.mT, dual))[..., None])[..., 0]
        return xp.concatenate([u, v], -1), singular


def cholesky(P: Array) -> tuple[Array, Array]:
    """Lower Cholesky factors, and which matrices are positive definite with pivots well above rounding (others: the
    identity's).
    """
    xp = namespace(P)
    if isinstance(P, np.ndarray):
        try:
            root, fine = np.linalg.cholesky(P), np.ones(P.shape[:-2], bool)
        except np.linalg.LinAlgError:
            fine = np.asarray((P.diagonal(axis1=-2, axis2=-1) > 0).all(-1))
            if fine.any():
                fine = np.asarray(np.linalg.eigvalsh(P)[..., 0] > 0)
            root = np.linalg.cholesky(np.where(fine[..., None, None], P, np.eye(P.shape[-1])))
    else:
        root, failed = xp.linalg.cholesky_ex(P)
        fine = failed == 0
    if P.shape[-1]:
        pivots = root[..., range(P.shape[-1]), range(P.shape[-1])]
        fine = fine & (xp.amin(pivots, -1) > PIVOT * xp.amax(pivots, -1))
    eye = xp.eye(P.shape[-1], dtype=P.dtype, device=P.device)
    return xp.where(fine[..., None, None], root, eye), fine


def lower_solve(root: Array, right: Array) -> Array:
    """root^-1 right for lower triangular root and any right-hand sides, either with or without a batch."""
    return _triangular(root, right, False)


def upper_solve(root: Array, right: Array) -> Array:
    """root'^-1 right."""
    return _triangular(root, right, True)


def _triangular(root: Array, right: Array, transposed: bool) -> Array:
    if not isinstance(root, np.ndarray):
        return namespace(root).linalg.solve_triangular(root.mT if transposed else root, right, upper=transposed)
    if root.ndim > 2:
        right = np.broadcast_to(right, (len(root), *right.shape[-2:]))
        both = zip(root, right, strict=True)
        return np.stack([dtrsm(1.0, a.T, b, trans_a=not transposed) for a, b in both])
    wide = np.moveaxis(right, -2, 0)
    solved = dtrsm(1.0, root.T, wide.reshape(len(root), -1), trans_a=not transposed)
    return np.moveaxis(solved.reshape(wide.shape), 0, -2)


def _solve_padded(matrix: Array, live: Array, rhs: Array) -> tuple[Array, Array]:
    """Symmetric solves of which only the live rows and columns count."""
    xp = namespace(matrix)
    if not live.shape[1]:
        return rhs, xp.zeros(len(rhs), dtype=bool, device=rhs.device)
    eye = xp.eye(live.shape[1], dtype=matrix.dtype, device=matrix.device)
    matrix = xp.where(live[:, :, None] & live[:, None, :], matrix, eye)
    units = _units(matrix)
    short, singular = _solve(matrix * units[:, :, None] * units[:, None, :], xp.where(live, rhs, 0.0) * units)
    return xp.where(live, short * units, 0.0), singular


def _restricted(matrix: Array, first: Array, live: Array) -> Array:
    """The matrix of each item on the unknowns `first` that are `live`, the identity on the others: (batch, size, size)."""
    xp, (count, size), n = namespace(matrix), first.shape, matrix.shape[-1]
    if xp is np and size >= LARGE:  # item by item: no index of every entry
        compact = np.zeros((count, size, size))
        for k in range(count):
            own = first[k, live[k]]
            compact[k, : len(own), : len(own)] = matrix[k if len(matrix) > 1 else 0][own][:, own]
            compact[k].reshape(-1)[len(own) * (size + 1) :: size + 1] = 1.0
        return compact
    item = xp.arange(count if len(matrix) > 1 else 1, device=first.device)[:, None, None]
    compact = matrix.reshape(-1)[(item * n + first[:, :, None]) * n + first[:, None, :]]
    eye = xp.eye(size, dtype=matrix.dtype, device=matrix.device)
    return xp.where(live[:, :, None] & live[:, None, :], compact, eye)


def _units(matrix: Array) -> Array:
    """Factors, constants to autograd, that bring the largest entry of every row and column of a symmetric matrix near one."""
    xp = namespace(matrix)
    matrix = abs(getattr(matrix, "detach", lambda: matrix)())
    units = xp.ones_like(matrix[..., 0])
    for _ in range(3):
        top = xp.amax(matrix * units[:, None, :], -1) * units
        units = units / xp.where(top > 0, top, 1.0) ** 0.5
    return units


def _solve(matrix: Array, rhs: Array) -> tuple[Array, Array]:
    """Batched symmetric solve. Items whose solution for a probing right-hand side blows up are taken for singular."""
    xp = namespace(matrix)
    size = matrix.shape[-1]
    singular = xp.zeros(len(rhs), dtype=bool, device=matrix.device)
    eye = xp.eye(size, dtype=matrix.dtype, device=matrix.device)
    probe = xp.cos(1.0 + xp.arange(size, dtype=matrix.dtype, device=matrix.device) ** 2)
    sides = xp.stack([rhs, xp.broadcast_to(probe, rhs.shape)], -1)
    try:
        both = xp.linalg.solve(matrix, sides)
    except xp.linalg.LinAlgError:
        singular = xp.linalg.slogdet(matrix)[0] == 0
        both = xp.linalg.solve(xp.where(singular[:, None, None], eye, matrix), sides)
    singular = singular | ~(abs(both[..., 1]).sum(-1) * SINGULAR < 1.0)
    solution = both[..., 0]
    if bool(singular.any()):
        inverse = xp.linalg.pinv(matrix[singular], rtol=SINGULAR, hermitian=True)
        spread = xp.zeros_like(solution)
        spread[singular] = mv(inverse, rhs[singular])
        solution = xp.where(singular[:, None], 0.0, solution) + spread
    return solution, singular
