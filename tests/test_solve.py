"""Solving.

Textbook optima, statuses, inputs, degenerate followers, scales, sizes, warm starts and what a Solution holds.
"""

import dataclasses
import warnings

import cvxpy as cp
import numpy as np
import pytest
from helpers import SHAPES, brute_force, case, check_point, random_quadratic, reply

import bigrad as bg
from bigrad.datasets import textbook

Status = bg.Status
PROBLEMS = {p.name: p for p in textbook() if p.coefficients is not None}


def scalars():
    return cp.Variable(name="x"), cp.Variable(name="y")


# Textbook


def convex_above(problem):
    return bool(np.linalg.eigvalsh(problem.coefficients.F.Q).min() >= -1e-9)


@pytest.mark.parametrize("name", PROBLEMS)
def test_textbook_by_auto(name):
    """At the global optimum where the upper level is convex; elsewhere never below it; no claim that is not so."""
    problem = PROBLEMS[name]
    upper, lower, _x, y = problem.program_parts()
    solution = bg.bilevel(upper, lower, responds=[y]).solve(verify=True)
    if problem.F_star is None:
        assert not solution.status.ok
        assert solution.status in (Status.INFEASIBLE_UPPER, Status.INFEASIBLE_LOWER, Status.NOT_FOUND)
        return
    assert solution.status.ok
    assert solution.stats.follower_gap <= 1e-6
    assert max(solution.stats.residual, solution.stats.violation) <= 1e-8
    check_point(case(upper.objective, lower.objective, y, upper.constraints, lower.constraints), solution)
    scale = 1 + abs(problem.F_star)
    assert solution.value >= problem.F_star - 1e-5 * scale
    if convex_above(problem) or solution.status is Status.GLOBAL:
        assert solution.value <= problem.F_star + 1e-4 * scale
    if solution.stats.bound is not None:
        assert solution.stats.bound <= problem.F_star + 1e-5 * scale


def test_textbook_by_auto_as_a_whole():
    """At least nine in ten of those with an upper level that is not convex; the convex ones nearly all proven."""
    found, proven, counts = 0, 0, [0, 0]
    for problem in PROBLEMS.values():
        if problem.F_star is None:
            continue
        upper, lower, _, y = problem.program_parts()
        solution = bg.bilevel(upper, lower, responds=[y]).solve()
        convex = convex_above(problem)
        counts[convex] += 1
        if convex:
            proven += solution.status is Status.GLOBAL
        else:
            found += solution.value <= problem.F_star + 1e-4 * (1 + abs(problem.F_star))
    assert found >= 0.9 * counts[False]
    assert proven >= 0.9 * counts[True]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "solver", [bg.Pieces(), bg.Pieces(starts=2, nodes=0), bg.Pieces(exhaustive=0), bg.Relaxation(starts=3)], ids=str
)
def test_solvers_against_each_other_and_the_grid(solver, seed):
    """Any solver.

    Feasible by the user's objects, GLOBAL only if no better is known, one leader variable scanned finely.
    """
    rng = np.random.default_rng(seed)
    x, y = cp.Variable(name="x"), cp.Variable(2, name="y")
    A, b = rng.standard_normal((4, 2)), rng.uniform(0.3, 1, 4)
    B, C, u = rng.standard_normal(4), rng.standard_normal(2), 2 * rng.standard_normal(2)
    problem = case(
        cp.square(x - 1) / 4 + cp.sum_squares(y - u),
        cp.sum_squares(y) + (C * x) @ y,
        y,
        [x <= 2, x >= -2],
        [A @ y <= b + B * x],
    )
    solution = problem.program.solve(solver=solver, verify=True)
    best = brute_force(problem, {x: np.linspace(-2, 2, 41)}, polish=1)
    if not np.isfinite(best):
        assert not solution.status.ok
        return
    assert solution.status.ok
    check_point(problem, solution)
    assert solution.stats.follower_gap <= 1e-6
    if solution.status is Status.GLOBAL or solver == bg.Pieces():
        assert solution.value <= best + 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_random_programs_are_bilevel_feasible_and_stationary(shape):
    for seed in range(5):
        problem = random_quadratic(shape, seed)
        solution = problem.program.solve(problem.values, verify=True)
        assert solution.status in (Status.GLOBAL, Status.LOCAL)
        assert max(solution.stats.residual, solution.stats.violation) <= 1e-8
        assert solution.stats.follower_gap <= 1e-6
        check_point(problem, solution)
        problem.check_lower(solution[problem.leader[0]], solution[problem.responds[0]])
        if solution.stats.bound is not None:
            assert solution.stats.bound <= solution.value + 1e-6 * (1 + abs(solution.value))


