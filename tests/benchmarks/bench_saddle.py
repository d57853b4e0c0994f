"""Convex-concave games against DSP (Schiele, Luxenberg and Boyd, "Disciplined saddle programming", 2024), on its own kinds.

    OMP_NUM_THREADS=1 DSP_PYTHON=/path/to/python python tests/benchmarks/bench_saddle.py

DSP 0.4.2 works up to CVXPY 1.6.7, which bigrad is not for, so it runs in an interpreter of its own: make one by

    python -m venv /tmp/dsp && /tmp/dsp/bin/pip install dsp-cvxpy==0.4.2 cvxpy==1.6.7

Both are asked in turn, in one run. The first call declares a new problem and solves it; a re-solve solves that problem again, as after a
change of a parameter. Times are those of the processor, on one thread. Figures to meet: values agree to 1e-6; not slower.
"""

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import cvxpy as cp
import numpy as np

ROUNDS = 9
rng = np.random.default_rng(0)
GAMES = {n: rng.standard_normal((n, n)) for n in (10, 40, 80)}
SHAPE, COST = rng.standard_normal((30, 10)), rng.standard_normal(30)
POINTS, TARGETS = rng.standard_normal((40, 5)), rng.standard_normal(40)
RETURNS, ROOT = 0.1 * rng.random(12), rng.standard_normal((12, 12)) / 4
Parts = tuple[cp.Problem, cp.Problem, list[cp.Variable]]


def game(n: int) -> tuple[list[cp.Variable], list[cp.Constraint], cp.Variable, cp.Variable]:
    x, y = cp.Variable(n, nonneg=True), cp.Variable(n, nonneg=True)
    return [y], [cp.sum(x) == 1, cp.sum(y) == 1], x, y


def our_game(n: int) -> Parts:
    responds, rows, x, y = game(n)
    f = x @ GAMES[n] @ y
    return cp.Problem(cp.Minimize(f), rows[:1]), cp.Problem(cp.Maximize(f), rows[1:]), responds


def our_ellipsoid() -> Parts:
    x, e = cp.Variable(30, nonneg=True), cp.Variable(10)
    f = COST @ x + (SHAPE @ e) @ x
    upper = cp.Problem(cp.Minimize(f + cp.sum_squares(x)), [cp.sum(x) == 1])
    return upper, cp.Problem(cp.Maximize(f), [cp.norm(e) <= 1]), [e]


def our_weights() -> Parts:
    w, p = cp.Variable(5), cp.Variable(40, nonneg=True)
    f = p @ cp.square(POINTS @ w - TARGETS)
    lower = cp.Problem(cp.Maximize(f), [cp.sum(p) == 1, p <= 0.1])
    return cp.Problem(cp.Minimize(f + 0.1 * cp.sum_squares(w))), lower, [p]


def our_covariance() -> Parts:
    n = len(RETURNS)
    x, X, S = cp.Variable(n, nonneg=True), cp.Variable((n, n), symmetric=True), cp.Variable((n, n), PSD=True)
    f = cp.sum(cp.multiply(S, X))
    column = cp.reshape(x, (n, 1), order="F")
    above = [cp.bmat([[X, column], [column.T, np.ones((1, 1))]]) >> 0, cp.sum(x) == 1]
    return cp.Problem(cp.Minimize(f - RETURNS @ x), above), cp.Problem(cp.Maximize(f), uncertain(S)), [S]


def uncertain(S: cp.Variable) -> list[cp.Constraint]:
    centre = ROOT @ ROOT.T + 0.1 * np.eye(len(ROOT))
    size = np.sqrt(np.outer(centre.diagonal(), centre.diagonal()))
    return [cp.abs(S - centre) <= 0.2 * size]


def their_game(dsp: Any, n: int) -> Any:
    _, rows, x, y = game(n)
    return dsp.SaddlePointProblem(dsp.MinimizeMaximize(dsp.inner(x, GAMES[n] @ y)), rows, [x], [y])


