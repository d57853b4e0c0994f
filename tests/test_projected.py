"""The default for a y that is kept in a set: closed forms, finite differences, optimality by a second opinion, and statuses."""

import math

import numpy as np
import pytest
import torch

import bigrad as bg

DOUBLE = torch.float64
SETS = {"box": bg.Box(-0.3, 0.4), "simplex": bg.Simplex(1.5), "ball": bg.Ball(0.5)}
RULES = [bg.Implicit(), bg.Unrolled(), bg.EqProp(1e-4)]
each_set = pytest.mark.parametrize("name", SETS)


def by_hand(name, z):
    """The projection, written without bigrad: clipping, bisection for the simplex's level, shortening."""
    if name == "box":
        return z.clamp(-0.3, 0.4)
    if name == "ball":
        return z * 0.5 / z.norm().clamp(min=0.5)
    low, high = z.detach().min() - 1.5, z.detach().max()
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if (z.detach() - level).clamp(min=0).sum() > 1.5 else (low, level)
    free = z.detach() > low
    return torch.where(free, z - (z[free].sum() - 1.5) / free.sum(), 0.0)


def gap(name, y, slope):
    """How much a linear function of this slope falls from y to its least over the set: zero at a minimum of a convex loss."""
    least = {
        "box": torch.where(slope > 0, -0.3 * slope, 0.4 * slope).sum(),
        "simplex": 1.5 * slope.min(),
        "ball": -0.5 * slope.norm(),
    }
    return float(slope @ y - least[name])


def slope_of(answer, x, weights):
    x = x.clone().requires_grad_()
    return torch.autograd.grad((answer(x) * weights).sum(), x)[0]


def differences(answer, x, weights, h=1e-5):
    def value(z):
        return float((answer(z) * weights).sum())

    ways = torch.eye(len(x), dtype=DOUBLE)
    return torch.tensor([(value(x + h * e) - value(x - h * e)) / (2 * h) for e in ways], dtype=DOUBLE)


@each_set
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize(("dtype", "share"), [(DOUBLE, 1e-6), (torch.float32, 2e-2)], ids=str)
def test_the_nearest_point_and_its_derivative_without_a_constant(name, plain, rule, dtype, share):
    """Points outside, some of whose entries are held, and a point inside."""
    within = SETS[name].project if plain else SETS[name]
    start = torch.zeros(6, dtype=dtype)
    program = bg.argmin(lambda x, y: 0.5 * ((y - x) ** 2).sum(), start, within=within)
    rule = bg.EqProp(1e-3) if isinstance(rule, bg.EqProp) and dtype is torch.float32 else rule
    layer = bg.Layer(program, gradient=rule)
    rng = np.random.default_rng(0)
    for size in (3.0, 1.0, 0.5, 0.1):
        x, weights = (torch.as_tensor(size * rng.normal(size=6), dtype=dtype) for _ in range(2))
        torch.testing.assert_close(layer(x), by_hand(name, x), rtol=share, atol=share)
        found = slope_of(layer, x, weights)
        truth = slope_of(lambda z: by_hand(name, z), x, weights)
        torch.testing.assert_close(found, truth, rtol=share, atol=10 * share * size)


def quadratic(seed, n=8, kappa=50.0):
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(n, n)))
    h = torch.as_tensor((turn * np.geomspace(1 / kappa, 1, n)) @ turn.T)
    mixed, x, weights = (torch.as_tensor(rng.normal(size=s)) for s in ((n, 4), 4, n))
    return lambda x, y: 0.5 * y @ h @ y - 0.3 * y @ mixed @ x.tanh(), x, weights, 1 / kappa


@each_set
@pytest.mark.parametrize("seed", range(3))
def test_random_quadratics_have_certified_answers_and_the_derivative_of_finite_differences(name, seed):
    inner, x, weights, mu = quadratic(seed)
    program = bg.argmin(inner, torch.zeros(8, dtype=DOUBLE), within=SETS[name])
    tight = bg.Descent(tol=1e-11, mu=mu)
    exact = bg.Layer(program, solver=tight)(x)
    y = exact.clone().requires_grad_()
    assert abs(gap(name, exact, torch.autograd.grad(inner(x, y), y)[0])) <= 1e-9
    rough = bg.Layer(program, solver=bg.Descent(tol=1e-2, mu=mu)).solve(x)[0]
    assert rough.status is bg.Status.LOCAL
    assert float((torch.as_tensor(rough["y"]) - exact).norm()) <= rough.stats.error <= 1e-2
    truth = differences(bg.Layer(program, solver=tight), x, weights)
    for rule in (bg.Implicit(), bg.Unrolled(), bg.EqProp(1e-5)):
        found = slope_of(bg.Layer(program, solver=tight, gradient=rule), x, weights)
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)


