"""CVXPY problems with integers, linear in each player's variables, as nested integer programs whose costs are inputs.

Every objective is a sum of multiples of theta * x * y, at most one factor of each. What multiplies one decision, or one
product of two, is a cost, an affine function of the Parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.constraints.nonpos import NonNeg, NonPos

from bigrad.algebra.affine import Array, flatten, namespace, product
from bigrad.discrete.combinatorial import Combinatorial, Place
from bigrad.discrete.nested import Nested, Objective, Rows
from bigrad.program import Input, Program, Solver, Unknown
from bigrad.programs.answer import best
from bigrad.programs.cvxpy import renumber, unknowns
from bigrad.programs.expressions import Holding
from bigrad.programs.nested import combinatorial
from bigrad.programs.polynomial import Leaves, NotLinearError, Polynomial, polynomial
from bigrad.programs.roles import PRICED, declared_sign, is_integer, sort_roles, sort_single, whole
from bigrad.programs.source import Publisher
from bigrad.solution import DeclarationError


@dataclass(frozen=True, eq=False)
class Costs:
    """The costs as linear functions of the Parameters.

    signs: of the Parameters. matrices: for each player with costs, for each Parameter, (costs, entries). alone: (entries of
    all Parameters,), their weights in the upper objective where no decision multiplies them, in the user's own sense.
    """

    parameters: tuple[cp.Parameter, ...]
    given: tuple[int, ...]
    matrices: tuple[tuple[sp.csr_array, ...], ...]
    alone: np.ndarray
    names: tuple[str, ...]

    @property
    def signs(self) -> tuple[int, ...]:
        """See Derived: none is known."""
        return (0,) * len(self.matrices)

    def __call__(self, theta: tuple[Array, ...]) -> tuple[Array, ...]:
        """The costs at the Parameters' values, (entries,) or (batch, entries) each; NaN where a sign is not the declared one."""
        if not self.matrices:
            return ()
        library, bad = namespace(theta[0]), 0.0
        for value, sign in zip(theta, self.given, strict=True):
            if sign:
                bad = bad + library.where(value * sign < 0, np.nan, 0.0).sum(-1)[..., None]
        return tuple(sum((product(m, t) for m, t in zip(own, theta, strict=True)), bad) for own in self.matrices)

    def idle(self, inputs: Mapping[Any, np.ndarray]) -> float:
        """See Derived."""
        if not self.parameters:
            return 0.0
        flat = [flatten(np.asarray(inputs[p], dtype=float), p.ndim) for p in self.parameters]
        return float(np.concatenate(flat) @ self.alone)


def declare(upper: cp.Problem, lower: cp.Problem | None, responds: Sequence[cp.Variable], default: Solver) -> Program:
    """The Program of two problems, or, with the lower one None, of one; `bigrad.bilevel` documents the rest."""
    roles = (
        sort_single(upper, integers=True) if lower is None else sort_roles(upper, [lower], [responds], integers=True)
    )
    who = "" if lower is None else "follower "
    first = next(v for v in (roles.follower or roles.leader) if is_integer(v))
    head = f"{who}variable '{first.name()}' is integer, so the program must be linear in each player's variables and parameters"
    if roles.asked:
        raise DeclarationError(
            f"{who}variable '{first.name()}' is integer, and an integer follower has no prices: the upper problem mentions one."
        )
    leaves = Leaves((roles.parameters, roles.leader, roles.follower))
    sign, answers = _sense(upper), {v.id for v in roles.follower}
    try:
        top = _goal(upper, leaves)
        below = None if lower is None else _goal(lower, leaves)
        limits = [(c, True) for c in upper.constraints]
        limits += [
            (c, not any(v.id in answers for v in c.variables())) for c in ([] if lower is None else lower.constraints)
        ]
        rows = [_rows([_limit(c, leaves) for c, leads in limits if leads is side], leaves) for side in (True, False)]
    except NotLinearError as culprit:
        raise DeclarationError(f"{head}, but {culprit}. Write it with linear terms and auxiliary variables.") from None
    n, m = leaves.sizes()[1:]
    objectives, places, matrices, names = [], [], [], []
    for leads, goal in ((True, top), (False, below)):
        objectives.append(_objective(goal, n, m))
        if goal is not None and roles.parameters:
            place, weights = _costs(goal, leads, _sense(upper if leads else lower), leaves)
            places.append(place)
            matrices.append(weights)
            names.append(f"costs of the {'leader' if leads else 'follower'}")
    ends = [_ends(v) for v in (*roles.leader, *roles.follower)]
    low, high, integer = (np.concatenate([e[k] for e in ends]) for k in range(3))
    base = Nested(n, m, low, high, integer.astype(bool), rows[0], rows[1], objectives[0], objectives[1])
    form = Combinatorial(base, tuple(places), None)
    alone = np.zeros(leaves.sizes()[0])
    at = (top.monomials[:, 0] >= 0) & (top.monomials[:, 1:] < 0).all(1)
    alone[top.monomials[at, 0]] = sign * top.matrix.toarray()[0, at]
    given = tuple(declared_sign(p) for p in roles.parameters)
    costs = Costs(roles.parameters, given, tuple(matrices), alone, tuple(names))
    variables = unknowns(roles, None)
    return combinatorial(
        form,
        inputs=tuple(Input(p, p.name(), p.shape, s) for p, s in zip(roles.parameters, given, strict=True)),
        unknowns=variables,
        sign=sign,
        source=Source(upper, lower, form, costs, variables),
        default=default,
        rebuild=(_reload, (_stated(upper), lower and _stated(lower), list(responds), default)),
        derived=costs if roles.parameters else None,
        shown=tuple(u.handle for u in variables),
    )


