"""Several followers: independent ones, Nash equilibria of quadratic games, and what is refused."""

import pickle
from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from derivatives import compare
from helpers import fixed, objective_at, solved, violation_at

import bigrad as bg
from bigrad.solvers.equilibrium import respond
from bigrad.solvers.pieces import Pieces
from bigrad.solvers.relaxation import Relaxation


@dataclass
class Game:
    """A leader and several followers, with parameter values; `program` is what the tables of tests/derivatives.py need."""

    upper: cp.Problem
    lower: list[cp.Problem]
    responds: list[list[cp.Variable]]
    values: dict[cp.Parameter, Any] = field(default_factory=dict)

    @property
    def program(self) -> bg.Program:
        return bg.bilevel(self.upper, self.lower, responds=self.responds)

    def check(self, solution: bg.Solution, tolerance: float = 1e-6) -> None:
        """No follower gains by another answer, by HiGHS; all constraints hold; the values are those of the user's problems."""
        everyone = {v: solution[v] for p in (self.upper, *self.lower) for v in p.variables()}
        at = {**self.values, **everyone}
        assert max(violation_at(p, at) for p in (self.upper, *self.lower)) <= tolerance
        sign = 1.0 if isinstance(self.upper.objective, cp.Minimize) else -1.0
        assert sign * solution.value == pytest.approx(objective_at(self.upper, at), abs=1e-7)
        assert len(solution.lower_value) == len(self.lower)
        for problem, answers, value in zip(self.lower, self.responds, solution.lower_value, strict=True):
            sign = 1.0 if isinstance(problem.objective, cp.Minimize) else -1.0
            here = objective_at(problem, at)
            assert sign * value == pytest.approx(here, abs=1e-7)
            alone = fixed(problem, {k: v for k, v in at.items() if k not in set(answers)})
            assert here - sign * alone.solve(solver=cp.HIGHS) <= tolerance * (1 + abs(here))


def cournot(
    firms: int, *, joint: float | None = None
) -> tuple[Game, cp.Variable, list[cp.Variable], dict[str, cp.Parameter]]:
    """A leader sells q0 before the firms sell theirs; the price is a - q0 - the sum of all, the unit costs are c."""
    a, c = cp.Parameter(name="a"), cp.Parameter(firms + 1, name="c")
    q0, q = cp.Variable(name="q0", nonneg=True), [cp.Variable(name=f"q{i}", nonneg=True) for i in range(1, firms + 1)]
    lower = []
    for i, own in enumerate(q):
        others = sum(o for o in q if o is not own)
        lower.append(cp.Problem(cp.Maximize((a - c[i + 1]) * own - cp.square(own) - own * (q0 + others))))
    upper = cp.Problem(cp.Maximize((a - c[0]) * q0 - (q0 + sum(q)) * q0), [] if joint is None else [sum(q) <= joint])
    values = {a: 10.0, c: np.linspace(1.0, 2.0, firms + 1)}
    return Game(upper, lower, [[own] for own in q], values), q0, q, {"a": a, "c": c}


@pytest.mark.parametrize("firms", [2, 3, 5])
@pytest.mark.parametrize("solver", [None, Relaxation(starts=2)])
def test_stackelberg_cournot_in_closed_form(firms, solver):
    game, q0, q, p = cournot(firms)
    solution = game.program.solve(game.values, solver=solver, verify=True)
    a, c = 10.0, np.linspace(1.0, 2.0, firms + 1)
    lead = (a - (firms + 1) * c[0] + c[1:].sum()) / 2  # the price left is (a - q0 + sum of c) / (firms + 1)
    price = (a - lead + c[1:].sum()) / (firms + 1)
    assert solution[q0] == pytest.approx(lead, abs=1e-7)
    np.testing.assert_allclose([solution[v] for v in q], price - c[1:], atol=1e-7)
    assert solution.stats.follower_gap <= 1e-8
    assert len(solution.lower_value) == firms
    game.check(solution)

    layer = bg.Layer(game.program, [p["a"], p["c"]], [q0, q[0]], solver=solver)
    given = [torch.tensor(a, dtype=torch.float64, requires_grad=True), torch.tensor(c, requires_grad=True)]
    slopes = torch.autograd.grad(layer(*given)[0], given)
    assert slopes[0].item() == pytest.approx(0.5, abs=1e-7)
    np.testing.assert_allclose(slopes[1], [-(firms + 1) / 2] + [0.5] * firms, atol=1e-7)


