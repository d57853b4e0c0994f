"""Affine maps of a program's inputs, and the batched algebra that numpy arrays and torch tensors share.

Every block of a program's data is affine in its inputs (CVXPY's disciplined parametrized programming). An input that
the caller gives once for the whole batch stays unbatched, and so does every block that depends on it alone: constant
matrices are computed once, however large the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

Array = Any
"""A numpy array or a torch tensor: the functions here use only what both offer."""


@dataclass(frozen=True, eq=False)
class Affine:
    """The map `theta -> base + sum_k matrix_k @ theta_k`, reshaped to `shape` (row-major).

    `terms` maps the position k of an input to its sparse matrix, of shape (prod(shape), size of input k).
    """

    shape: tuple[int, ...]
    base: np.ndarray
    terms: Mapping[int, sp.csr_array]

    def __call__(self, theta: Sequence[Array]) -> Array:
        """Value at the flattened inputs `theta[k]` of shape (size_k,) or (batch, size_k), in their library."""
        value: Array = self.base
        if theta and not isinstance(theta[0], np.ndarray):
            value = namespace(theta[0]).as_tensor(value, dtype=theta[0].dtype, device=theta[0].device)
        for k, matrix in self.terms.items():
            pick = self._picks[k] if isinstance(theta[k], np.ndarray) else None
            part = product(matrix, theta[k]) if pick is None else _picked(pick, theta[k])
            value = part if value is self.base and not value.any() else value + part
        return value.reshape((*value.shape[:-1], *self.shape))

    def pull(self, k: int, cotangent: Array) -> Array:
        """The transposed linear map to input k: (entries,) or (batch, entries) to (size_k,) or (batch, size_k)."""
        if not isinstance(cotangent, np.ndarray):
            return product(self.terms[k].T, cotangent)
        back = self._backwards.get(k)
        return (self._turned[k] @ cotangent.T).T if back is None else _picked(back, cotangent)

    @cached_property
    def _turned(self) -> dict[int, sp.csr_array]:
        return {k: sp.csr_array(matrix.T) for k, matrix in self.terms.items()}

    @cached_property
    def _picks(self) -> dict[int, Pick | None]:
        return {k: _pick(matrix) for k, matrix in self.terms.items()}

    @cached_property
    def _backwards(self) -> dict[int, Pick | None]:
        return {k: _pick(matrix) for k, matrix in self._turned.items()}

    def rows(self, index: np.ndarray, shape: tuple[int, ...]) -> Affine:
        """The map to the given flat entries only, in that order, reshaped to `shape`; -1 stands for a zero."""
        hole = index < 0
        at = np.where(hole, 0, index)
        keep = sp.diags_array((~hole).astype(float))
        base = np.where(hole, 0.0, self.base[at]) if self.base.size else np.zeros(len(index))
        picked = {k: sp.csr_array(keep @ m[at]) for k, m in self.terms.items()} if self.base.size else {}
        return Affine(shape, base, {k: m for k, m in picked.items() if m.nnz})

    def scaled(self, factors: np.ndarray) -> Affine:
        """The map with each flat entry multiplied by a constant."""
        scale = sp.diags_array(factors)
        return Affine(self.shape, self.base * factors, {k: sp.csr_array(scale @ m) for k, m in self.terms.items()})

    def mixed(self, weights: sp.csr_array, shape: tuple[int, ...]) -> Affine:
        """The map followed by a constant linear one on its flat entries."""
        return Affine(shape, weights @ self.base, {k: sp.csr_array(weights @ m) for k, m in self.terms.items()})

    def plus(self, base: np.ndarray, terms: Mapping[int, sp.csr_array] | None = None) -> Affine:
        """The map with a constant added, and terms for inputs that it did not depend on."""
        return Affine(self.shape, self.base + base.ravel(), {**self.terms, **(terms or {})})

    def added(self, other: Affine) -> Affine:
        """The sum of two maps to the same shape."""
        terms = {k: self.terms[k] + m if k in self.terms else m for k, m in other.terms.items()}
        return Affine(
            self.shape, self.base + other.base, {**self.terms, **{k: sp.csr_array(m) for k, m in terms.items()}}
        )

    def without(self, inputs: Sequence[int]) -> Affine:
        """The map with the named inputs held at zero."""
        return Affine(self.shape, self.base, {k: m for k, m in self.terms.items() if k not in set(inputs)})

    def slope(self, inputs: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
        """The constant Jacobian with respect to the named inputs side by side, shape (prod(shape), sum of sizes)."""
        blocks = [
            self.terms[k].toarray() if k in self.terms else np.zeros((self.base.size, n))
            for k, n in zip(inputs, sizes, strict=True)
        ]
        return np.hstack(blocks) if blocks else np.zeros((self.base.size, 0))


def namespace(array: Array) -> Any:
    """The library of an array: numpy, or torch, which is imported only if the caller already uses it."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def product(matrix: sp.csr_array, theta: Array) -> Array:
    """Sparse matrix times (batched) vector; in torch by gather and index_add, which autograd follows to any order."""
    if isinstance(theta, np.ndarray):
        return (matrix @ theta.T).T if (pick := _pick(matrix)) is None else _picked(pick, theta)
    torch = namespace(theta)
    coo = matrix.tocoo()
    rows, cols = (torch.as_tensor(i, dtype=torch.int64, device=theta.device) for i in coo.coords)
    entries = theta[..., cols] * torch.as_tensor(coo.data, dtype=theta.dtype, device=theta.device)
    return entries.new_zeros(*theta.shape[:-1], matrix.shape[0]).index_add(-1, rows, entries)


