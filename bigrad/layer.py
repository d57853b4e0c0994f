"""Layer: a program as a torch module.

Shapes, batches, devices and failures are settled here; the mathematics is not.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from bigrad.algebra.affine import flatten, on_host
from bigrad.auto import Auto
from bigrad.failure import failure
from bigrad.gradients.base import AbstractGradient, attach, attach_pull, eager
from bigrad.gradients.estimator import AbstractEstimator
from bigrad.gradients.implicit import Implicit
from bigrad.gradients.interpolate import Interpolate
from bigrad.gradients.joint import Joint
from bigrad.gradients.levels import Levels
from bigrad.gradients.unrolled import Unrolled
from bigrad.handles import same
from bigrad.memory import Recall
from bigrad.parallel import single_torch
from bigrad.program import Input, Program, Unknown
from bigrad.solution import (
    CapabilityError,
    InputError,
    Outcome,
    Point,
    Solution,
    SolveWarning,
    Status,
)
from bigrad.solvers.base import AbstractSolver, batch_size
from bigrad.solvers.descent import Descent
from bigrad.solvers.methods import AbstractMethod
from bigrad.solvers.projected import ProjectedGradient

Starts = Sequence[Solution | None] | Sequence[Point | None]
"""Solutions or what a Memory keeps of them, one per item."""


class Layer(nn.Module):
    """A bilevel program as a differentiable function of its parameters.

        x_star, y_star = Layer(program, parameters=[c], variables=[x, y])(c_values)

    parameters: CVXPY Parameters, in the order of the call; parameters of the program that are left out keep the
    `.value` they have now. variables: the variables to return, in that order, of either level; the price of a lower
    constraint c, or the dual variable of one of a single level, is `c.dual_variables[0]`. solver, gradient: objects;
    `Auto()` chooses both. on_failure: "raise" raises SolveError, naming the items, their statuses and what to do; "nan"
    returns NaN for those items, with zero gradients, and the others unharmed.

    Each argument of a call is a tensor of its parameter's shape, or with one leading batch dimension; the two may be
    mixed. Outputs have the batch dimension if any argument has, and the device and dtype of the first argument (torch's
    default dtype if that is of integers); solves are in float64 on the CPU. Raises InputError for wrong shapes and
    CapabilityError for a solver or rule that cannot take the program.

    A torch function: `Layer(argmin(inner, responds=w0))(x, *more)` is y*, in the form, dtype and device of w0; the
    arguments are inner's own, and no dimension of them is a batch. parameters and variables are left out.
    """

    def __init__(
        self,
        program: Program,
        parameters: Sequence[Any] | None = None,
        variables: Sequence[Any] | None = None,
        solver: AbstractSolver | None = None,
        gradient: AbstractGradient | Joint | None = None,
        on_failure: Literal["raise", "nan"] = "raise",
    ):
        super().__init__()
        self.program = program
        self.solver = Auto() if solver is None else solver
        self.gradient = Auto() if gradient is None else gradient
        if on_failure not in ("raise", "nan"):
            raise InputError(f'Layer(on_failure={on_failure!r}): give "raise" or "nan".')
        self.on_failure = on_failure
        if not hasattr(program, "checked"):  # a cvxpy.Problem, or two
            given = type(program).__name__
            raise InputError(f"Layer({given}): give a Program, as bigrad.bilevel(…) or bigrad.argmin(…) declares it.")
        if isinstance(self.gradient, type) or not hasattr(self.gradient, "needs"):
            raise InputError(f"Layer(gradient={gradient!r:.80}): give a rule as an object, such as bigrad.Implicit().")
        program.checked(self.solver)
        self.rule = _rule(program, self.gradient)
        if missing := self.rule.needs - program.offers:
            raise CapabilityError(_refused(self.gradient, missing))
        if reason := _unfit(program, self.solver, self.rule):
            raise CapabilityError(reason)
        if program.inner and not parameters is variables is None:
            raise InputError("Layer(parameters=…, variables=…): a torch function has neither; call layer(x, …).")
        parameters = [i.handle for i in program.inputs] if parameters is None else parameters
        self._order = [_position(p, program.inputs, "parameter") for p in parameters]
        if len(set(self._order)) < len(self._order):
            raise InputError("Layer(parameters=…): a parameter is named twice.")
        self._variables = _outputs(program, program.shown if variables is None else variables)
        self._fixed = {k: self._own(i) for k, i in enumerate(program.inputs) if k not in self._order}

    @property
    def shapes(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """The shapes of one item: of each argument of a call, and of each output."""
        return [self.program.inputs[k].shape for k in self._order], [u.shape for u in self._variables]

    @staticmethod
    def _own(i: Input) -> Tensor:
        if i.value is None:
            raise InputError(
                f"Layer(parameters=…): parameter '{i.name}' is neither among the parameters nor has a value; add it or set its .value."
            )
        return torch.as_tensor(np.asarray(i.value, dtype=float))

    @eager
    def forward(self, *values: Any, warm_start: Any = None) -> Any:
        """Solve at these parameter values; one tensor per variable, in a tuple.

        warm_start: where to start, one per item: Solutions of earlier calls, or `memory.at(indices)` of a
        `bigrad.Memory`, which also takes over the new ones. Warm items take a small part of the time. The answer is
        never worse than the best one on the old solution's sides of the follower's complementarity pairs; so at the
        same inputs never worse than the old solution.

        A torch function gives y* itself, and starts at a y in its form, at a Solution or a Point, or at `memory.at([key])`.
        """
        if self.program.inner:
            return self._minimised(values, warm_start)
        with single_torch:
            theta, batched = self._theta(values)
        outcome = self._solve(theta, values, warm_start)
        if self.on_failure == "raise" and not outcome.ok.all():
            raise failure(outcome, batched, self.program, self._given(values))
        if isinstance(self.rule, Joint):
            return self._smoothed(self.rule, outcome, values, theta, batched)
        home = outcome.form or self.program
        first = values[0] if values else torch.zeros((), dtype=torch.float64)
        shown = self._shown(home)
        known = outcome.z if all(isinstance(u.place, slice) for u in shown) else outcome.w
        w = torch.as_tensor(known, device=first.device)
        if not outcome.ok.all():
            w = torch.where(torch.as_tensor(outcome.ok[:, None], device=first.device), w, torch.nan)
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in theta)
        forward = any(unpack_dual(t).tangent is not None for t in theta)  # it has no rule: attached, it raises
        w = attach(self.rule, home, outcome, w, theta) if wanted or forward else w.clone()
        return self._typed(w if batched else w[0], shown, values)

    def _smoothed(
        self, rule: Joint, outcome: Outcome, values: Sequence[Tensor], theta: tuple[Tensor, ...], batched: bool
    ) -> tuple[Tensor, ...]:
        """What an estimator of the whole program makes of its answers; NaN for items that failed."""
        fine, w = np.flatnonzero(outcome.ok), torch.full(outcome.w.shape, torch.nan, dtype=torch.float64)
        while len(fine):
            rows = tuple(t.expand(len(outcome.z), -1).cpu()[fine] for t in theta)
            found = rule.values(self.program, self.solver, rows, np.asarray(outcome.w)[fine])
            lost = ~found.detach().isfinite().all(1).numpy()
            if not lost.any():
                w = w.to(found.device).index_put((torch.as_tensor(fine),), found.double())
                break
            if self.on_failure == "raise":
                status = outcome.status.copy()
                status[fine[lost]] = Status.NOT_FOUND
                raise failure(replace(outcome, status=status), batched)
            fine = fine[~lost]  # again, without them: else their NaN would reach the gradients of all
        if not len(fine):
            w = attach_pull(_nothing, w, theta)
        return self._typed(w if batched else w[0], self._variables, values)

    def _minimised(self, values: Sequence[Any], warm_start: Any) -> Any:
        """y* of a torch function."""
        bound, outcome = self._descended(values, warm_start)
        if self.on_failure == "raise" and not outcome.ok.all():
            raise failure(outcome, False)
        if outcome.ok.all() and outcome.cause is not None and outcome.cause[0]:
            why = (
                "The lower level is not minimised to its tolerance; its loss has settled. layer.solve(…)[0].stats.cause"
            )
            warnings.warn(
                f"{why} has what was reached; see bigrad.Descent.",
                SolveWarning,
                stacklevel=5,
            )
        assert bound.bound is not None
        assert not isinstance(self.rule, Joint)
        w, leaves = outcome.z, bound.bound.leaves
        if not outcome.ok.all():
            w = (
                attach_pull(_nothing, torch.full_like(w, torch.nan), leaves)
                if leaves
                else torch.full_like(w, torch.nan)
            )
        elif leaves:
            w = attach(self.rule, bound, outcome, w, leaves)
        return bound.bound.inner.unflatten(w[0])

    def _descended(self, values: Sequence[Any], warm_start: Any) -> tuple[Program, Outcome]:
        """The program at these arguments, and its outcome."""
        if torch.is_inference_mode_enabled():  # in which no solver could ask for a gradient
            with torch.inference_mode(False), torch.no_grad():
                return self._descended(values, warm_start)
        inner = self.program.inner
        assert inner is not None
        if not values:
            raise InputError("This layer takes the arguments of its inner loss but y: layer(x, …); got none.")
        program = replace(self.program, bound=inner.bind(values))
        start = warm_start[0] if isinstance(warm_start, Recall | list | tuple) and len(warm_start) == 1 else warm_start
        start = start.point if isinstance(start, Solution) else start
        if start is not None and not isinstance(start, Point):
            start = Point(inner.flatten(start, "warm_start"), np.zeros(0, dtype=bool))  # type: ignore[arg-type]
        if start is not None and len(start.z) != len(inner.start):
            raise InputError(
                f"warm_start has {len(start.z)} numbers, and y has {len(inner.start)}: it is of another program."
            )
        assert program.bound is not None
        with torch.no_grad():
            outcome = self.solver.solve(program, program.bound.still, [start])
        if isinstance(warm_start, Recall):
            warm_start.keep(outcome, partial(self._reported, program, outcome))
        return program, outcome

    def _reported(self, program: Program, outcome: Outcome) -> list[Solution]:
        """The Solution of a torch function, with what the backward pass of its call has put on record by now."""
        assert program.bound is not None
        shown = replace(outcome, z=outcome.z.double(), w=outcome.w.double()).on_host()
        solver = self.solver if isinstance(self.solver, Descent) else None
        error = solver.error(program.bound, float(outcome.residual[0])) if solver else None
        record = program.bound.record
        return [
            replace(s, stats=replace(s.stats, error=error, **record), point=outcome.point(0))
            for s in program.solutions(shown, {})
        ]

    @staticmethod
    def _typed(w: Tensor, shown: Sequence[Unknown], values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs, on the device and of the dtype of the first argument."""
        first = values[0] if values else torch.zeros((), dtype=torch.float64)
        dtype = first.dtype if first.is_floating_point() else torch.get_default_dtype()
        return tuple(u.read(w).to(first.device, dtype) for u in shown)

    def solve(self, *values: Any, warm_start: Any = None, verify: bool = False) -> list[Solution]:
        """The Solutions at these parameter values, one per item, with statuses and stats; no gradient. Never raises for
        an item.

        verify: re-solve each follower with another solver and report `stats.follower_gap`.
        """
        if self.program.inner:
            with torch.no_grad():
                return self._reported(*self._descended(values, warm_start))
        theta, _ = self._theta(values)
        outcome = self._solve(theta, values, warm_start).on_host()
        return self.program.solutions(outcome, self._given(values), verify=verify)

    def explain(self) -> str:
        """The program, the solver and the gradient rule, and why they were chosen."""
        if self.program.combinatorial:
            return f"{self.program.explain(self.solver)}\nGradient: {self.rule}."
        rule = "Implicit()" if isinstance(self.gradient, Auto) else self.gradient
        if self.program.inner:
            return f"{self.program.explain(self.solver)}\nGradient: {rule}."
        return f"{self.program.explain(self.solver)}\nGradient: {rule}, the implicit function theorem at the solution's own active set."

    def _shown(self, home: Program) -> list[Unknown]:
        """The outputs, as the program that was solved holds them."""
        if home is self.program:
            return self._variables
        known = {id(u.handle): u for u in home.outputs}
        return [known[id(u.handle)] for u in self._variables]

    def _solve(self, theta: tuple[Tensor, ...], values: Sequence[Tensor], warm_start: Starts | None) -> Outcome:
        points = None if warm_start is None else self.program.points(warm_start)
        if points is not None and len(points) != (need := batch_size(theta)):
            raise InputError(f"warm_start has {len(points)} Solutions for a batch of {need}; give one per item.")
        solver = self.solver
        if isinstance(solver, Auto) and any(t.is_cuda for t in theta):
            solver = solver.on_accelerator(self.program)
        given = tuple(t.detach() if solver.on_device else on_host(t) for t in theta)
        outcome = solver.solve(self.program, given, points)
        if isinstance(warm_start, Recall):
            kept = outcome.on_host()
            warm_start.keep(kept, partial(self.program.solutions, kept, self._given(values)))
        return outcome

    def _given(self, values: Sequence[Tensor]) -> dict[Any, np.ndarray]:
        """All parameters' values by the user's own objects, copied."""
        inputs = self.program.inputs
        given = {inputs[k].handle: v.detach().double().cpu().numpy() for k, v in zip(self._order, values, strict=True)}
        return {k: v.copy() for k, v in given.items()} | {inputs[k].handle: v.numpy() for k, v in self._fixed.items()}

    def _theta(self, values: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], bool]:
        """The program's inputs, flattened, in float64, in the program's order and extended; whether any has a batch dimension."""
        if len(values) != len(self._order):
            names = ", ".join(self.program.inputs[k].name for k in self._order)
            raise InputError(f"This layer takes {len(self._order)} tensors ({names}), got {len(values)}.")
        flat: dict[int, Tensor] = {}
        batch: dict[str, int] = {}
        for k, value in zip(self._order, values, strict=True):
            i = self.program.inputs[k]
            if not isinstance(value, Tensor) or value.is_complex() or value.layout is not torch.strided:
                got = f"{value.layout} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
                raise InputError(
                    f"Parameter '{i.name}': needs a real torch tensor, got {got}; sparse ones: .to_dense()."
                )
            lead = value.ndim - len(i.shape)
            if lead not in (0, 1) or tuple(value.shape[lead:]) != i.shape:
                raise InputError(
                    f"Parameter '{i.name}' has shape {i.shape}; got a tensor of shape {tuple(value.shape)}. "
                    f"Needed: {i.shape}, or {('batch', *i.shape)} with one leading batch dimension."
                )
            if lead and not len(value):
                raise InputError(f"Parameter '{i.name}': the batch is empty; give at least one item.")
            if lead:
                batch[i.name] = len(value)
            flat[k] = flatten(value.double(), len(i.shape))
        if len(set(batch.values())) > 1:
            given = ", ".join(f"{name}: {size}" for name, size in batch.items())
            raise InputError(f"The batch dimensions differ: {given}. Make them equal, or give one item without.")
        device = values[0].device if values else torch.device("cpu")
        flat |= {k: flatten(v, v.ndim).to(device) for k, v in self._fixed.items()}
        return self.program.extended(tuple(flat[k] for k in range(len(self.program.inputs)))), bool(batch)


