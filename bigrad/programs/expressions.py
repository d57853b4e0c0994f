"""Expression trees: values held for a while, their summands, where parameters enter other than affinely, products written as squares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.atoms.affine.binary_operators import DivExpression, MulExpression, multiply
from cvxpy.atoms.affine.sum import Sum
from cvxpy.atoms.elementwise.power import Power, PowerApprox
from cvxpy.atoms.quad_form import QuadForm
from cvxpy.atoms.quad_over_lin import quad_over_lin
from cvxpy.utilities import scopes

from bigrad.solution import DeclarationError


def terms(expression: cp.Expression) -> list[cp.Expression]:
    """The summands of an expression, with signs, constant factors and sums over entries pushed inwards."""
    if isinstance(expression, cp.atoms.affine.add_expr.AddExpression):
        return [t for arg in expression.args for t in terms(arg)]
    linear = isinstance(
        expression, cp.atoms.affine.unary_operators.NegExpression | Sum | multiply | MulExpression | DivExpression
    )
    inside = [k for k, arg in enumerate(expression.args) if not arg.is_constant()]
    if not linear or len(inside) != 1:
        return [expression]
    k, args = inside[0], list(expression.args)
    parts = terms(args[k])
    if len(parts) == 1 or any(t.shape != args[k].shape for t in parts):
        return [expression]
    return [expression.copy([*args[:k], t, *args[k + 1 :]]) for t in parts]


def beyond_affine(expression: cp.Expression) -> cp.Expression | None:
    """The first subexpression in which parameters enter other than affinely: a product of two, a function of one; None
    if none does.

    A square of an expression affine in parameters is fine: it stays factored.
    """
    if not expression.parameters():
        return None
    with scopes.dpp_scope():
        if expression.is_affine():
            return None
    if not expression.variables():
        return expression
    if isinstance(expression, multiply | MulExpression | DivExpression | quad_over_lin | QuadForm):
        a, b = expression.args
        split = isinstance(expression, DivExpression | quad_over_lin) and b.parameters()
        if split or (a.parameters() and b.parameters() and not (a.variables() and b.variables())):
            return expression
    return next((found for arg in expression.args if (found := beyond_affine(arg)) is not None), None)


def has_parametric_form(expression: cp.Expression) -> bool:
    """Whether a quadratic form in it has parameters in its matrix; CVXPY cannot write such a one with cones."""
    own = isinstance(expression, QuadForm) and bool(expression.args[1].parameters())
    return own or any(has_parametric_form(arg) for arg in expression.args)


def is_quadratic(expression: cp.Expression) -> bool:
    """Whether every path from the root to a variable is affine, then at most one square or product of affine expressions."""
    if expression.is_constant() or (not expression.parameters() and expression.is_affine()):
        return True
    if isinstance(expression, multiply | MulExpression):
        a, b = expression.args
        if a.is_constant() or b.is_constant():
            return is_quadratic(b if a.is_constant() else a)
        return a.is_affine() and b.is_affine()
    if isinstance(expression, DivExpression):
        return expression.args[1].is_constant() and is_quadratic(expression.args[0])
    if isinstance(expression, Power | PowerApprox):
        return (
            expression.args[0].is_affine() and not expression.p.parameters() and float(expression.p.value) in (1.0, 2.0)
        )
    if isinstance(expression, quad_over_lin):
        return expression.args[0].is_affine() and expression.args[1].is_constant()
    if isinstance(expression, QuadForm):
        return expression.args[0].is_affine()
    affine_atom = isinstance(expression, cp.atoms.affine.affine_atom.AffAtom)
    return expression.is_affine() or (affine_atom and all(is_quadratic(a) for a in expression.args))


def without_products(expression: cp.Expression) -> cp.Expression:
    """Write products of two affine expressions in variables as differences of squares: ab = ((a+b)^2 - (a-b)^2) / 4."""
    if not expression.args or not expression.variables():
        return expression
    if isinstance(expression, multiply | MulExpression) and all(arg.variables() for arg in expression.args):
        a, b = expression.args
        if isinstance(expression, multiply) or a.is_scalar() or b.is_scalar():
            return (cp.square(a + b) - cp.square(a - b)) / 4
        if a.ndim <= 1 and b.ndim <= 1:
            return (cp.sum_squares(a + b) - cp.sum_squares(a - b)) / 4
        raise DeclarationError(
            f"The upper objective has the matrix product {expression}, both sides with variables. Write it as a sum of products "
            "of vectors, for example cp.sum(cp.multiply(a, b))."
        )
    return expression.copy([without_products(arg) for arg in expression.args])


class Holding:
    """`with Holding(values):` variables and parameters have these values inside, and their own again afterwards."""

    def __init__(self, values: Mapping[Any, np.ndarray]):
        self.values = values

    def __enter__(self) -> None:
        self.before = {leaf: leaf.value for leaf in self.values}
        for leaf, value in self.values.items():
            leaf.save_value(value)

    def __exit__(self, *error: Any) -> None:
        for leaf, value in self.before.items():
            leaf.save_value(value)
