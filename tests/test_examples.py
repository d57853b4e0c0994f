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
