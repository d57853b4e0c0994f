"""Interior: the interior-point method for convex cone programs, its answer polished and its every word checked.

Clarabel (Goulart and Chen, "Clarabel: An interior-point solver for conic programs with quadratic objectives", 2024)
proposes; Newton's method on the optimality conditions takes its 1e-10 to rounding; the duality gap and the residuals
then say what is proven, not the solver's status. An infeasible or unbounded program is called so only if the
certificate that comes with the claim holds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from bigrad.parallel import thread_map
from bigrad.program import Program
from bigrad.programs.ball import Ball
from bigrad.programs.convex import Convex
from bigrad.programs.newton import Conic
from bigrad.solution import Outcome, Point, Status
from bigrad.solvers.attain import firm, runs_away, still
from bigrad.solvers.base import EXACT, PROVEN, AbstractSolver, batch_size, check_settings

PRECISE = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}
FEASIBLE = 1e-5
"""A violation above this is no answer at all."""
LOOSE = 1e-4
"""Optimality conditions off by more than this say nothing."""
CERTAIN = 1e-7
"""A certificate's own residual, relative to the sizes of the numbers that cancel in it."""


class Found(NamedTuple):
    """One item of an Outcome."""

    status: Status
    w: np.ndarray | None = None
    value: float = np.nan
    bound: float = -np.inf
    residual: float = np.nan
    violation: float = np.nan
    iterations: int = 0
    degenerate: int = 0
    singular: bool = False
    seconds: float = 0.0
    cause: str = ""


APPROACHED = (
    "The value is approached but not attained: points that come nearer to it run away without end. Bound the variables, "
    "or add a small strictly convex term."
)


