"""Gradients against central differences of re-solves, closed forms and theorems.

Kinks, degenerate and singular programs included.
"""

import warnings

import cvxpy as cp
import numpy as np
import pytest
import torch
from derivatives import compare
from helpers import SHAPES, case, random_atoms, random_quadratic

import bigrad as bg

DOUBLE = torch.float64


def tensor(value, *, grad=True):
    return torch.tensor(np.asarray(value, dtype=float), requires_grad=grad)


def own(problem):
    """The variables that a random program's user would ask for."""
    return [problem.leader[0], *problem.responds]


def figure(seeds, **options):
    """Compare many random programs: worst error where the one-sided derivatives agree.

    Kinks counted and listed; unsolved listed.
    """
    worst, biactive, programs, agreeing, kinks, unsolved = 0.0, 0, 0, 0, [], []
    for shape in SHAPES:
        for seed in seeds:
            problem = random_quadratic(shape, seed)
            if not problem.program.solve(problem.values).status.ok:
                unsolved.append((shape, seed))
                continue
            report = compare(problem, own(problem), seed=seed, **options)
            stats = report.solution.stats
            programs += 1
            biactive += stats.biactive > 0
            agreeing += len(report.agreeing)
            kinks += [(shape, seed, d.parameter, d.kind) for d in report.kinks]
            for d in report.agreeing:
                assert d.error <= 1e-4, (shape, seed, d)
            if report.kinks:
                assert stats.degenerate or stats.singular or not stats.strongly_stationary, (shape, seed, report.kinks)
            worst = max(worst, report.worst)
    print(
        f"\n{programs} programs, {biactive} with biactive pairs; {agreeing} directions agree, worst relative error {worst:.1e}; "
        f"{len(kinks)} with two one-sided derivatives: {kinks}; unsolved: {unsolved}"
    )
    return programs, biactive, kinks, unsolved


def test_every_parameter_of_random_programs():
    programs, biactive, kinks, unsolved = figure(range(6), random=1, coordinates=1)
    assert (programs, unsolved) == (24, [])
    assert biactive >= 8
    assert len(kinks) <= 20


@pytest.mark.slow
def test_every_parameter_of_two_hundred_random_programs():
    programs, biactive, _, unsolved = figure(range(50), random=2, coordinates=2)
    assert unsolved == []
    assert programs == 200
    assert biactive >= 50


@pytest.mark.parametrize("linked", [False, True])
def test_every_entry_of_every_parameter_of_a_small_program(linked):
    problem = random_quadratic((2, 3, 4), 3, linked=linked)
    report = compare(problem, own(problem), coordinates=None, random=0)
    assert report.solution.stats.biactive
    assert not report.kinks
    assert report.worst <= 1e-5
    assert len(report.differences) >= sum(p.size for p in problem.values)


def check_atoms(seeds):
    """Gradients of programs of random atoms, whose auxiliary variables are no business of the user's."""
    agreeing = kinks = 0
    for seed in seeds:
        problem = random_atoms(seed)
        if not problem.values or not problem.program.solve(problem.values).status.ok:
            continue
        report = compare(problem, [*problem.leader, *problem.responds], coordinates=None, random=1, floor=1e-2)
        assert report.worst <= 1e-4, (seed, max(report.agreeing, key=lambda d: d.error))
        agreeing, kinks = agreeing + len(report.agreeing), kinks + len(report.kinks)
        stats = report.solution.stats
        assert not report.kinks or stats.degenerate or stats.singular or not stats.strongly_stationary, (
            seed,
            report.kinks,
        )
    print(f"\n{agreeing} directions agree, {kinks} have two one-sided derivatives")
    return agreeing, kinks


def test_parameters_of_random_expressions():
    agreeing, kinks = check_atoms(range(25))
    assert agreeing > 20 * kinks


@pytest.mark.slow
def test_parameters_of_many_random_expressions():
    agreeing, kinks = check_atoms(range(25, 300))
    assert agreeing > 20 * kinks


