"""Slips of a first hour: what was given, what was needed, what to do; and declarations that read as they are meant."""

import cvxpy as cp
import numpy as np
import pytest
import torch

import bigrad as bg

X, Y, C = cp.Variable(2, name="x"), cp.Variable(2, name="y"), cp.Parameter(2, name="c")
LOWER = cp.Problem(cp.Minimize(cp.sum_squares(Y - X) + C @ Y), [Y >= 0])
UPPER = cp.Problem(cp.Minimize(cp.sum_squares(X) + cp.sum_squares(Y - 1)), [X <= 3])
PROGRAM = bg.bilevel(UPPER, LOWER, responds=[Y])

SLIPS = {
    "a problem for a program": (lambda: bg.Layer(LOWER), r"Layer\(Problem\): give a Program, as bigrad\.bilevel"),
    "a solver by name": (lambda: bg.Layer(PROGRAM, solver="global"), "solver='global': give a solver object"),
    "a solver's class": (lambda: PROGRAM.solve({C: [1, 2]}, solver=bg.Global), "give a solver object"),
    "a rule by name": (lambda: bg.Layer(PROGRAM, gradient="implicit"), "gradient='implicit'.*give a rule as an object"),
    "a rule's class": (lambda: bg.Layer(PROGRAM, gradient=bg.Implicit), "give a rule as an object"),
    "a value by name": (
        lambda: PROGRAM.solve({"c": [1, 2]}),
        "str 'c' is a name; the key is the Parameter object itself",
    ),
    "a stranger's variable": (
        lambda: bg.Layer(PROGRAM, parameters=[C], variables=[cp.Variable(name="z")]),
        r"z is not a variable of this program, which has: x, y; prices are constraint\.dual_variables\[0\]\.",
    ),
}


@pytest.mark.parametrize("name", SLIPS)
def test_slips_are_answered_with_what_to_do(name):
    build, words = SLIPS[name]
    with pytest.raises(bg.InputError, match=words):
        build()


def test_values_may_be_tensors_with_a_gradient():
    given = torch.tensor([0.5, 2.0], requires_grad=True)
    np.testing.assert_array_equal(PROGRAM.solve({C: given})[Y], PROGRAM.solve({C: [0.5, 2.0]})[Y])


def test_an_invalid_input_is_named():
    d = cp.Parameter(name="d", nonneg=True)
    z = cp.Variable(2, name="z")
    program = bg.argmin(cp.Problem(cp.Minimize(cp.sum_squares(z - C) + d * cp.sum(z))))
    assert program.solve({C: [1, np.nan], d: 1}).stats.cause == "Here: c not finite."
    assert program.solve({C: [1, np.nan], d: -1}).stats.cause == "Here: c not finite; d of the wrong sign."
    assert program.solve({C: [1, 2], d: 1}).stats.cause == ""
    layer = bg.Layer(program, parameters=[C, d], variables=[z])
    with pytest.raises(bg.SolveError, match=r"item 1: INVALID_INPUT\. .* Here: d of the wrong sign\."):
        layer(torch.ones(2, 2), torch.tensor([1.0, -1.0]))


def test_an_invalid_function_of_parameters_is_named():
    y = cp.Variable(name="y")
    program = bg.argmin(cp.Problem(cp.Minimize(cp.exp(C[0]) * cp.square(y) + y)))
    solution = program.solve({C: [800, 0]})
    assert solution.status is bg.Status.INVALID_INPUT
    assert "exp(c[0])" in solution.stats.cause


def test_what_broke_a_promise_is_named_and_nothing_else_is():
    y, level, P = cp.Variable(2, name="y"), cp.Parameter(name="level"), cp.Parameter((2, 2), name="P", PSD=True)
    rows = [y >= 0, cp.sum(y) <= cp.exp(level) - 2]
    layer = bg.Layer(bg.argmin(cp.Problem(cp.Minimize(cp.sum_squares(y)), rows)), [level], [y])
    with pytest.raises(bg.SolveError) as caught:
        layer(torch.tensor([1.0, 0.0, 800.0]))
    infeasible, invalid = str(caught.value).splitlines()[1:3]
    assert "INFEASIBLE" in infeasible
    assert "Here" not in infeasible
    assert "Here: a function of them not finite" in invalid
    form = bg.argmin(cp.Problem(cp.Minimize(cp.quad_form(y, P)), [y <= 1]))
    assert form.solve({P: -np.eye(2)}).stats.cause == "Here: an objective is not convex at these values."


@pytest.mark.parametrize("number", [np.nan, np.inf, np.array([1.0, -np.inf])])
def test_constants_that_are_no_numbers_are_refused(number):
    """CVXPY's solvers drop `y <= inf`; a NaN in a cone used to be taken for a proven optimum."""
    below = cp.sum_squares(Y - X)
    for upper, lower in [
        (UPPER, cp.Problem(cp.Minimize(below), [number >= Y])),
        (UPPER, cp.Problem(cp.Minimize(below + cp.norm(Y - number)))),
        (cp.Problem(cp.Minimize(cp.sum_squares(X - number))), cp.Problem(cp.Minimize(below))),
    ]:
        with pytest.raises(
            bg.DeclarationError, match=r"The (upper|lower) problem has a constant that is NaN or infinite"
        ):
            bg.bilevel(upper, lower, responds=[Y])
    with pytest.raises(bg.DeclarationError, match="constant that is NaN or infinite"):
        bg.argmin(cp.Problem(cp.Minimize(cp.norm(Y - number))))


