"""Master: SCIP's model of a nested program without the follower's objective, in which `tree` cuts.

It holds all rows of both levels, x and y; or x and one number w = -phi(x) for a zero-sum program whose follower always
has an answer. A product of x and y is a variable of its own, exact and linear where x is binary and y bounded (McCormick,
"Computability of global solutions to factorable nonconvex programs", 1976), else left to SCIP's spatial branching.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyscipopt
from pyscipopt import SCIP_PARAMSETTING, quicksum

from bigrad.discrete.nested import Nested
from bigrad.exact.answers import CLOSE, Follower, outer
from bigrad.solvers.sos import quiet

SOLVED = 10
"""SCIP's stage number after which its transformed problem is being taken down."""
SOLVING = 5
"""SCIP's stage number from which on it has a transformed problem whose points can be tried."""


class Master:
    """SCIP's model and its variables: x, y if `copy`, and w if `opposed`, which a zero-sum program may be."""

    def __init__(self, nested: Nested, follower: Follower, floor: float, copy: bool, opposed: bool):
        self.opposed = opposed
        self.nested, self.follower, self.copy, self.floor = nested, follower, copy, floor
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
            model.addVar(lb=_or_none(nested.lower[j]), ub=_or_none(nested.upper[j]), vtype=kinds[j])
            for j in range(used)
        ]
        self.x, self.y = z[:n], z[n:]
        for rows in (nested.leader_rows, nested.follower_rows) if copy else (outer(nested),):
            matrix = rows.matrix
            for i in range(len(rows.lower)):
                part = slice(matrix.indptr[i], matrix.indptr[i + 1])
                entries = [float(a) * z[j] for j, a in zip(matrix.indices[part], matrix.data[part], strict=True) if a]
                self._row(entries, rows.lower[i], rows.upper[i])
        self._products: dict[tuple[int, int], Any] = {}
        f, g = nested.leader, nested.follower
        if not opposed:
            self.level = quicksum([*terms(follower.d, self.y), *self._cross(g.cross)])
            cost = quicksum([*terms(f.linear, z), *self._cross(f.cross)])
        else:
            c, low, high = f.linear[:n], nested.lower[:n], nested.upper[:n]
            with np.errstate(invalid="ignore"):
                most = np.where(c > 0, c * high, np.where(c < 0, c * low, 0.0)).sum()
            self.least = floor - float(most)
            w = model.addVar(lb=self.least if np.isfinite(self.least) else None, name="w")
            self.level, cost = -1.0 * w, quicksum([*terms(f.linear[:n], self.x), w])
            self.w = w
        self.objective = model.addVar(lb=floor, name="value")
        model.addCons(cost <= self.objective)
        model.setObjective(1.0 * self.objective)

    def _row(self, entries: list[Any], lower: float, upper: float) -> None:
        model = self.model
        if not entries:
            if lower > CLOSE or upper < -CLOSE:
                never = model.addVar(lb=0.0, ub=0.0)
                model.addCons(never >= 1.0)
            return
        row = quicksum(entries)
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
        return self.level - quicksum(terms(f.D @ r, self.x)) <= float(f.d @ r)

    def offer(self, x: np.ndarray, y: np.ndarray) -> None:
        """Hand SCIP a bilevel-feasible point; not one that it has excluded already."""
        model, nested = self.model, self.nested
        solution, solving = model.createSol(), model.getStage() >= SOLVING
        value = nested.leader(x, y) - nested.leader.constant
        numbers = [*zip(self.x, x, strict=True), (self.objective, value)]
        if self.copy:
            numbers += zip(self.y, y, strict=True)
            numbers += [(variable, x[i] * y[j]) for (i, j), variable in self._products.items()]
        if self.opposed:
            numbers.append((self.w, value - float(nested.leader.linear[: len(x)] @ x)))
        for variable, number in numbers:
            fixed = model.getTransformedVar(variable) if solving else variable
            if fixed.getStatus() != "FIXED":
                model.setSolVal(solution, variable, float(number))
            elif abs(fixed.getLbGlobal() - number) > CLOSE * (1 + abs(number)):  # SCIP takes no other number
                return model.freeSol(solution)
        if solving:
            model.trySol(solution, printreason=False)
        else:
            model.addSol(solution)

    def run(self, end: float, gap: float, seed: int) -> str:
        """Solve, silently and within the time; SCIP's own word for how it ended."""
        model = self.model
        if np.isfinite(end):
            model.setParam("limits/time", max(end - time.perf_counter(), 1e-3))
        model.setParam("limits/gap", gap)
        model.setParam("randomization/randomseedshift", seed)
        model.setHeuristics(SCIP_PARAMSETTING.OFF)
        with quiet:
            model.optimize()
        return str(model.getStatus())


def terms(costs: np.ndarray, variables: list[Any]) -> list[Any]:
    """The products of costs and variables that are not zero."""
    return [float(costs[j]) * variables[j] for j in np.flatnonzero(costs)]


def _or_none(bound: float) -> float | None:
    return float(bound) if np.isfinite(bound) else None
