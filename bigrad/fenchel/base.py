"""Fenchel back-propagation: finite targets instead of derivatives. After Zach, "Bilevel programs meet deep learning",
arXiv 2105.07231.

An activation is a small convex program, f(a) = argmin_z G(z) - a'z, with the inverse map of G's gradient. Back-propagation
hands it dl/dz = g; instead of the derivative, the backward pass takes the whole step to the target, the minimiser after the
loss, linearised at z, is added with weight beta:

    z = f(a)      target = argmin_z G(z) - a'z + beta g'z = f(a - beta g)      dl/da ~ (z - target) / beta

Targets of all layers follow by the ordinary backward pass: the layer below receives g_k = W'(z - target) / beta, each
layer has its own beta. As beta -> 0 this is back-propagation; where f is linear between a and a - beta g (no kink is
crossed) it is back-propagation at any beta. Unlike a derivative it is not zero on a flat side if the step leaves it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from bigrad.solution import InputError


class AbstractFenchel(nn.Module, ABC):
    """An activation with a finite target in the backward pass; takes the place of torch's own in an `nn.Sequential`.

    beta > 0: the step, an attribute that may be changed between calls. What counts is beta times the gradient that arrives:
    where the loss is a mean over n items, an item's gradient is 1/n of its own, and beta = n steps as far as 1 does for a
    sum. Input: any shape and real floating dtype; output: the same. The backward pass has no derivative of its own; a
    second one raises NotImplementedError. Raises InputError for beta out of range or an input that is not real and floating.
    """

    def __init__(self, beta: float = 1.0):
        super().__init__()
        self.beta = beta

    @property
    def beta(self) -> float:
        """The step."""
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        """Set the step."""
        if not (float(value) > 0 and math.isfinite(float(value))):
            raise InputError(f"{type(self).__name__}(beta={value!r}): give a positive, finite number.")
        self._beta = float(value)

    @abstractmethod
    def activation(self, a: Tensor) -> Tensor:
        """f(a), of a's shape; autograd's derivative of it is the limit beta -> 0."""

    @abstractmethod
    def difference(self, a: Tensor, push: Tensor, beta: float) -> Tensor:
        """(f(a) - f(a - beta push)) / beta, without subtracting nearly equal numbers; all of a's shape."""

    def forward(self, a: Tensor) -> Tensor:
        """The activation."""
        if not isinstance(a, Tensor) or not a.is_floating_point():
            kind = a.dtype if isinstance(a, Tensor) else type(a).__name__
            raise InputError(f"{type(self).__name__}: needs a real floating tensor, got {kind}.")
        return _ToTarget.apply(a, self, self.beta)

    def extra_repr(self) -> str:
        """For torch's printing of modules."""
        return f"beta={self.beta:g}"


class _ToTarget(torch.autograd.Function):
    """f forward, the finite-target rule backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, module: AbstractFenchel, beta: float) -> Tensor:
        return module.activation(a)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, ctx.module, ctx.beta = inputs
        ctx.save_for_backward(a)

    @staticmethod
    def backward(ctx: Any, push: Tensor) -> tuple[Tensor, None, None]:
        (a,) = ctx.saved_tensors
        with torch.no_grad():
            found = ctx.module.difference(a, push, ctx.beta)
        return (_Final.apply(found, a, push) if torch.is_grad_enabled() else found), None, None


class _Final(torch.autograd.Function):
    """What the finite-target rule returns under create_graph=True: a tensor that depends on a and push, not differentiably."""

    generate_vmap_rule = True

    @staticmethod
    def forward(found: Tensor, a: Tensor, push: Tensor) -> Tensor:
        return found.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, push: Tensor) -> None:
        raise NotImplementedError("A finite target has no derivative; a second one is asked of a Fenchel activation.")