def variables(*names):
    return [cp.Variable(name=n) for n in names]


def more():
    """Programs with parameters in other places than in the random ones."""
    rng = np.random.default_rng(5)
    x, y = cp.Variable(2, name="x"), cp.Variable(3, name="y")
    p = {
        k: cp.Parameter(s, name=k, nonneg=k in "qv")
        for k, s in {"a": 2, "b": 3, "c": 3, "q": 3, "v": (), "s": ()}.items()
    }
    v = {
        "a": rng.standard_normal(2),
        "b": rng.standard_normal(3),
        "c": rng.standard_normal(3),
        "q": rng.uniform(0.5, 1, 3),
        "v": 0.7,
        "s": 0.4,
    }
    M = rng.standard_normal((3, 2))

    def values(*keys):
        return {p[k]: v[k] for k in keys}

    near = cp.sum_squares(y - M @ x)
    yield "maximised at both levels", case(
        cp.Maximize(p["c"] @ y - cp.sum_squares(x - p["a"])), cp.Maximize(p["b"] @ y - p["q"] @ cp.square(y) - near), y,
        [x <= 2], [cp.sum(y) <= p["s"]], values("a", "b", "c", "q", "s"),
    )  # fmt: skip
    yield "abs and max", case(
        cp.norm1(x - p["a"]) + cp.max(y - p["c"]) + cp.sum_squares(x) / 5, near + p["v"] * cp.norm1(y - 0.3) +
        cp.norm1(y - p["b"]), y, [x <= 2], [y <= 3], values("a", "b", "c", "v"),
    )  # fmt: skip
    low, high = cp.Parameter(3, name="low"), cp.Parameter(name="high")
    z = cp.Variable(3, name="z", bounds=[low, high])
    yield (
        "bounds",
        case(
            cp.sum_squares(x - p["a"]) + p["c"] @ z,
            cp.sum_squares(z - M @ x),
            z,
            values={**values("a", "c"), low: [-0.2, -0.4, -2.0], high: 0.3},
        ),
    )
    X, Y = cp.Variable((2, 2), name="X"), cp.Variable((2, 3), name="Y")
    S, T, W = (
        cp.Parameter((2, 3), name="S"),
        cp.Parameter((3, 2), name="T"),
        cp.Parameter((2, 3), name="W", nonneg=True),
    )
    yield "matrices", case(
        cp.sum_squares(X - np.eye(2)) + cp.sum(cp.multiply(W, cp.square(Y))) + cp.trace(T @ Y), cp.sum_squares(Y - X @
        M.T - S), Y, [X[0, 1] + X[1, 0] == p["s"]], [np.array([[0.2, 3.0], [3.0, 0.1]]) >= Y @ T, Y[0, 0] == Y[1, 2]],
        {S: rng.standard_normal((2, 3)), T: rng.standard_normal((3, 2)), W: rng.uniform(0.2, 1, (2, 3)), **values("s")},
    )  # fmt: skip
    yield "a follower who is a linear program", case(
        cp.sum_squares(x - p["a"]) + cp.sum_squares(y - 0.1), (p["c"] + M @ x) @ y, y, [x <= 2, x >= -2],
        [y >= p["b"] - 2, cp.sum(y) >= p["s"], y <= 3], values("a", "b", "c", "s"),
    )  # fmt: skip
    yield (
        "a leader who is a linear program",
        case(
            p["a"] @ x + p["c"] @ y,
            near + p["b"] @ y,
            y,
            [x <= 1, x >= -1, cp.sum(y) >= p["s"] - 2],
            [y >= -1],
            values("a", "b", "c", "s"),
        ),
    )
    yield (
        "one parameter in four places",
        case(
            cp.sum_squares(x - p["s"]) + p["s"] * cp.sum(y),
            near + p["s"] * y[0],
            y,
            [x[0] <= p["s"] + 0.1],
            [y >= -p["s"]],
            values("s"),
        ),
    )
    yield (
        "a price times a demand",
        case(
            -x @ y[:2] + cp.sum_squares(x) / 9,
            cp.sum_squares(y + cp.hstack([x, 0]) - p["b"]),
            y,
            [x <= p["a"] + 3, x >= 0],
            [y >= 0],
            values("a", "b"),
        ),
    )
    yield (
        "a smooth leader",
        case(
            cp.sum(cp.exp(x - p["a"])) + cp.sum_squares(y - p["c"]),
            near + p["b"] @ y,
            y,
            [x >= -1],
            [y >= -0.5],
            values("a", "b", "c"),
        ),
    )


