"""Programs that fall apart into single variables, but for one row: boxes, simplices, budgets, soft thresholds.

    min sum_j 1/2 q_j y_j^2 + c_j y_j + w_j |y_j - k_j|   subject to   low <= y <= high,   a'y <= b or a'y == b

For a given multiplier mu of the one row that couples, each y_j is a formula; a'y falls as mu grows, in finitely many
straight pieces, and a safeguarded Newton method finds where it meets b, for a whole batch at once. Cominetti, Mascarenhas
and Silva, "A Newton's method for the continuous quadratic knapsack problem", Mathematical Programming Computation, 2014.
An absolute value comes as CVXPY writes it: a variable t without curvature, in the rows alpha y - t <= d and -alpha y - t
<= e and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from bigrad.algebra.affine import run

ROUNDS = 200
"""Most Newton steps; a dozen is usual."""
MET = 1e-14
"""The coupling row is met when it is off by no more than this, relative to its terms."""


class Places(NamedTuple):
    """Places of the variables with curvature among all; which of them are bounded above and below, and which have an
    absolute value; the rows of their bounds and of that value, and the places of its variables.
    """

    own: Any
    above: Any
    below: Any
    bent: Any
    tops: Any
    bottoms: Any
    ups: Any
    downs: Any
    sizes: Any


@dataclass(frozen=True, eq=False)
class Separable:
    """The structure of such a program; variables are those with curvature, in the order of `own`.

    q: curvatures. own: their places among all variables. high, low: the row of G that bounds each above and below, -1 for
    none. t: the place of the variable of its absolute value, and rise, fall: the two rows of that, -1 for none. slope:
    (rows,), the coefficient in each such row of its variable. coupling: the row of (G; E) that couples, -1 for none; a:
    its coefficients; soft: whether it is an inequality. J: all rows (G; E); diagonal: of the Hessian, for all variables.
    """

    q: np.ndarray
    own: np.ndarray
    high: np.ndarray
    low: np.ndarray
    t: np.ndarray
    rise: np.ndarray
    fall: np.ndarray
    slope: np.ndarray
    a: np.ndarray
    coupling: int
    soft: bool
    J: sp.csr_array
    diagonal: np.ndarray

    @cached_property
    def places(self) -> Places:
        """Where its parts stand."""
        above, below, bent = (np.flatnonzero(side >= 0) for side in (self.high, self.low, self.t))
        tops, bottoms = self.high[above], self.low[below]
        parts = self.own, above, below, bent, tops, bottoms, self.rise[bent], self.fall[bent], self.t[bent]
        return Places(*(run(part) for part in parts))

    @cached_property
    def columns(self) -> sp.csr_array:
        """J'."""
        return sp.csr_array(self.J.T)

    @staticmethod
    def of(Q: np.ndarray, G: np.ndarray, E: np.ndarray) -> Separable | None:
        """The structure of the program min 1/2 z'Qz + c'z with Gz <= g, Ez == e; None if it has another."""
        q, J = np.diag(Q), np.concatenate([G, E])
        rows, n = J.shape
        if np.count_nonzero(Q) > np.count_nonzero(q) or (q < 0).any() or not q.any():
            return None
        own, flat = np.flatnonzero(q), np.flatnonzero(q == 0)
        which = np.full(n, -1)
        which[own] = np.arange(len(own))
        high, low, t, rise, fall = np.full((5, len(own)), -1)
        slope, spare = np.zeros(rows), np.ones(rows, bool)
        spare[len(G) :] = False
        for place in flat.tolist():
            pair = np.flatnonzero(J[:, place])
            mates = [np.setdiff1d(np.flatnonzero(J[r]), place) for r in pair]
            if len(pair) != 2 or not spare[pair].all() or (J[pair, place] != -1).any() or len(mates[0]) != 1:
                return None
            i = int(mates[0][0])
            if mates[1].tolist() != [i] or J[pair[0], i] != -J[pair[1], i] or which[i] < 0 or t[which[i]] >= 0:
                return None
            rise[which[i]], fall[which[i]] = pair if J[pair[0], i] > 0 else pair[::-1]
            t[which[i]], slope[pair], spare[pair] = place, abs(J[pair[0], i]), False
        spare &= (J != 0).sum(1) == 1
        for row in np.flatnonzero(spare).tolist():
            i = int(np.flatnonzero(J[row])[0])
            side = high if J[row, i] > 0 else low
            if which[i] < 0 or side[which[i]] >= 0:
                return None
            side[which[i]], slope[row] = row, J[row, i]
        rest = np.setdiff1d(np.arange(rows), np.concatenate([high, low, rise, fall]))
        if len(rest) > 1:
            return None
        coupling = int(rest[0]) if len(rest) else -1
        a = J[coupling] if len(rest) else np.zeros(n)
        if a[flat].any() or (len(rest) and not a.any()):
            return None
        return Separable(
            q[own], own, high, low, t, rise, fall, slope, a[own], coupling, 0 <= coupling < len(G), sp.csr_array(J), q
        )

    def optimum(self, c: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """((z, multipliers of all rows), solved) for linear terms c (batch, n) and right-hand sides d (batch, rows)."""
        own, above, below, bent, tops, bottoms, ups, downs, sizes = self.places
        curved = bool((self.t >= 0).any())
        start, alpha, weight = -c[:, own], self.slope[ups], c[:, sizes]
        high, low = np.full(start.shape, np.inf), np.full(start.shape, -np.inf)
        high[:, above], low[:, below] = d[:, tops] / self.slope[tops], d[:, bottoms] / self.slope[bottoms]
        kink = jump = np.zeros((1, 1))
        if curved:
            kink, jump = np.zeros(start.shape), np.zeros(start.shape)
            kink[:, bent], jump[:, bent] = (d[:, ups] - d[:, downs]) / (2 * alpha), weight * alpha

        def respond(mu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """y, and where it moves with mu."""
            s = start - mu[:, None] * self.a if self.coupling >= 0 else start
            if not curved:
                free = s / self.q
                y = np.minimum(np.maximum(free, low), high)
                return y, y == free
            far = s - self.q * kink
            past = far - np.minimum(np.maximum(far, -jump), jump)
            free = kink + past / self.q
            y = np.minimum(np.maximum(free, low), high)
            return y, (y == free) & ((past != 0) | (jump == 0))

        mu, y, solved = self._balance(respond, d, start, jump, kink, low, high)
        solved &= (low <= high).all(-1) & (weight >= 0).all(-1)
        rest = start - self.q * y
        if self.coupling >= 0:
            rest -= mu[:, None] * self.a
        w = np.zeros((len(c), c.shape[1] + d.shape[1]))
        z, dual = w[:, : c.shape[1]], w[:, c.shape[1] :]
        z[:, own] = y
        if curved:
            tilt = np.where(y == kink, np.minimum(np.maximum(rest, -jump), jump), np.copysign(jump, y - kink))
            rest, tilt, at = rest - tilt, tilt[:, bent] / alpha, alpha * y[:, bent]
            dual[:, ups], dual[:, downs] = (weight + tilt) / 2, (weight - tilt) / 2
            z[:, sizes] = np.maximum(at - d[:, ups], -at - d[:, downs])
        held = (y == high) & (rest > 0)
        dual[:, tops] = np.where(held, rest, 0.0)[:, above] / self.slope[tops]
        held = (y == low) & (rest < 0)
        dual[:, bottoms] = np.where(held, rest, 0.0)[:, below] / self.slope[bottoms]
        if self.coupling >= 0:
            dual[:, self.coupling] = mu
        return w, solved

    def _balance(
        self,
        respond: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
        d: np.ndarray,
        start: np.ndarray,
        jump: np.ndarray,
        kink: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The multiplier of the coupling row of each item, y, and which were found."""
        batch = len(d)
        mu = np.zeros(batch)
        if self.coupling < 0:
            return mu, respond(mu)[0], np.ones(batch, bool)
        goal = d[:, self.coupling]
        below, above, turns = np.full(batch, -np.inf), np.full(batch, np.inf), None
        for _ in range(ROUNDS):
            y, moves = respond(mu)
            parts = self.a * y
            off = parts.sum(-1) - goal
            met = abs(off) <= MET * (abs(parts).sum(-1) + abs(goal))
            met |= self.soft & (mu == 0) & (off <= 0)
            if met.all():
                return mu, y, met
            below, above = np.where(off > 0, mu, below), np.where(off < 0, mu, above)
            slope = (self.a**2 / self.q * moves).sum(-1)
            with np.errstate(divide="ignore", invalid="ignore"):
                after, middle = mu + off / slope, (below + above) / 2
            stuck = (slope == 0) & ~met
            if stuck.any():
                if turns is None:
                    turns = self._turns(start, jump, kink, low, high)
                after = np.where(stuck, _beyond(turns, mu, off > 0), after)
            outside = ~((after > below) & (after < above)) & np.isfinite(middle)
            after = np.where(outside, middle, after)
            after = np.maximum(after, 0.0) if self.soft else after
            if (met | (after == mu) | ~np.isfinite(after)).all():
                break
            mu = np.where(met | ~np.isfinite(after), mu, after)
        y, _ = respond(mu)
        parts = self.a * y
        off = parts.sum(-1) - goal
        close = abs(off) <= 100 * MET * (abs(parts).sum(-1) + abs(goal))
        return mu, y, close | (self.soft & (mu == 0) & (off <= 0))

    def _turns(
        self, start: np.ndarray, jump: np.ndarray, kink: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> np.ndarray:
        """The values of mu where some y_j begins or ceases to move, sorted, (batch, 4 n)."""
        levels = [
            self.q * low + np.sign(low - kink) * jump,
            self.q * high + np.sign(high - kink) * jump,
            self.q * kink + jump,
            self.q * kink - jump,
        ]
        with np.errstate(divide="ignore", invalid="ignore"):
            turns = np.concatenate([(start - level) / self.a for level in levels], -1)
        return np.sort(np.where(np.isfinite(turns), turns, np.nan), -1)

    def singular(self, held: np.ndarray) -> np.ndarray:
        """Items, bool (batch,), whose matrix in `solve` is singular: rows that are held depend on each other."""
        return self._stuck(held)[2]

    def _stuck(self, held: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which variables the rows of one variable fix, 1 / q of the others, and which items are singular."""
        _, above, below, bent, tops, bottoms, ups, downs, _ = self.places
        fixed = np.zeros((len(held), len(self.own)), bool)
        fixed[:, above], low = held[:, tops], held[:, bottoms]
        singular: Any = (fixed[:, below] & low).any(-1)
        fixed[:, below] |= low
        if (self.t >= 0).any():
            rise, fall = held[:, ups], held[:, downs]
            singular |= ((rise & fall & fixed[:, bent]) | ~(rise | fall)).any(-1)
            fixed[:, bent] |= rise & fall
        weight = np.where(fixed, 0.0, 1 / self.q)
        if self.coupling >= 0:
            least = 1e-12 * (self.a**2 / self.q).sum()
            singular |= held[:, self.coupling] & (weight @ self.a**2 <= least)
        return fixed, weight, singular

    def solve(self, held: np.ndarray, goal: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Solve [Q J'; J 0] (u, v) = (goal, rest) for each item, rows that are not `held` left out and their v zero:
        ((u, v), singular).

        held: bool (batch, rows), goal: (batch, n), rest: (batch, rows). Singular items come out meaningless.
        """
        own, above, below, bent, tops, bottoms, ups, downs, sizes = self.places
        curved = bool((self.t >= 0).any())
        high, low, rise, fall = (held[:, rows] for rows in (tops, bottoms, ups, downs))
        fixed, weight, singular = self._stuck(held)
        at = np.zeros(fixed.shape)
        if moved := rest.any():  # in an adjoint it seldom is
            at[:, above] = np.where(high, rest[:, tops] / self.slope[tops], 0.0)
            at[:, below] = np.where(low, rest[:, bottoms] / self.slope[bottoms], at[:, below])
        target, alpha, extra = goal[:, own], self.slope[ups], goal[:, sizes]
        if curved:
            corner = rise & fall
            if moved:
                at[:, bent] = np.where(corner, (rest[:, ups] - rest[:, downs]) / (2 * alpha), at[:, bent])
            if extra.any():
                target = target.copy()
                target[:, bent] += alpha * extra * ((rise & ~fall) * 1.0 - (fall & ~rise))
        u, kappa = np.where(fixed, at, target / self.q), np.zeros((len(held), 1))
        left = target - self.q * u
        if self.coupling >= 0:
            S, tied = weight @ self.a**2, held[:, self.coupling]
            gap = u @ self.a - rest[:, self.coupling]
            kappa = np.where(tied, gap / np.where(S > 0, S, 1.0), 0.0)[:, None]
            u = u - weight * self.a * kappa
            left = target - self.q * u - self.a * kappa
        n = goal.shape[1]
        w = np.zeros((len(held), n + held.shape[1]))
        z, v = w[:, :n], w[:, n:]
        z[:, own] = u
        v[:, tops] = np.where(high, left[:, above], 0.0) / self.slope[tops]
        v[:, bottoms] = np.where(low, left[:, below], 0.0) / self.slope[bottoms]
        if self.coupling >= 0:
            v[:, self.coupling] = kappa[:, 0]
        if curved:
            push, near = left[:, bent] / alpha, alpha * u[:, bent]
            v[:, ups] = np.where(corner, (push - extra) / 2, np.where(rise, -extra, 0.0))
            v[:, downs] = np.where(corner, (-push - extra) / 2, np.where(fall, -extra, 0.0))
            z[:, sizes] = np.where(rise, near - rest[:, ups], -near - rest[:, downs])
        return w, singular


def _beyond(turns: np.ndarray, mu: np.ndarray, upwards: np.ndarray) -> np.ndarray:
    """The middle of the next straight piece above or below mu, NaN if there is none."""
    signed = np.where(upwards[:, None], turns, -turns[:, ::-1])
    here = np.where(upwards, mu, -mu)
    ahead = np.sort(np.where(signed > here[:, None], signed, np.nan), -1)[:, :2]
    first, second = ahead[:, 0], ahead[:, -1]
    middle = np.where(np.isnan(second), first + 1 + abs(first), (first + second) / 2)
    return np.where(upwards, middle, -middle)
