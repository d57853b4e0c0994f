"""An `nn.Sequential` as nested minimisations: affine maps, each followed by an activation f(a) = argmin_z G(z) - a'z."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bigrad.fenchel.base import AbstractFenchel
from bigrad.solution import CapabilityError

# Monotone with slopes of at most 1: gradients of smooth convex functions G*.
ACTIVATIONS = (
    AbstractFenchel,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.ReLU,
    nn.Sigmoid,
    nn.Softmax,
    nn.Softplus,
    nn.Tanh,
)
AFFINE = (
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.Flatten,
    nn.Identity,
    nn.Linear,
    nn.Unflatten,
)


@dataclass(frozen=True)
class Block:
    """a = affine(z of the layer below), z = f(a)."""

    affine: nn.Sequential
    f: Callable[[Tensor], Tensor]

    def __call__(self, below: Tensor) -> Tensor:
        """f(affine(z))."""
        return self.f(self.affine(below))

    def curvature(self, below: Tensor, rounds: int = 20) -> float:
        """About the squared norm of the linear map, by the power method from a fixed start; below: one layer's state."""
        with torch.no_grad():
            offset = self.affine(torch.zeros_like(below[:1]))
            v = torch.linspace(1, 2, below[:1].numel(), dtype=below.dtype, device=below.device).reshape(below[:1].shape)
            size = torch.ones((), dtype=below.dtype)
            for _ in range(rounds):
                v = v / v.norm().clamp(min=1e-30)
                v = back(self.affine, v, self.affine(v) - offset)
                size = v.norm()
        return float(size)


def split(net: nn.Module) -> list[Block]:
    """The blocks of a network; the last one may end without an activation.

    Raises CapabilityError for anything but an nn.Sequential of affine modules and monotone activations, with the index.
    """
    if not isinstance(net, nn.Sequential) or not len(net):
        raise CapabilityError(f"Contrastive rules need a non-empty nn.Sequential, got {type(net).__name__}.")
    blocks: list[Block] = []
    affine: list[nn.Module] = []
    for k, module in enumerate(net):
        if isinstance(module, ACTIVATIONS):
            if isinstance(module, nn.LeakyReLU) and not 0 <= module.negative_slope <= 1:
                raise CapabilityError(
                    f"Module {k}: a LeakyReLU's slope must lie in [0, 1], got {module.negative_slope}."
                )
            blocks.append(Block(nn.Sequential(*affine), _pure(module)))
            affine = []
        elif isinstance(module, AFFINE):
            affine.append(module)
        else:
            known = ", ".join(sorted(m.__name__ for m in (*AFFINE, *ACTIVATIONS)))
            raise CapabilityError(
                f"Module {k}, {type(module).__name__}, is neither affine nor a monotone activation: {known}."
            )
    return [*blocks, Block(nn.Sequential(*affine), nn.Identity())] if affine else blocks


def _pure(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The activation with its ordinary derivative, leaving its argument as it is."""
    if isinstance(module, AbstractFenchel):
        return module.activation
    if getattr(module, "inplace", False):
        return lambda a: module(a.clone())
    return module


def back(f: Callable[[Tensor], Tensor], z: Tensor, push: Tensor | None = None) -> Tensor:
    """The derivative of f at z, transposed, times push (None: f is a loss); without a graph."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        (found,) = torch.autograd.grad(f(leaf), leaf, push)
    return found
