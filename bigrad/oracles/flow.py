"""Flow: the cheapest flow through a network with capacities, by OR-Tools' cost scaling.

Goldberg, "An efficient implementation of a scaling minimum-cost flow algorithm", 1997. It takes whole numbers; costs
are scaled to fill 2^40. It holds the interpreter lock, so threads do not help. HiGHS, warm, takes twice to ten times as long.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from bigrad.oracle import Oracle
from bigrad.oracles.domain import admit, by_row, check_clamp, count_items, ends, picked, whole
from bigrad.solution import CapabilityError, DeclarationError

STEPS = 2.0**40
"""Costs are rounded to whole multiples of the largest of their item divided by this."""


@dataclass(frozen=True, eq=False)
class Flow(Oracle):
    """Cheapest flow; costs and decisions (batch, n), one for each arc; decisions are whole numbers.

        y*(c) = argmin { c'y : 0 <= y <= capacities, outflow(v) - inflow(v) = supplies(v) at each node v }

    arcs: (n, 2), from and to, nodes counted from 0. capacities: (n,), supplies: (nodes,), positive where flow enters,
    summing to zero, whole numbers; either may be one for each item, (items, n) or (items, nodes), see
    `bigrad.oracles.domain` for how rows find their item. DeclarationError where no flow is feasible. Costs may have any
    sign; `clamp` raises lower ones to itself. The flow is optimal to within 2^-41 of the largest cost, for each unit on each
    arc. Ties: as OR-Tools breaks them, the same way for the same costs. Needs the extra `ortools`.
    """

    arcs: Any
    capacities: Any
    supplies: Any
    clamp: float | None = None

    def __post_init__(self) -> None:
        check_clamp("Flow", self.clamp)
        if self._supplies.ndim < 1 or self._capacities.shape[-1:] != self._arcs[0].shape:
            raise DeclarationError(
                f"Flow: needs capacities (…, {len(self._arcs[0])}) and supplies (…, nodes), "
                f"got {self._capacities.shape} and {self._supplies.shape}."
            )
        if (self._capacities < 0).any():
            raise DeclarationError("Flow: capacities must be at least 0.")
        for i in range(self.sets or 1):
            capacities, supplies = (
                array if array.ndim == 1 else array[i] for array in (self._capacities, self._supplies)
            )
            of = f" of item {i}" if self.sets else ""
            if supplies.sum():
                raise DeclarationError(f"Flow: the supplies{of} sum to {supplies.sum()}; they must sum to 0.")
            if _cheapest(self._arcs, capacities, supplies, np.zeros(len(capacities), np.int64)) is None:
                raise DeclarationError(f"Flow: no flow within the capacities meets the supplies{of}.")

    @cached_property
    def _arcs(self) -> tuple[np.ndarray, np.ndarray]:
        return ends("Flow", self.arcs, self._supplies.shape[-1])

    @cached_property
    def _capacities(self) -> np.ndarray:
        return whole("Flow", "capacities", self.capacities)

    @cached_property
    def _supplies(self) -> np.ndarray:
        return np.atleast_1d(whole("Flow", "supplies", self.supplies))

    @cached_property
    def sets(self) -> int | None:
        """How many feasible sets it holds; None for one that all share."""
        return count_items("Flow", capacities=(self._capacities, 1), supplies=(self._supplies, 1))

    def at(self, items: Any) -> Flow:
        """The oracle of some of its items, in this order."""
        return replace(self, capacities=picked(self._capacities, 1, items), supplies=picked(self._supplies, 1, items))

    def solve(self, costs: np.ndarray) -> np.ndarray:
        """The flow on each arc."""
        costs = admit("Flow", costs, len(self._arcs[0]), clamp=self.clamp, items=self.sets)
        flows = np.empty(costs.shape)
        capacities, supplies = (by_row(array, 1, len(costs)) for array in (self._capacities, self._supplies))
        largest = abs(costs).max(axis=1, initial=0, keepdims=True)
        scaled = np.rint(costs / np.where(largest > 0, largest, 1) * STEPS).astype(np.int64)
        for flow, capacity, supply, cost in zip(flows, capacities, supplies, scaled, strict=True):
            flow[:] = _cheapest(self._arcs, capacity, supply, cost)
        return flows


def _cheapest(
    arcs: tuple[np.ndarray, np.ndarray], capacities: np.ndarray, supplies: np.ndarray, costs: np.ndarray
) -> np.ndarray | None:
    """The flow on each arc, whole numbers; None if no flow is feasible."""
    try:
        from ortools.graph.python import min_cost_flow
    except ImportError:
        raise CapabilityError("Flow needs OR-Tools: pip install 'bigrad[ortools]'.") from None
    solver = min_cost_flow.SimpleMinCostFlow()
    added = solver.add_arcs_with_capacity_and_unit_cost(*arcs, capacities, costs)
    at = np.flatnonzero(supplies)
    solver.set_nodes_supplies(at, supplies[at])
    status = solver.solve()
    if status == solver.INFEASIBLE:
        return None
    if status != solver.OPTIMAL:
        raise CapabilityError(f"Flow: OR-Tools gave up with {status.name}; take smaller capacities and supplies.")
    return solver.flows(added)
