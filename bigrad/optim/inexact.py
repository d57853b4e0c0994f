"""An upper loss at an inexact lower level: its value and gradient, how far they may be from the exact ones, and what they cost.

With e_k >= |y_k - y_k*| for each lower level of the loss, and s_k = dL/dy_k of Lipschitz constant `outer`,

    |L(y) - L(y*)| <= sum over k of |s_k| e_k + outer e_k^2 / 2,

and the gradient's error is at most the sum of the levels' own (bigrad/gradients/bounds.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bigrad.auto import Auto
from bigrad.gradients.base import attach
from bigrad.gradients.bounds import ErrorBound
from bigrad.gradients.implicit import Implicit
from bigrad.gradients.probes import coupling, curvature, third
from bigrad.gradients.products import Exact
from bigrad.inner import Bound
from bigrad.krylov import CG, AbstractKrylov, AbstractLinear, Product, Solved
from bigrad.layer import Layer
from bigrad.program import Program
from bigrad.solution import CapabilityError, InputError, Outcome, Point, SolveError
from bigrad.solvers.descent import Descent

Upper = Callable[[Callable[..., Any]], Tensor]
"""The upper loss, of what stands for the layer."""


class Continued(AbstractLinear):
    """CG, MINRES or GMRES to an absolute residual, no finer than the precision's own, from `x` if that is nearer than
    zero; x is then the solution. finest: whether the precision's own it was."""

    symmetric: ClassVar[bool] = True

    def __init__(self, linear: AbstractKrylov, atol: float, x: Tensor | None):
        self.linear, self.atol, self.x, self.finest = linear, atol, x, False
        self.solved: Solved | None = None

    def solve(self, matvec: Product, b: Tensor) -> Solved:
        """See AbstractLinear.solve."""
        rest, extra = b, 0
        if self.x is not None:
            rest, extra = b - matvec(self.x), 1
            if not rest.norm() < b.norm():
                self.x, rest = None, b
        least = float(torch.finfo(b.dtype).eps ** 0.625 * b.norm())
        self.finest, self.atol = self.atol <= least, max(self.atol, least)
        found = replace(self.linear, tol=None, atol=self.atol).solve(matvec, rest)
        self.x = found.x if self.x is None else self.x + found.x
        self.solved = replace(found, x=self.x, iterations=found.iterations + extra, cause="")
        return self.solved


@dataclass(eq=False)
class Level:
    """One lower level of the loss. y, q: the last solution and adjoint, u: the direction of |B|; error: e of y."""

    y: Tensor
    error: float = math.inf
    q: Tensor | None = None
    u: Tensor | None = None

    @classmethod
    def kept(cls, start: Tensor, y: Tensor, error: float, q: Tensor | None, u: Tensor | None) -> Level:
        """A level of which the fields were stored, with tensors like `start`."""
        return cls(y.to(start), error, None if q is None else q.to(start), None if u is None else u.to(start))


@dataclass(eq=False)
class Spent:
    """Steps of lower solvers and products with Hessians."""

    iterations: int = 0
    products: int = 0


@dataclass(frozen=True, eq=False)
class Value:
    """The loss at some parameters. error: how far it may be from that at the exact y*."""

    loss: float
    error: float
    levels: list[Level]


@dataclass(frozen=True, eq=False)
class Slope:
    """The loss and its gradient. bound: how far that may be from the exact one, adjoint_bound: the adjoint's part of this.

    tolerances: of lower levels and adjoints; finest: whether a linear solve was as exact as the precision allows.
    estimated: whether constants behind the bounds are.
    """

    value: Value
    gradient: list[Tensor]
    bound: float
    adjoint_bound: float
    tolerances: tuple[float, float]
    finest: bool
    estimated: bool


