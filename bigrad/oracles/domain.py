"""What every oracle asks of its costs, and how the rows of a batch find their item where feasible sets differ.

An oracle may hold one feasible set for all, or one an item (a capacity each, a target each). The rows of one item follow
each other, so that a batch of samples, (batch, samples, n) flattened, needs nothing more; `oracle.at(items)` is the
oracle of some of its items, for batches that are drawn from a data set.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bigrad.solution import DeclarationError, InputError


def admit(
    name: str, costs: Any, n: int | None, least: float = -np.inf, clamp: float | None = None, items: int | None = None
) -> np.ndarray:
    """The costs as a float64 array (rows, n), not to be written to; InputError where they are none.

    least: smallest cost in the oracle's domain; one below it is an error, unless `clamp` is given, to which costs below
    it are raised. items: how many feasible sets there are, of which `rows` must be a multiple.
    """
    given = np.asarray(costs)
    if given.dtype.kind not in "buif":
        raise InputError(f"{name}: costs must be real numbers, got {given.dtype}.")
    if given.ndim != 2 or (n is not None and given.shape[1] != n):
        raise InputError(f"{name}: needs costs of shape (batch, {'n' if n is None else n}), got {given.shape}.")
    if items is not None and len(given) % items:
        raise InputError(
            f"{name}: {len(given)} rows of costs for {items} feasible sets; give a multiple of {items} rows, or pick with at()."
        )
    found = given.astype(np.float64, copy=False)
    if not found.size:
        return found
    low, high = float(found.min()), float(found.max())  # NaN if any is
    if not max(-low, high) * found.shape[1] < np.inf:
        row, at = np.argwhere(~(abs(found) < np.inf) | (abs(found) == max(-low, high)))[0]
        raise InputError(
            f"{name}: cost {at} of item {row} of the batch is {found[row, at]:g}; costs must be finite, and so must their sums."
        )
    if clamp is not None:
        return np.maximum(found, clamp)
    if low < least:
        row, at = np.argwhere(found < least)[0]
        raise InputError(
            f"{name}: cost {at} of item {row} of the batch is {found[row, at]:g}, below {least:g}, the least that this oracle takes; "
            f"give clamp={least:g} to raise such costs to {least:g}."
        )
    return found


def numbers(found: Any) -> np.ndarray | None:
    """What a user's function returned, an array, tensor or list of real numbers, as a float64 array of our own; None for anything else."""
    try:
        given = np.asarray(found.detach().cpu() if hasattr(found, "detach") else found)
    except ValueError:  # a list of lists of different lengths
        return None
    return given.astype(np.float64) if given.size and given.dtype.kind in "buif" else None


def check_clamp(name: str, clamp: float | None, least: float = -np.inf) -> None:
    """DeclarationError unless `clamp` is None or a finite number within the oracle's domain."""
    if clamp is not None and not least <= clamp < np.inf:
        raise DeclarationError(f"{name}: clamp={clamp} must be a finite number of at least {least:g}.")


def whole(name: str, what: str, value: Any) -> np.ndarray:
    """`value` as an int64 array; DeclarationError for anything but whole numbers."""
    given = np.asarray(value)
    if given.dtype.kind == "f" and np.isfinite(given).all() and (given == np.rint(given)).all():
        given = given.astype(np.int64)
    if given.dtype.kind not in "iu":
        raise DeclarationError(f"{name}: {what} must be whole numbers, got {value!r:.80}.")
    return given.astype(np.int64)


def count_items(name: str, **fields: tuple[np.ndarray, int]) -> int | None:
    """How many feasible sets there are; None for one that all share.

    fields: name to array and the dimensions that it has for one item; one more is the items'.
    """
    sizes = {}
    for what, (array, dims) in fields.items():
        if array.ndim not in (dims, dims + 1):
            raise DeclarationError(
                f"{name}: {what} has shape {array.shape}; give {dims} dimensions, or one more for items."
            )
        if array.ndim > dims:
            sizes[what] = len(array)
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise DeclarationError(f"{name}: the numbers of items differ or are zero: {sizes}.")
    return next(iter(sizes.values()), None)


def by_row(array: np.ndarray, dims: int, rows: int) -> np.ndarray:
    """One entry a row of the costs: (rows, *shape for one item)."""
    if not dims:
        return array.ravel().repeat(rows // array.size)
    if array.ndim == dims:
        return np.broadcast_to(array, (rows, *array.shape))
    return np.repeat(array, rows // len(array), 0)


def picked(array: np.ndarray, dims: int, items: Any) -> np.ndarray:
    """The array of some items; what all share stays as it is."""
    return array if array.ndim == dims else array[np.atleast_1d(items)]


def ends(name: str, pairs: Any, nodes: int, what: str = "arcs") -> tuple[np.ndarray, np.ndarray]:
    """Where arcs or edges start and end, (n,) each; DeclarationError unless they are pairs of nodes."""
    given = whole(name, what, pairs)
    if given.ndim != 2 or given.shape[1] != 2 or not len(given):
        raise DeclarationError(f"{name}: {what} must have shape (n, 2), from and to, got {given.shape}.")
    if given.min() < 0 or given.max() >= nodes:
        raise DeclarationError(f"{name}: {what} name nodes {given.min()} to {given.max()}, of {nodes}, counted from 0.")
    return np.ascontiguousarray(given[:, 0]), np.ascontiguousarray(given[:, 1])
