"""What the benchmarks share: calls timed in turn, their median and spread, and a line about the machine."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np


@dataclass(frozen=True)
class Times:
    """Seconds of repeated runs."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    def show(self, unit: str = "ms", items: int = 1) -> str:
        """Median and range, per item, e.g. "12.3 ms (11.9 to 14.0)"."""
        scale = {"s": 1, "ms": 1e3, "us": 1e6}[unit] / items
        middle, low, high = (f"{scale * t:.4g}" for t in (self.median, min(self.seconds), max(self.seconds)))
        return f"{middle} {unit} ({low} to {high})"


def in_turn(*calls: Callable[[], object], rounds: int = 9, warmup: int = 2, alone: bool = False) -> list[Times]:
    """Times of the calls, run one after the other in every round, so that a busy moment of the machine hits all alike.

    alone: run each call once more before it is timed, so that it finds neither the caches nor the idling threads of the
    one before it, which cost a call of a few milliseconds as much as itself.
    """
    taken: list[list[float]] = [[] for _ in calls]
    for turn in range(-warmup, rounds):
        for times, call in zip(taken, calls, strict=True):
            if alone:
                call()
            begun = time.perf_counter()
            call()
            if turn >= 0:
                times.append(time.perf_counter() - begun)
    return [Times(tuple(t)) for t in taken]


def machine(*packages: str) -> str:
    """Processors, threads, load and versions, two lines."""
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    found = []
    for name in ("bigrad", *packages):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} missing")
    where = f"{platform.machine()}, {os.cpu_count()} processors, OMP_NUM_THREADS {threads}, load {load}, Python {platform.python_version()}"
    return f"{where}\n{', '.join(found)}"