def _stated(problem: cp.Problem) -> tuple[Any, Any]:
    return problem.objective, problem.constraints


def _reload(above: tuple[Any, Any], below: tuple[Any, Any] | None, responds: list[Any], default: Solver) -> Program:
    problems = [cp.Problem(*pair) for pair in (above, below) if pair is not None]
    renumber(*problems)
    return declare(problems[0], problems[1] if below else None, responds, default)


def _goal(problem: cp.Problem, leaves: Leaves) -> Polynomial:
    """A minimised objective."""
    found = polynomial(problem.objective.expr, leaves)
    return replace(found, matrix=sp.csr_array(_sense(problem) * found.matrix))


def _sense(problem: cp.Problem | None) -> float:
    return -1.0 if problem is not None and isinstance(problem.objective, cp.Maximize) else 1.0


def _limit(c: cp.Constraint, leaves: Leaves) -> tuple[Polynomial, bool, float]:
    """A constraint as an expression that is zero, or of the given sign."""
    if not isinstance(c, PRICED):
        raise NotLinearError(f"{c} is a {type(c).__name__} constraint")
    if c.parameters():
        raise NotLinearError(
            f"the constraint {c} holds parameter '{c.parameters()[0].name()}', and parameters of such a program stand in the "
            "objectives only: set a number there"
        )
    found = polynomial(c.args[0] if isinstance(c, NonNeg | NonPos) else c.expr, leaves)
    if (found.monomials[:, 1:] >= 0).all(1).any():
        raise NotLinearError(f"the constraint {c} multiplies a leader's variable by a follower's")
    equal = not isinstance(c, NonNeg | NonPos | cp.constraints.nonpos.Inequality)
    return found, equal, 1.0 if isinstance(c, NonNeg) else -1.0


def _rows(limits: Sequence[tuple[Polynomial, bool, float]], leaves: Leaves) -> Rows:
    """Constraints as rows over (x, y)."""
    _, n, m = leaves.sizes()
    matrices, low, high = [sp.csr_array((0, n + m))], [np.zeros(0)], [np.zeros(0)]
    for p, equal, sign in limits:
        b, c = p.monomials[:, 1], p.monomials[:, 2]
        column, coo = np.where(b >= 0, b, n + c), p.matrix.tocoo()
        fixed = (b < 0) & (c < 0)
        bound = -np.asarray(p.matrix[:, np.flatnonzero(fixed)].sum(1)).ravel()
        kept = ~fixed[coo.col]
        entries = (coo.data[kept], (coo.row[kept], column[coo.col[kept]]))
        matrices.append(sp.csr_array(entries, shape=(p.matrix.shape[0], n + m)))
        low.append(bound if equal or sign > 0 else np.full(len(bound), -np.inf))
        high.append(bound if equal or sign < 0 else np.full(len(bound), np.inf))
    return Rows(sp.csr_array(sp.vstack(matrices)), np.concatenate(low), np.concatenate(high))


