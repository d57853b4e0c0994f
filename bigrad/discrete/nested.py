"""Nested: a bilevel program with integer variables as arrays, both levels minimised.

    leader      min over x    f(x, y) = c'(x, y) + x'C y      subject to its rows on (x, y), and that
    follower    y in argmin   g(x, y) = d'(x, y) + x'D y      subject to its rows on (x, y),

x and y within bounds, some of them integer. The products C and D are of a leader's and a follower's variable: the costs
of interdiction. Where the follower is indifferent it answers as the leader likes best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp


@dataclass(frozen=True, eq=False)
class Rows:
    """lower <= matrix @ (x, y) <= upper; matrix: csr (rows, variables), bounds may be infinite."""

    matrix: sp.csr_array
    lower: np.ndarray
    upper: np.ndarray


@dataclass(frozen=True, eq=False)
class Objective:
    """linear @ (x, y) + x' cross y, minimised; linear: (variables,), cross: csr (leader's, follower's)."""

    linear: np.ndarray
    cross: sp.csr_array
    constant: float = 0.0

    def __call__(self, x: np.ndarray, y: np.ndarray) -> float:
        """Its value; x: (leader's,), y: (follower's,)."""
        return float(self.linear @ np.concatenate([x, y]) + x @ (self.cross @ y)) + self.constant

    def on_follower(self, x: np.ndarray) -> np.ndarray:
        """The linear costs of y, (follower's,), where the leader's decision is x."""
        return self.linear[len(x) :] + self.cross.T @ x

    def on_leader(self, y: np.ndarray) -> np.ndarray:
        """The linear costs of x, (leader's,), where the follower's answer is y."""
        return self.linear[: len(self.linear) - len(y)] + self.cross @ y


@dataclass(frozen=True, eq=False)
class Nested:
    """One mixed-integer bilevel program, of `leaders` variables x and `followers` variables y, in that order.

    lower, upper, integer: (variables,), bounds (may be infinite) and which variables are integer. leader_rows bind the
    leader, which must see to it that they hold at the follower's answer; follower_rows bind the follower.
    """

    leaders: int
    followers: int
    lower: np.ndarray
    upper: np.ndarray
    integer: np.ndarray
    leader_rows: Rows
    follower_rows: Rows
    leader: Objective
    follower: Objective

    @property
    def zero_sum(self) -> bool:
        """Whether the leader's objective is minus the follower's, but for terms in x alone."""
        f, g, n = self.leader, self.follower, self.leaders
        return bool((f.linear[n:] == -g.linear[n:]).all()) and abs(f.cross + g.cross).sum() == 0
