"""An upper loss at an inexact lower level: its value and gradient, how far they may be from the exact ones, and what they cost.

With e_k >= |y_k - y_k*| for each lower level of the loss, and s_k = dL/dy_k of Lipschitz constant `outer`,

    |L(y) - L(y*)| <= sum over k of |s_k| e_k + outer e_k^2 / 2.

The adjoint q, H q ~ s, takes off what is of first order in e: with r = grad_y g(x, y), and `hessian` the Lipschitz constant of H,

    |L(y) - q'r - L(y*)| <= |H q - s| e + (outer + hessian |q|) e^2 / 2,

since r = H (y - y*) up to hessian e^2 / 2 (adjoint correction: Pierce and Giles, SIAM Review 2000). The smaller bound is taken,
level by level. The gradient's error is at most the sum of the levels' own (bigrad/gradients/bounds.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from bigrad.algebra.krylov import CG, AbstractKrylov, AbstractLinear, Product, Solved
from bigrad.auto import Auto
from bigrad.gradients.bounds import ErrorBound
from bigrad.gradients.implicit import Implicit
from bigrad.gradients.probes import coupling, curvature, third
from bigrad.gradients.products import Exact, Second
from bigrad.inner import Bound
from bigrad.layer import Layer
from bigrad.optim.levels import Calls, Given, Level, Solving, Spent, flat
from bigrad.optim.predict import kept
from bigrad.solution import CapabilityError, InputError
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


@dataclass(frozen=True, eq=False)
class Look:
    """An evaluation of the loss: its levels solved, and their adjoints. For each level: bounds, it at its arguments;
    seconds: products at y; slopes: |dL/dy|; residuals: |H q - dL/dy|. direct: the gradient that does not go through a level.
    tolerances: of levels and adjoints; finest: whether a linear solve was as exact as the precision allows."""

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
        calls = Solving(self.program, replace(self.solver, tol=tolerances[0]), levels, params, self.past, spent)
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
                level.past = kept(level.past, (flat(bound, level.y), level.y, second.slope), self.past)
            seconds.append(second)
        sizes, reached = [float(s.norm()) for s in slopes], (tolerances[0], accuracy)
        return Look(float(loss.detach()), direct, calls.found, calls.bounds, seconds, sizes, residuals, reached, finest)

    def value(self, look: Look, known: dict[str, float]) -> Value:
        """The loss, corrected by the adjoints where that makes its error smaller."""
        limit = self.limit or self._known(known)
        loss, error = look.loss, ROUNDING * float(torch.finfo(self.inner.start.dtype).eps) * abs(look.loss)
        for level, second, s, residual in zip(look.levels, look.seconds, look.slopes, look.residuals, strict=True):
            e, half = level.error, level.error**2 / 2
            plain = s * e + limit.outer * half
            if level.q is None:
                error += plain
                continue
            fine = residual * e + (limit.outer + limit.hessian * float(level.q.norm())) * half
            if fine < plain:
                loss -= float(level.q @ second.slope)
            error += min(plain, fine)
        return Value(loss, error, look.levels)

    def slack(
        self, error: float, tolerances: tuple[float, float], levels: Sequence[Level], known: dict[str, float]
    ) -> float:
        """How many times coarser the tolerances may be for the corrected loss to be off by so much, at adjoints of this size."""
        limit, (far, rest) = self.limit or self._known(known), tolerances
        sizes = [0.0 if level.q is None else float(level.q.norm()) for level in levels]
        return math.sqrt(error / sum(rest * far + (limit.outer + limit.hessian * q) * far**2 / 2 for q in sizes))

    def slope(self, look: Look, upper: Upper, params: Sequence[Tensor], known: dict[str, float], anew: bool) -> Slope:
        """The loss and its gradient. known: constants estimated so far, of which the largest are kept; anew: estimate them
        at this point as well."""
        gradient, places = [g.clone() for g in look.direct], {id(p): i for i, p in enumerate(params)}
        reached = [
            (k, level, level.q) for k, level in enumerate(look.levels) if level.q is not None and look.bounds[k].leaves
        ]
        for k, _, q in reached:
            for leaf, part in zip(look.bounds[k].leaves, look.seconds[k].mixed(-q), strict=True):
                if part is not None:
                    gradient[places[id(leaf)]] += part
        if not math.isfinite(look.loss + sum(look.slopes) + norm(gradient)):
            raise InputError(f"MAID.step: the upper loss is {look.loss} and its gradient's norm {norm(gradient)}.")
        if anew and not self.limit:
            self._estimate(look, upper, known)
        limit = self.limit or self._known(known)
        bound = share = 0.0
        for k, level, q in reached:
            size = float(q.norm())
            if limit.coupling is not None:
                level.width = limit.coupling
            elif anew or not level.width:
                level.width = self._coupling(look, k)
            bound += limit.at(level.error, look.residuals[k], size, level.width)
            share += limit.at(0.0, look.residuals[k], size, level.width)
        value = self.value(look, known)
        return Slope(value, gradient, bound, share, look.tolerances, look.finest, limit.coupling is None)

    def _known(self, known: dict[str, float]) -> ErrorBound:
        return ErrorBound(self.mu, known["outer"], known.get("hessian", 0.0), known.get("mixed", 0.0))

    def _coupling(self, look: Look, k: int) -> float:
        bound, level = look.bounds[k], look.levels[k]
        size, level.u = coupling(bound, level.y, look.seconds[k], bound.leaves, level.u)
        return size

    def _estimate(self, look: Look, upper: Upper, known: dict[str, float]) -> None:
        """The largest constants seen by now, those at this point among them."""

        def slope(flat: Tensor) -> Tensor:
            given = Given(self.inner, flat.split(len(self.inner.start)))
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


def _loss(upper: Upper, calls: Calls) -> Tensor:
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
