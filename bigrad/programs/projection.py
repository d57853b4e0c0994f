"""Products of cones: the nearest point, and the derivative of that map at a point, all blocks of a kind at once.

Zero, nonnegative, second-order and semidefinite cones by their eigenvalues (Busseti, Moursi and Boyd, "Solution
refinement at regular points of conic problems", 2019), exponential and power cones in curved.py. A semidefinite block
is the upper triangle, column after column, with off-diagonal entries times sqrt(2). At a kink, where an eigenvalue is
zero, the derivative on the side of the cone is taken: a constraint with neither slack nor multiplier counts as
inactive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bigrad.programs.curved import (
    exponential_room,
    exponential_slope,
    power_room,
    power_slope,
    project_exponential,
    project_power,
)

TOUCH = 1e-7
"""An eigenvalue below this, relative to 1 + the largest of its block, counts as zero."""


@dataclass(frozen=True)
class Cones:
    """Rows in this order: `zero` equalities, `nonneg` inequalities, second-order cones of these dimensions, semidefinite
    ones of these orders, exponential ones, power ones with these exponents.
    """

    zero: int
    nonneg: int
    soc: tuple[int, ...]
    psd: tuple[int, ...]
    exponential: int
    power: tuple[float, ...]

    @cached_property
    def size(self) -> int:
        """Number of rows."""
        curved = 3 * (self.exponential + len(self.power))
        return self.zero + self.nonneg + sum(self.soc) + sum(n * (n + 1) // 2 for n in self.psd) + curved

    @cached_property
    def _blocks(self) -> list[tuple[str, np.ndarray, Any]]:
        """Kind, rows (count, dimension) and exponents of all blocks that are worked on at once."""
        found: list[tuple[str, np.ndarray, Any]] = [
            ("zero", np.arange(self.zero)[:, None], None),
            ("nonneg", self.zero + np.arange(self.nonneg)[:, None], None),
        ]
        at = self.zero + self.nonneg
        for kind, sizes in (("soc", self.soc), ("psd", tuple(n * (n + 1) // 2 for n in self.psd))):
            starts = at + np.cumsum([0, *sizes])
            for size in sorted(set(sizes)):
                first = starts[:-1][np.array(sizes) == size]
                found.append((kind, first[:, None] + np.arange(size), None))
            at += sum(sizes)
        for kind, count, exponents in (
            ("exponential", self.exponential, None),
            ("power", len(self.power), np.array(self.power)),
        ):
            found.append((kind, at + np.arange(3 * count).reshape(count, 3), exponents))
            at += 3 * count
        return [block for block in found if block[1].size]

    def project(self, v: np.ndarray, guess: np.ndarray | None = None) -> np.ndarray:
        """The nearest point of the cone; a guess of it saves time."""
        s = np.zeros_like(v)
        for kind, rows, exponents in self._blocks:
            w = v[rows]
            if kind == "exponential":
                s[rows] = project_exponential(w, None if guess is None else guess[rows])
            elif kind == "power":
                s[rows] = project_power(w, exponents, None if guess is None else guess[rows])
            elif kind == "nonneg":
                s[rows] = np.maximum(w, 0.0)
            elif kind == "soc":
                s[rows] = _project_soc(w)
            elif kind == "psd":
                spectrum, frame = np.linalg.eigh(_matrices(w))
                s[rows] = _triangles((frame * np.maximum(spectrum, 0.0)[:, None, :]) @ frame.mT)
        return s

    def slope(self, v: np.ndarray, guess: np.ndarray | None = None) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """The derivative of `project` at v, a matrix of symmetric blocks: entries, and their rows and columns."""
        entries, across, down = [np.zeros(0)], [np.zeros(0, int)], [np.zeros(0, int)]
        for kind, rows, exponents in self._blocks:
            w = v[rows]
            near = None if guess is None else guess[rows]
            if kind == "zero":
                continue
            if kind == "nonneg":
                D = (w >= -TOUCH * (1 + abs(w)))[:, :, None].astype(float)
            elif kind == "soc":
                D = _soc_slope(w)
            elif kind == "psd":
                D = _psd_slope(w)
            else:
                power = kind == "power"
                D = power_slope(w, exponents, TOUCH, near) if power else exponential_slope(w, TOUCH, near)
            entries.append(D.ravel())
            across.append(np.broadcast_to(rows[:, None, :], D.shape).ravel())
            down.append(np.broadcast_to(rows[:, :, None], D.shape).ravel())
        return np.concatenate(entries), (np.concatenate(down), np.concatenate(across))

    def weak(self, v: np.ndarray, s: np.ndarray) -> int:
        """How many constraints have neither slack nor multiplier at v = s - lam: eigenvalues at zero."""
        return sum(int((abs(e) <= TOUCH * (1 + abs(e).max(-1, keepdims=True))).sum()) for e in self._spectra(v, s))

    def _spectra(self, v: np.ndarray, s: np.ndarray) -> Iterator[np.ndarray]:
        for kind, rows, exponents in self._blocks:
            w = v[rows]
            if kind == "nonneg":
                yield w
            elif kind == "soc":
                r = np.linalg.norm(w[:, 1:], axis=-1)
                yield np.stack([w[:, 0] + r, w[:, 0] - r], -1)
            elif kind == "psd":
                yield np.linalg.eigvalsh(_matrices(w))
            elif kind != "zero":
                room = power_room(s[rows], exponents) if kind == "power" else exponential_room(s[rows])
                yield np.stack([abs(s[rows] - w).max(-1) + room, abs(w).max(-1) + room], -1)


def _project_soc(w: np.ndarray) -> np.ndarray:
    t, r = w[:, :1], np.linalg.norm(w[:, 1:], axis=-1, keepdims=True)
    half = np.maximum(t + r, 0.0) / 2
    edge = np.concatenate([half, half * w[:, 1:] / np.where(r > 0, r, 1.0)], -1)
    return np.where(t >= r, w, np.where(t <= -r, 0.0, edge))


def _soc_slope(w: np.ndarray) -> np.ndarray:
    t, r = w[:, 0], np.linalg.norm(w[:, 1:], axis=-1)
    near = TOUCH * (1 + abs(t) + r)
    u = w[:, 1:] / np.where(r > 0, r, 1.0)[:, None]
    tilt = np.clip(t / np.where(r > 0, r, 1.0), -1.0, 1.0)[:, None, None]
    D = np.empty((len(w), w.shape[1], w.shape[1]))
    D[:, 0, 0] = 0.5
    D[:, 0, 1:] = D[:, 1:, 0] = u / 2
    D[:, 1:, 1:] = ((1 + tilt) * np.eye(w.shape[1] - 1) - tilt * u[:, :, None] * u[:, None, :]) / 2
    D[t + r < -near] = 0.0
    D[t - r >= -near] = np.eye(w.shape[1])
    return D


def _psd_slope(w: np.ndarray) -> np.ndarray:
    spectrum, frame = np.linalg.eigh(_matrices(w))
    n, k = spectrum.shape[-1], w.shape[-1]
    near = TOUCH * (1 + abs(spectrum).max(-1, keepdims=True))
    up = spectrum >= -near
    top, bottom = np.where(up, np.maximum(spectrum, 0.0), 0.0), np.where(up, 0.0, -spectrum)
    total = top[:, :, None] + bottom[:, None, :]
    mixed = top[:, :, None] / np.where(total > 0, total, 1.0)
    weight = np.where(
        up[:, :, None] & up[:, None, :], 1.0, np.where(up[:, :, None], mixed, np.where(up[:, None, :], mixed.mT, 0.0))
    )
    i, j = _corners(n)
    units = _matrices(np.eye(k))
    turned = frame.mT[:, None] @ units @ frame[:, None]
    basis = _triangles(turned.reshape(-1, n, n)).reshape(len(w), k, k)
    return np.einsum("bki,bi,bli->bkl", basis, weight[:, i, j], basis, optimize=True)


def _corners(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the upper triangle, column after column."""
    column, row = np.tril_indices(n)
    return row, column


def svec_matrix(n: int) -> np.ndarray:
    """The matrix from a scaled triangle to the flattened symmetric matrix of order n."""
    return _matrices(np.eye(n * (n + 1) // 2)).reshape(-1, n * n).T


def _matrices(w: np.ndarray) -> np.ndarray:
    n = int(np.sqrt(2 * w.shape[-1]))
    i, j = _corners(n)
    X = np.zeros((len(w), n, n))
    X[:, i, j] = X[:, j, i] = w * np.where(i == j, 1.0, np.sqrt(0.5))
    return X


def _triangles(X: np.ndarray) -> np.ndarray:
    i, j = _corners(X.shape[-1])
    return X[:, i, j] * np.where(i == j, 1.0, np.sqrt(2.0))