class Inexact:
    """The loss of a layer whose tolerances are chosen for each evaluation; limit: the constants, None if they are estimated."""

    def __init__(self, layer: Layer):
        rule = Implicit() if isinstance(layer.gradient, Auto) else layer.gradient
        solver = Descent() if isinstance(layer.solver, Auto) else layer.solver
        inner = layer.program.inner
        if inner is None or not isinstance(solver, Descent) or not isinstance(rule, Implicit):
            raise CapabilityError(
                "MAID drives a layer of a torch function, Layer(argmin(inner, responds=y0)), with the solver Descent and the gradient "
                f"Implicit; this one has {solver} and {rule}."
            )
        if inner.constrained:
            raise CapabilityError("MAID's bounds hold where y is free, and here it is kept in a set.")
        linear = rule.linear or CG()
        if not isinstance(linear, AbstractKrylov):
            raise CapabilityError(
                f"MAID solves linear systems to a tolerance: CG(), MINRES() or GMRES(), not {linear}."
            )
        self.limit, mu = rule.bound, rule.bound.mu if rule.bound else solver.mu
        if mu is None:
            raise InputError(
                "MAID needs the strong convexity of the inner loss, without which no tolerance says how far y is from y*: "
                "Layer(…, solver=Descent(…, mu=mu)), or all constants, gradient=Implicit(bound=ErrorBound(mu, …))."
            )
        self.program, self.linear, self.products, self.mu = layer.program, linear, rule.products or Exact(), mu
        self.solver = replace(solver, mu=mu)
        self.inner = inner

    def value(self, upper: Upper, tolerance: float, levels: Sequence[Level], outer: float, spent: Spent) -> Value:
        """The loss with lower levels solved to a tolerance, each from where it was."""
        calls = _Solved(self, tolerance, levels, spent)
        loss = _loss(upper, calls)
        slopes = _parts(loss, calls.answers, ())[0]
        error = sum(s * f.error + outer * f.error**2 / 2 for s, f in zip(slopes, calls.found, strict=True))
        return Value(float(loss.detach()), error, calls.found)

    def slope(
        self,
        upper: Upper,
        params: Sequence[Tensor],
        tolerances: tuple[float, float],
        levels: Sequence[Level],
        known: dict[str, float],
        spent: Spent,
    ) -> Slope:
        """The loss and its gradient, lower levels and adjoints solved to their tolerances.

        known: constants estimated so far, of which the largest are kept.
        """
        calls = _Differentiated(self, tolerances, levels, params, spent)
        loss = _loss(upper, calls)
        slopes, gradient = _parts(loss, calls.answers, params)
        if not (loss.isfinite() and math.isfinite(norm(gradient))):
            raise InputError(f"MAID.step: the upper loss is {loss.item()} and its gradient's norm {norm(gradient)}.")
        solved = [s.solved for s in calls.linears if s.solved]
        spent.products += sum(s.iterations for s in solved)
        if not solved:
            raise InputError("MAID.step: no parameter reaches the loss through the lower level; pass them to it.")
        limit = self.limit or self._estimated(upper, calls, known)
        error = bound = share = 0.0
        for k, (s, level, linear) in enumerate(zip(slopes, calls.found, calls.linears, strict=True)):
            error += s * level.error + limit.outer * level.error**2 / 2
            if linear.solved is not None:
                assert linear.solved.residual is not None
                level.q = linear.solved.x
                size, residual = float(level.q.norm()), linear.solved.residual
                width = self._coupling(calls, k) if limit.coupling is None else limit.coupling
                bound += limit.at(level.error, residual, size, width)
                share += limit.at(0.0, residual, size, width)
        finest = any(linear.finest for linear in calls.linears)
        reached = tolerances[0], max(tolerances[1], *(linear.atol for linear in calls.linears))
        value = Value(float(loss.detach()), error, calls.found)
        return Slope(value, gradient, bound, share, reached, finest, limit.coupling is None)

    def _coupling(self, calls: _Differentiated, k: int) -> float:
        bound, level = calls.bounds[k], calls.found[k]
        wanted = [True] * len(bound.leaves)
        second = self.products.at(bound, level.y, bound.still, wanted)
        size, level.u = coupling(bound, level.y, second, bound.still, wanted, level.u)
        return size

    def _estimated(self, upper: Upper, calls: _Differentiated, known: dict[str, float]) -> ErrorBound:
        """The largest constants seen by now, those at this point among them."""

        def slope(flat: Tensor) -> Tensor:
            given = _Given(self, flat.split(len(self.inner.start)))
            loss = _loss(upper, given)
            return torch.cat([g.reshape(-1) for g in _grad(loss, [t for a in given.answers for t in a])])

        flat = torch.cat([level.y for level in calls.found])
        share = float(torch.finfo(flat.dtype).eps) ** (1 / 3)
        reach = max(share * (1 + float(flat.norm())), *(level.error for level in calls.found))
        known["outer"] = max(known.get("outer", 0.0), curvature(slope, flat, reach))
        for bound, level, solve in zip(calls.bounds, calls.found, calls.linears, strict=True):
            if solve.solved is not None:
                wanted = [True] * len(bound.leaves)
                bend, turn = third(self.products, bound, level.y, solve.solved.x, bound.still, wanted, reach)
                known["hessian"] = max(known.get("hessian", 0.0), bend)
                known["mixed"] = max(known.get("mixed", 0.0), turn)
        return ErrorBound(self.mu, known["outer"], known.get("hessian", 0.0), known.get("mixed", 0.0))


class _Calls:
    """Stands for the layer in one evaluation of the loss; answers: the tensors of y, call by call."""

    def __init__(self, inexact: Inexact):
        self.inexact = inexact
        self.answers: list[list[Tensor]] = []

    def _told(self, y: Tensor) -> Any:
        """The loss's own form of a flat y, noted."""
        answer = self.inexact.inner.unflatten(y)
        self.answers.append(list(answer.values()) if isinstance(answer, dict) else [answer])
        return answer