# Statuses


def statuses():
    """Programs without an optimum, and the statuses that tell the truth about them."""
    x, y = scalars()
    box, near = [x >= -3, x <= 3], cp.square(y - x)
    yield (
        "follower infeasible for every x",
        case(cp.square(x) + y, near, y, box, [y >= 1, y <= 0]),
        Status.INFEASIBLE_LOWER,
    )
    yield (
        "follower infeasible within the leader's box",
        case(cp.square(x) + y, near, y, box, [y >= x + 9, y <= 0]),
        Status.INFEASIBLE_LOWER,
    )
    yield "equalities that clash", case(cp.square(x), near, y, box, [y == x, y == x + 1]), Status.INFEASIBLE_LOWER
    yield "leader's own constraints", case(cp.square(x) + y, near, y, [x >= 1, x <= 0]), Status.INFEASIBLE_UPPER
    yield "leader's own equalities", case(cp.square(x) + y, near, y, [x == 1, 2 * x == 3]), Status.INFEASIBLE_UPPER
    yield (
        "no answer meets the upper constraint",
        case(cp.square(x) + y, near, y, [*box, y >= 5]),
        Status.INFEASIBLE_UPPER,
    )
    yield (
        "only a worse answer meets the upper constraint",
        case(cp.square(x), cp.square(y), y, [*box, y >= 1], [y <= 2]),
        Status.INFEASIBLE_UPPER,
    )
    yield (
        "an upper equality no answer meets",
        case(cp.square(x), near, y, [*box, y == x + 1], [y <= 9]),
        Status.INFEASIBLE_UPPER,
    )
    yield "follower unbounded for every x", case(cp.square(x), -y, y, box, [y >= x]), Status.UNBOUNDED_LOWER
    yield (
        "quadratic follower unbounded along a line",
        case(cp.square(x) + y, cp.square(y - x) - VW[0], [y, VW[0]], box),
        Status.UNBOUNDED_LOWER,
    )
    yield "leader unbounded below", case(x + y, near, y), Status.UNBOUNDED_UPPER
    yield "leader unbounded above", case(cp.Maximize(x + y), near, y, [x >= 0], [y >= 0]), Status.UNBOUNDED_UPPER
    yield (
        "leader unbounded on one piece only",
        case(0 * x - y, cp.square(y - x), y, [], [y >= -1]),
        Status.UNBOUNDED_UPPER,
    )
    yield (
        "leader unbounded through an indifferent follower",
        case(y, cp.Constant(0), y, box, [y <= x]),
        Status.UNBOUNDED_UPPER,
    )


VW = (cp.Variable(name="w"),)
STATUSES = {name: rest for name, *rest in statuses()}


@pytest.mark.parametrize(
    "solver",
    [bg.Auto(), bg.Pieces(exhaustive=0), bg.Pieces(starts=1, nodes=0, exhaustive=0), bg.Relaxation(starts=2)],
    ids=str,
)
@pytest.mark.parametrize("name", STATUSES)
def test_statuses_tell_the_cause(name, solver):
    problem, expected = STATUSES[name]
    solution = problem.program.solve(solver=solver, verify=True)
    assert not solution.status.ok
    honest = {expected, Status.NOT_FOUND} if solver != bg.Auto() else {expected}
    assert solution.status in honest
    for v in (*problem.leader, *problem.responds):
        assert v.value is None
        assert np.isnan(solution[v]).all()
    assert np.isnan(solution.value)
    assert np.isnan(solution.lower_value)
    assert solution.point is None
    assert solution.stats.follower_gap is None
    assert len(solution.status.value) > 30


