"""Where local searches begin: vertices of the high-point relaxation, and the follower's answer to the leader there.

The high-point relaxation keeps every constraint of both levels and forgets that the follower optimises. Its optimum for
the true objective bounds the bilevel optimum; its optima for random objectives are far apart, which is what several
starts need.
"""

from __future__ import annotations

import numpy as np

from bigrad.affine import mv
from bigrad.quadratic import Data, Sizes, beside, stack
from bigrad.solvers.convex import EQUALITY, INFEASIBLE, INFINITY, quadratic_program

REACH = 1e-3
"""Curvature of the random objectives: keeps their optima finite where the relaxation is unbounded."""


def high_points(data: Data, sizes: Sizes, batch: int, starts: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points z (batch, starts, size), the first for the true objective (which must be convex), and that objective's
    bound (batch,).

    A row is NaN where the relaxation has no such optimum; the bound is then -inf, or +inf where the relaxation is
    infeasible.
    """
    n = sizes.x + sizes.y
    rows = stack(beside(data.B, data.A), beside(data.K, data.H), data.G, data.E)
    limits = (data.b, data.h, data.g, data.e)
    alike = rows.ndim == 2 and all(v.ndim == 1 for v in limits)
    rows, top = _each(rows, batch), np.concatenate([_each(v[..., None], batch)[..., 0] for v in limits], 1)
    sense = np.zeros(top.shape[1], np.int32)
    sense[sizes.pairs : sizes.pairs + sizes.equalities] = EQUALITY
    sense[top.shape[1] - sizes.upper_equalities :] = EQUALITY
    bottom = np.where(sense == EQUALITY, top, -INFINITY)
    Q, c, c0 = _each(data.Q, batch), _each(data.c[..., None], batch)[..., 0].copy(), np.broadcast_to(data.c0, batch)
    pulls = np.random.default_rng(seed).standard_normal((starts, n))
    flat = np.diag(np.full(n, REACH))
    z, bound = np.full((batch, starts, n), np.nan), np.full(batch, -np.inf)
    for i in range(batch):
        point, F, flag, _ = quadratic_program(Q[i], c[i], rows[i], top[i], bottom[i], sense)
        if flag > 0:
            z[i, 0], bound[i] = point, F + c0[i]
        elif flag == INFEASIBLE:
            bound[i] = np.inf
            continue
        if i and alike:
            z[i, 1:] = z[0, 1:]
            continue
        for k in range(1, starts):
            point, _, flag, _ = quadratic_program(flat, pulls[k], rows[i], top[i], bottom[i], sense)
            if flag > 0:
                z[i, k] = point
    return z, bound


def answers(data: Data, sizes: Sizes, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The follower's tight pairs at leader decisions x (batch, starts, x).

    Bool (batch, starts, pairs), and which are valid.
    """
    batch, starts = x.shape[:2]
    rows, P = _each(stack(data.A, data.H), batch), _each(data.P, batch)
    linear = mv(_each(data.C, batch)[:, None], x) + _each(data.p[..., None], batch).mT
    limits, slopes = stack(data.b[..., None], data.h[..., None]), stack(data.B, data.K)
    top = _each(limits, batch).mT - mv(_each(slopes, batch)[:, None], x)
    sense = np.zeros(top.shape[-1], np.int32)
    sense[sizes.pairs :] = EQUALITY
    bottom = np.where(sense == EQUALITY, top, -INFINITY)
    tight, valid = np.zeros((batch, starts, sizes.pairs), bool), np.isfinite(x).all(-1)
    for i, k in np.argwhere(valid).tolist():
        _, _, flag, lam = quadratic_program(P[i], linear[i, k], rows[i], top[i, k], bottom[i, k], sense)
        valid[i, k] = flag > 0
        tight[i, k] = lam[: sizes.pairs] > 1e-9
    return tight, valid


def _each(block: np.ndarray, batch: int) -> np.ndarray:
    """A matrix block for every item, writable, as DAQP wants it."""
    return np.broadcast_to(block, (batch, *block.shape[-2:])).copy()
