"""Nested integer programs small enough to enumerate, and the solver that does so: the oracle of the combinatorial tests."""

import itertools
from dataclasses import dataclass

import numpy as np
from oracles import Choice
from ortools.sat.python import cp_model

import bigrad as bg
from bigrad.discrete.nested import Nested, Rows
from bigrad.exact.cuts import Found, gathered
from bigrad.solution import Outcome, Status
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


def tile_paths(side):
    """The paths from corner to corner of a square map with 8 neighbours, without shortcuts: (paths, tiles). Where costs are
    positive, one of them is the cheapest."""
    tiles = list(itertools.product(range(side), repeat=2))
    near = [[max(abs(a - c), abs(b - d)) == 1 for c, d in tiles] for a, b in tiles]
    found, open_ = [], [[0]]
    while open_:
        path = open_.pop()
        if path[-1] == len(tiles) - 1:
            found.append(np.isin(np.arange(len(tiles)), path))
            continue
        onward = (v for v in range(len(tiles)) if near[path[-1]][v] and v not in path)
        open_ += [[*path, v] for v in onward if not any(near[u][v] for u in path[:-1])]
    return np.array(found, dtype=float)


class Blockade(AbstractSolver):
    """Tiles of a map, at most `budget`, blocked against the cheapest path: max over x of min over y of (z + d x)'y.

    All answers to all decisions are tried, of 10^5 games in about a second; costs may be negative.
    """

    def __init__(self, budget=1, side=4):
        self.paths, n = tile_paths(side), side * side
        every = [c for k in range(budget + 1) for c in itertools.combinations(range(n), k)]
        self.blocks = np.array([np.isin(np.arange(n), c) for c in every], dtype=float)
        # the paths that run into the same tiles of a block cost the same more: (tiles hit, which paths)
        self.groups = []
        for block in self.blocks:
            hit, which = np.unique(self.paths * block, axis=0, return_inverse=True)
            self.groups.append([(h, np.flatnonzero(which == k)) for k, h in enumerate(hit)])
        self.budget = budget

    def program(self, maximise=False, follower=None):
        """With inputs z and d. maximise: the follower maximises values, the leader minimises them."""
        leader = cp_model.CpModel()
        x = [leader.new_bool_var(f"x{k}") for k in range(self.paths.shape[1])]
        leader.add(sum(x) <= self.budget)
        costs = {"z": range(len(x)), "d": list(enumerate(x))}
        return bg.bilevel(leader, follower or Choice(self.paths, maximise), costs=costs)

    def answers(self, z, d, push=0.0):
        """x, y at costs (games, tiles); push: what the leader pays for each tile."""
        x, y = np.empty(z.shape), np.empty(z.shape)
        for first in range(0, len(z), 2048):
            part = slice(first, first + 2048)
            plain, dt = self.paths @ z[part].T, d[part].T
            values = [np.min([plain[rows].min(0) + h @ dt for h, rows in own], axis=0) for own in self.groups]
            own = push if np.isscalar(push) else push[part].T
            x[part] = self.blocks[(np.array(values) - self.blocks @ (own + 0 * dt)).argmax(0)]
            y[part] = self.paths[((z[part] + d[part] * x[part]) @ self.paths.T).argmin(1)]
        return x, y

    def smoothed(self, z, d, sigma, push, rng, samples=200_000):
        """The gradient of E push'(x, y) at costs with Normal noise, in (z, d), by the score, and its standard errors."""
        noise = rng.standard_normal((samples, 2 * len(z)))
        costs = np.concatenate([z, d]) + sigma * noise
        reward = np.hstack(self.answers(*np.hsplit(costs, 2))) @ push
        each = noise * ((reward - reward.mean()) / sigma)[:, None]
        return each.mean(0), each.std(0) / np.sqrt(samples)

    def accepts(self, program):
        return None

    def choose(self, program):
        return self, ""

    def solve(self, program, theta, warm_start=None):
        batch, sense = batch_size(theta), program.combinatorial.places[0].sense
        z, d, *pushes = (np.broadcast_to(t, (batch, t.shape[-1])) for t in theta)
        added = {place.leader: t for place, t in zip(program.combinatorial.places[2:], pushes, strict=True)}
        x, y = self.answers(sense * z + added.get(False, 0.0), sense * d, added.get(True, 0.0))
        w, none, nan = np.hstack([x, y]), np.zeros(batch, int), np.full(batch, np.nan)
        flat, zero = np.zeros((batch, 0), bool), np.zeros(batch)
        return Outcome(
            solver="Blockade",
            smooth=False,
            status=np.full(batch, Status.GLOBAL, dtype=object),
            z=w,
            w=w,
            free=np.ones_like(w, bool),
            tight=flat,
            value=nan,
            bound=nan,
            starts=none,
            iterations=none,
            residual=zero,
            violation=zero,
            biactive=none,
            degenerate=none,
            strongly_stationary=np.zeros(batch, bool),
            singular=np.zeros(batch, bool),
            seconds=zero,
            cause=np.full(batch, ""),
            effort=np.zeros((batch, 3)),
        )
