"""Relaxation: lam_i s_i <= t with t falling, from several starts, then piece after piece until strongly stationary.

Scholtes, "Convergence properties of a regularization scheme for mathematical programs with complementarity
constraints", SIAM Journal on Optimization, 2001. The relaxed programs only propose the side of each pair; the program
with every pair held on its side is then solved, and pairs whose multipliers ask for it change sides until none does,
as in Pieces.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bigrad.algebra.quadratic import Data, Sizes
from bigrad.parallel import single_blas
from bigrad.program import Program
from bigrad.programs.smooth import Smooth
from bigrad.solution import Outcome, Point, Status
from bigrad.solvers import uno
from bigrad.solvers.active import TOUCH, asking
from bigrad.solvers.base import AbstractSolver, batch_size, check_settings, whole_numbers
from bigrad.solvers.branch import branch
from bigrad.solvers.scaling import Scaling
from bigrad.solvers.search import Search
from bigrad.solvers.stages import QuadraticSystem, Stages, State, System, answer
from bigrad.solvers.tangent import POINTS, tangent_point
from bigrad.solvers.verdict import Verdict, conclude, gather, nonconvex

LARGEST = 10_000
"""Unknowns and multipliers of the largest programs taken."""
GAIN = 1e-9
"""A point is better, or a bound is reached, by this much relative to 1 + the objective."""
REACH = (1.0, 3.0, 10.0, 100.0)
"""How far, in turn, random objectives pull where the region is unbounded, relative to 1 + the first point."""
WIDER = 10.0
"""The starts take steps wider by 1, by this and by its square, in turn: they end in different local optima."""
FINER = (1e-4, 1e-6, 1e-8)
"""Further steps of a start whose sides make no feasible piece yet."""
SHAKES = (1e-2, 1e-2, 1e-1, 1e-1)
"""Relative steps of the leader's decision off a point that is stationary but no optimum."""
HOPS, FAR = 2, 0.4
"""Hops for each random start of a quadratic program, and how far they go, relative to the decisions met."""
HELD = 0.7
"""How often the pair that a hop turns is one whose constraint holds."""
NODES = 512
"""Nodes of the search for a bilevel-feasible point where all starts found none."""


