"""Digits that stay readable under attack: the attack is a lower level. Takes about a minute.

A classifier with weights w is trained on digits that an opponent has changed, each pixel by at most REACH:

    leader     min over w                     cross-entropy(w, x + delta)
    follower   max over |delta_ij| <= REACH   the same (a torch function, kept in a bigrad.Box by projected steps)

At a worst case the derivative of the loss through delta is zero (Danskin 1966), so weights may be trained with delta held; the page
measures that. Accuracy is judged on digits not trained on, under another attack. Page: docs/gallery/adversarial_training.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import bigrad as bg

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "gallery"

REACH = 0.15  # of the range from white to black
BATCH = 100
WAYS = ("plain", "adversarial, delta held", "adversarial, through delta")


class Digits(NamedTuple):
    """Images with pixels between 0 and 1, (count, 64), and what they show, (count,)."""

    pixels: Tensor
    label: Tensor


class Robustness(NamedTuple):
    """What was measured. reach (points,): of the judging attack; accuracy {way: (seeds, points)} under it, a share.

    steps (tries,), through (tries,): of a trained network, the part of the weights' gradient that goes through delta, relative to the
    rest, after that many steps of the attack. shown: some digits; changed {way: (count, 64)}: them under attack; read {way: (count,)}.
    """

    reach: np.ndarray
    accuracy: dict[str, np.ndarray]
    steps: np.ndarray
    through: np.ndarray
    shown: Digits
    changed: dict[str, Tensor]
    read: dict[str, Tensor]


def digits(seed: int, train: int = 1200) -> tuple[Digits, Digits]:
    """scikit-learn's digits, split by the seed."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels, label = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    return tuple(Digits(pixels[part], label[part]) for part in (order[:train], order[train:]))


def classifier() -> nn.Sequential:
    """A small network, smooth so that attacks have gradients to follow."""
    return nn.Sequential(nn.Linear(64, 64), nn.Softplus(beta=5), nn.Linear(64, 10))


def attacker(model: nn.Sequential, count: int = BATCH, steps: int = 10) -> bg.Layer:
    """The lower level: weights and digits to the changes of all pixels, (count, 64)."""

    def gain(weights: dict[str, Tensor], delta: Tensor, seen: Digits) -> Tensor:
        return -cross_entropy(functional_call(model, weights, seen.pixels + delta), seen.label, reduction="sum")

    worst = bg.argmin(gain, responds=torch.zeros(count, 64), within=bg.Box(-REACH, REACH))
    return bg.Layer(worst, solver=bg.Descent(bg.GradientDescent(1.0), steps=steps, tol=0), gradient=bg.Unrolled())


def train(way: str, seed: int, known: Digits, epochs: int) -> nn.Sequential:
    """A network trained in one of the WAYS."""
    torch.manual_seed(seed)
    model = classifier()
    attack, optimiser = attacker(model), torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(known.pixels)).split(BATCH):
            seen = Digits(known.pixels[rows], known.label[rows])
            changed = seen.pixels
            if way != "plain":
                with torch.set_grad_enabled(way == WAYS[2]):
                    changed = seen.pixels + attack(dict(model.named_parameters()), seen)
            optimiser.zero_grad()
            cross_entropy(model(changed), seen.label).backward()
            optimiser.step()
    return model


def judge(
    model: nn.Sequential, seen: Digits, reach: float, steps: int = 40, restarts: int = 3
) -> tuple[Tensor, Tensor]:
    """Signed gradient steps from random starts (Madry et al. 2018), not bigrad's: whether each digit was read rightly under
    all of them, and the last changed digits.
    """
    right, delta = torch.ones(len(seen.pixels), dtype=torch.bool), torch.zeros_like(seen.pixels)
    for _ in range(restarts if reach else 1):
        delta = (2 * torch.rand_like(seen.pixels) - 1) * reach
        for _ in range(steps if reach else 0):
            delta.requires_grad_()
            (slope,) = torch.autograd.grad(
                cross_entropy(model(seen.pixels + delta), seen.label, reduction="sum"), delta
            )
            delta = (delta.detach() + 2.5 * reach / steps * slope.sign()).clamp(-reach, reach)
        right &= model(seen.pixels + delta).argmax(1) == seen.label
    return right, seen.pixels + delta