MORE = dict(more())


@pytest.mark.parametrize("name", MORE)
def test_parameters_in_other_places(name):
    report = compare(MORE[name], coordinates=None)
    assert report.worst <= 1e-4, max(report.agreeing, key=lambda d: d.error)
    assert len(report.agreeing) >= 0.9 * len(report.differences)


# Closed forms


def layer_of(problem, parameters, shown, **options):
    return bg.Layer(problem.program, parameters, shown, **options)


def test_a_kink_that_holds_the_leader():
    """y = max(0, x - theta), F = (x - 2)^2 - 3x + 8y: x stays at theta, both sides of the pair held."""
    x, y = variables("x", "y")
    theta = cp.Parameter(name="theta")
    layer = layer_of(case(cp.square(x - 2) - 3 * x + 8 * y, cp.square(y - x + theta), y, [], [y >= 0]), [theta], [x, y])
    t = tensor([0.5, 1.0, 1.7])
    solutions = layer.solve(t)
    assert [s.stats.biactive for s in solutions] == [1, 1, 1]
    assert all(s.stats.strongly_stationary and not s.stats.degenerate for s in solutions)
    x_star, y_star = layer(t)
    torch.testing.assert_close(x_star, t)
    assert y_star.abs().max() < 1e-12
    torch.testing.assert_close(torch.autograd.grad(x_star.sum(), t)[0], torch.ones(3, dtype=DOUBLE))
    x_star, y_star = layer(t)
    torch.testing.assert_close(torch.autograd.grad(y_star.sum(), t)[0], torch.zeros(3, dtype=DOUBLE))


@pytest.mark.parametrize(("pull", "side"), [(-1.0, "up"), (12.0, "down")])
def test_beside_the_kink_the_smooth_derivatives_hold(pull, side):
    """F = (x - 2)^2 - 3x + pull y.

    For a small pull the leader goes past the kink, to x = 3.5 - pull / 2 where y = x - theta.
    """
    x, y = variables("x", "y")
    theta, c = cp.Parameter(name="theta"), cp.Parameter(name="c")
    layer = layer_of(
        case(cp.square(x - 2) - 3 * x + c * y, cp.square(y - x + theta), y, [], [y >= 0]), [theta, c], [x, y]
    )
    t, k = tensor(1.0 if side == "up" else 4.0), tensor(pull)
    x_star, y_star = layer(t, k)
    if side == "up":
        assert x_star.item() == pytest.approx(3.5 - pull / 2)
        assert [g.item() for g in torch.autograd.grad(x_star, (t, k), retain_graph=True)] == pytest.approx([0.0, -0.5])
        assert [g.item() for g in torch.autograd.grad(y_star, (t, k))] == pytest.approx([-1.0, -0.5])
    else:
        assert x_star.item() == pytest.approx(3.5)
        assert [g.item() for g in torch.autograd.grad(x_star, (t, k))] == pytest.approx([0.0, 0.0])


