"""MAID: every step decreases the exact loss, its bounds hold, its ends have names, and it behaves as a torch optimiser."""

import copy
import io
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import bigrad as bg
from bigrad.inner import Bound
from bigrad.optim.inexact import Inexact
from bigrad.optim.levels import Spent
from bigrad.optim.maid import Step
from bigrad.optim.predict import kept, predicted

DOUBLE = torch.float64


class Problem:
    """A random quadratic whose upper loss is known in closed form: y* = -H^-1 (C x + c)."""

    def __init__(self, seed, n=6, m=3):
        rng = np.random.default_rng(seed)
        root, self.c, fit = (torch.as_tensor(rng.normal(size=s)) for s in ((n + 4, n), (n, m), (n + 1, n)))
        self.h, self.shift, target = root.T @ root, torch.as_tensor(rng.normal(size=n)), torch.ones(n + 1, dtype=DOUBLE)
        eigenvalues = torch.linalg.eigvalsh(self.h)
        self.mu, self.L = float(eigenvalues[0]), float(eigenvalues[-1])
        self.x = torch.as_tensor(rng.normal(size=m)).requires_grad_()
        self.outer = lambda y: 0.5 * (fit @ y - target).square().sum()
        outer, coupling = float(torch.linalg.matrix_norm(fit, 2)) ** 2, float(torch.linalg.matrix_norm(self.c, 2))
        self.limit = bg.ErrorBound(self.mu, outer, coupling=coupling)
        self.program = bg.argmin(
            lambda x, y: 0.5 * y @ self.h @ y + y @ (self.c @ x + self.shift), torch.zeros(n, dtype=DOUBLE)
        )

    def exact(self, x):
        return self.outer(torch.linalg.solve(self.h, -(self.c @ x + self.shift)))

    def layer(self, limit=True, method=None, linear=None):
        solver = bg.Descent(method or bg.FISTA(self.L, self.mu), mu=self.mu)
        return bg.Layer(self.program, solver=solver, gradient=bg.Implicit(linear, bound=self.limit if limit else None))

    def upper(self, lower):
        return self.outer(lower(self.x))

    def slope(self):
        x = self.x.detach().requires_grad_()
        return torch.autograd.grad(self.exact(x), x)[0]


@pytest.mark.parametrize("linear", [None, bg.MINRES(), bg.GMRES()], ids=str)
@pytest.mark.parametrize("seed", [0, 3])
def test_every_step_decreases_the_exact_loss_and_the_bounds_hold(seed, linear):
    p = Problem(seed)
    optimiser = bg.MAID([p.x], p.layer(linear=linear), lr=0.1, tolerance=1.0)
    for _ in range(12):
        before, slope, old = float(p.exact(p.x.detach())), p.slope(), p.x.detach().clone()
        step = optimiser.step(p.upper)
        assert step.status is bg.Progress.DESCENT
        assert not step.estimated
        z = (old - p.x.detach()) / step.step
        assert float(z.norm()) == pytest.approx(step.gradient)
        assert float((z - slope).norm()) <= step.bound <= step.gradient
        after = float(p.exact(p.x.detach()))
        assert after < before
        assert abs(after - step.upper) <= step.upper_error


@pytest.mark.parametrize("method", [None, bg.LBFGS()], ids=["FISTA", "LBFGS"])
def test_it_comes_to_the_optimum_with_tolerances_it_chose(method):
    p = Problem(7, m=2)
    optimiser = bg.MAID([p.x], p.layer(method=method), lr=0.1, tolerance=1.0, tol=1e-2)
    steps = []
    while not steps or steps[-1].status.ok:
        steps.append(optimiser.step(p.upper))
        assert len(steps) < 500
    assert steps[-1].status is bg.Progress.STATIONARY
    assert steps[-1].step == 0
    assert float(p.slope().norm()) <= steps[-1].gradient + steps[-1].bound <= 1e-2
    tolerances = [s.tolerance for s in steps]
    assert tolerances[0] > 20 * tolerances[-1]
    assert any(b > a for a, b in itertools.pairwise(tolerances))  # they grow, too


