"""Fenchel back-propagation: the target is the minimiser it is said to be, and the limits are back-propagation."""

import pytest
import torch
from torch import nn

import bigrad as bg


class Clipped(nn.Module):
    """The hard sigmoid."""

    def forward(self, a):
        return (a / 6 + 0.5).clamp(0, 1)


PAIRS = [
    (bg.FenchelReLU, nn.ReLU()),
    (bg.FenchelLeakyReLU, nn.LeakyReLU()),
    (bg.FenchelHardtanh, nn.Hardtanh()),
    (bg.FenchelHardsigmoid, nn.Hardsigmoid()),
    (bg.FenchelTanh, nn.Tanh()),
    (bg.FenchelSigmoid, nn.Sigmoid()),
    (bg.FenchelSoftmax, nn.Softmax(-1)),
]
# torch rounds the derivative of its own hard sigmoid to single precision
LINEAR = [*PAIRS[:3], (bg.FenchelHardsigmoid, Clipped())]
each = pytest.mark.parametrize(("make", "plain"), PAIRS, ids=lambda v: getattr(v, "__name__", ""))
each_linear = pytest.mark.parametrize(("make", "plain"), LINEAR, ids=lambda v: getattr(v, "__name__", ""))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def slope(f, a, push):
    a = a.detach().clone().requires_grad_()
    return torch.autograd.grad(f(a), a, push)[0]


@each
def test_forward_is_torch_s_own(make, plain):
    a = 3 * rand(50, 7)
    torch.testing.assert_close(make()(a), plain(a), rtol=0, atol=1e-15)
    assert make()(a.float()).dtype == torch.float32
    assert make(0.5)(a[0]).shape == (7,)


@each
@pytest.mark.parametrize("beta", [1e-3, 0.3, 20.0])
def test_backward_is_the_difference_to_the_target(make, plain, beta):
    a, push = 3 * rand(50, 7), rand(50, 7)
    expected = (plain(a) - plain(a - beta * push)) / beta
    torch.testing.assert_close(slope(make(beta), a, push), expected, rtol=1e-11, atol=1e-12 / beta)


G = {  # potentials and domains of the last five, for a target found by search
    "FenchelReLU": (lambda z: z**2 / 2, 0, 9),
    "FenchelHardtanh": (lambda z: z**2 / 2, -1, 1),
    "FenchelHardsigmoid": (lambda z: 3 * (z - 0.5) ** 2, 0, 1),
    "FenchelLeakyReLU": (lambda z: torch.where(z < 0, z**2 / 0.02, z**2 / 2), -9, 9),
    "FenchelTanh": (lambda z: (torch.xlogy(1 + z, 1 + z) + torch.xlogy(1 - z, 1 - z)) / 2, -1, 1),
    "FenchelSigmoid": (lambda z: torch.xlogy(z, z) + torch.xlogy(1 - z, 1 - z), 0, 1),
}


@pytest.mark.parametrize("name", G)
def test_the_target_minimises_the_nudged_potential(name):
    potential, low, high = G[name]
    z = torch.linspace(low, high, 200_001, dtype=torch.float64)
    beta = 0.7
    module = getattr(bg, name)(beta)
    for a, push in [(0.4, 0.3), (0.4, -1.5), (-0.3, -2.0), (-1.5, 1.0), (1.3, 2.0)]:
        a = torch.tensor(a, dtype=torch.float64)
        target = z[(potential(z) - a * z + beta * push * z).argmin()]
        found = module(a) - beta * slope(module, a, torch.tensor(push, dtype=torch.float64))
        assert found.item() == pytest.approx(target.item(), abs=1e-4)


def test_the_softmax_target_minimises_entropy_on_the_simplex():
    a, push, beta = rand(5), rand(5), 0.7
    module = bg.FenchelSoftmax(beta)
    target = module(a) - beta * slope(module, a, push)
    assert target.sum().item() == pytest.approx(1)
    multiplier = target.log() + 1 - a + beta * push  # stationarity: equal over the entries
    assert (multiplier - multiplier.mean()).abs().max() < 1e-12


