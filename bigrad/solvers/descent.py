"""Descent: first-order methods for a lower level written in torch, stopped by steps or by a certificate.

With mu-strong convexity, |y - y*| <= |grad g(y)| / mu; under a projection, with r = |y - P(y - s grad g)| / s, |y - y*| <=
(1 + s L) r / mu (Pang, Math. Oper. Res. 1987); without L: bigrad/solvers/projected.py. Ehrhardt and Roberts, IMA J. Appl.
Math. 2023, section 2.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bigrad.program import Program
from bigrad.solution import InputError, Outcome, Point, SolveWarning, Status
from bigrad.solvers.base import AbstractSolver
from bigrad.solvers.lbfgs import LBFGS
from bigrad.solvers.methods import AbstractMethod, State
from bigrad.solvers.projected import ProjectedGradient

if TYPE_CHECKING:
    from torch import Tensor

    from bigrad.inner import Bound, Inner

NUDGE = 1e-6
"""A nudged solve goes on until its residual is this share of the nudge, or the root of the precision's epsilon."""
SETTLED = 1e-2
"""A loss has settled where the last tenth of the steps changed it by no more than this share of its whole fall."""

SETTLING = (
    "At a kink, as of a ReLU, no gradient is small, and its derivative is that of one side; elsewhere raise steps or the precision, or "
    "choose another method. tol=0 takes any answer, tol=None a settled one, another tol neither."
)
UNBOUNDED = (
    "After {steps} steps the inner loss falls along a line for as far as was looked, and does not flatten. Check its sign, bound it, "
    "as by a penalty on y, or keep y in a set: argmin(…, within=Box(…))."
)
FALLING = "Raise steps or tol of Descent, choose another method, or set tol=0 to take just these steps."
Optimisers = Callable[[Iterable[Any]], Any]
"""Parameters to a torch optimiser: functools.partial(torch.optim.Adam, lr=1e-2)."""
Method = AbstractMethod | LBFGS | ProjectedGradient | Optimisers


