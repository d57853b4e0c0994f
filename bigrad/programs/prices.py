"""Prices: the multipliers of lower constraints, as linear functions of the multipliers in a program's arrays.

A price is what CVXPY's `constraint.dual_value` would be if the lower problem were solved alone at the leader's decision:
nonnegative for an inequality, and for `lhs == rhs` the factor of `lhs - rhs` in the Lagrangian of the minimised
objective, whether the problem is written with Minimize or Maximize. Where the arrays have one row for several of the
author's (abs(e) <= c is two rows, one for each side), the multipliers add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

from bigrad.program import Unknown
from bigrad.programs.canonical import Level
from bigrad.programs.conic import Conic


@dataclass(frozen=True, eq=False)
class Prices:
    """The prices of one form of a program: dual variables of lower constraints, and the matrix of each.

    multipliers: a CVXPY variable that stands for (lam, nu); None if there are no rows.
    """

    duals: tuple[cp.Variable, ...]
    weights: tuple[sp.csr_array, ...]
    multipliers: cp.Variable | None

    def swap(self, wanted: Sequence[cp.Variable]) -> dict[int, cp.Expression]:
        """What to put in place of the wanted dual variables, by object id, in a tree copy of an expression."""
        ids = {v.id for v in wanted}
        return {
            id(dual): cp.reshape(weights @ self.multipliers, dual.shape, order="F")
            for dual, weights in zip(self.duals, self.weights, strict=True)
            if dual.id in ids
        }

    def handles(self, layout: Any) -> tuple[Unknown, ...]:
        """What a Program with this layout keeps of them."""
        _, _, lam, nu, *_, last = layout.blocks
        spread = sp.eye_array(nu.stop - lam.start, last.stop, k=lam.start, format="csr")
        return tuple(
            Unknown(dual, dual.name(), dual.shape, False, sp.csr_array(weights @ spread))
            for dual, weights in zip(self.duals, self.weights, strict=True)
        )


def in_cone(rows: Sequence[tuple[cp.Constraint, slice]], conic: Conic) -> Prices:
    """Prices of constraints whose rows in a cone program are given.

    An inequality that is held as an equality there has a multiplier of the opposite sign.
    """
    inside, rigid = conic.where >= 0, conic.rigid
    soft, count = ~inside & ~rigid, len(rigid)
    pairs, equalities = int(soft.sum()) + len(conic.cones), int(rigid.sum())
    at, signs = np.zeros(count, int), np.where(rigid & (np.arange(count) >= conic.zero), -1.0, 1.0)
    at[soft], at[rigid] = np.arange(soft.sum()), pairs + np.arange(equalities)
    at[inside] = pairs + equalities + conic.where[inside]
    width = pairs + equalities + conic.size
    return _prices(rows, sp.csr_array((signs, (np.arange(count), at)), shape=(count, width)))


def in_level(rows: Sequence[tuple[cp.Constraint, slice]], level: Level) -> Prices:
    """The same where the cone program was reduced to a level; its equalities carry the opposite sign."""
    count, equalities = level.b.shape[0], level.equalities
    order = np.r_[np.arange(equalities, count), np.arange(equalities)]
    signs = np.r_[np.ones(count - equalities), -np.ones(equalities)]
    turn = sp.csr_array((signs, (order, np.arange(count))), shape=(count, count))
    return _prices(rows, sp.csr_array(level.origin @ turn))


def _prices(rows: Sequence[tuple[cp.Constraint, slice]], weights: sp.csr_array) -> Prices:
    count = weights.shape[1]
    return Prices(
        duals=tuple(c.dual_variables[0] for c, _ in rows),
        weights=tuple(sp.csr_array(weights[at]) for _, at in rows),
        multipliers=cp.Variable(count, name="multipliers") if count else None,
    )
