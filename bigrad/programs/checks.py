"""Whether each level keeps the rules: a convex lower level, both affine in their parameters (DPP). Refusals name the culprit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.atoms.affine.binary_operators import DivExpression, MulExpression, multiply
from cvxpy.atoms.quad_over_lin import quad_over_lin
from cvxpy.utilities import scopes

from bigrad.programs import expressions
from bigrad.solution import DeclarationError

SPLIT = "Make a product or function of parameters one parameter, or give one factor of a product a variable of its own (t == factor)"


def check_lower(problem: cp.Problem, leader: Mapping[int, cp.Variable]) -> None:
    """The lower problem, leader variables as parameters, must be convex, and affine in all parameters (DPP)."""
    pieces = [("objective", problem.objective), *(("constraint", c) for c in problem.constraints)]
    for what, piece in pieces:
        if not piece.is_dcp():
            culprit = _smallest(piece, lambda e: e.is_convex() or e.is_concave())
            raise DeclarationError(
                f"The lower problem is not convex in the follower's variables: the {what} {_named(piece)} breaks CVXPY's DCP rules"
                f" at {_named(culprit)}. Only a convex lower level is decided by its optimality conditions.{_signs(culprit)}"
            )
    with scopes.dpp_scope(), scopes.quad_form_dpp_scope():
        for what, piece in pieces:
            if not piece.is_dcp():
                culprit = _smallest(piece, lambda e: e.is_convex() or e.is_concave())
                culprit = next((a for a in culprit.args if not a.variables() and not a.is_affine()), culprit)
                text, names = _named(culprit), [p.name() for p in culprit.parameters() if p.id not in leader]
                xs = [leader[p.id].name() for p in culprit.parameters() if p.id in leader]
                why = "it is not affine in the parameters"
                if names and xs:
                    why = f"it multiplies parameter '{names[0]}' by upper variable '{xs[0]}', which is a parameter to the follower"
                elif xs:
                    why = f"it is not affine in upper variable '{xs[0]}', which is a parameter to the follower"
                advice = (
                    f"Introduce an upper variable z with the upper constraint z == {text} and use z" if xs else SPLIT
                )
                raise DeclarationError(
                    f"The lower problem is not DPP in the upper variables and parameters: in the {what} {_named(piece)}, look at {text}: "
                    f"{why}. {advice}."
                )


def check_constants(name: str, problem: cp.Problem) -> None:
    """The numbers of a problem must be finite; infinite bounds declared on variables are none, and fine."""
    for constant in problem.constants():
        held = constant.value
        if not np.isfinite(held.data if sp.issparse(held) else held).all():
            raise DeclarationError(
                f"The {name} problem has a constant that is NaN or infinite: {_named(constant)}. Leave out rows without a bound, or "
                "declare bounds=[…] on the variable, where infinity stands for none."
            )


def _signs(culprit: Any) -> str:
    """What to declare where a factor of unknown sign may be all that is missing."""
    unsigned = [p.name() for p in culprit.parameters() if not (p.is_nonneg() or p.is_nonpos())]
    if not unsigned or not isinstance(culprit, multiply | MulExpression) or all(a.is_affine() for a in culprit.args):
        return ""
    return f" If '{unsigned[0]}' has one sign only, declare it: nonneg=True or nonpos=True."


def _smallest(piece: Any, fine: Any) -> Any:
    """The first deepest subexpression that breaks the rule while its arguments keep it."""
    for arg in piece.args:
        if not (fine(arg) and _all_fine(arg, fine)):
            return _smallest(arg, fine)
    return piece


def _all_fine(expression: Any, fine: Any) -> bool:
    return all(fine(arg) and _all_fine(arg, fine) for arg in expression.args)


def _named(expression: Any) -> str:
    text = str(expression.expr if isinstance(expression, cp.Minimize | cp.Maximize) else expression)
    return text if len(text) < 200 else text[:200] + "…"


def check_upper(objective: cp.Expression, above: list[cp.Constraint], convex: bool) -> None:
    """The upper level must be affine in its parameters (DPP).

    Curvature is not asked of an objective that is not convex.
    """
    for what, piece in [("objective", objective), *(("constraint", c) for c in above)]:
        culprit = next((found for arg in _roots(piece) if (found := expressions.beyond_affine(arg)) is not None), None)
        with scopes.dpp_scope(), scopes.quad_form_dpp_scope():
            if culprit is None and (convex or piece is not objective) and not piece.is_dcp():
                culprit = _smallest(piece, lambda e: e.is_convex() or e.is_concave())
        if culprit is not None:
            raise DeclarationError(
                f"The upper {what} {_named(piece)} is not DPP at {_named(culprit)}: it is not affine in the parameters. {SPLIT}."
            )


def _roots(piece: Any) -> list[cp.Expression]:
    return [piece] if isinstance(piece, cp.Expression) else piece.args


def not_smooth(piece: Any) -> Any:
    """The first deepest subexpression that breaks the DNLP rules while its arguments keep them."""
    for arg in piece.args:
        if not arg.is_dnlp():
            return not_smooth(arg)
    return piece


def beyond_affine(piece: Any) -> Iterator[tuple[Any, str]]:
    """Subexpressions in which a parameter enters other than affinely, with what to do about each."""
    if not piece.parameters():
        return
    if isinstance(piece, cp.Expression) and not piece.variables():
        with scopes.dpp_scope():
            if not piece.is_affine():
                yield piece, "Make it one parameter."
        return
    if isinstance(piece, DivExpression | quad_over_lin) and piece.args[1].parameters():
        yield piece, "Multiply by a parameter that holds the inverse instead of dividing by one."
    for name in ("M", "p"):
        setting = getattr(piece, name, None)
        if isinstance(setting, cp.Expression) and setting.parameters():
            yield piece, f"Its {'threshold' if name == 'M' else 'power'} must be a number."
    for arg in piece.args:
        yield from beyond_affine(arg)
