"""Estimators on a 4 x 4 interdiction game with every response tried: unbiased jointly, and what level by level they find."""

import numpy as np
import pytest
import torch
from games import Blockade
from numpy.testing import assert_allclose, assert_array_equal
from oracles import Choice
from test_nested_programs import CpSat, MathOpt

import bigrad as bg
from bigrad.gradients.levels import Level, supported

GAME = Blockade(1)


def tables(seed, count):
    """z and d, (count, tiles) each."""
    return np.random.default_rng(seed).uniform(1, 3, (2, count, 16))


def leaves(costs):
    return [torch.tensor(c, requires_grad=True) for c in costs]


def pulled(layer, costs, push):
    """Decisions of both, and the gradients in both costs."""
    given = leaves(costs)
    found = torch.cat(layer(*given), -1)
    push = torch.as_tensor(push).expand_as(found)
    grads = torch.autograd.grad(found, given, push, allow_unused=True, materialize_grads=True)
    return found.detach().numpy(), [g.numpy() for g in grads]


def within(samples, exact, exact_error, errors=4):
    """The mean of independent samples (k, n) is an estimate of `exact`, itself known up to an error."""
    error = np.sqrt(samples.var(0, ddof=1) / len(samples) + exact_error**2)
    assert (abs(samples.mean(0) - exact) <= errors * error + 1e-12).all(), (samples.mean(0), exact, error)


# The reference.


@pytest.mark.parametrize("budget", [1, 2])
def test_enumeration_is_the_exact_solver(budget):
    game = Blockade(budget)
    z, d = tables(0, 16)
    x, y = game.answers(z, d)
    found = bg.Layer(game.program(follower=bg.GridPath(4, 4)))(torch.tensor(z), torch.tensor(d))
    assert_array_equal(np.stack(found), [x, y])
    assert_array_equal(game.solve(game.program(), (z, d)).w, np.hstack([x, y]))
    assert_array_equal(game.solve(game.program(maximise=True), (-z, -d)).w, np.hstack([x, y]))


def test_the_reference_is_the_slope_of_the_smoothed_decisions():
    """By differences with common random numbers, along the gradient itself."""
    rng, sigma, h = np.random.default_rng(3), 0.7, 0.2
    z, d = tables(3, 1)[:, 0]
    push = rng.normal(size=32)
    slope, error = GAME.smoothed(z, d, sigma, push, rng, 50_000)
    along = slope / np.linalg.norm(slope)
    noise = sigma * rng.standard_normal((50_000, 32))
    ends = [np.hstack(GAME.answers(*np.hsplit([*z, *d] + noise + s * h * along, 2))) @ push for s in (1, -1)]
    each = (ends[0] - ends[1]) / (2 * h)
    spread = np.hypot(each.std() / np.sqrt(len(each)), error.max())
    assert abs(each.mean() - slope @ along) <= 4 * spread + 0.02 * abs(slope @ along)  # h is not zero
    assert slope @ along > 20 * spread


# Unbiased.


@pytest.mark.parametrize("rule", [bg.Perturbed, bg.Score], ids=["perturbed", "score"])
@pytest.mark.parametrize(("budget", "sigma"), [(1, 0.5), (1, 1.5), (2, 0.5)])
def test_joint_gradients_are_unbiased(rule, budget, sigma):
    game, rng = Blockade(budget), np.random.default_rng(budget)
    z, d = tables(5, 1)[:, 0]
    push = rng.normal(size=32)
    exact, error = game.smoothed(z, d, sigma, push, rng, 60_000)
    layer = bg.Layer(game.program(), gradient=bg.Joint(rule(sigma, 16, draws=bg.Fresh(7))), solver=game)
    costs = [np.broadcast_to(c, (2000, 16)) for c in (z, d)]
    _, grads = pulled(layer, costs, push)
    assert abs(exact).max() > 20 * error.max()
    within(np.hstack(grads), exact, error)


@pytest.mark.parametrize("rule", [bg.Perturbed, bg.Score], ids=["perturbed", "score"])
def test_one_level_is_unbiased(rule):
    rng, path, sigma = np.random.default_rng(1), Choice(GAME.paths), 0.6
    z = rng.uniform(1, 3, 16)
    push, noise = rng.normal(size=16), rng.standard_normal((200_000, 16))
    reward = path.solve(z + sigma * noise) @ push
    own = noise * ((reward - reward.mean()) / sigma)[:, None]
    (costs,) = leaves([np.tile(z, (4000, 1))])
    (rule(sigma, 16, draws=bg.Fresh(2))(path)(costs) @ torch.tensor(push)).sum().backward()
    within(costs.grad.numpy(), own.mean(0), own.std(0) / np.sqrt(len(own)))


