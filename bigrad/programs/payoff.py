"""Whether two objectives are those of a zero-sum game, and the game's payoff taken apart.

The leader minimises F(x, y), the follower maximises G(x, y). The game is zero-sum if F - G does not depend on y; terms
of x alone change no answer of the follower. The payoff is then split into

    own(x) + gain(y) + pull(x)'y,

own convex, gain concave, pull affine in x. A product of a convex function of x and a nonnegative one of y is lifted: the
function becomes a variable above it (Schiele, Luxenberg and Boyd, "Disciplined saddle programming", 2024). Mixed squares
are multiplied out where their product part is free of parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.atoms.affine.binary_operators import MulExpression, multiply
from cvxpy.atoms.affine.sum import Sum
from cvxpy.atoms.affine.unary_operators import NegExpression
from cvxpy.utilities import scopes

from bigrad.programs.expressions import Holding, is_quadratic, terms

SAME = 1e-9
"""Two values of one polynomial at a random point agree to this, relative to 1 + their size."""


NO_SUM = "the upper objective is not minus the lower one"
"""Why most programs are no games."""


class NoGameError(Exception):
    """The reason, a clause, why two levels are not a convex-concave zero-sum game."""


@dataclass(eq=False)
class Payoff:
    """own(x) + gain(y) + pull(x)'y. above, below: constraints of the variables that lifting added, above those of the
    leader, below those of the follower.
    """

    own: list[cp.Expression] = field(default_factory=list)
    gain: list[cp.Expression] = field(default_factory=list)
    pull: dict[int, list[cp.Expression]] = field(default_factory=dict)
    above: list[cp.Constraint] = field(default_factory=list)
    below: list[cp.Constraint] = field(default_factory=list)
    follower: list[cp.Variable] = field(default_factory=list)


def split(F: cp.Expression, G: cp.Expression, follower: Sequence[cp.Variable]) -> Payoff:
    """The payoff of F, minimised by the leader, and G, maximised by the follower. Raises NoGameError with the reason."""
    ours = {v.id for v in follower}
    payoff = Payoff(follower=list(follower))
    payoff.own += [t for t in terms(F) if not _has(t, ours)]
    mixed = [t for t in terms(G) if _has(t, ours)]
    left = _unmatched([t for t in terms(F) if _has(t, ours)], mixed)
    if left:
        if not all(is_quadratic(t) for t in left) or not _free_of(sum(left), follower):
            raise NoGameError(f"{NO_SUM}: they differ by {_named(sum(left))}")
        payoff.own += [t.tree_copy({id(v): cp.Constant(np.zeros(v.shape)) for v in follower}) for t in left]
    for t in mixed:
        _place(t, payoff, ours)
    for name, parts, good in (("leader", payoff.own, "is_convex"), ("follower", payoff.gain, "is_concave")):
        for t in parts:
            if not getattr(t, good)():
                raise NoGameError(f"the {name}'s part {_named(t)} is not {good[3:]}")
    return payoff


def _has(e: Any, ids: set[int]) -> bool:
    return any(v.id in ids for v in e.variables())


def _named(e: Any) -> str:
    text = str(e)
    return text if len(text) < 120 else text[:120] + "…"


def _place(t: cp.Expression, payoff: Payoff, ours: set[int]) -> None:
    """Put a term that holds follower variables where it belongs."""
    if all(v.id in ours for v in t.variables()):
        payoff.gain.append(t)
        return
    t = _lifted(t, payoff, ours)
    ours = {v.id for v in payoff.follower}
    theirs = [v for v in t.variables() if v.id not in ours]
    mine = [v for v in t.variables() if v.id in ours]
    still = {id(v): cp.Parameter(v.shape) for v in (*theirs, *mine)}
    for part in (theirs, mine):
        if not t.tree_copy({id(v): still[id(v)] for v in part}).is_affine():
            _place_square(t, payoff, theirs, mine)
            return
    _place_product(t, payoff, mine)


def _place_product(t: cp.Expression, payoff: Payoff, mine: list[cp.Variable]) -> None:
    """A term that is affine in each player's variables: own(x) is its value at y = 0, pull(x) its slopes in y."""
    zero = {id(v): cp.Constant(np.zeros(v.shape)) for v in mine}
    base, slopes = t.tree_copy(zero), _inner_slopes(t, mine)
    if slopes is None:
        slopes = {}
        for v in mine:
            units = [cp.Constant(np.reshape(unit, v.shape, order="F")) for unit in np.eye(v.size)]
            steps = [t.tree_copy(zero | {id(v): unit}) - base for unit in units]
            slopes[v.id] = cp.hstack([cp.reshape(e, (1,), order="F") for e in steps])
    with scopes.dpp_scope():
        if not all(e.is_affine() for e in (base, *slopes.values())):
            raise NoGameError(
                f"the term {_named(t)} is not affine in the parameters once the follower's answer is fixed"
            )
    payoff.own.append(base)
    for v in mine:
        payoff.pull.setdefault(v.id, []).append(slopes[v.id])


