"""Gradients level by level: each player's problem is solved again with the other's decision held. Alesiani, "Implicit
Bilevel Optimization" (BiGrad), AAAI 2023, section on the combinatorial case.

With a and b the linear costs that the leader and the follower face,

    a = c_x(theta) + C(theta) y,    x = x(a | y),        b = d_y(theta) + D(theta)' x,    y = y(b | x),

and a rule's estimates J, K of dx/da, dy/db (pulled back: transposed), the gradients gx, gy of the loss in x and y become

    ga = J'(gx + D K' gy),      gb = K'(gy + C' J' gx),

one sweep of the linear system that the two reactions make, and those of theta follow. Where the rule is Interpolate and the
products C, D are left out, these are the paper's two separate perturbed solves; where it is Identity, its pass-through.
A level's problem holds the constraints of both players in which its variables stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import scipy.sparse as sp

from bigrad.combinatorial import Combinatorial
from bigrad.gradients.base import AbstractGradient
from bigrad.gradients.estimator import AbstractEstimator
from bigrad.mip import Mip
from bigrad.nested import Rows
from bigrad.oracle import Oracle
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
        mip, across = _level(form, self.leader)
        if not across.nnz and (most := _at_most(mip)) is not None:
            return _cheapest(costs, most)
        shift = (across @ held.T).T if across.nnz else None
        found = mip.solve(costs, shift)
        if bad := [k for k, s in enumerate(found.status) if not s.ok]:
            each = len(costs) // len(self.other)
            raise InputError(
                f"The {'leader' if self.leader else 'follower'}'s problem with the other's decision held could not be solved at item "
                f"{bad[0] // each}: {found.status[bad[0]].value}"
            )
        return found.values


def _level(form: Combinatorial, leader: bool) -> tuple[Mip, sp.csr_array]:
    """One level's program, and what the other player's decisions contribute to its rows."""
    key = f"level {leader}"
    if key not in form.memory:
        base, n = form.base, form.base.leaders
        own, other = (slice(0, n), slice(n, None)) if leader else (slice(n, None), slice(0, n))
        both = (base.leader_rows, base.follower_rows)
        stacked = sp.csr_array(sp.vstack([r.matrix for r in both]))
        low, high = (np.concatenate([getattr(r, side) for r in both]) for side in ("lower", "upper"))
        touched = np.flatnonzero(abs(stacked[:, own]).sum(1))
        mine = sp.csr_array(stacked[touched][:, own])
        mip = Mip(base.lower[own], base.upper[own], base.integer[own], Rows(mine, low[touched], high[touched]))
        form.memory[key] = mip, sp.csr_array(stacked[touched][:, other])
    found: tuple[Mip, sp.csr_array] = form.memory[key]
    return found


def _at_most(mip: Mip) -> int | None:
    """k where any k of the booleans may be chosen and no other rule holds, as for a leader with a budget; else None."""
    rows = mip.rows
    if not (mip.integer & (mip.lower == 0) & (mip.upper == 1)).all() or len(rows.lower) > 1:
        return None
    if not len(rows.lower):
        return len(mip.integer)
    weight = rows.matrix.toarray()[0]
    if not (weight[0] > 0 and (weight == weight[0]).all() and rows.lower[0] <= 0 <= rows.upper[0]):
        return None
    return int(min(rows.upper[0] / weight[0] + 1e-9, len(weight)))


def _cheapest(costs: np.ndarray, most: int) -> np.ndarray:
    """The choice of at most so many of least cost: of negative ones, the first of equal ones."""
    found = np.zeros(costs.shape)
    order = np.argsort(costs, axis=1, kind="stable")[:, :most]
    np.put_along_axis(found, order, np.take_along_axis(costs, order, 1) < 0, 1)
    return found
