"""SPOPlus: a convex upper bound on the regret. Elmachtoub and Grigas, "Smart 'predict, then optimize'", Management
Science 2022.

With c the true costs, hat the predicted ones, y' = y*(2 hat - c), y = y*(c) and s = +1 minimised, -1 maximised,

    L = s (2 hat - c)'(phi(y) - phi(y'))          subgradient 2 s (phi(y) - phi(y'))

minimised: -min (2 hat - c)'y + 2 hat'y*(c) - c'y*(c).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bigrad.gradients.estimator import features, solve
from bigrad.losses.base import AbstractLoss, Evaluated, along, dot
from bigrad.oracle import Oracle


@dataclass(frozen=True)
class SPOPlus(AbstractLoss):
    """The first choice where true costs are known (target). Two solves an item, in one call; one with `Solved`.

    2 hat - c may have signs that neither has: an oracle that takes only positive costs must say so, or clip them. Clipped,
    y' is no longer the best decision at 2 hat - c, and the loss may be below the regret, even negative: keep hat above c / 2,
    or take FenchelYoung.
    """

    costs_known: ClassVar[bool] = True

    def evaluate(self, oracle: Oracle, costs: np.ndarray, target: np.ndarray, best: np.ndarray | None) -> Evaluated:
        """See AbstractLoss.evaluate."""
        asked = np.stack([2 * costs - target, target], axis=1)
        known = None if best is None else np.stack([solve(oracle, asked[:, 0]), best], axis=1)
        phi = oracle.sense * features(oracle, solve(oracle, asked) if known is None else known, asked)
        change = phi[:, 1] - phi[:, 0]
        return Evaluated(dot(asked[:, 0], change), along(2 * change), lambda: solve(oracle, costs))