def _inner_slopes(t: cp.Expression, mine: list[cp.Variable]) -> dict[int, cp.Expression] | None:
    """Slopes in y of an inner product of vectors, one of y alone and without parameters; None for any other term."""
    factor, core = _factored(t)
    if isinstance(core, Sum) and core.size == 1 and isinstance(core.args[0], multiply):
        core = core.args[0]
    elif not isinstance(core, MulExpression) or any(a.ndim > 1 for a in core.args):
        return None
    if core.args[0].shape != core.args[1].shape:
        return None
    ours = {v.id for v in mine}
    for a, b in (core.args, core.args[::-1]):
        if not _has(a, ours) and not b.parameters() and all(v.id in ours for v in b.variables()):
            with Holding({v: np.zeros(v.shape) for v in mine}):
                found = b.grad
            return {v.id: factor * (sp.csc_array(found[v]) @ cp.vec(a, order="F")) for v in mine}
    return None


def _place_square(t: cp.Expression, payoff: Payoff, theirs: list[cp.Variable], mine: list[cp.Variable]) -> None:
    """A mixed quadratic term multiplied out: t(x, 0) + t(0, y) - t(0, 0) + y'Bx with a constant B."""
    if not is_quadratic(t):
        raise NoGameError(f"the term {_named(t)} is neither affine in each player's variables nor quadratic")
    no_x = {id(v): cp.Constant(np.zeros(v.shape)) for v in theirs}
    no_y = {id(v): cp.Constant(np.zeros(v.shape)) for v in mine}
    rng = np.random.default_rng(0)
    found = [_products(t, theirs, mine, rng) for _ in range(2)]
    if not np.allclose(found[0], found[1], rtol=1e-9, atol=1e-9):
        raise NoGameError(
            f"in the term {_named(t)} a parameter multiplies both players' variables; write it as a product"
        )
    payoff.own += [t.tree_copy(no_y), -t.tree_copy(no_x | no_y)]
    payoff.gain.append(t.tree_copy(no_x))
    x = cp.hstack([cp.vec(v, order="F") for v in theirs])
    at = 0
    for v in mine:
        payoff.pull.setdefault(v.id, []).append(found[0][at : at + v.size] @ x)
        at += v.size


def _products(
    t: cp.Expression, theirs: list[cp.Variable], mine: list[cp.Variable], rng: np.random.Generator
) -> np.ndarray:
    """The matrix B of a quadratic term at random parameters, shape (follower, leader)."""
    held: dict[Any, np.ndarray] = {p: _random(p, rng) for p in t.parameters()}
    zeros: dict[Any, np.ndarray] = {v: np.zeros(v.shape) for v in (*theirs, *mine)}

    def at(*pairs: tuple[cp.Variable, int]) -> float:
        point = dict(zeros)
        for v, k in pairs:
            unit = np.zeros(v.size)
            unit[k] = 1.0
            point[v] = unit.reshape(v.shape, order="F")
        with Holding({**held, **point}):
            return float(t.value)

    ys = [(v, k) for v in mine for k in range(v.size)]
    xs = [(v, k) for v in theirs for k in range(v.size)]
    none, along, down = at(), [at(x) for x in xs], [at(y) for y in ys]
    return np.array(
        [[at(x, y) - a - d + none for x, a in zip(xs, along, strict=True)] for y, d in zip(ys, down, strict=True)]
    )


