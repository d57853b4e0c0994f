"""Large programs: Sparse against other solvers, its gradients against finite differences, its claims, and its growth."""

import subprocess
import sys
from pathlib import Path

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from helpers import Case, case, check_point, random_quadratic

import bigrad as bg
from bigrad.algebra.sparse import curves_upwards, semidefinite, solve_sparse
from bigrad.datasets import textbook, toll_grid
from bigrad.programs import cvxpy as front

LINEAR = [problem for problem in textbook() if problem.coefficients is not None and problem.F_star is not None]


@pytest.fixture
def all_large(monkeypatch):
    """Every program is declared as a large one."""
    monkeypatch.setattr(front, "LARGE", 0)


def tolls(side: int, **settings) -> tuple[bg.Program, Case]:
    upper, lower, _, flow, cost, load = toll_grid(side, **settings).program_parts()
    made = Case(upper, lower, [flow], {cost: cost.value, load: load.value})
    program = made.program
    return program, made


def shipping(seed: int, leader: str = "profit") -> Case:
    """A leader who sells at prices to a follower with many goods and few rows, in five kinds."""
    rng = np.random.default_rng(seed)
    n, k = 12, 5
    price, q = cp.Variable(4, name="price"), cp.Variable(n, name="q", nonneg=True)
    taste, room = cp.Parameter(n, name="taste"), cp.Parameter(k, name="room", nonneg=True)
    A, S = rng.uniform(0, 1, (k, n)) * (rng.random((k, n)) < 0.5), np.repeat(np.eye(4), 3, axis=0)
    below = [A @ q <= room]
    paid = (S @ price) @ q
    goals = {
        "profit": paid - 0.1 * cp.sum_squares(price),
        "partial": (rng.uniform(0.3, 1.0, n) * 1.0) @ cp.multiply(S @ price, q) - 0.2 * cp.sum_squares(price),
        "convex": -cp.sum_squares(q - 0.4) - 0.3 * cp.sum_squares(price),
        "log": cp.sum(cp.log(1 + price)) - cp.sum_squares(q - 0.3) - 0.1 * cp.sum_squares(price),
        "concave": cp.sum_squares(q - 0.4) + 0.1 * cp.sum_squares(price - 1),
        "rows": paid - 0.1 * cp.sum_squares(price),
    }
    above = [price >= 0, price <= 3]
    if leader == "rows":
        above += [cp.sum(q) >= 0.2, cp.sum_squares(price) <= 4]
    lower = 0.5 * cp.sum_squares(q) + paid - taste @ q
    values = {taste: rng.uniform(0.5, 3, n), room: rng.uniform(0.5, 1.5, k)}
    return case(cp.Maximize(goals[leader]), lower, q, above, below, values)


