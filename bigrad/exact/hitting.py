"""Interdiction against any oracle: branch on what the follower's answer is made of. After Israeli and Wood, "Shortest-path
network interdiction", Networks 40 (2002), whose covering decomposition this turns into a tree.

    max over x in X of V(x) - c'x,   V(x) = min over y of (d + D'x)'y,   X: binary x with weight'x <= budget

Whatever the follower has once answered, y, bounds every x: V(x) - c'x <= d'y + p'x with p = D y - c. So a decision that is
better than x must add an element e with p_e > 0, y the answer to x. A node fixes some elements in and some out; its bound
is the least of d'y + max p'x over the answers y that are known, the inner maximum by filling the budget greedily, the last
element in part. Nodes are taken best bound first, many at a time, and the oracle answers them in one call.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from bigrad.oracle import Oracle
from bigrad.solution import Status

WIDTH = 24
"""Nodes of an item that are asked about at once."""
CHUNK = 8
"""Answers that bound nodes together, before those that are beaten are dropped."""
KNOWN = 24
"""Answers of earlier calls that bound the nodes of an item."""
GUESSES = 3
"""Decisions of earlier calls that an item tries first."""
MOST = (256, 64)
"""Answers and decisions that are remembered."""
FRESH = 12
"""Answers of an item that are worth remembering."""
LESS = 1e-9
"""An improvement smaller than this, relative to 1 + the value, is none."""


class Games(NamedTuple):
    """A batch of programs: d (batch, follower's); D as places rows, columns (entries,) with values (batch, entries); c (batch,
    leader's); weight (leader's,), positive, and budget."""

    d: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    c: np.ndarray
    weight: np.ndarray
    budget: float

    def costs(self, item: np.ndarray, x: np.ndarray) -> np.ndarray:
        """What the follower pays at decisions x (count, leader's) of these items."""
        found = self.d[item]
        np.add.at(found.T, self.columns, (x[:, self.rows] * self.values[item]).T)
        return found

    def slopes(self, item: np.ndarray, y: np.ndarray) -> np.ndarray:
        """p of answers y, (count, follower's)."""
        found = -self.c[item]
        np.add.at(found.T, self.rows, (y[:, self.columns] * self.values[item]).T)
        return found


class Result(NamedTuple):
    """x, y: (batch, …); bound: proven, on what the leader maximises; status; asked: follower's solves; nodes."""

    x: np.ndarray
    y: np.ndarray
    bound: np.ndarray
    status: list[Status]
    asked: np.ndarray
    nodes: np.ndarray


@dataclass
class Bounds:
    """The answers known for one item: constants d'y and slopes p (`full`), and, answer by answer, the elements worth adding
    (`order`) from the best ratio of slope to weight down."""

    constant: np.ndarray
    full: np.ndarray
    order: np.ndarray
    ratio: np.ndarray
    weight: np.ndarray

    @staticmethod
    def of(game: Games, i: int, y: np.ndarray) -> Bounds:
        """Answers y, (count, follower's), for item i."""
        p = game.slopes(np.full(len(y), i), y)
        ratio = np.maximum(p, 0.0) / game.weight
        count = max(int((p > 0).sum(1).max(initial=0)), 1)
        order = np.argsort(-ratio, axis=1, kind="stable")[:, :count]
        return Bounds(y @ game.d[i], p, order, np.take_along_axis(ratio, order, 1), game.weight[order])

    def at(self, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the cheapest known answer costs at decisions (count, leader's), and its slopes."""
        values = self.constant + taken @ self.full.T
        cheapest = values.argmin(1)
        return values[np.arange(len(taken)), cheapest], self.full[cheapest]

    def __call__(self, taken: np.ndarray, out: np.ndarray, left: np.ndarray, beaten: float) -> np.ndarray:
        """The bound of nodes: taken, out (nodes, leader's) bool; left (nodes,) of the budget. Where it falls to `beaten`,
        the node is not looked at further."""
        bound, free = np.full(len(taken), np.inf), ~(taken | out)
        for first in range(len(self.constant) - 1, -1, -CHUNK):  # from the newest: made for nodes like these
            live = np.flatnonzero(bound > beaten)
            if not len(live):
                break
            part = slice(max(first - CHUNK + 1, 0), first + 1)
            bound[live] = np.minimum(bound[live], self._least(part, taken[live], free[live], left[live]))
        return bound

    def _least(self, part: slice, taken: np.ndarray, free: np.ndarray, left: np.ndarray) -> np.ndarray:
        """The least bound by some of the answers."""
        fixed = self.constant[part] + taken @ self.full[part].T
        weight = np.where(free[:, self.order[part]], self.weight[part], 0.0)
        room = np.minimum(left[:, None, None] - np.cumsum(weight, 2), 0.0) + weight  # how much of each still fits
        return (fixed + (np.maximum(room, 0.0) * self.ratio[part]).sum(2)).min(1)


@dataclass
class Known:
    """Answers of the follower, feasible whatever the costs, and decisions of the leader that were optimal once; newest last."""

    answers: dict[bytes, np.ndarray] = field(default_factory=dict)
    decisions: dict[bytes, np.ndarray] = field(default_factory=dict)

    def keep(self, answers: list[np.ndarray], decisions: np.ndarray) -> None:
        """Adds to them, and forgets the oldest."""
        for held, rows, most in ((self.answers, answers, MOST[0]), (self.decisions, decisions, MOST[1])):
            for row in rows:
                key = row.tobytes()
                held.pop(key, None)
                held[key] = row
            for key in list(held)[: max(len(held) - most, 0)]:
                held.pop(key, None)

    def recall(self, game: Games) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
        """For each item: the answers that bound it best, and the decisions that look best by them."""
        y, x = np.array(list(self.answers.values())), np.array(list(self.decisions.values()))
        for i in range(len(game.d)):
            value = (y @ game.d[i])[:, None] + game.slopes(np.full(len(y), i), y) @ x.T
            best = np.argsort(-value.min(0), kind="stable")[:GUESSES]
            tight = {int(k): None for at in best for k in np.argsort(value[:, at], kind="stable")[: KNOWN // GUESSES]}
            yield [y[k] for k in tight], [x[k] for k in best]


def search(game: Games, follower: Oracle, known: Known, gap: float, time_limit: float) -> Result:
    """Solve a batch. known: what earlier calls found, to which this one adds."""
    batch, n = game.c.shape
    end = time.perf_counter() + time_limit * batch
    best, best_x = np.full(batch, -np.inf), np.zeros((batch, n))
    best_y = np.zeros((batch, game.d.shape[1]))
    asked, nodes = np.zeros(batch, int), np.zeros(batch, int)
    bounds: dict[int, Bounds] = {}
    mine: list[list[np.ndarray]] = [[] for _ in range(batch)]
    open_: list[Front] = [Front.root(n) for _ in range(batch)]

    def ask(item: np.ndarray, x: np.ndarray) -> np.ndarray:
        if not len(item):
            return np.zeros((0, game.d.shape[1]))
        costs = game.costs(item, x)
        y = follower.solve(costs * follower.sense)
        value = (costs * y).sum(1) - (game.c[item] * x).sum(1)
        np.add.at(asked, item, 1)
        for k in np.flatnonzero(value > best[item]):
            i = item[k]
            if value[k] > best[i]:
                best[i], best_x[i], best_y[i] = value[k], x[k], y[k]
        return y

    if known.answers:
        owners: list[int] = []
        tried: list[np.ndarray] = []
        for i, (recalled, guesses) in enumerate(known.recall(game)):
            mine[i] += recalled
            owners += [i] * len(guesses)
            tried += guesses
        for i, answer in zip(owners, ask(np.array(owners), np.array(tried)), strict=True):
            mine[i].append(answer)
    while True:
        size = np.where(np.isfinite(best), abs(best), 0.0)
        beaten = best + np.maximum(gap * size, LESS * (1 + size))
        live = [i for i in range(batch) if open_[i].prune(beaten[i])]
        if not live or (time.perf_counter() > end and np.isfinite(best).all()):
            break
        fronts = [open_[i].take(WIDTH) for i in live]
        item = np.repeat(live, [len(f.bound) for f in fronts])
        taken, out = np.concatenate([f.taken for f in fronts]), np.concatenate([f.out for f in fronts])
        np.add.at(nodes, item, 1)
        slopes, unknown = np.zeros(taken.shape), np.ones(len(item), bool)
        for i in live:
            if i in bounds:  # an answer that is known shows that this decision itself is beaten: none need be asked for
                own = np.flatnonzero(item == i)
                values, p = bounds[i].at(taken[own])
                unknown[own], slopes[own] = values > beaten[i], p
        y = ask(item[unknown], taken[unknown].astype(float))
        slopes[unknown] = game.slopes(item[unknown], y)
        for i in live:
            own = item == i
            mine[i] = [*mine[i][-8 * KNOWN :], *y[item[unknown] == i]]
            bounds[i] = Bounds.of(game, i, _unique(mine[i]))
            children = _children(game, taken[own], out[own], slopes[own])
            if len(children[0]):
                left = game.budget - children[0] @ game.weight
                open_[i].add(*children, bounds[i](*children, left, beaten[i]))
    known.keep([y for own in mine for y in own[-FRESH:]], best_x)
    bound = np.array([max(best[i], open_[i].bound.max(initial=-np.inf)) for i in range(batch)])
    status = [Status.GLOBAL if not len(open_[i].bound) else Status.OPEN for i in range(batch)]
    return Result(best_x, best_y, bound, status, asked, nodes)


@dataclass
class Front:
    """The open nodes of an item: elements taken and left out (nodes, leader's), bounds (nodes,)."""

    taken: np.ndarray
    out: np.ndarray
    bound: np.ndarray

    @staticmethod
    def root(n: int) -> Front:
        """Nothing decided."""
        return Front(np.zeros((1, n), bool), np.zeros((1, n), bool), np.array([np.inf]))

    def prune(self, value: float) -> bool:
        """Drops what cannot be better than `value`; whether anything is left."""
        keep = self.bound > value
        if not keep.all():
            self.taken, self.out, self.bound = self.taken[keep], self.out[keep], self.bound[keep]
        return bool(len(self.bound))

    def take(self, count: int) -> Front:
        """Takes the nodes of the best bounds off."""
        order = np.argsort(-self.bound, kind="stable")
        first, rest = order[:count], order[count:]
        found = Front(self.taken[first], self.out[first], self.bound[first])
        self.taken, self.out, self.bound = self.taken[rest], self.out[rest], self.bound[rest]
        return found

    def add(self, taken: np.ndarray, out: np.ndarray, bound: np.ndarray) -> None:
        """More nodes."""
        self.taken, self.out = np.concatenate([self.taken, taken]), np.concatenate([self.out, out])
        self.bound = np.concatenate([self.bound, bound])


def _children(game: Games, taken: np.ndarray, out: np.ndarray, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each node's elements worth adding, best first: one is added, those before it are left out."""
    left = game.budget - taken @ game.weight
    worth = (slopes > 0) & ~taken & ~out & (game.weight <= left[:, None] + LESS)
    order = np.argsort(-np.where(worth, slopes, -np.inf), axis=1, kind="stable")
    node, rank = np.nonzero(np.take_along_axis(worth, order, 1))
    element = order[node, rank]
    more, less = taken[node].copy(), out[node].copy()
    more[np.arange(len(node)), element] = True
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.arange(order.shape[1])[None], 1)
    less |= (places[node] < rank[:, None]) & worth[node]
    return more, less


def _unique(rows: list[np.ndarray]) -> np.ndarray:
    """Without repetition, in order."""
    return np.array(list({r.tobytes(): r for r in rows}.values()))
