"""Two canonicalised levels, put together as one bilevel quadratic program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cvxpy as cp
import numpy as np

from bigrad.affine import Affine, constant
from bigrad.programs.canonical import Level
from bigrad.programs.roles import Roles
from bigrad.quadratic import Maps


def assemble(upper: Level, lower: Level, roles: Roles, plain: Mapping[int, cp.Variable]) -> Maps:
    """The Maps of the bilevel program; among the lower level's inputs the leader's variables follow the parameters."""
    stand_ins = [len(roles.parameters) + k for k in range(len(roles.leader))]

    def columns(level: Level, variables: Sequence[cp.Variable]) -> np.ndarray:
        own = [
            np.arange(v.size) + level.offsets[plain[v.id].id]
            if plain[v.id].id in level.offsets
            else np.full(v.size, -1)
            for v in variables
        ]
        return np.concatenate([*own, np.zeros(0, int)]).astype(int)

    def auxiliary(level: Level) -> np.ndarray:
        return np.setdiff1d(np.arange(level.size), columns(level, (*roles.leader, *roles.follower)))

    xs, ys = columns(upper, roles.leader), columns(upper, roles.follower)
    extra, below = auxiliary(upper), auxiliary(lower)
    z = np.concatenate([xs, extra, ys, np.full(len(below), -1)])
    y = np.concatenate([columns(lower, roles.follower), below])
    sizes = [v.size for v in roles.leader]

    def slope(block: Affine) -> Affine:
        rows = block.base.size
        return constant(np.hstack([block.slope(stand_ins, sizes), np.zeros((rows, len(extra)))]))

    Q, c, T = _arranged(upper, z)
    P, p, U = _arranged(lower, y)
    eq, ineq = np.arange(upper.equalities), np.arange(upper.equalities, upper.b.shape[0])
    leq, lineq = np.arange(lower.equalities), np.arange(lower.equalities, lower.b.shape[0])
    free = lower.b.without(stand_ins)
    against = slope(lower.b)
    against = constant(-against.base.reshape(against.shape))
    return Maps(
        Q=Q, c=c, d=upper.d, T=T, l=upper.l,
        G=_rows(upper.A, ineq, z), g=upper.b.rows(ineq, (len(ineq),)),
        E=_rows(upper.A, eq, z), e=upper.b.rows(eq, (len(eq),)),
        P=P, p=p.without(stand_ins), W=slope(p), U=U, V=slope(lower.l), m=lower.l.without(stand_ins),
        A=_rows(lower.A, lineq, y), B=_pick(against, lineq), b=free.rows(lineq, (len(lineq),)),
        H=_rows(lower.A, leq, y), K=_pick(against, leq), h=free.rows(leq, (len(leq),)),
    )  # fmt: skip


def _arranged(level: Level, z: np.ndarray) -> tuple[Affine, Affine, Affine]:
    """Objective blocks with the kept variables in the order z (-1: absent from this level)."""
    n = level.q.shape[0]
    u = np.concatenate([z, np.arange(level.size, n)])
    grid = np.where((u[:, None] < 0) | (u < 0), -1, n * u[:, None] + u)
    return (
        level.P.rows(grid.ravel(), grid.shape),
        level.q.rows(u, u.shape),
        _rows(level.T, np.arange(n - level.size), z),
    )


def _rows(block: Affine, rows: np.ndarray, columns: np.ndarray) -> Affine:
    width = block.shape[1]
    index = np.where(columns < 0, -1, rows[:, None] * width + columns)
    return block.rows(index.ravel(), index.shape)


def _pick(block: Affine, rows: np.ndarray) -> Affine:
    return _rows(block, rows, np.arange(block.shape[1]))
