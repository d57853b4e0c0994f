"""Travelling salesman with interdiction, after the BiGrad paper: how far cities lie apart, learned from what two players did.

Some of 100 cities are to be visited. The leader closes one road at most, which then costs EXTRA more, and pays an upkeep
for it; the follower, who sees it, makes the shortest round trip:

    leader     x  =  argmax over roads x, sum(x) <= 1 of  length(x) - upkeep' x
    follower   length(x)  =  min { (w + EXTRA x)' y : y are the roads of a round trip }

A trip shows its cities, the closed road and the roads taken, never a length. What is learned is a place for every city.

    python examples/bigrad_paper/salesman.py [--quick]
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from ortools.sat.python import cp_model
from panels import panels
from runner import Experiment, fit, main
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import bigrad as bg
from bigrad.gradients.base import AbstractGradient

CITIES, EXTRA, UPKEEP = 100, 0.5, 0.05
USUAL = 0.52  # the mean distance of two points of the unit square


class Trips(NamedTuple):
    """One row a trip: which cities, (trips, k), what closing each road costs and how long it is, the closed one, the tour."""

    cities: Tensor
    upkeep: Tensor
    costs: Tensor
    closed: Tensor
    tour: Tensor

    def at(self, rows: Tensor) -> "Trips":
        return Trips(*(part[rows] for part in self))


Decisions = tuple[Tensor, Tensor]
"""The closed road and the tour, (trips, roads) each."""


@dataclass(frozen=True)
class Game:
    """The game on the roads between k cities."""

    k: int

    @cached_property
    def tours(self) -> bg.Tour:
        return bg.Tour(self.k)

    @cached_property
    def roads(self) -> tuple[np.ndarray, np.ndarray]:
        one, other = self.tours.edges.T
        return one, other

    def always(self, costs: np.ndarray) -> np.ndarray:
        """Shortest tours, and a one: its product with a road that is closed is what upkeep is paid for."""
        return np.concatenate([self.tours.solve(costs[:, :-1]), np.ones((len(costs), 1))], axis=1)

    @cached_property
    def program(self) -> bg.Program:
        leader, count = cp_model.CpModel(), len(self.roads[0])
        x = [leader.new_bool_var(f"x{k}") for k in range(count)]
        leader.add(sum(x) <= 1)
        follower = bg.Given(self.always, batched=True)
        costs = {
            "w": range(count),
            "one": [count],
            "extra": list(enumerate(x)),
            "upkeep": [(count, road) for road in x],
        }
        return bg.bilevel(leader, follower, costs=costs)

    def play(self, costs: Tensor, upkeep: Tensor, gradient: AbstractGradient | None = None) -> Decisions:
        """Both players' decisions at these lengths."""
        extra = torch.full((costs.shape[1],), EXTRA)
        closed, tour = bg.Layer(self.program, gradient=gradient)(costs, torch.zeros(1), extra, -upkeep)
        return closed, tour[:, :-1]

    def answer(self, costs: Tensor, closed: Tensor) -> Tensor:
        """The follower's tour, without a gradient."""
        faced = (costs + EXTRA * closed).detach()
        return torch.as_tensor(self.tours.solve(faced.double().numpy()), dtype=costs.dtype)

    def in_turn(self, costs: Tensor, upkeep: Tensor) -> Decisions:
        """The tour without a leader, and the leader's best road of this tour: what a single level predicts."""
        tour = self.answer(costs, torch.zeros_like(costs))
        return likeliest(EXTRA * tour - upkeep), tour

    def value(self, trips: Trips, closed: Tensor, tour: Tensor) -> Tensor:
        """What the leader gets, (trips,)."""
        return ((trips.costs + EXTRA * closed) * tour).sum(1) - (trips.upkeep * closed).sum(1)


def likeliest(worth: Tensor) -> Tensor:
    """One at the largest number of each row."""
    return torch.zeros_like(worth).scatter(1, worth.argmax(1, keepdim=True), 1.0)


def between(places: Tensor, cities: Tensor, roads: tuple[np.ndarray, np.ndarray]) -> Tensor:
    """Lengths of the roads between the cities of each trip, (trips, roads)."""
    at = places[cities]
    return (at[:, roads[0]] - at[:, roads[1]]).square().sum(-1).add(1e-6).sqrt()


def trips_on(game: Game, count: int, rng: np.random.Generator, places: Tensor, prices: Tensor) -> Trips:
    """Trips to cities drawn at random, with what the players decide. places: (CITIES, 2); prices: (CITIES, CITIES)."""
    cities = torch.as_tensor(np.stack([rng.choice(CITIES, game.k, replace=False) for _ in range(count)]))
    upkeep = prices[cities[:, game.roads[0]], cities[:, game.roads[1]]]
    costs = between(places, cities, game.roads)
    return Trips(cities, upkeep, costs, *game.play(costs, upkeep))


