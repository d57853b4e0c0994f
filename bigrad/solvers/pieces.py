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

import numpy as np

from bigrad.algebra.quadratic import Data, Sizes, apart
from bigrad.parallel import single_blas, thread_map
from bigrad.program import Program
from bigrad.solution import Outcome, Point
from bigrad.solvers.base import AbstractSolver, batch_size, check_settings, whole_numbers
from bigrad.solvers.branch import branch
from bigrad.solvers.scaling import Scaling
from bigrad.solvers.search import Search
from bigrad.solvers.starts import answers, high_points
from bigrad.solvers.trail import Trail, meets

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
        batch = len(invalid)
        limit = begun + (np.inf if self.time_limit is None else self.time_limit)
        bounded = np.ones(batch, bool)
        trail = Trail(Search(data, sizes, batch, bounded), np.flatnonzero(~(invalid | crooked)), warm, bounded)
        if 2**sizes.pairs <= self.exhaustive:
            self._visit_all(trail)
        else:
            self._search(trail, own, limit)
        return trail.outcome(invalid, own is not None, begun, limit)

    def _visit_all(self, trail: Trail) -> None:
        """Solve every piece."""
        search, todo = trail.search, trail.todo
        data, sizes = search.data, search.sizes
        flat = todo[_least(data.Q, len(trail.bounded))[todo] <= FLAT]
        trail.bounded[flat] = False
        if len(flat) and sizes.pairs:  # without pairs the relaxation is the one piece, solved below
            trail.bounded[flat] = np.isfinite(high_points(data.pick(flat), sizes, len(flat), 1, self.seed)[1])
        sides = (np.arange(2**sizes.pairs)[:, None] >> np.arange(sizes.pairs)) % 2 == 1
        search.visit(np.repeat(todo, len(sides)), np.tile(sides, (len(todo), 1)))
        trail.starts[todo] = len(sides)
        trail.proven = ~trail.broken

    def _search(self, trail: Trail, own: np.ndarray | None, limit: float) -> None:
        """Descend from the warm starts, for the others from pieces of the relaxation; then branch where that is in doubt."""
        search, todo = trail.search, trail.todo
        data, sizes = search.data, search.sizes
        at, sides = trail.recall()
        trail.moving = search.descend(at, sides, self.max_iterations, limit)
        trail.starts[at] = 1
        cold = todo[search.best()[todo] < 0]  # those whose warm start has no solution begin anew
        if len(cold):
            items, sides, trail.bound[cold] = self._begin(data.pick(cold), sizes, own, len(cold))
            trail.starts += np.bincount(cold[items], minlength=len(trail.starts))
            trail.moving |= search.descend(cold[items], sides, self.max_iterations, limit)
            trail.bounded[cold] = np.isfinite(trail.bound[cold])
        if self.nodes:
            F = np.append(search.F, np.inf)[search.best()]  # row -1, for none, is the infinity at the end
            doubt = cold[~meets(F, trail.bound)[cold]]
            trail.proven = branch(search, doubt, self.nodes, limit)
            best = search.best()[doubt]
            doubt, best = doubt[best >= 0], best[best >= 0]
            trail.moving[doubt] = search.descend(doubt, search.tight[best], self.max_iterations, limit)[doubt]

    def _begin(self, data: Data, sizes: Sizes, own: np.ndarray | None, batch: int) -> tuple[np.ndarray, ...]:
        """Items and sides of the first pieces, and the proven bounds (batch,)."""
        z, bound = high_points(data, sizes, batch, self.starts, self.seed)
        tight, valid = answers(data, sizes, z[..., : sizes.x], own)
        return np.nonzero(valid)[0], tight[valid], bound


def _better(program: Program) -> str:
    """The solver that takes a program which is not for this one."""
    return f"{type(program.default.choose(program)[0]).__name__}()"


def _indefinite(matrix: np.ndarray, batch: int) -> np.ndarray:
    """Items whose matrix has a clearly negative eigenvalue, bool (batch,)."""
    return _least(matrix, batch) < -FLAT


def _least(matrix: np.ndarray, batch: int) -> np.ndarray:
    """The least eigenvalue of each item's matrix relative to 1 + the largest, (batch,)."""
    if not matrix.any():
        return np.zeros(batch)
    spectrum = np.linalg.eigvalsh(matrix)
    return np.broadcast_to(spectrum[..., 0] / (1 + abs(spectrum).max(-1)), batch)
