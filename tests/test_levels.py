"""One player's problem with the other's decision held: a leader with a mere budget is answered without a solver."""

import numpy as np
import pytest
import torch

import bigrad as bg
from bigrad.gradients import levels

cp_model = pytest.importorskip("ortools.sat.python.cp_model")


def game(weights: list[int], budget: int | None, least: int = 0) -> bg.Program:
    """A leader of weighted blocks against a path over a 3 x 3 map."""
    leader = cp_model.CpModel()
    x = [leader.new_bool_var(f"x{k}") for k in range(9)]
    if budget is not None:
        leader.add(sum(w * v for w, v in zip(weights, x, strict=True)) <= budget)
    if least:
        leader.add(sum(x) >= least)
    return bg.bilevel(leader, bg.GridPath(3, 3, clamp=0.0), costs={"w": range(9), "d": list(enumerate(x))})


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
    form = game(weights, budget).combinatorial
    mip, _ = levels._level(form, True)
    assert levels._at_most(mip) == most
    costs = np.random.default_rng(0).normal(size=(20, 9)).round(1)
    x = levels.Level(form, True, np.zeros((20, 9))).solve(costs)
    assert within(x, weights, budget)
    np.testing.assert_allclose((costs * x).sum(1), (costs * mip.solve(costs).values).sum(1), atol=1e-9)


def within(x: np.ndarray, weights: list[int], budget: int | None) -> bool:
    return bool(np.isin(x, (0, 1)).all() and (budget is None or (x @ weights <= budget).all()))


def test_a_leader_with_other_rules_is_left_to_the_solver():
    for program in (game([1] * 9, 3, least=2), game([1] * 9, None, least=2)):
        assert levels._at_most(levels._level(program.combinatorial, True)[0]) is None


@pytest.mark.parametrize("rule", [bg.Interpolate(), bg.Perturbed(sigma=1.0, samples=8, draws=bg.Common(0))], ids=repr)
def test_gradients_are_those_of_the_solver(rule, monkeypatch):
    rng = np.random.default_rng(1)
    w, d = (torch.tensor(rng.uniform(1, 5, shape), requires_grad=True) for shape in ((6, 9), 9))
    push = torch.as_tensor(rng.normal(size=(2, 6, 9)))

    def gradients() -> tuple[torch.Tensor, ...]:
        x, y = bg.Layer(game([1] * 9, 2), gradient=rule)(w, d)
        return torch.autograd.grad((x * push[0]).sum() + (y * push[1]).sum(), (w, d))

    fast = gradients()
    monkeypatch.setattr(levels, "_at_most", lambda mip: None)
    for one, other in zip(fast, gradients(), strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other)
