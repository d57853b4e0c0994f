"""Every oracle on whole batches beside the road that its peers take: one item after the other through a library.

    python tests/benchmarks/bench_oracles.py

Microseconds an item, median and range; peers on at most 64 items of the batch. Both sides are checked to reach the same
optimum. The figures to meet: a 12 x 12 map with 8 neighbours in 30, a knapsack of 48 items and capacity 120 in 20, PyEPO's 5 x 5
grid of right and down arcs in 3, an assignment of 20 x 20 in 20.
"""

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import numpy as np
import scipy.sparse as sp
from ortools.algorithms.python import knapsack_solver
from ortools.graph.python import linear_sum_assignment, min_cost_flow
from ortools.sat.python import cp_model
from scipy.optimize import linear_sum_assignment as scipy_assignment
from scipy.sparse.csgraph import dijkstra, minimum_spanning_tree
from timing import in_turn, machine

import bigrad as bg
from bigrad.oracle import Oracle

sys.path.append(str(Path(__file__).parents[1]))
from test_oracles import grid_arcs

BATCHES = (1, 32, 128, 512)
PEERS = 64
STEPS = 10**6

Peer = Callable[[np.ndarray], float]


@dataclass
class Row:
    """An oracle, costs for it, and by name what gives the optimal value of one item another way."""

    name: str
    oracle: Oracle
    draw: Callable[[int], np.ndarray]
    peers: dict[str, Peer]
    largest: int = BATCHES[-1]


def by_scipy(arcs: np.ndarray, nodes: int, target: int) -> Peer:
    starts = np.searchsorted(arcs[:, 0], np.arange(nodes + 1))

    def solve(costs: np.ndarray) -> float:
        graph = sp.csr_array((costs, arcs[:, 1], starts), shape=(nodes, nodes))
        found, before = dijkstra(graph, indices=0, return_predecessors=True)
        at, path = target, [target]
        while at:
            at = before[at]
            path.append(at)
        return float(found[target])

    return solve


def by_networkx(arcs: np.ndarray, target: int) -> Peer:
    ends = arcs.tolist()

    def solve(costs: np.ndarray) -> float:
        graph = nx.DiGraph()
        graph.add_weighted_edges_from((u, v, c) for (u, v), c in zip(ends, costs.tolist(), strict=True))
        return float(nx.dijkstra_path_length(graph, 0, target))

    return solve


def by_flow(arcs: np.ndarray, capacities: np.ndarray, supplies: np.ndarray) -> Peer:
    def solve(costs: np.ndarray) -> float:
        solver = min_cost_flow.SimpleMinCostFlow()
        whole = (costs * STEPS).astype(np.int64)
        added = solver.add_arcs_with_capacity_and_unit_cost(arcs[:, 0], arcs[:, 1], capacities, whole)
        solver.set_nodes_supplies(np.arange(len(supplies)), supplies)
        solver.solve()
        return float(costs @ solver.flows(added))

    return solve


def flow_by_networkx(arcs: np.ndarray, capacities: np.ndarray, supplies: np.ndarray) -> Peer:
    def solve(costs: np.ndarray) -> float:
        graph = nx.DiGraph()
        graph.add_nodes_from((v, {"demand": -int(s)}) for v, s in enumerate(supplies))
        for (u, v), most, cost in zip(
            arcs.tolist(), capacities.tolist(), (costs * STEPS).astype(int).tolist(), strict=True
        ):
            graph.add_edge(u, v, capacity=most, weight=cost)
        return nx.network_simplex(graph)[0] / STEPS

    return solve


def by_knapsack_solver(weights: np.ndarray, capacity: int) -> Peer:
    def solve(values: np.ndarray) -> float:
        solver = knapsack_solver.KnapsackSolver(knapsack_solver.SolverType.KNAPSACK_64ITEMS_SOLVER, "")
        solver.init((values * STEPS).astype(np.int64).tolist(), [weights.tolist()], [capacity])
        solver.solve()
        return float(sum(values[i] for i in range(len(values)) if solver.best_solution_contains(i)))

    return solve


def assign_by_scipy(costs: np.ndarray) -> float:
    table = costs.reshape(20, 20)
    return float(table[scipy_assignment(table)].sum())


def assign_by_ortools(costs: np.ndarray) -> float:
    solver, places = linear_sum_assignment.SimpleLinearSumAssignment(), np.indices((20, 20)).reshape(2, -1)
    solver.add_arcs_with_cost(*places, (costs * STEPS).astype(np.int64))
    solver.solve()
    return solver.optimal_cost() / STEPS


def tree_by_scipy(edges: np.ndarray) -> Peer:
    return lambda c: float(minimum_spanning_tree(sp.csr_array((c, tuple(edges.T)), shape=(20, 20))).sum())


