"""Global: the optimum with a proof, by branching on the complementarity pairs, on integers and in space.

Both levels' rows, the follower's optimality conditions and the pairs (multiplier, slack) as special ordered sets go to
SCIP, which needs no bound on any multiplier. What it returns is exact to its tolerance only, so that the piece it found,
integers held, is solved once more exactly. After Siddiqui and Gabriel, "An SOS1-based approach for solving MPECs",
Networks and Spatial Economics, 2013.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bigrad.algebra.quadratic import Data, Maps, Sizes
from bigrad.parallel import single_blas, thread_map
from bigrad.program import Program
from bigrad.programs.smooth import Smooth
from bigrad.solution import InputError, Outcome, Point, Status
from bigrad.solvers import sos
from bigrad.solvers.base import AbstractSolver, batch_size, check_settings
from bigrad.solvers.diagnose import diagnose
from bigrad.solvers.integers import Held
from bigrad.solvers.nonlinear import POLISH, Nonlinear
from bigrad.solvers.pieces import Pieces
from bigrad.solvers.proof import better, judged
from bigrad.solvers.reformulation import BOUNDED, UNBOUNDED, fall, reformulate, tightened
from bigrad.solvers.relaxation import Relaxation
from bigrad.solvers.scaling import Scaling
from bigrad.solvers.spatial import refusal
from bigrad.solvers.stages import QuadraticSystem
from bigrad.solvers.verdict import Verdict, gather, nonconvex

LEAST_GAP = 1e-8
"""No tighter gap can be proven with SCIP's tolerances."""
PREPARATION = 60.0
"""Seconds, at most, for bounds on unknowns; a quarter of the time limit."""
BELOW = 1e-2
"""How far below the local search's bound, relatively, SCIP looks: its proof must not rest on that bound."""
PATIENCE = 10.0
"""Seconds for finding out whether the objective falls without limit, and for a search without proof if that fails."""


@dataclass(frozen=True)
class Global(AbstractSolver):
    """Solver with a certificate: any quadratic program, convex above or not, with or without integer leader variables,
    and smooth ones as far as SCIP has their functions.

    Choose it where a local optimum is not enough, and for integers. Nothing but the program is needed: no bounds on
    multipliers, no constant M. gap: status GLOBAL says that value - bound <= gap * (1 + |value|); at least 1e-8. The
    bound (`stats.bound`) is SCIP's, proven to its feasibility tolerance of 1e-7 in units in which the program's numbers
    are of order one; the point is exact, for its piece is solved once more. time_limit: seconds per item; then the best
    point comes with its open gap. Without one, a nonconvex program of more than some twenty pairs may take hours.
    starts: local searches that give SCIP its first point. seed: of these.

    Other smooth programs go to SCIP as they are, in their own units: products of leader variables with answers at any
    level, norms and sums of exponentials or powers below, powers, exp, log, sin and cos above. Give these bounds: only
    where the objective stops above -1e6 is there a bound, and only integers need none on what they multiply. Of a
    follower with cones, answers without multipliers (no interior point) are not seen.

    Integer variables are held where they were found when a gradient is taken: the continuous part is differentiated
    exactly, the integers' own derivative is zero.
    """

    gap: float = 1e-6
    time_limit: float | None = None
    starts: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self, starts=1, seed=0)
        gap: Any = self.gap
        if not isinstance(gap, int | float) or not LEAST_GAP <= gap < np.inf:
            raise InputError(f"Global(gap={gap!r}): give a finite gap of at least {LEAST_GAP:g}.")

    def accepts(self, program: Program) -> str | None:
        """Refuses, by name, what SCIP cannot be given."""
        if program.quadratic is not None:
            return None
        instead = "" if program.integers else " Use Auto()."
        if not isinstance(program.smooth, Smooth):
            return f"Global() needs a quadratic or smooth program, but {program.why_not_quadratic}.{instead}"
        if reason := refusal(program.smooth):
            takes = "It takes products, powers, exp, log, sin, cos, and norms and sums of exponentials or powers below."
            return f"Global() cannot take this program: {reason}. {takes}{instead}"
        return None

    def choose(self, program: Program) -> tuple[AbstractSolver, str]:
        """Itself."""
        held = " Gradients are taken with the integers held where they were found." if program.integers else ""
        return self, f"Branching on the complementarity pairs by SCIP, until the bound is within {self.gap:g}.{held}"

    def solve(
        self, program: Program, theta: tuple[np.ndarray, ...], warm_start: Sequence[Point | None] | None = None
    ) -> Outcome:
        """Solve a batch; see AbstractSolver.solve."""
        maps, batch = program.quadratic, batch_size(theta)
        if maps is None:
            return self._nonlinear(program, theta, warm_start or [None] * batch)
        invalid, sizes = program.invalid(theta, batch), maps.sizes
        with single_blas:
            data, scaling = Scaling.of(maps(tuple(np.where(np.isfinite(t), t, 0.0) for t in theta)), sizes)
            z = scaling.factors[: sizes.x + sizes.y]
            warm = [None if w is None else replace(w, z=w.z / z) for w in warm_start or [None] * batch]

            def part(items: np.ndarray) -> list[Verdict]:
                found = []
                for i in items:
                    since = time.perf_counter()
                    item = _Item(self, data.pick(i), maps, np.array(program.integers, int), scaling, since)
                    verdict = Verdict(Status.INVALID_INPUT) if invalid[i] else item.verdict(warm[i])
                    found.append(verdict._replace(seconds=time.perf_counter() - since))
                return found

            verdicts = [v for some in thread_map(part, batch, least=1) for v in some]
            return scaling.undo(gather("Global", program, verdicts))

    def _nonlinear(self, program: Program, theta: tuple[np.ndarray, ...], warm: Sequence[Point | None]) -> Outcome:
        """The same for a program that is not quadratic: one item at a time, whose functions are compiled."""
        integer, search = np.array(program.integers, int), Relaxation(starts=self.starts, seed=self.seed)
        verdicts = []
        for i, bad in enumerate(program.invalid(theta, len(warm))):
            since = time.perf_counter()
            verdict = Verdict(Status.INVALID_INPUT)
            if not bad:
                end = since + (np.inf if self.time_limit is None else self.time_limit)
                with program.smooth.at(tuple(t[i] if t.ndim > 1 else t for t in theta)) as system, single_blas:
                    verdict = Nonlinear(system, integer, self.gap, search, end).verdict(warm[i])
            verdicts.append(verdict._replace(seconds=time.perf_counter() - since))
        return gather("Global", program, verdicts)


