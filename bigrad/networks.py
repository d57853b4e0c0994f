"""Toll programs on grid networks of any size: a leader sets tolls on some arcs, traffic answers.

The program is that of Labbe, Marcotte and Savard, "A bilevel model of taxation and its application to optimal highway
pricing", Management Science, 1998, with arcs that slow down as they fill, as in Beckmann, McGuire and Winsten, "Studies
in the economics of transportation", 1956.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bigrad.solution import InputError

if TYPE_CHECKING:
    import cvxpy as cp

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TollNetwork:
    """A grid of side x side nodes with an arc each way between neighbours, and its toll program.

    Attributes:
        side: nodes along one side; the network has side^2 nodes and 4 side (side - 1) arcs.
        tail, head: (arcs,) nodes that an arc leaves and enters, numbered row by row.
        cost: (arcs,) cost of an empty arc for one unit of flow, in money.
        slope: (arcs,) what each unit of flow on the arc adds to that cost for every unit.
        supply: (nodes,) flow that enters (positive) or leaves at a node; sums to zero.
        tolled: (tolls,) the arcs on which the leader sets a toll.
        cap: the highest toll.
        upkeep: what collecting tolls t costs the leader, upkeep |t|^2 / 2; makes tolls on unused arcs unique.
    """

    side: int
    tail: Integers
    head: Integers
    cost: Floats
    slope: Floats
    supply: Floats
    tolled: Integers
    cap: float
    upkeep: float

    @property
    def incidence(self) -> sp.csr_array:
        """(nodes, arcs): +1 where an arc leaves a node, -1 where it enters one."""
        arcs = np.arange(len(self.tail))
        ends = (np.r_[self.tail, self.head], np.r_[arcs, arcs])
        return sp.csr_array((np.repeat([1.0, -1.0], len(arcs)), ends), shape=(self.side**2, len(arcs)))

    def program_parts(self) -> tuple[cp.Problem, cp.Problem, cp.Variable, cp.Variable, cp.Parameter, cp.Parameter]:
        """Return new CVXPY objects: upper problem, lower problem, tolls, flows, and the parameters cost and load.

        The users share the network so that their total cost is least (congestion counts half, Beckmann's potential, of
        which the optimum is the equilibrium of selfish users):

            flow in argmin { (cost + tolls on tolled arcs)'f + sum(slope f^2) / 2 : incidence f == load supply,  f >= 0 }

        and the leader maximises tolls'flow[tolled] - upkeep |tolls|^2 / 2 with 0 <= tolls <= cap. The parameters have
        values: the network's own costs, and load 1.
        """
        import cvxpy as cp

        arcs = len(self.tail)
        tolls, flow = cp.Variable(len(self.tolled), name="tolls"), cp.Variable(arcs, name="flow", nonneg=True)
        cost, load = cp.Parameter(arcs, name="cost", value=self.cost), cp.Parameter(name="load", nonneg=True, value=1.0)
        crowd = cp.sum_squares(cp.multiply(np.sqrt(self.slope), flow)) / 2
        balance = [self.incidence @ flow == load * self.supply]
        lower = cp.Problem(cp.Minimize(crowd + cost @ flow + tolls @ flow[self.tolled]), balance)
        revenue = tolls @ flow[self.tolled] - self.upkeep / 2 * cp.sum_squares(tolls)
        upper = cp.Problem(cp.Maximize(revenue), [tolls >= 0, tolls <= self.cap])
        return upper, lower, tolls, flow, cost, load


def toll_grid(side: int, seed: int = 0, share: float = 0.1, cap: float = 5.0, upkeep: float = 0.1) -> TollNetwork:
    """Return a random toll program on a grid of side x side nodes.

    Costs are uniform in [1, 2], slopes in [0.5, 1.5]; every node sends or receives a normally distributed flow of one
    good.

    Args:
        side: nodes along one side, at least 2. The follower has 4 side (side - 1) variables: 72 makes 20,448.
        seed: of all random numbers.
        share: of the arcs that are tolled, at least one.
        cap: the highest toll.
        upkeep: of the tolls; see TollNetwork.

    Raises:
        InputError: fewer than 2 nodes a side, or a share outside (0, 1].
    """
    if side < 2 or not 0 < share <= 1:
        raise InputError(
            f"toll_grid(side={side}, share={share}): a network needs two nodes a side and a tolled arc; give side >= 2 and a "
            f"share above 0 and at most 1."
        )
    rng = np.random.default_rng(seed)
    node = np.arange(side * side).reshape(side, side)
    right = np.c_[node[:, :-1].ravel(), node[:, 1:].ravel()]
    down = np.c_[node[:-1].ravel(), node[1:].ravel()]
    ends = np.concatenate([right, down, right[:, ::-1], down[:, ::-1]])
    arcs = len(ends)
    supply = rng.standard_normal(side * side)
    return TollNetwork(
        side=side,
        tail=ends[:, 0],
        head=ends[:, 1],
        cost=rng.uniform(1, 2, arcs),
        slope=rng.uniform(0.5, 1.5, arcs),
        supply=supply - supply.mean(),
        tolled=np.sort(rng.choice(arcs, max(1, round(share * arcs)), replace=False)),
        cap=cap,
        upkeep=upkeep,
    )
