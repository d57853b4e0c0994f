"""Estimators: each equals its formula; the unbiased ones meet the exact gradient of the smoothed map; minimising mirrors maximising."""

import copy
import pickle
from math import pi

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from oracles import Choice, contest, duel, one_hot
from scipy.special import softmax
from scipy.stats import norm

import bigrad as bg
from bigrad.gradients.perturbation import Additive, Multiplicative

COSTS = np.array([1.0, 2.0, 1.5])
PUSH = np.array([0.7, -1.0, 0.4])
MANY = 4000


def leaf(costs, repeat=None):
    t = torch.tensor(np.asarray(costs, dtype=float))
    return (t if repeat is None else t.repeat(repeat, 1)).requires_grad_()


def cheapest(costs):
    return np.eye(len(costs))[np.argmin(costs)]


def dearest(costs):
    return np.eye(len(costs))[np.argmax(costs)]


def pulled(function, costs, push):
    """Value, and vector-Jacobian product."""
    t = costs if isinstance(costs, torch.Tensor) else leaf(costs)
    value = function(t)
    (grad,) = torch.autograd.grad(value, t, torch.as_tensor(push, dtype=value.dtype).expand_as(value))
    return value.detach().numpy(), grad.numpy()


def within(samples, exact, errors=4):
    """The mean of independent samples (k, n) is exact up to some standard errors."""
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    assert (abs(samples.mean(0) - exact) <= errors * error + 1e-12).all(), (samples.mean(0), exact, error)


