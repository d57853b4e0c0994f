"""Warm starts: never worse than what was handed in, whatever the solver, and gradients and flags that do not depend on them."""

import copy
import pickle

import cvxpy as cp
import numpy as np
import pytest
import torch
from helpers import SHAPES, case, random_atoms, random_quadratic

import bigrad as bg
from bigrad.algebra.affine import flatten
from bigrad.datasets import textbook

SOLVERS = [bg.Auto(), bg.Pieces(starts=2, nodes=0), bg.Relaxation(starts=2)]
TOLERANCE = 1e-7


def moved(values, seed):
    """Other values for the parameters that are vectors, and the same for those that make the matrices."""
    rng = np.random.default_rng(seed)
    return {p: v + 0.2 * rng.standard_normal(v.shape) if p.name() in "wcr target" else v for p, v in values.items()}


def on_the_sides_of(program, values, point) -> float:
    """The least upper objective, by Clarabel, with every pair on the side that it has in `point`; inf if there is none."""
    d = program.quadratic(
        tuple(flatten(np.asarray(values[i.handle], dtype=float), len(i.shape)) for i in program.inputs)
    )
    x, y = cp.Variable(d.B.shape[1]), cp.Variable(d.A.shape[1])
    lam, nu = cp.Variable(len(d.b), nonneg=True), cp.Variable(len(d.h))
    z, slack = cp.hstack([x, y]), d.b - d.A @ y - d.B @ x
    rows = [d.P @ y + d.C @ x + d.p + d.A.T @ lam + d.H.T @ nu == 0, slack >= 0, d.G @ z <= d.g, d.E @ z == d.e]
    rows += [d.H @ y + d.K @ x == d.h, cp.multiply(point.tight, slack) == 0, cp.multiply(~point.tight, lam) == 0]
    problem = cp.Problem(cp.Minimize(cp.quad_form(z, cp.psd_wrap(d.Q)) / 2 + d.c @ z + d.c0), rows)
    problem.solve(solver=cp.CLARABEL)
    return float(problem.value) if problem.status == cp.OPTIMAL else np.inf


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_never_worse_on_random_quadratic_programs(solver):
    for seed in range(12):
        made = random_quadratic(SHAPES[seed % 3], seed)
        program, sense = made.program, made.sense
        first = program.solve(made.values, solver=solver)
        again = program.solve(made.values, solver=solver, warm_start=first)
        assert first.status.ok
        assert again.status.ok
        assert sense * again.value <= sense * first.value + TOLERANCE * (1 + abs(first.value)), seed
        assert again.stats.singular == first.stats.singular
        there = moved(made.values, seed)
        warm = program.solve(there, solver=solver, warm_start=first)
        limit = on_the_sides_of(program, there, first.point)
        if np.isfinite(limit):
            assert sense * warm.value <= limit + TOLERANCE * (1 + abs(limit)), (seed, warm.value, limit)


@pytest.mark.parametrize("solver", [bg.Auto(), bg.Relaxation(starts=2)], ids=lambda s: type(s).__name__)
def test_never_worse_on_random_atoms_and_across_solvers(solver):
    for seed in range(10):
        made = random_atoms(seed)
        first = made.program.solve(made.values, solver=solver)
        for other in (solver, bg.Relaxation(starts=1)):
            again = made.program.solve(made.values, solver=other, warm_start=first)
            assert again.status.ok == first.status.ok
            if first.status.ok:
                gain = made.sense * (first.value - again.value)
                assert gain >= -TOLERANCE * (1 + abs(first.value)), (seed, other, first.value, again.value)


@pytest.mark.parametrize("solver", [bg.Auto(), bg.Relaxation(starts=2)], ids=lambda s: type(s).__name__)
def test_never_worse_on_textbook_programs(solver):
    for problem in textbook():
        if problem.coefficients is None:
            continue
        upper, lower, _, y = problem.program_parts()
        program = bg.bilevel(upper, lower, responds=[y])
        first = program.solve(solver=solver)
        if not first.status.ok:
            continue
        again = program.solve(solver=solver, warm_start=first)
        gain = program.sign * (first.value - again.value)
        assert again.status.ok, problem.name
        assert gain >= -TOLERANCE * (1 + abs(first.value)), (problem.name, first.value, again.value)


