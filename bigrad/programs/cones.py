"""Second-order, exponential and power cones as perspectives, with all the derivatives that exact optimality conditions
need.

Each of these cones is, in coordinates fit for the place (a chart), the epigraph of the perspective of a convex h:

    phi(p) = line'p - b h(a / b) >= 0,  b > 0,   (a, b) some of the coordinates p, h summed over the entries of a.

Its boundary is smooth but for the apex, so there a point p of the cone and a q of the dual cone with p'q = 0 are those
with q = mu grad phi(p) for a mu >= 0 with mu phi(p) = 0. The other way round, the dual cone is the image of the cone
under a linear map (`lift`), and p = mu grad phi*(q), mu phi*(q) = 0. The first form holds everywhere but at p = 0, the
second everywhere but at q = 0. Boyd and Vandenberghe, "Convex Optimization", 2004, sections 2.2, 2.6 and 3.2.6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

TINY = 1e-12
"""Where a power's higher derivative has a pole at zero, arguments nearer than this count as this far."""
STEEP, FLAT = 3.0, 1e-3
"""Beyond these ratios of the first two coordinates the second chart of an exponential or a power cone is the better one."""

Curve = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]


class Chart(Protocol):
    """A function phi on the coordinates of a cone, smooth where floor'p is positive, with {phi >= 0} the cone there."""

    @property
    def floor(self) -> np.ndarray:
        """The linear function that is positive where the chart holds."""

    def first(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """phi and its gradients at points p (k, size): (k,) and (k, size); not finite where phi is not defined."""

    def second(self, p: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hessians of phi at points p (k, size), and their derivatives along directions (k, size): (k, size, size) both."""


@dataclass(frozen=True, eq=False)
class Perspective:
    """The function phi(p) = line'p - b h(a / b) with a = p[over], b = p[under]; h and its three derivatives by `curve`."""

    line: np.ndarray
    over: np.ndarray
    under: int
    curve: Curve

    @property
    def floor(self) -> np.ndarray:
        """See Chart."""
        return np.eye(len(self.line))[self.under]

    def first(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """phi and its gradients at points p (k, size): (k,) and (k, size); not finite where phi is not defined."""
        with np.errstate(all="ignore"):
            b = np.where(p[:, self.under] > 0, p[:, self.under], np.nan)
            r = p[:, self.over] / b[:, None]
            h, h1, _, _ = self.curve(r)
            total = h.sum(1)
            gradient = np.empty(p.shape)
            gradient[:] = self.line
            gradient[:, self.over] -= h1
            gradient[:, self.under] -= total - (r * h1).sum(1)
            return p @ self.line - b * total, gradient

    def second(self, p: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hessians of phi at points p (k, size), and their derivatives along directions (k, size): (k, size, size) both."""
        over, under = self.over, self.under
        with np.errstate(all="ignore"):
            b = np.where(p[:, under] > 0, p[:, under], np.nan)[:, None]
            r = p[:, over] / b
            _, _, h2, h3 = self.curve(r)
            slope = np.zeros((len(p), len(over), p.shape[1]))
            slope[:, np.arange(len(over)), over] = 1.0
            slope[:, :, under] -= r
            turn = (slope @ along[:, :, None])[..., 0] / b
            mixed = np.zeros((len(p), p.shape[1], p.shape[1]))
            mixed[:, under] = ((turn * h2 / b)[:, None, :] @ slope)[:, 0]
            weight = (h3 * turn - h2 * along[:, [under]] / b) / b
            both = slope.mT @ np.concatenate([(h2 / b)[:, :, None] * slope, weight[:, :, None] * slope], 2)
            hessian, third = both[..., : p.shape[1]], both[..., p.shape[1] :]
            return -hessian, mixed + mixed.mT - third


@dataclass(frozen=True, eq=False)
class Cone:
    """A cone of some size.

    lift: the linear map of the dual cone onto the cone; inner: a point inside; charts: of its boundary; holds: whether a
    point is in it, edges included; fit: which of the charts suits a point best; alpha: of a power cone.
    """

    name: str
    size: int
    lift: np.ndarray
    inner: np.ndarray
    charts: tuple[Chart, ...]
    holds: Callable[[np.ndarray], bool]
    fit: Callable[[np.ndarray], int] = lambda p: 0
    alpha: float = np.nan


def _in_second_order(p: np.ndarray) -> bool:
    return bool(p[0] >= np.linalg.norm(p[1:]))


def _in_exponential(p: np.ndarray) -> bool:
    x, y, z = p
    return bool(z >= y * np.exp(x / y)) if y > 0 else bool(y == 0 and x <= 0 and z >= 0)


def _in_power(alpha: float) -> Callable[[np.ndarray], bool]:
    return lambda p: bool(min(p[:2]) >= 0 and p[0] ** alpha * p[1] ** (1 - alpha) >= abs(p[2]))


@cache
def second_order(size: int) -> Cone:
    """t >= |u| for p = (t, u), as t >= |u|^2 / t."""
    head = np.eye(size)[0]
    return Cone("SOC", size, np.eye(size), head, (Perspective(head, np.arange(1, size), 0, _square),), _in_second_order)


@cache
def exponential() -> Cone:
    """z >= y exp(x / y), y > 0 for p = (x, y, z); also as -x >= y (-log)(z / y), better scaled for large x / y."""
    lift = np.array([[1.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    charts = (
        Perspective(np.array([0.0, 0.0, 1.0]), np.array([0]), 1, _exp),
        Perspective(np.array([-1.0, 0.0, 0.0]), np.array([2]), 1, _minus_log),
    )
    return Cone(
        "ExpCone", 3, lift, np.array([-1.0, 1.0, 1.0]), charts, _in_exponential, lambda p: int(p[0] > STEEP * p[1])
    )


@cache
def power(alpha: float) -> Cone:
    """x^alpha y^(1 - alpha) >= |z| for p = (x, y, z), as x >= y |z / y|^(1 / alpha) or the same with x and y exchanged."""
    one = np.eye(3)
    charts = (
        Perspective(one[0], np.array([2]), 1, _power(1 / alpha)),
        Perspective(one[1], np.array([2]), 0, _power(1 / (1 - alpha))),
    )
    lift, inner = np.diag([1 / alpha, 1 / (1 - alpha), 1.0]), np.array([1.0, 1.0, 0.0])
    return Cone("PowCone3D", 3, lift, inner, charts, _in_power(alpha), lambda p: int(p[1] < FLAT * p[0]), alpha)


def _square(r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return r * r, 2 * r, np.full(r.shape, 2.0), np.zeros(r.shape)


def _exp(r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    e = np.exp(r)
    return e, e, e, e


def _minus_log(r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return -np.log(r), -1 / r, 1 / r**2, -2 / r**3


def _power(p: float) -> Curve:
    def curve(r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        size, sign = np.maximum(abs(r), TINY), np.sign(r)
        return (
            abs(r) ** p,
            p * abs(r) ** (p - 1) * sign,
            p * (p - 1) * size ** (p - 2),
            p * (p - 1) * (p - 2) * size ** (p - 3) * sign,
        )

    return curve
