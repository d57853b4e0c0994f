"""Tour: the shortest round trip of a travelling salesman, exact: by dynamic programming for few cities, else by CP-SAT."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from bigrad.oracle import Oracle
from bigrad.oracles.domain import admit, check_clamp
from bigrad.oracles.held_karp import tours
from bigrad.parallel import thread_map
from bigrad.solution import CapabilityError, DeclarationError

FEW = 12
"""Cities up to which dynamic programming is faster: at 12 it takes a tenth of CP-SAT's time, at 8 a hundredth."""
NUMBERS_AT_ONCE = 2**19
"""Entries of the table that are computed together."""
STEPS = 2.0**40
"""CP-SAT's whole numbers: costs are rounded to multiples of the largest of their item divided by this."""


@dataclass(frozen=True, eq=False)
class Tour(Oracle):
    """Shortest round trip through n >= 3 cities; costs and decisions (batch, n (n - 1) / 2), one for each pair of cities.

        y*(c) = argmin { c'y : y in {0, 1}^(n (n - 1) / 2) are the edges of a tour }

    The pairs are those of `edges`: (0, 1), (0, 2), ..., (n - 2, n - 1). Costs may have any sign and need not obey the
    triangle inequality; `clamp` raises lower ones to itself. Above 12 cities CP-SAT (extra `ortools`) proves tours that are
    optimal to within 2^-41 of the largest cost for each edge: a tenth of a second at 20 cities, much more at 50.
    Ties: deterministic, the same way for the same costs.
    """

    n: int
    clamp: float | None = None

    def __post_init__(self) -> None:
        if self.n < 3:
            raise DeclarationError(f"Tour({self.n}): a tour needs at least 3 cities.")
        check_clamp("Tour", self.clamp)

    @cached_property
    def edges(self) -> np.ndarray:
        """The pairs of cities in the order of costs and decisions, (n (n - 1) / 2, 2)."""
        return np.stack(np.triu_indices(self.n, 1), axis=1)

    def solve(self, costs: np.ndarray) -> np.ndarray:
        """The edges of the tour, 0 or 1."""
        costs = admit("Tour", costs, len(self.edges), clamp=self.clamp)
        if self.n > FEW:
            return np.concatenate(thread_map(lambda rows: self._prove(costs[rows]), len(costs), 1))
        taken = np.zeros(costs.shape)
        step = max(1, NUMBERS_AT_ONCE // (self.n * 2 ** (self.n - 1)))
        number = np.zeros((self.n, self.n), np.int64)
        number[tuple(self.edges.T)] = np.arange(len(self.edges))
        number += number.T
        for first in range(0, len(costs), step):
            part = slice(first, first + step)
            table = costs[part].T[number]
            order = tours(table)
            taken[np.arange(first, first + order.shape[1]), number[order, np.roll(order, 1, axis=0)]] = 1
        return taken

    def _prove(self, costs: np.ndarray) -> np.ndarray:
        blank, ways = _circuit(self.n)
        from ortools.sat.python import cp_model

        taken, edges = np.empty(costs.shape), costs.shape[1]
        for cost, answer in zip(costs, taken, strict=True):
            model = blank.clone()
            whole = np.rint(cost / (abs(cost).max() or 1.0) * STEPS).astype(np.int64)
            model.minimize(cp_model.LinearExpr.weighted_sum(ways, np.tile(whole, 2).tolist()))
            solver = cp_model.CpSolver()
            solver.parameters.num_workers, solver.parameters.random_seed = 1, 0
            status = solver.solve(model)
            if status != cp_model.OPTIMAL:
                raise CapabilityError(f"Tour: CP-SAT stopped with {solver.status_name(status)} on {self.n} cities.")
            values = np.array([solver.value(way) for way in ways])
            answer[:] = values[:edges] + values[edges:]
        return taken


@cache
def _circuit(n: int) -> Any:
    """A CP-SAT model of all tours and its literals, one for each edge and direction; to be cloned, not changed."""
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise CapabilityError(f"Tour: more than {FEW} cities need OR-Tools: pip install 'bigrad[ortools]'.") from None
    model, (one, other) = cp_model.CpModel(), np.triu_indices(n, 1)
    ways = [(i, j, model.new_bool_var("")) for i, j in np.r_[np.c_[one, other], np.c_[other, one]].tolist()]
    model.add_circuit(ways)
    return model, [way for _, _, way in ways]
