"""Followers with cones: twenty random programs of every family, and semidefinite ones of orders three to eight.

    python tests/benchmarks/bench_followers.py [seeds]

The figure to meet: every program solved, its follower re-solved by Clarabel, gradients in the parameters of both levels to
1e-3 of central differences of re-solves. Seconds are of one cold solve after compilation.
"""

import sys
import time
from pathlib import Path

import numpy as np
from timing import machine

import bigrad as bg

sys.path.append(str(Path(__file__).parents[1]))
from families import FAMILIES, SEMIDEFINITE, examined, family, semidefinite_program
from helpers import Case

SOLVER = bg.Relaxation(starts=3)


def row(label: str, problems: list[tuple[int, Case]]) -> None:
    """One line: how many hold, and the worst of those."""
    solved, error, gap, kinks, seconds, failed = 0, 0.0, 0.0, 0, [], []
    for seed, problem in problems:
        program = problem.program
        program.solve(problem.values, solver=bg.Relaxation(starts=1, max_iterations=1))
        begun = time.perf_counter()
        solution = program.solve(problem.values, solver=SOLVER)
        seconds.append(time.perf_counter() - begun)
        try:
            report = examined(problem, seed, SOLVER)
        except AssertionError as fault:
            failed.append(f"{seed}: {solution.status.name} {str(fault).splitlines()[0][:80] if str(fault) else ''}")
            continue
        solved, kinks = solved + 1, kinks + len(report.kinks)
        error, gap = max(error, report.worst), max(gap, abs(report.solution.stats.follower_gap or 0))
    times = f"{1e3 * np.median(seconds):6.0f} ms (to {1e3 * max(seconds):.0f})"
    print(
        f"{label:28} {solved:3} of {len(problems)}  gradient {error:.0e}  gap {gap:.0e}  kinks {kinks}  {times}",
        *failed,
    )


def main() -> None:
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
    print(machine("cvxpy", "clarabel", "unopy"))
    for name in FAMILIES:
        row(name, [(seed, family(name, seed)) for seed in seeds])
    for order in range(3, 9):
        for kind in SEMIDEFINITE:
            row(f"{kind}, {order}", [(seed, semidefinite_program(kind, order, seed)) for seed in seeds])


if __name__ == "__main__":
    main()
