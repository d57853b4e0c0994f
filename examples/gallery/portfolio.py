"""A portfolio against the worst means that its data allow, and how wide to make the worst case. Takes about a minute.

A market has ASSETS assets with unknown mean returns and covariances, and MONTHS past months, of which an investor knows the sample
mean m and a root R of the sample covariance S = R'R. The robust portfolio is one half of a zero-sum game:

    leader     min over w >= 0, sum w = 1     RISK / 2 |R w|^2 - (m + radius R'z / sqrt(MONTHS))' w
    follower   max over |z| <= 1              of the same: it picks the means in an ellipsoid around m

A radius of zero is the plain portfolio. The game is a layer, so the radius is trained, by the gradient of what portfolios earn in the
months that follow, over markets of the past. Markets are generated: their true means judge. Page: docs/gallery/portfolio.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

import bigrad as bg

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "gallery"

ASSETS, MONTHS, RISK = 10, 60, 4.0
YEAR = 1200  # from a share a month to percent a year


class Markets(NamedTuple):
    """Generated markets, one a row: true mean and root of the covariance; sample mean and root before and after the decision."""

    mean: Tensor
    root: Tensor
    past_mean: Tensor
    past_root: Tensor
    next_mean: Tensor
    next_root: Tensor


class Portfolio(NamedTuple):
    """What was found. radii (steps + 1,): as trained. grid (points,), worth (points, markets): true utility in percent a year
    on test markets for each radius of the grid; plain, trained, equal, known (markets,): of the plain portfolio, the trained
    radius, equal weights, and the plain portfolio of the true moments.

    shares {name: (histories, assets)}: the portfolios of one market for several histories that it might have had.
    """

    radii: np.ndarray
    grid: np.ndarray
    worth: np.ndarray
    plain: np.ndarray
    trained: np.ndarray
    equal: np.ndarray
    known: np.ndarray
    shares: dict[str, np.ndarray]


def moments(returns: np.ndarray) -> tuple[Tensor, Tensor]:
    """Sample mean and root R, R'R the sample covariance, of returns (markets, months, assets)."""
    away = returns - returns.mean(1, keepdims=True)
    covariance = away.swapaxes(1, 2) @ away / (returns.shape[1] - 1)
    return torch.tensor(returns.mean(1)), torch.tensor(np.linalg.cholesky(covariance)).mT


def markets(count: int, seed: int, same: bool = False) -> Markets:
    """One factor and independent noise; means are the factor's and an own part. same: one market with count histories."""
    draw = np.random.default_rng(seed)
    kinds = 1 if same else count
    beta, noise = draw.uniform(0.5, 1.5, (kinds, ASSETS)), draw.uniform(0.03, 0.09, (kinds, ASSETS))
    mean = 0.005 * beta + draw.normal(0, 0.006, (kinds, ASSETS))
    covariance = 0.045**2 * beta[:, :, None] * beta[:, None] + np.eye(ASSETS) * (noise**2)[:, :, None]
    root = np.linalg.cholesky(covariance).swapaxes(1, 2)
    mean, root = (np.broadcast_to(part, (count, *part.shape[1:])) for part in (mean, root))
    past, later = (mean[:, None] + draw.standard_normal((count, MONTHS, ASSETS)) @ root for _ in range(2))
    return Markets(torch.tensor(mean), torch.tensor(root), *moments(past), *moments(later))


def robust() -> bg.Layer:
    """The game: sample mean, root of the covariance, and shape of the ellipsoid, radius included, to the portfolio."""
    share, worst = cp.Variable(ASSETS, name="share", nonneg=True), cp.Variable(ASSETS, name="worst")
    mean, root = cp.Parameter(ASSETS, name="mean"), cp.Parameter((ASSETS, ASSETS), name="root")
    shape = cp.Parameter((ASSETS, ASSETS), name="shape")
    doubt = share @ shape @ worst
    investor = cp.Problem(
        cp.Minimize(RISK / 2 * cp.sum_squares(root @ share) - mean @ share - doubt), [cp.sum(share) == 1]
    )
    nature = cp.Problem(cp.Maximize(-doubt), [cp.norm(worst) <= 1])
    game = bg.bilevel(investor, nature, responds=[worst])
    return bg.Layer(game, parameters=[mean, root, shape], variables=[share])


def portfolios(layer: bg.Layer, mean: Tensor, root: Tensor, radius: Tensor | float) -> Tensor:
    """The robust portfolios of a batch of markets."""
    return layer(mean, root, radius * root.mT / MONTHS**0.5)[0]


def utility(share: Tensor, mean: Tensor, root: Tensor) -> Tensor:
    """Mean less RISK / 2 times variance, percent a year, (markets,)."""
    variance = (root @ share[..., None]).square().sum((1, 2))
    return YEAR * ((share * mean).sum(1) - RISK / 2 * variance)


def train(layer: bg.Layer, known: Markets, steps: int, batch: int) -> list[float]:
    """The radius after each step of Adam on the utility realised in the months that follow."""
    log_radius = torch.tensor(np.log(0.3), requires_grad=True)
    optimiser = torch.optim.Adam([log_radius], lr=0.1)
    radii = [log_radius.exp().item()]
    for step in range(steps):
        rows = torch.arange(step * batch, (step + 1) * batch) % len(known.mean)
        share = portfolios(layer, known.past_mean[rows], known.past_root[rows], log_radius.exp())
        optimiser.zero_grad()
        (-utility(share, known.next_mean[rows], known.next_root[rows]).mean()).backward()
        optimiser.step()
        radii.append(log_radius.exp().item())
    return radii


