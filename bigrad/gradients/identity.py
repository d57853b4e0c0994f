"""Identity: the solver taken for minus the identity on the way back. Sahoo et al., "Backpropagation through combinatorial
algorithms: identity with projection works", ICLR 2023.

    grad_c = -s Dphi(y)' g        s = +1 where c is minimised, -1 where it is maximised; for phi(y) = y just -s g

No solve backward. A loss on decisions does not change with the scale of costs, nor with their mean where the number of
ones is fixed; this gradient knows neither, and costs drift or collapse. Hence projections: solve at P(c), differentiate
through P.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bigrad.gradients.estimator import AbstractEstimator, Back, features, solve
from bigrad.oracle import Oracle


class AbstractProjection(ABC):
    """A map of costs that leaves decisions as they are."""

    scales: ClassVar[bool] = True
    """Whether P(c) is the same for 2 c, so that its derivative knows the size of c."""

    @abstractmethod
    def forward(self, costs: np.ndarray) -> np.ndarray:
        """P(c), (batch, n)."""

    @abstractmethod
    def back(self, costs: np.ndarray, push: np.ndarray) -> np.ndarray:
        """DP(c)' g, (batch, n)."""


@dataclass(frozen=True)
class MeanFree(AbstractProjection):
    """c - mean(c): for one player whose decisions all have the same number of ones."""

    scales: ClassVar[bool] = False

    def forward(self, costs: np.ndarray) -> np.ndarray:
        """See AbstractProjection.forward."""
        return costs - costs.mean(1, keepdims=True)

    def back(self, costs: np.ndarray, push: np.ndarray) -> np.ndarray:
        """g - mean(g)."""
        return push - push.mean(1, keepdims=True)


@dataclass(frozen=True)
class UnitNorm(AbstractProjection):
    """c / |c|: for any player, and for both players' costs in one vector; costs of zero stay."""

    def forward(self, costs: np.ndarray) -> np.ndarray:
        """See AbstractProjection.forward."""
        return costs / _norm(costs)

    def back(self, costs: np.ndarray, push: np.ndarray) -> np.ndarray:
        """(g - u u'g) / |c| with u = c / |c|."""
        u = self.forward(costs)
        return (push - u * (u * push).sum(1, keepdims=True)) / _norm(costs)


@dataclass(frozen=True)
class Normalised(AbstractProjection):
    """(c - mean(c)) / |c - mean(c)|, the paper's choice: for one player with a fixed number of ones."""

    def forward(self, costs: np.ndarray) -> np.ndarray:
        """See AbstractProjection.forward."""
        return UnitNorm().forward(MeanFree().forward(costs))

    def back(self, costs: np.ndarray, push: np.ndarray) -> np.ndarray:
        """By the chain rule."""
        return MeanFree().back(costs, UnitNorm().back(MeanFree().forward(costs), push))


@dataclass(frozen=True)
class Identity(AbstractEstimator):
    """The decision at P(c) forward, minus the loss's gradient through P backward: the cheapest rule.

    Choose it where solves are dear. projection: an object, or None for none. Features must be at most quadratic in the
    decisions (products of a leader's and a follower's variable are), and defined between them.
    """

    asks: ClassVar[bool] = False
    projection: AbstractProjection | None = None

    def unit(self, costs: np.ndarray) -> np.ndarray | float:
        """|c|, unless the projection divides by it already."""
        return 1.0 if self.projection is not None and self.projection.scales else _norm(costs)

    def estimate(self, oracle: Oracle, costs: np.ndarray) -> tuple[np.ndarray, Back]:
        """See AbstractEstimator.estimate."""
        projection = self.projection
        y = solve(oracle, costs if projection is None else projection.forward(costs))
        features(oracle, y, costs)  # refuses decisions that the costs do not multiply

        def back(push: np.ndarray) -> np.ndarray:
            size = abs(push).max(1, keepdims=True)
            unit = push / np.where(size > 0, size, 1.0)  # differences of quadratics are exact, whatever their length
            ahead, behind = features(oracle, y + unit, costs), features(oracle, y - unit, costs)
            grad = -oracle.sense * size * (ahead - behind) / 2
            return grad if projection is None else projection.back(costs, grad)

        return y, back


def _norm(costs: np.ndarray) -> np.ndarray:
    size = np.linalg.norm(costs, axis=1, keepdims=True)
    return np.where(size > 0, size, 1.0)
