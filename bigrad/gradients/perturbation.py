"""Perturbation: how noise enters the costs.

    Additive         c' = c + side sigma Z         dc'/dc = 1     d/dc log p(c') = side nu'(Z) / sigma
    Multiplicative   c' = c exp(sigma Z) / E exp   dc'/dc = c'/c  d/dc log p(c') = nu'(Z) / (sigma c)

Berthet et al., "Learning with differentiable perturbed optimizers", NeurIPS 2020; Dalle et al., "Learning with
combinatorial optimization layers: a probabilistic approach", arXiv 2207.13513.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from bigrad.gradients.noise import AbstractDensity, factor
from bigrad.solution import InputError


@dataclass(frozen=True)
class Around:
    """Samples around costs: costs, score = d/dc log p(costs) and slope = d costs/dc, each (batch, samples, n)."""

    costs: np.ndarray
    score: np.ndarray
    slope: np.ndarray


class AbstractPerturbation(ABC):
    """How draws of a noise become costs."""

    @abstractmethod
    def around(
        self, costs: np.ndarray, z: np.ndarray, noise: AbstractDensity, sigma: float, side: np.ndarray | float
    ) -> Around:
        """costs: (batch, n), z: (batch, samples, n), side: +1 or -1, (n,) or one for all."""


@dataclass(frozen=True)
class Additive(AbstractPerturbation):
    """sigma in the units of the costs."""

    def around(
        self, costs: np.ndarray, z: np.ndarray, noise: AbstractDensity, sigma: float, side: np.ndarray | float
    ) -> Around:
        """See AbstractPerturbation.around."""
        return Around(costs[:, None] + side * sigma * z, side * noise.score(z) / sigma, np.ones_like(z))


@dataclass(frozen=True)
class Multiplicative(AbstractPerturbation):
    """sigma relative to each cost; signs never change, so that costs of a shortest path stay positive.

    The factor is the same whichever way the player optimises: `side` has no part. InputError for a cost of zero.
    """

    def around(
        self, costs: np.ndarray, z: np.ndarray, noise: AbstractDensity, sigma: float, side: np.ndarray | float
    ) -> Around:
        """See AbstractPerturbation.around."""
        if (zero := np.argwhere(costs == 0)).size:
            i, k = zero[0].tolist()
            raise InputError(f"Item {i}: cost {k} is 0, which multiplicative noise cannot move. Use Additive().")
        slope = factor(noise, sigma, z)
        return Around(costs[:, None] * slope, noise.score(z) / (sigma * costs[:, None]), slope)
