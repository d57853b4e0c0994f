"""Nested integer programs small enough to enumerate, and the solver that does so: the oracle of the combinatorial tests."""

import itertools
from dataclasses import dataclass

import numpy as np

from bigrad.exact.cuts import Found, gathered
from bigrad.nested import Nested, Rows
from bigrad.solution import Status
from bigrad.solvers.base import AbstractSolver, batch_size


def within(rows: Rows, v: np.ndarray) -> np.ndarray:
    """Which of the points (count, variables) satisfy the rows."""
    values = v @ rows.matrix.toarray().T
    return ((values >= rows.lower - 1e-9) & (values <= rows.upper + 1e-9)).all(1)


def _box(nested: Nested, own: slice) -> np.ndarray:
    """One player's decisions within bounds, and within the rows that are its own alone."""
    ends = zip(nested.lower[own].astype(int), nested.upper[own].astype(int), strict=True)
    grid = np.array(list(itertools.product(*[range(a, b + 1) for a, b in ends])), dtype=float)
    for rows in (nested.leader_rows, nested.follower_rows):
        matrix = rows.matrix.toarray()
        alone = np.flatnonzero(abs(np.delete(matrix, np.arange(matrix.shape[1])[own], 1)).sum(1) == 0)
        if rows is nested.follower_rows or own.start == 0:
            grid = grid[within(Rows(rows.matrix[alone][:, own], rows.lower[alone], rows.upper[alone]), grid)]
    return grid


def points(nested: Nested) -> tuple[np.ndarray, np.ndarray]:
    """All (x, y) within bounds that satisfy the follower's rows, and which x each belongs to."""
    n = nested.leaders
    x, y = _box(nested, slice(0, n)), _box(nested, slice(n, None))
    grid = np.hstack([np.repeat(x, len(y), 0), np.tile(y, (len(x), 1))])
    grid = grid[within(nested.follower_rows, grid)]
    _, which = np.unique(grid[:, : nested.leaders], axis=0, return_inverse=True)
    return grid, which


def enumerate_nested(nested: Nested, known=None) -> tuple[float, np.ndarray | None]:
    """Optimum and an optimal (x, y) of an integer program, by the optimistic rule; (inf, None) if there is none. known: its
    points, where they have been listed already."""
    grid, which = known or points(nested)
    if not len(grid):
        return np.inf, None
    n = nested.leaders
    x, y = grid[:, :n], grid[:, n:]

    def values(o):
        return grid @ o.linear + np.einsum("bi,bi->b", x, (o.cross @ y.T).T) + o.constant

    lower, upper = values(nested.follower), values(nested.leader)
    best = np.full(which.max() + 1, np.inf)
    np.minimum.at(best, which, lower)
    upper[(lower > best[which] + 1e-9) | ~within(nested.leader_rows, grid)] = np.inf
    k = int(upper.argmin())
    return float(upper[k]), grid[k] if np.isfinite(upper[k]) else None


@dataclass(frozen=True)
class Enumeration(AbstractSolver):
    """Every decision tried."""

    def accepts(self, program):
        return None

    def choose(self, program):
        return self, ""

    def solve(self, program, theta, warm_start=None):
        form, batch = program.combinatorial, batch_size(theta)
        given = [np.broadcast_to(t, (batch, t.shape[-1])) for t in theta]
        found, known = [], points(form.base)
        for i in range(batch):
            _, w = enumerate_nested(form.at([t[i] for t in given]), known)
            found.append(Found(Status.GLOBAL if w is not None else Status.INFEASIBLE_UPPER, w))
        return gathered("Enumeration", form, given, found)