@dataclass(frozen=True)
class Descent(AbstractSolver):
    """Minimises a torch function by `method`: LBFGS(), ProjectedGradient(), GradientDescent, HeavyBall, FISTA, or a function
    that makes a torch optimiser of parameters, such as `functools.partial(torch.optim.Adam, lr=1e-2)`. None takes what needs
    no constants: ProjectedGradient() where y is kept in a set, LBFGS() where it is free.

    tol: the largest |y - y*| that is accepted, where mu, the strong convexity of the inner loss, is given; without mu the
    largest norm of its gradient. What has not come there in `steps` steps has failed: ITERATION_LIMIT. tol=0 takes exactly
    `steps` steps, and an answer that is not minimal is INEXACT then. A projection is applied after each step.

    None asks for the best that can be reached: |gradient| at most the square root of the precision's epsilon times (1 + what
    it was at the start), or a loss that has settled: no step lowers it any more, or the last tenth of the steps changed it by
    at most 1 % of all that it fell, or by that root times (1 + |loss|). A settled loss is INEXACT, stats.cause says so, and a layer
    warns; one that still falls when steps run out has failed. A minimum of a ReLU network mostly lies on a kink, where no
    gradient is small: it can only settle.
    """

    method: Method | None = None
    steps: int = 1000
    tol: float | None = None
    mu: float | None = None
    on_device: ClassVar[bool] = True

    def __post_init__(self) -> None:
        ours = isinstance(self.method, AbstractMethod | LBFGS | ProjectedGradient | None)
        bare = (LBFGS, ProjectedGradient, *AbstractMethod.__subclasses__())
        if not (ours or callable(self.method)) or self.method in bare:
            raise InputError(
                f"Descent(method={self.method!r:.60}): give LBFGS(), ProjectedGradient(), GradientDescent(…), HeavyBall(…), FISTA(…) or a "
                "function that makes a torch optimiser, like functools.partial(torch.optim.Adam, lr=1e-2)."
            )
        if self.steps < 1 or (self.tol is not None and not self.tol >= 0) or (self.mu is not None and not self.mu > 0):
            raise InputError(
                f"Descent(steps={self.steps}, tol={self.tol}, mu={self.mu}): steps must be at least 1, tol positive, zero (then exactly "
                "`steps` steps are taken) or None, mu positive or None."
            )

    def accepts(self, program: Program) -> str | None:
        """Torch functions; with a projection all methods but L-BFGS."""
        if program.inner is None:
            return f"{self} minimises torch functions, and this program is a model. Use Auto()."
        if program.inner.constrained and isinstance(self.method, LBFGS):
            return "LBFGS() cannot keep y in a set. Use Descent(), which takes ProjectedGradient() there."
        return None

    def choose(self, program: Program) -> tuple[AbstractSolver, str]:
        """Itself, with a method."""
        if self.method is not None or program.inner is None:
            return self, "Asked for."
        method = self._method(program.inner)
        return replace(self, method=method), f"{type(method).__name__} needs no constants of the inner loss."

    def _method(self, inner: Inner) -> Method:
        return self.method or (ProjectedGradient() if inner.constrained else LBFGS())

    def solve(
        self, program: Program, theta: tuple[Any, ...], warm_start: Sequence[Point | None] | None = None
    ) -> Outcome:
        """See AbstractSolver.solve; theta is in program.bound."""
        began, bound = time.perf_counter(), program.bound
        assert bound is not None
        start: Tensor = bound.inner.start
        if warm_start is not None and warm_start[0] is not None:
            start = start.new_tensor(warm_start[0].z) if isinstance(warm_start[0].z, np.ndarray) else warm_start[0].z
        if not bound.finite():
            return _outcome(
                start, Status.INVALID_INPUT, np.inf, np.inf, 0, began, "An argument holds a NaN or an infinity.", None
            )
        start = bound.inner.project(start)
        run = self._run(bound, start, None, None)
        if self.tol != 0 and bound.first is not None and start.equal(bound.inner.start):
            _same(bound.first, run.losses[0], _eps(bound))
        status, cause = Status.LOCAL, ""
        if run.losses[-1] == -np.inf:
            status, cause = Status.UNBOUNDED_LOWER, UNBOUNDED.format(steps=run.steps)
        elif run.residual != run.residual or not run.losses[-1] < np.inf or run.residual == np.inf:
            status = Status.FAILED
            cause = f"The inner loss is {run.losses[-1]} and its gradient's norm {run.residual} at step {run.steps}"
            cause += (
                ", the start."
                if run.steps == 0
                else ": take a smaller step_size, or LBFGS(), and look for 0 / 0, log(0) or sqrt'(0)."
            )
        elif run.residual > run.goal and self.tol == 0:
            status = Status.INEXACT
        elif run.residual > run.goal:
            settled = run.steps < self.steps or _settled(run.losses, _eps(bound) ** 0.5)
            status = Status.INEXACT if settled and self.tol is None else Status.ITERATION_LIMIT
            cause = (
                f"The gradient's norm is {run.residual:.2e} after {run.steps} steps and {run.goal:.2e} was asked for"
            )
            cause += ", but the loss has settled. " if settled else ". "
            cause += SETTLING if settled else FALLING
        follow = Followed(self, run.schedule or self._method(bound.inner), start, run.steps, run.ahead)
        return _outcome(run.y, status, run.losses[-1], run.residual, run.steps, began, cause, follow)

    def error(self, bound: Bound, residual: float) -> float | None:
        """The bound on |y - y*| that a residual proves; None where mu is not known, or L is needed under a projection."""
        if self.mu is None:
            return None
        method = self._method(bound.inner)
        if not bound.inner.constrained or isinstance(method, ProjectedGradient):
            return residual / self.mu
        return (1 + method.reach) * residual / self.mu if isinstance(method, AbstractMethod) else None

    def promised(self, bound: Bound, start: Tensor, mu: float, L: float | None) -> float | None:
        """The |y - y*| that it reaches from the start where mu <= H <= L, unless it fails: tol, or with tol=0 what the
        method's rate says; None where nothing does, as for heavy ball."""
        if self.tol != 0:
            return None if self.tol is None else self.tol * (self.mu or 1.0) / mu
        share = self.method.factor(self.steps, mu, L) if isinstance(self.method, AbstractMethod) and L else None
        return None if share is None else share * float(bound.slope(start)[1].norm()) / mu

    def again(self, bound: Bound, y: Tensor, push: Tensor) -> tuple[Tensor, float, float]:
        """The minimiser of g + push'y, from y; the residual reached, and the one that is small enough."""
        run = self._run(bound, y, push, max(NUDGE, _eps(bound) ** 0.5) * float(push.norm()))
        return run.y, run.residual, run.goal

    def _goal(self, bound: Bound, first: float, own: float | None) -> float:
        """The residual at which to stop."""
        if not self.tol:
            return own or _eps(bound) ** 0.5 * (1 + first)
        factor = self.error(bound, 1.0)
        goal = self.tol if factor is None else self.tol / factor
        return min(goal, own) if own else goal

    def _run(self, bound: Bound, y: Tensor, push: Tensor | None, own: float | None) -> Run:
        method = self._method(bound.inner)
        if isinstance(method, AbstractMethod):
            return self._steps(method, bound, y, push, own)
        if isinstance(method, LBFGS):
            return self._quasi(method, bound, y, push, own)
        if isinstance(method, ProjectedGradient):
            return self._projected(method, bound, y, push, own)
        return self._optimise(method, bound, y, push, own)

    def _steps(self, method: AbstractMethod, bound: Bound, y: Tensor, push: Tensor | None, own: float | None) -> Run:
        state, goal = method.first(y), np.inf
        losses: list[float] = []
        for k in range(self.steps):
            point = method.at(state)
            value, slope = bound.slope(point, push)
            if self.tol != 0 or k == 0:
                losses.append(float(value))
                residual = _residual(bound, point, slope, method.length)
                goal = self._goal(bound, residual, own) if k == 0 else goal
                fine = self.tol != 0 and residual <= goal
                if (
                    fine and bound.inner.constrained and point is not state[0]
                ):  # it may lie outside the set: look behind it
                    behind = method.step(state, point, slope, bound.inner)[0]
                    value, beyond = bound.slope(behind, push)
                    there = _residual(bound, behind, beyond, method.length)
                    if there <= goal:
                        return Run(behind, [*losses, float(value)], there, goal, k + 1, False)
                elif fine or not residual < np.inf:
                    return Run(point, losses, residual, goal, k, True)
            state = method.step(state, point, slope, bound.inner)
            del point, slope  # two vectors less while the next are made
        value, slope = bound.slope(state[0], push)
        residual = _residual(bound, state[0], slope, method.length)
        return Run(state[0], [*losses, float(value)], residual, goal, self.steps, False)

    def _quasi(self, method: LBFGS, bound: Bound, y: Tensor, push: Tensor | None, own: float | None) -> Run:
        value, slope = bound.slope(y, push)
        goal = self._goal(bound, float(slope.norm()), own)
        least = 0.0 if self.tol == 0 else goal
        y, losses, slope = method.minimise(lambda at: bound.slope(at, push), y, value, slope, self.steps, least)
        return Run(y, losses, float(slope.norm()), goal, len(losses) - 1, False)

    def _projected(
        self, method: ProjectedGradient, bound: Bound, y: Tensor, push: Tensor | None, own: float | None
    ) -> Run:
        y, losses, residual, goal, schedule = method.minimise(
            lambda at: bound.slope(at, push),
            y,
            bound.inner,
            self.steps,
            lambda first: self._goal(bound, first, own),
            self.tol != 0,
        )
        return Run(y, losses, residual, goal, len(losses) - 1, False, schedule)

    def _optimise(self, make: Optimisers, bound: Bound, y: Tensor, push: Tensor | None, own: float | None) -> Run:
        import torch

        y = y.detach().clone().requires_grad_()
        optimiser, goal = make([y]), np.inf
        losses: list[float] = []

        def closure() -> Tensor:
            value, y.grad = bound.slope(y, push)
            return value

        for k in range(self.steps + 1):
            value, slope = bound.slope(y, push)
            losses.append(float(value))
            residual = _residual(bound, y.detach(), slope, 1.0)
            goal = self._goal(bound, residual, own) if k == 0 else goal
            if k == self.steps or not residual < np.inf or (self.tol != 0 and residual <= goal):
                break
            y.grad = slope
            optimiser.step(closure if isinstance(optimiser, torch.optim.LBFGS) else None)
            if bound.inner.constrained:
                with torch.no_grad():
                    y.copy_(bound.inner.project(y.detach()))
        return Run(y.detach(), losses, residual, goal, k, False)


