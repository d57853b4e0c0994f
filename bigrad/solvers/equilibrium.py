"""The followers' answer to one leader decision: a quadratic program, or an equilibrium of a game with affine responses.

    find u with  M u + q + rows' dual == 0,  rows u <= top (the last ones ==),  dual >= 0 on the inequalities and
    complementary to their slacks

One follower, or a game whose M is symmetric and positive semidefinite, has the minimum of 1/2 u'Mu + q'u. Any other game
is split into a linear part and a projection on the constraints, which converges where M is monotone: Lions and Mercier,
"Splitting algorithms for the sum of two nonlinear operators", SIAM Journal on Numerical Analysis, 1979. The constraints
that the projections find active are tried at once: most games end after a few.
"""

from __future__ import annotations

import numpy as np

from bigrad.solvers.convex import BROKEN, EQUALITY, INFINITY, SOLVED, UNBOUNDED, if_unbounded, quadratic_program

ROUNDS = 300
CLOSE = 1e-9
"""Errors below this, relative to the size of the numbers, are rounding."""

Answer = tuple[np.ndarray, int, np.ndarray]


def respond(
    P: np.ndarray, q: np.ndarray, rows: np.ndarray, top: np.ndarray, pairs: int, N: np.ndarray | None = None
) -> Answer:
    """(u, flag, dual) for M = P + N, of which P is symmetric; the first `pairs` rows are inequalities.

    flag: as of bigrad/solvers/convex.py, positive if solved.
    """
    M = P if N is None else P + N
    sense = np.r_[np.zeros(pairs, np.int32), np.full(len(top) - pairs, EQUALITY, np.int32)]
    bottom = np.where(sense == EQUALITY, top, -INFINITY)
    if N is None or (np.allclose(M, M.T, rtol=0, atol=1e-12) and np.linalg.eigvalsh(M)[0] >= -1e-12):
        problem = tuple(np.ascontiguousarray(block) for block in (M, q, rows, top, bottom, sense))
        u, _, flag, dual = quadratic_program(*problem)
        if flag == UNBOUNDED:
            u, _, flag, dual = if_unbounded(*problem)
        return u, flag, dual
    return _split(M, q, rows, top, bottom, sense, pairs)


def _split(
    M: np.ndarray,
    q: np.ndarray,
    rows: np.ndarray,
    top: np.ndarray,
    bottom: np.ndarray,
    sense: np.ndarray,
    pairs: int,
) -> Answer:
    eye = np.eye(len(q))
    step = 1 / max(float(np.linalg.norm(M, 2)), 1e-12)
    resolvent = np.linalg.pinv(eye + step * M)
    z, tried = np.zeros(len(q)), set()
    for _ in range(ROUNDS):
        u = resolvent @ (z - step * q)
        point, _, flag, dual = quadratic_program(eye, z - 2 * u, rows, top, bottom, sense)
        if flag <= 0:
            return point, flag, dual
        if abs(point - u).max(initial=0.0) <= CLOSE * (1 + abs(u).max(initial=0.0)):
            return point, SOLVED, dual / step
        held = (dual > CLOSE) | (sense == EQUALITY)
        if held.tobytes() not in tried:
            tried.add(held.tobytes())
            exact = _near(point, dual / step, held, M, q, rows, top, pairs)
            if exact is not None:
                return exact
        z = z + point - u
    return q, BROKEN, top


def _near(
    u: np.ndarray,
    dual: np.ndarray,
    held: np.ndarray,
    M: np.ndarray,
    q: np.ndarray,
    rows: np.ndarray,
    top: np.ndarray,
    pairs: int,
) -> Answer | None:
    """The nearest point with these rows active and no other multiplier, if it is an equilibrium."""
    n, R, dual = len(q), rows[held], np.where(held, dual, 0.0)
    gap = np.r_[M @ u + q + rows.T @ dual, R @ u - top[held]]
    both = np.linalg.lstsq(np.block([[M, R.T], [R, np.zeros((len(R), len(R)))]]), -gap)[0]
    u = u + both[:n]
    dual[held] += both[n:]
    error = np.r_[abs(M @ u + q + rows.T @ dual), abs(R @ u - top[held]), rows[:pairs] @ u - top[:pairs], -dual[:pairs]]
    scale = 1 + max(abs(part).max(initial=0.0) for part in (q, u, dual))
    return (u, SOLVED, dual) if error.max(initial=0.0) <= CLOSE * scale else None