def test_a_second_look_starts_where_the_first_ended():
    p = Problem(1)
    optimiser = bg.MAID([p.x], p.layer(), tol=1e3)
    first, second = optimiser.step(p.upper), optimiser.step(p.upper)
    assert first.status is second.status is bg.Progress.STATIONARY
    assert first.lower_iterations > 5
    assert first.hessian_products > 1
    assert (second.lower_iterations, second.hessian_products) == (0, 1)
    memory = optimiser.state[p.x]
    assert (memory["lower_iterations"], memory["hessian_products"]) == (
        first.lower_iterations,
        first.hessian_products + 1,
    )


# Predictions and corrections


def triples(p, count, seed=0):
    """Points anywhere, with their residuals; and the residual as a function."""
    rng = np.random.default_rng(seed)

    def residual(x, y):
        return p.h @ y + p.c @ x + p.shift

    points = [[torch.as_tensor(rng.normal(size=s)) for s in (len(p.c.T), len(p.h))] for _ in range(count)]
    return [(x, y, residual(x, y)) for x, y in points], residual


@pytest.mark.parametrize("count", [1, 2, 5, 10, 14])
def test_a_prediction_is_as_good_as_affine_gradients_allow(count):
    p, x = Problem(8), torch.ones(3, dtype=DOUBLE)
    past, residual = triples(p, count)
    width = p.limit.coupling
    y = predicted(past, x, width)
    at_most = min(float(r.square().sum() + (width * (x - at)).square().sum()) for at, _, r in past)
    assert float(residual(x, y).norm()) <= (2 * at_most) ** 0.5
    if count >= len(x) + len(y) + 1:  # any (x, y) is a combination of them
        np.testing.assert_allclose(y, torch.linalg.solve(p.h, -(p.c @ x + p.shift)), atol=1e-7)
    if count == 1:
        assert torch.equal(y, past[0][1])


def test_points_kept_twice_do_no_harm_and_the_oldest_go():
    p = Problem(8)
    past, _ = triples(p, 4)
    x = torch.ones(3, dtype=DOUBLE)
    np.testing.assert_allclose(predicted([past[1], *past], x, 1.0), predicted(past, x, 1.0), atol=1e-8)
    assert [t is u for t, u in zip(kept(past[:3], past[3], 3), past[1:], strict=True)] == [True] * 3
    assert kept(past, past[1], 10) == [past[0], past[2], past[3], past[1]]
    assert kept(past, past[1], 0) == []


def bent():
    """A lower level with third derivatives, and true constants: |d3 softplus| <= 0.0963."""
    rng = np.random.default_rng(3)
    a, goal = torch.as_tensor(rng.normal(size=(12, 4))), torch.as_tensor(rng.normal(size=4))
    program = bg.argmin(
        lambda x, y: torch.nn.functional.softplus(a @ y).sum() + 0.5 * y @ y - x @ y, torch.zeros(4, dtype=DOUBLE)
    )
    limit = bg.ErrorBound(1.0, 2.0, hessian=0.0963 * float(a.norm(dim=1).pow(3).sum()), coupling=1.0)
    return program, limit, lambda y: (y - goal).square().sum()


