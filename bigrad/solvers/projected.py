"""ProjectedGradient: accelerated projected gradient steps that find their own length, for a y that is kept in a set.

Backtracking and momentum: Beck and Teboulle, SIAM J. Imaging Sci. 2009, section 4. Restart: O'Donoghue and Candes, Found.
Comput. Math. 2015, section 3.2. With p = P(z - s grad g(z)), P the projection,

    e = (z - p) / s + grad g(p) - grad g(z)

is a gradient of g plus a normal of the set, both at p. So with mu-strong convexity |p - y*| <= |e| / mu, whatever L is;
where y is free, e = grad g(p).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import floor, log2, sqrt
from typing import TYPE_CHECKING, ClassVar

from bigrad.inner import Inner
from bigrad.solvers.methods import AbstractMethod, State

if TYPE_CHECKING:
    from torch import Tensor

Slope = Callable[["Tensor"], "tuple[Tensor, Tensor]"]
"""y to (g, its gradient)."""
Found = tuple["Tensor", "Tensor", "Tensor", float]
"""p, g there, its gradient there, and the length of the step."""
TRIES = 60
"""Lengths tried for one step, each twice or half the one before."""
AFRESH = (1 + sqrt(5)) / 2
"""t after a step without momentum."""


@dataclass(frozen=True)
class ProjectedGradient:
    """Accelerated projected gradient steps with backtracking and restart: the first choice where y is kept in a set and
    nothing is known of the curvature. Two gradients a step, one more for each length that is refused.

    Lengths are powers of two, and when momentum starts afresh is a yes or no, so near almost every x both stay as they are:
    `Unrolled` through the steps that were taken is their exact derivative.
    """

    def minimise(
        self, of: Slope, y: Tensor, inner: Inner, steps: int, goal: Callable[[float], float], stop: bool = True
    ) -> tuple[Tensor, list[float], float, float, Schedule]:
        """(y, g at the start and after each step, |e|, what goal makes of |z - p| / s of the first step, the steps); stop:
        where |e| is at most that."""
        value, slope = of(y)
        size, losses = float(slope.norm()), [float(value)]
        taken: list[tuple[float, float]] = []
        if not size < float("inf") or not losses[0] < float("inf"):
            return y, losses, size, 0.0, Schedule(())
        old, t, residual, least = y, 1.0, size, goal(size)
        length = 2.0 ** floor(log2(min(1.0, 1 / size))) if size else 1.0
        for k in range(steps):
            after = (1 + sqrt(1 + 4 * t**2)) / 2
            found, momentum = None, (t - 1) / after
            if momentum:
                point = y + momentum * (y - old)
                there, ahead = of(point)
                found = _search(of, inner, point, there, ahead, length)
                if found is None or _uphill(point, y, value, found):
                    found, after, length = None, AFRESH, 2 * length
            if found is None:  # a step without momentum, which cannot go up
                point, ahead, momentum = y, slope, 0.0
                found = (_search if k else _first)(of, inner, point, value, slope, length)
            if found is None:
                break
            old, (y, value, slope, length), t = y, found, after
            step = (point - y) / length
            residual, least = float((step + slope - ahead).norm()), least if k else goal(float(step.norm()))
            losses.append(float(value))
            taken.append((length, momentum))
            if stop and residual <= least:
                break
        return y, losses, residual, least, Schedule(tuple(taken))


@dataclass(frozen=True, eq=False)
class Schedule(AbstractMethod):
    """Steps that were taken, to be taken again: the length and the momentum of each."""

    taken: tuple[tuple[float, float], ...]
    reach: ClassVar[float] = 1.0

    @property
    def length(self) -> float:
        """That of the last step."""
        return self.taken[-1][0]

    def at(self, state: State) -> Tensor:
        """y, carried on in the direction of the last step."""
        y, old, k = state
        momentum = self.taken[int(k)][1]
        return y + momentum * (y - old) if momentum else y

    def step(self, state: State, point: Tensor, slope: Tensor, inner: Inner) -> State:
        """See AbstractMethod.step."""
        length = self.taken[int(state[2])][0]
        return inner.project(point.sub(slope, alpha=length)), state[0], state[2] + 1


def _step(of: Slope, inner: Inner, point: Tensor, value: Tensor, slope: Tensor, length: float) -> Found | None:
    """The projected step of this length; None if g curves more along it than 1 / length, or is not finite there."""
    import torch

    p = inner.project(point.sub(slope, alpha=length))
    d, (there, after) = p - point, of(p)
    allowed = float(d @ d) / length
    bend = 2 * (float(there) - float(value) - float(slope @ d))
    if allowed <= torch.finfo(p.dtype).eps ** 0.5 * (1 + abs(float(value))):  # lost in rounding: slopes say the same
        bend = float((after - slope) @ d)
    fine = bend <= allowed * (1 + 1e-6) and float(after.norm()) < float("inf")  # neither for NaN
    return (p, there, after, length) if fine else None


def _search(of: Slope, inner: Inner, point: Tensor, value: Tensor, slope: Tensor, length: float) -> Found | None:
    """The projected step of this length, or the longest of half, a quarter, …; None where there is none."""
    for k in range(TRIES):
        found = _step(of, inner, point, value, slope, length / 2**k)
        if found is not None:
            return None if k and bool((found[0] == point).all()) else found  # too short to move says nothing
    return None


def _first(of: Slope, inner: Inner, point: Tensor, value: Tensor, slope: Tensor, length: float) -> Found | None:
    """The same where the length is a guess: twice, four times as long, … if that moves on."""
    found = _search(of, inner, point, value, slope, length)
    for _ in range(TRIES):
        longer = found and _step(of, inner, point, value, slope, 2 * found[3])
        if longer is None or found is None or bool((longer[0] == found[0]).all()):
            break
        found = longer
    return found


def _uphill(point: Tensor, y: Tensor, value: Tensor, found: Found) -> bool:
    """Whether the last step went up, or its momentum points up."""
    import torch

    p, there, _, _ = found
    level = torch.finfo(y.dtype).eps ** 0.5 * (1 + abs(float(value)))
    return float((point - p) @ (p - y)) > 0 or float(there) > float(value) + level
