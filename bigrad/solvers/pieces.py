"""Pieces: local search over the sides of the complementarity pairs, many starts and a whole batch at once.

With every pair on a given side, a bilevel quadratic program with a convex upper level is one convex quadratic program.
At its solution, a pair with slack and multiplier both zero lies on two pieces, and the sign of its other multiplier
says whether the objective falls on the far side. Crossing such kinks never loses ground, for the point itself lies on
both sides, and a search visits no piece twice, so it ends; where no sign is wrong the point is strongly stationary,
hence a local optimum. A program with few pieces is solved by all of them, and its optimum is then global. After the
decomposition of Luo, Pang and Ralph, "Mathematical Programs with Equilibrium Constraints", 1996, chapter 6.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigrad.exchange import Exchange
from bigrad.parallel import single_blas, thread_map
from bigrad.program import Program
from bigrad.quadratic import Data, Sizes, apart, value
from bigrad.solution import Outcome, Point, Status
from bigrad.solvers.active import settle
from bigrad.solvers.base import EXACT, PROVEN, AbstractSolver, batch_size, check_settings, whole_numbers
from bigrad.solvers.branch import branch
from bigrad.solvers.convex import INFEASIBLE, UNBOUNDED
from bigrad.solvers.diagnose import diagnose
from bigrad.solvers.recall import known_sets, recalled
from bigrad.solvers.scaling import Scaling
from bigrad.solvers.search import Search
from bigrad.solvers.starts import answers, high_points

WIDE = 100
"""Unknowns from which a piece takes DAQP long enough for threads to gain; for smaller ones they wait on the interpreter lock."""

BLOCK = 512
"""Items searched at a time: enough to share each array operation, few enough for memory not to grow with the batch."""

FLAT = 1e-8
"""An eigenvalue below this, relative to 1 + the largest, counts as zero."""


@dataclass(frozen=True)
class Pieces(AbstractSolver):
    """Solver for a lower QP or LP under a convex quadratic or linear upper level with linear constraints.

    starts: local searches per item; the first starts from the high-point relaxation, the others from its random
    vertices. A warm-started item has that one start alone, and is not branched on. nodes: relaxations per item that a
    branching search may then spend to prove the optimum or find a better one; 0 for none. exhaustive: a program with at
    most this many pieces (2 to the number of pairs) is solved by all of them instead, which proves its optimum.
    max_iterations: moves of one local search. time_limit: seconds for the whole batch, or None. seed: of the random
    starts.
    """

    starts: int = 8
    nodes: int = 64
    exhaustive: int = 8
    max_iterations: int = 200
    time_limit: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self, starts=1, nodes=0, exhaustive=0, max_iterations=0, seed=0)

    def accepts(self, program: Program) -> str | None:
        """Refuses programs that are not quadratic, whose upper level is not convex, or with integers."""
        if refusal := whole_numbers("Pieces", program):
            return refusal
        if program.quadratic is None:
            why = program.why_not_quadratic
            return (
                f"Pieces() needs linear constraints and a quadratic upper objective, but {why}. Use {_better(program)}."
            )
        if not program.convex:
            return f"Pieces() needs a convex upper objective, and this one is not convex in (x, y) together. Use {_better(program)}."
        return None

    def choose(self, program: Program) -> tuple[AbstractSolver, str]:
        """Itself."""
        pairs = program.quadratic.sizes.pairs if program.quadratic else 0
        if not pairs:
            return self, "It is one convex quadratic program, so its optimum is global."
        if 2**pairs <= self.exhaustive:
            return self, f"All {2**pairs} pieces are solved, so the optimum is global."
        if self.nodes:
            return (
                self,
                f"A local search over pieces (starts: {self.starts}), then branching for a proof (nodes: at most {self.nodes}).",
            )
        return self, f"A local search over pieces (starts: {self.starts}); the best local optimum is returned."

    def solve(
        self, program: Program, theta: tuple[np.ndarray, ...], warm_start: Sequence[Point | None] | None = None
    ) -> Outcome:
        """Solve a batch; see AbstractSolver.solve."""
        begun = time.perf_counter()
        maps = program.quadratic
        assert maps is not None
        batch = batch_size(theta)
        warm = [None] * batch if warm_start is None else list(warm_start)
        with single_blas:
            sizes = maps.sizes
            data, scaling = Scaling.of(maps(tuple(np.where(np.isfinite(t), t, 0.0) for t in theta)), sizes)
            invalid = program.invalid(theta, batch) | _indefinite(data.Q, batch)
            crooked = _indefinite(apart(data.P, maps.own)[0], batch)

            def block(items: np.ndarray) -> Outcome:
                some = [warm[i] for i in items]
                return self.part(data.pick(items), sizes, maps.own, invalid[items], crooked[items], some, begun)

            def part(items: np.ndarray) -> Outcome:
                return Outcome.join([block(items[i : i + BLOCK]) for i in range(0, len(items), BLOCK)])

            return scaling.undo(Outcome.join(thread_map(part, batch, least=8 if sizes.primal > WIDE else batch)))

    def part(
        self,
        data: Data,
        sizes: Sizes,
        own: np.ndarray | None,
        invalid: np.ndarray,
        crooked: np.ndarray,
        warm: list[Point | None],
        begun: float,
    ) -> Outcome:
        """Solve items whose data are at hand. own: see `Maps`; crooked: items whose lower level is not convex."""
        batch, game = len(invalid), own is not None
        limit = begun + (np.inf if self.time_limit is None else self.time_limit)
        bounded = np.ones(batch, bool)
        search = Search(data, sizes, batch, bounded)
        skip = invalid | crooked
        todo = np.flatnonzero(~skip)
        starts, bound = np.zeros(batch, int), np.full(batch, -np.inf)
        moving, proven, polished = np.zeros((3, batch), bool)
        ready: Exchange | None = None
        was_free, was_singular = known_sets(warm, sizes.blocks[-1].stop)
        exhaustive = 2**sizes.pairs <= self.exhaustive
        if exhaustive:
            flat = todo[_least(data.Q, batch)[todo] <= FLAT]
            bounded[flat] = False
            if len(flat) and sizes.pairs:  # without pairs the relaxation is the one piece, solved below
                bounded[flat] = np.isfinite(high_points(data.pick(flat), sizes, len(flat), 1, self.seed)[1])
            sides = (np.arange(2**sizes.pairs)[:, None] >> np.arange(sizes.pairs)) % 2 == 1
            search.visit(np.repeat(todo, len(sides)), np.tile(sides, (len(todo), 1)))
            starts[todo] = len(sides)
        else:
            at = np.array([i for i, w in enumerate(warm) if w is not None and not skip[i]], int)
            sides = np.array([warm[i].tight for i in at], bool).reshape(len(at), sizes.pairs)
            w, recall, ready = recalled(data.pick(at), sizes, sides, was_free[at])
            search.adopt(at[recall], sides[recall], w[recall])
            polished[at[recall]] = True
            moving = search.descend(at, sides, self.max_iterations, limit)
            starts[at] = 1
            cold = np.flatnonzero(~skip & (search.best() < 0))  # those whose warm start has no solution begin anew
            if len(cold):
                items, sides, bound[cold] = self._begin(data.pick(cold), sizes, own, len(cold))
                starts += np.bincount(cold[items], minlength=batch)
                moving |= search.descend(cold[items], sides, self.max_iterations, limit)
                bounded[cold] = np.isfinite(bound[cold])
            F = np.append(search.F, np.inf)[search.best()]  # row -1, for none, is the infinity at the end
            doubt = np.flatnonzero(~skip & ~_meets(F, bound))
            doubt = doubt[np.isin(doubt, cold)]
            if self.nodes:
                proven = branch(search, doubt, self.nodes, limit)
                best = search.best()[doubt]
                doubt, best = doubt[best >= 0], best[best >= 0]
                moving[doubt] = search.descend(doubt, search.tight[best], self.max_iterations, limit)[doubt]

        best = search.best()
        found = np.flatnonzero(best >= 0)
        rows = best[found]
        width, table = sizes.blocks[-1].stop, dict[str, Any]()
        known = was_free[found], was_singular[found], polished[found] & (rows < polished.sum())
        settled = settle(
            data.pick(found), sizes, search.w[rows], search.tight[rows], convex=True, known=known, ready=ready
        )
        for name, blank in (
            ("w", np.full((batch, width), np.nan)),
            ("free", np.zeros((batch, width), bool)),
            *_blanks(batch),
        ):
            table[name] = blank
            blank[found] = getattr(settled, name)
        tight = np.zeros((batch, sizes.pairs), bool)
        tight[found] = search.tight[rows]
        z = table["w"][:, : sizes.x + sizes.y]
        F = value(data, table["w"])
        broken = search.any_with((search.flag <= 0) & (search.flag != INFEASIBLE) & (search.flag != UNBOUNDED))
        if exhaustive:
            proven = ~broken
        bound = np.where(proven, F, bound)
        met = _meets(F, bound)
        none = Status.NO_EQUILIBRIUM if game else Status.INFEASIBLE_UPPER
        unbounded, late = search.any_with(search.flag == UNBOUNDED), time.perf_counter() > limit

        def judge(i: int) -> Status:
            if skip[i]:
                return Status.INVALID_INPUT if invalid[i] else Status.NONCONVEX_LOWER
            if unbounded[i]:
                return Status.UNBOUNDED_UPPER
            if best[i] < 0:
                if late:
                    return Status.TIME_LIMIT
                verdict = diagnose(data.pick(i), sizes, game)
                if verdict is Status.NOT_FOUND and (broken[i] or proven[i]):
                    return none if proven[i] else Status.FAILED
                return verdict
            if max(table["residual"][i], table["violation"][i]) > EXACT:
                return Status.INEXACT
            if met[i]:
                return Status.GLOBAL
            if table["strongly_stationary"][i]:
                return Status.LOCAL
            return (Status.TIME_LIMIT if late else Status.ITERATION_LIMIT) if moving[i] else Status.STATIONARY

        return Outcome(
            solver="Pieces",
            smooth=False,
            status=np.array([judge(i) for i in range(batch)], dtype=object),
            z=z,
            tight=tight,
            value=F,
            bound=bound,
            starts=starts,
            iterations=np.bincount(search.item, minlength=batch),
            seconds=np.full(batch, (time.perf_counter() - begun) / batch),
            factors=settled.items if len(found) == batch else None,
            **table,
        )

    def _begin(self, data: Data, sizes: Sizes, own: np.ndarray | None, batch: int) -> tuple[np.ndarray, ...]:
        """Items and sides of the first pieces, and the proven bounds (batch,)."""
        z, bound = high_points(data, sizes, batch, self.starts, self.seed)
        tight, valid = answers(data, sizes, z[..., : sizes.x], own)
        return np.nonzero(valid)[0], tight[valid], bound


def _better(program: Program) -> str:
    """The solver that takes a program which is not for this one."""
    return f"{type(program.default.choose(program)[0]).__name__}()"


def _blanks(batch: int) -> list[tuple[str, np.ndarray]]:
    """The measurements of items without a point."""
    return [
        *((k, np.full(batch, np.nan)) for k in ("residual", "violation")),
        *((k, np.zeros(batch, int)) for k in ("biactive", "degenerate")),
        *((k, np.zeros(batch, bool)) for k in ("strongly_stationary", "singular")),
    ]


def _meets(F: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Items whose objective is as low as its bound; none that has no objective."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(F) & (F - bound <= PROVEN * (1 + abs(F)))


def _indefinite(matrix: np.ndarray, batch: int) -> np.ndarray:
    """Items whose matrix has a clearly negative eigenvalue, bool (batch,)."""
    return _least(matrix, batch) < -FLAT


def _least(matrix: np.ndarray, batch: int) -> np.ndarray:
    """The least eigenvalue of each item's matrix relative to 1 + the largest, (batch,)."""
    if not matrix.any():
        return np.zeros(batch)
    spectrum = np.linalg.eigvalsh(matrix)
    return np.broadcast_to(spectrum[..., 0] / (1 + abs(spectrum).max(-1)), batch)