@dataclass(frozen=True)
class Scale:
    """Trips to k cities: how many to train and to test on, and how often each is trained on."""

    k: int
    train: int
    test: int
    epochs: int


@dataclass(frozen=True)
class Settings:
    """batch: trips. rate: of Adam; direct_rate, direct: that of the direct network, and as many times the epochs.

    dimensions: of the places that are learned. margin: by how much the observed decisions are made worse in training.
    """

    scales: tuple[Scale, ...]
    batch: int = 10
    rate: float = 0.05
    dimensions: int = 8
    margin: float = 0.1
    direct_rate: float = 1e-3
    direct: int = 2


@cache
def game_of(k: int) -> Game:
    return Game(k)


@lru_cache(maxsize=3)
def trips_of(scale: Scale, seed: int) -> tuple[Trips, Trips]:
    """Trips to train and to test on, between the same cities; cities, prices and trips are of this seed."""
    rng = np.random.default_rng(seed)
    places = torch.as_tensor(rng.random((CITIES, 2)), dtype=torch.float32)
    prices = torch.as_tensor(np.triu(UPKEEP * rng.random((CITIES, CITIES)), 1), dtype=torch.float32)
    game, prices = game_of(scale.k), prices + prices.T
    return tuple(trips_on(game, count, rng, places, prices) for count in (scale.train, scale.test))


class Atlas(nn.Module):
    """A place for every city, learned; says how long the roads of a trip are."""

    def __init__(self, dimensions: int):
        super().__init__()
        self.places = nn.Parameter(torch.rand(CITIES, dimensions))

    def forward(self, trips: Trips) -> Tensor:
        return between(self.places, trips.cities, game_of(trips.cities.shape[1]).roads)


class Direct(nn.Module):
    """Both decisions as logits, (trips, 2, roads): the cities of a trip look at each other, then every two make a road."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.city = nn.Embedding(CITIES, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, batch_first=True)
        self.mix = nn.TransformerEncoder(layer, 2)
        self.road = nn.Sequential(nn.Linear(3 * width + 1, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, trips: Trips) -> Tensor:
        seen, (one, other) = self.mix(self.city(trips.cities)), game_of(trips.cities.shape[1]).roads
        a, b = seen[:, one], seen[:, other]
        road = torch.cat([a + b, a * b, (a - b).abs(), trips.upkeep[..., None] / UPKEEP], -1)
        return self.road(road).transpose(1, 2)


def hamming(found: Tensor, seen: Tensor) -> Tensor:
    """Wrong roads a trip, linear in what was found: its slope is there, right or wrong."""
    return (found * (1 - seen) + (1 - found) * seen).sum(1).mean()


def distance(found: Tensor, seen: Tensor) -> Tensor:
    """Wrong roads a trip by |found - seen|: its slope is zero where the decision is right."""
    return (found - seen).abs().sum(1).mean()


def near(costs: Tensor) -> Tensor:
    """Holds the mean length at that of random places; without, a single level has no way to find the scale."""
    return 10 * (costs.mean() - USUAL).square()


Loss = Callable[[Game, Tensor, Trips, float], Tensor]  # of what a network says of a batch of trips, and the margin
Wrong = Callable[[Tensor, Tensor], Tensor]
Predict = Callable[[Game, Tensor, Trips], Decisions]


def through(rule: AbstractGradient, wrong: Wrong) -> Loss:
    """Both levels: both decisions through the game."""

    def loss(game: Game, costs: Tensor, trips: Trips, margin: float) -> Tensor:
        closed, tour = game.play(costs + margin * trips.tour, trips.upkeep + margin * trips.closed, rule)
        return wrong(closed, trips.closed) + wrong(tour, trips.tour) + near(costs)

    return loss


def alone(rule: AbstractGradient, wrong: Wrong, told: bool = False) -> Loss:
    """One level: the tour, as if no road were closed, or told which one is."""

    def loss(game: Game, costs: Tensor, trips: Trips, margin: float) -> Tensor:
        faced = costs + EXTRA * trips.closed if told else costs
        return wrong(rule(game.tours)(faced + margin * trips.tour), trips.tour) + near(costs)

    return loss


def told_young(game: Game, costs: Tensor, trips: Trips, margin: float) -> Tensor:
    """The follower's Fenchel-Young loss, told the closed road; its noise is as large as the margin of the others."""
    young = bg.losses.FenchelYoung(game.tours, smoothing=bg.Perturbed(sigma=margin, samples=4))
    return young(costs + EXTRA * trips.closed, trips.tour) + near(costs)


def roads_apart(game: Game, logits: Tensor, trips: Trips, margin: float) -> Tensor:
    return binary_cross_entropy_with_logits(logits, torch.stack([trips.closed, trips.tour], 1))


