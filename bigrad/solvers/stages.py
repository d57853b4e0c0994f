"""A program with complementarity pairs at fixed inputs, and the ordinary smooth programs that a relaxation method
cuts out of it.

All stages have the variables (v, s), s the slacks of the pairs, and the rows r(v) plus the products lam_i s_i; a
stage drops rows and holds variables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from bigrad.algebra.quadratic import Data, Sizes, apart, kkt
from bigrad.programs.bilinear import Pattern
from bigrad.programs.blocks import NO_BLOCKS, Blocks
from bigrad.programs.system import Follower
from bigrad.solvers.conic import conic_answer
from bigrad.solvers.equilibrium import respond
from bigrad.solvers.uno import STALLED, Nlp, Optimum, minimise

NUDGES = (1e-6, 1e-3)
"""Relative steps aside from a point where Uno stalled."""
INSIDE = 1e-8
"""How far stages stay above the lower bounds of auxiliary variables, where logarithms and roots can be evaluated."""
ROUGH, LOOSE, TIGHT = 50, 1e-6, 1e-9
"""Most iterations of a stage that only proposes where to look, its tolerance, and that of the others."""
SWEEPS, STILL = 30, 1e-6
"""Most rounds of answers to each other's constraints, and the relative change below which they have settled."""
CURVED = 100
"""Most iterations of a stage with cones: those that begin in the right charts end after a few."""
FAR = 1e7
"""An objective below minus this, or a variable of such a size, has run away."""
Places = tuple[np.ndarray, np.ndarray]


class System(Protocol):
    """What a stage needs of a program at fixed inputs: bigrad.programs.system.System has the contract."""

    layout: Any
    low: np.ndarray
    high: np.ndarray
    origin: np.ndarray
    bound_rows: np.ndarray
    bound_columns: np.ndarray
    priced: bool
    jacobian_at: Places
    hessian_at: Places
    blocks: Blocks

    @property
    def convex(self) -> bool:
        """Whether the high-point relaxation is a convex program."""

    def objective(self, v: np.ndarray) -> float:
        """F(v)."""

    def gradient(self, v: np.ndarray) -> np.ndarray:
        """Gradient of F."""

    def rows(self, v: np.ndarray) -> np.ndarray:
        """All rows r(v)."""

    def jacobian(self, v: np.ndarray) -> np.ndarray:
        """Entries of the Jacobian of r."""

    def hessian(self, v: np.ndarray, factor: float, m: np.ndarray) -> np.ndarray:
        """Entries of the lower triangle of the Hessian of factor F + m'r."""

    def matrix(self, w: np.ndarray) -> np.ndarray:
        """Second derivatives of L."""

    def residual(self, w: np.ndarray) -> np.ndarray:
        """Gradient of L."""

    def follower(self, v: np.ndarray) -> Follower:
        """The lower level at the leader's part of v."""


