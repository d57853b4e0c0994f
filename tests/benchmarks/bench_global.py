"""Global on every linear and quadratic textbook program, on random ones with indefinite leaders and with integers, and on tolls.

    python tests/benchmarks/bench_global.py

The figures to meet: all textbook programs certified to 1e-6, median at most 0.1 s a solve. Known answers are those of
bigrad.datasets, verified by an independent search, and for random programs all faces or all integers, one by one. A value
that the proof contradicts is printed as a wrong known answer.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cvxpy as cp
import numpy as np
from timing import machine

import bigrad as bg
from bigrad import datasets

sys.path.append(str(Path(__file__).parents[1]))
from test_sos import best_face, indefinite_program, integer_program

Row = tuple[str, bg.Program, float | None]


def textbook() -> Iterator[Row]:
    for problem in datasets.textbook():
        if problem.coefficients is not None:
            upper, lower, _, y = problem.program_parts()
            yield problem.name, bg.bilevel(upper, lower, responds=[y]), problem.F_star


def indefinite() -> Iterator[Row]:
    for seed in range(30):
        program = indefinite_program(seed)
        best = best_face(program)
        yield f"seed {seed}", program, None if best == np.inf else best


def integers() -> Iterator[Row]:
    for seed in range(30):
        rest, at, choices = integer_program(seed, held=True)
        found = [rest.solve({at: np.array(c, float)}, solver=bg.Pieces(exhaustive=2**12)) for c in choices]
        yield f"seed {seed}", integer_program(seed)[0], min((s.value for s in found if s.status.ok), default=None)


def main() -> None:
    print(machine("cvxpy", "pyscipopt", "daqp"))
    kinds = {"textbook programs": textbook, "indefinite leaders": indefinite, "integer leaders": integers}
    for name, rows in kinds.items():
        seconds, certified, worst, gaps, wrong, other = [], 0, 0.0, [0.0], [], []
        for label, program, known in rows():
            begun = time.perf_counter()
            solution = program.solve(solver=bg.Global(time_limit=60), verify=True)
            seconds.append(time.perf_counter() - begun)
            proven = solution.status is bg.Status.GLOBAL or (known is None and not solution.status.ok)
            certified += proven
            if solution.status.ok and known is not None:
                error = abs(solution.value - known) / (1 + abs(known))
                worst = max(worst, error)
                gaps.append(solution.stats.follower_gap)
                if proven and error > 1e-5:
                    wrong.append(f"{label}: proven {solution.value:.6g}, known {known:.6g}")
            if not proven:
                other.append(f"{label}: {solution.status.name} {solution.value:.6g}, known {known}, {solution.stats}")
        print(f"\n{len(seconds)} {name}")
        print(f"  solved to the gap, or proven infeasible   {certified} of {len(seconds)}")
        print(
            f"  a solve, check included                   median {np.median(seconds):.3f} s, max {max(seconds):.2f} s"
        )
        print(f"  worst disagreement with a known answer    {worst:.1e}, relative")
        print(f"  worst follower gap, by Clarabel           {max(gaps):.1e}")
        print(f"  known answers that the proof contradicts  {'; '.join(wrong) or 'none'}")
        for line in other:
            print(f"  open: {line}")
    tolls()


def tolls() -> None:
    """How far unbounded prices go: routes, seconds, and what the local search leaves on the road."""
    print("\ntolls without ceilings: routes, tolls, proven revenue, local search, seconds")
    for count, routes in ((5, 15), (10, 40), (20, 80)):
        rng = np.random.default_rng(0)
        prices, flow = cp.Variable(count, nonneg=True), cp.Variable(routes, nonneg=True)
        uses, cost = (rng.random((count, routes)) < 0.5).astype(float), rng.uniform(1, 5, routes)
        uses[:, 0], cost[0] = 0.0, 9.0
        follower = cp.Problem(cp.Minimize((uses.T @ prices + cost) @ flow), [cp.sum(flow) == 1, flow[1:] <= 0.6])
        revenue = sum(prices[i] * (uses[i] @ flow) for i in range(count))
        program = bg.bilevel(cp.Problem(cp.Maximize(revenue)), follower, responds=[flow])
        local = program.solve(solver=bg.Relaxation(starts=3, time_limit=10))
        begun = time.perf_counter()
        best = program.solve(solver=bg.Global(time_limit=60))
        took = time.perf_counter() - begun
        print(f"  {routes:3d} {count:3d}  {best.status.name} {best.value:.6f}  {local.value:.6f}  {took:.2f}")


if __name__ == "__main__":
    main()