@dataclass(frozen=True)
class Relaxation(AbstractSolver):
    """Solver for any smooth upper level over a follower with a QP, an LP or a cone program: price times demand, entropies.

    Answers are local optima; more starts find better ones. starts: searches per item, the first from the high-point
    relaxation (both levels' constraints, the leader's objective), the others from its optima for random objectives.
    Where both levels are quadratic, two hops off the best answer follow for each of these others. steps: the bounds t on the
    products, falling; every second and third start takes wider ones. max_iterations: of Uno, for each of the programs solved.
    time_limit: seconds per item, or None. seed: of the random starts.
    """

    starts: int = 8
    steps: tuple[float, ...] = (1.0, 1e-2)
    max_iterations: int = 300
    time_limit: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self, starts=1, max_iterations=0, seed=0)

    def accepts(self, program: Program) -> str | None:
        """Refuses integers, programs too large for dense matrices, and a convex one of one level that needs cones: Interior
        solves that to a proven optimum.
        """
        if refusal := whole_numbers("Relaxation", program):
            return refusal
        if isinstance(program.smooth, Smooth):
            size = 0 if program.quadratic else program.layout.blocks[-1].stop
            held = f"Relaxation() holds matrices of all {size} unknowns and multipliers; it takes up to {LARGEST}. Use Sparse()."
            return held if size > LARGEST else None
        if program.saddle is not None:
            return f"Relaxation() needs a lower level with linear constraints, but: {program.why_not_quadratic}. Use Saddle()."
        return "Relaxation() needs smooth functions, but this convex program has one level and needs cones. Use Interior()."

    def choose(self, program: Program) -> tuple[AbstractSolver, str]:
        """Itself."""
        kind = "quadratic" if program.quadratic else "smooth"
        return (
            self,
            f"A local search for a {kind} upper level (starts: {self.starts}); the best local optimum is returned.",
        )

    def solve(
        self, program: Program, theta: tuple[np.ndarray, ...], warm_start: Sequence[Point | None] | None = None
    ) -> Outcome:
        """Solve a batch; see AbstractSolver.solve."""
        batch = batch_size(theta)
        invalid = program.invalid(theta, batch)
        warm: list[Point | None] = [None] * batch if warm_start is None else list(warm_start)
        if program.quadratic is None:
            return self._batch(program, _smooth(program.smooth, theta, invalid), warm)
        sizes = program.quadratic.sizes
        with single_blas:
            data, scaling = Scaling.of(program.quadratic(tuple(np.where(np.isfinite(t), t, 0.0) for t in theta)), sizes)
            units = scaling.factors[: sizes.x + sizes.y]
            warm = [None if w is None else replace(w, z=w.z / units) for w in warm]
            return scaling.undo(self._batch(program, _quadratic(data, sizes, invalid, program.quadratic.own), warm))

    def _batch(self, program: Program, systems: Iterator[System | None], warm: list[Point | None]) -> Outcome:
        verdicts = []
        for i, system in enumerate(systems):
            since = time.perf_counter()
            verdict = self.item(system, warm[i]) if system else Verdict(Status.INVALID_INPUT)
            verdicts.append(verdict._replace(seconds=time.perf_counter() - since))
        return gather("Relaxation", program, verdicts)

    def item(self, system: System, warm: Point | None) -> Verdict:
        """Solve one item, from scratch or from a point, than which the answer is then no worse."""
        end = time.perf_counter() + (np.inf if self.time_limit is None else self.time_limit)
        if nonconvex(system, system.origin):
            return Verdict(Status.NONCONVEX_LOWER)
        search = _Search(Stages(system, self.max_iterations, lambda: end - time.perf_counter()), self.steps)
        convex = system.convex
        if warm is not None:
            search.resume(warm)
        top, bound, begun = search.origin, -np.inf, int(warm is not None)
        if not search.found and not search.late:
            top = search.high_point(search.origin)
            begun += 1
            if convex and top.status == uno.SUCCESS:
                bound = top.F
            if top.status == uno.INFEASIBLE:
                begun = self.starts if convex and not search.stages.cones else begun
            else:
                search.down_from(top if top.status in POINTS else search.origin)
            base = top if top.status in POINTS else search.origin
            met = [base.X[: system.layout.x]]
            rng, size = np.random.default_rng(self.seed), system.layout.x + system.layout.y
            reach = 1 + abs(base.X[:size]).max(initial=0.0)
            while begun < self.starts and not search.late:
                if search.reaches(bound):
                    break
                pull = rng.standard_normal(size)
                point = search.high_point(base, pull, 1 / (reach * REACH[begun % len(REACH)]))
                begun += 1
                if point.status in POINTS:
                    met.append(point.X[: system.layout.x])
                    search.down_from(point)
            if isinstance(system, QuadraticSystem) and system.layout.pairs and not search.reaches(bound):
                search.hop(np.array(met), HOPS * (self.starts - 1), rng)
        if not search.found and isinstance(system, QuadraticSystem) and system.layout.pairs:
            search.rescue(system, end)
        verdict = conclude(search.stages, search, top, bound, begun, convex)
        if verdict.status in (Status.STATIONARY, Status.INEXACT) and search.shake(self.seed):
            verdict = conclude(search.stages, search, top, bound, begun, convex)
        return verdict


