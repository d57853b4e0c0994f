"""Combinatorial: a nested integer program as a function of its costs.

Costs are linear in the objectives, so the program at given costs is one array addition away from the declared one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from bigrad.discrete.nested import Nested, Objective
from bigrad.oracle import Oracle


@dataclass(frozen=True, eq=False)
class Place:
    """Where an input's costs stand in the objective of the player who pays them.

    leader: who that is. sense: +1 if that player minimises, -1 if it maximises. one, other: (costs,), each cost is on the
    variable `one` of (x, y), times the variable `other` unless that is -1; with products `one` is the leader's.
    """

    leader: bool
    sense: float
    one: np.ndarray
    other: np.ndarray


@dataclass(frozen=True, eq=False)
class Combinatorial:
    """A nested integer program whose costs are inputs.

    base: the program with those costs at zero. places: one per input. find: the place in (x, y) of a variable of a model whose
    variables are single numbers; None where they are arrays, known by themselves. opposed: the leader minimises minus what the
    follower minimises, so the follower's costs are the leader's too. follower: the oracle that answers
    instead of the follower's rows, or None. rest: names of constraints that no rows can say, and `models` the two models
    as CP-SAT has them, which must then be asked; else empty and None.
    """

    base: Nested
    places: tuple[Place, ...]
    find: Callable[[Any], int | None] | None
    opposed: bool = False
    follower: Oracle | None = None
    rest: tuple[str, ...] = ()
    models: Any = None
    memory: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def layout(self) -> Nested:
        """The sizes of w = (x, y)."""
        return self.base

    @property
    def kind(self) -> str:
        """What kind of program this is, for a person to read."""
        whole = "integer" if self.base.integer.all() else "mixed-integer" if self.base.integer.any() else "linear"
        if self.follower is not None:
            return f"{whole}, the follower an oracle, the leader against it"
        return f"{whole}, {'the leader against the follower' if self.opposed else 'with costs as inputs'}"

    def at(self, theta: Sequence[np.ndarray]) -> Nested:
        """The program at the costs of one item, theta[k]: (costs of input k,)."""
        base = self.base
        leader = self._objective(base.leader, theta, True)
        follower = self._objective(base.follower, theta, False)
        return replace(base, leader=leader, follower=follower)

    def _objective(self, own: Objective, theta: Sequence[np.ndarray], leader: bool) -> Objective:
        linear, at, to, values = own.linear.copy(), [], [], []
        for place, costs in zip(self.places, theta, strict=True):
            if not (factor := self.factor(place, leader)):
                continue
            alone = place.other < 0
            np.add.at(linear, place.one[alone], factor * costs[alone])
            at.append(place.one[~alone])
            to.append(place.other[~alone] - self.base.leaders)
            values.append(factor * costs[~alone])
        cross = own.cross
        if any(len(v) for v in values):
            added = sp.csr_array((np.concatenate(values), (np.concatenate(at), np.concatenate(to))), shape=cross.shape)
            cross = (cross + added).tocsr()
        return Objective(linear, cross, own.constant)

    def factor(self, place: Place, leader: bool) -> float:
        """What multiplies an input's costs in a player's minimised objective."""
        if place.leader == leader:
            return place.sense
        return -place.sense if self.opposed and leader else 0.0

    def features(self, place: Place, w: np.ndarray) -> np.ndarray:
        """What each cost of an input multiplies at decisions w (batch, variables): (batch, costs)."""
        return np.where(place.other < 0, w[:, place.one], w[:, place.one] * w[:, place.other])

    def on_level(self, theta: Sequence[np.ndarray], leader: bool, other: np.ndarray) -> np.ndarray:
        """The linear costs of one player's decisions where the other's are held, minimised: (batch, its variables).

        theta[k]: (batch, costs of input k). other: (batch, the other player's variables).
        """
        n = self.base.leaders
        own = self.base.leader if leader else self.base.follower
        part = own.linear[:n] if leader else own.linear[n:]
        costs = np.array(part + ((own.cross @ other.T).T if leader else other @ own.cross))
        for place, given in zip(self.places, theta, strict=True):
            mine, held, weight = self._sides(place, leader, other)
            np.add.at(costs.T, mine, (self.factor(place, leader) * weight * given[:, held]).T)
        return costs

    def products(self, theta: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """D of the follower's minimised objective: rows and columns (entries,), values (batch, entries)."""
        own, n, batch = self.base.follower.cross.tocoo(), self.base.leaders, len(theta[0]) if theta else 1
        rows, columns, values = [own.row], [own.col], [np.broadcast_to(own.data, (batch, own.nnz))]
        for place, given in zip(self.places, theta, strict=True):
            pair = place.other >= 0
            if pair.any() and (factor := self.factor(place, False)):
                rows.append(place.one[pair])
                columns.append(place.other[pair] - n)
                values.append(factor * given[:, pair])
        return np.concatenate(rows), np.concatenate(columns), np.concatenate(values, 1)

    def off_level(
        self, grad: np.ndarray, leader: bool, other: np.ndarray, theta: Sequence[np.ndarray]
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """The transpose of `on_level`: the gradient in its costs (batch, variables) to those in theta and in `other`."""
        own, n = self.base.leader if leader else self.base.follower, self.base.leaders
        in_other = grad @ own.cross if leader else (own.cross @ grad.T).T
        found = []
        for place, given in zip(self.places, theta, strict=True):
            mine, held, weight = self._sides(place, leader, other)
            back = np.zeros_like(given)
            factor = self.factor(place, leader)
            back[:, held] = factor * weight * grad[:, mine]
            found.append(back)
            pair = place.other[held] >= 0
            across = (place.other[held] - n if leader else place.one[held])[pair]
            np.add.at(in_other.T, across, (factor * given[:, held] * grad[:, mine])[:, pair].T)
        return found, in_other

    def _sides(self, place: Place, leader: bool, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the costs of an input that one player's choice feels: the player's variable, the cost's index, and what the
        other player's decision multiplies it by, (batch, costs)."""
        n, product = self.base.leaders, place.other >= 0
        felt = np.flatnonzero(product | ((place.one < n) == leader))
        mine = np.where(product & (not leader), place.other, place.one)[felt] - (0 if leader else n)
        weight, pair = np.ones((len(other), len(felt))), product[felt]
        across = (place.other - n if leader else place.one)[felt]
        weight[:, pair] = other[:, across[pair]]
        return mine, felt, weight
