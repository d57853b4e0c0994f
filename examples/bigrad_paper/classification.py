"""Classification under attack, after section 5 of BiGrad (Alesiani, AAAI 2023, arXiv 2302.14473).

A discrete layer stands in place of a network's last dense layer: every unit takes one of its levels. The bilevel one
plays a game over them, min over y, max over x of <z + w x, y>, in which the adversary interdicts a few units; the
single-level one has no adversary. Both are trained through an estimator of bigrad's, and attacked through several.
docs/experiments/classification.md says what was chosen here.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from attacks import Scores, fgsm, pgd, right, squares
from images import Images, cifar10, digits
from runner import Experiment, Record, main
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

import bigrad as bg


@dataclass(frozen=True)
class Interdicted(bg.Oracle):
    """Costs (z, w), each (units, levels), to a decision (y, x y): one level a unit, against the worst interdiction.

        min over y, max over x of  sum z_kq y_kq + w_kq x_k y_kq,     y one level a unit, x in {0, 1}^units, sum x <= budget

    The adversary takes the largest w among the levels chosen, and the sum of the largest is the least, over theta, of budget ×
    theta + sum (w - theta)+, at a theta among 0 and the w (Bertsimas and Sim, "Robust discrete optimization", 2003): for each
    theta the units choose by themselves. budget = 0 is the single level. Costs w must not be negative.
    """

    units: int
    levels: int
    budget: int

    def solve(self, costs: np.ndarray) -> np.ndarray:
        return np.concatenate([self._some(part) for part in np.array_split(costs, -(-len(costs) // 32))])

    def _some(self, costs: np.ndarray) -> np.ndarray:
        z, w = costs.reshape(-1, 2, self.units, self.levels).transpose(1, 0, 2, 3)
        level = self._robust(z, w[:1] if (w == w[0]).all() else w) if self.budget else z.argmin(-1)
        y = np.eye(self.levels)[level]
        harm = (w * y).sum(-1)
        x = np.zeros_like(harm)
        np.put_along_axis(x, np.argsort(-harm, axis=1, kind="stable")[:, : self.budget], 1.0, axis=1)
        return np.stack([y, x[..., None] * y], 1).reshape(len(z), -1)

    def _robust(self, z: np.ndarray, w: np.ndarray) -> np.ndarray:
        """The level of each unit, (items, units); w may be one for all items."""
        theta = np.concatenate([np.zeros((len(w), 1)), w.reshape(len(w), -1)], 1)
        excess = np.maximum(w[..., None] - theta[:, None, None], 0)  # (items, units, levels, thetas)
        least = np.full((len(z), self.units, theta.shape[1]), np.inf)
        for q in range(self.levels):
            np.minimum(least, z[:, :, q, None] + excess[:, :, q], out=least)
        best = (self.budget * theta + least.sum(1)).argmin(1)
        at = np.arange(len(w)) if len(w) == len(z) else np.zeros(len(z), dtype=int)
        return (z + excess[at, :, :, best]).argmin(-1)


Choice = Callable[[Interdicted, Tensor], Tensor]
"""From costs (batch, 2 × units × levels) to decisions of that shape."""


@dataclass(frozen=True)
class Soft:
    """Level shares, softmax of minus the costs over their spread × temperature, interdicted where the decision was.

    hard: the decision itself forward, the shares' derivative backward (BPDA: Athalye, Carlini and Wagner, ICML 2018).
    """

    temperature: float
    hard: bool

    def __call__(self, oracle: Interdicted, costs: Tensor) -> Tensor:
        decision = torch.as_tensor(oracle.solve(costs.detach().double().numpy()), dtype=costs.dtype)
        z, w = costs.view(-1, 2, oracle.units, oracle.levels).unbind(1)
        taken = decision.view(-1, 2, oracle.units, oracle.levels)[:, 1].sum(-1, keepdim=True)
        paid = z + w * taken
        share = (-paid / (self.temperature * z.detach().std((1, 2), keepdim=True))).softmax(-1)
        soft = torch.stack([share, taken * share], 1).flatten(1)
        return decision + soft - soft.detach() if self.hard else soft


def through(rule: bg.Interpolate | bg.Identity) -> Choice:
    """Choose by the oracle, differentiate by the rule."""
    return lambda oracle, costs: rule(oracle)(costs)


TRAINED = through(bg.Interpolate())
SURROGATES: dict[str, Choice] = {
    "own estimator": TRAINED,
    "pass-through": through(bg.Identity()),
    "BPDA": Soft(0.3, hard=True),
    "sharp BPDA": Soft(0.1, hard=True),
    "relaxed": Soft(0.3, hard=False),
}


class Network(nn.Module):
    """Two convolutions, then the head, which may need a choice."""

    def __init__(self, channels: int, size: int, head: Callable[[int], nn.Module]):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = head(32 * (-(-size // 2)) ** 2)

    def forward(self, pixels: Tensor, choice: Choice | None = None) -> Tensor:
        found = self.body(pixels)
        return self.head(found) if choice is None else self.head(found, choice)


class Discrete(nn.Module):
    """Costs by a dense layer, levels by the oracle, class scores read from the levels by another dense layer.

    The harms w do not depend on the image: a table, softplus of its parameters.
    """

    def __init__(self, inputs: int, oracle: Interdicted):
        super().__init__()
        self.oracle = oracle
        count = oracle.units * oracle.levels
        self.costs, self.read = nn.Linear(inputs, count), nn.Linear(count, 10)
        self.harm = nn.Parameter(torch.zeros(count)) if oracle.budget else None

    def forward(self, features: Tensor, choice: Choice = TRAINED) -> Tensor:
        z = self.costs(features)
        w = torch.zeros_like(z) if self.harm is None else softplus(self.harm).expand_as(z)
        return self.read(choice(self.oracle, torch.cat([z, w], 1))[:, : z.shape[1]])


@dataclass(frozen=True)
class Method:
    """What stands for the last dense layer: budget None is the dense layer itself. hardened: trained on FGSM images."""

    budget: int | None = None
    hardened: bool = False


METHODS = {
    "CNN": Method(),
    "single level": Method(budget=0),
    "bilevel": Method(budget=4),
    "CNN, trained on attacks": Method(hardened=True),
}


@dataclass(frozen=True)
class Settings:
    """counts: images to train on, to choose by, to attack. rates: learning rates that validation chooses from."""

    counts: tuple[int, int, int] = (1000, 200, 200)
    units: int = 16
    levels: int = 10
    epochs: int = 20
    batch: int = 32
    rates: tuple[float, ...] = (5e-4, 1e-3, 3e-3)
    strengths: tuple[float, ...] = (0.05, 0.1, 0.2)
    hardening: float = 0.1
    steps: int = 15
    queries: int = 100
    cifar: str | None = None


QUICK = Settings(counts=(600, 100, 100), epochs=10, rates=(1e-3, 3e-3), strengths=(0.05, 0.1), steps=10, queries=30)


class Split(NamedTuple):
    train: Images
    valid: Images
    test: Images


def split(s: Settings, seed: int) -> Split:
    """Disjoint images, drawn by the seed."""
    every = cifar10(Path(s.cifar)) if s.cifar else digits()
    rows = torch.randperm(len(every.labels), generator=torch.Generator().manual_seed(seed))
    return Split(*(every.at(part) for part in rows[: sum(s.counts)].split(s.counts)))


def network(method: Method, s: Settings, like: Images) -> Network:
    _, channels, _, size = like.pixels.shape
    if method.budget is None:
        return Network(channels, size, lambda inputs: nn.Linear(inputs, 10))
    oracle = Interdicted(s.units, s.levels, method.budget)
    return Network(channels, size, lambda inputs: Discrete(inputs, oracle))


def views(model: Network) -> dict[str, Scores]:
    """The model as attacks may see it: itself, or through every surrogate of its discrete layer."""
    if not isinstance(model.head, Discrete):
        return {"own gradient": model}
    return {name: lambda p, choice=choice: model(p, choice) for name, choice in SURROGATES.items()}


def survivors(model: Network, images: Images, attack: Callable[[Scores], Tensor]) -> dict[str, Tensor]:
    """By view, which images the model gets right after an attack through it."""
    return {name: right(model, attack(view), images.labels) for name, view in views(model).items()}


def worst(found: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(found.values())).all(0)


def fit(method: Method, s: Settings, data: Split, seed: int) -> Network:
    """The network of the rate that got most validation images right under FGSM, through the worst of all views."""
    most, kept = -1, None
    for rate in s.rates:
        torch.manual_seed(seed)
        model = network(method, s, data.train)
        optimiser = torch.optim.Adam(model.parameters(), rate)
        for _ in range(s.epochs):
            for rows in torch.randperm(len(data.train.labels)).split(s.batch):
                pixels, labels = data.train.at(rows)
                if method.hardened:
                    pixels = fgsm(model, pixels, labels, s.hardening)
                optimiser.zero_grad()
                cross_entropy(model(pixels), labels).backward()
                optimiser.step()
        held = survivors(model, data.valid, lambda view: fgsm(view, *data.valid, s.hardening))
        if (found := int(worst(held).sum())) > most:
            most, kept = found, copy.deepcopy(model)
    assert kept is not None
    return kept.requires_grad_(False)


def assault(model: Network, other: Network, images: Images, strength: float, s: Settings) -> dict[str, Tensor]:
    """Which images are still right after each attack; one through several surrogates counts the worst."""
    pixels, labels = images
    steps = survivors(model, images, lambda view: pgd(view, pixels, labels, strength, s.steps))
    large = survivors(model, images, lambda view: pgd(view, pixels, labels, strength, s.steps, share=1.0))
    single = survivors(model, images, lambda view: fgsm(view, pixels, labels, strength))
    kept = {
        "FGSM": worst(single),
        "PGD": worst(steps),
        "PGD, large steps": worst(large),
        "transfer": right(model, pgd(other, pixels, labels, strength, s.steps), labels),
        "random squares": right(model, squares(model, pixels, labels, strength, s.queries), labels),
    }
    return kept | {"all attacks": worst(kept)} | {f"PGD by {name}": found for name, found in steps.items()}


def run(method: Method, seed: int, s: Settings) -> dict[str, float]:
    """Per cent of held-out images that are right, before and after every attack."""
    data = split(s, seed)
    model = fit(method, s, data, seed)
    other = fit(Method(), replace(s, rates=s.rates[:1]), data, 1000 + seed)
    pixels, labels = data.test
    figures = {"no attack": 100 * right(model, pixels, labels).float().mean()}
    torch.manual_seed(2000 + seed)
    for strength in s.strengths:
        for name, kept in assault(model, other, data.test, strength, s).items():
            figures[f"{name}, {strength}"] = 100 * kept.float().mean()
    return {name: float(value) for name, value in figures.items()} | {CHANGED: changed(model, pixels)}


CHANGED = "levels that the adversary changes"


@torch.no_grad()
def changed(model: Network, pixels: Tensor) -> float:
    """Per cent of units that would take another level if nobody interdicted."""
    head = model.head
    if not isinstance(head, Discrete) or head.harm is None:
        return 0.0
    z = head.costs(model.body(pixels))
    costs = torch.cat([z, softplus(head.harm).expand_as(z)], 1).double().numpy()
    chosen, free = (o.solve(costs)[:, : z.shape[1]] for o in (head.oracle, replace(head.oracle, budget=0)))
    return float(100 * abs(chosen - free).sum() / (2 * chosen.sum()))


def rows(s: Settings) -> dict[str, str]:
    """Those of the table: every strength, and at the middle one every attack by itself."""
    middle = s.strengths[len(s.strengths) // 2]
    kinds = dict.fromkeys(s.strengths, ("FGSM", "PGD", "all attacks"))
    kinds[middle] = ("FGSM", "PGD", "PGD, large steps", "transfer", "random squares", "all attacks")
    found = ["no attack", *(f"{kind}, {strength}" for strength in s.strengths for kind in kinds[strength]), CHANGED]
    return dict.fromkeys(found, ".1f")


def picture(records: Sequence[Record], path: Path) -> None:
    """Accuracy over strength: under the attack by the model's own gradient, and under all attacks together."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    strengths = sorted(float(k.split(", ")[-1]) for k in records[0].figures if k.startswith("all attacks"))
    for axes, kind in zip(panels, ("PGD by own", "all attacks"), strict=True):
        for method in dict.fromkeys(r.method for r in records):
            lines = []
            for r in (r for r in records if r.method == method):
                at = [
                    next(v for k, v in r.figures.items() if k.startswith(kind) and k.endswith(f", {e}"))
                    for e in strengths
                ]
                lines.append([r.figures["no attack"], *at])
            mean, off = np.mean(lines, 0), np.std(lines, 0, ddof=min(1, len(lines) - 1))
            axes.errorbar([0, *strengths], mean, off, marker="o", ms=4, capsize=2, label=method)
        axes.set_xlabel("strength of the attack (pixels from 0 to 1)")
    panels[0].set_title("PGD along the model's own gradient or estimator")
    panels[1].set_title("the worst of all attacks and surrogates")
    panels[0].set_ylabel("held-out images right, %")
    panels[0].legend(fontsize=9)
    figure.savefig(path, dpi=100)


EXPERIMENT = Experiment(
    "classification",
    METHODS,
    run,
    Settings(),
    QUICK,
    rows(Settings()) | rows(QUICK),
    picture=picture,
    packages=("bigrad", "torch", "numpy", "scikit-learn"),
)

if __name__ == "__main__":
    given = sys.argv[1:]
    if "--cifar" in given:  # --cifar FOLDER, in which the files are
        at = given.index("--cifar")
        EXPERIMENT = replace(EXPERIMENT, full=replace(EXPERIMENT.full, cifar=given[at + 1]))
        del given[at : at + 2]
    main(EXPERIMENT, given)
