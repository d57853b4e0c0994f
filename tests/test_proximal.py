"""Proximal: its limit is the implicit gradient, its step is what its formula says, and it sees where the derivative is zero."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from helpers import random_quadratic

import bigrad as bg


def leaf(value):
    return torch.tensor(np.asarray(value, dtype=float), requires_grad=True)


def pulled(program, parameters, variables, inputs, gradient, seed=0):
    layer = bg.Layer(program, parameters, variables, gradient=gradient)
    rng = np.random.default_rng(seed)
    loss = sum((torch.as_tensor(rng.standard_normal(v.shape)) * v).sum() for v in layer(*inputs))
    return torch.autograd.grad(loss, inputs)


def single(goal):
    y, p, h, G = (
        cp.Variable(4, name="y"),
        cp.Parameter(4, name="p"),
        cp.Parameter(name="h"),
        cp.Parameter((2, 4), name="G"),
    )
    return cp.Problem(cp.Minimize(goal(y, p)), [y >= 0, y <= 1, cp.sum(y) == h, G @ y <= 3]), y, [p, h, G]


@pytest.mark.parametrize("central", [True, False])
def test_small_steps_tend_to_the_implicit_gradient_at_one_level(central):
    problem, y, parameters = single(lambda y, p: cp.sum_squares(y - p) + p @ y)
    rng = np.random.default_rng(0)
    inputs = [leaf(rng.standard_normal((8, 4))), leaf(1.5), leaf(rng.standard_normal((2, 4)))]
    program = bg.argmin(problem)
    exact = pulled(program, parameters, [y], inputs, bg.Implicit())
    found = pulled(program, parameters, [y], inputs, bg.Proximal(1e-5, central=central))
    for a, b in zip(exact, found, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-8 if central else 1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_small_steps_tend_to_the_implicit_gradient_at_two_levels(seed):
    case = random_quadratic((3, 5, 6), seed)
    program = bg.bilevel(case.upper, case.lower, responds=case.responds)
    inputs = [leaf(v) for v in case.values.values()]
    variables = [u.handle for u in program.unknowns]
    exact = pulled(program, list(case.values), variables, inputs, bg.Implicit())
    found = pulled(program, list(case.values), variables, inputs, bg.Proximal(1e-6))
    for a, b in zip(exact, found, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * (1 + float(abs(a).max())))


def test_a_linear_program_gets_the_step_of_the_formula():
    """The Lagrangian's derivative in c is y itself: the gradient is the difference of two solutions, solved by Clarabel."""
    y, c = cp.Variable(5, name="y"), cp.Parameter(5, name="c")
    rows = [y >= 0, cp.sum(y) == 1]
    layer = bg.Layer(bg.argmin(cp.Problem(cp.Minimize(c @ y), rows)), [c], [y], gradient=bg.Proximal(0.8, rho=0.5))
    costs, weights = leaf([0.3, 0.1, 0.4, 0.2, 0.9]), np.array([1.0, 2.0, -1.0, 0.5, 0.0])
    (answer,) = layer(costs)
    (gradient,) = torch.autograd.grad((torch.as_tensor(weights) * answer).sum(), [costs])
    best, ends = np.eye(5)[1], []
    for tau in (0.8, -0.8):
        near = cp.Problem(
            cp.Minimize((costs.detach().numpy() + tau * weights) @ y + 0.25 * cp.sum_squares(y - best)), rows
        )
        near.solve(solver=cp.CLARABEL)
        ends.append(y.value.copy())
    np.testing.assert_allclose(answer.detach(), best, atol=1e-9)
    np.testing.assert_allclose(gradient, (ends[0] - ends[1]) / 1.6, atol=1e-6)
    assert abs(gradient).max() > 0.1
    (exact,) = pulled(bg.argmin(cp.Problem(cp.Minimize(c @ y), rows)), [c], [y], [costs], bg.Implicit())
    assert not exact.any()


def test_it_learns_the_costs_of_a_linear_program():
    """Descent along it makes the program choose what it was shown; the true gradient would not move."""
    y, c = cp.Variable(4, name="y"), cp.Parameter(4, name="c")
    layer = bg.Layer(
        bg.argmin(cp.Problem(cp.Minimize(c @ y), [y >= 0, y <= 1, cp.sum(y) == 2])), [c], [y], gradient=bg.Proximal(1.0)
    )
    shown, costs = torch.tensor([1.0, 0.0, 0.0, 1.0]).double(), leaf([0.9, 0.1, 0.2, 0.8])
    optimizer = torch.optim.SGD([costs], lr=0.3)
    for _ in range(20):
        optimizer.zero_grad()
        ((layer(costs)[0] - shown) ** 2).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(layer(costs)[0].detach(), shown, atol=1e-9)


def test_a_nudged_program_without_solution_is_told():
    y, c = cp.Variable(2, name="y"), cp.Parameter(2, name="c")
    layer = bg.Layer(bg.argmin(cp.Problem(cp.Minimize(c @ y), [y >= 0])), [c], [y], gradient=bg.Proximal(5.0))
    costs = leaf([[1.0, 1.0], [9.0, 9.0]])
    with pytest.warns(bg.SolveWarning, match=r"items \[0\]"):
        layer(costs)[0].sum().backward()
    assert torch.isnan(costs.grad[0]).all()
    assert torch.isfinite(costs.grad[1]).all()


def test_refusals():
    y = cp.Variable(2, name="y")
    program = bg.argmin(cp.Problem(cp.Minimize(cp.sum(cp.exp(y)) - cp.sum(y))))
    with pytest.raises(bg.CapabilityError, match="quadratic"):
        bg.Layer(program, [], [y], gradient=bg.Proximal(1.0))
    with pytest.raises(bg.InputError, match="tau must be positive"):
        bg.Proximal(0.0)
    problem, y, parameters = single(lambda y, p: cp.sum_squares(y - p))
    layer = bg.Layer(bg.argmin(problem), parameters, [y], gradient=bg.Proximal(0.1))
    inputs = [leaf(np.ones(4)), leaf(1.5), leaf(np.ones((2, 4)))]
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        torch.autograd.grad(layer(*inputs)[0].sum(), inputs, create_graph=True)
