"""MAID: descent by hypergradients just exact enough. Salehi, Mukherjee, Roberts and Ehrhardt, "An adaptively inexact first-order
method for bilevel optimization", SIAM J. Math. Data Sci. 7(3), 2025, arXiv 2308.10098; constants as in the authors' code
(github.com/MohammadSadeghSalehi/MAID).

With the lower level solved to |y - y*| <= epsilon and the adjoint to |H q - dL/dy| <= delta, the inexact gradient z has an error
of at most omega. If omega <= (1 - eta) |z|, -z is a descent direction of the exact loss F; and a step to x+ such that

    [L(x+) + e(x+)] - [L(x) - e(x)] + eta^2 alpha |z|^2 <= 0,      e >= |L - F| at the inexact y,

decreases F. Where either cannot be had, epsilon and delta are too coarse: they shrink; after a step they grow.

Not in the paper: L is corrected by the adjoint, which makes e quadratic in epsilon (bigrad/optim/inexact.py); lower levels start where
earlier answers point (predict.py); the lower level of a trial is solved only so far that e may be a tenth of alpha |z|^2; and the first
alpha is s'g / g'g, from the last step s and the change of gradient g (Barzilai and Borwein, IMA J. Numer. Anal. 1988).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from bigrad.layer import Layer
from bigrad.optim.inexact import Inexact, Slope, Upper, Value, norm
from bigrad.optim.levels import Level, Spent
from bigrad.optim.options import positive
from bigrad.solution import InputError, SolveError, Status

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


SHARE = 0.1
"""The error that a trial's loss may have, as a share of the decrease that its gradient promises."""


class Progress(Enum):
    """How a step of MAID ended. The value is a sentence for a person; `ok` says whether the parameters moved."""

    ok: bool

    def __init__(self, sentence: str):
        self.ok = self._name_ == "DESCENT"

    DESCENT = "The upper loss has decreased."
    STATIONARY = "No step: the gradient and its error together are within tol."
    STALLED = (
        "No step: no decrease could be shown at any length or tolerance tried. Tolerances are finer now, so call again; if it "
        "stays so, the loss is flat to within rounding, not differentiable, or constants given for the bound are too large."
    )
    UNSOLVED = (
        "No step: the lower level could not be solved as finely as descent is shown by. Near a stationary point that is the end; "
        "else raise the solver's steps."
    )


@dataclass(frozen=True)
class Step:
    """What `MAID.step` did.

    upper: the upper loss at the parameters as they are now, upper_error: how far it may be from that at the exact y*.
    tolerance, adjoint_tolerance: epsilon and delta at the end of the step's search. step: the multiple of the gradient that was
    subtracted from the first group, 0.0 without a step. gradient: its norm, at the parameters before; bound: omega, how far
    it may be from the exact one. estimated: whether constants behind the bounds are estimates, which prove nothing.
    lower_iterations: steps of lower solvers, and one for each prediction that was compared with where the solve would else have
    started; one that is good enough at once costs none. hessian_products: of adjoints; both without what estimates take. trials:
    step lengths tried. cause: what a solver complained about, if that ended the step.
    """

    status: Progress
    upper: float
    upper_error: float
    tolerance: float
    adjoint_tolerance: float
    step: float
    gradient: float
    bound: float
    estimated: bool
    lower_iterations: int
    hessian_products: int
    trials: int
    cause: str = ""


