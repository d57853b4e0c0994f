"""CVXPY expressions that are linear in each of three groups of leaves, as lists of terms.

Parameters theta, the leader's variables x and the follower's y: every term is a number times at most one of each. The tree is
walked once; what is affine is read off as a matrix, products are joined term by term, everything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.atoms.affine.affine_atom import AffAtom
from cvxpy.atoms.affine.binary_operators import DivExpression, MulExpression, multiply

from bigrad.solution import DeclarationError


class NotLinearError(DeclarationError):
    """The culprit and what is wrong with it, for a sentence that says why it matters."""


@dataclass(frozen=True, eq=False)
class Leaves:
    """Parameters, leader's variables, follower's variables, each entry with its place in its group, column-major."""

    groups: tuple[tuple[Any, ...], ...]

    @property
    def starts(self) -> dict[int, tuple[int, int]]:
        """The group of a leaf and where it starts there, by the leaf's id."""
        found = {}
        for group, leaves in enumerate(self.groups):
            at = 0
            for leaf in leaves:
                found[leaf.id] = group, at
                at += leaf.size
        return found

    def sizes(self) -> tuple[int, ...]:
        """Entries of each group."""
        return tuple(sum(leaf.size for leaf in leaves) for leaves in self.groups)

    def name(self, group: int, place: int) -> str:
        """The leaf that holds an entry."""
        for leaf in self.groups[group]:
            if place < leaf.size:
                return str(leaf.name())
            place -= leaf.size
        raise IndexError(place)


@dataclass(frozen=True, eq=False)
class Polynomial:
    """Entry r of an expression, column-major: sum over m of matrix[r, m] * theta[a] * x[b] * y[c], with (a, b, c) =
    monomials[m] and a factor of 1 where one of them is -1."""

    matrix: sp.csr_array
    monomials: np.ndarray

    def mapped(self, weights: sp.csr_array) -> Polynomial:
        """A linear map of the entries."""
        return Polynomial(sp.csr_array(weights @ self.matrix), self.monomials)

    def rows(self, index: np.ndarray) -> Polynomial:
        """Some entries, repeats allowed."""
        return Polynomial(sp.csr_array(self.matrix[index]), self.monomials)


def polynomial(expression: cp.Expression, leaves: Leaves) -> Polynomial:
    """The terms of an expression; raises NotLinearError where it is none of this kind."""
    return _read(expression, leaves, leaves.starts)


def _read(e: cp.Expression, leaves: Leaves, starts: Mapping[int, tuple[int, int]]) -> Polynomial:
    own = [*e.variables(), *e.parameters()]
    fresh = [cp.Variable(leaf.shape) for leaf in own]
    if isinstance(e, multiply | MulExpression) and not isinstance(e, DivExpression) and all(map(_open, e.args)):
        return _product(e, [_read(arg, leaves, starts) for arg in e.args], leaves)
    try:
        plain = e.tree_copy({id(leaf): copy for leaf, copy in zip(own, fresh, strict=True)})
    except (ValueError, TypeError):
        raise NotLinearError(f"{_text(e)} cannot be read as a sum of products") from None
    if plain.is_affine():
        matrix, constant = jacobian(plain, fresh)
        places = [_places(leaf, *starts[leaf.id]) for leaf in own]
        return _folded(sp.hstack([matrix, constant[:, None]]), np.concatenate([*places, np.full((1, 3), -1)]))
    held = [cp.Variable(arg.shape) if _open(arg) else arg for arg in e.args]
    atom = e.copy(held) if isinstance(e, AffAtom) else e
    if atom is e or not atom.is_affine():
        raise NotLinearError(f"{_text(e)} is not linear")
    inside = [k for k, arg in enumerate(e.args) if held[k] is not arg]
    matrix, constant = jacobian(atom, [held[k] for k in inside])
    joined = _stacked([_read(e.args[k], leaves, starts) for k in inside]).mapped(matrix)
    whole = sp.hstack([joined.matrix, constant[:, None]])
    return _folded(whole, np.concatenate([joined.monomials, np.full((1, 3), -1)]))


def _open(e: cp.Expression) -> bool:
    return bool(e.variables() or e.parameters())


def _text(e: cp.Expression) -> str:
    text = str(e)
    return text if len(text) < 120 else text[:120] + "…"


def _places(leaf: Any, group: int, start: int) -> np.ndarray:
    found = np.full((leaf.size, 3), -1)
    found[:, group] = start + np.arange(leaf.size)
    return found


