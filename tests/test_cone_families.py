"""Followers of every family of cones and atoms: re-solved by Clarabel, gradients equal to differences of re-solves.

The default suite takes one seed of each; `-m slow` all twenty.
"""

import numpy as np
import pytest
from families import FAMILIES, SEMIDEFINITE, examined, family, semidefinite_program
from helpers import brute_force

import bigrad as bg

SEEDS = [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(1, 20))]
ORDERS = [
    *((2, 0), (3, 1), (4, 2), (6, 3)),
    *(pytest.param(order, k, marks=pytest.mark.slow) for order in range(3, 9) for k in range(4, 8)),
]
"""Orders and seeds: with five kinds twenty programs of each order in the full run."""


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_random_programs(name: str, seed: int) -> None:
    assert examined(family(name, seed), seed, bg.Relaxation(starts=3)).worst <= 1e-5


@pytest.mark.parametrize("kind", SEMIDEFINITE)
@pytest.mark.parametrize(("order", "seed"), ORDERS)
def test_semidefinite_followers(order: int, kind: str, seed: int) -> None:
    assert examined(semidefinite_program(kind, order, seed), seed, bg.Relaxation(starts=3)).worst <= 1e-5


@pytest.mark.parametrize("name", ["a ball that moves", "two norms", "entropy", "cubes"])
def test_against_a_grid_of_decisions(name: str) -> None:
    problem = family(name, 5)
    (x,) = problem.leader
    side = np.linspace(-2, 2, 7)
    best = brute_force(problem, {x: [np.array([a, b]) for a in side for b in side]}, polish=2)
    solution = problem.program.solve(problem.values)
    assert solution.value <= best + 1e-4 * (1 + abs(best))
