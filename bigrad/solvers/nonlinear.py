"""One item of a program that is not quadratic, for Global: SCIP searches, and the piece it found, integers held, is solved
once more.

SCIP's integers are whole to a tolerance only, and a multiplier that nothing bounds can make much of that. Where the exact
solve does not confirm what SCIP found, its integers become a box of their own, in which they are held, and the others
are searched beside it.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from bigrad.programs.system import System
from bigrad.solution import Point, Status
from bigrad.solvers import sos, spatial
from bigrad.solvers.active import TOUCH
from bigrad.solvers.integers import HeldSystem
from bigrad.solvers.proof import better, judged
from bigrad.solvers.relaxation import Relaxation
from bigrad.solvers.verdict import Verdict, nonconvex

POLISH = 1.0
"""Seconds that an exact solve of a given piece may take beyond the time limit."""


BOXES = 10_000
"""Most boxes of integers that are looked at."""


class _Box(NamedTuple):
    """Bounds on the integers, and one on the objective there."""

    low: np.ndarray
    high: np.ndarray
    bound: float

    @staticmethod
    def whole(size: int, bound: float) -> _Box:
        """No bounds on the integers."""
        return _Box(np.full(size, -np.inf), np.full(size, np.inf), bound)

    @property
    def single(self) -> bool:
        """Whether one choice of integers is all there is."""
        return bool((self.low == self.high).all())

    def around(self, at: np.ndarray, bound: float) -> list[_Box]:
        """The point alone, and the rest in boxes beside it."""
        low, high, parts = self.low.copy(), self.high.copy(), []
        for k, value in enumerate(at):
            for a, b in ((low[k], value - 1), (value + 1, high[k])):
                if a <= b:
                    part = _Box(low.copy(), high.copy(), bound)
                    part.low[k], part.high[k] = a, b
                    parts.append(part)
            low[k] = high[k] = value
        return [_Box(low, high, bound), *parts]


class Nonlinear:
    """A smooth program at fixed inputs. end: when the time is up, by the performance counter."""

    def __init__(self, system: System, integer: np.ndarray, gap: float, search: Relaxation, end: float):
        self.system, self.integer, self.gap, self.search, self.end = system, integer, gap, search, end

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.perf_counter()

    def verdict(self, warm: Point | None) -> Verdict:
        """The best point with what is proven of it."""
        if nonconvex(self.system, self.system.origin):
            return Verdict(Status.NONCONVEX_LOWER)
        best = self.local(warm, self.left / 2 if warm is None else max(self.left, POLISH))
        start = None if best.w is None else best.w[: self.system.layout.primal]
        floor, open_, closed, nodes = best.bound, [_Box.whole(len(self.integer), best.bound)], np.inf, 0
        found = sos.Found(sos.LATE, None, -np.inf)
        while open_ and nodes < BOXES:
            nodes += 1
            box = open_.pop(int(np.argmin([b.bound for b in open_])))
            if best.value is not None and best.value - box.bound <= self.gap / 2 * (1 + abs(best.value)):
                closed = min(closed, box.bound)
                continue
            base = box.bound - sos.EDGE * (1 + abs(box.bound))
            found = spatial.minimise(
                self.system,
                self.integer,
                start,
                box=(box.low, box.high),
                floor=base,
                gap=self.gap / 2,
                seconds=self.left,
            )
            if found.status == sos.INFEASIBLE:
                if nodes == 1 and best.w is None:
                    return self.without(floor)
                continue
            last = Verdict(Status.NOT_FOUND)
            if found.v is not None:
                last = self.local(self.point(found.v), max(self.left, POLISH))
                if found.status == sos.DEEP and Status.UNBOUNDED_UPPER in (best.status, last.status):
                    # a follower with cones may have no answer there, which no tolerance tells from one that is far away
                    return Verdict(Status.NOT_FOUND if self.system.blocks.cones else Status.UNBOUNDED_UPPER)
                best = better(best, last)
            met = last.value is not None and last.value - found.bound <= self.gap * (1 + abs(last.value))
            if met or found.status != sos.OPTIMAL or found.v is None or box.single:
                closed = min(closed, found.bound)
            else:
                open_ += box.around(np.round(found.v[self.integer]), max(found.bound, box.bound))
        bound = min([closed, *(b.bound for b in open_)])
        best = judged(best, found, (floor, bound), self.gap, 1.0, self.left <= 0)
        return best if best.value is not None or np.isfinite(best.bound) else best._replace(bound=-np.inf)

    def without(self, floor: float) -> Verdict:
        """The verdict where SCIP finds the program infeasible: that is believed if it does so at a looser tolerance too."""
        found = spatial.minimise(self.system, self.integer, seconds=self.left, tolerance=sos.LENIENT)
        if found.status == sos.INFEASIBLE:
            return Verdict(self.reason(), bound=np.inf, iterations=found.nodes)
        best = Verdict(Status.NOT_FOUND) if found.v is None else self.local(self.point(found.v), max(self.left, POLISH))
        return judged(best, found, (floor, found.bound), self.gap, 1.0, self.left <= 0)

    def local(self, at: Point | None, seconds: float) -> Verdict:
        """A local optimum from a point, integers held where it has them, else of a search from scratch."""
        search = Relaxation(starts=self.search.starts, seed=self.search.seed, time_limit=max(seconds, 0.0))
        if not len(self.integer):
            return search.item(self.system, at)
        if at is None:
            return Verdict(Status.NOT_FOUND)
        held = HeldSystem(self.system, self.integer, np.round(at.z[self.integer]))
        rest = Point(np.delete(at.z, self.integer), at.tight)
        return held.restore(search.item(held, rest)) if held.kept else Verdict(Status.NOT_FOUND)

    def point(self, v: np.ndarray) -> Point:
        """Where to search from: a point of SCIP's with the sides of its pairs."""
        system, layout = self.system, self.system.layout
        n, lam, kappa = layout.primal, layout.blocks[2], layout.blocks[5]
        if system.blocks.cones:
            v = system.blocks.seat(v, v[system.blocks.s], v[system.blocks.lam])
            return Point(v[: layout.x + layout.y], v[lam] > TOUCH)
        return Point(v[: layout.x + layout.y], v[lam] > -system.rows(v)[kappa.start - n : kappa.stop - n])

    def reason(self) -> Status:
        """Why there is no point, as far as SCIP proves it; a cone program that is bounded may have no multipliers."""
        game = self.system.follower(self.system.origin).N is not None
        none = Status.NO_EQUILIBRIUM if game else Status.UNBOUNDED_LOWER

        def empty(**parts: bool) -> bool:
            return spatial.empty(self.system, self.integer, max(self.left, POLISH), **parts)

        if empty():
            return Status.INFEASIBLE_UPPER
        if empty(answers=True):
            return Status.INFEASIBLE_LOWER
        if self.system.blocks.cones:
            return Status.NOT_FOUND
        return none if empty(optimal=True) else Status.NO_EQUILIBRIUM if game else Status.INFEASIBLE_UPPER
