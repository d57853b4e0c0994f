"""Oracle: a map from linear costs to decisions, in batches, which combinatorial gradient rules differentiate.

    y*(c) = argmin over y in Y of c'phi(y)

Y is finite or a polytope, phi what the costs multiply: the decisions themselves, unless the oracle says otherwise. A
maximising player is written with the sense -1, and no sign is flipped by hand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np


class Oracle(ABC):
    """costs (batch, n) to decisions (batch, m), float64 arrays; deterministic, and safe to call from several threads.

    Where there are several rows an item, such as samples, the rows of one item follow each other.

    Raises InputError, with the index in the batch, for costs outside the oracle's domain. partial: rows that it could not
    solve come back as NaN, with a SolveWarning, and a NaN from others is an error.
    """

    partial: ClassVar[bool] = False

    @property
    def sense(self) -> np.ndarray | float:
        """+1 for costs that their player minimises, -1 for those that it maximises: (n,), or one for all."""
        return 1.0

    @property
    def sets(self) -> int | None:
        """How many feasible sets it holds, one for each item of a batch; None for one that all share."""
        return None

    @abstractmethod
    def solve(self, costs: np.ndarray) -> np.ndarray:
        """The decisions at these costs."""

    def nudged(self, costs: np.ndarray, push: np.ndarray) -> np.ndarray:
        """The decisions where each player's minimised objective has the linear terms `push`, (batch, m), added."""
        return self.solve(costs + self.sense * push)

    def features(self, decisions: np.ndarray) -> np.ndarray:
        """phi, (batch, n): what each cost multiplies at these decisions."""
        return decisions
