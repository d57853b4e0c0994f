"""Fenchel back-propagation against back-propagation on handwritten digits.

A Fenchel activation hands down the whole step to a target, f(a - beta g), where back-propagation hands down a derivative
(bigrad/fenchel/base.py). Two questions on scikit-learn's 1797 digits of 8 x 8 pixels:

    gradients   how far is its gradient from autograd's? Nowhere, while no unit's step crosses the kink of its ReLU.
    training    does a network trained by it classify as well? Same start, batches, optimiser and epochs.

The loss is summed over a batch, so beta is the step of one item. Results: docs/fenchel_digits.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import trange

import bigrad as bg

HERE = Path(__file__).parent
WIDTH, RATE, BATCH = 64, 2e-3, 64
BETAS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
Activation = Callable[[], nn.Module]


class Digits(NamedTuple):
    """Pixels between 0 and 1, (n, 64), and labels; to train on and held out."""

    train: Tensor
    labels: Tensor
    test: Tensor
    truth: Tensor


def digits(seed: int, held_out: int = 597) -> Digits:
    """A split drawn with the seed."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    pixels, labels = (torch.as_tensor(part)[order] for part in (pixels / 16, labels))
    return Digits(pixels[held_out:], labels[held_out:], pixels[:held_out], labels[:held_out])


def network(activation: Activation, seed: int) -> nn.Sequential:
    """64 pixels, two hidden layers, ten classes, in float64; the same start whatever the activation."""
    torch.manual_seed(seed)
    layers = [nn.Linear(64, WIDTH), activation(), nn.Linear(WIDTH, WIDTH), activation(), nn.Linear(WIDTH, 10)]
    return nn.Sequential(*layers).double()


def slope(net: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the summed loss in all weights, flat."""
    loss = cross_entropy(net(pixels), labels, reduction="sum")
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])


def distances(data: Digits, seed: int, betas: tuple[float, ...] = BETAS) -> Tensor:
    """The relative distance of the gradient of one batch from autograd's, by beta."""
    batch = data.train[:BATCH], data.labels[:BATCH]
    exact = slope(network(nn.ReLU, seed), *batch)
    found = [slope(network(lambda b=beta: bg.FenchelReLU(b), seed), *batch) for beta in betas]
    return torch.stack([(f - exact).norm() / exact.norm() for f in found])


def train(net: nn.Module, data: Digits, epochs: int, seed: int, label: str) -> Tensor:
    """Adam; the share of held-out digits that it gets right after each epoch."""
    adam, order, right = torch.optim.Adam(net.parameters(), RATE), torch.Generator().manual_seed(seed), []
    for _ in (bar := trange(epochs, desc=label, leave=False)):
        for batch in torch.randperm(len(data.train), generator=order).split(BATCH):
            adam.zero_grad()
            cross_entropy(net(data.train[batch]), data.labels[batch], reduction="sum").backward()
            adam.step()
        with torch.no_grad():
            right.append((net(data.test).argmax(1) == data.truth).double().mean())
        bar.set_postfix(held_out=f"{100 * right[-1]:.1f} %")
    return torch.stack(right)


METHODS: dict[str, Activation] = {
    "back-propagation, ReLU": nn.ReLU,
    "Fenchel ReLU, beta 0.01": lambda: bg.FenchelReLU(0.01),
    "Fenchel ReLU, beta 0.1": lambda: bg.FenchelReLU(0.1),
    "Fenchel ReLU, beta 1": lambda: bg.FenchelReLU(1.0),
    "back-propagation, Hardtanh": nn.Hardtanh,
    "Fenchel Hardtanh, beta 0.1": lambda: bg.FenchelHardtanh(0.1),
}


def main(seeds: int = 5, epochs: int = 30, folder: Path = HERE) -> dict[str, Tensor]:
    """Compare gradients and training, print both tables, save the picture; returns the final accuracies by seed."""
    torch.set_num_threads(1)
    apart = torch.stack([distances(digits(seed), seed) for seed in range(seeds)])
    print(f"Relative distance of the gradient from autograd's, one batch of {BATCH}, untrained, {seeds} seeds:\n")
    print(f"{'beta':>8}{'median':>12}{'largest':>12}")
    for beta, row in zip(BETAS, apart.T, strict=True):
        print(f"{beta:>8g}{row.median():>12.1e}{row.max():>12.1e}")
    curves = {name: [] for name in METHODS}
    for seed in range(seeds):
        data = digits(seed)
        for name, activation in METHODS.items():
            curves[name].append(train(network(activation, seed), data, epochs, seed, f"seed {seed}, {name}"))
    runs = {name: 100 * torch.stack(found) for name, found in curves.items()}
    print(
        f"\n{len(data.train)} digits to train on, {len(data.test)} held out, {epochs} epochs, mean ± deviation over the seeds:\n"
    )
    print(f"{'':<28}{'right, in %':>16}{'minus its own':>18}")
    for name, run in runs.items():
        own = runs[next(n for n in runs if n.startswith("back") and n.split()[-1] in name)]
        last, gap = run[:, -1], run[:, -1] - own[:, -1]
        less = "" if run is own else f"{gap.mean():+.2f} ± {gap.std():.2f}"
        print(f"{name:<28}{f'{last.mean():.2f} ± {last.std():.2f}':>16}{less:>18}")
    picture(folder / "fenchel_digits.png", apart, runs)
    print(f"\nPicture: {folder / 'fenchel_digits.png'}")
    return {name: run[:, -1] for name, run in runs.items()}


def picture(path: Path, apart: Tensor, runs: dict[str, Tensor]) -> None:
    """Left: the gradients' distance by beta. Right: what is wrong on held-out digits, by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.loglog(BETAS, apart.T.clamp(min=1e-17), "o", color="C0", alpha=0.5)
    left.text(0.02, 0.1, "below: exactly equal", transform=left.transAxes)
    left.set(xlabel="beta", ylabel="relative distance from autograd", title="Gradients of one batch, one dot a seed")
    for (name, run), style in zip(runs.items(), ("k-", "C0-", "C1-", "C3-", "k--", "C2--"), strict=True):
        wrong, epochs = 100 - run, range(1, run.shape[1] + 1)
        right.semilogy(epochs, wrong.mean(0).clamp(min=0.1), style, label=name)
    right.set_yticks(ticks := [4, 6, 10, 20, 40], [str(t) for t in ticks])
    right.set_yticks([], minor=True)
    right.set(xlabel="epoch", ylabel="held-out digits wrong, in % (mean)", title="Training")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