class _Item:
    """One program, rescaled, at fixed inputs."""

    def __init__(self, solver: Global, data: Data, maps: Maps, integer: np.ndarray, scaling: Scaling, since: float):
        self.solver, self.data, self.sizes, self.own, self.integer = solver, data, maps.sizes, maps.own, integer
        self.units, self.upper = scaling.factors[integer], scaling.upper
        self.end = since + (np.inf if solver.time_limit is None else solver.time_limit)
        self.convex = sos.convex(data.Q)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.perf_counter()

    def verdict(self, warm: Point | None) -> Verdict:
        system = QuadraticSystem(self.data, self.sizes, self.own)
        if nonconvex(system, system.origin):
            return Verdict(Status.NONCONVEX_LOWER)
        best = self.local(warm, self.left / 2 if warm is None else max(self.left, POLISH))
        floor = best.bound
        if best.status is Status.UNBOUNDED_UPPER and self.convex:
            return best
        program = reformulate(self.data, self.sizes, self.integer, self.units)
        if not sos.convex(program.H):
            program = tightened(program, min(self.left / 4, PREPARATION))
        short = min(self.left, PATIENCE)
        fate = BOUNDED if np.isfinite(floor) else fall(program, short)
        if fate is UNBOUNDED:
            return Verdict(Status.UNBOUNDED_UPPER)
        gap, seconds = self.solver.gap / 2, self.left if fate is BOUNDED else short
        base = floor - BELOW * (1 + abs(floor))
        found = sos.minimise(program, self.start(best), floor=base, gap=(gap, gap / self.upper), seconds=seconds)
        if found.status == sos.INFEASIBLE and best.w is None:
            found = sos.minimise(program, seconds=self.left, tolerance=sos.LENIENT)
            if found.status == sos.INFEASIBLE:
                reason = diagnose(self.data, self.sizes, self.own is not None)
                none = Status.INFEASIBLE_UPPER if self.own is None else Status.NO_EQUILIBRIUM
                status = none if reason is Status.NOT_FOUND else reason
                return Verdict(status, bound=np.inf, iterations=found.nodes)
        if found.v is not None:
            last = self.local(self.point(found.v), max(self.left, POLISH))
            if found.status == sos.DEEP and Status.UNBOUNDED_UPPER in (best.status, last.status):
                return Verdict(Status.UNBOUNDED_UPPER)
            best = better(best, last)
        return judged(best, found, (floor, found.bound), self.solver.gap, 1 / self.upper, self.left <= 0)

    def local(self, at: Point | None, seconds: float) -> Verdict:
        """A local optimum from a point, integers held where it has them, else of a search from scratch."""
        if not len(self.integer):
            return self.descended(self.data, self.sizes, at, seconds)
        if at is None:
            return Verdict(Status.NOT_FOUND)
        whole = np.round(at.z[self.integer] * self.units) / self.units
        held = Held.of(self.data, self.sizes, self.integer, whole)
        rest = Point(np.delete(at.z, self.integer), at.tight)
        return held.restore(self.descended(held.data, held.sizes, rest, seconds))

    def descended(self, data: Data, sizes: Sizes, at: Point | None, seconds: float) -> Verdict:
        starts, seed, seconds = self.solver.starts, self.solver.seed, max(seconds, 0.0)
        if not sos.convex(data.Q):
            relaxation = Relaxation(starts=starts, time_limit=seconds, seed=seed)
            return relaxation.item(QuadraticSystem(data, sizes, self.own), at)
        pieces = Pieces(starts=starts, nodes=0, time_limit=seconds, seed=seed)
        fine = np.zeros(1, bool)
        return Verdict.of(pieces.part(data, sizes, self.own, fine, fine, [at], time.perf_counter()), 0)

    def start(self, best: Verdict) -> np.ndarray | None:
        """A verdict's point in the unknowns of the reformulation."""
        if best.w is None:
            return None
        d, v = self.data, best.w[: self.sizes.primal].copy()
        slack = d.b - d.A @ v[self.sizes.blocks[1]] - d.B @ v[self.sizes.blocks[0]]
        v[self.integer] *= self.units
        return np.r_[v, slack]

    def point(self, u: np.ndarray) -> Point:
        """The same the other way."""
        z = u[: self.sizes.x + self.sizes.y].copy()
        z[self.integer] /= self.units
        return Point(z, u[self.sizes.blocks[2]] > u[self.sizes.primal :])
