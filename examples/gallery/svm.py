"""The hyperparameters of a support vector machine by gradient: C and a scale for every feature. Takes about a minute.

The lower level trains the machine on the training part of every fold, a convex quadratic program; the upper level is the hinge loss on
the held-out parts.

    leader     min over log C, log scales     mean hinge loss of (w, b) on held-out folds
    follower   (w, b) of a fold  =  argmin  |w|^2 / 2 + C sum(slack)
                                    such that  label (w'(scale * x) + b) >= 1 - slack,  slack >= 0

C alone is chosen from a grid first; descent through the layer goes on from there with all scales, and a random search gets as many tries.
Samples never used judge all three. Real data: scikit-learn's wine and breast cancer. Page: docs/gallery/svm.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

import bigrad as bg

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "gallery"

GRID = np.linspace(-7, 3, 11)  # of log C


class Samples(NamedTuple):
    """Features (count, features) and labels of -1 and 1, (count,)."""

    features: np.ndarray
    label: np.ndarray


class Task(NamedTuple):
    """One split: samples to tune and train on, in folds (folds, count of one), and samples to judge by; standardised."""

    folds: Samples
    known: Samples
    unseen: Samples


class Tuned(NamedTuple):
    """Of one data set, one row a split: cross-validated loss (splits, tries) of the best so far of each way, the hinge loss and the error
    (share) of that machine on unseen samples, and the learned log scales (splits, features), by the names of the features.
    """

    loss: dict[str, np.ndarray]
    unseen: dict[str, np.ndarray]
    error: dict[str, np.ndarray]
    scales: np.ndarray
    names: list[str]


def wine() -> tuple[Samples, list[str]]:
    """178 wines, 13 measurements: of the second cultivar or not."""
    from sklearn.datasets import load_wine

    data = load_wine()
    return Samples(data.data, np.where(data.target == 1, 1.0, -1.0)), list(data.feature_names)


def breast_cancer() -> tuple[Samples, list[str]]:
    """569 tumours, 30 measurements: benign or not."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    return Samples(data.data, 2.0 * data.target - 1), list(data.feature_names)


def split(samples: Samples, known: int, folds: int, seed: int) -> Task:
    """Draw the samples to tune on; their mean and deviation standardise all."""
    order = np.random.default_rng(seed).permutation(len(samples.label))
    mine, rest = order[:known], order[known:]
    features = (samples.features - samples.features[mine].mean(0)) / samples.features[mine].std(0)
    parts = mine.reshape(folds, -1)
    return Task(*(Samples(features[rows], samples.label[rows]) for rows in (parts, mine, rest)))


def machine(count: int, features: int) -> bg.Layer:
    """Training samples times their label, labels, and C, to w and b."""
    w, b, slack = cp.Variable(features, name="w"), cp.Variable(name="b"), cp.Variable(count, name="slack", nonneg=True)
    signed, label = cp.Parameter((count, features), name="signed"), cp.Parameter(count, name="label")
    C = cp.Parameter(name="C", nonneg=True)
    training = cp.Problem(
        cp.Minimize(0.5 * cp.sum_squares(w) + C * cp.sum(slack)), [signed @ w + b * label >= 1 - slack]
    )
    return bg.Layer(bg.argmin(training), parameters=[signed, label, C], variables=[w, b])


def hinge(w: Tensor, b: Tensor, features: Tensor, label: Tensor) -> Tensor:
    """Mean hinge loss of machines (folds, features), (folds,) on samples (folds, count, features), (folds, count)."""
    return (1 - label * ((features @ w[..., None])[..., 0] + b[:, None])).clamp(min=0).mean()


def cross_validated(layer: bg.Layer, folds: Samples, log_C: Tensor, log_scale: Tensor) -> Tensor:
    """The upper level: train without each fold in turn, and lose on it."""
    features, label = torch.as_tensor(folds.features) * log_scale.exp(), torch.as_tensor(folds.label)
    others = torch.tensor([[j for j in range(len(label)) if j != k] for k in range(len(label))])
    rest, signs = features[others].flatten(1, 2), label[others].flatten(1, 2)
    w, b = layer(rest * signs[..., None], signs, log_C.exp().expand(len(label)))
    return hinge(w, b, features, label)


def judged(task: Task, log_C: Tensor, log_scale: Tensor) -> tuple[float, float]:
    """Hinge loss and error on unseen samples of scikit-learn's own machine, trained on all known ones."""
    from sklearn.svm import SVC

    scale = log_scale.detach().exp().numpy()
    trained = SVC(kernel="linear", C=float(log_C.detach().exp())).fit(task.known.features * scale, task.known.label)
    margin = trained.decision_function(task.unseen.features * scale) * task.unseen.label
    return float(np.clip(1 - margin, 0, None).mean()), float((margin <= 0).mean())


Tries = list[tuple[float, Tensor, Tensor]]
"""Loss, log C and log scales of every try."""


