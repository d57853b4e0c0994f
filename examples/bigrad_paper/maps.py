"""Maps of tiles on which one player blocks and the other travels: the game, the tiles, the networks that read them, the measures.

The leader blocks at most BUDGET tiles; the follower, who sees them, crosses from the upper left corner to the lower
right one, to any of eight neighbours at each step:

    leader     x  =  argmax over x in {0, 1}^n, sum(x) <= BUDGET of  cost(x) - upkeep' x
    follower   cost(x)  =  min { (w + EXTRA x)' y : y visits the tiles of a path }
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from ortools.sat.python import cp_model
from torch import Tensor, nn
from torch.nn.functional import softplus

import bigrad as bg
from bigrad.gradients.base import AbstractGradient

BUDGET, EXTRA = 3, 4.0
LEVELS = (0.8, 1.2, 5.3, 7.7, 9.2)  # of the digits 0 and 1, 2 and 3, and so on: those of the Warcraft maps
USUAL = 4.0  # what an untrained network says of any tile


class Maps(NamedTuple):
    """One row a map: images (maps, tiles, pixels), true costs, blocked tiles and path, (maps, tiles) each."""

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

    def in_turn(self, costs: Tensor) -> Decisions:
        """The path without a leader, and the leader's best blockade of this path: what a single level predicts."""
        path = self.answer(costs, torch.zeros_like(costs))
        gain = self.extra * path - self.upkeep
        return chosen(gain, BUDGET) * (gain > 0), path


def chosen(worth: Tensor, count: int) -> Tensor:
    """Ones at the largest numbers of each row, `count` of them."""
    return torch.zeros_like(worth).scatter(1, worth.topk(count).indices, 1.0)


def digit_tiles() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """scikit-learn's digits, (1797, 64), what a tile of each costs, by the digit and by its ink, and which digit it is."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = data.images.reshape(-1, 64) / 16
    return images, np.array(LEVELS)[data.target // 2] * (1 + 0.5 * (images.mean(1) - 0.3)), data.target


def drawn(
    game: Game, images: np.ndarray, costs: np.ndarray, part: np.ndarray, count: int, rng: np.random.Generator
) -> Maps:
    """Maps whose tiles are drawn from part of the images, with what the players decide on them."""
    tile = rng.choice(part, (count, game.size**2))
    shown, true = (torch.as_tensor(a[tile], dtype=torch.float32) for a in (images, costs))
    return Maps(shown, true, *game.play(true))


class Reader(nn.Module):
    """Each tile's cost from its image alone: which of some kinds it is, and a cost for each kind, all learned."""

    def __init__(self, pixels: int = 64, width: int = 256, kinds: int = 10):
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(pixels, width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, width), nn.ReLU()
        )
        self.kind = nn.Linear(width, kinds)
        self.cost = nn.Parameter(torch.linspace(-2, 2, kinds))

    def forward(self, tiles: Tensor) -> Tensor:
        return USUAL / np.log(2) * softplus(self.kind(self.hidden(tiles)).softmax(-1) @ self.cost)


class Direct(nn.Module):
    """Both decisions from the whole map, as logits (maps, 2, tiles): a tile encoder, then convolutions over the tiles."""

    def __init__(self, size: int, pixels: int = 64, width: int = 32, depth: int = 6):
        super().__init__()
        self.size = size
        self.tile = nn.Sequential(nn.Linear(pixels, 64), nn.ReLU(), nn.Linear(64, width), nn.ReLU())
        self.place = nn.Parameter(0.1 * torch.randn(width, size, size))
        self.mix = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.last = nn.Conv2d(width, 2, 1)

    def forward(self, tiles: Tensor) -> Tensor:
        v = self.tile(tiles).transpose(1, 2).unflatten(2, (self.size, self.size)) + self.place
        for layer in self.mix:
            v = v + layer(v).relu()
        return self.last(v).flatten(2)


def likely(logits: Tensor) -> Decisions:
    """The likeliest tiles, as many as the budget allows, and every tile that is more likely on the path than not."""
    return chosen(logits[:, 0], BUDGET), (logits[:, 1] > 0).float()


def hamming(found: Tensor, seen: Tensor) -> Tensor:
    """Wrong tiles a map, linear in what was found: its slope is there, right or wrong."""
    return (found * (1 - seen) + (1 - found) * seen).sum(1).mean()


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
