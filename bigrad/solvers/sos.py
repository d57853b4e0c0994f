"""A minimal driver of SCIP (package `pyscipopt`): the global minimum of a quadratic function over linear rows,
complementarity pairs and integers.

    min 1/2 v'Hv + f'v + f0   subject to   rows v <= top (== where `equal`),  low <= v <= high,  v_i v_j == 0 for each pair,
    v_k integer where `integer`

SCIP makes false claims where a relaxation is unbounded (it cuts off nodes that it should branch on), so that here none
is: it minimises w >= F(v) with w >= a floor, and what it proves counts only if that is above the floor. A pair is a
special ordered set of two variables, on which SCIP branches: no bound on either is asked for, no constant is made up. A
convex objective is given as a sum of squares with its minimum taken out; any other as it is, for spatial branching.
Bolusani et al., "The SCIP Optimization Suite 9.0", 2024.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bigrad.parallel import OneThread

OPTIMAL, INFEASIBLE, DEEP, LATE, BROKEN = "optimal", "infeasible", "deep", "late", "broken"
TOLERANCE, LENIENT = 1e-7, 1e-6
"""Feasibility tolerances: the tightest at which SCIP's linear solver is never asked for more than it can, and that at
which infeasibility is believed."""
FLOORS = (1e3, 1e6)
"""How far below zero an objective is followed, in turn, where no bound on it is known."""
EDGE = 1e-3
"""A bound this close to the floor, relatively, may be the floor."""
FLAT = 1e-10
"""An eigenvalue below this, relative to the largest, is zero."""
BREACH = 1e-5
"""A pair with both values above this, relatively, is broken."""


@dataclass(frozen=True, eq=False)
class Sos:
    """A program as in the module's formula; H is symmetric, pairs (count, 2) and integer (count,) hold places in v."""

    H: np.ndarray
    f: np.ndarray
    f0: float
    rows: np.ndarray
    top: np.ndarray
    equal: np.ndarray
    low: np.ndarray
    high: np.ndarray
    pairs: np.ndarray
    integer: np.ndarray


@dataclass(frozen=True, eq=False)
class Found:
    """Where SCIP ended: the best point or None, the proven lower bound (-inf where there is none), its nodes."""

    status: str
    v: np.ndarray | None
    bound: float
    nodes: int = 0


def convex(H: np.ndarray) -> bool:
    """Whether a symmetric matrix is positive semidefinite, to rounding."""
    spectrum = np.linalg.eigvalsh(H) if len(H) else np.zeros(1)
    return bool(spectrum[0] >= -FLAT * (1 + spectrum[-1]))


def minimise(
    program: Sos,
    start: np.ndarray | None = None,
    *,
    floor: float = -np.inf,
    gap: tuple[float, float] = (0.0, 0.0),
    seconds: float = np.inf,
    tolerance: float = TOLERANCE,
) -> Found:
    """Run SCIP silently, without the interpreter lock.

    start: a point to begin with, ignored if not feasible. floor: a bound that is known already. gap: the relative and the
    absolute one at which it may stop. An objective that falls below all FLOORS has the status DEEP.
    """
    return followed(lambda base, left: _run(program, start, base, gap, left, tolerance), floor, seconds)


def followed(run: Callable[[float, float], Found], floor: float, seconds: float) -> Found:
    """What `run` finds above a floor within so many seconds; above each of FLOORS in turn where there is none."""
    if np.isfinite(floor):
        return run(floor, seconds)
    found, end = Found(DEEP, None, -np.inf), time.perf_counter() + seconds
    for depth in FLOORS:
        found = run(-depth, end - time.perf_counter())
        if found.status != OPTIMAL or found.bound > -depth * (1 - EDGE):
            break
        found = replace(found, status=DEEP)
    return found if found.bound > -depth * (1 - EDGE) else replace(found, bound=-np.inf)


def fresh(gap: tuple[float, float], seconds: float, tolerance: float) -> Any:
    """A silent SCIP model without variables."""
    import pyscipopt

    model = pyscipopt.Model()
    model.hideOutput()
    model.setParams(
        {
            "numerics/feastol": tolerance,
            "limits/gap": gap[0],
            "limits/absgap": gap[1],
            "constraints/nonlinear/tightenlpfeastol": False,  # the linear solver would complain on stderr
            "timing/clocktype": 2,  # wall clock
        }
    )
    if np.isfinite(seconds):
        model.setParam("limits/time", max(seconds, 1e-3))
    return model


def solved(model: Any, v: Iterable[Any], pairs: Iterable[Iterable[Any]] = ()) -> Found:
    """Run a model; v: its variables of interest, pairs: its ordered sets.

    SCIP's presolving can lose an ordered set whose variables it has aggregated. Where its point breaks one, it runs again
    without presolving.
    """
    from pyscipopt import SCIP_PARAMSETTING

    places, pairs = list(v), list(pairs)
    found = _optimised(model, places)
    if found.v is None or all(_kept(model, pair) for pair in pairs):
        return found
    model.freeTransform()
    model.setPresolve(SCIP_PARAMSETTING.OFF)
    found = _optimised(model, places)
    return found if found.v is None or all(_kept(model, pair) for pair in pairs) else Found(BROKEN, None, -np.inf)


def _kept(model: Any, pair: Iterable[Any]) -> bool:
    """Whether all but one of an ordered set are zero at SCIP's point."""
    sizes = sorted(abs(model.getSolVal(model.getBestSol(), variable)) for variable in pair)
    return bool(sizes[-2] <= BREACH * (1 + sizes[-1]))


