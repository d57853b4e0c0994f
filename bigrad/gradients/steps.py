"""Steps: how far a cost vector is pushed along a loss's gradient g, per item.

    Absolute(length)   lambda = length
    Relative(share)    lambda = share |c| / |g|
    Adaptive(...)      lambda = beta |c| / |g|, beta steered towards a number of non-zero entries

With a relative step the push lambda g does not depend on the scale of g: a mean over a batch divides g by the batch's
size, and an absolute step with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from bigrad.solution import InputError


class AbstractStep(ABC):
    """A rule for lambda."""

    @abstractmethod
    def lengths(self, costs: np.ndarray, push: np.ndarray) -> np.ndarray:
        """lambda, (batch,); costs: (batch, n), push: g, (batch, m). Any for rows where g is zero."""

    @abstractmethod
    def observe(self, nonzero: float) -> None:
        """How many entries of a sample's gradient were not zero, on average over the items of a backward pass with a g."""


@dataclass(frozen=True)
class Absolute(AbstractStep):
    """lambda = length always, in units of cost per gradient: commensurate with |c| / |g|, so with the batch's size. length > 0."""

    length: float

    def __post_init__(self) -> None:
        if not self.length > 0:
            raise InputError(f"{self}: the length must be positive.")

    def lengths(self, costs: np.ndarray, push: np.ndarray) -> np.ndarray:
        """length."""
        return np.full(len(costs), self.length)

    def observe(self, nonzero: float) -> None:
        """Nothing to learn."""


@dataclass(frozen=True)
class Relative(AbstractStep):
    """lambda = share |c| / |g| per item, so that the push is that share of the costs; costs of zero count as of norm 1.

    Shorter steps are often zero, longer ones blur; from a half to two did about equally well on knapsacks and games.
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        if not self.share > 0:
            raise InputError(f"{self}: the share must be positive.")

    def lengths(self, costs: np.ndarray, push: np.ndarray) -> np.ndarray:
        """share |c| / |g|."""
        return self.share * ratio(costs, push)

    def observe(self, nonzero: float) -> None:
        """Nothing to learn."""


class Adaptive(AbstractStep):
    """Steers beta so that a sample's gradient has `target` non-zero entries. Minervini, Franceschi and Niepert,
    "Adaptive perturbation-based gradient estimation for discrete latent variable models", AAAI 2023.

        n <- decay n + (1 - decay) n_t,   beta <- max(0, beta + rate (+1 if n < target, else -1))

    n_t: non-zero entries per sample, counted, not as a fraction; norms per item. Starts at beta = 0, where gradients
    are zero until it has grown. It keeps beta and n between calls: an object for each layer.
    """

    def __init__(self, target: float = 1.0, rate: float = 1e-3, decay: float = 0.9, beta: float = 0.0):
        if not (target > 0 and rate > 0 and 0 <= decay < 1 and beta >= 0):
            raise InputError(
                f"Adaptive(target={target}, rate={rate}, decay={decay}, beta={beta}): target and rate must be positive, "
                "0 <= decay < 1, beta positive or zero."
            )
        self.target, self.rate, self.decay, self.beta = target, rate, decay, beta
        self.nonzero = 0.0

    def __repr__(self) -> str:
        return f"Adaptive(target={self.target}, rate={self.rate}, decay={self.decay}, beta={self.beta})"

    def lengths(self, costs: np.ndarray, push: np.ndarray) -> np.ndarray:
        """beta |c| / |g|."""
        return self.beta * ratio(costs, push)

    def observe(self, nonzero: float) -> None:
        """One step of the two recursions."""
        self.nonzero = self.decay * self.nonzero + (1 - self.decay) * nonzero
        self.beta = max(0.0, self.beta + (self.rate if self.nonzero < self.target else -self.rate))


def ratio(costs: np.ndarray, push: np.ndarray) -> np.ndarray:
    """|c| / |g| per item, (batch,); a norm of zero counts as one."""
    size, slope = np.linalg.norm(costs, axis=1), np.linalg.norm(push, axis=1)
    found: np.ndarray = np.where(size > 0, size, 1.0) / np.where(slope > 0, slope, 1.0)
    return found
