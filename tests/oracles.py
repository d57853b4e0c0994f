"""Small oracles whose answers can be enumerated: a choice among points, and a game of a leader and a follower."""

from dataclasses import dataclass

import numpy as np

from bigrad.oracle import Oracle


@dataclass(eq=False)
class Choice(Oracle):
    """The best of some points, (k, n); counts its calls."""

    points: np.ndarray
    maximise: bool = False
    rows: tuple[int, ...] = ()

    @property
    def sense(self):
        return -1.0 if self.maximise else 1.0

    def solve(self, costs):
        self.rows = (*self.rows, len(costs))
        return self.points[(self.sense * costs @ self.points.T).argmin(1)]


def one_hot(n, maximise=False):
    return Choice(np.eye(n), maximise)


@dataclass(eq=False)
class Game(Oracle):
    """Leader i, follower j, each minimising its own matrix and what the costs add: s_k c_k phi_k(i, j), phi_k = x'T_k y.

    leader, follower: (a, b). tables: T, (n, a, b). senses: (n,). own: (n,), whether the cost is the leader's. Decisions:
    (x, y), one-hot each.
    """

    leader: np.ndarray
    follower: np.ndarray
    tables: np.ndarray
    senses: np.ndarray
    own: np.ndarray

    @property
    def sense(self):
        return self.senses

    def solve(self, costs):
        a, b = self.leader.shape
        return self.nudged(costs, np.zeros((len(costs), a + b)))

    def nudged(self, costs, push):
        a, b = self.leader.shape
        added = (costs * self.senses)[:, :, None, None] * self.tables
        lead = self.leader + added[:, self.own].sum(1) + push[:, :a, None]
        follow = self.follower + added[:, ~self.own].sum(1) + push[:, None, a:]
        j = follow.argmin(2)
        i = np.take_along_axis(lead, j[..., None], 2)[..., 0].argmin(1)
        return np.concatenate([np.eye(a)[i], np.eye(b)[j[np.arange(len(i)), i]]], axis=1)

    def features(self, decisions):
        a = self.leader.shape[0]
        return np.einsum("ba,nac,bc->bn", decisions[:, :a], self.tables, decisions[:, a:])

    def mirrored(self):
        """The same game, in which whoever minimised a cost maximises minus it."""
        return Game(self.leader, self.follower, self.tables, -self.senses, self.own)


def duel():
    """2x2, one cost each: the leader pays c_0 where both choose 1, the follower earns c_1 where it chooses 1 and the leader 0."""
    tables = np.zeros((2, 2, 2))
    tables[0, 1, 1] = tables[1, 0, 1] = 1.0
    return Game(
        np.array([[1.0, 0.2], [0.3, 0.0]]),
        np.array([[0.0, 0.4], [0.1, 0.0]]),
        tables,
        np.array([1.0, -1.0]),
        np.array([True, False]),
    )


def contest():
    """3x3, three costs each, on the player's own choice: the leader minimises, the follower maximises."""
    tables = np.zeros((6, 3, 3))
    for k in range(3):
        tables[k, k, :] = 1.0
        tables[3 + k, :, k] = 1.0
    rng = np.random.default_rng(7)
    return Game(
        rng.uniform(0, 1, (3, 3)), rng.uniform(0, 1, (3, 3)), tables, np.repeat([1.0, -1.0], 3), np.arange(6) < 3
    )
