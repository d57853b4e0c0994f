"""From the best point of a search on one item to what is reported of it: polished, measured, with an honest status."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from bigrad.linear import solve_free
from bigrad.program import Program
from bigrad.solution import Outcome, Status
from bigrad.solvers import uno
from bigrad.solvers.active import Settled, curves_upwards, free_unknowns, kinks, settle
from bigrad.solvers.base import EXACT, PROVEN
from bigrad.solvers.diagnose import diagnose
from bigrad.solvers.stages import QuadraticSystem, Stages, State, System

TINY = 1e-10
"""A violation below this is rounding."""
FEASIBLE = 1e-5
"""A violation above this is no answer at all."""


class Verdict(NamedTuple):
    """One item of an Outcome; None stands for nothing to report."""

    status: Status
    value: float | None = None
    bound: float = -np.inf
    starts: int = 0
    iterations: int = 0
    w: np.ndarray | None = None
    free: np.ndarray | None = None
    tight: np.ndarray | None = None
    residual: float | None = None
    violation: float | None = None
    biactive: int = 0
    degenerate: int = 0
    strongly_stationary: bool = False
    singular: bool = False
    seconds: float = 0.0


class Found(Protocol):
    """What a search hands over: its best state, the sides of its pairs, whether no kink there asked to be crossed."""

    best: State | None
    tight: np.ndarray
    settled: bool
    impossible: bool
    iterations: int
    endings: set[str]

    @property
    def late(self) -> bool:
        """Whether the time ran out."""


def conclude(stages: Stages, search: Found, top: State, bound: float, starts: int, convex: bool) -> Verdict:
    """The verdict on a search. top: the optimum of the high-point relaxation; convex: that is a convex program."""
    system = stages.system
    blank = Verdict(Status.FAILED, bound=bound, starts=starts, iterations=search.iterations)
    if uno.UNBOUNDED in search.endings:
        return blank._replace(status=Status.UNBOUNDED_UPPER)
    if search.best is None:
        if search.late:
            return blank._replace(status=Status.TIME_LIMIT)
        status = (
            diagnose(system.data, system.layout)
            if isinstance(system, QuadraticSystem)
            else _reason(stages, top, convex)
        )
        if status is Status.NOT_FOUND and search.impossible:
            status = Status.INFEASIBLE_UPPER
        if status is Status.NOT_FOUND and uno.LIMIT in search.endings:
            status = Status.ITERATION_LIMIT
        return blank._replace(status=status)
    w = np.r_[search.best.X[: stages.n], search.best.m]
    if isinstance(system, QuadraticSystem):
        settled = settle(system.data, system.layout, w[None], search.tight[None], convex=convex)
    else:
        settled = polish(system, w, search.tight)
    w, residual, violation = settled.w[0], float(settled.residual[0]), float(settled.violation[0])
    strong, value = bool(settled.strongly_stationary[0]), system.objective(w[: stages.n])
    if nonconvex(system, w[: stages.n]):
        return blank._replace(status=Status.NONCONVEX_LOWER)
    if violation > FEASIBLE:
        return blank._replace(status=Status.NOT_FOUND)
    if max(residual, violation) > EXACT:
        status = Status.INEXACT
    elif value <= bound + PROVEN * (1 + abs(value)):
        status = Status.GLOBAL
    elif strong and settled.second_order[0]:
        status = Status.LOCAL
    else:
        status = Status.TIME_LIMIT if search.late and not search.settled else Status.STATIONARY
    return blank._replace(
        status=status,
        value=value,
        w=w,
        free=settled.free[0],
        tight=search.tight,
        residual=residual,
        violation=violation,
        biactive=int(settled.biactive[0]),
        degenerate=int(settled.degenerate[0]),
        strongly_stationary=strong,
        singular=bool(settled.singular[0]),
    )


def polish(system: System, w: np.ndarray, tight: np.ndarray) -> Settled:
    """`active.settle` for one item of a smooth program: Newton's method on the conditions of its active set."""
    layout, steps = system.layout, 6

    def linear(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        matrix = system.matrix(w)
        return matrix[None], (matrix @ w - system.residual(w))[None]

    free = free_unknowns(*linear(w), layout, w[None], tight[None])
    best, error = w, measure(system, w, free[0])
    current, singular = np.where(free[0], w, 0.0), np.zeros(1, bool)
    for _ in range(steps):
        step, singular = solve_free(system.matrix(current)[None], free, -system.residual(current)[None])
        current = current + step[0]
        now = measure(system, current, free[0])
        if (now[0] >= error[0] and now[1] >= error[1]) or now[1] > max(error[1], TINY):
            break
        best, error = current, now
    matrix, rhs = linear(best)
    biactive, degenerate, strong = kinks(matrix, rhs, layout, best[None], free)
    residual, violation = (np.array([e]) for e in error)
    curved = curves_upwards(matrix, free, layout)
    return Settled(best[None], free, residual, violation, biactive, degenerate, strong, curved, singular)


def measure(system: System, w: np.ndarray, free: np.ndarray) -> tuple[float, float]:
    """Largest error of stationarity or a multiplier's sign, and largest violation; relative to gradient and point."""
    n = system.layout.primal
    _, _, lam, _, _, kappa, _, gamma, _ = system.layout.blocks
    pull, v = system.residual(w), w[:n]
    s, gap = -pull[kappa], -pull[gamma]
    rigid = np.ones(len(w), bool)
    rigid[:n] = rigid[kappa] = rigid[gamma] = False
    below = np.concatenate([-w[lam], -s, -gap, np.minimum(abs(w[lam]), abs(s)), abs(pull[rigid])])
    dual = np.concatenate([abs(pull[:n] * free[:n]), -w[gamma]])
    if not (np.isfinite(below).all() and np.isfinite(dual).all()):
        return np.inf, np.inf
    scale = 1 + abs(system.gradient(v)).max(initial=0.0)
    return float(dual.max(initial=0.0) / scale), float(below.max(initial=0.0) / (1 + abs(v).max(initial=0.0)))


def _reason(stages: Stages, top: State, convex: bool) -> Status:
    """Why a smooth program has no answer, as far as its linear rows or a convex high-point relaxation prove it."""
    from scipy.optimize import linprog

    system, layout = stages.system, stages.layout
    n = stages.n
    _, _, _, _, sigma, kappa, eta, gamma, eps = (np.arange(b.start, b.stop) - n for b in layout.blocks)
    one, two = np.linspace(1.0, 2.0, n), np.linspace(3.0, 1.0, n)
    ends = [system.rows(one), system.rows(two), system.rows((one + two) / 2)]
    with np.errstate(invalid="ignore"):
        straight = abs(ends[0] + ends[1] - 2 * ends[2]) <= 1e-9 * (1 + abs(ends[0]) + abs(ends[1]))
    matrix = system.matrix(np.r_[one, np.zeros(stages.count)])[n:, :n]
    level = ends[0] - matrix @ one
    own = straight & ~matrix[:, layout.x :].any(-1)
    soft, rigid = np.r_[kappa, gamma], np.r_[sigma, eta, eps]
    bounds = np.c_[system.low, system.high]

    def impossible(rows: np.ndarray) -> bool:
        a, e = np.intersect1d(rows, soft), np.intersect1d(rows, rigid)
        result = linprog(np.zeros(n), matrix[a], -level[a], matrix[e], -level[e], bounds=bounds, method="highs")
        return result.status == 2

    leader = np.flatnonzero(own & np.isin(np.arange(stages.count), np.r_[gamma, eps]))
    if impossible(leader):
        return Status.INFEASIBLE_UPPER
    below, optimal = np.r_[kappa, eta], np.r_[kappa, eta, sigma]
    if straight[below].all() and impossible(np.r_[leader, below]):
        return Status.INFEASIBLE_LOWER
    if straight[optimal].all() and impossible(np.r_[leader, optimal]):
        return Status.UNBOUNDED_LOWER
    if convex and top.status == uno.INFEASIBLE:
        return Status.INFEASIBLE_UPPER
    return Status.NOT_FOUND


def nonconvex(system: System, v: np.ndarray) -> bool:
    """Whether the follower's objective curves downwards at the leader's part of v."""
    P = system.follower(v[: system.layout.x]).P
    spectrum = np.linalg.eigvalsh(P) if len(P) else np.zeros(1)
    return bool(spectrum[0] < -1e-8 * (1 + abs(spectrum).max()))


def outcome(solver: str, program: Program, verdicts: list[Verdict], *, smooth: bool | None = None) -> Outcome:
    """The verdicts as one Outcome. smooth: whether their w is of the smooth form; if left out, where it is the only one."""
    smooth = program.quadratic is None if smooth is None else smooth
    layout = program.smooth.layout if smooth or program.quadratic is None else program.quadratic.sizes
    width, size = layout.blocks[-1].stop, layout.x + layout.y

    def stack(name: str, shape: tuple[int, ...], kind: type) -> np.ndarray:
        blank = np.full(shape, np.nan) if kind is float else np.zeros(shape, kind)
        return np.stack([blank if getattr(v, name) is None else getattr(v, name) for v in verdicts]).astype(kind)

    w = stack("w", (width,), float)
    scalars = {k: stack(k, (), float) for k in ("value", "bound", "residual", "violation", "seconds")}
    scalars |= {k: stack(k, (), int) for k in ("starts", "iterations", "biactive", "degenerate")}
    scalars |= {k: stack(k, (), bool) for k in ("strongly_stationary", "singular")}
    return Outcome(
        solver=solver,
        smooth=smooth,
        status=np.array([v.status for v in verdicts], dtype=object),
        z=w[:, :size],
        w=w,
        free=stack("free", (width,), bool),
        tight=stack("tight", (layout.pairs,), bool),
        **scalars,
    )
