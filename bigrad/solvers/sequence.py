"""The search on one sparse program with complementarity pairs: a penalty path first, then piece after piece.

The path relaxes the products lam_i s_i into the objective with a rising weight. Each step replaces the product by the
convex (a lam_i^2 + s_i^2 / a) / 2 >= lam_i s_i, equal to it at the last point for a = s_i / lam_i, so with the convex
model of the rest (model.py) it is one sparse quadratic program and never raises the penalised objective (Hunter and
Lange, "A tutorial on MM algorithms", 2004). The follower's answer at the end of the path fixes the side of every pair.
With sides fixed the program is an ordinary one, solved by sequential quadratic programming; where a solution has lam_i
= s_i = 0 and a multiplier of the wrong sign, the pair changes sides (Luo, Pang and Ralph, "Mathematical Programs with
Equilibrium Constraints", 1996, chapter 6). All such pairs change at once, or, where that fails, ever fewer of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

from bigrad.solvers.active import asking
from bigrad.solvers.model import Frame, Model
from bigrad.solvers.sparse_qp import SOLVED, UNBOUNDED, Optimum, solve_qp

FIRST, FACTOR = 0.1, 3.0
"""The first weight of the products, relative to objective over products, and what each step multiplies it by."""
DONE = 1e-3
"""The path ends when the products sum to this, relative to the objective, each in units of the first weight."""
LONGEST = 25
"""Steps of the path at most."""
STILL = 1e-9
"""A step this small, relative to 1 + the point, ends sequential quadratic programming; a gain this small is none."""
ZERO = 1e-6
"""A slack or multiplier below this, relative to 1 + the largest of its kind, is zero while pieces are searched."""
WEAK = 1e-4
"""Weight of the proximal term where a model has no finite minimum."""


class Sequential:
    """The best point of a search, and how to look for better ones.

    limit: quadratic programs for one piece; clock: seconds left. bound: a proven lower bound, -inf if none is known.
    """

    def __init__(self, frame: Frame, limit: int, clock: Callable[[], float]):
        self.frame, self.limit, self.clock = frame, limit, clock
        self.v: np.ndarray | None = None
        self.m = np.zeros(frame.count)
        self.tight = np.zeros(frame.pairs, bool)
        self.F, self.bound, self.iterations = np.inf, -np.inf, 0
        self.settled = self.unbounded = self.convex = False
        self.endings: set[str] = set()

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return self.clock() <= 0

    def path(self) -> list[np.ndarray]:
        """Points along the penalty path, the last one first; none where the relaxation without products has none."""
        frame = self.frame
        v, m = frame.system.origin, np.zeros(frame.count)
        for k in range(1 if frame.quadratic else self.limit):
            model = frame.model(v, m, self._rigid)
            found = self._run(model, None)
            if found.status == UNBOUNDED:
                found = self._run(_damped(model, WEAK), None)
            elif found.status == SOLVED and found.sharp and frame.quadratic and model.valid:
                self.bound = found.value - 1e-9 * (1 + abs(found.value))
            if found.status != SOLVED:
                if k == 0:
                    self.endings.add(found.status)
                    return []
                break
            there, m = self._moved(model, found)
            small = _small(there - v, v)
            v = there
            if small:
                break
        points = [v]
        first = FIRST * max(abs(frame.system.objective(v)), STILL) / max(frame.gap_at(v), STILL)
        for k in range(LONGEST):
            F, gap = frame.system.objective(v), frame.gap_at(v)
            if gap * first <= FIRST * DONE * abs(F) or gap <= STILL or self.late:
                break
            weight = first * FACTOR**k
            model = frame.model(v, m, self._rigid)
            found = self._run(self._penalised(model, weight), None)
            if found.status != SOLVED:
                break
            v, m = self._moved(model, found, weight)
            points.append(v)
        return points[::-1]

    def pulled(self, pull: np.ndarray) -> np.ndarray | None:
        """A point of the relaxation without products, far in a direction of z = (x, y) from the best point; None if there is none."""
        frame, v = self.frame, self.frame.system.origin if self.v is None else self.v
        model = frame.model(v, self.m, self._rigid)
        g, flat = np.zeros(frame.n), np.full(frame.n, STILL)
        g[: len(pull)], flat[: len(pull)] = pull, 1 / (1 + abs(v[: len(pull)]).max(initial=0.0))
        found = self._run(model._replace(g=g, B=sp.csc_array(sp.diags_array(flat))), None)
        return found.v if found.status == SOLVED else None

    def _penalised(self, model: Model, weight: float) -> Model:
        """The model plus the majorant of the weighted products at its point."""
        frame = self.frame
        lam, s = (np.maximum(a, STILL) for a in (model.v[frame.lam], -model.r[frame.kappa]))
        ratio = np.clip(s / lam, 1e-4, 1e4)
        rows = model.J[frame.kappa]
        g, curve = model.g.copy(), np.zeros(frame.n)
        curve[frame.lam] = weight * ratio
        g[frame.lam] += curve[frame.lam] * model.v[frame.lam]
        g += rows.T @ (weight / ratio * model.r[frame.kappa])
        B = model.B + sp.diags_array(curve) + rows.T @ sp.diags_array(weight / ratio) @ rows
        return model._replace(B=sp.csc_array(B), g=g)

    def answer(self, v: np.ndarray) -> np.ndarray | None:
        """v with the follower's variables and multipliers put to its answer to the leader's part; None if it has none."""
        frame = self.frame
        out = v.copy()
        for part in (frame.u, frame.lam, frame.nu):
            out[part] = 0.0
        J, r = frame.jacobian(out), frame.system.rows(out)
        part = J[:, frame.u]
        rigid, soft = frame.eta, frame.kappa
        found = solve_qp(part[frame.sigma], r[frame.sigma], part[rigid], -r[rigid], part[soft], -r[soft], self.clock())
        self.iterations += 1
        if found.status != SOLVED:
            self.endings.add(found.status)
            return None
        out[frame.u], out[frame.nu], out[frame.lam] = found.v, found.equal, np.maximum(found.below, 0.0)
        return out

    def descend(self, v: np.ndarray, tight: np.ndarray) -> bool:
        """Solve a piece, then neighbours across kinks that ask for it, while none loses ground; False if the first has no
        solution.
        """
        here = self._piece(v, np.zeros(self.frame.count), tight)
        if here is None:
            return False
        v, m, F = here
        seen, settled, many = {tight.tobytes()}, False, self.frame.pairs
        while not self.late:
            ask = self._wrong(v, m, tight)
            order = np.argsort(-ask, kind="stable")[: min(int((ask > 0).sum()), many)]
            settled = not (ask > 0).any()
            if not len(order):
                break
            other = tight.copy()
            other[order] = ~other[order]
            there = None
            if other.tobytes() not in seen:
                seen.add(other.tobytes())
                there = self._piece(v, m, other)
            if there is not None and there[2] <= F + STILL * (1 + abs(F)):
                v, m, F = there
                tight, many = other, self.frame.pairs
            elif len(order) == 1:
                break
            else:
                many = len(order) // 4 + 1 if len(order) > 4 else len(order) - 1
        if self.F - STILL * (1 + abs(F)) > F or (settled and not self.settled and self.F + STILL * (1 + abs(F)) >= F):
            self.v, self.m, self.tight, self.F, self.settled = v, m, tight, F, settled
        return True

    def _piece(self, v: np.ndarray, m: np.ndarray, tight: np.ndarray) -> tuple[np.ndarray, np.ndarray, float] | None:
        """Slack zero where tight, multiplier zero elsewhere: point, multipliers and objective, None without an optimum."""
        frame = self.frame
        done = False
        for k in range(self.limit):
            if self.late:
                break
            model = frame.model(v, m, np.r_[self._rigid, frame.kappa[tight]])
            found = self._run(model, tight)
            if found.status == UNBOUNDED and not (frame.quadratic and model.proximal == 0.0):
                found = self._run(_damped(model, WEAK), tight)
            if found.status != SOLVED:
                if found.status == UNBOUNDED:
                    flat = model._replace(g=0.0 * model.g, B=0.0 * model.B)
                    self.unbounded = self._run(flat, tight).status == SOLVED
                if k == 0:
                    self.endings.add(found.status)
                    return None
                break
            there, m = self._moved(model, found)
            done = _small(there - v, v) or (frame.quadratic and model.proximal == 0.0)
            v = there
            if done:
                break
        self.convex = done and frame.quadratic and model.proximal == 0.0
        return (v, m, frame.system.objective(v)) if k or done else None

    def _wrong(self, v: np.ndarray, m: np.ndarray, tight: np.ndarray) -> np.ndarray:
        """See active.asking."""
        frame = self.frame
        lam, s, kappa = v[frame.lam], frame.slack(v), m[frame.kappa]
        tau = frame.system.residual(np.r_[v, m])[frame.lam]
        return asking(tight, lam, s, kappa, tau, ZERO)

    @property
    def _rigid(self) -> np.ndarray:
        return np.r_[self.frame.sigma, self.frame.eta, self.frame.eps]

    def _run(self, model: Model, tight: np.ndarray | None) -> Optimum:
        """The optimum of a model, as a point v and multipliers of all rows (`equal`), sides free (None) or as given."""
        frame, n = self.frame, self.frame.n
        free = np.ones(n, bool)
        loose, rigid = frame.kappa, self._rigid
        positive = frame.lam
        if tight is not None:
            free[frame.lam[~tight]] = False
            rigid, loose, positive = np.r_[rigid, frame.kappa[tight]], frame.kappa[~tight], frame.lam[tight]
        soft = np.r_[loose, frame.gamma]
        base = np.where(free, model.v, 0.0)
        shift = model.J @ (base - model.v)
        J, at = sp.csr_array(model.J[:, free]), np.cumsum(free) - 1
        r, move = model.r + shift, base - model.v
        g = (model.g + model.B @ move)[free]
        bounds = sp.csr_array(
            (np.full(len(positive), -1.0), (np.arange(len(positive)), at[positive])), shape=(len(positive), J.shape[1])
        )
        found = solve_qp(
            model.B[free][:, free], g, J[rigid], -r[rigid],
            sp.vstack([J[soft], bounds]), np.r_[-r[soft], base[positive]], self.clock(),
        )  # fmt: skip
        self.iterations += 1
        if found.status != SOLVED:
            return found
        v, m = base.copy(), np.zeros(frame.count)
        v[free] += found.v
        m[rigid], m[soft] = found.equal, found.below[: len(soft)]
        d = v - model.v
        value = model.F + model.g @ d + d @ (model.B @ d) / 2
        m += model.pull + model.alpha * (frame.gap @ d)
        return Optimum(SOLVED, v, float(value), m, found.below, found.sharp)

    def _moved(self, model: Model, found: Optimum, products: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """The model's optimum, or a shorter step towards it that raises neither the objective, with the products of pairs
        weighted so, nor the violation of nonlinear rows.
        """
        frame = self.frame
        if frame.quadratic and model.proximal == 0.0:
            return found.v, found.equal
        weight = 0.0 if frame.linear else 2 * abs(found.equal).max(initial=1.0)

        def total(v: np.ndarray) -> float:
            gap = (model.alpha + products) * frame.gap_at(v)
            return frame.system.objective(v) + gap + weight * self.violation(v)

        before, step = total(model.v), 1.0
        lost = frame.linear and self.violation(model.v) > ZERO
        for _ in range(30):
            v = model.v + step * (found.v - model.v)
            now = total(v)
            if np.isfinite(now) and (now <= before or lost or not np.isfinite(before)):
                return v, found.equal
            step /= 2
        return model.v, found.equal

    def violation(self, v: np.ndarray) -> float:
        """Sum of the violations of all rows."""
        frame, r = self.frame, self.frame.system.rows(v)
        return float(abs(r[self._rigid]).sum() + np.maximum(r[np.r_[frame.kappa, frame.gamma]], 0.0).sum())


def _damped(model: Model, weight: float) -> Model:
    size = abs(model.B).max() if model.B.nnz else 1.0
    return model._replace(
        B=sp.csc_array(model.B + weight * max(size, 1.0) * sp.eye_array(model.B.shape[0])), valid=False, proximal=weight
    )


def _small(step: np.ndarray, v: np.ndarray) -> bool:
    return bool(abs(step).max(initial=0.0) <= STILL * (1 + abs(v).max(initial=0.0)))
