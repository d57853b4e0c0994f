"""Family: several programs in one batch, where the feasible sets differ from item to item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bigrad.gradients.base import eager
from bigrad.layer import Layer
from bigrad.solution import InputError, Solution, SolveError

T = TypeVar("T")


class Family(nn.Module):
    """Layers of the same inputs and outputs, as one whose items say which of them is theirs.

        family = Family([Layer(p, parameters=[c], variables=[y]) for p in programs])
        (y_star,) = family(c_values, items=[0, 2, 2, 1])

    Choose it where constraints, and not only numbers that are Parameters or costs, differ from item to item: graphs of
    equally many edges, say. layers: one for each program; solver and gradient are each layer's own. Each layer solves its
    items as one batch. Raises InputError for layers whose inputs or outputs differ in shape; names may differ.
    """

    def __init__(self, layers: Sequence[Layer]):
        super().__init__()
        if not layers:
            raise InputError("Family([]): give at least one layer.")
        first = _shapes(layers[0])
        for k, layer in enumerate(layers):
            for what, one, other in zip(("inputs", "outputs"), first, _shapes(layer), strict=True):
                if one != other:
                    raise InputError(
                        f"Family: layer 0 has {what} of shapes {one}, layer {k} {other}; a batch needs the same of every layer."
                    )
        self.layers = nn.ModuleList(layers)
        self._ranks = [len(shape) for shape in first[0]]

    @eager
    def forward(self, *values: Tensor, items: Sequence[int]) -> tuple[Tensor, ...]:
        """One tensor per variable, (items, *shape). values: as for a Layer, those with a batch dimension one row an item.
        items: (batch,), the index of each item's layer. Raises SolveError with the items' own indices."""
        found = self._each(values, items, lambda layer, given: layer(*given))
        places = torch.cat([torch.as_tensor(at) for at, _ in found]).argsort()
        return tuple(
            torch.cat(parts)[places.to(parts[0].device)] for parts in zip(*(out for _, out in found), strict=True)
        )

    def solve(self, *values: Tensor, items: Sequence[int], verify: bool = False) -> list[Solution]:
        """The Solutions, one per item; see Layer.solve."""
        found = self._each(values, items, lambda layer, given: layer.solve(*given, verify=verify))
        by_item = {i: solution for at, solutions in found for i, solution in zip(at, solutions, strict=True)}
        return [by_item[i] for i in sorted(by_item)]

    def _each(
        self, values: Sequence[Tensor], items: Sequence[int], work: Callable[[Layer, list[Tensor]], T]
    ) -> list[tuple[list[int], T]]:
        """What `work` makes of each layer and its items' values, and which items these are."""
        if len(values) != len(self._ranks):
            raise InputError(f"This family takes {len(self._ranks)} tensors, got {len(values)}.")
        owners = torch.as_tensor(items)
        if owners.ndim != 1 or not len(owners) or owners.is_floating_point() or owners.dtype is torch.bool:
            raise InputError("Family(…, items=…): give the index of a layer for each item, like items=[0, 2, 1].")
        if bad := [i for i in owners.tolist() if not 0 <= i < len(self.layers)]:
            raise InputError(f"Family(…, items=…): there is no layer {bad[0]}; there are {len(self.layers)}.")
        batched = [v.ndim > rank for v, rank in zip(values, self._ranks, strict=True)]
        for k, (value, many) in enumerate(zip(values, batched, strict=True)):
            if many and len(value) != len(owners):
                raise InputError(f"Family: argument {k} has {len(value)} items, and items= names {len(owners)}.")
        if values and not any(batched):
            values, batched = [values[0].expand(len(owners), *values[0].shape), *values[1:]], [True, *batched[1:]]
        found, failures = [], dict[int, Any]()
        message = ""
        for k in owners.unique().tolist():
            at = torch.nonzero(owners == k)[:, 0]
            given = [v[at.to(v.device)] if many else v for v, many in zip(values, batched, strict=True)]
            try:
                found.append((at.tolist(), work(self._layer(k), given)))
            except SolveError as error:
                failures |= {int(at[i]): status for i, status in error.failures.items()}
                message += f"\nlayer {k}: {error}"
        if failures:
            raise SolveError(
                f"Items {sorted(failures)} could not be solved; counted within each layer:{message}", failures
            )
        return found

    def _layer(self, k: int) -> Layer:
        layer = self.layers[k]
        assert isinstance(layer, Layer)
        return layer


def _shapes(layer: Layer) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Of what a layer takes, and of what it returns."""
    if not isinstance(layer, Layer):
        raise InputError(f"Family: got a {type(layer).__name__}; give bigrad.Layers.")
    return layer.shapes
