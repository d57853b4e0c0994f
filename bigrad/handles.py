"""Handles: the user's own objects, by which programs know inputs and variables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np


def same(one: Any, other: Any) -> bool:
    """Whether two handles are the same: names by their letters, objects by identity."""
    return one is other or (isinstance(one, str) and isinstance(other, str) and one == other)


def listed(handles: Any) -> tuple[tuple[int, ...], list[Any]]:
    """The shape of a list or array of objects, and they themselves in the order of `flatten`."""
    if isinstance(handles, np.ndarray):
        return handles.shape, list(handles.flatten(order="F"))
    own = list(handles) if hasattr(handles, "__iter__") else [handles]
    return (len(own),), own


class Decisions(Mapping[Any, np.ndarray]):
    """Values by variables of models that are asked who they are: equal variables of two models are not the same one."""

    def __init__(self, find: Callable[[Any], int | None], unknowns: Sequence[Any], w: np.ndarray):
        self.find, self.unknowns, self.w = find, unknowns, w

    def __getitem__(self, handle: Any) -> np.ndarray:
        place = self.find(handle)
        if place is None:
            raise KeyError(handle)
        return self.unknowns[place].read(self.w)

    def __contains__(self, handle: Any) -> bool:
        return self.find(handle) is not None

    def __iter__(self) -> Iterator[Any]:
        return iter(u.handle for u in self.unknowns)

    def __len__(self) -> int:
        return len(self.unknowns)
