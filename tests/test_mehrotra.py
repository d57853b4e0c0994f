"""Mehrotra: the lane for accelerators, run here on the CPU by the same code path, against ActiveSet and Pieces."""

import cvxpy as cp
import numpy as np
import pytest
import torch

import bigrad as bg

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def program(n, rows, equalities, linear):
    """A random program whose blocks are parameters, and a batch of values."""
    rng, batch = np.random.default_rng(n + rows), 12
    y, q = cp.Variable(n, name="y"), cp.Parameter(n, name="q")
    P, constraints = cp.Parameter((n, n), PSD=True, name="P"), [y >= -3, y <= 3] if linear else []
    root = rng.standard_normal((batch, n, n))
    values = {q: rng.standard_normal((batch, n))} | ({} if linear else {P: root @ root.mT + 0.1 * np.eye(n)})
    for count, name, sense in ((rows, "G", cp.NonPos), (equalities, "A", cp.Zero)):
        if count:
            matrix, limit = cp.Parameter((count, n), name=name), cp.Parameter(count, name=name.lower())
            constraints.append(matrix @ y <= limit if sense is cp.NonPos else matrix @ y == limit)
            values |= {matrix: rng.standard_normal((batch, count, n))}
            values |= {
                limit: rng.random((batch, count)) + 0.1 if sense is cp.NonPos else 0.1 * rng.random((batch, count))
            }
    goal = q @ y if linear else cp.quad_form(y, P) / 2 + q @ y
    return bg.argmin(cp.Problem(cp.Minimize(goal), constraints)), y, values


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(("n", "rows", "equalities"), [(5, 8, 2), (8, 4, 0), (4, 0, 1), (1, 1, 0)])
def test_it_agrees_with_the_other_solvers_and_stays_on_its_device(n, rows, equalities, linear, device):
    made, y, values = program(n, rows, equalities, linear)
    weights = torch.as_tensor(np.random.default_rng(0).standard_normal((12, n)))
    found = {}
    for solver, where in ((bg.Mehrotra(), device), (bg.ActiveSet(), "cpu")):
        inputs = [torch.tensor(v, device=where, requires_grad=True) for v in values.values()]
        layer = bg.Layer(made, list(values), [y], solver=solver)
        (answer,) = layer(*inputs)
        assert answer.device.type == where
        gradients = torch.autograd.grad((weights.to(where) * answer).sum(), inputs)
        assert {s.stats.solver for s in layer.solve(*inputs)} == {type(solver).__name__} or linear
        found[solver] = [v.detach().cpu() for v in (answer, *gradients)]
    for ours, theirs in zip(*found.values(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
def test_items_without_solution_are_told_apart(device):
    y, q, h = cp.Variable(2, name="y"), cp.Parameter(2, name="q"), cp.Parameter(2, name="h")
    made = bg.argmin(cp.Problem(cp.Minimize(q @ y), [y <= h, y[0] >= -1]))
    layer = bg.Layer(made, [q, h], [y], solver=bg.Mehrotra(), on_failure="nan")
    Q = torch.tensor([[1.0, -1.0], [1.0, 1.0], [1.0, -1.0], [float("nan"), 0.0]], device=device, requires_grad=True)
    H = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-2.0, 1.0], [1.0, 1.0]], device=device)
    assert [s.status.name for s in layer.solve(Q, H)] == [
        "GLOBAL",
        "UNBOUNDED_UPPER",
        "INFEASIBLE_UPPER",
        "INVALID_INPUT",
    ]
    (answer,) = layer(Q, H)
    np.testing.assert_allclose(answer[0].detach().cpu(), [-1.0, 1.0], atol=1e-9)
    assert torch.isnan(answer[1:]).all()
    answer.nansum().backward()
    assert torch.isfinite(Q.grad).all()


def test_second_derivatives():
    made, y, values = program(3, 4, 1, linear=False)
    P, *rest = (torch.tensor(v[:2], requires_grad=True) for v in values.values())
    layer = bg.Layer(made, list(values), [y], solver=bg.Mehrotra())
    assert torch.autograd.gradgradcheck(lambda P, *rest: layer(P, *rest)[0], (P, *rest))


def test_auto_takes_it_for_accelerators_only():
    made, *_ = program(3, 2, 0, linear=False)
    assert bg.Auto().on_accelerator(made) == bg.Mehrotra()
    assert bg.Auto().choose(made)[0] == bg.ActiveSet()
    x, z = cp.Variable(name="x"), cp.Variable(name="z")
    two = bg.bilevel(cp.Problem(cp.Minimize(cp.square(x) + z)), cp.Problem(cp.Minimize(cp.square(z - x))), responds=[z])
    assert bg.Auto().on_accelerator(two) == bg.Auto()
    with pytest.raises(bg.CapabilityError, match=r"Mehrotra\(\) is for one level"):
        two.solve(solver=bg.Mehrotra())
