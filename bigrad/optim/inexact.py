"""An upper loss at an inexact lower level: its value and gradient, how far they may be from the exact ones, and what they cost.

With e_k >= |y_k - y_k*| for each lower level of the loss, and s_k = dL/dy_k of Lipschitz constant `outer`,

    |L(y) - L(y*)| <= sum over k of |s_k| e_k + outer e_k^2 / 2,

and the gradient's error is at most the sum of the levels' own (bigrad/gradients/bounds.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bigrad.auto import Auto
from bigrad.gradients.bounds import ErrorBound
from bigrad.gradients.implicit import Implicit
from bigrad.gradients.probes import coupling, curvature, third
from bigrad.gradients.products import Exact, Second
from bigrad.inner import Bound
from bigrad.krylov import CG, AbstractKrylov, AbstractLinear, Product, Solved
from bigrad.layer import Layer
from bigrad.optim.predict import Triple, kept, predicted
from bigrad.solution import CapabilityError, InputError, Point, SolveError
from bigrad.solvers.descent import Descent

Upper = Callable[[Callable[..., Any]], Tensor]
"""The upper loss, of what stands for the layer."""
ROUNDING = 100.0
"""How many roundings a loss is thought to be off by."""
BACKWARD = "MAID.step: the closure calls backward; it should only return the loss."


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
    """One lower level of the loss. y, q: the last solution and adjoint; error: e of y; width, u: |B| and its direction.

    past: what predictions are made from.
    """

    y: Tensor
    error: float = math.inf
    q: Tensor | None = None
    u: Tensor | None = None
    width: float = 0.0
    past: list[Triple] = field(default_factory=list)

    @classmethod
    def kept(
        cls, start: Tensor, y: Tensor, error: float, q: Tensor | None, u: Tensor | None, width: float, past: list[Triple]
    ) -> Level:
        """A level of which the fields were stored, with tensors like `start`."""
        parts = (None if t is None else t.to(start) for t in (q, u))
        return cls(y.to(start), error, *parts, width, [(x.to(start), y.to(start), r.to(start)) for x, y, r in past])


@dataclass(eq=False)
class Spent:
    """Steps of lower solvers, with one for each prediction that had to be compared, and products with Hessians."""

    iterations: int = 0
    products: int = 0


@dataclass(frozen=True, eq=False)
class Look:
    """An evaluation of the loss: its levels solved, and their adjoints. second: products at y, residual: |H q - dL/dy|,
    slope: |dL/dy|, for each level. direct: the gradient that does not go through a level."""

    loss: float
    direct: list[Tensor]
    levels: list[Level]
    bounds: list[Bound]
    seconds: list[Second]
    slopes: list[float]
    residuals: list[float]
    tolerances: tuple[float, float]
    finest: bool


@dataclass(frozen=True, eq=False)
class Value:
    """The loss at some parameters, corrected. error: how far it may be from that at the exact y*."""

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

    def __init__(self, layer: Layer, past: int):
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
        self.inner, self.past = inner, past

    def look(
        self,
        upper: Upper,
        params: Sequence[Tensor],
        tolerances: tuple[float, float],
        levels: Sequence[Level],
        spent: Spent,
    ) -> Look:
        """The loss, lower levels and adjoints solved to their tolerances, each from where it was or is predicted to be."""
        calls = _Solved(self, tolerances[0], levels, params, spent)
        loss = _loss(upper, calls)
        slopes, direct = _parts(loss, calls.answers, params)
        if not any(bound.leaves for bound in calls.bounds):
            raise InputError("MAID.step: no parameter reaches the loss through the lower level; pass them to it.")
        seconds, residuals, finest, accuracy = [], [], False, tolerances[1]
        for bound, level, slope in zip(calls.bounds, calls.found, slopes, strict=True):
            second = self.products.at(bound, level.y, bound.leaves, [True] * len(bound.leaves))
            linear = Continued(self.linear, tolerances[1], level.q)
            if bool(slope.isfinite().all()):
                solved = linear.solve(second.hessian, slope)
                spent.products += solved.iterations
                assert solved.residual is not None
                level.q = solved.x
                residuals.append(solved.residual)
            else:
                residuals.append(math.inf)
            finest, accuracy = finest or linear.finest, max(accuracy, linear.atol)
            if bound.leaves:
                level.past = kept(level.past, (_flat(bound, level.y), level.y, second.slope), self.past)
            seconds.append(second)
        sizes = [float(s.norm()) for s in slopes]
        return Look(
            float(loss.detach()),
            direct,
            calls.found,
            calls.bounds,
            seconds,
            sizes,
            residuals,
            (tolerances[0], accuracy),
            finest,
        )

    def value(self, look: Look, known: dict[str, float]) -> Value:
        """The loss, corrected by the adjoints where that makes its error smaller."""
        limit = self.limit or self._known(known)
        loss, error = look.loss, ROUNDING * float(torch.finfo(self.inner.start.dtype).eps) * abs(look.loss)
        for level, second, s, residual in zip(look.levels, look.seconds, look.slopes, look.residuals, strict=True):
            e, half = level.error, level.error**2 / 2
            plain, fine = s * e + limit.outer * half, math.inf
            if level.q is not None:
                fine = residual * e + (limit.outer + limit.hessian * float(level.q.norm())) * half
            if fine < plain:
                assert level.q is not None
                loss -= float(level.q @ second.slope)
            error += min(plain, fine)
        return Value(loss, error, look.levels)

    def slope(self, look: Look, upper: Upper, params: Sequence[Tensor], known: dict[str, float]) -> Slope:
        """The loss and its gradient. known: constants estimated so far, of which the largest are kept."""
        gradient, places = [g.clone() for g in look.direct], {id(p): i for i, p in enumerate(params)}
        reached = [k for k, level in enumerate(look.levels) if level.q is not None and look.bounds[k].leaves]
        for k in reached:
            for leaf, part in zip(look.bounds[k].leaves, look.seconds[k].mixed(-look.levels[k].q), strict=True):
                if part is not None:
                    gradient[places[id(leaf)]] += part
        if not math.isfinite(look.loss + sum(look.slopes) + norm(gradient)):
            raise InputError(f"MAID.step: the upper loss is {look.loss} and its gradient's norm {norm(gradient)}.")
        if not self.limit:
            self._estimate(look, upper, known)
        limit = self.limit or self._known(known)
        bound = share = 0.0
        for k in reached:
            level, size = look.levels[k], float(look.levels[k].q.norm())
            level.width = self._coupling(look, k) if limit.coupling is None else limit.coupling
            bound += limit.at(level.error, look.residuals[k], size, level.width)
            share += limit.at(0.0, look.residuals[k], size, level.width)
        value = self.value(look, known)
        return Slope(value, gradient, bound, share, look.tolerances, look.finest, limit.coupling is None)

    def _known(self, known: dict[str, float]) -> ErrorBound:
        return ErrorBound(self.mu, known["outer"], known.get("hessian", 0.0), known.get("mixed", 0.0))

    def _coupling(self, look: Look, k: int) -> float:
        bound, level = look.bounds[k], look.levels[k]
        size, level.u = coupling(
            bound, level.y, look.seconds[k], bound.leaves, [True] * len(bound.leaves), level.u
        )
        return size

    def _estimate(self, look: Look, upper: Upper, known: dict[str, float]) -> None:
        """The largest constants seen by now, those at this point among them."""

        def slope(flat: Tensor) -> Tensor:
            given = _Given(self, flat.split(len(self.inner.start)))
            return torch.cat(_grad(_loss(upper, given), given.answers))

        flat = torch.cat([level.y for level in look.levels])
        share = float(torch.finfo(flat.dtype).eps) ** (1 / 3)
        reach = max(share * (1 + float(flat.norm())), *(level.error for level in look.levels))
        known["outer"] = max(known.get("outer", 0.0), curvature(slope, flat, reach))
        for bound, level in zip(look.bounds, look.levels, strict=True):
            if level.q is not None and bound.leaves:
                wanted = [True] * len(bound.leaves)
                bend, turn = third(self.products, bound, level.y, level.q, bound.leaves, wanted, reach)
                known["hessian"] = max(known.get("hessian", 0.0), bend)
                known["mixed"] = max(known.get("mixed", 0.0), turn)


class _Calls:
    """Stands for the layer in one evaluation of the loss; answers: each call's y, flat, from which the loss has a graph."""

    def __init__(self, inexact: Inexact):
        self.inexact = inexact
        self.answers: list[Tensor] = []

    def _told(self, y: Tensor) -> Any:
        """The loss's own form of a flat y, noted."""
        self.answers.append(y.detach().requires_grad_())
        with torch.enable_grad():
            return self.inexact.inner.unflatten(self.answers[-1])