class QuadraticSystem:
    """A bilevel quadratic program at fixed inputs, straight from its arrays: constant Jacobian, constant Hessian."""

    def __init__(self, data: Data, sizes: Sizes, own: np.ndarray | None = None):
        self.data, self.layout, self.own = data, sizes, own
        matrix, rhs = kkt(data, sizes, 1)
        self._matrix, self._rhs = matrix[0], rhs[0]
        m = sizes.primal
        self._J = self._matrix[m:, :m]
        rows, columns = np.nonzero(self._J)
        self.jacobian_at: Places = (rows, columns)
        self._jacobian = self._J[self.jacobian_at]
        lower = np.tril(self._matrix[:m, :m])
        rows, columns = np.nonzero(lower)
        self.hessian_at: Places = (rows, columns)
        self._hessian = lower[self.hessian_at]
        self.low, self.high = np.full(m, -np.inf), np.full(m, np.inf)
        self.low[sizes.blocks[2]] = 0.0
        self.origin, self.blocks = np.zeros(m), NO_BLOCKS
        self.priced = len(data.c) > sizes.answers
        self.bound_rows = self.bound_columns = np.zeros(0, int)

    @property
    def convex(self) -> bool:
        """Whether F is convex."""
        spectrum = np.linalg.eigvalsh(self.data.Q) if len(self.data.Q) else np.zeros(1)
        return bool(spectrum[0] >= -1e-9 * (1 + spectrum[-1]))

    def objective(self, v: np.ndarray) -> float:
        """F(v)."""
        n = len(self.data.c)
        z = v[:n]
        return float(z @ (self._matrix[:n, :n] @ z) / 2 - self._rhs[:n] @ z + self.data.c0)

    def gradient(self, v: np.ndarray) -> np.ndarray:
        """Gradient of F."""
        m = self.layout.primal
        return self._matrix[:m, :m] @ v - self._rhs[:m]

    def rows(self, v: np.ndarray) -> np.ndarray:
        """All rows r(v)."""
        return self._J @ v - self._rhs[self.layout.primal :]

    def jacobian(self, v: np.ndarray) -> np.ndarray:
        """Entries of the Jacobian of r."""
        return self._jacobian

    def hessian(self, v: np.ndarray, factor: float, m: np.ndarray) -> np.ndarray:
        """Entries of the lower triangle of the Hessian of factor F + m'r."""
        return factor * self._hessian

    def matrix(self, w: np.ndarray) -> np.ndarray:
        """Second derivatives of L."""
        return self._matrix

    def residual(self, w: np.ndarray) -> np.ndarray:
        """Gradient of L."""
        return self._matrix @ w - self._rhs

    def follower(self, v: np.ndarray) -> Follower:
        """The lower level at the leader's part of v."""
        d, x, at = self.data, v[: self.layout.x], self.layout.x + np.arange(self.layout.y)
        P, N = apart(d.P, self.own)
        none = np.zeros((0, self.layout.y))
        return Follower(P, d.C @ x + d.p, -d.A, d.b - d.B @ x, d.H, d.K @ x - d.h, at, none, np.zeros(0), NO_BLOCKS, N)


class State(NamedTuple):
    """A point of a search: X = (v, s), multipliers m of all rows, the objective, and how the stage ended."""

    X: np.ndarray
    m: np.ndarray
    F: float
    status: str
    iterations: int


