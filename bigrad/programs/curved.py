"""Projections onto the exponential and the three-dimensional power cone, and their derivatives, many points at once.

    exponential: closure of {(x, y, z): y exp(x / y) <= z, y > 0}        power: {(x, y, z): x^a y^(1-a) >= |z|, x, y >= 0}

The first is one increasing equation in one unknown (Friberg, "Projection onto the exponential cone: a univariate
root-finding problem", 2021), and so is the second (Hien, "Differential properties of Euclidean projection onto power
cone", 2015). At a smooth boundary point s = v - mu grad phi(s) with phi(s) = 0, so that by the implicit function theorem
the derivative is M - M g g'M / g'Mg with g = grad phi and M the inverse of I + mu Hess phi.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

STEPS = 200
"""Steps of a root search; Newton's method takes about ten, bisection guards it."""
CLOSE, ROUNDING = 1e-9, 4e-16
"""A root search ends after a Newton step, or a bisection, of this relative size."""
STEEP = 40.0
"""Beyond this the exponential of the negative is zero to rounding."""
FLAT = 1e-13
"""A coordinate below this fraction of the point's size lies on a flat face."""


def project_exponential(v: np.ndarray, guess: np.ndarray | None = None) -> np.ndarray:
    """The nearest points of the exponential cone, (k, 3); a guess of them saves steps."""
    s, inside, polar, flat, far = np.zeros_like(v), _in_exponential(v), _in_exponential_polar(v), _flat(v), _far(v)
    s[inside] = v[inside]
    face = (flat | far) & ~inside & ~polar
    s[face] = np.maximum(v[face], 0.0)
    s[face & flat, 0] = v[face & flat, 0]
    s[face & far, :2] = 0.0
    rest = np.flatnonzero(~(inside | polar | face))
    if len(rest):
        s[rest] = _curve(v[rest], v[rest] if guess is None else guess[rest])
    return s


def exponential_slope(v: np.ndarray, near: float, guess: np.ndarray | None = None) -> np.ndarray:
    """Derivatives of that projection, (k, 3, 3); points within `near` of the cone count as inside."""
    s = project_exponential(v, guess)
    D = np.zeros((len(v), 3, 3))
    inside, polar = _close(v, s, near), _in_exponential_polar(v)
    D[inside] = np.eye(3)
    flat = _flat(v) & ~inside & ~polar
    D[flat, 0, 0], D[flat, 1, 1], D[flat, 2, 2] = 1.0, v[flat, 1] > 0, v[flat, 2] >= 0
    curved = s[:, 1] > FLAT * abs(v).max(-1)
    D[~curved & ~(inside | polar | flat), 2, 2] = 1.0
    at = np.flatnonzero(curved & ~(inside | polar | flat))
    rho, mu = s[at, 0] / s[at, 1], s[at, 2] - v[at, 2]
    top = np.exp(rho)
    gradient = np.stack([top, top * (1 - rho), -np.ones(len(at))], -1)
    bend = np.stack([np.ones(len(at)), -rho, np.zeros(len(at))], -1)
    D[at] = _implicit(gradient, bend, mu * top / s[at, 1])
    return D


