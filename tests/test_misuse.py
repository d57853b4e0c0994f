"""What goes wrong at a first try, and what the user is told."""

import numpy as np
import pytest
import torch
from ortools.sat.python import cp_model

import bigrad as bg
from bigrad.gradients.levels import Levels
from bigrad.losses import FenchelYoung, Regret, SPOPlus

START = torch.zeros(3, dtype=torch.float64)


def near(x, y):
    return ((y - x) ** 2).sum() + 0.1 * (y**4).sum()


# Lower levels written in torch


@pytest.mark.parametrize("inner", [lambda x, y: (x * y).sum(), lambda x, y: -((y - x) ** 2).sum()])
def test_a_lower_level_without_a_minimum_is_no_answer(inner):
    layer, x = bg.Layer(bg.argmin(inner, responds=START)), torch.ones(3, dtype=torch.float64)
    solution = layer.solve(x)[0]
    assert solution.status is bg.Status.UNBOUNDED_LOWER
    assert "Box" in solution.stats.cause
    with pytest.raises(bg.SolveError, match="falls along a line"):
        layer(x)


def test_a_minimum_far_away_is_still_found():
    layer = bg.Layer(bg.argmin(lambda x, y: ((y - x) ** 2).sum(), responds=START))
    x = torch.tensor([1e6, -1e7, 3.0], dtype=torch.float64)
    torch.testing.assert_close(layer(x), x)


def test_an_inner_loss_that_changes_x_is_refused():
    x = {"a": [torch.ones(3, dtype=torch.float64)]}
    layer = bg.Layer(bg.argmin(lambda x, y: (x["a"][0].sub_(y) ** 2).sum(), responds=START))
    with pytest.raises(bg.InputError, match="in place"):
        layer(x)


def test_data_may_be_changed_in_place():
    seen, layer = torch.zeros(1), bg.Layer(bg.argmin(lambda x, y, calls: near(x, y) + 0 * calls.add_(1).sum(), START))
    layer(torch.ones(3, dtype=torch.float64), seen)
    assert seen > 1


def test_inference_mode_gives_the_answer():
    layer = bg.Layer(bg.argmin(near, responds=START))
    x = torch.linspace(-1, 2, 3, dtype=torch.float64)
    with torch.inference_mode():
        inside, solved = layer(x + 1), layer.solve(x + 1)[0]  # x + 1 is an inference tensor
    torch.testing.assert_close(inside, layer(x + 1))
    assert solved.status is bg.Status.LOCAL
    assert not inside.requires_grad


# Objects, not names


@pytest.mark.parametrize("solver", ["adam", bg.Descent])
def test_a_solver_is_an_object(solver):
    with pytest.raises(bg.InputError, match=r"solver=.*give a solver object"):
        bg.Layer(bg.argmin(near, responds=START), solver=solver)


@pytest.mark.parametrize("gradient", ["implicit", bg.EqProp])
def test_a_gradient_is_an_object(gradient):
    with pytest.raises(bg.InputError, match=r"gradient=.*give a rule as an object"):
        bg.Layer(bg.argmin(near, responds=START), gradient=gradient)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: bg.Pieces(starts=-2), r"Pieces\(starts=-2\): give a whole number of at least 1"),
        (lambda: bg.Pieces(starts=1.5), r"starts=1\.5"),
        (lambda: bg.Pieces(nodes="a"), "nodes='a'"),
        (lambda: bg.Pieces(time_limit=-1), r"time_limit=-1\): give seconds, zero or more, or None"),
        (lambda: bg.Relaxation(seed="a"), "seed='a'"),
        (lambda: bg.Relaxation(max_iterations=-3), "at least 0"),
        (lambda: bg.Sparse(max_iterations=0), "at least 1"),
        (lambda: bg.Interior(max_iterations=0), "at least 1"),
        (lambda: bg.ActiveSet(time_limit=float("nan")), "seconds, zero or more"),
        (lambda: bg.Mehrotra(iterations=0), "at least 1"),
        (lambda: bg.Global(gap="a"), r"gap='a'\): give a finite gap"),
        (lambda: bg.Global(starts=0), "at least 1"),
        (lambda: bg.Spread(n_jobs=0), "give the number of processes"),
        (lambda: bg.Spread(solver="pieces"), "give a solver object"),
    ],
)
def test_settings_that_mean_nothing_are_refused(build, words):
    with pytest.raises(bg.InputError, match=words):
        build()


