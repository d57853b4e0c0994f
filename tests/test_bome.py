"""BOME: its three toy problems, its formula, what it refuses, and that it behaves as a torch optimiser."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.optim.lr_scheduler import StepLR

import bigrad as bg

POINTS = torch.tensor([[1.0, 3.0], [3.0, 1.0], [-2.0, 2.0], [-3.0, -2.0]], dtype=torch.float64)
TARGET = torch.tensor([3.0, -2.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def leaf(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def coreset(start):
    """A weighted mean of four points that a target draws: the optimum is f = 0.72 at (1.8, 0.4)."""
    v, y = leaf(0.0, 0.0, 0.0, 0.0), leaf(*start)
    return v, y, lambda: 0.1 * (y - TARGET).square().sum(), lambda: (v.softmax(0) @ POINTS - y).square().sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "steps", "eta", "iterations", "upper", "gap"),
    [
        ((0.0, 3.0), 10, 0.5, 5000, 0.7089, 1.1e-3),
        ((3.5, -1.0), 10, 0.5, 5000, 0.7089, 1.1e-3),
        ((0.0, 3.0), 10, 0.1, 5000, 0.705, None),
        ((0.0, 3.0), 1, 0.5, 5000, 0.729, 5.5e-4),
    ],
)
def test_toy_coreset(start, steps, eta, iterations, upper, gap):
    v, y, f, g = coreset(start)
    inner = 0.1 if steps == 1 else 0.05
    optimiser = bg.BOME([v], [y], lr=0.05, inner_lr=inner, steps=steps, phi=bg.GapGradient(eta), epsilon=1e-4)
    for _ in range(iterations):
        optimiser.step(f, g)
    mean = v.softmax(0) @ POINTS
    assert f().item() == pytest.approx(upper, abs=5e-4)
    if gap is not None:
        assert g().item() == pytest.approx(gap, rel=0.02)  # the exact gap, for min g = 0
    if steps == 10 and eta == 0.5:
        assert y.tolist() == pytest.approx([1.817, 0.385], abs=5e-4)
        assert (0.1 * (mean - TARGET).square().sum()).item() == pytest.approx(0.7264, abs=3e-4)


@pytest.mark.slow
def test_toy_coreset_speed():
    v, y, f, g = coreset((0.0, 3.0))
    optimiser = bg.BOME([v], [y], lr=0.05, steps=10, epsilon=1e-4)
    taken = 0
    while f() > 0.77 or g() > 0.01:
        optimiser.step(f, g)
        taken += 1
    assert 585 <= taken <= 591


@pytest.mark.parametrize(
    ("steps", "eta", "iterations", "distance"),
    [(10, 0.5, 200, 5e-2), (10, 0.5, 500, 1e-4), (1, 0.5, 2000, 4e-2), (10, 0.1, 500, 0.13), (10, 0.9, 500, 2e-5)],
)
def test_toy_minimax(steps, eta, iterations, distance):
    v, y = leaf(4.0), leaf(4.0)
    optimiser = bg.BOME([v], [y], lr=0.05, steps=steps, phi=bg.GapGradient(eta))
    for _ in range(iterations):
        optimiser.step(lambda: (v * y).sum(), lambda: -(v * y).sum())
        with torch.no_grad():
            v.clamp_(-10, 10), y.clamp_(-10, 10)
    assert torch.cat([v, y]).norm().item() == pytest.approx(distance, rel=0.5)


@pytest.mark.parametrize(("steps", "within"), [(1, 59), (10, 31)])
def test_toy_degenerate_lower_level(steps, within):
    v, y = leaf(0.0), leaf(0.0, 0.0)
    optimiser = bg.BOME([v], [y], lr=0.5, steps=steps)
    reached = None
    for k in range(1000 if steps == 1 else 400):
        optimiser.step(lambda: 0.5 * (v[0] - y[1]) ** 2 + 0.5 * (y[0] - 1) ** 2, lambda: 0.5 * y[0] ** 2 - v[0] * y[0])
        error = (torch.cat([v, y]) - 1).abs().max().item()
        if reached is None and error < 1e-2:
            reached = k + 1
    assert abs(reached - within) <= 1
    assert error < 1e-14


@pytest.mark.parametrize("phi", [bg.GapGradient(0.5), bg.GapValue(0.5), bg.GapGradient(3.0)], ids=str)
def test_one_step_is_the_formula(phi):
    torch.manual_seed(0)
    v, y, f, g = coreset((0.5, 2.0))
    with torch.no_grad():
        v.normal_()
    v0, y0 = v.detach().clone().requires_grad_(), y.detach().clone().requires_grad_()
    taken = bg.BOME([v], [y], lr=0.01, inner_lr=0.03, steps=4, phi=phi, epsilon=1e-30).step(f, g)
    # the same step with |y - mean(x)|^2 written out: an inner step multiplies the difference by 1 - 2 · 0.03
    mean = v0.softmax(0) @ POINTS
    after = (mean + (1 - 0.06) ** 4 * (y0 - mean)).detach()
    q = (mean - y0).square().sum() - (mean - after).square().sum()
    gq = torch.cat(torch.autograd.grad(q, [v0, y0]))
    gf = torch.cat([torch.zeros(4, dtype=torch.float64), 0.2 * (y0.detach() - TARGET)])
    step = torch.cat([v0 - v, y0 - y]).detach() / 0.01
    wanted = phi.eta * (gq @ gq if isinstance(phi, bg.GapGradient) else q.detach())
    # the step is the nearest to grad f whose product with grad q reaches phi
    assert step @ gq >= wanted - 1e-9
    assert taken.multiplier * (step @ gq - wanted) == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(step, gf + taken.multiplier * gq, rtol=1e-9, atol=1e-9)
    assert taken.gap.item() == pytest.approx(q.item(), rel=1e-12)
    assert taken.stationarity.item() == pytest.approx((step @ step + q).item(), rel=1e-9)
    assert not any(t.requires_grad for t in vars(taken).values())


class Once(torch.autograd.Function):
    """The product of two tensors, whose derivative must not be taken with a view to a second one."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return grad * b, grad * a


