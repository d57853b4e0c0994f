"""One firm moves first, three others answer and must agree among themselves: Stackelberg over Cournot. Takes ten seconds.

The followers choose quantities, each knowing the leader's and taking the others' as given: a Nash equilibrium. The price is what is
left of PROHIBITIVE after all have sold.

    leader        max over lead    lead (price - LEAD_COST)     price = PROHIBITIVE - lead - sum of q
    follower i    max over q_i     q_i (price - cost_i)         q_i >= 0

Where a follower leaves the market its answer has a kink, and the leader may sell just so much that it stays out. bigrad's optimum and its
gradient agree with the closed form on both sides of the kink and on it. Page: docs/gallery/several_followers.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cvxpy as cp
import numpy as np
import torch

import bigrad as bg

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "gallery"

PROHIBITIVE, LEAD_COST = 10.0, 2.0
COST = np.array([2.0, 3.0, 3.4])


class Market(NamedTuple):
    """The program and its handles: costs of the followers (n,), the leader's quantity, the followers' (one each)."""

    program: bg.Program
    cost: cp.Parameter
    lead: cp.Variable
    answers: list[cp.Variable]


class Followers(NamedTuple):
    """What was found. best: the Solution at COST; lead, answers (3,): its quantities; together: the leader's profit if all
    choose at once. quantity (points,), answer (points, 3), profit (points,): for every quantity of the leader, in closed form.

    third (costs,), leads (costs,), slopes (costs,): the layer's answer and its gradient as the third follower's cost varies.
    """

    best: bg.Solution
    lead: float
    answers: np.ndarray
    together: float
    quantity: np.ndarray
    answer: np.ndarray
    profit: np.ndarray
    third: np.ndarray
    leads: np.ndarray
    slopes: np.ndarray


def market(followers: int = len(COST)) -> Market:
    """The game of one leader and several followers."""
    cost = cp.Parameter(followers, name="cost")
    lead, q = cp.Variable(name="lead", nonneg=True), [cp.Variable(name=f"q{i}", nonneg=True) for i in range(followers)]

    def profit(own: cp.Variable, unit: float | cp.Expression) -> cp.Problem:
        others = sum(firm for firm in (lead, *q) if firm is not own)
        return cp.Problem(cp.Maximize((PROHIBITIVE - unit) * own - cp.square(own) - own * others))

    lower = [profit(own, cost[i]) for i, own in enumerate(q)]
    return Market(bg.bilevel(profit(lead, LEAD_COST), lower, responds=[[own] for own in q]), cost, lead, q)


def equilibrium(lead: float, cost: np.ndarray) -> np.ndarray:
    """The followers' quantities in closed form: the cheapest m sell, the largest m for which the dearest of them does not lose.

    With m selling, price = (PROHIBITIVE - lead + sum of their costs) / (m + 1), and each sells price - cost.
    """
    rising = np.sort(cost)
    prices = [(PROHIBITIVE - lead + rising[:m].sum()) / (m + 1) for m in range(len(cost) + 1)]
    price = next(prices[m] for m in range(len(cost), -1, -1) if m == 0 or rising[m - 1] < prices[m])
    return np.maximum(price - cost, 0)


def leads_profit(lead: float, cost: np.ndarray) -> float:
    """What the leader earns if the followers are in equilibrium."""
    return lead * (PROHIBITIVE - LEAD_COST - lead - equilibrium(lead, cost).sum())


def at_once(cost: np.ndarray) -> float:
    """The leader's profit if it moves with the others: it is then one more firm of the equilibrium."""
    quantities = equilibrium(0.0, np.concatenate([[LEAD_COST], cost]))
    return float(quantities[0] * (PROHIBITIVE - LEAD_COST - quantities.sum()))


def run(points: int = 401, costs: int = 16) -> Followers:
    """Solve at COST with a proof, sweep the leader's quantity in closed form, and the third follower's cost by the layer."""
    game = market()
    best = game.program.solve({game.cost: COST}, solver=bg.Global(), verify=True)
    quantity = np.linspace(0, 8, points)
    answer = np.array([equilibrium(lead, COST) for lead in quantity])
    profit = np.array([leads_profit(lead, COST) for lead in quantity])
    third = np.linspace(2.65, 4.15, costs)
    inputs = torch.as_tensor(np.tile(COST, (costs, 1)))
    inputs[:, 2] = torch.as_tensor(third)
    inputs.requires_grad_()
    (leads,) = bg.Layer(game.program, parameters=[game.cost], variables=[game.lead])(inputs)
    leads.sum().backward()
    return Followers(
        best,
        float(best[game.lead]),
        np.array([float(best[own]) for own in game.answers]),
        at_once(COST),
        quantity,
        answer,
        profit,
        third,
        leads.detach().numpy(),
        inputs.grad[:, 2].numpy(),
    )