def descend(layer: bg.Layer, folds: Samples, log_C: Tensor, features: int, steps: int) -> Tries:
    """Adam on the cross-validated loss, in all hyperparameters."""
    log_C, log_scale = log_C.clone().requires_grad_(), torch.zeros(features, dtype=torch.double, requires_grad=True)
    optimiser, tries = torch.optim.Adam([log_C, log_scale], lr=0.1), []
    for _ in range(steps):
        loss = cross_validated(layer, folds, log_C, log_scale)
        tries.append((loss.item(), log_C.detach().clone(), log_scale.detach().clone()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return tries


def sample(layer: bg.Layer, folds: Samples, log_C: Tensor, features: int, steps: int, seed: int) -> Tries:
    """Random search: log C around the grid's best, every scale log-normal."""
    draw, tries = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        step = torch.randn(features + 1, generator=draw, dtype=torch.double)
        at = log_C + step[0], 0.7 * step[1:]
        tries.append((cross_validated(layer, folds, *at).item(), *at))
    return tries


def tune(samples: Samples, names: list[str], known: int, folds: int, splits: int, steps: int) -> Tuned:
    """The three ways on several splits."""
    features = samples.features.shape[1]
    layer = machine(known - known // folds, features)
    found: dict[str, list[tuple[np.ndarray, ...]]] = {"grid on C": [], "random search": [], "bilevel": []}
    scales = []
    for seed in range(splits):
        task, plain = split(samples, known, folds, seed), torch.zeros(features, dtype=torch.double)
        with torch.no_grad():
            tries = [(cross_validated(layer, task.folds, C, plain).item(), C, plain) for C in map(torch.tensor, GRID)]
            first = min(tries, key=lambda one: one[0])
            drawn = sample(layer, task.folds, first[1], features, steps, seed)
        descended = descend(layer, task.folds, first[1], features, steps)
        for way, ways in zip(found, ([first] * steps, [first, *drawn[1:]], descended), strict=True):
            best = [min(ways[: k + 1], key=lambda one: one[0]) for k in range(steps)]
            measured = {id(one): judged(task, *one[1:]) for one in best}
            found[way].append((np.array([one[0] for one in best]), *np.array([measured[id(one)] for one in best]).T))
        scales.append(min(descended, key=lambda one: one[0])[2].numpy())
    loss, unseen, error = ({way: np.stack([row[k] for row in rows]) for way, rows in found.items()} for k in range(3))
    return Tuned(loss, unseen, error, np.stack(scales), names)


def run(splits: int = 8, steps: int = 40) -> dict[str, Tuned]:
    """Both data sets."""
    tasks: dict[str, tuple[Callable[[], tuple[Samples, list[str]]], int]] = {
        "wine": (wine, 60),
        "breast cancer": (breast_cancer, 100),
    }
    return {name: tune(*load(), known, 5, splits, steps) for name, (load, known) in tasks.items()}


def draw(result: dict[str, Tuned], path: Path) -> None:
    """The loss on held-out folds and on unseen samples over the tries, and the learned scales of the wine's features."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(HERE / "gallery.mplstyle"):
        figure = Figure(figsize=(10, 5.6))
        grid = figure.add_gridspec(2, 2, width_ratios=(3, 2))
        for row, (name, tuned) in enumerate(result.items()):
            axes = figure.add_subplot(grid[row, 0])
            for colour, way in (("0.5", "grid on C"), ("C4", "random search"), ("C0", "bilevel")):
                tries = range(1, tuned.loss[way].shape[1] + 1)
                axes.plot(tries, tuned.loss[way].mean(0), color=colour, label=way)
                axes.plot(tries, tuned.unseen[way].mean(0), color=colour, ls=":")
            axes.plot([], [], "k", label="held-out folds")
            axes.plot([], [], "k:", label="unseen samples")
            axes.set(
                ylabel="hinge loss", title=f"{name}, {tuned.scales.shape[1]} features", xlim=(1, None), ylim=(0, None)
            )
            if row == 0:
                axes.legend(ncols=2, loc="lower left", fontsize=9)
        axes.set_xlabel("tries (each solves a quadratic program for every fold)")
        bars = figure.add_subplot(grid[:, 1])
        wine = result["wine"]
        order = np.argsort(wine.scales.mean(0))
        rows = range(len(order))
        bars.barh(rows, np.exp(wine.scales.mean(0))[order] - 1, left=1, color="0.85")
        for scales in wine.scales:
            bars.plot(np.exp(scales[order]), rows, "o", color="C0", alpha=0.5, mew=0, ms=5)
        names = [
            wine.names[i].replace("_", " ").replace("od280/od315 of diluted wines", "OD280 / OD315") for i in order
        ]
        bars.axvline(1, color="0.4", lw=1)
        bars.set(xscale="log", xticks=[0.1, 0.3, 1, 3, 10], xticklabels=["0.1", "0.3", "1", "3", "10"])
        bars.set(xlabel="scale (dots: splits; bars: mean)", title="wine: the learned scales")
        bars.set_yticks(rows, names, fontsize=9)
        bars.grid(axis="y", visible=False)
        figure.savefig(path)


def main(path: Path = PAGE / "svm.png", **sizes: int) -> dict[str, Tuned]:
    """Print what was found and save the picture."""
    result = run(**sizes)
    for name, tuned in result.items():
        splits, steps = tuned.loss["bilevel"].shape
        print(f"{name}: {splits} splits, {steps} tries; mean ± standard error")
        print(f"{'':<16}{'held-out folds':>18}{'unseen samples':>18}{'unseen error, %':>18}")
        for way in tuned.loss:
            last = (tuned.loss[way][:, -1], tuned.unseen[way][:, -1], 100 * tuned.error[way][:, -1])
            cells = [f"{x.mean():.{d}f} ± {x.std() / splits**0.5:.{d}f}" for x, d in zip(last, (3, 3, 1), strict=True)]
            print(f"{way:<16}" + "".join(f"{cell:>18}" for cell in cells))
        gain = tuned.unseen["grid on C"][:, -1] - tuned.unseen["bilevel"][:, -1]
        print(
            f"unseen loss, grid less bilevel: {gain.mean():.3f} ± {gain.std() / splits**0.5:.3f}, better on {(gain > 0).sum()} splits"
        )
    draw(result, path)
    print(f"picture: {path}")
    return result


if __name__ == "__main__":
    main()