class _Given(_Calls):
    """Answers with what it was given."""

    def __init__(self, inexact: Inexact, given: Sequence[Tensor]):
        super().__init__(inexact)
        self.given = given

    def __call__(self, *values: Any) -> Any:
        return self._told(self.given[len(self.answers)].detach().requires_grad_())


class _Solved(_Calls):
    """Solves each lower level from where it was; the answers are leaves."""

    def __init__(self, inexact: Inexact, tolerance: float, levels: Sequence[Level], spent: Spent):
        super().__init__(inexact)
        self.solver, self.levels, self.spent = replace(inexact.solver, tol=tolerance), levels, spent
        self.found: list[Level] = []

    def __call__(self, *values: Any) -> Any:
        with torch.no_grad():
            _, outcome = self._run(values)
        return self._told(outcome.z[0].detach().requires_grad_())

    def _run(self, values: Sequence[Any]) -> tuple[Program, Outcome]:
        k, inner = len(self.found), self.inexact.inner
        before = self.levels[k] if k < len(self.levels) else Level(inner.start)
        program = replace(self.inexact.program, bound=inner.bind(values))
        assert program.bound is not None
        with torch.no_grad():
            start = Point(before.y, np.zeros(0, dtype=bool))  # type: ignore[arg-type]
            outcome = self.solver.solve(program, program.bound.still, [start])
        self.spent.iterations += int(outcome.iterations[0])
        if not outcome.ok[0]:
            status = outcome.status[0]
            cause = "" if outcome.cause is None else outcome.cause[0]
            raise SolveError(
                f"The lower level was not solved to {self.solver.tol:.1e}: {status.value} {cause}", {0: status}
            )
        error = self.solver.error(program.bound, float(outcome.residual[0]))
        assert error is not None
        self.found.append(Level(outcome.z[0], error, before.q, before.u))
        return program, outcome


class _Differentiated(_Solved):
    """The same, with answers in the graph of the arguments."""

    def __init__(
        self,
        inexact: Inexact,
        tolerances: tuple[float, float],
        levels: Sequence[Level],
        params: Sequence[Tensor],
        spent: Spent,
    ):
        super().__init__(inexact, tolerances[0], levels, spent)
        self.accuracy, self.own = tolerances[1], {id(p) for p in params}
        self.linears: list[Continued] = []
        self.bounds: list[Bound] = []

    def __call__(self, *values: Any) -> Any:
        program, outcome = self._run(values)
        bound = program.bound
        assert bound is not None
        if strange := [tuple(t.shape) for t in bound.leaves if id(t) not in self.own]:
            raise InputError(
                f"MAID: tensors of shapes {strange} among the arguments of the lower level require a gradient and are not its parameters. "
                "Its bound is on the gradient in the arguments: pass the parameters themselves and compute with them in the inner loss."
            )
        self.bounds.append(bound)
        self.linears.append(Continued(self.inexact.linear, self.accuracy, self.found[-1].q))
        rule = Implicit(self.linears[-1], self.inexact.products)
        y = attach(rule, program, outcome, outcome.z, bound.leaves)[0] if bound.leaves else outcome.z[0]
        return self._told(y if y.requires_grad else y.detach().requires_grad_())


def _loss(upper: Upper, calls: _Calls) -> Tensor:
    """The value of the closure, a finite scalar that depends on a lower level."""
    with torch.enable_grad():
        loss = upper(calls)  # type: ignore[arg-type]
    if not calls.answers:
        raise InputError(
            "MAID.step: the closure does not call what it is given; write lambda lower: loss(lower(x, …))."
        )
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        shape = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise InputError(f"MAID.step: the closure returned {shape}; needs a scalar tensor, the upper loss.")
    if not loss.requires_grad:
        raise InputError("MAID.step: the closure returned a loss without a graph; is it detached, or under no_grad?")
    with torch.enable_grad():
        return loss.reshape(())


def _grad(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The gradient, zero where the loss does not depend on an input."""
    try:
        found = torch.autograd.grad(loss, list(inputs), allow_unused=True)
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise InputError("MAID.step: the closure calls backward; it should only return the loss.") from error
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, inputs, strict=True)]


def _parts(
    loss: Tensor, answers: Sequence[Sequence[Tensor]], params: Sequence[Tensor]
) -> tuple[list[float], list[Tensor]]:
    """(|dL/dy| for each call, the gradient in the parameters)."""
    flat = [t for a in answers for t in a]
    found = _grad(loss, [*flat, *params])
    rest, sizes = iter(found), []
    for a in answers:
        sizes.append(sum(float((next(rest) ** 2).sum()) for _ in a) ** 0.5)
    return sizes, list(rest)


def norm(parts: Sequence[Tensor]) -> float:
    """The length of several tensors together."""
    return math.sqrt(sum(float((t**2).sum()) for t in parts))
