"""PerturbationGradient: the true cost of a decision as a directional derivative of the optimal value. Gupta and Huang,
"Decision-focused learning with directional gradients", NeurIPS 2024.

With v(c) = min_y s c'phi(y), the true cost at predictions hat is s c'phi(y*(hat)) = d/dt v(hat + t c) at t = 0, and

    backward   L = (v(hat) - v(hat - h c)) / h                grad = s (phi(y*(hat)) - phi(y*(hat - h c))) / h
    central    L = (v(hat + h c) - v(hat - h c)) / (2 h)      grad likewise

The slope is the loss's, though c'phi(y*(hat)) itself is piecewise constant. v is concave, so the backward difference is
never below the true cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bigrad.gradients.estimator import features, solve
from bigrad.losses.base import AbstractLoss, Evaluated, along, dot
from bigrad.oracle import Oracle
from bigrad.solution import InputError


@dataclass(frozen=True)
class PerturbationGradient(AbstractLoss):
    """An estimate of the cost that is paid, of vanishing bias, where true costs are known (target).

    Choose it over SPOPlus where no model can predict the costs well. step: h > 0; small: less bias, steeper. central:
    less bias still, but no bound.
    """

    costs_known: ClassVar[bool] = True
    step: float = 1.0
    central: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.step > 0:
            raise InputError(f"PerturbationGradient(step={self.step}): the step must be positive.")

    def evaluate(self, oracle: Oracle, costs: np.ndarray, target: np.ndarray, best: np.ndarray | None) -> Evaluated:
        """See AbstractLoss.evaluate."""
        ahead = costs + self.step * target if self.central else costs
        asked = np.stack([ahead, costs - self.step * target], axis=1)
        decisions, width = solve(oracle, asked), self.step * (2 if self.central else 1)
        phi = oracle.sense * features(oracle, decisions, asked)
        value = dot(asked, phi)
        return Evaluated(
            (value[:, 0] - value[:, 1]) / width,
            along((phi[:, 0] - phi[:, 1]) / width),
            lambda: solve(oracle, costs) if self.central else decisions[:, 0],
        )
