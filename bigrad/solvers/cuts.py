"""Cuts: nested integer programs, exactly."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bigrad.combinatorial import Combinatorial
from bigrad.mip import Mip
from bigrad.program import Program
from bigrad.solution import InputError, Outcome, Point, Status
from bigrad.solvers.base import AbstractSolver, batch_size


@dataclass(frozen=True)
class Cuts(AbstractSolver):
    """Exact, with a proof, for programs declared by OR-Tools models, or with an oracle as the follower.

    gap: relative gap at which an item may stop, 0 for a full proof. time_limit: seconds an item; an item that runs into it
    is OPEN, with the best point known and stats.bound, or TIME_LIMIT without a point. remember: whether answers of the
    follower found for one item serve others, and later calls: they stay feasible whatever the costs. Answers are those of a
    fixed seed and one worker; among several optima, which one is found may depend on what is remembered.
    """

    gap: float = 0.0
    time_limit: float = np.inf
    remember: bool = True

    def __post_init__(self) -> None:
        if not (self.gap >= 0 and self.time_limit > 0):
            raise InputError(f"{self}: gap must be 0 or more, and time_limit positive.")

    def accepts(self, program: Program) -> str | None:
        """See AbstractSolver.accepts."""
        if program.combinatorial is None:
            return "Cuts() needs a program of OR-Tools models; this one is continuous, or CVXPY's. Use Auto()."
        return None

    def choose(self, program: Program) -> tuple[AbstractSolver, str]:
        """See AbstractSolver.choose."""
        return self, "The program is combinatorial."

    def solve(
        self, program: Program, theta: tuple[np.ndarray, ...], warm_start: Sequence[Point | None] | None = None
    ) -> Outcome:
        """See AbstractSolver.solve."""
        form = program.combinatorial
        assert form is not None
        batch = batch_size(theta)
        given = [np.broadcast_to(t, (batch, t.shape[-1])) for t in theta]
        found = self._one_level(form, given, batch)
        for i in np.flatnonzero(program.invalid(theta, batch)):
            found[i] = Found(Status.INVALID_INPUT, None)
        return gathered(str(self), form, given, found)

    def _one_level(self, form: Combinatorial, theta: list[np.ndarray], batch: int) -> list[Found]:
        base = form.base
        mip = form.memory.setdefault("level", Mip(base.lower, base.upper, base.integer, base.leader_rows))
        start = time.perf_counter()
        costs = form.on_level(theta, True, np.zeros((batch, 0)))
        answers = mip.solve(np.broadcast_to(costs, (batch, costs.shape[1])), None, self.time_limit)
        seconds = (time.perf_counter() - start) / batch
        return [
            Found(s, v if s.ok else None, np.nan, seconds=seconds)
            for v, s in zip(answers.values, answers.status, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Found:
    """What the search of one item ended with: w = (x, y) and a proven bound on the minimised upper objective."""

    status: Status
    w: np.ndarray | None
    bound: float = np.nan
    cuts: int = 0
    solves: int = 0
    seconds: float = 0.0
    rounding: float = 0.0


def gathered(name: str, form: Combinatorial, theta: list[np.ndarray], found: list[Found]) -> Outcome:
    """A batch of answers as an Outcome."""
    size, batch = len(form.base.lower), len(found)
    w = np.array([np.full(size, np.nan) if f.w is None else f.w for f in found])
    value = np.full(batch, np.inf)
    for i, f in enumerate(found):
        if f.w is not None:
            value[i] = form.at([t[i] for t in theta]).leader(w[i][: form.base.leaders], w[i][form.base.leaders :])
    bound = np.array(
        [v if f.status is Status.GLOBAL and np.isnan(f.bound) else f.bound for v, f in zip(value, found, strict=True)]
    )
    none = np.zeros(batch, int)
    return Outcome(
        solver=name,
        smooth=False,
        status=np.array([f.status for f in found], dtype=object),
        z=w,
        w=w,
        free=np.ones_like(w, bool),
        tight=np.zeros((batch, 0), bool),
        value=value,
        bound=bound,
        starts=none,
        iterations=none,
        residual=np.where(np.isfinite(value), 0.0, np.inf),
        violation=np.where(np.isfinite(value), 0.0, np.inf),
        biactive=none,
        degenerate=none,
        strongly_stationary=np.zeros(batch, bool),
        singular=np.zeros(batch, bool),
        seconds=np.array([f.seconds for f in found]),
        effort=np.array([[f.cuts, f.solves, f.rounding] for f in found], dtype=float),
    )