def test_an_upper_constraint_on_all_answers_binds():
    game, _, q, _ = cournot(2, joint=1.0)
    report = compare(game)
    game.check(report.solution)
    assert sum(report.solution[v] for v in q) == pytest.approx(1.0, abs=1e-8)
    assert report.worst <= 1e-5


def test_a_tax_on_firms_that_meet_in_a_market():
    """Revenue of one tax rate on n equal firms with price a - Q: q = (a - tax) / (n + 1), so the best rate is a / 2."""
    n, a = 4, 6.0
    tax, q = cp.Variable(name="tax"), [cp.Variable(name=f"q{i}", nonneg=True) for i in range(n)]
    lower = [cp.Problem(cp.Minimize(cp.square(v) + v * sum(o for o in q if o is not v) + (tax - a) * v)) for v in q]
    game = Game(cp.Problem(cp.Maximize(tax * sum(q)), [tax >= 0]), lower, [[v] for v in q])
    solution = game.program.solve()
    assert solution[tax] == pytest.approx(a / 2, abs=1e-7)
    assert solution.value == pytest.approx(a * a / 4 * n / (n + 1), abs=1e-7)
    game.check(solution)


def independent() -> tuple[Game, cp.Problem]:
    """Two followers that do not see each other, and the same as one lower problem."""
    rng = np.random.default_rng(0)
    x, y, z, p = cp.Variable(2, name="x"), cp.Variable(3, name="y"), cp.Variable(2, name="z"), cp.Parameter(3, name="p")
    first = cp.sum_squares(y - p - rng.standard_normal((3, 2)) @ x) / 2
    second = cp.sum_squares(z) + (rng.standard_normal((2, 2)) @ x) @ z
    rows = [[y <= 1, cp.sum(y) == x[0]], [z >= -1, cp.norm1(z) <= 2]]
    upper = cp.Problem(cp.Minimize(cp.sum_squares(x - 1) + cp.sum_squares(y) + cp.sum(z)), [x <= 2])
    lower = [
        cp.Problem(cp.Minimize(first + cp.sum(z)), rows[0]),
        cp.Problem(cp.Maximize(-second - cp.square(y[0])), rows[1]),
    ]
    game = Game(upper, lower, [[y], [z]], {p: np.array([1.0, -0.5, 2.0])})
    return game, cp.Problem(cp.Minimize(first + second), [*rows[0], *rows[1]])


def test_independent_followers_are_one_lower_level():
    game, merged = independent()
    program, one = game.program, bg.bilevel(game.upper, merged, responds=[v for part in game.responds for v in part])
    assert program.quadratic.own is None
    assert program.quadratic.sizes == one.quadratic.sizes
    theta = tuple(np.asarray(game.values[i.handle], dtype=float) for i in program.inputs)
    for name, a, b in zip(
        program.quadratic(theta)._fields, program.quadratic(theta), one.quadratic(theta), strict=True
    ):
        np.testing.assert_allclose(a, b, err_msg=name)
    solution = program.solve(game.values, verify=True)
    game.check(solution)
    assert isinstance(program.default.choose(program)[0], Pieces)
    assert solution.value == pytest.approx(one.solve(game.values).value, abs=1e-9)
    assert "2 followers together 5" in program.explain()
    assert compare(game).worst <= 1e-5