def jacobian(e: cp.Expression, variables: Sequence[cp.Variable]) -> tuple[sp.csr_array, np.ndarray]:
    """An affine expression as matrix @ (variables, column-major) + constant: (entries, variables), (entries,).

    The variables must be nobody's: their values are set to zero.
    """
    for v in variables:
        v.save_value(np.zeros(v.shape))
    slopes = e.grad
    blocks = [
        sp.csr_array(np.atleast_2d(slopes[v]) if not sp.issparse(slopes[v]) else slopes[v]).T
        if v in slopes
        else sp.csr_array((e.size, v.size))
        for v in variables
    ]
    constant = np.asarray(e.value.toarray() if sp.issparse(e.value) else e.value, dtype=float).ravel(order="F")
    matrix = sp.hstack(blocks) if blocks else sp.csr_array((e.size, 0))
    return sp.csr_array(matrix), constant


def _folded(matrix: Any, monomials: np.ndarray) -> Polynomial:
    """Each monomial once, those without a coefficient left out."""
    coo = sp.coo_array(matrix)
    coo.eliminate_zeros()
    used, place = np.unique(monomials[coo.col], axis=0, return_inverse=True)
    entries = (coo.data, (coo.row, place.ravel()))
    return Polynomial(sp.csr_array(entries, shape=(coo.shape[0], len(used))), used.reshape(-1, 3))


def _stacked(parts: Sequence[Polynomial]) -> Polynomial:
    return _folded(sp.block_diag([p.matrix for p in parts]), np.concatenate([p.monomials for p in parts]))


def _product(e: cp.Expression, factors: Sequence[Polynomial], leaves: Leaves) -> Polynomial:
    """Elementwise, with a factor of one entry for all, or of matrices."""
    one, other = e.args
    if isinstance(e, multiply) or one.is_scalar() or other.is_scalar():
        index = [
            np.zeros(e.size, int)
            if a.size == 1
            else (np.broadcast_to(_order(a), e.shape) if isinstance(e, multiply) else _order(a)).ravel(order="F")
            for a in (one, other)
        ]
        return _joined(e, factors[0].rows(index[0]), factors[1].rows(index[1]), leaves)
    if max(one.ndim, other.ndim) > 2:
        raise NotLinearError(f"{_text(e)} is a product of arrays of more than two dimensions")
    left, right = np.atleast_2d(_order(one)), _order(other)
    right = right[:, None] if other.ndim == 1 else right
    (n, m), k = left.shape, right.shape[1]
    at = np.broadcast_to(left[:, None, :], (n, k, m)), np.broadcast_to(right.T[None], (n, k, m))
    to = np.arange(n)[:, None, None] + n * np.arange(k)[None, :, None] + np.zeros((1, 1, m), int)
    found = _joined(e, factors[0].rows(at[0].ravel()), factors[1].rows(at[1].ravel()), leaves)
    total = sp.csr_array((np.ones(n * k * m), (to.ravel(), np.arange(n * k * m))), shape=(n * k, n * k * m))
    return _folded(total @ found.matrix, found.monomials)


def _order(e: cp.Expression) -> np.ndarray:
    """The column-major places of an expression's entries."""
    return np.arange(e.size).reshape(e.shape, order="F")


def _joined(e: cp.Expression, one: Polynomial, other: Polynomial, leaves: Leaves) -> Polynomial:
    """The products of entries, row by row."""
    counts = np.diff(one.matrix.indptr), np.diff(other.matrix.indptr)
    row = np.repeat(np.arange(len(counts[0])), counts[0])
    repeats = counts[1][row]
    first = np.repeat(np.arange(len(row)), repeats)
    inner = np.arange(len(first)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    second = other.matrix.indptr[row[first]] + inner
    a = one.monomials[one.matrix.indices[first]]
    b = other.monomials[other.matrix.indices[second]]
    if (both := np.argwhere((a >= 0) & (b >= 0))).size:
        k, group = both[0].tolist()
        names = [leaves.name(group, int(side[k, group])) for side in (a, b)]
        raise NotLinearError(f"{_text(e)} multiplies '{names[0]}' by '{names[1]}'")
    values = one.matrix.data[first] * other.matrix.data[second]
    entries = (values, (row[first], np.arange(len(first))))
    return _folded(sp.csr_array(entries, shape=(len(counts[0]), len(first))), np.maximum(a, b))
