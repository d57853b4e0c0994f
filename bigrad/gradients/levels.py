"""Gradients level by level: each player's problem is solved again with the other's decision held. Alesiani, "Implicit
Bilevel Optimization" (BiGrad), AAAI 2023, section on the combinatorial case.

With a and b the linear costs that the leader and the follower face,

    a = c_x(theta) + C(theta) y,    x = x(a | y),        b = d_y(theta) + D(theta)' x,    y = y(b | x),

and a rule's estimates J, K of dx/da, dy/db (pulled back: transposed), the gradients gx, gy of the loss in x and y become

    ga = J'(gx + D K' gy),      gb = K'(gy + C' J' gx),

one sweep of the linear system that the two reactions make, and those of theta follow. Where the rule is Interpolate and the
products C, D are left out, these are the paper's two separate perturbed solves; where it is Identity, its pass-through,
whose J = -1 has no unit of cost: between the players it counts as -1 / |a|, -1 / |b|, else doubling all costs would double
their part in the gradient. The leader's problem holds the constraints of both players, the follower's its own; a is taken
where the leader's decision is its answer (see `supported`), as b always is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bigrad.discrete.combinatorial import Combinatorial
from bigrad.discrete.player import player
from bigrad.gradients.base import AbstractGradient
from bigrad.gradients.estimator import AbstractEstimator, check_estimator, unsolved
from bigrad.oracle import Oracle
from bigrad.program import Program
from bigrad.solution import Outcome

if TYPE_CHECKING:
    from torch import Tensor


ROUNDS = 12
"""How often the leader's costs are moved, at most."""
LESS = 1e-9
"""An answer that is better by less than this, relative to 1 + the value, is not."""


@dataclass(frozen=True)
class Levels(AbstractGradient):
    """Level by level, by an estimator: what an estimator given to a Layer of a two-level program does.

    rule: the estimator. Choose it, against Joint, where a solve of the whole program for every sample is too dear. It leaves out what the
    leader's foresight does to the follower's answer beyond one sweep; docs/levels.md says how far off that is.
    """

    rule: AbstractEstimator
    needs: ClassVar[frozenset[str]] = frozenset({"costs"})

    def __post_init__(self) -> None:
        check_estimator("Levels", self.rule)

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
    played: dict[bool, tuple[Level, np.ndarray]] = {}

    def at(leader: bool) -> tuple[Level, np.ndarray]:
        """One player's problem, and its costs; for a rule that looks around them, those at which its decision is its answer."""
        if leader not in played:
            own, other = (x, y) if leader else (y, x)
            costs = form.on_level(theta, leader, other)
            if leader and rule.asks and form.base.followers:
                costs = supported(form, other, costs, own)
            played[leader] = Level(form, leader, other, costs, own), costs
        return played[leader]

    def pull(leader: bool, push: np.ndarray) -> np.ndarray:
        """K' or J' of a push, (items, the level's variables)."""
        if not push.size or not push.any():
            return np.zeros_like(push)
        level, costs = at(leader)
        _, back = rule.estimate(level, costs)
        whole = np.isfinite(push).all(1)[:, None]
        return np.where(whole, back(np.where(whole, push, 0.0)), np.nan)

    def off(leader: bool, grad: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        return form.off_level(grad, leader, y if leader else x, theta)

    def across(leader: bool, grad: np.ndarray) -> np.ndarray:
        """What moving a player by its push does to the push of the other."""
        if not grad.any():
            return np.zeros_like(y if leader else x)
        return off(leader, grad)[1] / rule.unit(at(leader)[1])

    leads, follows = pull(True, gx), pull(False, gy)
    over, under = across(True, leads), across(False, follows)
    if over.any():
        follows = pull(False, gy + over)
    if under.any():
        leads = pull(True, gx + under)
    return [a + b for a, b in zip(off(True, leads)[0], off(False, follows)[0], strict=True)]


def supported(form: Combinatorial, y: np.ndarray, costs: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Costs near these at which x is an answer of the leader's, the follower's y held: (items, the leader's variables).

    A leader who foresees the follower may take what is not best against y alone; slopes at a decision that was not taken say
    little. Each answer better than x moves the costs to where it is as good as x, no further, for a few rounds.
    """
    found, live = costs.copy(), np.arange(len(costs))
    for _ in range(ROUNDS):
        gap = x[live] - Level(form, True, y[live]).solve(found[live])
        excess = (found[live] * gap).sum(1)
        worse = excess > LESS * (1 + abs(found[live] * x[live]).sum(1))
        live, gap, excess = live[worse], gap[worse], excess[worse]
        if not len(live):
            break
        found[live] -= (excess / (gap**2).sum(1))[:, None] * gap
    return found


@dataclass(frozen=True, eq=False)
class Level(Oracle):
    """One player's choice among linear costs, the other's decisions held: rows of one item follow each other.

    leader: who chooses. other: (items, the other player's variables). held, known: costs whose answers are known already,
    or None.
    """

    form: Combinatorial
    leader: bool
    other: np.ndarray
    held: np.ndarray | None = None
    known: np.ndarray | None = None
    partial: ClassVar[bool] = True

    def solve(self, costs: np.ndarray) -> np.ndarray:
        """See Oracle.solve; NaN where a level has no solution."""
        form = self.form
        if self.known is not None and self.held is not None and np.array_equal(costs, self.held):
            return self.known
        held = np.repeat(self.other, len(costs) // len(self.other), 0)
        if form.follower is not None and not self.leader:
            return form.follower.solve(form.follower.sense * costs)
        found = player(form, self.leader).solve(costs, held)
        who = f"The {'leader' if self.leader else 'follower'}'s problem, the other's decision held,"
        bad = unsolved(who, found.status, len(costs) // len(self.other))
        return np.where(bad[:, None], np.nan, found.values)
