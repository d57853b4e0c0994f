"""Lower levels that are the training of a network: kinks, half precision, compiled losses, memory, several processes."""

import functools
import subprocess
import sys
import warnings

import cvxpy as cp
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import bigrad as bg

DOUBLE = torch.float64


def classes(dtype, n=120, width=12, activation=nn.ReLU, seed=0):
    """A loss of (log weight decay, parameters) and where its parameters start."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, width), activation(), nn.Linear(width, 3)).to(dtype)
    inputs = torch.randn(n, 5, dtype=dtype)
    labels = (inputs @ torch.randn(5, 3, dtype=dtype) + torch.randn(n, 3, dtype=dtype)).argmax(1)

    def inner(x, y):
        return cross_entropy(functional_call(model, y, inputs), labels) + 0.5 * x.exp() * squares(y)

    return inner, {name: p.detach().clone() for name, p in model.named_parameters()}


def squares(y):
    return sum((t**2).sum() for t in y.values())


# Kinks


@pytest.mark.parametrize(("dtype", "batch"), [(torch.float32, 24), (DOUBLE, 120)], ids=str)
def test_a_relu_network_is_trained_by_default_and_what_was_reached_is_said(dtype, batch):
    inner, start = classes(dtype, batch)
    layer, x = bg.Layer(bg.argmin(inner, start)), torch.tensor(-4.0, dtype=dtype, requires_grad=True)
    call = bg.Memory().at([0])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        squares(layer(x, warm_start=call)).backward()
    solution = call.solutions[0]
    small = torch.finfo(dtype).eps ** 0.5 * 2
    settled = solution.stats.residual > small
    assert solution.status is (bg.Status.INEXACT if settled else bg.Status.LOCAL)
    assert (
        settled == bool(solution.stats.cause) == any("not minimised to its tolerance" in str(w.message) for w in said)
    )
    assert all(w.category is bg.SolveWarning for w in said)
    assert torch.isfinite(x.grad)
    adam = functools.partial(torch.optim.Adam, lr=1e-2)
    assert solution.value <= bg.Layer(layer.program, solver=bg.Descent(adam, steps=400, tol=0)).solve(x)[0].value + 1e-4


def test_a_minimum_at_a_kink_settles_there():
    program = bg.argmin(lambda x, y: (y - x).abs().sum() + 0.1 * (y**2).sum(), torch.zeros(3, dtype=DOUBLE))
    x = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE)
    with pytest.warns(bg.SolveWarning, match="has settled"):
        y = bg.Layer(program)(x)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-6)
    solution = bg.Layer(program).solve(x)[0]
    assert solution.status is bg.Status.INEXACT
    assert "kink" in solution.stats.cause
    assert solution.stats.residual > 0.1
    with pytest.raises(bg.SolveError, match="kink"):
        bg.Layer(program, solver=bg.Descent(tol=1e-8))(x)
    quiet = bg.Layer(program, solver=bg.Descent(tol=0, steps=100))
    torch.testing.assert_close(quiet(x), x, rtol=0, atol=1e-6)


def test_a_loss_that_still_falls_has_not_settled():
    flat = bg.argmin(lambda x, y: (x * y).sum(), torch.zeros(3))
    slow = bg.argmin(lambda x, y: ((y - x) ** 2).sum(), torch.zeros(3))
    adam = functools.partial(torch.optim.Adam, lr=1e-4)
    for program, method in [(flat, bg.GradientDescent(1.0)), (slow, bg.GradientDescent(1e-4)), (slow, adam)]:
        solution = bg.Layer(program, solver=bg.Descent(method, steps=200)).solve(torch.ones(3))[0]
        assert solution.status is bg.Status.ITERATION_LIMIT
        assert "kink" not in solution.stats.cause
    growing = bg.Layer(slow, solver=bg.Descent(bg.GradientDescent(1.01), steps=200)).solve(torch.ones(3))[0]
    assert growing.status is bg.Status.ITERATION_LIMIT


def test_negative_curvature_is_said_and_minres_takes_over_by_default():
    bend = torch.tensor([1.0, -1.0, 2.0], dtype=DOUBLE)
    program = bg.argmin(lambda x, y: (bend * y**2).sum() + (y**4).sum() - (x * y).sum(), torch.zeros(3, dtype=DOUBLE))
    x = torch.zeros(3, dtype=DOUBLE, requires_grad=True)
    with pytest.warns(bg.SolveWarning, match="negative curvature"):
        bg.Layer(program)(x).sum().backward()
    torch.testing.assert_close(x.grad, 0.5 / bend)


# Half precision


RANDOM = torch.Generator().manual_seed(0)
ROWS = torch.randn(60, 8, generator=RANDOM)
TARGETS = ROWS @ torch.randn(8, generator=RANDOM) + 0.1 * torch.randn(60, generator=RANDOM)


def ridge(x, y):
    fit = (ROWS.to(y.dtype) @ y - TARGETS.to(y.dtype)).square().mean()
    return 0.5 * fit + 0.5 * (x.exp() * y**2).sum()


def autocast(kind):
    def inner(x, y):
        with torch.autocast("cpu", kind):
            fit = ((ROWS @ y[:, None])[:, 0] - TARGETS).square().mean()
        return 0.5 * fit.float() + 0.5 * (x.exp() * y**2).sum()

    return inner


def slope_of(inner, dtype, rule, solver=None):
    x = torch.full((8,), -1.0, dtype=dtype, requires_grad=True)
    y = bg.Layer(bg.argmin(inner, torch.zeros(8, dtype=dtype)), solver=solver, gradient=rule)(x)
    assert y.dtype == dtype
    (y - 1).square().sum().backward()
    assert x.grad.dtype == dtype
    return x.grad.double()


@pytest.mark.filterwarnings("ignore::bigrad.SolveWarning")  # half of the digits: that they are said is tested above
@pytest.mark.parametrize(
    ("inner", "dtype", "error"),
    [
        (ridge, torch.bfloat16, 0.2),
        (ridge, torch.float16, 0.2),
        (autocast(torch.bfloat16), torch.float32, 0.02),
        (autocast(torch.float16), torch.float32, 0.02),
    ],
    ids=["bfloat16", "float16", "autocast to bfloat16", "autocast to float16"],
)
@pytest.mark.parametrize("rule", [bg.Implicit(), bg.EqProp(0.1), bg.Unrolled()], ids=lambda r: type(r).__name__)
def test_half_precision_gives_half_the_digits(inner, dtype, error, rule):
    solver = bg.Descent(bg.GradientDescent(0.4), steps=100, tol=0) if isinstance(rule, bg.Unrolled) else None
    truth = slope_of(ridge, torch.float32, bg.Implicit(), bg.Descent(tol=1e-5))
    found = slope_of(inner, dtype, rule, solver)
    assert float((found - truth).norm() / truth.norm()) <= error


# torch.compile


def compiled(backend):
    """A compiled function, and a function around a compiled module, each with the same left as it is."""
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1))
    weights = {name: torch.linspace(-1, 1, p.numel()).view(p.shape) for name, p in model.named_parameters()}

    def around(own):
        def inner(x, y):
            fit = (functional_call(own, y, ROWS)[:, 0] - TARGETS).square().mean()
            return fit + x.exp().mean() * squares(y)

        return inner

    made = torch.compile(model, backend=backend)
    named = {f"_orig_mod.{name}": t for name, t in weights.items()}
    start = torch.zeros(8)
    return [
        (torch.compile(ridge, backend=backend), start, ridge, start),
        (around(made), named, around(model), weights),
    ]


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_inner_losses_give_the_gradients_of_those_they_were_made_of(backend):
    for made, start, plain, first in compiled(backend):
        found = []
        for inner, y in ((made, start), (plain, first)):
            for rule in (bg.Implicit(), bg.Unrolled(), bg.EqProp(0.1)):
                solver = bg.Descent(bg.GradientDescent(0.1), steps=30, tol=0)
                x = torch.full((8,), -1.0, requires_grad=True)
                answer = bg.Layer(bg.argmin(inner, y), solver=solver, gradient=rule)(x)
                total = squares(answer) if isinstance(answer, dict) else answer.square().sum()
                found.append(torch.autograd.grad(total, x)[0])
        for one, two in zip(found[:3], found[3:], strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_model_may_hold_layers_rules_and_losses():
    """Compiled parts stop where numpy and solvers start."""
    y, c = cp.Variable(3), cp.Parameter(3)
    projection = bg.Layer(
        bg.argmin(cp.Problem(cp.Minimize(cp.sum_squares(y - c)), [y >= 0])), parameters=[c], variables=[y]
    )
    trained = bg.Layer(bg.argmin(lambda x, w: ((w - x) ** 2).sum() + (w**4).sum(), torch.zeros(3)))
    both = bg.Family([projection, projection])
    first = bg.Interpolate()(bg.TopK(3, 1))
    target, weight = torch.tensor([[1.0, 2, 0], [2, 0, 1]]), torch.tensor([1.0, 2, 4])

    def model(x):
        found = projection(x)[0] + both(x, items=[0, 1])[0] + first(x)
        return (found @ weight).sum() + trained(x[0]).sum() + bg.losses.SPOPlus(bg.TopK(3, 1))(x, target)

    torch._dynamo.reset()
    found = []
    for made in (model, torch.compile(model, backend="eager")):
        x = torch.tensor([[0.5, -0.3, 0.2], [-0.1, 0.4, 0.3]], requires_grad=True)
        value = made(x)
        found.append((value.detach(), torch.autograd.grad(value, x)[0]))
    torch.testing.assert_close(found[0], found[1])


# Memory


MEASURE = '''
import gc, sys, torch
import bigrad as bg

def peak(call):
    """The most bytes that torch's allocator held beyond what there was before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = profile.profiler.kineto_results.events()
    held = most = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most

