"""The layer: shapes and batches, dtypes, failures, copies, threads, and what a call may and may not cost."""

import copy
import pickle
import subprocess
import sys
import threading
import warnings

import cvxpy as cp
import numpy as np
import pytest
import torch
from helpers import case, random_quadratic

import bigrad as bg

DOUBLE = torch.float64


def small(**options):
    """x* = argmin |x - a|^2 + |y - S|^2 with y = max(x, lower) elementwise shifted by s.

    Matrix, vector and scalar inputs.
    """
    x, y = cp.Variable(3, name="x"), cp.Variable((2, 3), name="y")
    S, a, s = cp.Parameter((2, 3), name="S"), cp.Parameter(3, name="a"), cp.Parameter(name="s", nonneg=True)
    stacked = cp.vstack([x, 2 * x])
    problem = case(
        cp.sum_squares(x - a) + cp.sum_squares(y - S) + s * cp.sum(x),
        cp.sum_squares(y - stacked),
        y,
        [x <= 2, x >= -2],
        [y >= -1, y <= s + 1],
    )
    return bg.Layer(problem.program, parameters=[S, a, s], variables=[y, x], **options), problem


def inputs(batch=None, seed=0, dtype=DOUBLE):
    rng = np.random.default_rng(seed)
    lead = () if batch is None else (batch,)
    shapes = [(*lead, 2, 3), (*lead, 3), lead]
    return [torch.as_tensor(rng.uniform(0.1, 1.5, s), dtype=dtype).requires_grad_() for s in shapes]


LAYER, PROBLEM = small()


# Shapes


def test_single_items_and_batches_agree_in_values_and_gradients():
    S, a, s = inputs(batch=7)
    together = LAYER(S, a, s)
    assert [t.shape for t in together] == [(7, 2, 3), (7, 3)]
    grads = torch.autograd.grad((together[0] ** 2).sum() + together[1].sum(), (S, a, s))
    for i in range(7):
        item = [t[i].detach().clone().requires_grad_() for t in (S, a, s)]
        alone = LAYER(*item)
        assert [t.shape for t in alone] == [(2, 3), (3,)]
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(one, many[i], rtol=1e-10, atol=1e-10)
        for one, many in zip(torch.autograd.grad((alone[0] ** 2).sum() + alone[1].sum(), item), grads, strict=True):
            torch.testing.assert_close(one, many[i], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "batched",
    [(True, False, False), (False, True, False), (False, False, True), (True, False, True), (False, True, True)],
)
def test_batched_and_single_arguments_mix(batched):
    """A shared argument means the same as the same value repeated, and its gradient is the sum over the batch."""
    many, one = inputs(batch=4), inputs()
    mixed = [(m if b else o).detach().clone().requires_grad_() for m, o, b in zip(many, one, batched, strict=True)]
    full = [
        (t if b else t.expand(4, *t.shape)).detach().clone().requires_grad_()
        for t, b in zip(mixed, batched, strict=True)
    ]
    short, long = LAYER(*mixed), LAYER(*full)
    for u, v in zip(short, long, strict=True):
        torch.testing.assert_close(u, v, rtol=1e-10, atol=1e-10)
    g = torch.autograd.grad((short[0] * short[0]).sum() + short[1].sum(), mixed)
    h = torch.autograd.grad((long[0] * long[0]).sum() + long[1].sum(), full)
    for u, v, b in zip(g, h, batched, strict=True):
        torch.testing.assert_close(u, v if b else v.sum(0), rtol=1e-8, atol=1e-8)


def test_batches_of_one_keep_their_dimension():
    S, a, s = inputs(batch=1)
    assert [t.shape for t in LAYER(S, a, s)] == [(1, 2, 3), (1, 3)]


def test_values_are_those_of_program_solve():
    S, a, s = inputs()
    y_star, x_star = LAYER(S, a, s)
    values = dict(zip([i.handle for i in LAYER.program.inputs], [None] * 3, strict=True))
    for p in values:
        values[p] = {"S": S, "a": a, "s": s}[p.name()].detach().numpy()
    solution = LAYER.program.solve(values)
    x, y = PROBLEM.leader[0], PROBLEM.responds[0]
    np.testing.assert_allclose(solution[y], y_star.detach(), atol=1e-10)
    np.testing.assert_allclose(solution[x], x_star.detach(), atol=1e-10)
    (only,) = LAYER.solve(S, a, s)
    assert only.value == pytest.approx(solution.value)