def random_game(seed: int, kind: str) -> Game:
    """Two or three followers with random quadratic objectives that share each other's variables, and linear constraints.

    monotone: the game is strongly monotone, so its equilibrium is unique. rough: each follower is convex, no more. smooth: a
    leader that is not quadratic. shared: constraints that involve the others' answers. skew: each follower's objective is
    linear in its own variables.
    """
    rng = np.random.default_rng([seed, len(kind)])
    sizes, n, k = ((2, 3), (3, 1, 2))[seed % 2], 2, 3
    x, ys = cp.Variable(n, name="x"), [cp.Variable(m, name=f"y{i}") for i, m in enumerate(sizes)]
    N, ends = sum(sizes), np.cumsum([0, *sizes])
    skew = rng.standard_normal((N, N))
    M = skew - skew.T + np.eye(N) if kind != "rough" else rng.standard_normal((N, N))
    p, t = cp.Parameter(N, name="p"), cp.Parameter(N, name="t")
    values, lower = {p: rng.standard_normal(N), t: rng.standard_normal(N)}, []
    for i, y in enumerate(ys):
        own = slice(ends[i], ends[i + 1])
        curve = cp.Parameter(name=f"curve{i}", nonneg=True)
        P = rng.standard_normal((y.size, y.size)) / 2
        others = [M[own, ends[j] : ends[j + 1]] @ o for j, o in enumerate(ys) if o is not y]
        goal = (sum(others) + rng.standard_normal((y.size, n)) @ x + p[own]) @ y
        if kind != "skew":
            values[curve] = rng.uniform(0.5, 1.5)
            goal = goal + curve * cp.sum_squares(y) / 2 + cp.sum_squares(P @ y - 0.3 * cp.sum(x)) / 2
        if kind == "squares":
            goal = goal + cp.square(cp.sum(y) - cp.sum(ys[i - 1])) / 3
        limit = cp.Parameter(k, name=f"limit{i}")
        values[limit] = rng.uniform(0.5, 1.0, k)
        row = rng.standard_normal((k, y.size)) @ y + rng.standard_normal((k, n)) @ x / 3
        if kind == "shared":
            row = row + 0.2 * cp.sum(ys[i - 1])
        rows = [row <= limit, cp.abs(y) <= 2]
        if i == 1 and y.size > 1:
            rows.append(cp.sum(y) == x[0] / 2)
        lower.append(cp.Problem(cp.Maximize(-goal) if i == 0 else cp.Minimize(goal), rows))
    objective = cp.sum_squares(cp.hstack(ys) - t) + cp.sum_squares(x) / 2
    if kind == "smooth":
        objective = objective + cp.exp(ys[0][0] / 2)
    return Game(cp.Problem(cp.Minimize(objective), [cp.abs(x) <= 1]), lower, [[y] for y in ys], values)


@pytest.mark.parametrize("kind", ["monotone", "rough", "squares", "smooth", "shared", "skew"])
@pytest.mark.parametrize("seed", range(6))
def test_random_games_are_equilibria_with_right_gradients(kind, seed):
    game = random_game(seed, kind)
    program = game.program
    assert (program.quadratic is None) == (kind in ("smooth", "shared"))
    report = compare(game)
    solution = report.solution
    assert solution.status in (bg.Status.GLOBAL, bg.Status.LOCAL, bg.Status.STATIONARY)
    game.check(solution)
    assert program.solve(game.values, verify=True).stats.follower_gap <= 1e-6
    assert report.worst <= 1e-4
    assert all(d.one_sided <= 1e-3 for d in report.kinks)


@pytest.mark.parametrize("seed", range(4))
def test_claims_hold_where_the_equilibrium_is_unique(seed):
    """Monotone games with one leader variable: no decision of a grid, answered by `respond`, beats a proven optimum."""
    rng = np.random.default_rng(seed)
    x, y, z = cp.Variable(name="x"), cp.Variable(2, name="y"), cp.Variable(2, name="z")
    K, c, d, t = (rng.standard_normal(shape) for shape in ((2, 2), 2, 2, 4))
    lower = [
        cp.Problem(cp.Minimize(cp.sum_squares(y) / 2 + (K @ z + 2 * c * x) @ y), [cp.sum(y) <= 0.5, y >= -1]),
        cp.Problem(cp.Minimize(cp.sum_squares(z) / 2 + (-K.T @ y + d) @ z), [z >= -0.5, z <= 0.5]),
    ]
    upper = cp.Problem(cp.Minimize(cp.sum_squares(cp.hstack([y, z]) - t)), [cp.abs(x) <= 2])
    game = Game(upper, lower, [[y], [z]])
    solution = game.program.solve()
    assert solution.status is bg.Status.GLOBAL
    game.check(solution)
    rows = np.vstack([np.r_[1, 1, 0, 0], -np.eye(4), np.eye(4)[2:]])
    top = np.r_[0.5, 1, 1, 0.5, 0.5, 0.5, 0.5]
    N = np.block([[np.zeros((2, 2)), K], [-K.T, np.zeros((2, 2))]])
    best = np.inf
    for value in np.linspace(-2, 2, 401):
        u, flag, _ = respond(np.eye(4), np.r_[2 * c * value, d], rows, top, len(top), N)
        assert flag > 0
        best = min(best, ((u - t) ** 2).sum())
    assert solution.value <= best + 1e-7
    assert best - solution.value <= 0.05


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_equilibria_of_monotone_games(seed, shift):
    rng = np.random.default_rng(seed)
    n, k = rng.integers(2, 12), rng.integers(1, 15)
    K = rng.standard_normal((n, n))
    q, rows, top = rng.standard_normal(n), rng.standard_normal((k, n)), rng.uniform(0, 1, k)
    rows, top = np.vstack([rows, np.eye(n), -np.eye(n)]), np.r_[top, np.full(2 * n, 3.0)]
    pairs = len(top)
    u, flag, dual = respond(shift * np.eye(n), q, rows, top, pairs, K - K.T)
    assert flag > 0
    assert abs(shift * u + (K - K.T) @ u + q + rows.T @ dual).max() <= 1e-6
    assert (rows @ u - top).max() <= 1e-8
    assert dual.min() >= -1e-9
    assert abs(dual * (rows @ u - top)).max() <= 1e-6


