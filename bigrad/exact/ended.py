"""Ended: where a search over two models ended, whichever road it took."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bigrad.solution import Status


@dataclass(frozen=True, eq=False)
class Ended:
    """Where the search of one nested program ended; `Cuts` makes a `found.Found` of it.

    x, y: None where the status is not ok. value: the leader's objective, bound: proven to be at most the optimum,
    -inf where nothing is proven. cuts, splits: rows added and nodes split for rival answers; answers: solves of the
    follower; nodes of the tree. cause: in words, where the status is FAILED. road: which of the modules solved it.
    """

    status: Status
    x: np.ndarray | None = None
    y: np.ndarray | None = None
    value: float = np.nan
    bound: float = -np.inf
    cuts: int = 0
    splits: int = 0
    answers: int = 0
    nodes: int = 0
    seconds: float = 0.0
    cause: str = ""
    road: str = "tree"
