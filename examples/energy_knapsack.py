"""Which half-hours of electricity to buy into: predicted values that lead to good knapsacks, on Irish market prices.

A day is a knapsack of 48 items, its half-hours. They weigh 3, 5 or 7, and are worth the price of the half-hour times the
weight, which is known only afterwards. One linear map predicts the value of an item from 8 features of its half-hour, the
same map for all; then the items of greatest predicted value that fit into the capacity are taken. What their true value
lacks of the best possible is the regret. The map is trained in five ways, all through the exact knapsack of `bigrad.Knapsack`:

    two-stage      by the mean squared error of the values; knapsacks come afterwards
    SPO+           by a convex upper bound of the regret
    Fenchel-Young  by the distance of perturbed decisions from the best ones
    blackbox       by the regret, its slope between the decision and one pushed along the loss (`Interpolate`)
    identity       by the regret, the knapsack taken for the identity on the way back (`Identity`)

All start from the same weights, see the same batches, and keep the epoch that was best by their own loss on validation
days.

    python examples/energy_knapsack.py          one seed, capacity 120
    python examples/energy_knapsack.py --full   three seeds, capacities 60, 120 and 180: the table of docs/energy_knapsack.md
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from tqdm import trange

import bigrad as bg
from bigrad.datasets import SemoPrices, semo_prices
from bigrad.losses import FenchelYoung, Regret, Solved, SPOPlus

HERE = Path(__file__).parent
HELD_BACK, BATCH, RATE = 0.2, 32, 0.03

Loss = Callable[[Tensor, Solved], Tensor]  # of predicted values, and the true ones with the best items


class Days(NamedTuple):
    """Features (n, 48, 8) and values (n, 48), one day a row; the mean of both is near 0 and 1."""

    features: Tensor
    values: Tensor

    def at(self, days: Tensor) -> Days:
        return Days(self.features[days], self.values[days])


class Run(NamedTuple):
    """What a way of predicting leads to on the test days: values and regrets, in percent, and processor seconds an epoch."""

    values: Tensor
    regret: Tensor
    seconds: float = 0.0


class Predictor(nn.Module):
    """One linear map for every half-hour. weights: if given, it predicts the price, which they multiply."""

    def __init__(self, features: int, weights: Tensor | None = None):
        super().__init__()
        self.price, self.weights = nn.Linear(features, 1), weights

    def forward(self, features: Tensor) -> Tensor:
        price = self.price(features)[..., 0]
        return price if self.weights is None else price * self.weights


def prepared(data: SemoPrices) -> tuple[Days, Days]:
    """Training and test days, in units of the training days."""
    known, test = (
        Days(torch.as_tensor(features), torch.as_tensor(values))
        for features, values in ((data.train_features, data.train_values), (data.test_features, data.test_values))
    )
    mean, deviation = known.features.mean((0, 1)), known.features.std((0, 1))
    first, second = (
        Days(((days.features - mean) / deviation).float(), (days.values / known.values.mean()).float())
        for days in (known, test)
    )
    return first, second


def losses(knapsack: bg.Knapsack) -> dict[str, Loss]:
    """The five ways."""
    return {
        "two-stage": lambda values, true: mse_loss(values, true.costs),
        "SPO+": SPOPlus(knapsack),
        "Fenchel-Young": FenchelYoung(knapsack, smoothing=bg.Perturbed(sigma=0.5, samples=8)),
        "blackbox": Regret(knapsack, rule=bg.Interpolate()),
        "identity": Regret(knapsack, rule=bg.Identity(bg.UnitNorm())),
    }


def solved(knapsack: bg.Knapsack, days: Days) -> Solved:
    """The true values with the best items, as losses take them."""
    return Solved(days.values, torch.as_tensor(knapsack.solve(days.values.numpy())).float())


@torch.no_grad()
def regrets(knapsack: bg.Knapsack, values: Tensor, best: Solved) -> Tensor:
    """What the items that look best at predicted values lose, of each day, and of a mean day's optimum, in percent."""
    lost = Regret(knapsack, reduction="none")(values, best)
    return 100 * lost / (best.costs * best.decisions).sum(1).mean()