def project_power(v: np.ndarray, a: np.ndarray, guess: np.ndarray | None = None) -> np.ndarray:
    """The nearest points of the power cones with exponents a, (k, 3); a guess of them saves steps."""
    s, inside, polar = np.zeros_like(v), _in_power(v, a), _in_power_polar(v, a)
    s[inside] = v[inside]
    level = (v[:, 2] == 0) & ~inside & ~polar
    s[level, :2] = np.maximum(v[level, :2], 0.0)
    rest = np.flatnonzero(~(inside | polar | level))
    if len(rest):
        w, size, b = v[rest], abs(v[rest, 2]), np.c_[a[rest], 1 - a[rest]]

        def sides(r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            lift = (4 * r * (size - r))[:, None] * b
            root = np.sqrt(w[:, :2] ** 2 + lift)
            with np.errstate(divide="ignore", invalid="ignore"):
                lower = np.where(root > w[:, :2], lift / (root - w[:, :2]), 0.0)
                return np.where(w[:, :2] > 0, w[:, :2] + root, lower) / 2, b * (size - 2 * r)[:, None] / root

        def excess(r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            side, slope = sides(r)
            mean = (side**b).prod(-1)
            with np.errstate(divide="ignore", invalid="ignore"):
                return r - mean, 1 - mean * (b * slope / side).sum(-1)

        r = _root(excess, np.zeros(len(rest)), size, size / 2 if guess is None else abs(guess[rest, 2]))
        s[rest] = np.c_[sides(r)[0], np.sign(w[:, 2]) * r]
    return s


def power_slope(v: np.ndarray, a: np.ndarray, near: float, guess: np.ndarray | None = None) -> np.ndarray:
    """Derivatives of that projection, (k, 3, 3); points within `near` of the cone count as inside."""
    s = project_power(v, a, guess)
    D = np.zeros((len(v), 3, 3))
    inside, polar = _close(v, s, near), _in_power_polar(v, a)
    D[inside] = np.eye(3)
    level = (abs(s[:, 2]) <= FLAT * abs(v).max(-1)) & ~inside & ~polar
    D[level, 0, 0], D[level, 1, 1] = v[level, 0] > 0, v[level, 1] > 0
    D[level, 2, 2] = _level_slope(v[level], a[level])
    edge = (s[:, :2] <= FLAT * abs(v).max(-1, keepdims=True)).any(-1) & ~(inside | polar | level)
    D[edge, 0, 0], D[edge, 1, 1] = v[edge, 0] > 0, v[edge, 1] > 0
    D[edge, 2, 2] = abs(s[edge, 2]) > abs(v[edge, 2]) / 2
    at = np.flatnonzero(~(inside | polar | level | edge))
    b, (x, y, z) = np.c_[a[at], 1 - a[at]], s[at].T
    mean = x ** b[:, 0] * y ** b[:, 1]
    gradient = np.c_[-mean[:, None] * b / s[at, :2], np.sign(z)]
    bend = np.stack([1 / x, -1 / y, np.zeros(len(at))], -1)
    mu = abs(v[at, 2]) - abs(z)
    D[at] = _implicit(gradient, bend, mu * mean * b.prod(-1))
    return D


def _level_slope(v: np.ndarray, a: np.ndarray) -> np.ndarray:
    """The derivative of z on the face x = 0 or y = 0, where the point has z = 0."""
    share = np.where(v[:, 0] > 0, 1 - a, a)
    with np.errstate(divide="ignore", invalid="ignore"):
        even = v[:, :2].max(-1) / (2 * -v[:, :2].min(-1))
    return np.where(share < 0.5, 1.0, np.where(share > 0.5, 0.0, even / (1 + even))) * (v[:, :2].max(-1) > 0)


def exponential_room(s: np.ndarray) -> np.ndarray:
    """How far inside the exponential cone points lie, in z; 0 on its flat face."""
    x, y, z = s.T
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(y > 0, np.maximum(z - y * np.exp(x / y), 0.0), 0.0)


def power_room(s: np.ndarray, a: np.ndarray) -> np.ndarray:
    """How far inside the power cones points lie, in z."""
    x, y, z = np.maximum(s[:, 0], 0.0), np.maximum(s[:, 1], 0.0), s[:, 2]
    return np.maximum(x**a * y ** (1 - a) - abs(z), 0.0)


def _implicit(gradient: np.ndarray, bend: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """M - M g g'M / g'Mg with M the inverse of I + weight bend bend'."""
    g = gradient / np.linalg.norm(gradient, axis=-1, keepdims=True)
    with np.errstate(divide="ignore", over="ignore"):
        share = 1 / (1 / weight + (bend**2).sum(-1))
    inverse = np.eye(3) - share[:, None, None] * bend[:, :, None] * bend[:, None, :]
    pull = np.einsum("kij,kj->ki", inverse, g)
    steep = np.maximum(np.einsum("ki,ki->k", g, pull), np.finfo(float).tiny)
    return inverse - pull[:, :, None] * pull[:, None, :] / steep[:, None, None]


def _close(v: np.ndarray, s: np.ndarray, near: float) -> np.ndarray:
    return abs(v - s).max(-1) <= near * (1 + abs(v).max(-1))


def _in_exponential(v: np.ndarray) -> np.ndarray:
    x, y, z = v.T
    with np.errstate(all="ignore"):
        curved = (y > 0) & (y * np.exp(x / y) <= z)
    return curved | ((y == 0) & (x <= 0) & (z >= 0))


def _in_exponential_polar(v: np.ndarray) -> np.ndarray:
    x, y, z = v.T
    with np.errstate(all="ignore"):
        curved = (x > 0) & (x * np.exp(y / x) <= -np.e * z)
    return curved | ((x == 0) & (y <= 0) & (z <= 0))


def _in_power(v: np.ndarray, a: np.ndarray) -> np.ndarray:
    x, y, z = v.T
    return (x >= 0) & (y >= 0) & (np.maximum(x, 0) ** a * np.maximum(y, 0) ** (1 - a) >= abs(z))


def _in_power_polar(v: np.ndarray, a: np.ndarray) -> np.ndarray:
    x, y, z = -v.T
    return (x >= 0) & (y >= 0) & ((np.maximum(x, 0) / a) ** a * (np.maximum(y, 0) / (1 - a)) ** (1 - a) >= abs(z))


def _flat(v: np.ndarray) -> np.ndarray:
    """Nearest to the face where the exponential is zero, to rounding."""
    return (v[:, 0] <= 0) & (v[:, 0] <= -STEEP * v[:, 1])


def _far(v: np.ndarray) -> np.ndarray:
    """Nearest to the ray (0, 0, z), to rounding."""
    return (v[:, 0] > 0) & (v[:, 1] < -STEEP * v[:, 0])


def _curve(v: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Projections onto the curved face of the exponential cone: the unknown is rho, the first coordinate over the second.

    It is counted from an end of its interval, so that (rho - 1) x + y has no cancellation.
    """
    (x, y, z), right = v.T, v[:, 0] > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        start = np.where(right, 1 - y / x, x / y)
        width = np.where(right & (y > 0), x / y - start, 2 * STEEP)
    sign = np.where(right, 1.0, -1.0)

    def line(step: np.ndarray, rho: np.ndarray) -> np.ndarray:
        return np.where(right, x * step, (rho - 1) * x + y)

    def gap(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rho = start + sign * step
        up, down = np.exp(rho), np.exp(-rho)
        value = line(step, rho) * up - np.where(right, x - rho * y, y * step) * down - (rho * (rho - 1) + 1) * z
        slope = (rho * x + y) * up + (x - (rho - 1) * y) * down - (2 * rho - 1) * z
        return sign * value, slope

    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        step = _root(gap, np.zeros_like(x), width, sign * (guess[:, 0] / guess[:, 1] - start))
    rho = start + sign * step
    part = np.maximum(line(step, rho), 0.0) / (rho * (rho - 1) + 1)
    return np.stack([rho * part, part, np.exp(rho) * part], -1)


def _root(
    function: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    low: np.ndarray,
    high: np.ndarray,
    begin: np.ndarray,
) -> np.ndarray:
    """The roots of increasing functions within brackets, by Newton's method guarded by bisection; begun where that is
    inside.
    """
    at = np.where((begin > low) & (begin < high), begin, (low + high) / 2)
    older = last = high - low
    for _ in range(STEPS):
        value, slope = function(at)
        low, high = np.where(value < 0, at, low), np.where(value < 0, high, at)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            newton = at - value / slope
        quick = (newton >= low) & (newton <= high) & (abs(newton - at) <= older / 2)
        after = np.where(quick, newton, (low + high) / 2)
        step = abs(after - at)
        at, older, last = after, last, step
        if (step <= np.where(quick, CLOSE, ROUNDING) * abs(at)).all():
            break
    return at
