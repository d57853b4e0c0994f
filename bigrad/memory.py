"""Memory: where the items of a data set last ended, so that the next call for them starts there.

It belongs to the training loop, not to the layer, which keeps nothing between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, overload

from bigrad.solution import InputError, Outcome, Point, Solution


class Memory:
    """The last solutions of the items of a data set, by any key, such as their index.

        memory = bg.Memory()
        for indices, c in loader:
            x, y = layer(c, warm_start=memory.at(indices))

    An item that is met for the first time is solved from scratch, one whose solve fails keeps its earlier solution. Use
    one Memory for each data set and program.
    """

    def __init__(self) -> None:
        self._points: dict[Hashable, Point] = {}

    def __len__(self) -> int:
        """How many items it knows."""
        return len(self._points)

    def at(self, keys: Iterable[Hashable]) -> Recall:
        """The items of one call, in its order; a tensor or array of indices will do. Give it as `warm_start`."""
        known = keys.tolist() if hasattr(keys, "tolist") else keys
        if not isinstance(known, Iterable):
            raise InputError(f"Memory.at({known!r}): give a list of keys, one for each item of the call.")
        return Recall(self, list(known))

    def clear(self) -> None:
        """Forget everything, as after a change of the network that moves all inputs far away."""
        self._points.clear()


class Recall(Sequence[Point | None]):
    """Some items of a Memory, for one call of a layer: their last solutions go in, the new ones come back.

    solutions: afterwards, the new Solutions, made when first asked for.
    """

    def __init__(self, memory: Memory, keys: Sequence[Any]):
        self.memory, self.keys = memory, keys
        self._build: Callable[[], list[Solution]] | None = None

    def __len__(self) -> int:
        """The number of items."""
        return len(self.keys)

    def __iter__(self) -> Iterator[Point | None]:
        """Where each item last ended, None for those not met yet."""
        return map(self.memory._points.get, self.keys)

    @overload
    def __getitem__(self, i: int) -> Point | None: ...
    @overload
    def __getitem__(self, i: slice) -> list[Point | None]: ...
    def __getitem__(self, i: int | slice) -> Any:
        """Where item i last ended."""
        return list(self)[i]

    def keep(self, outcome: Outcome, build: Callable[[], list[Solution]]) -> None:
        """Take over a call's outcome; what a layer does. build: makes its Solutions."""
        self._build = build
        for i, key in enumerate(self.keys):
            if (point := outcome.point(i)) is not None:
                self.memory._points[key] = point

    @property
    def solutions(self) -> list[Solution]:
        """The Solutions of the call that had this as its warm start, one per item."""
        if self._build is None:
            raise RuntimeError("These items have not been solved yet: call the layer with warm_start=this first.")
        return self._build()
