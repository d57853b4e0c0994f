"""The cone constraints of a follower as rows of a smooth program: memberships, complementarity, and charts.

Block k has a point s of its cone, a multiplier lam of the dual cone, and mu with the pair (mu, phi). In the chart of
the block, p is one of s and lam, q the other, and the rows are

    q - mu grad phi(p) == 0    (coupling),     -phi(p)    (minus the slack of the pair),     -b(p) <= 0    (domain).

Which chart that is stands in v itself, as a number that a row of its own keeps where it is (pinned): a solution so
says by itself which equations it solves. Twice the place of the chart in Cone.charts, plus one where p is lam.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from bigrad.programs.cones import Chart, Cone

EDGE = 1e-6
"""A p this much smaller than its q is the apex of the cone, where another chart must take over."""
FITS = 1e-4
"""A q further than this from mu grad phi(p), relatively, belongs into a chart of the other kind."""


class _Group(NamedTuple):
    """Blocks of one size in one chart: which, their coordinates (k, size), phi, its linear map, the places of p, q, mu."""

    members: np.ndarray
    at: np.ndarray
    chart: Chart
    into: np.ndarray
    dual: bool
    p: np.ndarray
    q: np.ndarray
    mu: np.ndarray


@dataclass(frozen=True, eq=False)
class Blocks:
    """All cone blocks of a follower. s, lam, mu, chart: places in v; coupling, pinned, slack, domain: rows of r.

    s, lam and coupling have one entry a coordinate, the others one a block. lean: +1 for blocks whose s is never zero, -1
    for those whose lam is not, 0 for the others.
    """

    cones: tuple[Cone, ...]
    lean: np.ndarray
    s: np.ndarray
    lam: np.ndarray
    mu: np.ndarray
    chart: np.ndarray
    coupling: np.ndarray
    pinned: np.ndarray
    slack: np.ndarray
    domain: np.ndarray

    @cached_property
    def starts(self) -> np.ndarray:
        """Where the coordinates of each block begin."""
        return np.cumsum([0, *(c.size for c in self.cones)])

    @cached_property
    def _cache(self) -> dict[bytes, list[_Group]]:
        return {}

    def _groups(self, v: np.ndarray) -> list[_Group]:
        numbers = np.rint(v[self.chart]).astype(int)
        key = numbers.tobytes()
        if key not in self._cache:
            found: dict[tuple[int, int], list[int]] = {}
            for k, (cone, number) in enumerate(zip(self.cones, numbers, strict=True)):
                found.setdefault((id(cone), int(number)), []).append(k)
            self._cache[key] = [self._group(np.array(k), number) for (_, number), k in found.items()]
        return self._cache[key]

    def _group(self, members: np.ndarray, number: int) -> _Group:
        cone, dual = self.cones[members[0]], number % 2 == 1
        at = self.starts[members][:, None] + np.arange(cone.size)
        into = cone.lift if dual else np.eye(cone.size)
        p, q = (self.lam[at], self.s[at]) if dual else (self.s[at], self.lam[at])
        return _Group(members, at, cone.charts[number // 2], into, dual, p, q, self.mu[members])

    @cached_property
    def rows_at(self) -> np.ndarray:
        """The rows that `values` gives."""
        return np.concatenate([self.coupling, self.pinned, self.slack, self.domain])

    def values(self, v: np.ndarray) -> np.ndarray:
        """Coupling, pinned, minus slack, minus domain, at `rows_at`."""
        with np.errstate(invalid="ignore"):
            return self._values(v)

    def _values(self, v: np.ndarray) -> np.ndarray:
        coupling, phi, b = np.zeros(len(self.s)), np.zeros(len(self.cones)), np.zeros(len(self.cones))
        for g in self._groups(v):
            p = v[g.p] @ g.into.T
            phi[g.members], gradient = g.chart.first(p)
            coupling[g.at] = v[g.q] - v[g.mu][:, None] * (gradient @ g.into)
            b[g.members] = p @ g.chart.floor
        number = v[self.chart]
        return np.concatenate([coupling, number - np.rint(number), -phi, -b])

    @cached_property
    def jacobian_at(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the Jacobian has entries: block by block, coupling by (s, lam, mu), slack and domain by (s, lam), pinned."""
        rows, columns = [np.zeros(0, int)], [np.zeros(0, int)]
        for k, (a, e) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True)):
            both = np.r_[self.s[a:e], self.lam[a:e]]
            with_mu = np.r_[both, self.mu[k]]
            rows += [np.repeat(self.coupling[a:e], len(with_mu)), np.full(len(both), self.slack[k])]
            columns += [np.tile(with_mu, e - a), both]
            rows += [np.full(len(both), self.domain[k]), self.pinned[[k]]]
            columns += [both, self.chart[[k]]]
        return np.concatenate(rows), np.concatenate(columns)

    @cached_property
    def _segments(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the entries of each block begin, in the Jacobian and in the Hessian."""
        d = np.array([c.size for c in self.cones], dtype=int)
        return np.cumsum(np.r_[0, d * (2 * d + 1) + 4 * d + 1]), np.cumsum(np.r_[0, d * (d + 1) + 2 * d])

    def jacobian(self, v: np.ndarray) -> np.ndarray:
        """Entries of the Jacobian, at `jacobian_at`."""
        starts = self._segments[0]
        entries = np.zeros(starts[-1])
        for g in self._groups(v):
            k, d = g.at.shape
            own, other = (slice(d, 2 * d), slice(0, d)) if g.dual else (slice(0, d), slice(d, 2 * d))
            p = v[g.p] @ g.into.T
            _, gradient = g.chart.first(p)
            hessian, _ = g.chart.second(p, np.zeros_like(p))
            coupling, slack, domain = np.zeros((k, d, 2 * d + 1)), np.zeros((k, 2 * d)), np.zeros((k, 2 * d))
            coupling[:, :, own] = -v[g.mu][:, None, None] * (g.into.T @ hessian @ g.into)
            coupling[:, :, other] = np.eye(d)
            coupling[:, :, -1] = slack[:, own] = -(gradient @ g.into)
            domain[:, own] = -(g.chart.floor @ g.into)
            whole = np.concatenate([coupling.reshape(k, -1), slack, domain, np.ones((k, 1))], 1)
            entries[starts[g.members][:, None] + np.arange(whole.shape[1])] = whole
        return entries

    @cached_property
    def hessian_at(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the lower triangle of the Hessian has entries: block by block (s, s), (lam, lam), (mu, s), (mu, lam)."""
        rows, columns = [np.zeros(0, int)], [np.zeros(0, int)]
        for k, (a, e) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True)):
            i, j = np.tril_indices(e - a)
            mu = np.full(e - a, self.mu[k])
            rows += [self.s[a:e][i], self.lam[a:e][i], mu, mu]
            columns += [self.s[a:e][j], self.lam[a:e][j], self.s[a:e], self.lam[a:e]]
        left, right = np.concatenate(rows), np.concatenate(columns)
        return np.maximum(left, right), np.minimum(left, right)

    def hessian(self, v: np.ndarray, m: np.ndarray) -> np.ndarray:
        """Entries of the lower triangle of the Hessian of m'rows, at `hessian_at`; m: over all rows r."""
        starts = self._segments[1]
        entries = np.zeros(starts[-1])
        for g in self._groups(v):
            d, weight = g.at.shape[1], m[self.coupling[g.at]]
            hessian, third = g.chart.second(v[g.p] @ g.into.T, weight @ g.into.T)
            mu, kappa = v[g.mu][:, None, None], m[self.slack[g.members]][:, None, None]
            curved = -(g.into.T @ (mu * third + kappa * hessian) @ g.into)
            i, j = np.tril_indices(d)
            half, skew = curved[:, i, j], -((g.into.T @ hessian @ g.into) @ weight[:, :, None])[..., 0]
            none, still = np.zeros_like(half), np.zeros_like(skew)
            whole = [none, half, still, skew] if g.dual else [half, none, skew, still]
            entries[starts[g.members][:, None] + np.arange(d * (d + 1) + 2 * d)] = np.concatenate(whole, 1)
        return entries

    def seat(self, v: np.ndarray, s: np.ndarray, lam: np.ndarray, only: np.ndarray | None = None) -> np.ndarray:
        """v with s and lam put in, and each block (or only these) in the chart that fits them."""
        v = v.copy()
        v[self.s], v[self.lam] = s, lam
        for k, cone in enumerate(self.cones):
            if only is not None and not only[k]:
                continue
            at = slice(self.starts[k], self.starts[k + 1])
            near, far = (abs(u[at]).max() for u in (s, lam))
            dual = near <= EDGE * far or (
                far > EDGE * near and (self.lean[k] < 0 or (self.lean[k] == 0 and near < far))
            )
            places = [_seated(cone, side, s[at], lam[at]) for side in (dual, not dual)]
            number, mu, _ = next((place for place in places if place[2] <= FITS), places[0])
            v[self.chart[k]], v[self.mu[k]] = number, mu
        return v

    def edges(self, v: np.ndarray) -> np.ndarray:
        """Blocks whose p is at the apex, where their chart ends, bool."""
        out = np.zeros(len(self.cones), bool)
        for g in self._groups(v):
            near, far = abs(v[g.p]).max(1), abs(v[g.q]).max(1)
            out[g.members] = near <= EDGE * np.maximum(far, EDGE)
        return out

    def inner(self) -> tuple[np.ndarray, np.ndarray]:
        """A point inside every cone, and one inside every dual cone."""
        points = [c.inner for c in self.cones]
        duals = [np.linalg.solve(c.lift, c.inner) for c in self.cones]
        return np.concatenate([*points, np.zeros(0)]), np.concatenate([*duals, np.zeros(0)])


def _seated(cone: Cone, dual: bool, s: np.ndarray, lam: np.ndarray) -> tuple[int, float, float]:
    """The number of a chart of s or lam, the mu there, and how far q is from mu grad phi(p), relatively."""
    p, q = (lam, s) if dual else (s, lam)
    into = cone.lift if dual else np.eye(cone.size)
    place = cone.fit(into @ p)
    gradient = cone.charts[place].first((into @ p)[None])[1][0] @ into
    with np.errstate(invalid="ignore", divide="ignore"):
        mu = max(gradient @ q / (gradient @ gradient), 0.0)
        miss = abs(q - mu * gradient).max() / (abs(p).max() + abs(q).max())
    number = 2 * place + dual
    return (number, float(mu), float(miss)) if np.isfinite(miss) else (number, 0.0, np.inf)


NO_BLOCKS = Blocks((), *[np.zeros(0, int)] * 9)
"""Those of a follower without cones."""
