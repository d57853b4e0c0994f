"""Draws: where random numbers come from, and whether two calls share them.

Every call draws an array (batch, samples, n). Two kinds of stream:

    Fresh()        new draws at every call, from torch's generator: torch.manual_seed makes a run repeatable
    Fresh(seed)    new draws at every call, from a stream of its own; the same object made anew repeats the stream
    Common(seed)   the same draws for every call and every item: the rule is then a fixed function of the costs
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from bigrad.gradients.noise import AbstractNoise


class AbstractDraws(ABC):
    """A stream of random numbers."""

    @abstractmethod
    def draw(self, noise: AbstractNoise, batch: int, samples: int, n: int) -> np.ndarray:
        """(batch, samples, n), read-only where the items share them."""


class Fresh(AbstractDraws):
    """Other numbers at every call and for every item; a call is a number in the stream, so calls do not overlap.

    seed: of a stream of its own; None draws from torch's generator, so that torch.manual_seed makes a run repeatable.
    """

    def __init__(self, seed: int | None = None):
        self.seed, self.calls = seed, 0

    def __repr__(self) -> str:
        return f"Fresh({'' if self.seed is None else self.seed})"

    def draw(self, noise: AbstractNoise, batch: int, samples: int, n: int) -> np.ndarray:
        """See AbstractDraws.draw."""
        return noise.draw(np.random.default_rng(self._seed()), (batch, samples, n))

    def _seed(self) -> tuple[int, ...]:
        if self.seed is None:
            import torch

            return (int(torch.randint(2**62, (), device="cpu")),)
        self.calls += 1
        return (self.seed, self.calls)


class Common(AbstractDraws):
    """Common random numbers: the same for every call and item, so that differences between calls are differences of the
    costs alone. seed: of these numbers."""

    def __init__(self, seed: int = 0):
        self.seed = seed

    def __repr__(self) -> str:
        return f"Common({self.seed})"

    def draw(self, noise: AbstractNoise, batch: int, samples: int, n: int) -> np.ndarray:
        """See AbstractDraws.draw."""
        return np.broadcast_to(noise.draw(np.random.default_rng(self.seed), (samples, n)), (batch, samples, n))
