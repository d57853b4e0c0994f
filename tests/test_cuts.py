"""The exact solver of nested programs with integers, against enumeration of every decision and every answer."""

import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import linprog

from bigrad import CapabilityError, InputError, Status
from bigrad.mibs import read_mibs
from bigrad.nested import Nested, Objective, Rows
from bigrad.solvers.answers import Pool
from bigrad.solvers.cuts import refusal, search

DATA = Path(__file__).parent / "data" / "mibs"
FREE = np.inf


def rows(matrix, lower, upper):
    return Rows(sp.csr_array(np.atleast_2d(np.asarray(matrix, float))), np.array(lower, float), np.array(upper, float))


def no_rows(size):
    return Rows(sp.csr_array((0, size)), np.zeros(0), np.zeros(0))


def objective(linear, cross, constant=0.0):
    return Objective(np.asarray(linear, float), sp.csr_array(np.asarray(cross, float)), constant)


def draw(seed, *, n=2, p=2, m=2, k=1, box=3, continuous=0, zero_sum=False, cross=False, equal=False, low=0, free=0, top=0):
    """A random program; `continuous` follower's and `free` leader's variables are not integer and not linking."""
    rng = np.random.default_rng(seed)
    size = n + free + p
    lead = n + free
    lower, upper = np.full(size, float(low)), np.full(size, float(low + box))
    integer = np.ones(size, dtype=bool)
    integer[n:lead] = False
    if continuous:
        integer[size - continuous :] = False
    inner = rng.integers(-4, 7, (m, size)).astype(float)
    inner[:, n:lead] = 0.0
    middle = inner @ (lower + upper) / 2
    hi = np.floor(middle + rng.integers(0, 6, m))
    lo = np.full(m, -FREE)
    if equal:
        inner[0] = 0.0
        inner[0, :n], inner[0, lead:] = 1.0, 1.0
        lo[0] = hi[0] = np.floor((lower + upper)[0] / 2 * (n + p))
    outer = rng.integers(-4, 7, (k, size)).astype(float)
    if zero_sum and top == 0:
        outer[:, lead:] = 0.0
    limit = np.floor(outer @ (lower + upper) / 2 + rng.integers(0, 8, k))
    d = np.concatenate([np.zeros(lead), rng.integers(-6, 7, p)]).astype(float)
    D = np.zeros((lead, p))
    if cross:
        D[:n] = rng.integers(-2, 3, (n, p))
    c, C = rng.integers(-6, 7, size).astype(float), np.zeros((lead, p))
    if zero_sum:
        c[lead:], C = -d[lead:], -D
    elif cross:
        C[:n] = rng.integers(-2, 3, (n, p))
    return Nested(
        lead, p, lower, upper, integer, rows(outer, np.full(k, -FREE), limit), rows(inner, lo, hi), objective(c, C, 1.5), objective(d, D)
    )


def lp(c, parts, bounds):
    """min c'v subject to lower <= A v <= upper for each part; None if infeasible."""
    A = np.concatenate([part for matrix, lo, hi in parts for part in (matrix[hi < FREE], -matrix[lo > -FREE])])
    b = np.concatenate([part for matrix, lo, hi in parts for part in (hi[hi < FREE], -lo[lo > -FREE])])
    found = linprog(c, A_ub=A if len(A) else None, b_ub=b if len(b) else None, bounds=bounds, method="highs")
    return found.fun if found.status == 0 else None


def brute(nested):
    """The optimum by enumeration of all integers, continuous variables by linear programs; None if infeasible."""
    n, p = nested.leaders, nested.followers
    whole = np.flatnonzero(nested.integer)
    above, below = whole[whole < n], whole[whole >= n]
    grid = [np.arange(nested.lower[j], nested.upper[j] + 1) for j in range(n + p) if nested.integer[j]]
    outer, inner = nested.leader_rows, nested.follower_rows
    A, B = outer.matrix.toarray(), inner.matrix.toarray()
    best = None
    bounds = list(zip(nested.lower, nested.upper, strict=True))
    for xi in itertools.product(*grid[: len(above)]):
        x = np.zeros(n)
        x[above] = xi
        costs = nested.follower.on_follower(x)
        answers = []
        for yi in itertools.product(*grid[len(above) :]):
            fixed = list(bounds)
            for j, v in zip([*above, *below], [*xi, *yi], strict=True):
                fixed[j] = (v, v)
            value = lp(np.concatenate([np.zeros(n), costs]), [(B, inner.lower, inner.upper)], fixed)
            if value is not None:
                answers.append((value, fixed))
        if not answers:
            continue
        phi = min(value for value, _ in answers)
        f = np.concatenate([nested.leader.linear[:n], nested.leader.on_follower(x)])
        level = (np.concatenate([np.zeros(n), costs])[None], np.array([-FREE]), np.array([phi + 1e-9]))
        for value, fixed in answers:
            if value <= phi + 1e-9:
                found = lp(f, [(A, outer.lower, outer.upper), (B, inner.lower, inner.upper), level], fixed)
                if found is not None and (best is None or found < best):
                    best = found
    return None if best is None else best + nested.leader.constant


KINDS = {
    "general": {"n": 2, "p": 2},
    "wide": {"n": 3, "p": 3, "m": 3, "box": 1},
    "negative": {"low": -2},
    "equal": {"equal": True, "m": 2},
    "coupled": {"k": 3},
    "zero sum": {"zero_sum": True},
    "zero sum coupled": {"zero_sum": True, "k": 2, "top": 1},
    "zero sum binary": {"zero_sum": True, "n": 3, "p": 3, "box": 1},
    "prices": {"cross": True, "box": 2},
    "binary prices": {"cross": True, "box": 1, "n": 3, "p": 3},
    "zero sum prices": {"cross": True, "zero_sum": True, "box": 2},
    "mixed": {"continuous": 1},
    "mixed coupled": {"continuous": 1, "k": 2, "m": 3},
    "linear": {"continuous": 2},
    "linear prices": {"continuous": 2, "cross": True, "box": 2},
    "linear zero sum": {"continuous": 2, "zero_sum": True},
    "linear zero sum prices": {"continuous": 2, "zero_sum": True, "cross": True, "m": 1, "box": 2},
    "leader's own": {"free": 1, "k": 2},
    "leader's own zero sum": {"free": 1, "k": 2, "zero_sum": True},
}


def agree(nested, found, expected):
    if expected is None:
        assert found.status in (Status.INFEASIBLE_UPPER, Status.INFEASIBLE_LOWER), (found.status, found.cause)
        return
    assert found.status is Status.GLOBAL, (found.status, found.cause, found.road, expected)
    assert found.value == pytest.approx(expected, abs=2e-5)
    assert found.value - 1e-5 <= found.bound + 2e-6 * (1 + abs(found.value)) <= found.value + 1e-4
    assert nested.leader(found.x, found.y) == pytest.approx(found.value, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", KINDS)
def test_the_optimum_is_that_of_enumeration(kind, seed):
    nested = draw(100 + seed, **KINDS[kind])
    agree(nested, search(nested), brute(nested))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_more_of_each_kind(kind):
    for seed in range(1000, 1060):
        nested = draw(seed, **KINDS[kind])
        agree(nested, search(nested), brute(nested))
