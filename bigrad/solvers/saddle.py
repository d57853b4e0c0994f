"""Saddle: convex-concave zero-sum games, as one convex program (bigrad/programs/saddle.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from bigrad.algebra.affine import flatten
from bigrad.program import Program
from bigrad.programs.convex import Convex
from bigrad.programs.saddle import Game
from bigrad.solution import Outcome, Point, Status
from bigrad.solvers.attain import dual, firm, runs_away, still
from bigrad.solvers.base import AbstractSolver
from bigrad.solvers.interior import PRECISE, Interior

UNANSWERED = (
    "The value is approached but not attained: the follower's answers that come nearer to it run away without end. Bound "
    "them, or subtract a small strictly convex term."
)


@dataclass(frozen=True)
class Saddle(AbstractSolver):
    """Solver for programs in which the leader minimises what the follower maximises: robust optimisation, adversarial
    training, matrix games.

    The follower is replaced by its conic dual, and the whole is one convex program, solved to a proven global optimum
    together with the follower's answer: a saddle point, each player's decision the best against the other's. Where
    several answers are best, y is one with which the leader cannot do better elsewhere, as no optimistic choice need be.
    `verify=True` re-solves both players: `stats.follower_gap` and `stats.leader_gap`. A start does not help: `warm_start`
    is ignored.
    """

    def accepts(self, program: Program) -> str | None:
        """Refuses programs that are not recognised as convex-concave zero-sum games."""
        if program.saddle is None:
            return f"Saddle() needs a convex-concave zero-sum program, but {program.why_not_saddle}. Use Auto()."
        return None

    def choose(self, program: Program) -> tuple[AbstractSolver, str]:
        """Itself."""
        inner = program.saddle.program
        solver, _ = inner.default.choose(inner)
        return self, (
            "The leader minimises what the follower maximises, convex and concave, so by duality it is one convex program "
            f"with a proven optimum; solved by {solver}."
        )

    def solve(
        self, program: Program, theta: tuple[np.ndarray, ...], warm_start: Sequence[Point | None] | None = None
    ) -> Outcome:
        """Solve a batch; see AbstractSolver.solve."""
        game = program.saddle
        outcome = game.program.default.solve(game.program, theta)
        status = outcome.status.copy()
        failed = np.flatnonzero([s in (Status.INFEASIBLE_UPPER, Status.UNBOUNDED_UPPER) for s in status])
        if len(failed):
            part = tuple(t[failed] if t.ndim > 1 else t for t in theta)
            sets = (p.default.solve(p, part).status for p in (game.leader, game.follower))
            for i, leader, follower in zip(failed, *sets, strict=False):
                status[i] = _cause(status[i], leader, follower)
        z = np.concatenate([flatten(v.read(outcome.w), len(v.shape)) for v in game.program.unknowns], 1)
        tight = np.zeros((len(z), 0), bool)
        cause = np.full(len(status), "", object) if outcome.cause is None else outcome.cause.astype(object)
        for i in _running(game, outcome.w, status, theta):
            status[i], cause[i] = Status.INEXACT, UNANSWERED
        causes = cause if cause.any() else None
        return replace(outcome, solver="Saddle", status=status, z=z, tight=tight, form=game.program, cause=causes)


def _running(game: Game, w: np.ndarray, status: np.ndarray, theta: tuple[np.ndarray, ...]) -> list[int]:
    """The items with an optimum at which the follower has no best answer, only ever better ones further away."""
    program = game.program
    form, answers = program.smooth, [u.place for u in program.unknowns if not u.leader]
    if not isinstance(form, Convex) or _bounded(game):
        return []
    size, found = form.layout.x, []
    at = np.unique(np.concatenate([place.tocoo().coords[1] for place in answers if not isinstance(place, slice)]))
    for i in np.flatnonzero([s is Status.GLOBAL for s in status]):
        item = tuple(t[i] if t.ndim > 1 else t for t in theta)
        if _held(game, item):
            continue
        conic = form.at(item)
        loose = not firm(conic, w[i, :size], w[i, size:], at)
        if loose and runs_away(dual(conic), lambda other: Interior().clarabel(other, PRECISE), at[at >= size]):
            found.append(int(i))
    return found


@lru_cache(maxsize=64)
def _bounded(game: Game) -> bool:
    """Whether the follower's answers are seen to be bounded whatever the parameters are."""
    return game.answer.A.constant and _held(game, [np.zeros(p.size) for p in game.parameters])


def _held(game: Game, theta: Sequence[np.ndarray]) -> bool:
    """Whether they are at these parameters."""
    answer = game.answer.at(theta)
    return bool(still(answer._replace(P=0 * answer.P, q=0 * answer.q))[game.own].all())


def _cause(found: Status, leader: Status, follower: Status) -> Status:
    """What the failure of the one program says of the two: its unknowns are the leader's decision and the follower's
    multipliers, which no follower without a bound has, and which improve without limit where no answer is feasible.
    """
    if found is Status.INFEASIBLE_UPPER and not leader.ok:
        return leader
    if not follower.ok:
        return Status.INFEASIBLE_LOWER if follower is Status.INFEASIBLE_UPPER else follower
    return Status.UNBOUNDED_LOWER if found is Status.INFEASIBLE_UPPER else found
