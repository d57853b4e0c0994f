"""NCE and MAP: a known decision against the others of a pool S. Mulamba et al., IJCAI 2021.

With s = +1 where costs are minimised, -1 where maximised, and ybar the known decision,

    NCE   L = mean_{y in S} s c'(phi(ybar) - phi(y))          grad = s (phi(ybar) - mean phi(y))
    MAP   L = max_{y in S} s c'(phi(ybar) - phi(y))           grad = s (phi(ybar) - phi(y of the max))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from bigrad.gradients.estimator import features
from bigrad.losses.base import AbstractLoss, Evaluated, along, dot
from bigrad.losses.pool import Pool
from bigrad.oracle import Oracle


@dataclass(frozen=True)
class NCE(AbstractLoss):
    """Noise-contrastive: the known decision (target) better than the pool's mean.

    Linear in the costs, so without a minimum: bound the costs, or stop by regret. The targets join the pool.
    """

    costs_known: ClassVar[bool] = False
    pool: Pool = field(default_factory=Pool)

    def evaluate(self, oracle: Oracle, costs: np.ndarray, target: np.ndarray, best: np.ndarray | None) -> Evaluated:
        """See AbstractLoss.evaluate."""
        phi = _grown(self.pool, oracle, costs, target)
        slope = oracle.sense * (features(oracle, target, costs) - phi.mean(0))
        return Evaluated(dot(costs, slope), along(slope), _decide(self.pool, oracle, costs))


@dataclass(frozen=True)
class MAP(AbstractLoss):
    """Maximum a posteriori: the known decision (target) no worse than the pool's best; L >= 0. The targets join the pool."""

    costs_known: ClassVar[bool] = False
    pool: Pool = field(default_factory=Pool)

    def evaluate(self, oracle: Oracle, costs: np.ndarray, target: np.ndarray, best: np.ndarray | None) -> Evaluated:
        """See AbstractLoss.evaluate."""
        phi = _grown(self.pool, oracle, costs, target)
        slope = oracle.sense * (features(oracle, target, costs) - phi[self.pool.best(oracle, costs)])
        return Evaluated(dot(costs, slope), along(slope), _decide(self.pool, oracle, costs))


def _grown(pool: Pool, oracle: Oracle, costs: np.ndarray, target: np.ndarray) -> np.ndarray:
    pool.add(target)
    pool.grow(oracle, costs)
    return pool.features(oracle, costs.shape[1])


def _decide(pool: Pool, oracle: Oracle, costs: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: pool.decisions[pool.best(oracle, costs)]
