"""Search: the exact optimum of a nested program with integers, by whichever of four roads its structure allows.

Knapsack interdiction goes to `knapsack`; a zero-sum program whose follower is, or might as well be, a linear program to
`dual`; a continuous follower to `optimality`; everything else to `tree`, the one with cuts. Whatever the road, the
follower is solved again at the decision found, by HiGHS and by SCIP, before anything is claimed. After Tahernejad, Ralphs
and DeNegre, "A branch-and-cut algorithm for mixed integer bilevel linear optimization problems and its implementation",
2020, in that the structure decides which cuts are used.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from bigrad.discrete.milp import End, Milp
from bigrad.discrete.nested import Nested
from bigrad.exact import dual, knapsack
from bigrad.exact.answers import Follower, Pool, Responder, joined
from bigrad.exact.ended import Ended
from bigrad.exact.optimality import conditions
from bigrad.exact.second import opinion
from bigrad.solution import CapabilityError, Status
from bigrad.solvers import sos

AGREE = 1e-6
"""How far the follower's cost at the point found may be above its optimum by another solver, relative to 1 + |optimum|."""
FLOOR = 1e7
"""How far below zero an objective is followed where the relaxation is unbounded."""
VERIFY = 5.0
"""Seconds, at least, that the check of the final point may take."""


def refusal(nested: Nested) -> str | None:
    """The sentence that says why `search` cannot decide a program, None if it can."""
    n = nested.leaders
    if not nested.integer[n:].any():
        return None
    rows = nested.follower_rows.matrix
    coupled = rows[rows[:, n:].toarray().any(axis=1)][:, :n].toarray().any(axis=0)
    open_ = np.flatnonzero(coupled & ~nested.integer[:n])
    if len(open_):
        return (
            f"Leader variable {open_[0]} is continuous and stands in the rows of a follower with integers, so that the "
            f"infimum need not be attained; make it integer, on a grid if need be, or make the follower continuous."
        )
    return None


def search(
    nested: Nested, pool: Pool | None = None, gap: float = 0.0, time_limit: float | None = None, seed: int = 0
) -> Ended:
    """The optimum of a nested program, in the optimistic sense.

    pool: rivals of the follower known from other programs with the same follower rows; it is added to. gap: GLOBAL says
    that value - bound <= gap (1 + |value|), or to rounding where gap is 0. time_limit: in seconds.

    Raises:
        CapabilityError: a program whose infimum need not be attained.
        InputError: a pool of another follower.
    """
    since = time.perf_counter()
    end = since + (np.inf if time_limit is None else time_limit)
    if (reason := refusal(nested)) is not None:
        raise CapabilityError(reason)
    follower, pool = Follower.of(nested), Pool() if pool is None else pool
    pool.claim(follower)
    responder = Responder(nested, follower, seed)
    found = _search(nested, follower, responder, pool, gap, end, seed)
    if found.status.ok:
        found = _checked(nested, follower, responder, found, gap, max(end - time.perf_counter(), VERIFY))
    elif found.status is Status.INFEASIBLE_UPPER:
        found = replace(found, status=_blame(nested, end))
    return replace(found, answers=responder.solves, seconds=time.perf_counter() - since)


def _search(
    nested: Nested, follower: Follower, responder: Responder, pool: Pool, gap: float, end: float, seed: int
) -> Ended:
    if (nested.lower > nested.upper).any():
        return Ended(Status.INFEASIBLE_UPPER)
    if (program := knapsack.recognise(nested)) is not None:
        return _knapsack(nested, responder, program, end)
    relaxed, floor = _relaxed(nested, end)
    if relaxed is End.INFEASIBLE:
        return Ended(Status.INFEASIBLE_UPPER)
    if relaxed is End.LATE:
        return Ended(Status.TIME_LIMIT)
    if not follower.D.any() and responder.ray(np.zeros(nested.leaders)) is not None:
        blame = _blame(nested, end)
        return Ended(Status.UNBOUNDED_LOWER if blame is Status.INFEASIBLE_UPPER else blame)
    if relaxed is not End.UNBOUNDED and (mirror := dual.dualise(nested, follower, seed)) is not None:
        return _dual(nested, responder, mirror, end)
    if not follower.integer.any():
        return _linear(nested, follower, responder, gap, end)
    from bigrad.exact import trunk

    return trunk.grow(nested, follower, responder, pool, gap, end, seed, floor, relaxed is End.UNBOUNDED)


def _relaxed(nested: Nested, end: float) -> tuple[End, float]:
    """How the linear relaxation of both levels' rows ends, products left out, and a bound below the objective."""
    rows, f = joined([nested.leader_rows, nested.follower_rows]), nested.leader
    n = nested.leaders
    low, high = nested.lower, nested.upper
    none = np.zeros(len(low), dtype=bool)
    milp = Milp(f.linear, rows.matrix, rows.lower, rows.upper, low, high, none)
    found = milp.solve(end - time.perf_counter())
    floor = found.value
    for i, j, a in zip(*f.cross.tocoo().coords, f.cross.tocoo().data, strict=True):
        corners = [a * u * v for u in (low[i], high[i]) for v in (low[n + j], high[n + j])]
        floor += min(corners) if np.isfinite(corners).all() else -np.inf
    if found.end is End.OPTIMAL and not np.isfinite(floor):
        return End.UNBOUNDED, -FLOOR
    return found.end, floor - 1e-3 * (1 + abs(floor)) if found.end is End.OPTIMAL else -FLOOR


