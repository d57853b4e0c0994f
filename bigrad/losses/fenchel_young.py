"""FenchelYoung: how much less optimal a known decision is than the smoothed optimum. Blondel, Martins and Niculae,
"Learning with Fenchel-Young losses", JMLR 2020; perturbed: Berthet et al., NeurIPS 2020; Dalle et al., arXiv 2207.13513.

    L = s c'phi(ybar) + Omega(phi(ybar)) - F(c)          grad_c = s phi(ybar) - dF/dc

F is a smoothed optimal value: with `Perturbed`, F(c) = E min_y s C'phi(y) over perturbed costs C, and for additive
noise grad_c = s (phi(ybar) - E phi(y*(C))).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from bigrad.gradients.estimator import features
from bigrad.gradients.perturbed import Perturbed
from bigrad.gradients.potential import AbstractPotential
from bigrad.losses.base import AbstractLoss, Evaluated, along, dot
from bigrad.oracle import Oracle
from bigrad.solution import InputError


@dataclass(frozen=True)
class FenchelYoung(AbstractLoss):
    """Convex in the costs; needs a decision ybar per item (target), no costs. The first choice to imitate decisions.

    smoothing: `Perturbed(...)`, whose sigma, samples, noise, perturbation and draws count (its baseline does not), or
    `Regularised(...)`. Perturbed, Omega has no closed form and is left out: L is the true loss up to a number for each
    ybar, which no gradient sees; under noise of mean zero L >= 0 still, in expectation. Regularised it is there, and
    L = 0 exactly where the regularised decision is ybar. With both players of a game in one vector of costs it matches
    mean features: the gradient vanishes where they agree, but F is no potential of it.
    """

    costs_known: ClassVar[bool] = False
    smoothing: AbstractPotential = field(default_factory=Perturbed)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.smoothing, AbstractPotential):
            raise InputError(f"FenchelYoung(smoothing={self.smoothing!r:.80}): give Perturbed(…) or Regularised(…).")

    def evaluate(self, oracle: Oracle, costs: np.ndarray, target: np.ndarray, best: np.ndarray | None) -> Evaluated:
        """See AbstractLoss.evaluate."""
        phi, smooth = features(oracle, target, costs), self.smoothing.potential(oracle, costs)
        value = oracle.sense * phi
        return Evaluated(
            dot(costs, value) + self.smoothing.entropy(phi) - smooth.value,
            along(value - smooth.slope),
            lambda: smooth.decisions,
        )
