"""The benchmarks' random bilevel quadratic programs: a leader who pulls the follower's answer towards a target."""

from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import daqp
import numpy as np


@dataclass(frozen=True, eq=False)
class Instance:
    """Numbers of one random program.

    Min |y - z|^2 + 0.1 |x|^2 with |x_i| <= 2, y in argmin 1/2 y'Py + (Cx + w)'y, Ay + Bx <= b.
    """

    P: np.ndarray
    C: np.ndarray
    A: np.ndarray
    B: np.ndarray
    b: np.ndarray

    @staticmethod
    def random(leader: int, follower: int, rows: int, seed: int = 0) -> "Instance":
        rng = np.random.default_rng(seed)
        P = rng.standard_normal((follower, follower))
        P = P @ P.T / follower + 0.5 * np.eye(follower)
        C, A = rng.standard_normal((follower, leader)), rng.standard_normal((rows, follower))
        return Instance(P, C, A, 0.3 * rng.standard_normal((rows, leader)), rng.random(rows) + 0.5)

    def lower(self, x: Any, y: cp.Variable, w: Any, A: Any = None) -> cp.Problem:
        """The follower's problem; x is a variable of the leader, or a parameter where the level stands alone."""
        root = np.linalg.cholesky(self.P).T
        cost = 0.5 * cp.sum_squares(root @ y) + (self.C @ x + w) @ y
        return cp.Problem(cp.Minimize(cost), [(self.A if A is None else A) @ y + self.B @ x <= self.b])

    def upper(self, x: cp.Variable, y: cp.Variable, z: Any) -> cp.Problem:
        """The leader's problem."""
        return cp.Problem(cp.Minimize(cp.sum_squares(y - z) + 0.1 * cp.sum_squares(x)), [x >= -2, x <= 2])

    def respond(self, x: np.ndarray, w: np.ndarray, A: np.ndarray | None = None) -> np.ndarray:
        """The follower's exact answer, by a dual active-set method on the numbers themselves."""
        A, top = (self.A if A is None else A).copy(), self.b - self.B @ x
        free = np.full(len(top), -1e30), np.zeros(len(top), np.int32)
        return daqp.solve(self.P.copy(), self.C @ x + w, A, top, *free, primal_tol=1e-11)[0]
