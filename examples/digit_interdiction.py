"""Roads through handwritten digits, one player blocks and the other travels: costs learned from what both did.

A map is a square of real handwritten digits (scikit-learn's), one a tile. A tile's cost can be read from its image, by
the digit (LEVELS) and by how much ink it took. The leader blocks at most BUDGET tiles; the follower, who sees them,
crosses from the upper left corner to the lower right one, to any of eight neighbours at each step:

    leader     x  =  argmax over x in {0, 1}^n, sum(x) <= BUDGET of  cost(x) - upkeep' x
    follower   cost(x)  =  min { (w + EXTRA x)' y : y visits the tiles of a path }

The costs w are never seen: what is known of a training map is its image, its blocked tiles and the path taken. A small
network reads each tile's cost, and is trained through the game (BiGrad's two rules, perturbed decisions), by
Fenchel-Young losses, by a single-level layer that ignores the leader, or predicts both decisions directly. Held-out maps
of held-out digits judge them. Results, and what each row means: docs/digit_interdiction.md.

    python examples/digit_interdiction.py           6 x 6 maps, one seed: two or three minutes
    python examples/digit_interdiction.py --full    12 x 12 maps, three seeds: half an hour
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from bigrad_paper.maps import (
    USUAL,
    Decisions,
    Direct,
    Game,
    Maps,
    Reader,
    Score,
    digit_tiles,
    drawn,
    hamming,
    judge,
    likely,
)
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from tqdm import trange

import bigrad as bg
from bigrad.gradients.base import AbstractGradient

HERE = Path(__file__).parent
BATCH = 8
ANCHOR = 1.0  # how strongly the mean cost is held near USUAL: without, costs drift, and BiGrad-BB's collapse


def digit_maps(game: Game, counts: tuple[int, int, int], seed: int = 0) -> list[Maps]:
    """Training, validation and test maps, of digits that the others never show: 1100, 300 and 397 of them."""
    (images, costs, _), rng = digit_tiles(), np.random.default_rng(seed)
    parts = np.split(rng.permutation(len(images)), [1100, 1400])
    return [drawn(game, images, costs, part, count, rng) for part, count in zip(parts, counts, strict=True)]


Loss = Callable[[Tensor, Maps], Tensor]  # of what a network makes of a batch of maps, and the maps: one number
Predict = Callable[[Tensor], Decisions]  # of what a network makes of the maps


class Method(NamedTuple):
    """How a network is trained, and how its output is read: both are given what the network says."""

    loss: Loss
    predict: Predict
    rate: float = 2e-3
    times: int = 1  # as many epochs: losses that need no game are cheap


def methods(game: Game) -> dict[str, Method]:
    """All that are compared, by name."""

    def near(costs: Tensor) -> Tensor:
        return ANCHOR * (costs.mean() - USUAL).square()

    def through(rule: AbstractGradient) -> Loss:
        def loss(costs: Tensor, maps: Maps) -> Tensor:
            blocked, path = game.play(costs, rule)
            return hamming(blocked, maps.blocked) + hamming(path, maps.path) + near(costs)

        return loss

    def young(sigma: float) -> bg.losses.FenchelYoung:
        return bg.losses.FenchelYoung(game.oracle, smoothing=bg.Perturbed(sigma=sigma, samples=4))

    in_game, by_itself = young(0.5), young(4.0)

    def answered(costs: Tensor, maps: Maps) -> Tensor:
        return in_game(costs + game.extra * maps.blocked, maps.path) + near(costs)

    def alone(costs: Tensor, maps: Maps) -> Tensor:
        return by_itself(costs, maps.path) + near(costs)

    def both(logits: Tensor, maps: Maps) -> Tensor:
        return binary_cross_entropy_with_logits(logits, torch.stack([maps.blocked, maps.path], 1))

    return {
        "BiGrad-BB": Method(through(bg.Interpolate()), game.play),
        "BiGrad-PT": Method(through(bg.Identity(bg.UnitNorm())), game.play),
        "perturbed": Method(through(bg.Perturbed(sigma=2.0, samples=16)), game.play),
        "Fenchel-Young": Method(answered, game.play, times=2),
        "single level": Method(alone, game.in_turn, times=2),
        "single level, as a game": Method(alone, game.play, times=2),
        "direct": Method(both, likely, 1e-3, times=2),
        "true costs known": Method(lambda costs, maps: mse_loss(costs, maps.costs), game.play, times=2),
    }


def fit(game: Game, network: nn.Module, method: Method, train: Maps, valid: Maps, epochs: int, label: str) -> nn.Module:
    """The network after the epoch whose decisions had the fewest wrong tiles on the validation maps."""
    optimiser = torch.optim.Adam(network.parameters(), lr=method.rate)
    epochs *= method.times
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs, method.rate / 20)
    least, kept = float("inf"), copy.deepcopy(network.state_dict())
    for epoch in (bar := trange(epochs, desc=label, leave=False)):
        network.train()
        for rows in torch.randperm(len(train.tiles)).split(BATCH):
            maps = train.at(rows)
            optimiser.zero_grad()
            method.loss(network(maps.tiles), maps).backward()
            optimiser.step()
        plan.step()
        if (epoch + 1) % method.times:
            continue
        score = check(game, network, method, valid)
        wrong = float(score.wrong_blocked + score.wrong_path)
        if wrong < least:
            least, kept = wrong, copy.deepcopy(network.state_dict())
        bar.set_postfix(wrong=f"{wrong:.2f}", least=f"{least:.2f}")
    network.load_state_dict(kept)
    return network


def check(game: Game, network: nn.Module, method: Method, maps: Maps) -> Score:
    network.eval()
    with torch.no_grad():
        return judge(game, method.predict(network(maps.tiles)), maps)


COLUMNS = ("both right", "blocked right", "path right", "wrong blocked", "wrong path", "kept", "paid", "crossing")


def main(
    size: int = 6,
    counts: tuple[int, int, int] = (300, 60, 300),
    epochs: int = 6,
    seeds: int = 1,
    folder: Path = HERE,
) -> dict[str, list[Score]]:
    """Train by every method with each seed, print the table, save the picture; returns the scores on held-out maps."""
    start, game = time.perf_counter(), Game(size)
    train, valid, test = digit_maps(game, counts)
    print(f"{size} x {size} maps: {counts[0]} to train on, {counts[1]} to choose the epoch by, {counts[2]} held out.")
    same = (game.answer(test.costs, torch.zeros_like(test.costs)) == test.path).all(1).float().mean()
    print(f"The follower would take the same path were nothing blocked on {100 * same:.0f} % of the held-out maps.\n")
    print(f"{'':<24}" + "".join(f"{column:>15}" for column in COLUMNS) + f"{'seconds':>9}")
    scores: dict[str, list[Score]] = {}
    shown: dict[str, Decisions] = {}
    for name, method in methods(game).items():
        begun = time.perf_counter()
        for seed in range(seeds):
            torch.manual_seed(seed)
            network = Direct(size) if name == "direct" else Reader()
            fit(game, network, method, train, valid, epochs, f"{name}, seed {seed}")
            scores.setdefault(name, []).append(check(game, network, method, test))
            if not seed:
                with torch.no_grad():
                    shown[name] = method.predict(network(test.tiles))
        report(name, scores[name], time.perf_counter() - begun)
    picture(folder / "digit_interdiction.png", game, test, shown)
    print(f"\n{time.perf_counter() - start:.0f} s in all. One held-out map: {folder / 'digit_interdiction.png'}")
    return scores


def report(name: str, scores: list[Score], seconds: float) -> None:
    """A row of the table: mean ± standard deviation over the seeds."""

    def spread(values: Tensor, digits: int) -> str:
        deviation = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
        return f"{values.mean():.{digits}f}{deviation}"

    cells = [
        spread(torch.stack(values), digits)
        for values, digits in zip(zip(*scores, strict=True), (1, 1, 1, 2, 2, 3, 3, 0), strict=True)
    ]
    print(f"{name:<24}" + "".join(f"{cell:>15}" for cell in cells) + f"{seconds:>9.0f}", flush=True)


def picture(path: Path, game: Game, maps: Maps, shown: dict[str, Decisions]) -> None:
    """One held-out map, what was observed on it and what every method predicts."""
    from matplotlib.figure import Figure

    n, k = game.size, telling(maps, shown)
    framed = torch.nn.functional.pad(maps.tiles[k].view(n, n, 8, 8), (2, 2, 2, 2))  # apart, or they run into each other
    image = framed.transpose(1, 2).reshape(12 * n, 12 * n)
    across = 5
    down = -(-(len(shown) + 1) // across)
    figure = Figure(figsize=(3 * across, 3.3 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes in panels:
        axes.axis("off")
    seen = maps.blocked[k], maps.path[k]
    drawn = {"observed": seen} | {name: (blocked[k], route[k]) for name, (blocked, route) in shown.items()}
    for axes, (name, (blocked, route)) in zip(panels, drawn.items(), strict=False):
        axes.imshow(1 - 0.6 * image.numpy(), cmap="gray", vmin=0, vmax=1, extent=(0, n, n, 0))
        for line in range(1, n):
            axes.axhline(line, color="tab:gray", lw=0.5)
            axes.axvline(line, color="tab:gray", lw=0.5)
        marks = [(seen[1], "s", {"color": "tab:green", "alpha": 0.35, "ms": 120 / n})]
        marks += [(seen[0], "s", {"mfc": "none", "mec": "tab:red", "mew": 2, "ms": 130 / n})]
        if name == "observed":
            axes.set_title(name, fontsize=10)
        else:
            marks += [(route, "o", {"color": "tab:blue", "ms": 50 / n})]
            marks += [(blocked, "x", {"color": "tab:red", "mew": 2, "ms": 90 / n})]
            wrong = [int((a != b).sum()) for a, b in zip((blocked, route), seen, strict=True)]
            axes.set_title(f"{name}\nwrong: {wrong[0]} blocked, {wrong[1]} of the path", fontsize=10)
        for tiles, marker, style in marks:
            at = tiles.nonzero()[:, 0].numpy()
            axes.plot(at % n + 0.5, at // n + 0.5, marker, **style)
    figure.suptitle(
        "A held-out map. Green, red squares: path and blocked tiles as observed. Blue, red crosses: as predicted."
    )
    figure.savefig(path, dpi=80)


def telling(maps: Maps, shown: dict[str, Decisions]) -> int:
    """A map that some methods get right and some do not; of these, one with about as many wrong tiles as is usual."""
    wrong = torch.stack([(x != maps.blocked).sum(1) + (y != maps.path).sum(1) for x, y in shown.values()]).float()
    mixed = (wrong == 0).any(0) & (wrong > 0).any(0)
    unusual = (wrong.mean(0) - wrong.mean()).abs() + 1000.0 * ~mixed
    return int(unusual.argmin())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Roads through handwritten digits: learn costs from both players' decisions."
    )
    parser.add_argument("--full", action="store_true", help="12 x 12 maps and three seeds")
    if parser.parse_args().full:
        main(size=12, counts=(250, 60, 200), epochs=8, seeds=3)
    else:
        main()
