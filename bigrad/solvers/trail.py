"""Trail: what the searches of a block of items have come to, and what that proves."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from bigrad.algebra.exchange import Exchange
from bigrad.algebra.quadratic import value
from bigrad.solution import Outcome, Point, Status
from bigrad.solvers.active import settle
from bigrad.solvers.base import EXACT, PROVEN
from bigrad.solvers.convex import INFEASIBLE, UNBOUNDED
from bigrad.solvers.diagnose import diagnose
from bigrad.solvers.recall import known_sets, recalled
from bigrad.solvers.search import Search


@dataclass(eq=False)
class Trail:
    """Searches of some items on their way; arrays have a line for each item.

    search: the pieces seen. todo: the items that can be solved. warm: solutions to start from. bounded: see `PieceSolver`, which
    shares it. starts: searches begun. bound: what the objective is proven not to fall below. moving: a search was cut off.
    proven: the best piece seen is the best there is.
    """

    search: Search
    todo: np.ndarray
    warm: list[Point | None]
    bounded: np.ndarray
    starts: np.ndarray = field(init=False)
    bound: np.ndarray = field(init=False)
    moving: np.ndarray = field(init=False)
    proven: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        batch, width = len(self.bounded), self.search.sizes.blocks[-1].stop
        self.starts, self.bound = np.zeros(batch, int), np.full(batch, -np.inf)
        self.moving, self.proven, self.polished = np.zeros((3, batch), bool)
        self.was_free, self.was_singular = known_sets(self.warm, width)
        self.ready: Exchange | None = None

    def recall(self) -> tuple[np.ndarray, np.ndarray]:
        """The items that have a warm start, and its sides. Where its active set still is the right one, its piece is solved."""
        sizes = self.search.sizes
        at = np.array([i for i in self.todo if self.warm[i] is not None], int)
        sides = np.array([self.warm[i].tight for i in at], bool).reshape(len(at), sizes.pairs)
        w, right, self.ready = recalled(self.search.data.pick(at), sizes, sides, self.was_free[at])
        self.search.adopt(at[right], sides[right], w[right])
        self.polished[at[right]] = True
        return at, sides

    @property
    def broken(self) -> np.ndarray:
        """Items of which some piece could not be solved for reasons unknown, bool (batch,)."""
        flag = self.search.flag
        return self.search.any_with((flag <= 0) & (flag != INFEASIBLE) & (flag != UNBOUNDED))

    def outcome(self, invalid: np.ndarray, game: bool, begun: float, limit: float) -> Outcome:
        """The best point of each item, polished, with its measurements, and what is known of it. game: several followers."""
        search, batch = self.search, len(self.bounded)
        data, sizes = search.data, search.sizes
        best = search.best()
        found = np.flatnonzero(best >= 0)
        rows = best[found]
        known = self.was_free[found], self.was_singular[found], self.polished[found] & (rows < self.polished.sum())
        settled = settle(
            data.pick(found), sizes, search.w[rows], search.tight[rows], convex=True, known=known, ready=self.ready
        )
        table = _blanks(batch, sizes.blocks[-1].stop)
        for name, blank in table.items():
            blank[found] = getattr(settled, name)
        tight = np.zeros((batch, sizes.pairs), bool)
        tight[found] = search.tight[rows]
        F = value(data, table["w"])
        bound = np.where(self.proven, F, self.bound)
        late = time.perf_counter() > limit
        status = np.full(batch, Status.NONCONVEX_LOWER, dtype=object)
        status[invalid] = Status.INVALID_INPUT
        broken, unbounded, met = self.broken, search.any_with(search.flag == UNBOUNDED), meets(F, bound)
        for i in self.todo:
            if unbounded[i]:
                status[i] = Status.UNBOUNDED_UPPER
            elif best[i] < 0:
                status[i] = Status.TIME_LIMIT if late else self._failure(i, game, broken[i])
            elif max(table["residual"][i], table["violation"][i]) > EXACT:
                status[i] = Status.INEXACT
            elif met[i]:
                status[i] = Status.GLOBAL
            elif table["strongly_stationary"][i]:
                status[i] = Status.LOCAL
            elif self.moving[i]:
                status[i] = Status.TIME_LIMIT if late else Status.ITERATION_LIMIT
            else:
                status[i] = Status.STATIONARY
        return Outcome(
            solver="Pieces",
            smooth=False,
            status=status,
            z=table["w"][:, : sizes.x + sizes.y],
            tight=tight,
            value=F,
            bound=bound,
            starts=self.starts,
            iterations=np.bincount(search.item, minlength=batch),
            seconds=np.full(batch, (time.perf_counter() - begun) / batch),
            factors=settled.items if len(found) == batch else None,
            **table,
        )

    def _failure(self, i: int, game: bool, broken: bool) -> Status:
        """Why there is no point."""
        verdict = diagnose(self.search.data.pick(i), self.search.sizes, game)
        if verdict is not Status.NOT_FOUND or not (broken or self.proven[i]):
            return verdict
        if not self.proven[i]:
            return Status.FAILED
        return Status.NO_EQUILIBRIUM if game else Status.INFEASIBLE_UPPER


def _blanks(batch: int, width: int) -> dict[str, np.ndarray]:
    """The measurements of items without a point."""
    return {
        "w": np.full((batch, width), np.nan),
        "free": np.zeros((batch, width), bool),
        **{k: np.full(batch, np.nan) for k in ("residual", "violation")},
        **{k: np.zeros(batch, int) for k in ("biactive", "degenerate")},
        **{k: np.zeros(batch, bool) for k in ("strongly_stationary", "singular")},
    }


def meets(F: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Items whose objective is as low as its bound; none that has no objective."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(F) & (F - bound <= PROVEN * (1 + abs(F)))