class Stages:
    """The stages of one program at fixed inputs. `limit`: Uno's iterations a stage; `clock`: seconds left."""

    def __init__(self, system: System, limit: int, clock: Callable[[], float]):
        self.system, self.limit, self.clock = system, limit, clock
        self.layout = layout = system.layout
        self.n, self.pairs = layout.primal, layout.pairs
        _, _, lam, nu, sigma, kappa, _, gamma, eps = layout.blocks
        self.count = eps.stop - self.n
        self.lam = np.arange(lam.start, lam.stop)
        self.s = self.n + np.arange(self.pairs)
        self.multipliers = np.r_[self.lam, np.arange(nu.start, nu.stop)].astype(int)
        self.sigma, self.kappa, self.gamma = (
            np.arange(b.start - self.n, b.stop - self.n) for b in (sigma, kappa, gamma)
        )
        self.cones = len(system.blocks.cones) > 0
        self.cornered = any(c.mixed for c in system.blocks.cones) and not system.priced
        products = self.count + np.arange(self.pairs)
        self.low, self.high = np.r_[system.low, np.zeros(self.pairs)], np.r_[system.high, np.full(self.pairs, np.inf)]
        self.low[system.bound_columns] += INSIDE
        self.row_low = np.zeros(self.count + self.pairs)
        self.row_low[np.r_[self.gamma, products].astype(int)] = -np.inf
        self.row_high = np.zeros(self.count + self.pairs)
        self.live = np.ones(self.count + self.pairs, bool)
        self.live[system.bound_rows] = False
        at = system.jacobian_at
        self.jacobian_at = Pattern.of(
            np.r_[at[0], self.kappa, products, products].astype(int), np.r_[at[1], self.s, self.lam, self.s].astype(int)
        )
        at = system.hessian_at
        self.hessian_at = Pattern.of(np.r_[at[0], self.s].astype(int), np.r_[at[1], self.lam].astype(int))

    def start(self, v: np.ndarray) -> State:
        """The state at v, slacks computed, multipliers zero."""
        s = np.maximum(-self.system.rows(v)[self.kappa], 0.0)
        return State(np.r_[v, s], np.zeros(self.count), np.nan, "", 0)

    def evaluable(self, v: np.ndarray) -> np.ndarray:
        """v, or, where the objective is not defined there, v with the origin's auxiliary variables, where it may be."""
        if np.isfinite(self.system.objective(v)):
            return v
        known = self.layout.x + self.layout.y
        return np.r_[v[:known], self.system.origin[known:]]

    def feasible(self, state: State) -> bool:
        """Whether all rows hold, relative to the size of the point."""
        r = self.system.rows(state.X[: self.n])
        r[self.kappa] += state.X[self.s]
        off = np.maximum(r - self.row_high[: self.count], self.row_low[: self.count] - r)
        return bool(off.max(initial=0.0) <= 1e-7 * (1 + abs(state.X).max(initial=0.0)))

    def recharted(self, state: State) -> State | None:
        """The state with cones that it brought to their apex in the chart for that; None if it brought none there."""
        if not self.cones:
            return None
        blocks, v = self.system.blocks, state.X[: self.n]
        at_end = blocks.edges(v)
        moved = blocks.seat(v, v[blocks.s], v[blocks.lam], at_end)
        if not at_end.any() or np.array_equal(moved[blocks.chart], v[blocks.chart]):
            return None
        return self.start(moved)

    def far(self, state: State) -> bool:
        """Whether the objective, or variables that it may depend on, have run away; multipliers that do so alone say only
        that the follower has none.
        """
        size = self.n if self.system.priced else self.layout.x + self.layout.y + getattr(self.layout, "extra", 0)
        return bool(state.F < -FAR or abs(state.X[:size]).max(initial=0.0) > FAR)

    def relaxed(self, state: State, t: float) -> State:
        """All products lam_i s_i at most t."""
        high = self.row_high.copy()
        high[self.count :] = t
        return self._run(state, np.ones(self.n + self.pairs, bool), self.live, high, state.X, rough=True)

    def piece(self, state: State, tight: np.ndarray) -> State:
        """Slack zero where tight, multiplier zero elsewhere."""
        keep, X = np.ones(self.n + self.pairs, bool), state.X.copy()
        for held in (self.s[tight], self.lam[~tight]):
            keep[held], X[held] = False, 0.0
        rows = self.live.copy()
        rows[self.count :] = False
        return self._run(state, keep, rows, self.row_high, X)

    def high_point(self, state: State, pull: np.ndarray | None = None, reach: float = 0.0) -> State:
        """The follower's optimality forgotten; a `pull` replaces the leader's objective by pull'z + reach |z|^2 / 2.

        Where the leader's objective or constraints mention multipliers, only complementarity is forgotten.
        """
        keep = np.ones(self.n + self.pairs, bool)
        keep[self.multipliers] = self.system.priced
        rows = self.live.copy()
        rows[self.sigma] = self.system.priced
        rows[self.count :] = False
        return self._run(state, keep, rows, self.row_high, state.X, pull, reach, pull is not None)

    def _run(
        self,
        state: State,
        keep: np.ndarray,
        live: np.ndarray,
        row_high: np.ndarray,
        X: np.ndarray,
        pull: np.ndarray | None = None,
        reach: float = 0.0,
        rough: bool = False,
    ) -> State:
        keep, live = keep.copy(), live.copy()
        keep[self.system.blocks.chart] = live[self.system.blocks.pinned] = False
        nlp = self._nlp(keep, live, row_high, X, pull, reach)
        guess = np.r_[state.m, np.zeros(self.pairs)][live]
        limit, tolerance = (min(self.limit, ROUGH), LOOSE) if rough else (self.limit, TIGHT)
        limit = min(limit, CURVED) if self.cones else limit

        def solve(x: np.ndarray) -> Optimum:
            return minimise(nlp, x, guess, max_iterations=limit, time_limit=self.clock(), tolerance=tolerance)

        found = solve(X[keep])
        for nudge in NUDGES:  # at a degenerate point the multipliers can come out wrong; a step aside puts them right
            if found.status != STALLED or rough:
                break
            found = solve(found.x + nudge * (1 + abs(found.x)) * np.cos(np.arange(len(found.x))))
        X = X.copy()
        X[keep] = found.x
        m = np.zeros(self.count + self.pairs)
        m[live] = found.multipliers
        bounds = np.zeros(self.n + self.pairs)
        bounds[keep] = found.bounds
        m = m[: self.count]
        m[self.system.bound_rows] = abs(bounds[self.system.bound_columns])
        return State(X, m, found.value, found.status, found.iterations)

    def _nlp(
        self,
        keep: np.ndarray,
        live: np.ndarray,
        row_high: np.ndarray,
        X: np.ndarray,
        pull: np.ndarray | None,
        reach: float,
    ) -> Nlp:
        system, n, count = self.system, self.n, self.count
        at, row = np.cumsum(keep) - 1, np.cumsum(live) - 1
        J, H = self.jacobian_at, self.hessian_at
        jac = np.flatnonzero(live[J.rows] & keep[J.columns])
        hes = np.flatnonzero(keep[H.rows] & keep[H.columns])
        full, m = X.copy(), np.zeros(count + self.pairs)
        ones = np.ones(self.pairs)

        def point(short: np.ndarray) -> np.ndarray:
            full[keep] = short
            return full

        def rows(short: np.ndarray) -> np.ndarray:
            X = point(short)
            r = system.rows(X[:n])
            r[self.kappa] += X[self.s]
            return np.concatenate([r, X[self.lam] * X[self.s]])[live]

        def jacobian(short: np.ndarray) -> np.ndarray:
            X = point(short)
            return J(np.concatenate([system.jacobian(X[:n]), ones, X[self.s], X[self.lam]]))[jac]

        def hessian(short: np.ndarray, factor: float, multipliers: np.ndarray) -> np.ndarray:
            X = point(short)
            m[live] = multipliers
            return H(np.concatenate([system.hessian(X[:n], factor, m[:count]), m[count:]]))[hes]

        nlp = Nlp(
            low=self.low[keep], high=self.high[keep], row_low=self.row_low[live], row_high=row_high[live],
            objective=lambda short: system.objective(point(short)[:n]),
            gradient=lambda short: np.concatenate([system.gradient(point(short)[:n]), np.zeros(self.pairs)])[keep],
            rows=rows, jacobian=jacobian, hessian=hessian,
            jacobian_at=(row[J.rows[jac]], at[J.columns[jac]]), hessian_at=(at[H.rows[hes]], at[H.columns[hes]]),
        )  # fmt: skip
        return nlp if pull is None else _pulled(nlp, pull, reach)


