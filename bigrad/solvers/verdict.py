"""From the best point of a search on one item to what is reported of it: polished, measured, with an honest status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from bigrad.algebra.linear import solve_free
from bigrad.program import Program
from bigrad.solution import Outcome, Status
from bigrad.solvers import uno
from bigrad.solvers.active import Settled, curves_upwards, free_unknowns, kinks, settle
from bigrad.solvers.base import EXACT, PROVEN
from bigrad.solvers.conic import infeasible
from bigrad.solvers.diagnose import diagnose
from bigrad.solvers.stages import QuadraticSystem, Stages, State, System

TINY = 1e-10
"""A violation below this is rounding."""
ROUNDING = 1e-13
"""Values of variables below this are zero where followers have cones."""
RUNAWAY = 1e4
"""A multiplier of a cone this much larger than the follower's gradient is a sign that there is none."""
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

    @staticmethod
    def of(outcome: Outcome, i: int) -> Verdict:
        """Item i of an outcome."""
        point = np.isfinite(outcome.value[i])
        arrays = ("value", "w", "free", "tight", "residual", "violation")
        names = [name for name in Verdict._fields if point or name not in arrays]
        return Verdict(**{name: getattr(outcome, name)[i] for name in names})


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
    if uno.UNBOUNDED in search.endings and bound == -np.inf:
        return blank._replace(status=Status.UNBOUNDED_UPPER)
    if search.best is None:
        if search.late:
            return blank._replace(status=Status.TIME_LIMIT)
        game = system.follower(system.origin).N is not None
        status = (
            diagnose(system.data, system.layout, game)
            if isinstance(system, QuadraticSystem)
            else _reason(stages, top, convex)
        )
        if status is Status.NOT_FOUND and search.impossible:
            status = Status.NO_EQUILIBRIUM if game else Status.INFEASIBLE_UPPER
        if game and status is Status.UNBOUNDED_LOWER:
            status = Status.NO_EQUILIBRIUM
        if status is Status.NOT_FOUND and uno.LIMIT in search.endings:
            status = Status.ITERATION_LIMIT
        return blank._replace(status=status)
    w = np.r_[search.best.X[: stages.n], search.best.m]
    if isinstance(system, QuadraticSystem):
        settled = settle(system.data, system.layout, w[None], search.tight[None], convex=convex)
    else:
        settled = polish(system, w, search.tight)
    w, residual, violation = settled.w[0], float(settled.residual[0]), float(settled.violation[0])
    apexes = system.blocks.edges(w[: stages.n]) | _runaway(system, w[: stages.n])
    strong, value = bool(settled.strongly_stationary[0]) and not apexes.any(), system.objective(w[: stages.n])
    if stages.cones:  # a logarithm or a root at its edge is not defined a rounding error further on
        z = w[: system.layout.x + system.layout.y]
        z[abs(z) <= ROUNDING] = 0.0
    if nonconvex(system, w[: stages.n]):
        return blank._replace(status=Status.NONCONVEX_LOWER)
    if violation > FEASIBLE:
        return blank._replace(status=Status.NOT_FOUND)
    local, cut = strong and bool(settled.second_order[0]), search.late and not search.settled
    return blank._replace(
        status=claim(max(residual, violation), value, bound, local, cut),
        value=value,
        w=w,
        free=settled.free[0],
        tight=search.tight,
        residual=residual,
        violation=violation,
        biactive=int(settled.biactive[0]),
        degenerate=int(settled.degenerate[0]) + int(apexes.sum()),
        strongly_stationary=strong,
        singular=bool(settled.singular[0]),
    )


def claim(error: float, value: float, bound: float, local: bool, cut: bool) -> Status:
    """What may be said of a feasible point: of its residual and violation `error`, its objective above a proven bound,
    whether first and second order make it a local optimum, and whether time cut its search short."""
    if error > EXACT:
        return Status.INEXACT
    if value <= bound + PROVEN * (1 + abs(value)):
        return Status.GLOBAL
    if local:
        return Status.LOCAL
    return Status.TIME_LIMIT if cut else Status.STATIONARY


def polish(system: System, w: np.ndarray, tight: np.ndarray) -> Settled:
    """`active.settle` for one item of a smooth program: Newton's method on the conditions of its active set."""
    layout, steps = system.layout, 6
    free = free_unknowns(system.residual(w)[None], layout, w[None], tight[None])
    best = current = np.where(free[0], w, 0.0)
    error, singular = measure(system, best, free[0]), np.zeros(1, bool)
    for _ in range(steps):
        step, singular = solve_free(system.matrix(current)[None], free, -system.residual(current)[None])
        current = current + step[0]
        now = measure(system, current, free[0])
        if (now[0] >= error[0] and now[1] >= error[1]) or now[1] > max(error[1], TINY):
            break
        best, error = current, now
    biactive, degenerate, strong = kinks(system.residual(best)[None], layout, best[None])
    residual, violation = (np.array([e]) for e in error)
    curved = curves_upwards(system.matrix(best)[None], free, layout)
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