class _Search:
    """The best point so far, and how to look for better ones."""

    def __init__(self, stages: Stages, steps: tuple[float, ...]):
        self.stages, self.steps = stages, steps
        self.origin = stages.start(stages.system.origin)
        self.best: State | None = None
        self.tight = np.zeros(stages.pairs, bool)
        self.settled = False
        self.iterations = 0
        self.endings: set[str] = set()
        self.impossible = False
        self.starts = 0

    @property
    def found(self) -> bool:
        """Whether there is a bilevel-feasible point."""
        return self.best is not None

    def reaches(self, bound: float) -> bool:
        """Whether the best point is as good as a bound."""
        return self.best is not None and not _below(bound, self.best.F)

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return self.stages.clock() <= 0

    def resume(self, point: Point) -> None:
        """Search from an earlier solution."""
        v = self.origin.X[: self.stages.n].copy()
        v[: len(point.z)] = point.z
        answered = answer(self.stages.system, v)
        if answered is not None:
            answered[: len(point.z)] = point.z
            state = self.stages.start(answered)
            self.descend(state, point.tight)
            here = self.stages.system.objective(answered)
            if self.best is None or _below(here, self.best.F):  # where multipliers are not unique, sides go with them
                self.descend(state, answered[self.stages.lam] > TOUCH)

    def high_point(self, state: State, pull: np.ndarray | None = None, curvature: float = 0.0) -> State:
        """An optimum of the high-point relaxation; where the follower's cones have corners, a point near it."""
        stages = self.stages
        if stages.cornered and pull is not None:
            return tangent_point(stages, state, pull, curvature)
        found = stages.high_point(state, pull, curvature)
        self.iterations += found.iterations
        failed = found.status not in (uno.SUCCESS, uno.UNBOUNDED)
        return tangent_point(stages, state) if stages.cornered and failed else found

    def rescue(self, system: QuadraticSystem, end: float) -> None:
        """Look for any bilevel-feasible point by branching, and search from it; or prove that there is none."""
        n, sizes = len(system.data.c), system.layout
        flat = system.data._replace(Q=1e-3 * np.eye(n), c=np.zeros(n), c0=np.zeros(()))
        table = Search(flat, sizes, 1, np.ones(1, bool))
        proven = branch(table, np.zeros(1, int), NODES, end)[0]
        row = table.best()[0]
        if row >= 0:
            self.descend(self.stages.start(table.w[row, : sizes.primal]), table.tight[row])
        self.impossible = bool(proven and row < 0)

    def hop(self, met: np.ndarray, count: int, rng: np.random.Generator) -> None:
        """Search from near the best point: the follower's answer to another decision, in the box of those met, and one of its
        pairs on the other side, mostly a constraint that holds. An answer and its pieces take a fraction of the time of a
        relaxed program; the turned pair leads to decisions at which the follower is torn between answers, which no decision
        drawn at random meets. Basin hopping: Wales and Doye, J. Phys. Chem. A 1997.
        """
        n, x = self.stages.n, self.stages.layout.x
        for _ in range(count):
            if not x or self.best is None or self.late:
                return
            v = self.best.X[:n].copy()
            low, high = np.minimum(met.min(0), v[:x]), np.maximum(met.max(0), v[:x])
            moved = rng.random(x) < max(0.5, 1 / x)
            v[:x] = np.clip(v[:x] + moved * rng.standard_normal(x) * (FAR * (high - low)), low, high)
            there = answer(self.stages.system, v)
            if there is not None:
                tight = there[self.stages.lam] > TOUCH
                held = np.flatnonzero(tight) if rng.random() < HELD and tight.any() else np.arange(len(tight))
                turned = rng.choice(held)
                tight[turned] = ~tight[turned]
                self.descend(self.stages.start(there), tight)

    def shake(self, seed: int) -> bool:
        """Step off a saddle: search from the answers to decisions near the best one; whether that led to a better one."""
        assert self.best is not None
        here, n, x = self.best, self.stages.n, self.stages.layout.x
        for k, size in enumerate(SHAKES):
            v = here.X[:n].copy()
            v[:x] += size * (1 + abs(v[:x])) * np.random.default_rng([seed, k]).standard_normal(x)
            moved = answer(self.stages.system, v)
            if moved is not None and not self.late:
                self.descend(self.stages.start(moved), moved[self.stages.lam] > TOUCH)
        return _below(self.best.F, here.F)

    def down_from(self, point: State) -> None:
        """Search from the follower's answer to the leader's part of a point; from the point if there is no answer."""
        stages = self.stages
        safe = stages.evaluable(point.X[: stages.n])
        v = answer(stages.system, safe)
        if stages.cones:
            self._down_through_answers(safe, v)
            return
        state = stages.start(safe if v is None else v)
        tight = state.X[stages.lam] > TOUCH
        wider = WIDER ** (self.starts % 3)
        self.starts += 1
        for k, t in enumerate((*self.steps, *FINER)):
            if self.late or (k >= len(self.steps) and self.descend(state, tight)):
                return
            after = stages.relaxed(state, t * wider if k < len(self.steps) else t)
            self.iterations += after.iterations
            if after.status not in (uno.SUCCESS, uno.STALLED, uno.LIMIT):
                break
            state, tight = after, after.X[stages.lam] > after.X[stages.s]
        if not self.descend(state, tight):
            v = answer(stages.system, state.X[: stages.n])
            if v is not None:
                self.descend(stages.start(v), v[stages.lam] > TOUCH)

    def _down_through_answers(self, safe: np.ndarray, v: np.ndarray | None) -> None:
        """The same for a follower with cones: sides and charts come from its exact answers to the decisions met.

        At a point of a relaxed stage they are no more than a guess, and a wrong chart costs more than an answer.
        """
        stages = self.stages
        state, wider = stages.start(safe if v is None else v), WIDER ** (self.starts % 3)
        self.starts += 1
        for k in range(len(self.steps) + 1):
            if v is not None:
                self.descend(stages.start(v), v[stages.lam] > TOUCH)
            if self.late or k == len(self.steps):
                return
            after = stages.relaxed(state, self.steps[k] * wider)
            self.iterations += after.iterations
            if after.status not in (uno.SUCCESS, uno.STALLED, uno.LIMIT):
                self.endings.add(self._ending(after))
                return
            state, v = after, answer(stages.system, after.X[: stages.n])

    def descend(self, state: State, tight: np.ndarray) -> bool:
        """Solve a piece, then neighbours across kinks that ask for it, while none loses ground and none is seen twice.

        False if the first piece has no solution.
        """
        here = self._piece(state, tight)
        if here is None:
            return False
        seen, settled = {self._key(here, tight)}, False
        while not self.late:
            turned = self._turned(here, tight, seen)
            if turned is not None:
                here, tight = turned
                continue
            wrong = self._wrong(here, tight)
            order = np.argsort(-wrong, kind="stable")[: int((wrong > 0).sum())]
            settled = not len(order)
            for turn in ([order] if len(order) > 1 else []) + [order[k : k + 1] for k in range(len(order))]:
                other = tight.copy()
                other[turn] = ~other[turn]
                key = self._key(here, other)
                if key in seen:
                    continue
                seen.add(key)
                there = self._piece(here, other)
                if there is not None and not _below(here.F, there.F):
                    here, tight = there, other
                    break
            else:
                break
        best = np.inf if self.best is None else self.best.F
        if _below(here.F, best) or (settled and not self.settled and not _below(best, here.F)):
            self.best, self.tight, self.settled = here, tight, settled
        return True

    def _key(self, state: State, tight: np.ndarray) -> bytes:
        """What tells pieces apart: the sides of the pairs, and the charts of the cones."""
        return tight.tobytes() + np.rint(state.X[self.stages.system.blocks.chart]).tobytes()

    def _turned(self, here: State, tight: np.ndarray, seen: set[bytes]) -> tuple[State, np.ndarray] | None:
        """The next piece where this one ends at the apex of a cone, in the cone's other chart; None if it loses ground."""
        turned = self.stages.recharted(here)
        if turned is None:
            return None
        charts = self.stages.system.blocks.chart
        other = tight.copy()
        other[-len(charts) :] &= here.X[charts] == turned.X[charts]
        key = self._key(turned, other)
        there = None if key in seen else self._piece(turned, other)
        seen.add(key)
        return None if there is None or _below(here.F, there.F) else (there, other)

    def _piece(self, state: State, tight: np.ndarray) -> State | None:
        found = self.stages.piece(state, tight)
        self.iterations += found.iterations
        self.endings.add(self._ending(found))
        return found if found.status in (uno.SUCCESS, uno.STALLED) else None

    def _ending(self, state: State) -> str:
        """How a stage ended; unbounded only if a feasible point with a low objective or far variables shows it."""
        runaway = state.status == uno.UNBOUNDED and not (self.stages.feasible(state) and self.stages.far(state))
        return uno.BROKEN if runaway else state.status

    def _wrong(self, state: State, tight: np.ndarray) -> np.ndarray:
        """See active.asking."""
        stages = self.stages
        lam, s, kappa = state.X[stages.lam], state.X[stages.s], state.m[stages.kappa]
        tau = stages.system.residual(np.r_[state.X[: stages.n], state.m])[stages.lam]
        return asking(tight, lam, s, kappa, tau)


def _below(a: float, b: float) -> bool:
    """Whether the objective a is clearly better than b."""
    return a < b - GAIN * (1 + abs(b)) if np.isfinite(b) else a < b


def _quadratic(data: Data, sizes: Sizes, invalid: np.ndarray, own: np.ndarray | None) -> Iterator[System | None]:
    """Each item of a batch, one after the other; None for an invalid one."""
    for i, bad in enumerate(invalid):
        yield None if bad else QuadraticSystem(data.pick(i), sizes, own)


def _smooth(smooth: Smooth, theta: tuple[np.ndarray, ...], invalid: np.ndarray) -> Iterator[System | None]:
    """The same through the derivative engine, of which one item at a time is compiled."""
    for i, bad in enumerate(invalid):
        if bad:
            yield None
        else:
            with smooth.at(tuple(t[i] if t.ndim > 1 else t for t in theta)) as system, single_blas:
                yield system