def test_a_follower_unbounded_for_some_x_only():
    """min (x - 1) y over y >= 0 has an answer for x >= 1 only; the leader, who would like x = 0, must respect that."""
    x, y = scalars()
    problem = case(cp.square(x), (x - 1) * y, y, [x >= -3, x <= 3], [y >= 0])
    solution = problem.program.solve(verify=True)
    assert solution.status is Status.GLOBAL
    assert solution[x] == pytest.approx(1.0)
    check_point(problem, solution)


def test_a_follower_infeasible_for_some_x_only():
    x, y = scalars()
    problem = case(cp.square(x), cp.square(y - 5), y, [x >= -3, x <= 3], [y >= 2 - x, y <= 0.5])
    solution = problem.program.solve(verify=True)
    assert solution.status is Status.GLOBAL
    assert solution[x] == pytest.approx(1.5)
    check_point(problem, solution)


def test_infeasible_leader_where_only_a_nonoptimal_answer_would_do():
    """Answers are max(x, 0).

    Y == x - 1 would need x <= 0 and x >= 1: every constraint can be met, the follower's optimality cannot.
    """
    x, y = scalars()
    problem = case(cp.square(x), cp.square(y - x), y, [x >= -3, x <= 3, y <= x - 0.5], [y >= -9])
    assert problem.program.solve().status is Status.INFEASIBLE_UPPER


def hard(seed=0, shape=(10, 20, 30)):
    problem = random_quadratic(shape, seed)
    return problem.program, problem


def test_time_limit():
    program, problem = hard()
    solution = program.solve(problem.values, solver=bg.Pieces(time_limit=0.0))
    assert solution.status is Status.TIME_LIMIT
    assert solution.point is None
    solution = program.solve(problem.values, solver=bg.Relaxation(time_limit=0.0))
    assert solution.status is Status.TIME_LIMIT


def test_iteration_limit():
    """One move is not enough for at least some programs, and then it is said; more moves are."""
    seen = set()
    for seed in range(6):
        program, problem = hard(seed)
        seen.add(program.solve(problem.values, solver=bg.Pieces(starts=1, nodes=0, max_iterations=1)).status)
        assert program.solve(problem.values, solver=bg.Pieces(starts=1, nodes=0)).status is Status.LOCAL
    assert Status.ITERATION_LIMIT in seen
    assert seen <= {Status.ITERATION_LIMIT, Status.LOCAL}


def test_lower_level_not_convex_at_some_values():
    x, y = cp.Variable(name="x"), cp.Variable(2, name="y")
    P = cp.Parameter((2, 2), name="P", PSD=True)
    problem = case(cp.square(x) + cp.sum_squares(y), cp.quad_form(y, P) - x * y[0], y, [x <= 1], [cp.abs(y) <= 1])
    program = problem.program
    assert program.solve({P: np.diag([1.0, 0.0])}).status.ok
    for solver in (bg.Auto(), bg.Relaxation()):
        solution = program.solve({P: np.diag([1.0, -1.0])}, solver=solver)
        assert solution.status is Status.NONCONVEX_LOWER
        assert y.value is None


def test_upper_level_not_convex_at_some_values_is_not_called_convex():
    """A PSD parameter of the upper level that is given an indefinite value breaks its own promise."""
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
    P = cp.Parameter((2, 2), name="P", PSD=True)
    program = case(cp.quad_form(x, P) + cp.sum(y), cp.sum_squares(y - x), y, [cp.abs(x) <= 1]).program
    assert not program.solve({P: np.diag([1.0, -1.0])}).status.ok


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("solver", [bg.Pieces(), bg.Relaxation()], ids=str)
def test_values_that_are_no_numbers(value, solver):
    x, y = scalars()
    p = cp.Parameter(name="p")
    program = case(cp.square(x - p) + y, cp.square(y - x), y, [x <= 1]).program
    solution = program.solve({p: value}, solver=solver)
    assert solution.status is Status.INVALID_INPUT
    assert x.value is None


