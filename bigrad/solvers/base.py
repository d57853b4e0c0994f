"""The contract of a solver.

Frozen hyper-parameters, and a pure function from a program and its inputs to an Outcome.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Integral
from typing import ClassVar

from bigrad.algebra.affine import Array
from bigrad.program import Program
from bigrad.solution import InputError, Outcome, Point

EXACT = 1e-6
"""A residual or violation above this makes an answer inexact."""
PROVEN = 1e-7
"""A value this close to the bound, relative to 1 + its size, is the optimum."""


class AbstractSolver(ABC):
    """How the forward pass is computed. Subclasses are final, frozen dataclasses of hyper-parameters.

    on_device: whether theta may be torch tensors, which then stay on their device.
    """

    on_device: ClassVar[bool] = False

    @abstractmethod
    def accepts(self, program: Program) -> str | None:
        """None, or the sentence that says why this solver cannot take the program and which can."""

    @abstractmethod
    def solve(
        self, program: Program, theta: tuple[Array, ...], warm_start: Sequence[Point | None] | None = None
    ) -> Outcome:
        """Solve a batch: theta[k] is input k flattened, (size,) or (batch, size). Failures are statuses, never
        exceptions.

        warm_start: one Point per item, or None for an item that has none.
        """

    @abstractmethod
    def choose(self, program: Program) -> tuple[AbstractSolver, str]:
        """The solver that would do the work for this program, and a sentence that says why."""


def check_settings(solver: AbstractSolver, **least: int) -> None:
    """Refuse settings that mean nothing: those named are whole numbers of at least this, `time_limit` is None or not negative.

    Raises InputError, with the setting and what it may be.
    """
    kind = type(solver).__name__
    for name, low in least.items():
        value = getattr(solver, name)
        if not isinstance(value, Integral) or value < low:
            raise InputError(f"{kind}({name}={value!r}): give a whole number of at least {low}.")
    limit = getattr(solver, "time_limit", None)
    if limit is not None and not (isinstance(limit, int | float) and limit >= 0):
        raise InputError(f"{kind}(time_limit={limit!r}): give seconds, zero or more, or None.")


def whole_numbers(solver: str, program: Program) -> str | None:
    """The sentence with which a solver of continuous programs refuses integer leader variables; None where there are
    none.
    """
    if not program.integers:
        return None
    named = {u.name: None for u in program.unknowns for i in program.integers if u.place.start <= i < u.place.stop}
    return f"{solver}() needs continuous variables, but the leader's {', '.join(named)} must be integer. Use Global()."


def batch_size(theta: Sequence[Array]) -> int:
    """The number of items of a batch; 1 where no input has a batch dimension."""
    return max((len(t) for t in theta if t.ndim > 1), default=1)
