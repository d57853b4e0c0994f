"""A smooth upper level over any kind of number: CVXPY's canonical expressions with the objects of another modelling
language in the place of variables, as arrays of objects.

Affine atoms are the linear maps that CVXPY states; the others stand in the table below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import mul
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.atoms.affine.affine_atom import AffAtom
from cvxpy.atoms.affine.binary_operators import DivExpression, MulExpression, multiply
from cvxpy.atoms.elementwise.hyperbolic import sinh, tanh
from cvxpy.atoms.elementwise.power import Power, PowerApprox
from cvxpy.atoms.elementwise.trig import cos, sin
from cvxpy.atoms.prod import Prod
from cvxpy.atoms.quad_form import QuadForm, SymbolicQuadForm
from cvxpy.atoms.quad_over_lin import quad_over_lin

from bigrad.programs.engine import Canonical


@dataclass(frozen=True)
class Functions:
    """The functions of one number that the other language has."""

    exp: Callable[[Any], Any]
    log: Callable[[Any], Any]
    sin: Callable[[Any], Any]
    cos: Callable[[Any], Any]


ELEMENTWISE: dict[type, Callable[..., Any]] = {
    cp.exp: lambda f, a: f.exp(a),
    cp.log: lambda f, a: f.log(a),
    cp.entr: lambda f, a: -a * f.log(a),
    cp.rel_entr: lambda f, a, b: a * (f.log(a) - f.log(b)),
    cp.kl_div: lambda f, a, b: a * (f.log(a) - f.log(b)) - a + b,
    cp.logistic: lambda f, a: f.log(1 + f.exp(a)),
    sin: lambda f, a: f.sin(a),
    cos: lambda f, a: f.cos(a),
    sinh: lambda f, a: (f.exp(a) - f.exp(-a)) / 2,
    tanh: lambda f, a: 1 - 2 / (f.exp(2 * a) + 1),
}
"""Functions entry by entry."""


def unknown(canonical: Canonical) -> str:
    """The name of an atom that no table here has; empty if there is none."""
    atoms = {type(a) for e in _pieces(canonical) for a in _nodes(e) if a.variables()}
    return next((k.__name__ for k in sorted(atoms, key=lambda k: k.__name__) if not _known(k)), "")


def evaluate(
    canonical: Canonical, place: Mapping[int, int], theta: tuple[np.ndarray, ...], v: np.ndarray, functions: Functions
) -> tuple[Any, list[Any]]:
    """The objective, and the rows (inequalities, then equalities), at the objects v; `place`: see Engine."""
    at = {u.id: v[place[u.id] + np.arange(u.size)].reshape(u.shape, order="F") for u in canonical.variables}
    for p, value in zip(canonical.parameters, theta, strict=True):
        at[p.id] = _objects(np.reshape(value, p.shape, order="F"))
    goal, *rows = (_value(e, at, functions) for e in _pieces(canonical))
    return np.ravel(goal)[0], [entry for row in rows for entry in np.ravel(row, order="F")]


def _pieces(canonical: Canonical) -> tuple[cp.Expression, ...]:
    return canonical.objective, *canonical.inequalities, *canonical.equalities


def _nodes(e: cp.Expression) -> list[cp.Expression]:
    return [e, *(node for arg in e.args for node in _nodes(arg))] if e.args else []


def _known(kind: type) -> bool:
    powers = (Power, PowerApprox, QuadForm, SymbolicQuadForm, quad_over_lin, Prod)
    return kind in ELEMENTWISE or issubclass(kind, (AffAtom, DivExpression, *powers))


def _objects(value: Any) -> np.ndarray:
    """Numbers as an array of Python's own, which any language takes."""
    return np.asarray(value.toarray() if sp.issparse(value) else value, dtype=float).astype(object)


def _value(e: cp.Expression, at: Mapping[int, np.ndarray], f: Functions) -> np.ndarray:
    if isinstance(e, cp.Variable | cp.Parameter):
        return at[e.id]
    if isinstance(e, cp.Constant):
        return _objects(e.value)
    v = [_value(arg, at, f) for arg in e.args]
    if type(e) in ELEMENTWISE:
        return np.frompyfunc(lambda *a: ELEMENTWISE[type(e)](f, *a), len(v), 1)(*v)
    if isinstance(e, Power | PowerApprox):
        p = float(e.p.value)
        return np.frompyfunc(lambda a: a ** (int(p) if p == round(p) else p), 1, 1)(v[0])
    if isinstance(e, QuadForm | SymbolicQuadForm):
        return np.asarray(v[0] @ (v[1] @ v[0]), dtype=object)
    if isinstance(e, quad_over_lin):
        return np.asarray(reduce(lambda a, b: a + b, [a * a for a in v[0].ravel()]) / v[1].ravel()[0], dtype=object)
    if isinstance(e, Prod):
        return np.asarray(reduce(mul, v[0].ravel()), dtype=object)
    if isinstance(e, multiply):
        return np.asarray(v[0] * v[1], dtype=object)
    if isinstance(e, DivExpression):
        return np.asarray(v[0] / v[1], dtype=object)
    if isinstance(e, MulExpression):
        whole = v[0].ndim and v[1].ndim
        return np.asarray(v[0] @ v[1] if whole else v[0] * v[1], dtype=object)
    return _affine(e, v)


def _affine(e: cp.Expression, v: list[np.ndarray]) -> np.ndarray:
    """An affine atom as the linear map that CVXPY's own derivative states."""
    atom, zeros = e.copy([cp.Variable(arg.shape) for arg in e.args]), [np.zeros(arg.shape) for arg in e.args]
    total = list(np.ravel(_objects(atom.numeric(zeros)), order="F"))
    for slopes, part in zip(atom._grad(zeros), v, strict=True):
        entries, flat = sp.coo_array(slopes), np.ravel(part, order="F")
        for i, j, slope in zip(*entries.coords, entries.data.tolist(), strict=True):
            total[j] = total[j] + slope * flat[i]
    return np.array(total, dtype=object).reshape(e.shape, order="F")