@pytest.mark.parametrize("tolerance", [1.0, 0.1, 1e-2, 1e-3])
def test_a_corrected_loss_is_as_near_as_it_says(tolerance):
    program, limit, upper = bent()
    x = torch.linspace(-1, 2, 4, dtype=DOUBLE).requires_grad_()
    step = bg.GradientDescent(0.05)
    layer = bg.Layer(program, solver=bg.Descent(step, mu=1.0), gradient=bg.Implicit(bound=limit))
    fine = bg.Layer(program, solver=bg.Descent(step, tol=1e-11, mu=1.0, steps=10**4))
    exact = upper(fine(x)).item()
    inexact, spent = Inexact(layer, 0), Spent()
    with torch.no_grad():
        look = inexact.look(lambda lower: upper(lower(x)), [x], (tolerance, tolerance), [], spent)
        value = inexact.value(look, {})
    assert abs(value.loss - exact) <= value.error
    plain = look.slopes[0] * look.levels[0].error + look.levels[0].error ** 2
    assert abs(look.loss - exact) <= plain
    assert value.error <= plain * (1 + 1e-9)
    if tolerance <= 1e-2:
        assert value.error < 0.2 * plain
        assert abs(value.loss - exact) < 0.2 * abs(look.loss - exact)


@pytest.mark.parametrize("seed", [0, 3, 7])
def test_predictions_change_the_cost_and_nothing_else(seed):
    """Exact losses in closed form: each step decreases, is where it says, and the ends agree."""
    costs, ends = [], []
    for past in (0, 10):
        p = Problem(seed, m=2)
        optimiser = bg.MAID([p.x], p.layer(), lr=0.1, tolerance=1.0, tol=1e-2, past=past)
        before = float(p.exact(p.x.detach()))
        while (step := optimiser.step(p.upper)).status.ok:
            after = float(p.exact(p.x.detach()))
            assert after < before
            assert abs(after - step.upper) <= step.upper_error
            before = after
        assert step.status is bg.Progress.STATIONARY
        assert float(p.slope().norm()) <= 1e-2
        costs.append(optimiser.state[p.x]["lower_iterations"])
        ends.append(before)
    assert costs[1] < costs[0]
    assert ends[1] == pytest.approx(ends[0], abs=1e-3)


def test_no_gradient_goes_uncounted(monkeypatch):
    """But the first of a solve, and that at a prediction."""
    p, looks, solves = Problem(2), [], []
    slope, solve = Bound.slope, bg.Descent.solve
    monkeypatch.setattr(Bound, "slope", lambda self, *a: [looks.append(1), slope(self, *a)][1])
    monkeypatch.setattr(bg.Descent, "solve", lambda self, *a: [solves.append(1), solve(self, *a)][1])
    optimiser = bg.MAID([p.x], p.layer(), lr=0.1)
    steps = [optimiser.step(p.upper) for _ in range(20)]
    total = sum(s.lower_iterations for s in steps)
    assert len(solves) <= len(looks) - total <= 2 * len(solves)
    assert min(s.lower_iterations for s in steps) == 0  # x has three dimensions, so y* is soon known


def test_rates_after_a_step_are_of_barzilai_and_borwein():
    p = Problem(4)
    optimiser = bg.MAID([p.x], p.layer(), lr=1e-3, tolerance=1e-9, shrink=1.0, grow=1.0)
    points, slopes = [], []
    for _ in range(2):
        points.append(p.x.detach().clone())
        slopes.append(p.slope())
        step = optimiser.step(p.upper)
    s, g = points[1] - points[0], slopes[1] - slopes[0]
    assert step.trials == 1
    assert step.step == pytest.approx(float(s @ g / (g @ g)), rel=1e-4)


# Nonquadratic lower levels, constants nobody gave, several levels, groups


def logistic(seed=0):
    rng = np.random.default_rng(seed)
    a, signs = torch.as_tensor(rng.normal(size=(40, 4))), torch.as_tensor(np.sign(rng.normal(size=40)))

    def inner(x, y, rows):
        fit = torch.nn.functional.softplus(-signs[rows] * (a[rows] @ y["w"])).sum()
        return fit + (x["reg"].exp() * y["w"].square()).sum() + x["bias"] * y["w"].sum()

    x = {
        "reg": torch.zeros(4, dtype=DOUBLE, requires_grad=True),
        "bias": torch.zeros((), dtype=DOUBLE, requires_grad=True),
    }

    def upper(lower):
        parts = [lower(x, rows) for rows in (torch.arange(20), torch.arange(10, 30))]
        fits = [torch.nn.functional.softplus(-signs[30:] * (a[30:] @ y["w"])).mean() for y in parts]
        return sum(fits) + 1e-3 * x["reg"].square().sum()

    program = bg.argmin(inner, {"w": torch.zeros(4, dtype=DOUBLE)})
    return x, program, upper