def run(steps: int = 60, batch: int = 50, known: int = 400, test: int = 300, histories: int = 8) -> Portfolio:
    """Train the radius on known markets, and judge it and a grid of radii on others."""
    layer = robust()
    radii = train(layer, markets(known, seed=0), steps, batch)
    radius = float(np.mean(radii[-max(1, steps // 4) :]))  # averaged over the last steps, which are noisy
    radii[-1] = radius
    judge, one = markets(test, seed=1), markets(histories, seed=5, same=True)
    grid = np.array([0, 0.25, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6.5, 8])

    def true_utility(radius: float) -> np.ndarray:
        share = portfolios(layer, judge.past_mean, judge.past_root, radius)
        return utility(share, judge.mean, judge.root).numpy()

    with torch.no_grad():
        worth = np.stack([true_utility(point) for point in grid])
        best = portfolios(layer, judge.mean, judge.root, 0.0)
        shares = {
            "plain": portfolios(layer, one.past_mean, one.past_root, 0.0).numpy(),
            "robust": portfolios(layer, one.past_mean, one.past_root, radius).numpy(),
            "true": portfolios(layer, one.mean[:1], one.root[:1], 0.0).numpy(),
        }
        equal = torch.full_like(judge.mean, 1 / ASSETS)
        return Portfolio(
            np.array(radii),
            grid,
            worth,
            worth[0],
            true_utility(radius),
            utility(equal, judge.mean, judge.root).numpy(),
            utility(best, judge.mean, judge.root).numpy(),
            shares,
        )


def draw(result: Portfolio, path: Path) -> None:
    """Utility over the radius, the training of the radius, and the portfolios of one market."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(HERE / "gallery.mplstyle"):
        figure = Figure(figsize=(10, 5.6))
        left, right = figure.subfigures(1, 2)
        curve, training = left.subplots(2, sharex=True, height_ratios=(3, 2))
        mean, error = result.worth.mean(1), (result.worth - result.plain).std(1) / result.worth.shape[1] ** 0.5
        curve.fill_between(result.grid, mean - 2 * error, mean + 2 * error, color="C0", alpha=0.2, lw=0)
        curve.plot(result.grid, mean, "C0")
        curve.plot(0, result.plain.mean(), "oC0", ms=8)
        curve.plot(result.radii[-1], result.trained.mean(), "*C1", ms=16)
        curve.annotate(f"plain: {result.plain.mean():.2f}", (0, mean[0]), (12, -4), textcoords="offset points")
        curve.annotate(
            f"trained: {result.trained.mean():.2f}",
            (result.radii[-1], result.trained.mean()),
            (0, 12),
            textcoords="offset points",
            color="C1",
            ha="center",
        )
        curve.set_ylim(top=mean.max() + 0.35 * np.ptp(mean))
        curve.set(ylabel="true utility, % a year", title="On markets not trained on, by the radius of doubt")
        training.plot(result.radii[:-1], range(len(result.radii) - 1), "C1")
        training.plot(result.radii[-1], len(result.radii) - 1, "*C1", ms=16)
        training.set(xlabel="radius, in standard errors of the mean", ylabel="step of training", xlim=(-0.1, 8.1))

        panels = right.subplots(2, sharex=True, sharey=True)
        order = np.argsort(-result.shares["true"][0])
        for axes, (name, colour) in zip(panels, (("plain", "C0"), ("robust", "C1")), strict=True):
            axes.bar(range(1, ASSETS + 1), result.shares["true"][0][order], color="0.85", width=0.9)
            for history in result.shares[name]:
                axes.plot(range(1, ASSETS + 1), history[order], "o", color=colour, alpha=0.55, ms=6, mew=0)
            axes.set(title=f"{name}: one market, {len(result.shares[name])} histories", ylabel="share")
            axes.grid(axis="x")
        panels[1].set(xlabel="asset (grey bars: best if the truth were known)", xticks=range(1, ASSETS + 1))
        figure.savefig(path)


def main(path: Path = PAGE / "portfolio.png", **sizes: int) -> Portfolio:
    """Print what was found and save the picture."""
    result = run(**sizes)
    print(f"trained radius: {result.radii[-1]:.2f} standard errors, from {result.radii[0]:.2f}")
    print(f"true utility on {len(result.plain)} test markets, % a year, mean and tenth percentile:")
    rows = {
        "plain": result.plain,
        "robust, trained": result.trained,
        "equal weights": result.equal,
        "truth known": result.known,
    }
    for name, found in rows.items():
        print(f"  {name:<18}{found.mean():>8.2f}{np.quantile(found, 0.1):>8.2f}")
    gain = result.trained - result.plain
    print(
        f"robust less plain: {gain.mean():.2f} ± {gain.std() / len(gain) ** 0.5:.2f}; better on {100 * (gain > 0).mean():.0f} % of them"
    )
    best = result.worth.mean(1).argmax()
    print(f"best radius of the grid in hindsight: {result.grid[best]:g}, with {result.worth[best].mean():.2f}")
    draw(result, path)
    print(f"picture: {path}")
    return result


if __name__ == "__main__":
    main()
