"""Whether the optimal value of a convex cone program is attained, or only approached by points that run away.

    min over u of f(u) = 1/2 u'Pu + q'u   subject to   b - A u in K

A closed convex function over a closed set that comes no nearer to its infimum than in the limit has a direction d along
which nothing rises: P d == 0, q'd <= 0, -A d in K (Rockafellar, "Convex Analysis", 1970, theorem 27.1). Where there is
one, the minimum of f + eps d'u exists, and as eps falls its d'u settles if the value is attained, and grows with every
decade of eps if it is not. This is evidence, not proof: it takes a claim back and makes none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from bigrad.programs.cones import exponential, power
from bigrad.programs.newton import Conic, solve

PROBE, FIRM = 1e-8, 1e-2
"""Optimality conditions off by the first, relatively, and a solution that this moves by less than the second: it is there."""
AHEAD = 0.05
"""A direction of less than this length, in a box of one, is none."""
FALLING = (1e-2, 3e-4, 1e-5)
"""The weights eps, in turn, relative to the costs."""
PRICED = 1e-4
"""A multiplier above this, relatively, is one."""
STEADY, MOVED = 0.75, 1e-4
"""Growth that is this share of the growth before does not settle; less than this, relatively, is none."""

Run = Callable[[Conic], Any]


def firm(program: Conic, u: np.ndarray, lam: np.ndarray, watched: np.ndarray | None = None) -> bool:
    """Whether a solution hardly moves with its data: then it is no point on the way to elsewhere. watched: the places in
    (u, lam) that count, all of u if left out.
    """
    size, w = len(u) + len(lam), np.r_[u, lam]
    at = np.arange(len(u)) if watched is None else watched
    off = PROBE * (1 + abs(program.q).max(initial=0.0)) * np.cos(np.arange(size))
    moved, singular = solve(program.jacobian(program.slope(u, lam)), off, rough=True)
    return not singular and bool(abs(moved[at]).max(initial=0.0) <= FIRM * (1 + abs(w[at]).max(initial=0.0)))


def runs_away(program: Conic, run: Run, watched: np.ndarray | None = None) -> bool:
    """Whether the value seems to be approached but not attained. run: solves a program (Clarabel). watched: the places in
    u that count, all if left out.
    """
    d = _flat(program, run)
    if d is not None and watched is not None:
        d[np.setdiff1d(np.arange(len(d)), watched)] = 0.0
    if d is None or abs(d).max(initial=0.0) < AHEAD:
        return False
    places = []
    for eps in FALLING:
        answer = run(program._replace(q=program.q + eps * (1 + abs(program.q).max(initial=0.0)) * d))
        if str(answer.status) not in ("Solved", "AlmostSolved"):
            return False
        places.append(float(d @ np.array(answer.x)))
    before, after = np.diff(places)
    return bool(after >= STEADY * before and min(before, after) > MOVED * (1 + abs(places[-1])))


def still(program: Conic, lam: np.ndarray | None = None) -> np.ndarray:
    """The places in u that are seen to move along no direction on which nothing rises, by the signs that single rows leave.

    In a row a'd <= 0 only one of whose terms may be below 0, that one is not above; where none may be, all are 0. The rows of a
    second-order cone whose head is 0 are 0 as well. lam: optimal multipliers; then q'd = -lam'A d, a sum of terms of which none
    is below 0, so lam_k A_k d == 0 for every cone k.
    """
    (m, n), cones = program.A.shape, program.cones
    flat = cones.zero + cones.nonneg
    heads = flat + np.r_[0, np.cumsum(cones.soc)].astype(int)
    which = np.repeat(np.arange(len(cones.soc)), cones.soc)  # the ball that a row is of
    prices = np.zeros(m) if lam is None else np.where(abs(lam) > PRICED * (1 + abs(lam).max(initial=0.0)), lam, 0.0)
    ball = slice(flat, heads[-1])
    at, across, entries = _entries(program.A)
    bent, bending, curved = _entries(program.P)
    held = np.flatnonzero((at >= flat) & (at < heads[-1]) & (prices[at] != 0))
    pair, k = np.unique(which[at[held] - flat] * n + across[held], return_inverse=True)
    paid = np.bincount(k, prices[at[held]] * entries[held], len(pair))
    paid[abs(paid) <= PROBE * abs(paid).max(initial=0.0)] = 0.0
    row = np.r_[at, m + bent, m + n + pair // n, np.full(n, m + n + len(cones.soc))]
    place = np.r_[across, bending, pair % n, np.arange(n)]
    sign = np.sign(np.r_[entries, curved, paid, program.q])
    count = m + n + len(cones.soc) + 1
    equal = np.arange(count) >= m
    equal[-1], equal[: cones.zero], equal[cones.zero : flat] = False, True, prices[cones.zero : flat] > 0
    known = (np.arange(count) < flat) | equal
    known[heads[:-1]] = known[-1] = True
    up, down, moving = np.ones(n, bool), np.ones(n, bool), np.inf  # whether d may be above 0, below 0
    while up.sum() + down.sum() < moving:
        moving = up.sum() + down.sum()
        loose = np.bincount(row, (up | down)[place] & (sign != 0), count) > 0
        equal[ball] = ~loose[heads[which]]
        for way in (1, -1):
            rows = equal | known if way > 0 else equal
            sinks = np.where(way * sign > 0, down[place], (sign != 0) & up[place])
            sinking = np.bincount(row, sinks, count)
            none, one = (rows & (sinking == 0))[row] & (sign != 0), (rows & (sinking == 1))[row] & sinks
            up[place[none | (one & (way * sign > 0))]] = False
            down[place[none | (one & (way * sign < 0))]] = False
    return ~(up | down)


def _entries(matrix: sp.csc_array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and value of what is stored."""
    return matrix.indices, np.repeat(np.arange(matrix.shape[1]), np.diff(matrix.indptr)), matrix.data


