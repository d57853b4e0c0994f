"""An hourly electricity tariff, learned end to end through a bilevel program.

At eight in the morning a utility has seen the first eight hours of the day's demand. It announces a price for each of
the 24 hours; those of the morning are past and stay at 1, the ordinary price. Customers then move some of their load to
cheaper hours. The utility wants a low peak, and a tariff that stays close to 1 and does not jump:

    leader     min   max(load) + LEVEL |price - 1|^2 + JUMP |differences of price|^2   such that  price = 1 until 8:00
    follower   load  =  argmin  price' load + DISCOMFORT / 2 |load - demand|^2
                        such that  sum(load) = sum(demand),  load = demand until 8:00,  |load - demand| <= FLEXIBLE

The demand of the coming hours is not known, so a small network forecasts it from the first eight, and a `bigrad.Layer`
turns the forecast into a tariff. The customers answer it with their true demand. The network is trained in two ways:

    two-stage     by the mean squared error of the forecast; the tariff comes afterwards
    end to end    by the utility's realised cost, through the layer

Both start from the same forecaster, and have the same data, optimiser and number of epochs, of which each keeps its
best on validation days. Held-out days judge them against the tariff of perfect foresight. Results: docs/tariff.md.
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

HERE = Path(__file__).parent
SEEN, HOURS = 8, 24
LEVEL, JUMP = 0.02, 0.02
DISCOMFORT, FLEXIBLE = 1.0, 0.5


class Day(NamedTuple):
    """What a forecast leads to, one row a day: the tariff, the load that answers it, and the utility's cost."""

    price: Tensor
    load: Tensor
    cost: Tensor


def tariff_layer() -> bg.Layer:
    """The utility's program as a layer: the demand that it expects goes in; its prices and their load come out."""
    demand = cp.Parameter(HOURS, name="demand")
    price, load = cp.Variable(HOURS, name="price"), cp.Variable(HOURS, name="load")
    cost = cp.max(load) + LEVEL * cp.sum_squares(price - 1) + JUMP * cp.sum_squares(cp.diff(price))
    upper = cp.Problem(cp.Minimize(cost), [price[:SEEN] == 1])
    shift = load[SEEN:] - demand[SEEN:]
    lower = cp.Problem(
        cp.Minimize(price @ load + DISCOMFORT / 2 * cp.sum_squares(load - demand)),
        [cp.sum(load) == cp.sum(demand), load[:SEEN] == demand[:SEEN], shift <= FLEXIBLE, shift >= -FLEXIBLE],
    )
    program = bg.bilevel(upper, lower, responds=[load])
    return bg.Layer(program, parameters=[demand], variables=[price, load], solver=bg.Pieces(starts=1, nodes=0))


def realised(layer: bg.Layer, expected: Tensor, demand: Tensor) -> Day:
    """Announce the tariff for the expected demand, let customers answer it with their true demand, and pay.

    Discomfort and flexibility concern the shift, load - demand, alone. So customers make the same shift whatever their
    demand, and the shift of the layer's follower is the exact answer of the true customers too.
    """
    price, load = layer(expected)
    load = demand + (load - expected)
    terms = LEVEL * (price - 1).square().sum(-1) + JUMP * price.diff().square().sum(-1)
    return Day(price, load, load.amax(-1) + terms)


class Forecaster(nn.Module):
    """The whole day's demand from its first hours, which are known and passed on."""

    def __init__(self, width: int = 64):
        super().__init__()
        first, last = nn.Linear(SEEN, width), nn.Linear(width, HOURS - SEEN)
        self.rest = nn.Sequential(first, nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last)

    def forward(self, days: Tensor) -> Tensor:
        morning = days[..., :SEEN]
        return torch.cat([morning, self.rest(morning)], -1)