def test_two_levels_in_one_loss_with_constants_estimated_and_two_groups():
    x, program, upper = logistic()
    layer = bg.Layer(program, solver=bg.Descent(mu=0.02))
    optimiser = bg.MAID([{"params": [x["reg"]]}, {"params": [x["bias"]], "lr": 0.1}], layer, lr=1.0)
    exact = bg.Layer(program, solver=bg.Descent(tol=1e-9), gradient=bg.Implicit(bg.CG(tol=1e-11)))
    for _ in range(8):
        before = upper(exact)
        slopes = torch.autograd.grad(before, list(x.values()))
        old = [t.detach().clone() for t in x.values()]
        step = optimiser.step(upper)
        assert step.status is bg.Progress.DESCENT
        assert step.estimated
        assert upper(exact).item() < before.item()
        share = [step.step, 0.1 * step.step]
        z = [(o - t.detach()) / s for o, t, s in zip(old, x.values(), share, strict=True)]
        assert sum(float((a - b).square().sum()) for a, b in zip(z, slopes, strict=True)) ** 0.5 <= step.bound
    assert {"outer", "hessian", "mixed"} == set(optimiser.state[x["reg"]]["constants"])
    assert optimiser.param_groups[0]["lr"] == pytest.approx(10 * optimiser.param_groups[1]["lr"])


def test_estimated_constants_are_those_of_a_quadratic():
    p = Problem(3)
    optimiser = bg.MAID([p.x], p.layer(limit=False), lr=0.1)
    assert optimiser.step(p.upper).estimated
    found = optimiser.state[p.x]["constants"]
    assert found["outer"] == pytest.approx(p.limit.outer, rel=0.3)  # six power iterations
    assert found["outer"] <= p.limit.outer * (1 + 1e-6)
    assert max(found["hessian"], found["mixed"]) < 1e-6


# How it ends


def test_tolerances_held_stall_where_they_are_too_coarse():
    p = Problem(2)
    optimiser = bg.MAID([p.x], p.layer(), lr=0.1, tolerance=0.1, shrink=1.0, grow=1.0, rounds=2)
    for _ in range(300):
        before, x, lr = float(p.exact(p.x.detach())), p.x.detach().clone(), optimiser.param_groups[0]["lr"]
        step = optimiser.step(p.upper)
        if not step.status.ok:
            break
        assert float(p.exact(p.x.detach())) < before
    assert step.status is bg.Progress.STALLED
    assert step.trials <= 21
    assert (step.tolerance, step.step) == (0.1, 0.0)
    assert torch.equal(p.x, x)
    assert optimiser.param_groups[0]["lr"] == lr
    fresh = bg.MAID([p.x], p.layer(), lr=0.1, tolerance=0.1)
    assert fresh.step(p.upper).status is bg.Progress.DESCENT  # finer ones go on


def test_a_solver_that_stops_short_is_an_end_with_a_cause_and_at_the_start_an_error():
    p = Problem(4, n=3, m=2)
    solver = bg.Descent(bg.GradientDescent.tuned(p.L, p.mu), steps=2, mu=p.mu)
    layer = bg.Layer(p.program, solver=solver, gradient=bg.Implicit(bound=p.limit))
    optimiser = bg.MAID([p.x], layer, lr=0.1, tolerance=1.0, trials=4, rounds=4, past=0)
    for _ in range(50):
        x = p.x.detach().clone()
        step = optimiser.step(p.upper)
        if step.status is bg.Progress.UNSOLVED:
            break
    assert step.status is bg.Progress.UNSOLVED
    assert "was asked for" in step.cause
    assert torch.equal(p.x, x)
    assert optimiser.step(p.upper).status is bg.Progress.UNSOLVED
    short = bg.Descent(bg.FISTA(p.L, p.mu), steps=2, mu=p.mu)
    layer = bg.Layer(p.program, solver=short, gradient=bg.Implicit(bound=p.limit))
    with pytest.raises(bg.SolveError, match=r"was not solved to 1\.0e-05"):
        bg.MAID([p.x], layer, tolerance=1e-5).step(p.upper)


