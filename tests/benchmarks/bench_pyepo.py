"""Side by side with PyEPO 2.2 on its own 5 x 5 shortest path: the regret that training ends at, and what an epoch costs.

    python tests/benchmarks/bench_pyepo.py

PyEPO's generator (5 features, degree 4, noise 0.5, 1000 items to train on and 1000 to test with), one linear predictor,
Adam with 1e-2, batches of 32, 20 epochs, three data seeds. Both sides start from the same weights, see the same batches in
the same order, and have the same task loss, step and width of noise (but not the same draws); PyEPO solves with OR-Tools
(GLOP), bigrad with `GraphPath`. Their epochs alternate in one process with one thread, and processor time is compared,
because it does not see what else the machine does. To meet: the same regret, within what the seeds spread, and a fifth
of the time. Where PyEPO is not installed, nothing is measured, and said so; to install it beside bigrad:

    pip install "pyepo==2.2.*" "ortools>=9.15,<9.16" "highspy<1.15"
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from timing import Times, machine
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

import bigrad as bg
from bigrad.losses import Regret, Solved, SPOPlus

SIDE, FEATURES, DEGREE, WIDTH, ITEMS = 5, 5, 4, 0.5, 1000
RATE, BATCH, EPOCHS, SEEDS = 1e-2, 32, 20, 3
SAMPLES, SIGMA = 10, 0.5

Loss = Callable[
    [Tensor, Tensor, Tensor, Tensor], Tensor
]  # of predicted costs, true costs, their decisions and optimal values


class Data(NamedTuple):
    """Features, costs, best paths and their costs, one row an item."""

    features: Tensor
    costs: Tensor
    paths: Tensor
    values: Tensor


class Learner:
    """A predictor that one side's loss trains, and what its epochs took."""

    def __init__(self, loss: Loss, start: nn.Module, seed: int):
        self.loss, self.model, self.seconds = loss, copy.deepcopy(start), []
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=RATE)
        self.order = torch.Generator().manual_seed(seed)

    def epoch(self, data: Data) -> None:
        order = torch.randperm(len(data.costs), generator=self.order).split(BATCH)
        begun = time.process_time()
        for items in order:
            features, *known = (part[items] for part in data)
            self.optimiser.zero_grad()
            self.loss(self.model(features), *known).backward()
            self.optimiser.step()
        self.seconds.append(time.process_time() - begun)


def main() -> None:
    try:
        import pyepo
        from pyepo.model.ort import shortestPathModel
    except ImportError as error:
        print(
            f"Skipped, for PyEPO with OR-Tools is not here ({error}). To install it beside bigrad:\n"
            '    pip install "pyepo==2.2.*" "ortools>=9.15,<9.16" "highspy<1.15"'
        )
        return
    torch.set_num_threads(1)
    print(machine("pyepo", "ortools", "torch", "numpy"))
    peer = shortestPathModel(grid=(SIDE, SIDE))
    ours = bg.GraphPath(peer.arcs, SIDE * SIDE)
    pairs = methods(peer, ours)
    regrets: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in pairs}
    for seed in range(SEEDS):
        train, test = drawn(pyepo.data.shortestpath.genData, peer, ours, seed)
        torch.manual_seed(seed)
        start = nn.Linear(FEATURES, train.costs.shape[1])
        for name, make in pairs.items():
            learners = [Learner(loss, start, seed) for loss in make(seed)]
            for _ in range(EPOCHS):
                for learner in learners:
                    learner.epoch(train)
            first, second = (regret(learner.model, ours, test) for learner in learners)
            regrets[name].append((first, second))
            for taken, learner in zip(seconds[name], learners, strict=True):
                taken.extend(learner.seconds)
    print(f"\n{'':30}{'regret in %: PyEPO':>20}{'bigrad':>16}{'ms an epoch: PyEPO':>26}{'bigrad':>24}{'ratio':>8}")
    for name, pair in seconds.items():
        theirs, mine = (Times(tuple(taken)) for taken in pair)
        end = [f"{column.mean():.2f} ± {column.std(ddof=1):.2f}" for column in np.array(regrets[name]).T]
        cost = [
            f"{1e3 * t.median:.0f} ({1e3 * min(t.seconds):.0f} to {1e3 * max(t.seconds):.0f})" for t in (theirs, mine)
        ]
        print(f"{name:30}{end[0]:>20}{end[1]:>16}{cost[0]:>26}{cost[1]:>24}{mine.median / theirs.median:>8.3f}")


