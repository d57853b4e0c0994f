"""Nested programs with constraints that only CP-SAT can say: circuits, intervals, tables, all-different.

The master holds the constraints of both levels. Where the follower, asked at the master's x*, does better than the master's y by
an answer r, the master learns

    g(x, y) <= g(x, r)            if no variable of the leader's stands in the follower's constraints, else only
    x_L = x*_L  implies  g(x, y) <= g(x, r),        x_L the leader's variables that do,

until the follower agrees; the bound is the master's. After Lozano and Smith 2017, and DeNegre and Ralphs 2009 for the second.
Costs are rounded to whole numbers once, for both levels and all solves alike, so that the rounded game is solved exactly.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from bigrad.discrete.nested import Nested, Objective
from bigrad.discrete.whole import ROOM, Whole, rounding, scale
from bigrad.exact.found import Found
from bigrad.solution import Status


def search(models: Any, nested: Nested, gap: float, time_limit: float) -> Found:
    """One program. models: see `bigrad.programs.merged.Models`."""
    start, n = time.perf_counter(), nested.leaders
    reach = models.build(True, False).reach
    upper, lower = _whole(nested.leader, reach, n), _whole(nested.follower, reach, n)
    master, reaction, below = Game(models, upper, lower), Game(models, upper, lower), models.build(False, True)
    best, best_w, bound, cuts = np.inf, None, -np.inf, 0
    lost = upper.error

    def ended(status: Status) -> Found:
        proven = (bound + nested.leader.constant) if np.isfinite(bound) else np.nan
        return Found(status, best_w, proven, cuts, cuts, time.perf_counter() - start, lost)

    while True:
        left = time_limit - (time.perf_counter() - start)
        w, status = master.solve(left)
        if status is Status.INFEASIBLE_UPPER:
            if best_w is not None:
                bound = best
                return ended(Status.GLOBAL)
            alone = models.build(False, True).solve(np.zeros(len(reach)), None, left)
            none = alone[1] is Status.INFEASIBLE_UPPER
            return ended(Status.INFEASIBLE_LOWER if none else status)
        if status is not Status.GLOBAL:
            return ended(Status.OPEN if status is Status.TIME_LIMIT and best_w is not None else status)
        bound = max(bound, upper.value(w) / upper.scale)
        x = w[:n]
        costs = np.concatenate([np.zeros(n), lower.on_follower(x)])
        answer, status = below.solve(costs, None, time_limit - (time.perf_counter() - start), _held(x))
        if status is not Status.GLOBAL:
            return ended(Status.OPEN if status is Status.TIME_LIMIT and best_w is not None else status)
        cuts += 1
        if lower.value(w) <= lower.value(np.concatenate([x, answer[n:]])):
            best, best_w = upper.value(w) / upper.scale, w
            bound = best
            return ended(Status.GLOBAL)
        reaction.atmost(float(costs @ answer))
        reply, status = reaction.solve(time_limit - (time.perf_counter() - start), _held(x))
        if status is Status.GLOBAL and upper.value(reply) / upper.scale < best:
            best, best_w = upper.value(reply) / upper.scale, reply
            if best - bound <= gap * (1 + abs(best)) and gap > 0:
                return ended(Status.GLOBAL)
        master.rival(answer[n:], x, models.links)


class Costs:
    """An objective in whole numbers: `scale` times the real one, rounded."""

    def __init__(self, linear: np.ndarray, cross: Any, factor: float, error: float):
        self.linear, self.cross, self.scale, self.error = linear, cross, factor, error

    def value(self, w: np.ndarray) -> float:
        """At (x, y)."""
        n = self.cross.shape[0]
        return float(self.linear @ w + w[:n] @ (self.cross @ w[n:]))

    def on_follower(self, x: np.ndarray) -> np.ndarray:
        """The costs of y."""
        found: np.ndarray = self.linear[len(x) :] + self.cross.T @ x
        return found


def _whole(own: Objective, reach: np.ndarray, n: int) -> Costs:
    """An objective rounded."""
    cross = own.cross.tocsr().copy()
    coo = cross.tocoo()
    every = np.concatenate([own.linear, coo.data])
    size = np.concatenate([reach, reach[coo.row] * reach[n + coo.col]])
    factor = scale(every, size)
    cross.data = np.rint(cross.data * factor)
    return Costs(np.rint(own.linear * factor), cross, factor, rounding(every, size))


def _held(x: np.ndarray) -> dict[int, float]:
    return dict(enumerate(x.tolist()))


class Game:
    """CP-SAT with the constraints of both levels, and both objectives."""

    def __init__(self, models: Any, upper: Costs, lower: Costs):
        self.whole: Whole = models.build(True, True)
        self.model, self.upper, self.lower, self.size = self.whole.model, upper, lower, len(upper.linear)
        self.products: dict[tuple[int, int], Any] = {}
        self.literals: dict[tuple[int, int], Any] = {}
        self.level = self._form(lower, len(upper.linear) - lower.cross.shape[1])
        goal = self._form(upper, 0)
        largest = int(min(abs(upper.linear) @ self.whole.reach + self._across(upper), ROOM * 4)) + 1
        self.goal = self.model.new_int_var(-largest, largest, "")
        self.model.add(self.goal >= goal)
        self.ceiling: Any = None

    def _across(self, costs: Costs) -> float:
        n, reach = costs.cross.shape[0], self.whole.reach
        return float(reach[:n] @ (abs(costs.cross) @ reach[n:]))

    def _form(self, costs: Costs, first: int) -> Any:
        """An objective as CP-SAT's expression, its linear terms from the variable `first` on."""
        from ortools.sat.python import cp_model

        n, coo = costs.cross.shape[0], costs.cross.tocoo()
        used = [k for k in np.flatnonzero(costs.linear).tolist() if k >= first]
        variables = [self.model.get_int_var_from_proto_index(k) for k in used]
        variables += [self._product(i, n + j) for i, j in zip(coo.row.tolist(), coo.col.tolist(), strict=True)]
        values = [int(costs.linear[k]) for k in used] + [int(v) for v in coo.data]
        return cp_model.LinearExpr.weighted_sum(variables, values) if variables else 0

    def _product(self, i: int, j: int) -> Any:
        if (i, j) not in self.products:
            one, other = (self.model.get_int_var_from_proto_index(k) for k in (i, j))
            most = int(self.whole.reach[i] * self.whole.reach[j])
            self.products[i, j] = self.model.new_int_var(-most, most, "")
            self.model.add_multiplication_equality(self.products[i, j], [one, other])
        return self.products[i, j]

    def solve(self, time_limit: float, held: dict[int, float] | None = None) -> tuple[np.ndarray, Status]:
        """The leader's best (x, y)."""
        if time_limit <= 0:
            return np.zeros(self.size), Status.TIME_LIMIT
        costs = np.zeros(len(self.model.proto.variables))
        costs[self.goal.index] = 1.0
        w, status = self.whole.solve(costs, None, time_limit, held)
        return w[: self.size], status

    def atmost(self, value: float) -> None:
        """The follower pays at most this."""
        if self.ceiling is None:
            before = len(self.model.proto.constraints)
            self.model.add_linear_constraint(self.level + 0 * self.goal, -int(ROOM), int(ROOM))
            self.ceiling = self.model.proto.constraints[before]
        domain = self.ceiling.linear.domain
        domain.clear()
        domain.extend([-int(ROOM) * 4, round(value)])

    def rival(self, r: np.ndarray, x: np.ndarray, links: tuple[int, ...]) -> None:
        """The follower pays at most what r would cost, where r is an answer."""
        from ortools.sat.python import cp_model

        model, n = self.model, len(x)
        slopes = self.lower.cross @ r
        used = np.flatnonzero(slopes).tolist()
        variables = [model.get_int_var_from_proto_index(k) for k in used]
        other = cp_model.LinearExpr.weighted_sum(variables, [int(slopes[k]) for k in used]) if used else 0
        row = model.add(self.level - other <= int(self.lower.linear[n:] @ r))
        if links:
            row.only_enforce_if([self._equals(k, round(x[k])) for k in links])

    def _equals(self, place: int, value: int) -> Any:
        """The literal of a leader's variable being at a value."""
        if (place, value) not in self.literals:
            variable, literal = self.model.get_int_var_from_proto_index(place), self.model.new_bool_var("")
            self.model.add(variable == value).only_enforce_if(literal)
            self.model.add(variable != value).only_enforce_if(literal.negated())
            self.literals[place, value] = literal
        return self.literals[place, value]