size = 200
first, second = torch.randn(size, size), torch.randn(size, size)
start = {"first": first / size**0.5, "second": second / size**0.5}
inputs, targets = torch.randn(8, size), torch.randn(8, size)
penalty = {name: torch.zeros_like(t).requires_grad_() for name, t in start.items()}

def inner(x, y):
    fit = ((inputs @ y["first"]).tanh() @ y["second"] - targets).square().mean()
    return fit + 0.5 * sum((x[name].exp() * y[name].square()).sum() for name in y)

def backward():
    y = {name: t.clone().requires_grad_() for name, t in start.items()}
    torch.autograd.grad(inner({k: t.detach() for k, t in penalty.items()}, y), list(y.values()))

program = bg.argmin(inner, responds=start)

def hypergradient(rule, steps):
    solver = bg.Descent(bg.GradientDescent(0.3), steps=steps, tol=0)
    y = bg.Layer(program, solver=solver, gradient=rule)(penalty)
    torch.autograd.grad(sum(t.square().sum() for t in y.values()), list(penalty.values()))

one = peak(backward)
for rule in (bg.Implicit(bg.CG(tol=0, steps=5)), bg.EqProp(1e-2)):
    hypergradient(rule, 2)
    print(*(peak(lambda: hypergradient(rule, steps)) / one for steps in (3, 15)))
