"""First-order methods, as a state and one step: what `bigrad.Descent` repeats, and `bigrad.Unrolled` differentiates.

With mu I <= H <= L I the errors fall per step by the factor
    gradient descent   (L - mu) / (L + mu)
    heavy ball         (sqrt L - sqrt mu) / (sqrt L + sqrt mu)
    FISTA              sqrt(1 - sqrt(mu / L))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, ClassVar

from bigrad.inner import Inner
from bigrad.solution import InputError

if TYPE_CHECKING:
    from torch import Tensor

State = tuple["Tensor", "Tensor", float]
"""y, y one step earlier for a method that needs it, and a number of its own."""


class AbstractMethod(ABC):
    """One step after another; pure and differentiable, so that steps can be unrolled.

    reach: what step times curvature stays below where the method converges.
    """

    reach: ClassVar[float]

    def first(self, y: Tensor) -> State:
        """The state at y."""
        return y, y, 0.0

    @abstractmethod
    def at(self, state: State) -> Tensor:
        """Where the gradient is asked for."""

    @abstractmethod
    def step(self, state: State, point: Tensor, slope: Tensor, inner: Inner) -> State:
        """The next state; point: what `at` said. slope: the gradient there."""

    @property
    @abstractmethod
    def length(self) -> float:
        """The step along the gradient."""

    def factor(self, steps: int, mu: float, L: float) -> float | None:
        """What so many steps are sure to multiply |y - y*| by, at most, where mu <= H <= L; None if nothing is proven."""
        return None


def _positive(method: object, *numbers: float) -> None:
    if not all(0 < n < float("inf") for n in numbers):
        raise InputError(f"{method}: its numbers must be positive and finite.")


def _tuned(name: str, L: float, mu: float) -> None:
    if not 0 < mu <= L < float("inf"):
        raise InputError(f"{name}(L={L}, mu={mu}): needed is 0 < mu <= L.")


@dataclass(frozen=True)
class GradientDescent(AbstractMethod):
    """y - step_size grad g, projected; below 2 / L it converges. `GradientDescent.tuned(L, mu)` takes the step 2 / (L + mu)."""

    step_size: float
    reach: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        _positive(self, self.step_size)

    @classmethod
    def tuned(cls, L: float, mu: float) -> GradientDescent:
        """The best step for curvatures between mu and L."""
        _tuned("GradientDescent.tuned", L, mu)
        return cls(2 / (L + mu))

    @property
    def length(self) -> float:
        """step_size."""
        return self.step_size

    def factor(self, steps: int, mu: float, L: float) -> float:
        """The larger of |1 - step mu| and |1 - step L|, to the power of the steps."""
        return max(abs(1 - self.step_size * mu), abs(1 - self.step_size * L)) ** steps

    def at(self, state: State) -> Tensor:
        """y."""
        return state[0]

    def step(self, state: State, point: Tensor, slope: Tensor, inner: Inner) -> State:
        """See AbstractMethod.step."""
        y = inner.project(point.sub(slope, alpha=self.step_size))
        return y, y, 0.0


@dataclass(frozen=True)
class HeavyBall(AbstractMethod):
    """y - step_size grad g + momentum (y - the last y), projected, 0 <= momentum < 1. Polyak 1964.

    `HeavyBall.tuned(L, mu)`: step 4 / (sqrt L + sqrt mu)^2, momentum ((sqrt L - sqrt mu) / (sqrt L + sqrt mu))^2, the
    fastest of these methods on a quadratic.
    """

    step_size: float
    momentum: float
    reach: ClassVar[float] = 4.0

    def __post_init__(self) -> None:
        _positive(self, self.step_size)
        if not 0 <= self.momentum < 1:
            raise InputError(f"{self}: 0 <= momentum < 1 is needed.")

    @classmethod
    def tuned(cls, L: float, mu: float) -> HeavyBall:
        """The best numbers for curvatures between mu and L."""
        _tuned("HeavyBall.tuned", L, mu)
        high, low = sqrt(L), sqrt(mu)
        return cls(4 / (high + low) ** 2, ((high - low) / (high + low)) ** 2)

    @property
    def length(self) -> float:
        """step_size."""
        return self.step_size

    def at(self, state: State) -> Tensor:
        """y."""
        return state[0]

    def step(self, state: State, point: Tensor, slope: Tensor, inner: Inner) -> State:
        """See AbstractMethod.step."""
        moved = point.sub(slope, alpha=self.step_size).add(point - state[1], alpha=self.momentum)
        return inner.project(moved), point, 0.0


@dataclass(frozen=True)
class FISTA(AbstractMethod):
    """Accelerated projected gradient steps of 1 / L. Beck and Teboulle, SIAM J. Imaging Sci. 2009; strongly convex form
    of Chambolle and Pock, Acta Numerica 2016, section 4.

    mu: strong convexity, 0 if unknown. Keeps its rate under a projection, where heavy ball's is not proven.
    """

    L: float
    mu: float = 0.0
    reach: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _positive(self, self.L)
        if not 0 <= self.mu < self.L:
            raise InputError(f"{self}: 0 <= mu < L is needed.")

    @property
    def length(self) -> float:
        """1 / L."""
        return 1 / self.L

    def factor(self, steps: int, mu: float, L: float) -> float | None:
        """sqrt(L / mu min((1 + sqrt q) (1 - sqrt q)^steps, 4 / (steps + 1)^2)), q = its own mu / L, which must be right."""
        if self.mu > mu or self.L < L:
            return None
        root = (self.mu / self.L) ** 0.5
        return (self.L / mu * min((1 + root) * (1 - root) ** steps, 4 / (steps + 1) ** 2)) ** 0.5

    def _next(self, t: float) -> float:
        q = self.mu / self.L
        return (1 - q * t**2 + sqrt((1 - q * t**2) ** 2 + 4 * t**2)) / 2

    def at(self, state: State) -> Tensor:
        """y, carried on in the direction of the last step."""
        y, old, t = state
        if t == 0.0:
            return y
        q, after = self.mu / self.L, self._next(t)
        return y + (t - 1) * (1 - q * after) / (after * (1 - q)) * (y - old)

    def step(self, state: State, point: Tensor, slope: Tensor, inner: Inner) -> State:
        """See AbstractMethod.step."""
        return inner.project(point.sub(slope, alpha=1 / self.L)), state[0], self._next(state[2])
