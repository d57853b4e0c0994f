"""The exact solver of nested programs with integers, against enumeration of every decision and every answer."""

import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.optimize import linprog

import bigrad as bg
from bigrad import CapabilityError, InputError, Status
from bigrad.discrete.mibs import read_mibs
from bigrad.discrete.nested import Nested, Objective, Rows
from bigrad.exact.answers import Pool
from bigrad.exact.nested import refusal, search

DATA = Path(__file__).parent / "data" / "mibs"
FREE = np.inf


def rows(matrix, lower, upper):
    return Rows(sp.csr_array(np.atleast_2d(np.asarray(matrix, float))), np.array(lower, float), np.array(upper, float))


def no_rows(size):
    return Rows(sp.csr_array((0, size)), np.zeros(0), np.zeros(0))


def objective(linear, cross, constant=0.0):
    return Objective(np.asarray(linear, float), sp.csr_array(np.asarray(cross, float)), constant)


def draw(
    seed,
    *,
    n=2,
    p=2,
    m=2,
    k=1,
    box=3,
    continuous=0,
    zero_sum=False,
    cross=False,
    equal=False,
    low=0,
    free=0,
    top=0,
    own=False,
):
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
    d[:lead] = np.random.default_rng(seed).integers(-6, 7, lead)  # it cannot influence these
    D = np.zeros((lead, p))
    if cross:
        D[:n] = rng.integers(-2, 3, (n, p))
    c, C = rng.integers(-6, 7, size).astype(float), np.zeros((lead, p))
    if zero_sum:
        c[lead:], C = -d[lead:], -D
    elif cross:
        C[:n] = rng.integers(-2, 3, (n, p))
    if own:  # a leader's integer that the follower does not see, with a price on y
        inner[:, n - 1] = D[n - 1] = 0.0
        C[n - 1] = rng.integers(-3, 4, p)
    return Nested(
        lead,
        p,
        lower,
        upper,
        integer,
        rows(outer, np.full(k, -FREE), limit),
        rows(inner, lo, hi),
        objective(c, C, 1.5),
        objective(d, D),
    )


def lp(c, parts, bounds):
    """min c'v subject to lower <= A v <= upper for each part; None if infeasible."""
    if all(a == b for a, b in bounds):
        v = np.array([a for a, _ in bounds])
        fits = all((A @ v <= hi + 1e-9).all() and (A @ v >= lo - 1e-9).all() for A, lo, hi in parts)
        return float(c @ v) if fits else None
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
    "leader's own price": {"own": True, "n": 3, "box": 2},
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


def test_what_the_follower_pays_for_the_leaders_decision_alone_does_not_mislead_the_dual():
    """min over x of -x - min over y >= 0 of y, where the follower's objective has a further x: the leader takes x = 1."""
    nested = Nested(
        1,
        1,
        np.zeros(2),
        np.ones(2),
        np.ones(2, bool),
        no_rows(2),
        no_rows(2),
        objective([-1, -1], [[0]]),
        objective([1, 1], [[0]]),
    )
    found = search(nested)
    assert found.road == "dual"
    agree(nested, found, -1.0)


def test_a_point_may_be_offered_where_scip_has_fixed_a_product_next_to_its_value():
    """SCIP fixes x0 y0 at -1e-9, and takes no other number for it, not even 0."""
    nested = Nested(
        2,
        2,
        np.array([-1.0, -1.0, 0.0, 0.0]),
        np.array([2.0, 1.0, 2.0, 1.0]),
        np.ones(4, bool),
        no_rows(4),
        rows([[0, 2, 2, 0], [2, 2, 3, 0], [-3, 0, 0, 0]], [-FREE] * 3, [4, 1, -3]),
        objective([4, 0, 1, 3], np.zeros((2, 2))),
        objective([3, 3, 1, -3], [[-2, 1], [-2, -1]]),
    )
    agree(nested, search(nested), brute(nested))


def test_a_zero_coupling_is_a_tie_the_leader_breaks():
    """y = 0 and y = 1 cost the follower the same: the leader, who likes 1, gets it."""
    nested = Nested(
        1,
        1,
        np.zeros(2),
        np.ones(2),
        np.ones(2, bool),
        no_rows(2),
        rows([[0, 1]], [-FREE], [1]),
        objective([0, -1], [[0]]),
        objective([0, 0], [[0]]),
    )
    found = search(nested)
    assert found.status is Status.GLOBAL
    assert found.value == -1
    assert found.y[0] == 1


