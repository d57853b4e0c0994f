"""Implicit: one symmetric solve with the KKT matrix at the solution's own active set. BiGrad, arXiv 2302.14473, theorem
1.

At a solution with a fixed active set, the unknowns w = (x, y, lam, nu, multipliers) solve R(w, theta) = 0 with dR/dw =
M symmetric, so

    dL/dtheta = - a' dR/dtheta,   M a = (dL/dz, 0).

What is held and what is free comes with the solution: a pair with slack and multiplier both at zero is held on the
sides whose own multipliers are positive, both if both are (bigrad/solvers/active.py). There the leader's best decision
sits on a kink of the follower's answer and stays on it; differentiating only one side is wrong.

Choices where the derivative is not unique: a weakly active constraint (its multiplier zero) counts as inactive, a pair
that is weak on one side stays on the side where the solver found it, and a singular M gives the minimum-norm a.
`Stats.degenerate`, `Stats.singular` and `Stats.strongly_stationary` tell; a loss whose gradient has no solution at a
singular M also raises a SingularWarning.

A lower level written in torch: bigrad/gradients/adjoint.py.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bigrad.algebra.affine import Array, mv, namespace, on_host
from bigrad.algebra.exchange import Items
from bigrad.algebra.krylov import AbstractLinear
from bigrad.algebra.linear import Bordered, cholesky, exchange, lower_solve, solve_free
from bigrad.algebra.quadratic import Data, Maps, Sizes, kkt, stack
from bigrad.algebra.sensitivity import pull
from bigrad.gradients.base import AbstractGradient
from bigrad.gradients.bounds import ErrorBound
from bigrad.gradients.products import AbstractProducts
from bigrad.parallel import single_blas, single_torch
from bigrad.program import Program
from bigrad.solution import Outcome, SingularWarning

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 512
"""Items whose matrices are held at a time."""


@dataclass(frozen=True)
class Implicit(AbstractGradient):
    """Exact derivatives of the solution found, by the implicit function theorem; first and second order for quadratic
    programs.

    Choose it whenever the program has optimality conditions (every CVXPY program). Cost: one batched symmetric solve.

    A torch function that is minimised has them too, there to first order: linear solves with its Hessian, `CG()`,
    `MINRES()`, `GMRES()`, `Neumann(…)` or `T1T2()`. None: CG, or MINRES with a SolveWarning where that meets negative curvature;
    GMRES under a projection that is a plain function.
    products: how its products are made, `Exact()` or `Differences()`. bound: asks for a bound on the error. Memory does not
    grow with the solver's steps.
    """

    linear: AbstractLinear | None = None
    products: AbstractProducts | None = None
    bound: ErrorBound | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"kkt"})

    def pull_back(
        self, program: Program, outcome: Outcome, theta: tuple[Tensor, ...], wanted: tuple[bool, ...], cotangent: Tensor
    ) -> tuple[Tensor | None, ...]:
        """See AbstractGradient.pull_back."""
        import torch

        if program.inner:
            from bigrad.gradients.adjoint import adjoint

            return adjoint(self.linear, self.products, self.bound, program, outcome, theta, wanted, cotangent)
        if not outcome.ok.all():
            cotangent = torch.where(torch.as_tensor(outcome.ok, device=cotangent.device)[:, None], cotangent, 0.0)
        if outcome.smooth and hasattr(program.smooth, "pull"):
            return _formula(program.smooth, outcome, theta, wanted, cotangent)
        if outcome.smooth:
            return _smooth(program, outcome, theta, wanted, cotangent)
        if torch.is_grad_enabled():  # a second derivative is wanted: follow the solve itself
            return _followed(program, outcome, theta, wanted, cotangent)
        return _pulled(program, outcome, theta, wanted, cotangent)


def _followed(
    program: Program, outcome: Outcome, theta: tuple[Tensor, ...], wanted: tuple[bool, ...], cotangent: Tensor
) -> tuple[Tensor | None, ...]:
    """By autograd through the solve with the KKT matrix at the active set, so that the result can be differentiated again."""
    import torch

    maps, leaves = program.quadratic, [t for t, w in zip(theta, wanted, strict=True) if w]
    assert maps is not None
    free = torch.as_tensor(outcome.free, device=cotangent.device)
    matrix, rhs = kkt(maps(tuple(torch.where(torch.isfinite(t), t, 0.0) for t in theta)), maps.sizes, len(free))
    units = torch.as_tensor(_units(outcome), device=cotangent.device)
    z = (solve_free(matrix * units[..., :, None] * units[..., None, :], free, rhs * units)[0] * units)[
        :, : cotangent.shape[1]
    ]
    grads = torch.autograd.grad(z, leaves, cotangent, create_graph=True, allow_unused=True)
    filled = iter([torch.zeros_like(t) if g is None else g for g, t in zip(grads, leaves, strict=True)])
    return tuple(next(filled) if need else None for need in wanted)


def _pulled(
    program: Program, outcome: Outcome, theta: tuple[Tensor, ...], wanted: tuple[bool, ...], cotangent: Tensor
) -> tuple[Tensor | None, ...]:
    """By one adjoint solve, in numpy: one BLAS thread suits small matrices."""
    import torch

    maps, fine = program.quadratic, bool(outcome.ok.all())
    assert maps is not None
    host = isinstance(outcome.w, np.ndarray)

    def plain(t: Tensor) -> Array:
        return on_host(t) if host else t.detach()

    with single_blas, single_torch:
        inputs = tuple(plain(t if fine else torch.where(torch.isfinite(t), t, 0.0)) for t in theta)
        ok = outcome.ok if host else torch.as_tensor(outcome.ok, device=outcome.w.device)
        adjoint = _adjoint(maps, inputs, outcome, ok, plain(cotangent))
        w = outcome.w if fine else namespace(outcome.w).where(ok[:, None], outcome.w, 0.0)
        grads = pull(maps, inputs, w, -adjoint, wanted)
    return tuple(None if g is None else torch.as_tensor(g, device=cotangent.device) for g in grads)


def _units(outcome: Outcome) -> np.ndarray:
    return np.ones(outcome.w.shape[1]) if outcome.units is None else outcome.units


def _adjoint(maps: Maps, theta: tuple[Array, ...], outcome: Outcome, ok: Array, cotangent: Array) -> Array:
    """The a of M a = (cotangent, 0), (batch, unknowns), solved in the units in which the program was."""
    xp, free, n, data, factors = namespace(cotangent), outcome.free, maps.sizes.x, None, outcome.factors
    main, rest = cotangent[:, :n], xp.zeros_like(free[:, n:], dtype=cotangent.dtype)
    rest[:, : cotangent.shape[1] - n] = cotangent[:, n:]
    if isinstance(factors, Items):
        adjoint, solved = factors.exactly(xp.concatenate([main, rest], -1))
        if solved[ok].all():
            return xp.where(ok[:, None], adjoint, 0.0)
        factors = None
    if not maps.sizes.y and factors is None:
        data = maps(theta)
        root, fine = cholesky(data.Q)
        factors = Bordered(root, lower_solve(root, stack(data.G, data.E).mT)) if fine.all() else None
    if factors is not None:
        adjoint, singular = factors.solve(free[:, n:], main, rest)
        if not bool((singular & ok).any()):
            return adjoint if bool(ok.all()) else xp.where(ok[:, None], adjoint, 0.0)
    data = maps(theta) if data is None else data
    units = xp.ones_like(free[0], dtype=main.dtype) if outcome.units is None else outcome.units
    goal, found = xp.concatenate([main, rest], -1) * units, []
    for start in range(0, len(free), BLOCK):
        b = slice(start, start + BLOCK)
        found.append(_block(data.pick(b), maps.sizes, units if units.ndim == 1 else units[b], free[b], goal[b]))
    lost = [i for k, (_, bad) in enumerate(found) for i, b in enumerate(bad.tolist(), k * BLOCK) if b]
    if lost:
        warnings.warn(_message(lost), SingularWarning, stacklevel=2)
    return xp.concatenate([adjoint for adjoint, _ in found]) * units


def _block(data: Data, sizes: Sizes, units: Array, free: Array, goal: Array) -> tuple[Array, Array]:
    """Some items of a batch: the solution in units, and which have none."""
    matrix, _ = kkt(data, sizes, len(free), shared=True)
    matrix = matrix * units[..., :, None] * units[..., None, :]
    ready = exchange(matrix, free)
    adjoint, singular = solve_free(matrix, free, goal, None if ready is None else ready.items(free))
    if not bool(singular.any()):
        return adjoint, singular
    gap = abs((mv(matrix, adjoint) - goal) * free).sum(-1)
    return adjoint, singular & (gap > 1e-6 * abs(goal).sum(-1))


def _formula(
    form: Any, outcome: Outcome, theta: tuple[Tensor, ...], wanted: tuple[bool, ...], cotangent: Tensor
) -> tuple[Tensor | None, ...]:
    """The same for a form that knows its own derivative."""
    import torch

    if torch.is_grad_enabled():
        raise NotImplementedError("A projection onto a ball has no second derivatives here. Use first ones.")
    if (lost := np.flatnonzero(outcome.ok & outcome.singular)).size:
        warnings.warn(_message(lost.tolist()), SingularWarning, stacklevel=2)
    inputs = tuple(torch.where(torch.isfinite(t), t, 0.0).detach().cpu().numpy() for t in theta)
    ok = (outcome.ok & ~outcome.singular)[:, None]
    with single_blas:
        pulled = np.where(ok, cotangent.cpu().numpy(), 0.0)
        grads = form.pull(inputs, outcome.factors, pulled, ok[:, 0], wanted)
    return tuple(None if g is None else torch.as_tensor(g, device=cotangent.device) for g in grads)


def _smooth(
    program: Program, outcome: Outcome, theta: tuple[Tensor, ...], wanted: tuple[bool, ...], cotangent: Tensor
) -> tuple[Tensor | None, ...]:
    """The same adjoint through CVXPY's derivative engine, item by item.

    It has no third derivatives, so no second order.
    """
    import torch

    if torch.is_grad_enabled():
        raise NotImplementedError(
            "Second derivatives need a quadratic program (linear constraints, quadratic objectives); "
            f"here {program.why_not_quadratic or 'Sparse() does without its arrays, Relaxation() keeps them'}. "
            "Use first derivatives, or finite differences of them."
        )
    grads = [torch.zeros_like(t) if need else None for t, need in zip(theta, wanted, strict=True)]
    arrays = [t.detach().cpu().numpy() for t in theta]
    for i, ok in enumerate(outcome.ok):
        if not ok or not bool(cotangent[i].any()):
            continue
        inputs = tuple(a[i] if a.ndim > 1 else a for a in arrays)
        pulled, singular = program.smooth.adjoint(
            inputs, outcome.w[i], outcome.free[i], cotangent[i].cpu().numpy(), wanted
        )
        if singular:
            warnings.warn(_message([i]), SingularWarning, stacklevel=2)
        for g, value in zip(grads, pulled, strict=True):
            if g is not None:
                (g[i] if g.ndim > 1 else g).add_(torch.as_tensor(value, dtype=g.dtype, device=g.device))
    return tuple(grads)


def _message(items: list[int]) -> str:
    return (
        f"The KKT matrix is singular at items {items}: the solution there is not unique or its derivative does not exist, and the "
        "minimum-norm choice was returned. A small strictly convex term at the level that is indifferent makes it unique."
    )
