"""One player's problem with the other's decision held: a leader with a mere budget is answered without a solver."""

import numpy as np
import pytest
from ortools.sat.python import cp_model

import bigrad as bg
from bigrad.discrete.mip import Mip
from bigrad.discrete.player import Budget, Linear, player


def game(weights, budget, least=0):
    """A leader of weighted blocks against a path over a 3 x 3 map."""
    leader = cp_model.CpModel()
    x = [leader.new_bool_var(f"x{k}") for k in range(9)]
    if budget is not None:
        leader.add(sum(w * v for w, v in zip(weights, x, strict=True)) <= budget)
    if least:
        leader.add(sum(x) >= least)
    costs = {"w": range(9), "d": list(enumerate(x))}
    return bg.bilevel(leader, bg.GridPath(3, 3, clamp=0.0), costs=costs).combinatorial


@pytest.mark.parametrize(
    ("weights", "budget", "most"),
    [
        ([1] * 9, 3, 3),
        ([2] * 9, 5, 2),
        ([1] * 9, 0, 0),
        ([1] * 9, 20, 9),
        ([1] * 9, None, 9),
        ([1, 2] * 4 + [1], 3, None),
    ],
)
def test_a_leader_with_a_budget_chooses_as_the_solver_does(weights, budget, most):
    form = game(weights, budget)
    leader = player(form, True)
    assert leader.most == most if most is not None else isinstance(leader, Linear)
    costs = np.random.default_rng(0).normal(size=(20, 9)).round(1)
    x = leader.solve(costs, np.zeros((20, 9))).values
    assert np.isin(x, (0, 1)).all()
    assert budget is None or (x @ weights <= budget).all()
    solver = Mip(form.base.lower[:9], form.base.upper[:9], form.base.integer[:9], _own(form))
    np.testing.assert_allclose((costs * x).sum(1), (costs * solver.solve(costs).values).sum(1), atol=1e-9)


def _own(form):
    rows = form.base.leader_rows
    return type(rows)(rows.matrix[:, :9], rows.lower, rows.upper)


def test_a_leader_with_other_rules_is_left_to_the_solver():
    for form in (game([1] * 9, 3, least=2), game([1] * 9, None, least=2)):
        assert not isinstance(player(form, True), Budget)
