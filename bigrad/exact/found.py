"""Found: what the search of one nested integer program ended with, and a batch of them as an Outcome."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bigrad.discrete.combinatorial import Combinatorial
from bigrad.solution import Outcome, Status


@dataclass(frozen=True, eq=False)
class Found:
    """What the search of one item ended with: w = (x, y) and a proven bound on the minimised upper objective.

    cuts, solves, rounding: cuts, follower_solves and rounding of Stats.
    """

    status: Status
    w: np.ndarray | None
    bound: float = np.nan
    cuts: int = 0
    solves: int = 0
    seconds: float = 0.0
    rounding: float = 0.0
    cause: str = ""


def gathered(name: str, form: Combinatorial, theta: list[np.ndarray], found: list[Found]) -> Outcome:
    """A batch of answers as an Outcome."""
    size, batch = len(form.base.lower), len(found)
    w = np.array([np.full(size, np.nan) if f.w is None else f.w for f in found])
    value = np.full(batch, np.inf)
    for i, f in enumerate(found):
        if f.w is not None:
            value[i] = form.at([t[i] for t in theta]).leader(w[i][: form.base.leaders], w[i][form.base.leaders :])
    bound = np.array(
        [v if f.status is Status.GLOBAL and np.isnan(f.bound) else f.bound for v, f in zip(value, found, strict=True)]
    )
    none = np.zeros(batch, int)
    return Outcome(
        solver=name,
        smooth=False,
        status=np.array([f.status for f in found], dtype=object),
        z=w,
        w=w,
        free=np.ones_like(w, bool),
        tight=np.zeros((batch, 0), bool),
        value=value,
        bound=bound,
        starts=none,
        iterations=none,
        residual=np.where(np.isfinite(value), 0.0, np.inf),
        violation=np.where(np.isfinite(value), 0.0, np.inf),
        biactive=none,
        degenerate=none,
        strongly_stationary=np.zeros(batch, bool),
        singular=np.zeros(batch, bool),
        seconds=np.array([f.seconds for f in found]),
        cause=np.array([f.cause for f in found]),
        effort=np.array([[f.cuts, f.solves, f.rounding] for f in found], dtype=float),
    )