@pytest.mark.parametrize(("attribute", "value"), [("nonneg", -1.0), ("pos", -1e-3), ("nonpos", 0.5), ("neg", 2.0)])
def test_values_against_their_sign(attribute, value):
    x, y = scalars()
    p = cp.Parameter(name="p", **{attribute: True})
    program = case(cp.square(x) + y, cp.square(y - x) + p * y, y, [x <= 1]).program
    assert program.solve({p: value}).status is Status.INVALID_INPUT
    assert program.solve({p: -value}).status is Status.GLOBAL


def test_inputs_that_do_not_fit_are_errors():
    x, y = scalars()
    p, q = cp.Parameter(2, name="p"), cp.Parameter(name="q")
    program = case(cp.square(x) + cp.sum(p) * y, cp.square(y - x) + q * y, y, [x <= 1]).program
    for values, words in [
        ({p: [1.0, 2.0]}, "parameter 'q' has no value; pass values={q: …} or set its .value"),
        ({p: [1.0, 2.0, 3.0], q: 1.0}, r"parameter 'p' has shape \(2,\), but its value has shape \(3,\)"),
        ({p: 1.0, q: 1.0}, r"parameter 'p' has shape \(2,\), but its value has shape \(\)"),
        ({p: [1.0, 2.0], q: [1.0]}, r"parameter 'q' has shape \(\), but its value has shape \(1,\)"),
        ({p: ["a", "b"], q: 1.0}, "parameter 'p' needs real numbers"),
        ({p: [1j, 2.0], q: 1.0}, "parameter 'p' needs real numbers"),
        (
            {p: [1.0, 2.0], q: 1.0, cp.Parameter(name="other"): 1.0},
            "is not a parameter of this program; its parameters are: p, q",
        ),
        ({p: [1.0, 2.0], q: 1.0, x: 1.0}, "is not a parameter of this program"),
        ({"p": [1.0, 2.0], q: 1.0}, "str 'p' is a name; the key is the Parameter object itself"),
    ]:
        with pytest.raises(bg.InputError, match=words):
            program.solve(values)
    p.value, q.value = [1.0, 2.0], 0.5
    own, given = program.solve(), program.solve({p: [1, 2], q: np.float32(0.5)})
    assert own.value == pytest.approx(given.value, abs=1e-12)


# Degenerate followers


def test_an_indifferent_follower_answers_as_the_leader_likes():
    """min 0'y on an interval: optimistic, so y = 2 for a leader who wants 3, and y = x for one who wants -9."""
    x, y = scalars()
    for want, best in ((3.0, 2.0), (-9.0, -1.0)):
        solution = case(
            cp.square(x) + cp.square(y - want), cp.Constant(0), y, [x <= 1, x >= -1], [y <= 2, y >= -1]
        ).program.solve(verify=True)
        assert solution.status is Status.GLOBAL
        assert solution[y] == pytest.approx(best)
        assert solution.stats.follower_gap <= 1e-9


def test_a_tie_between_two_answers_of_a_linear_follower():
    """The follower takes the cheaper of two roads.

    At the tie x = 1 it may mix, and the leader picks the mix 1/4 : 3/4.
    """
    x, y = cp.Variable(name="x"), cp.Variable(2, name="y")
    problem = case(
        cp.square(x - 1) + cp.sum_squares(y - np.array([0.25, 0.75])),
        cp.hstack([x, 1]) @ y,
        y,
        [x <= 3, x >= 0],
        [y >= 0, cp.sum(y) == 1],
    )
    solution = problem.program.solve(verify=True)
    assert solution.status is Status.GLOBAL
    np.testing.assert_allclose(solution[y], [0.25, 0.75], atol=1e-7)
    check_point(problem, solution)