class _Given(_Calls):
    """Answers with what it was given."""

    def __init__(self, inexact: Inexact, given: Sequence[Tensor]):
        super().__init__(inexact)
        self.given = given

    def __call__(self, *values: Any) -> Any:
        return self._told(self.given[len(self.answers)])


class _Solved(_Calls):
    """Solves each lower level from where it was, or is predicted to be."""

    def __init__(
        self, inexact: Inexact, tolerance: float, levels: Sequence[Level], params: Sequence[Tensor], spent: Spent
    ):
        super().__init__(inexact)
        self.solver, self.levels, self.spent = replace(inexact.solver, tol=tolerance), levels, spent
        self.own = {id(p) for p in params}
        self.found: list[Level] = []
        self.bounds: list[Bound] = []

    def __call__(self, *values: Any) -> Any:
        k, inner = len(self.found), self.inexact.inner
        before = self.levels[k] if k < len(self.levels) else Level(inner.start)
        bound = inner.bind(values)
        if strange := [tuple(t.shape) for t in bound.leaves if id(t) not in self.own]:
            raise InputError(
                f"MAID: tensors of shapes {strange} among the arguments of the lower level require a gradient and are not its parameters. "
                "Its bound is on the gradient in the arguments: pass the parameters themselves and compute with them in the inner loss."
            )
        with torch.no_grad():
            start = Point(self._start(bound, before), np.zeros(0, dtype=bool))  # type: ignore[arg-type]
            outcome = self.solver.solve(replace(self.inexact.program, bound=bound), bound.still, [start])
        self.spent.iterations += int(outcome.iterations[0])
        if not outcome.ok[0]:
            status = outcome.status[0]
            cause = "" if outcome.cause is None else outcome.cause[0]
            raise SolveError(
                f"The lower level was not solved to {self.solver.tol:.1e}: {status.value} {cause}", {0: status}
            )
        error = self.solver.error(bound, float(outcome.residual[0]))
        assert error is not None
        self.bounds.append(bound)
        self.found.append(replace(before, y=outcome.z[0], error=error))
        return self._told(outcome.z[0])

    def _start(self, bound: Bound, before: Level) -> Tensor:
        """What is predicted, unless the last answer has a smaller residual. Where the prediction will do no other is looked at."""
        if len(before.past) < 2 or not bound.leaves:
            return before.y
        x = _flat(bound, before.y)
        y = predicted(before.past, x, before.width)
        slope = bound.slope(y)[1]
        error = self.solver.error(bound, float(slope.norm()))
        assert error is not None and self.solver.tol is not None
        if error <= self.solver.tol:
            return y
        self.spent.iterations += 1
        if bool(slope.isfinite().all()):
            before.past = kept(before.past, (x, y, slope), self.inexact.past)
        return y if slope.norm() < bound.slope(before.y)[1].norm() else before.y


def _flat(bound: Bound, like: Tensor) -> Tensor:
    """The parameters that a lower level was given."""
    return torch.cat([t.detach().reshape(-1).to(like) for t in bound.leaves])


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
    if any(y.grad is not None for y in calls.answers):
        raise InputError(BACKWARD)
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
        raise InputError(BACKWARD) from error
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, inputs, strict=True)]


def _parts(loss: Tensor, answers: Sequence[Tensor], params: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """(dL/dy for each call, the gradient in the parameters)."""
    found = _grad(loss, [*answers, *params])
    return found[: len(answers)], found[len(answers) :]


def norm(parts: Sequence[Tensor]) -> float:
    """The length of several tensors together."""
    return math.sqrt(sum(float((t**2).sum()) for t in parts))
