"""An inverse game: what do two players want, given what they were seen to do?

A city sets the fares of four bus lines, riders then decide how much to ride. Neither says what it wants; fares and rides
of a number of days are seen, and for each day the ordinary fare and the weather. The game with guessed objectives is a
`bigrad.Layer`; descent on the distance of its decisions from those seen recovers the objectives, except what no decision
tells: the scale of an objective, and the taste for a line that is always full. The Jacobian of the layer says which.

    python examples/gallery/inverse_game.py      about a minute; saves docs/gallery/inverse_game.png
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

import bigrad as bg

PICTURE = Path(__file__).parents[2] / "docs" / "gallery" / "inverse_game.png"
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
LINES = 4
SEATS = torch.tensor([3.0, 3.0, 3.0, 1.0], dtype=torch.float64)
CROWDING = 0.3
EXACT = 1e-10
"""A mean squared distance below which the decisions seen are met."""

# What the players want, one vector: the riders' taste for each line and the log of its decline with every ride; the city's
# goal for each line; and of the weights that it gives to missing the goals and to changing the fares the log of their ratio,
# and of their product.
NAMES = [f"{what} {k}" for what in ("taste", "decline", "goal") for k in range(1, 5)] + ["weights: ratio", "scale"]
PLANTED = torch.tensor([3.0, 4.0, 3.5, 7.0, 0.0, 0.4, -0.3, 0.2, 0.8, 1.5, 1.0, 3.0, 1.0, 0.2], dtype=torch.float64)


class Days(NamedTuple):
    """The ordinary fares and the weather's shift of tastes, (days, 4) each, and what was seen, fares and rides (days, 8)."""

    ordinary: Tensor
    weather: Tensor
    seen: Tensor


class Outcome(NamedTuple):
    """Guesses and what they became, (starts, 14), with the final losses; the singular values of the Jacobian, (14,), and
    how much each of NAMES is told, 0 to 1; the errors of fits to noisy days, (fits, 14), and their predicted deviation,
    (14,); the errors of predicted decisions on new days, and on days on which line 4 has free seats, (starts,).
    """

    starts: Tensor
    fits: Tensor
    losses: Tensor
    singular: Tensor
    told: Tensor
    noisy: Tensor
    deviation: Tensor
    usual: Tensor
    unusual: Tensor


def game() -> bg.Layer:
    """The game: objectives and the day go in, fares and rides come out."""
    ordinary, taste, goal = (cp.Parameter(LINES, name=name) for name in ("ordinary", "taste", "goal"))
    decline = cp.Parameter(LINES, name="decline", nonneg=True)
    miss, change = (cp.Parameter(name=name, nonneg=True) for name in ("miss", "change"))
    fares, rides = cp.Variable(LINES, name="fares"), cp.Variable(LINES, name="rides")
    use = taste @ rides - decline @ cp.square(rides) / 2 - CROWDING / 2 * cp.square(cp.sum(rides))
    riders = cp.Problem(cp.Maximize(use - fares @ rides), [rides >= 0, rides <= SEATS.numpy()])
    city = cp.Problem(
        cp.Minimize(miss / 2 * cp.sum_squares(rides - goal) + change / 2 * cp.sum_squares(fares - ordinary))
    )
    program = bg.bilevel(city, riders, responds=[rides])
    return bg.Layer(program, parameters=[ordinary, taste, decline, goal, miss, change], variables=[fares, rides])


def play(layer: bg.Layer, wanted: Tensor, days: Days) -> Tensor:
    """Fares and rides, (days, 8), of players who want this, (14,)."""
    taste, decline, goal = wanted[:12].view(3, LINES).expand(len(days.ordinary), 3, LINES).unbind(1)
    weights = ((wanted[13] + wanted[12]) / 2).exp(), ((wanted[13] - wanted[12]) / 2).exp()
    miss, change = (weight.expand(len(taste)) for weight in weights)
    return torch.cat(layer(days.ordinary, taste + days.weather, decline.exp(), goal, miss, change), -1)


def some_days(layer: bg.Layer, count: int, seed: int, bad_weather: float = 0.0) -> Days:
    """Days of random ordinary fares and weather, played by the true players; bad_weather keeps riders from line 4."""
    draw = torch.Generator().manual_seed(seed)
    ordinary = 1 + torch.rand(count, LINES, generator=draw, dtype=torch.float64)
    weather = 0.5 * torch.randn(count, LINES, generator=draw, dtype=torch.float64)
    weather[:, 3] -= bad_weather
    days = Days(ordinary, weather, torch.empty(0))
    return days._replace(seen=play(layer, PLANTED, days))


def fit(layer: bg.Layer, days: Days, guess: Tensor, iterations: int = 300) -> tuple[Tensor, float]:
    """Objectives whose decisions are nearest to those seen, by LBFGS from a guess; and the mean squared distance."""
    wanted = guess.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [wanted], max_iter=iterations, line_search_fn="strong_wolfe", tolerance_grad=1e-10, tolerance_change=1e-15
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        distance = (play(layer, wanted, days) - days.seen).square().mean()
        distance.backward()
        return distance

    optimiser.step(loss)
    return wanted.detach(), float(loss().detach())


