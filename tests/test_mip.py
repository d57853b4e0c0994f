"""One integer program solved many times: the answers are those of scipy's HiGHS, solved afresh each time."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import Bounds, LinearConstraint, milp

from bigrad.discrete import whole
from bigrad.discrete.mip import Mip
from bigrad.discrete.nested import Rows
from bigrad.solution import Status


def random_program(seed, integers):
    rng = np.random.default_rng(seed)
    n, m = 6, 4
    matrix = rng.integers(-3, 4, (m, n)).astype(float)
    middle = matrix @ rng.integers(-1, 3, n)
    rows = Rows(sp.csr_array(matrix), middle - rng.integers(0, 4, m), middle + rng.integers(0, 4, m))
    integer = {"all": np.ones(n, bool), "some": rng.random(n) < 0.5, "none": np.zeros(n, bool)}[integers]
    return Mip(np.full(n, -2.0), np.full(n, 4.0), integer, rows), rng


@pytest.mark.parametrize("integers", ["all", "some", "none"])
@pytest.mark.parametrize("seed", range(6))
def test_answers_are_those_of_fresh_solves(seed, integers):
    program, rng = random_program(seed, integers)
    costs = rng.normal(size=(20, 6)) if seed % 2 else rng.integers(-5, 6, (20, 6)).astype(float)
    shift = rng.integers(-4, 5, (20, 4)).astype(float)
    for moved in (None, shift):
        found = program.solve(costs, moved)
        for k, c in enumerate(costs):
            by = 0 if moved is None else moved[k]
            rows = LinearConstraint(program.rows.matrix, program.rows.lower - by, program.rows.upper - by)
            fresh = milp(c, constraints=rows, bounds=Bounds(-2, 4), integrality=program.integer.astype(int))
            if fresh.status == 2:
                assert found.status[k] is Status.INFEASIBLE_UPPER
                assert np.isnan(found.values[k]).all()
                continue
            assert found.status[k] is Status.GLOBAL
            assert c @ found.values[k] == pytest.approx(fresh.fun, abs=3e-6)  # HiGHS keeps rows to 1e-6
            at = program.rows.matrix @ found.values[k]
            assert (at >= program.rows.lower - by - 1e-6).all()
            assert (at <= program.rows.upper - by + 1e-6).all()
            assert (found.values[k][program.integer] % 1 == 0).all()


def test_unbounded_and_infeasible_are_told_apart():
    free = Mip(
        np.full(2, -np.inf), np.full(2, np.inf), np.array([True, False]), Rows(sp.csr_array((0, 2)), *np.zeros((2, 0)))
    )
    assert free.solve(np.ones((1, 2))).status[0] is Status.UNBOUNDED_UPPER
    rows = Rows(sp.csr_array(np.array([[2.0, 0.0]])), np.ones(1), np.ones(1))
    odd = Mip(np.zeros(2), np.full(2, 9.0), np.array([True, False]), rows)
    assert odd.solve(np.ones((1, 2))).status[0] is Status.INFEASIBLE_UPPER


def test_rounding_says_how_far_rounded_costs_may_mislead():
    reach = np.array([1.0, 3.0])
    assert whole.rounding(np.array([3.0, -7.0]), reach) == 0
    costs = np.array([0.1, np.pi])
    scale, error = whole.scale(costs, reach), whole.rounding(costs, reach)
    assert 0 < error < 1e-11
    assert abs(np.rint(costs * scale) / scale - costs) @ reach <= error


def test_a_time_limit_leaves_no_answer():
    rng = np.random.default_rng(0)
    weights = rng.integers(1000, 9999, (8, 60)).astype(float)
    rows = Rows(sp.csr_array(weights), np.full(8, -np.inf), weights.sum(1) // 2)
    program = Mip(np.zeros(60), np.ones(60), np.ones(60, bool), rows)
    found = program.solve(-rng.integers(1000, 9999, (1, 60)).astype(float), time_limit=0.05)
    assert found.status[0] in (Status.TIME_LIMIT, Status.GLOBAL)
