"""Batches whose items have programs of their own."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from games import enumerate_nested
from ortools.sat.python import cp_model

import bigrad as bg
from bigrad.solution import Status


def interdiction(seed, items=5):
    """Knapsack interdiction with weights of its own, in CP-SAT."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 6, items)
    leader, follower = cp_model.CpModel(), cp_model.CpModel()
    x, copy, y = (
        [m.new_bool_var(f"{n}{k}") for k in range(items)] for n, m in (("x", leader), ("c", follower), ("y", follower))
    )
    leader.add(sum(x) <= 1 + seed)
    follower.add(sum(int(w) * b for w, b in zip(weights, y, strict=True)) <= 8)
    for a, b in zip(copy, y, strict=True):
        follower.add(a + b <= 1)
    follower.maximize(sum(y))
    return bg.bilevel(leader, follower, link=dict(zip(x, copy, strict=True)), costs={"w": y}), [x, y]


def test_items_of_one_batch_have_their_own_feasible_sets():
    made = [interdiction(k) for k in range(3)]
    layers = [bg.Layer(program, ["w"], variables) for program, variables in made]
    family, items = bg.Family(layers), [2, 0, 1, 0, 2]
    costs = 1 + torch.rand(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    costs.requires_grad_()
    found = family(costs, items=items)
    assert [f.shape for f in found] == [(5, 5), (5, 5)]
    (grad,) = torch.autograd.grad((found[1] * costs.detach()).sum(), costs)
    for i, k in enumerate(items):
        own = costs[i].detach().requires_grad_()
        alone = layers[k](own)
        for a, b in zip(found, alone, strict=True):
            assert torch.equal(a[i], b)
        (expected,) = torch.autograd.grad((alone[1] * own.detach()).sum(), own)
        torch.testing.assert_close(grad[i], expected)
        value, _ = enumerate_nested(made[k][0].combinatorial.at([own.detach().numpy()]))
        assert family.solve(costs, items=items)[i].value == pytest.approx(made[k][0].sign * value)
    same = family(costs[0], items=torch.tensor([1, 1]))
    assert torch.equal(same[0][0], same[0][1])


def test_convex_programs_that_share_their_variables():
    c, y = cp.Parameter(2, name="c"), cp.Variable(2, name="y")
    goal = cp.Minimize(cp.sum_squares(y - c))
    sets = ([y >= 0], [cp.sum(y) == 1], [y <= -1, y >= 1])
    layers = [bg.Layer(bg.argmin(cp.Problem(goal, rows)), [c], [y]) for rows in sets]
    family = bg.Family(layers)
    given = torch.tensor([[-1.0, 2.0], [0.0, 0.0], [3.0, -4.0]], dtype=torch.float64)
    (found,) = family(given, items=[0, 1, 0])
    expected = torch.tensor([[0.0, 2.0], [0.5, 0.5], [3.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(bg.SolveError, match=r"Items \[1\]") as error:
        family(given, items=[0, 2, 0])
    assert list(error.value.failures) == [1]
    statuses = [s.status for s in family.solve(given, items=[0, 2, 0])]
    assert statuses[0] is statuses[2] is Status.GLOBAL
    assert statuses[1] is error.value.failures[1]


def test_what_does_not_fit_is_refused():
    one, other = (bg.Layer(interdiction(0, n)[0]) for n in (4, 5))
    for wrong, message in (([], "at least one"), ([one, other], r"layer 1 \[\(5,\)"), ([one, "x"], "got a str")):
        with pytest.raises(bg.InputError, match=message):
            bg.Family(wrong)
    family, costs = bg.Family([one, one]), torch.ones(3, 4)
    for items, message in (
        ([0, 1], "names 2"),
        ([0, 1, 2], "no layer 2"),
        ([0.5, 1, 1], "give the index"),
        ([], "give"),
    ):
        with pytest.raises(bg.InputError, match=message):
            family(costs, items=items)
    with pytest.raises(bg.InputError, match="takes 1 tensors"):
        family(costs, costs, items=[0, 1, 0])
