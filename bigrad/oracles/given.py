"""Given: the user's own plain function as an oracle, with every answer checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bigrad.oracle import Oracle
from bigrad.oracles.domain import admit, check_clamp, numbers
from bigrad.solution import DeclarationError, InputError


@dataclass(frozen=True, eq=False)
class Given(Oracle):
    """A function from costs to decisions: `Given(lambda c: dijkstra(graph, c))`.

    function: takes the costs of one item, a float64 array (n,), and returns its decisions, (m,); with batched=True takes
    (batch, n) and returns (batch, m). The arrays are copies that it may change. items: None, or something for each item
    (its graph, its capacity, another oracle) that the function gets as a second argument: one of them, or with
    batched=True the list of them, row by row; see `bigrad.oracles.domain` for how rows find their item. threads: how
    many items are solved at the same time; worth it for functions that release the interpreter lock, and only for those
    that may run several times at once. Results are in order whatever finishes first.

    sense: +1 if the function minimises, -1 if it maximises, (n,) or one for all. least: smallest cost that the function
    takes; lower ones are refused with InputError, or raised to `clamp` if that is given.

    InputError for answers that are not finite real numbers of one length. An error inside the function is passed on
    with a note that says which item it was.
    """

    function: Callable[..., Any]
    batched: bool = False
    items: Sequence[Any] | None = None
    threads: int = 1
    sense: np.ndarray | float = 1.0
    least: float = -np.inf
    clamp: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise DeclarationError(f"Given: {self.function!r:.80} cannot be called.")
        if self.threads < 1 or (self.batched and self.threads > 1):
            raise DeclarationError(
                f"Given: threads={self.threads}; give at least 1, and just 1 for a function of whole batches."
            )
        if self.items is not None and not len(self.items):
            raise DeclarationError("Given: items is empty; give one for each item, or None.")
        if not np.isin(np.asarray(self.sense), [-1.0, 1.0]).all():
            raise DeclarationError(
                f"Given: sense={self.sense!r:.80} must be +1 where costs are minimised and -1 where maximised."
            )
        check_clamp("Given", self.clamp, self.least)

    @property
    def sets(self) -> int | None:
        """How many items it has; None without."""
        return None if self.items is None else len(self.items)

    def at(self, items: Any) -> Given:
        """The oracle of some of its items, in this order."""
        return self if self.items is None else replace(self, items=[self.items[int(i)] for i in np.atleast_1d(items)])

    def solve(self, costs: np.ndarray) -> np.ndarray:
        """What the function decides."""
        costs = admit("Given", costs, None, self.least, self.clamp, self.sets)
        rows = len(costs)
        more = [] if self.items is None else [self.items[r * len(self.items) // rows] for r in range(rows)]
        if self.batched:
            found = self.function(costs.copy(), more) if more else self.function(costs.copy())
            answer = _checked(found, 2, "the batch")
            if len(answer) != rows:
                raise InputError(f"Given: the function returned {len(answer)} rows of decisions for {rows} of costs.")
        else:
            answer = self._each(costs, more)
        if not np.isfinite(answer).all():
            row, at = np.argwhere(~np.isfinite(answer))[0]
            raise InputError(
                f"Given: the function returned {answer[row, at]} as decision {at} of item {row} of the batch."
            )
        return answer

    def _each(self, costs: np.ndarray, more: list[Any]) -> np.ndarray:
        if not len(costs):
            raise InputError("Given: the batch is empty, so nothing tells how many decisions there are.")

        def one(row: int) -> np.ndarray:
            try:
                found = self.function(costs[row].copy(), *more[row : row + 1])
            except Exception as error:
                error.add_note(f"raised by the function of Given at item {row} of the batch")
                raise
            return _checked(found, 1, f"item {row} of the batch")

        if self.threads == 1:
            answers = [one(row) for row in range(len(costs))]
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                answers = list(pool.map(one, range(len(costs))))
        for row, answer in enumerate(answers):
            if answer.shape != answers[0].shape:
                raise InputError(
                    f"Given: the function returned {len(answer)} decisions for item {row} of the batch, "
                    f"and {len(answers[0])} for item 0; they must be as many for all."
                )
        return np.stack(answers)


def _checked(found: Any, dims: int, where: str) -> np.ndarray:
    answer = numbers(found)
    if answer is None or answer.ndim != dims:
        shape = "(m,)" if dims == 1 else "(batch, m)"
        got = repr(found)[:80] if answer is None else f"{type(found).__name__} of shape {answer.shape}"
        raise InputError(
            f"Given: for {where} the function returned {got}; it must return real numbers of shape {shape}."
        )
    return answer