def test_a_lower_level_that_is_not_convex_is_an_error_and_nothing_moves():
    x = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    saddle = bg.argmin(lambda x, y: (x * y).sum() - y[0] ** 2 + y[1] ** 2, torch.zeros(2, dtype=DOUBLE))
    layer = bg.Layer(saddle, solver=bg.Descent(bg.GradientDescent(1e-9), mu=1.0))
    with pytest.raises(bg.SolveError, match="positive definite"):
        bg.MAID([x], layer, tolerance=100.0, adjoint_tolerance=1e-3).step(lambda lower: lower(x)[0])
    assert torch.equal(x, torch.ones(2, dtype=DOUBLE))


# A torch optimiser


def test_a_stored_state_goes_on_as_if_nothing_had_happened():
    p = Problem(5)
    optimiser = bg.MAID([p.x], p.layer(limit=False), lr=0.1)
    for _ in range(5):
        optimiser.step(p.upper)
    stored = io.BytesIO()
    torch.save([optimiser.state_dict(), p.x], stored)
    expected = [optimiser.step(p.upper) for _ in range(5)]
    stored.seek(0)
    state, x = torch.load(stored, weights_only=True)
    again = Problem(5)
    with torch.no_grad():
        again.x.copy_(x)
    other = bg.MAID([again.x], again.layer(limit=False), lr=0.7)
    other.load_state_dict(state)
    assert [other.step(again.upper) for _ in range(5)] == expected
    assert isinstance(expected[0], Step)
    assert copy.deepcopy(optimiser.param_groups[0]["lr"]) == other.param_groups[0]["lr"]


def test_single_precision_and_a_frozen_parameter():
    x, more = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    program = bg.argmin(lambda x, y, more: (y - x * more).square().sum(), torch.zeros(3))
    optimiser = bg.MAID([x, more], bg.Layer(program, solver=bg.Descent(mu=2.0)), lr=0.1)
    more.requires_grad_(False)
    for _ in range(20):
        step = optimiser.step(lambda lower: (lower(x, more) - 3).square().sum())
    assert step.upper < 1.0
    assert torch.equal(more, torch.ones(3))
    assert x.grad is None


def interrupted(p):
    def upper(lower):
        if not torch.equal(p.x, before):
            raise KeyboardInterrupt
        return p.upper(lower)

    before = p.x.detach().clone()
    return upper


def test_an_interrupted_step_leaves_parameters_as_they_were():
    p = Problem(6)
    before = p.x.detach().clone()
    optimiser = bg.MAID([p.x], p.layer())
    with pytest.raises(KeyboardInterrupt):
        optimiser.step(interrupted(p))
    assert torch.equal(p.x, before)
    assert optimiser.step(p.upper).status.ok


