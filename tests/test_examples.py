"""The examples run, small, and do what they say."""

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

import bigrad as bg
from bigrad.datasets import italy_power_demand, semo_prices
from bigrad.losses import Solved

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    """One of the examples as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tariff() -> ModuleType:
    return load("tariff")


def test_tariff_prints_its_table_and_saves_its_picture(tariff, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    torch.manual_seed(5)
    costs = tariff.main(days=40, held_out=10, warm_up=2, epochs=1, seeds=2, folder=tmp_path)
    printed = capsys.readouterr().out
    assert "own split has only 67 training days" in printed
    assert "32 days to train on, 8 to choose the epoch by, 10 held out" in printed
    for name in ("flat price", "two-stage", "end to end", "perfect foresight"):
        assert f"\n{name} " in printed
    assert len(costs["end to end"]) == 2
    assert min(cost.min() for cost in costs.values()) == costs["perfect foresight"].item()
    assert (tmp_path / "tariff.png").read_bytes().startswith(b"\x89PNG")


def test_tariff_customers_answer_with_their_true_demand(tariff):
    """The load and the cost that the example books are those of the true customers, by their optimality conditions."""
    days = torch.as_tensor(italy_power_demand(train=700, seed=0).train[:4])
    expected = days.roll(1, 0)
    expected[:, : tariff.SEEN] = days[:, : tariff.SEEN]
    booked = tariff.realised(tariff.tariff_layer(), expected, days)
    for price, load, cost, demand in zip(*(part.numpy() for part in (*booked, days)), strict=True):
        free = price[tariff.SEEN :]

        def shift(level: float, free: np.ndarray = free) -> np.ndarray:
            """The follower's optimality conditions: as far as the price is below the level of a common multiplier."""
            return np.clip((level - free) / tariff.DISCOMFORT, -tariff.FLEXIBLE, tariff.FLEXIBLE)

        level = brentq(lambda level: shift(level).sum(), free.min() - 1, free.max() + 1, xtol=1e-14)
        np.testing.assert_allclose(load - demand, [*np.zeros(tariff.SEEN), *shift(level)], atol=1e-9)
        np.testing.assert_allclose(price[: tariff.SEEN], 1, atol=1e-9)
        terms = tariff.LEVEL * np.square(price - 1).sum() + tariff.JUMP * np.square(np.diff(price)).sum()
        np.testing.assert_allclose(cost, load.max() + terms)


