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

from bigrad.nested import Nested
from bigrad.solvers.answers import CLOSE, Follower, Pool, Responder, slack
from bigrad.solvers.milp import INTEGRALITY, End
from bigrad.solvers.sos import _quiet

import os
STURDY=int(os.environ.get('STURDY','0')); LIVE=int(os.environ.get('LIVE','0')); MID=float(os.environ.get('MID','0'))
SOLVED = 10
"""SCIP's stage number after which its transformed problem is being taken down."""


@dataclass
class Record:
    """What the handler has learned: phi at decisions, the best bilevel-feasible point, its counts and its errors."""

    phi: dict[bytes, tuple[End, float]] = field(default_factory=dict)
    value: float = np.inf
    x: np.ndarray | None = None
    y: np.ndarray | None = None
    waiting: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    splits: int = 0
    cuts: int = 0
    unbounded: bool = False
    late: bool = False
    error: Exception | None = None


class Master:
    """SCIP's model and its variables; `copy` says whether y is in it, else w."""

    def __init__(self, nested: Nested, follower: Follower, floor: float, copy: bool):
        self.nested, self.follower, self.copy = nested, follower, copy
        self.model = model = pyscipopt.Model()
        model.hideOutput()
        model.setParams(
            {
                "numerics/feastol": 1e-7,
                "timing/clocktype": 2,
                "presolving/donotaggr": True,
                "presolving/donotmultaggr": True,
                "misc/allowstrongdualreds": False,
                "misc/allowweakdualreds": False,
                "misc/usesymmetry": 0,
                "constraints/nonlinear/tightenlpfeastol": False,
            }
        )
        n, used = nested.leaders, nested.leaders + (nested.followers if copy else 0)
        kinds = ["I" if whole else "C" for whole in nested.integer]
        z = [
            model.addVar(lb=_or_none(nested.lower[j]), ub=_or_none(nested.upper[j]), vtype=kinds[j]) for j in range(used)
        ]
        self.x, self.y = z[:n], z[n:]
        for rows in (nested.leader_rows, nested.follower_rows) if copy else (nested.leader_rows,):
            matrix = rows.matrix
            for i in range(len(rows.lower)):
                part = slice(matrix.indptr[i], matrix.indptr[i + 1])
                terms = [float(a) * z[j] for j, a in zip(matrix.indices[part], matrix.data[part], strict=True) if a]
                self._row(terms, rows.lower[i], rows.upper[i])
        self._products: dict[tuple[int, int], Any] = {}
        f, g = nested.leader, nested.follower
        if copy:
            self.level = quicksum([*_terms(follower.d, self.y), *self._cross(g.cross)])
            cost = quicksum([*_terms(f.linear, z), *self._cross(f.cross)])
        else:
            w = model.addVar(lb=None, name="w")
            self.level, cost = -1.0 * w, quicksum([*_terms(f.linear[:n], self.x), w])
            self.w = w
        self.objective = model.addVar(lb=floor, name="value")
        model.addCons(cost <= self.objective)
        model.setObjective(1.0 * self.objective)
        self.cost = cost

    def _row(self, terms: list[Any], lower: float, upper: float) -> None:
        model = self.model
        if not terms:
            if lower > CLOSE or upper < -CLOSE:
                never = model.addVar(lb=0.0, ub=0.0)
                model.addCons(never >= 1.0)
            return
        row = quicksum(terms)
        if lower == upper:
            model.addCons(row == float(lower))
            return
        if np.isfinite(upper):
            model.addCons(row <= float(upper))
        if np.isfinite(lower):
            model.addCons(row >= float(lower))

    def _cross(self, cross: Any) -> list[Any]:
        """The terms of x' cross y, each product a variable: exact and linear where x is binary and y bounded."""
        entries = cross.tocoo()
        return [
            float(a) * self._product(int(i), int(j))
            for i, j, a in zip(entries.row, entries.col, entries.data, strict=True)
            if a
        ]

    def _product(self, i: int, j: int) -> Any:
        if (i, j) in self._products:
            return self._products[i, j]
        nested, n, model = self.nested, self.nested.leaders, self.model
        x, y, low, high = self.x[i], self.y[j], nested.lower[n + j], nested.upper[n + j]
        z = self._products[i, j] = model.addVar(lb=None)
        binary = nested.integer[i] and nested.lower[i] >= 0 and nested.upper[i] <= 1
        if binary and np.isfinite(low) and np.isfinite(high):
            low, high = float(low), float(high)
            model.addCons(z <= high * x)
            model.addCons(z >= low * x)
            model.addCons(z <= y - low * (1 - x))
            model.addCons(z >= y - high * (1 - x))
        else:
            model.addCons(z == x * y)
        return z

    def rival(self, r: np.ndarray) -> Any:
        """The row (d + D'x)'y <= (d + D'x)'r."""
        f = self.follower
        return self.level - quicksum(_terms(f.D @ r, self.x)) <= float(f.d @ r)

    def offer(self, x: np.ndarray, y: np.ndarray) -> None:
        """Hand SCIP a bilevel-feasible point."""
        model, nested = self.model, self.nested
        solution = model.createSol()
        value = nested.leader(x, y) - nested.leader.constant
        for variable, number in zip(self.x, x, strict=True):
            model.setSolVal(solution, variable, float(number))
        if self.copy:
            for variable, number in zip(self.y, y, strict=True):
                model.setSolVal(solution, variable, float(number))
            for (i, j), variable in self._products.items():
                model.setSolVal(solution, variable, float(x[i] * y[j]))
        else:
            model.setSolVal(solution, self.w, value - float(nested.leader.linear[: len(x)] @ x))
        model.setSolVal(solution, self.objective, value)
        if model.getStage() >= 5:
            model.trySol(solution, printreason=False)
        else:
            model.addSol(solution)


