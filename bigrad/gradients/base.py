"""The contract of a gradient rule, the autograd function that all rules share, and what keeps torch.compile from looking into solvers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache, partial, wraps
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from bigrad.program import Program
from bigrad.solution import Outcome

if TYPE_CHECKING:
    from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


class AbstractGradient(ABC):
    """How the backward pass is computed.

    `needs` names what the program must offer; checked once, when a layer is made.
    """

    needs: ClassVar[frozenset[str]]

    @abstractmethod
    def pull_back(
        self, program: Program, outcome: Outcome, theta: tuple[Tensor, ...], wanted: tuple[bool, ...], cotangent: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The vector-Jacobian product of the solution map.

        theta[k]: input k flattened, (size,) or (batch, size), float64. wanted[k]: whether its gradient is
        needed. cotangent: (batch, n) over the unknowns w of the outcome, or over the first n of them. Returns
        one gradient per input, None where not wanted. With grad mode on, the result must itself be
        differentiable in theta and cotangent, or an error: never a silent zero.
        """


Pull = Callable[["tuple[Tensor, ...]", tuple[bool, ...], "Tensor"], "tuple[Tensor | None, ...]"]
"""A backward pass: theta, which of them want a gradient, and the cotangent, to one gradient (or None) each."""


def attach(rule: AbstractGradient, program: Program, outcome: Outcome, w: Tensor, theta: tuple[Tensor, ...]) -> Tensor:
    """w, or its first entries, as a differentiable function of theta, by the rule."""
    return attach_pull(partial(rule.pull_back, program, outcome), w, theta)


def attach_pull(pull: Pull, w: Tensor, theta: tuple[Tensor, ...]) -> Tensor:
    """w as a function of theta whose backward pass is `pull`; a copy, on w's device."""
    attached: Tensor = _function().apply(pull, w, *theta)
    return attached


@cache
def _function() -> Any:
    """The autograd function that all rules share; made when torch is first needed."""
    from torch.autograd import Function

    class Attached(Function):
        @staticmethod
        def forward(ctx: Any, pull: Pull, w: Tensor, *theta: Tensor) -> Tensor:
            ctx.pull = pull
            ctx.save_for_backward(*theta)
            return w.clone()

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
            return (None, None, *ctx.pull(ctx.saved_tensors, ctx.needs_input_grad[2:], cotangent))

    return Attached


def eager(function: F) -> F:
    """A method that torch.compile calls as it is, with a graph break, instead of tracing numpy and solvers."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        import torch

        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return run  # type: ignore[return-value]
