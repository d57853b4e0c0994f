"""An hourly electricity tariff, learned end to end through a bilevel program.

At eight in the morning a utility has seen the first eight hours of the day's demand. It announces a price for each of the 24 hours; those
of the morning are past and stay at 1, the price of every hour on an ordinary day. Customers then move some of their load to cheaper
hours. The utility wants a low peak, and a tariff that stays close to 1 and does not jump:

    leader     min   max(load) + LEVEL |price - 1|^2 + JUMP |differences of price|^2     such that  price = 1 until 8:00
    follower   load  =  argmin  price' load + DISCOMFORT / 2 |load - demand|^2
                        such that  sum(load) = sum(demand),  load = demand until 8:00,  |load - demand| <= FLEXIBLE

The demand of the coming hours is not known, so a small network forecasts it from the first eight, and a `bigrad.Layer` turns the forecast
into a tariff. The customers answer that tariff with their true demand. The network is trained in two ways:

    two-stage     by the mean squared error of the forecast; the tariff comes afterwards
    end to end    by the utility's realised cost, through the layer

Both start from the same forecaster, and have the same data, optimiser and number of epochs, of which each keeps its best on validation days.
They are judged on held-out days against the tariff of perfect foresight. Results, and how to read them: docs/tariff.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cvxpy as cp
import torch
from torch import Tensor, nn
from tqdm import trange

import bigrad as bg
from bigrad.datasets import italy_power_demand

SEEN, HOURS = 8, 24
LEVEL, JUMP = 0.02, 0.02
DISCOMFORT, FLEXIBLE = 1.0, 0.5

Loss = Callable[[nn.Module, Tensor], Tensor]
"""The loss of a forecaster on days (n, 24), one number a day."""


class Day(NamedTuple):
    """What a forecast leads to, one row a day: the tariff, the load with which customers answer it, and the utility's cost."""

    price: Tensor
    load: Tensor
    cost: Tensor


def tariff_layer() -> bg.Layer:
    """The utility's program as a layer: the demand that it expects in, its prices and the load that it expects out."""
    demand = cp.Parameter(HOURS, name="demand")
    price, load = cp.Variable(HOURS, name="price"), cp.Variable(HOURS, name="load")
    shift = load[SEEN:] - demand[SEEN:]
    upper = cp.Problem(
        cp.Minimize(cp.max(load) + LEVEL * cp.sum_squares(price - 1) + JUMP * cp.sum_squares(cp.diff(price))),
        [price[:SEEN] == 1],
    )
    lower = cp.Problem(
        cp.Minimize(price @ load + DISCOMFORT / 2 * cp.sum_squares(load - demand)),
        [cp.sum(load) == cp.sum(demand), load[:SEEN] == demand[:SEEN], shift <= FLEXIBLE, shift >= -FLEXIBLE],
    )
    program = bg.bilevel(upper, lower, responds=[load])
    return bg.Layer(program, parameters=[demand], variables=[price, load], solver=bg.Pieces(starts=1, nodes=0))


def realised(layer: bg.Layer, expected: Tensor, demand: Tensor) -> Day:
    """Announce the tariff for the expected demand, let customers answer it with their true demand, and pay.

    Discomfort and flexibility are about the shift, load - demand, alone, so customers make the same shift whatever their demand:
    the shift of the layer's follower is the exact answer of the true customers too.
    """
    price, load = layer(expected)
    load = demand + (load - expected)
    terms = LEVEL * (price - 1).square().sum(-1) + JUMP * price.diff().square().sum(-1)
    return Day(price, load, load.amax(-1) + terms)


class Forecaster(nn.Module):
    """The whole day's demand from its first hours, which are known and passed on."""

    def __init__(self, width: int = 64):
        super().__init__()
        layers = nn.Linear(SEEN, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, HOURS - SEEN)
        self.rest = nn.Sequential(*layers)

    def forward(self, days: Tensor) -> Tensor:
        morning = days[..., :SEEN]
        return torch.cat([morning, self.rest(morning)], -1)


def fit(network: nn.Module, loss: Loss, train: Tensor, valid: Tensor, epochs: int, label: str) -> nn.Module:
    """A copy of the network after the training epoch that was best on the validation days."""
    network = copy.deepcopy(network)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    best, kept = float("inf"), network.state_dict()
    for _ in (bar := trange(epochs, desc=label, leave=False)):
        for batch in torch.randperm(len(train)).split(32):
            optimiser.zero_grad()
            loss(network, train[batch]).mean().backward()
            optimiser.step()
        with torch.no_grad():
            score = loss(network, valid).mean().item()
        if score < best:
            best, kept = score, copy.deepcopy(network.state_dict())
        bar.set_postfix(validation=f"{score:.4f}", best=f"{best:.4f}")
    network.load_state_dict(kept)
    return network