def test_matrices_keep_their_orientation():
    """Y = A X with A not symmetric and all sizes different, as torch and numpy index it."""
    X, Y = cp.Variable((2, 4), name="X"), cp.Variable((3, 4), name="Y")
    T, U = cp.Parameter((2, 4), name="T"), cp.Parameter((3, 4), name="U")
    A = np.arange(6.0).reshape(3, 2)
    layer = bg.Layer(
        case(cp.sum_squares(X - T) + 0 * cp.sum(Y), cp.sum_squares(Y - A @ X - U), Y).program, [T, U], [X, Y]
    )
    rng = np.random.default_rng(0)
    t, u = (torch.as_tensor(rng.standard_normal((5, *s))).requires_grad_() for s in ((2, 4), (3, 4)))
    X_star, Y_star = layer(t, u)
    torch.testing.assert_close(X_star, t)
    torch.testing.assert_close(Y_star, torch.as_tensor(A) @ t + u)
    weights = torch.as_tensor(rng.standard_normal((5, 3, 4)))
    gt, gu = torch.autograd.grad((weights * Y_star).sum(), (t, u))
    torch.testing.assert_close(gt, torch.as_tensor(A).T @ weights)
    torch.testing.assert_close(gu, weights)


def test_tensors_that_are_not_contiguous():
    S, a, s = inputs(batch=6)
    plain = LAYER(S, a, s)
    odd = [S.permute(2, 0, 1).contiguous().permute(1, 2, 0), torch.stack([a, a], -1)[..., 0], s.flip(0).flip(0)]
    assert not odd[0].is_contiguous()
    for u, v in zip(LAYER(*odd), plain, strict=True):
        torch.testing.assert_close(u, v, rtol=0, atol=0)


@pytest.mark.parametrize("batch", [None, 3])
def test_single_precision_in_single_precision_out(batch):
    wide, narrow = inputs(batch), inputs(batch, dtype=torch.float32)
    outputs = LAYER(*narrow)
    assert {t.dtype for t in outputs} == {torch.float32}
    for u, v in zip(outputs, LAYER(*wide), strict=True):
        torch.testing.assert_close(u, v.float(), rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(sum(t.sum() for t in outputs), narrow)
    assert {g.dtype for g in grads} == {torch.float32}


def test_integers_are_not_rounded_into_the_answer():
    x, y = cp.Variable(name="x"), cp.Variable(name="y")
    p = cp.Parameter(name="p")
    layer = bg.Layer(case(cp.square(x - p) + cp.square(x), cp.square(y - x), y).program, [p], [x])
    (x_star,) = layer(torch.tensor([1, 3]))
    torch.testing.assert_close(x_star, torch.tensor([0.5, 1.5]))
    assert layer(torch.tensor(1.0, dtype=torch.float16))[0].dtype == torch.float16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[:2], r"takes 3 tensors \(S, a, s\), got 2"),
        (lambda t: [*t, t[0]], "takes 3 tensors .* got 4"),
        (
            lambda t: [t[0].mT, *t[1:]],
            r"Parameter 'S' has shape \(2, 3\); got a tensor of shape \(3, 2\).*one leading batch dimension",
        ),
        (lambda t: [t[0].expand(2, 2, 2, 3), *t[1:]], r"Parameter 'S'.*\(2, 2, 2, 3\)"),
        (lambda t: [t[0], t[1][:2], t[2]], r"Parameter 'a' has shape \(3,\); got a tensor of shape \(2,\)"),
        (lambda t: [t[0], t[1].sum(), t[2]], r"Parameter 'a' has shape \(3,\); got a tensor of shape \(\)"),
        (lambda t: [t[0], t[1], t[2].expand(1, 1)], r"Parameter 's' has shape \(\)"),
        (lambda t: [t[0].expand(2, 2, 3), t[1].expand(5, 3), t[2]], "batch dimensions differ: S: 2, a: 5"),
        (lambda t: [t[0].expand(1, 2, 3), t[1].expand(5, 3), t[2]], "batch dimensions differ: S: 1, a: 5"),
        (lambda t: [t[0].expand(0, 2, 3), *t[1:]], "batch is empty"),
        (lambda t: [t[0].detach().numpy(), *t[1:]], "Parameter 'S': needs a real torch tensor, got ndarray"),
        (lambda t: [t[0], [1.0, 2.0, 3.0], t[2]], "Parameter 'a': needs a real torch tensor, got list"),
        (
            lambda t: [t[0] * 1j, *t[1:]],
            "Parameter 'S': needs a real torch tensor, got torch.strided of torch.complex128",
        ),
        (lambda t: [t[0].to_sparse(), *t[1:]], "Parameter 'S': needs a real torch tensor, got torch.sparse_coo"),
    ],
)
def test_wrong_arguments_are_named(change, words):
    with pytest.raises(bg.InputError, match=words):
        LAYER(*change(inputs()))
    with pytest.raises(bg.InputError, match=words):
        LAYER.solve(*change(inputs()))


