"""MAID against fixed tolerances, on the quadratic of its authors' repository (github.com/MohammadSadeghSalehi/MAID, Quadratic.py).

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_maid.py

    min over x of  F(x) = |A1 y - b1|^2 / 2,    y = argmin |A2 y + A3 x - b2|^2 / 2,

1000 rows, 10 + 10 variables, torch seed 29 and its order of draws, computed in float64; x starts at ones, y at the point that b2 was made
from, FISTA with the exact constants, first step 0.01, as there. F is known in closed form, and it is what counts: (F - F*) / (F_0 - F*).

Lower iterations are those that `MAID.step` reports: steps of FISTA, and one for each prediction that had to be compared. The first look
of a solve at its gradient is not among them, neither here nor for the constant step; the last column but one counts everything, each time
that the lower loss was evaluated, be it for a step, a look, a prediction or an adjoint.

Two kinds of fixed choice. *Line search*: the same algorithm, tolerances held (the repository's own comparison); it ends where the
tolerance is too coarse to show a decrease. *Constant step*: 1 / L_F, which takes the curvature of F, unknown outside of examples;
one row gives it to MAID as well, as its first step.
Figure to meet: fewer lower-level iterations to the same upper loss than every fixed choice.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

import bigrad as bg

TARGETS = (0.3, 0.1, 0.05, 0.03, 0.01)


class Quadratic:
    """The problem, its constants, and its exact upper loss."""

    def __init__(self, rows: int = 1000, size: int = 10):
        draw = torch.Generator().manual_seed(29)
        a1, a2, a3 = (torch.rand(rows, size, generator=draw).double() for _ in range(3))
        y1, y2, x = (torch.rand(size, generator=draw).double() for _ in range(3))
        noise1, noise2 = (torch.randn(rows, generator=draw).double() for _ in range(2))
        b1, b2 = a1 @ y1 + 0.01 * noise1, a2 @ y2 + a3 @ x + 0.01 * noise2
        self.calls = 0

        def lower(x: Tensor, y: Tensor) -> Tensor:
            self.calls += 1
            return 0.5 * (a2 @ y + a3 @ x - b2).square().sum()

        self.program = bg.argmin(lower, responds=y2)
        self.upper: Callable[[Tensor], Tensor] = lambda y: 0.5 * (a1 @ y - b1).square().sum()
        self.ones = torch.ones(size, dtype=torch.float64)
        eigenvalues = torch.linalg.eigvalsh(a2.T @ a2)
        self.mu, self.L = float(eigenvalues[0]), float(eigenvalues[-1])
        coupling = float(torch.linalg.matrix_norm(a2.T @ a3, 2))
        self.limit = bg.ErrorBound(self.mu, float(torch.linalg.matrix_norm(a1, 2)) ** 2, coupling=coupling)
        answer = torch.linalg.solve(a2.T @ a2, a2.T)
        self.exact = lambda x: float(self.upper(answer @ (b2 - a3 @ x)))
        slope = a1 @ answer @ a3
        curvatures = torch.linalg.eigvalsh(slope.T @ slope)
        self.steepest, self.condition = float(curvatures[-1]), float(curvatures[-1] / curvatures[0])
        self.least = self.exact(torch.linalg.lstsq(slope, a1 @ answer @ b2 - b1).solution)
        self.first = self.exact(self.ones)

    def gap(self, x: Tensor) -> float:
        """How much of what can be gained is left."""
        return (self.exact(x.detach()) - self.least) / (self.first - self.least)

    def layer(self, tolerance: float) -> bg.Layer:
        """Lower level and adjoint solved to the same tolerance."""
        solver = bg.Descent(bg.FISTA(self.L, self.mu), steps=2000, tol=tolerance, mu=self.mu)
        return bg.Layer(self.program, solver=solver, gradient=bg.Implicit(bg.CG(atol=tolerance), bound=self.limit))


@dataclass
class Way:
    """What one choice took: for each target (upper steps, lower iterations, Hessian products) and evaluations of the lower loss."""

    reached: dict[float, tuple[int, int, int]] = field(default_factory=dict)
    gap: float = math.inf
    end: str = ""
    calls: dict[float, int] = field(default_factory=dict)
    seconds: float = 0.0

    def note(self, gap: float, taken: tuple[int, int, int], calls: int, targets: Sequence[float]) -> bool:
        """Whether all targets are met."""
        self.gap = gap
        for target in targets:
            if gap <= target:
                self.reached.setdefault(target, taken)
                self.calls.setdefault(target, calls)
        return len(self.reached) == len(targets)


def searched(
    problem: Quadratic, tolerance: float, fixed: bool, targets: Sequence[float] = TARGETS, lr: float = 0.01
) -> Way:
    """MAID from this tolerance, or with it held."""
    held = {"shrink": 1.0, "grow": 1.0} if fixed else {}
    x, way, begun = problem.ones.clone().requires_grad_(), Way(), time.perf_counter()
    optimiser = bg.MAID([x], problem.layer(tolerance), lr=lr, tolerance=tolerance, **held)
    lower = products = 0
    before = problem.calls
    for k in range(1500):
        step = optimiser.step(lambda layer: problem.upper(layer(x)))
        lower, products = lower + step.lower_iterations, products + step.hessian_products
        if way.note(problem.gap(x), (k + 1, lower, products), problem.calls - before, targets) or not step.status.ok:
            way.end = step.status.name
            break
    way.seconds = time.perf_counter() - begun
    return way


def constant(problem: Quadratic, tolerance: float, targets: Sequence[float] = TARGETS) -> Way:
    """Gradient descent with the step 1 / L_F, warm-started."""
    x, way, begun = problem.ones.clone().requires_grad_(), Way(end="DESCENT"), time.perf_counter()
    layer, memory, sgd = problem.layer(tolerance), bg.Memory(), torch.optim.SGD([x], lr=1 / problem.steepest)
    layer.gradient = layer.rule = bg.Implicit(bg.CG(atol=tolerance))
    lower = products = 0
    before = problem.calls
    for k in range(1500):
        call = memory.at([0])
        sgd.zero_grad()
        problem.upper(layer(x, warm_start=call)).backward()
        sgd.step()
        stats = call.solutions[0].stats
        lower, products = lower + stats.iterations, products + stats.adjoint_steps
        if way.note(problem.gap(x), (k + 1, lower, products), problem.calls - before, targets):
            break
    way.seconds = time.perf_counter() - begun
    return way


def main() -> None:
    problem = Quadratic()
    print(
        f"L {problem.L:.1f}, mu {problem.mu:.2f}, L_f {problem.limit.outer:.1f}, |B| {problem.limit.coupling:.1f}, ",
        end="",
    )
    print(
        f"L_F {problem.steepest:.1f}, condition of F {problem.condition:.1e}, F_0 {problem.first:.1f}, F* {problem.least:.4f}"
    )
    print("\nupper steps / lower iterations / Hessian products until so much of F_0 - F* is left")
    print(
        f"{'':<29}"
        + "".join(f"{target:>18}" for target in TARGETS)
        + f"{'left at the end':>18}{'evaluations to 0.03':>22}{'s':>7}"
    )
    rows = [(f"MAID from {e:.0e}", searched(problem, e, False)) for e in (1.0, 1e-1, 1e-3, 1e-5)]
    rows += [("MAID from 1e-01 and 1 / L_F", searched(problem, 1e-1, False, lr=1 / problem.steepest))]
    rows += [(f"line search, {e:.0e}", searched(problem, e, True)) for e in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)]
    rows += [(f"constant step, {e:.0e}", constant(problem, e)) for e in (1e-1, 1e-5)]
    for name, way in rows:
        cells = [" / ".join(map(str, way.reached[t])) if t in way.reached else "never" for t in TARGETS]
        print(f"{name:<29}" + "".join(f"{c:>18}" for c in cells) + f"{way.gap:>18.4f}", end="")
        print(f"{way.calls.get(0.03, '-'):>22}{way.seconds:>7.1f}", flush=True)


if __name__ == "__main__":
    main()
