"""Contrastive rules on an nn.Sequential: back-propagation is their limit, and finite steps are what the formulas say."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import bigrad as bg

RULES = [bg.Lifted, bg.AuxiliaryCoordinates, bg.ContrastiveHebbian]
each = pytest.mark.parametrize("make", RULES, ids=lambda r: r.__name__)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def network(activation):
    layers = [nn.Linear(4, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 3)]
    return nn.Sequential(*layers).double()


def slopes(net, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])


@each
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.ReLU], ids=lambda a: a.__name__)
def test_back_propagation_is_the_limit(make, activation):
    net, x, labels = network(activation), torch.randn(7, 4, dtype=torch.float64), torch.randint(3, (7,))
    plain = cross_entropy(net(x), labels, reduction="sum")
    exact, errors = slopes(net, plain), []

    def criterion(z):
        return cross_entropy(z, labels, reduction="sum")

    for beta in (1e-2, 1e-3):
        loss = make(beta, sweeps=3000, tolerance=1e-7)(net, x, criterion)
        assert loss.item() == pytest.approx(plain.item(), rel=1e-14)
        found = slopes(net, loss)
        errors.append(((found - exact).norm() / exact.norm()).item())
        assert torch.cosine_similarity(found, exact, 0) > 1 - 30 * beta**2
    assert errors[1] < 1e-2
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.15)


@pytest.mark.parametrize("make", RULES[:2], ids=lambda r: r.__name__)
def test_the_gradient_is_that_of_the_penalised_minimum(make):
    """J at a large beta, minimised by L-BFGS on its own formula; its gradient by central differences."""
    net, x, goal = network(nn.Tanh), torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    beta = 0.5

    def entropy(z):  # G of tanh
        return (torch.xlogy(1 + z, 1 + z) + torch.xlogy(1 - z, 1 - z)).sum() / 2

    def penalised():
        h = [s.detach().clone().requires_grad_() for s in (net[0](x), net[:3](x), net(x))]
        search = torch.optim.LBFGS(
            h, max_iter=3000, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def value():
            z = [h[0].tanh(), h[1].tanh(), h[2]] if make is bg.Lifted else h
            a = [net[0](x), net[2](z[0]), net[4](z[1])]
            total = 0.5 * (z[2] - goal).square().sum() + (z[2] - a[2]).square().sum() / 2 / beta
            for state, pre in zip(z[:2], a[:2], strict=True):
                gap = entropy(state) - (state * pre).sum() + pre.cosh().log().sum()
                total = total + (gap if make is bg.Lifted else (state - pre.tanh()).square().sum() / 2) / beta
            return total

        def closure():
            search.zero_grad()
            total = value()
            total.backward(inputs=h)
            return total

        search.step(closure)
        return value().item()

    loss = make(beta, sweeps=5000, tolerance=1e-10)(net, x, lambda z: 0.5 * (z - goal).square().sum())
    found = torch.autograd.grad(loss, [net[0].weight, net[2].bias])
    for p, g in zip((net[0].weight, net[2].bias), found, strict=True):
        entry, values = p.data.flatten()[1:2], []
        for sign in (1, -2):
            entry += sign * 1e-4
            values.append(penalised())
        entry += 1e-4
        assert g.flatten()[1].item() == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-5)


@each
def test_settled_states(make):
    net, x, goal = network(nn.ReLU), torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    rule = make(0.1, sweeps=2000, tolerance=1e-9)
    for settled in (rule.nudged(net, x, lambda z: 0.5 * (z - goal).square().sum()), rule.free(net, x)):
        assert settled.change <= 1e-9
        assert settled.sweeps < 2000
        assert [tuple(z.shape) for z in settled.states] == [(5, 6), (5, 5), (5, 3)]
        if make is not bg.AuxiliaryCoordinates:
            assert all((z >= 0).all() for z in settled.states[:2])
    assert make(sweeps=1).nudged(net, x, lambda z: z.square().sum()).sweeps == 1


@each
def test_convolutions_and_single_precision(make):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    x, labels = torch.randn(4, 1, 6, 6), torch.randint(3, (4,))
    exact = slopes(net, cross_entropy(net(x), labels, reduction="sum"))
    loss = make(1e-2, sweeps=500, tolerance=1e-4)(net, x, lambda z: cross_entropy(z, labels, reduction="sum"))
    assert torch.cosine_similarity(slopes(net, loss), exact, 0) > 0.99


@each
@pytest.mark.parametrize(
    "other", [lambda: nn.ReLU(inplace=True), lambda: bg.FenchelReLU(5.0)], ids=["inplace", "fenchel"]
)
def test_other_forms_of_an_activation_are_the_same(make, other):
    x, goal, found = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64), []
    for activation in (nn.ReLU, other):
        torch.manual_seed(4)
        net = network(activation)
        found.append(slopes(net, make(0.3)(net, x, lambda z: 0.5 * (z - goal).square().sum())))
    assert torch.equal(*found)


@each
def test_trains(make):
    x = torch.rand(60, 2, dtype=torch.float64) * 2 - 1
    labels = (x[:, 0] * x[:, 1] > 0).long()
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    adam, rule = torch.optim.Adam(net.parameters(), 0.05), make(0.1, sweeps=20)
    for _ in range(100):
        adam.zero_grad()
        rule(net, x, lambda z: cross_entropy(z, labels, reduction="sum")).backward()
        adam.step()
    assert (net(x).argmax(1) == labels).double().mean() > 0.9


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda n, x: bg.Lifted(-1.0), bg.InputError, "beta=-1.0"),
        (lambda n, x: bg.Lifted(sweeps=0), bg.InputError, "sweeps=0"),
        (lambda n, x: bg.Lifted()(n, x, lambda z: z), bg.InputError, "finite 0-dim"),
        (lambda n, x: bg.Lifted()(n, x, lambda z: z.sum() * float("nan")), bg.InputError, "got nan"),
        (lambda n, x: bg.Lifted()(n[0], x, torch.sum), bg.CapabilityError, "got Linear"),
        (lambda n, x: bg.Lifted()(nn.Sequential(n[0], nn.GELU()), x, torch.sum), bg.CapabilityError, "Module 1, GELU"),
        (lambda n, x: bg.Lifted()(nn.Sequential(n[0], nn.LeakyReLU(2)), x, torch.sum), bg.CapabilityError, "slope"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(network(nn.ReLU), torch.randn(5, 4, dtype=torch.float64))