@pytest.mark.parametrize(
    ("closure", "message"),
    [
        (lambda p: lambda lower: p.x.sum(), "does not call what it is given"),
        (lambda p: lambda lower: lower(p.x), r"returned a tensor of shape \(6,\)"),
        (lambda p: lambda lower: float(lower(p.x).sum()), "returned float"),
        (lambda p: lambda lower: lower(p.x).detach().sum(), "without a graph"),
        (lambda p: lambda lower: lower(p.x.detach()).sum(), "no parameter reaches the loss"),
        (lambda p: lambda lower: lower(2 * p.x).sum(), r"shapes \[\(3,\)\].*not its parameters"),
        (lambda p: lambda lower: lower(p.x).sum() / 0, "upper loss is"),
        (lambda p: lambda lower: [s := lower(p.x).sum(), s.backward()][0], "calls backward"),
    ],
)
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_bad_closures(closure, message):
    p = Problem(0)
    with pytest.raises(bg.InputError, match=message):
        bg.MAID([p.x], p.layer()).step(closure(p))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: bg.MAID([p.x], p.layer(), lr=0.0), bg.InputError, "lr=0.0"),
        (lambda p: bg.MAID([p.x], p.layer(), tolerance=-1.0), bg.InputError, "tolerance=-1.0"),
        (lambda p: bg.MAID([p.x], p.layer(), shrink=1.0), bg.InputError, "shrink=1.0"),
        (lambda p: bg.MAID([p.x], p.layer(), eta=1.0), bg.InputError, "eta=1.0"),
        (lambda p: bg.MAID([p.x], p.layer(), grow=0.9), bg.InputError, "at least 1"),
        (lambda p: bg.MAID([p.x], p.layer(), trials=0), bg.InputError, "at least 1"),
        (lambda p: bg.MAID([p.x], p.layer(), past=-1), bg.InputError, "past=-1"),
        (lambda p: bg.MAID([p.x], p.layer(), tol=float("nan")), bg.InputError, "tol=nan"),
        (lambda p: bg.MAID([p.x], p.program), bg.InputError, "give the bigrad.Layer"),
        (lambda p: bg.MAID([p.x], bg.Layer(p.program)), bg.InputError, "strong convexity"),
        (lambda p: bg.MAID([p.x], bg.Layer(p.program, gradient=bg.EqProp())), bg.CapabilityError, "Implicit; this one"),
        (lambda p: bg.MAID([p.x], p.layer(linear=bg.T1T2())), bg.CapabilityError, "to a tolerance"),
        (lambda p: bg.MAID([p.x.detach()], p.layer()).step(p.upper), bg.InputError, "requires a gradient"),
        (
            lambda p: bg.MAID(
                [p.x],
                bg.Layer(
                    bg.argmin(lambda x, y: (x * y).sum(), torch.zeros(3), within=bg.Box()),
                    solver=bg.Descent(bg.FISTA(1.0), mu=0.1),
                ),
            ),
            bg.CapabilityError,
            "kept in a set",
        ),
    ],
)
def test_bad_options(make, error, message):
    with pytest.raises(error, match=message):
        make(Problem(0))


# Against fixed tolerances


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
    import bench_maid

    yield bench_maid
    sys.path.pop(0)


def test_the_quadratic_of_its_authors_is_the_one_known(bench):
    problem = bench.Quadratic()
    assert (round(problem.L, 1), round(problem.mu, 2), round(problem.steepest, 1)) == (2613.0, 70.46, 2429.9)
    assert problem.gap(problem.ones) == 1
    way = bench.searched(problem, 1e-5, fixed=False, targets=(0.1,))
    held = bench.searched(problem, 1e-5, fixed=True, targets=(0.1,))
    assert way.reached[0.1][1] <= held.reached[0.1][1]
    assert 0 < problem.gap(problem.ones - 0.1) < 2


@pytest.mark.slow
def test_fewer_lower_iterations_than_with_any_fixed_tolerance(bench):
    problem = bench.Quadratic()
    free = bench.searched(problem, 1e-1, fixed=False)
    assert set(free.reached) == set(bench.TARGETS)
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        held = bench.searched(problem, tolerance, fixed=True)
        for target in bench.TARGETS:
            assert target not in held.reached or free.reached[target][1] < held.reached[target][1]
        assert len(held.reached) == len(bench.TARGETS) or held.end == "STALLED"
    constant = bench.constant(problem, 1e-1, targets=(0.03,))
    assert free.reached[0.03][1] < constant.reached[0.03][1] / 3