KINDS = ("profit", "partial", "convex", "concave", "log", "rows")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_as_good_as_relaxation(kind, seed, all_large):
    made = shipping(seed, kind)
    program = made.program
    ours = program.solve(made.values, solver=bg.Sparse(starts=16 if kind == "concave" else 1), verify=True)
    theirs = program.solve(made.values, solver=bg.Relaxation(starts=8))
    assert ours.status in (bg.Status.LOCAL, bg.Status.GLOBAL), ours
    assert ours.value >= theirs.value - 0.02 * (1 + abs(theirs.value))
    assert abs(ours.stats.follower_gap) < 1e-6
    check_point(made, ours)
    if ours.stats.bound is not None:
        assert theirs.value <= ours.stats.bound + 1e-6


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_resolves(kind, seed, all_large):
    made = shipping(seed + 10, kind)
    program = made.program
    price, q = made.leader[0], made.responds[0]
    parameters = list(made.values)
    layer = bg.Layer(program, parameters=parameters, variables=[price, q], solver=bg.Sparse())
    at = [torch.tensor(made.values[p], requires_grad=True) for p in parameters]
    weights = torch.cos(torch.arange(16.0, dtype=torch.float64))
    loss = weights @ torch.cat(layer(*at))
    loss.backward()
    base = layer.solve(*(t.detach() for t in at))
    directions = [torch.sin(1.0 + torch.arange(len(t), dtype=torch.float64)) for t in at]
    step, ends = 1e-6, []
    for sign in (1, -1):
        moved = [t.detach() + sign * step * d for t, d in zip(at, directions, strict=True)]
        there = layer.solve(*moved, warm_start=base)[0]
        ends.append(float(weights.numpy() @ np.r_[there[price], there[q]]))
    slope = (ends[0] - ends[1]) / (2 * step)
    ours = sum(float(t.grad @ d) for t, d in zip(at, directions, strict=True))
    assert ours == pytest.approx(slope, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_random_programs_in_sparse_form(seed, all_large):
    made = random_quadratic((4, 8, 10), seed)
    program = made.program
    solution = program.solve(made.values, solver=bg.Sparse())
    assert solution.status in (bg.Status.LOCAL, bg.Status.GLOBAL)
    check_point(made, solution)
    assert solution.stats.residual < 1e-9


def test_textbook_programs_claim_nothing_false(all_large):
    right = 0
    for problem in LINEAR:
        upper, lower, _, y = problem.program_parts()
        solution = bg.bilevel(upper, lower, responds=[y]).solve(solver=bg.Sparse(), verify=True)
        assert solution.status.ok, problem.name
        slack = 1e-4 * (1 + abs(problem.F_star))
        assert solution.value >= problem.F_star - slack, problem.name
        assert abs(solution.stats.follower_gap) < 1e-5, problem.name
        hit = solution.value <= problem.F_star + slack
        assert hit or solution.status is not bg.Status.GLOBAL, problem.name
        if solution.stats.bound is not None:
            assert solution.stats.bound <= problem.F_star + slack, problem.name
        right += hit
    assert right >= 0.75 * len(LINEAR)


def test_toll_grids_are_networks_and_their_users_are_in_equilibrium():
    net, again, other = toll_grid(5, seed=1), toll_grid(5, seed=1), toll_grid(5, seed=2)
    np.testing.assert_array_equal(net.cost, again.cost)
    assert not np.array_equal(net.cost, other.cost)
    assert len(net.tail) == 4 * 5 * 4
    assert abs(net.supply.sum()) < 1e-12
    assert not np.asarray(net.incidence.sum(axis=0)).any()
    assert (abs(net.tail - net.head) % 4 == 1).all()  # neighbours: 1 or 5 apart
    upper, lower, tolls, flow, cost, load = net.program_parts()
    bg.bilevel(upper, lower, responds=[flow]).solve({cost: net.cost, load: 2.0})
    price = net.cost + net.slope * flow.value
    price[net.tolled] += tolls.value
    np.testing.assert_allclose(net.incidence @ flow.value, 2 * net.supply, atol=1e-8)
    distance = np.full((25, 25), np.inf)
    distance[net.tail, net.head] = price
    for k in range(25):
        distance = np.minimum(distance, distance[:, [k]] + distance[[k]])
    used = flow.value > 1e-6
    np.testing.assert_allclose(price[used], distance[net.tail, net.head][used], atol=1e-6)
    for wrong in ({"side": 1}, {"side": 3, "share": 0.0}):
        with pytest.raises(bg.InputError, match="toll_grid"):
            toll_grid(**wrong)


def test_small_grids_agree_with_the_other_solvers():
    program, made = tolls(4)
    theirs = program.solve(made.values, solver=bg.Relaxation(starts=16))
    ours = program.solve(made.values, solver=bg.Sparse(), verify=True)
    assert ours.value == pytest.approx(theirs.value, rel=1e-6)
    assert ours.stats.follower_gap == pytest.approx(0, abs=1e-7)
    check_point(made, ours)


def test_a_large_grid_by_auto_and_warm():
    program, made = tolls(16)
    assert program.quadratic is None
    assert "Sparse" in program.explain()
    first = program.solve(made.values, verify=True)
    assert first.status is bg.Status.LOCAL
    assert first.stats.solver == "Sparse"
    assert first.stats.bound >= first.value > 0.85 * first.stats.bound
    assert first.stats.residual < 1e-12
    assert first.stats.violation < 1e-12
    assert abs(first.stats.follower_gap) < 1e-6
    again = program.solve(made.values, warm_start=first)
    assert again.value >= first.value - 1e-9
    assert again.stats.iterations < first.stats.iterations
    with pytest.raises(bg.CapabilityError, match=r"Use Sparse\(\)"):
        tolls(24)[0].solve(solver=bg.Relaxation())


def slope_along(layer: bg.Layer, at: torch.Tensor, direction: np.ndarray, weights: np.ndarray, step: float) -> float:
    """Central difference of weights'outputs along a direction of the first parameter, by warm re-solves."""
    base, ends = layer.solve(at), []
    for sign in (1, -1):
        there = layer.solve(at + sign * step * torch.tensor(direction), warm_start=base)[0]
        assert there.status.ok
        ends.append(weights @ np.concatenate([there[u.handle] for u in layer.program.unknowns]))
    return (ends[0] - ends[1]) / (2 * step)


def check_toll_gradient(side: int) -> None:
    program, made = tolls(side)
    cost = next(iter(made.values))
    flow, toll = made.responds[0], made.leader[0]
    layer = bg.Layer(program, parameters=[cost], variables=[toll, flow])
    at = torch.tensor(made.values[cost], requires_grad=True)
    rng = np.random.default_rng(1)
    weights, direction = rng.standard_normal(toll.size + flow.size), rng.standard_normal(cost.size)
    (torch.tensor(weights) @ torch.cat(layer(at))).backward()
    slopes = [slope_along(layer, at.detach(), direction, weights, step) for step in (1e-5, 1e-6)]
    ours = at.grad.numpy() @ direction
    assert min(abs(ours - s) for s in slopes) <= 1e-5 * (1 + abs(ours)), (ours, slopes)


def test_the_gradient_of_a_large_grid():
    check_toll_gradient(16)


@pytest.mark.slow
def test_the_gradient_at_twenty_thousand_lower_variables():
    check_toll_gradient(72)


@pytest.mark.slow
def test_verification_at_twenty_thousand_lower_variables():
    program, made = tolls(72)
    solution = program.solve(made.values, verify=True)
    assert solution.status is bg.Status.LOCAL
    assert abs(solution.stats.follower_gap) < 1e-9 * abs(solution.lower_value)


def test_a_batch_keeps_its_good_items():
    program, made = tolls(14)
    cost, load = made.values
    costs = np.stack([cost.value, cost.value + 0.1, cost.value])
    loads = np.array([1.0, 1.0, np.nan])
    flow = made.responds[0]
    layer = bg.Layer(program, parameters=[cost, load], variables=[flow], on_failure="nan")
    inputs = torch.tensor(costs, requires_grad=True), torch.tensor(loads, requires_grad=True)
    (out,) = layer(*inputs)
    assert torch.isfinite(out[:2]).all()
    assert torch.isnan(out[2]).all()
    out[:2].square().sum().backward()
    assert inputs[0].grad[:2].abs().sum() > 0
    assert not inputs[0].grad[2].any()
    assert [s.status for s in layer.solve(*(i.detach() for i in inputs))][2] is bg.Status.INVALID_INPUT


def test_a_time_limit_is_kept():
    program, made = tolls(24)
    solution = program.solve(made.values, solver=bg.Sparse(time_limit=1e-3))
    assert solution.status is bg.Status.TIME_LIMIT
    assert solution.stats.seconds < 2.0


def refused(kind: str) -> Case:
    x, y = cp.Variable(2, name="x"), cp.Variable(3, name="y")
    upper, lower, above, below = cp.sum_squares(x - 1) + cp.sum(y), cp.sum_squares(y - x[0]), [x >= 0, x <= 1], [y >= 0]
    if kind == "leader":
        above = [x >= 2, x <= 1]
    elif kind == "follower":
        below = [y >= 1, cp.sum(y) <= x[0]]
    elif kind == "both":
        above, below = [*above, y[0] >= 5], [y >= 0, y <= 4]
    elif kind == "endless":
        lower, below = cp.sum(y) + x[0] * y[1], [y <= 1]
    elif kind == "upwards":
        upper, above = cp.sum_squares(y) - x[1], [x[0] >= 0]
    return case(upper, lower, y, above, below)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("leader", bg.Status.INFEASIBLE_UPPER),
        ("follower", bg.Status.INFEASIBLE_LOWER),
        ("both", bg.Status.INFEASIBLE_UPPER),
        ("endless", bg.Status.UNBOUNDED_LOWER),
        ("upwards", bg.Status.UNBOUNDED_UPPER),
    ],
)
def test_what_has_no_answer_is_told_why(kind, status, all_large):
    assert refused(kind).program.solve(solver=bg.Sparse()).status is status


