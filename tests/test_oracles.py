"""Oracles against the list of all decisions on small problems, against other libraries on large ones, and what they refuse."""

import itertools
import pickle
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

import bigrad as bg
from bigrad.oracle import Oracle
from bigrad.oracles import grid, paths, tour
from bigrad.oracles.held_karp import tours


@dataclass
class Row:
    """An oracle and all of its decisions, listed by other means; with items, one list for each."""

    oracle: Oracle
    decisions: list[np.ndarray]
    least: float = -np.inf

    @property
    def n(self) -> int:
        return self.decisions[0].shape[1]

    def costs(self, rng: np.random.Generator, count: int, ties: bool) -> np.ndarray:
        low = max(self.least, -4.0)
        return rng.integers(low, 4, (count, self.n)).astype(float) if ties else rng.uniform(low, 4, (count, self.n))

    def best(self, costs: np.ndarray) -> np.ndarray:
        """What each player gets: its least sense * costs."""
        lists = [self.decisions[r * len(self.decisions) // len(costs)] for r in range(len(costs))]
        return np.array([(known @ (self.oracle.sense * c)).min() for known, c in zip(lists, costs, strict=True)])


def grid_arcs(height: int, width: int, neighbours: int) -> np.ndarray:
    moves = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0) and (neighbours == 8 or 0 in (i, j))]
    tiles = itertools.product(range(height), range(width))
    arcs = [((i, j), (i + a, j + b)) for i, j in tiles for a, b in moves if 0 <= i + a < height and 0 <= j + b < width]
    return np.array([[i * width + j, k * width + m] for (i, j), (k, m) in arcs])


def indicators(sets: list, n: int) -> np.ndarray:
    known = np.zeros((len(sets), n))
    for row, chosen in zip(known, sets, strict=True):
        row[list(chosen)] = 1
    return known


def tile_paths(height: int, width: int, neighbours: int, source: int, target: int) -> np.ndarray:
    graph = nx.DiGraph(grid_arcs(height, width, neighbours).tolist())
    return indicators(list(nx.all_simple_paths(graph, source, target)), height * width)


def arc_paths(arcs: list, source: int, target: int) -> np.ndarray:
    graph = nx.MultiDiGraph()
    graph.add_edges_from((u, v, k) for k, (u, v) in enumerate(arcs))
    return indicators([[k for *_, k in path] for path in nx.all_simple_edge_paths(graph, source, target)], len(arcs))


CYCLIC = [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 3), (0, 2), (0, 2), (1, 3), (3, 0), (4, 1), (2, 4), (4, 3)]
ACYCLIC = [(3, 0), (3, 4), (0, 4), (0, 1), (4, 1), (4, 2), (1, 2), (3, 2), (0, 1), (1, 5), (5, 2)]
NETWORK = [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (3, 0)]
CAPACITIES, SUPPLIES = np.array([2, 2, 1, 2, 1, 1]), np.array([2, 1, 0, -3])
WEIGHTS = np.array([3, 5, 7, 0, 2, 4, 9, 5])
EDGES = [(0, 1), (0, 2), (0, 3), (1, 2), (2, 1), (1, 3), (2, 3), (3, 4), (1, 4), (2, 2)]
ALLOWED = np.array([[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 1, 1]], bool)


def assignments(allowed: np.ndarray) -> np.ndarray:
    rows, columns = allowed.shape
    if rows > columns:
        turned = assignments(allowed.T).reshape(-1, columns, rows)
        return turned.transpose(0, 2, 1).reshape(-1, rows * columns)
    ways = [p for p in itertools.permutations(range(columns), rows) if all(allowed[i, j] for i, j in enumerate(p))]
    return indicators([[i * columns + j for i, j in enumerate(p)] for p in ways], rows * columns)


def flows(capacities: np.ndarray, supplies: np.ndarray) -> np.ndarray:
    balance = np.zeros((len(supplies), len(NETWORK)))
    for k, (u, v) in enumerate(NETWORK):
        balance[u, k], balance[v, k] = 1, -1
    every = np.array(list(itertools.product(*(range(c + 1) for c in capacities))), float)
    return every[(every @ balance.T == supplies).all(axis=1)]


