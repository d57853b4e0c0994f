"""Every linear and quadratic textbook program with a known global optimum, solved by Auto.

    python tests/benchmarks/bench_textbook.py

The figures to meet: where the upper level is convex, all at the global optimum to 1e-4, elsewhere 90 %; median at most 5 ms a
solve after compilation; no wrong claim, that is every follower gap, by an independent re-solve, at most 1e-6.
"""

import time
from collections import Counter

import numpy as np
from timing import machine

import bigrad as bg
from bigrad import datasets

ROUNDS = 5


def main() -> None:
    print(machine("cvxpy", "daqp", "unopy", "highspy"))
    solved: dict[bool, list[bool]] = {True: [], False: []}
    seconds: dict[bool, list[float]] = {True: [], False: []}
    statuses: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    gaps, wrong, missed = [0.0], [], []
    for problem in datasets.textbook():
        if problem.coefficients is None:
            continue
        upper, lower, _, y = problem.program_parts()
        program = bg.bilevel(upper, lower, responds=[y])
        kind = program.convex
        solution = program.solve(verify=True)
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            program.solve()
            seconds[kind].append(time.perf_counter() - begun)
        statuses[kind][solution.status.name] += 1
        if problem.F_star is None:
            right = not solution.status.ok
        else:
            slack = 1e-4 * (1 + abs(problem.F_star))
            right = solution.status.ok and abs(solution.value - problem.F_star) <= slack
            if solution.status.ok:
                gaps.append(solution.stats.follower_gap)
            if solution.status is bg.Status.GLOBAL and not right:
                wrong.append(problem.name)
        solved[kind].append(right)
        if not right:
            missed.append(
                f"{problem.name}: {solution.status.name} {solution.value:.6g}, known optimum {problem.F_star:.6g}"
            )
    for kind, name, goal in ((True, "convex upper level", "all"), (False, "other upper levels", "90 %")):
        count, times = len(solved[kind]), 1e3 * np.array(seconds[kind])
        print(f"\n{count} programs, {name}")
        print(f"  at the global optimum    {sum(solved[kind])} of {count}   (to meet: {goal})")
        print(f"  a solve, compiled        median {np.median(times):.2f} ms, max {times.max():.1f} ms")
        print(f"  statuses                 {', '.join(f'{n} {k}' for k, n in statuses[kind].most_common())}")
    everything = np.concatenate([*seconds.values()])
    print(
        f"\nall: median {1e3 * np.median(everything):.2f} ms a solve (to meet: 5), max {1e3 * everything.max():.1f} ms"
    )
    print(f"worst follower gap {max(gaps):.1e} (to meet: 1e-6); wrong claims of a global optimum: {wrong or 'none'}")
    print("\n".join(["missed:", *missed] if missed else ["missed: none"]))


if __name__ == "__main__":
    main()
