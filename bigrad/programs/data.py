"""Functions of the leader's variables and of parameters alone, made data of the level in which they stand.

CVXPY's disciplined parametrized programming wants every level affine in its parameters, and to the follower the
leader's variables are parameters too. So the largest subexpressions without a variable of the level that are not affine
are taken out. Of parameters alone: a further parameter stands there, whose value is computed from the user's before
every solve, by functions that torch differentiates. Of leader variables too: a further leader variable z stands there,
with the upper constraint z == expression. Factors are first brought together: p * (q * y) is (p * q) * y.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.atoms.affine.add_expr import AddExpression
from cvxpy.atoms.affine.affine_atom import AffAtom
from cvxpy.atoms.affine.binary_operators import DivExpression, MulExpression, multiply
from cvxpy.atoms.affine.promote import Promote
from cvxpy.atoms.affine.unary_operators import NegExpression
from cvxpy.atoms.elementwise.power import Power, PowerApprox
from cvxpy.atoms.quad_form import QuadForm, decomp_quad
from cvxpy.atoms.quad_over_lin import quad_over_lin
from cvxpy.utilities import scopes

from bigrad.algebra.affine import Array, namespace
from bigrad.programs.atoms import Evaluate, evaluator
from bigrad.programs.expressions import Holding, terms
from bigrad.programs.roles import Roles

SAMPLES = 3
"""Random values of the parameters at which a function is compared with CVXPY's own value."""


@dataclass(frozen=True, eq=False)
class Derived:
    """Further parameters as functions of the user's, appended to the inputs of a program.

    parameters: the user's. names, signs: of the functions. functions: their evaluators.
    """

    parameters: tuple[cp.Parameter, ...]
    names: tuple[str, ...]
    signs: tuple[int, ...]
    functions: tuple[Evaluate, ...]

    def idle(self, inputs: Mapping[Any, np.ndarray]) -> float:
        """Nothing: the objective holds all of it."""
        return 0.0

    def __call__(self, theta: Sequence[Array]) -> tuple[Array, ...]:
        """The user's inputs, flat, (size,) or (batch, size), and behind them the functions' values, where finite.

        Items with a value that is not finite get no gradient from these functions.
        """
        theta = tuple(theta)
        values = self._values(theta)
        if not theta or isinstance(theta[0], np.ndarray):
            return (*theta, *values)
        torch = namespace(theta[0])
        whole = torch.stack([torch.isfinite(v).all(-1).broadcast_to(_batch(values)) for v in values]).all(0)
        if bool(whole.all()):
            return (*theta, *values)

        def keep(t: Array) -> Array:
            """The same tensor; what comes back to it from bad items is dropped."""
            if not t.requires_grad:
                return t
            copy = t.clone()
            good = whole if t.ndim > 1 or not whole.ndim else whole.any()
            copy.register_hook(lambda g: torch.where(good[..., None], g, 0.0))
            return copy

        return (*theta, *self._values(tuple(keep(t) for t in theta)))

    def _values(self, theta: tuple[Array, ...]) -> list[Array]:
        at = {p.id: t for p, t in zip(self.parameters, theta, strict=True)}
        with np.errstate(all="ignore"):
            return [f(at) for f in self.functions]


def _batch(values: Sequence[Array]) -> tuple[int, ...]:
    return max((tuple(v.shape[:-1]) for v in values), key=len)