def subsets(n: int) -> np.ndarray:
    return np.array(list(itertools.product([0.0, 1.0], repeat=n)))


def packings(weights: np.ndarray, capacity: float) -> np.ndarray:
    every = subsets(len(weights))
    return every[every @ weights <= capacity + 1e-9]


def choices(n: int, k: int) -> np.ndarray:
    return indicators(list(itertools.combinations(range(n), k)), n)


def trees() -> np.ndarray:
    every = itertools.combinations(range(len(EDGES)), 4)
    graphs = {chosen: nx.MultiGraph([EDGES[k] for k in chosen]) for chosen in every}
    return indicators([chosen for chosen, graph in graphs.items() if len(graph) == 5 and nx.is_tree(graph)], len(EDGES))


def round_trips(n: int) -> np.ndarray:
    number = {pair: k for k, pair in enumerate(itertools.combinations(range(n), 2))}
    orders = [(0, *rest) for rest in itertools.permutations(range(1, n))]
    return indicators([[number[tuple(sorted((p[i - 1], p[i])))] for i in range(n)] for p in orders], len(number))


SQUARE = subsets(4)
HALVES = np.array([0.5, 1.3, 2.25, 0.1, 0.2])
FINE = np.sqrt(np.arange(2.0, 8.0))


def cheapest(known: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda c: known[np.argmin(known @ c)]


ROWS: dict[str, Callable[[], Row]] = {
    "map, 8 neighbours": lambda: Row(bg.GridPath(3, 3), [tile_paths(3, 3, 8, 0, 8)], 0.0),
    "map, 4 neighbours": lambda: Row(bg.GridPath(3, 4, 4, (1, 1), (0, 3)), [tile_paths(3, 4, 4, 5, 3)], 0.0),
    "map, a target each": lambda: Row(
        bg.GridPath(3, 3, source=[[0, 0], [1, 1], [2, 2]], target=[[2, 2], [1, 1], [-3, 1]]),
        [tile_paths(3, 3, 8, 0, 8), indicators([[4]], 9), tile_paths(3, 3, 8, 8, 1)],
        0.0,
    ),
    "map of a line": lambda: Row(bg.GridPath(1, 4, 4, (0, 3), (0, 0)), [np.ones((1, 4))], 0.0),
    "graph with cycles": lambda: Row(bg.GraphPath(CYCLIC, 5, 0, 3), [arc_paths(CYCLIC, 0, 3)], 0.0),
    "graph, a target each": lambda: Row(
        bg.GraphPath(CYCLIC, 5, [0, 1], [3, 4]), [arc_paths(CYCLIC, 0, 3), arc_paths(CYCLIC, 1, 4)], 0.0
    ),
    "graph without cycles": lambda: Row(bg.GraphPath(ACYCLIC, 6, 3, 2), [arc_paths(ACYCLIC, 3, 2)]),
    "no cycles, a source each": lambda: Row(
        bg.GraphPath(ACYCLIC, 6, [3, 0, 4], 2), [arc_paths(ACYCLIC, s, 2) for s in (3, 0, 4)]
    ),
    "assignment": lambda: Row(bg.Assignment(3, 4), [assignments(np.ones((3, 4), bool))]),
    "assignment, tall": lambda: Row(bg.Assignment(4, 2), [assignments(np.ones((4, 2), bool))]),
    "assignment, allowed pairs": lambda: Row(
        bg.Assignment(3, 4, [ALLOWED, ~ALLOWED | np.eye(3, 4, dtype=bool)]),
        [assignments(ALLOWED), assignments(~ALLOWED | np.eye(3, 4, dtype=bool))],
    ),
    "flow": lambda: Row(bg.Flow(NETWORK, CAPACITIES, SUPPLIES), [flows(CAPACITIES, SUPPLIES)]),
    "flow, supplies each": lambda: Row(
        bg.Flow(NETWORK, CAPACITIES, [SUPPLIES, 0 * SUPPLIES]), [flows(CAPACITIES, s) for s in (SUPPLIES, 0 * SUPPLIES)]
    ),
    "knapsack": lambda: Row(bg.Knapsack(WEIGHTS, 14), [packings(WEIGHTS, 14)]),
    "knapsack, decimals": lambda: Row(bg.Knapsack(HALVES, 0.8), [packings(HALVES, 0.8)]),
    "knapsack, no decimals": lambda: Row(bg.Knapsack(FINE, 5.0), [packings(FINE, 5.0)]),
    "knapsack, a capacity each": lambda: Row(
        bg.Knapsack(WEIGHTS, [0, 14, 100, 6.5]), [packings(WEIGHTS, c) for c in (0, 14, 100, 6.5)]
    ),
    "top k": lambda: Row(bg.TopK(6, 2), [choices(6, 2)]),
    "top k, a k each": lambda: Row(bg.TopK(5, [0, 3, 5, 1]), [choices(5, k) for k in (0, 3, 5, 1)]),
    "spanning tree": lambda: Row(bg.SpanningTree(EDGES, 5), [trees()]),
    "tour of three": lambda: Row(bg.Tour(3), [round_trips(3)]),
    "tour": lambda: Row(bg.Tour(6), [round_trips(6)]),
    "given": lambda: Row(bg.Given(cheapest(SQUARE)), [SQUARE]),
    "given, batched": lambda: Row(bg.Given(lambda c: SQUARE[np.argmin(c @ SQUARE.T, axis=1)], batched=True), [SQUARE]),
    "given, in threads": lambda: Row(bg.Given(cheapest(SQUARE), threads=3), [SQUARE]),
    "given, maximising": lambda: Row(bg.Given(lambda c: cheapest(SQUARE)(-c), sense=-1.0), [SQUARE]),
    "given, items": lambda: Row(
        bg.Given(lambda c, known: cheapest(known)(c), items=[SQUARE, choices(4, 2)]), [SQUARE, choices(4, 2)]
    ),
    "given, oracles as items": lambda: Row(
        bg.Given(
            lambda c, oracle: oracle.solve(c[None])[0], items=[bg.GraphPath(CYCLIC, 5, 0, t) for t in (3, 4)], least=0.0
        ),
        [arc_paths(CYCLIC, 0, t) for t in (3, 4)],
        0.0,
    ),
}
each_row = pytest.mark.parametrize("make", ROWS.values(), ids=list(ROWS))


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@each_row
def test_the_best_of_all_decisions(make, ties):
    row = make()
    costs = row.costs(np.random.default_rng(0), 24, ties)
    before = costs.copy()
    found = row.oracle.solve(costs)
    assert found.dtype == np.float64
    assert (costs == before).all()
    values = (row.oracle.sense * costs * row.oracle.features(found)).sum(axis=1)
    np.testing.assert_allclose(values, row.best(costs), atol=1e-9)
    for r, answer in enumerate(found):
        known = row.decisions[r * len(row.decisions) // len(found)]
        assert (known == answer).all(axis=1).any(), (r, answer)


@each_row
def test_a_push_is_added_to_what_the_player_minimises(make):
    row, rng = make(), np.random.default_rng(1)
    costs = row.costs(rng, 12, ties=False) + 4
    push = rng.uniform(-2, 2, costs.shape)
    found = row.oracle.nudged(costs, push)
    lists = [row.decisions[r * len(row.decisions) // 12] for r in range(12)]
    best = [(known @ (row.oracle.sense * c + p)).min() for known, c, p in zip(lists, costs, push, strict=True)]
    np.testing.assert_allclose((found * (row.oracle.sense * costs + push)).sum(axis=1), best, atol=1e-9)


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@each_row
def test_a_batch_is_its_items_one_by_one(make, ties):
    row = make()
    items = len(row.decisions)
    costs = row.costs(np.random.default_rng(2), 300 // items * items, ties)
    found = row.oracle.solve(costs)
    pick = row.oracle.at if hasattr(row.oracle, "at") else lambda _: row.oracle
    singles = [pick([r * items // len(costs)]).solve(c[None]) for r, c in enumerate(costs)]
    assert (found == np.concatenate(singles)).all()
    order = np.random.default_rng(3).permutation(len(costs))
    assert (found[order] == pick(order * items // len(costs)).solve(costs[order])).all()
    with ThreadPoolExecutor(4) as pool:
        assert all((found == again).all() for again in pool.map(lambda _: row.oracle.solve(costs), range(4)))


@each_row
def test_costs_that_are_none(make):
    row = make()
    count = 2 * len(row.decisions)
    costs = row.costs(np.random.default_rng(4), count, ties=False)
    name = type(row.oracle).__name__
    for bad in (np.nan, np.inf, -np.inf, 1.7e308):
        wrong = costs.copy()
        wrong[1, 2] = bad
        with pytest.raises(bg.InputError, match=rf"{name}: cost 2 of item 1 of the batch is .*finite"):
            row.oracle.solve(wrong)
    for shape in [(row.n,), (1, 1, row.n)]:
        with pytest.raises(bg.InputError, match=rf"{name}: needs costs of shape \(batch, "):
            row.oracle.solve(np.zeros(shape))
    if name != "Given":
        with pytest.raises(bg.InputError, match=rf"of shape \(batch, {row.n}\), got"):
            row.oracle.solve(np.zeros((count, row.n + 1)))
        assert row.oracle.solve(np.zeros((0, row.n))).shape == (0, row.n)
    with pytest.raises(bg.InputError, match=f"{name}: costs must be real numbers, got complex"):
        row.oracle.solve(costs + 1j)
    assert (
        row.oracle.solve(costs.astype(np.float32)) == row.oracle.solve(costs.astype(np.float32).astype(float))
    ).all()
    if count > 2:
        with pytest.raises(
            bg.InputError, match=rf"{count - 1} rows of costs for {count // 2} feasible sets; give a multiple"
        ):
            row.oracle.solve(costs[1:])


@each_row
def test_oracles_travel_to_other_processes(make):
    row = make()
    if isinstance(row.oracle, bg.Given):
        pytest.skip("as its function does")
    costs = row.costs(np.random.default_rng(15), len(row.decisions), ties=False)
    found = row.oracle.solve(costs)
    assert (pickle.loads(pickle.dumps(row.oracle)).solve(costs) == found).all()


PATHS = [lambda **clamp: bg.GridPath(3, 3, **clamp), lambda **clamp: bg.GraphPath(grid_arcs(2, 2, 4)[1:], 4, **clamp)]


@pytest.mark.parametrize("make", PATHS, ids=["map", "graph"])
def test_negative_costs_are_refused_or_clamped(make):
    n = 9 if make is PATHS[0] else 7
    costs = np.random.default_rng(5).uniform(0.1, 1, (6, n))
    costs[3, 4], costs[5, 1] = -0.25, -1
    with pytest.raises(bg.InputError, match=r"cost 4 of item 3 of the batch is -0.25, below 0, .* clamp=0 to raise"):
        make().solve(costs)
    assert (make(clamp=0.0).solve(costs) == make().solve(np.maximum(costs, 0))).all()
    assert (make(clamp=0.3).solve(costs) == make().solve(np.maximum(costs, 0.3))).all()
    for clamp in (-1.0, np.nan, np.inf):
        with pytest.raises(bg.DeclarationError, match="must be a finite number of at least 0"):
            make(clamp=clamp)


ANY_SIGN = [
    lambda clamp: bg.GraphPath(ACYCLIC, 6, 3, 2, clamp=clamp),
    lambda clamp: bg.Assignment(3, 4, clamp=clamp),
    lambda clamp: bg.Flow(NETWORK, CAPACITIES, SUPPLIES, clamp=clamp),
    lambda clamp: bg.Knapsack(WEIGHTS, 14, clamp=clamp),
    lambda clamp: bg.TopK(6, 2, clamp=clamp),
    lambda clamp: bg.SpanningTree(EDGES, 5, clamp=clamp),
    lambda clamp: bg.Tour(5, clamp=clamp),
    lambda clamp: bg.Given(cheapest(SQUARE), clamp=clamp),
]


@pytest.mark.parametrize(("make", "n"), list(zip(ANY_SIGN, [11, 12, 6, 8, 6, 10, 10, 4], strict=True)))
def test_oracles_that_take_any_sign_clamp_on_request(make, n):
    costs = np.random.default_rng(6).uniform(-2, 2, (40, n))
    clamped = make(0.7).solve(costs)
    assert (clamped == make(None).solve(np.maximum(costs, 0.7))).all()
    assert (clamped != make(None).solve(costs)).any()
    with pytest.raises(bg.DeclarationError, match="clamp=nan must be a finite number"):
        make(np.nan)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bg.GridPath(0, 3), "at least one tile"),
        (lambda: bg.GridPath(3, 3, 6), "4 or 8 neighbours"),
        (lambda: bg.GridPath(3, 3, target=(3, 0)), r"target \(3, 0\) is not on the map of 3 x 3"),
        (lambda: bg.GridPath(3, 3, target=4), r"target must be \(row, column\)"),
        (lambda: bg.GridPath(3, 3, source=(0.5, 0)), "source must be whole numbers"),
        (lambda: bg.GridPath(3, 3, source=[[0, 0]] * 2, target=[[1, 1]] * 3), "numbers of items differ"),
        (lambda: bg.GraphPath([(0, 1), (2, 1)], 3, 0, 2), "target 2 cannot be reached from the source 0"),
        (lambda: bg.GraphPath([(0, 1), (1, 0), (2, 1)], 3, 0, [1, 2]), "target 2 of item 1 cannot be reached"),
        (lambda: bg.GraphPath([(0, 1), (1, 5)], 3), "name nodes 0 to 5, of 3"),
        (lambda: bg.GraphPath([0, 1], 3), r"shape \(n, 2\)"),
        (lambda: bg.GraphPath([(0, 1)], 2, 0, 7), "target 7 is not among 2 nodes"),
        (lambda: bg.Assignment(0, 3), "at least one row"),
        (lambda: bg.Assignment(2, 2, [[True, False], [True, False]]), "leave no complete assignment"),
        (lambda: bg.Assignment(2, 2, [np.eye(2) > 0, np.zeros((2, 2)) > 0]), "pairs of item 1 leave no"),
        (lambda: bg.Assignment(2, 2, np.ones((2, 2))), "allowed must be bool"),
        (lambda: bg.Flow(NETWORK, CAPACITIES, [5, 0, 0, -5]), "no flow within the capacities meets the supplies"),
        (lambda: bg.Flow(NETWORK, CAPACITIES, [SUPPLIES, [0, 0, 5, -5]]), "meets the supplies of item 1"),
        (lambda: bg.Flow(NETWORK, CAPACITIES, [1, 0, 0, 0]), "supplies sum to 1"),
        (lambda: bg.Flow(NETWORK, CAPACITIES - 2, SUPPLIES), "capacities must be at least 0"),
        (lambda: bg.Flow(NETWORK, CAPACITIES + 0.5, SUPPLIES), "capacities must be whole numbers"),
        (lambda: bg.Flow(NETWORK, [1, 2], SUPPLIES), "got"),
        (lambda: bg.Knapsack([1, -1], 3), "weights must be finite numbers of at least 0"),
        (lambda: bg.Knapsack([1, 2], np.nan), "capacity must be finite"),
        (lambda: bg.Knapsack([[1, 2]], 3), r"shape \(n,\)"),
        (lambda: bg.TopK(3, 4), "k must be from 0 to n"),
        (lambda: bg.TopK(3, 1.5), "k must be whole numbers"),
        (lambda: bg.SpanningTree([(0, 1), (2, 3)], 4), "no edges connect node 0 with node 2"),
        (lambda: bg.Tour(2), "at least 3 cities"),
        (lambda: bg.Given(3), "cannot be called"),
        (lambda: bg.Given(abs, batched=True, threads=2), "just 1 for a function of whole batches"),
        (lambda: bg.Given(abs, items=[]), "items is empty"),
        (lambda: bg.Given(abs, sense=0.5), r"sense=0.5 must be \+1"),
    ],
)
def test_what_cannot_be_declared(make, message):
    with pytest.raises(bg.DeclarationError, match=message):
        make()


@pytest.mark.parametrize(
    ("oracle", "message"),
    [
        (bg.Given(lambda c: None), "item 0 of the batch the function returned None"),
        (bg.Given(lambda c: c[None]), r"it must return real numbers of shape \(m,\)"),
        (bg.Given(lambda c: c[: int(c[0]) + 1]), "returned 2 decisions for item 1 of the batch, and 1 for item 0"),
        (
            bg.Given(lambda c: c / np.array([1, 1, 2 - c[0]]) if c[0] < 2 else c * np.nan),
            "returned nan as decision 0 of item 2",
        ),
        (bg.Given(lambda c: c[1:], batched=True), "returned 2 rows of decisions for 3 of costs"),
        (
            bg.Given(lambda c: c.sum(1), batched=True),
            r"for the batch .* it must return real numbers of shape \(batch, m\)",
        ),
        (bg.Given(lambda c: c, least=1.0), "cost 0 of item 0 of the batch is 0, below 1"),
    ],
)
def test_answers_of_a_function_are_checked(oracle, message):
    with pytest.raises(bg.InputError, match=message):
        oracle.solve(np.arange(3.0)[:, None] + np.zeros(3))


def test_a_function_may_keep_the_array_that_it_returns():
    kept = np.zeros(3)

    def decide(costs):
        kept[:] = costs > 0
        return kept

    costs = np.array([[1.0, -1, 1], [-1, 1, -1]])
    assert (bg.Given(decide).solve(costs) == (costs > 0)).all()
    assert (bg.Identity()(decide)(torch.tensor(costs)).numpy() == (costs > 0)).all()


def test_an_error_inside_a_function_names_the_item():
    def fails(costs):
        costs[:] = 0  # a copy
        raise ZeroDivisionError

    costs = np.ones((2, 3))
    with pytest.raises(ZeroDivisionError) as caught:
        bg.Given(fails).solve(costs)
    assert caught.value.__notes__ == ["raised by the function of Given at item 0 of the batch"]
    assert (costs == 1).all()


def test_items_of_a_function_run_at_the_same_time_and_come_back_in_order():
    meeting = threading.Barrier(3, timeout=20)
    oracle = bg.Given(lambda c: (meeting.wait(), c)[1], threads=3)
    costs = np.random.default_rng(7).normal(size=(6, 2))
    assert (oracle.solve(costs) == costs).all()


def test_ties_are_broken_as_the_docstrings_say():
    four = bg.GridPath(2, 2, 4)
    assert four.solve(np.ones((1, 4))).tolist() == [[1, 1, 0, 1]]  # the first of two neighbours equally near
    free = np.ones((5, 5))
    free[:, 1:] = 0  # tiles that cost nothing: the fewest of them
    assert bg.GridPath(5, 5).solve(free.reshape(1, -1)).reshape(5, 5).trace() == 5
    arcs = [(0, 1), (0, 1), (0, 2), (1, 3), (2, 3), (3, 1)]
    assert bg.GraphPath(arcs, 4).solve(np.ones((1, 6))).tolist() == [[1, 0, 0, 1, 0, 0]]
    nothing_last = np.array([[1.0, 1, 1, 0, 0, 0]])
    assert bg.GraphPath([*arcs[:5], (3, 1), (0, 3)], 4).solve(np.c_[nothing_last, 1]).tolist() == [
        [0, 0, 0, 0, 0, 0, 1]
    ]
    assert bg.TopK(4, 2).solve(np.ones((1, 4))).tolist() == [[1, 1, 0, 0]]
    assert bg.SpanningTree([(0, 1), (1, 2), (0, 2)], 3).solve(np.ones((1, 3))).tolist() == [[1, 1, 0]]
    assert bg.Knapsack([1, 1, 1], 2).solve(np.array([[1.0, 1, 1], [0, 1, 0]])).tolist() == [[1, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize("neighbours", [4, 8])
@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
def test_maps_against_networkx(neighbours, ties):
    rng = np.random.default_rng(8)
    costs = rng.integers(0, 4, (12, 63)).astype(float) if ties else rng.uniform(0, 9, (12, 63))
    found = bg.GridPath(7, 9, neighbours).solve(costs)
    arcs = grid_arcs(7, 9, neighbours)
    by_arc = bg.GraphPath(arcs, 63).solve(costs[:, arcs[:, 1]])
    for c, tiles, taken in zip(costs, found, by_arc, strict=True):
        graph = nx.DiGraph()
        graph.add_weighted_edges_from((u, v, c[v]) for u, v in arcs.tolist())
        best = nx.dijkstra_path_length(graph, 0, 62)
        np.testing.assert_allclose([c @ tiles - c[0], c[arcs[:, 1]] @ taken], best)
        nodes = np.flatnonzero(tiles).tolist()
        assert nx.has_path(graph.subgraph(nodes), 0, 62)
        used = arcs[taken > 0].tolist()
        assert nx.is_path(graph, [0, *(v for _, v in sorted(used, key=lambda a: order(used, a)))])


@pytest.mark.parametrize("neighbours", [4, 8])
def test_large_maps_and_graphs_take_a_call_each(neighbours, monkeypatch):
    rng = np.random.default_rng(14)
    costs = rng.uniform(0, 9, (8, 63))
    arcs = grid_arcs(7, 9, neighbours)
    arcs = np.r_[arcs, arcs[::3]]  # some twice
    ends = {"source": [5, 62], "target": [60, 5]}
    places = {name: np.stack(np.divmod(nodes, 9), axis=1) for name, nodes in ends.items()}
    by_arc = np.abs(costs[:, arcs[:, 1]] + rng.uniform(-0.1, 0.1, (8, len(arcs))))
    tiles = bg.GridPath(7, 9, neighbours, **places).solve(costs)
    taken = bg.GraphPath(arcs, 63, **ends).solve(by_arc)
    monkeypatch.setattr(grid, "MANY_TILES", 0)
    monkeypatch.setattr(paths, "MANY_ARCS", 0)
    assert (bg.GridPath(7, 9, neighbours, **places).solve(costs) == tiles).all()
    assert (bg.GraphPath(arcs, 63, **ends).solve(by_arc) == taken).all()
    assert bg.GridPath(7, 9).solve(np.zeros((0, 63))).shape == (0, 63)
    assert bg.GraphPath(arcs, 63).solve(by_arc[:0]).shape == (0, len(arcs))
    free = bg.GridPath(7, 9, neighbours).solve(np.zeros((1, 63)))
    assert nx.has_path(nx.DiGraph(arcs.tolist()).subgraph(np.flatnonzero(free[0]).tolist()), 0, 62)


def order(arcs: list, arc: list) -> int:
    """Where an arc comes in a path from node 0."""
    at, count, follows = 0, 0, dict(arcs)
    while at != arc[0]:
        at, count = follows[at], count + 1
    return count


def test_a_maze_that_winds_through_the_whole_map():
    maze = np.full((9, 9), 1000.0)
    maze[::2] = 1
    maze[1::4, -1] = maze[3::4, 0] = 1
    assert (bg.GridPath(9, 9, 4).solve(maze.reshape(1, -1)) == (maze == 1).reshape(1, -1)).all()


def test_large_flows_against_highs():
    rng = np.random.default_rng(9)
    arcs, nodes = grid_arcs(5, 5, 8), 25
    capacities = rng.integers(1, 6, len(arcs))
    supplies = np.zeros(nodes, int)
    supplies[[0, 1, 23, 24]] = [3, 2, -1, -4]
    costs = rng.uniform(-1, 3, (4, len(arcs)))  # with cycles worth running
    found = bg.Flow(arcs, capacities, supplies).solve(costs)
    every = np.arange(len(arcs))
    balance = sp.csr_array(
        (np.repeat([1.0, -1.0], len(arcs)), (arcs.T.ravel(), np.r_[every, every])), shape=(nodes, len(arcs))
    )
    assert (found @ balance.T == supplies).all()
    assert ((found >= 0) & (found <= capacities)).all()
    for c, flow in zip(costs, found, strict=True):
        best = linprog(c, A_eq=balance, b_eq=supplies, bounds=np.c_[0 * capacities, capacities])
        assert c @ flow == pytest.approx(best.fun, abs=1e-8)


def fullest(values: np.ndarray, sizes: np.ndarray, capacity: float) -> float:
    """What the best knapsack is worth, by HiGHS."""
    rows, whole = LinearConstraint(sizes, ub=capacity), np.ones(len(sizes))
    best = milp(-values, integrality=whole, bounds=Bounds(0, 1), constraints=rows, options={"mip_rel_gap": 0.0})
    return -best.fun


@pytest.mark.parametrize("weights", ["whole", "fine"])
def test_large_knapsacks_against_highs(weights):
    rng = np.random.default_rng(10)
    sizes = rng.choice([3, 5, 7], 48) if weights == "whole" else rng.uniform(1, 9, 48)
    capacity = np.array([60.0, 120, 180])
    values = rng.uniform(1, 20, (3, 48))
    found = bg.Knapsack(sizes, capacity).solve(values)
    assert (found @ sizes <= capacity * (1 + 1e-8)).all()
    for v, room, taken in zip(values, capacity, found, strict=True):
        assert v @ taken == pytest.approx(fullest(v, sizes, room))


def test_more_items_than_a_machine_word_has_bits():
    rng = np.random.default_rng(11)
    sizes, values = rng.uniform(1, 9, 80), rng.uniform(1, 20, (1, 80))
    found = bg.Knapsack(sizes, 150.0).solve(values)
    assert (values * found).sum() == pytest.approx(fullest(values[0], sizes, 150.0))


def test_large_trees_against_networkx():
    rng = np.random.default_rng(12)
    edges = np.array(list(itertools.combinations(range(30), 2)))
    costs = np.r_[rng.normal(size=(3, len(edges))), rng.integers(-2, 3, (3, len(edges)))]
    for c, taken in zip(costs, bg.SpanningTree(edges, 30).solve(costs), strict=True):
        graph = nx.Graph()
        graph.add_weighted_edges_from((u, v, w) for (u, v), w in zip(edges.tolist(), c, strict=True))
        assert c @ taken == pytest.approx(nx.minimum_spanning_tree(graph).size("weight"))
        assert nx.is_tree(nx.Graph(edges[taken > 0].tolist()))


def test_tiny_weights_are_not_taken_for_nothing():
    values = np.random.default_rng(16).uniform(1, 2, (5, 8))
    known = bg.Knapsack(WEIGHTS, 14).solve(values)
    for scale in (1e-10, 2.0**-40, 1e10):
        assert (bg.Knapsack(WEIGHTS * scale, 14 * scale).solve(values) * values).sum() == pytest.approx(
            (known * values).sum()
        )


def test_tours_of_more_cities_by_constraint_programming():
    rng = np.random.default_rng(13)
    oracle = bg.Tour(13)
    costs = rng.uniform(-1, 1, (3, len(oracle.edges)))
    costs[2] = 0
    found = oracle.solve(costs)
    assert (found == np.concatenate([oracle.solve(c[None]) for c in costs])).all()
    table = np.zeros((13, 13, 3))
    table[tuple(oracle.edges.T)] = table[tuple(oracle.edges[:, ::-1].T)] = costs.T
    ways = tours(table)
    best = [table[ways[:, i], np.roll(ways[:, i], 1), i].sum() for i in range(3)]
    np.testing.assert_allclose((costs * found).sum(axis=1), best, atol=1e-9)
    for taken in found:
        assert nx.is_connected(nx.Graph(oracle.edges[taken > 0].tolist()))
        assert taken.sum() == 13


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("ortools.graph.python", lambda: bg.Flow(NETWORK, CAPACITIES, SUPPLIES)),
        ("ortools.algorithms.python", lambda: bg.Knapsack(FINE, 5.0).solve(np.ones((1, 6)))),
        ("ortools.sat.python", lambda: bg.Tour(13).solve(np.ones((1, 78)))),
    ],
)
def test_oracles_that_need_ortools_say_so(module, use, monkeypatch):
    tour._circuit.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(bg.CapabilityError, match=r"OR-Tools: pip install 'bigrad\[ortools\]'"):
        use()
