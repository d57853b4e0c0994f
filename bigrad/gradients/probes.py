"""Constants of the two losses, estimated from below by a few gradients: what an ErrorBound takes if nobody knows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bigrad.gradients.products import AbstractProducts, Second
from bigrad.inner import Bound

if TYPE_CHECKING:
    from torch import Tensor

SWEEPS = 30
"""Power iterations for |B| from scratch; SWIFT of them follow it from point to point, or find |d2f|."""
SWIFT = 6


def coupling(
    bound: Bound,
    y: Tensor,
    second: Second,
    theta: Sequence[Tensor],
    start: Tensor | None = None,
) -> tuple[float, Tensor]:
    """(|B|, its left singular vector) for B = d/dx of grad_y g, by power iterations with B', from `start` if that is
    known; B is a difference of gradients along the inputs."""
    import torch

    still = [t.detach() for t in theta]
    share = float(torch.finfo(y.dtype).eps) ** (1 / 3)
    u, size = spread(y) if start is None else start, 0.0
    for _ in range(SWEEPS if start is None else SWIFT):
        p = second.mixed(u / u.norm())
        size = max(size, sum(float((part**2).sum()) for part in p if part is not None) ** 0.5)
        if not size > 0:
            return 0.0, spread(y)
        h = share * (1 + max(float(t.norm()) for t in still)) / size

        def moved(step: float, p: Sequence[Tensor | None] = p) -> Tensor:
            there = tuple(t if d is None else t + step * d for t, d in zip(still, p, strict=True))
            return replace(bound, leaves=there).slope(y)[1]

        u = moved(h) - moved(-h)
    return size, u


def curvature(slope: Callable[[Tensor], Tensor], y: Tensor, reach: float) -> float:
    """The largest |change of the slope| over |step|, in steps of length `reach` from y, by power iterations."""
    at, u, size = slope(y), spread(y), 0.0
    for _ in range(SWIFT):
        u = (slope(y + reach * u / u.norm()) - at) / reach
        size = max(size, float(u.norm()))
        if not size > 0:
            break
    return size


def third(
    products: AbstractProducts,
    bound: Bound,
    y: Tensor,
    q: Tensor,
    leaves: Sequence[Tensor],
    wanted: Sequence[bool],
    reach: float,
) -> tuple[float, float]:
    """How fast H q and B'q change, relative to |q|: the larger of the rates along q itself and along one other direction."""
    size = float(q.norm())
    if not size > 0:
        return 0.0, 0.0
    here, found = products.at(bound, y, leaves, wanted), (0.0, 0.0)
    for u in (q, spread(y)):
        there = products.at(bound, y + reach * u / u.norm(), leaves, wanted)
        bend = float((there.hessian(q) - here.hessian(q)).norm())
        pairs = zip(there.mixed(q), here.mixed(q), strict=True)
        turn = sum(float(((a - b) ** 2).sum()) for a, b in pairs if a is not None and b is not None) ** 0.5
        found = max(found[0], bend / (reach * size)), max(found[1], turn / (reach * size))
    return found


def spread(y: Tensor) -> Tensor:
    """A fixed direction that favours none."""
    import torch

    return torch.cos(1.0 + torch.arange(len(y), dtype=y.dtype, device=y.device) ** 2)
