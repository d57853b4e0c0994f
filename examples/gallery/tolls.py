"""Tolls on two crossings of a river, and drivers who avoid them. Takes ten seconds.

The leader sets a toll on a bridge and one on a tunnel and wants revenue. The followers are drivers of two towns, who settle in the
user equilibrium of their congested network: a convex quadratic flow problem (Beckmann, McGuire and Winsten 1956).

    leader     max   toll' load(bridge, tunnel)       such that  0 <= toll <= cap
    follower   flow  =  argmin  free' load + |sqrt(slow) * load|^2 / 2 + toll' load(bridge, tunnel)
                        such that  flow of each town arrives,  flow >= 0,  load = flow summed over the towns

Revenue has several humps, for tolls that everybody pays and tolls that only those pay who have no other way. Raising tolls along
the gradient stops on a low one. `bigrad.Global` proves which is the highest; a grid of equilibria, solved one by one, agrees.
Page: docs/gallery/tolls.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import torch

import bigrad as bg

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "gallery"

PLACES = {"West": (0, 1), "A": (1.2, 1.8), "B": (1.2, 0.2), "A'": (3.8, 1.8), "B'": (3.8, 0.2), "East": (5, 1)}
# from, to, minutes when empty, minutes more for each thousand cars
ROADS = [
    ("A", "A'", 1.0, 0.1),  # the bridge
    ("B", "B'", 1.0, 0.1),  # the tunnel
    ("West", "East", 6.0, 0.3),  # the ring road
    ("B", "B'", 10.0, 0.5),  # the ferry
    ("West", "A", 1.0, 0.2),
    ("West", "B", 1.5, 0.2),
    ("A", "B", 0.5, 0.1),
    ("B", "A", 0.5, 0.1),
    ("A'", "East", 1.0, 0.2),
    ("B'", "East", 1.0, 0.2),
    ("A'", "B'", 0.5, 0.1),
    ("B'", "A'", 0.5, 0.1),
]
NAMES = ["bridge", "tunnel", "ring road", "ferry"]
TRIPS = [("West", "East", 6.0), ("B", "B'", 1.5)]  # thousands of cars an hour
CAP, LOW_CAP = 12.0, 5.0


class Network(NamedTuple):
    """The followers' side: flow (roads, towns), load (roads,), their total cost without tolls, and their constraints."""

    flow: cp.Variable
    load: Any
    minutes: Any
    constraints: list[Any]


class Tolls(NamedTuple):
    """What was found. best, low: Solutions for the high and the low cap; tolls: theirs, (2, 2); load: at the best, (roads,).

    grid (points,), revenue (points, points): on the grid of bridge and tunnel tolls; path (steps, 2), income (steps,),
    crossing (steps, 4): along the line through both. climb (climbs + 1, 2), climbed: tolls raised along the gradient, their last revenue.
    """

    best: bg.Solution
    low: bg.Solution
    tolls: np.ndarray
    load: np.ndarray
    grid: np.ndarray
    revenue: np.ndarray
    path: np.ndarray
    income: np.ndarray
    crossing: np.ndarray
    climb: np.ndarray
    climbed: float


def network() -> Network:
    """The drivers' equilibrium as the minimum of a convex function of their flows."""
    incidence, supply = np.zeros((len(PLACES), len(ROADS))), np.zeros((len(PLACES), len(TRIPS)))
    number = {place: i for i, place in enumerate(PLACES)}
    for j, (start, end, *_) in enumerate(ROADS):
        incidence[number[start], j], incidence[number[end], j] = 1, -1
    for k, (start, end, cars) in enumerate(TRIPS):
        supply[number[start], k], supply[number[end], k] = cars, -cars
    free, slow = np.array([road[2:] for road in ROADS]).T
    flow = cp.Variable((len(ROADS), len(TRIPS)), name="flow", nonneg=True)
    load = cp.sum(flow, axis=1)
    minutes = free @ load + 0.5 * cp.sum_squares(cp.multiply(np.sqrt(slow), load))
    return Network(flow, load, minutes, [incidence @ flow == supply])