def test_many_kinks_at_once():
    """y_i = max(0, a_i'x - t_i) with strong penalties: x solves A x = t, whatever else the leader wants.

    Dx/dt = A^-1.
    """
    A = np.array([[2.0, 1.0], [-1.0, 3.0]])
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
    t = cp.Parameter(2, name="t")
    goal = cp.sum_squares(x) / 10 - 3 * cp.sum(A @ x) + 50 * cp.sum(y)
    layer = layer_of(case(goal, cp.sum_squares(y - A @ x + t), y, [], [y >= 0]), [t], [x, y])
    value = tensor([0.7, -1.1])
    assert layer.solve(value)[0].stats.biactive == 2
    (x_star, _) = layer(value)
    np.testing.assert_allclose(x_star.detach(), np.linalg.solve(A, [0.7, -1.1]), atol=1e-9)
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v)[0], value)
    np.testing.assert_allclose(jacobian, np.linalg.inv(A), atol=1e-9)


def test_the_envelope_theorem():
    """Parameters of the upper objective alone move the solution along directions in which that objective is flat (to first order)."""
    for shape in SHAPES[:3]:
        for seed in range(4):
            problem = random_quadratic(shape, seed)
            layer = layer_of(problem, list(problem.values), own(problem))
            tensors = {p.name(): tensor(v) for p, v in problem.values.items()}
            solution = layer.solve(*tensors.values())[0]
            x_star, y_star = layer(*tensors.values(), warm_start=[solution])
            v = {k: t.detach() for k, t in tensors.items()}
            F = x_star @ v["Q"] @ x_star / 2 + v["weight"] @ y_star**2 + ((y_star - v["target"]) ** 2).sum()
            F = F + v["c"] @ x_star + ((v["T"] @ y_star) ** 2).sum()
            assert F.item() == pytest.approx(solution.value, rel=1e-9)
            names = ["Q", "weight", "target", "c", "T"]
            grads = torch.autograd.grad(F, [tensors[k] for k in names])
            scale = max(1.0, max(t.abs().max().item() for t in tensors.values())) * (1 + abs(F.item()))
            for name, g in zip(names, grads, strict=True):
                assert g.abs().max().item() <= 1e-9 * scale, (shape, seed, name)


def test_without_constraints_the_formula_of_least_squares():
    """y = x + t and F = |x - a|^2 + |y|^2: x = (a - t) / 2."""
    x, y = cp.Variable(3, name="x"), cp.Variable(3, name="y")
    a, t = cp.Parameter(3, name="a"), cp.Parameter(3, name="t")
    layer = layer_of(case(cp.sum_squares(x - a) + cp.sum_squares(y), cp.sum_squares(y - x - t), y), [a, t], [x, y])
    u, v = tensor([1.0, 2.0, 3.0]), tensor([-1.0, 0.5, 2.0])
    x_star, y_star = layer(u, v)
    torch.testing.assert_close(x_star, (u - v) / 2)
    torch.testing.assert_close(y_star, (u + v) / 2)
    g = torch.autograd.grad(x_star @ torch.arange(3, dtype=DOUBLE) + y_star.sum(), (u, v))
    torch.testing.assert_close(g[0], (torch.arange(3, dtype=DOUBLE) + 1) / 2)
    torch.testing.assert_close(g[1], (1 - torch.arange(3, dtype=DOUBLE)) / 2)


# Linear, degenerate and singular programs


def test_a_linear_follower_moves_with_its_rows_and_not_with_its_costs():
    """The cheapest source serves the demand: dy/dcost = 0, dy/ddemand = (0, 1, 0)."""
    x, y = cp.Variable(name="x"), cp.Variable(3, name="y")
    cost, demand = cp.Parameter(3, name="cost"), cp.Parameter(name="demand")
    problem = case(cp.square(x - cp.sum(y)), cost @ y, y, [], [y >= 0, cp.sum(y) == demand])
    layer = layer_of(problem, [cost, demand], [y, x])
    c, d = tensor([3.0, 1.0, 2.0]), tensor(4.0)
    y_star, x_star = layer(c, d)
    torch.testing.assert_close(y_star, torch.tensor([0.0, 4.0, 0.0], dtype=DOUBLE))
    assert x_star.item() == pytest.approx(4.0)
    gc, gd = torch.autograd.grad(y_star @ torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE), (c, d), retain_graph=True)
    assert gc.abs().max() == 0
    assert gd.item() == pytest.approx(2.0)
    assert torch.autograd.grad(x_star, d)[0].item() == pytest.approx(1.0)