def test_losses_name_the_rules_that_they_take():
    with pytest.raises(bg.InputError, match=r"give Perturbed\(…\) or Regularised"):
        FenchelYoung(bg.TopK(3, 1), smoothing=bg.Identity())
    with pytest.raises(bg.InputError, match="rule for decisions"):
        Regret(bg.TopK(3, 1), rule=bg.Unrolled())


# Oracles


def test_rules_take_the_oracle_before_the_costs():
    with pytest.raises(bg.InputError, match="Costs come after it"):
        bg.Identity()(torch.ones(3))
    for given in (bg.TopK(3, 1), np.argmin):
        with pytest.raises(bg.InputError, match=r"Perturbed\(sigma=0.5\)\(oracle\)\(costs\)"):
            bg.Perturbed(given)


@pytest.mark.parametrize("wrap", [bg.Joint, Levels])
@pytest.mark.parametrize("rule", [bg.Implicit(), bg.Interpolate, "Interpolate"])
def test_levels_are_estimated_by_estimators(wrap, rule):
    with pytest.raises(bg.InputError, match="give an estimator"):
        wrap(rule)


def test_a_function_without_a_return_is_told_so():
    with pytest.raises(bg.InputError, match=r"returned None at row 0.*return"):
        bg.Identity()(lambda c: None)(torch.ones(3))


@pytest.mark.parametrize(
    "answer", ["abc", {"a": 1}, [[1], [2, 3]], np.ones(3) * 1j, np.array([None, 1, 2]), np.zeros((1, 3)), []]
)
@pytest.mark.parametrize("make", [lambda f: f, bg.Given])
def test_an_answer_that_is_no_decision_is_refused(make, answer):
    with pytest.raises(bg.InputError, match="returned"):
        bg.Interpolate()(make(lambda c: answer))(torch.ones(3))


@pytest.mark.parametrize("rule", [bg.Interpolate(), bg.Identity(), bg.IMLE(), bg.Regularised()])
@pytest.mark.parametrize("answer", [1.0, [1.0, 0.0]])
def test_costs_must_multiply_what_is_decided(rule, answer):
    """Told on the way forward, not by numpy on the way back."""
    with pytest.raises(bg.InputError, match="features of its decisions have shape"):
        rule(lambda c: answer)(torch.ones(3))


@pytest.mark.filterwarnings("error")
def test_a_function_may_return_a_tensor():
    decide = bg.Perturbed(sigma=0.1, samples=4)(lambda c: torch.tensor(c, requires_grad=True).clamp(max=0.0))
    assert decide(torch.tensor([5.0, -5.0]))[0] == 0


def test_an_oracle_whose_costs_the_leader_does_not_touch():
    leader = cp_model.CpModel()
    leader.add(leader.new_bool_var("x") <= 1)
    with pytest.raises(bg.DeclarationError, match="pairs of an index"):
        bg.bilevel(leader, bg.GridPath(2, 2), costs={"w": range(4)})


@pytest.mark.parametrize("rows", [1, 3])
def test_samples_are_not_shared_out_among_the_wrong_feasible_sets(rows):
    two = bg.Knapsack([1, 2, 3], capacity=[1, 6])  # 16 samples of each row, or SPO+'s two solves, are a multiple of 2
    costs = torch.ones(rows, 3)
    for ask in (
        bg.Perturbed()(two),
        lambda c: SPOPlus(two)(c, c),
        bg.Perturbed()(bg.Given(two.solve, True, items=[0, 1])),
    ):
        with pytest.raises(bg.InputError, match=rf"{rows} items of costs for 2 feasible sets"):
            ask(costs)
    assert bg.Perturbed(0.01)(two.at([1]))(costs).sum() == 3 * rows


def test_a_warm_start_of_another_form_is_refused():
    layer, x = bg.Layer(bg.argmin(near, responds=START)), torch.ones(3, dtype=torch.float64)
    for start in ("last", torch.zeros(4), {"w": START}, bg.Memory().at([0, 1])):
        with pytest.raises(bg.InputError, match=r"warm_start is .*; needed is y in the form of responds"):
            layer(x, warm_start=start)
