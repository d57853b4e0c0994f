"""CVXPY expressions of parameters, evaluated on whole batches by numpy or by torch, whose autograd then has the chain rule.

Affine atoms are linear maps that CVXPY itself states; the others stand in the table below. Arrays are flattened in
CVXPY's column-major order, (size,) or (batch, size).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.atoms.affine.affine_atom import AffAtom
from cvxpy.atoms.affine.binary_operators import DivExpression, MulExpression, multiply
from cvxpy.atoms.elementwise.power import Power, PowerApprox
from cvxpy.atoms.pnorm import Pnorm, PnormApprox
from cvxpy.atoms.quad_form import QuadForm
from cvxpy.atoms.quad_over_lin import quad_over_lin

from bigrad.algebra.affine import Affine, Array, flatten, namespace, unflatten

Evaluate = Callable[[Mapping[int, Array]], Array]
"""From the flat values of parameters, by CVXPY id, to the flat value of an expression."""


def _logistic(xp: Any, a: Array) -> Array:
    return xp.maximum(a, 0.0 * a) + xp.log1p(xp.exp(-abs(a)))


ELEMENTWISE: dict[type, Callable[[Any, Array], Array]] = {
    cp.exp: lambda xp, a: xp.exp(a),
    cp.log: lambda xp, a: xp.log(a),
    cp.log1p: lambda xp, a: xp.log1p(a),
    cp.abs: lambda xp, a: abs(a),
    cp.entr: lambda xp, a: -a * xp.log(a),
    cp.xexp: lambda xp, a: a * xp.exp(a),
    cp.logistic: _logistic,
}
"""Functions of one argument, entry by entry."""


def evaluator(expression: cp.Expression) -> Evaluate | None:
    """How to evaluate an expression of parameters, or None if an atom of it is in no table."""
    if isinstance(expression, cp.Parameter):
        return lambda at, key=expression.id: at[key]  # type: ignore[misc]
    if not expression.parameters():
        value = np.ravel(np.asarray(_dense(expression.value), dtype=float), order="F")
        return lambda at: _like(value, next(iter(at.values())))
    inside = [evaluator(arg) for arg in expression.args]
    if any(f is None for f in inside):
        return None
    parts: list[Evaluate] = [f for f in inside if f is not None]
    combine = _rule(expression)
    return None if combine is None else lambda at: combine([f(at) for f in parts])


def _rule(e: cp.Expression) -> Callable[[list[Array]], Array] | None:
    """The value of an atom from those of its arguments."""
    shapes = [arg.shape for arg in e.args]
    kind = type(e)
    if kind in ELEMENTWISE:
        function = ELEMENTWISE[kind]
        return lambda v: function(namespace(v[0]), v[0])
    if isinstance(e, Power | PowerApprox):
        return None if e.p.parameters() else lambda v, p=float(e.p.value): v[0] ** p  # type: ignore[misc]
    if isinstance(e, cp.maximum | cp.minimum):
        name = "maximum" if isinstance(e, cp.maximum) else "minimum"
        return lambda v: _fold(
            getattr(namespace(v[0]), name), [_spread(a, s, e.shape) for a, s in zip(v, shapes, strict=True)]
        )
    if isinstance(e, multiply | DivExpression):
        divide = isinstance(e, DivExpression)

        def product(v: list[Array]) -> Array:
            a, b = (_spread(x, s, e.shape) for x, s in zip(v, shapes, strict=True))
            return a / b if divide else a * b

        return product
    if isinstance(e, MulExpression):
        return lambda v: _matmul(v[0], v[1], *shapes)
    if isinstance(e, QuadForm):
        n = e.args[0].size
        return lambda v: (_matmul(v[1], v[0], (n, n), (n,)) * v[0]).sum(-1)[..., None]
    if isinstance(e, AffAtom):
        return _linear(e)
    if getattr(e, "axis", None) is not None:
        return None
    if isinstance(e, quad_over_lin):
        return lambda v: (v[0] ** 2).sum(-1)[..., None] / v[1]
    if isinstance(e, Pnorm | PnormApprox) and float(e.p) == 2:
        return lambda v: namespace(v[0]).linalg.norm(v[0], 2, -1)[..., None]
    if isinstance(e, cp.norm1):
        return lambda v: abs(v[0]).sum(-1)[..., None]
    if isinstance(e, cp.norm_inf):
        return lambda v: _extreme(abs(v[0]), "amax")
    if isinstance(e, cp.max):
        return lambda v: _extreme(v[0], "amax")
    if isinstance(e, cp.min):
        return lambda v: _extreme(v[0], "amin")
    if isinstance(e, cp.log_sum_exp):
        return _log_sum_exp
    return None


def _linear(e: cp.Expression) -> Callable[[list[Array]], Array]:
    """An affine atom as the linear map that CVXPY's own derivative states."""
    moving = [bool(arg.parameters()) for arg in e.args]
    atom = e.copy([cp.Variable(arg.shape) if m else arg for arg, m in zip(e.args, moving, strict=True)])
    at = [np.zeros(arg.shape) if m else _dense(arg.value) for arg, m in zip(e.args, moving, strict=True)]
    base = np.ravel(np.asarray(_dense(atom.numeric(at)), dtype=float), order="F")
    jacobians = atom._grad(at)
    terms = {k: sp.csr_array(sp.csc_array(jacobians[k]).T) for k, m in enumerate(moving) if m}
    return Affine((e.size,), base, terms)


def _dense(value: Any) -> Any:
    return value.toarray() if sp.issparse(value) else value


def _like(value: np.ndarray, other: Array) -> Array:
    """A constant in the library of another array."""
    return (
        value
        if isinstance(other, np.ndarray)
        else namespace(other).as_tensor(value, dtype=other.dtype, device=other.device)
    )


def _spread(value: Array, shape: tuple[int, ...], target: tuple[int, ...]) -> Array:
    """An argument broadcast to the shape of the result, flat."""
    if shape == target:
        return value
    full = unflatten(value, (1,) * (len(target) - len(shape)) + shape)
    return flatten(namespace(value).broadcast_to(full, (*value.shape[:-1], *target)), len(target))


def _matmul(a: Array, b: Array, left: tuple[int, ...], right: tuple[int, ...]) -> Array:
    if not left or not right:
        return a * b
    rows = left if len(left) > 1 else (1, *left)
    columns = right if len(right) > 1 else (*right, 1)
    return flatten(unflatten(a, rows) @ unflatten(b, columns), 2)


def _fold(function: Callable[[Array, Array], Array], values: list[Array]) -> Array:
    first, *rest = values
    for value in rest:
        first = function(first, value)
    return first


def _extreme(value: Array, name: str) -> Array:
    return getattr(namespace(value), name)(value, -1)[..., None]


def _log_sum_exp(v: list[Array]) -> Array:
    xp = namespace(v[0])
    top = xp.amax(v[0], -1)[..., None]
    top = top if isinstance(top, np.ndarray) else top.detach()
    return xp.log(xp.exp(v[0] - top).sum(-1))[..., None] + top