@pytest.mark.parametrize("times", [2, 3])
def test_duplicate_rows_do_not_harm_the_gradient(times):
    """The same active row twice.

    Multipliers are not unique, M is singular, the derivative exists and is exact, without a warning.
    """
    x, y = variables("x", "y")
    t = cp.Parameter(name="t")
    rows = [k * y >= k * (x - t) for k in range(1, times + 1)]
    problem = case(cp.square(x - 3) + cp.square(y - 1), cp.square(y + 5), y, [], rows)
    layer = layer_of(problem, [t], [x, y])
    v = tensor([0.0, 0.5])
    x_star, y_star = layer(v)
    torch.testing.assert_close(x_star, 2 + v / 2)
    torch.testing.assert_close(y_star, 2 - v / 2)
    torch.testing.assert_close(torch.autograd.grad(x_star.sum(), v)[0], torch.full((2,), 0.5, dtype=DOUBLE))


def test_redundant_equalities_do_not_harm_the_gradient():
    """All node balances of a network, one of them redundant; flow goes through the cheap arc until its capacity."""
    x, y = cp.Variable(name="x"), cp.Variable(3, name="y")
    demand, capacity = cp.Parameter(name="demand"), cp.Parameter(name="capacity")
    balance = np.array([[-1.0, 0.0, -1.0], [1.0, -1.0, 0.0], [0.0, 1.0, 1.0]])
    problem = case(
        cp.square(x - y[2]),
        np.array([1.0, 1.0, 3.0]) @ y,
        y,
        [],
        [y >= 0, y[0] <= capacity, balance @ y == demand * np.array([-1.0, 0.0, 1.0])],
    )
    layer = layer_of(problem, [demand, capacity], [x, y])
    d, c = tensor(3.0), tensor(2.0)
    x_star, y_star = layer(d, c)
    torch.testing.assert_close(y_star, torch.tensor([2.0, 2.0, 1.0], dtype=DOUBLE))
    assert [g.item() for g in torch.autograd.grad(x_star, (d, c))] == pytest.approx([1.0, -1.0])


def test_a_weakly_active_constraint_counts_as_inactive():
    """x = min(p, 0) at p = 0: the documented choice is the side where the constraint is slack, and the stats say so."""
    x, y = variables("x", "y")
    p = cp.Parameter(name="p")
    layer = layer_of(case(cp.square(x - p), cp.square(y - x), y, [x <= 0]), [p], [x])
    v = tensor([0.0, -1.0, 1.0])
    solutions = layer.solve(v)
    assert [s.stats.degenerate for s in solutions] == [1, 0, 0]
    (x_star,) = layer(v)
    torch.testing.assert_close(torch.autograd.grad(x_star.sum(), v)[0], torch.tensor([1.0, 1.0, 0.0], dtype=DOUBLE))


def test_at_a_kink_of_the_follower_with_no_pull_one_side_is_taken_and_said():
    """The leader is told x = p, so y = min(p, 0): at p = 0 the derivative is 0 or 1, and `degenerate` tells."""
    x, y = variables("x", "y")
    p = cp.Parameter(name="p")
    layer = layer_of(case(cp.square(y - 5), cp.square(y - x), y, [x == p], [y <= 0]), [p], [y])
    v = tensor([0.0, -1.0, 1.0])
    stats = [s.stats for s in layer.solve(v)]
    assert stats[0].degenerate or not stats[0].strongly_stationary
    (y_star,) = layer(v)
    g = torch.autograd.grad(y_star.sum(), v)[0]
    assert min(abs(g[0]), abs(g[0] - 1)) < 1e-9
    torch.testing.assert_close(g[1:], torch.tensor([1.0, 0.0], dtype=DOUBLE))


