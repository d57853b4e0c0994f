"""Baselines: what is subtracted from a sample's reward r_j before its score multiplies it.

As long as it does not depend on the sample itself, the estimate stays unbiased: scores have mean zero. Kool, van Hoof
and Welling, "Buy 4 REINFORCE samples, get a baseline for free!", 2019.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bigrad.solution import InputError


class AbstractBaseline(ABC):
    """A control variate."""

    central: ClassVar[bool]
    """Whether the reward of the unperturbed costs is needed: one more solve an item."""

    @abstractmethod
    def check(self, samples: int, group: int) -> None:
        """InputError if so many samples, dependent within groups of `group`, are too few."""

    @abstractmethod
    def residual(self, rewards: np.ndarray, centre: np.ndarray | None, group: int) -> np.ndarray:
        """(batch, samples) rewards less the baseline; samples are independent of those outside their group."""


@dataclass(frozen=True)
class LeaveOneOut(AbstractBaseline):
    """The mean reward of the other samples: (r_j - mean r) m / (m - 1). An antithetic twin is left out too."""

    central: ClassVar[bool] = False

    def check(self, samples: int, group: int) -> None:
        """More samples than one group has."""
        if samples <= group:
            raise InputError(
                f"LeaveOneOut() needs more than {group} samples, got {samples}. Use AtCentre(), or baseline=None."
            )

    def residual(self, rewards: np.ndarray, centre: np.ndarray | None, group: int) -> np.ndarray:
        """See AbstractBaseline.residual."""
        batch, samples = rewards.shape
        own = rewards.reshape(batch, samples // group, group).sum(-1).repeat(group, axis=1)
        return rewards - (rewards.sum(1, keepdims=True) - own) / (samples - group)


@dataclass(frozen=True)
class AtCentre(AbstractBaseline):
    """The reward at the costs themselves, for one more solve; works with a single sample."""

    central: ClassVar[bool] = True

    def check(self, samples: int, group: int) -> None:
        """Any number will do."""

    def residual(self, rewards: np.ndarray, centre: np.ndarray | None, group: int) -> np.ndarray:
        """See AbstractBaseline.residual."""
        assert centre is not None
        return rewards - centre[:, None]