@dataclass(frozen=True)
class Interior(AbstractSolver):
    """Solver for convex programs of one level with second-order, exponential, power and semidefinite cones: norms,
    logarithms, eigenvalues and all else that CVXPY writes with them.

    The optimum is global, proven by the duality gap. max_iterations: of one solve. time_limit: seconds for one item, or
    None. A start does not help an interior-point method: `warm_start` is ignored.
    """

    max_iterations: int = 200
    time_limit: float | None = None

    def __post_init__(self) -> None:
        check_settings(self, max_iterations=1)

    def accepts(self, program: Program) -> str | None:
        """Refuses programs without the cone form."""
        if isinstance(program.smooth, Convex | Ball):
            return None
        return "Interior() needs a convex program of one level that is not quadratic. Use Auto(), which finds a solver that fits."

    def choose(self, program: Program) -> tuple[AbstractSolver, str]:
        """Itself."""
        return self, "It is one convex cone program, so its optimum is global, proven by the duality gap."

    def solve(
        self, program: Program, theta: tuple[np.ndarray, ...], warm_start: Sequence[Point | None] | None = None
    ) -> Outcome:
        """Solve a batch; see AbstractSolver.solve."""
        if isinstance(program.smooth, Ball):
            return replace(self.solve(program.smooth.general, theta), form=program.smooth.general)
        batch, form = batch_size(theta), program.smooth
        invalid = program.invalid(theta, batch)

        def part(items: np.ndarray) -> list[Found]:
            return [self._item(form, tuple(t[i] if t.ndim > 1 else t for t in theta), invalid[i]) for i in items]

        found = [f for fs in thread_map(part, batch, least=batch) for f in fs]
        size, width = form.layout.x, form.layout.x + form.layout.multipliers
        w = np.stack([np.full(width, np.nan) if f.w is None else f.w for f in found])
        none = np.zeros(batch, int)
        scalars = ("value", "bound", "residual", "violation", "iterations", "degenerate", "singular", "seconds")
        arrays: dict[str, Any] = {k: np.array([getattr(f, k) for f in found]) for k in scalars}
        return Outcome(
            solver="Interior",
            smooth=True,
            status=np.array([f.status for f in found], dtype=object),
            z=w[:, :size],
            w=w,
            free=np.ones(w.shape, bool),
            tight=np.zeros((batch, 0), bool),
            starts=none + 1,
            biactive=none,
            strongly_stationary=np.isfinite(w).all(-1),
            cause=np.array([f.cause for f in found], dtype=object) if any(f.cause for f in found) else None,
            **arrays,
        )

    def _item(self, form: Convex, theta: tuple[np.ndarray, ...], invalid: bool) -> Found:
        begun = time.perf_counter()
        if invalid:
            return Found(Status.INVALID_INPUT)
        program = form.at(theta)
        if form.curved and _concave(program.P):
            return Found(Status.INVALID_INPUT)
        found = self._solved(program, PRECISE)
        if found.status is Status.FAILED:
            found = self._solved(program, {})
        return found._replace(seconds=time.perf_counter() - begun)

    def _solved(self, program: Conic, tolerances: dict[str, float]) -> Found:
        answer = self.clarabel(program, tolerances)
        word, u, lam = str(answer.status), np.array(answer.x), np.array(answer.z)
        iterations = answer.iterations
        if word.endswith("PrimalInfeasible"):
            sure = _proves_infeasible(program, lam)
            return Found(Status.INFEASIBLE_UPPER if sure else Status.NOT_FOUND, iterations=iterations)
        if word.endswith("DualInfeasible"):
            return Found(self._ray(program, u), iterations=iterations)
        if not (np.isfinite(u).all() and np.isfinite(lam).all()):
            return Found(Status.FAILED, iterations=iterations)
        u, lam, left, singular = program.polish(u, lam)
        residual, violation, gap = program.measure(u, lam, left)
        value, bound = program.value(u), program.bound(u, lam)
        if max(residual, violation, gap) <= PROVEN:
            status = Status.GLOBAL
        elif violation <= FEASIBLE and max(residual, gap) <= LOOSE:
            status, bound = Status.INEXACT, -np.inf
        else:
            limits = {"MaxIterations": Status.ITERATION_LIMIT, "MaxTime": Status.TIME_LIMIT}
            return Found(limits.get(word, Status.FAILED), iterations=iterations)
        s = program.b - program.A @ u
        weak = program.cones.weak(s - lam, s)
        w, cause = np.r_[u, lam], ""
        sure = bool(still(program, lam).all()) or firm(program, u, lam)
        if not sure and runs_away(program, lambda other: self.clarabel(other, tolerances)):
            status, cause = Status.INEXACT, APPROACHED
        return Found(status, w, value, bound, residual, violation, iterations, weak, singular, cause=cause)

    def clarabel(self, program: Conic, tolerances: dict[str, float]) -> Any:
        """Clarabel's own answer."""
        import clarabel

        settings = clarabel.DefaultSettings()
        settings.verbose, settings.max_iter, settings.max_threads = False, self.max_iterations, 1
        if self.time_limit is not None:
            settings.time_limit = self.time_limit
        for name, value in tolerances.items():
            setattr(settings, name, value)
        cones = program.cones
        blocks = [
            *([clarabel.ZeroConeT(cones.zero)] if cones.zero else []),
            *([clarabel.NonnegativeConeT(cones.nonneg)] if cones.nonneg else []),
            *(clarabel.SecondOrderConeT(n) for n in cones.soc),
            *(clarabel.PSDTriangleConeT(n) for n in cones.psd),
            *(clarabel.ExponentialConeT() for _ in range(cones.exponential)),
            *(clarabel.PowerConeT(a) for a in cones.power),
        ]
        return clarabel.DefaultSolver(_triangle(program.P), program.q, program.A, program.b, blocks, settings).solve()

    def _ray(self, program: Conic, ray: np.ndarray) -> Status:
        """Whether a direction proves that the program is unbounded: it must improve without limit, from a feasible point."""
        fall = program.q @ ray
        flat = abs(program.P @ ray).max(initial=0.0) <= CERTAIN * (abs(program.P) @ abs(ray)).max(initial=0.0)
        s = -(program.A @ ray)
        leaves = abs(s - program.cones.project(s)).max(initial=0.0)
        stays = leaves <= CERTAIN * (abs(program.A) @ abs(ray)).max(initial=0.0)
        if not (flat and stays and fall < -CERTAIN * (abs(program.q) @ abs(ray))):
            return Status.NOT_FOUND
        still = program._replace(P=0 * program.P, q=0 * program.q, d=0.0)
        answer = self.clarabel(still, {})
        if str(answer.status).endswith("PrimalInfeasible"):
            sure = _proves_infeasible(program, np.array(answer.z))
            return Status.INFEASIBLE_UPPER if sure else Status.NOT_FOUND
        point = np.array(answer.x), np.array(answer.z)
        feasible = still.measure(*point, still.residual(*point))[1] <= EXACT
        return Status.UNBOUNDED_UPPER if feasible else Status.NOT_FOUND


def _proves_infeasible(program: Conic, lam: np.ndarray) -> bool:
    """Whether multipliers prove that no point satisfies the constraints: lam in K*, A'lam == 0, b'lam < 0."""
    size = abs(lam).max(initial=0.0)
    inside = abs(program.cones.project(-lam)).max(initial=0.0) <= CERTAIN * size
    balanced = abs(program.A.T @ lam).max(initial=0.0) <= CERTAIN * (abs(program.A.T) @ abs(lam)).max(initial=0.0)
    return bool(inside and balanced and program.b @ lam < -CERTAIN * (abs(program.b) @ abs(lam)))


def _triangle(P: sp.csc_array) -> sp.csc_array:
    """The upper triangle, which scipy's triu finds in several passes."""
    keep = P.indices <= np.repeat(np.arange(P.shape[1]), np.diff(P.indptr))
    ends = np.r_[0, np.cumsum(keep)][P.indptr]
    return sp.csc_array((P.data[keep], P.indices[keep], ends), shape=P.shape)


def _concave(P: sp.csc_array) -> bool:
    spectrum = np.linalg.eigvalsh(P.toarray()) if P.shape[0] else np.zeros(1)
    return bool(spectrum[0] < -1e-8 * (1 + abs(spectrum).max()))