def test_a_solution_that_is_not_unique_warns_only_if_the_loss_sees_it():
    """x[1] does not matter to anybody.

    A loss of x[0] has its exact gradient, a loss of x[1] the minimum-norm one and a warning.
    """
    x, y = cp.Variable(2, name="x"), cp.Variable(name="y")
    p = cp.Parameter(name="p")
    layer = layer_of(case(cp.square(x[0] - p) + 0 * x[1], cp.square(y - x[0]), y), [p], [x, y])
    v = tensor(1.5)
    assert layer.solve(v)[0].stats.singular
    x_star, y_star = layer(v)
    assert torch.autograd.grad(x_star[0] + y_star, v, retain_graph=True)[0].item() == pytest.approx(2.0)
    with pytest.warns(bg.SingularWarning, match="minimum-norm"):
        g = torch.autograd.grad(x_star[1], v)[0]
    assert g.item() == pytest.approx(0.0)


def test_the_minimum_norm_gradient_of_an_indifferent_leader():
    """F depends on x[0] + x[1] alone: the sum's derivative is exact, each part gets the minimum-norm half of it."""
    x, y = cp.Variable(2, name="x"), cp.Variable(name="y")
    p = cp.Parameter(name="p")
    layer = layer_of(case(cp.square(cp.sum(x) - p), cp.square(y - cp.sum(x)), y), [p], [x, y])
    v = tensor(2.0)
    x_star, y_star = layer(v)
    assert x_star.sum().item() == pytest.approx(2.0)
    assert torch.autograd.grad(x_star.sum() + y_star, v, retain_graph=True)[0].item() == pytest.approx(2.0)
    with pytest.warns(bg.SingularWarning):
        assert torch.autograd.grad(x_star[0], v)[0].item() == pytest.approx(0.5)