Loss = Callable[[nn.Module, Tensor], Tensor]  # of a network on days (n, 24), one number a day


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
    days: int = 700, held_out: int = 396, warm_up: int = 200, epochs: int = 20, seeds: int = 3, folder: Path = HERE
) -> dict[str, Tensor]:
    """Train both ways with each seed, print the table, save the picture; returns the mean costs on held-out days."""
    data = italy_power_demand(train=days, seed=0)
    known, test = (torch.as_tensor(part, dtype=torch.float32) for part in (data.train, data.test[:held_out]))
    sizes = [days - days // 5, days // 5]
    print("Italian power demand. Its own split has only 67 training days, so a larger one is drawn with a fixed seed:")
    print(f"{sizes[0]} days to train on, {sizes[1]} to choose the epoch by, {len(test)} held out.\n")
    layer = tariff_layer()
    print(layer.explain())

    def squared_error(network: nn.Module, demand: Tensor) -> Tensor:
        return (network(demand) - demand)[:, SEEN:].square().mean(-1)

    def realised_cost(network: nn.Module, demand: Tensor) -> Tensor:
        return realised(layer, network(demand), demand).cost

    losses: dict[str, Loss] = {"two-stage": squared_error, "end to end": realised_cost}
    runs: dict[str, list[Day]] = {name: [] for name in losses}
    errors: dict[str, list[Tensor]] = {name: [] for name in losses}
    for seed in range(seeds):
        torch.manual_seed(seed)
        train, valid = known[torch.randperm(days)].split(sizes)
        start = fit(Forecaster(), squared_error, train, valid, warm_up, f"seed {seed}, forecaster")
        for name, loss in losses.items():
            network = fit(start, loss, train, valid, epochs, f"seed {seed}, {name}")
            with torch.no_grad():
                runs[name].append(realised(layer, network(test), test))
                errors[name].append(squared_error(network, test).mean())

    flat, foresight = Day(torch.ones_like(test), test, test.amax(-1)), realised(layer, test, test)
    costs = report({"flat price": [flat], **runs, "perfect foresight": [foresight]}, errors)
    picture(
        folder / "tariff.png", test, {name: run[0] for name, run in runs.items()} | {"perfect foresight": foresight}
    )
    print(f"One held-out day: {folder / 'tariff.png'}")
    return costs


def report(rows: dict[str, list[Day]], errors: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Print the table, mean ± standard deviation over the seeds; returns the mean costs on held-out days by seed."""

    def spread(values: Tensor, digits: int) -> str:
        deviation = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
        return f"{values.mean():.{digits}f}{deviation}"

    costs = {name: torch.stack([day.cost.mean() for day in found]) for name, found in rows.items()}
    print(f"\n{'':<18}{'realised cost':>16}{'of this, peak':>16}{'regret in %':>16}{'squared error':>16}")
    for name, found in rows.items():
        peak = torch.stack([day.load.amax(-1).mean() for day in found])
        regret = 100 * (costs[name] / costs["perfect foresight"] - 1)
        error = spread(torch.stack(errors[name]), 3) if name in errors else ""
        print(f"{name:<18}{spread(costs[name], 3):>16}{spread(peak, 3):>16}{spread(regret, 1):>16}{error:>16}")
    gain = spread(100 * (1 - costs["end to end"] / costs["two-stage"]), 1)
    print(f"\nEnd to end costs {gain} % less than two-stage (± is the standard deviation over the seeds).")
    return costs


def picture(path: Path, demand: Tensor, runs: dict[str, Day]) -> None:
    """Draw the most ordinary of the held-out days: the one on which the three costs are nearest to their means."""
    from matplotlib.figure import Figure

    costs = torch.stack([run.cost for run in runs.values()])
    day = int((costs - costs.mean(1, keepdim=True)).abs().sum(0).argmin())
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(2, 3))
    hours = [hour + 0.5 for hour in range(HOURS)]
    below.plot(hours, demand[day], "tab:red", lw=2, label=f"demand: peak {demand[day].max():.2f}")
    for (name, run), style in zip(runs.items(), ("C1--", "C0-", "k:"), strict=True):
        price, load, cost = (part[day] for part in run)
        above.step(range(HOURS + 1), [*price, price[-1]], style, where="post", lw=2, label=name)
        below.plot(hours, load, style, lw=2, label=f"load, {name}: peak {load.max():.2f}, cost {cost:.2f}")
    for axes in (above, below):
        axes.axvspan(0, SEEN, color="0.93", zorder=0)
        axes.text(
            SEEN / 2, 0.96, "already seen", transform=axes.get_xaxis_transform(), ha="center", va="top", color="0.4"
        )
        axes.grid(alpha=0.3)
    above.legend(loc="lower left")
    below.legend(loc="lower right")
    above.set_title("A held-out day: the tariffs announced at 8:00, and how customers move their load")
    above.set_ylabel("price (ordinary price = 1)")
    below.set(xlabel="hour of the day", ylabel="demand and load\n(standard deviations from the day's mean)")
    below.set(xlim=(0, HOURS), xticks=range(0, HOURS + 1, 3))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
