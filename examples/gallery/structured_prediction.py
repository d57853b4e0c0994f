"""Structured prediction: matchings, rankings and label sequences, each learned through its own solver.

Answers that must fit together are the optimum of a combinatorial problem whose costs a model predicts. A Fenchel-Young
loss compares the smoothed optimum with the right answer, and needs nothing but the solver. Three answers on real data:

    matching   ten noisy digits, each of 0 to 9 once: which is which?    solver: assignment
    ranking    eight patients, each clinic with a scale of its own: whose diabetes advances most?    solver: sorting
    sequence   noisy digits that follow each other by hidden rules: read the line    solver: shortest path (Viterbi)

Each is compared with a model of the same kind that looks at one digit or patient at a time.

    python examples/gallery/structured_prediction.py      about a minute; saves docs/gallery/structured_prediction.png
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import bigrad as bg
from bigrad.losses import FenchelYoung

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = Path(__file__).parents[2] / "docs" / "gallery" / "structured_prediction.png"
BLUE, ORANGE = "#0072B2", "#D55E00"
KINDS, LENGTH, PATIENTS = 10, 8, 8
NOISE = 0.5
"""Standard deviation of the noise on pixels, which are from 0 to 1."""


class Part(NamedTuple):
    """Scores in percent by model, (seeds,) each, and of the first seed what the picture shows: answers (cases, k) by model,
    the right ones, images, rules.
    """

    scores: dict[str, np.ndarray]
    shown: dict[str, Tensor]


class Digits(NamedTuple):
    """Images (…, 64) and what they show (…)."""

    images: Tensor
    labels: Tensor


def train(model: nn.Module, loss: Callable[[Tensor], Tensor], count: int, epochs: int, batch: int, rate: float) -> None:
    """Adam with a cosine plan; the loss gets the numbers of the cases of a batch."""
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(count).split(batch):
            optimiser.zero_grad()
            loss(rows).backward()
            optimiser.step()
        plan.step()


# Digits: scikit-learn's 1797 scans, 1000 to train on and 797 to test with, no digit in both, with noise on their pixels.


def drawn(labels: Tensor, test: bool, rng: np.random.Generator) -> Digits:
    """For each label a random scan of this digit, with noise of its own."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    order = order[1000:] if test else order[:1000]
    where = [order[data.target[order] == kind] for kind in range(KINDS)]
    picked = np.array([rng.choice(where[kind]) for kind in labels.flatten().tolist()])
    images = data.data[picked] / 16 + rng.normal(0, NOISE, (len(picked), 64))
    return Digits(torch.as_tensor(images).float().reshape(*labels.shape, 64), labels)


def alone(known: Digits, epochs: int = 30) -> nn.Linear:
    """A linear reader of one digit at a time, by cross-entropy."""
    reader, images, labels = nn.Linear(64, KINDS), known.images.flatten(0, -2), known.labels.flatten()
    train(reader, lambda rows: cross_entropy(reader(images[rows]), labels[rows]), len(labels), epochs, 128, 0.02)
    return reader


# Matching.


