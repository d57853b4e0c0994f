"""Shortest-path interdiction: which streets to guard, and which streets that depends on.

A smuggler takes the cheapest path across a town of one-block streets. A leader who can guard four streets, each of which
is then dearer to pass, makes the cheapest path as dear as can be. The game is solved exactly. Then its value is
differentiated: how much does it rise with the cost of every street? The derivative of the value is the path itself; of
the value under uncertain costs it is the mean path, which `bigrad.Joint(bigrad.Perturbed(...))` returns.

    python examples/gallery/path_interdiction.py      half a minute; saves docs/gallery/path_interdiction.png
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from ortools.sat.python import cp_model

import bigrad as bg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = Path(__file__).parents[2] / "docs" / "gallery" / "path_interdiction.png"
BLUE, ORANGE = "#0072B2", "#D55E00"
LABEL = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.85}


class Town(NamedTuple):
    """Streets (s, 2) between crossings, counted row by row; each is two arcs. Costs (s,), and what a guard adds, (s,)."""

    side: int
    streets: np.ndarray
    costs: np.ndarray
    delays: np.ndarray

    @property
    def arcs(self) -> np.ndarray:
        """(2 s, 2), every street in both directions."""
        return np.concatenate([self.streets, self.streets[:, ::-1]])


class Outcome(NamedTuple):
    """Streets passed before and after guarding, and guarded, (s,); the values; and the gradients in the costs, (s,)."""

    town: Town
    before: np.ndarray
    after: np.ndarray
    guarded: np.ndarray
    free_value: float
    value: float
    proven: bool
    gradient: np.ndarray
    smoothed: np.ndarray


def town(side: int = 7, seed: int = 3) -> Town:
    """A square of crossings with random costs of the streets; those at the path's two ends cannot be guarded."""
    rng = np.random.default_rng(seed)
    at = np.arange(side * side).reshape(side, side)
    pairs = [(at[:, :-1], at[:, 1:]), (at[:-1], at[1:])]
    streets = np.concatenate([np.stack([a.ravel(), b.ravel()], 1) for a, b in pairs])
    costs = rng.uniform(1, 3, len(streets)).round(2)
    ends = np.isin(streets, (0, side * side - 1)).any(1)
    return Town(side, streets, costs, np.where(ends, 0.0, 3.0))


def game(place: Town, guards: int) -> tuple[bg.Program, list[cp_model.IntVar]]:
    """The leader's model against the cheapest path: the costs of arcs, and what a guard adds to both arcs of a street."""
    s = len(place.streets)
    leader = cp_model.CpModel()
    guarded = [leader.new_bool_var(f"guarded{k}") for k in range(s)]
    leader.add(sum(guarded) <= guards)
    path = bg.GraphPath(place.arcs, place.side**2, clamp=0.0)  # from the first crossing to the last
    costs = {"cost": range(2 * s), "delay": [(k, guarded[k % s]) for k in range(2 * s)]}
    return bg.bilevel(leader, path, costs=costs), guarded


def inputs(place: Town) -> tuple[np.ndarray, np.ndarray]:
    """What the game takes: costs and delays of the arcs, (2 s,) each."""
    return np.tile(place.costs, 2), np.tile(place.delays, 2)


def gradient(program: bg.Program, place: Town) -> np.ndarray:
    """The derivative of the game's value in the streets' costs, by torch, (s,).

    The value is a maximum of minima over finitely many decisions. Where both players' are unique they do not change with
    small changes of the costs, and may be held (Danskin).
    """
    costs, delays = (torch.tensor(part) for part in inputs(place))
    streets = torch.tensor(place.costs, requires_grad=True)
    x, y = (decision.detach() for decision in bg.Layer(program)(costs, delays))
    value = (streets.repeat(2) + delays * x.repeat(2)) @ y
    value.backward()
    return streets.grad.numpy()


