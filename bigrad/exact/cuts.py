"""Cuts: nested integer programs, exactly.

Values of the follower's answers cut the leader's problem: Lozano and Smith, "A value-function-based exact approach for the
bilevel mixed-integer programming problem", Operations Research 2017; DeNegre and Ralphs, "A branch-and-cut algorithm for
integer bilevel linear programs", 2009. Each road's own source is in its file.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bigrad.discrete.combinatorial import Combinatorial
from bigrad.discrete.nested import Objective
from bigrad.discrete.player import player
from bigrad.exact import reasoned
from bigrad.exact.against import Unanswered, against, hits, refused
from bigrad.exact.answers import Pool
from bigrad.exact.found import Found, gathered
from bigrad.exact.hitting import Known
from bigrad.exact.nested import refusal, search
from bigrad.program import Program
from bigrad.solution import InputError, Outcome, Point, Status
from bigrad.solvers.base import AbstractSolver, batch_size, check_settings

INFINITE = 1e20
"""Numbers from here on are infinite to HiGHS and SCIP."""


def _largest(objective: Objective) -> float:
    """The size of its largest coefficient."""
    return float(max(abs(objective.linear).max(initial=0.0), abs(objective.cross.data).max(initial=0.0)))


@dataclass(frozen=True)
class Cuts(AbstractSolver):
    """Exact, with a proof, for programs declared by OR-Tools models or by CVXPY problems with an integer follower, or with an
    oracle as the follower.

    gap: relative gap at which an item may stop, 0 for a full proof. time_limit: seconds an item, or None; an item that runs into it
    is OPEN, with the best point known and stats.bound, or TIME_LIMIT without a point. remember: whether answers of the
    follower found for one item serve others, and later calls: they stay feasible whatever the costs. Answers are those of a
    fixed seed and one worker; among several optima, which one is found may depend on what is remembered.
    """

    gap: float = 0.0
    time_limit: float | None = None
    remember: bool = True

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.gap >= 0:
            raise InputError(f"{self}: gap must be 0 or more.")

    @property
    def _seconds(self) -> float:
        return np.inf if self.time_limit is None else self.time_limit

    def accepts(self, program: Program) -> str | None:
        """See AbstractSolver.accepts."""
        if program.combinatorial is None:
            return (
                "Cuts() needs a program of OR-Tools models, or of CVXPY problems with an integer follower. Use Auto()."
            )
        if program.combinatorial.follower is not None:
            return refused(program.combinatorial)
        reason = None if program.combinatorial.models else refusal(program.combinatorial.base)
        return f"Cuts(): {reason}" if reason else None

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
        found = [Found(Status.INVALID_INPUT, None)] * batch
        fine = np.flatnonzero(~program.invalid(theta, batch))
        road = self._one_level if not form.base.followers else self._against if hits(form) else self._two_levels
        for i, answer in zip(fine, road(form, [t[fine] for t in given], len(fine)), strict=True):
            found[i] = answer
        return gathered(str(self), form, given, found)

    def _two_levels(self, form: Combinatorial, theta: list[np.ndarray], batch: int) -> list[Found]:
        """Two models; the pool of the follower's answers is shared by the items, and by later calls."""
        pool = form.memory.setdefault("pool", Pool()) if self.remember else None
        items = [form.at([t[i] for t in theta]) for i in range(batch)]
        if form.models is not None:
            return [reasoned.search(form.models, nested, self.gap, self._seconds) for nested in items]
        found = []
        for nested in items:
            if (most := max(_largest(nested.leader), _largest(nested.follower))) >= INFINITE:
                cause = f"a cost of {most:.3g}, which is infinite to the solvers; rescale the costs"
                found.append(Found(Status.FAILED, None, cause=cause))
                continue
            ended = search(nested, pool, self.gap, self.time_limit)
            w = None if ended.x is None or ended.y is None else np.concatenate([ended.x, ended.y])
            cuts = ended.cuts + ended.splits
            found.append(Found(ended.status, w, ended.bound, cuts, ended.answers, ended.seconds, cause=ended.cause))
        return found

    def _against(self, form: Combinatorial, theta: list[np.ndarray], batch: int) -> list[Found]:
        """A leader against an oracle, or a model that is asked like one. Costs that the oracle refuses fail their own item only."""
        start, known = time.perf_counter(), form.memory.setdefault("known", Known()) if self.remember else Known()
        try:
            found = against(form, theta, batch, known, self.gap, self._seconds)
        except Unanswered:
            return self._two_levels(form, theta, batch)
        except InputError as error:
            if batch == 1:
                return [Found(Status.INVALID_INPUT, None, cause=str(error))]
            return [self._against(form, [t[[i]] for t in theta], 1)[0] for i in range(batch)]
        return [replace(f, seconds=(time.perf_counter() - start) / batch) for f in found]

    def _one_level(self, form: Combinatorial, theta: list[np.ndarray], batch: int) -> list[Found]:
        """One model, solved as it is."""
        start, nobody = time.perf_counter(), np.zeros((batch, 0))
        costs = form.on_level(theta, True, nobody)
        answers = player(form, True).solve(costs, nobody, self._seconds)
        seconds = (time.perf_counter() - start) / max(batch, 1)
        return [Found(s, v if s.ok else None, seconds=seconds, rounding=r) for v, s, r in zip(*answers, strict=True)]