def _runaway(system: System, v: np.ndarray) -> np.ndarray:
    """Cones, bool, whose multiplier outgrows the follower's gradient: at the limit he has no interior point, and no multiplier."""
    blocks = system.blocks
    if not blocks.cones:
        return np.zeros(0, bool)
    below = system.follower(v)
    size = 1 + abs(below.P @ v[below.at] + below.q).max(initial=0.0)
    return np.maximum.reduceat(abs(v[blocks.lam]), blocks.starts[:-1]) > RUNAWAY * size


def _reason(stages: Stages, top: State, convex: bool) -> Status:
    """Why a smooth program has no answer, as far as its linear rows and cones, or a convex high-point relaxation, prove it."""
    system, layout = stages.system, stages.layout
    n = stages.n
    _, _, _, _, sigma, kappa, eta, gamma, eps = (np.arange(b.start, b.stop) - n for b in layout.blocks)
    one, two = np.linspace(1.0, 2.0, n), np.linspace(3.0, 1.0, n)
    blocks = system.blocks
    one[blocks.chart] = two[blocks.chart] = 0.0
    sigma = np.setdiff1d(sigma, np.r_[blocks.coupling, blocks.pinned])
    kappa, gamma = np.setdiff1d(kappa, blocks.slack), np.setdiff1d(gamma, blocks.domain)
    ends = [system.rows(one), system.rows(two), system.rows((one + two) / 2)]
    with np.errstate(invalid="ignore"):
        straight = abs(ends[0] + ends[1] - 2 * ends[2]) <= 1e-9 * (1 + abs(ends[0]) + abs(ends[1]))
    matrix = system.matrix(np.r_[one, np.zeros(stages.count)])[n:, :n]
    level = ends[0] - matrix @ one
    own = straight & ~matrix[:, layout.x :].any(-1)
    soft, rigid = np.r_[kappa, gamma], np.r_[sigma, eta, eps]

    def impossible(rows: np.ndarray) -> bool:
        a, e = np.intersect1d(rows, soft), np.intersect1d(rows, rigid)
        return _empty(system, matrix[a], level[a], matrix[e], level[e])

    leader = np.flatnonzero(own & np.isin(np.arange(stages.count), np.r_[gamma, eps]))
    if impossible(leader):
        return Status.INFEASIBLE_UPPER
    below, optimal = np.r_[kappa, eta], np.r_[kappa, eta, sigma]
    if straight[below].all() and impossible(np.r_[leader, below]):
        return Status.INFEASIBLE_LOWER
    if straight[optimal].all() and impossible(np.r_[leader, optimal]):
        return Status.UNBOUNDED_LOWER
    if stages.cones:  # Uno may stop at an apex, so its word is no proof
        return Status.INFEASIBLE_UPPER if impossible(np.flatnonzero(straight)) else Status.NOT_FOUND
    if convex and top.status == uno.INFEASIBLE:
        return Status.INFEASIBLE_UPPER
    return Status.NOT_FOUND


def _empty(system: System, A: np.ndarray, a: np.ndarray, E: np.ndarray, e: np.ndarray) -> bool:
    """Whether no v within its bounds has A v + a <= 0, E v + e == 0, and s and lam in the cones, if there are any."""
    n, blocks = A.shape[1], system.blocks
    if not blocks.cones:
        from scipy.optimize import linprog

        bounds = np.c_[system.low, system.high]
        return bool(linprog(np.zeros(n), A, -a, E, -e, bounds=bounds, method="highs").status == 2)
    eye, low, high = np.eye(n), np.isfinite(system.low), np.isfinite(system.high)
    rows, offset = [E, -A, eye[low], -eye[high]], [e, -a, -system.low[low], system.high[high]]
    for cone, start in zip(blocks.cones, blocks.starts, strict=False):
        at = slice(start, start + cone.size)
        rows += [eye[blocks.s[at]], cone.lift @ eye[blocks.lam[at]]]
        offset += [np.zeros(cone.size)] * 2
    twice = [cone for cone in blocks.cones for _ in range(2)]
    return infeasible(np.concatenate(rows), np.concatenate(offset), len(E), len(A) + low.sum() + high.sum(), twice)


def gather(solver: str, program: Program, verdicts: Sequence[Verdict], *, smooth: bool | None = None) -> Outcome:
    """The verdicts on the items of a batch as one Outcome.

    smooth: whether their w is of the smooth form; if left out, where it is the only one.
    """
    smooth = program.quadratic is None if smooth is None else smooth
    layout = program.smooth.layout if smooth or program.quadratic is None else program.quadratic.sizes
    width, size = layout.blocks[-1].stop, layout.x + layout.y

    def stack(name: str, shape: tuple[int, ...], kind: type) -> np.ndarray:
        blank = np.full(shape, np.nan) if kind is float else np.zeros(shape, kind)
        return np.stack([blank if getattr(v, name) is None else getattr(v, name) for v in verdicts]).astype(kind)

    w = stack("w", (width,), float)
    scalars: dict[str, Any] = {k: stack(k, (), float) for k in ("value", "bound", "residual", "violation", "seconds")}
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


def nonconvex(system: System, v: np.ndarray) -> bool:
    """Whether the follower's objective curves downwards at the leader's part of v."""
    P = system.follower(v).P
    spectrum = np.linalg.eigvalsh(P) if len(P) else np.zeros(1)
    return bool(spectrum[0] < -1e-8 * (1 + abs(spectrum).max()))
