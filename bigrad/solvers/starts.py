"""Where local searches begin: vertices of the high-point relaxation, and the follower's answer to the leader there.

The high-point relaxation keeps every constraint of both levels and forgets that the follower optimises. Its optimum for
the true objective bounds the bilevel optimum; its optima for random objectives are far apart, which is what several
starts need.
"""

from __future__ import annotations

import numpy as np

from bigrad.algebra.affine import mv
from bigrad.algebra.quadratic import Data, Sizes, apart, beside, stack
from bigrad.solvers.convex import EQUALITY, INFEASIBLE, INFINITY, if_unbounded, quadratic_program
from bigrad.solvers.equilibrium import respond

REACH = 1e-3
"""Curvature of the random objectives: keeps their optima finite where the relaxation is unbounded."""


def high_points(data: Data, sizes: Sizes, batch: int, starts: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points z = (x, y) (batch, starts, size), the first for the true objective (which must be convex), and that
    objective's bound (batch,).

    A row is NaN where the relaxation has no such optimum; the bound is then -inf, or +inf where the relaxation is
    infeasible.
    """
    n = data.Q.shape[-1]
    rows, limits, soft = _region(data, sizes)
    alike = rows.ndim == 2 and all(v.ndim == 1 for v in limits)
    rows, top = _each(rows, batch), np.concatenate([_each(v[..., None], batch)[..., 0] for v in limits], 1)
    sense = np.full(top.shape[1], EQUALITY, np.int32)
    sense[soft] = 0
    bottom = np.where(sense == EQUALITY, top, -INFINITY)
    Q, c, c0 = _each(data.Q, batch), _each(data.c[..., None], batch)[..., 0].copy(), np.broadcast_to(data.c0, batch)
    pulls = np.random.default_rng(seed).standard_normal((starts, n))
    flat = np.diag(np.full(n, REACH))
    points, bound = np.full((batch, starts, n), np.nan), np.full(batch, -np.inf)
    for i in range(batch):
        point, F, flag, _ = quadratic_program(Q[i], c[i], rows[i], top[i], bottom[i], sense)
        if flag == INFEASIBLE:  # DAQP calls some unbounded programs so
            point, F, flag, _ = if_unbounded(Q[i], c[i], rows[i], top[i], bottom[i], sense)
        if flag > 0:
            points[i, 0], bound[i] = point, F + c0[i]
        elif flag == INFEASIBLE:
            bound[i] = np.inf
            continue
        if i and alike:
            points[i, 1:] = points[0, 1:]
            continue
        for k in range(1, starts):
            point, _, flag, _ = quadratic_program(flat, pulls[k], rows[i], top[i], bottom[i], sense)
            if flag > 0:
                points[i, k] = point
    return points[..., : sizes.answers], bound


def answers(data: Data, sizes: Sizes, x: np.ndarray, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The follower's tight pairs at leader decisions x (batch, starts, x); own: see `Maps`.

    Bool (batch, starts, pairs), and which are valid.
    """
    batch, starts = x.shape[:2]
    rows, P = _each(stack(data.A, data.H), batch), _each(data.P, batch)
    linear = mv(_each(data.C, batch)[:, None], x) + _each(data.p[..., None], batch).mT
    limits, slopes = stack(data.b[..., None], data.h[..., None]), stack(data.B, data.K)
    top = _each(limits, batch).mT - mv(_each(slopes, batch)[:, None], x)
    tight, valid = np.zeros((batch, starts, sizes.pairs), bool), np.isfinite(x).all(-1)
    for i, k in np.argwhere(valid).tolist():
        alone, others = apart(P[i], own)
        _, flag, lam = respond(alone, linear[i, k], rows[i], top[i, k], sizes.pairs, others)
        valid[i, k] = flag > 0
        tight[i, k] = lam[: sizes.pairs] > 1e-9
    return tight, valid


def _region(data: Data, sizes: Sizes) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Rows and limits of the high-point relaxation, and which of them are inequalities.

    Where the upper level mentions multipliers these are unknowns too: nonnegative, and stationary together with y.
    """
    width, lam = data.Q.shape[-1], sizes.blocks[2]
    rows, limits = [beside(data.B, data.A), beside(data.K, data.H)], [data.b, data.h]
    if width > sizes.answers:
        rows = [np.concatenate([m, np.zeros((*m.shape[:-1], width - m.shape[-1]))], -1) for m in rows]
        rows += [beside(data.C, data.P, data.A.mT, data.H.mT), -np.eye(width)[lam]]
        limits += [-data.p, np.zeros(sizes.pairs)]
    rows, limits = [*rows, data.G, data.E], [*limits, data.g, data.e]
    counts = [m.shape[-2] for m in rows]
    kinds = [True, False, *([False, True] if width > sizes.answers else []), True, False]
    return stack(*rows), limits, np.repeat(kinds, counts)


def _each(block: np.ndarray, batch: int) -> np.ndarray:
    """A matrix block for every item, writable, as DAQP wants it."""
    return np.broadcast_to(block, (batch, *block.shape[-2:])).copy()
