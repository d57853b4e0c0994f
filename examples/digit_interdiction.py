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
    python examples/digit_interdiction.py --full    12 x 12 maps, three seeds: a quarter of an hour
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ortools.sat.python import cp_model
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss, softplus
from tqdm import trange

import bigrad as bg
from bigrad.gradients.base import AbstractGradient

HERE = Path(__file__).parent
BUDGET, EXTRA = 3, 4.0
LEVELS = (0.8, 1.2, 5.3, 7.7, 9.2)  # of the digits 0 and 1, 2 and 3, and so on: those of the Warcraft maps
BATCH = 8
USUAL = 4.0  # what an untrained network says of any tile
ANCHOR = 1.0  # how strongly the mean cost is held near it: without, costs drift, and BiGrad-BB's collapse


class Maps(NamedTuple):
    """One row a map: images (maps, tiles, 64), true costs, blocked tiles and path, (maps, tiles) each."""

    tiles: Tensor
    costs: Tensor
    blocked: Tensor
    path: Tensor

    def at(self, rows: Tensor) -> Maps:
        return Maps(*(part[rows] for part in self))


Decisions = tuple[Tensor, Tensor]
"""Blocked tiles and path, (maps, tiles) each."""


@dataclass(frozen=True)
class Game:
    """The game on maps of size x size tiles.

    The two corners cannot be avoided, so blocking them would always pay: it has no effect. Upkeep grows with the distance
    from the leader's depot, off the right edge. Without it most games would have several optimal blockades, such as any
    tile of a corridor that the follower then avoids; the observed one would be a matter of chance.
    """

    size: int

    @cached_property
    def extra(self) -> Tensor:
        extra = torch.full((self.size**2,), EXTRA)
        extra[0] = extra[-1] = 0
        return extra

    @cached_property
    def upkeep(self) -> Tensor:
        row, column = torch.meshgrid(*2 * [torch.arange(float(self.size))], indexing="ij")
        return 0.05 * torch.hypot(row - 0.309 * self.size, column - 1.118 * self.size).flatten()

    @cached_property
    def oracle(self) -> bg.GridPath:
        return bg.GridPath(self.size, self.size, clamp=0.0)

    @cached_property
    def program(self) -> bg.Program:
        """Everybody visits tile 0, so a product with it is the leader's alone: minus upkeep is what x costs the leader."""
        leader, tiles = cp_model.CpModel(), range(self.size**2)
        x = [leader.new_bool_var(f"x{k}") for k in tiles]
        leader.add(sum(x) <= BUDGET)
        costs = {"w": tiles, "extra": [(k, x[k]) for k in tiles[1:-1]], "upkeep": [(0, x[k]) for k in tiles]}
        return bg.bilevel(leader, self.oracle, costs=costs)

    def play(self, costs: Tensor, gradient: AbstractGradient | None = None) -> Decisions:
        """Both players' decisions at these costs."""
        blocked, path = bg.Layer(self.program, gradient=gradient)(costs, self.extra[1:-1], -self.upkeep)
        return blocked, path

    def answer(self, costs: Tensor, blocked: Tensor) -> Tensor:
        """The follower's path, without a gradient."""
        faced = (costs + self.extra * blocked).detach()
        return torch.as_tensor(self.oracle.solve(faced.double().numpy()), dtype=costs.dtype)

    def value(self, costs: Tensor, blocked: Tensor, path: Tensor) -> Tensor:
        """What the leader gets, (maps,)."""
        return ((costs + self.extra * blocked) * path).sum(1) - blocked @ self.upkeep


def digit_maps(game: Game, counts: tuple[int, int, int], seed: int = 0) -> list[Maps]:
    """Training, validation and test maps, of digits that the others never show: 1100, 300 and 397 of them."""
    from sklearn.datasets import load_digits

    data, rng = load_digits(), np.random.default_rng(seed)
    images = data.images.reshape(-1, 64) / 16
    costs = np.array(LEVELS)[data.target // 2] * (1 + 0.5 * (images.mean(1) - 0.3))
    parts = np.split(rng.permutation(len(images)), [1100, 1400])
    found = []
    for part, count in zip(parts, counts, strict=True):
        drawn = rng.choice(part, (count, game.size**2))
        tiles, true = (torch.as_tensor(a[drawn], dtype=torch.float32) for a in (images, costs))
        found.append(Maps(tiles, true, *game.play(true)))
    return found


class Reader(nn.Module):
    """Each tile's cost from its image alone: which of some kinds it is, and a cost for each kind, all learned."""

    def __init__(self, width: int = 256, kinds: int = 10):
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, width), nn.ReLU()
        )
        self.kind = nn.Linear(width, kinds)
        self.cost = nn.Parameter(torch.linspace(-2, 2, kinds))

    def forward(self, tiles: Tensor) -> Tensor:
        return USUAL / np.log(2) * softplus(self.kind(self.hidden(tiles)).softmax(-1) @ self.cost)