def test_tariff_gradient_is_that_of_the_realised_cost(tariff):
    """The derivative by which the example learns, against central differences of re-solves."""
    days = torch.as_tensor(italy_power_demand(train=700, seed=0).train[:3])
    layer, expected = tariff.tariff_layer(), (0.9 * days).requires_grad_()
    direction = torch.linspace(-1, 1, tariff.HOURS, dtype=torch.float64).sin()
    (gradient,) = torch.autograd.grad(tariff.realised(layer, expected, days).cost.sum(), expected)
    step = 1e-5 * direction
    with torch.no_grad():
        ahead, behind = (tariff.realised(layer, expected + s, days).cost for s in (step, -step))
    np.testing.assert_allclose(gradient @ direction, (ahead - behind) / 2e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def energy() -> ModuleType:
    return load("energy_knapsack")


def test_energy_prints_its_tables_and_saves_its_picture(energy, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    torch.manual_seed(5)
    regret = energy.main(capacities=(60, 120), seeds=2, epochs=2, days=40, models=(False, True), folder=tmp_path)
    printed = capsys.readouterr().out
    assert "32 days to train on,\n8 to choose the epoch by, and the file's own 237 later days" in printed
    assert "does not see the weights" in printed
    assert "knows the weights" in printed
    assert set(regret) == {*energy.losses(bg.Knapsack([1.0], 1)), "market's forecast × weight", "item's mean value"}
    for name, found in regret.items():
        assert printed.count(f"\n{name} ") == 2
        assert found.shape == (2, 1 if name in ("market's forecast × weight", "item's mean value") else 2)
        assert found.min() > 0
    assert (tmp_path / "energy_knapsack.png").read_bytes().startswith(b"\x89PNG")


def test_energy_decision_focused_training_beats_two_stage(energy):
    """On the ordinary split, a few epochs: the order that the example shows."""
    runs = energy.compare(semo_prices(), capacity=120, seed=0, epochs=4)
    regret = {name: run.regret.mean().item() for name, run in runs.items()}
    assert regret["SPO+"] < 0.7 * regret["two-stage"]
    assert regret["blackbox"] < 0.7 * regret["two-stage"]


def test_energy_regret_is_the_loss_of_value_of_the_items_taken(energy):
    """Against knapsacks enumerated by hand, two items out of three."""
    knapsack = bg.Knapsack([3.0, 5.0, 7.0], 10)
    true = torch.tensor([[4.0, 5.0, 6.0], [3.0, 1.0, 1.0]])  # best: items 0 and 2 (10), items 0 and 1 or 2 (4)
    predicted = torch.tensor([[1.0, 4.0, 2.0], [0.0, 0.0, 9.0]])  # takes items 0 and 1 (9), item 2 (1)
    best = energy.solved(knapsack, energy.Days(torch.zeros(2, 3, 1), true))
    assert isinstance(best, Solved)
    np.testing.assert_allclose(energy.regrets(knapsack, predicted, best), [100 / 7, 300 / 7], rtol=1e-6)


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    pytest.importorskip("ortools")
    pytest.importorskip("sklearn")
    return load("digit_interdiction")


def ways_across(size: int) -> np.ndarray:
    """The tiles of every path from corner to corner that visits none twice, (paths, tiles)."""
    places = list(np.ndindex(size, size))
    found = []

    def walk(path: list[tuple[int, int]]) -> None:
        if path[-1] == places[-1]:
            found.append([float(place in path) for place in places])
            return
        for place in places:
            (row, column), (there, across) = place, path[-1]
            if place not in path and max(abs(row - there), abs(column - across)) == 1:
                walk([*path, place])

    walk([places[0]])
    return np.array(found)


def test_digits_players_decide_as_enumeration_says(digits):
    """Every blockade against every path; and no other blockade is as good, so that what is observed is no matter of chance."""
    from bigrad_paper.maps import BUDGET, EXTRA

    game = digits.Game(3)
    _, _, maps = digits.digit_maps(game, (1, 1, 12))
    paths = ways_across(3)
    every = np.array([x for x in itertools.product((0.0, 1.0), repeat=9) if sum(x) <= BUDGET])
    extra = np.array([0, *[EXTRA] * 7, 0])
    for costs, blocked, path in zip(*(part.double().numpy() for part in maps[1:]), strict=True):
        totals = (costs + extra * every) @ paths.T
        values = totals.min(1) - every @ game.upkeep.double().numpy()
        second, best = np.sort(values)[-2:]
        assert best - second > 1e-6
        assert (every[values.argmax()] == blocked).all()
        assert (paths[totals[values.argmax()].argmin()] == path).all()
        assert best == pytest.approx(((costs + extra * blocked) * path).sum() - blocked @ game.upkeep.numpy(), rel=1e-5)


def test_digits_of_held_out_maps_are_never_trained_on(digits):
    game = digits.Game(3)
    train, valid, test = (
        set(map(bytes, maps.tiles.flatten(0, 1).numpy())) for maps in digits.digit_maps(game, (60,) * 3)
    )
    assert len(train) > 100
    assert not train & test
    assert not train & valid
    assert not valid & test


def test_digits_scores_of_known_predictions(digits):
    game = digits.Game(4)
    _, _, maps = digits.digit_maps(game, (1, 1, 10))
    exact = digits.judge(game, (maps.blocked, maps.path), maps)
    np.testing.assert_allclose(torch.stack(exact), [100, 100, 100, 0, 0, 1, 1, 100], rtol=1e-6)
    nothing = torch.zeros_like(maps.path)
    none = digits.judge(game, (nothing, nothing), maps)
    assert none.both == none.blocked == none.path == none.crossing == 0
    assert none.wrong_path == maps.path.sum(1).mean()
    assert none.kept < 1
    everywhere = digits.judge(game, (maps.blocked, 1 - nothing), maps)
    assert everywhere.blocked == everywhere.crossing == 100
    assert everywhere.paid > 1


def test_digits_prints_its_table_and_saves_its_picture(digits, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    scores = digits.main(size=4, counts=(16, 8, 8), epochs=1, seeds=2, folder=tmp_path)
    printed = capsys.readouterr().out
    assert "4 x 4 maps: 16 to train on, 8 to choose the epoch by, 8 held out" in printed
    for name in digits.methods(digits.Game(4)):
        assert f"\n{name} " in printed
        assert len(scores[name]) == 2
    assert (tmp_path / "digit_interdiction.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_digits_learns_both_decisions_where_a_single_level_cannot(digits, tmp_path):
    """The quick form."""
    scores = digits.main(folder=tmp_path)
    both = {name: float(score[0].both) for name, score in scores.items()}
    assert both["Fenchel-Young"] > both["single level, as a game"]
    assert both["Fenchel-Young"] > both["single level"]


@pytest.fixture(scope="module")
def fenchel() -> ModuleType:
    return load("fenchel_digits")


@pytest.mark.slow
def test_fenchel_prints_its_tables_and_trains_within_a_point_of_back_propagation(fenchel, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    right = fenchel.main(seeds=3, epochs=10, folder=tmp_path)
    printed = capsys.readouterr().out
    assert "1200 digits to train on, 597 held out, 10 epochs" in printed
    for name, found in right.items():
        assert f"\n{name} " in printed
        own = right[f"back-propagation, {'Hardtanh' if 'Hardtanh' in name else 'ReLU'}"]
        assert float((found - own).mean()) > -1
        assert float(found.mean()) > 90
    assert (tmp_path / "fenchel_digits.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_fenchel_gradients_equal_autograd_while_no_kink_is_crossed(fenchel):
    for seed in range(3):
        apart = fenchel.distances(fenchel.digits(seed), seed, betas=(1e-6, 1e-4, 1.0))
        assert apart[:2].max() <= 1e-12
        assert apart[2] > 1e-2


@pytest.fixture(scope="module")
def regularisation() -> ModuleType:
    return load("regularisation")


@pytest.mark.slow
def test_regularisation_prints_its_tables_and_saves_its_picture(regularisation, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    results = regularisation.main(splits=2, folder=tmp_path)
    printed = capsys.readouterr().out
    assert "295 known and 147 held-out items" in printed
    assert "380 known and 189 held-out items" in printed
    for rows in results.values():
        assert all(f"\n{name} " in printed for name in rows)
        assert (rows["one penalty, by grid"] < rows["next to no penalty"]).all()
    diabetes = results["diabetes"]
    assert (diabetes["one a group, by hypergradient"] <= diabetes["one penalty, by grid"]).all()
    assert (tmp_path / "regularisation.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["diabetes", "breast cancer"])
def test_regularisation_fits_as_scikit_learn_does_and_its_hypergradient_is_a_slope(regularisation, task):
    from sklearn.linear_model import LogisticRegression, Ridge

    load_data, held_out, _ = regularisation.TASKS[task]
    known, _ = regularisation.split(load_data(), 0, held_out)
    penalty, columns, items = 0.1, known.inputs.shape[1], len(known.inputs)
    shown = torch.ones(1, items, dtype=torch.float64)
    x = torch.tensor(penalty, dtype=torch.float64).log()
    y = regularisation.layer(1, columns)(x, known, shown)[0]
    inputs, targets = known.inputs[:, :-1].numpy(), known.targets.numpy()
    if known.labels:
        model = LogisticRegression(C=1 / (items * penalty), tol=1e-10, max_iter=10_000).fit(inputs, targets)
    else:
        model = Ridge(items * penalty).fit(inputs, targets)
    np.testing.assert_allclose(y[:-1], model.coef_.ravel(), atol=1e-4)

    folds, weights = regularisation.folds(items), regularisation.layer(regularisation.FOLDS, columns)

    def validated(x: torch.Tensor) -> torch.Tensor:
        return (regularisation.losses(weights(x, known, folds), known) * (1 - folds)).sum()

    x = x.expand(columns - 1).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(validated(x), x)
    direction = torch.linspace(-1, 1, columns - 1, dtype=torch.float64).cos()
    with torch.no_grad():
        ahead, behind = (validated(x + s * direction) for s in (1e-3, -1e-3))
    np.testing.assert_allclose(gradient @ direction, (ahead - behind) / 2e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def cleaning() -> ModuleType:
    pytest.importorskip("sklearn")
    return load("hyper_cleaning")


def test_cleaning_tasks_are_half_wrong_and_their_parts_disjoint(cleaning):
    task = cleaning.Task.of(3, train=60, clean=20)
    assert int(task.wrong.sum()) == 30
    assert ((task.labels != task.true) == task.wrong).all()
    assert len(task.train) + len(task.clean) + len(task.test) == 1797
    y, w = task.zero + 0.1, torch.zeros(60, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda y: task.lower(w, y), y).reshape(650, 650)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    assert eigenvalues[0] >= 2 * cleaning.REG - 1e-9
    assert eigenvalues[-1] <= task.curvature
    half, twice = (task.refit(s * torch.ones(60), task.labels, clean=s) for s in (0.5, 1.0))
    assert half == twice  # only relative weights count


def test_cleaning_ways_agree_on_the_gradient(cleaning):
    """Implicit, unrolled and equilibrium gradients of the same task, the first against differences of re-solves."""
    task, found = cleaning.Task.of(0, train=40, clean=20), []
    x = torch.linspace(-1, 1, 40, dtype=torch.float64).requires_grad_()
    tight = bg.Descent(tol=1e-9)
    fista = bg.Descent(bg.FISTA(task.curvature, 2 * cleaning.REG), steps=1500, tol=0)
    for solver, rule in (
        (tight, bg.Implicit(bg.CG(tol=1e-9))),
        (fista, bg.Unrolled(pieces=None)),
        (tight, bg.EqProp(1e-3, bg.Central(), solver=bg.Descent(tol=1e-10))),
    ):
        loss = task.upper(bg.Layer(task.program, solver=solver, gradient=rule)(x))
        found.append(torch.autograd.grad(loss, x)[0])
    np.testing.assert_allclose(found[1], found[0], atol=1e-5 * float(found[0].norm()))
    np.testing.assert_allclose(found[2], found[0], atol=1e-4 * float(found[0].norm()))
    direction, layer = torch.linspace(0, 9, 40, dtype=torch.float64).cos(), bg.Layer(task.program, solver=tight)
    with torch.no_grad():
        ahead, behind = (float(task.upper(layer(x + s * direction))) for s in (1e-3, -1e-3))
    assert float(found[0] @ direction) == pytest.approx((ahead - behind) / 2e-3, rel=1e-3)


@pytest.mark.slow
def test_cleaning_beats_noisy_labels_and_comes_near_clean_ones(cleaning, tmp_path, capsys):
    """One seed, fewer steps."""
    pytest.importorskip("matplotlib")
    anchors, found = cleaning.main(seeds=1, steps=20, first_seed=10, folder=tmp_path)
    printed = capsys.readouterr().out
    assert "1000 to train on, 500 of them with wrong labels, 200 clean, 597 held out" in printed
    assert set(found) == {"implicit CG", "unrolled", "equilibrium", "BOME", "MAID"}
    for name in (*anchors, *found):
        assert f"\n{name} " in printed
    assert min(found.values()) > anchors["noisy"]
    assert max(found.values()) > anchors["clean"] - 2
    assert (tmp_path / "hyper_cleaning.png").read_bytes().startswith(b"\x89PNG")