def test_a_matrix_game_between_followers():
    """Row and column players of a zero-sum game that the leader's decision tilts: the value is the linear program's."""
    rng = np.random.default_rng(3)
    A = rng.uniform(-1, 1, (3, 3))
    x, y, z = cp.Variable(name="x", bounds=[-1, 1]), cp.Variable(3, name="y"), cp.Variable(3, name="z")
    tilt = np.array([1.0, 0, -1])
    lower = [
        cp.Problem(cp.Minimize(y @ (A @ z) + x * (tilt @ y)), [cp.sum(y) == 1, y >= 0]),
        cp.Problem(cp.Maximize((A.T @ y) @ z), [cp.sum(z) == 1, z >= 0]),
    ]
    game = Game(cp.Problem(cp.Minimize(cp.square(x - 0.1) + 0 * y[0])), lower, [[y], [z]])
    solution = game.program.solve()
    assert solution.status is bg.Status.GLOBAL
    assert solution[x] == pytest.approx(0.1, abs=1e-8)
    game.check(solution)
    best = cp.Variable(3)
    value = solved(cp.Problem(cp.Minimize(cp.max(A.T @ best) + 0.1 * tilt @ best), [cp.sum(best) == 1, best >= 0]))
    assert solution.lower_value[0] == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize(("sign", "meet"), [(1.0, 0.0), (-1.0, 1.0)])
def test_the_leader_picks_among_equilibria(sign, meet):
    """Two followers who want to meet: (0, 0), (1, 1) and (1/2, 1/2) are equilibria at every x."""
    x, y, z = cp.Variable(name="x"), cp.Variable(name="y", bounds=[0, 1]), cp.Variable(name="z", bounds=[0, 1])
    lower = [cp.Problem(cp.Maximize((2 * z - 1) * y)), cp.Problem(cp.Maximize((2 * y - 1) * z))]
    game = Game(cp.Problem(cp.Minimize(cp.square(x - 1) + sign * (y + z))), lower, [[y], [z]])
    solution = game.program.solve()
    assert solution.status is bg.Status.GLOBAL
    assert [float(solution[v]) for v in (x, y, z)] == pytest.approx([1, meet, meet], abs=1e-8)
    game.check(solution)


def test_an_indefinite_game_of_convex_followers():
    """P is symmetric and indefinite, though each follower is strictly convex: not one quadratic program, still a game."""
    x, y, z = (
        cp.Variable(name="x", bounds=[-1, 1]),
        cp.Variable(name="y", bounds=[-1, 1]),
        cp.Variable(name="z", bounds=[-1, 1]),
    )
    lower = [cp.Problem(cp.Minimize(cp.square(v) / 2 + 2 * w * v + x * v)) for v, w in ((y, z), (z, y))]
    game = Game(cp.Problem(cp.Minimize(cp.square(y - 0.7) + cp.square(z + 1) + cp.square(x))), lower, [[y], [z]])
    solution = game.program.solve(verify=True)
    assert solution.status is bg.Status.GLOBAL
    game.check(solution)
    assert solution[y] == pytest.approx(1.0, abs=1e-6)  # the corners (1, -1) and (-1, 1) are the stable equilibria


