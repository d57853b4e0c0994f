"""Losses: each equals its formula, its gradient is that of its value, minimising mirrors maximising."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from oracles import Choice, contest, duel, one_hot
from scipy.integrate import quad
from scipy.special import logsumexp, softmax
from scipy.stats import norm

import bigrad as bg
from bigrad import losses
from bigrad.losses import (
    MAP,
    NCE,
    FenchelYoung,
    Listwise,
    Pairwise,
    PerturbationGradient,
    Pointwise,
    Pool,
    Regret,
    SPOPlus,
)

POINTS = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1], [1, 0, 1, 0]], dtype=float)
RNG = np.random.default_rng(3)
COSTS, TRUE = RNG.uniform(0.5, 2, (6, 4)), RNG.uniform(0.5, 2, (6, 4))
MANY = 4000


def known(points=POINTS):
    """Pool of some of the points, which does not grow."""
    return Pool(points, solve_ratio=0.0)


def noise(**more):
    return bg.Perturbed(0.5, 20, draws=bg.Common(2), **more)


DECISIONS = {
    "perturbed": lambda o, **k: FenchelYoung(o, noise(), **k),
    "perturbed gumbel": lambda o, **k: FenchelYoung(o, noise(noise=bg.Gumbel(), antithetic=True), **k),
    "perturbed times": lambda o, **k: FenchelYoung(o, noise(perturbation=bg.Multiplicative()), **k),
    "regularised": lambda o, **k: FenchelYoung(o, bg.Regularised(0.7), **k),
    "NCE": lambda o, **k: NCE(o, known(POINTS[:4]), **k),
    "MAP": lambda o, **k: MAP(o, known(POINTS[:4]), **k),
}
PRICES = {
    "SPO+": SPOPlus,
    "backward": lambda o, **k: PerturbationGradient(o, 1.0, **k),
    "central": lambda o, **k: PerturbationGradient(o, 0.4, central=True, **k),
    "pointwise": lambda o, **k: Pointwise(o, known(), **k),
    "pairwise": lambda o, **k: Pairwise(o, known(), 0.3, **k),
    "listwise": lambda o, **k: Listwise(o, known(), 0.6, **k),
}
LOSSES = DECISIONS | PRICES
each = pytest.mark.parametrize("name", LOSSES)


def target_of(name, costs=TRUE, points=POINTS):
    return points[(costs @ points.T).argmin(1)] if name in DECISIONS else costs


def leaf(costs):
    return torch.tensor(np.asarray(costs, dtype=float)).requires_grad_()


def graded(loss, costs, target, *given):
    t = leaf(costs)
    value = loss(t, torch.as_tensor(target), *given)
    (grad,) = torch.autograd.grad(value.sum(), t)
    return value.detach().numpy(), grad.numpy()


def within(samples, exact, errors=4):
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    assert (abs(samples.mean(0) - exact) <= errors * error + 1e-12).all(), (samples.mean(0), exact, error)


# Every loss.


def check_differences(loss, costs, target, h=1e-6):
    _, grad = graded(loss, costs, target)
    for k in range(costs.shape[1]):
        step = h * np.eye(costs.shape[1])[k]
        ends = [graded(loss, costs + s * step, target)[0] for s in (1, -1)]
        assert_allclose(grad[:, k], (ends[0] - ends[1]) / (2 * h), atol=1e-6)
    assert grad.any()


@each
def test_the_gradient_is_that_of_the_value(name):
    check_differences(LOSSES[name](Choice(POINTS), reduction="none"), COSTS, target_of(name))


@each
def test_maximising_is_minimising_the_negative(name):
    low = graded(LOSSES[name](Choice(POINTS)), COSTS, target_of(name))
    high_target = target_of(name) if name in DECISIONS else -TRUE
    high = graded(LOSSES[name](Choice(POINTS, maximise=True)), -COSTS, high_target)
    assert_allclose(high[0], low[0])
    assert_allclose(high[1], -low[1])

    def best(costs):
        return POINTS[(POINTS @ costs).argmax()]

    plain = graded(LOSSES[name](best, maximise=True), -COSTS, high_target)
    assert_allclose(plain[0], low[0])
    assert_allclose(plain[1], -low[1])


@pytest.mark.parametrize("game", [duel(), contest()], ids=["duel", "contest"])
@pytest.mark.parametrize("name", [n for n in LOSSES if n != "regularised"])
def test_games_have_losses_too(name, game):
    rng, n = np.random.default_rng(5), len(game.senses)
    costs, true = rng.uniform(0.3, 1, (4, n)), rng.uniform(0.3, 1, (4, n))
    target = game.solve(true) if name in DECISIONS else true
    made = LOSSES[name](game)
    if hasattr(made, "pool"):
        made = type(made)(game, Pool(game.solve(rng.uniform(-2, 2, (40, n))), solve_ratio=0.0))
    value, grad = graded(made, costs, target)
    assert np.isfinite(value)
    other = type(made)(game.mirrored(), *(vars(made)[k] for k in ("smoothing", "pool", "step") if k in vars(made)))
    if name != "central":
        mirrored = graded(other, -costs, target if name in DECISIONS else -target)
        assert_allclose(mirrored[0], value)
        assert_allclose(mirrored[1], -grad, atol=1e-12)


@each
def test_reductions_shapes_and_types(name):
    target = target_of(name)
    values = graded(LOSSES[name](Choice(POINTS), reduction="none"), COSTS, target)
    mean = graded(LOSSES[name](Choice(POINTS)), COSTS, target)
    total = graded(LOSSES[name](Choice(POINTS), reduction="sum"), COSTS, target)
    assert values[0].shape == (6,)
    assert_allclose(mean[0], values[0].mean())
    assert_allclose(mean[1], values[1] / 6)
    assert_allclose(total[0], values[0].sum())
    one = graded(LOSSES[name](Choice(POINTS), reduction="none"), COSTS[0], target[0])
    assert one[0].shape == ()
    assert_allclose(one[0], values[0][0])
    assert_allclose(one[1], values[1][0])
    t = leaf(COSTS).detach().float()
    assert LOSSES[name](Choice(POINTS))(t, target).dtype == torch.float32
    assert not LOSSES[name](Choice(POINTS))(t, target).requires_grad
    assert repr(LOSSES[name](Choice(POINTS)))


@each
def test_the_solution_when_asked(name):
    t = leaf(COSTS)
    value, solution = LOSSES[name](Choice(POINTS)).with_solution(t, target_of(name))
    assert value.requires_grad
    assert not solution.requires_grad
    assert_allclose(value.detach(), graded(LOSSES[name](Choice(POINTS)), COSTS, target_of(name))[0])
    points = POINTS[:4] if name in ("NCE", "MAP") else POINTS
    expected = points[(COSTS @ points.T).argmin(1)]
    if name == "regularised":
        expected = bg.Regularised(0.7)(Choice(POINTS))(t).detach()
    elif name in DECISIONS and name not in ("NCE", "MAP"):
        expected = DECISIONS[name](Choice(POINTS)).smoothing(Choice(POINTS))(t).detach()
    assert_allclose(solution, expected)
    assert_allclose(LOSSES[name](Choice(POINTS)).with_solution(t[0], target_of(name)[0])[1], expected[0])


@each
def test_no_second_derivatives(name):
    t = leaf(COSTS)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(LOSSES[name](Choice(POINTS))(t, target_of(name)), t, create_graph=True)


@each
def test_bad_items_are_named(name):
    loss, costs, target = LOSSES[name](Choice(POINTS)), COSTS.copy(), target_of(name).copy()
    target[2, 0] = np.nan
    with pytest.raises(bg.InputError, match=r"Targets are NaN or infinite at items \[2\]"):
        loss(leaf(COSTS), target)
    costs[3, 1] = np.inf
    with pytest.raises(bg.InputError, match=r"Costs are NaN or infinite at items \[3\]"):
        loss(leaf(costs), target_of(name))
    for wrong in (target_of(name)[:2], target_of(name)[0], target_of(name)[:, :2]):
        with pytest.raises(bg.InputError):
            loss(leaf(COSTS), wrong)
    with pytest.raises(bg.InputError, match="wants a gradient"):
        loss(leaf(COSTS), leaf(target_of(name)))
    with pytest.raises(bg.InputError, match="reduction"):
        LOSSES[name](Choice(POINTS), reduction="average")


# Fenchel-Young.


def test_perturbed_fenchel_young_is_its_closed_form():
    """One-hot and Gumbel: F = sigma (logsumexp(theta / sigma) + gamma), its gradient softmax."""
    sigma, theta, label = 0.6, np.array([1.0, 2.0, 1.5]), np.array([1.0, 0, 0])
    rule = bg.Perturbed(sigma, 10, bg.Gumbel(), draws=bg.Fresh(1))
    loss = FenchelYoung(one_hot(3, maximise=True), rule, reduction="none")
    value, grad = graded(loss, np.tile(theta, (MANY, 1)), np.tile(label, (MANY, 1)))
    within(value[:, None], sigma * (logsumexp(theta / sigma) + np.euler_gamma) - theta @ label)
    within(grad, softmax(theta / sigma) - label)
    loss = FenchelYoung(one_hot(3), rule, reduction="none")
    value, grad = graded(loss, np.tile(theta, (MANY, 1)), np.tile(label, (MANY, 1)))
    within(value[:, None], theta @ label + sigma * (logsumexp(-theta / sigma) + np.euler_gamma))
    within(grad, label - softmax(-theta / sigma))


def test_multiplicative_fenchel_young_is_its_closed_form():
    """Two costs, log-normal each: E min by the chances of each to be the lesser, tilted."""
    sigma, costs, label = 0.5, np.array([1.0, 1.4]), np.array([1.0, 0.0])
    gap = np.log(costs[::-1] / costs) / (sigma * np.sqrt(2))
    tilted = norm.cdf(gap - sigma / np.sqrt(2))  # of being the lesser, under its own density times exp(sigma Z - …)
    rule = bg.Perturbed(sigma, 10, perturbation=bg.Multiplicative(), draws=bg.Fresh(1))
    loss = FenchelYoung(one_hot(2), rule, reduction="none")
    value, grad = graded(loss, np.tile(costs, (MANY, 1)), np.tile(label, (MANY, 1)))
    within(value[:, None], costs @ label - costs @ tilted)
    within(grad, label - tilted)


def test_fenchel_young_on_a_game_matches_mean_features():
    """Both levels in one vector: the slope has the mean of s phi over the noise, by quadrature."""
    game, sigma, costs = duel(), 0.5, np.array([0.4, 0.5])
    edge = np.linspace(-6, 6, 601)
    z = (edge[1:] + edge[:-1]) / 2
    grid = np.stack(np.meshgrid(z, z, indexing="ij"), -1).reshape(-1, 2)
    mass = np.outer(np.diff(norm.cdf(edge)), np.diff(norm.cdf(edge))).ravel()
    phi = game.senses * game.features(game.solve(costs + sigma * grid))
    label = game.solve(np.array([[2.0, 0.0]]))
    loss = FenchelYoung(game, bg.Perturbed(sigma, 8, draws=bg.Fresh(1)), reduction="none")
    value, grad = graded(loss, np.tile(costs, (MANY, 1)), label.repeat(MANY, 0))
    known = game.senses * game.features(label)[0]
    within(grad, known - mass @ phi)
    within(value[:, None], costs @ known - mass @ ((costs + sigma * grid) * phi).sum(1))


def test_fenchel_young_is_the_loss_and_not_a_squared_distance():
    """Its value bounds the loss without noise from above, under noise of mean zero, and falls along its own gradient."""
    rule = bg.Perturbed(0.5, 4000, draws=bg.Common(0), antithetic=True)
    loss = FenchelYoung(Choice(POINTS), rule, reduction="none")
    value, grad = graded(loss, COSTS, target_of("perturbed"))
    best = (COSTS @ POINTS.T).min(1)
    assert (value >= (COSTS * target_of("perturbed")).sum(1) - best - 0.02).all()
    assert (graded(loss, COSTS - 1e-3 * grad, target_of("perturbed"))[0] < value).all()


def test_regularised_fenchel_young_is_its_formula_and_zero_at_the_label():
    loss = FenchelYoung(one_hot(3), bg.Regularised(0.5), reduction="none")
    costs, label = np.array([[1.0, 1.1, 2.0]]), np.array([[1.0, 0, 0]])
    found = bg.Regularised(0.5)(one_hot(3))(torch.tensor(costs)).numpy()
    value, grad = graded(loss, costs, label)
    assert_allclose(value, 0.25 * (1 - (found**2).sum(1)) + (costs * (label - found)).sum(1))
    assert_allclose(grad, label - found)
    assert_allclose(graded(loss, costs * 10, label)[0], 0, atol=1e-12)


def test_one_sample_is_enough_for_a_loss():
    value, grad = graded(FenchelYoung(one_hot(3), bg.Perturbed(samples=1)), np.ones((2, 3)), np.eye(3)[:2])
    assert np.isfinite(value)
    assert_allclose(abs(grad.sum()), 0, atol=1e-12)


# True costs.


def test_spo_plus_is_its_formula_and_bounds_the_regret():
    best, other = (POINTS[(c @ POINTS.T).argmin(1)] for c in (TRUE, 2 * COSTS - TRUE))
    value, grad = graded(SPOPlus(Choice(POINTS), reduction="none"), COSTS, TRUE)
    formula = -((2 * COSTS - TRUE) @ POINTS.T).min(1) + 2 * (COSTS * best).sum(1) - (TRUE @ POINTS.T).min(1)
    assert_allclose(value, formula)
    assert_allclose(grad, 2 * (best - other))
    with torch.no_grad():
        regret = Regret(Choice(POINTS), reduction="none")(leaf(COSTS), TRUE).numpy()
    assert (value >= regret - 1e-12).all()
    assert regret.max() > 0
    assert_allclose(graded(SPOPlus(Choice(POINTS)), TRUE, TRUE)[0], 0, atol=1e-12)


def test_spo_plus_solves_once():
    oracle = Choice(POINTS)
    graded(SPOPlus(oracle), COSTS, TRUE)
    assert oracle.rows == (12,)


@each
def test_solved_targets_serve_every_loss(name):
    target = losses.Solved(TRUE, target_of("perturbed"))
    one = graded(LOSSES[name](Choice(POINTS)), COSTS, target_of(name))
    t = leaf(COSTS)
    value = LOSSES[name](Choice(POINTS))(t, target)
    value.backward()
    assert_allclose(value.detach(), one[0])
    assert_allclose(t.grad, one[1])
    single = LOSSES[name](Choice(POINTS))(t[0], losses.Solved(target.costs[0], target.decisions[0]))
    assert_allclose(single.detach(), LOSSES[name](Choice(POINTS))(t[0], target_of(name)[0]).detach())


def test_solved_targets_save_solves():
    oracle = Choice(POINTS)
    target = losses.Solved(TRUE, target_of("perturbed"))
    t = leaf(COSTS)
    SPOPlus(oracle)(t, target)
    Regret(oracle)(t, target)
    assert oracle.rows == (6, 6)
    assert_allclose(Regret(oracle)(t, target).detach(), Regret(oracle)(t, TRUE).detach())
    with pytest.raises(bg.InputError, match=r"needs a target \(6, m\)"):
        SPOPlus(oracle)(t, losses.Solved(TRUE, target.decisions[:2]))


def test_the_perturbation_gradient_tends_to_the_true_cost():
    paid = (TRUE * POINTS[(COSTS @ POINTS.T).argmin(1)]).sum(1)
    for central in (False, True):
        loss = PerturbationGradient(Choice(POINTS), 1e-4, central=central, reduction="none")
        assert_allclose(graded(loss, COSTS, TRUE)[0], paid, atol=1e-6)
    value, grad = graded(PerturbationGradient(Choice(POINTS), 0.6, reduction="none"), COSTS, TRUE)
    assert (value >= paid - 1e-12).all()
    here, back = (POINTS[(c @ POINTS.T).argmin(1)] for c in (COSTS, COSTS - 0.6 * TRUE))
    assert_allclose(grad, (here - back) / 0.6)
    with pytest.raises(bg.InputError, match="positive"):
        PerturbationGradient(one_hot(2), 0.0)


def test_regret_is_a_measure_and_with_a_rule_a_loss():
    y, best = (POINTS[(c @ POINTS.T).argmin(1)] for c in (COSTS, TRUE))
    plain = Regret(Choice(POINTS), reduction="none")
    t = leaf(COSTS)
    assert_allclose(plain(t, TRUE).detach(), (TRUE * (y - best)).sum(1))
    with pytest.raises(bg.CapabilityError, match="Give it a rule"):
        plain(t, TRUE).sum().backward()
    for rule in (bg.Interpolate(), bg.Identity(), bg.Perturbed(0.5, draws=bg.Common())):
        value, grad = graded(Regret(Choice(POINTS), rule), COSTS, TRUE)
        u = leaf(COSTS)
        by_torch = (torch.as_tensor(TRUE) * (rule(Choice(POINTS))(u) - torch.as_tensor(best))).sum(1).mean()
        assert_allclose(value, by_torch.detach())
        assert_allclose(grad, torch.autograd.grad(by_torch, u)[0])
        mirror = graded(Regret(Choice(POINTS, maximise=True), rule), -COSTS, -TRUE)
        assert_allclose(mirror[0], value)
        assert_allclose(mirror[1], -grad)
    with pytest.raises(bg.InputError, match="features"):
        Regret(duel(), bg.Interpolate())(leaf([[0.3, 0.3]]), [[0.3, 0.9]])


# Pools.


def test_pool_losses_are_their_formulas():
    s, label = POINTS[:4], target_of("NCE", points=POINTS[:4])
    gaps = (COSTS * label).sum(1)[:, None] - COSTS @ s.T
    assert_allclose(graded(NCE(Choice(POINTS), known(s), reduction="none"), COSTS, label)[0], gaps.mean(1))
    assert_allclose(graded(MAP(Choice(POINTS), known(s), reduction="none"), COSTS, label)[0], gaps.max(1))
    w, v = COSTS @ POINTS.T, TRUE @ POINTS.T

    def value(make, *more):
        return graded(make(Choice(POINTS), known(), *more, reduction="none"), COSTS, TRUE)[0]

    assert_allclose(value(Pointwise), ((w - v) ** 2).mean(1))
    hinge = np.maximum(0, 0.3 + w[np.arange(6), v.argmin(1)][:, None] - w)
    hinge[np.arange(6), v.argmin(1)] = 0
    assert_allclose(value(Pairwise, 0.3), hinge.sum(1) / 4)
    p, q = softmax(-v / 0.6, axis=1), softmax(-w / 0.6, axis=1)
    assert_allclose(value(Listwise, 0.6), -(p * np.log(q)).sum(1))
    with pytest.raises(bg.InputError, match="tau"):
        Listwise(one_hot(2), tau=0.0)


@pytest.mark.parametrize("make", [NCE, MAP, Pointwise, Pairwise, Listwise])
def test_pools_grow_with_the_solve_ratio(make):
    name = make.__name__
    target = target_of(name)
    oracle = Choice(POINTS)
    pool = Pool(POINTS, solve_ratio=0.3)
    for _ in range(100):
        make(oracle, pool)(leaf(COSTS), target if name in ("NCE", "MAP") else TRUE)
    assert 120 < sum(oracle.rows) < 240  # of 600 items
    assert len(oracle.rows) <= 100
    assert len(pool) == 5
    oracle = Choice(POINTS)
    pool = Pool(solve_ratio=0.0)
    make(oracle, pool)(leaf(COSTS), target if name in ("NCE", "MAP") else TRUE)
    assert oracle.rows == (() if name in ("NCE", "MAP") else (6,))  # an empty pool starts with what is known
    start = {tuple(y) for y in target_of("NCE")}
    assert {tuple(y) for y in pool.decisions} == start
    pool = Pool(solve_ratio=1.0)
    make(Choice(POINTS), pool)(leaf(COSTS), target if name in ("NCE", "MAP") else TRUE)
    assert {tuple(y) for y in pool.decisions} == start | {tuple(y) for y in target_of("NCE", COSTS)}


def test_pools_keep_each_decision_once_and_refuse_others():
    pool = Pool([[0.0, 1.0], [-0.0, 1.0 + 1e-9]])
    assert len(pool) == 1
    assert_array_equal(pool.decisions, [[0, 1]])
    for wrong in ([[1.0]], [[np.nan, 1.0]], [1.0]):
        with pytest.raises(bg.InputError, match="finite arrays"):
            pool.add(wrong)
    with pytest.raises(bg.InputError, match="probability"):
        Pool(solve_ratio=1.5)
    assert repr(pool) == "Pool(1 decisions, solve_ratio=1.0)"


# Learning.


@pytest.mark.parametrize("name", ["perturbed", "regularised", "MAP", "SPO+", "pairwise", "listwise"])
def test_descent_finds_the_decisions(name):
    """Free costs, a hundred steps: their regret falls to nothing."""
    costs, measure = COSTS.copy(), Regret(Choice(POINTS))
    loss = LOSSES[name](Choice(POINTS), reduction="sum") if name != "MAP" else MAP(Choice(POINTS), known())
    for _ in range(100):
        costs -= 0.05 * graded(loss, costs, target_of(name))[1]
    with torch.no_grad():
        assert measure(torch.tensor(costs), TRUE) <= 0.1 * measure(torch.tensor(COSTS), TRUE)


def test_losses_are_exported():
    assert bg.losses is losses
    assert set(losses.__all__) >= {"FenchelYoung", "SPOPlus", "PerturbationGradient", "NCE", "MAP", "Regret"}


def test_plain_functions_with_data_of_each_item():
    def best(costs, mask):
        return np.eye(3)[np.argmin(np.where(mask, costs, np.inf))]

    costs, true = np.array([[1.0, 2, 3], [1, 2, 3]]), np.array([[3.0, 2, 1], [3, 2, 1]])
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    value, grad = graded(SPOPlus(best, reduction="none"), costs, true, mask)
    assert_allclose(grad, 2 * (np.eye(3)[[2, 1]] - np.eye(3)[[0, 0]]))
    assert_allclose(value, [6.0, 3.0])


def test_quadrature_agrees_with_the_closed_form():
    """The tilted chances above, by an integral."""
    sigma, costs = 0.5, np.array([1.0, 1.4])

    def paid(z):
        factor = np.exp(sigma * z - sigma**2 / 2)
        return factor * norm.pdf(z) * norm.sf((np.log(costs[0] / costs[1]) + sigma * z) / sigma)

    gap = np.log(costs[1] / costs[0]) / (sigma * np.sqrt(2))
    assert quad(paid, -9, 9)[0] == pytest.approx(norm.cdf(gap - sigma / np.sqrt(2)))