class Watched(torch.autograd.Function):
    """The identity; its backward pass fails under create_graph=True, where torch runs it with gradients enabled."""

    @staticmethod
    def forward(ctx, a):
        return a.clone()

    @staticmethod
    def backward(ctx, grad):
        assert not torch.is_grad_enabled()
        return grad


def test_no_second_derivative_is_taken():
    v, y, _, _ = coreset((0.0, 3.0))
    calls = []

    def f():
        calls.append("f")
        return Once.apply(Watched.apply(y) - TARGET, y - TARGET).sum()

    def g():
        calls.append("g")
        mean = Watched.apply(v).softmax(0) @ POINTS
        return Once.apply(mean - Watched.apply(y), mean - y).sum()

    watched = torch.autograd.grad(g(), [v, y])
    with pytest.raises(AssertionError):  # the watch works
        torch.autograd.grad(g(), [v, y], create_graph=True)
    del watched, calls[:]
    optimiser = bg.BOME([v], [y], lr=0.01, steps=5)
    for _ in range(3):
        optimiser.step(f, g)
    assert (calls.count("f"), calls.count("g")) == (3, 18)


def problem(**options):
    torch.manual_seed(1)
    model, weights = nn.Linear(3, 2).double(), torch.zeros(8, dtype=torch.float64, requires_grad=True)
    data, labels = torch.randn(8, 3, dtype=torch.float64), torch.randint(2, (8,))

    def g():
        losses = nn.functional.cross_entropy(model(data), labels, reduction="none")
        return (weights.sigmoid() * losses).mean() + 0.01 * model.weight.square().sum()

    optimiser = bg.BOME([weights], model.parameters(), steps=3, **options)
    return optimiser, model, weights, lambda: nn.functional.cross_entropy(model(-data), labels), g


def test_state_dict_round_trip():
    optimiser, model, weights, f, g = problem(lr=0.1, momentum=0.9)
    for _ in range(3):
        optimiser.step(f, g)
    stored = io.BytesIO()
    torch.save([optimiser.state_dict(), model.state_dict(), weights], stored)
    expected = [optimiser.step(f, g).upper.item() for _ in range(5)]
    again, model, weights, f, g = problem(lr=0.7)
    stored.seek(0)
    state, model_state, old = torch.load(stored, weights_only=True)
    model.load_state_dict(model_state)
    with torch.no_grad():
        weights.copy_(old)
    again.load_state_dict(state)
    assert [group["momentum"] for group in again.param_groups] == [0.9, 0.9]
    assert [again.step(f, g).upper.item() for _ in range(5)] == expected


def test_groups_schedulers_copies_and_frozen_parameters():
    _, model, weights, f, g = problem()
    groups = [{"params": [model.weight], "lr": 0.2, "inner_lr": 0.05}, {"params": [model.bias], "momentum": 0.5}]
    optimiser = bg.BOME([weights], groups, lr=0.1, steps=2)
    assert [p["level"] for p in optimiser.param_groups] == ["upper", "lower", "lower"]
    assert [p["lr"] for p in optimiser.param_groups] == [0.1, 0.2, 0.1]
    scheduler = StepLR(optimiser, 1, 0.5)
    optimiser.step(f, g)
    scheduler.step()
    assert [p["lr"] for p in optimiser.param_groups] == [0.05, 0.1, 0.05]
    assert copy.deepcopy(optimiser).param_groups[1]["inner_lr"] == 0.05
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    optimiser.step(f, g)
    torch.testing.assert_close(model.bias, before)
    assert all(p.grad is None for p in [*model.parameters(), weights])
    optimiser.add_param_group({"params": torch.zeros(2, requires_grad=True), "level": "upper"})
    optimiser.step(f, g)