def network(toll_cap=4.0):
    """The follower sends one unit over five arcs.

    All node balances are stated, one of them redundant; the leader tolls two arcs.
    """
    arcs = [(0, 1), (0, 2), (1, 3), (2, 3), (0, 3)]
    balance = np.zeros((4, 5))
    for k, (i, j) in enumerate(arcs):
        balance[i, k], balance[j, k] = -1.0, 1.0
    toll, flow = cp.Variable(2, name="toll"), cp.Variable(5, name="flow")
    free = np.array([1.0, 1.5, 1.0, 1.0, 5.0])
    cost = cp.hstack([toll[0], toll[1], 0, 0, 0])
    need = np.array([-1.0, 0.0, 0.0, 1.0])
    rows = [balance @ flow == need, flow >= 0]
    return toll, flow, free, cost, rows


def test_redundant_node_balances():
    """Leader wants the flow split evenly over the two tolled roads: it must make them equally dear."""
    toll, flow, free, cost, rows = network()
    want = np.array([0.5, 0.5, 0.5, 0.5, 0.0])
    problem = case(
        cp.sum_squares(flow - want) + cp.sum_squares(toll) / 100,
        (free + cost) @ flow,
        flow,
        [toll >= 0, toll <= 4],
        rows,
    )
    solution = problem.program.solve(verify=True)
    assert solution.status.ok
    np.testing.assert_allclose(solution[flow], want, atol=1e-6)
    np.testing.assert_allclose(solution[toll], [0.5, 0.0], atol=1e-6)
    assert solution.stats.follower_gap <= 1e-6


def test_toll_revenue_with_a_bilinear_leader():
    """Revenue toll'flow: both roads cost 2 and 2.5 untolled, the toll-free one 5.

    The best revenue is 3, on the first road.
    """
    toll, flow, free, cost, rows = network()
    problem = case(cp.Maximize(toll @ flow[:2]), (free + cost) @ flow, flow, [toll >= 0, toll <= 4], rows)
    solution = problem.program.solve(verify=True)
    assert solution.status.ok
    assert solution.value == pytest.approx(3.0, abs=1e-5)
    assert solution.stats.follower_gap <= 1e-5


@pytest.mark.parametrize("times", [1, 2, 5])
def test_duplicate_rows_change_nothing(times):
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
    rows = [y <= x, cp.sum(y) >= 0.5, y[0] - y[1] == 0.25 * x[0]]
    below = [type(r)(k * r.args[0], k * r.args[1]) for r in rows for k in range(1, times + 1)]
    above = [cp.sum(x) <= 2, x <= 3] * times
    problem = case(cp.sum_squares(x - 2) + cp.sum_squares(y + 1), cp.sum_squares(y - 1), y, above, below)
    solution = problem.program.solve(verify=True)
    assert solution.status is Status.GLOBAL
    assert solution.value == pytest.approx(reference_duplicates(), abs=1e-7)
    check_point(problem, solution)


def reference_duplicates():
    """The same program's optimum by a scan over the leader's x in the plane."""
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
    problem = case(
        cp.sum_squares(x - 2) + cp.sum_squares(y + 1),
        cp.sum_squares(y - 1),
        y,
        [cp.sum(x) <= 2, x <= 3],
        [y <= x, cp.sum(y) >= 0.5, y[0] - y[1] == 0.25 * x[0]],
    )
    solution = problem.program.solve()
    for step in np.eye(2):
        for side in (0.01, -0.01):
            assert reply(problem, {x: solution[x] + side * step}) >= solution.value - 1e-7
    return solution.value


def test_multipliers_that_are_not_unique_do_not_tempt_the_leader():
    """At y = 0 three rows meet; any split of the multipliers is allowed, none is a gain."""
    x, y = scalars()
    problem = case(
        cp.square(x - 1) + cp.square(y), cp.square(y - x), y, [x >= -3, x <= 3], [y <= 0, 2 * y <= 0, y <= 0 * x]
    )
    solution = problem.program.solve(verify=True)
    assert solution.status is Status.GLOBAL
    assert (solution[x], solution[y]) == (pytest.approx(1.0), pytest.approx(0.0))


