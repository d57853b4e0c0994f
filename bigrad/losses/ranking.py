"""Pointwise, Pairwise and Listwise: predicted costs should rank a pool S as the true ones do. Mandi, Bucarey, Mulamba and
Guns, "Decision-focused learning: through the lens of learning to rank", ICML 2022.

With values v_y = s c'phi(y) at the true costs and w_y = s hat'phi(y) at the predicted ones, both minimised,

    Pointwise   L = mean_y (w_y - v_y)^2
    Pairwise    L = mean_y max(0, margin + w_best - w_y),  best = argmin v,  y not best
    Listwise    L = - sum_y p_y log q_y,                   p = softmax(-v / tau), q = softmax(-w / tau)
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from bigrad.losses.base import AbstractLoss, Evaluated, along
from bigrad.losses.pool import Pool
from bigrad.oracle import Oracle
from bigrad.solution import InputError


@dataclass(frozen=True)
class AbstractRanking(AbstractLoss):
    """A loss of the values of a pool's decisions; target: true costs. An empty pool starts with their decisions."""

    costs_known: ClassVar[bool] = True
    pool: Pool = field(default_factory=Pool)

    @abstractmethod
    def compare(self, w: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The loss of predicted values w and true ones v, both (batch, k), (batch,), and its gradient in w."""

    def evaluate(self, oracle: Oracle, costs: np.ndarray, target: np.ndarray, best: np.ndarray | None) -> Evaluated:
        """See AbstractLoss.evaluate."""
        if best is not None:
            self.pool.add(best)
        elif not len(self.pool):
            self.pool.grow(oracle, target)
        self.pool.grow(oracle, costs)
        phi, decisions = self.pool.features(oracle, costs.shape[1]), self.pool.decisions
        w = (oracle.sense * costs) @ phi.T
        value, slope = self.compare(w, (oracle.sense * target) @ phi.T)
        return Evaluated(value, along(oracle.sense * (slope @ phi)), lambda: decisions[w.argmin(1)])


@dataclass(frozen=True)
class Pointwise(AbstractRanking):
    """Values as the true ones: regression where it matters."""

    def compare(self, w: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See AbstractRanking.compare."""
        return ((w - v) ** 2).mean(1), 2 * (w - v) / w.shape[1]


@dataclass(frozen=True)
class Pairwise(AbstractRanking):
    """The truly best before all others, by a margin (in units of value; without one, costs of zero lose nothing)."""

    margin: float = 0.0

    def compare(self, w: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See AbstractRanking.compare."""
        batch, best = np.arange(len(w)), v.argmin(1)
        gap = self.margin + w[batch, best][:, None] - w
        gap[batch, best] = 0.0
        others = max(1, w.shape[1] - 1)
        slope = np.where(gap > 0, -1 / others, 0.0)
        slope[batch, best] = -slope.sum(1)
        return np.maximum(gap, 0).sum(1) / others, slope


@dataclass(frozen=True)
class Listwise(AbstractRanking):
    """The whole order, as a distribution; tau: its temperature, in units of value."""

    tau: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tau > 0:
            raise InputError(f"Listwise(tau={self.tau}): tau must be positive.")

    def compare(self, w: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See AbstractRanking.compare."""
        p, q = _log_softmax(-v / self.tau), _log_softmax(-w / self.tau)
        return -(np.exp(p) * q).sum(1), (np.exp(p) - np.exp(q)) / self.tau


def _log_softmax(a: np.ndarray) -> np.ndarray:
    a = a - a.max(1, keepdims=True)
    found: np.ndarray = a - np.log(np.exp(a).sum(1, keepdims=True))
    return found