def pricing() -> tuple[bg.Program, cp.Parameter, cp.Variable, cp.Variable]:
    """The bilevel program, its cap on tolls, the tolls, and the flow."""
    net = network()
    toll, cap = cp.Variable(2, name="toll", nonneg=True), cp.Parameter(name="cap", nonneg=True)
    revenue = toll @ net.load[:2]
    leader = cp.Problem(cp.Maximize(revenue), [toll <= cap])
    drivers = cp.Problem(cp.Minimize(net.minutes + revenue), net.constraints)
    return bg.bilevel(leader, drivers, responds=[net.flow]), cap, toll, net.flow


def answering() -> bg.Layer:
    """The drivers alone, as a layer: tolls to flows."""
    net, toll = network(), cp.Parameter(2, name="toll")
    drivers = cp.Problem(cp.Minimize(net.minutes + toll @ net.load[:2]), net.constraints)
    return bg.Layer(bg.argmin(drivers), parameters=[toll], variables=[net.flow])


def equilibria(tolls: np.ndarray) -> np.ndarray:
    """The load on every road, (items, roads), for given tolls, (items, 2)."""
    return answering()(torch.as_tensor(tolls))[0].sum(-1).numpy()


def ascent(start: tuple[float, float], climbs: int) -> tuple[np.ndarray, float]:
    """Tolls raised along the gradient of the revenue, through the drivers' layer, by steps that shorten; and the last revenue."""
    drivers, toll = answering(), torch.tensor(start, dtype=torch.double, requires_grad=True)
    path = [toll.detach().clone()]
    for k in range(climbs):
        revenue = toll @ drivers(toll)[0].sum(-1)[:2]
        (slope,) = torch.autograd.grad(revenue, toll)
        toll = (toll.detach() + 0.1 / (1 + k / 10) * slope).requires_grad_()
        path.append(toll.detach().clone())
    return torch.stack(path).numpy(), (toll @ drivers(toll)[0].sum(-1)[:2]).item()


def run(points: int = 61, steps: int = 241, climbs: int = 300) -> Tolls:
    """Solve for both caps, and the grid and the line by equilibria of given tolls."""
    program, cap, toll, flow = pricing()
    best, low = (program.solve({cap: limit}, solver=bg.Global(), verify=True) for limit in (CAP, LOW_CAP))
    grid = np.linspace(0, CAP, points)
    squares = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    revenue = (squares * equilibria(squares)[:, :2]).sum(1).reshape(points, points)
    slope = (best[toll][1] - low[toll][1]) / (best[toll][0] - low[toll][0])
    bridge = np.linspace(0, CAP, steps)
    path = np.stack([bridge, low[toll][1] + slope * (bridge - low[toll][0])], 1).clip(0)
    crossing = equilibria(path)[:, :4]
    income = (path * crossing[:, :2]).sum(1)
    tolls = np.stack([low[toll], best[toll]])
    climb, climbed = ascent((0.5, 0.5), climbs)
    return Tolls(best, low, tolls, best[flow].sum(1), grid, revenue, path, income, crossing, climb, climbed)


