"""Textbook programs that are not quadratic, and three with prices and cones, solved by Auto: their known optima, no wrong claim.

Statements and optima of the first seven are in `bigrad.datasets.textbook`, as expressions; here they are in CVXPY.
"""

import cvxpy as cp
import pytest
from helpers import Case, case

import bigrad as bg
from bigrad import datasets


def variables(nx: int, ny: int) -> tuple[cp.Variable, cp.Variable]:
    return cp.Variable(nx, name="x"), cp.Variable(ny, name="y")


def bard() -> Case:
    x, y = variables(2, 2)
    above = [cp.square(x[0]) + 2 * x[1] <= 4, x >= 0]
    below = [
        -cp.square(x[0]) + 2 * x[0] - cp.square(x[1]) + 2 * y[0] - y[1] <= 3,
        -x[1] - 3 * y[0] + 4 * y[1] + 4 <= 0,
        y >= 0,
    ]
    upper = -cp.square(x[0]) - 3 * x[1] - 4 * y[0] + cp.square(y[1])
    return case(upper, 2 * cp.square(x[0]) + cp.square(y[0]) - 5 * y[1], y, above, below)


def colson() -> Case:
    x, y = variables(1, 1)
    upper = cp.power(10 - x[0], 3) + cp.power(10 - y[0], 3)
    return case(upper, cp.power(x[0] + 2 * y[0] - 15, 4), y, [x <= 5, y <= x, x >= 0], [x + y <= 20, y <= 20, y >= 0])


def dempe() -> Case:
    x, y = variables(1, 1)
    return case(cp.square(y[0]) + cp.square(x[0] - 1), cp.square(x[0]) * y[0], y, [], [cp.square(y[0]) <= 0])


def gumus() -> Case:
    x, y = variables(1, 1)
    upper = 16 * cp.square(x[0]) + 9 * cp.square(y[0])
    above, below = [x >= 0, x <= 12.5, y <= 4 * x], [y >= 0, y <= 50, 4 * x + y <= 50]
    return case(upper, cp.power(x[0] + y[0] - 20, 4), y, above, below)


def mitsos() -> Case:
    x, y = variables(1, 1)
    above = [x >= -1, x <= 1, y >= -0.1, y <= 0.1]
    return case(cp.square(y[0]), x[0] * y[0] + y[0] * cp.exp(x[0]), y, above, [y >= -1, y <= 1])


def nie() -> Case:
    """Its constraint -y0^2 + y1^2 + |y|^4 <= 0 with y0 >= 0 is a cone."""
    (x, y), size = variables(1, 2), cp.Variable(name="size")
    below = [cp.sum_squares(y) <= size, cp.norm(cp.hstack([y[1], size])) <= y[0]]
    return case(x[0] + y[0] + y[1], x[0] * (y[0] + y[1]), [y, size], [x >= 2, x <= 3], below)


def basblib() -> Case:
    x, y = variables(1, 1)
    lower = cp.square(x[0] + y[0]) + 2 * x[0] + 6 * y[0] + cp.exp(y[0] - x[0])
    upper = cp.power(x[0] - 5, 4) + cp.power(2 * y[0] + 1, 4)
    return case(upper, lower, y, [x + y <= 4, x >= 0, x <= 10], [y <= x + 2, y >= 0, y <= 10])


def cones() -> Case:
    x, y = variables(3, 3)
    return case(x[0], y[0], y, [cp.norm2(x[1:]) <= x[0]], [cp.norm2(y[1:]) <= y[0]])


def cone_below() -> Case:
    x, y = variables(1, 3)
    below = [x[0] + y[0] <= 8, x[0] + 4 * y[0] >= 8, x[0] + 2 * y[0] <= 12, cp.norm2(y[1:]) <= y[0]]
    return case(x[0] + 3 * y[0], -y[0], y, [x >= 2, x <= 6], below)


def market() -> Case:
    x, y = variables(1, 4)
    balance = cp.sum(y) == 26
    price = -balance.dual_variables[0]
    below = [balance, y[0] <= 10, y[1] <= 15, y[2] <= 12, y >= 0]
    upper = cp.Maximize(price * y[0] - y[0] - (price - 1) * 10)
    return case(upper, x[0] * y[0] + 2 * y[1] + 1.5 * y[2] + 100 * y[3], y, [x >= 0, price >= 0], below)


KNOWN = {p.name: p.F_star for p in datasets.textbook()}
PROGRAMS = {
    "Bard1988Ex3": (bard, KNOWN["Bard1988Ex3"]),
    "Colson2002BIPA1": (colson, KNOWN["Colson2002BIPA1"]),
    "DempeDutta2012Ex24": (dempe, KNOWN["DempeDutta2012Ex24"]),
    "GumusFloudas2001Ex1": (gumus, KNOWN["GumusFloudas2001Ex1"]),
    "MitsosBarton2006Ex38": (mitsos, KNOWN["MitsosBarton2006Ex38"]),
    "NieWangYe2017Ex34": (nie, KNOWN["NieWangYe2017Ex34"]),
    "c_2002_03": (basblib, KNOWN["c_2002_03"]),
    "second-order cones at both levels": (cones, 0.0),
    "a second-order cone below": (cone_below, 12.0),
    "a price in the upper objective": (market, 0.0),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_known_optimum(name):
    build, known = PROGRAMS[name]
    made = build()
    solution = made.program.solve(verify=True)
    # without a point inside, the follower has no multipliers: first order then proves nothing
    proofless = {bg.Status.STATIONARY} if name == "DempeDutta2012Ex24" else set()
    assert solution.status in {bg.Status.GLOBAL, bg.Status.LOCAL} | proofless
    assert solution.value == pytest.approx(known, abs=1e-4 * (1 + abs(known)))
    assert abs(solution.stats.follower_gap) < 1e-6
    if solution.stats.bound is not None:
        assert made.sense * (solution.value - solution.stats.bound) >= -1e-7 * (1 + abs(known))


def test_a_follower_without_multipliers_is_not_called_unbounded():
    """y^2 <= 0 has no multiplier at y = 0; that the multipliers run away says nothing of the objectives."""
    assert dempe().program.solve(solver=bg.Relaxation(starts=2)).status is not bg.Status.UNBOUNDED_UPPER