def main(
    days: int = 700,
    held_out: int | None = None,
    warm_up: int = 200,
    epochs: int = 20,
    seeds: int = 3,
    folder: Path | None = None,
) -> dict[str, Tensor]:
    """Train both ways with each seed, print the table, save the picture; return the mean cost on the held-out days by seed."""
    data = italy_power_demand(train=days, seed=0)
    known, test = (torch.as_tensor(part, dtype=torch.float32) for part in (data.train, data.test[:held_out]))
    cut = days - days // 5
    print(
        f"Italian power demand: the archive's own split has 67 training days, so a larger one is drawn with a fixed seed:\n"
        f"{cut} days to train on, {days - cut} to choose the epoch by, {len(test)} held out."
    )
    layer = tariff_layer()
    print(layer.explain())

    def squared_error(network: nn.Module, demand: Tensor) -> Tensor:
        return (network(demand) - demand)[:, SEEN:].square().mean(-1)

    def realised_cost(network: nn.Module, demand: Tensor) -> Tensor:
        return realised(layer, network(demand), demand).cost

    runs: dict[str, list[Day]] = {"two-stage": [], "end to end": []}
    errors: dict[str, list[float]] = {"two-stage": [], "end to end": []}
    with torch.no_grad():
        foresight = realised(layer, test, test)
    for seed in range(seeds):
        torch.manual_seed(seed)
        train, valid = known[torch.randperm(days)].split([cut, days - cut])
        start = fit(Forecaster(), squared_error, train, valid, warm_up, f"seed {seed}, forecast")
        for name, loss in (("two-stage", squared_error), ("end to end", realised_cost)):
            network = fit(start, loss, train, valid, epochs, f"seed {seed}, {name}")
            with torch.no_grad():
                runs[name].append(realised(layer, network(test), test))
                errors[name].append(squared_error(network, test).mean().item())

    flat = Day(torch.ones_like(test), test, test.amax(-1))
    rows = {"flat price": [flat], **runs, "perfect foresight": [foresight]}
    errors |= {"flat price": [], "perfect foresight": [0.0]}
    costs = {name: torch.stack([run.cost.mean() for run in found]) for name, found in rows.items()}
    report(rows, costs, errors)
    path = (folder or Path(__file__).parent) / "tariff.png"
    picture(path, test, runs["two-stage"][0], runs["end to end"][0], foresight)
    print(f"One held-out day: {path}")
    return costs


def report(rows: dict[str, list[Day]], costs: dict[str, Tensor], errors: dict[str, list[float]]) -> None:
    """Print means over the held-out days, with the standard deviation over the seeds."""
    ideal = costs["perfect foresight"]
    print(f"\n{'':<18}{'realised cost':>16}{'of this, peak':>16}{'regret in %':>16}{'squared error':>17}")
    for name, found in rows.items():
        peak = torch.stack([run.load.amax(-1).mean() for run in found])
        columns = [costs[name], peak, 100 * (costs[name] / ideal - 1), torch.tensor(errors[name])]
        print(
            f"{name:<18}"
            + "".join(f"{spread(c, d):>{w}}" for c, d, w in zip(columns, (3, 3, 1, 3), (16, 16, 16, 17), strict=True))
        )
    gain = 100 * (costs["two-stage"] - costs["end to end"]) / costs["two-stage"]
    print(
        f"\nEnd to end costs {spread(gain, 1)} % less than two-stage (mean ± standard deviation over {len(gain)} seeds)."
    )


def spread(values: Tensor, digits: int) -> str:
    """Mean ± sample standard deviation of what there is."""
    if not len(values):
        return ""
    mean = f"{values.mean():.{digits}f}"
    return f"{mean} ± {values.std():.{digits}f}" if len(values) > 1 else mean


def picture(path: Path, demand: Tensor, two_stage: Day, end_to_end: Day, foresight: Day) -> None:
    """Draw the held-out day on which end-to-end training saves the median amount."""
    from matplotlib.figure import Figure

    day = int((two_stage.cost - end_to_end.cost).argsort()[len(demand) // 2])
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(2, 3))
    edges, hours = torch.arange(HOURS + 1).numpy(), torch.arange(HOURS).numpy() + 0.5
    below.plot(hours, demand[day].numpy(), color="black", label=f"demand: peak {demand[day].max():.2f}", lw=2)
    styles = {
        "perfect foresight": (foresight, "black", ":"),
        "two-stage": (two_stage, "tab:orange", "--"),
        "end to end": (end_to_end, "tab:blue", "-"),
    }
    for name, (run, color, style) in styles.items():
        above.stairs(run.price[day].numpy(), edges, baseline=None, color=color, ls=style, lw=2, label=name)
        load = run.load[day]
        below.plot(
            hours,
            load.numpy(),
            color=color,
            ls=style,
            lw=2,
            label=f"load, {name}: peak {load.max():.2f}, cost {run.cost[day]:.2f}",
        )
    for axes in (above, below):
        axes.axvspan(0, SEEN, color="0.93", zorder=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9, loc="upper right" if axes is above else "lower right")
    above.set(
        title="A held-out day: the tariffs announced at 8:00, and how customers move their load",
        ylabel="price (ordinary price = 1)",
    )
    for axes in (above, below):
        axes.text(
            SEEN / 2, 0.97, "already seen", transform=axes.get_xaxis_transform(), ha="center", va="top", color="0.4"
        )
    below.set(
        xlabel="hour of the day", ylabel="demand and load\n(standard deviations from the day's mean)", xlim=(0, HOURS)
    )
    below.set_xticks(range(0, HOURS + 1, 3))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    torch.set_num_threads(1)  # the tensors are small: more threads would only wait for each other
    main()
