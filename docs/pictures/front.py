"""The picture of the README: a solution with its gradients, and what two levels cost. `python docs/pictures/front.py [FOLDER]`.

The times are those of docs/benchmarks.md, a batch of 64 quadratic programs of 10 + 20 variables, forward and backward, gradients
of both linear terms; `python tests/benchmarks/bench_layer.py` measures them again.
"""

import sys
from pathlib import Path

import cvxpy as cp
import matplotlib.pyplot as plt
import numpy as np
import torch

import bigrad as bg

TWO_LEVELS, ONE_LEVEL = 75.4, 222.0  # ms: bigrad, leader and follower; cvxpylayers, the follower alone
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"


def solved(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The follower's answer y* at these costs, and its derivative by the layer."""
    x, y, c = cp.Variable(name="x"), cp.Variable(name="y"), cp.Parameter(name="c")
    lower = cp.Problem(cp.Minimize(cp.square(y - x) + c * y), [y >= 0, y <= 2])
    upper = cp.Problem(cp.Minimize(cp.square(x - 1) + cp.square(y - 1)), [x <= 2.5])
    layer = bg.Layer(bg.bilevel(upper, lower, responds=[y]), [c], [y])
    c = torch.tensor(costs, requires_grad=True)
    (answer,) = layer(c)
    answer.sum().backward()
    return answer.detach().numpy(), c.grad.numpy()


def main(folder: Path = Path(__file__).parent.parent) -> None:
    """Draw it."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), width_ratios=(3, 2), layout="constrained")
    costs = np.linspace(-5, 7, 601)
    answers = solved(costs)[0]
    answers[1:][abs(np.diff(answers)) > 0.1] = np.nan  # it jumps, where the leader changes its mind
    left.plot(costs, answers, color=BLUE, linewidth=2.5, zorder=2)
    at = np.array([-4.2, -1.6, 1.2, 5.2])
    for c, y, slope in zip(at, *solved(at), strict=True):
        reach = 0.9 / np.hypot(1, 3 * slope)
        left.annotate(
            "",
            (c + reach, y + slope * reach),
            (c - reach, y - slope * reach),
            arrowprops={"arrowstyle": "-|>", "color": ORANGE, "linewidth": 2},
        )
        left.plot(c, y, "o", color=ORANGE, zorder=3)
    left.set(xlabel="the follower's cost c, an input of the layer", ylabel="the follower's answer y*")
    left.set_title("both levels solved and differentiated: slopes by backward()", fontsize=11)
    names = ["bigrad: leader and follower", "cvxpylayers: the follower alone"]
    bars = right.barh(names, [TWO_LEVELS, ONE_LEVEL], color=[BLUE, GREY], height=0.5)
    right.bar_label(bars, fmt="%.0f ms", padding=4)
    right.set_yticks([])
    for name, bar in zip(names, bars, strict=True):
        right.text(2, bar.get_y() - 0.05, name, va="bottom")
    right.set(xlim=(0, 265), xlabel="a batch of 64, forward and backward")
    right.set_ylim(1.4, -0.75)
    right.set_title("two levels in less time than one", fontsize=11)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "front.png", dpi=100)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