def _rule(program: Program, gradient: AbstractGradient | Joint) -> AbstractGradient | Joint:
    """The rule as it applies to the program: an estimator of decisions works level by level, and makes the values itself
    where there is one level."""
    if not program.combinatorial:
        return gradient
    rule = Interpolate() if isinstance(gradient, Auto) else gradient
    if not isinstance(rule, AbstractEstimator):
        return rule
    return Levels(rule) if program.combinatorial.base.followers else Joint(rule)


def _unfit(program: Program, solver: Any, rule: Any) -> str | None:
    """Why a rule cannot work with this solver's steps or with these constraints; None where it can."""
    if isinstance(rule, Implicit) and not program.inner and (rule.linear or rule.products or rule.bound):
        return f"{rule}: linear, products and bound are for torch functions; a model's derivatives are solved for exactly. Use Implicit()."
    method = getattr(solver.choose(program)[0], "method", None) if isinstance(rule, Unrolled) else None
    if isinstance(rule, Unrolled) and not isinstance(method, AbstractMethod | ProjectedGradient):
        return (
            f"{rule} follows the steps of GradientDescent, HeavyBall, FISTA or ProjectedGradient, and the solver is {solver}. "
            "Take Implicit() or EqProp()."
        )
    if (
        isinstance(rule, Implicit)
        and program.inner
        and not program.inner.faces
        and rule.linear
        and rule.linear.symmetric
    ):
        return f"{rule.linear} needs a symmetric matrix, which a projection that is a plain function does not give. Use GMRES()."
    if isinstance(rule, Implicit) and rule.bound and program.inner and program.inner.constrained:
        return f"{rule.bound} holds where y is free, and here it is kept in a set. Leave the bound out."
    return None


