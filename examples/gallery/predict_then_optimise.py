"""Predict, then optimise: a wrong model can still lead to right decisions, if it is trained for them.

The costs of 40 streets are predicted from five features by a linear model; the cheapest path by these costs is then taken
and paid for at the true ones. The true costs are powers of the features, so the model is wrong, the more so the higher the
power. It is trained in three ways: by least squares, by SPO+, and by a Fenchel-Young loss. The data are made as in
Elmachtoub and Grigas, "Smart 'predict, then optimize'", Management Science 2022, section 6.1.

    python examples/gallery/predict_then_optimise.py      a minute; saves docs/gallery/predict_then_optimise.png
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import bigrad as bg
from bigrad.losses import FenchelYoung, Regret, Solved, SPOPlus

PICTURE = Path(__file__).parents[2] / "docs" / "gallery" / "predict_then_optimise.png"
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
SIDE, FEATURES = 5, 5

Loss = Callable[[Tensor, Solved], Tensor]


class Sample(NamedTuple):
    """Features (k, 5) and true costs of the streets (k, 40)."""

    features: Tensor
    costs: Tensor


class Table(NamedTuple):
    """On new data the regret in percent of the least cost, and the mean squared error of costs, (degrees, seeds) for each way.
    Of one new case of the highest degree the true costs, (40,), and the paths that are best and that each way takes.
    """

    degrees: tuple[int, ...]
    regret: dict[str, np.ndarray]
    error: dict[str, np.ndarray]
    costs: np.ndarray
    paths: dict[str, np.ndarray]


def streets() -> np.ndarray:
    """(40, 2): from each crossing of a 5 x 5 town one street east and one south, crossings counted row by row."""
    at = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    pairs = [(at[:, :-1], at[:, 1:]), (at[:-1], at[1:])]
    return np.concatenate([np.stack([a.ravel(), b.ravel()], 1) for a, b in pairs])


def town() -> bg.GraphPath:
    """The cheapest path from corner to corner."""
    return bg.GraphPath(streets(), SIDE * SIDE)


def samples(counts: tuple[int, ...], degree: int, seed: int, noise: float = 0.5) -> list[Sample]:
    """Costs (1 + (3 + B z / sqrt(5)) ^ degree) / 3.5 ^ degree times noise, uniform in 1 ± noise; B of zeros and ones."""
    rng = np.random.default_rng(seed)
    mixing = rng.integers(0, 2, (len(streets()), FEATURES))
    found = []
    for count in counts:
        z = rng.normal(size=(count, FEATURES))
        costs = (1 + (3 + z @ mixing.T / np.sqrt(FEATURES)) ** degree) / 3.5**degree
        costs *= rng.uniform(1 - noise, 1 + noise, costs.shape)
        found.append(Sample(torch.as_tensor(z), torch.as_tensor(costs)))
    return found


def least_squares(train: Sample) -> nn.Linear:
    """The linear model of least squared error, in closed form."""
    model = nn.Linear(FEATURES, train.costs.shape[1], dtype=torch.float64)
    padded = torch.cat([train.features, torch.ones(len(train.features), 1)], 1)
    with torch.no_grad():
        found = torch.linalg.lstsq(padded, train.costs).solution
        model.weight.copy_(found[:-1].T)
        model.bias.copy_(found[-1])
    return model


def fit(start: nn.Linear, path: bg.GraphPath, loss: Loss, train: Sample, epochs: int) -> nn.Linear:
    """A linear model trained by a loss, from the least-squares one."""
    model = nn.Linear(FEATURES, train.costs.shape[1], dtype=torch.float64)
    model.load_state_dict(start.state_dict())
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs, 0.002)
    best = torch.as_tensor(path.solve(train.costs.numpy()))
    for _ in range(epochs):
        for rows in torch.randperm(len(best)).split(32):
            optimiser.zero_grad()
            loss(model(train.features[rows]), Solved(train.costs[rows], best[rows])).backward()
            optimiser.step()
        plan.step()
    return model


def ways(path: bg.GraphPath) -> dict[str, Loss]:
    """The losses that know the town."""
    return {
        "SPO+": SPOPlus(path),
        "Fenchel-Young": FenchelYoung(path, smoothing=bg.Perturbed(sigma=0.5, samples=8)),
    }


@torch.no_grad()
def regrets(model: nn.Linear, path: bg.GraphPath, test: Sample) -> Tensor:
    """What the model's paths cost more than the best ones, of each case, and of what a best path costs, in percent."""
    best = torch.as_tensor(path.solve(test.costs.numpy()))
    lost = Regret(path, reduction="none")(model(test.features), Solved(test.costs, best))
    return 100 * lost / (test.costs * best).sum(1).mean()


@torch.no_grad()
def squared_error(model: nn.Linear, test: Sample) -> Tensor:
    """Of the predicted costs, of each case."""
    return (model(test.features) - test.costs).square().mean(1)


def trained(path: bg.GraphPath, known: Sample, epochs: int) -> dict[str, nn.Linear]:
    """The model of each way."""
    start = least_squares(known)
    return {"least squares": start} | {name: fit(start, path, loss, known, epochs) for name, loss in ways(path).items()}


