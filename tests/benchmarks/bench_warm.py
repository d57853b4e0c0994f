"""An epoch of the tariff example that starts where the last one ended, against a cold one.

    python tests/benchmarks/bench_warm.py

Figure to meet: a warm epoch takes at most 1/3 of a cold one. An epoch is that of examples/tariff.py: forward and backward passes over 560
days in batches of 32, and a forward pass over 140 validation days, with the default solver, Auto, and with the example's own, which makes a
single start, so that there is little for a warm start to save. Two copies of one network see the same batches; the warm one's layer gets a
`bigrad.Memory`. Both must end in the same place. Times are those of the processor, which other programs on the machine disturb least.
"""

import copy
import sys
import time
from functools import partial
from pathlib import Path

import cvxpy as cp
import numpy as np
import torch
from instances import Instance
from timing import Times, in_turn, machine

import bigrad as bg

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import tariff

EPOCHS = 8


def realised_cost(layer: bg.Layer, network: torch.nn.Module, demand: torch.Tensor, start: object) -> torch.Tensor:
    expected = network(demand)
    price, load = layer(expected, warm_start=start)
    load = demand + (load - expected)
    return load.amax(-1) + tariff.LEVEL * (price - 1).square().sum(-1) + tariff.JUMP * price.diff().square().sum(-1)


def epoch(layer, network, optimiser, train, valid, batches, memory) -> tuple[float, float]:
    """Seconds of the processor, and the validation cost afterwards."""
    begun = time.process_time()
    for batch in batches:
        optimiser.zero_grad()
        start = None if memory is None else memory.at(batch)
        realised_cost(layer, network, train[batch], start).mean().backward()
        optimiser.step()
    with torch.no_grad():
        start = None if memory is None else memory.at(range(len(train), len(train) + len(valid)))
        score = realised_cost(layer, network, valid, start).mean().item()
    return time.process_time() - begun, score


def main() -> None:
    print(machine("daqp", "torch"))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    known = torch.as_tensor(tariff.italy_power_demand(700, 0).train, dtype=torch.float32)
    train, valid = known[torch.randperm(len(known))].split([560, 140])
    start = tariff.fit(
        tariff.Forecaster(), lambda net, days: (net(days) - days).square().mean(-1), train, valid, 100, "forecaster"
    )
    example = tariff.tariff_layer()
    inputs, unknowns = ([entry.handle for entry in part] for part in (example.program.inputs, example.program.unknowns))
    layers = {"the default solver": bg.Layer(example.program, inputs, unknowns), "the example's own solver": example}
    for name, layer in layers.items():
        runs = {}
        for kind in ("cold", "warm"):
            network = copy.deepcopy(start)
            runs[kind] = network, torch.optim.Adam(network.parameters(), lr=1e-3)
        memory = bg.Memory()
        taken: dict[str, list[float]] = {"cold": [], "warm": []}
        costs = {}
        for k in range(EPOCHS + 1):
            batches = torch.randperm(len(train)).split(32)
            for kind, (network, optimiser) in runs.items():
                known_points = memory if kind == "warm" else None
                seconds, costs[kind] = epoch(layer, network, optimiser, train, valid, batches, known_points)
                if k:  # the first epoch is cold for both
                    taken[kind].append(seconds)
        cold, warm = (Times(tuple(taken[kind])) for kind in ("cold", "warm"))
        ratio = warm.median / cold.median
        print(f"\n{name}, {layer.solver}: median and range of {EPOCHS} epochs")
        print(f"  cold epoch  {cold.show('s')}\n  warm epoch  {warm.show('s')}")
        print(f"  warm / cold {ratio:.2f}   (figure to meet: at most 0.33: {'met' if ratio <= 1 / 3 else 'NOT met'})")
        print(f"  validation cost after them: cold {costs['cold']:.6f}, warm {costs['warm']:.6f}")
    one_solve()


def one_solve() -> None:
    """`program.solve` from scratch and from its own Solution, by both solvers."""
    instance = Instance.random(10, 20, 30)
    x, y = cp.Variable(10, name="x"), cp.Variable(20, name="y")
    z, w = cp.Parameter(20, name="z"), cp.Parameter(20, name="w")
    program = bg.bilevel(instance.upper(x, y, z), instance.lower(x, y, w), responds=[y])
    values = dict(zip((z, w), np.random.default_rng(1).standard_normal((2, 20)), strict=True))
    print("\none solve, 10 + 20 variables, 30 constraints")
    for solver in (bg.Auto(), bg.Relaxation()):
        first = program.solve(values, solver=solver)
        cold, warm = in_turn(
            partial(program.solve, values, solver=solver),
            partial(program.solve, values, solver=solver, warm_start=first),
        )
        print(f"  {type(solver).__name__:12} cold {cold.show()}, warm {warm.show()}")


if __name__ == "__main__":
    main()
