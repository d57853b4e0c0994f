"""Work spread over threads: most of the time of a batch goes to C code that releases the interpreter lock.

BLAS and torch are held to one thread meanwhile. The matrices of a batch are small, and two layers of threads spin
against each other: on a busy two-core machine that made a solve, and a backward pass, more than ten times slower.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import cache
from typing import TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

T = TypeVar("T")


only_one: ContextVar[bool] = ContextVar("only_one", default=False)
"""Set where this thread is to use a single processor: others have work of their own."""


def processors() -> int:
    """How many processors this thread may use."""
    if only_one.get():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_map(work: Callable[[np.ndarray], T], count: int, least: int) -> list[T]:
    """`work` on consecutive parts of range(count), one a processor, none smaller than `least` items.

    Results in order.
    """
    parts = np.array_split(np.arange(count), max(1, min(processors(), count // least)))
    with single_blas:
        if len(parts) == 1:
            return [work(parts[0])]
        with ThreadPoolExecutor(len(parts)) as pool:
            return list(pool.map(work, parts))


class OneThread:
    """`with` one thread: the first one in sets it, the last one out restores it; any number of threads may be inside.

    limit: sets the one thread and returns what undoes it.
    """

    def __init__(self, limit: Callable[[], Callable[[], object]]):
        self.limit, self.lock, self.inside = limit, threading.Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.undo = self.limit()
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.undo()


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def _limit_blas() -> Callable[[], object]:
    return _libraries().limit(limits=1, user_api="blas").restore_original_limits


def _limit_torch() -> Callable[[], object]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    return lambda: torch.set_num_threads(before)


single_blas = OneThread(_limit_blas)
"""Around numpy's algebra on many small matrices."""
single_torch = OneThread(_limit_torch)
"""Around torch's."""