def run(
    degrees: tuple[int, ...] = (1, 2, 4, 6, 8), seeds: int = 10, train: int = 200, test: int = 1000, epochs: int = 20
) -> Table:
    """Train every way on every degree and seed; a seed draws the mixing, the data, their noise and the batches."""
    path = town()
    lost: dict[tuple[int, int], dict[str, Tensor]] = {}
    missed: dict[tuple[int, int], dict[str, Tensor]] = {}
    for degree in degrees:
        for seed in range(seeds):
            torch.manual_seed(seed)
            known, unseen = samples((train, test), degree, seed)
            models = trained(path, known, epochs)
            lost[degree, seed] = {name: regrets(model, path, unseen) for name, model in models.items()}
            missed[degree, seed] = {name: squared_error(model, unseen) for name, model in models.items()}
    case, paths = ordinary(torch.stack(list(lost[degree, seed].values()))), {}
    with torch.no_grad():
        asked = {name: model(unseen.features[case]) for name, model in models.items()}
    for name, costs in ({"best": unseen.costs[case]} | asked).items():
        paths[name] = path.solve(costs.numpy()[None])[0]
    regret, error = (
        {name: np.array([[float(of[d, s][name].mean()) for s in range(seeds)] for d in degrees]) for name in models}
        for of in (lost, missed)
    )
    return Table(degrees, regret, error, unseen.costs[case].numpy(), paths)


def ordinary(lost: Tensor) -> int:
    """The case whose regrets, (ways, cases), are nearest to the means."""
    return int((lost - lost.mean(1, keepdim=True)).abs().sum(0).argmin())


def draw(result: Table, path: Path) -> None:
    """Regret by degree, and one case of the highest degree."""
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    axes, map_ = figure.subplots(1, 2, width_ratios=(6, 5))
    styles = {"least squares": (ORANGE, "s"), "SPO+": (BLUE, "o"), "Fenchel-Young": (GREEN, "^")}
    places = np.arange(len(result.degrees))
    for shift, (name, (colour, marker)) in zip((-0.16, 0.0, 0.16), styles.items(), strict=True):
        values = result.regret[name]
        axes.plot(np.repeat(places + shift, values.shape[1]), values.ravel(), ".", color=colour, alpha=0.35, ms=5)
        spread = values.std(1, ddof=1) if values.shape[1] > 1 else 0 * values[:, 0]
        axes.errorbar(places + shift, values.mean(1), spread, fmt=marker, ms=8, color=colour, capsize=4, label=name)
    axes.set(xticks=places, xticklabels=result.degrees, ylim=(0, None))
    axes.set(xlabel="degree of the true costs (the model is linear)", ylabel="regret on new data, %")
    axes.set_title("Mean ± standard deviation over towns", fontsize=11)
    axes.legend(frameon=False)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)

    lines = np.stack([streets() % SIDE, streets() // SIDE], -1).astype(float)
    paid = {name: float(result.costs @ taken) for name, taken in result.paths.items()}
    width = 16 * np.sqrt(result.costs / result.costs.max())
    map_.add_collection(LineCollection(lines, linewidths=width, colors="0.86", capstyle="butt"))
    looks = {
        "best": ("black", 0.0, ":"),
        **{name: (styles[name][0], s, "-") for name, s in zip(styles, (-0.08, 0.08, 0.16), strict=True)},
    }
    for name, (colour, offset, dash) in looks.items():
        moved = lines[result.paths[name] > 0.5] + offset * np.array([1.0, -1.0])
        label = f"{name}: {paid[name]:.2f}"
        map_.add_collection(LineCollection(moved, linewidths=2.6, colors=colour, linestyles=dash, label=label))
    for node, name in ((0, "from"), (SIDE - 1, "to")):
        map_.plot(node, node, "o", ms=10, color="black", zorder=6)
        shift = (-14, 9) if node == 0 else (14, -18)
        map_.annotate(name, (node, node), shift, textcoords="offset points", ha="center")
    map_.set(xlim=(-0.5, SIDE - 0.5), ylim=(SIDE - 0.6, -0.5), aspect="equal")
    map_.axis("off")
    map_.legend(title="true cost of the path", frameon=False, loc="center left", bbox_to_anchor=(0.98, 0.5))
    map_.set_title(f"A case of degree {result.degrees[-1]}: wide streets are dear", fontsize=11)
    figure.savefig(path, dpi=90)


def main(path: Path = PICTURE) -> None:
    result = run()
    print("Regret on new data in %, mean ± standard deviation over 10 towns:")
    print(f"{'degree':<16}" + "".join(f"{degree:>15}" for degree in result.degrees))
    for name, values in result.regret.items():
        print(f"{name:<16}" + "".join(f"{f'{v.mean():.1f} ± {v.std(ddof=1):.1f}':>15}" for v in values))
    ratio = (result.error["SPO+"] / result.error["least squares"]).mean(1)
    print("Squared error of SPO+ over that of least squares: " + ", ".join(f"{r:.1f}" for r in ratio))
    wins = (result.regret["SPO+"] < result.regret["least squares"]).sum(1)
    print("Towns of 10 in which SPO+ beats least squares: " + ", ".join(map(str, wins)))
    draw(result, path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