def test_wrong_layers_are_refused_when_they_are_made():
    program, (x, _y) = PROBLEM.program, (PROBLEM.leader[0], PROBLEM.responds[0])
    S, a, s = (i.handle for i in sorted(program.inputs, key=lambda i: "Sas".index(i.name)))
    for arguments, words in [
        (([S, a, s, cp.Parameter(name="t")], [x]), "'?t'? is not a parameter of this program, which has: .*S"),
        (([S, a, s, x], [x]), "is not a parameter"),
        (([S, a, a, s], [x]), "named twice"),
        (([S, a, s], [cp.Variable(name="z")]), "is not a variable of this program, which has: x, y"),
        (([S, a, s], []), "name at least one variable"),
        (([S, a], [x]), "'s' is neither among the parameters nor has a value"),
    ]:
        with pytest.raises(bg.InputError, match=words):
            bg.Layer(program, *arguments)
    with pytest.raises(bg.InputError, match="on_failure='stop'"):
        bg.Layer(program, [S, a, s], [x], on_failure="stop")
    u, v = cp.Variable(name="u"), cp.Variable(name="v")
    with pytest.raises(bg.CapabilityError, match="Use Relaxation"):
        bg.Layer(case(u * v, cp.square(v - u), v, [u <= 1, u >= -1]).program, [], [u], solver=bg.Pieces())


def test_parameters_left_out_keep_the_value_they_had():
    layer, problem = small()
    S, a, s = ({i.name: i.handle for i in layer.program.inputs}[k] for k in "Sas")
    S.value, s.value = np.full((2, 3), 0.3), 0.7
    short = bg.Layer(layer.program, [a], list(reversed(problem.leader)))
    t = inputs(batch=3)[1]
    full = layer(torch.full((2, 3), 0.3, dtype=DOUBLE), t, torch.tensor(0.7, dtype=DOUBLE))[1]
    torch.testing.assert_close(short(t)[0], full)
    S.value = np.zeros((2, 3))
    torch.testing.assert_close(short(t)[0], full)
    S.value = a.value = s.value = None
    torch.testing.assert_close(short(t)[0], full)
    assert len(short.solve(t)) == 3


def test_a_layer_without_arguments():
    x, y = cp.Variable(name="x"), cp.Variable(name="y")
    layer = bg.Layer(case(cp.square(x - 1), cp.square(y - x), y).program, [], [x, y])
    x_star, y_star = layer()
    assert (x_star.shape, x_star.item(), y_star.item()) == ((), pytest.approx(1.0), pytest.approx(1.0))
    assert layer.solve()[0].status is bg.Status.GLOBAL


# What a call may cost, and what it may not touch


