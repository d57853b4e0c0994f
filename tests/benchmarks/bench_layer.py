"""A bilevel layer, forward and backward from scratch, against cvxpylayers' default on its lower level alone.

    python tests/benchmarks/bench_layer.py

10 leader and 20 follower variables, 30 constraints, batch 64, float64. The figure to meet: at most half of cvxpylayers'
time, with a KKT residual of at most 1e-8.
"""

import cvxpy as cp
import numpy as np
import torch
from cvxpylayers.torch import CvxpyLayer
from instances import Instance
from timing import in_turn, machine

import bigrad as bg

LEADER, FOLLOWER, ROWS, BATCH = 10, 20, 30, 64


def main() -> None:
    print(
        machine("cvxpylayers", "diffcp", "cvxpy", "daqp", "torch"), f"torch threads {torch.get_num_threads()}", sep=", "
    )
    for matrix in (False, True):
        compare(matrix)


def compare(matrix: bool) -> None:
    """One variant.

    The linear terms z and w are batched and differentiated, and with `matrix` the constraint matrix A too.
    """
    instance = Instance.random(LEADER, FOLLOWER, ROWS)
    x, y = cp.Variable(LEADER, name="x"), cp.Variable(FOLLOWER, name="y")
    z, w = cp.Parameter(FOLLOWER, name="z"), cp.Parameter(FOLLOWER, name="w")
    A = cp.Parameter((ROWS, FOLLOWER), name="A") if matrix else None
    shared = [w, A] if A is not None else [w]
    program = bg.bilevel(instance.upper(x, y, z), instance.lower(x, y, w, A), responds=[y])
    layer = bg.Layer(program, parameters=[z, *shared], variables=[x, y])

    rng = np.random.default_rng(1)
    theirs_in = [rng.standard_normal((BATCH, FOLLOWER))]
    if matrix:
        theirs_in.append(instance.A + 0.05 * rng.standard_normal((BATCH, ROWS, FOLLOWER)))
    inputs = [leaf(rng.standard_normal((BATCH, FOLLOWER))), *map(leaf, theirs_in)]
    leader = layer(*inputs)[0].detach()

    x_given, y_alone = cp.Parameter(LEADER, name="x"), cp.Variable(FOLLOWER, name="y")
    follower = CvxpyLayer(instance.lower(x_given, y_alone, w, A), parameters=[x_given, *shared], variables=[y_alone])

    def ours() -> None:
        answer = layer(*inputs)
        sum((part**2).sum() for part in answer).backward()

    def ours_forward() -> None:
        with torch.no_grad():
            layer(*inputs)

    def theirs() -> torch.Tensor:
        (answer,) = follower(leader, *inputs[1:])
        (answer**2).sum().backward()
        return answer.detach()

    both, forward, other = in_turn(ours, ours_forward, theirs)
    solutions = layer.solve(*inputs)
    verified = layer.solve(*(v[:8] for v in inputs), verify=True)
    exact = np.stack([instance.respond(leader[i].numpy(), *(v[i] for v in theirs_in)) for i in range(BATCH)])
    mistake = max(abs(s[y] - e).max() for s, e in zip(solutions, exact, strict=True))
    print(f"\nQP {LEADER} + {FOLLOWER} variables, {ROWS} constraints, batch {BATCH}, float64, cold")
    print(f"  gradients for                {'z, w and A' if matrix else 'z and w'}")
    print(f"  bigrad, whole program        {both.show():32} of it forward {forward.show()}")
    print(f"  cvxpylayers, lower level     {other.show()}")
    print(f"  ratio of medians             {both.median / other.median:.2f}   (to meet: 0.50)")
    print(f"  KKT residual of bigrad       {max(s.stats.residual for s in solutions):.1e}   (to meet: 1e-8)")
    print(f"  constraint violation         {max(s.stats.violation for s in solutions):.1e}")
    print(f"  follower gap by re-solve     {max(s.stats.follower_gap for s in verified):.1e}   ({len(verified)} items)")
    print(f"  largest error of y: bigrad   {mistake:.1e}, cvxpylayers {abs(theirs().numpy() - exact).max():.1e}")
    print(f"  statuses                     {counts([s.status.name for s in solutions])}")
    print(f"  mean objective               {np.mean([s.value for s in solutions]):.6f}")


def leaf(value: np.ndarray) -> torch.Tensor:
    return torch.tensor(value, requires_grad=True)


def counts(names: list[str]) -> str:
    return ", ".join(f"{names.count(n)} {n}" for n in sorted(set(names)))


if __name__ == "__main__":
    main()