Pick = tuple[np.ndarray | slice, np.ndarray]
"""A matrix with one entry a row: their columns, and the entries."""


def _pick(matrix: sp.csr_array) -> Pick | None:
    rows = matrix.shape[0]
    if matrix.nnz != rows or (matrix.indptr != np.arange(rows + 1)).any():
        return None
    return run(matrix.indices), matrix.data


def _picked(pick: Pick, theta: np.ndarray) -> np.ndarray:
    return theta[..., pick[0]] * pick[1]


def run(places: np.ndarray) -> np.ndarray | slice:
    """Consecutive places as a slice, which numpy reads and writes several times faster; others as they are."""
    first, size = int(places[0]) if len(places) else 0, len(places)
    return slice(first, first + size) if (places == np.arange(first, first + size)).all() else places


def constant(array: np.ndarray) -> Affine:
    """The map that ignores its inputs."""
    return Affine(array.shape, np.asarray(array, dtype=float).ravel(), {})


def on_host(tensor: Array) -> np.ndarray:
    """A torch tensor as a numpy array. Raises NotImplementedError where it has no numbers, as within torch.func."""
    try:
        return np.asarray(tensor.detach().cpu().numpy())
    except RuntimeError as error:
        raise NotImplementedError(
            "A solver needs numbers, which a tensor within torch.func (grad, jacrev, vmap, …), or on the device meta, does not have. "
            "Give a batch in place of vmap, and take torch.autograd.grad or torch.autograd.functional.jacobian."
        ) from error


def flatten(value: Array, ndim: int) -> Array:
    """Flatten the last `ndim` dimensions in CVXPY's column-major order; leading dimensions are the batch."""
    lead = value.ndim - ndim
    axes = (*range(lead), *range(value.ndim - 1, lead - 1, -1))
    turned = value.transpose(axes) if isinstance(value, np.ndarray) else value.permute(axes)
    return turned.reshape((*value.shape[:lead], -1))


def unflatten(vector: Array, shape: tuple[int, ...]) -> Array:
    """Undo `flatten`: give the last dimension the column-major `shape`."""
    turned = vector.reshape((*vector.shape[:-1], *shape[::-1]))
    lead = vector.ndim - 1
    axes = (*range(lead), *range(turned.ndim - 1, lead - 1, -1))
    return turned.transpose(axes) if isinstance(turned, np.ndarray) else turned.permute(axes)


def mv(matrix: Array, vector: Array) -> Array:
    """Matrix times vector, batched: (..., r, c) and (..., c) give (..., r); a matrix without a batch is one product."""
    return vector @ matrix.mT if matrix.ndim == 2 else (matrix @ vector[..., None])[..., 0]


def dot(a: Array, b: Array) -> Array:
    """Inner product over the last dimension."""
    return (a * b).sum(-1)
