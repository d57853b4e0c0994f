"""A bilevel quadratic program as one program with complementarity pairs, in u = (x, y, lam, nu, s), s the slacks of the
pairs; its objective made convex where strong duality can; and whether that objective falls for ever.

At the follower's optimum y'(Cx + Py + p) + lam'(b - Bx) + nu'(h - Kx) == 0: stationarity times y, with
complementarity. So any multiple of the left side may be added to the leader's objective. Where a price times a demand is
all that bends it down, one multiple makes it convex, and no product is left to branch on. Labbe, Marcotte and Savard, "A
bilevel model of taxation and its application to optimal highway pricing", Management Science, 1998.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from bigrad.algebra.quadratic import Data, Sizes, kkt
from bigrad.solvers import sos
from bigrad.solvers.sos import Sos

EXACT = 1e-12
"""Duality must cancel what bends down to this, relatively: multipliers are not bounded."""
RANGE, ROUNDS = 1e3, 80
"""The multiples of the duality gap that are tried, at most, and steps of the search for the best one."""
STEEP, LEVEL, MARGIN = 1e-4, 1e-6, 1e-3
"""Along a ray of length one, a steeper descent is one, a flatter one is none; less curvature than this share of the
largest may be none."""
LOOSE, SLIT, BRIEF = 1e-3, 1e-6, 2.0
"""The gap to which a bound of an unknown is found, the width by which it is moved outwards, and the seconds it may take."""
BOUNDED, UNBOUNDED, UNDECIDED = "bounded", "unbounded", "undecided"


def reformulate(data: Data, sizes: Sizes, integer: np.ndarray, units: np.ndarray) -> Sos:
    """One item's program. integer: places in x of the integer variables; units: what these are counted in."""
    matrix, rhs = (a[0] for a in kkt(data, sizes, 1))
    m, pairs = sizes.primal, sizes.pairs
    _, _, lam, _, _, kappa, _, gamma, _ = sizes.blocks
    rows = np.pad(matrix[m:, :m], ((0, 0), (0, pairs)))
    rows[kappa.start - m : kappa.stop - m, m:] = np.eye(pairs)
    equal = np.ones(len(rows), bool)
    equal[gamma.start - m : gamma.stop - m] = False
    low = np.full(m + pairs, -np.inf)
    low[lam] = low[m:] = 0.0
    rigid = equal.copy()
    rigid[kappa.start - m : kappa.stop - m] = False
    H, f, f0 = _within(matrix[m:, :m][rigid], rhs[m:][rigid], matrix[:m, :m], -rhs[:m])
    H, f = _convexified(data, sizes, H, f)
    scale = np.ones(m + pairs)
    scale[integer] = 1 / units
    return Sos(
        H=np.pad(H, (0, pairs)) * scale * scale[:, None], f=np.pad(f, (0, pairs)) * scale, f0=float(data.c0) + f0,
        rows=rows * scale, top=rhs[m:], equal=equal, low=low,
        high=np.full(m + pairs, np.inf), pairs=np.stack([np.arange(lam.start, lam.stop), m + np.arange(pairs)], -1),
        integer=integer,
    )  # fmt: skip