def matching(seed: int, count: int = 150, tests: int = 200, epochs: int = 30) -> tuple[dict[str, float], dict]:
    """Share of digits that are matched rightly, by a reader alone, one followed by a matching, and one trained through it."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    known, unseen = (
        drawn(torch.as_tensor(np.array([rng.permutation(KINDS) for _ in range(n)])), test, rng)
        for n, test in ((count, False), (tests, True))
    )
    matcher = bg.Assignment(KINDS, KINDS)  # images to kinds, of least cost
    loss = FenchelYoung(matcher, smoothing=bg.Perturbed(sigma=1.0, samples=4))
    target = one_hot(known.labels, KINDS).flatten(1).float()
    first, through = alone(known), nn.Linear(64, KINDS)
    train(through, lambda rows: loss(-through(known.images[rows]).flatten(1), target[rows]), count, epochs, 15, 0.02)
    with torch.no_grad():
        scores, others = first(unseen.images), through(unseen.images)
    found = {
        "one by one": scores.argmax(-1),
        "one by one, then matched": matched(matcher, scores),
        "trained through the matching": matched(matcher, others),
    }
    return shares(found, unseen.labels), {"images": unseen.images, "right": unseen.labels} | found


def matched(matcher: bg.Assignment, scores: Tensor) -> Tensor:
    """The kind of each image in the best matching."""
    pairs = matcher.solve(-scores.double().flatten(1).numpy())
    return torch.as_tensor(pairs).view(scores.shape).argmax(-1)


def shares(found: dict[str, Tensor], right: Tensor) -> dict[str, float]:
    """Of each, how much is right, in percent."""
    return {name: 100 * float((labels == right).double().mean()) for name, labels in found.items()}


# Rankings.


def ranks(costs: np.ndarray) -> np.ndarray:
    """The place of each, 0 for the least: the permutation of greatest inner product with the costs."""
    return costs.argsort(1).argsort(1).astype(float)


def ranking(seed: int, epochs: int = 40) -> tuple[dict[str, float], dict]:
    """Kendall's tau on new lists, of linear scores fit to each clinic's numbers, to the order, and to the true numbers."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    data = load_diabetes()
    order = rng.permutation(len(data.target))[: 55 * PATIENTS].reshape(55, PATIENTS)
    features, true = torch.as_tensor(data.data[order]).float() * 20, torch.as_tensor(data.target[order]).float()
    clinic = torch.as_tensor(rng.lognormal(0, 1, (2, 55, 1))).float()
    recorded = clinic[0] * true + 200 * clinic[1]  # each clinic, a list, has a unit and a zero of its own
    known, unseen = slice(0, 35), slice(35, 55)
    sorter = bg.Given(ranks, batched=True, sense=-1.0)
    loss = FenchelYoung(sorter, smoothing=bg.Perturbed(sigma=1.0, samples=16))
    target, score = torch.as_tensor(ranks(true.numpy())).float(), nn.Linear(data.data.shape[1], 1)
    train(score, lambda rows: loss(score(features[known][rows])[..., 0], target[known][rows]), 35, epochs, 5, 0.05)
    with torch.no_grad():
        scores = {
            "least squares on each clinic's numbers": regress(features[known], recorded[known], features[unseen]),
            "trained through the sorting": score(features[unseen])[..., 0],
            "least squares on the true numbers": regress(features[known], true[known], features[unseen]),
        }
    taus = {name: 100 * kendall(s.numpy(), true[unseen].numpy()) for name, s in scores.items()}
    places = {name: torch.as_tensor(ranks(s.numpy())) for name, s in scores.items()}
    return taus, {"right": target[unseen]} | places


def regress(features: Tensor, target: Tensor, new: Tensor) -> Tensor:
    """Least squares with a constant, predictions for the new."""
    padded, ahead = (torch.cat([part, torch.ones(*part.shape[:-1], 1)], -1) for part in (features, new))
    found = torch.linalg.lstsq(padded.flatten(0, -2), target.flatten()[:, None]).solution
    return (ahead @ found)[..., 0]


def kendall(a: np.ndarray, b: np.ndarray) -> float:
    """Pairs in the same order less those in the other, of all, mean over the lists (n, k)."""
    i, j = np.triu_indices(a.shape[1], 1)
    return float((np.sign(a[:, i] - a[:, j]) * np.sign(b[:, i] - b[:, j])).mean())


# Sequences.


def trellis(length: int = LENGTH) -> bg.GraphPath:
    """Lines of digits as paths: from a start through one of ten nodes for each place to an end."""
    node = 1 + np.arange(length * KINDS).reshape(length, KINDS)
    between = [(a, b) for t in range(length - 1) for a in node[t] for b in node[t + 1]]
    arcs = [*((0, b) for b in node[0]), *between, *((a, length * KINDS + 1) for a in node[-1])]
    return bg.GraphPath(arcs, length * KINDS + 2)


def arc_costs(scores: Tensor, follows: Tensor) -> Tensor:
    """Scores of digits (batch, length, 10) and of one after another (10, 10) as costs of the arcs, negated."""
    inner = (scores[:, 1:, None, :] + follows[:, :]).flatten(1)
    return -torch.cat([scores[:, 0], inner, torch.zeros_like(scores[:, 0])], 1)


