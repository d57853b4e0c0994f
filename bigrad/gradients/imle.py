"""IMLE: from samples of decisions to samples of a target distribution that the loss likes better. Niepert, Minervini and
Franceschi, "Implicit MLE: backpropagating through discrete exponential family distributions", NeurIPS 2021.

    z_j  = y*(c - s sigma eps_j)                             s = +1 where c is minimised, -1 where it is maximised
    z'_j = the same with lambda g added to the minimised objective
    grad_c = mean_j s (phi(z'_j) - phi(z_j)) / lambda

eps is Sum-of-Gamma noise, skewed, and belongs on what is maximised. With an `Adaptive` step it is adaptive IMLE:
Minervini, Franceschi and Niepert, AAAI 2023.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bigrad.gradients.draws import AbstractDraws, Fresh
from bigrad.gradients.estimator import AbstractEstimator, Back, features, nudged, solve
from bigrad.gradients.noise import AbstractNoise, SumOfGamma
from bigrad.gradients.steps import AbstractStep, Relative
from bigrad.oracle import Oracle
from bigrad.solution import InputError


@dataclass(frozen=True)
class IMLE(AbstractEstimator):
    """The mean of perturbed decisions forward; backward, as many solves again (twice with `central`).

    Choose it where few samples must do. sigma: scale of the noise (the paper's temperature). noise: `SumOfGamma(k)`, k
    the number of ones. step: lambda, as for Interpolate; gradients are divided by it. central: steps to both sides.
    The loss's gradient is taken at the mean of the samples. Adaptive IMLE is `IMLE(step=Adaptive())`.
    samples: solves an item, each way. draws: `Fresh()`, `Fresh(seed)` or `Common(seed)`.
    """

    sigma: float = 1.0
    samples: int = 1
    noise: AbstractNoise = field(default_factory=SumOfGamma)
    step: AbstractStep = field(default_factory=Relative)
    central: bool = False
    draws: AbstractDraws = field(default_factory=Fresh)

    def __post_init__(self) -> None:
        if not (self.sigma >= 0 and self.samples >= 1):
            raise InputError(f"{self}: sigma must be positive or zero, and samples at least 1.")

    def estimate(self, oracle: Oracle, costs: np.ndarray) -> tuple[np.ndarray, Back]:
        """See AbstractEstimator.estimate."""
        eps = self.draws.draw(self.noise, len(costs), self.samples, costs.shape[1])
        around = costs[:, None] - oracle.sense * self.sigma * eps
        z = solve(oracle, around)
        phi = features(oracle, z, around)

        def back(push: np.ndarray) -> np.ndarray:
            moved: np.ndarray = (push != 0).any(axis=1)
            if not moved.any():
                return np.zeros_like(costs)
            length = self.step.lengths(costs, push)[:, None]
            steps = (length * push)[:, None].repeat(self.samples, axis=1)
            behind = features(oracle, nudged(oracle, around, -steps), around) if self.central else phi
            change = oracle.sense * (features(oracle, nudged(oracle, around, steps), around) - behind)
            self.step.observe(float(np.count_nonzero(np.nan_to_num(change[moved]), axis=2).mean()))
            mean = change.mean(1) / (2 if self.central else 1)
            return np.divide(mean, length, out=np.zeros_like(mean), where=moved[:, None] & (length > 0))

        return z.mean(1), back
