"""Two canonicalised levels, put together as one bilevel quadratic program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cvxpy as cp
import numpy as np

from bigrad.algebra.affine import Affine, constant
from bigrad.algebra.quadratic import Maps
from bigrad.programs.canonical import Level, touches
from bigrad.programs.roles import Roles


def assemble(
    upper: Level,
    lower: Level,
    roles: Roles,
    plain: Mapping[int, cp.Variable],
    multipliers: Sequence[cp.Variable] = (),
) -> Maps:
    """The Maps of the bilevel program.

    Among the lower level's inputs the leader's variables follow the parameters, then, if there are several followers,
    theirs. multipliers: the variable of the upper level that stands for (lam, nu), if it mentions prices.
    """
    rivals = roles.follower if len(roles.players) > 1 else ()
    stand_ins = [len(roles.parameters) + k for k in range(len(roles.leader) + len(rivals))]

    def columns(level: Level, variables: Sequence[cp.Variable]) -> np.ndarray:
        own = [
            np.arange(v.size) + level.offsets[v.id] if v.id in level.offsets else np.full(v.size, -1) for v in variables
        ]
        return np.concatenate([*own, np.zeros(0, int)]).astype(int)

    leader, follower = ([plain[v.id] for v in part] for part in (roles.leader, roles.follower))

    def auxiliary(level: Level) -> np.ndarray:
        return np.setdiff1d(np.arange(level.size), columns(level, (*leader, *follower, *multipliers)))

    xs, ys = columns(upper, leader), columns(upper, follower)
    extra, below = auxiliary(upper), auxiliary(lower)
    z = np.concatenate([xs, extra, ys, np.full(len(below), -1), columns(upper, multipliers)])
    y = np.concatenate([columns(lower, follower), below])
    mine, theirs = stand_ins[: len(leader)], stand_ins[len(leader) :]
    coupled = any(k in block.terms for block in (lower.q, lower.l) for k in theirs)

    def slope(block: Affine, both: bool = False) -> Affine:
        parts = [block.slope(mine, [v.size for v in leader]), np.zeros((block.base.size, len(extra)))]
        if both:
            parts += [block.slope(theirs, [v.size for v in follower]), np.zeros((block.base.size, len(below)))]
        return constant(np.hstack(parts))

    Q, c, T = _arranged(upper, z)
    P, p, U = _arranged(lower, y)
    W, V = slope(p, coupled), slope(lower.l, coupled)
    eq, ineq = np.arange(upper.equalities), np.arange(upper.equalities, upper.b.shape[0])
    leq, lineq = np.arange(lower.equalities), np.arange(lower.equalities, lower.b.shape[0])
    free = lower.b.without(stand_ins)
    against = slope(lower.b)
    against = constant(-against.base.reshape(against.shape))
    return Maps(
        Q=Q, c=c, d=upper.d, T=T, l=upper.l,
        G=_rows(upper.A, ineq, z), g=upper.b.rows(ineq, (len(ineq),)),
        E=_rows(upper.A, eq, z), e=upper.b.rows(eq, (len(eq),)),
        P=P, p=p.without(stand_ins), W=W, U=U, V=V, m=lower.l.without(stand_ins),
        A=_rows(lower.A, lineq, y), B=_pick(against, lineq), b=free.rows(lineq, (len(lineq),)),
        H=_rows(lower.A, leq, y), K=_pick(against, leq), h=free.rows(leq, (len(leq),)),
        own=_own(P, W, U, V) if coupled else None,
    )  # fmt: skip


def _own(P: Affine, W: Affine, U: Affine, V: Affine) -> np.ndarray:
    """Bool (y, y): entries of the followers' stationarity in which no one sees a variable of another."""
    y = U.shape[1]
    squares, linear, chain, shift = (touches(m).astype(int) for m in (P, W, U, V))
    weight = squares[:y, y:] + chain.T @ squares[y:, y:]
    seen = linear[:y] + chain.T @ linear[y:] + weight @ shift
    return np.logical_not(seen[:, -y:].astype(bool))


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