def as_path(labels: Tensor) -> Tensor:
    """The arcs, 0 or 1, of lines of digits (batch, length)."""
    first, steps = one_hot(labels[:, 0], KINDS), labels[:, :-1] * KINDS + labels[:, 1:]
    return torch.cat([first, one_hot(steps, KINDS**2).flatten(1), one_hot(labels[:, -1], KINDS)], 1).float()


def read(path: Tensor, length: int = LENGTH) -> Tensor:
    """The line of digits, (batch, length), of arcs of a path."""
    steps = path[:, KINDS : KINDS + (length - 1) * KINDS**2].view(-1, length - 1, KINDS, KINDS)
    return torch.cat([path[:, None, :KINDS], steps.sum(2)], 1).argmax(-1)


def likeliest(viterbi: bg.GraphPath, costs: Tensor) -> Tensor:
    """The line of digits of least cost."""
    return read(torch.as_tensor(viterbi.solve(costs.double().numpy())))


def lines(count: int, rules: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Lines of digits that follow each other by these probabilities, (10, 10)."""
    found = [rng.integers(0, KINDS, count)]
    while len(found) < LENGTH:
        found.append((rng.random((count, 1)) > rules[found[-1]].cumsum(1)).sum(1).clip(max=KINDS - 1))
    return torch.as_tensor(np.stack(found, 1))


def planted(rng: np.random.Generator) -> np.ndarray:
    """After each digit come mostly three others, (10, 10)."""
    rules = np.full((KINDS, KINDS), 0.1 / 7)
    for row in rules:
        row[rng.choice(KINDS, 3, replace=False)] = 0.3
    return rules


def sequence(seed: int, count: int = 300, tests: int = 200, epochs: int = 15) -> tuple[dict[str, float], dict]:
    """Share of digits read rightly, one by one and with rules learned along with the reader."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    rules = planted(rng)
    known, unseen = (drawn(lines(n, rules, rng), test, rng) for n, test in ((count, False), (tests, True)))
    viterbi = trellis()
    loss = FenchelYoung(viterbi, smoothing=bg.Perturbed(sigma=1.0, samples=4))
    model = nn.ParameterDict({"follows": torch.zeros(KINDS, KINDS)})
    reader, target = nn.Linear(64, KINDS), as_path(known.labels)
    both = nn.ModuleList([reader, model])

    def mismatch(rows: Tensor) -> Tensor:
        return loss(arc_costs(reader(known.images[rows]), model["follows"]), target[rows])

    train(both, mismatch, count, epochs, 15, 0.05)
    first = alone(known)
    with torch.no_grad():
        costs = arc_costs(reader(unseen.images), model["follows"])
        logs = first(unseen.images).log_softmax(-1), torch.as_tensor(rules).float().log()
        found = {
            "one by one": first(unseen.images).argmax(-1),
            "trained through the line": likeliest(viterbi, costs),
            "one by one, then the true rules": likeliest(viterbi, arc_costs(*logs)),
        }
        learned = model["follows"].detach().softmax(1)
    shown = {"images": unseen.images, "right": unseen.labels, "rules": torch.as_tensor(rules), "learned": learned}
    return shares(found, unseen.labels), shown | found


def run(seeds: int = 5) -> dict[str, Part]:
    """All three parts; a seed draws data, noise, rules, weights and batches."""
    parts = {}
    for part in (matching, ranking, sequence):
        scores, shown = zip(*(part(seed) for seed in range(seeds)), strict=True)
        parts[part.__name__] = Part({name: np.array([s[name] for s in scores]) for name in scores[0]}, shown[0])
    return parts


def draw(result: dict[str, Part], path: Path) -> None:
    """A row for each part: one case, and the scores."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12)
    rows = figure.subfigures(3, 1, height_ratios=(5, 6, 5), hspace=0.06)
    shapes = {"matching": (6, 3), "ranking": (6, 3), "sequence": (4.2, 0.9, 0.9, 3)}
    titles = {
        "matching": "digits matched rightly, %",
        "ranking": "rank correlation (Kendall's tau), %",
        "sequence": "digits read rightly, %",
    }
    for row, (name, part) in zip(rows, result.items(), strict=True):
        case, *rules, scores = row.subplots(1, len(shapes[name]), width_ratios=shapes[name])
        compare(scores, part.scores, titles[name])
        if name == "ranking":
            slopes(case, part)
        else:
            strip(case, part)
            case.set_title(
                "ten noisy digits, each once" if name == "matching" else "a line of noisy digits", fontsize=11
            )
        for axes, what, title in zip(rules, ("rules", "learned"), ("true rules", "learned"), strict=False):
            axes.imshow(part.shown[what].numpy(), cmap="Blues", vmin=0, vmax=0.4)
            axes.set(xticks=[0, 9], yticks=[0, 9], xlabel="next", ylabel="digit" if what == "rules" else "")
            axes.set_title(title, fontsize=11)
    figure.savefig(path, dpi=85)


def ordinary(part: Part) -> int:
    """The case on which the numbers of wrong places are nearest to their means."""
    wrong = torch.stack([(part.shown[name] != part.shown["right"]).double().sum(1) for name in part.scores])
    return int((wrong - wrong.mean(1, keepdim=True)).abs().sum(0).argmin())


def strip(axes: Axes, part: Part) -> None:
    """Images in a line, and below what they are and what each model takes them for."""
    case, right = ordinary(part), part.shown["right"]
    for k, image in enumerate(part.shown["images"][case]):
        axes.imshow(
            -image.view(8, 8).numpy(), cmap="gray", extent=(k - 0.45, k + 0.45, 0.05, 0.95), vmin=-1.3, vmax=0.3
        )
    for row, (name, labels) in enumerate({"right": right, **{n: part.shown[n] for n in part.scores}}.items()):
        axes.text(-0.75, -0.3 - 0.42 * row, name, ha="right", va="center", fontsize=9.5)
        for k, label in enumerate(labels[case].tolist()):
            miss = label != right[case, k]
            look = {"color": ORANGE, "weight": "bold"} if miss else {"color": "0.25"}
            axes.text(k, -0.3 - 0.42 * row, f"{label}" if miss else label, ha="center", va="center", **look)
    axes.set(xlim=(-0.6, right.shape[1] - 0.4), ylim=(-0.6 - 0.42 * len(part.scores), 1.0), aspect="equal")
    axes.axis("off")


def slopes(axes: Axes, part: Part) -> None:
    """The places that two models give to the patients of one list, and the right ones between them."""
    left, middle, *_ = part.scores
    case = ordinary(part)
    columns = [part.shown[name][case] for name in (left, "right", middle)]
    for patient in range(PATIENTS):
        places = [float(column[patient]) for column in columns]
        for k, colour in ((0, ORANGE), (1, BLUE)):
            axes.plot([k, k + 1], places[k : k + 2], "-", color=colour, lw=2, alpha=0.8)
        axes.plot(range(3), places, "o", ms=8, mfc="white", mec="0.3")
    for k, name in enumerate((left, "true order", middle)):
        axes.text(k, PATIENTS - 0.3, name, ha="center", va="bottom", fontsize=9.5)
    axes.set(
        ylim=(-0.6, PATIENTS + 0.5),
        xlim=(-0.5, 2.5),
        yticks=[0, PATIENTS - 1],
        yticklabels=["least", "most"],
        xticks=[],
    )
    axes.spines[:].set_visible(False)
    axes.set_title("eight patients, by the advance of their diabetes in a year", fontsize=11)


def compare(axes: Axes, scores: dict[str, np.ndarray], title: str) -> None:
    """A line for each model: its seeds, their mean and standard deviation."""
    for row, (name, values) in enumerate(scores.items()):
        colour = ORANGE if not row else BLUE if "through" in name else "0.45"
        spread = values.std(ddof=1) if len(values) > 1 else 0.0
        axes.plot(values, np.full(len(values), row + 0.17), ".", color=colour, alpha=0.5, ms=5)
        axes.errorbar(values.mean(), row, xerr=spread, fmt="o", color=colour, capsize=4, ms=7)
        axes.text(0.0, row - 0.2, name, color=colour, va="bottom", fontsize=9.5, transform=axes.get_yaxis_transform())
    axes.set(yticks=[], ylim=(len(scores) - 0.5, -0.75), xlabel=title)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)


def main(path: Path = PICTURE) -> None:
    result = run()
    for name, part in result.items():
        print(name)
        for model, values in part.scores.items():
            print(f"  {model:<40}{values.mean():6.1f} ± {values.std(ddof=1):.1f}")
    draw(result, path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
