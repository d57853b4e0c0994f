"""What a solve returns, and what it raises: Solution, Status (its values are sentences), Stats, and the exceptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np

NAMED = 12
"""How many of its variables a Solution names where it is asked for another."""


class Status(Enum):
    """How a solve ended. The value is a sentence for a person; `ok` says whether there is a usable point."""

    ok: bool

    def __init__(self, sentence: str):
        self.ok = self._name_ in ("GLOBAL", "LOCAL", "STATIONARY", "OPEN", "INEXACT")

    GLOBAL = "Global optimum: it is proven that no feasible point has a better upper objective."
    LOCAL = "Local optimum: strongly stationary; a better one elsewhere is not excluded."
    STATIONARY = (
        "Stationary on its own piece only: no multipliers of the right signs were found at a biactive pair, or the "
        "objective may fall along a curve, so descent nearby is not excluded."
    )
    OPEN = "Time limit reached: a bilevel-feasible point; the optimum lies between stats.bound and the value."
    INEXACT = "A bilevel-feasible point whose optimality conditions hold only loosely; read stats.residual."
    NOT_FOUND = "No bilevel-feasible point was found, and none is proven not to exist; try more starts."
    INFEASIBLE_LOWER = "Infeasible follower: no leader decision leaves the follower a feasible answer."
    INFEASIBLE_UPPER = "Infeasible: no point satisfies the upper constraints (with two levels: none that is an answer of the follower)."
    NO_EQUILIBRIUM = (
        "No equilibrium: at no leader decision can the optimality conditions of all followers hold together."
    )
    UNBOUNDED_LOWER = "Unbounded follower: its objective has no minimum for any leader decision."
    UNBOUNDED_UPPER = "Unbounded: the upper objective improves without limit over feasible points."
    NONCONVEX_LOWER = (
        "The lower level is not convex at these parameter values, so its optimality conditions do not decide it."
    )
    INVALID_INPUT = "A parameter value is NaN or infinite, or breaks the sign that its Parameter declares."
    ITERATION_LIMIT = "The iteration limit was reached before a stationary point; raise max_iterations."
    TIME_LIMIT = "The time limit was reached before a stationary point; raise time_limit."
    FAILED = "The numerical solver broke down on this instance; rescale the data or try another solver."


@dataclass(frozen=True)
class Stats:
    """Measurements of one solve; quantities are in the units of the user's own model.

    Attributes:
        solver: its name.
        starts: searches.
        iterations: of the solver's own kind.
        seconds: by the clock; of a batch, an item's share.
        residual: largest violation of the KKT conditions of the bilevel program's reformulation, absolute, scaled by
            1 + |data|; of a lower level written in torch the norm of its gradient (of the projected step over its length,
            under a projection).
        violation: largest violation of any constraint of either level, the follower's stationarity included.
        biactive: number of complementarity pairs with both the multiplier and the slack at zero.
        degenerate: number of active constraints or biactive sides whose own multiplier is zero (a kink: one-sided
            derivatives may differ).
        strongly_stationary: multipliers of the right sign exist at every biactive pair, so the point is a local optimum.
        singular: the KKT matrix at the solution's active set is singular; the gradient is then the minimum-norm one.
        follower_gap: the follower's objective here minus its optimum given x, from an independent re-solve; None if not
            asked.
        leader_gap: the same for the leader of a zero-sum game, given the follower's answer.
        follower: with several followers and status INFEASIBLE_LOWER, the index of the first that has no feasible answer,
            whatever the others do; None if that is not known.
        bound: best proven bound on the upper objective, in the user's sense; None if none is known.
        gap: how far the value may be from the optimum, |value - bound| / (1 + |value|); None without a bound or a point.
        cuts: how often a combinatorial program's search cut.
        follower_solves: how often it asked the follower.
        rounding: by how much costs rounded to whole numbers may mislead its optimum.
        cause: what stopped an item that no solver could report on, such as the death of its process, that its value is
            approached but not attained, or that a loss has settled short of its tolerance; empty otherwise.
        error: of a lower level written in torch, a bound on |y - y*|, from the residual and the strong convexity given to
            the solver; else None.
        adjoint_residual: after the backward pass, how well |H q - dL/dy| was solved; None where nobody measured.
        adjoint_steps: after how many products.
        gradient_bound: the bound on the gradient's error that an ErrorBound was asked for.
        gradient_bound_before: the one that tolerances or numbers of steps had promised; None where they promise none.
        bound_estimated: whether a constant in them is an estimate.
    """

    solver: str = ""
    starts: int = 0
    iterations: int = 0
    seconds: float = 0.0
    residual: float = np.inf
    violation: float = np.inf
    biactive: int = 0
    degenerate: int = 0
    strongly_stationary: bool = False
    singular: bool = False
    follower_gap: float | None = None
    leader_gap: float | None = None
    follower: int | None = None
    bound: float | None = None
    gap: float | None = None
    cuts: int = 0
    follower_solves: int = 0
    rounding: float = 0.0
    cause: str = ""
    error: float | None = None
    adjoint_residual: float | None = None
    adjoint_steps: int = 0
    gradient_bound: float | None = None
    gradient_bound_before: float | None = None
    bound_estimated: bool = False

    def with_gap(self, gap: float) -> Stats:
        """These stats with the follower's gap filled in."""
        return replace(self, follower_gap=gap)

    def with_follower(self, index: int | None) -> Stats:
        """These stats with the follower that has no answer filled in."""
        return replace(self, follower=index)


