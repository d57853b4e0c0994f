"""Perturbed: decisions smoothed by noise on their costs. Berthet et al., "Learning with differentiable perturbed
optimizers", NeurIPS 2020; multiplicative noise of Dalle et al., arXiv 2207.13513.

    y_s(c) = E y*(c - s sigma Z)          s = +1 where c is minimised, -1 where it is maximised

Noise is added to what is maximised, so that minimising c and maximising -c mirror each other exactly, skewed noise
included. With Normal noise, y_s is also the gradient of the smoothed optimal value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bigrad.gradients.estimator import features, solve
from bigrad.gradients.potential import AbstractPotential, Potential
from bigrad.gradients.sampled import AbstractSampled
from bigrad.oracle import Oracle


@dataclass(frozen=True)
class Perturbed(AbstractSampled, AbstractPotential):
    """The mean of perturbed decisions forward, an unbiased gradient of y_s backward.

    Choose it where many solves are cheap, and the loss takes fractional decisions. sigma: width of the noise, in units of
    the costs, or relative to each with Multiplicative(); larger smooths more. samples: solves an item. noise: `Normal()`
    or `Gumbel()`. perturbation: `Additive()` or `Multiplicative()`. baseline: `LeaveOneOut()`, `AtCentre()` or None.
    antithetic: samples in mirrored pairs. draws: `Fresh()`, `Fresh(seed)` or `Common(seed)`. InputError for sigma not
    above 0, or too few samples.
    """

    def side(self, oracle: Oracle) -> np.ndarray | float:
        """-s."""
        return -oracle.sense

    def potential(self, oracle: Oracle, costs: np.ndarray) -> Potential:
        """F = E min_y s C'phi(y) over the perturbed costs C; its slope is s E (dC/dc) phi(y*(C))."""
        around = self.around(oracle, costs)
        y = solve(oracle, around.costs)
        phi = oracle.sense * features(oracle, y, around.costs)
        return Potential((around.costs * phi).sum(-1).mean(1), (around.slope * phi).mean(1), y.mean(1))

    def entropy(self, features: np.ndarray) -> np.ndarray:
        """Not known in closed form: zero."""
        return np.zeros(len(features))
