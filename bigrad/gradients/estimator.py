"""Estimator: an oracle, or any Python function from costs to a decision, as a differentiable torch function.

    path = Perturbed(sigma=0.5)(dijkstra)(costs)

A decision jumps where the costs cross over and rests elsewhere, so its derivative is zero or nothing. Each rule puts
something in its place; what, its own file says. Rules see an oracle's `solve`, `nudged`, `features` and `sense` only:
one player, both players of a game in one vector of costs, or one of them with the other held, are all the same to them.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bigrad.gradients.base import AbstractGradient, attach_pull, eager
from bigrad.oracle import Oracle
from bigrad.oracles.domain import numbers
from bigrad.program import Program
from bigrad.solution import CapabilityError, InputError, Outcome, SolveWarning, Status

if TYPE_CHECKING:
    from torch import Tensor

Function = Callable[..., Any]
"""One item's costs, a float64 array (n,), and perhaps data of that item, to a decision (m,) or a number."""
Back = Callable[[np.ndarray], np.ndarray]
"""The loss's gradient in the values, shaped like them, to its gradient in the costs, (batch, n)."""


class AbstractEstimator(AbstractGradient):
    """A rule for decisions that depend on linear costs.

    `rule(oracle)` is a torch function of costs, (n,) or (batch, n); see `Differentiable`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"costs"})
    asks: ClassVar[bool] = True
    """Whether its gradient rests on decisions at other costs."""

    @abstractmethod
    def estimate(self, oracle: Oracle, costs: np.ndarray) -> tuple[np.ndarray, Back]:
        """The values (batch, m) at costs (batch, n), finite float64, and their backward pass.

        Raises InputError, with the item, for what the oracle cannot take.
        """

    def unit(self, costs: np.ndarray) -> np.ndarray | float:
        """What its Jacobian must be divided by to be one per unit of these costs, (batch, n): (batch, 1), or one for all."""
        return 1.0

    def __call__(self, oracle: Oracle | Function, maximise: bool = False) -> Differentiable:
        """The differentiable function. maximise: whether a Python function maximises; an Oracle knows its sense."""
        if not (isinstance(oracle, Oracle) or callable(oracle)):
            raise InputError(
                f"{type(self).__name__}(…)(oracle): needs an Oracle or a function from costs to a decision, got {type(oracle).__name__}. "
                "Costs come after it: rule(oracle)(costs)."
            )
        return Differentiable(self, oracle, maximise)

    def apply(self, oracle: Oracle, costs: Tensor) -> Tensor:
        """The values at costs (batch, n), of the device and dtype of the costs, differentiable once."""
        values, back = self.estimate(oracle, plain(costs))
        return attach_back(values, back, costs)

    def pull_back(
        self, program: Program, outcome: Outcome, theta: tuple[Tensor, ...], wanted: tuple[bool, ...], cotangent: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Not for programs: raises CapabilityError."""
        raise CapabilityError(f"{self} differentiates oracles, not programs: call rule(oracle)(costs).")


def check_estimator(who: str, rule: Any) -> None:
    """InputError unless `rule` is an estimator."""
    if not isinstance(rule, AbstractEstimator):
        raise InputError(
            f"{who}({rule!r:.80}): give an estimator, Interpolate(), Identity(), Perturbed(…), IMLE(…), Score(…) or Regularised(…)."
        )


@dataclass(frozen=True)
class Differentiable:
    """An oracle under a rule: costs, (n,) or (batch, n), to values, (m,) or (batch, m).

    Solves in float64 numpy; values have the device and dtype of the costs (torch's default dtype if those are of
    integers). `given`: for a Python function only, further arguments of which each item gets its own entry: labels, or a
    feasible set of its own. Raises InputError for wrong shapes, and with its index for an item that is not finite or
    gets no finite decision; a second derivative raises NotImplementedError.
    """

    rule: AbstractEstimator
    oracle: Oracle | Function
    maximise: bool = False

    @eager
    def __call__(self, costs: Tensor, *given: Any) -> Tensor:
        """The values at these costs."""
        batched, rows = items(costs)
        values = self.rule.apply(as_oracle(self.oracle, self.maximise, given, costs), rows)
        return values if batched else values[0]