def layer_and_inputs(batch: int):
    made = random_quadratic(SHAPES[1], 5)
    for p, v in made.values.items():
        p.value = v
    w = next(p for p in made.values if p.name() == "w")
    layer = bg.Layer(made.program, [w], [*made.leader, *made.responds])
    drawn = np.random.default_rng(0).standard_normal((batch, *w.shape))
    return layer, torch.tensor(made.values[w] + 0.2 * drawn, requires_grad=True)


def pulled(outputs, inputs):
    return torch.autograd.grad(sum((o * o.detach().cos()).sum() for o in outputs), inputs)[0]


def test_two_epochs_with_a_memory():
    layer, w = layer_and_inputs(8)
    memory = bg.Memory()
    for epoch in range(2):
        for keys in torch.randperm(8).split(3):
            inputs = w[keys].detach().requires_grad_()
            recall = memory.at(keys)
            before = list(recall)
            assert [p is None for p in before] == [epoch == 0] * len(keys)
            warm, cold = layer(inputs, warm_start=recall), layer(inputs)
            for a, b in zip([*warm, pulled(warm, inputs)], [*cold, pulled(cold, inputs)], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)
            solutions = recall.solutions
            assert [s.stats.starts == 1 for s in solutions] == [epoch == 1] * len(keys)
            for k, item in enumerate(layer.solve(inputs)):
                assert solutions[k].value == pytest.approx(item.value)
                assert solutions[k].lower_value == pytest.approx(item.lower_value)
    assert len(memory) == 8
    assert len(pickle.loads(pickle.dumps(memory))) == len(copy.deepcopy(memory)) == 8
    memory.clear()
    assert len(memory) == 0


def test_the_solutions_of_a_call_keep_its_inputs():
    layer, w = layer_and_inputs(2)
    recall = bg.Memory().at(["a", "b"])
    values = w.detach().clone()
    layer(values, warm_start=recall)
    expected = [s.lower_value for s in layer.solve(w.detach())]
    values += 100
    assert [s.lower_value for s in recall.solutions] == pytest.approx(expected)


def test_an_item_that_fails_keeps_what_is_known_of_it():
    x, y, p = cp.Variable(name="x", bounds=[0, 1]), cp.Variable(name="y"), cp.Parameter(name="p")
    program = case(cp.square(y - 1) + x, cp.square(y - x), y, below=[y >= p]).program
    layer = bg.Layer(program, [p], [x, y], on_failure="nan")
    memory = bg.Memory()
    layer(torch.tensor([0.5, 0.2]), warm_start=memory.at([0, 1]))
    known = memory.at([0])[0]
    layer(torch.tensor([float("nan"), 0.3]), warm_start=memory.at([0, 2]))
    assert memory.at([0])[0] is known
    assert memory.at([5])[:] == [None]
    assert len(memory) == 3


def test_what_does_not_fit_is_refused():
    layer, w = layer_and_inputs(2)
    with pytest.raises(bg.InputError, match="warm_start has 3 Solutions for a batch of 2"):
        layer(w, warm_start=bg.Memory().at(range(3)))
    with pytest.raises(RuntimeError, match="have not been solved yet"):
        _ = bg.Memory().at([0]).solutions
    memory = bg.Memory()
    layer(w, warm_start=memory.at(range(2)))
    x, y = cp.Variable(), cp.Variable()
    other = bg.Layer(case(cp.square(x - 1) + cp.square(y), cp.square(y - x), y).program, [], [x])
    with pytest.raises(bg.InputError, match="of another program"):
        other(warm_start=memory.at([0]))


def test_a_singular_solution_is_still_called_so():
    x, y, p = cp.Variable(name="x"), cp.Variable(2, name="y"), cp.Parameter(name="p")
    program = case(cp.square(x - p), cp.square(cp.sum(y) - x), y).program
    first = program.solve({p: 1.0}, solver=bg.Pieces(exhaustive=0))
    warm = program.solve({p: 2.0}, solver=bg.Pieces(exhaustive=0), warm_start=first)
    assert first.stats.singular
    assert warm.stats.singular
