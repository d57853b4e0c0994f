"""The lower levels of an upper loss: solved one by one as its closure asks for them, each from where it was or is predicted to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigrad.inner import Bound, Inner
from bigrad.optim.predict import Triple, kept, predicted
from bigrad.program import Program
from bigrad.solution import InputError, Point, SolveError
from bigrad.solvers.descent import Descent


@dataclass(eq=False)
class Level:
    """One lower level of the loss. y, q: the last solution and adjoint; error: e of y; width, u: |B| and its direction.

    past: what predictions are made from.
    """

    y: Tensor
    error: float = math.inf
    q: Tensor | None = None
    u: Tensor | None = None
    width: float = 0.0
    past: list[Triple] = field(default_factory=list)

    @classmethod
    def kept(
        cls,
        start: Tensor,
        y: Tensor,
        error: float,
        q: Tensor | None,
        u: Tensor | None,
        width: float,
        past: list[Triple],
    ) -> Level:
        """A level of which the fields were stored, with tensors like `start`."""

        def like(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(start)

        triples = [(x.to(start), y.to(start), r.to(start)) for x, y, r in past]
        return cls(y.to(start), error, like(q), like(u), width, triples)


@dataclass(eq=False)
class Spent:
    """Steps of lower solvers, with one for each prediction that had to be compared, and products with Hessians."""

    iterations: int = 0
    products: int = 0


class Calls:
    """Stands for the layer in one evaluation of the loss; answers: each call's y, flat, from which the loss has a graph."""

    def __init__(self, inner: Inner):
        self.inner = inner
        self.answers: list[Tensor] = []

    def _told(self, y: Tensor) -> Any:
        """The loss's own form of a flat y, noted."""
        self.answers.append(y.detach().requires_grad_())
        with torch.enable_grad():
            return self.inner.unflatten(self.answers[-1])


class Given(Calls):
    """Answers with what it was given."""

    def __init__(self, inner: Inner, given: Sequence[Tensor]):
        super().__init__(inner)
        self.given = given

    def __call__(self, *values: Any) -> Any:
        """The next one."""
        return self._told(self.given[len(self.answers)])


class Solving(Calls):
    """Solves each lower level from where it was, or is predicted to be."""

    def __init__(
        self,
        program: Program,
        solver: Descent,
        levels: Sequence[Level],
        params: Sequence[Tensor],
        past: int,
        spent: Spent,
    ):
        assert program.inner is not None
        super().__init__(program.inner)
        self.program, self.solver, self.levels, self.past, self.spent = program, solver, levels, past, spent
        self.own = {id(p) for p in params}
        self.found: list[Level] = []
        self.bounds: list[Bound] = []

    def __call__(self, *values: Any) -> Any:
        """y at these arguments. SolveError where it cannot be found to the tolerance."""
        k = len(self.found)
        before = self.levels[k] if k < len(self.levels) else Level(self.inner.start)
        bound = self.inner.bind(values)
        if strange := [tuple(t.shape) for t in bound.leaves if id(t) not in self.own]:
            raise InputError(
                f"MAID: tensors of shapes {strange} among the arguments of the lower level require a gradient and are not its parameters. "
                "Its bound is on the gradient in the arguments: pass the parameters themselves and compute with them in the inner loss."
            )
        with torch.no_grad():
            start = Point(self._start(bound, before), np.zeros(0, dtype=bool))  # type: ignore[arg-type]
            outcome = self.solver.solve(replace(self.program, bound=bound), bound.still, [start])
        self.spent.iterations += int(outcome.iterations[0])
        if not outcome.ok[0]:
            status = outcome.status[0]
            cause = "" if outcome.cause is None else outcome.cause[0]
            raise SolveError(
                f"The lower level was not solved to {self.solver.tol:.1e}: {status.value} {cause}", {0: status}
            )
        error = self.solver.error(bound, float(outcome.residual[0]))
        assert error is not None
        self.bounds.append(bound)
        self.found.append(replace(before, y=outcome.z[0], error=error))
        return self._told(outcome.z[0])

    def _start(self, bound: Bound, before: Level) -> Tensor:
        """What is predicted, unless the last answer has a smaller residual. Where the prediction will do no other is looked at."""
        if len(before.past) < 2 or not bound.leaves:
            return before.y
        x = flat(bound, before.y)
        y = predicted(before.past, x, before.width)
        slope = bound.slope(y)[1]
        error = self.solver.error(bound, float(slope.norm()))
        assert error is not None
        assert self.solver.tol is not None
        if error <= self.solver.tol:
            return y
        self.spent.iterations += 1
        if bool(slope.isfinite().all()):
            before.past = kept(before.past, (x, y, slope), self.past)
        return y if slope.norm() < bound.slope(before.y)[1].norm() else before.y


def flat(bound: Bound, like: Tensor) -> Tensor:
    """The parameters that a lower level was given."""
    return torch.cat([t.detach().reshape(-1).to(like) for t in bound.leaves])
