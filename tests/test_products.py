"""Global on programs that are not quadratic: products of integers with answers, cones and curves, against all integers."""

import itertools

import cvxpy as cp
import numpy as np
import pytest
import torch

import bigrad as bg
from tests.test_global import best_of_all_pieces


def random_program(seed, held=None):
    """Products of the leader's integers with the follower's variables everywhere; held: the integers as numbers.

    With the integers that are allowed.
    """
    rng = np.random.default_rng([seed, 77])
    size, m, p = rng.integers(1, 3), rng.integers(1, 3), rng.integers(1, 4)
    boolean, ends = bool(rng.random() < 0.5), [(-1, 2), (-0.6, 1.7), (0.2, 0.9), (0, 3)][rng.integers(4)]
    bounds = {"boolean": True} if boolean else {"integer": True, "bounds": list(ends)}
    k = cp.Variable(size, name="k", **bounds) if held is None else cp.Constant(np.array(held, float))
    x, y = cp.Variable(name="x"), cp.Variable(m, name="y")
    whole = range(2) if boolean else range(int(np.ceil(ends[0])), int(np.floor(ends[1])) + 1)

    def number(*shape):
        return rng.integers(-2, 3, shape).astype(float)

    below = [number(p, m) @ y + cp.multiply(number(p, size) @ k, number(p, m) @ y) + number(p) * x <= number(p) + 2]
    if rng.random() < 0.8:
        below += [y <= 3, y >= -3]
    cost = number(m) @ y + (number(m, size) @ k) @ y + (number(m) * x) @ y
    if rng.random() < 0.5:
        cost = cost + (1 + (k[0] if boolean else 0)) * cp.sum_squares(y) / 2
    goal = number(size) @ k + number(m) @ y + (number(m, size) @ k) @ y + number()[()] * x
    if rng.random() < 0.4:
        goal = goal + cp.sum_squares(y - 1) + cp.square(x)
    above = [x <= 2, x >= -1]
    if rng.random() < 0.4:
        above.append((number(m, size) @ k) @ y <= 1)
    upper = cp.Maximize(-goal) if rng.random() < 0.4 else cp.Minimize(goal)
    lower = cp.Maximize(-cost) if rng.random() < 0.4 else cp.Minimize(cost)
    return (
        bg.bilevel(cp.Problem(upper, above), cp.Problem(lower, below), responds=[y]),
        k,
        list(itertools.product(whole, repeat=size)),
    )


def truth_of(seed):
    """The best value over all integers and all pieces, and the integers that reach it; None if there is none."""
    best, at = None, []
    for choice in random_program(seed)[2]:
        value = best_of_all_pieces(random_program(seed, choice)[0])
        if value is not None and (best is None or value < best + 1e-9):
            at = [*at, choice] if best is not None and value > best - 1e-9 else [choice]
            best = value if best is None else min(best, value)
    return best, at


PROVEN = (bg.Status.INFEASIBLE_LOWER, bg.Status.INFEASIBLE_UPPER, bg.Status.UNBOUNDED_LOWER)


def check(seed):
    program, k, _ = random_program(seed)
    truth, at = truth_of(seed)
    solution = program.solve(solver=bg.Global(time_limit=20), verify=True)
    where = f"seed {seed}: {solution.status.name} {solution.value}, truth {truth} at {at}, {solution.stats}"
    if truth is None:
        assert solution.status in PROVEN, where
        return solution.status
    if truth == -np.inf:
        assert solution.status in (bg.Status.UNBOUNDED_UPPER, bg.Status.NOT_FOUND), where
        return solution.status
    value = program.sign * solution.value
    assert solution.status.ok, where
    assert value == pytest.approx(truth, abs=1e-6 * (1 + abs(truth))), where
    assert tuple(np.round(solution[k]).astype(int)) in at, where
    assert abs(solution[k] - np.round(solution[k])).max() == 0, where
    assert solution.stats.follower_gap <= 1e-6, where
    assert solution.stats.violation <= 1e-8, where
    assert program.sign * solution.stats.bound <= truth + 1e-6 * (1 + abs(truth)), where
    return solution.status


