"""Program: a declared, frozen program of two levels, or one.

What it takes in, what it gives out, and the forms in which solvers may have it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from bigrad.affine import Affine, Array, flatten, namespace, unflatten
from bigrad.quadratic import Maps
from bigrad.solution import CapabilityError, InputError, Outcome, Point, Solution


@dataclass(frozen=True, eq=False)
class Input:
    """One parameter of the program.

    The user's own object, its name and shape, and the sign it declares (+1, -1 or 0).
    """

    handle: Any
    name: str
    shape: tuple[int, ...]
    sign: int = 0


@dataclass(frozen=True, eq=False)
class Unknown:
    """One variable of the program: the user's own object, its name, shape and level, and its place in z = (x, y)."""

    handle: Any
    name: str
    shape: tuple[int, ...]
    leader: bool
    place: slice

    def read(self, v: Array, multipliers: slice) -> Array:
        """Its flat value in v = (x, y, …), or in the part z = (x, y) of it."""
        return v[..., self.place]


@dataclass(frozen=True, eq=False)
class Price:
    """The price of one lower constraint: its dual variable, a name, its shape, and the linear map to it from (lam, nu)."""

    handle: Any
    name: str
    shape: tuple[int, ...]
    weights: Affine

    def read(self, v: Array, multipliers: slice) -> Array:
        """Its flat value in v, whose multipliers (lam, nu) stand in the slice."""
        return self.weights((v[..., multipliers],))


class Solver(Protocol):
    """What a program needs of a solver; bigrad/solvers/base.py has the contract."""

    def accepts(self, program: Program) -> str | None:
        """None, or the sentence that says why this solver cannot take the program."""

    def solve(
        self, program: Program, theta: tuple[np.ndarray, ...], warm_start: Sequence[Any] | None = None
    ) -> Outcome:
        """Solve a batch."""

    def choose(self, program: Program) -> tuple[Solver, str]:
        """The solver that will do the work, and why."""


class Source(Protocol):
    """The front end that a program came from: it alone knows the user's objects."""

    def publish(self, values: Mapping[Any, np.ndarray | None]) -> None:
        """Fill `.value` of the user's variables (None clears it)."""

    def lower_value(
        self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]
    ) -> float | tuple[float, ...]:
        """Lower objective in the user's own sense; one for each of several followers."""

    def follower_gap(self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]) -> float:
        """Lower objective at the point minus its optimum for the same x, by an independent solver; the largest of several
        followers', each against the answers of the others.
        """