def draw(result: Tolls, path: Path) -> None:
    """The network at the best tolls, the map of revenue, and a cut through both humps."""
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch

    with matplotlib.style.context(HERE / "gallery.mplstyle"):
        figure = Figure()
        (town, cut), (chart, loads) = figure.subplots(2, 2)
        cut.sharex(loads)
        bend = {2: -0.68, 3: 0.55, 6: 0.15, 7: 0.15, 10: 0.15, 11: 0.15}
        for j, (start, end, *_) in enumerate(ROADS):
            used = result.load[j] > 1e-6
            colour = f"C{j}" if j < 4 else "0.35" if used else "0.85"
            town.add_patch(
                FancyArrowPatch(
                    PLACES[start],
                    PLACES[end],
                    connectionstyle=f"arc3,rad={bend.get(j, 0)}",
                    arrowstyle="-|>",
                    mutation_scale=12,
                    shrinkA=9,
                    shrinkB=9,
                    lw=1 + 1.2 * result.load[j],
                    color=colour,
                )
            )
        for name, (x, y) in PLACES.items():
            town.plot(x, y, "o", ms=19, mfc="white", mec="0.3", zorder=3)
            town.text(x, y, name[0] if len(name) > 2 else name, ha="center", va="center", zorder=4)
        spots = {"bridge": (2.5, 1.5), "tunnel": (2.5, 0.4), "ring road": (2.5, 2.25), "ferry": (2.5, -0.9)}
        for j, (name, (x, y)) in enumerate(spots.items()):
            label = f"{name}, toll {result.tolls[1, j]:.2f}: " if j < 2 else f"{name}: "
            label += f"{abs(result.load[j]):.2f}"
            town.text(x, y, label, color=f"C{j}", ha="center", size=9.5)
        town.set(xlim=(-0.4, 5.4), ylim=(-1.0, 2.9), title="Loads at the best tolls (thousands of cars an hour)")
        town.axis("off")

        shades = chart.contourf(result.grid, result.grid, result.revenue.T.clip(0), range(15))
        figure.colorbar(shades, ax=chart, label="revenue", ticks=range(0, 14, 4))
        chart.plot(*result.path.T, "w--", lw=1)
        chart.plot(*result.climb.T, "k", lw=1.5)
        chart.plot(*result.climb[-1], "kX", ms=8)
        chart.plot(*result.tolls[0], "wo", ms=8)
        chart.plot(*result.tolls[1], "w*", ms=14)
        chart.set(xlim=(0, CAP), ylim=(0, CAP), xlabel="toll on the bridge", ylabel="toll on the tunnel")
        chart.set_title("Revenue over both tolls (black: ascent)")

        bridge = result.path[:, 0]
        cut.plot(bridge, result.income, "k")
        cut.plot(result.tolls[0, 0], result.low.value, "o", color="k", ms=8)
        cut.plot(result.tolls[1, 0], result.best.value, "*", color="k", ms=14)
        cut.text(result.tolls[0, 0], 14.3, f"both towns pay:\n{result.low.value:.2f}", ha="center")
        cut.text(result.tolls[1, 0], 14.3, f"only B pays:\n{result.best.value:.2f}", ha="center")
        cut.set(ylim=(0, 17.5), ylabel="revenue", title="Along the dashed line: two humps, made of pieces")
        cut.tick_params(labelbottom=False)
        for j, name in enumerate(NAMES):
            loads.plot(bridge, result.crossing[:, j], color=f"C{j}", label=name)
        loads.set(xlim=(0, CAP), xlabel="toll on the bridge", ylabel="thousands of cars an hour")
        loads.set_title("…because the loads have kinks")
        loads.legend()
        figure.savefig(path)


def main(path: Path = PAGE / "tolls.png", **sizes: int) -> Tolls:
    """Print what was found and save the picture."""
    result = run(**sizes)
    for cap, toll, found in ((CAP, result.tolls[1], result.best), (LOW_CAP, result.tolls[0], result.low)):
        print(f"tolls up to {cap:2.0f}: bridge {toll[0]:.2f}, tunnel {toll[1]:.2f}, revenue {found.value:.4f}", end=" ")
        print(
            f"({found.status.name}: at most {found.stats.bound:.4f}; drivers could gain {found.stats.follower_gap:.0e})"
        )
    print(f"best of {result.revenue.size} equilibria on a grid of tolls: {result.revenue.max():.4f}")
    bridge, tunnel = result.climb[-1]
    print(
        f"ascent along the gradient from tolls of 0.5: bridge {bridge:.2f}, tunnel {tunnel:.2f}, revenue {result.climbed:.4f}"
    )
    draw(result, path)
    print(f"picture: {path}")
    return result


if __name__ == "__main__":
    main()