def test_no_grad_attaches_nothing_and_parameters_without_gradient_get_none():
    S, a, s = inputs(batch=2)
    with torch.no_grad():
        assert not any(t.requires_grad for t in LAYER(S, a, s))
    assert not any(t.requires_grad for t in LAYER(S.detach(), a.detach(), s.detach()))
    outputs = LAYER(S.detach(), a, s.detach())
    assert all(t.requires_grad for t in outputs)
    outputs[0].sum().backward()
    assert a.grad is not None
    assert S.grad is None
    assert s.grad is None


class Watched(bg.Implicit):
    """Implicit, which notes what was asked of it."""

    calls: list

    def pull_back(self, program, outcome, theta, wanted, cotangent):
        grads = super().pull_back(program, outcome, theta, wanted, cotangent)
        Watched.calls.append((wanted, [g is not None for g in grads]))
        return grads


def test_only_wanted_gradients_are_computed():
    Watched.calls = []
    layer, _ = small(gradient=Watched())
    S, a, s = inputs(batch=2)
    with torch.no_grad():
        layer(S, a, s)
    assert Watched.calls == []
    layer(S.detach(), a, s.detach())[0].sum().backward()
    ((wanted, given),) = Watched.calls
    assert sum(wanted) == 1
    assert list(wanted) == given
    layer.solve(S, a, s)
    assert len(Watched.calls) == 1


def test_two_calls_before_one_backward():
    first, second = inputs(batch=3, seed=1), inputs(batch=3, seed=2)
    apart = []
    for t in (first, second):
        loss = sum((o**2).sum() for o in LAYER(*t))
        apart.append(torch.autograd.grad(loss, t))
    one, two = LAYER(*first), LAYER(*second)
    sum((o**2).sum() for o in (*two, *one)).backward()
    for t, g in zip((*first, *second), (*apart[0], *apart[1]), strict=True):
        torch.testing.assert_close(t.grad, g, rtol=0, atol=0)


def test_the_layer_inside_a_network_and_twice_in_a_row():
    """The layer's answer is the layer's next input, behind a linear map: the chain rule through both."""
    x, y = cp.Variable(2, name="x"), cp.Variable(2, name="y")
    a = cp.Parameter(2, name="a")
    layer = bg.Layer(
        case(cp.sum_squares(x - a) + cp.sum_squares(y), cp.sum_squares(y - x), y, [], [y >= -0.2]).program, [a], [x, y]
    )
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2).double()
    data = torch.randn(5, 3, dtype=DOUBLE)

    def loss(weight):
        once = layer(data @ weight.T)
        return sum((o**2).sum() for o in layer(once[0] + 2 * once[1] + 0.3))

    assert torch.autograd.gradcheck(loss, (net.weight,), eps=1e-6, atol=1e-6)


def test_the_inputs_and_the_users_variables_are_left_alone():
    S, a, s = inputs(batch=2)
    before = [t.detach().clone() for t in (S, a, s)]
    handles = [*(u.handle for u in LAYER.program.unknowns), *(i.handle for i in LAYER.program.inputs)]
    for h in handles:
        h.save_value(None)
    sum(o.sum() for o in LAYER(S, a, s)).backward()
    LAYER.solve(S, a, s, verify=True)
    assert all(h.value is None for h in handles)
    for t, b in zip((S, a, s), before, strict=True):
        torch.testing.assert_close(t.detach(), b, rtol=0, atol=0)


def test_outputs_may_be_changed_in_place():
    S, a, s = inputs(batch=2)
    y_star, x_star = LAYER(S, a, s)
    expected = torch.autograd.grad(sum(o.sum() for o in LAYER(S, a, s)), a)[0]
    x_star = x_star * 1.0
    x_star += 5.0
    torch.testing.assert_close(torch.autograd.grad(x_star.sum() + y_star.sum(), a)[0], expected)


