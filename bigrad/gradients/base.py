"""The contract of a gradient rule, and the package's only autograd function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from bigrad.program import Program
from bigrad.solution import Outcome

if TYPE_CHECKING:
    from torch import Tensor


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


def attach(rule: AbstractGradient, program: Program, outcome: Outcome, w: Tensor, theta: tuple[Tensor, ...]) -> Tensor:
    """w as a differentiable function of theta, by the rule."""
    from torch.autograd import Function

    class Attached(Function):
        @staticmethod
        def forward(ctx: Any, w: Tensor, *theta: Tensor) -> Tensor:
            ctx.save_for_backward(*theta)
            return w.clone()

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
            wanted = ctx.needs_input_grad[1:]
            return (None, *rule.pull_back(program, outcome, ctx.saved_tensors, wanted, cotangent))

    return Attached.apply(w, *theta)
