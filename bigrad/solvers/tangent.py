"""A point that satisfies both levels' constraints, the follower's cones kept whole: a few convex cone programs by Clarabel.

Uno sees of a cone of matrices only its least eigenvalue, which is not smooth where it is a multiple one. Here all other
rows are linearised at the present point (most are linear), the leader's objective takes its convex quadratic part, and
the cones stay what they are: sequential convex programming, Dinh and Diehl, "Local convergence of sequential convex
programming for nonconvex optimization", 2010.
"""

from __future__ import annotations

import numpy as np

from bigrad.solvers.conic import conic_program
from bigrad.solvers.stages import Stages, State
from bigrad.solvers.uno import INFEASIBLE, SUCCESS

NEAR = "near"
"""The status of such a point: feasible, proving nothing."""
POINTS = (SUCCESS, NEAR)
"""Endings of a high-point relaxation whose point is one to begin from."""
ROUNDS = 8
"""Convex programs at most."""
STILL = 1e-7
"""A relative step below this ends them."""
LOOSE = 1e-6
"""A violation above this, relative to the point, makes it none."""
INSIDE = (1e-2, 0.0)
"""How far inside the cones, tried in turn: at their edge the follower may have no multipliers."""


def tangent_point(stages: Stages, state: State, pull: np.ndarray | None = None, reach: float = 0.0) -> State:
    """A point of the high-point relaxation near its optimum; INFEASIBLE if none was found.

    pull, reach: as in Stages.high_point. Multipliers stay what they are in `state`.
    """
    for inside in INSIDE:
        v = _rounds(stages, state.X[: stages.n], pull, reach, inside)
        if v is not None:
            return stages.start(v)._replace(F=stages.system.objective(v), status=NEAR)
    return state._replace(status=INFEASIBLE, iterations=0)


def _rounds(stages: Stages, v: np.ndarray, pull: np.ndarray | None, reach: float, inside: float) -> np.ndarray | None:
    system, (soft, rigid) = stages.system, _rows(stages)
    for _ in range(ROUNDS):
        step = _step(stages, v, pull, reach, inside)
        if step is None or stages.clock() <= 0:
            return None
        while not np.isfinite(system.objective(v + step)) and abs(step).max() > STILL:
            step /= 2
        v = v + step
        if abs(step).max() <= STILL * (1 + abs(v).max()):
            break
    r = system.rows(v)
    off = max(r[soft].max(initial=0.0), abs(r[rigid]).max(initial=0.0))
    return v if off <= LOOSE * (1 + abs(v).max()) else None


def _rows(stages: Stages) -> tuple[np.ndarray, np.ndarray]:
    """Inequalities and equalities of both levels without those of the follower's optimality and of the cones."""
    blocks = stages.system.blocks
    own = np.r_[stages.sigma, blocks.slack, blocks.domain, stages.system.bound_rows]
    below = np.r_[stages.kappa, stages.gamma]
    return np.setdiff1d(below, own), np.setdiff1d(np.arange(stages.count), np.r_[below, own])


def _step(stages: Stages, v: np.ndarray, pull: np.ndarray | None, reach: float, inside: float) -> np.ndarray | None:
    """The step to the optimum of the convex program at v; None if it has none."""
    system, blocks, n = stages.system, stages.system.blocks, stages.n
    J, P = np.zeros((stages.count, n)), np.zeros((n, n))
    np.add.at(J, system.jacobian_at, system.jacobian(v))
    r, g = system.rows(v), np.zeros(n)
    if pull is None:
        np.add.at(P, system.hessian_at, system.hessian(v, 1.0, np.zeros(stages.count)))
        P, g = _convex_part(P + np.tril(P, -1).T), system.gradient(v)
    else:
        size = len(pull)
        g[:size] = pull + reach * v[:size]
        P[:size, :size] = reach * np.eye(size)
    if not all(np.isfinite(part).all() for part in (J, P, g, r)):
        return None
    keep, (soft, rigid), eye = np.ones(n, bool), _rows(stages), np.eye(n)
    keep[stages.multipliers] = keep[blocks.chart] = False
    low, high = np.isfinite(system.low) & keep, np.isfinite(system.high) & keep
    rows = [J[rigid], -J[soft], eye[low], -eye[high], eye[blocks.s]]
    offset = [
        r[rigid],
        -r[soft],
        (v - system.low)[low],
        (system.high - v)[high],
        v[blocks.s] - inside * blocks.inner()[0],
    ]
    nonneg = len(soft) + int(low.sum()) + int(high.sum())
    A = np.concatenate(rows)[:, keep]
    found = conic_program(P[np.ix_(keep, keep)], g[keep], A, np.concatenate(offset), len(rigid), nonneg, blocks.cones)
    if found is None:
        return None
    step = np.zeros(n)
    step[keep] = found[0]
    return step


def _convex_part(P: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(P)
    return (vectors * np.maximum(values, 0.0)) @ vectors.T