def test_small_programs_with_other_unknowns_are_refused():
    x, y = cp.Variable(name="x"), cp.Variable(name="y")
    made = case(cp.square(x) + cp.abs(y), cp.abs(y - x) + cp.square(y), y, [x >= 1])
    with pytest.raises(bg.CapabilityError, match="Sparse"):
        made.program.solve(solver=bg.Sparse())


def symmetric(rng: np.random.Generator, n: int, rank: int) -> np.ndarray:
    basis = np.linalg.qr(rng.standard_normal((n, n)))[0][:, :rank]
    signs = np.where(rng.random(rank) < 0.5, -1.0, 1.0)
    return basis @ np.diag(signs * rng.uniform(0.5, 2, rank)) @ basis.T


@pytest.mark.parametrize(("rank", "singular"), [(30, False), (25, True)])
def test_symmetric_systems(rank, singular):
    rng = np.random.default_rng(rank)
    M, free = symmetric(rng, 30, rank), np.ones(30, bool)
    wide = np.zeros((33, 33))
    wide[:30, :30] = M
    wide[30:, 30:] = 7.0
    free = np.arange(33) < 30
    goal = np.r_[M @ rng.standard_normal(30), np.ones(3)]
    solved = solve_sparse(sp.csc_array(wide), free, goal)
    assert solved.singular == singular
    assert solved.lost < 1e-9
    assert not solved.u[30:].any()
    np.testing.assert_allclose(M @ solved.u[:30], goal[:30], atol=1e-10)
    outside = solve_sparse(sp.csc_array(wide), free, rng.standard_normal(33))
    assert (outside.lost > 1e-3) == singular


def test_signs_of_matrices():
    rng = np.random.default_rng(0)
    half = rng.standard_normal((20, 12))
    assert semidefinite(sp.csc_array(half @ half.T))
    assert not semidefinite(sp.csc_array(half @ half.T - 0.1 * np.eye(20)))
    for curvature, expected in ((1.0, True), (-1.0, False)):
        H, J = np.diag([curvature, -5.0]), np.array([[0.0, 1.0]])
        matrix = np.block([[H, J.T], [J, np.zeros((1, 1))]])
        assert curves_upwards(sp.csc_array(matrix), np.ones(3, bool), 2) == expected


def test_growth_is_printed():
    script = Path(__file__).parent / "benchmarks" / "bench_size.py"
    done = subprocess.run(
        [sys.executable, str(script), "--quick"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "exponent" in done.stdout
