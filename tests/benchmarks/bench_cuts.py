"""Time the exact solver of nested integer programs on MibS's files, against MibS's recorded seconds.

    python tests/benchmarks/bench_cuts.py [FOLDER] [SECONDS] [PATTERN]

FOLDER holds NAME.mps, NAME.aux and answers.json; the default is the small instances that come with the tests. Prints
processor time for each instance, how many optima were proven, wrong claims, and the shifted geometric means (shift 1 s) of
the instances that both solved.

    python tests/benchmarks/bench_cuts.py pool

measures what a pool of rival answers shared over eight programs that differ in their objectives is worth.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from bigrad.discrete.mibs import read_mibs
from bigrad.exact.answers import Pool
from bigrad.exact.nested import search
from bigrad.solution import Status


def shifted_mean(seconds):
    """exp(mean(log(1 + s))) - 1."""
    return float(np.expm1(np.mean(np.log1p(seconds))))


def main(folder, limit, pattern):
    """Solve all instances of a folder, one after the other."""
    ours, theirs, proven, wrong, count = [], [], 0, [], 0
    for instance in json.loads((folder / "answers.json").read_text("utf-8"))["instances"]:
        name = instance["name"]
        if pattern not in name or not (folder / f"{name}.mps").is_file():
            continue
        nested, since = read_mibs(folder / name).nested, time.process_time()
        found = search(nested, time_limit=limit)
        seconds, optimum = time.process_time() - since, instance["optimum"]
        close = 1e-3 * (1 + abs(optimum)) / 10
        count += 1
        if found.status is Status.GLOBAL:
            proven += 1
            ours.append(seconds)
            theirs.append(instance["mibs_seconds"])
        if (found.status is Status.GLOBAL and abs(found.value - optimum) > close) or found.bound > optimum + close:
            wrong.append(name)
        print(
            f"{name[-42:]:42} {optimum:10.3f} {found.value:10.3f} {found.bound:10.3f} {found.status.name:7} "
            f"{found.road:10} {seconds:7.2f} s (MibS {instance['mibs_seconds']:6.2f}), wall {found.seconds:6.2f} s, "
            f"{found.nodes} nodes, {found.splits} splits, {found.cuts} cuts, {found.answers} answers {found.cause}",
            flush=True,
        )
    print(f"proven {proven} of {count}; not the recorded answer: {wrong or 'none'}")
    if ours:
        a, b = shifted_mean(ours), shifted_mean(theirs)
        print(
            f"shifted geometric means of the {len(ours)} that both proved: {a:.3f} s, MibS {b:.3f} s, ratio {a / b:.2f}"
        )


def shared_pool(folder):
    """Eight times the same rows with other objectives, each program with a pool of its own and all with one."""
    for name in ("MIBLP-XU__bmilplib_10_6", "RANDOM__RAND_BILEVEL__miblp_20_20_50_0110_10_2", "knapsack"):
        nested = read_mibs(folder / name).nested
        for label in ("own", "shared"):
            rng, one, totals = np.random.default_rng(0), Pool(), np.zeros(3)
            since = time.process_time()
            for _ in range(8):
                leader, follower = (
                    replace(level, linear=np.round(level.linear * rng.uniform(0.8, 1.2, len(level.linear)), 2))
                    for level in (nested.leader, nested.follower)
                )
                found = search(
                    replace(nested, leader=leader, follower=follower),
                    one if label == "shared" else Pool(),
                    time_limit=60,
                )
                totals += found.answers, found.nodes, found.value
            seconds = time.process_time() - since
            print(
                f"{name[-36:]:36} pool {label:6} {seconds:6.2f} s, {totals[0]:.0f} answers, {totals[1]:.0f} nodes, sum {totals[2]:.3f}"
            )


if __name__ == "__main__":
    default = Path(__file__).resolve().parents[1] / "data" / "mibs"
    given = sys.argv[1:]
    if given[:1] == ["pool"]:
        shared_pool(default)
        sys.exit()
    main(
        Path(given[0]) if given else default,
        float(given[1]) if len(given) > 1 else 30.0,
        given[2] if len(given) > 2 else "",
    )