def test_deterministic():
    runs = []
    for _ in range(2):
        layer, _ = small()
        t = inputs(batch=9)
        outputs = layer(*t)
        runs.append([*outputs, *torch.autograd.grad(sum(o.sum() for o in outputs), t)])
    for u, v in zip(*runs, strict=True):
        assert torch.equal(u, v)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_kinds_of_differentiation_are_right_or_an_error_never_a_silent_zero():
    layer, (_, a, _) = LAYER, inputs()
    rest = [t.detach() for t in inputs()]

    def answer(v):
        return layer(rest[0], v, rest[2])[1]

    v = a.detach()
    exact = torch.autograd.functional.jacobian(answer, v)
    assert exact.abs().max() > 0.05
    ones = torch.ones(3, dtype=DOUBLE)
    torch.testing.assert_close(torch.autograd.functional.jvp(answer, v, ones)[1], exact @ ones)
    torch.testing.assert_close(torch.autograd.functional.vjp(answer, v, ones)[1], exact.T @ ones)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.autograd.functional.jacobian(answer, v, vectorize=True)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.autograd.functional.jacobian(answer, v, vectorize=True, strategy="forward-mode")
    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.grad):
        with pytest.raises(NotImplementedError, match=r"within torch\.func .* Give a batch in place of vmap"):
            transform(lambda v: answer(v).sum())(v)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        answer(torch.autograd.forward_ad.make_dual(v, ones))
    with torch.inference_mode():
        torch.testing.assert_close(answer(v), layer(rest[0], v, rest[2])[1])


@pytest.mark.filterwarnings("ignore")  # of torch's own about its tracing
def test_a_compiled_model_runs_the_layer_as_it_is():
    torch.manual_seed(0)
    first, (_, *rest) = torch.nn.Linear(4, 6, dtype=DOUBLE), inputs()
    features = torch.randn(3, 4, dtype=DOUBLE)

    def model(features):
        return LAYER(first(features).sigmoid().reshape(-1, 2, 3), *rest)[1].square().sum()

    plain, compiled = model(features), torch.compile(model, backend="eager")(features)
    torch.testing.assert_close(compiled, plain)
    slopes = [torch.autograd.grad(loss, first.weight)[0] for loss in (compiled, plain)]
    assert slopes[0].abs().max() > 1e-3
    torch.testing.assert_close(*slopes)


# Copies