def test_a_mixture_of_experts_is_a_logistic_loss_over_a_simplex():
    """Shares of experts by maximum likelihood, with a penalty that keeps the minimum strict; some get none."""
    rng = np.random.default_rng(4)
    votes = torch.as_tensor(rng.normal(size=(40, 6)))
    labels = (votes @ torch.tensor([2.0, 1.0, 1.0, 0.0, -1.0, -1.0], dtype=DOUBLE)).sign()

    def inner(x, y):
        return (x.sigmoid() * torch.nn.functional.softplus(-labels * (votes @ y))).mean() + 0.05 * (y**2).sum()

    program = bg.argmin(inner, torch.full((6,), 1 / 6, dtype=DOUBLE), within=bg.Simplex())
    x, weights = torch.as_tensor(rng.normal(size=40)), torch.as_tensor(rng.normal(size=6))
    tight = bg.Descent(tol=1e-12)
    y = bg.Layer(program)(x)
    assert 0 < (y == 0).sum() < 5
    assert float(y.sum()) == pytest.approx(1)
    truth = differences(bg.Layer(program, solver=tight), x, weights)
    for rule, solver in ((bg.Implicit(), None), (bg.Unrolled(), tight), (bg.EqProp(1e-5), tight)):
        found = slope_of(bg.Layer(program, solver=solver, gradient=rule), x, weights)
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-7)


def test_entropy_over_a_simplex_is_softmax_though_the_loss_is_not_defined_outside():
    program = bg.argmin(
        lambda x, y: (y * y.log()).sum() - (x * y).sum(), torch.full((5,), 0.2, dtype=DOUBLE), within=bg.Simplex()
    )
    x, weights = torch.tensor([1.0, 2.0, -2.0, 0.3, 4.0], dtype=DOUBLE), torch.arange(5, dtype=DOUBLE)
    torch.testing.assert_close(bg.Layer(program)(x), x.softmax(0), rtol=1e-6, atol=1e-7)
    truth = slope_of(lambda z: z.softmax(0), x, weights)
    torch.testing.assert_close(slope_of(bg.Layer(program), x, weights), truth, rtol=1e-5, atol=1e-6)


@each_set
@pytest.mark.parametrize("steps", [1, 6, 25])
def test_unrolled_is_the_derivative_of_the_steps_that_were_taken(name, steps):
    """Far from the minimum too, whose derivative is another."""
    inner, x, weights, _ = quadratic(7)
    program = bg.argmin(inner, torch.zeros(8, dtype=DOUBLE), within=SETS[name])
    few = bg.Descent(steps=steps, tol=0)
    truth = differences(bg.Layer(program, solver=few), x, weights, h=1e-6)
    for pieces in (1, None):
        layer = bg.Layer(program, solver=few, gradient=bg.Unrolled(pieces=pieces))
        assert layer.solve(x)[0].stats.iterations == steps
        torch.testing.assert_close(slope_of(layer, x, weights), truth, rtol=1e-5, atol=1e-7)
    last = slope_of(bg.Layer(program, solver=few, gradient=bg.Unrolled(last=steps)), x, weights)
    torch.testing.assert_close(last, truth, rtol=1e-5, atol=1e-7)


def test_badly_conditioned_losses_of_any_scale_are_solved_in_the_steps_of_the_default():
    rng = np.random.default_rng(2)
    turn, _ = np.linalg.qr(rng.normal(size=(30, 30)))
    inside = SETS["box"].project(torch.as_tensor(rng.normal(size=30)))
    push = torch.as_tensor(np.abs(rng.normal(size=30))) * 1e-3
    for scale in (1e-4, 1.0, 1e8):
        h = torch.as_tensor((turn * np.geomspace(1e-4, 1, 30)) @ turn.T) * scale
        c = h @ inside + scale * push
        program = bg.argmin(
            lambda x, y, h=h: 0.5 * y @ h @ y - x @ y, torch.zeros(30, dtype=DOUBLE), within=SETS["box"]
        )
        found = bg.Layer(program, solver=bg.Descent(tol=1e-9 * scale)).solve(c)[0]
        slow = bg.Layer(program, solver=bg.Descent(bg.GradientDescent(1 / scale), tol=1e-9 * scale)).solve(c)[0]
        assert (found.status, slow.status) == (bg.Status.LOCAL, bg.Status.ITERATION_LIMIT)


