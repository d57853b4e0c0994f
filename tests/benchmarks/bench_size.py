"""How time and peak memory grow: one network toll program of ever more arcs, and ever larger batches of small programs.

    python tests/benchmarks/bench_size.py [--quick]

Each size runs in a process of its own. Seconds are those of the processor, which a busy machine changes little, and in the column
`wall` those of a clock. Memory is the peak above what the process held after its imports and a tiny solve. The
exponent of a column is the slope of its logarithm against that of the size, over all sizes and over the upper half of
them. The figure to meet: time exponent at most 1.5 in the number of lower variables, up to at least 20,000 of them.
"""

import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from instances import Instance
from timing import machine

import bigrad as bg
from bigrad.datasets import toll_grid

SIDES, BATCHES = (16, 23, 32, 45, 64, 72, 100), (64, 256, 1024, 4096)
CLOCK = time.process_time
QUICK_SIDES, QUICK_BATCHES = (14, 20), (16, 64)
PARTS = ("declare", "solve", "gradient", "total", "wall", "memory")


def peak() -> float:
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def network(side: int) -> dict[str, float | str]:
    """Seconds to declare, solve and differentiate a toll program with respect to every arc's cost."""
    parts = toll_grid(side).program_parts()
    since, begun = time.perf_counter(), CLOCK()
    upper, lower, tolls, flow, cost, load = parts
    program = bg.bilevel(upper, lower, responds=[flow])
    declared = CLOCK()
    layer = bg.Layer(program, parameters=[cost, load], variables=[tolls, flow], on_failure="nan")
    inputs = [torch.tensor(p.value, dtype=torch.float64, requires_grad=True) for p in (cost, load)]
    out = layer(*inputs)
    solved = CLOCK()
    (out[0].sum() + out[1].square().sum()).backward()
    done = CLOCK()
    assert all(torch.isfinite(o).all() for o in out)
    return {
        "size": flow.size,
        "declare": declared - begun,
        "solve": solved - declared,
        "gradient": done - solved,
        "total": done - begun,
        "wall": time.perf_counter() - since,
    }


def small(batch: int) -> dict[str, float | str]:
    """Seconds to declare a program of 5 + 10 variables and 15 pairs, to solve a batch of it and to differentiate it."""
    import cvxpy as cp

    instance = Instance.random(5, 10, 15)
    since, begun = time.perf_counter(), CLOCK()
    x, y, w, z = cp.Variable(5), cp.Variable(10), cp.Parameter(10, name="w"), cp.Parameter(10, name="z")
    program = bg.bilevel(instance.upper(x, y, z), instance.lower(x, y, w), responds=[y])
    declared = CLOCK()
    layer = bg.Layer(program, parameters=[w, z], variables=[x, y])
    rng = np.random.default_rng(0)
    inputs = [torch.tensor(rng.standard_normal((batch, 10)), requires_grad=True) for _ in range(2)]
    out = layer(*inputs)
    solved = CLOCK()
    (out[0].sum() + out[1].square().sum()).backward()
    done = CLOCK()
    return {
        "size": batch,
        "declare": declared - begun,
        "solve": solved - declared,
        "gradient": done - solved,
        "total": done - begun,
        "wall": time.perf_counter() - since,
    }


KINDS = {"network": network, "batch": small}


def child(kind: str, size: int) -> None:
    """Measure one size and print it for the parent."""
    network(2)
    small(2)
    before = peak()
    found = KINDS[kind](size)
    print(json.dumps(found | {"memory": peak() - before}))


def exponents(rows: list[dict[str, float]], part: str) -> tuple[float, float]:
    """Slopes in logarithms, over all rows and over the upper half."""
    size, value = (np.log([max(r[k], 1e-9) for r in rows]) for k in ("size", part))
    half = len(rows) // 2 if len(rows) > 2 else 0
    return float(np.polyfit(size, value, 1)[0]), float(np.polyfit(size[half:], value[half:], 1)[0])


def table(kind: str, sizes: tuple[int, ...], what: str) -> None:
    """Measure all sizes, each in its own process, and print them with their exponents."""
    print(f"\n{what}\n{'size':>8}" + "".join(f"{p:>12}" for p in PARTS[:-1]) + f"{'memory':>12}")
    rows = []
    for size in sizes:
        done = subprocess.run([sys.executable, __file__, kind, str(size)], capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        seconds = "".join(f"{rows[-1][p]:>10.3f} s" for p in PARTS[:-1])
        print(f"{rows[-1]['size']:>8}{seconds}{rows[-1]['memory']:>9.0f} MB", flush=True)
    for k, label in enumerate(("exponent", "upper half")):
        print(f"{label:>10}" + "".join(f"{exponents(rows, p)[k]:>12.2f}" for p in PARTS)[2:])


def main() -> None:
    quick = "--quick" in sys.argv
    print(machine("cvxpy", "clarabel", "scipy", "torch"))
    sides, batches = (QUICK_SIDES, QUICK_BATCHES) if quick else (SIDES, BATCHES)
    table(
        "network",
        sides,
        "Toll program on a grid; size: lower variables (a tenth as many tolls). To meet: 1.5 for total.",
    )
    table("batch", batches, "Batch of programs with 5 + 10 variables and 15 pairs; size: items.")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        child(sys.argv[1], int(sys.argv[2]))
    else:
        main()
