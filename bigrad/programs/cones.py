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
EDGE = 1e-6
"""A p this much smaller than its q is the apex of the cone, where another chart must take over."""
FITS = 1e-4
"""A q further than this from mu grad phi(p), relatively, belongs into a chart of the other kind."""

Curve = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]


class Form(Protocol):
    """The equations that put k blocks of size d on the boundary of the cone and its dual, as functions of u = (s, lam) (k, 2 d)
    and of mu (k,): `coupling` == 0, minus the slack phi of the pair (mu, phi), and minus b, which is positive where they
    hold; not finite where they are not defined.
    """

    def values(self, u: np.ndarray, mu: np.ndarray) -> np.ndarray:
        """(coupling, -phi, -b), (k, d + 2)."""

    def slopes(self, u: np.ndarray, mu: np.ndarray) -> np.ndarray:
        """Their derivatives by (u, mu), (k, d + 2, 2 d + 1)."""

    def curved(self, u: np.ndarray, mu: np.ndarray, m: np.ndarray) -> np.ndarray:
        """Second derivatives of their sums with weights m (k, d + 2), (k, 2 d + 1, 2 d + 1)."""

    def edge(self, u: np.ndarray) -> np.ndarray:
        """Whether the form ends here, bool (k,)."""


@dataclass(frozen=True, eq=False)
class Perspective:
    """A chart phi(p) = line'p - b h(a / b) with a = p[over], b = p[under]; h and its three derivatives by `curve`."""

    line: np.ndarray
    over: np.ndarray
    under: int
    curve: Curve

    @property
    def floor(self) -> np.ndarray:
        """The linear function that is positive where the chart holds."""
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
class Boundary:
    """The form (see Form) q = mu grad phi(p) of a chart, p the point or, if `dual`, the image `into` of the multiplier."""

    chart: Perspective
    into: np.ndarray
    dual: bool

    def _split(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """p and q."""
        s, lam = np.split(u, 2, axis=1)
        return (lam @ self.into.T, s) if self.dual else (s @ self.into.T, lam)

    def values(self, u: np.ndarray, mu: np.ndarray) -> np.ndarray:
        """See Form."""
        p, q = self._split(u)
        phi, gradient = self.chart.first(p)
        return np.c_[q - mu[:, None] * (gradient @ self.into), -phi, -p @ self.chart.floor]

    def slopes(self, u: np.ndarray, mu: np.ndarray) -> np.ndarray:
        """See Form."""
        p, _ = self._split(u)
        k, d = p.shape
        own, other = (slice(d, 2 * d), slice(0, d)) if self.dual else (slice(0, d), slice(d, 2 * d))
        gradient = self.chart.first(p)[1] @ self.into
        out = np.zeros((k, d + 2, 2 * d + 1))
        out[:, :d, own] = -mu[:, None, None] * self._bend(p, np.zeros_like(p))[0]
        out[:, :d, other] = np.eye(d)
        out[:, :d, -1] = out[:, d, own] = -gradient
        out[:, d + 1, own] = -(self.chart.floor @ self.into)
        return out

    def curved(self, u: np.ndarray, mu: np.ndarray, m: np.ndarray) -> np.ndarray:
        """See Form."""
        p, _ = self._split(u)
        k, d = p.shape
        own, weight = slice(d, 2 * d) if self.dual else slice(0, d), m[:, :d]
        hessian, third = self._bend(p, weight @ self.into.T)
        out = np.zeros((k, 2 * d + 1, 2 * d + 1))
        out[:, own, own] = -(mu[:, None, None] * third + m[:, d, None, None] * hessian)
        out[:, -1, own] = out[:, own, -1] = -(hessian @ weight[:, :, None])[..., 0]
        return out

    def _bend(self, p: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hessian of phi, and its derivative along a direction, in the block's coordinates."""
        hessian, third = self.chart.second(p, along)
        return self.into.T @ hessian @ self.into, self.into.T @ third @ self.into

    def edge(self, u: np.ndarray) -> np.ndarray:
        """See Form."""
        near, far = (abs(part).max(1) for part in np.split(u, 2, axis=1)[:: -1 if self.dual else 1])
        return near <= EDGE * np.maximum(far, EDGE)

    def fits(self, s: np.ndarray, lam: np.ndarray) -> tuple[float, float]:
        """The mu of one pair, and how far q is from mu grad phi(p), relatively."""
        p, q = self._split(np.r_[s, lam][None])
        gradient = (self.chart.first(p)[1] @ self.into)[0]
        with np.errstate(invalid="ignore", divide="ignore"):
            mu = max(gradient @ q[0] / (gradient @ gradient), 0.0)
            miss = abs(q[0] - mu * gradient).max() / (abs(s).max() + abs(lam).max())
        return (float(mu), float(miss)) if np.isfinite(miss) else (0.0, np.inf)


@dataclass(frozen=True, eq=False)
class Cone:
    """A cone of some size.

    lift: the linear map of the dual cone onto the cone; inner, outer: a point inside, and a multiplier to begin with;
    forms: of the equations; seat: which of them suits s and lam, and their mu, given which of the two is never zero (+1,
    -1, or 0); holds: whether a point is in it, edges included; alpha: of a power cone; mixed: some form has second
    derivatives by s and lam.
    """

    name: str
    size: int
    lift: np.ndarray
    inner: np.ndarray
    outer: np.ndarray
    forms: tuple[Form, ...]
    seat: Callable[[np.ndarray, np.ndarray, float], tuple[int, float]]
    holds: Callable[[np.ndarray], bool]
    alpha: float = np.nan
    mixed: bool = False


def _perspectives(
    name: str,
    lift: np.ndarray,
    inner: np.ndarray,
    charts: tuple[Perspective, ...],
    holds: Callable[[np.ndarray], bool],
    fit: Callable[[np.ndarray], int] = lambda p: 0,
    alpha: float = np.nan,
) -> Cone:
    """A Cone by charts of its boundary. fit: which of them suits a point best.

    Form number 2 i is chart i at s, number 2 i + 1 the same at lam.
    """
    size = len(inner)
    forms = tuple(Boundary(c, lift if dual else np.eye(size), dual) for c in charts for dual in (False, True))

    def seat(s: np.ndarray, lam: np.ndarray, lean: float) -> tuple[int, float]:
        near, far = abs(s).max(), abs(lam).max()
        dual = near <= EDGE * far or (far > EDGE * near and (lean < 0 or (lean == 0 and near < far)))
        numbers = [2 * fit(lift @ lam) + 1 if side else 2 * fit(s) for side in (dual, not dual)]
        fitted = [(k, *forms[k].fits(s, lam)) for k in numbers]
        number, mu, _ = next((found for found in fitted if found[2] <= FITS), fitted[0])
        return number, mu

    return Cone(name, size, lift, inner, np.linalg.solve(lift, inner), forms, seat, holds, alpha)


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
    chart = Perspective(head, np.arange(1, size), 0, _square)
    return _perspectives("SOC", np.eye(size), head, (chart,), _in_second_order)


@cache
def exponential() -> Cone:
    """z >= y exp(x / y), y > 0 for p = (x, y, z); also as -x >= y (-log)(z / y), better scaled for large x / y."""
    lift = np.array([[1.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    charts = (
        Perspective(np.array([0.0, 0.0, 1.0]), np.array([0]), 1, _exp),
        Perspective(np.array([-1.0, 0.0, 0.0]), np.array([2]), 1, _minus_log),
    )
    inner = np.array([-1.0, 1.0, 1.0])
    return _perspectives("ExpCone", lift, inner, charts, _in_exponential, lambda p: int(p[0] > STEEP * p[1]))


@cache
def power(alpha: float) -> Cone:
    """x^alpha y^(1 - alpha) >= |z| for p = (x, y, z), as x >= y |z / y|^(1 / alpha) or the same with x and y exchanged."""
    one = np.eye(3)
    charts = (
        Perspective(one[0], np.array([2]), 1, _power(1 / alpha)),
        Perspective(one[1], np.array([2]), 0, _power(1 / (1 - alpha))),
    )
    lift, inner = np.diag([1 / alpha, 1 / (1 - alpha), 1.0]), np.array([1.0, 1.0, 0.0])
    return _perspectives("PowCone3D", lift, inner, charts, _in_power(alpha), lambda p: int(p[1] < FLAT * p[0]), alpha)


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
