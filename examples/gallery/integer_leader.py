"""An integer leader with a continuous follower: which power lines to build, when a market decides what flows on them.

A planner builds some of ten power lines. Then a market dispatches the cheapest generation that the network can carry.
The planner pays for lines, for the market's cost, and for emissions, of which the market knows nothing. So more lines can
do harm: they let cheap coal through. `bigrad.Global` proves which lines are best; all 1024 plans are tried as well.

    python examples/gallery/integer_leader.py      half a minute; saves docs/gallery/integer_leader.png
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cvxpy as cp
import numpy as np
from scipy.optimize import linprog

import bigrad as bg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = Path(__file__).parents[2] / "docs" / "gallery" / "integer_leader.png"
BLUE, ORANGE, GREEN, YELLOW = "#0072B2", "#D55E00", "#009E73", "#B07800"
CARBON = 40.0
"""What the planner thinks a ton costs; the market pays nothing for it."""


class Network(NamedTuple):
    """Places with demand, (n,), and plants, (g,): where, capacity, cost and emissions a unit; lines, (m, 2): capacity and
    price. Demand that is not served costs `shed` a unit.
    """

    at: np.ndarray
    demand: np.ndarray
    names: tuple[str, ...]
    places: np.ndarray
    capacity: np.ndarray
    cost: np.ndarray
    emission: np.ndarray
    lines: np.ndarray
    limit: np.ndarray
    price: np.ndarray
    shed: float = 100.0


class Plan(NamedTuple):
    """Lines built (m,), what the market then does: output (g,), flows (m,), unserved (n,); and the planner's total."""

    built: np.ndarray
    output: np.ndarray
    flow: np.ndarray
    unserved: np.ndarray
    total: float


class Outcome(NamedTuple):
    """The proven plan with its bound and gap; the plan that takes the market for obedient, as hoped and as it turns out; all plans."""

    network: Network
    best: Plan
    bound: float
    gap: float
    proven: bool
    hoped: Plan
    naive: Plan
    everything: Plan
    plans: np.ndarray
    totals: np.ndarray


def network() -> Network:
    """Six places: coal in the west, gas in the middle, wind in the north, and cities."""
    at = np.array([[0, 0], [0.2, 2], [2, 0.1], [2.2, 2.1], [4, 0.2], [4.1, 1.9]])
    lines = np.array([[0, 1], [0, 2], [1, 3], [2, 3], [1, 2], [2, 4], [3, 5], [4, 5], [3, 4], [2, 5]])
    return Network(
        at,
        demand=np.array([1.0, 1.0, 4.0, 3.0, 4.0, 4.0]),
        names=("coal", "wind", "gas", "hydro", "gas", "gas"),
        places=np.array([0, 1, 2, 3, 4, 5]),
        capacity=np.array([9.0, 6.0, 4.0, 3.0, 4.0, 3.0]),
        cost=np.array([12.0, 16.0, 35.0, 20.0, 42.0, 47.0]),
        emission=np.array([1.0, 0.0, 0.4, 0.0, 0.45, 0.5]),
        lines=lines,
        limit=np.array([5.0, 2.0, 2.0, 2.0, 2.0, 5.0, 5.0, 4.0, 2.0, 2.0]),
        price=np.array([10.0, 12.0, 14.0, 12.0, 9.0, 8.0, 15.0, 16.0, 6.0, 7.0]),
    )


def incidence(net: Network) -> np.ndarray:
    """(n, m): what a unit of flow on a line takes from its first place and brings to its second."""
    matrix = np.zeros((len(net.demand), len(net.lines)))
    for k, (a, b) in enumerate(net.lines):
        matrix[a, k], matrix[b, k] = -1, 1
    return matrix


def program(net: Network) -> tuple[bg.Program, dict[str, cp.Variable]]:
    """The planner's and the market's problem, as CVXPY writes them."""
    n, g, m = len(net.demand), len(net.cost), len(net.lines)
    built = cp.Variable(m, name="built", boolean=True)
    output, flow, unserved = cp.Variable(g, name="output"), cp.Variable(m, name="flow"), cp.Variable(n, name="unserved")
    supply = np.eye(n)[:, net.places]
    market = cp.Problem(
        cp.Minimize(net.cost @ output + net.shed * cp.sum(unserved)),
        [
            supply @ output + incidence(net) @ flow + unserved == net.demand,
            flow <= cp.multiply(net.limit, built),
            -flow <= cp.multiply(net.limit, built),
            output >= 0,
            output <= net.capacity,
            unserved >= 0,
        ],
    )
    total = net.price @ built + (net.cost + CARBON * net.emission) @ output + net.shed * cp.sum(unserved)
    planner = cp.Problem(cp.Minimize(total))
    answers = {"output": output, "flow": flow, "unserved": unserved}
    return bg.bilevel(planner, market, responds=list(answers.values())), {"built": built, **answers}


def dispatch(net: Network, built: np.ndarray, carbon: float = 0.0) -> Plan:
    """What a market that pays for carbon does with these lines, by HiGHS; the total counts it in full."""
    n, g, m = len(net.demand), len(net.cost), len(net.lines)
    costs = np.concatenate([net.cost + carbon * net.emission, np.zeros(m), np.full(n, net.shed)])
    balance = np.hstack([np.eye(n)[:, net.places], incidence(net), np.eye(n)])
    width = net.limit * built
    bounds = [*((0, c) for c in net.capacity), *zip(-width, width, strict=True), *((0, None) for _ in range(n))]
    found = linprog(costs, A_eq=balance, b_eq=net.demand, bounds=bounds)
    output, flow, unserved = np.split(found.x, [g, g + m])
    total = net.price @ built + (net.cost + CARBON * net.emission) @ output + net.shed * unserved.sum()
    return Plan(built, output, flow, unserved, float(total))