def draw(result: Followers, path: Path) -> None:
    """The followers' answers and the leader's profit over its quantity; the best quantity over a follower's cost."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(HERE / "gallery.mplstyle"):
        figure = Figure(figsize=(10, 5.4))
        grid = figure.add_gridspec(2, 2)
        answers, profit, sweep = (figure.add_subplot(grid[place]) for place in ((0, 0), (1, 0), (slice(None), 1)))
        answers.sharex(profit)
        for i, cost in enumerate(COST):
            answers.plot(result.quantity, result.answer[:, i], label=f"unit cost {cost:g}")
            answers.plot(result.lead, result.answers[i], "o", color=f"C{i}")
        answers.legend()
        answers.tick_params(labelbottom=False)
        answers.set(ylabel="followers' quantities", title="Followers give way, and one by one give up")
        profit.plot(result.quantity, result.profit, "k")
        profit.plot(result.lead, result.best.value, "k*", ms=14)
        profit.axhline(result.together, color="0.5", ls="--", lw=1.2)
        profit.text(2.5, result.together - 0.6, "if all move at once", color="0.4")
        for axes in (answers, profit):
            axes.axvline(result.lead, color="k", lw=0.8, ls=":")
        profit.set(xlim=(0, 8), ylim=(0, None), xlabel="the leader's quantity", ylabel="the leader's profit")
        profit.set_title("The best quantity is a kink: the third is just kept out")

        fine = np.linspace(result.third[0], result.third[-1], 161)
        exact = [_exact(cost) for cost in fine]
        sweep.plot(fine, exact, "k", lw=1.2, label="closed form")
        for cost, lead, slope in zip(result.third, result.leads, result.slopes, strict=True):
            half = 0.037 / np.hypot(1, 1.7 * slope)
            sweep.plot([cost - half, cost + half], [lead - half * slope, lead + half * slope], "C1", lw=4)
        sweep.plot([], [], "C1", lw=4, label="bigrad: value, gradient")
        places = {
            (3.0, 4.86): "it sells",
            (3.4, 5.0): "the leader\nkeeps it out",
            (3.62, 4.53): "its cost keeps it out",
        }
        for place, text in places.items():
            sweep.text(*place, text)
        sweep.set(xlabel="unit cost of the third follower", ylabel="the leader's best quantity")
        sweep.set_title("As the third follower's cost varies")
        sweep.legend(loc="upper right")
        figure.savefig(path)


def _exact(third: float) -> float:
    """The leader's best quantity in closed form, COST with another third: profit is concave, its pieces are quadratic."""
    cost = np.array([*COST[:2], third])
    rising = np.sort(cost)
    candidates = []
    for m in range(len(cost) + 1):
        # with m selling, profit = lead (PROHIBITIVE - lead + sum of costs - (m + 1) LEAD_COST) / (m + 1)
        candidates.append((PROHIBITIVE + rising[:m].sum() - (m + 1) * LEAD_COST) / 2)
        if m:  # the m-th leaves where the price is its cost
            candidates.append(PROHIBITIVE + rising[:m].sum() - (m + 1) * rising[m - 1])
    return float(max((c for c in candidates if c >= 0), key=lambda lead: leads_profit(lead, cost)))


def main(path: Path = PAGE / "several_followers.png", **sizes: int) -> Followers:
    """Print what was found and save the picture."""
    result = run(**sizes)
    best = result.best
    print(
        f"the leader sells {result.lead:.4f} (closed form {_exact(COST[2]):.4f}), the followers {result.answers.round(4)}"
    )
    print(
        f"its profit is {best.value:.4f} ({best.status.name}: at most {best.stats.bound:.4f}); all at once: {result.together:.4f}"
    )
    print(
        f"the most that a follower could gain by another answer: {best.stats.follower_gap:.1e}; kinks held: {best.stats.biactive}"
    )
    error = max(abs(lead - _exact(cost)) for cost, lead in zip(result.third, result.leads, strict=True))
    print(f"as the third follower's cost varies: largest distance from the closed form {error:.1e}")
    draw(result, path)
    print(f"picture: {path}")
    return result


if __name__ == "__main__":
    main()