def test_softmax_survives_large_steps_and_dead_entries():
    a = torch.tensor([[0.0, -2000.0, 1.0], [5.0, 1.0, 2.0]], dtype=torch.float64)
    push = torch.tensor([[1e4, -1e5, 3.0], [1e-9, 0.0, -1e-9]], dtype=torch.float64)
    for dim in (0, 1):
        found = slope(bg.FenchelSoftmax(1.0, dim), a, push)
        expected = a.softmax(dim) - (a - push).softmax(dim)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-16)
    exact = slope(nn.Softmax(-1), a[1], push[1])
    torch.testing.assert_close(slope(bg.FenchelSoftmax(), a[1], push[1]), exact, rtol=1e-8, atol=0)


def network(activation, depth=3):
    torch.manual_seed(3)
    widths = [6, 8, 7, 5]
    layers = [m for k in range(depth) for m in (nn.Linear(widths[k], widths[k + 1]), activation())]
    return nn.Sequential(*layers, nn.Linear(widths[depth], 4)).double()


def gradients(model, x, labels):
    model.zero_grad()
    nn.functional.cross_entropy(model(x), labels).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@each_linear
@pytest.mark.parametrize("beta", [1e-9, 1e-6, 1e-3])
def test_equals_autograd_while_no_kink_is_crossed(make, plain, beta):
    model, other = network(lambda: make(beta)), network(lambda: plain)
    other.load_state_dict(model.state_dict())
    x, labels = rand(20, 6), torch.randint(4, (20,))
    found, expected = gradients(model, x, labels), gradients(other, x, labels)
    assert (found - expected).norm() / expected.norm() < 1e-12


@each
def test_error_vanishes_with_beta(make, plain):
    x, labels = rand(20, 6), torch.randint(4, (20,))
    expected = gradients(network(lambda: plain), x, labels)
    errors = [
        ((gradients(network(lambda b=beta: make(b)), x, labels) - expected).norm() / expected.norm()).item()
        for beta in (1e-1, 1e-2, 1e-5)
    ]
    assert errors[2] < 3e-5
    if make not in [m for m, _ in LINEAR]:
        assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)  # O(beta)
        assert errors[1] / errors[2] == pytest.approx(1000, rel=0.2)


def test_the_modules_chain_as_the_paper_s_backward_pass():
    """Targets of three layers with a beta each, by the recursion written out."""
    betas, model = (0.3, 2.0, 0.7), network(bg.FenchelReLU)
    for module, beta in zip((model[1], model[3], model[5]), betas, strict=True):
        module.beta = beta
    x, goal = rand(9, 6), rand(9, 4)
    model.zero_grad()
    (0.5 * (model(x) - goal).square().sum()).backward()
    linears = [model[0], model[2], model[4], model[6]]
    z, a = [x], []
    for linear in linears[:3]:
        a.append(z[-1] @ linear.weight.T + linear.bias)
        z.append(a[-1].relu())
    delta = z[3] @ linears[3].weight.T + linears[3].bias - goal  # of the linear output: beta times it is z - target
    for k in (2, 1, 0):
        target = (a[k] - betas[k] * delta @ linears[k + 1].weight).relu()
        assert (target >= 0).all()
        delta = (z[k + 1] - target) / betas[k]
        torch.testing.assert_close(linears[k].weight.grad, delta.T @ z[k])
        torch.testing.assert_close(linears[k].bias.grad, delta.sum(0))


def test_a_unit_at_rest_is_woken():
    a = torch.tensor([-0.5, -0.5, 2.0], dtype=torch.float64)
    push = torch.tensor([-1.0, -0.2, 9.0], dtype=torch.float64)
    assert slope(bg.FenchelReLU(1.0), a, push).tolist() == [-0.5, 0.0, 2.0]
    assert slope(nn.ReLU(), a, push).tolist() == [0.0, 0.0, 9.0]