class Method(NamedTuple):
    """How a network is trained on trips to k cities, and how what it says becomes decisions."""

    k: int
    loss: Loss
    predict: Predict


def play(game: Game, costs: Tensor, trips: Trips) -> Decisions:
    return game.play(costs, trips.upkeep)


def in_turn(game: Game, costs: Tensor, trips: Trips) -> Decisions:
    return game.in_turn(costs, trips.upkeep)


def likely(game: Game, logits: Tensor, trips: Trips) -> Decisions:
    """The likeliest road closed, and every road that is more likely on the tour than not."""
    return likeliest(logits[:, 0]), (logits[:, 1] > 0).float()


BB, PT = bg.Interpolate(), bg.Identity()
BB_ALONE, PT_ALONE = alone(BB, hamming), alone(PT, distance)
ROWS: dict[str, tuple[Loss, Predict]] = {
    "BB, both levels": (through(BB, hamming), play),
    "PT, both levels": (through(PT, distance), play),
    "BB, one level": (BB_ALONE, in_turn),
    "PT, one level": (PT_ALONE, in_turn),
    "BB, one level, then the game": (BB_ALONE, play),
    "PT, one level, then the game": (PT_ALONE, play),
    "direct": (roads_apart, likely),
    "PT, told the closed road": (alone(PT, distance, told=True), play),
    "Fenchel-Young, told the closed road": (told_young, play),
}
METHODS = {f"{k} cities: {name}": Method(k, *row) for k in (8, 10, 12) for name, row in ROWS.items()}


@lru_cache(maxsize=2 * len(METHODS))  # rows that differ only in what they predict share a network
def trained(loss: Loss, scale: Scale, seed: int, settings: Settings) -> tuple[nn.Module, float]:
    """A network, and the processor seconds that it took."""
    game, direct = game_of(scale.k), loss is roads_apart
    trips, _ = trips_of(scale, seed)
    torch.manual_seed(seed)
    network = Direct() if direct else Atlas(settings.dimensions)
    rate, epochs = settings.rate, scale.epochs
    if direct:
        rate, epochs = settings.direct_rate, epochs * settings.direct

    def of(epoch: int, rows: Tensor) -> Tensor:
        batch = trips.at(rows)
        return loss(game, network(batch), batch, settings.margin)

    return fit(network, of, len(trips.cities), settings.batch, epochs, rate)


def judge(game: Game, found: Decisions, trips: Trips) -> dict[str, float]:
    """Per cent exactly right; wrong roads a trip; kept: what the closed road yields against the true follower, over the
    best; round: per cent of predictions that are round trips, and paid, where there are any: what these cost past the
    observed closed road, over the least."""
    closed, tour = found
    wrong = (closed != trips.closed).float().sum(1), (tour != trips.tour).float().sum(1)
    right = wrong[0] + wrong[1] == 0, wrong[0] == 0, wrong[1] == 0
    kept = game.value(trips, closed, game.answer(trips.costs, closed)) / game.value(trips, trips.closed, trips.tour)
    trip = (game.answer(1 - 2 * tour, torch.zeros_like(tour)) == tour).all(1)
    faced = trips.costs + EXTRA * trips.closed
    paid = ((faced * tour).sum(1) / (faced * trips.tour).sum(1))[trip]
    figures = dict(zip(("both", "closed", "tour"), (100 * float(r.float().mean()) for r in right), strict=True))
    figures |= {"wrong_closed": float(wrong[0].mean()), "wrong_tour": float(wrong[1].mean())}
    figures |= {"kept": float(kept.mean()), "round": 100 * float(trip.float().mean())}
    return figures | ({"paid": float(paid.mean())} if len(paid) else {})


def run(method: Method, seed: int, settings: Settings) -> dict[str, float]:
    """Train on trips of this seed, test on others between the same cities. train: processor seconds of training."""
    (scale,) = (s for s in settings.scales if s.k == method.k)
    network, seconds = trained(method.loss, scale, seed, settings)
    (_, test), game = trips_of(scale, seed), game_of(scale.k)
    with torch.no_grad():
        return judge(game, method.predict(game, network(test), test), test) | {"train": seconds}


EXPERIMENT = Experiment(
    "salesman",
    METHODS,
    run,
    full=Settings((Scale(8, 250, 100, 12), Scale(10, 200, 100, 12), Scale(12, 160, 100, 12))),
    quick=Settings((Scale(8, 200, 80, 10), Scale(10, 120, 60, 8), Scale(12, 60, 40, 6))),
    figures={
        "both": ".1f",
        "closed": ".1f",
        "tour": ".1f",
        "wrong_closed": ".2f",
        "wrong_tour": ".2f",
        "kept": ".4f",
        "train": ".1f",
    },
    picture=panels,
    packages=("bigrad", "torch", "numpy", "ortools"),
)

if __name__ == "__main__":
    main(EXPERIMENT)
