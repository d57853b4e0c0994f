"""How far level-by-level gradients are from the exact one, and what descent along them finds: docs/levels.md.

    python tests/benchmarks/bench_levels.py

Interdiction on a 4 x 4 map, every response tried (tests/games.py). The exact gradient is that of the smoothed game, with
Normal noise sigma on the costs of both players at once, by the score over SAMPLES games; its standard error is printed.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from timing import machine

import bigrad as bg

sys.path.append(str(Path(__file__).parents[1]))
from games import Blockade
from test_levels import LEARNERS, pulled, recovered, tables

GAMES = 20
SIGMAS = (0.5, 1.0, 2.0)
SAMPLES = 30_000
RULES = {
    "Interpolate(Relative(0.5))": bg.Interpolate(bg.Relative(0.5)),
    "Interpolate(Relative(1))": bg.Interpolate(bg.Relative(1.0)),
    "Interpolate(Relative(2))": bg.Interpolate(bg.Relative(2.0)),
    "Identity()": bg.Identity(),
    "Identity(UnitNorm())": bg.Identity(bg.UnitNorm()),
    "Perturbed(0.5, 64)": bg.Perturbed(0.5, 64, draws=bg.Fresh(0)),
    "Perturbed(1, 64)": bg.Perturbed(1.0, 64, draws=bg.Fresh(0)),
    "Perturbed(2, 64)": bg.Perturbed(2.0, 64, draws=bg.Fresh(0)),
    "IMLE(1, 16)": bg.IMLE(1.0, 16, draws=bg.Fresh(0)),
    "Joint(Perturbed(1, 64))": bg.Joint(bg.Perturbed(1.0, 64, draws=bg.Fresh(0))),
}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over the games; a gradient of zero counts as 0."""
    size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.maximum(size, 1e-12)).mean())


def main() -> None:
    print(machine())
    for budget in (1, 2):
        game, rng = Blockade(budget), np.random.default_rng(1)
        z, d = tables(3, GAMES)
        target = np.hstack(game.answers(*tables(4, GAMES)))
        push = 2 * (np.hstack(game.answers(z, d)) - target)  # of the squared distance
        push[~push.any(1)] = (1 - 2 * target)[~push.any(1)]
        exact = {s: [game.smoothed(z[i], d[i], s, push[i], rng, SAMPLES) for i in range(GAMES)] for s in SIGMAS}
        for sigma, found in exact.items():
            noise = np.mean([np.linalg.norm(e) / np.linalg.norm(g) for g, e in found])
            print(f"exact at sigma {sigma}: standard error {noise:.3f} of the gradient, mean over games")
        print(f"\nat most {budget} blocked; cosine in z, d with the exact gradient at sigma = {SIGMAS}; zero in z, d")
        for name, rule in RULES.items():
            _, grads = pulled(bg.Layer(game.program(), gradient=rule, solver=game), (z, d), push)
            cells = []
            for sigma in SIGMAS:
                full = np.array([g for g, _ in exact[sigma]])
                cells.append(f"{cosine(grads[0], full[:, :16]):.2f}, {cosine(grads[1], full[:, 16:]):.2f}")
            zero = ", ".join(str((~g.any(1)).sum()) for g in grads)
            print(f"| `{name}` | {' | '.join(cells)} | {zero} |", flush=True)
    print("\nplanted pairs recovered of 20, of seeds 0, 1, 2 with at most 1 blocked, of seed 0 with 2")
    for name, (rule, rate, steps) in LEARNERS.items():
        for budget in (1, 2):
            torch.manual_seed(0)
            start, game = time.perf_counter(), Blockade(budget)
            counts = [recovered(game, rule(), rate, steps, seed) for seed in range(3 if budget == 1 else 1)]
            took = time.perf_counter() - start
            print(f"| {name} | rate {rate}, {steps} steps | {budget} | {counts} | {took:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
