"""One branch-and-cut tree of SCIP for nested integer programs, with the follower as a constraint handler.

The master is the high-point relaxation: all rows of both levels, without the follower's objective. Wherever the leader's
linking variables are integral and some rival answer r, feasible at x, costs the follower less than y, the node is
split: either (d + D'x)'y <= (d + D'x)'r, or x takes some row i from the rival, G_i x > h_i - A_i r. Only rows that x can
still take within the bounds of the node get a child, so that deep in the tree the split is one local cut. Zero-sum
programs whose follower always has an answer need no copy of y: w = -phi(x) stands for it.

Lozano and Smith, "A value-function-based exact approach for the bilevel mixed-integer programming problem", 2017, for
the disjunction; DeNegre and Ralphs, "A branch-and-cut algorithm for integer bilevel linear programs", 2009, for the tree.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyscipopt
from pyscipopt import SCIP_RESULT, quicksum

from bigrad.discrete.milp import INTEGRALITY, End
from bigrad.exact.answers import CLOSE, Pool, Responder, outer, slack
from bigrad.exact.master import SOLVED, Master, terms

SEARCHING = 9
"""SCIP's stage number while it branches."""
SPAN = 1e4
"""The largest relative constant that may stand before a literal."""
MIDDLE = 0.9
"""How far from the follower's optimum to its cost in the relaxed solution a rival may be that keeps more slack."""


@dataclass
class Record:
    """What the handler has learned: phi at decisions, the best bilevel-feasible point (value, x, y), its counts and its errors.

    waiting: points (x, y) that SCIP is still to be offered. bound: SCIP's own where the search was stopped, which
    `late` (time), `unbounded` and `error` explain.
    """

    phi: dict[bytes, tuple[End, float]] = field(default_factory=dict)
    value: float = np.inf
    x: np.ndarray | None = None
    y: np.ndarray | None = None
    waiting: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    splits: int = 0
    cuts: int = 0
    bound: float = np.inf
    unbounded: bool = False
    late: bool = False
    error: Exception | None = None