@pytest.mark.parametrize("first", range(0, 32, 8))
def test_products_with_integers_against_all_integers_and_pieces(first):
    statuses = [check(seed) for seed in range(first, first + 8)]
    assert statuses.count(bg.Status.GLOBAL) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("first", range(32, 200, 24))
def test_many_products(first):
    for seed in range(first, first + 24):
        check(seed)


def test_a_multiplier_without_bound_times_an_integer_that_is_almost_whole():
    """The instance in which SCIP took 0.99999995 for one, 1e7 times."""
    assert check(55) is bg.Status.GLOBAL


k, b = cp.Variable(name="k", integer=True), cp.Variable(2, name="b", boolean=True)
x, y = cp.Variable(name="x"), cp.Variable(name="y")


def declared(upper, above, lower, below=()):
    goal = upper if isinstance(upper, cp.Maximize) else cp.Minimize(upper)
    return bg.bilevel(cp.Problem(goal, list(above)), cp.Problem(cp.Minimize(lower), list(below)), responds=[y])


FREE = [y <= 4, y >= -5]
CASES = {
    "a product in the follower's row": (cp.square(y - 2) + 0.1 * k, [k <= 3, k >= 0], -y, [k * y <= 5, *FREE], 0.3 + 1 / 9),
    "maximised": (cp.Maximize(-cp.square(y - 2) - 0.1 * k), [k <= 3, k >= 0], -y, [k * y <= 5, *FREE], -0.3 - 1 / 9),
    "a product in the leader's row": (
        cp.square(y - 2) + 0.1 * k, [k <= 9, k >= 0, k * y >= 1], cp.square(y - 0.3), [k * y <= 5, *FREE], 3.29,
    ),
    "an integer in the follower's curvature": (cp.square(y - 2) + cp.sum(b), [], (1 + b[0]) * y**2 - 2 * y * b[1], [b[0] * y <= 5], 2.0),
    "an integer without end, that pays to a point": (cp.square(y - 2) + 0.1 * k, [k >= 1], -y, [k * y <= 5, *FREE], 0.3 + 1 / 9),
    "bounds that are not whole": (cp.square(y - 2) + 0.1 * k, [k <= 2.9, k >= 0.2], -y, [k * y <= 5, *FREE], 0.45),
    "no integer": (cp.square(y - 2) + 0.1 * k, [k <= 0.8, k >= 0.2], -y, [k * y <= 5, *FREE], bg.Status.INFEASIBLE_UPPER),
    "no answer of the leader's liking": (
        cp.square(y - 2), [k <= 3, k >= 0, k * y >= 1], cp.square(y - 0.3), [k * y <= 5], bg.Status.INFEASIBLE_UPPER,
    ),
    "no answer at all": (k + y, [k <= 3, k >= 0], -y, [k * y >= 1, k * y <= 0], bg.Status.INFEASIBLE_LOWER),
    "a follower without end": (cp.square(y - 2) + 0.1 * k, [k >= 1], -y, [k * y >= 5], bg.Status.UNBOUNDED_LOWER),
    "a leader without end": (x + k, [k >= 1, k <= 2], cp.square(y - k), [k * y <= 5, y <= x], bg.Status.UNBOUNDED_UPPER),
    "an exponential above": (cp.exp(k) + cp.square(y), [k <= 10, k >= -10], cp.square(y - 0.3 * k), [], np.exp(-1) + 0.09),
    "a logarithm above": (cp.log(k) + y, [k >= 2, k <= 9], cp.square(y - k), [], 2 + np.log(2)),
    "a norm below": (
        -y + cp.square(k - 1.3), [k <= 3, k >= 1], -y, [cp.norm(cp.hstack([y - 1, k])) <= 3.5], 0.09 - 1 - np.sqrt(3.5**2 - 1),
    ),
    "a norm in the follower's cost": (
        -y + cp.square(k - 1.3), [k <= 3, k >= 1], cp.norm(cp.hstack([y - 1, k])) + 0.3 * y, [], 0.09 - 1 + 0.3 / np.sqrt(0.91),
    ),
    "an exponential below": (y + cp.square(k - 1.3), [k <= 3, k >= 1], cp.exp(y) - k * y, [], 0.09),
    "a power below": (cp.log(k) + y, [k >= 2, k <= 9], cp.power(cp.abs(y - k), 1.5) + 0.3 * y, [], 1.96 + np.log(2)),
    "no integer, products of continuous variables": (cp.square(y - 2) + 0.1 * x, [x <= 3, x >= 1], -y, [x * y <= 5, *FREE], None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_known_answers(name, capfd):
    *program, expected = CASES[name]
    solution = declared(*program).solve(solver=bg.Global(time_limit=60), verify=True)
    assert capfd.readouterr() == ("", "")
    if isinstance(expected, bg.Status):
        assert solution.status is expected
        return
    assert solution.status is bg.Status.GLOBAL
    if expected is None:  # y == 5 / x, at a stationary point of (5 / x - 2)^2 + 0.1 x
        grid = np.linspace(1, 3, 200_001)
        expected = (np.square(np.minimum(5 / grid, 4) - 2) + 0.1 * grid).min()
    assert solution.value == pytest.approx(expected, abs=1e-5)
    assert solution.stats.follower_gap <= 1e-6


def test_integers_without_end_and_without_an_optimum_are_no_global():
    solution = declared(cp.square(y - 2) - 0.1 * k, [k >= 1], -y, [k * y >= 5, *FREE]).solve(solver=bg.Global())
    assert solution.status is not bg.Status.GLOBAL
    assert solution.stats.bound is None


def test_a_follower_that_attains_nothing_is_not_called_unbounded_above():
    program = declared(
        y + cp.square(k - 1.3), [k <= 3, k >= 0], cp.exp(y) - k * y
    )  # at k == 0 the follower has no answer
    solution = program.solve(solver=bg.Global(time_limit=20))
    assert solution.status not in (bg.Status.UNBOUNDED_UPPER, bg.Status.GLOBAL)


@pytest.mark.parametrize("smooth", [False, True])
def test_the_gradient_at_integers_is_that_of_the_continuous_part(smooth):
    p, q = cp.Parameter(name="p"), cp.Parameter(name="q")
    upper = cp.square(y - p) + 0.1 * x * k + cp.square(x - 1) + (cp.exp(0.1 * x) if smooth else 0)
    program = declared(upper, [k <= 3, k >= 1, x <= 5], cp.square(y - q - x) - 0.1 * k * y, [k * y <= 5, y >= -9])
    layer = bg.Layer(program, parameters=[p, q], variables=[x, y, k], solver=bg.Global())
    at = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([2.0, 3.0, 1.2], [0.5, 1.5, 0.3])]

    def loss(*inputs):
        found = layer(*inputs)
        return (found[0] * found[1]).sum() + found[1].square().sum()

    value, step = loss(*at), 1e-5
    value.backward()
    for leaf, other in ((0, 1), (1, 0)):
        for i in range(3):
            moved = []
            for side in (step, -step):
                there = [a.detach().clone() for a in at]
                there[leaf][i] += side
                moved.append(loss(*there).item())
            assert at[leaf].grad[i].item() == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=1e-5), (leaf, other)
    with torch.no_grad():
        whole = layer(*at)[2]
    assert (whole == whole.round()).all()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ((k + y, [k >= 2, k <= 9], -cp.entr(y) + 0.3 * y * k), "an entropy, a geometric mean or another cone whose scale"),
        ((k + y, [k >= 2, k <= 9], cp.lambda_max(cp.bmat([[y, k, 0], [k, 1, 0], [0, 0, y]])) - 3 * y, [y <= 3]), "cone PSD"),
    ],
)  # fmt: skip
def test_what_scip_cannot_be_given_is_refused_by_name(program, words):
    with pytest.raises(bg.CapabilityError, match=words):
        declared(*program).solve()


def test_a_batch_with_a_bad_item_and_a_warm_start():
    p = cp.Parameter(name="p", nonneg=True)
    program = declared(cp.square(y - p) + 0.1 * k, [k <= 3, k >= 0], -y, [k * y <= 5, *FREE])
    first = program.solve({p: 2.0})
    again = program.solve({p: 2.0}, warm_start=first)
    assert again.status is bg.Status.GLOBAL
    assert again.value == pytest.approx(first.value, abs=1e-9)
    assert program.solve({p: -1.0}).status is bg.Status.INVALID_INPUT
