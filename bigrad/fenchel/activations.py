"""The activations of Fenchel back-propagation, with the potentials G whose minimisers they are (see `fenchel.base`).

| module                | f(a)                         | G(z)                                              |
|-----------------------|------------------------------|---------------------------------------------------|
| FenchelReLU           | max(a, 0)                    | z^2/2 on z >= 0                                   |
| FenchelLeakyReLU      | max(a, slope a)              | z^2/2 where z >= 0, z^2/(2 slope) where z < 0     |
| FenchelHardtanh       | a clipped to [low, high]     | z^2/2 on the interval                             |
| FenchelHardsigmoid    | slope a + 1/2 clipped to [0, 1] | (z - 1/2)^2/(2 slope) on [0, 1]                |
| FenchelTanh           | tanh a                       | ((1 + z) log(1 + z) + (1 - z) log(1 - z))/2       |
| FenchelSigmoid        | 1/(1 + exp(-a))              | z log z + (1 - z) log(1 - z)                      |
| FenchelSoftmax        | exp(a)/sum exp(a)            | sum z log z on the simplex                        |

G must be convex, hence f monotone: GELU and SiLU have no such form. Differences of the smooth ones are written so that
small steps lose no digits: tanh a - tanh b = tanh(a - b) (1 - tanh a tanh b).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bigrad.fenchel.base import AbstractFenchel
from bigrad.solution import InputError


class FenchelReLU(AbstractFenchel):
    """For nn.ReLU. Backward: min(g, z / beta) where a >= 0, else min(g - a / beta, 0); so a unit at rest can be woken.

    The paper's unit: the target is never negative. At a = 0 exactly, torch's own derivative is 0; this is min(g, 0).
    """

    def activation(self, a: Tensor) -> Tensor:
        """See AbstractFenchel.activation."""
        return a.relu()

    def difference(self, a: Tensor, push: Tensor, beta: float) -> Tensor:
        """See AbstractFenchel.difference."""
        return _clipped(a, push, beta, 0.0, math.inf)


class FenchelLeakyReLU(AbstractFenchel):
    """For nn.LeakyReLU. slope in [0, 1]: of the negative side. Backward: slope g + (1 - slope) times that of FenchelReLU.

    beta: the step.
    """

    def __init__(self, beta: float = 1.0, slope: float = 0.01):
        super().__init__(beta)
        if not 0 <= slope <= 1:
            raise InputError(f"FenchelLeakyReLU(slope={slope!r}): give a number in [0, 1].")
        self.slope = float(slope)

    def activation(self, a: Tensor) -> Tensor:
        """See AbstractFenchel.activation."""
        return torch.nn.functional.leaky_relu(a, self.slope)

    def difference(self, a: Tensor, push: Tensor, beta: float) -> Tensor:
        """See AbstractFenchel.difference."""
        return push * self.slope + (1 - self.slope) * _clipped(a, push, beta, 0.0, math.inf)

    def extra_repr(self) -> str:
        """For torch's printing of modules."""
        return f"{super().extra_repr()}, slope={self.slope:g}"


class FenchelHardtanh(AbstractFenchel):
    """For nn.Hardtanh. beta: the step. low < high: the interval. With (0, 1) it is the paper's hard sigmoid, the clipped identity."""

    def __init__(self, beta: float = 1.0, low: float = -1.0, high: float = 1.0):
        super().__init__(beta)
        if not low < high:
            raise InputError(f"FenchelHardtanh(low={low!r}, high={high!r}): low must be below high.")
        self.low, self.high = float(low), float(high)

    def activation(self, a: Tensor) -> Tensor:
        """See AbstractFenchel.activation."""
        return a.clamp(self.low, self.high)

    def difference(self, a: Tensor, push: Tensor, beta: float) -> Tensor:
        """See AbstractFenchel.difference."""
        return _clipped(a, push, beta, self.low, self.high)

    def extra_repr(self) -> str:
        """For torch's printing of modules."""
        return f"{super().extra_repr()}, low={self.low:g}, high={self.high:g}"


class FenchelHardsigmoid(AbstractFenchel):
    """For nn.Hardsigmoid, whose slope is 1/6. beta: the step. slope > 0."""

    def __init__(self, beta: float = 1.0, slope: float = 1 / 6):
        super().__init__(beta)
        if not (slope > 0 and math.isfinite(slope)):
            raise InputError(f"FenchelHardsigmoid(slope={slope!r}): give a positive, finite number.")
        self.slope = float(slope)

    def activation(self, a: Tensor) -> Tensor:
        """See AbstractFenchel.activation."""
        return (self.slope * a + 0.5).clamp(0, 1)

    def difference(self, a: Tensor, push: Tensor, beta: float) -> Tensor:
        """See AbstractFenchel.difference."""
        return self.slope * _clipped(self.slope * a + 0.5, push, self.slope * beta, 0.0, 1.0)

    def extra_repr(self) -> str:
        """For torch's printing of modules."""
        return f"{super().extra_repr()}, slope={self.slope:g}"


class FenchelTanh(AbstractFenchel):
    """For nn.Tanh. beta: the step. Backward: tanh(beta g) (1 - z target) / beta; targets lie in (-1, 1)."""

    def activation(self, a: Tensor) -> Tensor:
        """See AbstractFenchel.activation."""
        return a.tanh()

    def difference(self, a: Tensor, push: Tensor, beta: float) -> Tensor:
        """See AbstractFenchel.difference."""
        step = beta * push
        return step.tanh() / beta * (1 - a.tanh() * (a - step).tanh())


class FenchelSigmoid(AbstractFenchel):
    """For nn.Sigmoid, (1 + tanh(a / 2)) / 2; targets lie in (0, 1). beta: the step."""

    def activation(self, a: Tensor) -> Tensor:
        """See AbstractFenchel.activation."""
        return a.sigmoid()

    def difference(self, a: Tensor, push: Tensor, beta: float) -> Tensor:
        """See AbstractFenchel.difference."""
        step = beta * push
        return (step / 2).tanh() / (2 * beta) * (1 - (a / 2).tanh() * ((a - step) / 2).tanh())


class FenchelSoftmax(AbstractFenchel):
    """For nn.Softmax over dimension dim; targets lie in the simplex: target_i is proportional to z_i exp(-beta g_i)."""

    def __init__(self, beta: float = 1.0, dim: int = -1):
        super().__init__(beta)
        self.dim = dim

    def activation(self, a: Tensor) -> Tensor:
        """See AbstractFenchel.activation."""
        return a.softmax(self.dim)

    def difference(self, a: Tensor, push: Tensor, beta: float) -> Tensor:
        """See AbstractFenchel.difference."""
        z = a.softmax(self.dim)
        step = beta * (push - (z * push).sum(self.dim, keepdim=True))  # a constant added to push changes nothing
        small = step.abs().amax(self.dim, keepdim=True) < 1
        shrink = torch.expm1(-step.clamp(-1, 1))
        mean = (z * shrink).sum(self.dim, keepdim=True)
        near = z * (mean - shrink) / (1 + mean)
        return torch.where(small, near, z - (a - step).softmax(self.dim)) / beta

    def extra_repr(self) -> str:
        """For torch's printing of modules."""
        return f"{super().extra_repr()}, dim={self.dim}"


def _clipped(a: Tensor, push: Tensor, beta: float, low: float, high: float) -> Tensor:
    """(clip(a) - clip(a - beta push)) / beta; exactly push where neither a nor the target leaves the interval."""
    z = a.clamp(low, high)
    return (push - (a - z) / beta).clamp((z - high) / beta, (z - low) / beta)
