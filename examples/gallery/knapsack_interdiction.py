"""Knapsack interdiction: what is the least that a thief can be left with, for every budget of bans?

A follower fills a knapsack with the most valuable items that fit. First, a leader bans items, each at a price of its own,
within a budget, so as to leave the follower as little value as can be. `bigrad.Cuts` solves the game to proven optimality
for every budget; the curve is compared with two leaders who do not foresee the follower's answer.

    python examples/gallery/knapsack_interdiction.py      a few seconds; saves docs/gallery/knapsack_interdiction.png
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from ortools.sat.python import cp_model

import bigrad as bg

PICTURE = Path(__file__).parents[2] / "docs" / "gallery" / "knapsack_interdiction.png"
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "0.6"


class Instance(NamedTuple):
    """Items: what they are worth and weigh to the follower, what a ban costs the leader, all (n,); the knapsack's size."""

    values: np.ndarray
    weights: np.ndarray
    prices: np.ndarray
    capacity: int


class Curve(NamedTuple):
    """One row a budget: the follower's value (b,), and what is banned and taken (b, n). Values of the two rivals, (b,)."""

    instance: Instance
    budgets: np.ndarray
    value: np.ndarray
    banned: np.ndarray
    taken: np.ndarray
    proven: bool
    densest: np.ndarray
    most_wanted: np.ndarray


def instance(n: int = 20, seed: int = 0) -> Instance:
    """Random items; the knapsack holds 40 % of their weight."""
    rng = np.random.default_rng(seed)
    weights, prices = rng.integers(5, 40, n), rng.integers(1, 10, n)
    return Instance(weights + rng.integers(-4, 15, n), weights, prices, int(0.4 * weights.sum()))


def game(items: Instance, budget: int) -> tuple[bg.Program, list, list]:
    """Two ordinary CP-SAT models, and which variable of the one is which of the other."""
    n = len(items.values)
    leader, follower = cp_model.CpModel(), cp_model.CpModel()
    banned = [leader.new_bool_var(f"banned{k}") for k in range(n)]
    leader.add(sum(int(p) * x for p, x in zip(items.prices, banned, strict=True)) <= budget)

    seen = [follower.new_bool_var(f"seen{k}") for k in range(n)]
    taken = [follower.new_bool_var(f"taken{k}") for k in range(n)]
    follower.add(sum(int(w) * y for w, y in zip(items.weights, taken, strict=True)) <= items.capacity)
    for ban, take in zip(seen, taken, strict=True):
        follower.add(ban + take <= 1)
    follower.maximize(sum(int(v) * y for v, y in zip(items.values, taken, strict=True)))
    return bg.bilevel(leader, follower, link=dict(zip(banned, seen, strict=True)), responds=taken), banned, taken


def left(items: Instance, banned: np.ndarray) -> float:
    """What the follower gets out of the items that are not banned."""
    values = np.where(banned, 0.0, items.values)
    return float(bg.Knapsack(items.weights, items.capacity).solve(values[None])[0] @ values)


def greedy(items: Instance, budget: int, order: np.ndarray) -> float:
    """Ban in this order whatever the rest of the budget still pays for."""
    banned = np.zeros(len(order), bool)
    for k in order:
        if items.prices[k] <= budget - items.prices @ banned:
            banned[k] = True
    return left(items, banned)


def run(n: int = 20, budgets: tuple[int, ...] = tuple(range(26)), seed: int = 0) -> Curve:
    """Solve the game for every budget."""
    items = instance(n, seed)
    rows, proven = [], True
    for budget in budgets:
        program, banned, taken = game(items, budget)
        solution = program.solve(solver=bg.Cuts())
        proven &= solution.status is bg.Status.GLOBAL
        rows.append((solution.value, np.rint(solution[banned]), np.rint(solution[taken])))
    value, x, y = (np.array(column) for column in zip(*rows, strict=True))
    wanted = bg.Knapsack(items.weights, items.capacity).solve(items.values[None].astype(float))[0]
    orders = np.argsort(-items.values / items.weights), np.argsort(-wanted * items.values / items.prices)
    rivals = [np.array([greedy(items, b, order) for b in budgets]) for order in orders]
    return Curve(items, np.array(budgets), value, x, y, proven, *rivals)


def draw(result: Curve, path: Path) -> None:
    """Above the value that is left for each budget, below what is banned and taken."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    items, budgets = result.instance, result.budgets
    figure = Figure(figsize=(10, 7.6), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 4))
    above.step(budgets, result.densest, color=GREY, ls=":", lw=2, where="mid", label="bans the densest items first")
    above.step(
        budgets, result.most_wanted, color=ORANGE, ls="--", lw=2, where="mid", label="bans what was taken without bans"
    )
    above.step(budgets, result.value, color=BLUE, lw=2.5, where="mid", label="foresees the answer (proven optimum)")
    above.set_ylabel("value left to the follower")
    above.set_title("What a budget of bans buys, by how far the leader looks ahead", loc="left")
    above.legend(frameon=False, title="a leader who …", alignment="left")
    order = np.argsort(-items.values / items.weights)
    column, row = np.meshgrid(budgets, range(len(order)), indexing="ij")
    for chosen, marker, style in (
        (result.taken[:, order] > 0, "s", {"color": GREEN, "ms": 7}),
        (result.banned[:, order] > 0, "x", {"color": ORANGE, "ms": 7, "mew": 2.2}),
    ):
        below.plot(column[chosen], row[chosen], marker, **style)
    labels = [f"{items.values[k]} / {items.weights[k]},  ban {items.prices[k]}" for k in order]
    below.set(yticks=range(len(order)), ylim=(len(order) - 0.4, -0.6), xticks=budgets[::5])
    below.set_yticklabels(labels, fontsize=8)
    below.set(xlabel="the leader's budget", ylabel="items: value / weight, price of a ban")
    marks = [
        Line2D([], [], ls="", marker="x", color=ORANGE, mew=2.2, label="banned"),
        Line2D([], [], ls="", marker="s", color=GREEN, label="taken by the follower"),
    ]
    below.legend(handles=marks, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


def main(path: Path = PICTURE) -> None:
    result = run()
    print(f"{len(result.instance.values)} items, {len(result.budgets)} budgets, all proven optimal: {result.proven}")
    print(f"{'budget':>6}{'foresees':>10}{'densest':>9}{'most wanted':>13}")
    for k in range(0, len(result.budgets), 5):
        print(f"{result.budgets[k]:>6}{result.value[k]:>10.0f}{result.densest[k]:>9.0f}{result.most_wanted[k]:>13.0f}")
    dropped = ((result.banned[:-1] > result.banned[1:]).any(1)).sum()
    print(f"At {dropped} of {len(result.budgets) - 1} steps of the budget an item that was banned is given free again.")
    draw(result, path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