class Rational(pyscipopt.Conshdlr):
    """The constraint that y is an optimal answer to x."""

    def __init__(self, master: Master, responder: Responder, pool: Pool, record: Record, end: float, improve: bool = True):
        self.master, self.responder, self.pool, self.record, self.end = master, responder, pool, record, end
        f = master.follower
        self.f, self.link = f, np.flatnonzero(f.linking)
        self.whole = np.flatnonzero(f.linking & master.nested.integer[: len(f.linking)])
        self.gridless = f.step == 0
        self.improve = improve

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
            return {"result": SCIP_RESULT.CUTOFF}

    def consenfops(self, *_: Any) -> dict[str, Any]:
        """The same for a pseudo solution."""
        return self.consenfolp()

    def _fail(self, error: Exception) -> None:
        self.record.error = self.record.error or error
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
        record, f = self.record, self.f
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
            if self.improve:
                self._react(x, found.value, left)
        record.phi[key] = found.end, found.value
        return record.phi[key]

    def learn(self, r: np.ndarray) -> None:
        """Keep a rival, as a row for the whole tree if the leader can take nothing from it anywhere."""
        if self.pool.add(r) and not self._live(r).any():
            self.model.addCons(self.master.rival(r), local=False)

    def _live(self, r: np.ndarray) -> np.ndarray:
        low, high = self.master.nested.lower, self.master.nested.upper
        return self._threshold(r) <= self._takes(low[: len(self.f.linking)], high[: len(self.f.linking)]) + CLOSE

    def _react(self, x: np.ndarray, phi: float, left: float) -> None:
        record, nested, n = self.record, self.master.nested, self.master.nested.leaders
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
            self.model.interruptSolve()
            return SCIP_RESULT.FEASIBLE if False else SCIP_RESULT.INFEASIBLE
        x, _, level = self._point(None)
        if not self._integral(x):
            return SCIP_RESULT.FEASIBLE
        x[self.whole] = np.round(x[self.whole])
        low, high = self._box(x)
        rival = self._rival(x, level, low, high)
        if STURDY == 2 and rival is not None and len(rival[1]) > LIVE:
            rival = None
        if rival is None:
            end, phi = self.phi(x)
            if end is End.UNBOUNDED:
                return self._leave(x, low, high)
            if end is End.INFEASIBLE:
                return self._leave(x, low, high)
            if level <= phi + 10 * slack(phi):
                return SCIP_RESULT.FEASIBLE
            if STURDY:
                room = self._takes(low, high) - f.G @ x
                bar = phi + MID * (level - phi)
                r = self.responder.sturdy(x, bar, room, self.end - time.perf_counter())
                if r is not None:
                    self.learn(r)
            rival = self._rival(x, level, low, high)
            if rival is None:
                raise RuntimeError("the pool is full")
        return self._split(x, rival, low, high)

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

    def _bound(self, child: Any, row: np.ndarray, limit: float, above: bool) -> None:
        model, places = self.model, np.flatnonzero(row)
        if len(places) == 1 and self.master.nested.integer[places[0]]:
            variable, a = model.getTransformedVar(self.master.x[places[0]]), row[places[0]]
            if above == (a > 0):
                model.chgVarLbNode(child, variable, max(np.ceil(limit / a - CLOSE), variable.getLbLocal()))
            else:
                model.chgVarUbNode(child, variable, min(np.floor(limit / a + CLOSE), variable.getUbLocal()))
            return
        terms = quicksum(_terms(row, self.master.x))
        model.addConsNode(child, terms >= limit if above else terms <= limit)

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


def _terms(costs: np.ndarray, variables: list[Any]) -> list[Any]:
    return [float(costs[j]) * variables[j] for j in np.flatnonzero(costs)]


def _or_none(bound: float) -> float | None:
    return float(bound) if np.isfinite(bound) else None


def run(model: Any, end: float, gap: float, seed: int) -> str:
    """Solve, silently and within the time; SCIP's own word for the end."""
    model.setParam("limits/time", max(end - time.perf_counter(), 1e-3))
    model.setParam("limits/gap", gap)
    model.setParam("randomization/randomseedshift", seed)
    from pyscipopt import SCIP_PARAMSETTING as S
    o=os.environ.get('OPT','')
    if 'h' in o: model.setHeuristics(S.OFF)
    if 's' in o: model.setSeparating(S.OFF)
    if 'f' in o: model.setSeparating(S.FAST)
    if 'b' in o: model.setParam('nodeselection/bfs/stdpriority',1000000)
    if 'e' in o: model.setParam('separating/maxrounds',0)
    if 'p' in o: model.setParam('branching/pscost/priority',1000000)
    if 'm' in o: model.setParam('separating/maxroundsroot',5)
    with _quiet:
        model.optimize()
    return str(model.getStatus())
