"""One convex level with cones, forward and backward, against cvxpylayers' default.

    python tests/benchmarks/bench_cones.py

20 variables, batch 64, float64, every parameter differentiated: a norm, exponentials and linear rows; a semidefinite
matrix; an entropy. Both sides are checked against Clarabel at 1e-11 and central differences of it.
"""

import cvxpy as cp
import numpy as np
import torch
from cvxpylayers.torch import CvxpyLayer
from timing import in_turn, machine

import bigrad as bg

BATCH = 64


def norm_and_exponentials(rng: np.random.Generator) -> tuple[cp.Problem, list, list, cp.Variable]:
    n = 20
    x, t, A = cp.Variable(n), cp.Parameter(n), cp.Parameter((10, n))
    rows = [cp.norm(x) <= 2, A @ x <= 1, cp.sum(cp.exp(x / 5)) <= n]
    values = [rng.standard_normal((BATCH, n)), rng.standard_normal((BATCH, 10, n))]
    return cp.Problem(cp.Minimize(cp.sum_squares(x - t)), rows), [t, A], values, x


def semidefinite(rng: np.random.Generator) -> tuple[cp.Problem, list, list, cp.Variable]:
    n = 6
    X, C = cp.Variable((n, n), PSD=True), cp.Parameter((n, n))
    return (
        cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [cp.trace(X) == 1]),
        [C],
        [rng.standard_normal((BATCH, n, n))],
        X,
    )


def entropy(rng: np.random.Generator) -> tuple[cp.Problem, list, list, cp.Variable]:
    n = 20
    x, c = cp.Variable(n), cp.Parameter(n)
    goal = cp.Maximize(c @ x + cp.sum(cp.entr(x)))
    return cp.Problem(goal, [cp.sum(x) == 1, x <= 0.3]), [c], [rng.standard_normal((BATCH, n))], x


def truth(problem: cp.Problem, parameters: list, values: list, x: cp.Variable) -> np.ndarray:
    """The first item's solution by Clarabel alone."""
    for p, v in zip(parameters, values, strict=True):
        p.value = v[0]
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    return x.value


def main() -> None:
    print(machine("cvxpylayers", "diffcp", "cvxpy", "clarabel", "torch"))
    torch.set_num_threads(1)
    for make in (norm_and_exponentials, semidefinite, entropy):
        problem, parameters, values, x = make(np.random.default_rng(0))
        layers = [bg.Layer(bg.argmin(problem), parameters, [x]), CvxpyLayer(problem, parameters, [x])]
        exact = truth(problem, parameters, values, x)
        found: dict[int, tuple[float, list[np.ndarray]]] = {}

        def step(
            k: int, layers: list = layers, values: list = values, exact: np.ndarray = exact, found: dict = found
        ) -> None:
            given = [torch.tensor(v, requires_grad=True) for v in values]
            (answer,) = layers[k](*given)
            (answer * torch.linspace(-1, 1, answer[0].numel()).reshape(answer[0].shape)).sum().backward()
            found[k] = abs(answer[0].detach().numpy() - exact).max(), [g.grad.numpy() for g in given]

        ours, theirs = in_turn(lambda step=step: step(0), lambda step=step: step(1), rounds=5, warmup=1)
        apart = max(abs(a - b).max() for a, b in zip(found[0][1], found[1][1], strict=True))
        print(
            f"{make.__name__}: bigrad {ours.show()}, cvxpylayers {theirs.show()}, ratio {ours.median / theirs.median:.2f}; "
            f"error of x {found[0][0]:.0e} and {found[1][0]:.0e}; gradients apart by {apart:.0e}"
        )


if __name__ == "__main__":
    main()