# Scale and size


@pytest.mark.parametrize("lower", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("upper", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_units_do_not_matter(upper, lower, unit):
    """The same program in other units of either objective and of all variables has the same optimum in those units."""
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
    A, b = np.array([[1.0, 2.0], [-1.0, 1.0], [0.5, -1.0]]), np.array([1.0, 1.0, 1.0])
    u, v = x / unit, y / unit
    problem = case(
        upper * (cp.sum_squares(u - np.array([2, -1])) + cp.sum_squares(v - np.array([1.0, 1.5]))),
        lower * (cp.sum_squares(v - u) + np.array([0.3, -0.2]) @ v), y, [cp.sum(u) <= 2], [A @ v <= b],
    )  # fmt: skip
    solution = problem.program.solve(verify=True)
    assert solution.status in (Status.GLOBAL, Status.LOCAL)
    assert solution.value / upper == pytest.approx(reference_units(), rel=1e-5)
    assert solution.stats.follower_gap / lower <= 1e-6


def reference_units():
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
    A, b = np.array([[1.0, 2.0], [-1.0, 1.0], [0.5, -1.0]]), np.array([1.0, 1.0, 1.0])
    goal = cp.sum_squares(x - np.array([2, -1])) + cp.sum_squares(y - np.array([1.0, 1.5]))
    return (
        case(goal, cp.sum_squares(y - x) + np.array([0.3, -0.2]) @ y, y, [cp.sum(x) <= 2], [A @ y <= b])
        .program.solve()
        .value
    )


@pytest.mark.parametrize("seed", range(2))
def test_a_larger_program(seed):
    """50 + 100 variables and 150 constraints."""
    problem = random_quadratic((50, 100, 150), seed, linked=False)
    solution = problem.program.solve(problem.values, verify=True, solver=bg.Pieces(starts=2, nodes=0))
    assert solution.status is Status.LOCAL
    assert max(solution.stats.residual, solution.stats.violation) <= 1e-8
    assert solution.stats.follower_gap <= 1e-5
    problem.check_lower(solution[problem.leader[0]], solution[problem.responds[0]])
    assert solution.stats.seconds < 20


# Warm starts


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_a_warm_start_is_never_worse_and_cheaper(shape):
    for seed in range(4):
        problem = random_quadratic(shape, seed)
        program = problem.program
        cold = program.solve(problem.values)
        warm = program.solve(problem.values, warm_start=cold)
        assert warm.status.ok
        assert warm.value <= cold.value + 1e-9 * (1 + abs(cold.value))
        assert warm.stats.iterations <= max(2, cold.stats.iterations // 2)
        assert warm.stats.starts == 1


def test_a_warm_start_from_far_away_still_finds_a_solution():
    """The sides of the old solution are impossible at the new values: the search must begin anew, not give up."""
    x, y = scalars()
    p = cp.Parameter(name="p")
    problem = case(cp.square(x - p), cp.square(y - x), y, [y <= 5, x >= p], [y >= 0, y >= -1, y >= -2, y >= -3])
    program = problem.program
    left = program.solve({p: -2.0})
    right = program.solve({p: 3.0}, warm_start=left)
    assert right.status.ok
    assert right[y] == pytest.approx(3.0)
    for seed in range(8):
        problem = random_quadratic((4, 8, 10), seed)
        other = random_quadratic((4, 8, 10), seed + 100)
        program = problem.program
        start = program.solve(problem.values)
        values = dict(zip(problem.values, (other.values[q] for q in other.values), strict=False))
        if [q.name() for q in problem.values] != [q.name() for q in other.values]:
            continue
        cold = program.solve(values)
        warm = program.solve(values, warm_start=start)
        assert warm.status.ok == cold.status.ok, (seed, warm.status, cold.status)


def test_a_failed_solution_is_no_start_and_does_no_harm():
    x, y = scalars()
    p = cp.Parameter(name="p", nonneg=True)
    program = case(cp.square(x - p), cp.square(y - x), y, [x <= 1]).program
    failed = program.solve({p: -1.0})
    assert failed.point is None
    assert program.solve({p: 0.5}, warm_start=failed).status is Status.GLOBAL


def test_a_warm_start_of_another_program_is_refused():
    x, y = scalars()
    small = case(cp.square(x - 1), cp.square(y - x), y, [x <= 1], [y >= 0]).program.solve()
    problem = random_quadratic((4, 8, 10), 0)
    with pytest.raises(bg.InputError, match="warm_start"):
        problem.program.solve(problem.values, warm_start=small)


# Solutions


def test_values_are_filled_and_cleared():
    x, y = scalars()
    p = cp.Parameter(name="p")
    program = case(cp.square(x - p), cp.square(y - x), y, [x <= 1], [y >= 0, y <= p + 5]).program
    solution = program.solve({p: 0.5})
    assert (x.value, y.value) == (pytest.approx(0.5), pytest.approx(0.5))
    x.value += 1.0
    assert solution[x] == pytest.approx(0.5)
    assert program.solve({p: -9.0}).status is Status.INFEASIBLE_LOWER
    assert x.value is None
    assert y.value is None
    assert p.value is None


def test_a_solution_is_frozen_and_says_what_it_does_not_have():
    x, y = scalars()
    solution = case(cp.square(x - 1), cp.square(y - x), y).program.solve()
    for field in ("status", "value", "values"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(solution, field, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        solution.stats.residual = 0.0
    with pytest.raises(KeyError, match="is not a variable of this program, which has x, y"):
        solution[cp.Variable(name="z")]
    with pytest.raises(KeyError, match="str 'x' is not a variable"):
        solution["x"]
    many = dataclasses.replace(solution, values={k: np.zeros(()) for k in range(30)})
    with pytest.raises(KeyError, match="which has 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 18 more"):
        many[30]


def test_solutions_do_not_share_memory():
    x, y = scalars()
    p = cp.Parameter(name="p")
    program = case(cp.square(x - p), cp.square(y - x), y, [x <= 2]).program
    first = program.solve({p: 1.0})
    second = program.solve({p: 2.0}, warm_start=first)
    first[x][...] = 7.0
    assert second[x] == pytest.approx(2.0)
    assert program.solve({p: 1.0}, warm_start=first)[x] == pytest.approx(1.0)


def test_the_follower_gap_sees_a_wrong_answer():
    """The check itself is checked: a point off the follower's optimum has a gap, one on it has none."""
    x, y = scalars()
    program = case(cp.square(x - 1), cp.Maximize(-cp.square(y - x)), y, [x <= 2], [y >= 0]).program
    gap = program.source.follower_gap
    assert gap({}, {x: np.array(1.0), y: np.array(1.0)}) == pytest.approx(0.0, abs=1e-8)
    assert gap({}, {x: np.array(1.0), y: np.array(3.0)}) == pytest.approx(4.0, abs=1e-6)
    solution = program.solve()
    assert solution.stats.follower_gap is None


def test_sentences_and_flags_of_statuses():
    assert {s.name for s in Status if s.ok} == {"GLOBAL", "LOCAL", "STATIONARY", "OPEN", "INEXACT"}
    for status in Status:
        assert status.value.endswith(".")


def test_solving_is_deterministic_and_silent(capfd):
    problem = random_quadratic((6, 12, 20), 1)
    program = problem.program
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs = [program.solve(problem.values) for _ in range(2)]
    for v in runs[0].values:
        np.testing.assert_array_equal(runs[0][v], runs[1][v])
    x, y = scalars()
    bilinear = case(-x * y + cp.square(x), cp.square(y + x - 1), y, [x >= 0, x <= 2]).program
    assert bilinear.solve().value == bilinear.solve().value
    assert capfd.readouterr() == ("", "")
