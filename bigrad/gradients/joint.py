"""Gradients of both levels at once: the whole nested program is solved again at other costs.

The program as one oracle, from the costs of both players, (z, w), to the decisions of both, (x, y): unbiased where the rule is,
for the smoothed program E (x, y)(z + sigma Z), and as dear as a solve of the whole program for every sample. A nudge of y goes
into the follower's objective; where the leader stands against the follower it changes the leader's alike, so that the game
stays one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bigrad.discrete.combinatorial import Combinatorial, Place
from bigrad.gradients.estimator import AbstractEstimator, check_estimator, unsolved
from bigrad.oracle import Oracle
from bigrad.program import Input, Program, Solver

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Joint:
    """Both levels at once, by an estimator: `gradient=bigrad.Joint(bigrad.Perturbed(sigma=0.5, samples=32))`.

    Choose it where an unbiased gradient is worth a solve of the whole program for every sample; an estimator alone works
    level by level, at the price of one player's problem each. The layer's values are the rule's: means for Perturbed.
    """

    rule: AbstractEstimator
    needs: ClassVar[frozenset[str]] = frozenset({"costs"})

    def __post_init__(self) -> None:
        check_estimator("Joint", self.rule)

    def values(self, program: Program, solver: Solver, theta: Sequence[Tensor], known: np.ndarray) -> Tensor:
        """The decisions (batch, variables) at theta, (batch, costs) each, under the rule; known: the program's own."""
        import torch

        costs = torch.cat(list(theta), 1)
        held = costs.detach().cpu().numpy()
        return self.rule.apply(Whole(program, solver, tuple(t.shape[1] for t in theta), held, known), costs)


@dataclass(frozen=True, eq=False)
class Whole(Oracle):
    """A program as an oracle from all its costs side by side to all its decisions; NaN where it could not be solved.

    sizes: how many costs each input has. held, known: costs whose decisions are known already.
    """

    program: Program
    solver: Solver
    sizes: tuple[int, ...]
    held: np.ndarray
    known: np.ndarray
    partial: ClassVar[bool] = True

    @property
    def form(self) -> Combinatorial:
        """The program as a function of its costs."""
        assert self.program.combinatorial is not None
        return self.program.combinatorial

    @property
    def sense(self) -> np.ndarray:
        """See Oracle.sense."""
        places = zip(self.form.places, self.sizes, strict=True)
        return np.concatenate([np.full(size, place.sense) for place, size in places])

    def solve(self, costs: np.ndarray) -> np.ndarray:
        """See Oracle.solve."""
        if costs.shape == self.held.shape and (costs == self.held).all():
            return self.known
        return self._answer(self.program, self._split(costs), len(costs))

    def nudged(self, costs: np.ndarray, push: np.ndarray) -> np.ndarray:
        """See Oracle.nudged."""
        program = pushed(self.program)
        assert program.combinatorial
        places = program.combinatorial.places[len(self.form.places) :]
        return self._answer(program, (*self._split(costs), *(push[:, p.one] for p in places)), len(costs))

    def features(self, decisions: np.ndarray) -> np.ndarray:
        """See Oracle.features."""
        return np.concatenate([self.form.features(place, decisions) for place in self.form.places], 1)

    def _split(self, costs: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.split(costs, np.cumsum(self.sizes)[:-1], 1))

    def _answer(self, program: Program, theta: tuple[np.ndarray, ...], rows: int) -> np.ndarray:
        outcome = self.solver.solve(program, theta)
        bad = unsolved("The program", outcome.status, rows // len(self.held))
        return np.where(bad[:, None], np.nan, outcome.w)


def pushed(program: Program) -> Program:
    """The program with further costs on every decision of each player."""
    form = program.combinatorial
    assert form is not None
    n, size = form.base.leaders, len(form.base.lower)
    ends = (np.arange(n), np.arange(n, size))
    places = [Place(k == 0, 1.0, at, np.full(len(at), -1)) for k, at in enumerate(ends) if len(at)]
    inputs = [Input(f"push {k}", f"push {k}", (len(p.one),)) for k, p in enumerate(places)]
    form = replace(form, places=(*form.places, *places))
    return replace(program, inputs=(*program.inputs, *inputs), combinatorial=form, rebuild=(pushed, (program,)))
