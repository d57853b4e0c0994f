"""Score: the gradient of the mean of any function under noise. Williams, "Simple statistical gradient-following
algorithms", 1992 (REINFORCE); Dalle et al., arXiv 2207.13513, for losses of decisions.

    F(theta) = E f(theta + sigma Z)          grad F' g = E [ (f(theta + sigma Z)'g - b) nu'(Z) / sigma ]

f need not be linear in anything, nor an optimum: a loss of a decision, of constraint data, of a whole simulation.
`Score()(f)(theta, label)` gives each item its own label. Where a loss L is not linear, E L(y*) differs from L(E y*):
Score takes the first, Perturbed the second.
"""

from __future__ import annotations

from dataclasses import dataclass

from bigrad.gradients.sampled import AbstractSampled
from bigrad.oracle import Oracle


@dataclass(frozen=True)
class Score(AbstractSampled):
    """The mean of f forward, an unbiased gradient of it backward; sigma, samples, noise, perturbation, baseline, antithetic
    and draws as for Perturbed.

    Choose it for everything that is not a linear cost. Its variance grows with the spread of f and with the number of
    parameters: spend samples, and keep a baseline. Noise is added, whatever the oracle's sense.
    """

    def side(self, oracle: Oracle) -> float:
        """+1."""
        return 1.0
