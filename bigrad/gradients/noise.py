"""Noise: the distributions that decisions are smoothed with, one entry a cost, independent.

A density's score is nu'(z) = -d/dz log mu(z); it has mean zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import exp, lgamma

import numpy as np

from bigrad.solution import InputError


class AbstractNoise(ABC):
    """A distribution to draw from."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Independent draws, of this shape."""


class AbstractDensity(AbstractNoise):
    """A noise with a smooth density, so that expectations under it can be differentiated."""

    @abstractmethod
    def score(self, z: np.ndarray) -> np.ndarray:
        """nu'(z)."""

    @abstractmethod
    def mirror(self, z: np.ndarray) -> np.ndarray:
        """The antithetic twin: the quantile 1 - u where z is the quantile u."""

    @abstractmethod
    def growth(self, t: float) -> float:
        """log E exp(t Z); InputError where it is infinite."""


@dataclass(frozen=True)
class Normal(AbstractDensity):
    """Z ~ N(0, 1): nu'(z) = z. The noise to choose unless there is a reason for another."""

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """See AbstractNoise.draw."""
        return rng.standard_normal(shape)

    def score(self, z: np.ndarray) -> np.ndarray:
        """z."""
        return z

    def mirror(self, z: np.ndarray) -> np.ndarray:
        """-z."""
        return -z

    def growth(self, t: float) -> float:
        """t^2 / 2."""
        return t * t / 2


@dataclass(frozen=True)
class Gumbel(AbstractDensity):
    """Z ~ Gumbel(0, 1), of mean 0.577…: nu'(z) = 1 - exp(-z).

    Skewed: it is added to what is maximised. With one-hot decisions the smoothed maximiser is softmax(theta / sigma).
    """

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """See AbstractNoise.draw."""
        return -np.log(rng.standard_exponential(shape))

    def score(self, z: np.ndarray) -> np.ndarray:
        """1 - exp(-z)."""
        return -np.expm1(-z)

    def mirror(self, z: np.ndarray) -> np.ndarray:
        """-log(-log(1 - exp(-exp(-z)))), without cancellation on either side."""
        tail = np.exp(-z)
        with np.errstate(divide="ignore"):
            rest = np.where(z > 0, np.log(-np.expm1(-tail)), np.log1p(-np.exp(-tail)))
        return -np.log(-rest)

    def growth(self, t: float) -> float:
        """log Gamma(1 - t), for t < 1."""
        if t >= 1:
            raise InputError(f"Multiplicative Gumbel noise has no mean at sigma={t}; take sigma below 1, or Normal().")
        return lgamma(1 - t)


@dataclass(frozen=True)
class SumOfGamma(AbstractNoise):
    """k of these summed are nearly Gumbel(0, 1): noise for decisions with about k ones. Niepert, Minervini and
    Franceschi, "Implicit MLE", NeurIPS 2021.

        eps = (1/k) (sum_{i=1..terms} Gamma(shape 1/k, scale k/i) - log(terms))

    Skewed, and without a simple density: for IMLE only.
    """

    k: float = 1.0
    terms: int = 10

    def __post_init__(self) -> None:
        if not (self.k > 0 and self.terms >= 1):
            raise InputError(f"{self}: k must be positive, and terms at least 1.")

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """See AbstractNoise.draw."""
        total = np.full(shape, -np.log(self.terms))
        for i in range(1, self.terms + 1):
            total += rng.gamma(1 / self.k, self.k / i, shape)
        return total / self.k


def factor(noise: AbstractDensity, sigma: float, z: np.ndarray) -> np.ndarray:
    """exp(sigma z) / E exp(sigma Z): a positive factor of mean one."""
    return np.exp(sigma * z) / exp(noise.growth(sigma))
