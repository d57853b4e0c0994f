"""Draws the two pictures of docs/kinks.md: `python docs/pictures/kinks.py`, some seconds."""

from pathlib import Path

import cvxpy as cp
import matplotlib.pyplot as plt
import numpy as np
import torch

import bigrad as bg

DOCS = Path(__file__).resolve().parents[1]


def leader(on_y):
    """x*(theta) of a leader who pays, per unit, `on_y` for the answer y = max(0, x - theta)."""
    x, y, theta = cp.Variable(name="x"), cp.Variable(name="y"), cp.Parameter(name="theta")
    lower = cp.Problem(cp.Minimize(cp.square(y - (x - theta))), [y >= 0])
    upper = cp.Problem(cp.Minimize(cp.square(x - 2) - 3 * x + on_y * y))
    return bg.Layer(bg.bilevel(upper, lower, responds=[y]), parameters=[theta], variables=[x])


def curve(layer, points):
    """Values and gradients at points."""
    t = torch.tensor(points, requires_grad=True)
    (x,) = layer(t)
    x.sum().backward()
    return x.detach().numpy(), t.grad.numpy()


def kink(file):
    """On the kink: what the leader sees, where he goes, and three gradients of that."""
    layer, points = leader(8.0), np.linspace(-2, 5, 141)
    x, slope = curve(layer, points)
    ahead, behind = (curve(layer, points + h)[0] for h in (1e-4, -1e-4))
    figure, (value, answer, gradient) = plt.subplots(1, 3, figsize=(10, 3.1))
    line = np.linspace(-2, 4, 200)
    for theta in (0.0, 1.0, 2.0):
        cost = (line - 2) ** 2 - 3 * line + 8 * np.maximum(0, line - theta)
        (drawn,) = value.plot(line, cost, label=f"θ = {theta:g}")
        value.plot(theta, (theta - 2) ** 2 - 3 * theta, "o", color=drawn.get_color())
    value.set(xlabel="leader's decision x", ylabel="leader's cost", title="the best x is the kink")
    answer.plot(points, x)
    answer.set(xlabel="θ", ylabel="x*", title="it moves with the kink")
    gradient.plot(points, (ahead - behind) / 2e-4, lw=5, color="0.8", label="differences of re-solves")
    gradient.plot(points, slope, label="layer")
    gradient.plot(points, np.zeros_like(points), "--", color="C3", label="one side held")
    gradient.set(xlabel="θ", ylabel="dx*/dθ", title="its derivative", ylim=(-0.2, 1.6))
    for axes in (value, gradient):
        axes.legend(frameon=False, fontsize=8)
    save(figure, file)


def tie(file):
    """Two optima of the same value: the solution jumps, and smoothing gives the jump a slope."""
    x, y, c = cp.Variable(name="x"), cp.Variable(name="y"), cp.Parameter(name="c")
    lower = cp.Problem(cp.Minimize(cp.square(y - x) + c * y), [y >= 0])
    upper = cp.Problem(cp.Minimize(cp.square(x) + cp.square(y - 1)))
    layer = bg.Layer(bg.bilevel(upper, lower, responds=[y]), parameters=[c], variables=[x])
    points = np.linspace(0, 1.6, 161)
    answer, slope = curve(layer, points)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.1))
    line = np.linspace(-0.3, 1.5, 200)
    for costs in (0.6, 0.828, 1.1):
        left.plot(line, line**2 + (np.maximum(0, line - costs / 2) - 1) ** 2, label=f"c = {costs:g}")
    left.set(xlabel="leader's decision x", ylabel="leader's cost", title="two valleys")
    left.legend(frameon=False, fontsize=8)
    cut = np.flatnonzero(abs(np.diff(answer)) > 0.3)[0] + 1
    for part in (slice(None, cut), slice(cut, None)):
        middle.plot(points[part], answer[part], color="C0", label="x*" if part.start is None else None)
        middle.plot(points[part], slope[part], "--", color="C1", label="gradient" if part.start is None else None)
    middle.set(xlabel="c", title="x* jumps, its gradient does not see it")
    middle.legend(frameon=False, fontsize=8)
    scores = np.linspace(-2, 2, 161)
    costs = torch.tensor(np.stack([scores, np.zeros_like(scores)], 1))
    with torch.no_grad():
        right.plot(scores, bg.Interpolate()(bg.TopK(2, 1))(costs)[:, 0], drawstyle="steps-mid", label="decision")
        rule = bg.Perturbed(sigma=0.5, samples=4000, draws=bg.Common(0))
        right.plot(scores, rule(bg.TopK(2, 1))(costs)[:, 0], label="Perturbed(σ = 0.5)")
        right.plot(scores, bg.Regularised(weight=1.0)(bg.TopK(2, 1))(costs)[:, 0], label="Regularised(weight = 1)")
    right.set(xlabel="difference of two scores", title="smoothed decisions")
    right.legend(frameon=False, fontsize=7, loc="lower right")
    save(figure, file)


def save(figure, file):
    for axes in figure.axes:
        axes.title.set_fontsize(9)
    figure.tight_layout()
    figure.savefig(DOCS / file, dpi=100)


if __name__ == "__main__":
    kink("kinks.png")
    tie("ties.png")