@dataclass(frozen=True, eq=False)
class Point:
    """What a later solve may start from.

    Z = (x, y), and for each complementarity pair whether it is on the side slack = 0. free, singular: the active set of
    that solution and whether its KKT matrix was singular, as in Outcome; None if not known.
    """

    z: np.ndarray
    tight: np.ndarray
    free: np.ndarray | None = None
    singular: bool = False


@dataclass(frozen=True, eq=False)
class Outcome:
    """A solved batch as arrays, one row an item: what solvers return and gradient rules read.

    z: (batch, size) values of x then y. w: all unknowns and multipliers of the program's reformulation, in the order of
    the form that was solved (`smooth` or quadratic); free: which of them were not held at zero. tight: (batch, pairs),
    the side of each pair. value and bound: upper objective, minimised. The other arrays are the fields of Stats. units:
    (unknowns,) or (batch, unknowns), factors of w in which the program's numbers are of order one, None if the solver
    knows none. factors: the KKT matrix ready for more solves (`bigrad.algebra.linear.Bordered`, `bigrad.algebra.exchange.Items` and
    their like), where the solver has it. cause: (batch,) strings, None if all are empty. form:
    the program whose unknowns w holds, where that is not the program that was solved. effort: (batch, 3), cuts,
    follower_solves and rounding of Stats, None if there were none.
    """

    solver: str
    smooth: bool
    status: np.ndarray
    z: Any
    w: Any
    free: Any
    tight: np.ndarray
    value: np.ndarray
    bound: np.ndarray
    starts: np.ndarray
    iterations: np.ndarray
    residual: np.ndarray
    violation: np.ndarray
    biactive: np.ndarray
    degenerate: np.ndarray
    strongly_stationary: np.ndarray
    singular: np.ndarray
    seconds: np.ndarray
    units: np.ndarray | None = None
    factors: Any = None
    cause: np.ndarray | None = None
    form: Any = None
    effort: np.ndarray | None = None

    @staticmethod
    def join(parts: Sequence[Outcome]) -> Outcome:
        """Outcomes of consecutive parts of a batch as one."""
        if len(parts) == 1:
            return parts[0]
        arrays = {f.name: [getattr(p, f.name) for p in parts] for f in fields(Outcome)}
        units, cause, _ = (arrays.pop(name) for name in ("units", "cause", "factors"))
        joined: dict[str, Any] = {
            k: np.concatenate(v) if isinstance(v[0], np.ndarray) else v[0] for k, v in arrays.items()
        }
        if any(u is not None for u in units):  # each part has its own
            joined["units"] = np.concatenate(
                [np.broadcast_to(1.0 if u is None else u, p.w.shape) for u, p in zip(units, parts, strict=True)]
            )
        if any(c is not None for c in cause):
            joined["cause"] = np.concatenate(
                [np.full(len(p.status), "") if c is None else c for c, p in zip(cause, parts, strict=True)]
            )
        return Outcome(**joined)

    def with_items(self, items: np.ndarray, part: Outcome) -> Outcome:
        """This outcome with some items replaced by those of another, whose arrays are numpy's."""
        arrays = {f.name: getattr(self, f.name) for f in fields(Outcome)}
        for name, array in arrays.items():
            fresh = getattr(part, name)
            if name in ("solver", "smooth", "units", "factors") or array is fresh is None:
                continue
            if name == "cause":
                array, fresh = (
                    np.full(size, "") if c is None else c for c, size in ((array, len(self.z)), (fresh, len(items)))
                )
                array = array.astype(object)
            if not isinstance(array, np.ndarray):
                fresh = array.new_tensor(fresh, dtype=array.dtype)
            arrays[name] = array.copy() if isinstance(array, np.ndarray) else array.clone()
            arrays[name][items] = fresh
        return Outcome(**arrays | {"factors": None})

    def on_host(self) -> Outcome:
        """This outcome with numpy arrays only."""
        arrays: dict[str, Any] = {k: getattr(self, k) for k in ("z", "w", "free")}
        moved: dict[str, Any] = {k: v if isinstance(v, np.ndarray) else v.cpu().numpy() for k, v in arrays.items()}
        return replace(self, **moved, factors=self.factors if isinstance(self.w, np.ndarray) else None)

    @cached_property
    def ok(self) -> np.ndarray:
        """Which items hold a usable point, bool (batch,)."""
        return np.array([s.ok for s in self.status], dtype=bool)

    def stats(self, i: int, sign: float) -> Stats:
        """The Stats of item i; `sign` is -1 where the leader maximises."""
        return Stats(
            solver=self.solver,
            starts=int(self.starts[i]),
            iterations=int(self.iterations[i]),
            seconds=float(self.seconds[i]),
            residual=float(self.residual[i]),
            violation=float(self.violation[i]),
            biactive=int(self.biactive[i]),
            degenerate=int(self.degenerate[i]),
            strongly_stationary=bool(self.strongly_stationary[i]),
            singular=bool(self.singular[i]),
            bound=sign * float(self.bound[i]) if np.isfinite(self.bound[i]) else None,
            gap=self._gap(i),
            cuts=0 if self.effort is None else int(self.effort[i, 0]),
            follower_solves=0 if self.effort is None else int(self.effort[i, 1]),
            rounding=0.0 if self.effort is None else float(self.effort[i, 2]),
            cause="" if self.cause is None else str(self.cause[i]),
        )

    def _gap(self, i: int) -> float | None:
        value, bound = float(self.value[i]), float(self.bound[i])
        known = self.status[i].ok and np.isfinite(bound)
        return max(value - bound, 0.0) / (1 + abs(value)) if known else None

    def point(self, i: int) -> Point | None:
        """Where a later solve may start from; None for an item that failed."""
        return Point(self.z[i], self.tight[i], self.free[i], bool(self.singular[i])) if self.status[i].ok else None


