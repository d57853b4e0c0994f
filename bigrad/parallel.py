"""Work spread over threads: most of the time of a batch goes to C code that releases the interpreter lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_map(work: Callable[[np.ndarray], T], count: int, least: int) -> list[T]:
    """`work` on consecutive parts of range(count), one a processor, none smaller than `least` items; results in order."""
    parts = np.array_split(np.arange(count), max(1, min(processors(), count // least)))
    if len(parts) == 1:
        return [work(parts[0])]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(work, parts))
