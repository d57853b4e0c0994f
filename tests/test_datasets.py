"""The bundled data and problems: shapes, units, splits, and that every stated optimum is one."""

import cvxpy as cp
import numpy as np
import pytest

from bigrad.datasets import TextbookProblem, italy_power_demand, semo_prices, textbook
from bigrad.solution import InputError

PROBLEMS = textbook()
QUADRATIC = [problem for problem in PROBLEMS if problem.coefficients is not None]


def named(problem: TextbookProblem) -> str:
    return problem.name


def evaluate(expression: str, x: np.ndarray, y: np.ndarray) -> float:
    """Value of one of the file's expressions, which are the problem's definition."""
    return eval(expression, {"x": x, "y": y} | vars(np))


def test_italy_keeps_the_split_of_the_archive():
    days = italy_power_demand()
    assert days.train.shape == (67, 24)
    assert days.test.shape == (1029, 24)
    assert days.train_season.shape == (67,)
    assert days.test_season.shape == (1029,)
    assert {array.dtype for array in (days.train, days.test)} == {np.dtype(np.float64)}
    assert set(days.test_season) == {1, 2}
    np.testing.assert_allclose(days.test.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(days.test.std(axis=1, ddof=1), 1, atol=1e-6)


def test_italy_redraws_every_day_once_with_its_season():
    archive, drawn = italy_power_demand(), italy_power_demand(train=700, seed=3)
    assert (len(drawn.train), len(drawn.test)) == (700, 396)

    def days(split):
        demand, season = (
            np.concatenate([split.train, split.test]),
            np.concatenate([split.train_season, split.test_season]),
        )
        table = np.column_stack([demand, season])
        return table[np.lexsort(table.T)]

    np.testing.assert_array_equal(days(drawn), days(archive))


def test_italy_draws_by_seed():
    one, again, other = (italy_power_demand(train=100, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.train, again.train)
    assert not np.array_equal(one.train, other.train)


def test_italy_gives_arrays_of_the_callers_own():
    italy_power_demand().train[:] = 0
    assert italy_power_demand().train.any()


@pytest.mark.parametrize("train", [-1, 0, 1096])
def test_italy_refuses_an_empty_part(train):
    with pytest.raises(InputError, match="choose 1 to 1095"):
        italy_power_demand(train=train)


def test_semo_days_are_in_order_and_knapsacks():
    days = semo_prices()
    assert days.train_features.shape == (552, 48, len(days.features))
    assert days.test_features.shape == (237, 48, len(days.features))
    assert (days.train_values.shape, days.test_values.shape) == ((552, 48), (237, 48))
    assert {days.train_features.dtype, days.test_values.dtype} == {np.dtype(np.float64)}
    assert sorted(days.weights) == [3] * 16 + [5] * 16 + [7] * 16
    for part in (days.train_features, days.test_features):
        weekday = part[:, 0, days.features.index("weekday")]
        assert (np.diff(weekday) % 7 == 1).mean() > 0.95  # a day or two are missing here and there
        assert set(part[..., days.features.index("holiday")].ravel()) == {0.0, 1.0}
        assert part[..., days.features.index("month")].max() == 12


def test_semo_values_are_prices_times_weights():
    days = semo_prices()
    price = days.train_values / days.weights
    by_weight = [price[:, days.weights == weight].mean() for weight in (3, 5, 7)]
    np.testing.assert_allclose(by_weight, price.mean(), rtol=0.06)  # other half-hours are dear for each weight
    forecast = days.train_features[..., days.features.index("forecast price")]
    assert np.corrcoef(forecast.ravel(), price.ravel())[0, 1] > 0.6
    assert (days.train_values >= 0).all()


def test_semo_gives_arrays_of_the_callers_own():
    semo_prices().train_values[:] = 0
    assert semo_prices().train_values.any()


def test_textbook_is_complete():
    assert len(PROBLEMS) == 62
    assert len({problem.name for problem in PROBLEMS}) == 62
    assert len(QUADRATIC) == 55
    assert [problem.name for problem in PROBLEMS if problem.F_star is None] == ["mb_2007_02"]


@pytest.mark.parametrize("problem", [problem for problem in PROBLEMS if problem.F_star is not None], ids=named)
def test_textbook_optimum_has_its_value_and_is_feasible(problem):
    at = (problem.x_star, problem.y_star)
    assert (len(at[0]), len(at[1])) == (problem.nx, problem.ny)
    assert evaluate(problem.F, *at) == pytest.approx(problem.F_star, rel=1e-6, abs=1e-6)
    assert evaluate(problem.f, *at) == pytest.approx(problem.f_star, rel=1e-6, abs=1e-6)
    assert max((evaluate(row, *at) for row in problem.G + problem.g), default=0) <= 1e-6
    assert max((abs(evaluate(row, *at)) for row in problem.H + problem.h), default=0) <= 1e-6


@pytest.mark.parametrize("problem", QUADRATIC, ids=named)
def test_textbook_parts_say_what_the_expressions_say(problem):
    upper, lower, x, y = problem.program_parts()
    assert lower.is_dcp() or x is not None
    assert (upper.is_dcp()) == (np.linalg.eigvalsh(problem.coefficients.F.Q).min() >= -1e-9)
    rng = np.random.default_rng(0)
    for _ in range(3):
        y.value, at_x = rng.normal(size=problem.ny), rng.normal(size=problem.nx)
        if x is not None:
            x.value = at_x
        for program, objective, rows in (
            (upper, problem.F, problem.G + problem.H),
            (lower, problem.f, problem.g + problem.h),
        ):
            assert program.objective.value == pytest.approx(evaluate(objective, at_x, y.value), abs=1e-9)
            sides = [row for constraint in program.constraints for row in constraint.expr.value]
            assert sides == pytest.approx([evaluate(row, at_x, y.value) for row in rows], abs=1e-9)


@pytest.mark.parametrize("problem", [problem for problem in QUADRATIC if problem.F_star is not None], ids=named)
def test_textbook_optimum_is_a_best_response(problem):
    f, g, h, nx, x = *(getattr(problem.coefficients, part) for part in "fgh"), problem.nx, problem.x_star
    y = cp.Variable(problem.ny)
    value = 0.5 * cp.quad_form(y, f.Q[nx:, nx:], assume_PSD=True) + (f.Q[nx:, :nx] @ x + f.c[nx:]) @ y
    rows = [g.A[:, nx:] @ y <= g.b - g.A[:, :nx] @ x + 1e-7] if len(g.b) else []
    rows += [h.A[:, nx:] @ y == h.b - h.A[:, :nx] @ x] if len(h.b) else []
    best = cp.Problem(cp.Minimize(value), rows).solve(solver=cp.CLARABEL)
    rest = 0.5 * x @ f.Q[:nx, :nx] @ x + f.c[:nx] @ x + f.c0
    assert problem.f_star == pytest.approx(best + rest, rel=1e-5, abs=1e-5)


def test_textbook_without_coefficients_says_so():
    problem = next(problem for problem in PROBLEMS if problem.coefficients is None)
    with pytest.raises(InputError, match=f"{problem.name} is not quadratic"):
        problem.program_parts()


def test_textbook_leaves_out_a_leader_without_a_say():
    unheard = {problem.name for problem in QUADRATIC if problem.nx and problem.program_parts()[2] is None}
    assert unheard == {"FrankeEtal2018Ex53", "MitsosBarton2006Ex31"}
