"""A generator that bids knowing how the market will clear. Takes ten seconds.

The lower level is the market: the cheapest dispatch of all bids, one in each of three equally likely states of demand. The price is a
dual variable of that problem, and the leader's profit is price times dispatch, less fuel.

    leader     max   mean over the states of  price own - fuel' own       such that  0 <= bid <= BID_CAP
    follower   own, rivals  =  argmin  bid' own + cost' rivals
                               such that  own + rivals = demand  (its multiplier is the price),  0 <= own, rivals <= capacity

`bigrad.Global` proves the best pair of bids; a market cleared by sorting, without any solver, agrees. Page: docs/gallery/bidding.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cvxpy as cp
import numpy as np

import bigrad as bg

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "gallery"

DEMAND = np.array([2.7, 5.2, 8.4])  # GW in a quiet, an ordinary and a busy hour, equally likely
COST, CAPACITY = (
    np.array([10.0, 20.0, 32.0, 50.0, 90.0]),
    np.array([2.0, 2.0, 2.0, 2.0, 4.0]),
)  # the rivals: euro a MWh, GW
FUEL, OWN = np.array([5.0, 25.0]), np.array([1.5, 1.5])  # the leader's two plants
BID_CAP = 100.0


class Bidding(NamedTuple):
    """What was found. best: the Solution; bids (2,); dispatch (states, 2), prices (states,): in the market that follows.

    honest: the mean profit of bids at cost. grid (points,), profit (points, points): over both bids, cleared by sorting.
    """

    best: bg.Solution
    bids: np.ndarray
    dispatch: np.ndarray
    prices: np.ndarray
    honest: float
    grid: np.ndarray
    profit: np.ndarray


def best_bids() -> tuple[bg.Solution, np.ndarray, np.ndarray, np.ndarray]:
    """The bilevel program's solution: it, the bids, the dispatch of the own plants, and the prices."""
    states, rivals = len(DEMAND), len(COST)
    bid = cp.Variable(len(OWN), name="bid")
    own = cp.Variable((states, len(OWN)), name="own", nonneg=True)
    other = cp.Variable((states, rivals), name="other", nonneg=True)
    balance = cp.sum(own, axis=1) + cp.sum(other, axis=1) == DEMAND
    price = -balance.dual_variables[0]
    limits = [own <= np.tile(OWN, (states, 1)), other <= np.tile(CAPACITY, (states, 1))]
    market = cp.Problem(cp.Minimize(cp.sum(own @ bid) + cp.sum(other @ COST)), [balance, *limits])
    profit = (price @ cp.sum(own, axis=1) - cp.sum(own @ FUEL)) / states
    seller = cp.Problem(cp.Maximize(profit), [bid >= 0, bid <= BID_CAP])
    program = bg.bilevel(seller, market, responds=[own, other])
    found = program.solve(solver=bg.Global(), verify=True)
    return found, found[bid], found[own], -found[balance.dual_variables[0]]


def cleared(bids: np.ndarray, demand: float) -> tuple[float, np.ndarray]:
    """The price and the own dispatch if bids are taken in the order of their price; at a tie the leader's come first."""
    ask, size = np.concatenate([bids, COST]), np.concatenate([OWN, CAPACITY])
    taken, left = np.zeros(len(ask)), demand
    for plant in np.argsort(ask, kind="stable"):
        taken[plant] = min(size[plant], left)
        left -= taken[plant]
        if left <= 0:
            return float(ask[plant]), taken[: len(bids)]
    raise ValueError(f"A demand of {demand} is more than the {size.sum()} that all plants can serve.")


def mean_profit(bids: np.ndarray) -> float:
    """What bids earn on average, with `cleared`."""
    found = [cleared(bids, demand) for demand in DEMAND]
    return float(np.mean([price * own.sum() - FUEL @ own for price, own in found]))


def run(points: int = 101) -> Bidding:
    """Solve, and clear the market for every pair of bids on a grid."""
    found, bids, dispatch, prices = best_bids()
    grid = np.linspace(0, BID_CAP, points)
    profit = np.array([[mean_profit(np.array([first, second])) for second in grid] for first in grid])
    return Bidding(found, bids, dispatch, prices, mean_profit(FUEL), grid, profit)


def draw(result: Bidding, path: Path) -> None:
    """The merit order with bids at cost and with the best bids, and the profit over both bids."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(HERE / "gallery.mplstyle"):
        figure = Figure(figsize=(10, 6))
        left, chart = figure.subfigures(1, 2, width_ratios=(1.1, 1))
        panels = left.subplots(2, sharex=True, sharey=True)
        worth = {"Bids at cost": (FUEL, result.honest), "The best bids": (result.bids, result.best.value)}
        for axes, (title, (bids, profit)) in zip(panels, worth.items(), strict=True):
            ask, size = np.concatenate([bids, COST]), np.concatenate([OWN, CAPACITY])
            order = np.argsort(ask, kind="stable")
            start = np.cumsum(size[order]) - size[order]
            colours = np.array(["C1"] * len(OWN) + ["0.75"] * len(COST))[order]
            axes.bar(start, ask[order], size[order], align="edge", color=colours, edgecolor="white")
            for demand in DEMAND:
                price, _ = cleared(bids, demand)
                axes.plot([demand, demand], [0, price], "C0:")
                axes.plot(demand, price, "oC0")
                axes.annotate(f"{price:.0f}", (demand, price), (4, 5), textcoords="offset points", color="C0")
            axes.set(title=f"{title}: a profit of {profit:.1f}", ylabel="euro a MWh", ylim=(0, 100), xlim=(0, 12))
            axes.grid(visible=False)
        panels[0].text(0.3, 55, "orange: the leader's plants\ngrey: the rivals'", va="bottom")
        panels[0].text(0.3, 50, "dots: price at each demand", color="C0", va="top")
        panels[1].set_xlabel("GW offered, cheapest first")

        axes = chart.subplots()
        shades = axes.pcolormesh(result.grid, result.grid, result.profit.T, shading="nearest", rasterized=True)
        chart.colorbar(shades, ax=axes, label="mean profit (thousand euro an hour)", orientation="horizontal")
        axes.plot(*result.bids, "w*", ms=15, mec="k")
        axes.plot(*FUEL, "wo", ms=8, mec="k")
        axes.annotate("at cost", FUEL, (8, -4), textcoords="offset points", color="w")
        axes.set(xlabel="bid of the cheap plant", ylabel="bid of the dear plant", title="Profit over both bids")
        axes.grid(visible=False)
        figure.savefig(path)


def main(path: Path = PAGE / "bidding.png", **sizes: int) -> Bidding:
    """Print what was found and save the picture."""
    result = run(**sizes)
    best = result.best
    print(
        f"best bids {result.bids.round(4)}, prices {result.prices.round(4)}, own dispatch {result.dispatch.sum(1).round(4)}"
    )
    print(
        f"profit {best.value:.4f} ({best.status.name}: at most {best.stats.bound:.4f}), with bids at cost {result.honest:.4f}"
    )
    print(f"best of {result.profit.size} pairs of bids, the market cleared by sorting: {result.profit.max():.4f}")
    draw(result, path)
    print(f"picture: {path}")
    return result


if __name__ == "__main__":
    main()