'''


def test_memory_is_within_four_backward_passes_whatever_the_inner_steps():
    """In a process of its own, where nothing else allocates."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for few, many in (map(float, line.split()) for line in done.stdout.splitlines() if line[:1].isdigit()):
        assert 1 < few < 4
        assert many <= 1.01 * few
    assert len(done.stdout.split()) >= 4


# Several processes


class Sum(torch.autograd.Function):
    """Of every process's own tensor; the same in all of them, and so is what comes back to it."""

    @staticmethod
    def forward(ctx, own):
        total = own.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, shared):
        return Copy.apply(shared)


class Copy(torch.autograd.Function):
    """For every process's own use of a tensor that is the same in all of them; what comes back is summed."""

    @staticmethod
    def forward(ctx, shared):
        return shared.clone()

    @staticmethod
    def backward(ctx, own):
        return Sum.apply(own)


def same(t):
    return t


def hypergradients(part, total=same, copy=same):
    """By every rule, of a network's penalty and of what its outputs are scaled by, from a part of the items."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    inputs, targets = torch.randn(2, 20, 4, dtype=DOUBLE), torch.randn(2, 20, 1, dtype=DOUBLE)
    start, found = {name: p.detach() for name, p in model.named_parameters()}, []

    def fit(x, y, fold):
        own = {name: copy(t) for name, t in y.items()}
        scaled = copy(x)[1] * functional_call(model, own, inputs[fold, part])
        return total((scaled - targets[fold, part]).square().sum())

    def inner(x, y):
        return fit(x, y, 0) + x[0].exp() * squares(y)

    for rule in (bg.Implicit(bg.CG(tol=1e-10)), bg.EqProp(1e-4), bg.Unrolled()):
        unrolled = isinstance(rule, bg.Unrolled)
        solver = bg.Descent(bg.GradientDescent(0.01), steps=20, tol=0) if unrolled else bg.Descent(tol=1e-8)
        x = torch.tensor([0.0, 1.0], dtype=DOUBLE, requires_grad=True)
        y = bg.Layer(bg.argmin(inner, start), solver=solver, gradient=rule)(x)
        found.append(torch.autograd.grad(fit(x, y, 1), x)[0])
    return torch.stack(found)


def work(rank, world, folder):
    """One of several processes, with its own part of the items."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save(hypergradients(slice(rank, None, world), Sum.apply, Copy.apply), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without it")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch's own, in its launcher
def test_two_processes_with_half_of_the_items_each_give_the_hypergradient_of_one(tmp_path):
    torch.multiprocessing.spawn(work, (2, str(tmp_path)), nprocs=2)
    alone = hypergradients(slice(None))
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), alone, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(alone[0], alone[1], rtol=1e-4, atol=1e-6)
