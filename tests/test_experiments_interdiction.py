"""The two interdiction experiments after the BiGrad paper: readers, games against brute force, measures, quick runs."""

import itertools

import numpy as np
import pytest
import runner
import torch

pytest.importorskip("ortools")
pytest.importorskip("sklearn")

import maps
import salesman
import shortest_path
import warcraft

import bigrad as bg

SIZE, PIXELS = 4, 2


@pytest.fixture
def folder(tmp_path):
    """Files as those of the Warcraft maps, five maps of 4 x 4 tiles of 2 x 2 pixels, of five kinds."""
    rng, place = np.random.default_rng(0), tmp_path / f"{SIZE}x{SIZE}"
    place.mkdir()
    for part in ("train", "test"):
        kind = rng.integers(0, 5, (5, SIZE, SIZE))
        costs = np.array(maps.LEVELS)[kind].astype(np.float16)
        shade = np.array([[0, 0, 255], [255, 0, 0], [0, 255, 0], [9, 9, 9], [255, 255, 255]])[kind]
        pictures = shade.repeat(PIXELS, axis=1).repeat(PIXELS, axis=2).astype(np.uint8)
        pictures[..., -1, 0, :] = (1, 2, 3)  # the lower left pixel of every map
        paths = bg.GridPath(SIZE, SIZE).solve(costs.reshape(5, -1).astype(float)).reshape(costs.shape)
        for what, array in (("maps", pictures), ("vertex_weights", costs), ("shortest_paths", paths.astype(np.uint8))):
            np.save(place / f"{part}_{what}.npy", array)
    return tmp_path