RULES = {
    "interpolate": lambda: bg.Interpolate(),
    "interpolate absolute": lambda: bg.Interpolate(bg.Absolute(0.8)),
    "identity": lambda: bg.Identity(),
    "identity normalised": lambda: bg.Identity(bg.Normalised()),
    "perturbed": lambda: bg.Perturbed(draws=bg.Common(1)),
    "perturbed gumbel": lambda: bg.Perturbed(noise=bg.Gumbel(), antithetic=True, draws=bg.Common(1)),
    "perturbed times": lambda: bg.Perturbed(
        sigma=0.5, perturbation=bg.Multiplicative(), baseline=bg.AtCentre(), draws=bg.Common(1)
    ),
    "imle": lambda: bg.IMLE(samples=5, draws=bg.Common(1)),
    "imle central": lambda: bg.IMLE(samples=5, central=True, draws=bg.Common(1)),
    "imle adaptive": lambda: bg.IMLE(samples=5, step=bg.Adaptive(beta=0.5), draws=bg.Common(1)),
    "regularised": lambda: bg.Regularised(0.7),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


# Formulas on a choice among three.


@pytest.mark.parametrize("length", [0.3, 0.8, 5.0])
def test_interpolate_is_the_slope_to_the_pushed_decision(length):
    value, grad = pulled(bg.Interpolate(bg.Absolute(length))(cheapest), COSTS, PUSH)
    assert_array_equal(value, cheapest(COSTS))
    assert_allclose(grad, (cheapest(COSTS + length * PUSH) - cheapest(COSTS)) / length)


def test_interpolate_relative_pushes_by_a_share_of_the_costs():
    length = 0.6 * np.linalg.norm(COSTS) / np.linalg.norm(PUSH)
    _, grad = pulled(bg.Interpolate(bg.Relative(0.6))(cheapest), COSTS, PUSH)
    assert grad.any()
    assert_allclose(grad, (cheapest(COSTS + length * PUSH) - cheapest(COSTS)) / length)


def test_interpolate_is_the_gradient_of_the_interpolation():
    """f(c) = L(y_lambda) - <c, y(c) - y_lambda> / lambda for a linear L, by finite differences."""
    g, length, h = PUSH, 0.8, 1e-6

    def interpolated(c):
        y, other = cheapest(c), cheapest(c + length * g)
        return g @ other - c @ (y - other) / length

    slope = [(interpolated(COSTS + h * e) - interpolated(COSTS - h * e)) / (2 * h) for e in np.eye(3)]
    assert_allclose(pulled(bg.Interpolate(bg.Absolute(length))(cheapest), COSTS, g)[1], slope, atol=1e-8)


def test_identity_is_minus_the_identity_for_costs_and_the_identity_for_values():
    assert_allclose(pulled(bg.Identity()(cheapest), COSTS, PUSH)[1], -PUSH)
    assert_allclose(pulled(bg.Identity()(dearest, maximise=True), COSTS, PUSH)[1], PUSH)


@pytest.mark.parametrize(
    ("projection", "formula"),
    [
        (bg.MeanFree(), lambda c: c - c.mean()),
        (bg.UnitNorm(), lambda c: c / c.norm()),
        (bg.Normalised(), lambda c: (c - c.mean()) / (c - c.mean()).norm()),
    ],
    ids=["MeanFree", "UnitNorm", "Normalised"],
)
def test_identity_differentiates_through_its_projection(projection, formula):
    seen = []

    def oracle(costs):
        seen.append(costs)
        return cheapest(costs)

    t = leaf(COSTS)
    (expected,) = torch.autograd.grad(formula(t), t, -torch.as_tensor(PUSH))
    assert_allclose(pulled(bg.Identity(projection)(oracle), COSTS, PUSH)[1], expected, atol=1e-12)
    assert_allclose(seen[0], formula(t).detach(), atol=1e-12)


def test_perturbed_is_its_formula():
    z = np.random.default_rng(3).standard_normal((6, 3))
    y = np.stack([cheapest(COSTS - 0.8 * row) for row in z])
    value, grad = pulled(bg.Perturbed(0.8, 6, baseline=None, draws=bg.Common(3))(cheapest), COSTS, PUSH)
    assert_allclose(value, y.mean(0))
    assert_allclose(grad, -(z * (y @ PUSH)[:, None]).mean(0) / 0.8)
    _, grad = pulled(bg.Perturbed(0.8, 6, draws=bg.Common(3))(cheapest), COSTS, PUSH)
    reward = (y @ PUSH - (y @ PUSH).mean()) * 6 / 5
    assert_allclose(grad, -(z * reward[:, None]).mean(0) / 0.8)
    _, grad = pulled(bg.Perturbed(0.8, 6, baseline=bg.AtCentre(), draws=bg.Common(3))(cheapest), COSTS, PUSH)
    assert_allclose(grad, -(z * (y @ PUSH - cheapest(COSTS) @ PUSH)[:, None]).mean(0) / 0.8)


def test_imle_is_its_formula_and_puts_the_noise_on_what_is_maximised():
    eps = bg.SumOfGamma(2.0).draw(np.random.default_rng(5), (7, 3))
    rule = bg.IMLE(0.9, 7, bg.SumOfGamma(2.0), bg.Absolute(1.3), draws=bg.Common(5))
    z = np.stack([cheapest(COSTS - 0.9 * e) for e in eps])
    other = np.stack([cheapest(COSTS + 1.3 * PUSH - 0.9 * e) for e in eps])
    behind = np.stack([cheapest(COSTS - 1.3 * PUSH - 0.9 * e) for e in eps])
    value, grad = pulled(rule(cheapest), COSTS, PUSH)
    assert_allclose(value, z.mean(0))
    assert_allclose(grad, (other - z).mean(0) / 1.3)
    central = bg.IMLE(0.9, 7, bg.SumOfGamma(2.0), bg.Absolute(1.3), central=True, draws=bg.Common(5))
    assert_allclose(pulled(central(cheapest), COSTS, PUSH)[1], (other - behind).mean(0) / 2.6)


def test_imle_without_noise_is_interpolate():
    for length in (0.3, 5.0):  # also the scale: divided by lambda
        one = pulled(bg.IMLE(0.0, 3, step=bg.Absolute(length))(cheapest), COSTS, PUSH)
        other = pulled(bg.Interpolate(bg.Absolute(length))(cheapest), COSTS, PUSH)
        for a, b in zip(one, other, strict=True):
            assert_allclose(a, b)


def test_score_is_its_formula_for_a_function_of_no_costs():
    z = np.random.default_rng(3).standard_normal((6, 3))
    values = np.array([np.sin(COSTS + 0.5 * row).prod() for row in z])
    rule = bg.Score(0.5, 6, baseline=None, draws=bg.Common(3))
    value, grad = pulled(rule(lambda theta: np.sin(theta).prod()), COSTS, 1.0)
    assert value.shape == ()
    assert_allclose(value, values.mean())
    assert_allclose(grad, (z * values[:, None]).mean(0) / 0.5)


def test_regularised_projects_onto_the_hull():
    costs = np.random.default_rng(0).standard_normal((50, 5)) * 2

    def projected(v):
        u = np.sort(v)[::-1]
        excess = (np.cumsum(u) - 1) / np.arange(1, len(v) + 1)
        return np.maximum(v - excess[u > excess][-1], 0)

    value, grad = pulled(bg.Regularised(1.5)(cheapest), leaf(costs), np.arange(5.0))
    assert_allclose(value, [projected(-c / 1.5) for c in costs], atol=1e-9)
    h, direction = 1e-6, np.arange(5.0)
    for k in range(5):
        step = h * np.eye(5)[k]
        ends = [[projected(-(c + s * step) / 1.5) @ direction for c in costs] for s in (1, -1)]
        assert_allclose(grad[:, k], (np.array(ends[0]) - ends[1]) / (2 * h), atol=1e-6)
    box = pulled(bg.Regularised()(lambda c: (c < 0).astype(float)), leaf(costs), 1.0)
    assert_allclose(box[0], np.clip(-costs, 0, 1), atol=1e-9)
    assert_allclose(box[1], -1.0 * ((costs < 0) & (costs > -1)), atol=1e-9)


# Unbiased: the exact gradient of the smoothed map.


def gumbel_jacobian(costs, sigma):
    p = softmax(-costs / sigma)
    return -(np.diag(p) - np.outer(p, p)) / sigma


def normal_chances(costs, sigma):
    """Of each to be the cheapest under Normal noise: integrals over its own noise, by the trapezoid rule, exact here."""
    z = np.linspace(-9, 9, 2001)
    beaten = [norm.sf((c - np.delete(costs, i))[:, None] / sigma + z).prod(0) for i, c in enumerate(costs)]
    return np.trapezoid(norm.pdf(z) * beaten, z, axis=1)


def by_differences(function, at, h=1e-4):
    return np.stack([(function(at + h * e) - function(at - h * e)) / (2 * h) for e in np.eye(len(at))], axis=-1)


def exact_normal(costs, sigma):
    return by_differences(lambda c: normal_chances(c, sigma), costs)


def exact_times(costs, sigma):
    """Multiplicative Normal noise compares log c + sigma Z."""
    return by_differences(lambda c: normal_chances(np.log(c), sigma), costs)


BASELINES = [None, bg.LeaveOneOut(), bg.AtCentre()]


@pytest.mark.parametrize("antithetic", [False, True], ids=["single", "pairs"])
@pytest.mark.parametrize("baseline", BASELINES, ids=repr)
@pytest.mark.parametrize("sigma", [0.4, 1.3])
@pytest.mark.parametrize(
    ("noise", "perturbation", "exact"),
    [
        (bg.Gumbel(), Additive(), gumbel_jacobian),
        (bg.Normal(), Additive(), exact_normal),
        (bg.Normal(), Multiplicative(), exact_times),
    ],
    ids=["gumbel", "normal", "times"],
)
def test_perturbed_is_unbiased(noise, perturbation, exact, sigma, baseline, antithetic):
    rule = bg.Perturbed(sigma, 8, noise, perturbation, baseline, antithetic, bg.Fresh(11))
    _, grad = pulled(rule(one_hot(3)), leaf(COSTS, MANY), PUSH)
    within(grad, exact(COSTS, sigma).T @ PUSH)


def test_perturbed_values_are_the_smoothed_decisions():
    rule = bg.Perturbed(0.6, 8, bg.Gumbel(), draws=bg.Fresh(2))
    within(rule(one_hot(3))(leaf(COSTS, MANY)).detach().numpy(), softmax(-COSTS / 0.6))
    rule = bg.Perturbed(0.6, 8, bg.Gumbel(), draws=bg.Fresh(2))
    within(rule(one_hot(3, maximise=True))(leaf(COSTS, MANY)).detach().numpy(), softmax(COSTS / 0.6))


def test_multiplicative_noise_keeps_the_mean_of_the_costs():
    """The factor exp(-sigma^2 / 2), and Gamma(1 - sigma)."""
    for noise in (bg.Normal(), bg.Gumbel()):
        z = noise.draw(np.random.default_rng(0), (2, 400_000, 3))
        around = Multiplicative().around(np.stack([COSTS, -COSTS]), z, noise, 0.3, -1.0)
        assert (np.sign(around.costs[1]) == -1).all()
        for item, mean in zip(around.costs, (COSTS, -COSTS), strict=True):
            within(item, mean)


def test_score_is_unbiased_for_losses_that_are_not_linear():
    """A step at 1 of the sum of two parameters; a square."""
    sigma, theta = 0.7, np.array([0.4, 0.3])
    rule = bg.Score(sigma, 8, draws=bg.Fresh(4))
    _, grad = pulled(rule(Stepped(np.eye(2))), leaf(theta, MANY), 1.0)
    density = norm.pdf((1 - theta.sum()) / (sigma * np.sqrt(2))) / (sigma * np.sqrt(2))
    within(grad, np.full(2, density))
    value, grad = pulled(rule(lambda t: t**2), leaf(theta, MANY // 4), np.array([1.0, -2.0]))
    within(value, theta**2 + sigma**2)
    within(grad, 2 * theta * [1, -2])


class Stepped(Choice):
    """Not an argmin of costs at all: whether the parameters sum to more than 1, as constraint data would decide."""

    def solve(self, costs):
        return (costs.sum(1) > 1).astype(float)


@pytest.mark.parametrize("rule", [bg.Perturbed, bg.Score])
def test_unbiased_on_a_game(rule):
    """Both players' costs in one vector, the exact smoothed gradient by quadrature in two dimensions."""
    game, sigma, push, costs = duel(), 0.5, np.array([0.3, -1.0, 0.8, 0.5]), np.array([0.4, 0.5])
    edge = np.linspace(-6, 6, 601)
    z = (edge[1:] + edge[:-1]) / 2
    grid = np.stack(np.meshgrid(z, z, indexing="ij"), -1).reshape(-1, 2)
    mass = np.outer(np.diff(norm.cdf(edge)), np.diff(norm.cdf(edge))).ravel()
    decisions = game.solve(costs + sigma * grid)
    assert len(np.unique(decisions, axis=0)) >= 3
    exact = ((decisions @ push) * mass) @ grid / sigma
    _, grad = pulled(rule(sigma, 8, draws=bg.Fresh(6))(game), leaf(costs, 2 * MANY), push)
    within(grad, exact)
    assert abs(exact).min() > 0.05


def test_score_takes_the_loss_inside_and_perturbed_outside_the_mean():
    def loss(costs, label):
        return np.abs(cheapest(costs) - label).max() ** 2

    labels = torch.eye(3, dtype=torch.float64)[[0]].repeat(MANY // 2, 1)
    value = bg.Score(0.6, 8, bg.Gumbel(), draws=bg.Fresh(1))(lambda c, label: loss(-c, label))(
        leaf(-COSTS, MANY // 2), labels
    )
    within(value.detach().numpy()[:, None], 1 - softmax(-COSTS / 0.6)[0])


@pytest.mark.parametrize("noise", [bg.Normal(), bg.Gumbel()], ids=repr)
def test_variance_reduction_lowers_the_variance(noise):
    """Each against nothing, at a loss with a large constant part."""

    def spread(baseline, antithetic):
        rule = bg.Perturbed(1.0, 8, noise, baseline=baseline, antithetic=antithetic, draws=bg.Fresh(8))
        return pulled(rule(one_hot(3)), leaf(COSTS, MANY), PUSH + 1.0)[1].var(0).sum()

    plain = spread(None, False)
    for baseline, antithetic in [(bg.LeaveOneOut(), False), (bg.AtCentre(), False), (None, True)]:
        assert spread(baseline, antithetic) < 0.8 * plain
    assert spread(bg.LeaveOneOut(), True) < 0.3 * plain


# Minimising mirrors maximising.


@each_rule
def test_maximising_is_minimising_the_negative(rule):
    costs = np.random.default_rng(1).uniform(0.5, 2, (6, 3))
    low = pulled(rule()(cheapest), leaf(costs), PUSH)
    high = pulled(rule()(dearest, maximise=True), leaf(-costs), PUSH)
    assert_allclose(high[0], low[0], atol=1e-12)
    assert_allclose(high[1], -low[1], atol=1e-12)
    assert low[1].any()


@pytest.mark.parametrize("name", [n for n in RULES if n != "regularised"])
@pytest.mark.parametrize("game", [duel(), contest()], ids=["duel", "contest"])
def test_a_game_with_senses_turned_mirrors(game, name):
    costs = np.random.default_rng(1).uniform(0.3, 1, (6, len(game.senses)))
    push = np.random.default_rng(2).standard_normal(sum(game.leader.shape))
    rule = RULES[name] if "normalised" not in name else lambda: bg.Identity(bg.UnitNorm())
    one = pulled(rule()(game), leaf(costs), push)
    other = pulled(rule()(game.mirrored()), leaf(-costs), push)
    assert_allclose(one[0], other[0], atol=1e-12)
    assert_allclose(one[1], -other[1], atol=1e-12)
    assert one[1].any()


# Two levels.


def test_interpolate_nudges_each_player_of_a_game():
    game, costs, push = contest(), np.linspace(0.1, 0.6, 6), np.array([-2.0, 0.5, 2.0, 2.0, -1.0, 0.5])
    length = 0.7
    by_hand = game.solve((costs + game.senses * length * push)[None])[0]  # the costs are the decisions' own here
    y = game.solve(costs[None])[0]
    assert (by_hand[:3] != y[:3]).any()
    assert (by_hand[3:] != y[3:]).any()
    _, grad = pulled(bg.Interpolate(bg.Absolute(length))(game), costs, push)
    assert_allclose(grad, game.senses * (by_hand - y) / length)


def test_costs_of_products_get_the_change_of_their_products():
    game, costs, push = duel(), np.array([0.1, 0.9]), np.array([-1.0, 1.0, -1.0, 1.0])
    before, after = game.solve(costs[None]), game.nudged(costs[None], 2.0 * push[None])
    _, grad = pulled(bg.Interpolate(bg.Absolute(2.0))(game), costs, push)
    assert_allclose(grad, (game.senses * (game.features(after) - game.features(before)) / 2.0)[0])
    assert grad.any()
    slope = np.array([game.features(before + h * push)[0] for h in (1e-6, -1e-6)])
    exact = -game.senses * (slope[0] - slope[1]) / 2e-6
    assert_allclose(pulled(bg.Identity()(game), costs, push)[1], exact, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_identity_scales_with_the_loss(scale):
    game, costs, push = duel(), np.array([0.1, 0.1]), np.array([1.0, -1.0, 1.0, -0.5])
    assert_allclose(
        pulled(bg.Identity()(game), costs, scale * push)[1] / scale, pulled(bg.Identity()(game), costs, push)[1]
    )


@pytest.mark.parametrize(
    "rule",
    [
        bg.Interpolate(),
        bg.Identity(),
        bg.Perturbed(0.3, draws=bg.Fresh(0)),
        bg.IMLE(0.3, 4, draws=bg.Fresh(0)),
        bg.IMLE(0.3, 4, step=bg.Adaptive(rate=1e-2), draws=bg.Fresh(0)),
    ],
    ids=["interpolate", "identity", "perturbed", "imle", "adaptive"],
)
def test_descent_finds_what_both_players_were_seen_to_do(rule):
    """Costs of both levels from their decisions, one minimising and one maximising: signs that were wrong would lose it."""
    game, rng = contest(), np.random.default_rng(0)
    t, target = leaf(rng.uniform(0, 1, (60, 6))), game.solve(rng.uniform(0, 1, (60, 6)))
    for _ in range(150):
        loss = ((rule(game)(t) - torch.as_tensor(target)) ** 2).sum()
        t = (t - 0.02 * torch.autograd.grad(loss, t)[0]).detach().requires_grad_()
    assert (game.solve(t.detach().numpy()) == target).all(1).mean() > 0.9


# Defects of peers.


def test_the_informative_side_is_probed():
    """Maximise theta = (1, 2, 1.5), target the first: the other side confirms the decision at any lambda."""
    theta, target = np.array([1.0, 2.0, 1.5]), np.array([1.0, 0.0, 0.0])
    for rule in (bg.Interpolate(bg.Absolute(1.0)), bg.IMLE(0.0, step=bg.Absolute(1.0))):
        _, grad = pulled(rule(dearest, maximise=True), theta, 1 - 2 * target)
        assert_allclose(grad, [-1, 1, 0])  # descent raises the target, lowers what was chosen
        _, grad = pulled(rule(cheapest), -theta, 1 - 2 * target)
        assert_allclose(grad, [1, -1, 0])


def test_the_adaptive_step_counts_non_zero_entries_and_can_shrink():
    step = bg.Adaptive(target=1.0, rate=0.01, decay=0.0, beta=2.0)
    rule = bg.IMLE(0.1, 4, step=step, draws=bg.Fresh(0))
    before = step.beta
    pulled(rule(cheapest), leaf(COSTS, 8), PUSH * 10)  # so far a step changes two entries of every sample
    assert step.nonzero == pytest.approx(2.0)
    assert step.beta == pytest.approx(before - 0.01)
    for _ in range(400):
        pulled(rule(cheapest), leaf(COSTS, 8), PUSH)
    assert 0.1 < step.beta < 1.5  # it settles where the target is met, and does not grow for ever
    assert 0.3 < step.nonzero < 1.8


def test_the_adaptive_step_starts_at_zero_with_gradients_of_zero():
    step = bg.Adaptive(rate=0.25)
    rule = bg.IMLE(0.1, 4, step=step, draws=bg.Fresh(0))(cheapest)
    assert_array_equal(pulled(rule, COSTS, PUSH)[1], 0)
    assert step.beta == 0.25
    assert not pulled(rule, leaf(COSTS, 2), 0.0)[1].any()
    assert step.beta == 0.25  # a loss without a gradient teaches nothing


def test_adaptive_lengths_are_per_item():
    costs, push = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[0.5, 0.0], [0.0, 2.0]])
    assert_allclose(bg.Adaptive(beta=0.3).lengths(costs, push), [3.0, 0.15])
    assert_allclose(bg.Relative(0.3).lengths(costs, push), [3.0, 0.15])


@pytest.mark.parametrize("name", [n for n in RULES if "absolute" not in n])
def test_the_batch_size_does_not_change_the_step(name):
    """A mean over a batch divides each item's gradient by its size, and nothing else."""
    alone = pulled(RULES[name]()(cheapest), leaf(COSTS, 1), PUSH)[1]
    many = pulled(RULES[name]()(cheapest), leaf(COSTS, 8), PUSH / 8)[1]
    assert_allclose(8 * many, alone.repeat(8, 0), atol=1e-12)


@each_rule
def test_backward_works_twice_and_after_other_calls(rule):
    function, t = rule()(cheapest), leaf(COSTS)
    value = function(t)
    function(leaf(COSTS * [3, 1, 1]))
    push = torch.as_tensor(PUSH)
    (one,) = torch.autograd.grad(value, t, push, retain_graph=True)
    (other,) = torch.autograd.grad(value, t, push)
    if "Adaptive" not in repr(function.rule):
        assert_array_equal(one, other)


def test_a_decision_at_a_tie_is_still_one():
    assert pulled(bg.Interpolate()(cheapest), np.ones(3), PUSH)[0].sum() == 1
    assert pulled(bg.Identity(bg.Normalised())(cheapest), np.ones(3), PUSH)[1].shape == (3,)
    assert np.isfinite(pulled(bg.Interpolate()(cheapest), np.zeros(3), PUSH)[1]).all()


# Noise and draws.


@pytest.mark.parametrize("noise", [bg.Normal(), bg.Gumbel()], ids=repr)
def test_densities(noise):
    z = noise.draw(np.random.default_rng(0), (400_000, 1))
    within(noise.score(z), 0.0)
    within(np.exp(0.2 * z), np.exp(noise.growth(0.2)))
    twin = noise.mirror(z)
    assert np.isfinite(twin).all()
    within(twin - z, 0.0)
    assert_allclose(noise.mirror(twin), z, atol=1e-6)
    assert np.corrcoef(z[:, 0], twin[:, 0])[0, 1] < -0.8


def test_sums_of_gammas_are_gumbel():
    """Mean and variance of k of them: H_s - log s, and sum 1/i^2."""
    z = bg.SumOfGamma(3.0, terms=10).draw(np.random.default_rng(0), (200_000, 3)).sum(1)
    i = np.arange(1, 11)
    within(z[:, None], (1 / i).sum() - np.log(10))
    assert z.var() == pytest.approx((1 / i**2).sum(), rel=0.02)
    assert bg.SumOfGamma(1.0, terms=1000).draw(np.random.default_rng(0), (20_000,)).var() == pytest.approx(
        pi**2 / 6, rel=0.05
    )


@pytest.mark.parametrize("kind", [bg.Perturbed, bg.Score, bg.IMLE])
def test_draws(kind):
    t = leaf(COSTS, 3)

    def calls(draws):
        function = kind(samples=50, draws=draws)(cheapest)
        return [function(t).detach().numpy() for _ in range(2)]

    first, second = calls(bg.Fresh(1))
    assert (first != second).any()
    assert (first[0] != first[1]).any()
    for a, b in zip((first, second), calls(bg.Fresh(1)), strict=True):
        assert_array_equal(a, b)
    assert (calls(bg.Fresh(2))[0] != first).any()
    first, second = calls(bg.Common(1))
    assert_array_equal(first, second)
    assert_array_equal(first[0], first[1])
    torch.manual_seed(0)
    first, second = calls(bg.Fresh())
    assert (first != second).any()
    torch.manual_seed(0)
    assert_array_equal(calls(bg.Fresh())[0], first)


def test_rules_are_copied_and_pickled():
    for rule in RULES.values():
        made = copy.deepcopy(rule())
        assert repr(pickle.loads(pickle.dumps(made))) == repr(rule())


# The torch side.


@each_rule
def test_batch_dtype_and_equal_items(rule):
    value, grad = pulled(rule()(cheapest), COSTS, PUSH)
    values, grads = pulled(rule()(one_hot(3)), leaf(COSTS, 4), PUSH)
    assert value.shape == (3,)
    assert_allclose(values, value[None].repeat(4, 0))
    assert_allclose(grads, grad[None].repeat(4, 0), atol=1e-12)
    single = leaf(COSTS).detach().float().requires_grad_()
    assert rule()(cheapest)(single).dtype == torch.float32
    assert not rule()(cheapest)(single.detach()).requires_grad
    assert rule()(cheapest)(torch.tensor([3, 1, 2])).dtype == torch.get_default_dtype()


@pytest.mark.parametrize(
    ("name", "forward", "both"),
    [("perturbed", (64,), (64,)), ("imle", (20,), (20, 20)), ("interpolate", (4,), (4, 4)), ("identity", (4,), (4,))],
)
def test_all_samples_go_in_one_call(name, forward, both):
    oracle = one_hot(3)
    t = leaf(COSTS, 4)
    value = RULES[name]()(oracle)(t)
    assert oracle.rows == forward
    value.sum().backward()
    assert oracle.rows == both


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, in forward mode
@each_rule
def test_no_second_derivatives(rule):
    t = leaf(COSTS)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad((rule()(cheapest)(t) * torch.as_tensor(PUSH)).sum(), t, create_graph=True)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        rule()(cheapest)(torch.autograd.forward_ad.make_dual(t.detach(), t.detach()))
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.grad(lambda v: rule()(cheapest)(v).sum())(t.detach())


def test_bad_costs_are_named():
    function = bg.Perturbed()(cheapest)
    bad = leaf(COSTS, 3).detach()
    bad[1, 2] = torch.nan
    with pytest.raises(bg.InputError, match=r"items \[1\]"):
        function(bad)
    for wrong in (torch.ones(2, 2, 2), torch.ones(0), torch.tensor(1.0), [1.0], torch.ones(3, dtype=torch.complex64)):
        with pytest.raises(bg.InputError, match="needs a real torch tensor"):
            function(wrong)


def test_bad_decisions_are_named():
    def failing(costs):
        return cheapest(costs) * (np.nan if costs[0] > 4 else 1.0)

    t = leaf([COSTS, COSTS * 5])
    with pytest.raises(bg.InputError, match=r"failing: the decision is NaN or infinite at items \[1\]"):
        bg.Perturbed(sigma=0.01)(failing)(t)
    with pytest.raises(bg.InputError, match=r"returned shape \(1,\)"):
        bg.Interpolate()(lambda c: c[:1] if c[0] > 4 else c)(t)
    with pytest.raises(bg.InputError, match="features"):
        pulled(bg.Interpolate()(lambda c: c[:1]), t, 1.0)

    class Short(Choice):
        def solve(self, costs):
            return super().solve(costs)[:1]

    with pytest.raises(bg.InputError, match=r"needs decisions \(2, m\)"):
        bg.Interpolate()(Short(np.eye(3)))(t)

    class Picky(Choice):
        def solve(self, costs):
            raise bg.InputError("row 3 is negative")

    with pytest.raises(bg.InputError) as raised:
        bg.Perturbed()(Picky(np.eye(3)))(t)
    assert "k // 16" in raised.value.__notes__[0]
    with pytest.raises(bg.InputError, match="gradient is NaN"):
        pulled(bg.Interpolate()(cheapest), COSTS, np.nan)
    with pytest.raises(bg.InputError, match="cost 1 is 0"):
        bg.Perturbed(perturbation=bg.Multiplicative())(cheapest)(leaf([1.0, 0.0]))


def test_functions_may_spoil_their_argument_and_reuse_their_answer():
    answer = np.zeros(3)

    def untidy(costs):
        chosen = np.argmin(costs)
        costs[:], answer[:] = np.nan, 0.0
        answer[chosen] = 1.0
        return answer

    for rule in (bg.Interpolate(), bg.IMLE(samples=3, draws=bg.Common()), bg.Perturbed(draws=bg.Common())):
        t = leaf(np.random.default_rng(0).uniform(0, 1, (5, 3)))
        for one, other in zip(pulled(rule(untidy), t, PUSH), pulled(rule(cheapest), t, PUSH), strict=True):
            assert_array_equal(one, other)
        assert t.isfinite().all()


def test_each_item_gets_its_own_data():
    """Feasible sets of their own, through every solve of every rule."""
    costs, allowed = leaf([COSTS, COSTS, COSTS]), torch.tensor([[1, 1, 1], [0, 1, 1], [0, 1, 0]])

    def best(costs, mask):
        return cheapest(np.where(mask, costs, np.inf))

    for rule in (bg.Interpolate(bg.Absolute(2.0)), bg.IMLE(0.0, 3, step=bg.Absolute(2.0)), bg.Regularised(0.1)):
        value, grad = (
            rule(best)(costs, allowed),
            torch.autograd.grad((rule(best)(costs, allowed)[:2] * torch.tensor([1.0, -3, 1])).sum(), costs)[0],
        )
        assert_allclose(value.detach(), np.eye(3)[[0, 2, 1]], atol=1e-9)
        assert not grad[2].any()
    value = bg.Perturbed(5.0, 200, draws=bg.Common())(best)(costs, allowed).detach()
    assert value[1, 0] == 0 < value[1, 1] < 1
    assert_allclose(bg.Interpolate()(best)(costs[1], allowed[1]).detach(), np.eye(3)[2])
    for wrong in (allowed[:2], 3):
        with pytest.raises(bg.InputError, match="one entry per item"):
            bg.Interpolate()(best)(costs, wrong)
    with pytest.raises(bg.InputError, match="wants a gradient"):
        bg.Interpolate()(best)(costs, costs)
    with pytest.raises(bg.InputError, match="knows its sense"):
        bg.Interpolate()(one_hot(3), maximise=True)(costs)


def test_wrong_settings_are_refused():
    for make in (
        lambda: bg.Perturbed(0.0),
        lambda: bg.Score(samples=0),
        lambda: bg.Perturbed(samples=3, antithetic=True),
        lambda: bg.IMLE(-1.0),
        lambda: bg.Absolute(0.0),
        lambda: bg.Relative(0.0),
        lambda: bg.Adaptive(target=0),
        lambda: bg.SumOfGamma(0.0),
        lambda: bg.Regularised(0.0),
        lambda: bg.Perturbed(1.0, noise=bg.Gumbel(), perturbation=bg.Multiplicative())(cheapest)(leaf(COSTS)),
    ):
        with pytest.raises(bg.InputError):
            make()
    with pytest.raises(bg.InputError, match="more than 2 samples"):
        bg.Perturbed(samples=2, antithetic=True)(cheapest)(leaf(COSTS))


def test_costs_whose_sum_overflows_their_dtype_are_finite():
    costs = torch.tensor([[3e38, 2e38, 3e38]], dtype=torch.float32)
    assert bg.Interpolate()(bg.TopK(3, 1))(costs).tolist() == [[1, 0, 0]]
    with pytest.raises(bg.InputError, match=r"at items \[1\]"):
        bg.Interpolate()(bg.TopK(3, 1))(torch.tensor([[1.0, 2.0, 3.0], [np.inf, -np.inf, 0.0]]))


def test_costs_and_gradients_may_lie_in_memory_in_any_order():
    costs = torch.arange(6.0).reshape(3, 2).mT.clone(memory_format=torch.preserve_format)
    assert not costs.is_contiguous()
    top = bg.Interpolate()(bg.TopK(3, 1))
    found = []
    for given in (costs, costs.contiguous()):
        given = given.detach().requires_grad_()
        values = top(given)
        (values.mT @ torch.ones(len(values))).square().sum().backward()
        found.append((values, given.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_programs_that_have_no_oracle_refuse_estimators():
    import cvxpy as cp

    x, c = cp.Variable(2, name="x"), cp.Parameter(2, name="c")
    program = bg.argmin(cp.Problem(cp.Minimize(cp.sum_squares(x - c))))
    with pytest.raises(bg.CapabilityError, match="costs of decisions"):
        bg.Layer(program, [c], [x], gradient=bg.Perturbed())


def test_regularised_says_where_it_stopped_early():
    with pytest.warns(bg.SolveWarning, match=r"items \[0\]"):
        bg.Regularised(5.0, iterations=1)(cheapest)(leaf(COSTS))
