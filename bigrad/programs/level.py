"""Level: one ordinary model, whosever language it was written in, as linear rows with integers and what is left over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from bigrad.discrete.nested import Rows


class Variables(Protocol):
    """The variables of a model, by the user's own objects."""

    @property
    def model(self) -> Any:
        """The user's model."""

    def find(self, handle: Any) -> int | None:
        """The place of a variable in the model; None if it is not a variable of this model."""

    def handle(self, place: int) -> Any:
        """The user's own object."""


@dataclass(frozen=True, eq=False)
class Level:
    """min sense * (linear'v + v'Qv + constant) subject to rows on v, bounds and integers.

    variables: who they are. names: (n,). lower, upper, integer: (n,). quadratic: {(i, j): coefficient}, i <= j. sense:
    +1 to minimise, -1 to maximise; objective: whether the model has one. products: {k: (i, j)} where variable k is
    bound to be the product of booleans i and j, product_rows: {k: the rows that bind it}. rest: names of constraints
    that no rows can say; the model itself must then be asked.
    """

    variables: Variables
    names: tuple[str, ...]
    lower: np.ndarray
    upper: np.ndarray
    integer: np.ndarray
    rows: Rows
    linear: np.ndarray
    quadratic: Mapping[tuple[int, int], float]
    constant: float
    sense: float
    objective: bool
    products: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    product_rows: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    rest: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many variables."""
        return len(self.names)