def test_named_parameters_and_half_precision():
    model = nn.Linear(2, 2).to(torch.bfloat16)
    weight = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    data = torch.randn(5, 2, dtype=torch.bfloat16)
    optimiser = bg.BOME([weight], [p for _, p in model.named_parameters()], lr=0.1)
    first = None
    for _ in range(30):
        taken = optimiser.step(
            lambda: (model(data) - 1).float().square().mean(), lambda: (model(data) - weight).square().mean()
        )
        first = first or taken.upper.item()
    assert taken.upper < first / 2
    assert taken.multiplier.dtype == torch.float32


@pytest.mark.parametrize(
    ("upper", "lower", "message"),
    [
        (lambda v, y: v * y, None, r"upper_closure returned a tensor of shape \(2,\)"),
        (lambda v, y: 1.0, None, "upper_closure returned float"),
        (lambda v, y: v.sum(), None, "upper_closure does not depend on any parameter of the lower level"),
        (None, lambda v, y: v.sum(), "lower_closure does not depend on any parameter of the lower level"),
        (None, lambda v, y: y.sum(), "lower_closure does not depend on any parameter of the upper level"),
        (lambda v, y: (v * y).sum().detach(), None, "without a graph"),
        (lambda v, y: (v * y).sum() / 0 * 0, None, "upper_closure returned nan"),
        (None, lambda v, y: (v * y).sum().log(), "lower_closure returned -inf"),
        (None, lambda v, y: 1e200 * (v * y - 1).square().sum(), "after 10 inner steps.*inner_lr too large"),
        (lambda v, y: (v * y).clamp(min=0).sqrt().sum(), None, "a gradient is NaN or infinite"),
    ],
)
def test_bad_closures(upper, lower, message):
    v, y = leaf(0.0, 1.0), leaf(1.0, 0.0)
    f, g = upper or (lambda v, y: (v * y).sum()), lower or (lambda v, y: (v - y).square().sum())
    with pytest.raises(bg.InputError, match=message):
        bg.BOME([v], [y]).step(lambda: f(v, y), lambda: g(v, y))
    assert (v.tolist(), y.tolist()) == ([0.0, 1.0], [1.0, 0.0])


def test_a_closure_that_calls_backward_or_raises():
    v, y, f, g = coreset((0.0, 3.0))

    def backward():
        loss = f()
        loss.backward()
        return loss

    with pytest.raises(bg.InputError, match="upper_closure calls backward"):
        bg.BOME([v], [y]).step(backward, g)
    calls = []

    def interrupted():
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return g()

    with pytest.raises(KeyboardInterrupt):
        bg.BOME([v], [y]).step(f, interrupted)
    assert y.tolist() == [0.0, 3.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v, y: bg.BOME([v], [y], lr=-1), "lr=-1"),
        (lambda v, y: bg.BOME([v], [y], inner_lr=0.0), "inner_lr=0.0"),
        (lambda v, y: bg.BOME([v], [y], momentum=1.0), r"momentum=1.0.*\[0, 1\)"),
        (lambda v, y: bg.BOME([v], [y], steps=0), "steps=0"),
        (lambda v, y: bg.BOME([v], [y], phi="gap"), "phi='gap'.*an object"),
        (lambda v, y: bg.GapValue(-0.1), "eta=-0.1"),
        (lambda v, y: bg.GapGradient(float("nan")), "eta=nan"),
        (lambda v, y: bg.BOME([v], []), "lower_params.*no parameters"),
        (lambda v, y: bg.BOME(v, [y]), "upper_params.*a list"),
        (lambda v, y: bg.BOME([v, y], [y]), "parameter 0 of the lower level"),
        (lambda v, y: bg.BOME([v], [torch.tensor(1j)]), "complex64"),
        (lambda v, y: bg.BOME([v], [y]).add_param_group({"params": [leaf(0.0)]}), "says its level"),
        (lambda v, y: bg.BOME([v], [y.detach()]).step(lambda: v, lambda: v), "no parameter of the lower level"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(bg.InputError, match=message):
        make(leaf(0.0, 1.0), leaf(1.0, 0.0))