class Rational(pyscipopt.Conshdlr):
    """The constraint that y is an optimal answer to x."""

    def __init__(self, master: Master, responder: Responder, pool: Pool, record: Record, end: float):
        self.master, self.responder, self.pool, self.record, self.end = master, responder, pool, record, end
        self.f, nested = master.follower, master.nested
        self.n = n = nested.leaders
        linking, self.outer = self.f.linking, outer(nested)
        self.link, self.whole = np.flatnonzero(linking), np.flatnonzero(linking & nested.integer[:n])
        self.held = bool((linking | nested.leader.cross.toarray().any(axis=1)).all())
        binary = nested.integer[:n] & (nested.lower[:n] >= 0) & (nested.upper[:n] <= 1)
        self.single = ((self.f.G != 0).sum(axis=1) == 1) & binary[abs(self.f.G).argmax(axis=1)]

    def conslock(self, constraint: Any, locktype: int, nlockspos: int, nlocksneg: int) -> None:
        """Any variable may matter, either way."""
        if self.model.getStage() > SOLVED:
            return
        for variable in self.model.getVars(transformed=True):
            self.model.addVarLocksType(variable, locktype, nlockspos + nlocksneg, nlockspos + nlocksneg)

    def conscheck(self, constraints: Any, solution: Any, *_: Any) -> dict[str, Any]:
        """Whether a point of SCIP's is bilevel feasible."""
        try:
            good = self._check(solution)
        except Exception as error:
            self._fail(error)
            good = False
        return {"result": SCIP_RESULT.FEASIBLE if good else SCIP_RESULT.INFEASIBLE}

    def consenfolp(self, *_: Any) -> dict[str, Any]:
        """Split a node whose relaxed solution is not rational."""
        try:
            return {"result": self._enforce()}
        except Exception as error:
            self._fail(error)
            return {"result": SCIP_RESULT.INFEASIBLE}

    def consenfops(self, *_: Any) -> dict[str, Any]:
        """The same for a pseudo solution."""
        return self.consenfolp()

    def _fail(self, error: Exception) -> None:
        self.record.error = self.record.error or error
        self._stop()

    def _stop(self) -> None:
        """End the search; what SCIP concludes from the unfinished node is worth nothing, its bound until now is."""
        if self.model.getStage() == SEARCHING:
            self.record.bound = min(self.record.bound, float(self.model.getDualbound()))
        else:
            self.record.bound = -np.inf
        self.model.interruptSolve()

    def _point(self, solution: Any) -> tuple[np.ndarray, np.ndarray | None, float]:
        value = self.model.getSolVal
        x = np.array([value(solution, v) for v in self.master.x])
        y = np.array([value(solution, v) for v in self.master.y]) if self.master.copy else None
        level = float(value(solution, self.master.level))
        return x, y, level

    def _integral(self, x: np.ndarray) -> bool:
        return bool((abs(x[self.whole] - np.round(x[self.whole])) <= INTEGRALITY).all())

    def phi(self, x: np.ndarray) -> tuple[End, float]:
        """phi(x), its answer put into the pool and the leader's best point there into the record."""
        record = self.record
        key = np.round(x[self.link], 9).tobytes()
        if key in record.phi:
            return record.phi[key]
        left = self.end - time.perf_counter()
        found = self.responder.answer(x, left)
        if found.end in (End.LATE, End.BROKEN):
            record.late = found.end is End.LATE
            raise TimeoutError if record.late else RuntimeError("HiGHS broke down on the follower")
        if found.y is not None:
            self.learn(found.y)
            self._react(x, found.y, found.value, left)
        record.phi[key] = found.end, found.value
        return record.phi[key]

    def harvest(self) -> None:
        """After the search: SCIP's best point into the record, if the leader's best at its decision is not yet there."""
        model, record, nested = self.master.model, self.record, self.master.nested
        best = model.getBestSol() if model.getNSols() else None
        if best is None or float(model.getSolObjVal(best)) + nested.leader.constant >= record.value:
            return
        x = np.array([model.getSolVal(best, v) for v in self.master.x])
        whole = nested.integer[: self.n]
        x[whole] = np.round(x[whole])
        answer = self.responder.answer(x)
        if answer.y is not None:
            self._react(x, answer.y, answer.value, np.inf)

    def plant(self) -> None:
        """Before the search: the rivals of the pool from which the leader can take nothing, as rows."""
        for r in self.pool.answers:
            if not self._live(r).any():
                self.master.model.addCons(self.master.rival(r))
                self.record.cuts += 1

    def learn(self, r: np.ndarray) -> None:
        """Keep a rival, as a row for the whole tree if the leader can take nothing from it anywhere."""
        if self.pool.add(r) and not self._live(r).any():
            self.model.addCons(self.master.rival(r))
            self.record.cuts += 1

    def _live(self, r: np.ndarray) -> np.ndarray:
        nested = self.master.nested
        return self._threshold(r) <= self._takes(nested.lower[: self.n], nested.upper[: self.n]) + CLOSE

    def _react(self, x: np.ndarray, y: np.ndarray, phi: float, left: float) -> None:
        """The leader's best point at a decision into the record."""
        record, nested, n = self.record, self.master.nested, self.n
        if self.master.opposed and self.held:
            rows = self.outer
            at = rows.matrix[:, :n] @ x
            good = (at <= rows.upper + CLOSE * (1 + abs(rows.upper))) & (
                at >= rows.lower - CLOSE * (1 + abs(rows.lower))
            )
            v = np.concatenate([x, y]) if good.all() else None
        else:
            end, v = self.responder.reaction(x, phi, left)
            if end is End.UNBOUNDED:
                record.unbounded = True
                self.model.interruptSolve()
        if v is None:
            return
        value = nested.leader(v[:n], v[n:])
        if value < record.value:
            record.value, record.x, record.y = value, v[:n], v[n:]
            record.waiting.append((v[:n], v[n:]))

    def _check(self, solution: Any) -> bool:
        x, _, level = self._point(solution)
        if not self._integral(x):
            return False
        x[self.whole] = np.round(x[self.whole])
        end, phi = self.phi(x)
        return end is End.OPTIMAL and level <= phi + 10 * slack(phi)

    def _enforce(self) -> Any:
        record, f = self.record, self.f
        while record.waiting:
            self.master.offer(*record.waiting.pop())
        if time.perf_counter() > self.end:
            record.late = True
            self._stop()
            return SCIP_RESULT.INFEASIBLE
        x, _, level = self._point(None)
        if not self._integral(x):
            return self._relax(x, level)
        x[self.whole] = np.round(x[self.whole])
        low, high = self._box(x)
        rival = self._rival(x, level, low, high)
        if rival is None:
            end, phi = self.phi(x)
            if end is End.UNBOUNDED:
                return self._bend(x, low, high)
            if end is End.INFEASIBLE:
                return self._leave(x, low, high)
            if level <= phi + 10 * slack(phi):
                return SCIP_RESULT.FEASIBLE
            bar = phi + MIDDLE * (level - phi)
            r = self.responder.sturdy(x, bar, self._takes(low, high) - f.G @ x, self.end - time.perf_counter())
            if r is not None:
                self.learn(r)
            rival = self._rival(x, level, low, high)
            if rival is None:
                raise RuntimeError(
                    "the follower's optimum is not among its rivals: the pool is full, or numbers too large"
                )
        return self._split(x, rival, low, high)

    def _relax(self, x: np.ndarray, level: float) -> Any:
        """Cut off a fractional decision of a leader who only sets prices: then every answer is a rival everywhere."""
        if self.f.G.any() or not self.master.opposed:
            return SCIP_RESULT.FEASIBLE
        found = self.responder.answer(x, self.end - time.perf_counter())
        if found.y is None or level <= found.value + 1e-4 * (1 + abs(found.value)):
            return SCIP_RESULT.FEASIBLE
        self.learn(found.y)
        return SCIP_RESULT.CONSADDED

    def _box(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = self.master.nested.lower[: len(x)].copy(), self.master.nested.upper[: len(x)].copy()
        for j in self.link:
            v = self.model.getTransformedVar(self.master.x[j])
            low[j], high[j] = max(low[j], v.getLbLocal()), min(high[j], v.getUbLocal())
        return low, high

    def _takes(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """The most that x can put into each row within its bounds, (rows,)."""
        G = self.f.G
        with np.errstate(invalid="ignore"):
            return np.where(G > 0, G * high, np.where(G < 0, G * low, 0.0)).sum(axis=1)

    def _threshold(self, r: np.ndarray) -> np.ndarray:
        """(.., rows): the rival is gone where G x >= this for some row; without a grid, where G x > this."""
        f = self.f
        left = f.h - r @ f.A.T
        step = np.where(f.step > 0, f.step, 1.0)
        return np.where(f.step > 0, step * (np.floor(left / step + CLOSE) + 1), left)

    def _rival(self, x: np.ndarray, level: float, low: np.ndarray, high: np.ndarray) -> Any:
        """The rival in the pool that x can take least from, among those that beat y; and its live rows."""
        f, answers = self.f, self.pool.answers
        if not len(answers):
            return None
        costs = answers @ f.costs(x)
        beat = np.flatnonzero(costs < level - 5 * slack(1.0) * (1 + abs(level)))
        beat = beat[f.fits(x, answers[beat])]
        if not len(beat):
            return None
        live = self._threshold(answers[beat]) <= self._takes(low, high) + CLOSE
        order = np.lexsort((costs[beat], live.sum(axis=1)))
        return answers[beat[order[0]]], np.flatnonzero(live[order[0]])

    def _split(self, x: np.ndarray, rival: Any, low: np.ndarray, high: np.ndarray) -> Any:
        r, live = rival
        model, f, record = self.model, self.f, self.record
        limits = self._threshold(r)
        if (f.G[live] @ x >= limits[live] - CLOSE).any():  # no step between taken and not taken
            return self._leave(x, low, high, r)
        row = self.master.rival(r)
        record.cuts += 1
        if not len(live):
            model.addConsLocal(row)
            return SCIP_RESULT.CONSADDED
        if self.single[live].all() and self._cover(r):
            return SCIP_RESULT.CONSADDED
        record.splits += 1
        order = live[np.argsort(limits[live] - f.G[live] @ x)]
        estimate = model.getLocalEstimate()
        for k in range(len(order) + 1):
            child = model.createChild(1.0 if k == 0 else 0.0, estimate)
            if k == 0:
                model.addConsNode(child, row)
                continue
            for place, i in enumerate(order[:k]):
                taken = place == k - 1
                if not taken and f.step[i] == 0:
                    continue
                limit = limits[i] if taken else limits[i] - f.step[i]
                self._bound(child, f.G[i], float(limit), taken)
        return SCIP_RESULT.BRANCHED

    def _cover(self, r: np.ndarray) -> bool:
        """A row for the whole tree in place of a split, where each row is moved by one binary of the leader's.

        With T the sum of the literals that take r: T >= 1 if no point where r stays is better than the best one known;
        else, for zero-sum programs, w >= -(d + D'x)'r - span T, where w is at least -(d + D'x)'r - span anyway.
        """
        master, nested, f, record = self.master, self.master.nested, self.f, self.record
        live = np.flatnonzero(self._live(r))
        if not master.opposed or not self.single[live].all():
            return False
        literals = []
        for i in live:
            j = int(abs(f.G[i]).argmax())
            literals.append(master.x[j] if f.G[i, j] > 0 else 1 - master.x[j])
        slope = nested.leader.linear[: self.n] - f.D @ r
        low, high = nested.lower[: self.n], nested.upper[: self.n]
        with np.errstate(invalid="ignore"):
            least = np.where(slope > 0, slope * low, np.where(slope < 0, slope * high, 0.0)).sum() - f.d @ r
        best = record.value - nested.leader.constant
        taken = quicksum(literals)
        if least >= best - 1e-9 * (1 + abs(best)):
            self.model.addCons(taken >= 1)
        else:
            drop = f.D @ r
            with np.errstate(invalid="ignore"):
                most = -f.d @ r - np.where(drop > 0, drop * low, np.where(drop < 0, drop * high, 0.0)).sum()
            span = most - master.least
            if not np.isfinite(span) or span > SPAN * (1 + abs(most)):
                return False
            self.model.addCons(
                master.level - quicksum(terms(f.D @ r, master.x)) <= float(f.d @ r) + float(span) * taken
            )
        record.cuts += 1
        return True

    def _bend(self, x: np.ndarray, low: np.ndarray, high: np.ndarray) -> Any:
        """The follower is unbounded at this decision: none where the ray r gets cheaper, (d + D'x)'r >= 0."""
        r = self.responder.ray(x)
        if r is None:
            return self._leave(x, low, high)
        self.model.addCons(quicksum(terms(self.f.D @ r, self.master.x)) >= -float(self.f.d @ r))
        return SCIP_RESULT.CONSADDED

    def _bound(self, child: Any, row: np.ndarray, limit: float, above: bool) -> None:
        model, places = self.model, np.flatnonzero(row)
        if len(places) == 1 and self.master.nested.integer[places[0]]:
            variable, a = model.getTransformedVar(self.master.x[places[0]]), row[places[0]]
            if above == (a > 0):
                model.chgVarLbNode(child, variable, max(np.ceil(limit / a - CLOSE), variable.getLbLocal()))
            else:
                model.chgVarUbNode(child, variable, min(np.floor(limit / a + CLOSE), variable.getUbLocal()))
            return
        total = quicksum(terms(row, self.master.x))
        model.addConsNode(child, total >= limit if above else total <= limit)

    def _leave(self, x: np.ndarray, low: np.ndarray, high: np.ndarray, r: np.ndarray | None = None) -> Any:
        """Branch away from this decision: a child for x alone, with the rival's cut where there is one."""
        model = self.model
        loose = [j for j in self.whole if high[j] - low[j] > 0.5]
        if not loose:
            if r is None:
                return SCIP_RESULT.CUTOFF
            model.addConsLocal(self.master.rival(r))
            return SCIP_RESULT.CONSADDED
        self.record.splits += 1
        j = loose[0]
        variable = model.getTransformedVar(self.master.x[j])
        estimate = model.getLocalEstimate()
        for a, b in ((low[j], x[j] - 1), (x[j], x[j]), (x[j] + 1, high[j])):
            if a <= b:
                child = model.createChild(0.0, estimate)
                model.chgVarLbNode(child, variable, float(a))
                model.chgVarUbNode(child, variable, float(b))
        return SCIP_RESULT.BRANCHED