@dataclass(eq=False)
class Extraction:
    """Takes such functions out of one program's levels, and collects what then stands for them.

    parameters: the user's. leader: for each stand-in of a leader variable, by CVXPY id, the variable. further: the new
    parameters with what they are. defined: the new leader variables, the stand-ins of these, and what they equal.
    """

    parameters: tuple[cp.Parameter, ...]
    leader: Mapping[int, cp.Variable]
    further: list[tuple[cp.Parameter, cp.Expression, Evaluate]] = field(default_factory=list)
    defined: list[tuple[cp.Variable, cp.Parameter, cp.Expression]] = field(default_factory=list)
    known: dict[int, tuple[cp.Expression, cp.Expression]] = field(default_factory=dict)

    def __call__(self, piece: Any) -> Any:
        """An expression, objective or constraint with such functions replaced; itself if there is none."""
        if isinstance(piece, cp.Expression):
            return self._expression(gathered(piece))
        args = [self._expression(gathered(arg)) for arg in piece.args]
        return piece.copy(args) if any(a is not b for a, b in zip(args, piece.args, strict=True)) else piece

    def goal(self, objective: cp.Expression) -> cp.Expression:
        """The same for an objective of which only the terms with variables matter."""
        parts = [self._expression(t) for t in terms(gathered(objective)) if t.variables()]
        return sum(parts[1:], parts[0]) if parts else cp.Constant(0.0)

    def derived(self) -> Derived | None:
        """What computes the further parameters; None if there are none."""
        if not self.further:
            return None
        signs = tuple(_sign(p) for p, _, _ in self.further)
        names = tuple(p.name() for p, _, _ in self.further)
        return Derived(self.parameters, names, signs, tuple(f for _, _, f in self.further))

    def widened(self, roles: Roles) -> Roles:
        """The roles with the further leader variables and parameters."""
        leader = (*roles.leader, *(z for z, _, _ in self.defined))
        return replace(roles, leader=leader, parameters=(*roles.parameters, *(p for p, _, _ in self.further)))

    def _expression(self, e: cp.Expression) -> cp.Expression:
        if not e.parameters():
            return e
        if not e.variables():
            return e if _affine(e) else self._replaced(e)
        args = [self._expression(arg) for arg in e.args]
        return e.copy(args) if any(a is not b for a, b in zip(args, e.args, strict=True)) else e

    def _replaced(self, e: cp.Expression) -> cp.Expression:
        if id(e) not in self.known:
            self.known[id(e)] = e, self._new(e)  # with e itself, which keeps its id from being given again
        return self.known[id(e)][1]

    def _new(self, e: cp.Expression) -> cp.Expression:
        own = {p.id for p in self.parameters}
        name = _name(e)
        stand_in = cp.Parameter(e.shape, name=name, **_attributes(e))
        if all(p.id in own for p in e.parameters()):
            function = evaluator(e)
            if function is None or not _agrees(function, e):
                return e  # the check of the level names it
            self.further.append((stand_in, e, function))
            return stand_in
        swap = {id(p): self.leader[p.id] for p in e.parameters() if p.id in self.leader}
        z = cp.Variable(e.shape, name=f"z{len(self.defined) + 1}")
        self.defined.append((z, stand_in, e.tree_copy(swap)))
        return stand_in


def _affine(e: cp.Expression) -> bool:
    with scopes.dpp_scope():
        return bool(e.is_affine())


def _name(e: cp.Expression) -> str:
    text = str(e)
    return text if len(text) < 60 else text[:60] + "…"


def _attributes(e: cp.Expression) -> dict[str, bool]:
    """What CVXPY knows of an expression, as the attribute of a parameter."""
    if e.ndim == 2 and e.shape[0] == e.shape[1] and e.shape[0] > 1:
        for kind, has in (("PSD", e.is_psd()), ("NSD", e.is_nsd()), ("symmetric", e.is_symmetric())):
            if has:
                return {kind: True}
    if e.is_nonneg():
        return {"nonneg": True}
    return {"nonpos": True} if e.is_nonpos() else {}


def _sign(p: cp.Parameter) -> int:
    return 1 if p.attributes["nonneg"] else -1 if p.attributes["nonpos"] else 0


def _agrees(function: Evaluate, e: cp.Expression) -> bool:
    """Whether a function gives CVXPY's own values at random parameters."""
    rng = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        for _ in range(SAMPLES):
            at = {p: p.project(rng.uniform(0.3, 1.7, p.shape)) for p in e.parameters()}
            with Holding(at):
                expected = np.ravel(np.asarray(e.value, dtype=float), order="F")
            found = function({p.id: np.ravel(v, order="F") for p, v in at.items()})
            if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-9, atol=1e-9, equal_nan=True):
                return False
    return True


def gathered(e: cp.Expression) -> cp.Expression:
    """An expression with factors without variables brought together, where only so it is affine in them.

    f / d is f (1 / d), |f|^2 / d is |f|^2 (1 / d), a (b f) is (a b) f, a (f + g) is a f + a g, a (f + b)^2 is
    a f^2 + (2 a b) f + a b^2, for f, g with variables and a, b, d without. A quadratic form in f + b is a sum of squares.
    """
    if not e.variables() or not e.parameters():
        return e
    args = [gathered(arg) for arg in e.args]
    return _root(e.copy(args) if any(a is not b for a, b in zip(args, e.args, strict=True)) else e)


def _root(e: cp.Expression) -> cp.Expression:
    """The same for an expression whose arguments are done."""
    if isinstance(e, DivExpression | quad_over_lin) and _constant(e.args[1]) and e.args[1].parameters():
        if isinstance(e, DivExpression):
            return _root(cp.multiply(1.0 / e.args[1], e.args[0]))
        if e.is_scalar():
            return _root(cp.multiply(cp.inv_pos(e.args[1]), cp.sum_squares(e.args[0])))
    if isinstance(e, QuadForm) and e.args[0].variables() and e.args[0].parameters():
        return _form(e)
    if not isinstance(e, MulExpression):
        return e
    for k in (0, 1):
        factor, rest = _scalar(e.args[k]), _scalar(e.args[1 - k])
        if _constant(factor) and factor.parameters() and rest.parameters() and rest.variables():
            joined = _joined(_Product(factor, isinstance(e, multiply), k == 0), rest)
            if joined is not None:
                return joined if joined.shape == e.shape else cp.multiply(np.ones(e.shape), joined)
    return e


