"""Sets that a lower level written in torch may be kept in, by projection, and what their boundary does to derivatives.

At a solution y of min g over the set, the answer moves along the face that it lies on: with T the projector onto that
face's directions and c the curvature of the boundary times its multiplier,

    T (H + c) T dy = - T B dtheta.

A set whose face has no such T is given as a plain function, a projection; its derivative is then torch's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bigrad.solution import DeclarationError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ON_BOUNDARY = 1e-9
"""A point this close to a sphere, relative to its radius, lies on it; or four roundings of its precision, if that is more."""


class AbstractSet(ABC):
    """A closed convex set of tensors of one shape."""

    @abstractmethod
    def project(self, y: Tensor) -> Tensor:
        """The nearest point of the set; differentiable."""

    @abstractmethod
    def along(self, y: Tensor, slope: Tensor, v: Tensor) -> Tensor:
        """T v: the part of a direction that stays on the face of a solution y, where the gradient of g is `slope`."""

    @abstractmethod
    def curvature(self, y: Tensor, slope: Tensor) -> float:
        """c, zero for flat faces."""


@dataclass(frozen=True, eq=False)
class Box(AbstractSet):
    """lower <= y <= upper, entry by entry; numbers or tensors that broadcast to y, infinite where there is no bound.

    A bound that holds with a multiplier of zero counts as inactive.
    """

    lower: Any = float("-inf")
    upper: Any = float("inf")

    def __post_init__(self) -> None:
        import torch

        if not bool((torch.as_tensor(self.lower) <= torch.as_tensor(self.upper)).all()):
            raise DeclarationError(f"{self}: lower must not be above upper, nor either be NaN.")

    def fits(self, shape: torch.Size) -> bool:
        """Whether the bounds broadcast to tensors of this shape."""
        import torch

        try:
            sizes = [torch.as_tensor(bound).shape for bound in (self.lower, self.upper)]
            return torch.broadcast_shapes(*sizes, shape) == shape
        except RuntimeError:
            return False

    def project(self, y: Tensor) -> Tensor:
        """Entries clipped."""
        import torch

        lower, upper = (torch.as_tensor(b, dtype=y.dtype, device=y.device) for b in (self.lower, self.upper))
        return torch.minimum(torch.maximum(y, lower), upper)

    def along(self, y: Tensor, slope: Tensor, v: Tensor) -> Tensor:
        """Zero where a bound holds y against the gradient."""
        held = ((y <= self.lower) & (slope > 0)) | ((y >= self.upper) & (slope < 0))
        return v.masked_fill(held, 0.0)

    def curvature(self, y: Tensor, slope: Tensor) -> float:
        """0."""
        return 0.0


@dataclass(frozen=True)
class Simplex(AbstractSet):
    """y >= 0 with sum y = total, along the last dimension; any dimensions before it are so many simplices. The projection
    sorts: Duchi et al., ICML 2008."""

    total: float = 1.0

    def __post_init__(self) -> None:
        if not self.total > 0:
            raise DeclarationError(f"{self}: total must be positive.")

    def project(self, y: Tensor) -> Tensor:
        """max(y - level, 0) with the level that makes the sum right."""
        import torch

        falling = y.sort(-1, descending=True).values
        count = torch.arange(1, y.shape[-1] + 1, dtype=y.dtype, device=y.device)
        levels = (falling.cumsum(-1) - self.total) / count
        last = ((falling > levels).sum(-1, keepdim=True) - 1).clamp(min=0)  # below only for NaN, which goes on
        return (y - levels.gather(-1, last)).clamp(min=0.0)

    def along(self, y: Tensor, slope: Tensor, v: Tensor) -> Tensor:
        """Entries at zero stay, the others keep their sum."""
        free = y > 0
        mean = (v * free).sum(-1, keepdim=True) / free.sum(-1, keepdim=True)
        return (v - mean) * free

    def curvature(self, y: Tensor, slope: Tensor) -> float:
        """0."""
        return 0.0


@dataclass(frozen=True)
class Ball(AbstractSet):
    """|y| <= radius, the Euclidean norm of all entries together."""

    radius: float = 1.0

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise DeclarationError(f"{self}: the radius must be positive.")

    def project(self, y: Tensor) -> Tensor:
        """y shortened to the radius."""
        size = y.norm()
        return y if bool(size <= self.radius) else y * (self.radius / size)

    def along(self, y: Tensor, slope: Tensor, v: Tensor) -> Tensor:
        """The tangent of the sphere, where it holds y against the gradient."""
        if not self._held(y, slope):
            return v
        normal = y / y.norm()
        return v - normal * (normal * v).sum()

    def curvature(self, y: Tensor, slope: Tensor) -> float:
        """|slope| / radius on the sphere: the multiplier."""
        return float(slope.norm()) / self.radius if self._held(y, slope) else 0.0

    def _held(self, y: Tensor, slope: Tensor) -> bool:
        import torch

        near = max(ON_BOUNDARY, 4 * torch.finfo(y.dtype).eps)
        return float(y.norm()) >= self.radius * (1 - near) and bool((y * slope).sum() < 0)
