"""Shortest path with interdiction, after the BiGrad paper: what tiles cost, learned from what two players did on the maps.

The leader blocks up to three tiles, the follower crosses (see maps.py). Maps show their tiles and both decisions, never
a cost. Tiles are handwritten digits; with --warcraft FOLDER they are those of the Warcraft maps, if you have the files.

    python examples/bigrad_paper/shortest_path.py [--quick] [--warcraft FOLDER]
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from maps import USUAL, Decisions, Direct, Game, Maps, Reader, digit_tiles, drawn, hamming, judge, likely
from panels import panels
from runner import Experiment, fit, main
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from warcraft import Warcraft, read_warcraft

import bigrad as bg
from bigrad.gradients.base import AbstractGradient


@dataclass(frozen=True)
class Scale:
    """Maps of size x size tiles: how many to train on, to test on and in a batch, and how often each is trained on.

    first: of these epochs, how many are on one level where training goes on with both. Games on maps whose tiles all cost
    about the same, as before training, take up to four times as long.
    """

    size: int
    train: int
    test: int
    batch: int
    epochs: int
    first: int


@dataclass(frozen=True)
class Settings:
    """images: how many different tiles. rate: of Adam; direct_rate, direct: that of the direct network, which plays no
    game, and as many times the epochs. warcraft: folder of the Warcraft maps.
    """

    scales: tuple[Scale, ...]
    images: int = 100
    rate: float = 2e-3
    direct_rate: float = 1e-3
    direct: int = 4
    warcraft: str | None = None


@cache
def game_on(size: int) -> Game:
    return Game(size)


@lru_cache(maxsize=3)  # the sizes, which take turns; the next seed has maps of its own
def maps_of(scale: Scale, seed: int, images: int, warcraft: str | None) -> tuple[Maps, Maps]:
    """Training and test maps. As in the Warcraft maps, the tiles of both are drawn from the same few images."""
    game, rng = game_on(scale.size), np.random.default_rng(seed)
    if warcraft is not None:
        return tuple(
            some(game, read_warcraft(warcraft, scale.size, part), count, rng)
            for part, count in (("train", scale.train), ("test", scale.test))
        )
    shown, costs, digit = digit_tiles()
    part = np.concatenate([rng.choice(np.flatnonzero(digit == d), images // 10, replace=False) for d in range(10)])
    return tuple(drawn(game, shown, costs, part, count, rng) for count in (scale.train, scale.test))


def some(game: Game, read: Warcraft, count: int, rng: np.random.Generator) -> Maps:
    """Some of the Warcraft maps, with what the players decide on them."""
    rows = rng.choice(len(read.tiles), min(count, len(read.tiles)), replace=False)
    tiles, costs = (torch.as_tensor(a[rows], dtype=torch.float32) for a in (read.tiles, read.costs))
    return Maps(tiles, costs, *game.play(costs))


def distance(found: Tensor, seen: Tensor) -> Tensor:
    """Wrong tiles a map by |found - seen|: its slope is zero where the decision is right."""
    return (found - seen).abs().sum(1).mean()


def near(costs: Tensor) -> Tensor:
    """Holds the mean cost where an untrained network has it; without, costs drift and collapse."""
    return (costs.mean() - USUAL).square()


Loss = Callable[[Game, Tensor, Maps], Tensor]  # of what a network says of a batch of maps
Wrong = Callable[[Tensor, Tensor], Tensor]  # of decisions and those observed
Predict = Callable[[Game, Tensor], Decisions]


def through(rule: AbstractGradient, wrong: Wrong) -> Loss:
    """Both levels: both decisions through the game."""

    def loss(game: Game, costs: Tensor, maps: Maps) -> Tensor:
        blocked, path = game.play(costs, rule)
        return wrong(blocked, maps.blocked) + wrong(path, maps.path) + near(costs)

    return loss


def alone(rule: AbstractGradient, wrong: Wrong) -> Loss:
    """One level: the path, as if nobody had blocked."""
    return lambda game, costs, maps: wrong(rule(game.oracle)(costs), maps.path) + near(costs)


def told(game: Game, costs: Tensor, maps: Maps) -> Tensor:
    """The follower's Fenchel-Young loss, given the observed blocks."""
    young = bg.losses.FenchelYoung(game.oracle, smoothing=bg.Perturbed(sigma=0.5, samples=4))
    return young(costs + game.extra * maps.blocked, maps.path) + near(costs)


def tiles_apart(game: Game, logits: Tensor, maps: Maps) -> Tensor:
    return binary_cross_entropy_with_logits(logits, torch.stack([maps.blocked, maps.path], 1))