def test_singular_items_do_not_touch_their_neighbours():
    """The same with a weight that makes some items singular: the others' gradients are those without them."""
    x, y = cp.Variable(2, name="x"), cp.Variable(name="y")
    p, w = cp.Parameter(name="p"), cp.Parameter(name="w", nonneg=True)
    problem = case(cp.square(x[0] - p) + w * cp.square(x[1] - x[0]), cp.square(y - x[0]), y)
    layer = layer_of(problem, [p, w], [x])
    ps, ws = tensor([1.0, 2.0, 3.0]), tensor([1.0, 0.0, 2.0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.autograd.backward(layer(ps, ws)[0].sum())
    assert "items [1]" in str(caught[0].message)
    np.testing.assert_allclose(ps.grad, [2.0, 1.0, 2.0], atol=1e-9)


# Second order, precision, what is computed


def curved():
    """A program with parameters in the follower's rows, costs and square, at a kink, and its values."""
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
    A, L, c = cp.Parameter((3, 2), name="A"), cp.Parameter((2, 2), name="L"), cp.Parameter(2, name="c")
    rng = np.random.default_rng(1)
    problem = case(
        cp.sum_squares(x - c) + cp.sum_squares(y - np.array([2.0, -1.0])) * 2,
        cp.sum_squares(L @ y - x) + c @ y,
        y,
        [cp.sum(x) <= 1],
        [A @ y <= 1],
    )
    values = {A: rng.standard_normal((3, 2)), L: np.eye(2) + rng.standard_normal((2, 2)) / 3, c: rng.standard_normal(2)}
    return problem, values, x, y


def test_gradcheck_and_gradgradcheck():
    problem, values, x, y = curved()
    layer = layer_of(problem, list(values), [x, y])
    inputs = tuple(tensor(v) for v in values.values())
    solution = layer.solve(*inputs)[0]
    assert solution.stats.biactive
    assert torch.autograd.gradcheck(layer, inputs, eps=1e-6, atol=1e-6)
    assert torch.autograd.gradgradcheck(layer, inputs, eps=1e-6, atol=1e-5)


def test_gradgradcheck_in_a_batch_with_shared_parameters():
    problem, values, x, y = curved()
    layer = layer_of(problem, list(values), [x, y])
    A, L, c = (tensor(v) for v in values.values())
    c = tensor(np.stack([c.detach(), c.detach() + 0.1, c.detach() - 0.2]))
    assert torch.autograd.gradcheck(layer, (A, L, c), eps=1e-6, atol=1e-6)
    assert torch.autograd.gradgradcheck(layer, (A, L, c), eps=1e-6, atol=1e-5)


def test_hessians_are_those_of_differences_and_of_the_closed_form():
    """y = 1 / L, F = (x - y)^2 + x^2: x = y / 2 = 1 / (2 L), so d2x/dL2 = 1 / L^3."""
    x, y = variables("x", "y")
    L = cp.Parameter(name="L")
    layer = layer_of(case(cp.square(x - y) + cp.square(x), cp.square(L * y - 1), y), [L], [x])
    for value in (0.5, 1.3, -2.0):
        hessian = torch.autograd.functional.hessian(lambda v: layer(v)[0], tensor(value, grad=False))
        assert hessian.item() == pytest.approx(1 / value**3)
    problem, values, x, y = curved()
    layer = layer_of(problem, list(values), [x, y])
    A, L, c = (tensor(v) for v in values.values())

    def slope(c):
        x_star, y_star = layer(A.detach(), L.detach(), c)
        return torch.autograd.grad((x_star * y_star).sum() + x_star.prod(), c, create_graph=True)[0]

    direction, h = torch.tensor([0.3, -0.7], dtype=DOUBLE), 1e-5
    product = torch.autograd.grad(slope(c) @ direction, c)[0]
    difference = (
        slope(c.detach().add(h * direction).requires_grad_()) - slope(c.detach().sub(h * direction).requires_grad_())
    ) / (2 * h)
    torch.testing.assert_close(product, difference.detach(), rtol=1e-6, atol=1e-7)


def test_a_second_derivative_of_a_smooth_program_is_an_error_not_a_zero():
    x, y = variables("x", "y")
    p = cp.Parameter(name="p")
    layer = layer_of(case(cp.exp(x) - p * x + cp.square(y), cp.square(y - x), y), [p], [x])
    v = tensor(2.0)
    (x_star,) = layer(v)
    with pytest.raises(NotImplementedError, match="Second derivatives need a quadratic program"):
        torch.autograd.grad(x_star, v, create_graph=True)
    assert torch.autograd.grad(x_star, v)[0].item() == pytest.approx(1 / (np.exp(x_star.item()) + 2), rel=1e-5)


def in_units(unit, upper, lower, rows, seed):
    """One program with parameters in other units of its variables, its objectives and its follower's rows."""
    rng = np.random.default_rng(seed)
    values = {"A": rng.standard_normal((4, 3)), "b": rng.uniform(0.3, 1, 4), "c": rng.standard_normal(2)}
    values |= {"t": 2 * rng.standard_normal(3), "w": rng.standard_normal(3)}
    p = {k: cp.Parameter(v.shape, name=k) for k, v in values.items()}
    B, M = rng.standard_normal((4, 2)) / 2, rng.standard_normal((3, 2))
    x, y = cp.Variable(2, name="x"), cp.Variable(3, name="y")
    u, v = x / unit, y / unit
    problem = case(
        upper * (cp.sum_squares(u - p["c"]) + cp.sum_squares(v - p["t"])),
        lower * (cp.sum_squares(v - M @ u) + p["w"] @ v),
        y,
        [cp.sum(u) <= 2, u >= -2, u <= 2],
        [rows * (p["A"] @ v + B @ u) <= rows * p["b"]],
    )
    layer = layer_of(problem, list(p.values()), [x, y])
    inputs = [tensor(v) for v in values.values()]
    x_star, y_star = layer(*inputs)
    loss = (x_star / unit).sum() + (y_star / unit) @ torch.arange(1.0, 4.0, dtype=DOUBLE)
    plain = torch.autograd.grad(loss, inputs, retain_graph=True)
    return loss.item(), plain, torch.autograd.grad(loss, inputs, create_graph=True)


@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize(
    "units",
    [
        (1, 1e4, 1e-4, 1e4), (1e4, 1e-4, 1, 1e4), (1e4, 1e4, 1e-4, 1), (1e-4, 1e-4, 1e4, 1e-4), (1e-4, 1e4, 1e4, 1),
        (1, 1e-4, 1e4, 1e-4), (1e4, 1, 1, 1), (1, 1, 1e4, 1), (1, 1, 1, 1e-4),
    ],
)  # fmt: skip
def test_units_do_not_matter_to_gradients(units, seed):
    value, *roads = in_units(1, 1, 1, 1, seed)
    other, *found = in_units(*units, seed)
    assert other == pytest.approx(value, rel=1e-7)
    for expected, grads in zip(roads, found, strict=True):
        for g, h in zip(expected, grads, strict=True):
            torch.testing.assert_close(h, g, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("order", [1, 2])
def test_repeated_backward_gives_the_same(order):
    problem, values, x, y = curved()
    layer = layer_of(problem, list(values), [x, y])
    inputs = [tensor(v) for v in values.values()]
    x_star, y_star = layer(*inputs)
    loss = x_star.sum() * y_star.prod()
    runs = [torch.autograd.grad(loss, inputs, retain_graph=True, create_graph=order == 2) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_first_order_with_and_without_graph_agree():
    """The two roads of the backward pass, the adjoint and the differentiable solve, give the same gradient."""
    for seed in (0, 3):
        problem = random_quadratic((4, 8, 10), seed)
        layer = layer_of(problem, list(problem.values), own(problem))
        inputs = [tensor(v) for v in problem.values.values()]
        x_star, y_star = layer(*inputs)
        loss = (x_star**3).sum() + y_star.sin().sum()
        plain = torch.autograd.grad(loss, inputs, retain_graph=True)
        graph = torch.autograd.grad(loss, inputs, create_graph=True)
        for a, b in zip(plain, graph, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-8, atol=1e-9)


def test_gradients_in_single_precision():
    problem, values, x, y = curved()
    layer = layer_of(problem, list(values), [x, y])
    double = [tensor(v) for v in values.values()]
    single = [t.detach().float().requires_grad_() for t in double]
    wide = torch.autograd.grad(sum(o.sum() for o in layer(*[t.float().double() for t in double])), double)
    narrow = torch.autograd.grad(sum(o.sum() for o in layer(*single)), single)
    for a, b in zip(wide, narrow, strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a.float(), b, rtol=1e-5, atol=1e-6)


def test_a_batch_of_gradients_is_the_gradients_of_its_items():
    problem = random_quadratic((4, 8, 10), 1)
    layer = layer_of(problem, list(problem.values), own(problem))
    rng = np.random.default_rng(0)
    single = [[torch.tensor(np.asarray(v)) for v in problem.values.values()] for _ in range(5)]
    names = [p.name() for p in problem.values]
    for item in single:
        for k in (names.index("w"), names.index("target"), names.index("b")):
            item[k] = item[k] + 0.05 * torch.as_tensor(rng.standard_normal(item[k].shape))
    stacked = [torch.stack(t).requires_grad_() for t in zip(*single, strict=True)]
    loss = sum((o**2).sum() for o in layer(*stacked))
    together = torch.autograd.grad(loss, stacked)
    for i, item in enumerate(single):
        leaves = [t.clone().requires_grad_() for t in item]
        alone = torch.autograd.grad(sum((o**2).sum() for o in layer(*leaves)), leaves)
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a, b[i], rtol=1e-7, atol=1e-8)