def test_a_vertex_a_sphere_and_a_start_at_the_answer_need_few_steps():
    x = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE)
    start = torch.zeros(3, dtype=DOUBLE)
    for within, answer in ((bg.Box(-1, 1), -x.sign()), (bg.Ball(2.0), -2 * x / x.norm())):
        layer = bg.Layer(bg.argmin(lambda x, y: (x * y).sum(), start, within=within))
        torch.testing.assert_close(layer(x), answer)
        assert layer.solve(x)[0].stats.iterations <= 5
    inner, x, _, mu = quadratic(3)
    program = bg.argmin(inner, torch.zeros(8, dtype=DOUBLE), within=bg.Ball())
    layer = bg.Layer(program, solver=bg.Descent(tol=1e-8, mu=mu))
    memory = bg.Memory()
    first, again = memory.at([0]), memory.at([0])
    y = layer(x, warm_start=first)
    torch.testing.assert_close(layer(x, warm_start=again), y, rtol=0, atol=2e-8)
    assert first.solutions[0].stats.iterations > 5
    assert again.solutions[0].stats.iterations <= 1


@pytest.mark.parametrize(
    ("inner", "within", "options", "status"),
    [
        (lambda x, y: ((y - x) ** 2 * torch.tensor([1, 10, 100])).sum(), bg.Box(-5, 1), {"steps": 3}, "ITERATION_LIMIT"),
        (lambda x, y: ((y - x) ** 2 * torch.tensor([1, 10, 100])).sum(), bg.Ball(), {"steps": 3, "tol": 0}, "INEXACT"),
        (lambda x, y: (x * y).sum(), bg.Box(upper=5.0), {}, "ITERATION_LIMIT"),
        (lambda x, y: (y - x).abs().sum() + 0.1 * (y**2).sum(), bg.Box(-1.5, 1.5), {}, "INEXACT"),
        (lambda x, y: (y - 1 - x).log().sum(), bg.Box(-1, 1), {}, "FAILED"),
        (lambda x, y: torch.where((y != 0).any(), math.nan, 1.0) * (x * y).sum(), bg.Box(), {}, "INEXACT"),
        (lambda x, y: torch.where((y != 0).any(), math.nan, 1.0) * (x * y).sum(), bg.Box(), {"tol": 1e-9}, "ITERATION_LIMIT"),
    ],
    ids=["few steps", "asked for few", "unbounded", "kink", "log at the start", "no step, no tol", "no step"],
)  # fmt: skip
def test_what_was_not_reached_is_said(inner, within, options, status):
    program = bg.argmin(inner, torch.zeros(3, dtype=DOUBLE), within=within)
    solution = bg.Layer(program, solver=bg.Descent(**options)).solve(torch.tensor([1.0, 2.0, -1.2], dtype=DOUBLE))[0]
    assert solution.status is bg.Status[status]
    assert bool(solution.stats.cause) == (options.get("tol") != 0)


def test_the_choice_is_explained_and_free_parts_move_freely():
    start = {"a": torch.zeros(2, 3, dtype=DOUBLE), "b": torch.zeros(2, dtype=DOUBLE)}
    program = bg.argmin(
        lambda x, y: ((y["a"] - x) ** 2).sum() + 9 * ((y["b"] - x[:, 0]) ** 2).sum(), start, within={"a": bg.Simplex()}
    )
    x = torch.tensor([[0.5, 0.2, -3.0], [1.0, 1.0, 1.0]], dtype=DOUBLE)
    y = bg.Layer(program)(x)
    torch.testing.assert_close(y["a"], torch.tensor([[0.65, 0.35, 0.0], [1 / 3] * 3], dtype=DOUBLE), rtol=0, atol=1e-7)
    torch.testing.assert_close(y["b"], x[:, 0], rtol=0, atol=1e-7)
    assert "ProjectedGradient needs no constants" in bg.Layer(program).explain()
    free = bg.argmin(lambda x, y: ((y - x) ** 2).sum(), start["b"])
    assert "LBFGS needs no constants" in bg.Layer(free).explain()
    by_steps = bg.Layer(free, solver=bg.Descent(bg.ProjectedGradient()), gradient=bg.Unrolled())
    torch.testing.assert_close(by_steps(x[:, 0]), x[:, 0])
    assert by_steps.solve(x[:, 0])[0].stats.residual < 1e-6


def test_memory_does_not_grow_with_the_steps():
    """The most that the autograd graphs of one call hold, counted by what they save."""

    class Held:
        now, most = 0, 0

        def __init__(self, t):
            self.t = t
            Held.now += 1
            Held.most = max(Held.most, Held.now)

        def __del__(self):
            Held.now -= 1

    inner, x, weights, _ = quadratic(5)
    program = bg.argmin(inner, torch.zeros(8, dtype=DOUBLE), within=bg.Ball())

    def saved(steps):
        Held.most = 0
        layer = bg.Layer(program, solver=bg.Descent(steps=steps, tol=0), gradient=bg.Implicit(bg.CG(tol=0, steps=3)))
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda h: h.t):
            slope_of(layer, x, weights)
        return Held.most

    assert 0 < saved(60) <= saved(5)
