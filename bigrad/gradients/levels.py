"""Gradients level by level: each player's problem is solved again with the other's decision held. Alesiani, "Implicit
Bilevel Optimization" (BiGrad), AAAI 2023, section on the combinatorial case.

With a and b the linear costs that the leader and the follower face,

    a = c_x(theta) + C(theta) y,    x = x(a | y),        b = d_y(theta) + D(theta)' x,    y = y(b | x),

and a rule's estimates J, K of dx/da, dy/db (pulled back: transposed), the gradients gx, gy of the loss in x and y become

    ga = J'(gx + D K' gy),      gb = K'(gy + C' J' gx),

one sweep of the linear system that the two reactions make, and those of theta follow. Where the rule is Interpolate and the
products C, D are left out, these are the paper's two separate perturbed solves; where it is Identity, its pass-through.
The leader's problem holds the constraints of both players, the follower's its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bigrad.combinatorial import Combinatorial
from bigrad.gradients.base import AbstractGradient
from bigrad.gradients.estimator import AbstractEstimator
from bigrad.oracle import Oracle
from bigrad.player import player
from bigrad.program import Program
from bigrad.solution import InputError, Outcome

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Levels(AbstractGradient):
    """Level by level, by an estimator: what an estimator given to a Layer of a two-level program does.

    Choose it, against Joint, where a solve of the whole program for every sample is too dear. It leaves out what the
    leader's foresight does to the follower's answer beyond one sweep; docs/combinatorial.md says how far off that is.
    """

    rule: AbstractEstimator
    needs: ClassVar[frozenset[str]] = frozenset({"costs"})

    def pull_back(
        self, program: Program, outcome: Outcome, theta: tuple[Tensor, ...], wanted: tuple[bool, ...], cotangent: Tensor
    ) -> tuple[Tensor | None, ...]:
        """See AbstractGradient.pull_back."""
        import torch

        if torch.is_grad_enabled():
            raise NotImplementedError("Estimated gradients have no second derivatives: leave out create_graph=True.")
        form, n, batch = program.combinatorial, program.layout.leaders, len(cotangent)
        assert form is not None
        given = [np.broadcast_to(t.cpu().numpy(), (batch, t.shape[-1])) for t in theta]
        fine = np.flatnonzero(outcome.ok)
        w, g = np.asarray(outcome.w)[fine], cotangent.double().cpu().numpy()[fine]
        grads = [np.zeros((batch, t.shape[-1])) for t in theta]
        if len(fine):
            parts = _sweep(self.rule, form, [t[fine] for t in given], w[:, :n], w[:, n:], g[:, :n], g[:, n:])
            for grad, part in zip(grads, parts, strict=True):
                grad[fine] = part
        shaped = [v if t.ndim > 1 else v.sum(0) for v, t in zip(grads, theta, strict=True)]
        return tuple(
            torch.as_tensor(v, device=cotangent.device) if want else None
            for v, want in zip(shaped, wanted, strict=True)
        )


def _sweep(
    rule: AbstractEstimator,
    form: Combinatorial,
    theta: list[np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    gx: np.ndarray,
    gy: np.ndarray,
) -> list[np.ndarray]:
    """The gradients in theta, (items, costs) each."""

    def pull(leader: bool, push: np.ndarray) -> np.ndarray:
        """K' or J' of a push, (items, the level's variables)."""
        if not push.size or not push.any():
            return np.zeros_like(push)
        other = y if leader else x
        costs = form.on_level(theta, leader, other)
        _, back = rule.estimate(Level(form, leader, other), costs)
        return back(push)

    def off(leader: bool, grad: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        return form.off_level(grad, leader, y if leader else x, theta)

    leads, follows = pull(True, gx), pull(False, gy)
    _, over = off(True, leads)  # what moving x by gx does to the follower's push, and the other way round
    _, under = off(False, follows)
    if over.any():
        follows = pull(False, gy + over)
    if under.any():
        leads = pull(True, gx + under)
    return [a + b for a, b in zip(off(True, leads)[0], off(False, follows)[0], strict=True)]


@dataclass(frozen=True, eq=False)
class Level(Oracle):
    """One player's choice among linear costs, the other's decisions held: rows of one item follow each other.

    leader: who chooses. other: (items, the other player's variables).
    """

    form: Combinatorial
    leader: bool
    other: np.ndarray

    def solve(self, costs: np.ndarray) -> np.ndarray:
        """See Oracle.solve; raises InputError where a level has no solution."""
        form = self.form
        held = np.repeat(self.other, len(costs) // len(self.other), 0)
        if form.follower is not None and not self.leader:
            return form.follower.solve(form.follower.sense * costs)
        found = player(form, self.leader).solve(costs, held)
        if bad := [k for k, s in enumerate(found.status) if not s.ok]:
            each = len(costs) // len(self.other)
            raise InputError(
                f"The {'leader' if self.leader else 'follower'}'s problem with the other's decision held could not be solved at item "
                f"{bad[0] // each}: {found.status[bad[0]].value}"
            )
        return found.values
