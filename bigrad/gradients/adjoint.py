"""The implicit function theorem for a torch function that is minimised: one linear solve with its Hessian. Pedregosa,
ICML 2016; reviewed by Zucchet and Sacramento, Neural Computation 2022.

    H q = dL/dy,    dL/dx = - (d/dx of grad_y g)' q.

Under a set with faces, T (H + c) T in place of H (bigrad/sets.py). Under a projection P that is a plain function, with
y = P(y - grad g), P' the derivative there, and u' read as a row: u (I - P'(I - H)) = dL/dy, dL/dx = - (…)' P'u.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from bigrad.algebra.krylov import CG, GMRES, MINRES, AbstractLinear, Product, Solved
from bigrad.gradients.bounds import ErrorBound
from bigrad.gradients.products import AbstractProducts, Exact, Grads
from bigrad.program import Program
from bigrad.solution import Outcome, SolveError, SolveWarning

if TYPE_CHECKING:
    from torch import Tensor


def adjoint(
    linear: AbstractLinear | None,
    products: AbstractProducts | None,
    limit: ErrorBound | None,
    program: Program,
    outcome: Outcome,
    theta: tuple[Tensor, ...],
    wanted: tuple[bool, ...],
    cotangent: Tensor,
) -> Grads:
    """The gradients in theta; what the solve reached is put on the call's record."""
    import torch

    first_order(torch.is_grad_enabled())
    bound, y, v = program.bound, outcome.z[0], cotangent[0]
    assert bound is not None
    if not bool(torch.isfinite(v).all()):
        return unknown(theta, wanted)
    inner = bound.inner
    second = (products or Exact()).at(bound, y, theta, wanted)
    slope = second.slope
    if inner.faces:

        def product(p: Tensor) -> Tensor:
            bent = inner.bent(y, slope, p) if inner.constrained and not inner.flat_faces else 0.0
            return inner.along(y, slope, second.hessian(p) + bent)

        solved = _symmetric(linear, product, inner.along(y, slope, v))
        q = solved.x
    else:
        place = (y - slope).detach().requires_grad_()
        with torch.enable_grad():
            landed = inner.project(place)

        def back(u: Tensor) -> Tensor:
            found: Tensor = torch.autograd.grad(landed, place, u, retain_graph=True)[0]
            return found

        def reduced(u: Tensor) -> Tensor:
            p = back(u)
            return u - p + second.hessian(p)

        solved = (linear or GMRES()).solve(reduced, v)
        q = back(solved.x)
    residual = solved.residual
    if limit is not None:
        if residual is None:
            residual = float((second.hessian(q) - v).norm())
        promised = outcome.factors.promised(bound, limit.mu, limit.L), (linear or CG()).promised(v, limit.mu, limit.L)
        bound.record.update(limit.measured(bound, y, second, (residual, q, v), promised, theta))
    bound.record.update(adjoint_residual=residual, adjoint_steps=solved.iterations)
    if solved.cause:
        warnings.warn(f"The hypergradient is inexact: {solved.cause}", SolveWarning, stacklevel=2)
    return second.mixed(-q)


def _symmetric(linear: AbstractLinear | None, product: Product, v: Tensor) -> Solved:
    """By the linear solver asked for; without one by CG, and by MINRES, with a warning, where that meets negative curvature."""
    if linear is not None:
        return linear.solve(product, v)
    try:
        return CG().solve(product, v)
    except SolveError:
        why = (
            "the Hessian has negative curvature, or none in some direction, so the point is no strict minimum of the inner loss, and "
            "CG() gave way to MINRES()."
        )
        warnings.warn(f"The hypergradient is that of a stationary point: {why}", SolveWarning, stacklevel=4)
        return MINRES().solve(product, v)


def first_order(following: bool) -> None:
    """NotImplementedError where a second derivative is asked for."""
    if following:
        raise NotImplementedError(
            "A torch lower level has first derivatives only: leave out create_graph=True, or take finite differences of them."
        )


def unknown(theta: tuple[Tensor, ...], wanted: tuple[bool, ...]) -> Grads:
    """The gradients where that of the loss in y is not finite: NaN, which no solver should be asked to smooth over."""
    return tuple(t.new_full(t.shape, float("nan")) if w else None for t, w in zip(theta, wanted, strict=True))