@pytest.mark.parametrize("maximise", [False, True], ids=["min", "max"])
def test_fenchel_young_is_unbiased(maximise):
    """Its gradient is what was seen less the mean decision, here with the mean over every path."""
    rng, path, sigma = np.random.default_rng(2), Choice(GAME.paths, maximise), 0.6
    sign = -1.0 if maximise else 1.0
    z = rng.uniform(1, 3, 16)
    seen = Choice(GAME.paths).solve(rng.uniform(1, 3, (1, 16)))
    decisions = path.solve(sign * (z + sigma * rng.standard_normal((200_000, 16))))
    (costs,) = leaves([np.tile(sign * z, (4000, 1))])
    loss = bg.losses.FenchelYoung(path, smoothing=bg.Perturbed(sigma, 16, draws=bg.Fresh(3)), reduction="sum")
    loss(costs, torch.tensor(np.tile(seen, (4000, 1)))).backward()
    within(costs.grad.numpy(), sign * (seen[0] - decisions.mean(0)), decisions.std(0) / np.sqrt(len(decisions)))


# Level by level.


def test_the_leaders_costs_are_moved_to_where_it_decides_as_it_did():
    """With the path held, blocking a tile that it could walk around looks better than it is."""
    z, d = tables(1, 40)
    x, y = GAME.answers(z, d)
    form = GAME.program().combinatorial
    costs = form.on_level([z, d], True, y)
    answers = Level(form, True, y).solve(costs)
    apart = (answers != x).any(1)
    assert 5 < apart.sum() < 40
    moved = supported(form, y, costs, x)
    assert_array_equal(moved[~apart], costs[~apart])
    best = (Level(form, True, y).solve(moved) * moved).sum(1)
    assert_allclose((moved * x).sum(1), best, atol=1e-7)
    assert (np.linalg.norm(moved - costs, axis=1) < np.linalg.norm(costs, axis=1)).all()


@pytest.mark.parametrize(
    "rule", [bg.Identity(), bg.Identity(bg.MeanFree()), bg.Identity(bg.UnitNorm()), bg.Interpolate()], ids=repr
)
def test_the_unit_of_costs_does_not_change_the_direction(rule):
    """Between the players, too: a pass-through of -1 would weigh one player's push by the other's costs."""
    layer = bg.Layer(GAME.program(), gradient=bg.Levels(rule), solver=GAME)
    push, costs = np.random.default_rng(4).normal(size=(12, 32)), tables(4, 12)
    _, one = pulled(layer, costs, push)
    _, ten = pulled(layer, 10 * costs, push)
    one, ten = np.hstack(one), np.hstack(ten)
    assert_allclose(ten / abs(ten).max(), one / abs(one).max(), atol=1e-9)


def test_pass_through_between_the_players_is_its_formula():
    z, d = (t[0] for t in tables(6, 1))
    (x,), (y,) = GAME.answers(z[None], d[None])
    push = np.random.default_rng(0).normal(size=32)
    gx, gy = push[:16], push[16:]
    _, (in_z, in_d) = pulled(bg.Layer(GAME.program(), gradient=bg.Identity(), solver=GAME), (z, d), push)
    ga = -(gx - d * gy / np.linalg.norm(z + d * x))  # the leader pays -d y, the follower z + d x
    gb = -(gy + d * gx / np.linalg.norm(d * y))
    assert_allclose(in_z, gb)
    assert_allclose(in_d, x * gb - y * ga)


LEARNERS = {
    "interpolate": (bg.Interpolate, 0.3, 100),
    "identity": (bg.Identity, 0.1, 100),
    "perturbed": (lambda: bg.Perturbed(1.0, 16, draws=bg.Fresh(0)), 0.3, 60),
}


