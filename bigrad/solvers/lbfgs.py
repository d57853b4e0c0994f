"""LBFGS: limited-memory BFGS. Liu and Nocedal, Math. Prog. 1989; line search by bisection for the weak Wolfe conditions of
Lewis and Overton, Math. Prog. 2013.

Where the promised fall of the loss is lost in rounding, slopes alone decide (Hager and Zhang, SIAM J. Optim. 2005), so
that it converges to the last digits, where torch.optim.LBFGS gives up at about the square root of the precision.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bigrad.solution import InputError

if TYPE_CHECKING:
    from torch import Tensor

Slope = Callable[["Tensor"], "tuple[Tensor, Tensor]"]
"""y to (g, its gradient)."""
FALL, FLAT, TRIES = 1e-4, 0.9, 40
"""The share of the promised fall that must come, the share of the first slope that may be left, and steps tried."""


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS with a line search: the first choice where nothing is known of the curvature.

    memory: pairs of vectors that it keeps. Not under a projection.
    """

    memory: int = 10

    def __post_init__(self) -> None:
        if self.memory < 1:
            raise InputError(f"{self}: memory must be at least 1.")

    def minimise(
        self, of: Slope, y: Tensor, value: Tensor, slope: Tensor, steps: int, goal: float
    ) -> tuple[Tensor, list[float], Tensor]:
        """(y, g before the first step and after each, its gradient), the gradient's norm at most goal unless steps ran out or
        none was found. Where g falls without end along a line, the last g is minus infinity and y is where the line begins."""
        pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=self.memory)
        losses = [float(value)]
        for _ in range(steps):
            size = float(slope.norm())
            if not goal < size < float("inf"):
                break
            found = _search(of, y, value, slope, self._direction(pairs, slope), 1.0 if pairs else min(1.0, 1 / size))
            if found is None and pairs:  # what it remembers misleads it: begin afresh
                pairs.clear()
                found = _search(of, y, value, slope, -slope, min(1.0, 1 / size))
            if found is None:
                break
            ahead, value, after = found
            losses.append(float(value))
            if losses[-1] == -float("inf"):
                break
            move, turn = ahead - y, after - slope
            if (bend := float(move @ turn)) > 0:
                pairs.append((move, turn, bend))
            y, slope = ahead, after
        return y, losses, slope

    @staticmethod
    def _direction(pairs: deque[tuple[Tensor, Tensor, float]], slope: Tensor) -> Tensor:
        """- B slope, B the inverse Hessian that the pairs make of a multiple of the identity."""
        d, shares = -slope, []
        for move, turn, bend in reversed(pairs):
            shares.append(float(move @ d) / bend)
            d = d - shares[-1] * turn
        if pairs:
            _, turn, bend = pairs[-1]
            d = d * (bend / float(turn @ turn))
        for (move, turn, bend), share in zip(pairs, reversed(shares), strict=True):
            d = d + move * (share - float(turn @ d) / bend)
        return d


def _search(
    of: Slope, y: Tensor, value: Tensor, slope: Tensor, d: Tensor, step: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """A step along d that falls enough and flattens enough. Where none flattens, the longest of those that fall enough, if any
    does, as before a cliff; and g = minus infinity where all fall enough, the longest 2^39 times the first."""
    import torch

    start, fall = float(value), float(slope @ d)
    if not fall < 0:
        return None
    level = torch.finfo(y.dtype).eps ** 0.5 * (1 + abs(start))
    low, high, fallen = 0.0, float("inf"), None
    for _ in range(TRIES):
        ahead = y + step * d
        there, after = of(ahead)
        after_fall = float(after @ d)
        fell = float(there) <= start + FALL * step * fall
        if not fell and -step * fall <= level:  # lost in rounding: for a quadratic the slopes say the same
            fell = after_fall <= (2 * FALL - 1) * fall
        if not fell:  # NaN too
            high = step
        elif after_fall < FLAT * fall:
            low = step
            fallen = (ahead, there, after) if float(there) < start - level else None
        else:
            return ahead, there, after
        step = 2 * step if high == float("inf") else (low + high) / 2
    return (ahead, there.new_tensor(-float("inf")), after) if high == float("inf") else fallen
