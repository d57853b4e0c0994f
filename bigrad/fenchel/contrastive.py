"""Training rules that contrast two states of a network. After Zach, "Bilevel programs meet deep learning",
arXiv 2105.07231: one reformulation, applied to a nested program in different orders.

A network is z_k = argmin_z E_k(z, z_{k-1}), k = 1 … L, with E_k = G_k(z_k) - z_k'a_k, a_k = W_k z_{k-1} + b_k, and a loss
l(z_L). The reformulation puts a minimisation into the objective as a penalty on its gap,

    min l(z) with z = argmin E   ->   J = min_z (l(z) + E(z) / beta) - min_z E(z) / beta

whose gradient is the explicit one in E at the two minimisers (the envelope theorem). Applied from the outermost layer
inwards it contrasts two states of the whole network (ContrastiveHebbian), from the innermost outwards each layer's with the
minimum of its own energy (Lifted; AuxiliaryCoordinates with E_k = |z_k - f_k(a_k)|^2 / 2, whose minimum is 0). As beta -> 0
all three are back-propagation, with an error of O(beta).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bigrad.fenchel.layers import Block, back, split
from bigrad.solution import InputError

Criterion = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Settled:
    """A state of the network, z_1 … z_L; the sweeps it took; the last change, in units of each layer's step."""

    states: list[Tensor]
    sweeps: int
    change: float


