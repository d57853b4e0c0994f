"""Units: a bilevel quadratic program rewritten so that its numbers are of order one, whatever units its author chose.

x = X x~, y = Y y~, the lower objective divided by `lower`, the upper one by `upper`, every constraint by its own
factor; all factors are powers of two, so nothing is rounded, and all are shared by the batch, so that blocks without a
batch stay so. Ruiz, "A scaling algorithm to equilibrate both rows and columns norms in matrices", 2001.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bigrad.algebra.quadratic import Data, Sizes
from bigrad.solution import Outcome

PASSES = 6


@dataclass(frozen=True, eq=False)
class Scaling:
    """Factors of the unknowns: w = factors * w~, and of the upper objective: F = upper * F~."""

    factors: np.ndarray
    upper: float

    def undo(self, outcome: Outcome) -> Outcome:
        """The outcome of the rescaled program in the author's units; residuals stay relative."""
        w = outcome.w * self.factors
        z = w[:, : outcome.z.shape[1]]
        value, bound = outcome.value * self.upper, outcome.bound * self.upper
        factors = outcome.factors and outcome.factors.rescaled(self.factors / np.sqrt(self.upper))
        return replace(outcome, w=w, z=z, value=value, bound=bound, units=self.factors, factors=factors)

    @staticmethod
    def of(data: Data, sizes: Sizes) -> tuple[Data, Scaling]:
        """The rescaled program, and what leads back from it."""
        n, z = sizes.x, slice(0, sizes.answers)
        blocks = {"pairs": (data.B, data.A), "h": (data.K, data.H), "lower": (data.C, data.P)}
        stacks = {k: np.concatenate([_largest(m) for m in pair], -1) for k, pair in blocks.items()}
        above = {"g": _largest(data.G), "e": _largest(data.E), "upper": _largest(data.Q)}
        columns = _equilibrate(np.concatenate([*stacks.values(), *(m[:, z] for m in above.values())]))
        X, Y = columns[:n], columns[n:]
        a, h = (_power(_top(stacks[k] * columns)) for k in ("pairs", "h"))
        lower = _size(stacks["lower"] * columns * Y[:, None], _largest(data.p, 1) * Y)
        if data.Q.shape[-1] > sizes.answers:
            columns = np.concatenate([columns, lower / a, lower / h])
        g, e = (_power(_top(above[k] * columns)) for k in ("g", "e"))
        upper = _size(above["upper"] * columns * columns[:, None], _largest(data.c, 1) * columns)
        scaled = Data(
            Q=data.Q * columns * columns[:, None] / upper, c=data.c * columns / upper, c0=data.c0 / upper,
            G=data.G * columns / g[:, None], g=data.g / g, E=data.E * columns / e[:, None], e=data.e / e,
            P=data.P * Y * Y[:, None] / lower, C=data.C * X * Y[:, None] / lower, p=data.p * Y / lower,
            A=data.A * Y / a[:, None], B=data.B * X / a[:, None], b=data.b / a,
            H=data.H * Y / h[:, None], K=data.K * X / h[:, None], h=data.h / h,
        )  # fmt: skip
        factors = [X, Y, lower / a, lower / h, upper * Y / lower, upper / a, upper / h, upper / g, upper / e]
        return scaled, Scaling(np.concatenate(factors), upper)


def _largest(block: np.ndarray, rank: int = 2) -> np.ndarray:
    """The largest size of each entry over the batch."""
    return abs(block).max(0) if block.ndim > rank else abs(block)


def _equilibrate(matrix: np.ndarray) -> np.ndarray:
    """Column factors that, with row factors of their own, bring the largest entry of every row and column to one."""
    columns = np.ones(matrix.shape[1])
    for _ in range(PASSES):
        even = matrix * columns
        rows = _top(even)[:, None]
        columns = columns / np.sqrt(_top((even / np.sqrt(rows)).T))
    return _power(columns)


def _top(matrix: np.ndarray) -> np.ndarray:
    """The largest entry of each row, one for empty rows."""
    top = matrix.max(-1, initial=0.0)
    return np.where(top > 0, top, 1.0)


def _size(*blocks: np.ndarray) -> float:
    top = max(b.max(initial=0.0) for b in blocks)
    return float(_power(np.array(top))) if top > 0 else 1.0


def _power(values: np.ndarray) -> np.ndarray:
    return np.exp2(np.round(np.log2(values)))
