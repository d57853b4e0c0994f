"""Spread: a batch in chunks, each solved in a process of its own, on this machine or on a cluster.

joblib runs the chunks, on the backend that `joblib.parallel_config` names: processes of this machine (loky) by default,
"dask" or "ray" for a cluster. A process rebuilds the program once, whatever the number of chunks it gets.
"""

from __future__ import annotations

import hashlib
import pickle
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from bigrad.parallel import only_one, single_blas
from bigrad.processes import Lost, processes, run
from bigrad.program import Program
from bigrad.solution import BigradError, InputError, Outcome, Point, Status
from bigrad.solvers.base import AbstractSolver, batch_size, check_settings

ROUNDS = 4
"""Chunks for each process: enough that none waits long for the last one."""
KEPT = 8
"""Programs that a process keeps."""


@dataclass(frozen=True)
class Spread(AbstractSolver):
    """A solver that hands the items of a batch to other processes, each of which works with one thread.

    Choose it where a batch takes at least some seconds: a process starts in a few, and keeps running afterwards.
    solver: the one that does the work; the program's own default (`bg.Auto()`) if None. n_jobs: processes, -1 for one
    a processor; 1 stays in this process; a cluster uses all of its own. chunk: items a job, None for a few jobs a
    process; each chunk is a batch of its own. progress: whether to show a bar. time_limit: seconds per item, or None.

    With a time limit the items are solved one by one, and a solver that has a time limit gets this one. An item whose
    solver ignores it, or is stuck in compiled code, is given up `processes.GRACE` seconds later with the status
    TIME_LIMIT; its process is ended if it belongs to joblib, while on a cluster it stays busy. An item at which the
    process dies or the solver raises ends as FAILED, with `stats.cause`. All other items keep their results. What
    bigrad raises on purpose is raised here too.
    """

    solver: AbstractSolver | None = None
    n_jobs: int | None = -1
    chunk: int | None = None
    progress: bool = False
    time_limit: float | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise InputError(f"Spread(chunk={self.chunk}): give at least one item, or None.")
        check_settings(self)
        if self.time_limit == 0:
            raise InputError("Spread(time_limit=0): give seconds above zero, in which a process can begin, or None.")
        if self.n_jobs == 0:
            raise InputError("Spread(n_jobs=0): give the number of processes, or -1 for one a processor.")
        if self.solver is not None and (isinstance(self.solver, type) or not hasattr(self.solver, "accepts")):
            raise InputError(
                f"Spread(solver={self.solver!r:.80}): give a solver object, such as bigrad.Pieces(), or leave it out."
            )
        if isinstance(self.solver, Spread):
            raise InputError("Spread(solver=Spread(…)): a batch is spread once; give the solver that does the work.")

    def accepts(self, program: Program) -> str | None:
        """What the solver that does the work says."""
        if program.inner:
            return "Spread() hands out the items of a batch, and a torch function has none. Use Descent()."
        return self._inner(program).accepts(program)

    def choose(self, program: Program) -> tuple[AbstractSolver, str]:
        """Itself, with the solver that will do the work."""
        inner, why = self._inner(program).choose(program)
        return replace(self, solver=inner), f"{why} The batch is spread over processes (n_jobs: {self.n_jobs})."

    def solve(
        self, program: Program, theta: tuple[np.ndarray, ...], warm_start: Sequence[Point | None] | None = None
    ) -> Outcome:
        """Solve a batch; see AbstractSolver.solve."""
        from tqdm import tqdm

        batch, inner = batch_size(theta), self._inner(program)
        size = self.chunk or max(1, -(-batch // (ROUNDS * processes(self.n_jobs))))
        parts = [np.arange(k, min(k + size, batch)) for k in range(0, batch, size)]
        if self.time_limit is not None:
            inner = limited(inner.choose(program)[0], self.time_limit)
        token, packed = _packed(program)

        def arguments(part: np.ndarray) -> tuple[Any, ...]:
            some = None if warm_start is None else [warm_start[i] for i in part]
            picked = tuple(t[part] if t.ndim > 1 else t for t in theta)
            return token, packed, inner, self.time_limit is not None, some, picked

        found: dict[int, list[Outcome | Lost]] = {}
        with tqdm(total=batch, disable=not self.progress, unit="item") as bar:
            for part, result in run(_solve, arguments, parts, self.n_jobs, self.time_limit):
                if isinstance(result, BigradError):
                    raise result
                found[int(part[0])] = [result] if isinstance(result, Lost) else result
                bar.update(len(part))
        pieces = [piece for start in sorted(found) for piece in found[start]]
        template = next((p for p in pieces if isinstance(p, Outcome)), None)
        return Outcome.join([_missing(program, p, template) if isinstance(p, Lost) else p for p in pieces])

    def _inner(self, program: Program) -> AbstractSolver:
        return cast(AbstractSolver, program.default) if self.solver is None else self.solver


def limited(solver: AbstractSolver, seconds: float) -> AbstractSolver:
    """The solver with this time limit, or its own if that is shorter; itself if it has none to set."""
    settings: Any = solver
    if "time_limit" not in getattr(solver, "__dataclass_fields__", ()):
        return solver
    own = settings.time_limit
    return cast(AbstractSolver, replace(settings, time_limit=seconds if own is None else min(own, seconds)))


def _missing(program: Program, lost: Lost, template: Outcome | None) -> Outcome:
    """The Outcome of one item without a result, in the form of `template`, or else in that of the program."""
    if program.combinatorial:
        width = size = len(program.combinatorial.base.lower)
        pairs = 0
    else:
        layout = program.quadratic.sizes if program.quadratic else program.smooth.layout
        width, size, pairs = layout.blocks[-1].stop, layout.x + layout.y, layout.pairs
    shapes: dict[str, tuple[type, tuple[int, ...]]] = {
        "w": (float, (width,)), "free": (bool, (width,)), "z": (float, (size,)), "tight": (bool, (pairs,)),
        **dict.fromkeys(("value", "residual", "violation", "seconds"), (float, ())),
        **dict.fromkeys(("starts", "iterations", "biactive", "degenerate"), (int, ())),
        **dict.fromkeys(("strongly_stationary", "singular"), (bool, ())),
    }  # fmt: skip
    if template is not None:
        shapes = {k: (kind, getattr(template, k).shape[1:]) for k, (kind, _) in shapes.items()}
    blank: dict[str, Any] = {
        k: np.full((1, *s), np.nan if kind is float else kind(0)) for k, (kind, s) in shapes.items()
    }
    return Outcome(
        solver="Spread" if template is None else template.solver,
        smooth=not program.combinatorial and program.quadratic is None if template is None else template.smooth,
        effort=np.zeros((1, 3)) if program.combinatorial else None,
        status=np.array([Status.TIME_LIMIT if lost.late else Status.FAILED], dtype=object),
        bound=np.array([-np.inf]),
        cause=np.array([lost.cause], dtype=object),
        **blank,
    )


def _solve(
    token: str,
    packed: bytes,
    solver: AbstractSolver,
    apart: bool,
    warm: list[Point | None] | None,
    theta: tuple[np.ndarray, ...],
) -> list[Outcome | Lost] | BigradError:
    """What a process does with a chunk: one Outcome, or one for each item where they are solved one by one (`apart`)."""
    before = only_one.set(True)
    try:
        with single_blas:
            program = _program(token, packed)
            batch = batch_size(theta)
            if not apart or batch == 1:
                result = _attempt(program, solver, theta, warm)
                if isinstance(result, Outcome) or batch == 1:
                    return [result]
            alone = [tuple(t[i : i + 1] if t.ndim > 1 else t for t in theta) for i in range(batch)]
            return [_attempt(program, solver, one, warm and warm[i : i + 1]) for i, one in enumerate(alone)]
    except BigradError as error:
        return error
    finally:
        only_one.reset(before)


def _attempt(
    program: Program, solver: AbstractSolver, theta: tuple[np.ndarray, ...], warm: list[Point | None] | None
) -> Outcome | Lost:
    """The outcome, or what the solver raised."""
    try:
        return solver.solve(program, theta, warm)
    except BigradError:
        raise
    except Exception as error:
        return Lost(False, f"The solver raised {type(error).__name__}: {error}")


_sent: weakref.WeakKeyDictionary[Program, tuple[str, bytes]] = weakref.WeakKeyDictionary()
_here: weakref.WeakValueDictionary[str, Program] = weakref.WeakValueDictionary()
_rebuilt: OrderedDict[str, Program] = OrderedDict()
_lock = threading.RLock()


def _packed(program: Program) -> tuple[str, bytes]:
    """The program's token and itself as bytes: arrays of its own would be lost with the Dask worker that keeps them."""
    import cloudpickle

    with _lock:
        if program not in _sent:
            blob = cloudpickle.dumps(program)  # a follower may be any function
            _sent[program] = hashlib.sha256(blob).hexdigest(), blob
        token, packed = _sent[program]
        _here[token] = program
    return token, packed


def _program(token: str, packed: bytes) -> Program:
    """The program of a token: the caller's own in its own process, else rebuilt when first met."""
    with _lock:
        if token in _here:
            return _here[token]
        if token not in _rebuilt:
            _rebuilt[token] = pickle.loads(packed)
            if len(_rebuilt) > KEPT:
                _rebuilt.popitem(last=False)
        _rebuilt.move_to_end(token)
        return _rebuilt[token]