def _pulled(nlp: Nlp, pull: np.ndarray, reach: float) -> Nlp:
    """The same region with the objective pull'z + reach |z|^2 / 2; the curvature of the rows is kept.

    Where the leader's objective is not defined its Hessian is NaN even with factor 0; there, curvature is left out.
    """
    size, width = len(pull), len(nlp.low)
    both = Pattern.of(np.r_[nlp.hessian_at[0], np.arange(size)], np.r_[nlp.hessian_at[1], np.arange(size)])

    def gradient(x: np.ndarray) -> np.ndarray:
        return np.r_[pull + reach * x[:size], np.zeros(width - size)]

    def hessian(x: np.ndarray, factor: float, m: np.ndarray) -> np.ndarray:
        return both(np.r_[np.nan_to_num(nlp.hessian(x, 0.0, m), posinf=0.0, neginf=0.0), np.full(size, factor * reach)])

    def objective(x: np.ndarray) -> float:
        return float(pull @ x[:size] + reach * (x[:size] @ x[:size]) / 2)

    return replace(nlp, objective=objective, gradient=gradient, hessian=hessian, hessian_at=(both.rows, both.columns))


def answer(system: System, v: np.ndarray) -> np.ndarray | None:
    """v with the followers' variables and multipliers put to their answer to the leader's part; None if none was found."""
    if system.blocks.cones:
        return _conic(system, v)
    _, _, lam, nu, *_ = system.layout.blocks
    pairs, out = system.layout.pairs, v.copy()
    for _ in range(SWEEPS):
        below = system.follower(out)
        rows, top = np.concatenate([-below.A, below.H]), np.concatenate([below.b, -below.h])
        u, flag, dual = respond(below.P, below.q, rows, top, pairs, below.N)
        if flag <= 0:
            return None
        moved = abs(out[below.at] - u).max(initial=0.0)
        out[below.at], out[lam], out[nu] = u, np.maximum(dual[:pairs], 0.0), dual[pairs:]
        if not below.moving or moved <= STILL * (1 + abs(u).max(initial=0.0)):
            return out
    return None


def _conic(system: System, v: np.ndarray) -> np.ndarray | None:
    """The same with cones; several followers answer each other in turn until they have settled."""
    out = v
    for _ in range(SWEEPS):
        below = system.follower(out)
        before = out[below.at]
        alone = below if below.N is None else below._replace(q=below.q + below.N @ before)
        after = conic_answer(alone, system.layout, out)
        if after is None or (below.N is None and not below.moving):
            return after
        out = after
        if abs(after[below.at] - before).max(initial=0.0) <= STILL * (1 + abs(before).max(initial=0.0)):
            return out
    return None