def dual(program: Conic) -> Conic:
    """The dual program, in (omega, lam): min 1/2 omega'P omega + b'lam with P omega + A'lam == -q, lam in K*."""
    n, m, cones = len(program.q), len(program.b), program.cones
    balls = cones.size - cones.zero - 3 * (cones.exponential + len(cones.power))
    lifts = [exponential().lift] * cones.exponential + [power(a).lift for a in cones.power]
    into = sp.block_diag([sp.eye_array(balls), *lifts])
    inside = sp.hstack([sp.csc_array((m - cones.zero, n + cones.zero)), -into])
    return Conic(
        P=sp.csc_array(sp.block_diag([program.P, sp.csc_array((m, m))])),
        q=np.r_[np.zeros(n), program.b],
        d=0.0,
        A=sp.csc_array(sp.vstack([sp.hstack([program.P, program.A.T]), inside])),
        b=np.r_[-program.q, np.zeros(m - cones.zero)],
        cones=replace(cones, zero=n),
    )


def _flat(program: Conic, run: Run) -> np.ndarray | None:
    """A direction of length one, inside of those that never rise; None if there is none."""
    n, zero = len(program.q), program.cones.zero
    eye, curved = sp.eye_array(n), program.P
    level = sp.csr_array(program.q[None] / (1 + abs(program.q).max(initial=0.0)))
    A = sp.csc_array(sp.vstack([program.A[:zero], curved, level, eye, -eye, program.A[zero:]]))
    b = np.r_[np.zeros(zero + n + 1), np.ones(2 * n), np.zeros(len(program.b) - zero)]
    cones = replace(program.cones, zero=zero + n, nonneg=program.cones.nonneg + 2 * n + 1)
    answer = run(program._replace(P=0 * curved, q=np.zeros(n), A=A, b=b, cones=cones, d=0.0))
    d = np.array(answer.x)
    size = abs(d).max(initial=0.0)
    if str(answer.status) not in ("Solved", "AlmostSolved") or not np.isfinite(size) or size < AHEAD:
        return None
    return np.where(abs(d) > 1e-6, d, 0.0) / size
