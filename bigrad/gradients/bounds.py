"""ErrorBound: how far an inexact implicit hypergradient is from the exact one. Ehrhardt and Roberts, IMA J. Appl. Math. 2023.

With e = |grad g(y)| / mu >= |y - y*|, r = |H q - dL/dy| and B = d/dx of grad_y g, at the y and q reached,

    |q - q*| <= Q = (r + outer e + hessian e |q|) / mu,
    |B'q - B*'q*| <= |B| Q + mixed e (|q| + Q).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bigrad.gradients.products import Second
from bigrad.inner import Bound
from bigrad.solution import InputError

if TYPE_CHECKING:
    from torch import Tensor

SWEEPS = 30
"""Power iterations for |B|."""


@dataclass(frozen=True)
class ErrorBound:
    """The a posteriori bound, from the two residuals and constants that hold between y and y*; in
    `stats.gradient_bound` after the backward pass, for `Implicit(…, bound=ErrorBound(…))`.

    mu: strong convexity of g in y. outer: Lipschitz constant of dL/dy in y. hessian, mixed: those of H and of B in y, zero
    for a quadratic g whose mixed derivatives do not depend on y. coupling: a bound on |B| at y; None estimates it from below by
    power iterations, some 90 gradients, and `stats.bound_estimated` says so. What the outer loss does with x directly is
    not in it, nor is rounding.
    """

    mu: float
    outer: float
    hessian: float = 0.0
    mixed: float = 0.0
    coupling: float | None = None

    def __post_init__(self) -> None:
        rest = (self.outer, self.hessian, self.mixed, self.coupling or 0.0)
        if not 0 < self.mu < float("inf") or not all(0 <= c < float("inf") for c in rest):
            raise InputError(f"{self}: mu must be positive, the other constants positive or zero, all finite.")

    def at(self, error: float, residual: float, adjoint: float, coupling: float) -> float:
        """The bound for |y - y*| <= error, r = residual, |q| = adjoint and |B| <= coupling."""
        away = (residual + self.outer * error + self.hessian * error * adjoint) / self.mu
        return coupling * away + self.mixed * error * (adjoint + away)

    def before(self, error: float, residual: float, slope: float, coupling: float) -> float:
        """The bound a priori: what a lower level solved to `error` and a linear system solved to `residual` will give, where
        |dL/dy| <= slope."""
        return self.at(error, residual, (slope + residual) / self.mu, coupling)

    def measured(
        self,
        bound: Bound,
        y: Tensor,
        second: Second,
        residual: float,
        q: Tensor,
        theta: Sequence[Tensor],
        wanted: Sequence[bool],
    ) -> dict[str, object]:
        """What goes on record for one backward pass."""
        coupling = _norm(bound, y, second, theta, wanted) if self.coupling is None else self.coupling
        value = self.at(float(second.slope.norm()) / self.mu, residual, float(q.norm()), coupling)
        return {"gradient_bound": value, "bound_estimated": self.coupling is None}


def _norm(bound: Bound, y: Tensor, second: Second, theta: Sequence[Tensor], wanted: Sequence[bool]) -> float:
    """|B|, from below, by power iterations with B'; B is a difference of gradients along the inputs."""
    import torch

    still = [t.detach() for t in theta]
    share = float(torch.finfo(y.dtype).eps) ** (1 / 3)
    u, size = torch.cos(1.0 + torch.arange(len(y), dtype=y.dtype, device=y.device) ** 2), 0.0
    for _ in range(SWEEPS):
        p = second.mixed(u / u.norm())
        size = max(size, sum(float((part**2).sum()) for part in p if part is not None) ** 0.5)
        if not size > 0:
            return 0.0
        h = share * (1 + max(float(t.norm()) for t in still)) / size

        def moved(step: float, p: Sequence[Tensor | None] = p) -> Tensor:
            there = tuple(t if d is None else t + step * d for t, d in zip(still, p, strict=True))
            return replace(bound, leaves=there).slope(y)[1]

        u = moved(h) - moved(-h)
    return size