def one(leader_rows, follower_rows, leader, follower, *, integer=(True, True), lower=(0, 0), upper=(3, 3), D=0.0):
    return Nested(
        1,
        1,
        np.array(lower, float),
        np.array(upper, float),
        np.array(integer),
        leader_rows,
        follower_rows,
        objective(leader, [[0]]),
        objective(follower, [[D]]),
    )


@pytest.mark.parametrize("integer", [(True, True), (True, False)])
def test_infeasible_and_unbounded_levels_are_told_apart(integer):
    none, seen = no_rows(2), rows([[1, -1]], [-FREE], [0])
    lower = one(none, rows([[1, 1]], [9], [FREE]), [1, 1], [0, 1], integer=integer)
    assert search(lower).status is Status.INFEASIBLE_LOWER
    upper = one(rows([[1, 0]], [9], [FREE]), seen, [1, 1], [0, 1], integer=integer)
    assert search(upper).status is Status.INFEASIBLE_UPPER
    irrational = one(
        rows([[-1, 1]], [1], [FREE]), seen, [1, 1], [0, 1], integer=integer
    )  # y >= x + 1, but y = x answers
    assert search(irrational).status is Status.INFEASIBLE_UPPER
    endless = one(none, seen, [1, 1], [0, -1], integer=integer, upper=(3, FREE))
    assert search(endless).status is Status.UNBOUNDED_LOWER
    falling = one(none, seen, [1, -1], [0, 0], integer=integer, upper=(3, FREE))
    assert search(falling).status is Status.UNBOUNDED_UPPER


def test_an_unbounded_relaxation_may_hide_an_optimum():
    """The leader would have y grow for ever, the follower keeps it at x."""
    found = search(one(no_rows(2), rows([[1, -1]], [-FREE], [0]), [0, -1], [0, 1], upper=(3, FREE)))
    assert found.status is Status.GLOBAL
    assert found.value == -3


def test_a_follower_that_is_unbounded_at_some_prices_keeps_the_leader_from_them():
    """The cost of y is 2 - x: at x = 3 there is no answer, and x = 2 is the best that is left."""
    nested = one(no_rows(2), rows([[0, -1]], [-FREE], [0]), [-1, 1], [0, 2], upper=(3, FREE), D=-1.0)
    found = search(nested)
    assert found.status is Status.GLOBAL
    assert (found.value, found.x[0]) == (-2, 2)


def test_a_program_whose_infimum_need_not_be_attained_is_refused():
    nested = one(no_rows(2), rows([[1, -1]], [-FREE], [0]), [-1, 1], [0, 1], integer=(False, True))
    assert "Leader variable 0 is continuous" in refusal(nested)
    with pytest.raises(CapabilityError, match="infimum need not be attained"):
        search(nested)
    assert refusal(one(no_rows(2), rows([[1, -1]], [-FREE], [0]), [-1, 1], [0, 1], integer=(False, False))) is None


def with_costs(nested, seed):
    """The same follower rows, other objectives."""
    other = draw(seed, **KINDS["wide"])
    return Nested(
        nested.leaders,
        nested.followers,
        nested.lower,
        nested.upper,
        nested.integer,
        nested.leader_rows,
        nested.follower_rows,
        other.leader,
        other.follower,
    )


def test_a_pool_serves_other_costs_and_refuses_other_rows():
    nested, pool = draw(7, **KINDS["wide"]), Pool()
    for seed in range(20, 30):
        again = with_costs(nested, seed)
        agree(again, search(again, pool), brute(again))
    assert len(pool)
    with pytest.raises(InputError, match="another follower"):
        search(draw(8, **KINDS["wide"]), pool)


def test_the_same_seed_gives_the_same_search():
    nested = read_mibs(DATA / "MIBLP-XU__bmilplib_10_6").nested
    first, second = search(nested, seed=3), search(nested, seed=3)
    assert (first.nodes, first.splits, first.value) == (second.nodes, second.splits, second.value)
    assert (first.x == second.x).all()