def jacobian(layer: bg.Layer, days: Days, wanted: Tensor) -> Tensor:
    """How every decision seen changes with what is wanted, (days * 8, 14)."""
    found = torch.autograd.functional.jacobian(lambda guess: play(layer, guess, days), wanted)
    return found.reshape(-1, len(wanted))


def run(count: int = 24, starts: int = 8, noise: float = 0.01) -> Outcome:
    """Plant objectives, watch, and recover them from several guesses; then again from days seen with noise."""
    layer = game()
    days = some_days(layer, count, seed=0)
    draw = torch.Generator().manual_seed(1)
    guesses = PLANTED + 0.7 * torch.randn(starts, len(PLANTED), generator=draw, dtype=torch.float64)
    fits, losses = zip(*(fit(layer, days, guess) for guess in guesses), strict=True)

    slopes = jacobian(layer, days, PLANTED)
    _, singular, directions = torch.linalg.svd(slopes)
    known = singular > 1e-9 * singular[0]
    told = directions[known].square().sum(0)  # of each unit vector the part that lies in the row space
    deviation = noise * (directions[known] / singular[known, None]).square().sum(0).sqrt()
    noisy = []
    for _ in range(starts):
        shift = noise * torch.randn(days.seen.shape, generator=draw, dtype=torch.float64)
        noisy.append(fit(layer, days._replace(seen=days.seen + shift), PLANTED)[0] - PLANTED)

    errors = []
    for new in (some_days(layer, 50, seed=2), some_days(layer, 50, seed=2, bad_weather=5.0)):
        errors.append(torch.stack([(play(layer, wanted, new) - new.seen).abs().mean() for wanted in fits]))
    return Outcome(
        guesses, torch.stack(fits), torch.tensor(losses), singular, told, torch.stack(noisy), deviation, *errors
    )


def draw(result: Outcome, path: Path) -> None:
    """What each guess became, and what noise leaves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = np.arange(len(NAMES))
    met = result.losses < EXACT
    for start, found, good in zip(result.starts - PLANTED, result.fits - PLANTED, met, strict=True):
        left.plot(start, places - 0.15, "|", color="0.6", ms=8, mew=1.5)
        left.plot(
            found,
            places + 0.12,
            "o" if good else "x",
            ms=6,
            color=BLUE if good else ORANGE,
            mec=None if good else ORANGE,
        )
    hidden = result.told < 0.5
    for axes in (left, right):
        axes.axvline(0, color="0.5", lw=1, zorder=0)
        for place in places[hidden.numpy()]:
            axes.axhspan(place - 0.5, place + 0.5, color=ORANGE, alpha=0.13, lw=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(ylim=(len(NAMES) - 0.5, -0.5), yticks=places, yticklabels=NAMES)
    left.plot([], [], "|", color="0.6", ms=8, mew=1.5, label="guesses")
    left.plot([], [], "o", mfc=BLUE, mec="white", label="what they became")
    if not met.all():
        left.plot([], [], "x", color=ORANGE, label="stuck")
    left.fill_between([], [], color=ORANGE, alpha=0.13, label="no decision tells")
    left.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.06), ncols=4)
    left.set(xlabel="distance from what the players want")
    left.set_title("Decisions seen exactly", fontsize=11)
    for error in result.noisy:
        right.plot(error[~hidden], places[~hidden.numpy()], "o", ms=5, mfc=GREEN, mec="white", mew=0.5)
    width = result.deviation[~hidden]
    right.errorbar(0 * width, places[~hidden.numpy()], xerr=2 * width, fmt="none", ecolor="0.35", capsize=4, lw=1.2)
    right.set(xlabel="error (bars: ± 2 deviations, from the Jacobian)")
    right.set_title("Decisions seen with noise of 0.01", fontsize=11)
    figure.savefig(path, dpi=90)


def main(path: Path = PICTURE) -> None:
    result = run()
    told, met = result.told > 0.5, result.losses < EXACT
    error = (result.fits - PLANTED)[met][:, told].abs().max()
    zero = int((result.singular <= 1e-9).sum())
    print(f"Singular values of the Jacobian: {len(NAMES) - zero} positive, {zero} zero.")
    print("Not told by any decision: " + ", ".join(name for name, t in zip(NAMES, told, strict=True) if not t))
    print(f"{met.sum()} of {len(met)} guesses came to meet all decisions; largest error of what is told: {error:.1e}.")
    rms = (result.noisy.square().mean(0).sqrt() / result.deviation)[told]
    print(f"With noise: errors {rms.min():.2f} to {rms.max():.2f} times the predicted deviation.")
    print(f"Of these, mean error of decisions on new days: at most {result.usual[met].max():.1e};")
    print("on days on which line 4 has free seats: " + " ".join(f"{e:.2f}" for e in result.unusual[met]))
    draw(result, path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