def fit(
    start: Predictor, knapsack: bg.Knapsack, loss: Loss, train: Days, valid: Days, epochs: int, label: str
) -> Predictor:
    """A copy of the predictor after the epoch of least loss on the validation days."""
    predictor = copy.deepcopy(start)
    optimiser = torch.optim.Adam(predictor.parameters(), lr=RATE)
    known, unseen = solved(knapsack, train), solved(knapsack, valid)
    best, kept = float("inf"), predictor.state_dict()
    for _ in (bar := trange(epochs, desc=label, leave=False)):
        for batch in torch.randperm(len(train.values)).split(BATCH):
            optimiser.zero_grad()
            loss(predictor(train.features[batch]), Solved(known.costs[batch], known.decisions[batch])).backward()
            optimiser.step()
        with torch.no_grad():
            values = predictor(valid.features)
            score = loss(values, unseen).item()
            regret = regrets(knapsack, values, unseen).mean()
        if score < best:
            best, kept = score, copy.deepcopy(predictor.state_dict())
        bar.set_postfix(validation=f"{score:.4f}", regret=f"{regret:.2f} %")
    predictor.load_state_dict(kept)
    return predictor


def compare(
    data: SemoPrices, capacity: int, seed: int, epochs: int, days: int | None = None, weighed: bool = False
) -> dict[str, Run]:
    """Train all ways at one capacity with one seed: of initial weights, validation days, batches and noise."""
    knapsack = bg.Knapsack(data.weights, capacity)
    known, test = prepared(data)
    torch.manual_seed(seed)
    order = torch.randperm(len(known.values))[:days]
    held = round(HELD_BACK * len(order))
    train, valid = known.at(order[held:]), known.at(order[:held])
    start = Predictor(len(data.features), torch.as_tensor(data.weights / 5).float() if weighed else None)
    best, runs = solved(knapsack, test), {}
    for name, loss in losses(knapsack).items():
        torch.manual_seed(seed + 1)
        begun = time.process_time()
        label = f"capacity {capacity}, seed {seed}, {name}"
        predictor = fit(start, knapsack, loss, train, valid, epochs, label)
        seconds = (time.process_time() - begun) / epochs
        with torch.no_grad():
            values = predictor(test.features)
        runs[name] = Run(values, regrets(knapsack, values, best), seconds)
    return runs


def untrained(data: SemoPrices, capacity: int) -> dict[str, Run]:
    """Two ways that need no training, to know what the others are worth."""
    knapsack = bg.Knapsack(data.weights, capacity)
    known, test = prepared(data)
    price = data.test_features[..., data.features.index("forecast price")] * data.weights
    rows = {"market's forecast × weight": torch.as_tensor(price), "item's mean value": known.values.mean(0)}
    best, runs = solved(knapsack, test), {}
    for name, values in rows.items():
        values = values.float().expand_as(test.values)
        runs[name] = Run(values, regrets(knapsack, values, best))
    return runs


def main(
    capacities: Sequence[int] = (120,),
    seeds: int = 1,
    epochs: int = 30,
    days: int | None = None,
    models: Sequence[bool] = (False,),
    folder: Path = HERE,
) -> dict[str, Tensor]:
    """Train all ways, print the tables, save the picture; returns the first table's regrets, (capacities, seeds).

    days: how many of the 552 training days to use. models: for each table, whether its predictor knows the weights.
    """
    data = semo_prices()
    kept = min(days or len(data.train_values), len(data.train_values))
    held = round(HELD_BACK * kept)
    print(f"Irish electricity prices, 48 half-hours of a day as a knapsack: {kept - held} days to train on,")
    print(f"{held} to choose the epoch by, and the file's own {len(data.test_values)} later days to test with.")
    tables, first, middle = [], {}, len(capacities) // 2
    for weighed in models:
        runs = [[compare(data, c, seed, epochs, days, weighed) for seed in range(seeds)] for c in capacities]
        first = first or runs[middle][0]
        print(f"\nRegret on the test days in %, of a model that {'knows' if weighed else 'does not see'} the weights:")
        fixed = [[untrained(data, c)] for c in capacities]
        tables.append(report(capacities, runs) | report(capacities, fixed, head=False))
    draw(folder / "energy_knapsack.png", data, capacities[middle], first)
    print(f"\nOne test day, capacity {capacities[middle]}: {folder / 'energy_knapsack.png'}")
    return tables[0]


