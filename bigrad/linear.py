"""Batched solves of symmetric systems, restricted to the unknowns that are free, with singular items told apart."""

from __future__ import annotations

import numpy as np

from bigrad.affine import Array, mv, namespace

SINGULAR = 1e-11
"""Eigenvalues below this fraction of the largest, units balanced, count as zero."""
LARGE = 24
"""Unknowns from which numpy gathers a matrix faster by rows and columns than entry by entry."""
BLOCK = 16
"""Items solved at a time: few enough for their matrices to stay in the cache."""


def solve_free(matrix: Array, free: Array, rhs: Array) -> tuple[Array, Array]:
    """Solve matrix[free, free] u[free] = rhs[free] for each item, with u zero elsewhere: (u, singular).

    matrix: (batch, n, n) or (1, n, n) symmetric; free: bool (batch, n); rhs: (batch, n). A singular item (flag True) gets the
    minimum-norm least-squares solution, in units in which the matrix is balanced. Only the free unknowns, padded to the
    largest count in the batch, are factorised. Differentiable in matrix and rhs where these are torch tensors.
    """
    if len(matrix) == 1 < len(free):
        units = _units(matrix)
        u, singular = _solve_free(matrix * units[:, :, None] * units[:, None, :], free, rhs * units, balanced=True)
        return u * units, singular
    return _solve_free(matrix, free, rhs, balanced=False)


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
