"""Potential: a smoothed optimal value, which Fenchel-Young losses are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from bigrad.oracle import Oracle


@dataclass(frozen=True)
class Potential:
    """Of each item: value of F, (batch,); slope dF/dc, (batch, n); decisions, the smoothed ones, (batch, m)."""

    value: np.ndarray
    slope: np.ndarray
    decisions: np.ndarray


class AbstractPotential(ABC):
    """A concave F(c) near min_y s c'phi(y), with s = +1 where c is minimised, -1 where it is maximised."""

    @abstractmethod
    def potential(self, oracle: Oracle, costs: np.ndarray) -> Potential:
        """F at costs (batch, n)."""

    @abstractmethod
    def entropy(self, features: np.ndarray) -> np.ndarray:
        """Omega(phi), (batch,), with F(c) = min s c'f + Omega(f); zero where it is not known."""