def test_warcraft_files_are_cut_into_tiles(folder):
    read = warcraft.read_warcraft(folder, SIZE, "train", count=3)
    assert read.tiles.shape == (3, SIZE**2, PIXELS**2 * 3)
    pictures = np.load(folder / "4x4" / "train_maps.npy")
    for m, row, column in itertools.product(range(3), range(SIZE), range(SIZE)):
        cut = pictures[m, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(-1) / 255
        np.testing.assert_allclose(read.tiles[m, SIZE * row + column], cut, rtol=1e-6)
    np.testing.assert_allclose(read.tiles[0, SIZE * (SIZE - 1), 6:9], np.array([1, 2, 3]) / 255, rtol=1e-6)
    np.testing.assert_array_equal(read.costs, np.load(folder / "4x4" / "train_vertex_weights.npy")[:3].reshape(3, -1))
    np.testing.assert_array_equal(read.paths, bg.GridPath(SIZE, SIZE).solve(read.costs))


def test_warcraft_reader_says_what_is_missing_or_does_not_fit(folder):
    with pytest.raises(FileNotFoundError, match=r"12x12.*train_maps.npy.*give the folder"):
        warcraft.read_warcraft(folder, 12)
    np.save(folder / "4x4" / "train_shortest_paths.npy", np.zeros((5, 3, 3)))
    with pytest.raises(
        ValueError, match=r"train_shortest_paths.npy: got an array of \(5, 3, 3\), expected \(5, 4, 4\)"
    ):
        warcraft.read_warcraft(folder, SIZE)
    np.save(folder / "4x4" / "train_maps.npy", np.zeros((5, 9, 9, 3)))
    with pytest.raises(ValueError, match=r"expected \(maps, 4 p, 4 p, 3\)"):
        warcraft.read_warcraft(folder, SIZE)


def test_warcraft_maps_are_trained_on(folder):
    scale = shortest_path.Scale(SIZE, 4, 3, 2, 2, 1)
    settings = shortest_path.Settings((scale,), warcraft=str(folder))
    train, test = shortest_path.maps_of(scale, 0, settings.images, settings.warcraft)
    assert train.tiles.shape == (4, SIZE**2, 12)
    assert len(test.tiles) == 3
    game = shortest_path.game_on(SIZE)
    again = game.answer(train.costs, train.blocked)
    assert (game.value(train.costs, train.blocked, again) == game.value(train.costs, train.blocked, train.path)).all()
    for row in ("PT, both levels", "direct"):
        figures = shortest_path.run(shortest_path.Method(SIZE, *shortest_path.ROWS[row]), 0, settings)
        assert {"both", "blocked", "path", "kept", "train"} <= set(figures)
        assert 0 <= figures["both"] <= 100
        assert 0 < figures["kept"] <= 1 + 1e-6


def test_digit_maps_of_one_seed_share_their_tiles_and_another_seed_has_others():
    scale = shortest_path.Scale(3, 30, 30, 8, 1, 0)
    train, test = (
        {bytes(tile) for tile in part.tiles.flatten(0, 1).numpy()} for part in shortest_path.maps_of(scale, 0, 20, None)
    )
    other = {bytes(tile) for tile in shortest_path.maps_of(scale, 1, 20, None)[0].tiles.flatten(0, 1).numpy()}
    assert train == test
    assert len(train) == 20
    assert train != other


def test_tiles_with_the_same_image_are_read_once_and_cost_the_same():
    network = shortest_path.ReadOnce(4).eval()
    tiles = torch.rand(3, 4)[torch.randint(3, (5, 7))]
    np.testing.assert_allclose(network(tiles).detach(), maps.Reader.forward(network, tiles).detach(), rtol=1e-6)
    seen = []
    network.hidden.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    network(tiles)
    assert seen == [3]


def test_what_a_single_level_predicts_is_the_best_blockade_of_its_path():
    game = maps.Game(3)
    costs = torch.as_tensor(np.random.default_rng(0).uniform(1, 9, (6, 9)), dtype=torch.float32)
    blocked, path = game.in_turn(costs)
    every = torch.tensor([x for x in itertools.product((0.0, 1.0), repeat=9) if sum(x) <= maps.BUDGET])
    for row in range(6):
        worth = (game.extra * path[row] - game.upkeep) @ every.T
        assert (every[worth.argmax()] == blocked[row]).all()


@pytest.mark.parametrize(("wrong", "at_rest"), [(shortest_path.distance, True), (shortest_path.hamming, False)])
def test_only_the_distance_has_no_slope_where_decisions_are_right(wrong, at_rest):
    seen = torch.tensor([[1.0, 0, 1, 0]])
    found = seen.clone().requires_grad_()
    assert wrong(found, seen) == 0
    (slope,) = torch.autograd.grad(wrong(found, seen), found)
    assert (slope == 0).all() == at_rest
    assert wrong(1 - seen, seen) == 4


def every_tour(game):
    """The roads of every round trip, (tours, roads)."""
    number = {frozenset(pair): at for at, pair in enumerate(zip(*(end.tolist() for end in game.roads), strict=True))}
    tours = set()
    for order in itertools.permutations(range(1, game.k)):
        stops = (0, *order)
        tours.add(tuple(sorted(number[frozenset((stops[at], stops[(at + 1) % game.k]))] for at in range(len(stops)))))
    taken = np.zeros((len(tours), len(number)))
    for row, roads in zip(taken, tours, strict=True):
        row[list(roads)] = 1
    return taken


@pytest.fixture(scope="module")
def trips():
    return salesman.trips_of(salesman.Scale(6, 12, 8, 1), 3)[0]


def test_salesman_closes_the_best_road_of_all_and_no_other_is_as_good(trips):
    game = salesman.game_of(6)
    tours = every_tour(game)
    assert len(tours) == 60
    for upkeep, costs, closed, tour in zip(*(part.double().numpy() for part in trips[1:]), strict=True):
        options = np.vstack([np.zeros(15), np.eye(15)])
        lengths = (costs + salesman.EXTRA * options) @ tours.T
        values = lengths.min(1) - options @ upkeep
        second, best = np.sort(values)[-2:]
        assert best - second > 1e-6
        assert (options[values.argmax()] == closed).all()
        assert (tours[lengths[values.argmax()].argmin()] == tour).all()
    value = game.value(trips, trips.closed, trips.tour)
    for road in torch.eye(15):
        other = road.expand(12, -1)
        assert (game.value(trips, other, game.answer(trips.costs, other)) <= value + 1e-5).all()


def test_salesman_lengths_are_those_between_the_cities():
    game, places = salesman.game_of(5), torch.rand(salesman.CITIES, 3, generator=torch.Generator().manual_seed(0))
    cities = torch.tensor([[3, 1, 4, 15, 92]])
    found = salesman.between(places, cities, game.roads)[0]
    ends = [(a, b) for at, a in enumerate(cities[0]) for b in cities[0][at + 1 :]]
    np.testing.assert_allclose(found, [np.linalg.norm(places[a] - places[b]) for a, b in ends], atol=2e-5)


def test_salesman_pass_through_makes_wrong_roads_longer_and_missed_ones_shorter(trips):
    """One level, told the closed road: the slope in costs is minus the sign of what is wrong, and nothing else."""
    game = salesman.game_of(6)
    costs = (trips.costs.flip(1) * salesman.USUAL / trips.costs.mean()).requires_grad_()
    faced = costs + salesman.EXTRA * trips.closed + 0.1 * trips.tour
    found = torch.as_tensor(game.tours.solve(faced.detach().double().numpy()), dtype=costs.dtype)
    assert (found != trips.tour).any()
    loss = salesman.alone(salesman.PT, salesman.distance, told=True)(game, costs, trips, 0.1)
    (slope,) = torch.autograd.grad(loss, costs)
    np.testing.assert_allclose(slope, -(found - trips.tour) / len(costs), atol=1e-6)


def test_salesman_scores_of_known_predictions(trips):
    game = salesman.game_of(6)
    exact = salesman.judge(game, (trips.closed, trips.tour), trips)
    expected = {"both": 100, "closed": 100, "tour": 100, "wrong_closed": 0, "wrong_tour": 0, "kept": 1, "round": 100}
    expected["paid"] = 1
    assert exact == pytest.approx(expected)
    nothing = torch.zeros_like(trips.tour)
    none = salesman.judge(game, (nothing, nothing), trips)
    assert none["both"] == none["closed"] == none["tour"] == none["round"] == 0
    assert (none["wrong_closed"], none["wrong_tour"]) == (1, 6)
    assert none["kept"] < 1
    assert "paid" not in none
    detour = salesman.judge(game, (trips.closed, game.answer(-trips.costs, nothing)), trips)
    assert detour["round"] == 100
    assert detour["paid"] > 1


def test_rows_that_differ_in_what_they_predict_share_a_network():
    settings = salesman.Settings((salesman.Scale(5, 10, 5, 1),))
    rows = [salesman.ROWS[name] for name in ("PT, one level", "PT, one level, then the game")]
    first, second = (salesman.trained(loss, settings.scales[0], 0, settings)[0] for loss, _ in rows)
    assert first is second
    assert first is not salesman.trained(salesman.BB_ALONE, settings.scales[0], 0, settings)[0]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [shortest_path.EXPERIMENT, salesman.EXPERIMENT], ids=lambda e: e.name)
def test_quick_runs_write_their_results(experiment, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    records = runner.main(experiment, ["--quick", "--seeds", "1", "--out", str(tmp_path)])
    assert [r.method for r in records] == list(experiment.methods)
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in experiment.methods)
    assert (tmp_path / f"{experiment.name}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / f"{experiment.name}.json").stat().st_size > 1000


@pytest.mark.slow
def test_salesman_learns_from_both_levels_what_a_single_level_cannot():
    settings = salesman.Settings((salesman.Scale(8, 250, 100, 12),))
    figures = {
        name: salesman.run(salesman.Method(8, *salesman.ROWS[name]), 0, settings)
        for name in ("BB, both levels", "BB, one level", "BB, one level, then the game")
    }
    assert figures["BB, both levels"]["both"] > figures["BB, one level"]["both"]
    assert figures["BB, both levels"]["kept"] > figures["BB, one level, then the game"]["kept"]
