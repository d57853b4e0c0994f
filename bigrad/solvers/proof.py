"""What a global search has proven of the best point known."""

from __future__ import annotations

from bigrad.solution import Status
from bigrad.solvers import sos
from bigrad.solvers.base import EXACT, PROVEN
from bigrad.solvers.verdict import Verdict


def judged(best: Verdict, found: sos.Found, bounds: tuple[float, ...], gap: float, unit: float, late: bool) -> Verdict:
    """The verdict on the best point, after a search that found `found`.

    bounds: on the objective, each proven. gap: relative to unit + |value| at which the point is the optimum. late: no
    time is left.
    """
    best, late = best._replace(iterations=found.nodes), late and found.status == sos.LATE
    if best.value is None:
        failed = Status.TIME_LIMIT if late else Status.FAILED if found.status == sos.BROKEN else Status.NOT_FOUND
        return best._replace(status=failed, bound=max(bounds))
    value = best.value
    scale = unit + abs(value)
    believed = [b for b in bounds if b <= value + PROVEN * scale]  # above a feasible point it is none
    bound = min(max(believed, default=-float("inf")), value)
    best = best._replace(bound=bound)
    if _error(best) > EXACT:
        return best._replace(status=Status.INEXACT)
    if value - bound <= gap * scale:
        return best._replace(status=Status.GLOBAL)
    return best._replace(status=Status.OPEN) if late else best


def better(a: Verdict, b: Verdict) -> Verdict:
    """The better of two verdicts on one item: that with a point, with an exact one, with the lower value."""
    if a.value is None or b.value is None:
        return b if a.value is None else a
    if (_error(a) <= EXACT) != (_error(b) <= EXACT):
        return a if _error(a) <= EXACT else b
    return b if b.value <= a.value else a


def _error(v: Verdict) -> float:
    return max(v.residual or 0.0, v.violation or 0.0)