def run(net: Network | None = None, solver: bg.Global | None = None) -> Outcome:
    """Solve with a proof, and try every plan: with the market as it is, and with one that obeys the planner."""
    net = net or network()
    nested, variables = program(net)
    solution = nested.solve(solver=solver or bg.Global(gap=1e-6), verify=True)
    found = {name: np.asarray(solution[variable]) for name, variable in variables.items()}
    best = Plan(np.rint(found["built"]), found["output"], found["flow"], found["unserved"], float(solution.value))

    plans = np.array(list(itertools.product([0.0, 1.0], repeat=len(net.lines))))
    real = [dispatch(net, built) for built in plans]
    obedient = [dispatch(net, built, CARBON) for built in plans]
    dream = min(range(len(plans)), key=lambda k: obedient[k].total)
    return Outcome(
        net,
        best,
        float(solution.stats.bound),
        float(solution.stats.gap),
        solution.status is bg.Status.GLOBAL,
        obedient[dream],
        real[dream],
        real[-1],
        plans,
        np.array([plan.total for plan in real]),
    )


def draw(result: Outcome, path: Path) -> None:
    """Three maps, and all plans by what they cost to build and to run."""
    from matplotlib.figure import Figure

    net = result.network
    figure = Figure(figsize=(11, 7.8), layout="constrained")
    maps = figure.subplots(2, 2)
    sketch(maps[0, 0], net, result.hoped, "hoped for: plants run as the planner likes")
    sketch(maps[0, 1], net, result.naive, "the same lines, as the market uses them")
    sketch(maps[1, 0], net, dispatch(net, result.best.built), "proven best against the market")
    axes = maps[1, 1]
    lines = result.plans @ net.price
    axes.plot(lines, result.totals - lines, ".", color="0.75", ms=5, label="all 1024 plans")
    for plan, marker, colour, name in (
        (result.hoped, "o", "none", "hoped for"),
        (result.naive, "o", ORANGE, "the same lines in the market"),
        (result.best, "D", BLUE, f"proven best, {result.best.total:.0f}"),
    ):
        paid = net.price @ plan.built
        axes.plot(
            paid, plan.total - paid, marker, ms=10, mfc=colour, mec=ORANGE if colour == "none" else "white", mew=1.5
        )
        axes.annotate(
            name,
            (paid, plan.total - paid),
            (12, -14 if plan is result.hoped else 5),
            textcoords="offset points",
            weight="bold",
        )
    reach = np.array([0.0, lines.max()])
    axes.plot(reach, result.best.total - reach, "--", color=BLUE, lw=1, label="the same total as the best")
    low = min(result.hoped.total - net.price @ result.hoped.built, (result.totals - lines).min())
    axes.set(xlabel="cost of the lines", ylabel="cost of running, emissions included", ylim=(low - 50, low + 520))
    axes.legend(frameon=False, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=80)


def sketch(axes: Axes, net: Network, plan: Plan, title: str) -> None:
    """A map: lines as wide as what flows, plants as large as their output, coloured by emissions."""
    tons = net.emission @ plan.output
    for (a, b), built, flow, limit in zip(net.lines, plan.built, plan.flow, net.limit, strict=True):
        ends = net.at[[a, b]]
        axes.plot(*ends.T, ":" if not built else "-", color="0.8", lw=1.2 if not built else 2.5 * limit, zorder=1)
        if abs(flow) > 1e-6:
            axes.plot(*ends.T, "-", color=BLUE, lw=2.5 * abs(flow), zorder=2, solid_capstyle="butt")
            step = np.sign(flow) * (ends[1] - ends[0])
            start = ends.mean(0) - 0.06 * step
            style = {"arrowstyle": "-|>", "color": "white", "mutation_scale": 13, "lw": 0}
            axes.annotate("", start + 0.14 * step, start, arrowprops=style, zorder=3)
    for name, k, output, emission in zip(net.names, net.places, plan.output, net.emission, strict=True):
        colour = ORANGE if emission >= 1 else GREEN if emission == 0 else YELLOW
        axes.plot(*net.at[k], "o", ms=28 + 2.2 * output, mfc=colour, mec="white", mew=1.5, zorder=4)
        axes.annotate(name, net.at[k], ha="center", va="center", color="white", fontsize=9, weight="bold", zorder=5)
        note = f"makes {output + 0:.0f}, needs {net.demand[k]:.0f}"
        above = net.at[k, 1] > 1
        shift = (0, (23 if above else -31) + (1.1 if above else -1.1) * output)
        axes.annotate(note, net.at[k], shift, textcoords="offset points", ha="center", fontsize=9, color="0.25")
    axes.set_title(f"{title}\ntotal {plan.total:.0f}, emissions {tons:.1f}", fontsize=11)
    axes.set(xlim=(-0.6, 4.8), ylim=(-0.9, 3.0), aspect="equal")
    axes.axis("off")


def main(path: Path = PICTURE) -> None:
    result = run()
    print(
        f"The best plan costs {result.best.total:.2f}: bound {result.bound:.2f}, gap {result.gap:.1e}, proven {result.proven}."
    )
    print(f"The least of all {len(result.plans)} plans, each dispatched by HiGHS, costs {result.totals.min():.2f}.")
    print(
        f"The plan of a planner whom the market obeys: hoped {result.hoped.total:.2f}, costs {result.naive.total:.2f}."
    )
    print(f"All lines built: {result.everything.total:.2f}.")
    draw(result, path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
