"""Pool: decisions found so far stand for all. Mulamba et al., "Contrastive losses and solution caching for
predict-and-optimize", IJCAI 2021.

Losses over a pool need no solve but those that let it grow.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bigrad.gradients.estimator import features, solve
from bigrad.oracle import Oracle
from bigrad.solution import InputError


class Pool:
    """Different feasible decisions of one oracle, whose feasible set is the same for every item.

    decisions: (k, m), to start with. solve_ratio: the probability that an item is solved at its predicted costs, and
    the decision added, at a call of a loss. seed: of that draw. Losses may share a pool; it keeps its decisions between
    calls.
    """

    def __init__(self, decisions: Iterable[np.ndarray] = (), solve_ratio: float = 1.0, seed: int = 0):
        if not 0 <= solve_ratio <= 1:
            raise InputError(f"Pool(solve_ratio={solve_ratio}): a probability, from 0 to 1.")
        self.solve_ratio, self.seed = solve_ratio, seed
        self._known: dict[bytes, np.ndarray] = {}
        self._rng = np.random.default_rng(seed)
        self.add(decisions)

    def __len__(self) -> int:
        return len(self._known)

    def __repr__(self) -> str:
        return f"Pool({len(self)} decisions, solve_ratio={self.solve_ratio})"

    @property
    def decisions(self) -> np.ndarray:
        """(k, m), in the order found."""
        return np.stack(list(self._known.values()))

    def add(self, decisions: Iterable[np.ndarray]) -> None:
        """Decisions (m,); those that are known to 6 digits are not added again."""
        for y in decisions:
            row = np.array(y, dtype=float)
            if not np.isfinite(row).all() or row.ndim != 1 or row.shape != self._shape(row):
                raise InputError(f"Pool: decisions are finite arrays (m,) of one shape; got {row}.")
            self._known.setdefault((row.round(6) + 0.0).tobytes(), row)

    def _shape(self, row: np.ndarray) -> tuple[int, ...]:
        return next(iter(self._known.values()), row).shape

    def grow(self, oracle: Oracle, costs: np.ndarray) -> None:
        """With probability solve_ratio each, solve the items of costs (batch, n), in one call; all if it is empty."""
        chosen = (self._rng.random(len(costs)) < self.solve_ratio) | (not len(self))
        if chosen.any():
            self.add(solve(oracle, costs[chosen]))

    def features(self, oracle: Oracle, n: int) -> np.ndarray:
        """What n costs multiply, in every decision, (k, n)."""
        return features(oracle, self.decisions, np.empty((len(self), n)))

    def best(self, oracle: Oracle, costs: np.ndarray) -> np.ndarray:
        """Where in the pool the best decision at costs (batch, n) is, (batch,)."""
        found: np.ndarray = ((oracle.sense * costs) @ self.features(oracle, costs.shape[1]).T).argmin(1)
        return found