def test_at_a_time_limit_the_bound_is_honest():
    nested = read_mibs(DATA / "RANDOM__RAND_BILEVEL__miblp_20_20_50_0110_10_6").nested
    since = time.perf_counter()
    found = search(nested, time_limit=1.0)
    assert time.perf_counter() - since < 10
    assert found.status in (Status.OPEN, Status.TIME_LIMIT)
    assert found.bound <= -731 + 1e-6
    if found.status is Status.OPEN:
        assert found.value >= -731 - 1e-6
    assert search(nested, time_limit=1e-6).status is Status.TIME_LIMIT


def test_a_gap_is_enough_where_it_is_asked_for():
    nested = read_mibs(DATA / "MIBLP-XU__bmilplib_10_6").nested
    found = search(nested, gap=0.2)
    assert found.status is Status.GLOBAL
    assert found.bound <= -67 + 1e-6 <= found.value + 1e-5
    assert found.value - found.bound <= 0.2 * (1 + abs(found.value)) + 1e-6


BUNDLED = [r for r in json.loads((DATA / "answers.json").read_text("utf-8"))["instances"] if r["quick"]]


@pytest.mark.parametrize("instance", BUNDLED, ids=lambda r: r["name"])
def test_mibs_files_have_their_known_optimum(instance):
    found = search(read_mibs(DATA / instance["name"]).nested, time_limit=60)
    assert found.status is Status.GLOBAL, found.cause
    assert found.value == pytest.approx(instance["optimum"], abs=1e-3)


def knapsack(n, seed, top=100):
    rng = np.random.default_rng(seed)
    w, v, p = rng.integers(1, top, n), rng.integers(1, top, n), rng.integers(1, top, n)
    eye, zero = np.eye(n), np.zeros(n)
    inner = np.concatenate([np.concatenate([zero, w])[None], np.hstack([eye, eye])])
    none = np.zeros((n, n))
    return Nested(
        n,
        n,
        np.zeros(2 * n),
        np.ones(2 * n),
        np.ones(2 * n, bool),
        rows(np.concatenate([v, zero]), [-FREE], [np.floor(0.3 * v.sum())]),
        rows(inner, np.full(n + 1, -FREE), np.concatenate([[np.floor(0.4 * w.sum())], np.ones(n)])),
        objective(np.concatenate([zero, p]), none),
        objective(np.concatenate([zero, -p]), none),
    )


@pytest.mark.parametrize("seed", range(4))
def test_knapsack_interdiction_is_recognised_and_right(seed):
    nested = knapsack(5, seed, top=12)
    found = search(nested)
    assert found.road == "knapsack"
    agree(nested, found, brute(nested))


def test_knapsack_interdiction_with_thirty_items_takes_less_than_ten_seconds():
    found = search(knapsack(30, 0), time_limit=10)
    assert found.status is Status.GLOBAL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("LC 1", "LC 7"), r"LC 7: the MPS file has places 0 to 1"),
        (("LC 1", "LC gone"), r"LC gone: the MPS file has no such name"),
        (("N 1", "N 2"), r"N says 2 columns, but 1 LC are given"),
        (("OS 1", "OS 3"), r"OS must be 1 or -1, but is 3"),
        (("LO 1", "LO one"), r"LO needs a number"),
        (("OS 1", "WHAT 1"), r"line 9: 'WHAT 1' is not a key"),
        (("LO 1", "LO 1\nLO 2"), r"LO needs one cost for each of the 1 LC, but 2 are given"),
        (("OS 1", "IB 3"), r"LC: interdiction needs one for each of the 2 columns"),
    ],
)
def test_a_wrong_aux_file_is_refused_with_its_place(tmp_path, change, message):
    (tmp_path / "a.mps").write_text((DATA / "moore90.mps").read_text("utf-8"))
    (tmp_path / "a.aux").write_text((DATA / "moore90.aux").read_text("utf-8").replace(*change))
    with pytest.raises(InputError, match=message) as caught:
        read_mibs(tmp_path / "a")
    assert "a.aux" in str(caught.value)