def recovered(game, rule, rate, steps, seed, count=20):
    """How many planted pairs of decisions descent on their Hamming distance finds and keeps; all games are one batch."""
    z, d = leaves(tables(seed + 1000, count))
    target = torch.tensor(np.hstack(game.answers(*tables(seed, count))))
    layer = bg.Layer(game.program(), gradient=rule, solver=game)
    for _ in range(steps):
        loss = ((torch.cat(layer(z, d), 1) - target) ** 2).sum()
        slopes = torch.autograd.grad(loss, (z, d), allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            z, d = ((t - rate * g).clamp_(min=0.01).requires_grad_() for t, g in zip((z, d), slopes, strict=True))
    return int((torch.cat(layer(z, d), 1) == target).all(1).sum())


@pytest.mark.parametrize("name", LEARNERS)
def test_planted_pairs_are_recovered(name):
    rule, rate, steps = LEARNERS[name]
    assert recovered(GAME, rule(), rate, steps, 0) >= 18


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_planted_pairs_are_recovered_in_other_games_too(name):
    rule, rate, steps = LEARNERS[name]
    assert sum(recovered(GAME, rule(), rate, steps, seed) for seed in range(1, 5)) >= 72
    assert recovered(Blockade(2), rule(), rate, steps, 0) >= 16


# Mirrors, and batches.

RULES = {
    "interpolate": lambda: bg.Interpolate(),
    "identity": lambda: bg.Identity(),
    "identity projected": lambda: bg.Identity(bg.UnitNorm()),
    "perturbed": lambda: bg.Perturbed(0.7, 6, draws=bg.Common(1)),
    "imle": lambda: bg.IMLE(0.7, 6, draws=bg.Common(1)),
    "score": lambda: bg.Score(0.7, 6, antithetic=True, draws=bg.Common(1)),  # adds its noise: only pairs mirror
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
ways = pytest.mark.parametrize("way", [bg.Levels, bg.Joint], ids=["levels", "joint"])


@each_rule
@ways
def test_a_maximising_follower_mirrors(rule, way):
    costs, push = tables(2, 5), np.random.default_rng(2).normal(size=32)
    one, other = (
        pulled(bg.Layer(GAME.program(turned), gradient=way(rule()), solver=GAME), sign * costs, push)
        for turned, sign in ((False, 1), (True, -1))
    )
    assert_allclose(one[0], other[0], atol=1e-12)
    for a, b in zip(one[1], other[1], strict=True):
        assert_allclose(a, -b, atol=1e-9)
    assert np.hstack(one[1]).any()


@each_rule
@ways
@pytest.mark.parametrize("front", [CpSat, MathOpt], ids=["CP-SAT", "MathOpt"])
def test_two_models_that_maximise_mirror(rule, way, front):
    """Each with an objective of its own: the leader is paid for the follower's decision too."""
    costs = np.random.default_rng(3).uniform(1, 3, (2, 2, 3))
    push = np.random.default_rng(4).normal(size=6)
    found = [pulled(bg.Layer(couple(front, sign), gradient=way(rule())), sign * costs, push) for sign in (1, -1)]
    assert_allclose(found[0][0], found[1][0], atol=1e-12)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert_allclose(a, -b, atol=1e-9)
    assert np.hstack(found[0][1]).any()


def couple(front, sign):
    """Three tasks: the leader pays z for each that it takes itself, and the follower, who must do the rest but one, w."""
    leader, follower = front.model(), front.model()
    x, given = front.variables(leader, 3, 0, 1, "x"), front.variables(follower, 3, 0, 1, "given")
    seen, y = front.variables(leader, 3, 0, 1, "seen"), front.variables(follower, 3, 0, 1, "y")
    front.row(leader, sum(x), 1, 2)
    front.row(follower, sum(given) + sum(y), 2, 6)
    for a, b in zip(given, y, strict=True):
        front.row(follower, a + b, 0, 1)
    paid, own = sum(x) + 2 * seen[0] + 3 * seen[1] + seen[2], sum(y)
    for model, form in ((leader, paid), (follower, own)):
        model.minimize(form) if sign > 0 else model.maximize(-form)
    link, responds = dict(zip(x, given, strict=True)), dict(zip(y, seen, strict=True))
    return bg.bilevel(leader, follower, link=link, responds=responds, costs={"z": x, "w": y})


@each_rule
@ways
def test_the_size_of_a_batch_does_not_change_the_scale(rule, way):
    """Each item's gradient is what it gets alone; of a mean over the batch, that divided by the batch's size."""
    costs, push = tables(8, 6), np.random.default_rng(8).normal(size=(6, 32))
    layer = bg.Layer(GAME.program(), gradient=way(rule()), solver=GAME)
    _, together = pulled(layer, costs, push)
    _, mean = pulled(layer, costs, push / 6)
    for a, b in zip(together, mean, strict=True):
        assert_allclose(a / 6, b, atol=1e-9)
    for i in range(6):
        _, alone = pulled(layer, costs[:, i], push[i])
        for a, b in zip(together, alone, strict=True):
            assert_allclose(a[i], b, atol=1e-9)
    assert np.hstack(together).any()