@dataclass(frozen=True, eq=False)
class Solution:
    """A frozen result: `solution[x]` is the value of variable x, NaN where the status is not ok.

    `solution[c.dual_variables[0]]` is the price of the lower constraint c. value: upper objective in the user's own sense.
    lower_value: lower objective in the user's own sense, a tuple of them for several followers. point: where a later
    solve may start from; None where the status is not ok. values, prices: all of both, by the user's own objects. status,
    stats: what is claimed, and what was measured.
    """

    status: Status
    value: float
    lower_value: float | tuple[float, ...]
    stats: Stats
    values: Mapping[Any, np.ndarray] = field(repr=False)
    prices: Mapping[Any, np.ndarray] = field(default_factory=dict, repr=False)
    point: Point | None = field(default=None, repr=False)

    def __getitem__(self, variable: Any) -> np.ndarray:
        """Value of one of the program's variables or prices, in its own shape; of a list of variables, their values."""
        if isinstance(variable, list | tuple):
            return np.array([self[v] for v in variable])
        try:
            return self.values[variable] if variable in self.values else self.prices[variable]
        except KeyError:
            known = ", ".join(str(v) for v in list(self.values)[:NAMED])
            known += f" and {len(self.values) - NAMED} more" if len(self.values) > NAMED else ""
            raise KeyError(
                f"{type(variable).__name__} '{variable}' is not a variable of this program, which has {known}; "
                f"nor the dual variable of a lower constraint that involves the follower."
            ) from None


class BigradError(Exception):
    """Every exception that bigrad raises on purpose."""


class DeclarationError(BigradError, ValueError):
    """A program was declared that cannot mean what it says; the message says what to change."""


class InputError(BigradError, ValueError):
    """A value handed to a program or layer has the wrong name, shape, type or sign."""


class CapabilityError(BigradError, TypeError):
    """The chosen solver or gradient rule cannot handle this program; the message names those that can."""


class SingularWarning(UserWarning):
    """A gradient was asked for where the solution is not unique; the minimum-norm choice was returned."""


class SolveWarning(UserWarning):
    """A solve stopped short of its tolerance, or one that a gradient rule needs failed; the gradients concerned are inexact,
    or NaN."""


class SolveError(BigradError, RuntimeError):
    """Items of a batch could not be solved. `failures` maps the index in the batch to its Status."""

    def __init__(self, message: str, failures: Mapping[int, Status]):
        super().__init__(message)
        self.failures = dict(failures)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.failures)
