"""Formula: programs of one level whose answer can be written down. So far the projection onto a ball.

Boxes, simplices, budgets and soft thresholds are quadratic programs, of which ActiveSet knows the formula.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bigrad.parallel import single_blas
from bigrad.program import Program
from bigrad.programs.ball import Ball
from bigrad.solution import Outcome, Point, Status
from bigrad.solvers.active import TOUCH
from bigrad.solvers.base import AbstractSolver, batch_size


@dataclass(frozen=True)
class Formula(AbstractSolver):
    """Solver for a spherical quadratic objective over a ball, min q/2 |y|^2 + c'y with |y - a| <= r or |y - a|^2 <= r; `Auto`
    recognises it. The optimum is global, to rounding.
    """

    def accepts(self, program: Program) -> str | None:
        """Refuses every other program."""
        if isinstance(program.smooth, Ball):
            return None
        return "Formula() needs one ball and an objective that is a multiple of |y|^2, plus a linear one. Use Auto()."

    def choose(self, program: Program) -> tuple[AbstractSolver, str]:
        """Itself."""
        return self, "A projection onto a ball, which has a formula; the optimum is global."

    def solve(
        self, program: Program, theta: tuple[np.ndarray, ...], warm_start: Sequence[Point | None] | None = None
    ) -> Outcome:
        """Solve a batch; see AbstractSolver.solve. A warm start is not needed and not used."""
        begun, batch, form = time.perf_counter(), batch_size(theta), program.smooth
        invalid = program.invalid(theta, batch)
        clean = tuple(np.where(np.isfinite(t), t, 0.0) for t in theta) if invalid.any() else theta
        with single_blas:
            data = form.maps(clean)
            found = form.project(data, batch)
        y, multiplier = found.y, form.multiplier(found)
        none, empty = np.zeros(batch, int), np.isnan(found.radius)
        value = form.q / 2 * (y * y).sum(-1) + (data.c * y).sum(-1) + data.c0

        status = np.full(batch, Status.GLOBAL, dtype=object)
        status[empty], status[invalid] = Status.INFEASIBLE_UPPER, Status.INVALID_INPUT
        return Outcome(
            solver="Formula",
            smooth=True,
            status=status,
            z=y,
            w=np.concatenate([y, multiplier[:, None]], -1),
            free=np.concatenate([np.ones(y.shape, bool), found.outside[:, None]], -1),
            tight=np.zeros((batch, 0), bool),
            value=value,
            bound=value,
            starts=none + 1,
            iterations=none,
            residual=np.zeros(batch),
            violation=np.zeros(batch),
            biactive=none,
            degenerate=(abs(found.distance - found.radius) <= TOUCH * (1 + found.radius)).astype(int),
            strongly_stationary=~empty,
            singular=np.isinf(multiplier),
            seconds=np.full(batch, (time.perf_counter() - begun) / batch),
            factors=found,
        )
