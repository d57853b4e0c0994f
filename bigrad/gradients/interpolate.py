"""Interpolate: the slope between the decision and one pushed along the loss. Vlastelica et al., "Differentiation of
blackbox combinatorial solvers", ICLR 2020.

With y = y*(c), g = dL/dy and lambda > 0, y' is the decision where lambda g is added to the minimised objective,

    grad_c = s (phi(y') - phi(y)) / lambda,        s = +1 where c is minimised, -1 where it is maximised.

For one player, y' = y*(c + s lambda g): costs rise where the loss does if minimised, values fall if maximised. (On the
other side the loss would only confirm the decision, and the gradient be zero.) It is the exact gradient of a piecewise
affine interpolation of the loss linearised at y, which tends to it as lambda falls.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bigrad.gradients.estimator import AbstractEstimator, Back, features, nudged, solve
from bigrad.gradients.steps import AbstractStep, Relative
from bigrad.oracle import Oracle


@dataclass(frozen=True)
class Interpolate(AbstractEstimator):
    """The decision itself forward, one more solve backward.

    Choose it where one solve is dear and decisions must stay exact; costs may collapse towards zero under it, which a
    loss that compares costs, or Identity's projection, prevents. step: `Relative(share)` of |c| / |g|, or
    `Absolute(lambda)` in the paper's own terms.
    """

    step: AbstractStep = field(default_factory=Relative)

    def estimate(self, oracle: Oracle, costs: np.ndarray) -> tuple[np.ndarray, Back]:
        """See AbstractEstimator.estimate."""
        y = solve(oracle, costs)
        phi = features(oracle, y, costs)

        def back(push: np.ndarray) -> np.ndarray:
            moved: np.ndarray = (push != 0).any(axis=1)
            if not moved.any():
                return np.zeros_like(costs)
            length = self.step.lengths(costs, push)[:, None]
            other = nudged(oracle, costs, length * push)
            change = oracle.sense * (features(oracle, other, costs) - phi)
            self.step.observe(float(np.count_nonzero(np.nan_to_num(change[moved]), axis=1).mean()))
            return np.divide(change, length, out=np.zeros_like(change), where=moved[:, None] & (length > 0))

        return y, back