@dataclass(frozen=True, eq=False)
class Plain(Oracle):
    """A Python function of one item's costs as an oracle; given: per item, its further arguments."""

    function: Function
    maximise: bool = False
    given: tuple[Any, ...] = ()
    batched: bool = True

    @property
    def sense(self) -> float:
        """-1 if it maximises, else +1."""
        return -1.0 if self.maximise else 1.0

    def solve(self, costs: np.ndarray) -> np.ndarray:
        """Row by row; rows of one item follow each other."""
        each = len(costs) // (len(self.given[0]) if self.given and self.batched else 1)
        found: list[np.ndarray] = []
        for k, row in enumerate(costs):
            more = [g[k // each] for g in self.given] if self.batched else self.given
            try:
                answer = self.function(row.copy(), *more)
            except Exception as error:
                error.add_note(f"raised by {_name(self.function)} at row {k}")
                raise
            if answer is None:
                raise InputError(
                    f"{_name(self.function)} returned None at row {k}; needed is its decision. Is a return missing?"
                )
            decision = numbers(answer)
            if decision is None or decision.ndim > 1 or decision.shape != (found or [decision])[0].shape:
                got = f"{answer!r:.80}" if decision is None else f"shape {decision.shape}"
                others = f" and {found[0].shape} at row 0" if found else ""
                raise InputError(
                    f"{_name(self.function)} returned {got} at row {k}{others}: "
                    "a decision is one array (m,), or a number, of the same shape for all."
                )
            found.append(decision)
        return np.stack(found)


def as_oracle(oracle: Oracle | Function, maximise: bool, given: tuple[Any, ...], costs: Tensor) -> Oracle:
    """The oracle, or a Python function as one."""
    from torch import Tensor

    if isinstance(oracle, Oracle):
        if maximise or given:
            raise InputError(f"{_name(oracle)} is an Oracle: it knows its sense, and takes costs alone.")
        return oracle
    for k, g in enumerate(given):
        if costs.ndim == 2 and (not hasattr(g, "__len__") or len(g) != len(costs)):
            raise InputError(f"Argument {k} after the costs: needs one entry per item, {len(costs)} in all.")
        if isinstance(g, Tensor) and g.requires_grad:
            raise InputError(f"Argument {k} after the costs wants a gradient, which only costs get: put it into them.")
    data = tuple(g.cpu().numpy() if isinstance(g, Tensor) else g for g in given)
    return Plain(oracle, maximise, data, costs.ndim == 2)


def items(costs: Tensor) -> tuple[bool, Tensor]:
    """Whether costs have a batch dimension, and the costs with one. InputError for what is not finite costs."""
    from torch import Tensor

    if not isinstance(costs, Tensor) or costs.is_complex() or costs.ndim not in (1, 2) or not costs.numel():
        what = tuple(costs.shape) if isinstance(costs, Tensor) else type(costs).__name__
        raise InputError(f"Costs: needs a real torch tensor (n,) or (batch, n), not empty; got {what}.")
    rows = costs if costs.ndim == 2 else costs[None]
    if not isfinite(rows.detach().sum().item()):  # one number for all; a sum may overflow where no cost is infinite
        finite = rows.detach().isfinite().all(1)
        if not bool(finite.all()):
            raise InputError(f"Costs are NaN or infinite at items {(~finite).nonzero()[:8, 0].tolist()}.")
    return costs.ndim == 2, rows


def plain(costs: Tensor) -> np.ndarray:
    """As a float64 array of its own."""
    import torch

    own = costs.detach().to("cpu", torch.float64, copy=True, memory_format=torch.contiguous_format)
    values: np.ndarray = own.numpy()
    return values


def attach_back(values: np.ndarray, back: Back, costs: Tensor) -> Tensor:
    """The values as a torch function of the costs, on their device and of their dtype."""
    import torch
    from torch.autograd.forward_ad import unpack_dual

    def pull(theta: tuple[Tensor, ...], wanted: tuple[bool, ...], cotangent: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError("Estimated gradients have no second derivatives: leave out create_graph=True.")
        push = plain(cotangent)
        if not np.isfinite(push).all():
            lost = np.flatnonzero(~np.isfinite(push.reshape(len(push), -1)).all(1))
            raise InputError(f"The loss's gradient is NaN or infinite at items {lost[:8].tolist()}.")
        return (torch.as_tensor(back(push), device=theta[0].device),)

    w, dtype = torch.as_tensor(values, device=costs.device), costs.dtype
    tracked = torch.is_grad_enabled() and costs.requires_grad
    if tracked or unpack_dual(costs).tangent is not None:  # forward mode has no rule: attached, it raises
        return attach_pull(pull, w, (costs.double(),)).to(dtype)
    return w.clone().to(dtype if dtype.is_floating_point else torch.get_default_dtype())


def solve(oracle: Oracle, costs: np.ndarray) -> np.ndarray:
    """Decisions at costs (batch, n) or (batch, samples, n), with the same leading dimensions, in one call."""
    return _checked(oracle, costs, oracle.solve)


def nudged(oracle: Oracle, costs: np.ndarray, push: np.ndarray) -> np.ndarray:
    """The same where `push`, (…, m), is added to each player's objective."""
    rows = push.reshape(-1, push.shape[-1])
    return _checked(oracle, costs, lambda flat: oracle.nudged(flat, rows))


def features(oracle: Oracle, decisions: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """What the costs multiply, of decisions (…, m), shaped like the costs (…, n)."""
    found = np.asarray(oracle.features(decisions.reshape(-1, *decisions.shape[costs.ndim - 1 :])), dtype=float)
    if found.shape != (len(found), costs.shape[-1]) or found.size != costs.size:
        raise InputError(
            f"{_name(oracle)}: the features of its decisions have shape {found.shape[1:]} an item, its costs {costs.shape[-1:]}. "
            "Where costs multiply something else than the decisions, an Oracle says what in `features`."
        )
    return found.reshape(costs.shape)


def _checked(oracle: Oracle, costs: np.ndarray, answer: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    lead, rows = costs.shape[:-1], costs.reshape(-1, costs.shape[-1])
    each = len(rows) // lead[0]
    if oracle.sets and lead[0] % oracle.sets:  # its samples might be a multiple, and be shared out among wrong items
        raise InputError(
            f"{_name(oracle)}: {lead[0]} items of costs for {oracle.sets} feasible sets; give a multiple, or pick by at()."
        )
    try:
        found = np.array(answer(rows), dtype=float)
    except InputError as error:
        if each > 1:
            error.add_note(f"The oracle was asked for {each} samples an item: its row k belongs to item k // {each}.")
        raise
    if found.ndim not in (1, 2) or len(found) != len(rows):
        need = f"needs decisions ({len(rows)}, m) for costs {rows.shape}"
        raise InputError(f"{_name(oracle)}: {need}, got {found.shape}.")
    if not oracle.partial and not np.isfinite(found).all():
        finite = np.isfinite(found.reshape(len(rows), -1)).all(1)
        lost = sorted({int(k) // each for k in np.flatnonzero(~finite)})
        raise InputError(f"{_name(oracle)}: the decision is NaN or infinite at items {lost[:8]}.")
    return found.reshape(*lead, *found.shape[1:])


def unsolved(who: str, statuses: Sequence[Status] | np.ndarray, each: int) -> np.ndarray:
    """The rows that failed, of `each` an item; a SolveWarning names the items."""
    bad = np.array([not s.ok for s in statuses], dtype=bool)
    if bad.any():
        why = {k // each: statuses[k] for k in np.flatnonzero(bad).tolist()}
        shown = "; ".join(f"item {i}: {s.value}" for i, s in list(why.items())[:8])
        warnings.warn(
            f"{who} could not be solved at costs that the rule looks at, {shown} NaN there.", SolveWarning, stacklevel=2
        )
    return bad


def _name(oracle: Any) -> str:
    if isinstance(oracle, Plain):
        return _name(oracle.function)
    return getattr(oracle, "__name__", type(oracle).__name__)