def _nothing(theta: tuple[Tensor, ...], wanted: tuple[bool, ...], cotangent: Tensor) -> tuple[Tensor | None, ...]:
    """Zero gradients."""
    return tuple(torch.zeros_like(t) if w else None for t, w in zip(theta, wanted, strict=True))


def _refused(gradient: AbstractGradient | Joint, missing: frozenset[str]) -> str:
    """Why a rule does not fit a program, and which do."""
    if "costs" in missing:
        return (
            f"{gradient} estimates gradients in costs of decisions, which this program does not have. Use Implicit()."
        )
    if "kkt" in missing:
        return (
            f"{gradient} needs optimality conditions, which a program with integers does not have. "
            "Rules that work here: Interpolate, Identity, Perturbed, IMLE, alone or in Joint(…)."
        )
    if "inner" in missing:
        return f"{gradient} needs a lower level written in torch, argmin(inner, responds=w0). Use Implicit()."
    return f"{gradient} needs {', '.join(sorted(missing))}, which this program does not have."


def _outputs(program: Program, variables: Sequence[Any]) -> list[Unknown]:
    """The unknowns behind the variables that a layer returns; a list of variables of an OR-Tools model is one vector."""
    if not variables:
        raise InputError("Layer(variables=[]): name at least one variable to return.")
    if not program.combinatorial or not program.combinatorial.find:
        return [program.outputs[_position(v, program.outputs, "variable", program.duals)] for v in variables]
    return [
        program.group(v) if isinstance(v, list | tuple | np.ndarray) else program.unknown(v, "Layer(variables=…)")
        for v in variables
    ]


def _position(handle: Any, known: Sequence[Input | Unknown], kind: str, duals: Sequence[Unknown] = ()) -> int:
    """Where the program keeps one of the user's own objects; duals: those of `known` that have no name of the user's."""
    for k, entry in enumerate(known):
        if same(entry.handle, handle):
            return k
    names = ", ".join(k.name for k in known if k not in duals) or "none"
    more = "; prices are constraint.dual_variables[0]" if duals else ""
    raise InputError(f"Layer({kind}s=…): {handle} is not a {kind} of this program, which has: {names}{more}.")