@dataclass(frozen=True, eq=False)
class Run:
    """Where a minimisation ended. losses: on the way, y's the last. ahead: y is where the gradient was asked for, not the
    method's own y. schedule: the steps, where the method alone does not tell them."""

    y: Tensor
    losses: list[float]
    residual: float
    goal: float
    steps: int
    ahead: bool
    schedule: AbstractMethod | None = None


@dataclass(frozen=True, eq=False)
class Followed:
    """How a solution was reached: bigrad.inner.Follow. method: what took the steps."""

    solver: Descent
    method: Method
    start: Tensor
    steps: int
    ahead: bool

    def first(self) -> State:
        """The state at the start."""
        assert isinstance(self.method, AbstractMethod)
        return self.method.first(self.start)

    def forth(self, bound: Bound, leaves: Sequence[Tensor] | None, state: State, count: int) -> State:
        """The state so many steps later; in the autograd graph of state and leaves, where these are given."""
        method = self.method
        assert isinstance(method, AbstractMethod)
        for _ in range(count):
            point = method.at(state)
            slope = bound.slope(point)[1] if leaves is None else bound.gradient(point, leaves, follow=True)[1]
            state = method.step(state, point, slope, bound.inner)
        return state

    def answer(self, state: State) -> Tensor:
        """y of the last state."""
        assert isinstance(self.method, AbstractMethod)
        return self.method.at(state) if self.ahead else state[0]

    def promised(self, bound: Bound, mu: float, L: float | None) -> float | None:
        """See Descent.promised."""
        return self.solver.promised(bound, self.start, mu, L)

    def again(self, bound: Bound, y: Tensor, push: Tensor) -> tuple[Tensor, float, float]:
        """See Descent.again."""
        return self.solver.again(bound, y, push)


