"""Nested integer programs travel: pickled, rebuilt in other processes and on a cluster, with the same answers."""

import pickle

import numpy as np
import pytest
import torch
from ortools.sat.python import cp_model
from test_mixed import game
from test_nested_programs import CpSat, MathOpt, interdiction, random_game
from test_spread import RAISES, Fragile, backend

import bigrad as bg
from bigrad.processes import Lost
from bigrad.solution import Outcome, Status
from bigrad.solvers.spread import _missing

__all__ = ["backend"]


def circuit():
    """A follower whose constraints no rows can say; the costs as an array of variables."""
    leader, follower, n = cp_model.CpModel(), cp_model.CpModel(), 4
    arcs = [(i, j) for i in range(n) for j in range(n) if i != j]
    x, y = ([m.new_bool_var(f"{name}{e}") for e in arcs] for m, name in ((leader, "x"), (follower, "y")))
    leader.add(sum(x) <= 2)
    follower.add_circuit([(i, j, a) for (i, j), a in zip(arcs, y, strict=True)])
    pairs = list(zip(y, x, strict=True))
    return bg.bilevel(leader, follower, responds=y, costs={"w": np.array(y, dtype=object).reshape(3, 4), "d": pairs})


def cheapest(costs):
    """The three cheapest, as a function of a user's own."""
    found = np.zeros_like(costs)
    found[np.argsort(costs)[:3]] = 1.0
    return found


def against(follower, size=9):
    leader = cp_model.CpModel()
    x = [leader.new_bool_var(f"x{k}") for k in range(size)]
    leader.add(sum(x) <= 2)
    return bg.bilevel(leader, follower, costs={"w": range(size), "d": list(enumerate(x))})


def alone():
    model = cp_model.CpModel()
    y = [model.new_bool_var("") for _ in range(5)]
    model.add(sum(y) == 2)
    return bg.argmin(model, costs={"c": y})


MADE = {
    "CP-SAT": lambda: random_game(CpSat, 1, ("z", "w"))[0],
    "MathOpt": lambda: random_game(MathOpt, 1, ("z", "w"))[0],
    "products": lambda: interdiction(CpSat, 2, True)[0],
    "pairs": lambda: interdiction(MathOpt, 2)[0],
    "circuit": circuit,
    "oracle": lambda: against(bg.GridPath(3, 3)),
    "function": lambda: against(cheapest),
    "lambda": lambda: against(lambda c: (c < np.median(c)).astype(float)),
    "one level": alone,
    "CVXPY": lambda: game(1)[0],
}
made = pytest.mark.parametrize("make", MADE.values(), ids=MADE)


def drawn(program, batch):
    generator = torch.Generator().manual_seed(0)
    return [1 + torch.rand(batch, *i.shape, generator=generator, dtype=torch.float64) for i in program.inputs]


def answers(program, solver, costs):
    return [(s.status, s.value) for s in bg.Layer(program, solver=solver).solve(*costs)]


def test_programs_are_rebuilt_elsewhere_with_the_same_answers(backend):
    for name, make in MADE.items():
        program = make()
        costs = drawn(program, 4)
        here = answers(program, bg.Cuts(), costs)
        there = answers(program, bg.Spread(n_jobs=2, chunk=2), costs)
        assert [s for s, _ in there] == [s for s, _ in here], name
        assert [v for _, v in there] == pytest.approx([v for _, v in here]), name
        assert here[0][0] is Status.GLOBAL, name


@made
def test_a_rebuilt_program_is_the_same_arrays(make):
    program = make()
    if program.combinatorial.follower is not None and "lambda" in repr(program.combinatorial.follower):
        return
    again = pickle.loads(pickle.dumps(program))
    assert [i.shape for i in again.inputs] == [i.shape for i in program.inputs]
    assert [(u.name, u.shape, u.leader) for u in again.unknowns] == [
        (u.name, u.shape, u.leader) for u in program.unknowns
    ]
    one, two = program.combinatorial, again.combinatorial
    for a, b in zip(one.places, two.places, strict=True):
        assert (a.leader, a.sense) == (b.leader, b.sense)
        assert (a.one == b.one).all()
        assert (a.other == b.other).all()
    for part in ("leader_rows", "follower_rows"):
        a, b = getattr(one.base, part), getattr(two.base, part)
        assert abs(a.matrix - b.matrix).sum() == 0
        assert (a.lower == b.lower).all()
        assert (a.upper == b.upper).all()
    if one.models:
        assert (one.models.leader, one.models.follower) == (two.models.leader, two.models.follower)


@pytest.mark.parametrize("rule", [bg.Interpolate(), bg.Joint(bg.Interpolate())], ids=["levels", "joint"])
@pytest.mark.parametrize("name", ["MathOpt", "pairs", "CVXPY"])
def test_gradients_are_those_of_one_process(rule, name):
    program = MADE[name]()
    found = []
    for solver in (bg.Cuts(remember=False), bg.Spread(bg.Cuts(remember=False), n_jobs=2, chunk=2)):
        costs = [c.requires_grad_() for c in drawn(program, 4)]
        outputs = bg.Layer(program, solver=solver, gradient=rule)(*costs)
        sum((o * torch.arange(1.0, 1 + o.numel(), dtype=o.dtype).reshape(o.shape)).sum() for o in outputs).backward()
        found.append([*(o.detach() for o in outputs), *(c.grad for c in costs)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_bad_items_take_no_other_with_them():
    program = alone()
    costs = drawn(program, 5)[0]
    expected = answers(program, bg.Cuts(), [costs])
    costs[2] = RAISES
    found = bg.Layer(program, solver=bg.Spread(Fragile(bg.Cuts()), n_jobs=1, chunk=2, time_limit=10.0)).solve(costs)
    assert [s.status for s in found].index(Status.FAILED) == 2
    assert "on purpose" in found[2].stats.cause
    for k in (0, 1, 3, 4):
        assert found[k].value == pytest.approx(expected[k][1])
    lost = _missing(program, Lost(True, "It was late."), None)
    assert lost.w.shape == (1, 5)
    assert lost.status[0] is Status.TIME_LIMIT
    assert len(Outcome.join([lost, bg.Cuts().solve(program, (costs.numpy()[:2],))]).status) == 3


def test_a_time_limit_and_progress_for_long_calls(capsys):
    program = interdiction(MathOpt, 6)[0]
    solver = bg.Spread(n_jobs=2, time_limit=1e-6, progress=True)
    assert solver.choose(program)[0].solver == bg.Cuts()
    found = bg.Layer(program, solver=solver).solve(*drawn(program, 6))
    assert "6/6" in capsys.readouterr().err
    assert {s.status for s in found} <= {Status.OPEN, Status.TIME_LIMIT, Status.GLOBAL}