def report(capacities: Sequence[int], runs: list[list[dict[str, Run]]], head: bool = True) -> dict[str, Tensor]:
    """Print a line for each way, mean ± standard deviation over the seeds; returns the regrets (capacities, seeds)."""
    if head:
        columns = "".join(f"{f'capacity {capacity}':>16}" for capacity in capacities)
        print(f"{'':<28}{columns}{'ms an epoch':>16}")
    found = {}
    for name in runs[0][0]:
        found[name] = torch.stack([torch.stack([one[name].regret.mean() for one in by_seed]) for by_seed in runs])
        line = ""
        for regret in found[name]:
            deviation = f" ± {regret.std():.2f}" if len(regret) > 1 else ""
            line += f"{f'{regret.mean():.2f}{deviation}':>16}"
        seconds = sum(one[name].seconds for by_seed in runs for one in by_seed) / found[name].numel()
        print(f"{name:<28}{line}" + (f"{1e3 * seconds:>16.0f}" if seconds else ""))
    return found


def draw(path: Path, data: SemoPrices, capacity: int, runs: dict[str, Run]) -> None:
    """Draw the most ordinary of the test days: the one on which the regrets are nearest to their means."""
    from matplotlib.figure import Figure

    knapsack = bg.Knapsack(data.weights, capacity)
    regret = torch.stack([run.regret for run in runs.values()])
    day = int((regret - regret.mean(1, keepdim=True)).abs().sum(0).argmin())
    price = data.test_values[day] / data.weights
    order = sorted(range(len(price)), key=lambda i: (data.weights[i], -price[i]))
    taken = {"best": knapsack.solve(data.test_values[day][None])[0]}
    taken |= {name: knapsack.solve(run.values[day].double().numpy()[None])[0] for name, run in runs.items()}
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(2, 3))
    colours = {3: "tab:olive", 5: "tab:cyan", 7: "tab:purple"}
    above.bar(range(len(order)), price[order], color=[colours[int(data.weights[i])] for i in order], width=0.85)
    for weight, colour in colours.items():
        places = [k for k, i in enumerate(order) if data.weights[i] == weight]
        middle = (places[0] + places[-1]) / 2
        above.text(middle, price.max(), f"weight {weight}", color=colour, ha="center", va="top", weight="bold")
    best = taken["best"]
    for row, chosen in enumerate(taken.values()):
        for k, i in enumerate(order):
            colour = ("tab:green" if best[i] else "tab:red") if chosen[i] else ("0.75" if best[i] else "none")
            below.plot(k, row, "s", ms=8, mfc=colour if chosen[i] else "none", mec=colour)
    worth = {name: (chosen * data.test_values[day]).sum() for name, chosen in taken.items()}
    names = [f"{name}\n{100 * (1 - worth[name] / worth['best']):.1f} % lost" for name in runs]
    below.set(
        yticks=range(len(taken)),
        yticklabels=["best possible", *names],
        ylim=(len(taken) - 0.5, -0.5),
        xticks=[],
        xlim=(-1, len(order)),
    )
    below.set_xlabel(
        "the day's 48 half-hours by weight and true price: taken (green: rightly, red: wrongly), missed (hollow)"
    )
    above.set_ylabel("true price (value / weight)\nin euro per MWh")
    above.set_title(f"A test day: what each way of training takes into a knapsack of {capacity}")
    above.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Five ways to train a predictor for a knapsack of electricity.")
    parser.add_argument(
        "--full", action="store_true", help="three seeds, three capacities, and a model that knows weights"
    )
    if parser.parse_args().full:
        main(capacities=(60, 120, 180), seeds=3, models=(False, True))
    else:
        main()