@dataclass(frozen=True)
class AbstractContrastive(ABC):
    """A training rule of an ordinary nn.Sequential: `rule(net, x, criterion).backward()` fills `.grad`.

    net: affine modules (linear, convolutions, average pooling, reshaping) and monotone activations (torch's ReLU,
    LeakyReLU, Hardtanh, Hardsigmoid, Tanh, Sigmoid, Softmax, Softplus; Fenchel modules, whose own beta then does not
    count). x: its input, the batch leading. criterion: from the output to the 0-dim loss; convex for `nudged` to be sure
    to settle. The value returned is the loss of the ordinary forward pass, its backward pass the rule's gradient for
    the parameters (none for x).

    beta > 0: the step, as with Fenchel modules relative to the loss's scale. sweeps: at most so many passes over the
    layers; stopping early is allowed and makes the gradient less exact. tolerance: stop where a sweep changes the states
    by less, in units of the step. smoothness: a bound on the criterion's curvature in the output (1 is enough for
    cross-entropy and for half the squared error, summed or averaged); a smaller one may not settle.

    Raises InputError for bad options and a criterion that is not a finite scalar, CapabilityError for other networks.
    """

    beta: float = 0.1
    sweeps: int = field(default=100, kw_only=True)
    tolerance: float = field(default=1e-6, kw_only=True)
    smoothness: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("beta", "tolerance", "smoothness", "sweeps"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"{type(self).__name__}({name}={value!r}): give a positive, finite number.")

    @abstractmethod
    def pull(self, above: Block, z: Tensor, higher: Tensor) -> Tensor:
        """What the layer above adds to the gradient in z, in units of this layer's 1 / beta."""

    @abstractmethod
    def surrogate(self, blocks: list[Block], x: Tensor, nudged: list[Tensor], free: list[Tensor]) -> Tensor:
        """A 0-dim tensor whose gradient in the parameters is the rule's."""

    def scales(self, depth: int) -> list[float]:
        """How large the nudge of each layer's state is; tolerances are relative to it. Beta for all."""
        return [self.beta] * depth

    def start(self, block: Block, a: Tensor) -> Tensor:
        """What the rule moves, at the forward pass: the dual state h = a of z = f(h)."""
        return a

    def moved(self, block: Block, a: Tensor, g: Tensor, h: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """What start made, moved along the gradient g of all but this layer's energy; and the state z. By a Bregman
        proximal step: h + rate (a - g - h), the step on the Bregman distance of G, and f of it."""
        h = h + rate * (a - g - h)
        return h, block.f(h)

    def rate(self, above: Block, z: Tensor) -> float:
        """The step in (0, 1] that the layer above allows: 1 / (1 + |W|^2), from its curvature."""
        return 1 / (1 + above.curvature(z))

    @torch.no_grad()
    def free(self, net: nn.Sequential, x: Tensor) -> Settled:
        """The state without the loss: the forward pass, where no layer speaks to the one below."""
        return Settled(_forward(split(net), x), 0, 0.0)

    def nudged(self, net: nn.Sequential, x: Tensor, criterion: Criterion) -> Settled:
        """The state with the loss."""
        return self._settle(split(net), x, criterion)

    def __call__(self, net: nn.Sequential, x: Tensor, criterion: Criterion) -> Tensor:
        """The loss, with the rule's gradient."""
        blocks = split(net)
        with torch.no_grad():
            loss = criterion(net(x))
        if not isinstance(loss, Tensor) or loss.ndim or not loss.isfinite():
            given = f"{loss}" if isinstance(loss, Tensor) and not loss.ndim else f"{getattr(loss, 'shape', type(loss))}"
            raise InputError(f"{type(self).__name__}: the criterion must return a finite 0-dim tensor, got {given}.")
        x = x.detach()
        found = self.surrogate(blocks, x, self.nudged(net, x, criterion).states, self.free(net, x).states)
        return loss + (found - found.detach())

    @torch.no_grad()
    def _settle(self, blocks: list[Block], x: Tensor, criterion: Criterion | None) -> Settled:
        """Sweep from the last layer to the first and back, each layer by a step that its curvature allows."""
        z, h = _forward(blocks, x), []
        for block, below in zip(blocks, [x, *z], strict=False):
            h.append(self.start(block, block.affine(below)))
        last, scales = len(blocks) - 1, self.scales(len(blocks))
        rates = [self.rate(block, s) for block, s in zip(blocks[1:], z, strict=False)]
        rates.append(1 / (1 + self.beta * self.smoothness))
        order = [*range(last, -1, -1), *range(1, last)]
        change, sweep = math.inf, 0
        while sweep < self.sweeps and change > self.tolerance:
            sweep, change = sweep + 1, 0.0
            for k in order:
                if k < last:
                    g = self.pull(blocks[k + 1], z[k], z[k + 1])
                else:
                    g = torch.zeros_like(z[k]) if criterion is None else self.beta * back(criterion, z[k])
                old, a = h[k], blocks[k].affine(z[k - 1] if k else x)
                h[k], z[k] = self.moved(blocks[k], a, g, old, rates[k])
                change = max(change, float((h[k] - old).abs().max()) / scales[k])
        return Settled(z, sweep, change)


@dataclass(frozen=True)
class Lifted(AbstractContrastive):
    """Lifted network with local contrasts, the Fenchel-Young gaps of the layers:

        J = min_z l(z_L) + sum_k (G_k(z_k) - z_k'a_k + G_k*(a_k)) / beta        dJ/da_k = (f_k(a_k) - z_k) / beta

    LPOM-like; J is smooth where activations are not, and each step of settling makes it smaller. The first to try.
    beta, sweeps, tolerance, smoothness: as AbstractContrastive has them.
    """

    def pull(self, above: Block, z: Tensor, higher: Tensor) -> Tensor:
        """W'(f(a) - z) of the layer above."""
        return back(above.affine, z, above(z) - higher)

    def surrogate(self, blocks: list[Block], x: Tensor, nudged: list[Tensor], free: list[Tensor]) -> Tensor:
        """See AbstractContrastive.surrogate."""
        parts = []
        for block, below, z in zip(blocks, [x, *nudged], nudged, strict=False):
            a = block.affine(below)
            parts.append(((block.f(a).detach() - z) * a).sum() / self.beta)
        return torch.stack(parts).sum()


@dataclass(frozen=True)
class AuxiliaryCoordinates(AbstractContrastive):
    """The method of auxiliary coordinates, a quadratic penalty on each layer's equation; predictive coding has the same energy.

        J = min_z l(z_L) + sum_k |z_k - f_k(a_k)|^2 / (2 beta)

    Carreira-Perpiñán and Wang, AISTATS 2014. Not convex in z_k; a unit on a flat side of f learns nothing.
    beta, sweeps, tolerance, smoothness: as AbstractContrastive has them.
    """

    def pull(self, above: Block, z: Tensor, higher: Tensor) -> Tensor:
        """The derivative of the layer above, transposed, times f(a) - z."""
        return back(above, z, above(z) - higher)

    def start(self, block: Block, a: Tensor) -> Tensor:
        """The states themselves: there is no potential."""
        return block.f(a)

    def moved(self, block: Block, a: Tensor, g: Tensor, h: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """A gradient step on the two terms with this layer's state."""
        h = h + rate * (block.f(a) - g - h)
        return h, h

    def surrogate(self, blocks: list[Block], x: Tensor, nudged: list[Tensor], free: list[Tensor]) -> Tensor:
        """See AbstractContrastive.surrogate."""
        parts = [
            (z - block(below)).square().sum() / (2 * self.beta)
            for block, below, z in zip(blocks, [x, *nudged], nudged, strict=False)
        ]
        return torch.stack(parts).sum()


@dataclass(frozen=True)
class ContrastiveHebbian(AbstractContrastive):
    """Contrastive Hebbian learning, equilibrium propagation on the layered energy: both states settle with feedback.

        E = sum_k (G_k(z_k) - z_k'a_k) / beta^(L - k + 1)        dJ/da_k = (z_k free - z_k nudged) / beta^(L - k + 1)

    Xie and Seung, Neural Computation 2003; Scellier and Bengio, 2017. Feedback is discounted by beta from layer to layer.
    Nudges are of the size beta^L at the first layer: float64, or few layers. Large weights times beta may not settle.
    beta, sweeps, tolerance, smoothness: as AbstractContrastive has them.
    """

    def rate(self, above: Block, z: Tensor) -> float:
        """1: the energy is linear in the layer above."""
        return 1.0

    def pull(self, above: Block, z: Tensor, higher: Tensor) -> Tensor:
        """-beta W'z of the layer above."""
        return -self.beta * back(above.affine, z, higher)

    def free(self, net: nn.Sequential, x: Tensor) -> Settled:
        """The minimum of the energy, where the layers above speak too."""
        return self._settle(split(net), x, None)

    def surrogate(self, blocks: list[Block], x: Tensor, nudged: list[Tensor], free: list[Tensor]) -> Tensor:
        """See AbstractContrastive.surrogate."""
        parts = []
        for k, scale in enumerate(self.scales(len(blocks))):
            affine = blocks[k].affine
            ahead, behind = (affine(states[k - 1] if k else x) for states in (nudged, free))
            parts.append(((free[k] * behind).sum() - (nudged[k] * ahead).sum()) / scale)
        return torch.stack(parts).sum()

    def scales(self, depth: int) -> list[float]:
        """Beta^(L - k + 1)."""
        return [self.beta ** (depth - k) for k in range(depth)]


def _forward(blocks: list[Block], x: Tensor) -> list[Tensor]:
    """The states of the ordinary forward pass."""
    states: list[Tensor] = []
    for block in blocks:
        states.append(block(states[-1] if states else x))
    return states
