"""Nested integer programs, whoever declared them: what is asked of them after a solve, and their declaration by arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from bigrad.algebra.affine import flatten
from bigrad.discrete.combinatorial import Combinatorial, Place
from bigrad.discrete.nested import Nested, Objective
from bigrad.program import Input, Program, Solver, Unknown
from bigrad.programs.answer import best


def declare(nested: Nested, leaders: Sequence[str], followers: Sequence[str], default: Solver) -> Program:
    """A program given as arrays: its variables are known by their names, its inputs are the linear costs, minimised.

    Inputs: `leader`, of all variables in the leader's objective, x before y, and `follower`, of y in the follower's; or, where
    the leader stands against the follower, `follower` alone.
    """
    n, size, names = nested.leaders, len(nested.lower), (*leaders, *followers)
    opposed = nested.zero_sum and not nested.leader.linear[:n].any()
    own, alone = np.arange(n, size), np.full(size, -1)
    places = [Place(False, 1.0, own, alone[n:])]
    inputs = [Input("follower", "follower", (size - n,), default=nested.follower.linear[n:])]
    if not opposed:
        places.insert(0, Place(True, 1.0, np.arange(size), alone))
        inputs.insert(0, Input("leader", "leader", (size,), default=nested.leader.linear))
    bare = [Objective(np.zeros(size), sp.csr_array(o.cross), o.constant) for o in (nested.leader, nested.follower)]
    bare[1].linear[:n] = nested.follower.linear[:n]
    at = {name: k for k, name in enumerate(names)}
    form = Combinatorial(replace(nested, leader=bare[0], follower=bare[1]), tuple(places), at.get, opposed)
    unknowns = tuple(Unknown(name, name, (), k < n, slice(k, k + 1)) for k, name in enumerate(names))
    return combinatorial(
        form,
        inputs=tuple(inputs),
        unknowns=unknowns,
        sign=1.0,
        source=Source(form, 1.0),
        default=default,
        rebuild=(declare, (nested, leaders, followers, default)),
        shown=(list(leaders), list(followers)),
    )


def combinatorial(form: Combinatorial, **fields: Any) -> Program:
    """The Program of a form that is combinatorial and nothing else; fields: what else it has."""
    why = "it is combinatorial"
    return Program(combinatorial=form, quadratic=None, convex=False, why_not_quadratic=why, smooth=None, **fields)


class Source:
    """A nested program after the declaration: the follower's objective, and its gap by an independent solver.

    sense: the follower's own, None with one level.
    """

    def __init__(self, form: Combinatorial, sense: float | None):
        self.form, self.sense = form, sense

    def publish(self, values: Mapping[Any, np.ndarray | None]) -> None:
        """Nothing: OR-Tools' variables hold no values."""

    def _at(self, inputs: Mapping[Any, np.ndarray], values: Any) -> tuple[Any, np.ndarray, np.ndarray]:
        nested = self.form.at([flatten(np.asarray(v, dtype=float), np.ndim(v)) for v in inputs.values()])
        return nested, values.w[: nested.leaders], values.w[nested.leaders :]

    def lower_value(self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]) -> float:
        """The follower's objective in its own sense; NaN with one level."""
        if self.sense is None:
            return np.nan
        nested, x, y = self._at(inputs, values)
        return self.sense * nested.follower(x, y)

    def follower_gap(self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]) -> float:
        """The follower's objective minus its optimum at x, in the minimised sense; Inf where none is found."""
        if self.sense is None:
            return 0.0
        nested, x, y = self._at(inputs, values)
        costs = nested.follower.on_follower(x)
        best = self._best(nested, costs, x)
        return np.inf if best is None else float(costs @ (y - best))

    def _best(self, nested: Nested, costs: np.ndarray, x: np.ndarray) -> np.ndarray | None:
        """The follower's answer by another solver: scipy's for rows, CP-SAT with all that it has learned forgotten for other
        constraints, the oracle itself for an oracle."""
        n, form = nested.leaders, self.form
        if form.follower is not None:
            return np.asarray(form.follower.solve((form.follower.sense * costs)[None])[0])
        if form.models is not None:
            full = np.concatenate([np.zeros(n), costs])
            w, status = form.models.build(False, True).solve(full, held=dict(enumerate(x.tolist())))
            return w[n:] if status.ok else None
        return best(nested, False, x)

    def infeasible(self, inputs: Mapping[Any, np.ndarray]) -> int | None:
        """Not asked: there is one follower."""
        return None
