"""Proximal: a finite step of the Lagrangian, informative where the true derivative is zero. Paulus, Martius and Musil,
"LPGD: A General Framework for Backpropagation through Embedded Optimization Layers", ICML 2024.

The solution of a linear program sits at a vertex and does not move under small changes of its data: the derivative is 0
almost everywhere. So the program is solved again with the loss's gradient g, and a term that keeps it near, in its
objective,

    w(t) = solution of   min F(z) + t g'z + rho/2 |z - z*|^2,      z* = the solution at hand,

and the gradient is the slope of the Lagrangian's derivative over that step,

    (d/dtheta L(w(tau), theta) - d/dtheta L(w(-tau), theta)) / (2 tau).

With rho = 0 this tends to the implicit gradient as tau falls, where that exists; with rho > 0 to that of the program
with the proximal term. L is quadratic in w, so the difference is a'dR/dtheta with
a = w(tau) - w(-tau), R taken midway (bigrad/algebra/sensitivity.py). With two levels F is the leader's objective and L the
Lagrangian of the program's reformulation.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bigrad.algebra.sensitivity import pull
from bigrad.gradients.base import AbstractGradient
from bigrad.program import Program
from bigrad.solution import CapabilityError, InputError, Outcome, SolveWarning

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Proximal(AbstractGradient):
    """Finite-step gradient for programs whose true derivative says too little: linear programs, solutions that jump.

    Choose it to learn through a linear program, at one level or two; anywhere else Implicit is exact and cheaper. tau:
    length of the step: how strongly the loss's gradient pulls, against the objective's own; longer steps see further and
    blur more. rho: weight of the proximal term, which shortens the way the solution moves; 0 for none, positive where the
    nudged program would be unbounded. central: steps to both sides (two more solves), else to one. First derivatives
    only.
    """

    tau: float
    rho: float = 0.0
    central: bool = True
    needs: ClassVar[frozenset[str]] = frozenset({"kkt", "quadratic"})

    def __post_init__(self) -> None:
        if not (self.tau > 0 and self.rho >= 0):
            raise InputError(f"{self}: tau must be positive, and rho positive or zero.")

    def pull_back(
        self, program: Program, outcome: Outcome, theta: tuple[Tensor, ...], wanted: tuple[bool, ...], cotangent: Tensor
    ) -> tuple[Tensor | None, ...]:
        """See AbstractGradient.pull_back."""
        import torch

        if torch.is_grad_enabled():
            raise NotImplementedError(f"{self} has no second derivatives. Use Implicit() for them.")
        maps = program.quadratic
        assert maps is not None
        inputs, goal, size = tuple(t.cpu().numpy() for t in theta), cotangent.cpu().numpy(), outcome.z.shape[1]
        if goal[:, size:].any():
            raise CapabilityError(
                f"{self} steps along variables only, and the loss has a gradient in prices. Use Implicit()."
            )
        goal, outcome = goal[:, :size], outcome.on_host()
        steps = (self.tau, -self.tau) if self.central else (self.tau, 0.0)
        ends = [self._solve(program, outcome, inputs, step * goal) for step in steps]
        fine = outcome.ok & np.all([np.isfinite(w).all(-1) for w in ends], axis=0)
        if lost := np.flatnonzero(outcome.ok & ~fine).tolist():
            warnings.warn(
                f"{self}: no solution of the nudged program at items {lost}: NaN gradients. Take a smaller tau, or a positive rho.",
                SolveWarning,
                stacklevel=2,
            )
        one, other = (np.where(fine[:, None], w, 0.0) for w in ends)
        step = (one - other) / (steps[0] - steps[1])
        step[outcome.ok & ~fine] = np.nan
        clean = tuple(np.where(np.isfinite(t), t, 0.0) for t in inputs)
        grads = pull(maps, clean, (one + other) / 2, step, wanted)
        return tuple(None if g is None else torch.as_tensor(g, device=cotangent.device) for g in grads)

    def _solve(self, program: Program, outcome: Outcome, theta: tuple[np.ndarray, ...], push: np.ndarray) -> np.ndarray:
        """All unknowns of the nudged program, NaN where it has no solution."""
        if not push.any():
            return outcome.w
        near = program.nudged(self.rho)
        own = np.concatenate([np.arange(u.place.start, u.place.stop) for u in program.unknowns])
        nudge = np.where(outcome.ok[:, None], push - self.rho * outcome.z, 0.0)[:, own]
        starts = [outcome.point(i) for i in range(len(nudge))]
        found = near.default.solve(near, (*theta, nudge), starts)
        return np.where(found.ok[:, None], found.w, np.nan)