def _knapsack(nested: Nested, responder: Responder, program: knapsack.Interdiction, end: float) -> Ended:
    cut = knapsack.solve(program, end)
    x = np.zeros(nested.leaders)
    x[program.remover[cut.x]] = 1.0
    answer = responder.answer(x)
    late = cut.bound < cut.value - 1e-6 * (1 + abs(cut.value))
    constant = nested.leader.constant
    status = Status.OPEN if late else Status.GLOBAL
    return Ended(status, x, answer.y, cut.value + constant, cut.bound + constant, nodes=cut.nodes, road="knapsack")


def _dual(nested: Nested, responder: Responder, program: dual.Dual, end: float) -> Ended:
    found, bound = dual.solve(program, nested, end - time.perf_counter())
    if found.v is None:
        known = {
            End.INFEASIBLE: Status.INFEASIBLE_UPPER,
            End.LATE: Status.TIME_LIMIT,
            End.UNBOUNDED: Status.UNBOUNDED_UPPER,
        }
        return Ended(known.get(found.end, Status.FAILED), bound=bound, road="dual")
    x = found.v
    whole = nested.integer[: nested.leaders]
    x[whole] = np.round(x[whole])
    answer = responder.answer(x)
    if answer.y is None:
        cause = "the follower has no answer to the decision found"
        return Ended(Status.FAILED, bound=bound, cause=cause, road="dual")
    value = nested.leader(x, answer.y)
    status = Status.OPEN if found.end is End.LATE else Status.GLOBAL
    return Ended(status, x, answer.y, value, min(bound, value), road="dual")


def _linear(nested: Nested, follower: Follower, responder: Responder, gap: float, end: float) -> Ended:
    n = nested.leaders
    ended = sos.minimise(conditions(nested, follower), gap=(gap, 1e-9), seconds=end - time.perf_counter())
    if ended.v is None:
        known = {
            sos.INFEASIBLE: Status.INFEASIBLE_UPPER,
            sos.DEEP: Status.UNBOUNDED_UPPER,
            sos.LATE: Status.TIME_LIMIT,
        }
        status = known.get(ended.status, Status.FAILED)
        return Ended(status, bound=ended.bound, nodes=ended.nodes, road="optimality")
    x, y = ended.v[:n].copy(), ended.v[n : n + nested.followers]
    whole = nested.integer[:n]
    x[whole] = np.round(x[whole])
    answer = responder.answer(x)
    if answer.y is not None:
        over, v = responder.reaction(x, answer.value)
        if over is End.UNBOUNDED:
            return Ended(Status.UNBOUNDED_UPPER, nodes=ended.nodes, road="optimality")
        if v is not None:
            x, y = v[:n], v[n:]
    value = nested.leader(x, y)
    known = {sos.OPTIMAL: Status.GLOBAL, sos.LATE: Status.OPEN}
    if ended.status == sos.DEEP:
        return Ended(Status.FAILED, cause="the objective falls below any bound tried", road="optimality")
    status = known.get(ended.status, Status.FAILED)
    return Ended(status, x, y, value, min(ended.bound, value), nodes=ended.nodes, road="optimality")


def _blame(nested: Nested, end: float) -> Status:
    """Which level leaves nothing: the follower if none of the leader's decisions has an answer."""
    rows = nested.follower_rows
    costs = np.zeros(len(nested.lower))
    milp = Milp(costs, rows.matrix, rows.lower, rows.upper, nested.lower, nested.upper, nested.integer)
    alone = milp.solve(end - time.perf_counter()).end
    return Status.INFEASIBLE_LOWER if alone is End.INFEASIBLE else Status.INFEASIBLE_UPPER


def _checked(
    nested: Nested, follower: Follower, responder: Responder, found: Ended, gap: float, seconds: float
) -> Ended:
    """The claim, if two other solves of the follower and all rows bear it out; else FAILED."""
    x, y = found.x, found.y
    failed = replace(found, status=Status.FAILED, x=None, y=None, value=np.nan, bound=-np.inf)
    if x is None or y is None:
        return replace(failed, cause="HiGHS broke down on the follower at the decision found")
    rows = joined([nested.leader_rows, nested.follower_rows])
    z = np.concatenate([x, y])
    at = rows.matrix @ z
    scale = 1 + abs(rows.matrix) @ abs(z)
    off = max(
        float(np.max(np.maximum(rows.lower - at, at - rows.upper) / scale, initial=0.0)),
        float(np.max(np.maximum(nested.lower - z, z - nested.upper) / (1 + abs(z)), initial=0.0)),
        float(np.max(abs(z - np.round(z))[nested.integer], initial=0.0)),
    )
    if off > AGREE:
        return replace(failed, cause=f"the point found breaks a row, a bound or an integer by {off:.1e}")
    cost = float(follower.costs(x) @ y)
    for solver, best in (("HiGHS", responder.answer(x, seconds).value), ("SCIP", opinion(follower, x, seconds))):
        if not abs(cost - best) <= AGREE * (1 + abs(best)):
            return replace(failed, cause=f"the follower pays {cost:.9g} at the point found, but {best:.9g} by {solver}")
    value = nested.leader(x, y)
    bound = min(found.bound, value)
    proven = value - bound <= max(gap, 1e-6) * (1 + abs(value))
    if found.status is Status.GLOBAL and not proven:
        return replace(found, status=Status.OPEN, value=value, bound=bound)
    return replace(found, value=value, bound=bound)