class MAID(torch.optim.Optimizer):
    """Gradient descent on an upper loss whose lower level is solved no more exactly than descent needs.

        layer = bg.Layer(bg.argmin(inner, responds=y0), solver=bg.Descent(mu=mu), gradient=bg.Implicit(bound=limit))
        optimiser = bg.MAID([x], layer, lr=0.1)
        while optimiser.step(lambda lower: loss(lower(x))).status.ok:
            ...

    Choose it where lower levels are dear and nobody knows how exactly to solve them, or how long a step to take. The layer
    says how they are solved, by a `Descent` and `Implicit(CG() | MINRES() | GMRES())`, whose tolerances MAID chooses: step by
    step by the bound on the gradient's error, and by a line search on inexact values with bounds on their errors. Adjoints start
    where they last ended, lower levels there or where the last `past` answers point, if the inner gradient is smaller there.

    Constants: those of the layer's `ErrorBound`. Without one, the strong convexity `Descent(mu=…)` has to be given, and the
    others are estimated as it goes, from below; `Step.estimated` says so.

    params: tensors, (name, tensor) pairs or parameter groups. lr: of a group, the step tried first; it is
    searched, so schedulers are not needed: all groups' are multiplied by `backtrack` while it fails, and before the next step
    by Barzilai and Borwein's factor, or by `extend` where the last one met no curvature. tolerance, adjoint_tolerance:
    epsilon and delta to start from, None for the same; multiplied by `shrink` where they are too coarse, by `grow` after a
    step; with shrink=1 and grow=1 they stay, to compare, and gradients are taken as they are. eta: how much of |z| must
    exceed its error. trials: step lengths tried with one gradient, at first, and one more each time; rounds: gradients tried
    in one step. tol: |z| + omega that counts as stationary.
    past: answers of each lower level that are kept to predict the next: so many times its parameters and twice its unknowns; 0 for
    none, where memory is short or each step has other data.

    State: that of the first parameter has epsilon and delta, the constants estimated, the last gradient, the lower solutions, adjoints
    and past answers, and totals of iterations and products. `state_dict` has all of it.

    Raises InputError for options out of range, CapabilityError for a layer that it cannot drive.
    """

    def __init__(
        self,
        params: Parameters,
        layer: Layer,
        *,
        lr: float = 0.01,
        tolerance: float = 0.1,
        adjoint_tolerance: float | None = None,
        eta: float = 1e-4,
        shrink: float = 0.5,
        grow: float = 1.25,
        backtrack: float = 0.5,
        extend: float = 2.0,
        trials: int = 10,
        rounds: int = 10,
        tol: float = 0.0,
        past: int = 10,
    ):
        if not isinstance(layer, Layer):
            raise InputError(f"MAID(layer={layer!r:.60}): give the bigrad.Layer of the lower level.")
        accuracy = tolerance if adjoint_tolerance is None else adjoint_tolerance
        positive("MAID", tolerance=tolerance, adjoint_tolerance=accuracy, grow=grow, extend=extend)
        below = {"eta": eta, "backtrack": backtrack} | ({} if shrink == grow == 1 else {"shrink": shrink})
        for name, value in below.items():
            if not 0 < value < 1:
                raise InputError(f"MAID({name}={value!r}): give a number between 0 and 1.")
        if grow < 1 or extend < 1 or not 0 <= tol < math.inf or min(trials, rounds) < 1 or past < 0:
            raise InputError(
                f"MAID(grow={grow}, extend={extend}, tol={tol}, trials={trials}, rounds={rounds}, past={past}): grow, extend, trials and "
                "rounds must be at least 1, tol and past positive or zero."
            )
        self.inexact = Inexact(layer, past)
        self.first = {"tolerance": tolerance, "adjoint_tolerance": accuracy}
        self.eta, self.shrink, self.grow, self.backtrack, self.extend = eta, shrink, grow, backtrack, extend
        self.trials, self.rounds, self.tol = trials, rounds, tol
        super().__init__(params, {"lr": lr})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters later: `{"params": …, "lr": …}`."""
        positive("MAID", lr=(self.defaults | param_group)["lr"])
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Upper) -> Step:  # type: ignore[override]
        """One step, or a status that says why there was none.

        closure: takes what stands for the layer, to be called like it, and returns the upper loss with its graph. It may be
        called several times, so it must be the same function throughout: draw a minibatch before the step. Several calls
        of the layer are several lower levels, in an order that stays; the loss is then a sum of terms with one of them each. What
        the lower level is given must be the parameters themselves, or constants; they may enter the loss directly too, in terms
        that no y is in.

        Raises InputError if the closure returns no finite scalar, and SolveError where the lower level has no strict minimum;
        parameters are then as before.
        """
        moving = [(p, g) for g in self.param_groups for p in g["params"] if p.requires_grad]
        if not moving:
            raise InputError("MAID.step: no parameter requires a gradient.")
        return _Search(self, closure, moving).run()

    def memory(self) -> dict[str, Any]:
        """What is kept between steps: the state of the first parameter."""
        fresh = self.first | {
            "constants": {},
            "levels": [],
            "descent": [],
            "lower_iterations": 0,
            "hessian_products": 0,
            "steps": 0,
        }
        state: dict[str, Any] = self.state[self.param_groups[0]["params"][0]]
        for name, value in fresh.items():
            state.setdefault(name, value)
        return state


class _Search:
    """One step. seen: the loss and its gradient at the tolerances that were last good enough to solve with."""

    def __init__(self, owner: MAID, closure: Upper, moving: list[tuple[Tensor, dict[str, Any]]]):
        self.owner, self.closure, self.memory = owner, closure, owner.memory()
        self.params, self.groups = [p for p, _ in moving], [g for _, g in moving]
        self.tolerances = float(self.memory["tolerance"]), float(self.memory["adjoint_tolerance"])
        start = owner.inexact.inner.start
        self.levels = [Level.kept(start, **kept) for kept in self.memory["levels"]]
        self.constants: dict[str, float] = dict(self.memory["constants"])
        self.spent, self.trials, self.length = Spent(), 0, 0.0
        self.rates: list[float] = []
        self.seen: Slope | None = None

    def run(self) -> Step:
        """The step, remembered."""
        owner, status, cause = self.owner, Progress.STALLED, ""
        try:
            for k in range(owner.rounds):
                seen = self._steep()
                if norm(seen.gradient) + seen.bound <= owner.tol:
                    status = Progress.STATIONARY
                    break
                if reached := self._shorter(seen, owner.trials + k):
                    return self._settled(Progress.DESCENT, seen, reached, "")
                self._tighten()
        except SolveError as error:
            if self.seen is None or set(error.failures.values()) != {Status.ITERATION_LIMIT}:
                raise
            status, cause = Progress.UNSOLVED, str(error)
            self.tolerances = self.seen.tolerances
        assert self.seen is not None
        return self._settled(status, self.seen, self.seen.value, cause)

    def _steep(self) -> Slope:
        """The gradient, at tolerances fine enough that it descends or is stationary, and a first step could be seen to."""
        owner, inexact = self.owner, self.owner.inexact
        while True:
            look = inexact.look(self.closure, self.params, self.tolerances, self.levels, self.spent)
            self.seen = seen = inexact.slope(look, self.closure, self.params, self.constants, self.seen is None)
            self.levels, self.tolerances = seen.value.levels, seen.tolerances
            self.rates = self._first(seen)
            enough, long = (1 - owner.eta) * self._turn(seen), norm(self._scaled(seen))
            sharp = seen.bound * long <= enough and 2 * seen.value.error <= self._turn(seen)
            if owner.shrink == 1 or sharp or norm(seen.gradient) + seen.bound <= owner.tol:
                return seen
            if seen.finest and seen.adjoint_bound * long > enough:
                raise SolveError(
                    f"The adjoint system cannot be solved more exactly in this precision than to {self.tolerances[1]:.1e}.",
                    {0: Status.ITERATION_LIMIT},
                )
            self._tighten()

    def _first(self, seen: Slope) -> list[float]:
        """The rates to try first: by Barzilai and Borwein's second formula where the last step met curvature, else longer ones."""
        rates, last, owner = [float(g["lr"]) for g in self.groups], self.memory["descent"], self.owner
        if [t.shape for t in last] != [g.shape for g in seen.gradient]:
            return rates
        turns = [(z - old, old) for z, old in zip(seen.gradient, last, strict=True)]
        bend = -sum(rate * float((old * turn).sum()) for rate, (turn, old) in zip(rates, turns, strict=True))
        size = sum(rate * float((turn**2).sum()) for rate, (turn, _) in zip(rates, turns, strict=True))
        factor = min(bend / size, owner.backtrack**-owner.trials) if bend > 0 else owner.extend
        return [factor * rate for rate in rates]

    def _shorter(self, seen: Slope, trials: int) -> Value | None:
        """The first of the points x - alpha z, alpha ever shorter, that is surely lower; None, and back at x, if none is."""
        owner, inexact, before = self.owner, self.owner.inexact, [p.clone() for p in self.params]
        turn, moves, low = self._turn(seen), self._scaled(seen), seen.value.loss - seen.value.error
        found = None
        try:
            for k in range(trials):
                share = owner.backtrack**k
                if share * turn <= 2 * seen.value.error:  # no step so short can be seen to descend
                    break
                self.trials += 1
                for p, old, move in zip(self.params, before, moves, strict=True):
                    p.copy_(old - share * move)
                wide = inexact.slack(SHARE * share * turn, self.tolerances, self.levels, self.constants)
                factor = max(1.0, wide) if owner.shrink < 1 else 1.0
                tolerances = factor * self.tolerances[0], factor * self.tolerances[1]
                try:
                    look = inexact.look(self.closure, self.params, tolerances, self.levels, self.spent)
                except SolveError:  # too far away
                    continue
                there = inexact.value(look, self.constants)
                if there.loss + there.error - low + owner.eta**2 * share * turn <= 0:
                    found, self.length, self.tolerances = there, share, tolerances
                    return there
                for level, tried in zip(self.levels, look.levels, strict=True):
                    level.past = tried.past
        finally:
            if found is None:
                for p, old in zip(self.params, before, strict=True):
                    p.copy_(old)
        return None

    def _scaled(self, seen: Slope) -> list[Tensor]:
        return [rate * g for rate, g in zip(self.rates, seen.gradient, strict=True)]

    def _turn(self, seen: Slope) -> float:
        """z'P z, P the rates of the groups; for one group alpha |z|^2."""
        return sum(rate * float((g**2).sum()) for rate, g in zip(self.rates, seen.gradient, strict=True))

    def _tighten(self) -> None:
        self.tolerances = self.owner.shrink * self.tolerances[0], self.owner.shrink * self.tolerances[1]

    def _settled(self, status: Progress, seen: Slope, value: Value, cause: str) -> Step:
        """What is reported and remembered. At an exception neither is done."""
        owner, memory = self.owner, self.memory
        grown = owner.grow if status.ok else 1.0
        if status.ok:
            factor = self.length * self.rates[0] / self.groups[0]["lr"]
            for group in owner.param_groups:
                group["lr"] *= factor
            memory["descent"] = seen.gradient
        memory["tolerance"], memory["adjoint_tolerance"] = (grown * t for t in self.tolerances)
        memory["levels"] = [vars(level) for level in value.levels]
        memory["constants"] = self.constants
        memory["lower_iterations"] += self.spent.iterations
        memory["hessian_products"] += self.spent.products
        memory["steps"] += status.ok
        return Step(
            status=status,
            upper=value.loss,
            upper_error=value.error,
            tolerance=self.tolerances[0],
            adjoint_tolerance=self.tolerances[1],
            step=self.length * self.rates[0],
            gradient=norm(seen.gradient),
            bound=seen.bound,
            estimated=seen.estimated,
            lower_iterations=self.spent.iterations,
            hessian_products=self.spent.products,
            trials=self.trials,
            cause=cause,
        )
