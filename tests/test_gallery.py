"""The gallery of continuous programs: every script runs small and draws, and what its page claims has a second opinion."""

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import cvxpy as cp
import networkx as nx
import numpy as np
import pytest
import torch
from scipy.optimize import linprog

import bigrad as bg

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[1]
GALLERY, PAGES = ROOT / "examples" / "gallery", ROOT / "docs" / "gallery"

SMALL = {
    "tolls": {"points": 5, "steps": 5, "climbs": 2},
    "bidding": {"points": 3},
    "several_followers": {"points": 9, "costs": 3},
    "portfolio": {"steps": 2, "batch": 4, "known": 8, "test": 5, "histories": 2},
    "adversarial_training": {"seeds": 1, "epochs": 1, "points": 2, "tries": (1, 2)},
    "svm": {"splits": 1, "steps": 2},
}


def page(name: str) -> ModuleType:
    """A script of the gallery as a module."""
    if name in {"adversarial_training", "svm"}:
        pytest.importorskip("sklearn")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, GALLERY / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.mark.parametrize("name", SMALL)
def test_a_page_has_its_parts(name):
    text, picture = (PAGES / f"{name}.md").read_text("utf-8"), PAGES / f"{name}.png"
    assert f"`python examples/gallery/{name}.py`" in text
    assert f"]({name}.png)" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 120_000
    assert f"docs/gallery/{name}.md" in page(name).__doc__


@pytest.mark.parametrize("name", SMALL)
def test_a_script_prints_and_draws(name, tmp_path, capsys):
    result = page(name).main(tmp_path / "picture.png", **SMALL[name])
    assert f"picture: {tmp_path / 'picture.png'}" in capsys.readouterr().out
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert result


# tolls


def test_tolls_loads_are_a_user_equilibrium():
    """Wardrop: all cars together spend what they would if each took the shortest path at these loads."""
    tolls = page("tolls")
    charged = np.array([[0.0, 0.0], [2.9, 4.0], [8.0, 8.85], [12.0, 3.0]])
    for charge, load in zip(charged, tolls.equilibria(charged), strict=True):
        graph, spent = nx.DiGraph(), 0.0
        for j, (start, end, free, slow) in enumerate(tolls.ROADS):
            cost = free + slow * load[j] + (charge[j] if j < 2 else 0)
            spent += cost * load[j]
            known = graph.get_edge_data(start, end, {"cost": np.inf})["cost"]
            graph.add_edge(start, end, cost=min(cost, known))
        least = sum(cars * nx.shortest_path_length(graph, a, b, "cost") for a, b, cars in tolls.TRIPS)
        assert spent == pytest.approx(least, rel=1e-8)


def test_tolls_no_other_pair_earns_more():
    tolls = page("tolls")
    result = tolls.run(points=2, steps=2, climbs=100)
    tried = np.random.default_rng(0).uniform(0, tolls.CAP, (60, 2))
    tried[:20] = result.tolls[1] + np.random.default_rng(1).normal(0, 0.05, (20, 2))
    tried = np.concatenate([tried, [[8.0, 4.0], [4.0, 8.85]]]).clip(0, tolls.CAP)
    net, toll = tolls.network(), cp.Parameter(2)
    drivers = cp.Problem(cp.Minimize(net.minutes + toll @ net.load[:2]), net.constraints)
    earned = []
    for toll.value in [*tried, *result.tolls]:
        drivers.solve(solver=cp.CLARABEL)
        earned.append(toll.value @ net.load.value[:2])
    *others, low, best = earned
    # at a kink an interior-point method's loads are good to about 3e-4
    assert max(others) <= result.best.value + 5e-3
    assert best == pytest.approx(result.best.value, abs=5e-3)
    assert low == pytest.approx(result.low.value, abs=5e-3)
    assert 12.7 < result.climbed < result.low.value < result.best.value
    assert result.best.status is result.low.status is bg.Status.GLOBAL
    assert result.best.stats.bound == pytest.approx(result.best.value, rel=1e-5)


# bidding


def test_bidding_beats_every_pair_of_candidate_bids():
    """Between the rivals' costs profit is linear in a bid that sets a price and constant in one that does not."""
    bidding = page("bidding")
    found, bids, dispatch, prices = bidding.best_bids()
    candidates = [0.0, *bidding.COST, *(bidding.COST - 1e-9), bidding.BID_CAP]
    best = max(bidding.mean_profit(np.array(pair)) for pair in itertools.product(candidates, repeat=2))
    assert found.status is bg.Status.GLOBAL
    assert found.value == pytest.approx(best, rel=1e-6)
    assert found.value == pytest.approx(float(np.mean(prices * dispatch.sum(1) - dispatch @ bidding.FUEL)), rel=1e-9)
    assert bidding.mean_profit(bidding.FUEL) < found.value
    drawn = np.random.default_rng(0).uniform(0, bidding.BID_CAP, (300, 2))
    assert max(map(bidding.mean_profit, drawn)) <= found.value + 1e-6
    for price, own, demand in zip(prices, dispatch, bidding.DEMAND, strict=True):  # the market again, by another solver
        ask, size = np.concatenate([bids, bidding.COST]), np.concatenate([bidding.OWN, bidding.CAPACITY])
        bounds = [(0, s) for s in size]
        again = linprog(ask, A_eq=np.ones((1, len(ask))), b_eq=[demand], bounds=bounds)
        rest = linprog(bidding.COST, A_eq=np.ones((1, 5)), b_eq=[demand - own.sum()], bounds=bounds[2:])
        assert bids @ own + rest.fun == pytest.approx(again.fun)
        assert again.eqlin.marginals[0] == pytest.approx(price)


