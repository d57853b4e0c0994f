"""What a layer costs beside the mathematics: one leader and one follower variable, batch 1024, forward and backward.

    python tests/benchmarks/bench_overhead.py

The figure to meet: at most 100 microseconds an item. cvxpylayers' default on the lower level alone is timed beside it.
"""

import cvxpy as cp
import numpy as np
import torch
from cvxpylayers.torch import CvxpyLayer
from timing import in_turn, machine

import bigrad as bg

BATCH = 1024


def lower(x: cp.Variable | cp.Parameter, y: cp.Variable, w: cp.Parameter) -> cp.Problem:
    """The follower wants y near w and may not exceed the leader's limit x."""
    return cp.Problem(cp.Minimize(cp.square(y - w)), [y <= x, y >= 0])


def main() -> None:
    x, y, z, w = cp.Variable(name="x"), cp.Variable(name="y"), cp.Parameter(name="z"), cp.Parameter(name="w")
    upper = cp.Problem(cp.Minimize(cp.square(y - z) + 0.1 * cp.square(x)), [x >= 0, x <= 2])
    layer = bg.Layer(bg.bilevel(upper, lower(x, y, w), responds=[y]), parameters=[z, w], variables=[x, y])
    rng = np.random.default_rng(0)
    inputs = [torch.tensor(rng.uniform(0, 2, BATCH), requires_grad=True) for _ in range(2)]
    given, alone = cp.Parameter(name="x"), cp.Variable(name="y")
    follower = CvxpyLayer(lower(given, alone, w), parameters=[given, w], variables=[alone])
    leader = layer(*inputs)[0].detach()

    def ours() -> None:
        x_star, y_star = layer(*inputs)
        (x_star**2 + y_star**2).sum().backward()

    def ours_forward() -> None:
        with torch.no_grad():
            layer(*inputs)

    def theirs() -> torch.Tensor:
        (answer,) = follower(leader, inputs[1])
        (answer**2).sum().backward()
        return answer.detach()

    both, forward, other = in_turn(ours, ours_forward, theirs)
    solutions = layer.solve(*inputs)
    exact = np.clip(inputs[1].detach().numpy(), 0, leader.numpy())
    mistake = max(abs(s[y] - e) for s, e in zip(solutions, exact, strict=True))
    print(
        machine("cvxpylayers", "diffcp", "cvxpy", "daqp", "torch"), f"torch threads {torch.get_num_threads()}", sep=", "
    )
    print(f"\n1 + 1 variables, batch {BATCH}, microseconds an item")
    print(f"  bigrad, whole program        {both.show('us', BATCH):32} (to meet: 100 us)")
    print(f"  of it forward                {forward.show('us', BATCH)}")
    print(f"  cvxpylayers, lower level     {other.show('us', BATCH)}")
    print(f"  ratio of medians             {both.median / other.median:.2f}")
    print(f"  KKT residual of bigrad       {max(s.stats.residual for s in solutions):.1e}")
    print(f"  largest error of y: bigrad   {mistake:.1e}, cvxpylayers {abs(theirs().numpy() - exact).max():.1e}")
    print(f"  statuses                     {sum(s.status is bg.Status.GLOBAL for s in solutions)} of {BATCH} GLOBAL")


if __name__ == "__main__":
    main()
