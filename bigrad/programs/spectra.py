"""The cone of semidefinite matrices, at points and multipliers of any ranks.

A point S of the cone and a multiplier Lam with S Lam = 0 have eigenvectors in common, and Z = S - Lam has those of S
with the eigenvalues of S, and those of Lam with minus the eigenvalues of Lam. So S is the positive part of Z, and smooth
in Z as long as no eigenvalue crosses zero. Of the one that may, z_j, the pair (mu, phi) says which side it is on:

    S = sum over i > j of z_i v_i v_i' + phi v_j v_j',      phi = z_j + mu,      z_(j-1) <= 0 <= z_(j+1),

with the eigenvalues z_i of Z in ascending order. These are divided differences of f(z_i) = (0, phi, z_i), whose terms
within a group of eigenvalues are linear; that of z_j must be apart, unless there is none. A matrix is kept as its upper
triangle column by column, entries off the diagonal times sqrt(2). Bhatia, "Matrix Analysis", 1997, chapter V.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from bigrad.programs.cones import EDGE, Cone

APART = 1e-2
"""An eigenvalue this near to its neighbour on the same side of zero, relative to the largest, is not held apart."""
GAP = 1e-9
"""Eigenvalues of two groups that are nearer than this, relative to the largest, count as this far apart."""


@cache
def basis(order: int) -> np.ndarray:
    """The matrix of each coordinate, (size, order, order)."""
    made = []
    for j in range(order):
        for i in range(j + 1):
            unit = np.zeros((order, order))
            unit[i, j] = unit[j, i] = 1.0 if i == j else 0.5**0.5
            made.append(unit)
    return np.array(made)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The form (see Form) in which the first `below` eigenvalues of Z belong to Lam, the next one to the pair if there is one
    held apart, the others to S. Without one, mu has no part in it and phi is 1.
    """

    order: int
    below: int
    apart: bool

    @cached_property
    def _group(self) -> np.ndarray:
        """0, 1 or 2 for the eigenvalues of Lam, of the pair, of S."""
        i = np.arange(self.order)
        return (i >= self.below).astype(int) + (i >= self.below + self.apart)

    @cached_property
    def _own(self) -> np.ndarray:
        """Indicator of the eigenvalue held apart."""
        return (self._group == 1).astype(float)

    def _split(self, u: np.ndarray, mu: np.ndarray) -> tuple[np.ndarray, ...]:
        """Eigenvalues z (k, n) of Z, their images f, and the basis in eigenvectors, G (k, size, n, n)."""
        d = u.shape[1] // 2
        Z = np.tensordot(u[:, :d] - u[:, d:], basis(self.order), 1)
        good = np.isfinite(Z).all((1, 2), keepdims=True)
        z, V = np.linalg.eigh(np.where(good, Z, np.eye(self.order)))
        V = np.where(good, V, np.nan)
        G = V.mT[:, None] @ basis(self.order) @ V[:, None]
        return z, np.where(self._group == 2, z, self._own * (z + mu[:, None])), G

    def _differences(self, z: np.ndarray) -> np.ndarray:
        """z_p - z_q (k, n, n), kept away from zero."""
        least = GAP * abs(z).max(1)[:, None, None] + 1e-30
        sign = np.sign(np.arange(self.order)[:, None] - np.arange(self.order))
        return np.where(sign == 0, 1.0, sign * np.maximum(sign * (z[:, :, None] - z[:, None, :]), least))

    def _first(self, z: np.ndarray, f: np.ndarray) -> np.ndarray:
        """First divided differences f[p, q], (k, n, n)."""
        same = self._group[:, None] == self._group
        across = (f[:, :, None] - f[:, None, :]) / self._differences(z)
        return np.where(same, (self._group > 0).astype(float), across)

    def _second(self, z: np.ndarray, f: np.ndarray) -> np.ndarray:
        """Second divided differences f[p, q, r], (k, n, n, n): by a pair of two groups, or zero if all are of one."""
        first, gap, g = self._first(z, f), self._differences(z), self._group
        pq, qr, pr = first[:, :, :, None], first[:, None, :, :], first[:, :, None, :]
        by_ends, by_sides = (pq - qr) / gap[:, :, None, :], (pr - qr) / gap[:, :, :, None]
        ends, sides = (g[:, None, None] != g), (g[:, None] != g)[:, :, None]
        return np.where(ends, by_ends, np.where(sides, by_sides, 0.0))

    def _margin(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which eigenvalue (k,) is the first to come to zero on the wrong side, and the side it should be on."""
        last, first = self.below - 1, self.below + self.apart
        if last < 0 or first == self.order:
            at, side = (first, 1.0) if last < 0 else (last, -1.0)
            return np.full(len(z), at), np.full(len(z), side)
        upper = z[:, first] <= -z[:, last]
        return np.where(upper, first, last), np.where(upper, 1.0, -1.0)

    def values(self, u: np.ndarray, mu: np.ndarray) -> np.ndarray:
        """See Form."""
        z, f, G = self._split(u, mu)
        at, side = self._margin(z)
        coupling = u[:, : G.shape[1]] - np.einsum("kaii,ki->ka", G, f)
        phi = f @ self._own if self.apart else np.ones(len(z))
        return np.c_[coupling, -phi, -side * z[np.arange(len(z)), at]]

    def slopes(self, u: np.ndarray, mu: np.ndarray) -> np.ndarray:
        """See Form."""
        z, f, G = self._split(u, mu)
        k, d = G.shape[:2]
        at, side = self._margin(z)
        own = np.einsum("kaii,i->ka", G, self._own)
        J = (G * self._first(z, f)[:, None]).reshape(k, d, -1) @ G.reshape(k, d, -1).mT
        out = np.zeros((k, d + 2, 2 * d + 1))
        out[:, :d, :d], out[:, :d, d:-1], out[:, :d, -1] = np.eye(d) - J, J, -own
        out[:, d, :d], out[:, d, d:-1], out[:, d, -1] = -own, own, -float(self.apart)
        out[:, d + 1, :d] = -side[:, None] * G[np.arange(k), :, at, at]
        out[:, d + 1, d:-1] = -out[:, d + 1, :d]
        return out

    def curved(self, u: np.ndarray, mu: np.ndarray, m: np.ndarray) -> np.ndarray:
        """See Form."""
        z, f, G = self._split(u, mu)
        k, d = G.shape[:2]
        W = np.einsum("ka,kapq->kpq", m[:, :d], G)
        M = W[:, :, None, :] * self._second(z, f)
        A = G.transpose(0, 3, 1, 2)
        H = -2 * (A @ M.transpose(0, 2, 1, 3) @ A.mT).sum(1)
        at, side = self._margin(z)
        H -= (m[:, d + 1] * side)[:, None, None] * self._turn(z, G, at)
        mixed = np.zeros((k, d))
        if self.apart:
            j = np.full(k, self.below)
            H -= m[:, d, None, None] * self._turn(z, G, j)
            mixed = -2 * np.einsum("kq,kaq->ka", W[:, self.below] * self._inverse(z, j), G[:, :, self.below])
        out = np.zeros((k, 2 * d + 1, 2 * d + 1))
        out[:, :d, :d] = out[:, d:-1, d:-1] = H
        out[:, :d, d:-1] = out[:, d:-1, :d] = -H
        out[:, -1, :d] = out[:, :d, -1] = mixed
        out[:, -1, d:-1] = out[:, d:-1, -1] = -mixed
        return out

    def _inverse(self, z: np.ndarray, at: np.ndarray) -> np.ndarray:
        """1 / (z_at - z_q), 0 for q = at: (k, n)."""
        return np.where(np.arange(self.order) == at[:, None], 0.0, 1 / self._differences(z)[np.arange(len(z)), at])

    def _turn(self, z: np.ndarray, G: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Second derivatives of the eigenvalue z_at, (k, size, size)."""
        row = G[np.arange(len(z)), :, at]
        return 2 * (row * self._inverse(z, at)[:, None]) @ row.mT

    def edge(self, u: np.ndarray) -> np.ndarray:
        """See Form."""
        z, _, _ = self._split(u, np.zeros(len(u)))
        at, side = self._margin(z)
        return side * z[np.arange(len(z)), at] <= EDGE * np.maximum(abs(z).max(1), EDGE)


@cache
def semidefinite(order: int) -> Cone:
    """Positive semidefinite matrices of an order of two or more."""
    units, size = basis(order), order * (order + 1) // 2
    forms = tuple(Spectrum(order, k // 2, k % 2 == 1) for k in range(2 * order + 1))

    def holds(p: np.ndarray) -> bool:
        return bool(np.linalg.eigvalsh(np.tensordot(p, units, 1))[0] >= 0)

    def seat(s: np.ndarray, lam: np.ndarray, lean: float) -> tuple[int, float]:
        """Holds the eigenvalue nearest to zero apart, if it is alone or about to cross."""
        z = np.linalg.eigvalsh(np.tensordot(s - lam, units, 1))
        below, largest = int((z < 0).sum()), abs(z).max()
        j = min((i for i in (below - 1, below) if 0 <= i < order), key=lambda i: abs(z[i]))
        gap = min((abs(z[i] - z[j]) for i in (j - 1, j + 1) if 0 <= i < order), default=np.inf)
        if gap > APART * largest or abs(z[j]) <= 2 * EDGE * largest:
            return 2 * j + 1, max(-float(z[j]), 0.0)
        return 2 * below, 0.0

    inner = np.einsum("aij,ij->a", units, np.diag(np.linspace(1.0, 2.0, order)))
    return Cone("PSD", size, np.eye(size), inner, np.zeros(size), forms, seat, holds, mixed=True)
