"""A leader of booleans against an oracle, as the arrays that `hitting` takes."""

from __future__ import annotations

import numpy as np

from bigrad.combinatorial import Combinatorial
from bigrad.parallel import single_blas
from bigrad.solvers.found import Found
from bigrad.solvers.hitting import Games, Known, search


def refused(form: Combinatorial) -> str | None:
    """Why a program with an oracle cannot be taken; None if it can."""
    if not form.opposed:
        return "Cuts() needs a leader that stands against an oracle: give its model no objective of its own."
    if not _budgeted(form):
        return "Cuts() needs, against an oracle, booleans of the leader's under one constraint at most: weight'x <= budget, weights > 0."
    return None


def against(
    form: Combinatorial, theta: list[np.ndarray], batch: int, known: Known, gap: float, time_limit: float
) -> list[Found]:
    """Solve a batch; see `hitting.search`."""
    n, oracle, budgeted = form.base.leaders, form.follower, _budgeted(form)
    assert oracle is not None
    assert budgeted is not None
    d = form.on_level(theta, False, np.zeros((batch, n)))
    with single_blas:
        result = search(
            Games(d, *form.products(theta), np.zeros((batch, n)), *budgeted), oracle, known, gap, time_limit
        )
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
    rows, boolean = base.leader_rows, base.integer & (base.lower == 0) & (base.upper == 1)
    if not boolean[:n].all() or len(rows.lower) > 1:
        return None
    if not len(rows.lower):
        return np.ones(n), float(n)
    weight = rows.matrix.toarray()[0][:n]
    fine = (weight > 0).all() and rows.lower[0] <= 0 and rows.matrix[:, n:].nnz == 0
    return (weight, float(rows.upper[0])) if fine else None
