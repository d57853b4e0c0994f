"""Program: a declared, frozen program of two levels, or one.

What it takes in, what it gives out, and the forms in which solvers may have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import scipy.sparse as sp

from bigrad.algebra.affine import Array, flatten, namespace, product, unflatten
from bigrad.algebra.quadratic import Maps
from bigrad.discrete.combinatorial import Combinatorial
from bigrad.handles import Decisions, listed, same
from bigrad.solution import CapabilityError, InputError, Outcome, Point, Solution, Status

if TYPE_CHECKING:
    from bigrad.inner import Bound, Inner


@dataclass(frozen=True, eq=False)
class Input:
    """One parameter of the program.

    The user's own object, its name and shape, and the sign it declares (+1, -1 or 0). default: its value where none is
    given, for handles that have none of their own.
    """

    handle: Any
    name: str
    shape: tuple[int, ...]
    sign: int = 0
    default: np.ndarray | None = None

    @property
    def value(self) -> Any:
        """What it is where no value is given; None if nothing is known."""
        return self.handle.value if self.default is None else self.default


@dataclass(frozen=True, eq=False)
class Unknown:
    """One variable of the program, or one dual variable: the user's own object, its name, shape and level.

    place: where it stands in w, which starts with z = (x, y), or the sparse matrix that reads it out of w.
    """

    handle: Any
    name: str
    shape: tuple[int, ...]
    leader: bool
    place: slice | sp.csr_array

    def read(self, w: Array) -> Array:
        """Its value in w, of shape (unknowns,) or (batch, unknowns)."""
        if not isinstance(self.place, slice) and w.shape[-1] != self.place.shape[1]:
            raise CapabilityError(
                f"{self.name} cannot be read from this solver's answer. Take Auto(), Pieces() or Relaxation()."
            )
        flat = w[..., self.place] if isinstance(self.place, slice) else product(self.place, w)
        return unflatten(flat, self.shape)


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

    def infeasible(self, inputs: Mapping[Any, np.ndarray]) -> int | None:
        """The first follower that has no feasible answer whatever everyone else does; None if none is known to be so."""


class Derived(Protocol):
    """Functions of a program's inputs that are data of it."""

    @property
    def names(self) -> tuple[str, ...]:
        """What they are."""

    @property
    def signs(self) -> tuple[int, ...]:
        """The sign that each is known to have, +1, -1 or 0."""

    def __call__(self, theta: tuple[Array, ...]) -> tuple[Array, ...]:
        """The inputs, and the functions' values behind them; for a combinatorial program the functions' values alone, the
        costs of decisions."""

    def idle(self, inputs: Mapping[Any, np.ndarray]) -> float:
        """What the inputs add to the upper objective whatever is decided, where its costs leave that out."""


