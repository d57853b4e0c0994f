"""The follower as an oracle: its variables are the elements of its answer, named by their index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from bigrad.discrete.nested import Rows
from bigrad.oracle import Oracle
from bigrad.programs.level import Level
from bigrad.solution import DeclarationError


@dataclass(frozen=True, eq=False)
class Elements:
    """Indices 0, …, size - 1 into an oracle's answer."""

    model: Oracle
    size: int

    def find(self, handle: Any) -> int | None:
        """See Variables."""
        whole = isinstance(handle, int | np.integer) and not isinstance(handle, bool)
        return int(handle) if whole and 0 <= handle < self.size else None

    def handle(self, place: int) -> int:
        """See Variables."""
        return place


def read(oracle: Oracle, costs: Mapping[str, Sequence[Any]]) -> Level:
    """The oracle as a Level without rows. How many elements it has is read off the costs, which name each of them."""
    named = [e for entries in costs.values() for e in _indices(entries)]
    size = max(named, default=-1) + 1
    missing = sorted(set(range(size)) - set(named))
    if missing or not size:
        raise DeclarationError(
            "bilevel(leader, oracle, costs=…): the follower's costs name the elements of its answer by index, all from 0 on, like "
            f"costs={{'w': range(n)}}; {'none is named' if not size else f'missing: {missing[:5]}'}."
        )
    return Level(
        Elements(oracle, size),
        tuple(f"element {k}" for k in range(size)),
        np.full(size, -np.inf),
        np.full(size, np.inf),
        np.ones(size, bool),
        Rows(sp.csr_array((0, size)), np.zeros(0), np.zeros(0)),
        np.zeros(size),
        {},
        0.0,
        float(np.sign(np.asarray(oracle.sense)).flat[0]),
        True,
    )


def _indices(entries: Any) -> list[int]:
    flat = entries.flatten().tolist() if isinstance(entries, np.ndarray) else list(entries)
    alone = [e for e in flat if not isinstance(e, tuple)]
    return [int(e) for e in alone if isinstance(e, int | np.integer)]
