"""Jobs run in other processes through joblib, where one that kills its process or never returns costs only itself.

A pool loses all that is under way when one of its processes dies, and does not say whose fault it was. So the jobs that
were under way are run again one at a time, where the guilty one is certain; one of several parts is halved until the bad
part stands alone. Everything that was finished before is kept. joblib's own backends (loky, Dask, Ray) are those of
`joblib.parallel_config`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from multiprocessing import TimeoutError as JobTimeout
from typing import Any, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")
GRACE = 60.0
"""Seconds that a process may need to start, import and receive its job, before time limits count."""


class Lost(NamedTuple):
    """What became of a part that has no result: whether it was for its time, and why in words."""

    late: bool
    cause: str


def processes(n_jobs: int | None) -> int:
    """How many jobs joblib runs at once under the current `joblib.parallel_config`."""
    import joblib

    return int(joblib.effective_n_jobs(n_jobs))


def run(
    work: Callable[..., T],
    arguments: Callable[[np.ndarray], Sequence[Any]],
    parts: Sequence[np.ndarray],
    n_jobs: int | None,
    time_limit: float | None,
) -> Iterator[tuple[np.ndarray, T | Lost]]:
    """`work(*arguments(part))` for each part (an array of indices), as they end, in no order, with the part they are of.

    time_limit: seconds for each index of a part. A part that ends its process, or that is not back GRACE seconds after
    its limit, is split, and a single index that does so is Lost. Only a process that joblib can end is freed: loky's
    are; on a cluster the stuck task keeps its worker, and whether a dead worker is noticed is the cluster's affair. With
    one job joblib stays in this process, where nothing can be ended. Exceptions raised by `work` are raised here.
    """
    together, suspects = list(parts), list[np.ndarray]()
    while together or suspects:
        jobs, alone = (together, False) if together else ([suspects.pop()], True)
        together, under_way = [], dict[int, np.ndarray]()
        waiting = iter(enumerate(jobs))
        timeout = None
        if time_limit is not None and processes(n_jobs) > 1:
            timeout = GRACE + time_limit * max(len(part) for part in jobs)
        try:
            for k, result in _results(work, arguments, waiting, under_way, n_jobs, timeout, alone):
                yield under_way.pop(k), result
        except (JobTimeout, BrokenExecutor) as error:
            late = isinstance(error, JobTimeout)
            for part in under_way.values():
                if not (alone or late):
                    suspects.append(part)
                elif len(part) > 1:
                    (together if late else suspects).extend(np.array_split(part, len(part) if late else 2))
                else:
                    yield part, Lost(late, _sentence(error, late))
            together.extend(part for _, part in waiting)


def _results(
    work: Callable[..., T],
    arguments: Callable[[np.ndarray], Sequence[Any]],
    waiting: Iterator[tuple[int, np.ndarray]],
    under_way: dict[int, np.ndarray],
    n_jobs: int | None,
    timeout: float | None,
    alone: bool,
) -> Iterator[tuple[int, T]]:
    """Results by the number of their job. What joblib has taken of `waiting` and not returned is `under_way`."""
    from joblib import Parallel, delayed

    def tasks() -> Iterator[Any]:
        for k, part in waiting:
            under_way[k] = part
            yield delayed(_numbered)(k, work, *arguments(part))

    several = n_jobs if not alone or processes(n_jobs) == 1 else 2  # with one job joblib would stay in this process
    pool = Parallel(several, return_as="generator_unordered", pre_dispatch="n_jobs", batch_size=1, timeout=timeout)
    results = pool(tasks())
    try:
        while (result := next(results, None)) is not None:
            yield result
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joblib's, that the remaining results are not wanted
            results.close()


def _numbered(k: int, work: Callable[..., T], *arguments: Any) -> tuple[int, T]:
    return k, work(*arguments)


def _sentence(error: BaseException, late: bool) -> str:
    if late:
        return "It was not back long after its time limit, and was given up."
    text = " ".join(str(error).split())
    return f"The process that worked on it died ({type(error).__name__}: {text[:300]})."
