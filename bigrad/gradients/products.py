"""Products with the second derivatives of a torch function g(x, y): H v, and the pull-back of q through d/dx of grad_y g."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bigrad.inner import ONCE, Bound, pulled
from bigrad.solution import InputError

if TYPE_CHECKING:
    from torch import Tensor

Grads = tuple["Tensor | None", ...]


@dataclass(frozen=True, eq=False)
class Second:
    """At one point: slope, grad_y g; hessian: v to H v; mixed: q to the gradient in the leaves of q'grad_y g."""

    slope: Tensor
    hessian: Callable[[Tensor], Tensor]
    mixed: Callable[[Tensor], Grads]


class AbstractProducts(ABC):
    """How the products are computed."""

    @abstractmethod
    def at(self, bound: Bound, y: Tensor, leaves: Sequence[Tensor], wanted: Sequence[bool]) -> Second:
        """The products at a flat y; the gradients in those leaves that are wanted."""


@dataclass(frozen=True)
class Exact(AbstractProducts):
    """By autograd, twice. The graph of one gradient is kept."""

    def at(self, bound: Bound, y: Tensor, leaves: Sequence[Tensor], wanted: Sequence[bool]) -> Second:
        """See AbstractProducts.at."""
        import torch

        y = y.detach().requires_grad_()
        fresh = tuple(t.detach().requires_grad_(w) for t, w in zip(leaves, wanted, strict=True))
        with torch.enable_grad():
            slope = bound.curved(y, fresh)

        def hessian(v: Tensor) -> Tensor:
            if not slope.requires_grad:
                return torch.zeros_like(v)
            product = _twice(lambda: torch.autograd.grad(slope, y, v, retain_graph=True, allow_unused=True)[0])
            return torch.zeros_like(v) if product is None else product

        def mixed(q: Tensor) -> Grads:
            found: Grads = _twice(lambda: pulled(slope, fresh, wanted, q, keep=True))
            return found

        return Second(slope.detach(), hessian, mixed)


def _twice(derive: Callable[[], Any]) -> Any:
    """A second derivative; InputError where torch has none."""
    try:
        return derive()
    except RuntimeError as error:
        raise InputError(ONCE.format(why=str(error)[:120])) from error


@dataclass(frozen=True)
class Differences(AbstractProducts):
    """By central differences of gradients: (grad(y + h v) - grad(y - h v)) / 2h. Pearlmutter 1994 names it; DARTS, ICLR 2019.

    For inner losses without second derivatives, such as those with custom kernels. share: |h v| relative to 1 + |y|; None
    is the cube root of the precision's epsilon. Relative errors are about its square, 4e-11 in float64; ask the linear
    solver for no more than that.
    """

    share: float | None = None

    def at(self, bound: Bound, y: Tensor, leaves: Sequence[Tensor], wanted: Sequence[bool]) -> Second:
        """See AbstractProducts.at."""
        import torch

        y = y.detach()
        share = float(torch.finfo(y.dtype).eps) ** (1 / 3) if self.share is None else self.share
        reach = share * (1 + float(y.norm()))

        def step(v: Tensor) -> float:
            size = float(v.norm())
            return reach / size if size else 1.0

        def hessian(v: Tensor) -> Tensor:
            h = step(v)
            return (bound.slope(y + h * v)[1] - bound.slope(y - h * v)[1]) / (2 * h)

        def mixed(q: Tensor) -> Grads:
            h = step(q)
            sides = [bound.partial(y + s * h * q, leaves, wanted) for s in (1.0, -1.0)]
            return tuple(None if a is None or b is None else (a - b) / (2 * h) for a, b in zip(*sides, strict=True))

        return Second(bound.slope(y)[1], hessian, mixed)
