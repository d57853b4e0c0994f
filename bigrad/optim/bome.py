"""BOME: bilevel optimisation by first derivatives only. Liu, Ye, Wright, Stone and Liu, NeurIPS 2022, arXiv 2209.08709;
steps and constants as in the authors' code (github.com/Cranial-XIX/BOME).

    min f(x, y)  such that  q(x, y) = g(x, y) - min_y' g(x, y') <= 0

The minimum over y' is a few gradient steps from y, and its derivative in x is that of g alone (Danskin), so nothing is
differentiated twice and nothing is unrolled. Memory: that of one backward pass of f or g, and a few copies of x and y.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigrad.optim.options import positive
from bigrad.solution import InputError

Closure = Callable[[], Tensor]
Parameters = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class AbstractDecrease(ABC):
    """phi: how fast q must fall along the step, <grad q, d> >= phi."""

    @abstractmethod
    def __call__(self, gap: Tensor, squared: Tensor) -> Tensor:
        """phi, 0-dim, of q and |grad q|^2 + epsilon, both 0-dim."""


@dataclass(frozen=True)
class GapGradient(AbstractDecrease):
    """phi = eta |grad q|^2, the paper's choice: then lambda = max(eta - <grad f, grad q> / |grad q|^2, 0). eta > 0."""

    eta: float = 0.5

    def __post_init__(self) -> None:
        positive("GapGradient", eta=self.eta)

    def __call__(self, gap: Tensor, squared: Tensor) -> Tensor:
        """See AbstractDecrease."""
        return self.eta * squared


@dataclass(frozen=True)
class GapValue(AbstractDecrease):
    """phi = eta q, as the authors take it for data hyper-cleaning; its scale is the loss's, so eta wants a search. eta > 0."""

    eta: float = 0.5

    def __post_init__(self) -> None:
        positive("GapValue", eta=self.eta)

    def __call__(self, gap: Tensor, squared: Tensor) -> Tensor:
        """See AbstractDecrease."""
        return self.eta * gap


@dataclass(frozen=True)
class Taken:
    """What `BOME.step` saw before it moved, 0-dim tensors without a graph.

    upper, lower: the losses f and g. gap: q, negative where the inner steps made g grow (`inner_lr` is then too large).
    multiplier: lambda. stationarity: |grad f + lambda grad q|^2 + q, which is 0 at a solution.
    """

    upper: Tensor
    lower: Tensor
    gap: Tensor
    multiplier: Tensor
    stationarity: Tensor


