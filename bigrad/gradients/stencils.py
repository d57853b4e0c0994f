"""Stencils: a derivative at zero from values at a few points, sum of weight(beta_k) value(beta_k) / beta."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


class AbstractStencil(ABC):
    """Which multiples of beta are asked for, with which weights."""

    @property
    @abstractmethod
    def points(self) -> tuple[tuple[float, float], ...]:
        """(multiple of beta, weight) in the order in which they are visited."""


@dataclass(frozen=True)
class Forward(AbstractStencil):
    """(g(beta) - g(0)) / beta: one nudged solve, error of order beta."""

    @property
    def points(self) -> tuple[tuple[float, float], ...]:
        """0 and 1."""
        return (0.0, -1.0), (1.0, 1.0)


@dataclass(frozen=True)
class Central(AbstractStencil):
    """(g(beta) - g(-beta)) / 2 beta: two nudged solves, error of order beta^2."""

    @property
    def points(self) -> tuple[tuple[float, float], ...]:
        """1 and -1."""
        return (1.0, 0.5), (-1.0, -0.5)


@dataclass(frozen=True)
class SecondOrder(AbstractStencil):
    """(-1.5 g(0) + 2 g(beta) - 0.5 g(2 beta)) / beta: error of order beta^2 without a nudge backwards."""

    @property
    def points(self) -> tuple[tuple[float, float], ...]:
        """0, 1 and 2."""
        return (0.0, -1.5), (1.0, 2.0), (2.0, -0.5)
