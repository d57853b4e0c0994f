"""Systems that share a matrix: one inverse for all must give what a solve of each on its own gives."""

import numpy as np
import pytest

from bigrad.algebra.exchange import Exchange
from bigrad.algebra.linear import exchange, solve_free


def alike(n: int = 60, batch: int = 12, changes: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((n, n))
    free = np.tile(np.arange(n) < 2 * n // 3, (batch, 1))
    for row in free:
        at = rng.integers(0, n, changes)
        row[at] = ~row[at]
    return matrix + matrix.T, free, rng.standard_normal((batch, n))


def test_one_inverse_solves_alike_items_as_their_own_solves_do():
    matrix, free, rhs = alike()
    ready = exchange(matrix[None], free)
    u, solved = ready.items(free).exactly(rhs)
    assert solved.all()
    assert np.allclose(u, solve_free(matrix[None], free, rhs)[0], rtol=1e-9, atol=1e-11)
    assert abs(np.where(free, u @ matrix - rhs, 0.0)).max() < 1e-11 * abs(u).max()
    assert not u[~free].any()


def test_items_that_differ_much_and_singular_ones_are_left_to_others():
    matrix, free, rhs = alike()
    free[3] = ~free[3]
    free[5] = free[4]
    twin = np.flatnonzero(free[5])[0]
    apart = np.flatnonzero(~free[4])[0]
    matrix[apart], matrix[:, apart] = matrix[twin], matrix[:, twin]
    matrix[apart, apart] = matrix[twin, twin]
    free[5, apart] = True  # the same row twice
    items = exchange(matrix[None], free).items(free)
    solved = items.exactly(rhs)[1]
    assert not solved[3]
    assert not solved[5]
    u, singular = solve_free(matrix[None], free, rhs, items)
    expected, flags = solve_free(matrix[None], free, rhs)
    assert np.array_equal(singular, flags)
    assert singular[5]
    assert np.allclose(u, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("changes", [60, 0])
def test_no_exchange_for_items_that_have_little_in_common_or_are_few(changes):
    matrix, free, _ = alike(changes=changes)
    assert Exchange.of(matrix, np.ones(len(matrix)), free if changes else free[:2]) is None


def test_no_exchange_where_nothing_is_free(capfd):
    matrix, free, _ = alike()
    assert Exchange.of(matrix, np.ones(len(matrix)), np.zeros_like(free)) is None
    assert capfd.readouterr() == ("", ""), "LAPACK complains of empty matrices on its own"