def _lifted(e: cp.Expression, payoff: Payoff, ours: set[int]) -> cp.Expression:
    """The expression with curved factors of products replaced by variables that bound them."""
    if not e.args or not e.variables():
        return e
    if isinstance(e, MulExpression | multiply) and all(a.variables() for a in e.args):
        sides = [_has(a, ours) for a in e.args]
        pure = [all((v.id in ours) == side for v in a.variables()) for a, side in zip(e.args, sides, strict=True)]
        if all(pure) and sides[0] != sides[1]:
            a, b = e.args
            return e.copy([_bounded(a, b, payoff, sides[0]), _bounded(b, a, payoff, sides[1])])
    args = [_lifted(a, payoff, ours) for a in e.args]
    return e.copy(args) if any(a is not b for a, b in zip(args, e.args, strict=True)) else e


def _bounded(e: cp.Expression, other: cp.Expression, payoff: Payoff, follower: bool) -> cp.Expression:
    """A factor, or a variable in its place: the leader's from above, the follower's from below (times a nonnegative one)."""
    if e.is_affine():
        return e
    up = other.is_nonneg() != follower  # the variable must lie above e
    if not (other.is_nonneg() or other.is_nonpos()) or not (e.is_convex() if up else e.is_concave()):
        raise NoGameError(f"the product of {_named(e)} and {_named(other)} is not convex-concave by CVXPY's rules")
    stand = cp.Variable(e.shape)
    rows = payoff.below if follower else payoff.above
    rows.append(stand >= e if up else stand <= e)
    if follower:
        payoff.follower.append(stand)
    return stand


def _unmatched(a: list[cp.Expression], b: list[cp.Expression]) -> list[cp.Expression]:
    """The terms of sum(a) - sum(b) that do not cancel by structure."""
    total: dict[Any, tuple[float, cp.Expression]] = {}
    for sign, parts in ((1.0, a), (-1.0, b)):
        for t in parts:
            factor, core = _factored(t)
            k = _key(core)
            total[k] = (total.get(k, (0.0, core))[0] + sign * factor, core)
    return [factor * core for factor, core in total.values() if abs(factor) > SAME]


def _factored(e: cp.Expression) -> tuple[float, cp.Expression]:
    if isinstance(e, NegExpression):
        factor, core = _factored(e.args[0])
        return -factor, core
    if isinstance(e, MulExpression | multiply):
        for k, arg in enumerate(e.args):
            if isinstance(arg, cp.Constant) and arg.size == 1 and e.args[1 - k].shape == e.shape:
                factor, core = _factored(e.args[1 - k])
                return float(np.squeeze(arg.value)) * factor, core
    return 1.0, e


def _key(e: Any) -> Any:
    """Equal for expressions of the same structure over the same leaves."""
    if isinstance(e, cp.Variable | cp.Parameter):
        return e.id
    if isinstance(e, cp.Constant):
        value = np.asarray(e.value.toarray() if hasattr(e.value, "toarray") else e.value, dtype=float)
        return e.shape, value.tobytes()
    if isinstance(e, cp.Expression):
        data = tuple(_key(d) for d in e.get_data() or ())
        return type(e).__name__, data, tuple(_key(a) for a in e.args)
    return e.tobytes() if isinstance(e, np.ndarray) else repr(e)


def _free_of(e: Any, follower: Sequence[cp.Variable]) -> bool:
    """Whether a polynomial does not depend on the follower's variables: its values at random points, all of them numbers, do not."""
    rng = np.random.default_rng(0)
    leaves = [*e.variables(), *e.parameters()]
    for _ in range(4):
        held: dict[Any, np.ndarray] = {leaf: _random(leaf, rng) for leaf in leaves}
        values = []
        for _ in range(2):
            point = held | {v: _random(v, rng) for v in follower if any(v is leaf for leaf in leaves)}
            with Holding(point), np.errstate(all="ignore"):
                values.append(float(np.squeeze(e.value)))
        if not np.isfinite(values).all() or abs(values[0] - values[1]) > SAME * (1 + abs(values[0]) + abs(values[1])):
            return False
    return True


def _random(leaf: Any, rng: np.random.Generator) -> np.ndarray:
    """A value of a leaf's own sign and symmetry."""
    value = rng.standard_normal(leaf.shape)
    value = abs(value) if leaf.is_nonneg() else -abs(value) if leaf.is_nonpos() else value
    square = any(leaf.attributes[kind] for kind in ("PSD", "NSD", "symmetric"))
    return (value + value.T) / 2 if square else np.asarray(value)
