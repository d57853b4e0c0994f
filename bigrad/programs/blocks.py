"""The cone constraints of a follower as rows of a smooth program: memberships, complementarity, and forms.

Block k has a point s of its cone, a multiplier lam of the dual cone, and mu with the pair (mu, phi). Its rows are

    coupling(s, lam, mu) == 0,     -phi(s, lam, mu)    (minus the slack of the pair),     -b(s, lam) <= 0    (domain)

of one of the forms of its cone. Which one that is stands in v itself, as a number that a row of its own keeps where it
is (pinned): a solution so says by itself which equations it solves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from bigrad.programs.cones import Cone, Form


class _Group(NamedTuple):
    """Blocks of one size in one form: which, their coordinates (k, size), the places of (s, lam) and of mu, and entries
    (i, j) of their Hessians by (s, lam, mu) that may be nonzero, each once.
    """

    members: np.ndarray
    at: np.ndarray
    form: Form
    u: np.ndarray
    mu: np.ndarray
    half: tuple[np.ndarray, np.ndarray]


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
        cone = self.cones[members[0]]
        at = self.starts[members][:, None] + np.arange(cone.size)
        u = np.concatenate([self.s[at], self.lam[at]], 1)
        return _Group(members, at, cone.forms[number], u, self.mu[members], _half(cone))

    @cached_property
    def rows_at(self) -> np.ndarray:
        """The rows that `values` gives."""
        return np.concatenate([self.coupling, self.pinned, self.slack, self.domain])

    def values(self, v: np.ndarray) -> np.ndarray:
        """Coupling, pinned, minus slack, minus domain, at `rows_at`."""
        with np.errstate(invalid="ignore"):
            return self._values(v)

    def _values(self, v: np.ndarray) -> np.ndarray:
        coupling, slack, domain = np.zeros(len(self.s)), np.zeros(len(self.cones)), np.zeros(len(self.cones))
        for g in self._groups(v):
            values = g.form.values(v[g.u], v[g.mu])
            coupling[g.at], slack[g.members], domain[g.members] = values[:, :-2], values[:, -2], values[:, -1]
        number = v[self.chart]
        return np.concatenate([coupling, number - np.rint(number), slack, domain])

    @cached_property
    def jacobian_at(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the Jacobian has entries: block by block, coupling and slack by (s, lam, mu), domain by (s, lam), pinned."""
        rows, columns = [np.zeros(0, int)], [np.zeros(0, int)]
        for k, (a, e) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True)):
            u = np.r_[self.s[a:e], self.lam[a:e], self.mu[k]]
            each = np.r_[self.coupling[a:e], self.slack[k]]
            rows += [np.repeat(each, len(u)), np.full(len(u) - 1, self.domain[k]), self.pinned[[k]]]
            columns += [np.tile(u, len(each)), u[:-1], self.chart[[k]]]
        return np.concatenate(rows), np.concatenate(columns)

    @cached_property
    def _segments(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the entries of each block begin, in the Jacobian and in the Hessian."""
        d = np.array([c.size for c in self.cones], dtype=int)
        halves = [len(_half(c)[0]) for c in self.cones]
        return np.cumsum(np.r_[0, (d + 1) * (2 * d + 1) + 2 * d + 1]), np.cumsum(np.r_[0, halves].astype(int))

    def jacobian(self, v: np.ndarray) -> np.ndarray:
        """Entries of the Jacobian, at `jacobian_at`."""
        starts = self._segments[0]
        entries = np.zeros(starts[-1])
        for g in self._groups(v):
            slopes = g.form.slopes(v[g.u], v[g.mu])
            k = len(slopes)
            whole = np.concatenate([slopes[:, :-1].reshape(k, -1), slopes[:, -1, :-1], np.ones((k, 1))], 1)
            entries[starts[g.members][:, None] + np.arange(whole.shape[1])] = whole
        return entries

    @cached_property
    def hessian_at(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the lower triangle of the Hessian has entries, block by block."""
        rows, columns = [np.zeros(0, int)], [np.zeros(0, int)]
        for k, (a, e) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True)):
            u, (i, j) = np.r_[self.s[a:e], self.lam[a:e], self.mu[k]], _half(self.cones[k])
            rows.append(u[i])
            columns.append(u[j])
        left, right = np.concatenate(rows), np.concatenate(columns)
        return np.maximum(left, right), np.minimum(left, right)

    def hessian(self, v: np.ndarray, m: np.ndarray) -> np.ndarray:
        """Entries of the lower triangle of the Hessian of m'rows, at `hessian_at`; m: over all rows r."""
        starts = self._segments[1]
        entries = np.zeros(starts[-1])
        for g in self._groups(v):
            weights = np.c_[m[self.coupling[g.at]], m[self.slack[g.members]], m[self.domain[g.members]]]
            whole = g.form.curved(v[g.u], v[g.mu], weights)[:, *g.half]
            entries[starts[g.members][:, None] + np.arange(whole.shape[1])] = whole
        return entries

    def seat(self, v: np.ndarray, s: np.ndarray, lam: np.ndarray, only: np.ndarray | None = None) -> np.ndarray:
        """v with s and lam put in, and each block (or only these) in the form that fits them."""
        v = v.copy()
        v[self.s], v[self.lam] = s, lam
        for k, cone in enumerate(self.cones):
            if only is None or only[k]:
                at = slice(self.starts[k], self.starts[k + 1])
                v[self.chart[k]], v[self.mu[k]] = cone.seat(s[at], lam[at], self.lean[k])
        return v

    def edges(self, v: np.ndarray) -> np.ndarray:
        """Blocks that are where their form ends, bool."""
        out = np.zeros(len(self.cones), bool)
        for g in self._groups(v):
            out[g.members] = g.form.edge(v[g.u])
        return out

    def inner(self) -> tuple[np.ndarray, np.ndarray]:
        """A point inside every cone, and a multiplier of every one."""
        none = np.zeros(0)
        return np.concatenate([*(c.inner for c in self.cones), none]), np.concatenate(
            [*(c.outer for c in self.cones), none]
        )


def _half(cone: Cone) -> tuple[np.ndarray, np.ndarray]:
    """Entries of the Hessian by (s, lam, mu) of a block, one of each two: (s, s), (lam, lam), (mu, s), (mu, lam), (lam, s)."""
    i, j = np.tril_indices(2 * cone.size + 1)
    keep = (i != 2 * cone.size) | (j != i)
    if not cone.mixed:
        keep &= (i < cone.size) | (j >= cone.size) | (i == 2 * cone.size)
    return i[keep], j[keep]


NO_BLOCKS = Blocks((), *[np.zeros(0, int)] * 9)
"""Those of a follower without cones."""
