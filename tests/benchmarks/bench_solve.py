"""`program.solve` against blvpy on the same bilevel quadratic programs.

    python tests/benchmarks/bench_solve.py

10 leader and 20 follower variables, 30 constraints. The figure to meet: at least 100 times faster an item. Both answers
are checked by fixing x, solving the follower anew and evaluating the leader's objective there. Both solvers are local, and
more starts buy bigrad better optima: see the last lines. blvpy needs Python 3.12 and an environment of its own:

    python3.12 -m venv /tmp/blvpy && /tmp/blvpy/bin/pip install -c constraints.txt --no-deps blvpy -e .
    /tmp/blvpy/bin/pip install -c constraints.txt cvxpy daqp highspy scipy threadpoolctl tqdm unopy
    /tmp/blvpy/bin/python tests/benchmarks/bench_solve.py
"""

import sys
import time
import warnings

import cvxpy as cp
import numpy as np
from instances import Instance
from timing import Times, in_turn, machine

import bigrad as bg

try:
    import blvpy
except ImportError:
    blvpy = None

LEADER, FOLLOWER, ROWS, ITEMS, BATCH = 10, 20, 30, 7, 64


def main() -> None:
    if blvpy is None:
        print(f"Skipped: blvpy is not installed beside Python {sys.version.split()[0]}. How to install it:\n{__doc__}")
        return
    print(machine("blvpy", "cvxpy", "daqp", "unopy"))
    instance = Instance.random(LEADER, FOLLOWER, ROWS)
    x, y = cp.Variable(LEADER, name="x"), cp.Variable(FOLLOWER, name="y")
    z, w = cp.Parameter(FOLLOWER, name="z"), cp.Parameter(FOLLOWER, name="w")
    program = bg.bilevel(instance.upper(x, y, z), instance.lower(x, y, w), responds=[y])
    targets, costs = np.random.default_rng(1).standard_normal((2, BATCH, FOLLOWER))
    given = {"z": targets, "w": costs}
    theta = tuple(given[i.name] for i in program.inputs)
    program.solve({z: targets[0], w: costs[0]})

    times: dict[str, list[float]] = {"blvpy": [], "alone": []}
    claimed, objectives = [], []
    for target, cost in zip(targets[:ITEMS], costs[:ITEMS], strict=True):
        begun = time.perf_counter()
        solution = program.solve({z: target, w: cost})
        times["alone"].append(time.perf_counter() - begun)
        leader, taken = by_blvpy(instance, target, cost)
        times["blvpy"].append(taken)
        claimed.append(solution.value)
        objectives.append([check(instance, at, target, cost) for at in (solution[x], leader)])
    other, alone = (Times(tuple(times[k])) for k in ("blvpy", "alone"))
    mine, peer = np.array(objectives).T
    print(f"\nQP {LEADER} + {FOLLOWER} variables, {ROWS} constraints: time an item, median and range of {ITEMS}")
    print(f"  blvpy                      {other.show()}")
    print(f"  bigrad, program.solve      {alone.show():32} {other.median / alone.median:.0f} times faster")
    for solver in (bg.Auto(), bg.Pieces(starts=8, nodes=0), bg.Pieces(starts=32, nodes=0)):
        (batch,) = in_turn(lambda solver=solver: solver.solve(program, theta), rounds=5, warmup=1)
        values = solver.solve(program, theta).value[:ITEMS]
        better, worse = (values < peer - 1e-3).sum(), (values > peer + 1e-3).sum()
        name = "Auto()" if isinstance(solver, bg.Auto) else f"Pieces(starts={solver.starts})"
        print(
            f"  batch of {BATCH}, {name:18}{batch.show(items=BATCH):32} {BATCH * other.median / batch.median:.0f} times faster;",
            end=" ",
        )
        print(f"mean objective {values.mean():.4f}, better on {better}, worse on {worse}")
    print(
        f"objectives, x fixed and the follower re-solved: program.solve {mine.mean():.4f}, blvpy {peer.mean():.4f} (mean)"
    )
    print(f"program.solve claims what the re-solve finds, to {abs(np.array(claimed) - mine).max():.1e}")


def by_blvpy(instance: Instance, target: np.ndarray, cost: np.ndarray) -> tuple[np.ndarray, float]:
    """blvpy's leader decision and its time; modelling is not counted, for its programs take no parameters."""
    x, y = cp.Variable(LEADER, name="x"), cp.Variable(FOLLOWER, name="y")
    lower, upper = instance.lower(x, y, cost), instance.upper(x, y, target)
    inner = blvpy.LowerProblem(lower.objective, lower.constraints, parameters=[x])
    problem = blvpy.BilevelProblem(upper.objective, inner, upper.constraints)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begun = time.perf_counter()
        problem.solve(solver="UNO", verbose=False, solver_options={"logger": "SILENT"})
    return x.value, time.perf_counter() - begun


def check(instance: Instance, x: np.ndarray, target: np.ndarray, cost: np.ndarray) -> float:
    """The upper objective at x and the follower's own answer to it."""
    x = np.clip(x, -2, 2)
    return float(((instance.respond(x, cost) - target) ** 2).sum() + 0.1 * (x**2).sum())


if __name__ == "__main__":
    main()
