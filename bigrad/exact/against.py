"""A leader of booleans against an oracle, as the arrays that `hitting` takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bigrad.discrete.combinatorial import Combinatorial
from bigrad.discrete.player import player
from bigrad.exact.found import Found
from bigrad.exact.hitting import Games, Known, search
from bigrad.oracle import Oracle
from bigrad.parallel import single_blas


def refused(form: Combinatorial) -> str | None:
    """Why a program with an oracle cannot be taken; None if it can."""
    if not form.opposed:
        return "Cuts() needs a leader that stands against an oracle: give its model no objective of its own."
    if not _budgeted(form):
        return (
            "Cuts() needs, against an oracle, booleans of the leader's under one constraint at most: weight'x <= budget, weights > 0, "
            "budget >= 0."
        )
    return None


FEW = 4
"""Up to this many elements at once, branching on a model's answers is the fastest road."""


@dataclass(frozen=True, eq=False)
class Model(Oracle):
    """A follower's model as an oracle; no decision of the leader's stands in its constraints."""

    form: Combinatorial

    def solve(self, costs: np.ndarray) -> np.ndarray:
        """See Oracle.solve; raises Unanswered."""
        found = player(self.form, False).solve(costs, np.zeros((len(costs), self.form.base.leaders)))
        if not all(s.ok for s in found.status):
            raise Unanswered
        return found.values


class Unanswered(Exception):
    """A follower's model has no answer; other roads know why."""


def hits(form: Combinatorial) -> bool:
    """Whether to branch on the follower's answers: always against an oracle; against a model where few elements fit."""
    if form.follower is not None:
        return True
    budgeted = _budgeted(form) if form.opposed else None
    coupled = form.models.links if form.models else form.base.follower_rows.matrix[:, : form.base.leaders].nnz
    return budgeted is not None and not coupled and budgeted[1] / budgeted[0].min() < FEW + 1


def against(
    form: Combinatorial, theta: list[np.ndarray], batch: int, known: Known, gap: float, time_limit: float
) -> list[Found]:
    """Solve a batch; see `hitting.search`."""
    n, oracle, budgeted = form.base.leaders, form.follower or Model(form), _budgeted(form)
    assert budgeted is not None
    d = form.on_level(theta, False, np.zeros((batch, n)))
    c = np.broadcast_to(form.base.leader.linear[:n], (batch, n))
    with single_blas:
        result = search(Games(d, *form.products(theta), c, *budgeted), oracle, known, gap, time_limit)
    return [
        Found(
            result.status[i],
            np.concatenate([result.x[i], result.y[i]]),
            -result.bound[i] - form.base.follower.constant,
            int(result.nodes[i]),
            int(result.asked[i]),
        )
        for i in range(batch)
    ]


def _budgeted(form: Combinatorial) -> tuple[np.ndarray, float] | None:
    """The weights and the budget of a leader whose booleans stand under one such constraint or none; None if they do not."""
    base, n = form.base, form.base.leaders
    if form.models is not None and form.models.leader:
        return None
    rows, boolean = base.leader_rows, base.integer & (base.lower == 0) & (base.upper == 1)
    if not boolean[:n].all() or len(rows.lower) > 1:
        return None
    if not len(rows.lower):
        return np.ones(n), float(n)
    weight = rows.matrix.toarray()[0][:n]
    fine = (weight > 0).all() and rows.lower[0] <= 0 <= rows.upper[0] and rows.matrix[:, n:].nnz == 0
    return (weight, float(rows.upper[0])) if fine else None