@dataclass(frozen=True, eq=False)
class Program:
    """A declared program, made by `bigrad.bilevel` or `bigrad.argmin`; it never changes and is safe to share between
    threads. One level is an upper level without a follower.

    quadratic: the program as a bilevel quadratic program, or None. convex: whether its upper level is convex in z = (x,
    y). smooth: the program as a smooth program with complementarity pairs, built when first needed. sign: +1 where the
    leader minimises, -1 where it maximises. prices: the prices of the lower constraints that involve a follower. followers:
    how many there are. integers: places in z of the leader's integer variables.
    """

    inputs: tuple[Input, ...]
    unknowns: tuple[Unknown, ...]
    sign: float
    quadratic: Maps | None
    convex: bool
    why_not_quadratic: str
    smooth: Any
    source: Source = field(repr=False)
    default: Solver = field(repr=False)
    rebuild: tuple[Any, ...] = field(repr=False)
    prices: tuple[Price, ...] = field(default=(), repr=False)
    followers: int = 1
    integers: tuple[int, ...] = ()

    @property
    def layout(self) -> Any:
        """The sizes of the form in which solvers have the program, and with them the order of w."""
        return self.quadratic.sizes if self.quadratic else self.smooth.layout

    @property
    def multipliers(self) -> slice:
        """Where (lam, nu) stand in w."""
        _, _, lam, nu, *_ = self.layout.blocks
        return slice(lam.start, nu.stop)

    @property
    def offers(self) -> frozenset[str]:
        """What a gradient rule may rely on: `kkt`, the optimality conditions of both levels; `quadratic`, that they are
        linear but for the pairs.
        """
        return frozenset({"kkt", "quadratic"} if self.quadratic else {"kkt"})

    def nudged(self, weight: float) -> Program:
        """The quadratic program with weight |v|^2 / 2 + n'v added to its minimised upper objective, v all variables in the
        order of `unknowns`, n one more input.
        """
        assert self.quadratic is not None
        own = np.concatenate([np.arange(u.place.start, u.place.stop) for u in self.unknowns])
        more = Input(None, "nudge", (len(own),))
        return replace(
            self, inputs=(*self.inputs, more), quadratic=self.quadratic.nudged(own, weight, len(self.inputs))
        )

    def solve(
        self,
        values: Mapping[Any, Any] | None = None,
        *,
        solver: Solver | None = None,
        warm_start: Solution | None = None,
        verify: bool = False,
    ) -> Solution:
        """Solve at the given parameter values, fill `.value` of the user's variables, and return the Solution.

        The dual values of lower constraints are filled too. values: maps parameters to arrays of their shapes; those left
        out take their own `.value`. solver:
        `bigrad.Auto()` if left out. warm_start: a Solution of this program to start from. verify: re-solve the follower
        at the returned x with another solver and report `stats.follower_gap`. Failures are statuses, not exceptions;
        values that do not fit raise InputError, a solver that cannot take the program CapabilityError.
        """
        given = self._given(values or {})
        solver = self.checked(solver)
        theta = tuple(flatten(given[i.handle], len(i.shape)) for i in self.inputs)
        outcome = solver.solve(self, theta, None if warm_start is None else self.points([warm_start]))
        solution = self.solutions(outcome, given, verify=verify)[0]
        found = {**solution.values, **solution.prices}
        self.source.publish({k: v.copy() if solution.status.ok else None for k, v in found.items()})
        return solution

    def points(self, solutions: Sequence[Solution]) -> list[Point | None]:
        """Where solves may start from, checked to be of this program."""
        layout = self.layout
        points = [s.point for s in solutions]
        for i, point in enumerate(points):
            if point is not None and (len(point.z), len(point.tight)) != (layout.x + layout.y, layout.pairs):
                raise InputError(f"warm_start: Solution {i} is of another program; give Solutions of this one.")
        return points

    def checked(self, solver: Solver | None) -> Solver:
        """The solver, `Auto()` for None, refused with its own sentence where it cannot take this program."""
        solver = self.default if solver is None else solver
        if reason := solver.accepts(self):
            raise CapabilityError(reason)
        return solver

    def explain(self, solver: Solver | None = None) -> str:
        """What kind of program this is, which solver would take it, and why; for a person to read."""
        kind = "quadratic" if self.quadratic else f"smooth ({self.why_not_quadratic})"
        leader = sum(int(np.prod(u.shape)) for u in self.unknowns if u.leader)
        follower = sum(int(np.prod(u.shape)) for u in self.unknowns if not u.leader)
        who = "follower" if self.followers == 1 else f"{self.followers} followers"
        whose = f"leader {leader}, {who} {follower}" if follower else str(leader)
        lines = [
            f"{'Bilevel' if follower else 'One-level'} program, {kind}. Variables: {whose}. Parameters: {len(self.inputs)}."
        ]
        if self.quadratic:
            s = self.quadratic.sizes
            lines.append(
                f"As arrays: variables {s.x} + {s.y}; complementarity pairs {s.pairs}; follower equalities {s.equalities}; "
                f"upper inequalities {s.upper}, equalities {s.upper_equalities}; upper level "
                f"{'convex' if self.convex else 'not convex'}."
            )
        chosen, why = self.checked(solver).choose(self)
        return "\n".join([*lines, f"Solver: {chosen}. {why}"])

    def solutions(self, outcome: Outcome, given: Mapping[Any, np.ndarray], *, verify: bool = False) -> list[Solution]:
        """One Solution per item of an outcome.

        `given` maps parameters to arrays with or without the batch dimension.
        """
        prices = [(p.handle, p.shape, p.read(outcome.w, self.multipliers)) for p in self.prices]
        found = []
        for i in range(len(outcome.status)):
            ok, inputs = outcome.status[i].ok, {k: _item(v, i, k.ndim) for k, v in given.items()}
            z, value = (outcome.z[i].copy(), outcome.value[i]) if ok else (np.full(outcome.z.shape[1], np.nan), np.nan)
            values = {u.handle: unflatten(z[u.place], u.shape) for u in self.unknowns}
            priced = {h: unflatten(a[i] if ok else np.full(a.shape[1], np.nan), s) for h, s, a in prices}
            stats = outcome.stats(i, self.sign)
            lower = self.source.lower_value(inputs, values) if ok else np.nan
            if verify and ok:
                stats = stats.with_gap(self.source.follower_gap(inputs, values))
            point, value = outcome.point(i), self.sign * float(value)
            found.append(Solution(outcome.status[i], value, lower, stats, values, priced, point))
        return found

    def invalid(self, theta: Sequence[Array], batch: int) -> np.ndarray:
        """Items with a NaN, an infinity or a wrong sign among their inputs, bool (batch,)."""
        bad = np.zeros(batch, bool)
        for i, value in zip(self.inputs, theta, strict=True):
            fine = namespace(value).isfinite(value)
            bad |= ~np.asarray((fine & (value * i.sign >= 0) if i.sign else fine).all(-1).tolist(), dtype=bool)
        return bad

    def _given(self, values: Mapping[Any, Any]) -> dict[Any, np.ndarray]:
        known = {id(i.handle) for i in self.inputs}
        for key in values:
            if id(key) not in known:
                names = ", ".join(i.name for i in self.inputs) or "none"
                raise InputError(
                    f"solve(values): {type(key).__name__} '{key}' is not a parameter of this program; its parameters are: {names}."
                )
        given = {}
        for i in self.inputs:
            value = values.get(i.handle, i.handle.value)
            if value is None:
                raise InputError(
                    f"solve(values): parameter '{i.name}' has no value; pass values={{{i.name}: …}} or set its .value."
                )
            try:
                array = np.asarray(value, dtype=float)
            except (TypeError, ValueError):
                raise InputError(
                    f"solve(values): parameter '{i.name}' needs real numbers, got {type(value).__name__}."
                ) from None
            if array.shape != i.shape:
                raise InputError(
                    f"solve(values): parameter '{i.name}' has shape {i.shape}, but its value has shape {array.shape}."
                )
            given[i.handle] = array
        return given

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return self.rebuild


def _item(value: np.ndarray, i: int, ndim: int) -> np.ndarray:
    return value[i] if value.ndim > ndim else value
