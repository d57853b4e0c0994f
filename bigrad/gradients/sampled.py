"""Sampled: the gradient of an expectation by the score of its distribution, which Perturbed and Score share.

    F(c) = E f(C),  C ~ p(. | c)          grad F' g = E [ (f(C)'g - b) d/dc log p(C | c) ]

b is a baseline. All samples of a batch go to the oracle in one call of batch * samples rows; the backward pass uses
the samples of the forward pass and solves nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import numpy as np

from bigrad.gradients.baselines import AbstractBaseline, LeaveOneOut
from bigrad.gradients.draws import AbstractDraws, Fresh
from bigrad.gradients.estimator import AbstractEstimator, Back, solve
from bigrad.gradients.noise import AbstractDensity, Normal
from bigrad.gradients.perturbation import AbstractPerturbation, Additive, Around
from bigrad.oracle import Oracle
from bigrad.solution import InputError


@dataclass(frozen=True)
class AbstractSampled(AbstractEstimator):
    """Mean values of samples forward, their scores backward: an unbiased gradient of the smoothed map.

    sigma: width of the noise; its bias grows with it, its variance falls. samples: solves an item. noise: `Normal()` or
    `Gumbel()`. perturbation: `Additive()` or `Multiplicative()`. baseline: `LeaveOneOut()`, `AtCentre()` or None, which
    lower the variance and keep the mean. antithetic: samples in mirrored pairs, which helps where there is no baseline,
    and hardly where there is. draws: `Fresh()`, `Fresh(seed)` or
    `Common(seed)` (draws.py says what each repeats).
    """

    sigma: float = 1.0
    samples: int = 16
    noise: AbstractDensity = field(default_factory=Normal)
    perturbation: AbstractPerturbation = field(default_factory=Additive)
    baseline: AbstractBaseline | None = field(default_factory=LeaveOneOut)
    antithetic: bool = False
    draws: AbstractDraws = field(default_factory=Fresh)

    def __post_init__(self) -> None:
        if callable(self.sigma) or isinstance(self.sigma, Oracle):
            name = type(self).__name__
            raise InputError(
                f"{name}(sigma={self.sigma!r:.60}): sigma is a number; write {name}(sigma=0.5)(oracle)(costs)."
            )
        if not (self.sigma > 0 and self.samples >= 1):
            raise InputError(f"{self}: sigma must be positive, and samples at least 1.")
        if self.antithetic and self.samples % 2:
            raise InputError(f"{self}: antithetic samples come in pairs; make samples even.")

    @property
    def _group(self) -> int:
        return 2 if self.antithetic else 1

    @abstractmethod
    def side(self, oracle: Oracle) -> np.ndarray | float:
        """+1 where noise is added to the costs, -1 where it is subtracted."""

    def around(self, oracle: Oracle, costs: np.ndarray) -> Around:
        """Samples around costs (batch, n); antithetic twins follow each other."""
        batch, n = costs.shape
        z = self.draws.draw(self.noise, batch, self.samples // self._group, n)
        if self.antithetic:
            z = np.stack([z, self.noise.mirror(z)], axis=2).reshape(batch, self.samples, n)
        return self.perturbation.around(costs, z, self.noise, self.sigma, self.side(oracle))

    def estimate(self, oracle: Oracle, costs: np.ndarray) -> tuple[np.ndarray, Back]:
        """See AbstractEstimator.estimate."""
        baseline = self.baseline
        if baseline is not None:
            baseline.check(self.samples, self._group)
        around = self.around(oracle, costs)
        first = int(baseline is not None and baseline.central)
        asked = np.concatenate([costs[:, None], around.costs], axis=1) if first else around.costs
        values = solve(oracle, asked)
        flat = values.reshape(*values.shape[:2], -1)

        def back(push: np.ndarray) -> np.ndarray:
            rewards = (flat @ push.reshape(len(push), -1, 1))[..., 0]
            residual, centre = rewards[:, first:], rewards[:, 0] if first else None
            if baseline is not None:
                residual = baseline.residual(residual, centre, self._group)
            grad: np.ndarray = (residual[:, None] @ around.score)[:, 0] / self.samples
            return grad

        return values[:, first:].mean(1), back