def test_infinite_bounds_of_a_variable_are_none():
    x, y = (cp.Variable(2, name=name, bounds=[np.array([-np.inf, -1.0]), np.array([np.inf, 1.0])]) for name in "xy")
    lower = cp.Problem(cp.Minimize(cp.sum_squares(y - x)))
    solution = bg.bilevel(
        cp.Problem(cp.Minimize(cp.sum_squares(y - 3) + cp.sum_squares(x))), lower, responds=[y]
    ).solve()
    np.testing.assert_allclose(solution[y], [1.5, 1.0], atol=1e-9)


@pytest.mark.parametrize("given", [{"bounds": [0.5, 2]}, {"nonneg": True}])
def test_a_sign_known_from_bounds_counts_as_declared(given):
    """min over y of x |y - 2|₂ − y: the follower stays at 2 while x > 1 and runs to the bound 3 below."""
    x, y = cp.Variable(name="x", **given), cp.Variable(name="y")
    lower = cp.Problem(cp.Minimize(x * cp.norm(cp.hstack([y - 2, 0.0])) - y), [y <= 3])
    upper = cp.Problem(cp.Minimize(cp.square(x - 1.5) + cp.square(y - 2)), [x >= 0.5])
    solution = bg.bilevel(upper, lower, responds=[y]).solve(verify=True)
    np.testing.assert_allclose([solution[x], solution[y]], [1.5, 2.0], atol=1e-7)
    assert abs(solution.stats.follower_gap) < 1e-7


def test_a_weight_times_a_function_of_a_parameter_is_named_whole():
    weight = cp.Parameter(name="weight", nonneg=True)
    lower = cp.Problem(cp.Maximize(X @ Y - cp.sum_squares(Y) + -weight * cp.norm(Y - C)))
    with pytest.raises(
        bg.DeclarationError, match=r"look at -weight \* PnormApprox\(y \+ -c, 2\): .* \(t == factor\)"
    ) as caught:
        bg.bilevel(UPPER, lower, responds=[Y])
    assert "look at -weight:" not in str(caught.value)


def test_an_unknown_sign_is_asked_for():
    x, y = cp.Variable(name="x"), cp.Variable(2, name="y")
    lower = cp.Problem(cp.Minimize(x * cp.norm(y) - cp.sum(y)))
    with pytest.raises(bg.DeclarationError, match="If 'x' has one sign only, declare it: nonneg=True") as caught:
        bg.bilevel(cp.Problem(cp.Minimize(cp.square(x))), lower, responds=[y])
    assert caught.value.__context__ is None, "the zero-sum form that was tried first is no part of the answer"


@pytest.mark.parametrize("kind", ["PSD", "symmetric"])
def test_a_follower_declared_semidefinite(kind):
    """Against the follower re-solved by CVXPY on a grid of the leader's decisions, and by differences."""
    matrix, t = cp.Variable((2, 2), name="matrix", **{kind: True}), cp.Variable(name="t", bounds=[-2, 2])
    cost = cp.Parameter((2, 2), name="cost", symmetric=True)
    rows = [cp.trace(matrix) == 1] + ([matrix >> 0] if kind == "symmetric" else [])

    def goal(pull):
        return cp.Minimize(cp.trace(cost @ matrix) + pull * matrix[0, 1] + 0.05 * cp.sum_squares(matrix))

    upper = cp.Problem(cp.Minimize(cp.square(matrix[0, 1] + 0.2) + 0.1 * cp.square(t - 1)))
    program = bg.bilevel(upper, cp.Problem(goal(t), rows), responds=[matrix])
    value = np.array([[1.0, 0.3], [0.3, 1.5]])
    solution = program.solve({cost: value}, verify=True)
    assert abs(solution.stats.follower_gap) < 1e-7
    cost.value, held = value, cp.Parameter()
    alone, grid = cp.Problem(goal(held), rows), []
    for held.value in np.linspace(0.7, 1.1, 21):
        alone.solve(solver=cp.CLARABEL)
        grid.append((matrix.value[0, 1] + 0.2) ** 2 + 0.1 * (held.value - 1) ** 2)
    assert min(grid) - 1e-4 < solution.value < min(grid) + 1e-7

    layer = bg.Layer(program, parameters=[cost], variables=[t])
    at = torch.tensor(value, requires_grad=True)
    layer(at)[0].backward()
    step = 1e-4 * torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    with torch.no_grad():
        slope = (layer(at + step)[0] - layer(at - step)[0]) / 2e-4
    torch.testing.assert_close(at.grad[0, 0], slope, rtol=0, atol=1e-6)


def test_a_leader_declared_symmetric_is():
    """y = Z'1 / 2: the leader, who wants Z near a matrix that is not symmetric, keeps it symmetric."""
    matrix, y = cp.Variable((2, 2), name="matrix", symmetric=True), cp.Variable(2, name="y")
    wish = np.array([[1.0, 2.0], [0.0, 1.0]])
    goal = cp.sum_squares(matrix - wish) + cp.sum_squares(y - 1)
    lower = cp.Problem(cp.Minimize(cp.sum_squares(y) - cp.sum(matrix @ y)))
    solution = bg.bilevel(cp.Problem(cp.Minimize(goal)), lower, responds=[y]).solve()
    np.testing.assert_allclose(solution[matrix], np.ones((2, 2)), atol=1e-9)
