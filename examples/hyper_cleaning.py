"""Which labels to trust: weights of training samples learnt from a few clean ones, on handwritten digits, in five ways.

Half of the labels to train on are wrong, nobody knows which. A second, smaller set has the right ones. Each training sample gets
a weight; the lower level fits a linear classifier to the weighted samples, the upper level asks that it fits the clean ones:

    upper   min over x of  the mean cross-entropy of y on the clean samples
    lower   y = argmin  sum_i w_i CE_i(y) / sum_i w_i + REG |y|^2,    w = sigmoid(x), one x_i for each training sample

The five ways differ in how they get the derivative of y in x, or do without:

    implicit CG   y by L-BFGS, the implicit function theorem by conjugate gradients
    unrolled      50 warm-started FISTA steps and autograd through them
    equilibrium   y by L-BFGS, and again, nudged by the upper loss: `EqProp`, no second derivative
    BOME          both levels at once, no second derivative: `BOME`
    MAID          implicit CG with tolerances and step lengths chosen by error bounds: `MAID`

Judged is a classifier fitted once to all the data, training samples by their weights and clean ones with weight 1, against the same
without weights (noisy), with the true labels (clean), and on the clean samples only. Results: docs/hyper_cleaning.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm, trange

import bigrad as bg

HERE = Path(__file__).parent
REG = 3e-3
TRAIN, CLEAN = 1000, 200


@dataclass(frozen=True)
class Task:
    """Rows are samples, 64 pixels and a one. wrong: which training labels are; true: what they should be."""

    train: Tensor
    labels: Tensor
    true: Tensor
    wrong: Tensor
    clean: Tensor
    clean_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @classmethod
    def of(cls, seed: int, train: int = TRAIN, clean: int = CLEAN) -> Task:
        """Scikit-learn's digits, split and corrupted with this seed: a wrong label is any of the nine others."""
        from sklearn.datasets import load_digits

        data, draw = load_digits(), torch.Generator().manual_seed(seed)
        order = torch.randperm(len(data.data), generator=draw)
        images, digits = torch.as_tensor(data.data)[order] / 16, torch.as_tensor(data.target)[order]
        images = torch.cat([images, torch.ones(len(images), 1)], 1)
        wrong = torch.randperm(train, generator=draw) < train // 2
        moved = (digits[:train] + torch.randint(1, 10, (train,), generator=draw)) % 10
        x, known, rest = images.split([train, clean, len(images) - train - clean])
        true, y, last = digits.split([train, clean, len(images) - train - clean])
        return cls(x, torch.where(wrong, moved, true), true, wrong, known, y, rest, last)

    @property
    def zero(self) -> Tensor:
        """Where classifiers start, (65, 10)."""
        return torch.zeros(65, 10, dtype=torch.float64)

    def lower(self, x: Tensor, y: Tensor) -> Tensor:
        return weighted(x.sigmoid(), y, self.train, self.labels)

    def upper(self, y: Tensor) -> Tensor:
        return cross_entropy(self.clean @ y, self.clean_labels)

    @cached_property
    def program(self) -> bg.Program:
        return bg.argmin(self.lower, responds=self.zero)

    @property
    def curvature(self) -> float:
        """No second derivative of the lower level is larger: that of a cross-entropy in its logits is at most 1 / 2."""
        return 0.5 * float(self.train.square().sum(1).max()) + 2 * REG

    def accuracy(self, y: Tensor) -> float:
        """Per cent of the test samples."""
        return 100 * float(((self.test @ y).argmax(1) == self.test_labels).double().mean())

    def refit(self, weights: Tensor, labels: Tensor, clean: float = 1.0) -> float:
        """The test accuracy of a classifier fitted to training samples with these weights, and the clean ones with theirs."""
        images, marks = torch.cat([self.train, self.clean]), torch.cat([labels, self.clean_labels])
        every = torch.cat([weights, torch.full((len(self.clean),), clean, dtype=torch.float64)])
        fit = bg.argmin(lambda w, y: weighted(w, y, images, marks), responds=self.zero)
        return self.accuracy(bg.Layer(fit)(every))


