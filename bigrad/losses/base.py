"""The contract of a loss, and its torch side: shapes, reduction, gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bigrad.gradients.base import eager
from bigrad.gradients.estimator import Function, as_oracle, attach_back, items, plain
from bigrad.oracle import Oracle
from bigrad.solution import InputError


@dataclass(frozen=True)
class Evaluated:
    """Of a batch: value (batch,); back, a gradient in the values (batch,) to one in the costs (batch, n); the decisions."""

    value: np.ndarray
    back: Callable[[np.ndarray], np.ndarray]
    decide: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Solved:
    """A target of true costs, (n,) or (batch, n), with their decisions, (m,) or (batch, m): saves solving them each time."""

    costs: Any
    decisions: Any


@dataclass(frozen=True)
class AbstractLoss(ABC):
    """A loss of predicted costs: `loss(costs, target)`.

    oracle: an Oracle, or a Python function of one item's costs. maximise: whether that function maximises; an Oracle
    knows its sense, and losses mirror: maximise -c where c was minimised, and the value is the same, the gradient
    negated. reduction: "mean" over the batch, "sum", or "none" for one value an item.

    Bounds and convexity are one player's (with one level, or the other level held). With both players' costs in one
    vector, values jump where decisions do, and the gradient is that of the value between jumps.

    costs: (n,) or (batch, n), the only argument with a gradient. target: what the loss compares with, per item: true
    costs or a decision, as its own docstring says, or a `Solved` with both. given: further arguments of a Python
    function, one entry an item. The value is that of the formula, its backward pass the gradient; a second derivative
    raises NotImplementedError. Raises InputError for wrong shapes, and with its index for an item that is not finite.
    """

    oracle: Oracle | Function
    maximise: bool = field(default=False, kw_only=True)
    reduction: Literal["mean", "sum", "none"] = field(default="mean", kw_only=True)

    costs_known: ClassVar[bool]
    """Whether targets are true costs (batch, n), else decisions (batch, m)."""

    def __post_init__(self) -> None:
        if self.reduction not in ("mean", "sum", "none"):
            raise InputError(f'reduction={self.reduction!r}: give "mean", "sum" or "none".')

    @abstractmethod
    def evaluate(self, oracle: Oracle, costs: np.ndarray, target: np.ndarray, best: np.ndarray | None) -> Evaluated:
        """Values at costs (batch, n); target: (batch, n) or (batch, m); best: the decisions of true costs, if given."""

    @eager
    def __call__(self, costs: Tensor, target: Any, *given: Any) -> Tensor:
        """The loss."""
        return self._value(costs, *self._evaluated(costs, target, given))

    @eager
    def with_solution(self, costs: Tensor, target: Any, *given: Any) -> tuple[Tensor, Tensor]:
        """The loss, and the decision at these costs, (m,) or (batch, m), without a gradient: the one that the loss works
        with (FenchelYoung: the smoothed one; pool losses: the best of the pool), else one more solve.
        """
        batched, found = self._evaluated(costs, target, given)
        dtype = costs.dtype if costs.is_floating_point() else torch.get_default_dtype()
        decisions = torch.as_tensor(found.decide(), dtype=dtype, device=costs.device)
        return self._value(costs, batched, found), decisions if batched else decisions[0]

    def _evaluated(self, costs: Tensor, target: Any, given: tuple[Any, ...]) -> tuple[bool, Evaluated]:
        batched, rows = items(costs)
        oracle = as_oracle(self.oracle, self.maximise, given, costs)
        best = None
        if isinstance(target, Solved):
            best = self._target(target.decisions, rows, batched, any_width=True) if self.costs_known else None
            target = target.costs if self.costs_known else target.decisions
        goal = self._target(target, rows, batched, any_width=not self.costs_known)
        return batched, self.evaluate(oracle, plain(rows), goal, best)

    def _target(self, target: Any, rows: Tensor, batched: bool, any_width: bool) -> np.ndarray:
        if isinstance(target, Tensor) and target.requires_grad:
            raise InputError("The target wants a gradient, which only the predicted costs get: target.detach().")
        goal = plain(torch.as_tensor(target))
        goal = goal if batched else goal[None]
        if goal.ndim != 2 or len(goal) != len(rows) or not (any_width or goal.shape == rows.shape):
            need = "m" if any_width else rows.shape[1]
            shape = f"({len(rows)}, {need})" if batched else f"({need},)"
            raise InputError(f"{type(self).__name__}: needs a target {shape}, got {tuple(goal.shape[1 - batched :])}.")
        if not np.isfinite(goal).all():
            lost = np.flatnonzero(~np.isfinite(goal).all(1))
            raise InputError(f"Targets are NaN or infinite at items {lost[:8].tolist()}.")
        return goal

    def _value(self, costs: Tensor, batched: bool, found: Evaluated) -> Tensor:
        value = attach_back(found.value, found.back, costs if batched else costs[None])
        if not batched:
            return value[0]
        if self.reduction == "none":
            return value
        return value.mean() if self.reduction == "mean" else value.sum()


def along(slope: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The backward pass of values whose gradient in the costs is `slope`, (batch, n)."""
    return lambda push: push[:, None] * slope


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner products over the last dimension."""
    found: np.ndarray = np.einsum("...i,...i->...", a, b)
    return found
