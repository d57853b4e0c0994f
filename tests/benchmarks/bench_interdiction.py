"""A leader against a shortest path: the second epoch of a training run, with and without what is remembered.

    python tests/benchmarks/bench_interdiction.py

Figure to meet: at most 20 ms an item for a forward pass and a level-by-level backward pass; 12 x 12 maps, 8 neighbours, budget 3, batch 32.
A map's tiles are of five kinds, as far apart in cost as those of the Warcraft maps, each tile off its kind by up to a tenth; a blocked
tile costs 4 more. A linear model of noisy features learns the costs from both players' decisions, so that they move from one epoch to the
next as those of a network do. The values of the timed epoch are checked at the costs that it saw: a few against an integer program that
knows no paths (potentials of tiles, by scipy's HiGHS), and all of them against those of a new program that remembers nothing. Times are
those of the processor, which other programs on the machine disturb least.
"""

import time

import numpy as np
import torch
from ortools.sat.python import cp_model
from scipy.optimize import Bounds, LinearConstraint, milp
from timing import Times, machine

import bigrad as bg

SIZE, BUDGET, EXTRA, BATCH, BATCHES, CHECKED, RUNS = 12, 3, 4.0, 32, 4, 5, 3
LEVELS = np.array([0.8, 1.2, 5.3, 7.7, 9.2])


def game() -> bg.Program:
    leader, tiles = cp_model.CpModel(), range(SIZE * SIZE)
    x = [leader.new_bool_var(f"x{k}") for k in tiles]
    leader.add(sum(x) <= BUDGET)
    return bg.bilevel(
        leader, bg.GridPath(SIZE, SIZE, clamp=0.0), costs={"w": tiles, "d": [(k, x[k]) for k in tiles[1:-1]]}
    )


def draw(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (items, tiles, 6) and true costs (items, tiles)."""
    kind = rng.integers(0, 5, (BATCH * BATCHES, SIZE * SIZE))
    costs = LEVELS[kind] * rng.uniform(0.9, 1.1, kind.shape)
    features = np.concatenate([np.eye(5)[kind], (costs / LEVELS[kind])[..., None]], -1)
    features += 0.1 * rng.standard_normal(features.shape)
    return torch.as_tensor(features), torch.as_tensor(costs)


def by_potentials(w: np.ndarray, d: np.ndarray) -> float:
    """max over x and potentials p of p[target]: p[v] <= p[u] + w[v] + d[v] x[v] for neighbours u, v, p[source] = w[source]."""
    n = SIZE * SIZE
    places = np.array(list(np.ndindex(SIZE, SIZE)))
    near = abs(places[:, None] - places[None]).max(-1) == 1
    u, v = np.nonzero(near)
    rows = np.zeros((len(u) + 1, 2 * n))
    every = np.arange(len(u))
    rows[every, v], rows[every, u] = 1, -1
    rows[every, n + v] = -d[v]
    rows[-1, n:] = 1
    top = np.full(2 * n, 1.0)
    top[:n] = np.inf
    top[0] = w[0]
    found = milp(
        -np.eye(2 * n)[n - 1],
        integrality=np.repeat([0, 1], n),
        bounds=Bounds(np.zeros(2 * n), top),
        constraints=LinearConstraint(rows, -np.inf, [*w[v], BUDGET]),
        options={"mip_rel_gap": 0.0},
    )
    assert found.success, found.message
    return -float(found.fun)


def train(remember: bool, rule, features, target, d) -> tuple[float, float, float, list]:
    """Seconds of the second epoch, forward and backward by the processor, and by the clock, and its (costs, x, y) by batch."""
    layer = bg.Layer(game(), solver=bg.Cuts(remember=remember), gradient=rule)
    weight = torch.tensor([*np.linspace(3.0, 6.0, 5), 0.5], requires_grad=True)
    optimiser = torch.optim.Adam([weight], lr=0.02)
    seconds, seen = np.zeros(3), []
    for epoch in range(2):
        for rows in torch.arange(len(features)).split(BATCH):
            optimiser.zero_grad()
            w = (features[rows] @ weight.double()).clamp(min=0.1)
            begun, clock = time.process_time(), time.perf_counter()
            x, y = layer(w, d)
            loss = (x - target[0][rows]).abs().sum(1).mean() + (y - target[1][rows]).abs().sum(1).mean()
            middle = time.process_time()
            loss.backward()
            ended, clock = time.process_time(), time.perf_counter() - clock
            optimiser.step()
            if epoch:
                seconds += middle - begun, ended - middle, clock
                seen.append((w.detach().numpy(), x.detach().numpy(), y.detach().numpy()))
    return *seconds, seen


def main() -> None:
    print(machine("numpy", "scipy", "ortools", "torch"))
    torch.set_num_threads(1)
    features, costs = draw(np.random.default_rng(0))
    d = torch.full((SIZE * SIZE - 2,), EXTRA, dtype=torch.float64)
    target = bg.Layer(game())(costs, d)
    extra = np.pad(d.numpy(), 1)
    for rule in (bg.Interpolate(), bg.Identity()):
        for remember in (True, False):
            runs = [train(remember, rule, features, target, d) for _ in range(RUNS)]
            ahead, back, clock = (Times(tuple(run[k] for run in runs)) for k in range(3))
            both = Times(tuple(a + b for a, b in zip(ahead.seconds, back.seconds, strict=True)))
            met = "met" if 1e3 * both.median / len(costs) <= 20 else "NOT met"
            print(f"\n{rule}, remember={remember}")
            print(f"  {both.show('ms', len(costs))} an item (figure to meet: at most 20 ms: {met})")
            print(f"  of this, forward {ahead.show('ms', len(costs))}, backward {back.show('ms', len(costs))}")
            print(f"  by the clock, on a machine that others use too: {clock.show('ms', len(costs))}")
            seen, x, y = (np.concatenate(part) for part in zip(*runs[0][3], strict=True))
            values = ((seen + extra * x) * y).sum(1)
            exact = [by_potentials(seen[i], extra) for i in range(CHECKED)]
            print(
                f"  {CHECKED} values are off those of an integer program by {abs(values[:CHECKED] - exact).max():.1e} at most"
            )
            if remember:
                x, y = (v.numpy() for v in bg.Layer(game(), solver=bg.Cuts(remember=False))(torch.as_tensor(seen), d))
                fresh = ((seen + extra * x) * y).sum(1)
                print(
                    f"  all {len(values)} are off those of a program without memory by {abs(values - fresh).max():.1e} at most"
                )


if __name__ == "__main__":
    main()