def _optimised(model: Any, v: list[Any]) -> Found:
    try:
        with quiet:
            model.optimizeNogil()
    except Exception as error:  # SCIP's own are of no narrower class
        if "SCIP" not in str(error):
            raise
        return Found(BROKEN, None, -np.inf)
    return _found(model, v)


def _run(
    program: Sos,
    start: np.ndarray | None,
    floor: float,
    gap: tuple[float, float],
    seconds: float,
    tolerance: float,
) -> Found:
    import pyscipopt

    model = fresh(gap, seconds, tolerance)
    v = [
        model.addVar(vtype="I" if k in program.integer else "C", lb=_or_none(a), ub=_or_none(b))
        for k, (a, b) in enumerate(zip(program.low, program.high, strict=True))
    ]

    def linear(row: np.ndarray) -> list[Any]:
        return [float(row[k]) * v[k] for k in np.flatnonzero(row)]

    for row, top, equal in zip(program.rows, program.top, program.equal, strict=True):
        if row.any():
            left = pyscipopt.quicksum(linear(row))
            model.addCons(left == float(top) if equal else left <= float(top))
        elif (abs(top) if equal else -top) > tolerance:
            return Found(INFEASIBLE, None, np.inf)
    pairs = [(v[a], v[b]) for a, b in program.pairs]
    for pair in pairs:
        model.addConsSOS1(list(pair))
    extra = _objective(model, program, v, linear, floor)
    if start is not None:
        offer(model, [*zip(v, start, strict=True), *extra(start)])
    return solved(model, v, pairs)


def _objective(model: Any, program: Sos, v: list[Any], linear: Any, floor: float) -> Any:
    """Give the objective; returns the function from a point to the values of the auxiliary variables."""
    import pyscipopt

    H, f, f0 = program.H, program.f, program.f0
    w = model.addVar(lb=floor)
    model.setObjective(1.0 * w)

    def least(start: np.ndarray) -> float:
        return max(float(start @ H @ start / 2 + f @ start + f0), floor)

    if not H.any():
        model.addCons(pyscipopt.quicksum([*linear(f), f0]) <= w)
        return lambda start: [(w, least(start))]
    if not convex(H):
        t = model.addVar(lb=None)
        at = np.argwhere(np.triu(H))
        terms = [float(H[i, j]) * (0.5 if i == j else 1.0) * v[i] * v[j] for i, j in at]
        model.addCons(pyscipopt.quicksum(terms) <= t)
        model.addCons(pyscipopt.quicksum([*linear(f), t, f0]) <= w)
        return lambda start: [(t, float(start @ H @ start) / 2), (w, least(start))]
    root, shift, rest = _squares(H, f)
    u = [model.addVar(lb=None) for _ in shift]
    for square, row, a in zip(u, root, shift, strict=True):
        model.addCons(square - pyscipopt.quicksum(linear(row)) == float(a))
    t = model.addVar(lb=0.0)
    model.addCons(pyscipopt.quicksum(square * square for square in u) <= 2 * t)
    model.addCons(pyscipopt.quicksum([*linear(rest), t, f0 - float(shift @ shift) / 2]) <= w)

    def values(start: np.ndarray) -> list[tuple[Any, float]]:
        at = root @ start + shift
        return [*zip(u, at, strict=True), (t, float(at @ at) / 2), (w, least(start))]

    return values


def _squares(H: np.ndarray, f: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R, a and r with 1/2 v'Hv + f'v == 1/2 |R v + a|^2 - 1/2 |a|^2 + r'v, where R r == 0."""
    spectrum, axes = np.linalg.eigh(H)
    on = spectrum > FLAT * (1 + spectrum[-1])
    scale, axes = np.sqrt(spectrum[on]), axes[:, on]
    root, shift = scale[:, None] * axes.T, axes.T @ f / scale
    root[abs(root) < FLAT * abs(root).max()] = 0.0
    rest = f - root.T @ shift
    rest[abs(rest) < FLAT * (1 + abs(f).max())] = 0.0
    return root, shift, rest


def offer(model: Any, values: Iterable[tuple[Any, float]]) -> None:
    """Give a model a point to begin with."""
    solution = model.createSol()
    for variable, value in values:
        model.setSolVal(solution, variable, float(value))
    model.addSol(solution)


def _found(model: Any, v: Iterable[Any]) -> Found:
    ending = model.getStatus()
    if ending == "userinterrupt":
        raise KeyboardInterrupt
    best = model.getBestSol() if model.getNSols() else None
    point = None if best is None else np.array([model.getSolVal(best, k) for k in v])
    bound = model.getDualbound()
    bound = bound if abs(bound) < model.infinity() else -np.inf
    nodes = int(model.getNTotalNodes())
    if ending in ("optimal", "gaplimit") and point is not None:
        return Found(OPTIMAL, point, bound, nodes)
    if ending == "infeasible":
        return Found(INFEASIBLE, None, np.inf, nodes)
    return Found(LATE, point, bound, nodes) if ending == "timelimit" else Found(BROKEN, point, -np.inf, nodes)


def _or_none(bound: float) -> float | None:
    return float(bound) if np.isfinite(bound) else None


@cache
def _library() -> Any:
    """The SCIP library that pyscipopt has loaded, None where it is not found."""
    import pyscipopt

    home = Path(pyscipopt.__file__).parent
    for path in (*home.parent.glob("pyscipopt.libs/libscip*"), *home.glob(".dylibs/libscip*")):
        with suppress(OSError):
            return ctypes.CDLL(str(path))
    return None


def _hush() -> Any:
    """Keep SCIP from printing its errors, which it raises too; returns what undoes it."""
    library = _library()
    if library is None:
        return lambda: None
    library.SCIPmessageSetErrorPrinting(None, None)
    return library.SCIPmessageSetErrorPrintingDefault


quiet = OneThread(_hush)