@pytest.mark.parametrize("solver", [Pieces(), Relaxation()])
def test_games_without_an_equilibrium(solver):
    x, y, z = cp.Variable(name="x"), cp.Variable(name="y"), cp.Variable(name="z")
    lower = [cp.Problem(cp.Minimize(cp.square(y - z))), cp.Problem(cp.Minimize(cp.square(z - y - 1)))]
    game = Game(cp.Problem(cp.Minimize(cp.square(x))), lower, [[y], [z]])
    assert game.program.solve(solver=solver).status is bg.Status.NO_EQUILIBRIUM


def test_a_follower_whose_own_problem_is_not_convex():
    x, y, z, w = (
        cp.Variable(name="x"),
        cp.Variable(2, name="y"),
        cp.Variable(name="z"),
        cp.Parameter((2, 2), name="w", PSD=True),
    )
    lower = [
        cp.Problem(cp.Minimize(cp.quad_form(y, w) + z * y[0] + x * y[1])),
        cp.Problem(cp.Minimize(cp.square(z - y[1]))),
    ]
    game = Game(cp.Problem(cp.Minimize(cp.square(x - 1))), lower, [[y], [z]])
    assert game.program.solve({w: np.eye(2)}).status is bg.Status.GLOBAL
    assert game.program.solve({w: np.diag([1.0, -1.0])}).status is bg.Status.NONCONVEX_LOWER


def test_statuses_of_infeasible_followers():
    x, y, z = cp.Variable(name="x"), cp.Variable(name="y"), cp.Variable(name="z")
    goals = [cp.square(y - z - x), cp.square(z)]
    for rows, status, who in (
        ([[y >= 1, y <= 0], []], bg.Status.INFEASIBLE_LOWER, 0),
        ([[], [z >= 1, z <= x]], bg.Status.INFEASIBLE_LOWER, 1),
        ([[y >= 1, y + z <= 0], [z >= 0]], bg.Status.INFEASIBLE_LOWER, None),  # each could answer, but not both
        ([[], []], bg.Status.GLOBAL, None),
    ):
        lower = [cp.Problem(cp.Minimize(g), r) for g, r in zip(goals, rows, strict=True)]
        solution = Game(cp.Problem(cp.Minimize(cp.square(x)), [x <= 0]), lower, [[y], [z]]).program.solve()
        assert (solution.status, solution.stats.follower) == (status, who)


def test_prices_and_layers_of_games():
    """Price of a quota: each of two firms sells at most k at price 6 - q - r; it is 6 - 3k while the quota binds."""
    quota, q, r, k = cp.Variable(name="quota"), cp.Variable(name="q"), cp.Variable(name="r"), cp.Parameter(name="k")
    rows = [q <= quota, r <= quota]
    lower = [
        cp.Problem(cp.Maximize(6 * q - cp.square(q) - r * q), [rows[0]]),
        cp.Problem(cp.Maximize(6 * r - cp.square(r) - q * r), [rows[1]]),
    ]
    prices = [c.dual_variables[0] for c in rows]
    game = Game(cp.Problem(cp.Minimize(cp.square(prices[0] - k)), [quota >= 0]), lower, [[q], [r]], {k: 1.5})
    solution = game.program.solve(game.values)
    assert solution[quota] == pytest.approx(1.5, abs=1e-7)
    np.testing.assert_allclose([solution[p] for p in prices], 1.5, atol=1e-7)
    layer = bg.Layer(game.program, [k], [quota, prices[1]])
    targets = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    found, price = layer(targets)
    torch.testing.assert_close(found, 2 - targets / 3)
    torch.testing.assert_close(price, targets)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), targets)[0], torch.full((3,), -1 / 3, dtype=torch.float64)
    )
    assert torch.autograd.gradgradcheck(layer, (targets,))