@pytest.mark.parametrize("demand", [0.5, 2.7, 5.2, 8.4, 12.9])
def test_bidding_sorting_clears_the_market(demand):
    bidding = page("bidding")
    bids = np.array([13.0, 41.0])
    price, own = bidding.cleared(bids, demand)
    ask, size = np.concatenate([bids, bidding.COST]), np.concatenate([bidding.OWN, bidding.CAPACITY])
    market = linprog(ask, A_eq=np.ones((1, len(ask))), b_eq=[demand], bounds=[(0, s) for s in size])
    np.testing.assert_allclose(own, market.x[:2], atol=1e-9)
    assert price == pytest.approx(market.eqlin.marginals[0])


# several followers


def nash(lead: float, cost: np.ndarray) -> np.ndarray:
    """The followers' quantities by best replies in turn."""
    q = np.zeros(len(cost))
    for _ in range(60):
        for i in range(len(q)):
            q[i] = max(0.0, (10.0 - lead - (q.sum() - q[i]) - cost[i]) / 2)
    return q


def test_several_followers_agree_with_best_replies():
    game = page("several_followers")
    result = game.run(points=3, costs=2)
    np.testing.assert_allclose(result.answers, nash(result.lead, game.COST), atol=1e-9)
    earned = [lead * (8.0 - lead - nash(lead, game.COST).sum()) for lead in np.linspace(0, 8, 161)]
    assert max(earned) <= result.best.value + 1e-9
    assert result.lead == pytest.approx(4.8)
    assert result.best.status is bg.Status.GLOBAL
    assert result.best.stats.biactive == 1
    assert result.answers[2] == pytest.approx(0, abs=1e-9)
    all_at_once = nash(0.0, np.array([2.0, *game.COST]))
    assert result.together == pytest.approx(all_at_once[0] ** 2)  # price less unit cost is the own quantity
    assert result.together < result.best.value


def test_several_followers_gradients_are_those_of_the_closed_form():
    game = page("several_followers")
    result = game.run(points=2)
    step = 1e-4

    def best(third: float) -> float:
        """By bisection on the slope of the concave profit, the followers by best replies."""
        cost, low, high = np.array([2.0, 3.0, third]), 0.0, 8.0
        while high - low > 1e-6:
            middle = (low + high) / 2
            left, right = (x * (8.0 - x - nash(x, cost).sum()) for x in (middle - 1e-5, middle + 1e-5))
            low, high = (middle, high) if right > left else (low, middle)
        return (low + high) / 2

    for third, lead, slope in list(zip(result.third, result.leads, result.slopes, strict=True))[::5]:
        assert lead == pytest.approx(best(third), abs=2e-5)
        assert lead == pytest.approx(game._exact(third), abs=1e-9)
        assert slope == pytest.approx((game._exact(third + step) - game._exact(third - step)) / (2 * step), abs=1e-6)
    assert {round(float(slope), 6) for slope in result.slopes} == {0.5, -3.0, 0.0}


# portfolio


def test_portfolio_is_the_one_that_pays_a_penalty_for_doubt():
    portfolio = page("portfolio")
    known = portfolio.markets(3, seed=2)
    shares = portfolio.portfolios(portfolio.robust(), known.past_mean, known.past_root, 2.0)
    for share, mean, root in zip(shares.numpy(), known.past_mean.numpy(), known.past_root.numpy(), strict=True):
        w = cp.Variable(portfolio.ASSETS, nonneg=True)
        penalty = 2.0 / portfolio.MONTHS**0.5 * cp.norm(root @ w)
        cost = portfolio.RISK / 2 * cp.sum_squares(root @ w) - mean @ w + penalty
        cp.Problem(cp.Minimize(cost), [cp.sum(w) == 1]).solve(solver=cp.CLARABEL)
        np.testing.assert_allclose(share, w.value, atol=2e-4)
        other, w.value = cost.value, share.clip(0)
        assert cost.value <= other + 1e-9
        covariance = root.T @ root
        worth = portfolio.YEAR * (share @ mean - portfolio.RISK / 2 * share @ covariance @ share)
        measured = portfolio.utility(*(torch.tensor(part)[None] for part in (share, mean, root)))
        assert measured.item() == pytest.approx(worth)