def tree_by_networkx(edges: np.ndarray) -> Peer:
    def solve(costs: np.ndarray) -> float:
        graph = nx.Graph()
        graph.add_weighted_edges_from((u, v, c) for (u, v), c in zip(edges.tolist(), costs.tolist(), strict=True))
        return float(nx.minimum_spanning_tree(graph).size("weight"))

    return solve


def tour_by_cpsat(edges: np.ndarray) -> Peer:
    def solve(costs: np.ndarray) -> float:
        model = cp_model.CpModel()
        both = np.concatenate([edges, edges[:, ::-1]]).tolist()
        ways = [(i, j, model.new_bool_var("")) for i, j in both]
        model.add_circuit(ways)
        whole = np.tile((costs * STEPS).astype(np.int64), 2).tolist()
        model.minimize(cp_model.LinearExpr.weighted_sum([way for *_, way in ways], whole))
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.solve(model)
        return solver.objective_value / STEPS

    return solve


def rows() -> list[Row]:
    rng = np.random.default_rng(0)
    arcs, right_down = grid_arcs(12, 12, 8), grid_arcs(5, 5, 4)
    right_down = right_down[right_down[:, 1] > right_down[:, 0]]
    into = arcs[:, 1]
    ones, ends = np.ones(len(arcs), np.int64), np.eye(144, dtype=np.int64)[0] - np.eye(144, dtype=np.int64)[143]
    weights, edges = rng.choice([3, 5, 7], 48), np.array(list(itertools.combinations(range(20), 2)))
    capacities, supplies = rng.integers(2, 6, len(arcs)), 5 * ends

    def uniform(n: int) -> Callable[[int], np.ndarray]:
        return lambda batch: rng.uniform(0.8, 9.2, (batch, n))

    map_peers = {
        "scipy": lambda c: by_scipy(arcs, 144, 143)(c[into]) + c[0],
        "networkx": lambda c: by_networkx(arcs, 143)(c[into]) + c[0],
        "OR-Tools flow": lambda c: by_flow(arcs, ones, ends)(c[into]) + c[0],
    }
    arc_peers = {"scipy": by_scipy(arcs, 144, 143), "networkx": by_networkx(arcs, 143)}
    grid_peers = {"scipy": by_scipy(right_down, 25, 24), "networkx": by_networkx(right_down, 24)}
    flow_peers = {
        "OR-Tools": by_flow(arcs, capacities, supplies),
        "networkx": flow_by_networkx(arcs, capacities, supplies),
    }
    tour_8, tour_12 = bg.Tour(8), bg.Tour(12)
    return [
        Row("map 12 x 12, 8 neighbours", bg.GridPath(12, 12), uniform(144), map_peers),
        Row("the same as a graph, 1012 arcs", bg.GraphPath(arcs, 144), uniform(len(arcs)), arc_peers),
        Row("grid 5 x 5, right and down", bg.GraphPath(right_down, 25), uniform(40), grid_peers),
        Row(
            "assignment 20 x 20",
            bg.Assignment(20, 20),
            uniform(400),
            {"scipy": assign_by_scipy, "OR-Tools": assign_by_ortools},
        ),
        Row("flow of 5, 1012 arcs", bg.Flow(arcs, capacities, supplies), uniform(len(arcs)), flow_peers, 32),
        Row(
            "knapsack 48, capacity 120",
            bg.Knapsack(weights, 120),
            uniform(48),
            {"OR-Tools": by_knapsack_solver(weights, 120)},
        ),
        Row("top 5 of 50", bg.TopK(50, 5), uniform(50), {"numpy": lambda c: float(np.sort(c)[-5:].sum())}),
        Row(
            "spanning tree, 20 nodes",
            bg.SpanningTree(edges, 20),
            uniform(190),
            {"scipy": tree_by_scipy(edges), "networkx": tree_by_networkx(edges)},
        ),
        Row("tour of 8", tour_8, uniform(28), {"CP-SAT": tour_by_cpsat(tour_8.edges)}),
        Row("tour of 12", tour_12, uniform(66), {"CP-SAT": tour_by_cpsat(tour_12.edges)}, 32),
    ]


def main() -> None:
    print(machine("numpy", "scipy", "ortools", "networkx"))
    print("microseconds an item: median (range)")
    for row in rows():
        print(f"\n{row.name}")
        for batch in BATCHES:
            if batch <= row.largest:
                costs = row.draw(batch)
                [times] = in_turn(lambda row=row, costs=costs: row.oracle.solve(costs))
                print(f"  bigrad, batch {batch:4}: {times.show('us', batch)}")
        few = costs[:PEERS]
        values = (row.oracle.features(row.oracle.solve(few)) * few).sum(axis=1)
        for name, peer in row.peers.items():
            found = [peer(c) for c in few]
            assert np.allclose(found, values, rtol=1e-4), (row.name, name)
            [times] = in_turn(lambda peer=peer, few=few: [peer(c) for c in few], rounds=3, warmup=0)
            print(f"  {name + ', one by one':18}: {times.show('us', len(few))}")


if __name__ == "__main__":
    main()