@pytest.mark.parametrize("kind", ["monotone", "smooth", "shared"])
def test_games_pickle_and_start_warm(kind):
    game = random_game(1, kind)
    program = game.program
    solution = program.solve(game.values)
    again = pickle.loads(pickle.dumps(program))
    values = {i.handle: game.values[j.handle] for i, j in zip(again.inputs, program.inputs, strict=True)}
    assert again.solve(values).value == pytest.approx(solution.value, abs=1e-9)
    warm = program.solve(game.values, warm_start=solution)
    assert warm.value <= solution.value + 1e-8
    assert warm.stats.starts <= solution.stats.starts


@pytest.mark.parametrize("kind", ["parameter times another's", "exp of another's", "square of another's, with a limit"])
def test_what_a_follower_may_see_of_another(kind):
    """Functions of the others' variables and of parameters are data of a follower, as those of the leader's are."""
    x, y, z, theta = cp.Variable(name="x"), cp.Variable(name="y"), cp.Variable(name="z"), cp.Parameter(name="theta")
    seen = {"parameter": theta * y, "exp": theta * cp.exp(y / 2), "square": cp.square(y) + theta * x}[kind.split()[0]]
    lower = [
        cp.Problem(cp.Minimize(cp.square(y - x) + y * z / 3), [y <= 2]),
        cp.Problem(cp.Minimize(cp.square(z) + seen * z), [z >= -1.5] if "limit" in kind else []),
    ]
    upper = cp.Problem(cp.Minimize(cp.square(y - 1) + cp.square(x - 0.5) + cp.square(z + 0.2)), [cp.abs(x) <= 3])
    game = Game(upper, lower, [[y], [z]], {theta: 0.8})
    report = compare(game)
    game.check(report.solution)
    at = {theta: 0.8, **{v: report.solution[v] for v in (x, y)}}
    assert report.solution[z] == pytest.approx(-objective_at(cp.Problem(cp.Minimize(seen)), at) / 2, abs=1e-7)
    assert report.agreeing
    assert report.worst <= 1e-5


X, Y, Z = cp.Variable(name="x"), cp.Variable(name="y"), cp.Variable(name="z")


def _declare(first: Any, second: Any, responds: Any, upper: Any = None, rows: Any = ((), ())) -> bg.Program:
    lower = [cp.Problem(cp.Minimize(g), list(r)) for g, r in zip((first, second), rows, strict=True)]
    return bg.bilevel(cp.Problem(cp.Minimize(cp.square(X) if upper is None else upper)), lower, responds=responds)


A, B = cp.square(Y - X), cp.square(Z - X)
REFUSED = {
    "too few lists": (lambda: _declare(A, B, [[Y]]), "2 lower problems and 1 lists in responds"),
    "a flat list": (lambda: _declare(A, B, [Y, Z]), r"responds\[0\] must be the list of that follower's variables, like \[y\]"),
    "one variable": (lambda: _declare(A, B, Y), "give a list of lists of variables"),
    "an empty list": (lambda: _declare(A, B, [[Y], []]), "name the variables that the follower of follower 1 chooses"),
    "no lower problem": (lambda: bg.bilevel(cp.Problem(cp.Minimize(cp.square(X))), [], responds=[]), "at least one lower problem"),
    "not a problem": (lambda: bg.bilevel(cp.Problem(cp.Minimize(cp.square(X))), [A], responds=[[Y]]), r"lower\[0\] is a"),
    "a variable of two": (lambda: _declare(A + Z, B + Y, [[Y, Z], [Z]]), "'z' is in the lists of followers 0 and 1"),
    "a variable of another": (lambda: _declare(A, B, [[Z], [Y]]), "'z' does not appear in the lower problem of follower 0"),
    "a variable of nobody": (
        lambda: _declare(A, B + cp.Variable(name="w") * Z, [[Y], [Z]]), "'w' appears in the lower problem of follower 1 only"
    ),
    "a concave follower": (lambda: _declare(A, -B, [[Y], [Z]]), "Follower 1: The lower problem is not convex"),
    "a price of two": (
        lambda: (lambda c: _declare(A, B, [[Y], [Z]], cp.square(X) + c.dual_variables[0], ([c], [c])))(Y + Z <= 1),
        "stands in the lower level twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_follower_named(name):
    build, words = REFUSED[name]
    with pytest.raises(bg.DeclarationError, match=f"(?s){words}"):
        build()