class Training(NamedTuple):
    """The loss, and the one of the first epochs where it is another."""

    loss: Loss
    first: Loss | None = None


class Method(NamedTuple):
    """How a network is trained on maps of a size, and how what it says becomes decisions."""

    size: int
    training: Training
    predict: Predict


def play(game: Game, costs: Tensor) -> Decisions:
    return game.play(costs)


def in_turn(game: Game, costs: Tensor) -> Decisions:
    return game.in_turn(costs)


BB, PT = bg.Interpolate(), bg.Identity()
BB_ALONE, PT_ALONE = alone(BB, hamming), alone(PT, distance)
ROWS: dict[str, tuple[Training, Predict]] = {
    "BB, both levels": (Training(through(BB, hamming), BB_ALONE), play),
    "PT, both levels": (Training(through(PT, distance), PT_ALONE), play),
    "BB, one level": (Training(BB_ALONE), in_turn),
    "PT, one level": (Training(PT_ALONE), in_turn),
    "BB, one level, then the game": (Training(BB_ALONE), play),
    "PT, one level, then the game": (Training(PT_ALONE), play),
    "direct": (Training(tiles_apart), lambda game, logits: likely(logits)),
    "Fenchel-Young, told the blocks": (Training(told), play),
}
METHODS = {f"{n} × {n}: {name}": Method(n, *row) for n in (12, 18, 24) for name, row in ROWS.items()}


class ReadOnce(Reader):
    """Reads tiles with the same image once: maps have many tiles, of few images."""

    def forward(self, tiles: Tensor) -> Tensor:
        images, which = tiles.flatten(0, 1).unique(dim=0, return_inverse=True)
        return super().forward(images)[which].view(tiles.shape[:2])


@lru_cache(maxsize=2 * len(METHODS))  # rows that differ only in what they predict share a network
def trained(training: Training, scale: Scale, seed: int, settings: Settings) -> tuple[nn.Module, float]:
    """A network, and the processor seconds that it took."""
    game, direct = game_on(scale.size), training.loss is tiles_apart
    maps, _ = maps_of(scale, seed, settings.images, settings.warcraft)
    torch.manual_seed(seed)
    pixels = maps.tiles.shape[2]
    network = Direct(scale.size, pixels) if direct else ReadOnce(pixels)
    rate, epochs = settings.rate, scale.epochs
    if direct:
        rate, epochs = settings.direct_rate, epochs * settings.direct

    def loss(epoch: int, rows: Tensor) -> Tensor:
        own = training.first if training.first and epoch < scale.first else training.loss
        batch = maps.at(rows)
        return own(game, network(batch.tiles), batch)

    return fit(network, loss, len(maps.tiles), scale.batch, epochs, rate)


def run(method: Method, seed: int, settings: Settings) -> dict[str, float]:
    """Train on maps of this seed, test on others of the same tiles. train: processor seconds of training."""
    (scale,) = (s for s in settings.scales if s.size == method.size)
    network, seconds = trained(method.training, scale, seed, settings)
    _, test = maps_of(scale, seed, settings.images, settings.warcraft)
    game = game_on(scale.size)
    with torch.no_grad():
        score = judge(game, method.predict(game, network(test.tiles)), test)
    figures = {name: float(value) for name, value in score._asdict().items()} | {"train": seconds}
    return {name: value for name, value in figures.items() if np.isfinite(value)}  # no price of paths that lead nowhere


FIGURES = {
    "both": ".1f",
    "blocked": ".1f",
    "path": ".1f",
    "wrong_blocked": ".2f",
    "wrong_path": ".2f",
    "kept": ".3f",
    "train": ".1f",
}
EXPERIMENT = Experiment(
    "shortest_path",
    METHODS,
    run,
    full=Settings((Scale(12, 200, 100, 8, 8, 3), Scale(18, 200, 100, 4, 8, 3), Scale(24, 200, 60, 4, 8, 3))),
    quick=Settings((Scale(12, 150, 60, 8, 6, 2), Scale(18, 40, 20, 4, 4, 2), Scale(24, 16, 8, 2, 3, 2))),
    figures=FIGURES,
    picture=panels,
    packages=("bigrad", "torch", "numpy", "ortools", "scikit-learn"),
)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--warcraft")
    given, rest = parser.parse_known_args(sys.argv[1:])
    full, quick = (replace(s, warcraft=given.warcraft) for s in (EXPERIMENT.full, EXPERIMENT.quick))
    main(replace(EXPERIMENT, full=full, quick=quick), rest)