def _eps(bound: Bound) -> float:
    import torch

    return float(torch.finfo(bound.inner.start.dtype).eps)


def _same(one: float, other: float, eps: float) -> None:
    """A SolveWarning where two evaluations at the same point differ by more than rounding."""
    if abs(one - other) > eps**0.25 * max(abs(one), abs(other)) + eps**0.5:
        warnings.warn(
            f"The inner loss is random: at the same point it was {one:.6g} and then {other:.6g}, as with dropout. No point minimises it, "
            "and the hypergradient mixes several losses. Call .eval(), or seed what is drawn inside the loss.",
            SolveWarning,
            stacklevel=6,
        )


def _settled(losses: list[float], share: float) -> bool:
    """Whether the last tenth of the steps changed next to nothing."""
    last, fell, level = losses[-1 - -(-len(losses) // 10) :], losses[0] - losses[-1], share * (1 + abs(losses[-1]))
    return fell >= -level and max(last) - min(last) <= max(SETTLED * fell, level)


def _residual(bound: Bound, y: Tensor, slope: Tensor, length: float) -> float:
    if not bound.inner.constrained:
        return float(slope.norm())
    return float((y - bound.inner.project(y - length * slope)).norm()) / length


def _outcome(
    y: Tensor, status: Status, value: float, residual: float, steps: int, began: float, cause: str, follow: Any
) -> Outcome:
    one = np.ones(1, dtype=int)
    none = np.zeros(1, dtype=bool)
    return Outcome(
        solver="Descent",
        smooth=True,
        status=np.array([status], dtype=object),
        z=y[None],
        w=y[None],
        free=y.new_ones(1, 0).bool(),
        tight=np.zeros((1, 0), dtype=bool),
        value=np.array([value]),
        bound=np.array([-np.inf]),
        starts=one,
        iterations=steps * one,
        residual=np.array([residual]),
        violation=np.zeros(1),
        biactive=0 * one,
        degenerate=0 * one,
        strongly_stationary=none,
        singular=none,
        seconds=np.array([time.perf_counter() - began]),
        factors=follow,
        cause=np.array([cause], dtype=object),
    )