def _within(E: np.ndarray, e: np.ndarray, H: np.ndarray, f: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The objective written for the solutions of E v == e alone, where that makes it convex: v is a particular one plus
    its projection.
    """
    if sos.convex(H):
        return H, f, 0.0
    inverse = np.linalg.pinv(E)
    base, project = inverse @ e, np.eye(len(f)) - inverse @ E
    bent = project @ H @ project
    bent[abs(bent) < EXACT * abs(H).max()] = 0.0
    spectrum = np.linalg.eigvalsh(bent)
    if spectrum[0] < -EXACT * (1 + spectrum[-1]):
        return H, f, 0.0
    tilt = project @ (f + H @ base)
    tilt[abs(tilt) < EXACT * (1 + abs(f).max())] = 0.0
    return bent, tilt, float(base @ H @ base / 2 + f @ base)


def _convexified(data: Data, sizes: Sizes, H: np.ndarray, f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The objective plus the multiple of the duality gap that makes it convex; as it is where it is, or none does."""
    if sos.convex(H):
        return H, f
    x, y, lam, nu = sizes.blocks[:4]
    S, g = np.zeros(H.shape), np.zeros(f.shape)
    S[y, x], S[lam, x], S[nu, x] = data.C, -data.B, -data.K
    S = S + S.T
    S[y, y] = data.P + data.P.T
    g[y], g[lam], g[nu] = data.p, data.b, data.h
    both = (S != 0) & (H != 0) & (np.diag(H) == 0)[:, None] & (np.diag(S) == 0)[:, None]
    exact = np.unique(-H[both] / S[both])  # on a row without a diagonal entry, all must cancel
    best = exact[:2] if len(exact) else np.array([_least_bent(H, S)])
    for multiple in best:
        bent = H + multiple * S
        spectrum = np.linalg.eigvalsh(bent)
        if spectrum[0] >= -EXACT * (1 + spectrum[-1]):
            return bent, f + multiple * g
    return H, f


def _least_bent(H: np.ndarray, S: np.ndarray) -> float:
    """The multiple with the largest least eigenvalue of H + multiple S, which is concave in it: golden section."""
    a, b, ratio = -RANGE, RANGE, (5**0.5 - 1) / 2

    def least(multiple: float) -> float:
        return float(np.linalg.eigvalsh(H + multiple * S)[0])

    for _ in range(ROUNDS):
        left, right = b - ratio * (b - a), a + ratio * (b - a)
        if least(left) < least(right):
            a = left
        else:
            b = right
    return (a + b) / 2


def tightened(program: Sos, seconds: float) -> Sos:
    """The program with bounds on the unknowns of its objective, as far as its rows and pairs imply them.

    Branching in space needs them: a product of unbounded factors has no relaxation. Each is one program with a linear
    objective.
    """
    low, high, end = program.low.copy(), program.high.copy(), time.perf_counter() + seconds
    for k in np.flatnonzero(program.H.any(0) | (program.f != 0)):
        for bounds, sign in ((low, 1.0), (high, -1.0)):
            left = end - time.perf_counter()
            if left <= 0:
                break
            goal = np.zeros(len(low))
            goal[k] = sign
            flat = replace(program, H=np.zeros_like(program.H), f=goal, f0=0.0)
            found = sos.minimise(flat, gap=(LOOSE, LOOSE), seconds=min(left, BRIEF))
            if np.isfinite(found.bound):
                edge = sign * (found.bound - SLIT * (1 + abs(found.bound)))
                bounds[k] = max(bounds[k], edge) if sign > 0 else min(bounds[k], edge)
    return replace(program, low=low, high=high)


def fall(program: Sos, seconds: float) -> str:
    """Whether the objective falls without limit over the feasible points.

    A quadratic function that does so over a polyhedron does so along a ray (Eaves, "On quadratic programming", 1971).
    The sides of the pairs are shared by a feasible point and a ray d of its piece. If nowhere d'Hd < 0, and d'Hd == 0
    only where Hd == 0, and there f'd >= 0, there is no such ray. The pairs are looked at only if the rays of the
    polyhedron without them do not settle it.
    """
    priced = program.H.any(0) | (program.f != 0)
    if np.isfinite(program.low[priced]).all() and np.isfinite(program.high[priced]).all():
        return BOUNDED
    cone = _cone(program)
    if _along(program, replace(cone, pairs=cone.pairs[:0]), seconds) == BOUNDED:
        return BOUNDED
    return _along(program, cone, seconds)


def _along(program: Sos, cone: Sos, seconds: float) -> str:
    n = len(program.f)
    spectrum, axes = np.linalg.eigh(program.H)
    axes = axes[:, abs(spectrum) > sos.FLAT * (1 + abs(spectrum).max(initial=0.0))].T
    if not sos.convex(program.H):
        margin = MARGIN * abs(spectrum).max() * axes.T @ axes
        found = sos.minimise(
            replace(cone, H=np.pad(program.H - margin, ((n, 0), (n, 0)))), gap=(0.0, LEVEL / 10), seconds=seconds
        )
        if found.v is not None and found.v[n:] @ program.H @ found.v[n:] < -STEEP:
            return UNBOUNDED
        if found.bound < -LEVEL:
            return UNDECIDED
    falling = replace(
        cone,
        f=np.r_[np.zeros(n), program.f],
        rows=np.concatenate([cone.rows, np.pad(axes, ((0, 0), (n, 0)))]),
        top=np.r_[cone.top, np.zeros(len(axes))],
        equal=np.r_[cone.equal, np.ones(len(axes), bool)],
    )
    found = sos.minimise(falling, gap=(0.0, LEVEL / 10), seconds=seconds)
    if found.v is not None and program.f @ found.v[n:] < -STEEP:
        return UNBOUNDED
    return BOUNDED if found.bound >= -LEVEL else UNDECIDED


def _cone(program: Sos) -> Sos:
    """Feasible points u with, beside each, the rays d of length at most one of a piece that it lies on; no objective."""
    n, (a, b) = len(program.f), program.pairs.T
    down, up = (np.where(np.isinf(side), 1.0, 0.0) for side in (program.low, program.high))
    return Sos(
        H=np.zeros((2 * n, 2 * n)),
        f=np.zeros(2 * n),
        f0=0.0,
        rows=np.kron(np.eye(2), program.rows),
        top=np.r_[program.top, 0 * program.top],
        equal=np.tile(program.equal, 2),
        low=np.r_[program.low, -down],
        high=np.r_[program.high, up],
        pairs=np.concatenate([np.stack(p, -1) for p in ((a, b), (a, n + b), (n + a, b), (n + a, n + b))]),
        integer=program.integer,
    )