@dataclass(frozen=True, eq=False)
class Program:
    """A declared program, made by `bigrad.bilevel` or `bigrad.argmin`; it never changes and is safe to share between
    threads. One level is an upper level without a follower.

    inputs, unknowns: its parameters and its variables. quadratic: the program as a bilevel quadratic program, or None.
    convex: whether its upper level is convex in z = (x, y). smooth: the program as a smooth program with
    complementarity pairs, built when first needed, or as a convex cone program of one level. sign: +1 where the leader
    minimises, -1 where it maximises. duals: the prices of the lower constraints that involve a follower, or, with one
    level, of all constraints, in CVXPY's signs. followers: how many there are. integers: places in z of the leader's
    integer variables. derived: further inputs as functions of the user's, or, of a combinatorial program, its costs; or
    None. saddle: the one convex program of a zero-sum game, with what tells its failures apart, or None. combinatorial:
    the program as a nested integer program that is a function of its costs, or None; it then has no other form. shown:
    the variables that a layer returns where none are named. inner: the program as a torch function to be minimised, or
    None; it then has no other form; bound: the same at the arguments of one call. why_not_quadratic, why_not_saddle:
    the reasons, for a person to read. source: the front end. default: the solver where none is named. rebuild: a
    function and its arguments, of which pickle makes the program again.
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
    duals: tuple[Unknown, ...] = field(default_factory=tuple, repr=False)
    followers: int = 1
    integers: tuple[int, ...] = ()
    derived: Derived | None = field(default=None, repr=False)
    saddle: Any = field(default=None, repr=False)
    why_not_saddle: str = "it has one level"
    combinatorial: Combinatorial | None = field(default=None, repr=False)
    shown: tuple[Any, ...] = field(default=(), repr=False)
    inner: Inner | None = field(default=None, repr=False)
    bound: Bound | None = field(default=None, repr=False)

    @property
    def layout(self) -> Any:
        """The sizes of the form in which solvers have the program, and with them the order of w."""
        if self.combinatorial:
            return self.combinatorial.layout
        if self.inner:
            return self.inner.layout
        return self.quadratic.sizes if self.quadratic else self.smooth.layout

    @property
    def outputs(self) -> tuple[Unknown, ...]:
        """All that a Solution holds: variables, then dual variables."""
        return (*self.unknowns, *self.duals)

    @property
    def offers(self) -> frozenset[str]:
        """What a gradient rule may rely on: `kkt`, the optimality conditions of both levels; `quadratic`, that they are
        linear but for the pairs; `costs`, that the inputs are costs of decisions; `inner`, a torch function that is
        minimised.
        """
        if self.inner:
            return frozenset({"kkt", "inner"})
        if self.combinatorial:
            return frozenset({"costs"})
        return frozenset({"kkt", "quadratic"} if self.quadratic else {"kkt"})

    def nudged(self, weight: float) -> Program:
        """The quadratic program with weight |v|^2 / 2 + n'v added to its minimised upper objective, v all variables in the
        order of `unknowns`; its inputs are the extended ones and n.
        """
        assert self.quadratic is not None
        own = np.concatenate([np.arange(u.place.start, u.place.stop) for u in self.unknowns])
        further = [Input(None, "", (), sign) for sign in (self.derived.signs if self.derived else ())]
        inputs = (*self.inputs, *further, Input(None, "nudge", (len(own),)))
        maps = self.quadratic.nudged(own, weight, len(inputs) - 1)
        return replace(self, inputs=inputs, derived=None, quadratic=maps)

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
        out take their own `.value`. solver: `bigrad.Auto()` if left out. warm_start: a Solution of this program to start
        from. verify: re-solve the follower at the returned x with another solver and report `stats.follower_gap`. Failures
        are statuses, not exceptions; values that do not fit raise InputError, a solver that cannot take the program
        CapabilityError.
        """
        given = self._given(values or {})
        solver = self.checked(solver)
        if self.inner:
            raise CapabilityError(
                "solve(…): a torch function's arguments have no names; use bigrad.Layer(program).solve(x)."
            )
        theta = tuple(flatten(given[i.handle], len(i.shape)) for i in self.inputs)
        points = None if warm_start is None else self.points([warm_start])
        outcome = solver.solve(self, self.extended(theta), points)
        solution = self.solutions(outcome, given, verify=verify)[0]
        if not self.combinatorial or not self.combinatorial.find:  # OR-Tools' variables hold no values
            found = {**solution.values, **solution.prices}
            self.source.publish({k: v.copy() if solution.status.ok else None for k, v in found.items()})
        return solution

    def extended(self, theta: tuple[Array, ...]) -> tuple[Array, ...]:
        """The flat inputs as solvers and gradient rules take them: behind the user's own, the functions of them that
        are data of the program. numpy or torch, whose autograd follows."""
        return theta if self.derived is None else self.derived(theta)

    def points(self, starts: Iterable[Solution | Point | None]) -> list[Point | None]:
        """Where solves may start from, checked to be of this program."""
        points = [
            s.point if isinstance(s, Solution) else s for s in (starts if isinstance(starts, Iterable) else [starts])
        ]
        if wrong := [p for p in points if not isinstance(p, Point | None)]:
            kind = type(wrong[0]).__name__
            raise InputError(f"warm_start: got {kind}; give a Solution for each item, or None, or memory.at(keys).")
        if self.combinatorial:  # what it may start from it remembers itself
            return [None] * len(points)
        layout = self.layout
        for i, point in enumerate(points):
            if point is not None and (len(point.z), len(point.tight)) != (layout.x + layout.y, layout.pairs):
                raise InputError(f"warm_start: Solution {i} is of another program; give Solutions of this one.")
        return points

    def checked(self, solver: Solver | None) -> Solver:
        """The solver, `Auto()` for None, refused with its own sentence where it cannot take this program."""
        solver = self.default if solver is None else solver
        if isinstance(solver, type) or not hasattr(solver, "accepts"):
            raise InputError(f"solver={solver!r:.80}: give a solver object, such as bigrad.Global(), or leave it out.")
        if reason := solver.accepts(self):
            kind = f"{solver} needs continuous variables; this program is {self.combinatorial and self.combinatorial.kind}. Use Cuts()."
            raise CapabilityError(kind if self.combinatorial else reason)
        return solver

    def explain(self, solver: Solver | None = None) -> str:
        """What kind of program this is, which solver would take it, and why; for a person to read."""
        chosen, why = self.checked(solver).choose(self)
        if self.inner:
            return f"{self.inner.kind}\nSolver: {chosen}. {why}"
        kind = "quadratic" if self.quadratic else f"not quadratic ({self.why_not_quadratic})"
        if self.combinatorial:
            kind = self.combinatorial.kind
        leader = sum(int(np.prod(u.shape)) for u in self.unknowns if u.leader)
        follower = sum(int(np.prod(u.shape)) for u in self.unknowns if not u.leader)
        who = "follower" if self.followers == 1 else f"{self.followers} followers together"
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
        if self.derived:
            lines.append(f"Functions of parameters, computed before every solve: {', '.join(self.derived.names)}.")
        return "\n".join([*lines, f"Solver: {chosen}. {why}"])

    def solutions(self, outcome: Outcome, given: Mapping[Any, np.ndarray], *, verify: bool = False) -> list[Solution]:
        """One Solution per item of an outcome.

        `given` maps parameters to arrays with or without the batch dimension.
        """
        found, home = [], outcome.form or self
        duals = home.duals if outcome.form or outcome.smooth == (self.quadratic is None) else ()
        for i in range(len(outcome.status)):
            ok = outcome.status[i].ok
            inputs = {n.handle: _item(given[n.handle], i, len(n.shape)) for n in self.inputs}
            w, value = (outcome.w[i].copy(), outcome.value[i]) if ok else (np.full(outcome.w.shape[1], np.nan), np.nan)
            values, prices = home.named(home.unknowns, w), home.named(duals, w)
            stats = outcome.stats(i, self.sign)
            if outcome.status[i] is Status.INVALID_INPUT and not stats.cause:
                stats = replace(stats, cause=self.fault(given, i))
            lower = self.source.lower_value(inputs, values) if ok else np.nan
            if verify and ok:
                stats = stats.with_gap(self.source.follower_gap(inputs, values))
                if home is not self:
                    stats = replace(stats, leader_gap=home.source.follower_gap(inputs, values))
            if outcome.status[i] is Status.INFEASIBLE_LOWER and self.followers > 1:
                stats = stats.with_follower(self.source.infeasible(inputs))
            point, value = outcome.point(i), self.sign * float(value)
            if self.combinatorial and self.derived:
                idle = self.derived.idle(inputs)
                value, stats = value + idle, replace(stats, bound=None if stats.bound is None else stats.bound + idle)
            found.append(Solution(outcome.status[i], value, lower, stats, values, prices, point))
        return found

    def unknown(self, handle: Any, what: str) -> Unknown:
        """One of a combinatorial program's variables, by the user's own object; `what` asks, in the message."""
        assert self.combinatorial
        assert self.combinatorial.find
        place = self.combinatorial.find(handle)
        if place is None or place < 0:
            raise InputError(f"{what}: {type(handle).__name__} '{handle}' is not a variable of this program's models.")
        return self.unknowns[place]

    def group(self, handles: Any) -> Unknown:
        """Several of a combinatorial program's variables as one, of the shape in which they are given."""
        shape, flat = listed(handles)
        own = [self.unknown(h, "Layer(variables=…)") for h in flat]
        places = np.array([u.place.start for u in own if isinstance(u.place, slice)])
        entries = (np.ones(len(own)), (np.arange(len(own)), places))
        matrix = sp.csr_array(entries, shape=(len(own), len(self.unknowns)))
        return Unknown(None, f"[{own[0].name}, …]", shape, own[0].leader, matrix)

    def named(self, unknowns: Sequence[Unknown], w: np.ndarray) -> Mapping[Any, np.ndarray]:
        """The values of some unknowns by the user's own objects."""
        if self.combinatorial and self.combinatorial.find:
            return Decisions(self.combinatorial.find, unknowns, w)
        return {u.handle: u.read(w) for u in unknowns}

    def invalid(self, theta: Sequence[Array], batch: int) -> np.ndarray:
        """Items with a NaN, an infinity or a wrong sign among their (extended) inputs, bool (batch,)."""
        bad = np.zeros(batch, bool)
        signs = (*(i.sign for i in self.inputs), *(self.derived.signs if self.derived else ()))
        if self.combinatorial and self.derived:  # it has seen to the signs itself
            signs = (0,) * len(theta)
        for sign, value in zip(signs, theta, strict=True):
            fine = namespace(value).isfinite(value)
            bad |= ~np.asarray((fine & (value * sign >= 0) if sign else fine).all(-1).tolist(), dtype=bool)
        return bad

    def fault(self, given: Mapping[Any, np.ndarray], i: int) -> str:
        """Which of an invalid item i's parameters are NaN, infinite or of the wrong sign, in a sentence."""
        values = [(n, _item(given[n.handle], i, len(n.shape))) for n in self.inputs]
        odd = [n.name for n, value in values if not np.isfinite(value).all()]
        wrong = [n.name for n, value in values if n.name not in odd and n.sign and (value * n.sign < 0).any()]
        found = [
            f"{', '.join(names)} {what}" for names, what in ((odd, "not finite"), (wrong, "of the wrong sign")) if names
        ]
        if not found and self.derived:
            found = [f"a function of them not finite or of the wrong sign, of {', '.join(self.derived.names)}"]
        return f"Here: {'; '.join(found) or 'an objective is not convex at these values'}."

    def _given(self, values: Mapping[Any, Any]) -> dict[Any, np.ndarray]:
        for key in values:
            if not any(same(i.handle, key) for i in self.inputs):
                names = ", ".join(i.name for i in self.inputs) or "none"
                what = "is not a parameter of this program"
                if isinstance(key, str) and any(i.name == key for i in self.inputs):
                    what = "is a name; the key is the Parameter object itself"
                raise InputError(f"solve(values): {type(key).__name__} '{key}' {what}; its parameters are: {names}.")
        given = {}
        for i in self.inputs:
            value = values.get(i.handle, i.value)
            if value is None:
                raise InputError(
                    f"solve(values): parameter '{i.name}' has no value; pass values={{{i.name}: …}} or set its .value."
                )
            try:
                array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, dtype=float)
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