class Direct(nn.Module):
    """Both decisions from the whole map, as logits (maps, 2, tiles): a tile encoder, then convolutions over the tiles."""

    def __init__(self, size: int, width: int = 32, depth: int = 6):
        super().__init__()
        self.size = size
        self.tile = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, width), nn.ReLU())
        self.place = nn.Parameter(0.1 * torch.randn(width, size, size))
        self.mix = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.last = nn.Conv2d(width, 2, 1)

    def forward(self, tiles: Tensor) -> Tensor:
        v = self.tile(tiles).transpose(1, 2).unflatten(2, (self.size, self.size)) + self.place
        for layer in self.mix:
            v = v + layer(v).relu()
        return self.last(v).flatten(2)


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

    def hamming(found: Tensor, seen: Tensor) -> Tensor:
        return (found * (1 - seen) + (1 - found) * seen).sum(1).mean()

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

    def in_turn(costs: Tensor) -> Decisions:
        """The path without a leader, and the leader's best blockade of this path."""
        path = game.answer(costs, torch.zeros_like(costs))
        gain = game.extra * path - game.upkeep
        best = gain.topk(BUDGET).indices
        return torch.zeros_like(costs).scatter(1, best, 1.0) * (gain > 0), path

    def both(logits: Tensor, maps: Maps) -> Tensor:
        return binary_cross_entropy_with_logits(logits, torch.stack([maps.blocked, maps.path], 1))

    def likely(logits: Tensor) -> Decisions:
        """The likeliest tiles, as many as the budget allows, and every tile that is more likely on the path than not."""
        best = logits[:, 0].topk(BUDGET).indices
        return torch.zeros_like(logits[:, 0]).scatter(1, best, 1.0), (logits[:, 1] > 0).float()

    return {
        "BiGrad-BB": Method(through(bg.Interpolate()), game.play),
        "BiGrad-PT": Method(through(bg.Identity(bg.UnitNorm())), game.play),
        "perturbed": Method(through(bg.Perturbed(sigma=2.0, samples=16)), game.play),
        "Fenchel-Young": Method(answered, game.play, times=2),
        "single level": Method(alone, in_turn, times=2),
        "single level, as a game": Method(alone, game.play, times=2),
        "direct": Method(both, likely, 1e-3, times=2),
        "true costs known": Method(lambda costs, maps: mse_loss(costs, maps.costs), game.play, times=2),
    }


class Score(NamedTuple):
    """Of predictions on maps: per cent of them exactly right; wrong tiles a map; costs relative to what was possible."""

    both: Tensor
    blocked: Tensor
    path: Tensor
    wrong_blocked: Tensor
    wrong_path: Tensor
    kept: Tensor
    paid: Tensor
    crossing: Tensor


def judge(game: Game, found: Decisions, maps: Maps) -> Score:
    """kept: what the predicted blockade yields against the true follower, over the best. crossing: per cent of predicted
    paths that lead across the map; paid: what these cost past the observed blockade, over the least."""
    blocked, path = found
    wrong = (blocked != maps.blocked).float().sum(1), (path != maps.path).float().sum(1)
    right = wrong[0] + wrong[1] == 0, wrong[0] == 0, wrong[1] == 0
    kept = game.value(maps.costs, blocked, game.answer(maps.costs, blocked))
    faced = maps.costs + game.extra * maps.blocked
    inside = game.answer(1 - path, torch.zeros_like(path))  # a way across that leaves the predicted tiles least often
    crosses = (inside <= path).all(1)
    paid = ((faced * path).sum(1) / (faced * maps.path).sum(1))[crosses]
    return Score(
        *(100 * r.float().mean() for r in right),
        *(w.mean() for w in wrong),
        (kept / game.value(maps.costs, maps.blocked, maps.path)).mean(),
        paid.mean(),
        100 * crosses.float().mean(),
    )


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