def part_through(model: nn.Sequential, seen: Digits, steps: int) -> float:
    """The weights' gradient through delta, over the gradient with delta held."""
    weights = dict(model.named_parameters())
    delta = attacker(model, len(seen.pixels), steps)(weights, seen)
    loss, held = (cross_entropy(model(seen.pixels + d), seen.label) for d in (delta, delta.detach()))
    whole, rest = (torch.cat([g.ravel() for g in torch.autograd.grad(x, [*weights.values()])]) for x in (loss, held))
    return float((whole - rest).norm() / rest.norm())


def run(seeds: int = 3, epochs: int = 20, points: int = 6, tries: tuple[int, ...] = (10, 100, 1000)) -> Robustness:
    """Train in three ways with each seed, and judge."""
    reach = np.linspace(0, 0.25, points)
    accuracy = {way: np.zeros((seeds, points)) for way in WAYS}
    models: dict[str, nn.Sequential] = {}
    for seed in reversed(range(seeds)):  # the models of seed 0 stay
        known, test = digits(seed)
        for way in WAYS:
            models[way] = train(way, seed, known, epochs)
            torch.manual_seed(seed)
            accuracy[way][seed] = [judge(models[way], test, r)[0].float().mean() for r in reach.tolist()]
    through = np.array(
        [part_through(models[WAYS[1]], Digits(*(part[:BATCH] for part in known)), steps) for steps in tries]
    )
    rows = [int((test.label == digit).nonzero()[0, 0]) for digit in range(10)]
    shown = Digits(test.pixels[rows], test.label[rows])
    changed = {way: judge(models[way], shown, REACH)[1] for way in WAYS[:2]}
    read = {way: models[way](image).argmax(1) for way, image in changed.items()}
    return Robustness(reach, accuracy, np.array(tries), through, shown, changed, read)


def draw(result: Robustness, path: Path) -> None:
    """Accuracy over the reach of the attack, and some attacked digits."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(HERE / "gallery.mplstyle"):
        figure = Figure(figsize=(10, 6))
        above, below = figure.subfigures(2, 1, height_ratios=(3, 2))
        curves = above.subplots()
        for way, style in zip(WAYS, ("C0-", "C1-", "k:"), strict=True):
            found = 100 * result.accuracy[way]
            curves.plot(result.reach, found.mean(0), style, label=way)
            curves.fill_between(result.reach, found.min(0), found.max(0), color=style[:-1], alpha=0.2, lw=0)
        curves.axvline(REACH, color="0.6", lw=1, ls="--")
        curves.text(REACH + 0.002, 99, "reach in training", color="0.4", va="top")
        curves.legend(loc="lower left")
        curves.set(xlim=(0, 0.25), ylim=(0, 100), xlabel="reach of the attack", ylabel="read rightly, %")
        curves.set_title("Held-out digits under attack (band: all seeds)")
        rows = {"as they are": (result.shown.pixels, result.shown.label)}
        rows |= {f"{way.split(',')[0]} training": (result.changed[way], result.read[way]) for way in WAYS[:2]}
        panels = below.subplots(len(rows), 10)
        for line, (name, (images, read)) in zip(panels, rows.items(), strict=True):
            for axes, image, answer, truth in zip(line, images, read, result.shown.label, strict=True):
                axes.imshow(image.detach().reshape(8, 8).numpy(), cmap="gray_r", vmin=-REACH, vmax=1 + REACH)
                axes.set(xticks=[], yticks=[])
                axes.grid(visible=False)
                axes.spines[:].set_visible(False)
                colour = "k" if answer == truth else "C1"
                axes.text(8, 3.5, f"{int(answer)}", color=colour, va="center", weight="bold")
            line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        figure.savefig(path)


def main(path: Path = PAGE / "adversarial_training.png", **sizes: int) -> Robustness:
    """Print what was found and save the picture."""
    result = run(**sizes)
    print("held-out digits read rightly, %, by the reach of the attack (mean ± standard deviation over seeds):")
    print(" " * 26 + "".join(f"{reach:>14.2f}" for reach in result.reach))
    for way, found in result.accuracy.items():
        cells = (
            f"{100 * mean:.1f} ± {100 * spread:.1f}" for mean, spread in zip(found.mean(0), found.std(0), strict=True)
        )
        print(f"{way:<26}" + "".join(f"{cell:>14}" for cell in cells))
    print("part of the gradient through delta, relative to the rest, after some steps of the attack:")
    print(", ".join(f"{steps}: {100 * part:.2f} %" for steps, part in zip(result.steps, result.through, strict=True)))
    draw(result, path)
    print(f"picture: {path}")
    return result


if __name__ == "__main__":
    main()