def test_names_do_as_well_as_places(tmp_path):
    problem = read_mibs(DATA / "moore90.aux")
    row_names = [f"R{i}" for i in range(20)]
    text = (DATA / "moore90.mps").read_text("utf-8")
    names = [word for word in dict.fromkeys(text.split()) if word in row_names or word.startswith("R000")]
    (tmp_path / "b.mps").write_text(text)
    inner = [name for name in names if name != "R0005"][:4]
    (tmp_path / "b.aux").write_text(
        "@NUMVARS\n1\n@NUMCONSTRS\n4\n@VARSBEGIN\n"
        + f"{problem.follower_names[0]} 1.0\n@VARSEND\n@CONSTSBEGIN\n"
        + "\n".join(inner)
        + "\n@CONSTSEND\n"
    )
    assert search(read_mibs(tmp_path / "b").nested).value == -22
    with pytest.raises(FileNotFoundError, match="no file"):
        read_mibs(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "optimum"),
    [("RANDOM__RAND_BILEVEL__miblp_20_15_50_0110_10_2", -398), ("binaryMIBLP-XU__binarybmilplib_10_10", -161)],
)
def test_no_bound_is_wrong_wherever_the_search_is_stopped(name, optimum):
    nested = read_mibs(DATA / name).nested
    for k in range(8):
        found = search(nested, time_limit=0.01 * 1.8**k)
        assert found.bound <= optimum + 1e-5
        assert not found.status.ok or found.value >= optimum - 1e-5


@pytest.mark.parametrize("raised", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_shortest_path_interdiction_is_dualised_and_right(seed, raised):
    """Two arcs of ten removed, or made dearer; a path must remain."""
    rng = np.random.default_rng(seed)
    arcs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 4), (2, 4), (2, 3), (3, 4), (1, 3), (0, 4)]
    m, cost = len(arcs), rng.integers(1, 9, len(arcs)).astype(float)
    balance = np.zeros((5, m))
    for e, (a, b) in enumerate(arcs):
        balance[a, e], balance[b, e] = 1, -1
    supply = np.array([1.0, 0, 0, 0, -1])
    D = np.diag(rng.integers(1, 9, m)).astype(float) if raised else np.zeros((m, m))
    coupling, none = (np.zeros((0, 2 * m)), np.zeros(0)) if raised else (np.hstack([np.eye(m)] * 2), np.ones(m))
    inner = np.concatenate([np.hstack([np.zeros((5, m)), balance]), coupling])
    free = np.full(len(none), -FREE)
    nested = Nested(
        m,
        m,
        np.zeros(2 * m),
        np.ones(2 * m),
        np.arange(2 * m) < m,
        rows(np.arange(2 * m) < m, [-FREE], [2]),
        rows(inner, np.concatenate([supply, free]), np.concatenate([supply, none])),
        objective(np.concatenate([np.zeros(m), -cost]), -D),
        objective(np.concatenate([np.zeros(m), cost]), D),
    )
    best = 0.0
    for pair in itertools.combinations(range(m), 2):
        x = np.zeros(m)
        x[list(pair)] = 1
        bounds = [(0, 1 if raised else 1 - v) for v in x]
        found = linprog(cost + D @ x, A_eq=balance, b_eq=supply, bounds=bounds, method="highs")
        best = max(best, found.fun if found.status == 0 else 0.0)
    found = search(nested)
    assert found.road == "dual"
    assert found.status is Status.GLOBAL
    assert found.value == pytest.approx(-best)


@pytest.mark.parametrize("name", ["moore90", "knapsack__10_ITEMS_1000__K5010W01.KNP"])
def test_a_file_is_a_program(name):
    program = bg.datasets.read_mibs(DATA / name)
    solution = program.solve(verify=True)
    known = {i["name"]: i["optimum"] for i in json.loads((DATA / "answers.json").read_text("utf-8"))["instances"]}
    assert solution.status is Status.GLOBAL
    assert solution.value == pytest.approx(known[name])
    assert solution.stats.follower_gap == pytest.approx(0, abs=1e-9)
    names = [u.name for u in program.unknowns]
    assert solution[names].shape == (len(names),)
    costs = {i.name: torch.tensor(np.stack([i.value, 2 * i.value]), requires_grad=True) for i in program.inputs}
    one, two = bg.Layer(program, variables=[names], gradient=bg.Identity())(*costs.values())[0]
    nested = program.combinatorial.at([i.value for i in program.inputs])
    n = nested.leaders
    assert nested.leader(one.detach().numpy()[:n], one.detach().numpy()[n:]) == pytest.approx(known[name])
    (one + two).sum().backward()
    assert all(c.grad.isfinite().all() for c in costs.values())