def test_portfolio_radius_has_the_gradient_of_re_solves():
    portfolio = page("portfolio")
    layer, known = portfolio.robust(), portfolio.markets(6, seed=3)

    def worth(radius: torch.Tensor | float) -> torch.Tensor:
        share = portfolio.portfolios(layer, known.past_mean, known.past_root, radius)
        return portfolio.utility(share, known.next_mean, known.next_root).mean()

    radius = torch.tensor(1.3, dtype=torch.double, requires_grad=True)
    worth(radius).backward()
    assert radius.grad.item() == pytest.approx((worth(1.3 + 1e-4) - worth(1.3 - 1e-4)).item() / 2e-4, rel=1e-4)


@pytest.mark.slow
def test_portfolio_trained_radius_beats_plain():
    result = page("portfolio").run()
    gain = result.trained - result.plain
    assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5
    assert result.trained.mean() > result.worth.mean(1).max() - 0.15
    assert result.trained.mean() > result.equal.mean()
    assert (result.known >= result.trained - 1e-6).all()


# adversarial training


def test_adversarial_attack_stays_in_reach_and_is_as_strong_as_another():
    digits = page("adversarial_training")
    known, _ = digits.digits(0)
    model = digits.train("plain", 0, known, epochs=5)
    seen = digits.Digits(*(part[:50] for part in known))
    with torch.no_grad():
        delta = digits.attacker(model, 50, steps=100)(dict(model.named_parameters()), seen)
    right, changed = digits.judge(model, seen, digits.REACH)
    assert delta.abs().max() <= digits.REACH + 1e-6
    assert (changed - seen.pixels).abs().max() <= digits.REACH + 1e-6
    losses = [digits.cross_entropy(model(x), seen.label).item() for x in (seen.pixels, seen.pixels + delta, changed)]
    assert losses[1] > 0.9 * losses[2] > 3 * losses[0]
    assert right.float().mean() < 0.3


@pytest.mark.filterwarnings("ignore:The hypergradient is inexact")
def test_adversarial_attack_is_no_minimum_to_differentiate_implicitly():
    digits = page("adversarial_training")
    known, _ = digits.digits(0)
    model = digits.train("plain", 0, known, epochs=2)
    attack, seen = digits.attacker(model), digits.Digits(*(part[: digits.BATCH] for part in known))

    def backward(gradient):
        layer = bg.Layer(attack.program, solver=attack.solver, gradient=gradient)
        digits.cross_entropy(model(seen.pixels + layer(dict(model.named_parameters()), seen)), seen.label).backward()

    with pytest.raises(bg.SolveError, match="curvature"):
        backward(bg.Implicit(bg.CG()))
    with pytest.warns(bg.SolveWarning, match="negative curvature"):
        backward(bg.Implicit())


def test_adversarial_training_reads_attacked_digits():
    digits = page("adversarial_training")
    known, test = digits.digits(0)
    torch.manual_seed(0)
    plain, held = (
        digits.judge(digits.train(way, 0, known, epochs=6), test, digits.REACH)[0] for way in digits.WAYS[:2]
    )
    assert held.float().mean() > plain.float().mean() + 0.2


# support vector machine


def test_svm_layer_is_the_machine_of_libsvm():
    svm = page("svm")
    from sklearn.svm import SVC

    task = svm.split(svm.wine()[0], known=60, folds=5, seed=0)
    features, label = torch.tensor(task.known.features), torch.tensor(task.known.label)
    w, b = svm.machine(60, 13)(features * label[:, None], label, torch.tensor(0.3, dtype=torch.double))
    other = SVC(kernel="linear", C=0.3, tol=1e-8).fit(task.known.features, task.known.label)
    np.testing.assert_allclose(w, other.coef_[0], atol=1e-5)
    assert b.item() == pytest.approx(other.intercept_[0], abs=1e-5)


def test_svm_hyperparameters_have_the_gradient_of_re_solves():
    svm = page("svm")
    task, layer = svm.split(svm.wine()[0], known=60, folds=5, seed=1), svm.machine(48, 13)
    at = torch.randn(14, dtype=torch.double, generator=torch.Generator().manual_seed(0)) * 0.3

    def loss(values: torch.Tensor) -> torch.Tensor:
        return svm.cross_validated(layer, task.folds, values[0] - 1, values[1:])

    (slope,) = torch.autograd.grad(loss(at.requires_grad_()), at)
    with torch.no_grad():
        for i, way in enumerate(1e-6 * torch.eye(14, dtype=torch.double)):
            assert slope[i].item() == pytest.approx((loss(at + way) - loss(at - way)).item() / 2e-6, abs=1e-6)


def test_svm_descent_beats_the_grid_and_random_search_on_its_own_target():
    svm = page("svm")
    tuned = svm.tune(*svm.wine(), known=60, folds=5, splits=2, steps=12)
    bilevel, drawn, grid = (tuned.loss[way][:, -1] for way in ("bilevel", "random search", "grid on C"))
    assert (bilevel < grid - 1e-3).all()
    assert bilevel.mean() < drawn.mean()
    assert (np.diff(tuned.loss["bilevel"]) <= 0).all()
