"""Where the tree of `tree` starts and how its end is read.

It starts from what is known before any branching: rivals of the pool, an answer that every decision of the leader leaves
feasible (then a zero-sum program needs no copy of y), and the bound of the linear relaxation as a floor. Fischetti,
Ljubic, Monaci and Sinnl, "A new general-purpose algorithm for mixed-integer bilevel linear programs", 2017, on what such
a start is worth.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from bigrad.discrete.milp import Milp
from bigrad.discrete.nested import Nested
from bigrad.exact.answers import Follower, Pool, Responder
from bigrad.exact.ended import Ended
from bigrad.exact.master import Master
from bigrad.exact.tree import Rational, Record
from bigrad.solution import Status


def grow(
    nested: Nested,
    follower: Follower,
    responder: Responder,
    pool: Pool,
    gap: float,
    end: float,
    seed: int,
    floor: float,
    unbounded: bool,
) -> Ended:
    """Search by branch and cut; see `nested.search`. unbounded: the relaxation is, so that the floor proves nothing."""
    n = nested.leaders
    firm = steady(nested, follower, end, seed)
    opposed = nested.zero_sum and not nested.leader_rows.matrix[:, n:].nnz
    master = Master(nested, follower, floor, not opposed or firm is None, opposed)
    record = Record()
    handler = Rational(master, responder, pool, record, end)
    master.model.includeConshdlr(
        handler,
        "rational",
        "y is an optimal answer to x",
        enfopriority=100,
        chckpriority=-5_000_000,
        eagerfreq=-1,
        needscons=False,
    )
    if firm is not None:
        pool.add(firm)
    handler.plant()
    ending = master.run(end, gap, seed)
    handler.harvest()
    found = _read(nested, master, record, ending, unbounded)
    if record.error is not None and not isinstance(record.error, TimeoutError | RuntimeError):
        raise record.error
    return found


def steady(nested: Nested, f: Follower, end: float, seed: int) -> np.ndarray | None:
    """The follower's cheapest answer, at costs d, among those that are feasible whatever the leader decides."""
    low, high = nested.lower[: nested.leaders], nested.upper[: nested.leaders]
    with np.errstate(invalid="ignore"):
        most = np.where(f.G > 0, f.G * high, np.where(f.G < 0, f.G * low, 0.0)).sum(axis=1)
    if not np.isfinite(most).all():
        return None
    milp = Milp(f.d, sp.csr_array(f.A), np.full(len(f.h), -np.inf), f.h - most, f.low, f.high, f.integer, seed)
    return milp.solve(min(end - time.perf_counter(), 5.0)).v


def _read(nested: Nested, master: Master, record: Record, ending: str, unbounded: bool) -> Ended:
    if ending == "userinterrupt" and record.error is None and not (record.unbounded or record.late):
        raise KeyboardInterrupt
    model = master.model
    bound = min(float(model.getDualbound()), record.bound)
    bound = bound + nested.leader.constant if abs(bound) < model.infinity() and not unbounded else -np.inf
    nodes = int(model.getNTotalNodes())
    nothing = Ended(Status.FAILED, cuts=record.cuts, splits=record.splits, nodes=nodes)
    if record.unbounded:
        return replace(nothing, status=Status.UNBOUNDED_UPPER)
    late = record.late or ending == "timelimit" or isinstance(record.error, TimeoutError)
    done = ending in ("optimal", "gaplimit", "infeasible") and record.error is None
    if record.x is None or record.y is None:
        if late:
            return replace(nothing, status=Status.TIME_LIMIT, bound=bound)
        if ending == "infeasible" and done:
            return replace(nothing, status=Status.INFEASIBLE_UPPER)
    elif done or late:
        point = replace(nothing, x=record.x, y=record.y, value=record.value)
        if not done:
            return replace(point, status=Status.OPEN, bound=min(bound, record.value))
        best = float(model.getPrimalbound()) + nested.leader.constant
        if record.value > best + 1e-5 * (1 + abs(best)):
            return replace(nothing, cause=f"SCIP finds {best:.9g}, but no point of that value bears the check")
        if not unbounded or record.value > master.floor * (1 - 1e-3):
            bound = float(model.getDualbound()) + nested.leader.constant if ending == "gaplimit" else record.value
            return replace(point, status=Status.GLOBAL, bound=min(bound, record.value))
        return replace(nothing, cause="the objective falls below any bound tried")
    return replace(nothing, cause=str(record.error or f"SCIP ended with '{ending}'"))