def smoothed(program: bg.Program, place: Town, sigma: float, samples: int) -> np.ndarray:
    """The derivative of the mean value where costs and delays have Normal noise sigma: the mean path, (s,)."""
    layer = bg.Layer(program, gradient=bg.Joint(bg.Perturbed(sigma=sigma, samples=samples, draws=bg.Common(0))))
    _, path = layer(*(torch.tensor(part) for part in inputs(place)))
    return path.view(2, -1).sum(0).numpy()  # both directions of a street


def run(place: Town | None = None, guards: int = 4, sigma: float = 0.3, samples: int = 400) -> Outcome:
    """Solve without guards and with them, and differentiate."""
    place = place or town()
    costs, delays = inputs(place)
    path = bg.GraphPath(place.arcs, place.side**2).solve(costs[None])[0]
    program, guarded = game(place, guards)
    solution = program.solve({"cost": costs, "delay": delays})
    x, y = np.asarray(solution[guarded]), np.asarray(solution[list(range(len(costs)))])
    return Outcome(
        place,
        path.reshape(2, -1).sum(0),
        y.reshape(2, -1).sum(0),
        x,
        float(costs @ path),
        float(solution.value),
        solution.status is bg.Status.GLOBAL,
        gradient(program, place),
        smoothed(program, place, sigma, samples),
    )


def draw(result: Outcome, path: Path) -> None:
    """The town three times: the path before, the path past the guards, and the mean path under uncertain costs."""
    from matplotlib.figure import Figure

    place = result.town
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    streets(first, place, result.before, BLUE)
    streets(second, place, result.after, BLUE)
    middle = np.stack([place.streets % place.side, place.streets // place.side], -1)[result.guarded > 0].mean(1)
    second.plot(*middle.T, "X", ms=13, mfc=ORANGE, mec="white", zorder=5)
    streets(third, place, result.smoothed, BLUE)
    for (x, y), share in zip(
        np.stack([place.streets % place.side, place.streets // place.side], -1).mean(1), result.smoothed, strict=True
    ):
        if share >= 0.2:
            third.text(x, y, f"{share:.1f}".lstrip("0"), fontsize=8, ha="center", va="center", zorder=6, bbox=LABEL)
    first.set_title(f"Nothing guarded: cost {result.free_value:.2f}")
    second.set_title(f"{result.guarded.sum():.0f} guards (✕), proven best: cost {result.value:.2f}")
    third.set_title("Derivative of the mean cost, costs ± 0.3")
    for axes in (first, second, third):
        for node, name in ((0, "from"), (place.side - 1, "to")):
            axes.plot(node, node, "o", ms=9, color="black", zorder=6)
            axes.annotate(name, (node, node), (0, 9 if node == 0 else -17), textcoords="offset points", ha="center")
    figure.savefig(path, dpi=85)


def streets(axes: Axes, place: Town, weight: np.ndarray, colour: str) -> None:
    """The town in grey, wider where streets are dearer, and over it lines as wide as the weights."""
    from matplotlib.collections import LineCollection

    lines = np.stack([place.streets % place.side, place.streets // place.side], -1)
    axes.add_collection(LineCollection(lines, linewidths=2.2 * place.costs, colors="0.85", capstyle="round"))
    axes.add_collection(LineCollection(lines, linewidths=5.0 * weight, colors=colour, capstyle="round", alpha=0.9))
    axes.set(xlim=(-0.5, place.side - 0.5), ylim=(place.side - 0.4, -0.6), aspect="equal")
    axes.axis("off")


def main(path: Path = PICTURE) -> None:
    result = run()
    print(f"{len(result.town.streets)} streets. The cheapest path costs {result.free_value:.2f}; with the best")
    print(f"{result.guarded.sum():.0f} guards {result.value:.2f} (proven: {result.proven}).")
    print(f"Its derivative is the path: {result.gradient.sum():.0f} streets of derivative 1, all others 0.")
    some = (result.smoothed > 0.01).sum()
    print(f"Costs known to 0.3 only: {some} streets matter in more than 1 % of the cases.")
    draw(result, path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