def weighted(weights: Tensor, y: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """The weighted mean of the cross-entropy, regularised."""
    losses = cross_entropy(images @ y, labels, reduction="none")
    return (weights * losses).sum() / weights.sum() + REG * y.square().sum()


Method = Callable[[Task, int], Tensor]
"""Task and upper steps to x, (training samples,)."""


def by_layer(layer: Callable[[Task], bg.Layer]) -> Method:
    """Adam on the upper loss, through a layer that starts where it last ended."""

    def learn(task: Task, steps: int) -> Tensor:
        x = torch.zeros(len(task.train), dtype=torch.float64, requires_grad=True)
        optimiser, memory, lower = torch.optim.Adam([x], lr=0.3), bg.Memory(), layer(task)
        for _ in (bar := trange(steps, leave=False)):
            optimiser.zero_grad()
            loss = task.upper(lower(x, warm_start=memory.at([0])))
            loss.backward()
            optimiser.step()
            bar.set_postfix(upper=f"{loss.item():.4f}")
        return x.detach()

    return learn


def by_bome(task: Task, steps: int) -> Tensor:
    """Its steps are cheap, so it takes eight times as many."""
    x = torch.zeros(len(task.train), dtype=torch.float64, requires_grad=True)
    y = task.zero.requires_grad_()
    levels = [{"params": [x], "lr": 100.0}]
    optimiser = bg.BOME(levels, [y], lr=0.2, inner_lr=0.2, steps=10, momentum=0.9, phi=bg.GapValue(0.5))
    for _ in (bar := trange(8 * steps, leave=False)):
        taken = optimiser.step(lambda: task.upper(y), lambda: task.lower(x, y))
        bar.set_postfix(upper=f"{taken.upper:.4f}", gap=f"{taken.gap:.1e}")
    return x.detach()


def by_maid(task: Task, steps: int) -> Tensor:
    """REG is all that it is told: the strong convexity is 2 REG, other constants are estimated."""
    x = torch.zeros(len(task.train), dtype=torch.float64, requires_grad=True)
    layer = bg.Layer(task.program, solver=bg.Descent(bg.LBFGS(), mu=2 * REG))
    optimiser = bg.MAID([x], layer, lr=1000.0, tolerance=1e-2)
    for _ in (bar := trange(steps, leave=False)):
        taken = optimiser.step(lambda lower: task.upper(lower(x)))
        bar.set_postfix(upper=f"{taken.upper:.4f}", tolerance=f"{taken.tolerance:.1e}")
        if not taken.status.ok:
            tqdm.write(f"MAID: {taken.status.value}")
            break
    return x.detach()


def methods() -> dict[str, Method]:
    """The five ways."""
    exact, rough = bg.Descent(bg.LBFGS(), tol=1e-5), bg.Descent(bg.LBFGS(), tol=1e-4)
    nudged = bg.EqProp(1e-2, bg.Forward(), solver=exact)
    return {
        "implicit CG": by_layer(
            lambda task: bg.Layer(task.program, solver=rough, gradient=bg.Implicit(bg.CG(tol=1e-2)))
        ),
        "unrolled": by_layer(
            lambda task: bg.Layer(
                task.program,
                solver=bg.Descent(bg.FISTA(task.curvature, 2 * REG), steps=50, tol=0),
                gradient=bg.Unrolled(),
            )
        ),
        "equilibrium": by_layer(lambda task: bg.Layer(task.program, solver=exact, gradient=nudged)),
        "BOME": by_bome,
        "MAID": by_maid,
    }


@dataclass(frozen=True)
class Run:
    """Test accuracy, weights of the training samples, processor seconds."""

    accuracy: float
    weights: Tensor
    seconds: float


def main(
    seeds: int = 3,
    steps: int = 40,
    train: int = TRAIN,
    clean: int = CLEAN,
    first_seed: int = 0,
    folder: Path = HERE,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Learn weights in all ways, print the table, save the picture; returns test accuracies by seed, of anchors and of ways."""
    tasks = [Task.of(first_seed + seed, train, clean) for seed in range(seeds)]
    print(
        f"Digits: {train} to train on, {int(tasks[0].wrong.sum())} of them with wrong labels, {clean} clean, ", end=""
    )
    print(f"{len(tasks[0].test)} held out.")
    ones, none = torch.ones(train, dtype=torch.float64), torch.zeros(train, dtype=torch.float64)
    anchors = {
        "noisy": torch.tensor([t.refit(ones, t.labels) for t in tasks]),
        "clean samples only": torch.tensor([t.refit(none, t.labels) for t in tasks]),
        "clean": torch.tensor([t.refit(ones, t.true) for t in tasks]),
    }
    runs: dict[str, list[Run]] = {}
    for name, method in methods().items():
        for task in tqdm(tasks, desc=name, leave=False):
            begun = time.process_time()
            weights = method(task, steps).sigmoid()
            seconds = time.process_time() - begun
            runs.setdefault(name, []).append(Run(task.refit(weights, task.labels), weights, seconds))
    report(anchors, runs, tasks)
    draw(folder / "hyper_cleaning.png", anchors, runs, tasks[0])
    print(f"\nAccuracies, and the weights of one seed: {folder / 'hyper_cleaning.png'}")
    return anchors, {name: torch.tensor([run.accuracy for run in found]) for name, found in runs.items()}


def report(anchors: dict[str, Tensor], runs: dict[str, list[Run]], tasks: list[Task]) -> None:
    """Print a line for each way, mean ± standard deviation over the seeds."""

    def spread(values: Tensor) -> str:
        return f"{values.mean():.1f}" + (f" ± {values.std():.1f}" if len(values) > 1 else "")

    print(f"\n{'':<20}{'test accuracy, %':>18}{'told apart, %':>16}{'weight on wrong, %':>20}{'processor s':>14}")
    for name, found in anchors.items():
        print(f"{name:<20}{spread(found):>18}")
    for name, run in runs.items():
        apart, share = torch.tensor([judged(r.weights, t.wrong) for r, t in zip(run, tasks, strict=True)]).T
        seconds = sum(r.seconds for r in run) / len(run)
        accuracy = spread(torch.tensor([r.accuracy for r in run]))
        print(f"{name:<20}{accuracy:>18}{spread(apart):>16}{spread(share):>20}{seconds:>14.1f}")


def judged(weights: Tensor, wrong: Tensor) -> tuple[float, float]:
    """In per cent: how often a right sample outweighs a wrong one, and how much of the weight wrong ones have. Both are of
    relative weights; the mean in the lower level does not see their scale."""
    outweighs = weights[~wrong][:, None] > weights[wrong][None]
    return 100 * float(outweighs.double().mean()), 100 * float(weights[wrong].sum() / weights.sum())


def draw(path: Path, anchors: dict[str, Tensor], runs: dict[str, list[Run]], task: Task) -> None:
    """Left: accuracies between the anchors. Right: the weights that each way gave to right and wrong samples of one task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names, places = list(runs), range(len(runs))
    for (name, found), style in zip(anchors.items(), ("r--", "k:", "g--"), strict=True):
        left.axhline(
            float(found.mean()),
            c=style[0],
            ls=style[1:],
            lw=1.5,
            zorder=0,
            label=f"on {name}" if "only" in name else f"on {name} labels",
        )
    for k, found in enumerate(runs.values()):
        values = torch.tensor([run.accuracy for run in found])
        left.plot([k] * len(values), values, "o", color="0.7", ms=5)
        left.plot(k, float(values.mean()), "o", color="C0", ms=9)
    left.set(xticks=places, xlim=(-0.5, len(names) - 0.5), ylabel="test accuracy in %")
    left.set_xticklabels(names, rotation=20)
    left.set_title("Test accuracy: each seed (grey) and the mean")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncol=3, fontsize="small")
    left.grid(axis="y", alpha=0.3)
    for offset, mask, colour, label in (
        (-0.17, ~task.wrong, "tab:green", "right label"),
        (0.17, task.wrong, "tab:red", "wrong label"),
    ):
        boxes = right.boxplot(
            [(run[0].weights / run[0].weights.mean())[mask].numpy() for run in runs.values()],
            positions=[k + offset for k in places],
            widths=0.28,
            whis=(5, 95),
            showfliers=False,
            patch_artist=True,
            medianprops={"color": "black"},
        )
        for box in boxes["boxes"]:
            box.set(facecolor=colour, alpha=0.6)
        boxes["boxes"][0].set_label(label)
    right.set(xticks=places, xlim=(-0.5, len(names) - 0.5), yscale="log", ylabel="learnt weight over the mean weight")
    right.set_xticklabels(names, rotation=20)
    right.set_title("Weights: boxes hold 50 %, whiskers 90 %")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncol=2, fontsize="small")
    right.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
