"""Penalties for groups of features, or for every feature, learnt by hypergradients of a cross-validated loss.

    upper   min over x   the loss of each fold's weights on the items of that fold
    lower   y_k = argmin   the mean loss on the items of all other folds + sum_j exp(x_j) y_kj^2 / 2,   for every fold k

A grid can choose one penalty for all features; more would need a dimension each. The hypergradient costs one linear solve however
many there are. Two data sets of scikit-learn: diabetes (442 items; 10 features, their squares and products: 64 columns in two groups,
squared loss) and breast cancer (569 items; mean, error and worst value of 10 measures: three groups, logistic loss). All choose by
the same folds, fit all items that are not held out, and are judged on those that are, over repeated splits. How much there is to
gain, and how easily many penalties overfit the folds by which they are chosen: docs/regularisation.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus
from tqdm import trange

import bigrad as bg

HERE = Path(__file__).parent
FOLDS, STEPS, RATE = 5, 40, 0.1
GRID = torch.linspace(-9, 3, 13, dtype=torch.float64)  # logarithms of penalties


class Data(NamedTuple):
    """Standardised columns, the last a one for the intercept, and targets: standardised, or -1 and 1."""

    inputs: Tensor
    targets: Tensor
    labels: bool
    groups: Tensor  # of the columns but the last


def diabetes() -> Data:
    """Disease progression from ten features, their squares and their products."""
    from sklearn.datasets import load_diabetes
    from sklearn.preprocessing import PolynomialFeatures

    inputs, targets = load_diabetes(return_X_y=True)
    inputs = PolynomialFeatures(2, include_bias=False).fit_transform(inputs)
    keep = [
        j for j in range(inputs.shape[1]) if len(set(inputs[:, j])) > 2 or j < 10
    ]  # the square of a binary feature is itself
    groups = torch.tensor([int(j >= 10) for j in keep])
    return Data(torch.as_tensor(inputs[:, keep]), torch.as_tensor(targets), False, groups)


def cancer() -> Data:
    """Malignant or benign from 30 features of cell nuclei."""
    from sklearn.datasets import load_breast_cancer

    inputs, targets = load_breast_cancer(return_X_y=True)
    return Data(torch.as_tensor(inputs), torch.as_tensor(2.0 * targets - 1), True, torch.arange(30) // 10)


def split(data: Data, seed: int, held_out: float) -> tuple[Data, Data]:
    """Known and held-out items, standardised by the known ones."""
    order = torch.randperm(len(data.inputs), generator=torch.Generator().manual_seed(seed))
    cut = int(held_out * len(order))
    test, known = order[:cut], order[cut:]
    middle, width = data.inputs[known].mean(0), data.inputs[known].std(0)
    columns = torch.cat([(data.inputs - middle) / width, torch.ones(len(order), 1, dtype=torch.float64)], 1)
    targets = data.targets
    if not data.labels:
        targets = (targets - targets[known].mean()) / targets[known].std()
    return tuple(data._replace(inputs=columns[part], targets=targets[part]) for part in (known, test))


def losses(y: Tensor, data: Data) -> Tensor:
    """Of every item by every row of weights y (folds, columns): (folds, items)."""
    score = y @ data.inputs.T
    return softplus(-score * data.targets) if data.labels else 0.5 * (score - data.targets).square()


def inner(x: Tensor, y: Tensor, data: Data, shown: Tensor) -> Tensor:
    """The training losses of all folds. x: logarithms of penalties, one, or one a column but the last. shown: (folds, items), 1
    to train on."""
    fit = (losses(y, data) * shown).sum(1) / shown.sum(1)
    return fit.sum() + 0.5 * (x.exp() * y[:, :-1].square()).sum()


def layer(folds: int, columns: int) -> bg.Layer:
    """The weights of all folds as a function of x."""
    start = torch.zeros(folds, columns, dtype=torch.float64)
    return bg.Layer(bg.argmin(inner, responds=start), solver=bg.Descent(tol=1e-6, steps=3000))


def folds(items: int) -> Tensor:
    """(folds, items), 0 where an item is held out of the fold; the items are in random order."""
    return (torch.arange(items) % FOLDS != torch.arange(FOLDS)[:, None]).double()


def choose(data: Data) -> dict[str, tuple[Tensor, float]]:
    """The logarithms of penalties that each way takes, and their cross-validated loss."""
    shown, columns = folds(len(data.inputs)), data.inputs.shape[1]
    weights, memory = layer(FOLDS, columns), bg.Memory()

    def validated(x: Tensor) -> Tensor:
        y = weights(x, data, shown, warm_start=memory.at(["folds"]))
        return (losses(y, data) * (1 - shown)).sum() / len(data.inputs)

    with torch.no_grad():
        tried = [float(validated(x)) for x in GRID]
    best = int(torch.tensor(tried).argmin())
    found = {"one penalty, by grid": (GRID[best], tried[best])}
    for name, groups in (("one a group, by hypergradient", data.groups), (EACH, torch.arange(columns - 1))):
        x = GRID[best].expand(int(groups.max()) + 1).clone().requires_grad_()
        adam = torch.optim.Adam([x], lr=RATE)
        for _ in range(STEPS):
            adam.zero_grad()
            validated(x[groups]).backward()
            adam.step()
        with torch.no_grad():
            found[name] = (x[groups], float(validated(x[groups])))
    return found


def judge(x: Tensor, known: Data, test: Data) -> tuple[float, float]:
    """Fit all known items; the mean loss on held-out ones, and R² or the share that is right, in %."""
    shown = torch.ones(1, len(known.inputs), dtype=torch.float64)
    y = layer(1, known.inputs.shape[1])(x, known, shown)
    score, loss = (y @ test.inputs.T)[0], float(losses(y, test).mean())
    if test.labels:
        return loss, 100 * float((score * test.targets > 0).double().mean())
    return loss, 100 * float(
        1 - (score - test.targets).square().sum() / (test.targets - test.targets.mean()).square().sum()
    )


TASKS = {"diabetes": (diabetes, 1 / 3, "R² in %"), "breast cancer": (cancer, 1 / 3, "right in %")}
EACH = "one a feature, by hypergradient"
NONE = torch.tensor(-10.0, dtype=torch.float64)  # next to nothing; without any, separable classes have no minimum


def main(splits: int = 5, tasks: tuple[str, ...] = tuple(TASKS), folder: Path = HERE) -> dict[str, dict[str, Tensor]]:
    """Compare on every data set, print the tables, save the picture; returns the held-out losses by split."""
    torch.set_num_threads(1)
    results, learnt = {}, {}
    for task in tasks:
        load, held_out, measure = TASKS[task]
        data, rows, penalties = load(), {}, []
        for seed in trange(splits, desc=task, leave=False):
            known, test = split(data, seed, held_out)
            ways = {"next to no penalty": (NONE, float("nan"))} | choose(known)
            for name, (x, validated) in ways.items():
                rows.setdefault(name, []).append((validated, *judge(x, known, test)))
            penalties.append(ways[EACH][0] - ways["one penalty, by grid"][0])
        found = {name: torch.tensor(row, dtype=torch.float64) for name, row in rows.items()}
        print(
            f"\n{task}: {len(known.inputs)} known and {len(test.inputs)} held-out items, {splits} splits, mean ± deviation"
        )
        print(f"{'':<34}{'validation loss':>18}{'held-out loss':>18}{'minus that of grid':>22}{measure:>16}")
        for name, table in found.items():
            validated, loss = (spread(column) for column in table.T[:2])
            less = spread(table[:, 1] - found["one penalty, by grid"][:, 1]) if "grid" not in name else ""
            print(
                f"{name:<34}{validated if 'next' not in name else '':>18}{loss:>18}{less:>22}{spread(table[:, 2], 1):>16}"
            )
        results[task], learnt[task] = {name: table[:, 1] for name, table in found.items()}, torch.stack(penalties)
    picture(folder / "regularisation.png", results, learnt)
    print(f"\nPicture: {folder / 'regularisation.png'}")
    return results


def spread(values: Tensor, digits: int = 4) -> str:
    """Mean ± standard deviation."""
    return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"


def picture(path: Path, results: dict[str, dict[str, Tensor]], learnt: dict[str, Tensor]) -> None:
    """Above: held-out losses relative to the grid's, a dot a split. Below: the penalties learnt, relative to the grid's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    for axes, (task, rows) in zip(figure.subplots(2, len(results), squeeze=False).T, results.items(), strict=True):
        above, below = axes
        grid = rows["one penalty, by grid"]
        for place, (_, loss) in enumerate(reversed(rows.items())):
            above.plot(loss / grid, [place] * len(loss), "o", color=f"C{place}", alpha=0.5)
        above.axvline(1, color="0.5", lw=1)
        above.set(
            yticks=range(len(rows)),
            yticklabels=list(reversed(rows)),
            xlabel="held-out loss / that of the grid",
            title=task,
        )
        middle = learnt[task].median(0).values
        order = middle.argsort()
        below.vlines(range(len(order)), *(learnt[task].quantile(q, 0)[order] for q in (0.1, 0.9)), color="0.7")
        below.plot(range(len(order)), middle[order], ".", color="C0")
        below.axhline(0, color="0.5", lw=1)
        below.set(xlabel="feature, sorted", ylabel="log penalty − that of the grid\n(median, 10 to 90 % of splits)")
        for each in axes:
            each.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
