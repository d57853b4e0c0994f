"""ErrorBound: how far an inexact implicit hypergradient is from the exact one. Ehrhardt and Roberts, IMA J. Appl. Math. 2023.

With e = |grad g(y)| / mu >= |y - y*|, r = |H q - dL/dy| and B = d/dx of grad_y g, at the y and q reached,

    |q - q*| <= Q = (r + outer e + hessian e |q|) / mu,
    |B'q - B*'q*| <= |B| Q + mixed e (|q| + Q).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bigrad.gradients.probes import coupling
from bigrad.gradients.products import Second
from bigrad.inner import Bound
from bigrad.solution import InputError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ErrorBound:
    """The a posteriori bound, from the two residuals and constants that hold between y and y*; in
    `stats.gradient_bound` after the backward pass, for `Implicit(…, bound=ErrorBound(…))`.

    mu: strong convexity of g in y. outer: Lipschitz constant of dL/dy in y. hessian, mixed: those of H and of B in y, zero
    for a quadratic g whose mixed derivatives do not depend on y. coupling: a bound on |B| at y; None estimates it from below by
    power iterations, some 90 gradients, and `stats.bound_estimated` says so. L: the largest curvature of g in y, for what
    numbers of steps promise. What the outer loss does with x directly is not in it, nor is rounding.

    The bound a priori is in `stats.gradient_bound_before`: it takes for |y - y*| and the residual what the solver's and the linear
    solver's tolerances say, or with `tol=0`, and L, what their rates do.
    """

    mu: float
    outer: float
    hessian: float = 0.0
    mixed: float = 0.0
    coupling: float | None = None
    L: float | None = None

    def __post_init__(self) -> None:
        rest = (self.outer, self.hessian, self.mixed, self.coupling or 0.0)
        if not 0 < self.mu < float("inf") or not all(0 <= c < float("inf") for c in rest):
            raise InputError(f"{self}: mu must be positive, the other constants positive or zero, all finite.")
        if self.L is not None and not self.mu <= self.L < float("inf"):
            raise InputError(f"{self}: L must be finite and at least mu.")

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
        reached: tuple[float, Tensor, Tensor],
        promised: tuple[float | None, float | None],
        theta: Sequence[Tensor],
    ) -> dict[str, object]:
        """What goes on record for one backward pass. reached: |H q - v|, q and v = dL/dy. promised: |y - y*| and |H q - v|
        beforehand."""
        known, (residual, q, v), (error, rest) = self.coupling, reached, promised
        norm = coupling(bound, y, second, theta)[0] if known is None else known
        after = self.at(float(second.slope.norm()) / self.mu, residual, float(q.norm()), norm)
        before = None if error is None or rest is None else self.before(error, rest, float(v.norm()), norm)
        return {"gradient_bound": after, "gradient_bound_before": before, "bound_estimated": known is None}
