"""The discrete half of the gallery: each page's claim, checked by other means."""

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.optimize import lsq_linear, minimize
from scipy.stats import kendalltau

GALLERY = Path(__file__).parents[1] / "examples" / "gallery"


def load(name: str) -> ModuleType:
    """A page's script as a module."""
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location(name, GALLERY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def draws(page: ModuleType, result: object, folder: Path) -> None:
    """The picture of a small run is a picture."""
    page.draw(result, folder / "picture.png")
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_knapsack_interdiction_leaves_the_least_that_any_bans_leave(tmp_path):
    page = load("knapsack_interdiction")
    result = page.run(n=10, budgets=(0, 3, 7, 12, 20), seed=1)
    items, sets = result.instance, np.array(list(itertools.product([0, 1], repeat=10)))
    fitting = sets[sets @ items.weights <= items.capacity]
    left = ((fitting * items.values) @ (1 - sets).T).max(0)  # of every set of bans
    assert result.proven
    for k, budget in enumerate(result.budgets):
        affordable = sets @ items.prices <= budget
        assert result.value[k] == left[affordable].min()
        assert items.prices @ result.banned[k] <= budget
        assert items.weights @ result.taken[k] <= items.capacity
        assert items.values @ result.taken[k] == result.value[k]
        assert not (result.banned[k] * result.taken[k]).any()
        assert result.value[k] <= min(result.densest[k], result.most_wanted[k])
    assert (result.densest > result.value).any()  # foresight pays
    draws(page, result, tmp_path)


def every_path(arcs: np.ndarray, nodes: int) -> np.ndarray:
    """All ways without a circle from the first to the last node, (paths, arcs)."""

    def onward(way: list[int], seen: set[int], node: int) -> list[list[int]]:
        if node == nodes - 1:
            return [way]
        steps = [(k, head) for k, (tail, head) in enumerate(arcs) if tail == node and head not in seen]
        return [found for k, head in steps for found in onward([*way, k], seen | {head}, head)]

    ways = onward([], {0}, 0)
    return np.array([np.isin(np.arange(len(arcs)), way) for way in ways], float)


def test_path_interdiction_against_every_set_of_guards_and_every_path(tmp_path):
    page = load("path_interdiction")
    place = page.town(side=3, seed=5)
    result = page.run(place, guards=2, sigma=0.3, samples=80)
    s, paths = len(place.streets), every_path(place.arcs, 9)
    sets = np.array([np.isin(np.arange(s), pair) for pair in itertools.combinations(range(s), 2)], float)
    met = np.einsum("ga,pa->gpa", np.tile(sets, 2), paths)  # guarded arcs of each path

    def values(costs: np.ndarray, delays: np.ndarray) -> np.ndarray:
        """Of every set of guards, at costs and delays of arcs."""
        return (paths @ costs + met @ delays).min(1)

    costs, delays = page.inputs(place)
    assert result.proven
    assert result.free_value == pytest.approx((paths @ costs).min())
    found = values(costs, delays)
    assert result.value == pytest.approx(found.max())
    assert result.value > result.free_value
    np.testing.assert_array_equal(result.guarded, sets[found.argmax()])
    assert result.value == pytest.approx((place.costs + place.delays * result.guarded) @ result.after)

    shift = 1e-4 * np.eye(s)
    ahead, behind = ([values(np.tile(place.costs + sign * h, 2), delays).max() for h in shift] for sign in (1, -1))
    np.testing.assert_allclose(result.gradient, np.subtract(ahead, behind) / 2e-4, atol=1e-9)
    np.testing.assert_array_equal(result.gradient, result.after)

    rng, slopes = np.random.default_rng(0), []
    for noise in rng.normal(0, 0.3, (500, 2, 2 * s)):  # of arcs, as in the layer: costs and delays
        c, d = costs + noise[0], delays + noise[1]
        guards = values(c, d).argmax()
        slopes.append(paths[(paths @ c + met[guards] @ d).argmin()].reshape(2, -1).sum(0))
    error = np.std(slopes, axis=0) * np.sqrt(1 / 80 + 1 / 500)
    assert (abs(result.smoothed - np.mean(slopes, axis=0)) <= 4 * error + 1e-12).all()
    draws(page, result, tmp_path)


def test_integer_leader_has_the_least_total_of_all_plans(tmp_path):
    page = load("integer_leader")
    net = page.network()
    kept = [0, 2, 4, 6, 9]  # the coal town's line among them
    net = net._replace(lines=net.lines[kept], limit=net.limit[kept], price=net.price[kept])
    result = page.run(net)
    best = result.best
    assert result.proven
    assert len(result.plans) == 32
    assert best.total == pytest.approx(result.totals.min())
    assert result.bound <= best.total + 1e-6
    np.testing.assert_allclose(result.gap, (best.total - result.bound) / (1 + abs(best.total)), atol=1e-6)

    market = page.dispatch(net, best.built)  # by HiGHS, of these lines
    served = np.bincount(net.places, best.output, len(net.demand)) + page.incidence(net) @ best.flow + best.unserved
    np.testing.assert_allclose(served, net.demand, atol=1e-6)
    assert (abs(best.flow) <= net.limit * best.built + 1e-6).all()
    assert net.cost @ best.output == pytest.approx(net.cost @ market.output)
    assert best.total == pytest.approx(market.total)

    assert result.hoped.total < best.total < result.naive.total  # the page's story
    assert (result.naive.built - best.built)[0] == 1
    draws(page, result, tmp_path)


def test_integer_leader_dispatches_islands_as_by_hand():
    page = load("integer_leader")
    net = page.network()
    plan = page.dispatch(net, np.zeros(len(net.lines)))  # every place on its own
    own = np.minimum(net.demand, net.capacity)
    np.testing.assert_allclose(plan.output, own, atol=1e-9)
    short = net.shed * (net.demand - own).sum()
    assert plan.total == pytest.approx((net.cost + page.CARBON * net.emission) @ own + short)


def test_predict_then_optimise_halves_the_regret_of_a_wrong_model_and_not_of_a_right_one(tmp_path):
    page = load("predict_then_optimise")
    result = page.run(degrees=(1, 8), seeds=2, test=300, epochs=10)
    squares, spo, young = result.regret.values()
    assert (squares[0] < spo[0]).all()
    assert (spo[1] < 0.8 * squares[1]).all()
    assert (young[1] < 0.8 * squares[1]).all()
    assert (result.error["least squares"] < result.error["SPO+"]).all()  # better decisions, worse predictions
    draws(page, result, tmp_path)


def test_predict_then_optimise_regrets_are_those_of_all_paths():
    torch = pytest.importorskip("torch")
    page = load("predict_then_optimise")
    path, (known, unseen) = page.town(), page.samples((50, 40), 6, seed=3)
    every = every_path(page.streets(), page.SIDE**2)
    assert len(every) == 70
    model = page.least_squares(known)
    padded = np.column_stack([known.features, np.ones(50)])
    weights = np.linalg.solve(padded.T @ padded, padded.T @ known.costs.numpy())  # the normal equations
    new = np.column_stack([unseen.features, np.ones(40)]) @ weights
    np.testing.assert_allclose(model(unseen.features).detach(), new, rtol=1e-8)

    true = unseen.costs.numpy()
    paid, least = (true * every[(new @ every.T).argmin(1)]).sum(1), (true @ every.T).min(1)
    np.testing.assert_allclose(page.regrets(model, path, unseen), 100 * (paid - least) / least.mean(), atol=1e-9)
    target = page.Solved(unseen.costs, torch.as_tensor(path.solve(true)))
    bound = page.SPOPlus(path, reduction="none")(torch.as_tensor(new), target)
    best = every[(true @ every.T).argmin(1)]
    np.testing.assert_allclose(bound, -((2 * new - true) @ every.T).min(1) + 2 * (new * best).sum(1) - least, atol=1e-9)
    assert (bound.numpy() >= paid - least - 1e-12).all()

    known, unseen = page.samples((200, 1000), 8, seed=3)
    error = (page.least_squares(known)(unseen.features) - unseen.costs).detach().square()
    dearest = unseen.costs > unseen.costs.quantile(0.9)
    taken = torch.as_tensor(path.solve(unseen.costs.numpy()))
    assert error[dearest].sum() > error.sum() / 2
    assert taken[dearest].sum() < taken.sum() / 20


def test_inverse_game_plays_as_a_plain_search_does():
    page = load("inverse_game")
    layer = page.game()
    days = page.some_days(layer, 2, seed=4)
    taste, decline, goal = page.PLANTED[:12].view(3, 4).numpy()
    ratio, scale = page.PLANTED[12:].tolist()
    miss, change = np.exp((scale + ratio) / 2), np.exp((scale - ratio) / 2)
    root = np.linalg.cholesky(np.diag(np.exp(decline)) + page.CROWDING).T

    for ordinary, weather, seen in zip(*(part.numpy() for part in days), strict=True):

        def answer(fares: np.ndarray, weather: np.ndarray = weather) -> np.ndarray:
            """The riders', by a bounded least-squares solver."""
            goods = np.linalg.solve(root.T, taste + weather - fares)
            return lsq_linear(root, goods, (0, page.SEATS.numpy()), method="bvls", tol=1e-14).x

        def cost(fares: np.ndarray, rides: np.ndarray, ordinary: np.ndarray = ordinary) -> float:
            return miss / 2 * ((rides - goal) ** 2).sum() + change / 2 * ((fares - ordinary) ** 2).sum()

        fares, rides = seen[:4], seen[4:]
        np.testing.assert_allclose(answer(fares), rides, atol=1e-7)
        starts = [ordinary, ordinary - 0.5, fares + 0.1]
        found = [minimize(lambda p, a=answer, c=cost: c(p, a(p)), start, method="L-BFGS-B") for start in starts]
        assert cost(fares, rides) == pytest.approx(min(f.fun for f in found), abs=1e-6)


def test_inverse_game_recovers_what_its_jacobian_sees_and_only_that():
    torch = pytest.importorskip("torch")
    page = load("inverse_game")
    layer = page.game()
    days = page.some_days(layer, 10, seed=0)
    slopes = page.jacobian(layer, days, page.PLANTED)
    step = 1e-5 * torch.eye(14, dtype=torch.float64)
    ahead, behind = (
        torch.stack([page.play(layer, page.PLANTED + sign * h, days).flatten() for h in step], 1) for sign in (1, -1)
    )
    np.testing.assert_allclose(slopes, (ahead - behind) / 2e-5, atol=1e-7)
    hidden = [3, 7, 11, 13]  # taste, decline and goal of the full line, and the scale
    assert torch.linalg.matrix_rank(slopes) == 10
    assert slopes[:, hidden].abs().max() < 1e-12

    other = page.PLANTED.clone()
    other[hidden] += torch.tensor([1.0, -0.5, -0.4, 2.0], dtype=torch.float64)
    np.testing.assert_allclose(page.play(layer, other, days), days.seen, atol=1e-9)
    told = [k for k in range(14) if k not in hidden]
    guess = other.clone()
    guess[told] += 0.3 * torch.randn(10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found, loss = page.fit(layer, days, guess)
    assert loss < page.EXACT
    np.testing.assert_allclose(found[told], page.PLANTED[told], atol=1e-4)
    np.testing.assert_allclose(found[hidden], other[hidden], atol=1e-9)


@pytest.mark.slow
def test_inverse_game_errors_under_noise_are_as_predicted(tmp_path):
    page = load("inverse_game")
    result = page.run(starts=4)
    met, told = result.losses < page.EXACT, result.told > 0.5
    assert met.sum() >= 3
    assert (result.fits - page.PLANTED)[met][:, told].abs().max() < 1e-5
    ratio = (result.noisy / result.deviation)[:, told].square().mean().sqrt()
    assert 0.6 < ratio < 1.5
    assert result.usual[met].max() < 1e-6
    assert result.unusual[met].min() > 0.01
    draws(page, result, tmp_path)


def test_structured_prediction_answers_are_optima():
    torch = pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    page = load("structured_prediction")
    rng = np.random.default_rng(0)
    orders = np.array(list(itertools.permutations(range(5))))
    scores = rng.normal(size=(20, 5))
    np.testing.assert_array_equal(page.ranks(scores), orders[(scores @ orders.T).argmax(1)])
    a, b = rng.normal(size=(2, 6, 7))
    tau = np.mean([kendalltau(x, y).statistic for x, y in zip(a, b, strict=True)])
    assert page.kendall(a, b) == pytest.approx(tau)

    labels = torch.as_tensor(rng.integers(0, 10, (30, 8)))
    np.testing.assert_array_equal(page.read(page.as_path(labels)), labels)
    digits, follows = torch.as_tensor(rng.normal(size=(30, 8, 10))), torch.as_tensor(rng.normal(size=(10, 10)))
    costs = page.arc_costs(digits, follows)
    found = page.likeliest(page.trellis(), costs)
    best = digits[:, 0].numpy()
    for place in range(1, 8):  # Viterbi's recursion
        best = (best[:, :, None] + follows.numpy()).max(1) + digits[:, place].numpy()
    np.testing.assert_allclose(-(costs * page.as_path(found)).sum(1), best.max(1))
    worth = digits.gather(2, found[..., None]).sum((1, 2)) + follows[found[:, :-1], found[:, 1:]].sum(1)
    np.testing.assert_allclose(worth, best.max(1))


def test_structured_prediction_reads_better_than_one_at_a_time(tmp_path):
    pytest.importorskip("sklearn")
    page = load("structured_prediction")
    sizes = {
        "matching": {"count": 100, "tests": 60, "epochs": 15},
        "sequence": {"count": 120, "tests": 60, "epochs": 8},
    }
    parts = {}
    for name in ("matching", "ranking", "sequence"):
        scores, shown = getattr(page, name)(1, **sizes.get(name, {}))
        parts[name] = page.Part({model: np.array([value]) for model, value in scores.items()}, shown)
        alone = next(iter(scores.values()))
        through = next(value for model, value in scores.items() if "through" in model)
        assert through > alone + 3, name
    answers = parts["matching"].shown["trained through the matching"]
    np.testing.assert_array_equal(answers.sort(1).values, np.tile(np.arange(10), (60, 1)))  # each kind once
    shown = parts["sequence"].shown
    assert np.corrcoef(shown["rules"].flatten(), shown["learned"].flatten())[0, 1] > 0.7
    draws(page, parts, tmp_path)


PAGES = [
    "inverse_game",
    "knapsack_interdiction",
    "path_interdiction",
    "predict_then_optimise",
    "structured_prediction",
    "integer_leader",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_a_page_runs_as_its_reader_runs_it(name, tmp_path, capsys):
    load(name).main(tmp_path / "picture.png")
    assert "Picture: " in capsys.readouterr().out
    assert (tmp_path / "picture.png").stat().st_size < 120_000
    text = (GALLERY.parents[1] / "docs" / "gallery" / f"{name}.md").read_text("utf-8")
    assert f"]({name}.png)" in text
    assert f"python examples/gallery/{name}.py" in text