def their_ellipsoid(dsp: Any) -> Any:
    x, e = cp.Variable(30, nonneg=True), cp.Variable(10)
    goal = dsp.MinimizeMaximize(COST @ x + dsp.inner(x, SHAPE @ e) + cp.sum_squares(x))
    return dsp.SaddlePointProblem(goal, [cp.sum(x) == 1, cp.norm(e) <= 1], [x], [e])


def their_weights(dsp: Any) -> Any:
    w, p = cp.Variable(5), cp.Variable(40, nonneg=True)
    goal = dsp.saddle_inner(cp.square(POINTS @ w - TARGETS), p) + 0.1 * cp.sum_squares(w)
    return dsp.SaddlePointProblem(dsp.MinimizeMaximize(goal), [cp.sum(p) == 1, p <= 0.1], [w], [p])


def their_covariance(dsp: Any) -> Any:
    n = len(RETURNS)
    x, S = cp.Variable(n, nonneg=True), cp.Variable((n, n), PSD=True)
    goal = dsp.MinimizeMaximize(dsp.saddle_quad_form(x, S) - RETURNS @ x)
    return dsp.SaddlePointProblem(goal, [cp.sum(x) == 1, *uncertain(S)], [x], [S])


Makers = dict[str, Callable[..., Any]]
OURS: Makers = {f"matrix game, {n}": lambda n=n: our_game(n) for n in GAMES}
OURS |= {"ellipsoid": our_ellipsoid, "weighted losses": our_weights, "worst covariance": our_covariance}
THEIRS: Makers = {f"matrix game, {n}": lambda dsp, n=n: their_game(dsp, n) for n in GAMES}
THEIRS |= {"ellipsoid": their_ellipsoid, "weighted losses": their_weights, "worst covariance": their_covariance}


def timed(declare: Callable[[], Any], solve: Callable[[Any], float]) -> list[float]:
    """Processor seconds of the first call and of a re-solve, the median of three, and the value."""
    begun = time.process_time()
    problem = declare()
    solve(problem)
    first, again = time.process_time() - begun, []
    for _ in range(3):
        begun = time.process_time()
        value = solve(problem)
        again.append(time.process_time() - begun)
    return [first, float(np.median(again)), value]


def theirs() -> None:
    """The worker: for each line, a name, what `timed` says of it."""
    import dsp

    def solve(problem: Any) -> float:
        problem.solve(solver=cp.CLARABEL)
        return float(problem.value)

    print("ready", flush=True)
    for name in map(str.strip, sys.stdin):
        print(json.dumps(timed(partial(THEIRS[name], dsp), solve)), flush=True)


def ours(name: str) -> list[float]:
    import bigrad as bg

    def declare() -> bg.Program:
        upper, lower, responds = OURS[name]()
        return bg.bilevel(upper, lower, responds=responds)

    return timed(declare, lambda program: program.solve().value)


def main() -> None:
    from timing import Times, machine

    print(machine("cvxpy", "clarabel"))
    python = os.environ.get("DSP_PYTHON", sys.executable)
    worker = subprocess.Popen(
        [python, "-W", "ignore", __file__, "--dsp"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    if worker.stdout.readline().strip() != "ready":
        print(f"DSP does not run in {python}: set DSP_PYTHON to an interpreter that has it; see the top of this file.")
        return
    for name in OURS:
        taken: dict[str, list[list[float]]] = {"bigrad": [], "DSP": []}
        for turn in range(ROUNDS + 1):
            worker.stdin.write(name + "\n")
            worker.stdin.flush()
            both = {"DSP": json.loads(worker.stdout.readline()), "bigrad": ours(name)}
            for who, found in both.items():
                if turn:
                    taken[who].append(found)
        mine, other = taken["bigrad"][-1][2], taken["DSP"][-1][2]
        print(f"\n{name}: value {mine:.8f}, apart by {abs(mine - other) / (1 + abs(mine)):.0e}")
        for k, what in enumerate(("first call", "re-solve")):
            ours_, dsp_ = (Times(tuple(t[k] for t in taken[who])) for who in ("bigrad", "DSP"))
            print(f"  {what:11} bigrad {ours_.show():32} DSP {dsp_.show():32} ratio {ours_.median / dsp_.median:.2f}")
    worker.stdin.close()
    worker.wait()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    theirs() if "--dsp" in sys.argv else main()