@dataclass(frozen=True, eq=False)
class _Product:
    """A factor, whether it multiplies entry by entry, and whether from the left."""

    factor: cp.Expression
    elementwise: bool
    left: bool

    def __call__(self, e: cp.Expression) -> cp.Expression:
        if self.elementwise or self.factor.is_scalar() or e.is_scalar():
            return _root(cp.multiply(self.factor, e))
        return _root(self.factor @ e if self.left else e @ self.factor)


def _joined(times: _Product, rest: cp.Expression) -> cp.Expression | None:
    """The product with the factors inside of `rest` joined to the factor; None where that cannot be written."""
    factor = times.factor
    entries = times.elementwise or factor.is_scalar()
    if isinstance(rest, AddExpression) and all(t.shape == rest.shape for t in rest.args):
        return sum((times(t) for t in rest.args[1:]), times(rest.args[0]))
    if isinstance(rest, NegExpression):
        return -times(rest.args[0])
    if isinstance(rest, MulExpression):
        for k in (0, 1):
            inner, f = _scalar(rest.args[k]), rest.args[1 - k]
            if not _constant(inner):
                continue
            if isinstance(rest, multiply) and (entries or inner.is_scalar()):
                return replace(times, factor=cp.multiply(factor, inner))(f)
            if not isinstance(rest, multiply) and factor.is_scalar():
                return (factor * inner) @ f if k == 0 else f @ (factor * inner)
            if not isinstance(rest, multiply) and not entries and times.left == (k == 0):
                return (factor @ inner) @ f if times.left else f @ (inner @ factor)
        return None
    if isinstance(rest, AffAtom) and factor.is_scalar():
        return rest.copy([cp.multiply(factor, arg) if _constant(arg) else times(arg) for arg in rest.args])
    if factor.ndim == 1 and rest.ndim == 1 and not entries:
        return cp.sum(replace(times, elementwise=True)(rest))
    return _square(times, rest) if entries else None


def _square(times: _Product, rest: cp.Expression) -> cp.Expression | None:
    """The product with a square (f + b)^2, or a sum of squares, of which f has no parameters."""
    whole = (
        isinstance(rest, quad_over_lin)
        and rest.is_scalar()
        and rest.args[1].is_constant()
        and not rest.args[1].parameters()
    )
    if not whole and not (
        isinstance(rest, Power | PowerApprox) and not rest.p.parameters() and float(rest.p.value) == 2
    ):
        return None
    if (parted := _parted(rest.args[0])) is None:
        return None
    f, b = parted
    if whole:
        times = replace(times, factor=times.factor / rest.args[1])
        cross = cp.sum(cp.multiply(2 * times.factor * b, f))
        return times(cp.sum_squares(f)) + cross + cp.multiply(times.factor, cp.sum_squares(b))
    cross = cp.multiply(cp.multiply(2 * times.factor, b), f)
    return times(cp.square(f)) + cross + cp.multiply(times.factor, cp.square(b))


def _form(e: cp.Expression) -> cp.Expression:
    """A quadratic form (f + b)' P (f + b): a sum of squares |M' (f + b)|^2 where P = M M' has no parameters, else multiplied out."""
    inside, P = e.args
    if not P.parameters():
        if not (P.is_psd() or P.is_nsd()):
            return e
        scale, plus, minus = decomp_quad(P.value)
        factor, sign = (plus, scale) if P.is_psd() else (minus, -scale)
        return sign * cp.sum_squares(factor.T @ inside) if factor.shape[1] else cp.Constant(0.0)
    if (parted := _parted(inside)) is None:
        return e
    f, b = parted
    return cp.quad_form(f, P) + cp.sum(cp.multiply(2 * (P @ b), f)) + cp.quad_form(b, P)


def _parted(e: cp.Expression) -> tuple[cp.Expression, cp.Expression] | None:
    """An affine expression as a part that has no parameters and one that has no variables; None where that cannot be."""
    parts = terms(e)
    moving, still = ([t for t in parts if bool(t.variables()) == which] for which in (True, False))
    if not still or any(t.parameters() or t.shape != parts[0].shape for t in moving) or not e.is_affine():
        return None
    return sum(moving[1:], moving[0]), sum(still[1:], still[0])


def _scalar(e: cp.Expression) -> cp.Expression:
    """What was promoted to a shape, where it is that."""
    return e.args[0] if isinstance(e, Promote) else e


def _constant(e: cp.Expression) -> bool:
    return not e.variables()
