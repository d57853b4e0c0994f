"""Work spread over threads: most of the time of a batch goes to C code that releases the interpreter lock.

BLAS is held to one thread meanwhile. The matrices of a batch are small, and two layers of threads spin against each other: on a busy
two-core machine that made a solve ten times slower.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

T = TypeVar("T")


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_map(work: Callable[[np.ndarray], T], count: int, least: int) -> list[T]:
    """`work` on consecutive parts of range(count), one a processor, none smaller than `least` items; results in order."""
    parts = np.array_split(np.arange(count), max(1, min(processors(), count // least)))
    with single_blas:
        if len(parts) == 1:
            return [work(parts[0])]
        with ThreadPoolExecutor(len(parts)) as pool:
            return list(pool.map(work, parts))


class _SingleBlas:
    """One BLAS thread while any caller is inside; the first one in sets it, the last one out restores it."""

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0

    @cached_property
    def controller(self) -> ThreadpoolController:
        return ThreadpoolController()

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.limit = self.controller.limit(limits=1, user_api="blas")
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.limit.restore_original_limits()


single_blas = _SingleBlas()
"""`with single_blas:` around code that works on many small matrices; may be entered again, and by many threads."""