def _objective(goal: Polynomial | None, n: int, m: int) -> Objective:
    """What of it no Parameter multiplies."""
    linear, cross, constant = np.zeros(n + m), sp.csr_array((n, m)), 0.0
    if goal is not None:
        values, (a, b, c) = goal.matrix.toarray()[0], goal.monomials.T
        free = a < 0
        linear[b[free & (b >= 0) & (c < 0)]] = values[free & (b >= 0) & (c < 0)]
        linear[n + c[free & (b < 0) & (c >= 0)]] = values[free & (b < 0) & (c >= 0)]
        both = free & (b >= 0) & (c >= 0)
        cross = sp.csr_array((values[both], (b[both], c[both])), shape=(n, m), dtype=float)
        constant = float(values[free & (b < 0) & (c < 0)].sum())
    return Objective(linear, cross, constant)


def _costs(goal: Polynomial, leads: bool, sense: float, leaves: Leaves) -> tuple[Place, tuple[sp.csr_array, ...]]:
    """The decisions that Parameters multiply, and the costs in the player's own sense as matrices, one a Parameter."""
    total, n, _ = leaves.sizes()
    felt = (goal.monomials[:, 1:] >= 0).any(1) if leads else goal.monomials[:, 2] >= 0
    values, own = goal.matrix.toarray()[0], (goal.monomials[:, 0] >= 0) & felt
    monomials = goal.monomials[own]
    features, row = np.unique(monomials[:, 1:], axis=0, return_inverse=True)
    b, c = features.reshape(-1, 2).T
    one, other = np.where(b >= 0, b, n + c), np.where((b >= 0) & (c >= 0), n + c, -1)
    weights = sp.csr_array((sense * values[own], (row.ravel(), monomials[:, 0])), shape=(len(b), total))
    cuts = np.cumsum([0, *(p.size for p in leaves.groups[0])])
    parts = tuple(sp.csr_array(weights[:, i:j]) for i, j in pairwise(cuts))
    return Place(leads, sense, one, other), parts


def _ends(v: cp.Variable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bounds that a variable declares, (entries,) each, and which entries are integer."""
    sides = []
    for bound, none in zip(v.attributes.get("bounds") or (None, None), (-np.inf, np.inf), strict=True):
        if isinstance(bound, cp.Expression):
            raise DeclarationError(
                f"variable '{v.name()}' has a bound that is an expression; with integers in the program give numbers."
            )
        given = none if bound is None else bound
        sides.append(np.broadcast_to(np.asarray(given, dtype=float), v.shape).ravel(order="F").copy())
    low, high = sides
    sign, flags, integer = declared_sign(v), whole(v, "boolean"), np.zeros(v.size)
    low, high = (np.maximum(low, 0.0), high) if sign > 0 else (low, np.minimum(high, 0.0) if sign < 0 else high)
    low[flags], high[flags] = np.maximum(low[flags], 0.0), np.minimum(high[flags], 1.0)
    integer[flags] = integer[whole(v, "integer")] = 1.0
    return low, high, integer


class Source(Publisher):
    """The user's problems after the declaration: fills their variables, the follower's objective, its gap by scipy."""

    def __init__(
        self,
        upper: cp.Problem,
        lower: cp.Problem | None,
        form: Combinatorial,
        costs: Costs,
        unknowns: tuple[Unknown, ...],
    ):
        super().__init__()
        self.upper, self.lower, self.form, self.costs, self.unknowns = upper, lower, form, costs, unknowns

    def lower_value(self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]) -> float:
        """The follower's objective in the user's own sense; NaN with one level."""
        if self.lower is None:
            return np.nan
        with self.turn, Holding({**inputs, **values}):
            return float(self.lower.objective.value)

    def follower_gap(self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]) -> float:
        """The follower's objective minus its optimum at x, or with one level the objective minus its optimum, in the
        minimised sense; Inf where none is found."""
        flat = tuple(flatten(np.asarray(inputs[p], dtype=float), p.ndim) for p in self.costs.parameters)
        nested = self.form.at(self.costs(flat))
        w, n = np.concatenate([flatten(values[u.handle], len(u.shape)) for u in self.unknowns]), nested.leaders
        x, y = w[:n], w[n:]
        if self.lower is None:
            costs, own, found = nested.leader.on_leader(y), x, best(nested, True, y)
        else:
            costs, own, found = nested.follower.on_follower(x), y, best(nested, False, x)
        return np.inf if found is None else float(costs @ (own - found))