def same(one, other):
    t = inputs(batch=3)
    first, second = one(*t), other(*t)
    for u, v in zip(first, second, strict=True):
        torch.testing.assert_close(u, v, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(sum(o.sum() for o in outputs), t) for outputs in (first, second)]
    for u, v in zip(*grads, strict=True):
        torch.testing.assert_close(u, v, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solved_before", [False, True])
def test_deepcopy_and_pickle(solved_before):
    layer, _ = small(solver=bg.Pieces(starts=3), on_failure="nan")
    if solved_before:
        layer.solve(*inputs(batch=2), verify=True)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        same(layer, twin)
        assert twin.solver == bg.Pieces(starts=3)
        assert twin.on_failure == "nan"
        assert twin.explain() == layer.explain()


def test_pickle_of_a_smooth_program_and_of_fixed_parameters():
    x, y = cp.Variable(name="x"), cp.Variable(name="y")
    p, q = cp.Parameter(name="p", value=0.5), cp.Parameter(name="q")
    layer = bg.Layer(case(cp.exp(x) - q * x + p * cp.square(y), cp.square(y - x), y).program, [q], [x])
    t = torch.tensor([1.0, 3.0], dtype=DOUBLE)
    expected = layer(t)[0]
    torch.testing.assert_close(pickle.loads(pickle.dumps(layer))(t)[0], expected)
    p.value = 9.0
    torch.testing.assert_close(copy.deepcopy(layer)(t)[0], expected)


IN_ANOTHER_PROCESS = """
import pickle, sys
import torch
layer, tensors = pickle.load(open(sys.argv[1], "rb"))
solutions = layer.solve(*tensors, verify=True)
assert all(s.status.ok and abs(s.stats.follower_gap) < 1e-6 for s in solutions), solutions
import cvxpy as cp
import bigrad as bg
x, y = cp.Variable(name="u"), cp.Variable(name="v")
p = cp.Parameter(name="r")
other = bg.Layer(bg.bilevel(cp.Problem(cp.Minimize(cp.square(x - p))), cp.Problem(cp.Minimize(cp.square(y - x)), [y >= 0]), [y]), [p], [y])
assert abs(other(torch.tensor(2.0))[0].item() - 2.0) < 1e-6
outputs = layer(*tensors)
grads = torch.autograd.grad(sum((o ** 2).sum() for o in outputs), tensors)
again = pickle.loads(pickle.dumps(layer))(*tensors)
assert all(torch.equal(a, b) for a, b in zip(outputs, again))
pickle.dump(([o.detach() for o in outputs], grads), open(sys.argv[2], "wb"))
"""


@pytest.mark.parametrize(
    "build",
    [small, lambda: (bg.Layer(RANDOM.program, list(RANDOM.values), [RANDOM.leader[0], *RANDOM.responds]), None)],
    ids=["small", "random"],
)
def test_pickle_into_a_fresh_process(build, tmp_path):
    """There new CVXPY objects start from id 0 again and must not be taken for the unpickled ones."""
    layer, problem = build()
    tensors = (
        inputs(batch=3)
        if problem
        else [torch.tensor(np.asarray(v), requires_grad=True) for v in RANDOM.values.values()]
    )
    sent, back = tmp_path / "layer.pkl", tmp_path / "answers.pkl"
    sent.write_bytes(pickle.dumps((layer, tensors)))
    command = [sys.executable, "-W", "error", "-c", IN_ANOTHER_PROCESS, str(sent), str(back)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    outputs, grads = pickle.loads(back.read_bytes())
    here = layer(*tensors)
    for u, v in zip(here, outputs, strict=True):
        torch.testing.assert_close(u.detach(), v, rtol=1e-9, atol=1e-9)
    for u, v in zip(torch.autograd.grad(sum((o**2).sum() for o in here), tensors), grads, strict=True):
        torch.testing.assert_close(u, v, rtol=1e-7, atol=1e-8)


RANDOM = random_quadratic((4, 8, 10), 0)


# Failures


def fragile(on_failure, solver=None):
    """The follower must lie between p and q: infeasible where p > q.

    X pays its way unless w is 0, where the leader is unbounded.
    """
    x, y = cp.Variable(name="x"), cp.Variable(2, name="y")
    p, q, w = cp.Parameter(2, name="p"), cp.Parameter(name="q"), cp.Parameter(name="w", nonneg=True)
    problem = case(w * cp.square(x) - x + cp.sum_squares(y), cp.sum_squares(y - x), y, [], [y >= p, y <= q])
    return bg.Layer(problem.program, [p, q, w], [x, y], solver=solver, on_failure=on_failure)


BAD = {
    "infeasible": ((2, -9.0, 1.0), bg.Status.INFEASIBLE_LOWER),
    "not a number": ((0, np.nan, 1.0), bg.Status.INVALID_INPUT),
    "infinite": ((0, np.inf, 1.0), bg.Status.INVALID_INPUT),
    "of the wrong sign": ((0, 1.0, -1.0), bg.Status.INVALID_INPUT),
    "unbounded": ((0, 1.0, 0.0), bg.Status.UNBOUNDED_UPPER),
}


def good_and_bad(kind, at=2, size=5):
    rng = np.random.default_rng(0)
    p, q, w = rng.uniform(-2, -1, (size, 2)), rng.uniform(0, 2, size), rng.uniform(0.2, 1, size)
    low, high, weight = BAD[kind][0]
    p[at], q[at], w[at] = low, high, weight
    return [torch.as_tensor(t).requires_grad_() for t in (p, q, w)]


@pytest.mark.parametrize("kind", BAD)
def test_raise_names_the_item_its_status_and_what_to_do(kind):
    layer = fragile("raise")
    with pytest.raises(bg.SolveError) as caught:
        layer(*good_and_bad(kind))
    status = BAD[kind][1]
    assert caught.value.failures == {2: status}
    for words in ("1 of 5 items", "item 2", status.name, status.value, 'on_failure="nan"', "layer.solve"):
        assert words in str(caught.value)
    with pytest.raises(bg.SolveError, match=status.name) as caught:
        layer(*(t[2] for t in good_and_bad(kind)))
    assert "item 2" not in str(caught.value)
    assert isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("solver", [None, bg.Relaxation(starts=2)], ids=str)
def test_nan_keeps_the_other_items_exactly_as_they_are_without_the_bad_one(kind, solver):
    layer = fragile("nan", solver)
    tensors = good_and_bad(kind)
    x_star, y_star = layer(*tensors)
    assert torch.isnan(x_star[2])
    assert torch.isnan(y_star[2]).all()
    rest = [0, 1, 3, 4]
    assert torch.isfinite(x_star[rest]).all()
    grads = torch.autograd.grad((x_star**2).nansum() + y_star.nansum(), tensors)
    alone = [t[rest].detach().clone().requires_grad_() for t in tensors]
    x_alone, y_alone = layer(*alone)
    assert torch.equal(x_alone, x_star[rest])
    assert torch.equal(y_alone, y_star[rest])
    for g, h in zip(grads, torch.autograd.grad((x_alone**2).sum() + y_alone.sum(), alone), strict=True):
        assert (g[2] == 0).all()
        torch.testing.assert_close(g[rest], h, rtol=1e-12, atol=1e-12)
    statuses = [s.status for s in layer.solve(*tensors)]
    assert statuses[2] is BAD[kind][1]
    assert all(s.ok for s in np.array(statuses)[rest])


def test_nan_outputs_do_not_poison_gradients_of_a_plain_loss():
    """Even a NaN cotangent of a failed item gives it and shared parameters a zero share."""
    layer = fragile("nan")
    p, q, w = good_and_bad("infeasible")
    shared = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    x_star, _ = layer(p, q, shared)
    ((x_star * torch.nan_to_num(x_star.detach(), nan=float("nan"))).sum()).backward()
    assert (p.grad[2] == 0).all()
    assert torch.isfinite(shared.grad)
    assert torch.isfinite(p.grad).all()
    assert w.grad is None


def test_a_batch_that_fails_whole():
    layer = fragile("nan")
    tensors = [t[2:3].detach().expand(3, *t.shape[1:]).clone().requires_grad_() for t in good_and_bad("infeasible")]
    x_star, y_star = layer(*tensors)
    assert torch.isnan(x_star).all()
    assert torch.isnan(y_star).all()
    assert all((g == 0).all() for g in torch.autograd.grad(x_star.sum() + y_star.sum(), tensors))
    (x_star, _) = layer(*(t[0].detach().requires_grad_() for t in tensors))
    assert x_star.shape == ()
    assert torch.isnan(x_star)


def test_many_failures_are_counted_not_all_listed():
    p = torch.full((30, 2), 2.0, dtype=DOUBLE)
    with pytest.raises(bg.SolveError, match=r"(?s)30 of 30 items.*and 22 more") as caught:
        fragile("raise")(p, torch.tensor(-9.0, dtype=DOUBLE), torch.tensor(1.0, dtype=DOUBLE))
    assert len(caught.value.failures) == 30


def test_a_bad_shared_parameter_fails_every_item():
    with pytest.raises(bg.SolveError, match="2 of 2"):
        fragile("raise")(torch.zeros(2, 2), torch.tensor(float("nan")), torch.tensor(1.0))


# Solve, warm starts, explain


def test_solve_gives_solutions_with_gaps_and_never_raises():
    layer = fragile("raise")
    tensors = good_and_bad("infeasible")
    solutions = layer.solve(*tensors, verify=True)
    assert [s.status.ok for s in solutions] == [True, True, False, True, True]
    assert all(abs(s.stats.follower_gap) < 1e-7 for s in solutions if s.status.ok)
    x, y = (u.handle for u in layer.program.unknowns)
    assert solutions[0][y].shape == (2,)
    assert np.isnan(solutions[2][x])
    x_star, _ = fragile("nan")(*tensors)
    np.testing.assert_allclose([s[x] for s in solutions], x_star.detach())


def test_warm_starts_of_a_layer():
    layer = fragile("raise")
    tensors = [t[:2] for t in good_and_bad("infeasible")]
    cold = layer.solve(*tensors)
    warm = layer.solve(*tensors, warm_start=cold)
    assert [w.value for w in warm] == pytest.approx([c.value for c in cold])
    torch.testing.assert_close(layer(*tensors, warm_start=cold)[0], layer(*tensors)[0])
    with pytest.raises(bg.InputError, match="warm_start has 1 Solutions for a batch of 2"):
        layer.solve(*tensors, warm_start=cold[:1])
    other = small()[0]
    with pytest.raises(bg.InputError, match="another program"):
        other.solve(*inputs(batch=2), warm_start=cold)
    for wrong in (bg.Memory(), [1, None], "cold"):
        with pytest.raises(bg.InputError, match="give a Solution for each item"):
            layer.solve(*tensors, warm_start=wrong)
    with pytest.raises(bg.InputError, match=r"Memory\.at\(0\): give a list of keys"):
        bg.Memory().at(0)


def test_explain_says_solver_gradient_and_why():
    text = LAYER.explain()
    for words in ("Solver: Pieces(", "Gradient: Implicit()", "leader 3", "follower 6"):
        assert words in text
    x, y = cp.Variable(name="x"), cp.Variable(name="y")
    layer = bg.Layer(case(cp.exp(x), cp.square(y - x), y, [x >= 0]).program, [], [x], gradient=bg.Implicit())
    assert "Relaxation(" in layer.explain()


def test_a_layer_is_a_module():
    layer, _ = small()
    net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.ModuleList([layer])[0])
    assert list(net.parameters()) == []
    assert layer.state_dict() == {}
    assert layer.eval().training is False


# Threads


@pytest.mark.parametrize("kind", ["quadratic", "smooth"])
def test_threads_may_share_a_layer(kind):
    """Four threads, each with its own inputs, forward, backward and solve: what each gets is what it gets alone."""
    if kind == "quadratic":
        layer, repeats = small()[0], 6
    else:
        x, y = cp.Variable(3, name="x"), cp.Variable((2, 3), name="y")
        S, a, s = cp.Parameter((2, 3), name="S"), cp.Parameter(3, name="a"), cp.Parameter(name="s", nonneg=True)
        upper = cp.sum(cp.exp(x - a)) + cp.sum_squares(y - S) + s * cp.sum_squares(x)
        layer, repeats = (
            bg.Layer(
                case(upper, cp.sum_squares(y - cp.vstack([x, x])), y, [], [y >= 0.1]).program,
                [S, a, s],
                [y, x],
                solver=bg.Relaxation(starts=1),
            ),
            2,
        )
    work = [inputs(batch=3, seed=k) for k in range(4)]

    def once(tensors):
        outputs = layer(*tensors)
        grads = torch.autograd.grad(sum((o**2).sum() for o in outputs), tensors)
        solutions = layer.solve(*tensors, verify=True)
        return (
            [o.detach() for o in outputs],
            grads,
            [(s.value, s.lower_value) for s in solutions],
            max(s.stats.follower_gap for s in solutions),
        )

    alone = [once(t) for t in work]
    found, errors = {}, []

    def run(k):
        try:
            found[k] = [once(work[k]) for _ in range(repeats)]
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    for k in range(4):
        for outputs, grads, values, gap in found[k]:
            for u, v in zip((*outputs, *grads), (*alone[k][0], *alone[k][1]), strict=True):
                torch.testing.assert_close(u, v, rtol=1e-10, atol=1e-10)
            assert values == [pytest.approx(v) for v in alone[k][2]]
            assert gap < 1e-6


def test_a_call_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer, _ = small()
        t = inputs(batch=2)
        sum(o.sum() for o in layer(*t)).backward()
        fragile("nan")(*good_and_bad("infinite"))[0].nansum().backward()
        z, limit = cp.Variable(2, name="z"), cp.Parameter(name="limit")
        near = bg.argmin(cp.Problem(cp.Minimize(cp.sum_squares(z) - cp.sum(z)), [z >= 0, cp.sum(z) <= limit]))
        ends = bg.Layer(near, [limit], [z], on_failure="nan")(torch.tensor([1.0, torch.inf, -torch.inf]))[0]
        assert ends.isnan().any(1).tolist() == [False, True, True]