def methods(peer: object, ours: bg.Oracle) -> dict[str, Callable[[int], tuple[Loss, Loss]]]:
    """Of each method, PyEPO's loss and ours; seed: of the noise."""
    from pyepo import func
    from pyepo.func.utils import sumGammaDistribution

    def spo(seed: int) -> tuple[Loss, Loss]:
        theirs, mine = func.SPOPlus(peer), SPOPlus(ours)
        return theirs, lambda costs, true, paths, _: mine(costs, Solved(true, paths))

    def by_value(decide: Callable[[Tensor], Tensor]) -> Loss:
        return lambda costs, true, _, values: l1_loss((true * decide(costs)).sum(1, keepdim=True), values)

    def by_path(decide: Callable[[Tensor], Tensor], loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
        return lambda costs, true, paths, _: loss(decide(costs), paths)

    def blackbox(seed: int) -> tuple[Loss, Loss]:
        rule = bg.Interpolate(step=bg.Absolute(20.0))
        return by_value(func.blackboxOpt(peer, lambd=20.0)), by_value(rule(ours))

    def perturbed(seed: int) -> tuple[Loss, Loss]:
        rule = bg.Perturbed(sigma=SIGMA, samples=SAMPLES, draws=bg.Fresh(seed))
        theirs = func.perturbedOpt(peer, n_samples=SAMPLES, sigma=SIGMA, seed=seed)
        return by_path(theirs, mse_loss), by_path(rule(ours), mse_loss)

    def imle(seed: int) -> tuple[Loss, Loss]:
        noise, step = bg.SumOfGamma(k=5.0), bg.Absolute(10.0)
        rule = bg.IMLE(sigma=SIGMA, samples=SAMPLES, noise=noise, step=step, draws=bg.Fresh(seed))
        drawn = sumGammaDistribution(kappa=5, seed=seed)
        theirs = func.implicitMLE(peer, n_samples=SAMPLES, sigma=SIGMA, lambd=10.0, distribution=drawn)
        return by_path(theirs, l1_loss), by_path(rule(ours), l1_loss)

    return {
        "SPO+": spo,
        "blackbox, objective": blackbox,
        f"perturbed, {SAMPLES} samples, path": perturbed,
        f"I-MLE, {SAMPLES} samples, path": imle,
    }


def drawn(generate: Callable[..., tuple[np.ndarray, np.ndarray]], peer, ours: bg.Oracle, seed: int) -> list[Data]:
    """Training and test items by PyEPO's generator; the optima of some are checked against PyEPO's."""
    features, costs = generate(2 * ITEMS, FEATURES, (SIDE, SIDE), deg=DEGREE, noise_width=WIDTH, seed=seed)
    paths = ours.solve(costs)
    for cost, path in zip(costs[:50], paths, strict=False):
        peer.setObj(cost)
        assert np.isclose(peer.solve()[1], cost @ path, rtol=1e-5)
    values = (costs * paths).sum(1, keepdims=True)
    whole = [torch.as_tensor(part, dtype=torch.float32) for part in (features, costs, paths, values)]
    return [Data(*(part[half] for part in whole)) for half in (slice(ITEMS), slice(ITEMS, None))]


@torch.no_grad()
def regret(model: nn.Module, oracle: bg.Oracle, test: Data) -> float:
    """Normalised, in percent: what predicted costs lose in all, of what the best paths cost in all."""
    lost = Regret(oracle, reduction="sum")(model(test.features), Solved(test.costs, test.paths))
    return 100 * lost.item() / test.values.sum().item()


if __name__ == "__main__":
    main()
