"""Regret: what predicted costs lose against the true ones.

    R = s c'(phi(y(hat)) - phi(y*(c)))          c true, hat predicted, s = +1 minimised, -1 maximised

R >= 0 for one player. Piecewise constant in hat: the gradient is a rule's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bigrad.gradients.estimator import AbstractEstimator, Back, features, solve
from bigrad.losses.base import AbstractLoss, Evaluated, dot
from bigrad.oracle import Oracle
from bigrad.solution import CapabilityError, InputError


@dataclass(frozen=True)
class Regret(AbstractLoss):
    """The measure of predictions by their decisions, and with a rule a loss.

    target: true costs. rule: how y(hat) is computed and differentiated, `Interpolate()`, `Perturbed(...)`, …; its values
    (Perturbed: the mean) are what is measured. Costs must multiply the decisions themselves then. Without a rule a
    backward pass raises CapabilityError.
    """

    costs_known: ClassVar[bool] = True
    rule: AbstractEstimator | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rule, AbstractEstimator | None):
            raise InputError(
                f"Regret(rule={self.rule!r:.80}): give a rule for decisions, Interpolate(), Identity(), Perturbed(…) or IMLE(…)."
            )

    def evaluate(self, oracle: Oracle, costs: np.ndarray, target: np.ndarray, best: np.ndarray | None) -> Evaluated:
        """See AbstractLoss.evaluate."""
        best = features(oracle, solve(oracle, target) if best is None else best, target)
        pull: Back = _none
        if self.rule is None:
            decisions = solve(oracle, costs)
            phi = features(oracle, decisions, target)
        else:
            decisions, pull = self.rule.estimate(oracle, costs)
            phi = decisions
            if not np.array_equal(features(oracle, decisions, target), decisions):
                raise InputError(
                    "Regret(rule=…): costs must multiply the decisions themselves, and here they multiply features of them. "
                    "Use SPOPlus or PerturbationGradient."
                )
        slope = oracle.sense * target
        return Evaluated(dot(slope, phi - best), lambda push: pull(push[:, None] * slope), lambda: decisions)


def _none(push: np.ndarray) -> np.ndarray:
    raise CapabilityError(
        "Regret is piecewise constant: its derivative says nothing. Give it a rule, Regret(oracle, rule=Interpolate()), "
        "or train with SPOPlus, and measure under torch.no_grad()."
    )
