"""Sparse: large programs, by sparse quadratic programs and one sparse factorisation at the end.

sequence.py has the search and its sources, model.py what makes its models convex.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bigrad.algebra.sparse import semidefinite
from bigrad.parallel import single_blas
from bigrad.program import Program
from bigrad.programs.smooth import Smooth
from bigrad.programs.system import System
from bigrad.solution import Outcome, Point, Status
from bigrad.solvers.base import AbstractSolver, batch_size, check_settings, whole_numbers
from bigrad.solvers.model import Frame
from bigrad.solvers.sequence import Sequential
from bigrad.solvers.settle import conclude
from bigrad.solvers.verdict import Verdict, gather


@dataclass(frozen=True)
class Sparse(AbstractSolver):
    """Solver for large programs: thousands of lower variables and constraints, each in few rows; nothing is ever dense.

    Choose it above some thousand lower variables and constraints; `Auto` does. The lower level is a QP or LP, the upper
    level anything smooth. Answers are local optima (`LOCAL`), or global where the bound of the relaxation, in
    `stats.bound`, proves it. starts: searches per item; the first follows the penalty path, the others start from
    random points of the relaxation, which pays where the upper level is concave in many variables. max_iterations:
    quadratic programs for one piece, of which more than one are needed only where no model is exact. time_limit:
    seconds per item, or None. seed: of the random starts.
    """

    starts: int = 1
    max_iterations: int = 50
    time_limit: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self, starts=1, max_iterations=1, seed=0)

    def accepts(self, program: Program) -> str | None:
        """Refuses integers, cones, games and prices, and small programs whose dense form has other unknowns than the sparse one."""
        if refusal := whole_numbers("Sparse", program):
            return refusal
        if not isinstance(program.smooth, Smooth) or program.smooth.cones:
            return "Sparse() needs a lower level with linear constraints, and this program needs cones. Use Auto()."
        if program.followers > 1 or program.smooth.multipliers is not None:
            return "Sparse() takes one follower and no prices in the upper level. Use Pieces() or Relaxation()."
        if program.quadratic is None:
            return None
        sizes, layout = program.quadratic.sizes, program.smooth.layout
        if (sizes.x, sizes.y, sizes.pairs) != (layout.x, layout.y, layout.pairs):
            return (
                "Sparse() is for large programs; this small one is held in dense arrays with other variables and rows than the "
                "sparse form (from max, abs or squares). Use Auto(), Pieces() or Relaxation()."
            )
        return None

    def choose(self, program: Program) -> tuple[AbstractSolver, str]:
        """Itself."""
        return self, "A penalty path, then a local search over pieces, by sparse quadratic programs."

    def solve(
        self, program: Program, theta: tuple[np.ndarray, ...], warm_start: Sequence[Point | None] | None = None
    ) -> Outcome:
        """Solve a batch; see AbstractSolver.solve."""
        batch = batch_size(theta)
        warm = [None] * batch if warm_start is None else list(warm_start)
        verdicts = []
        for i, bad in enumerate(program.invalid(theta, batch)):
            since = time.perf_counter()
            verdict = Verdict(Status.INVALID_INPUT)
            if not bad:
                with program.smooth.at(tuple(t[i] if t.ndim > 1 else t for t in theta)) as system, single_blas:
                    verdict = self._item(system, warm[i])
            verdicts.append(verdict._replace(seconds=time.perf_counter() - since))
        return gather("Sparse", program, verdicts, smooth=True)

    def _item(self, system: System, warm: Point | None) -> Verdict:
        end = time.perf_counter() + (np.inf if self.time_limit is None else self.time_limit)
        try:
            frame = Frame(system)
            if not semidefinite(frame.jacobian(system.origin)[frame.sigma][:, frame.u].tocsc()):
                return Verdict(Status.NONCONVEX_LOWER)
            search = Sequential(frame, self.max_iterations, lambda: end - time.perf_counter())
            starts = int(warm is not None)
            if warm is not None:
                resume(search, warm)
            if search.v is None:
                starts += 1
                begin(search)
                rng = np.random.default_rng(self.seed)
                while starts < self.starts and not search.late:
                    starts += 1
                    point = search.pulled(rng.standard_normal(system.layout.x + system.layout.y))
                    v = None if point is None else search.answer(point)
                    if v is not None:
                        search.descend(v, v[frame.lam] > frame.slack(v))
            return conclude(search, starts)
        except (ArithmeticError, MemoryError, RuntimeError, ValueError):
            return Verdict(Status.FAILED)


def begin(search: Sequential) -> None:
    """From the follower's answers along the penalty path, its end first, to the first that leads to a solution."""
    for point in search.path():
        v = search.answer(point)
        near = point[search.frame.lam] > search.frame.slack(point)
        sides = [near] if v is None else [v[search.frame.lam] > search.frame.slack(v), near]
        for tight in sides:
            if search.descend(point if v is None else v, tight) or search.late:
                return


def resume(search: Sequential, point: Point) -> None:
    """From an earlier solution, on its own sides and on those of the follower's answer to it."""
    frame = search.frame
    v = frame.system.origin.copy()
    v[: len(point.z)] = point.z
    answered = search.answer(v)
    if answered is None:
        return
    answered[: len(point.z)] = point.z
    if not search.descend(answered, point.tight):
        search.descend(answered, answered[frame.lam] > frame.slack(answered))