class BOME(torch.optim.Optimizer):
    """A bilevel learning problem with lower levels of any size, by gradients of the two losses alone.

        optimiser = BOME([weights], model.parameters(), lr=0.1, steps=10)
        optimiser.step(lambda: validation(model), lambda: training(model, weights))

    One step, from x (upper) and y (lower):

        y_0 = y,  y_{t+1} = y_t - inner_lr grad_y g(x, y_t),  t < steps
        q = g(x, y) - g(x, y_T)
        grad q = (grad_x g(x, y) - grad_x g(x, y_T),  grad_y g(x, y))
        lambda = max((phi - <grad f, grad q>) / |grad q|^2, 0),  to every |grad q|^2 here and in phi epsilon is added
        (x, y) <- (x, y) - lr (grad f + lambda grad q)

    Choose it where second derivatives are dear or missing. It finds points where grad f + lambda grad q = 0 and q = 0,
    with a small gap left that shrinks with lr; implicit gradients are more precise where they can be had.

    upper_params, lower_params: tensors, (name, tensor) pairs or parameter groups, of any shape and real dtype. Options of a
    group: lr > 0; inner_lr > 0, of lower groups, None for the group's lr; momentum in [0, 1), heavy ball on the outer step
    alone. phi: `GapGradient(eta)` or `GapValue(eta)`. steps: T >= 1. epsilon > 0. Learning-rate schedulers
    and `state_dict` work as with any torch optimiser; phi, steps and epsilon are the constructor's and not in the state.

    `zero_grad` and `backward` are not needed: `.grad` is neither read nor written. Parameters that do not require a
    gradient stay. Constraints on parameters: project them after the step, under `torch.no_grad()`.

    Raises InputError for options out of range, and for a parameter in both levels.
    """

    def __init__(
        self,
        upper_params: Parameters,
        lower_params: Parameters,
        *,
        lr: float = 0.01,
        inner_lr: float | None = None,
        momentum: float = 0.0,
        steps: int = 10,
        phi: AbstractDecrease | None = None,
        epsilon: float = 1e-8,
    ):
        if phi is not None and not isinstance(phi, AbstractDecrease):
            raise InputError(f"BOME(phi={phi!r}): give an object, bigrad.GapGradient(eta) or bigrad.GapValue(eta).")
        if not isinstance(steps, int) or steps < 1:
            raise InputError(
                f"BOME(steps={steps!r}): give the number of inner gradient steps, a whole number from 1 on."
            )
        positive("BOME", epsilon=epsilon)
        self.phi = GapGradient() if phi is None else phi
        self.steps = steps
        self.epsilon = epsilon
        groups = _groups(upper_params, "upper") + _groups(lower_params, "lower")
        super().__init__(groups, {"lr": lr, "inner_lr": inner_lr, "momentum": momentum})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters later: `{"params": …, "level": "upper"}` or `"lower"`, with options of their own."""
        group = self.defaults | param_group
        if group.get("level") not in ("upper", "lower"):
            raise InputError(
                f'A parameter group of BOME says its level, "upper" or "lower"; got {group.get("level")!r}.'
            )
        positive("BOME", lr=group["lr"])
        if group["inner_lr"] is not None:
            positive("BOME", inner_lr=group["inner_lr"])
        if not 0 <= group["momentum"] < 1:
            raise InputError(f"BOME(momentum={group['momentum']!r}): give a number in [0, 1).")
        given = group["params"]
        entries = [given] if isinstance(given, Tensor) else list(given)
        tensors = [e[1] if isinstance(e, tuple) else e for e in entries]
        known = {id(p) for g in self.param_groups for p in g["params"]}
        for k, p in enumerate(tensors):
            if id(p) in known:
                raise InputError(
                    f"BOME: parameter {k} of the {group['level']} level, of shape {tuple(p.shape)}, is there already."
                )
            if isinstance(p, Tensor) and not p.is_floating_point():
                raise InputError(
                    f"BOME: parameter {k} of the {group['level']} level is of {p.dtype}; needs a real floating dtype."
                )
        super().add_param_group(param_group | {"params": entries})

    @torch.no_grad()
    def step(self, upper_closure: Closure, lower_closure: Closure) -> Taken:  # type: ignore[override]
        """One step of both levels' parameters.

        upper_closure, lower_closure: no arguments, return the 0-dim loss with its graph; they do not call `backward`.
        The lower one is called steps + 1 times, the upper one once; within a step they must be the same functions, so
        draw a minibatch before the step, not in the closure, and switch dropout off.

        Raises InputError if a loss is not a scalar, not finite, or does not depend on the parameters (the upper one on
        those of the lower level, the lower one on those of both); parameters are then as before the step.
        """
        upper, lower = self._of("upper"), self._of("lower")
        x, y = [p for p, _ in upper], [p for p, _ in lower]
        f, f_slopes = _evaluate("upper_closure", upper_closure, {"lower": y}, {"upper": x})
        g, g_slopes = _evaluate("lower_closure", lower_closure, {"lower": y, "upper": x}, {})
        fy, fx, gy, gx = *f_slopes, *g_slopes
        g_after, gx_after = self._inner(lower_closure, lower, x, gy)
        qx = [a - b for a, b in zip(gx, gx_after, strict=True)]
        gap, squared = g - g_after, _dot(qx + gy, qx + gy) + self.epsilon
        multiplier = ((self.phi(gap, squared) - _dot(fx + fy, qx + gy)) / squared).clamp(min=0)
        move = [a + multiplier.to(a) * b for a, b in zip(fx + fy, qx + gy, strict=True)]
        stationarity = _dot(move, move) + gap
        if not stationarity.isfinite():
            raise InputError(
                "BOME.step: a gradient is NaN or infinite though both losses are finite; parameters are as before."
            )
        for (p, group), d in zip(upper + lower, move, strict=True):
            p.sub_(group["lr"] * self._with_momentum(p, d, group["momentum"]))
        return Taken(f, g, gap, multiplier, stationarity)

    def _of(self, level: str) -> list[tuple[Tensor, dict[str, Any]]]:
        """The parameters of a level that move, each with its group."""
        found = [(p, g) for g in self.param_groups if g["level"] == level for p in g["params"] if p.requires_grad]
        if not found:
            raise InputError(f"BOME.step: no parameter of the {level} level requires a gradient.")
        return found

    def _inner(
        self, closure: Closure, lower: list[tuple[Tensor, dict[str, Any]]], x: list[Tensor], slopes: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """g and its gradient in x after the inner steps, the first of which goes down `slopes`; y is put back."""
        y = [p for p, _ in lower]
        rates = [g["lr"] if g["inner_lr"] is None else g["inner_lr"] for _, g in lower]
        before = [p.clone() for p in y]
        where = f" after {self.steps} inner steps at rates {sorted({float(r) for r in rates})} (is inner_lr too large?)"
        try:
            for t in range(self.steps):
                for p, d, rate in zip(y, slopes, rates, strict=True):
                    p.sub_(rate * d)
                if t + 1 < self.steps:
                    _, (slopes,) = _evaluate("lower_closure", closure, {"lower": y}, {}, where)
            value, (gx,) = _evaluate("lower_closure", closure, {"upper": x}, {}, where)
        finally:
            for p, old in zip(y, before, strict=True):
                p.copy_(old)
        return value, gx

    def _with_momentum(self, p: Tensor, move: Tensor, momentum: float) -> Tensor:
        if not momentum:
            return move
        state = self.state[p]
        state["momentum_buffer"] = momentum * state["momentum_buffer"] + move if "momentum_buffer" in state else move
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _groups(params: Parameters, level: str) -> list[dict[str, Any]]:
    """The parameter groups of a level, each marked with it."""
    if isinstance(params, Tensor | dict):
        raise InputError(f"BOME({level}_params=…): give a list of tensors or of parameter groups, not one alone.")
    entries = list(params)
    if not entries:
        raise InputError(f"BOME({level}_params=…): there are no parameters; a generator that was read before is empty.")
    if all(isinstance(e, dict) for e in entries):
        return [{**e, "level": level} for e in entries]  # type: ignore[dict-item]
    return [{"params": entries, "level": level}]


def _evaluate(
    name: str, closure: Closure, needed: dict[str, list[Tensor]], optional: dict[str, list[Tensor]], where: str = ""
) -> tuple[Tensor, list[list[Tensor]]]:
    """The value of a closure, detached, and its gradients by level, first the needed ones; zeros where unused."""
    with torch.enable_grad():
        value = closure()
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
        shape = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"BOME.step: {name} returned {shape}; needs a scalar tensor, the loss.")
    if not value.isfinite().all():
        raise InputError(f"BOME.step: {name} returned {value.item()}{where}. Parameters are as before the step.")
    if not value.requires_grad:
        raise InputError(f"BOME.step: {name} returned a loss without a graph; is it detached, or under no_grad?")
    levels = needed | optional
    try:
        flat = torch.autograd.grad(value, [p for ps in levels.values() for p in ps], allow_unused=True)
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise InputError(f"BOME.step: {name} calls backward; it should only return the loss.") from error
    rest, slopes = iter(flat), []
    for level, params in levels.items():
        own = [next(rest) for _ in params]
        if level in needed and all(d is None for d in own):
            raise InputError(
                f"BOME.step: {name} does not depend on any parameter of the {level} level that it was given."
            )
        slopes.append([torch.zeros_like(p) if d is None else d.to_dense() for p, d in zip(params, own, strict=True)])
    return value.detach().reshape(()), slopes


def _dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """The inner product of two lists of tensors, in at least single precision, on the first one's device."""
    kind = torch.promote_types(a[0].dtype, torch.float32)
    parts = [torch.dot(u.flatten().to(kind), v.flatten().to(kind)) for u, v in zip(a, b, strict=True)]
    return torch.stack([p.to(parts[0].device) for p in parts]).sum()
