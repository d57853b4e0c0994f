"""EqProp: equilibrium propagation. Scellier and Bengio, Frontiers 2017; as a hypergradient: Zucchet et al., "A contrastive
rule for meta-learning", NeurIPS 2022; the review of Zucchet and Sacramento, Neural Computation 2022.

With y_b the minimiser of g(x, y) + b v'y, v = dL/dy,

    dL/dx = d/db of dg/dx (x, y_b) at b = 0,

taken by a finite difference in b. First derivatives of g only, and memory for two copies of y. The outer loss enters by
its slope v, so y_b is as convex a problem for b < 0 as for b > 0. With the solver's error e the total error is of order
beta + e / beta (Forward) or beta^2 + e / beta: a smaller beta needs a more exact solver. For a g that is quadratic in y,
Central and SecondOrder have no error of their own at all.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from bigrad.gradients.adjoint import first_order, unknown
from bigrad.gradients.base import AbstractGradient
from bigrad.gradients.stencils import AbstractStencil, Central
from bigrad.program import Program
from bigrad.solution import InputError, Outcome, SolveWarning

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EqProp(AbstractGradient):
    """Hypergradients from nudged minimisations, for lower levels written in torch.

    beta: the nudge, in units of y's curvature: y moves by about beta |H^-1 v|. stencil: Central(), Forward() or
    SecondOrder(). solver: a `bigrad.Descent` for the nudged problems, None for the layer's own; both start at y*.
    stats.adjoint_residual is the residual of the nudged problems over beta; one that stopped short gives a SolveWarning.
    """

    beta: float = 1e-3
    stencil: AbstractStencil = field(default_factory=Central)
    solver: Any = None
    needs: ClassVar[frozenset[str]] = frozenset({"inner"})

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise InputError(f"EqProp(beta={self.beta}): beta must be positive and finite; the stencil has the signs.")
        if not isinstance(self.stencil, AbstractStencil):
            raise InputError(f"EqProp(stencil={self.stencil!r:.60}): give Forward(), Central() or SecondOrder().")
        if self.solver is not None and not hasattr(self.solver, "again"):
            raise InputError(f"EqProp(solver={self.solver!r:.60}): give a bigrad.Descent, or None.")

    def pull_back(
        self, program: Program, outcome: Outcome, theta: tuple[Tensor, ...], wanted: tuple[bool, ...], cotangent: Tensor
    ) -> tuple[Tensor | None, ...]:
        """See AbstractGradient.pull_back."""
        import torch

        first_order(torch.is_grad_enabled())
        bound, y, v = program.bound, outcome.z[0], cotangent[0]
        assert bound is not None
        if not bool(torch.isfinite(v).all()):
            return unknown(theta, wanted)
        found: list[Tensor | None] = [torch.zeros_like(t) if w else None for t, w in zip(theta, wanted, strict=True)]
        if not bool(v.any()):
            return tuple(found)
        solver, worst, enough, at = self.solver or outcome.factors, 0.0, True, y
        for multiple, weight in self.stencil.points:
            nudge = multiple * self.beta
            if nudge:
                start = at if multiple > 1 else y
                at, residual, goal = solver.again(bound, start, nudge * v)
                worst, enough = max(worst, residual), enough and residual <= goal
            for total, part in zip(found, bound.partial(at if nudge else y, theta, wanted), strict=True):
                if total is not None and part is not None:
                    total.add_(part, alpha=weight / self.beta)
        bound.record.update(adjoint_residual=worst / self.beta)
        if not enough and getattr(self.solver or outcome.factors.solver, "tol", None) != 0:
            warnings.warn(
                f"The hypergradient is inexact: a problem nudged by beta |v| = {self.beta * float(v.norm()):.1e} stopped at a residual of "
                f"{worst:.1e}. Raise beta or the solver's steps, or give {type(self).__name__} a solver of its own.",
                SolveWarning,
                stacklevel=2,
            )
        return tuple(found)
