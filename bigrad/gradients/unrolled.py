"""Unrolled: autograd through the solver's own steps. Domke, AISTATS 2012; Franceschi et al., ICML 2017; truncated: Shaban et
al., AISTATS 2019; checkpointed: Griewank and Walther, ACM TOMS 2000.

The steps are taken again in the backward pass, piece by piece from stored states, so the forward pass costs no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Any, ClassVar

from bigrad.gradients.adjoint import first_order
from bigrad.gradients.base import AbstractGradient
from bigrad.inner import Bound, Follow
from bigrad.program import Program
from bigrad.solution import InputError, Outcome

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Unrolled(AbstractGradient):
    """The exact derivative of what the solver computed, minimal or not: choose it with few steps (`Descent(…, tol=0)`).

    last: differentiate only so many last steps (the state before them counts as constant); None is all. pieces: into how
    many stretches the steps are cut, None for their square root: memory is that of the longest stretch's graph and of one
    state for each; 1 keeps the whole graph at once and is the fastest. For GradientDescent, HeavyBall,
    FISTA and ProjectedGradient.
    """

    last: int | None = None
    pieces: int | None = 1
    needs: ClassVar[frozenset[str]] = frozenset({"inner"})

    def __post_init__(self) -> None:
        if (self.last is not None and self.last < 1) or (self.pieces is not None and self.pieces < 1):
            raise InputError(f"{self}: last and pieces must be at least 1, or None.")

    def pull_back(
        self, program: Program, outcome: Outcome, theta: tuple[Tensor, ...], wanted: tuple[bool, ...], cotangent: Tensor
    ) -> tuple[Tensor | None, ...]:
        """See AbstractGradient.pull_back."""
        import torch

        first_order(torch.is_grad_enabled())
        bound, follow = program.bound, outcome.factors
        assert bound is not None
        with torch.enable_grad():
            bound.curved(outcome.z[0].detach().requires_grad_(), bound.still)
        count = follow.steps if self.last is None else min(self.last, follow.steps)
        state = follow.forth(bound, None, follow.first(), follow.steps - count)
        pieces = isqrt(count) if self.pieces is None else self.pieces
        size = max(-(-count // max(pieces, 1)), 1)
        ends = list(range(0, count, size)) or [0]
        states = [state]
        for _ in ends[1:]:
            states.append(follow.forth(bound, None, states[-1], size))
        grads: list[Tensor | None] = [torch.zeros_like(t) if w else None for t, w in zip(theta, wanted, strict=True)]
        pull: list[Tensor] | None = None
        for begin in reversed(ends):
            pull = _piece(
                bound, follow, theta, wanted, states.pop(), min(size, count - begin), pull, cotangent[0], grads
            )
        return tuple(grads)


def _piece(
    bound: Bound,
    follow: Follow,
    theta: Sequence[Tensor],
    wanted: Sequence[bool],
    state: Any,
    count: int,
    pull: list[Tensor] | None,
    cotangent: Tensor,
    grads: list[Tensor | None],
) -> list[Tensor]:
    """Back through one stretch: adds to grads, returns what goes on to the state before it."""
    import torch

    tensors = [t.detach().requires_grad_() for t in state[:-1]]
    leaves = tuple(t.detach().requires_grad_(w) for t, w in zip(theta, wanted, strict=True))
    with torch.enable_grad():
        after = follow.forth(bound, leaves, (*tensors, state[-1]), count)
        ends, weights = ([follow.answer(after)], [cotangent]) if pull is None else (list(after[:-1]), pull)
    own = [t for t, w in zip(leaves, wanted, strict=True) if w]
    found = torch.autograd.grad(ends, [*tensors, *own], weights, allow_unused=True)
    filled = iter(found[len(tensors) :])
    for k, w in enumerate(wanted):
        if w and (part := next(filled)) is not None:
            total = grads[k]
            assert total is not None
            total.add_(part)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, tensors, strict=False)]