def test_single_precision_keeps_small_gradients():
    a, push = torch.randn(100, 5) + 0.01, 1e-7 * torch.randn(100, 5)
    for make, plain in PAIRS:
        expected = slope(plain, a, push)
        error = (slope(make(0.01), a, push) - expected).norm() / expected.norm()
        assert error < 1e-5, make.__name__


def test_transforms_second_derivatives_and_storing():
    model = nn.Sequential(nn.Linear(3, 4), bg.FenchelTanh(0.2), nn.Linear(4, 1)).double()
    x = rand(6, 3)

    def loss(params, row):
        return torch.func.functional_call(model, params, (row,)).sum()

    each_row = torch.func.vmap(torch.func.grad(loss), (None, 0))(dict(model.named_parameters()), x)
    loss(dict(model.named_parameters()), x).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(each_row[name].sum(0), p.grad)
    a = rand(3).requires_grad_()
    (once,) = torch.autograd.grad(bg.FenchelReLU(1e-3)(a * a).sum(), a, create_graph=True)
    torch.testing.assert_close(once, 2 * a.detach())
    with pytest.raises(NotImplementedError, match="second one"):
        once.sum().backward()
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    plain.load_state_dict(model.state_dict())  # no parameters of their own: weights go over
    assert "FenchelTanh(beta=0.2)" in repr(model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bg.FenchelReLU(0), "beta=0"),
        (lambda: bg.FenchelTanh(float("inf")), "beta=inf"),
        (lambda: setattr(bg.FenchelTanh(), "beta", -1), "beta=-1"),
        (lambda: bg.FenchelLeakyReLU(slope=1.5), "slope=1.5"),
        (lambda: bg.FenchelHardsigmoid(slope=0), "slope=0"),
        (lambda: bg.FenchelHardtanh(low=1, high=1), "low must be below high"),
        (lambda: bg.FenchelReLU()(torch.arange(3)), "int64"),
        (lambda: bg.FenchelReLU()([1.0]), "list"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(bg.InputError, match=message):
        make()


def trained(activation, seed=0, epochs=25):
    """Test accuracy in per cent of a small network on scikit-learn's digits, after Adam; and its last gradient's maker."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    x = torch.as_tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.as_tensor(digits.target)
    torch.manual_seed(seed)
    order = torch.randperm(len(x))
    train, test = order[:1300], order[1300:]
    model = nn.Sequential(nn.Linear(64, 64), activation(), nn.Linear(64, 32), activation(), nn.Linear(32, 10))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for part in train[torch.randperm(len(train))].split(50):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[part]), labels[part]).backward()
            optimiser.step()
    wrong = 100 * (model(x[test]).argmax(1) != labels[test]).float().mean().item()
    return 100 - wrong, lambda: gradients(model, x[test[:50]], labels[test[:50]]), model


@pytest.mark.parametrize(
    ("make", "plain"),
    [
        (lambda beta: bg.FenchelReLU(beta), nn.ReLU),
        (lambda beta: bg.FenchelHardtanh(beta, 0, 1), lambda: nn.Hardtanh(0, 1)),
        (lambda beta: bg.FenchelTanh(beta), nn.Tanh),
    ],
    ids=["relu", "hard sigmoid", "tanh"],
)
def test_trains_digits_as_well_as_back_propagation(make, plain):
    # losses are means over 50 items, so the step is 0.2 in units of an item's own gradient
    (found, gradient, model), (reference, _, _) = trained(lambda: make(10.0)), trained(plain)
    finite = gradient()
    for k in (1, 3):
        model[k].beta = 1e-6
    exact = gradient()
    assert (finite - exact).norm() > 1e-2 * exact.norm()  # the targets are finite ones
    assert reference > 95
    assert found > reference - 1
