"""One level: `bigrad.argmin`, its solver ActiveSet, closed forms, statuses and gradients, against other roads."""

import cvxpy as cp
import numpy as np
import pytest
import torch

import bigrad as bg
from bigrad.solvers.active_set import settled
from bigrad.solvers.separable import Separable

SIZE, BATCH = 6, 40


def leaf(value):
    return torch.tensor(np.asarray(value, dtype=float), requires_grad=True)


def separable(name):
    """A program that separates, and its parameters: weighted squares around p, kinks of weight k where asked."""
    rng = np.random.default_rng(0)
    y, p, k = cp.Variable(SIZE, name="y"), cp.Parameter(SIZE, name="p"), cp.Parameter(nonneg=True, name="k")
    a, q = rng.standard_normal(SIZE), rng.random(SIZE) + 0.2
    rows, bent = {
        "box": ([y >= -0.5, y <= 0.5], False),
        "simplex": ([y >= 0, cp.sum(y) == 1], False),
        "capped simplex": ([y >= 0, y <= 0.3, cp.sum(y) == 1], False),
        "budget": ([y >= 0, a @ y <= 0.2], False),
        "hyperplane": ([a @ y == 0.3], False),
        "half space": ([cp.sum(y) <= -1], False),
        "soft threshold": ([], True),
        "soft threshold in a box": ([y <= 0.4, y >= -2], True),
        "soft threshold on a simplex": ([cp.sum(y) == 1, y >= -0.3], True),
        "one side": ([y[:3] >= 0.1, cp.sum(y) >= 4], True),
        "a point": ([y >= 0.2, y <= 0.2], False),
    }[name]
    goal = cp.sum(cp.multiply(q, cp.square(y - p))) / 2 + (k * cp.norm1(y - 0.1) if bent else 0)
    return cp.Problem(cp.Minimize(goal), rows), y, [p, k] if bent else [p]


FORMS = [
    "box", "simplex", "capped simplex", "budget", "hyperplane", "half space", "soft threshold", "soft threshold in a box",
    "soft threshold on a simplex", "one side", "a point",
]  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_closed_forms_agree_with_the_general_road(name):
    problem, y, parameters = separable(name)
    program = bg.argmin(problem)
    form = Separable.of(program.quadratic.hessian(()), program.quadratic.G(()), program.quadratic.E(()))
    assert form is not None
    rng = np.random.default_rng(1)
    inputs = [leaf(2 * rng.standard_normal((BATCH, SIZE))), leaf(rng.random(BATCH))][: len(parameters)]
    data = program.quadratic(tuple(t.detach().numpy().reshape(BATCH, -1) for t in inputs))
    assert settled(data, program.quadratic.sizes, BATCH, form).ok.all()
    weights = torch.as_tensor(rng.standard_normal((BATCH, SIZE)))
    found = {}
    for solver in (None, bg.Pieces()):
        layer = bg.Layer(program, parameters, [y], solver=solver)
        (answer,) = layer(*inputs)
        found[solver] = [answer, *torch.autograd.grad((weights * answer).sum(), inputs)]
    for ours, other in zip(*found.values(), strict=True):
        np.testing.assert_allclose(ours.detach(), other.detach(), atol=1e-9)
    solutions = bg.Layer(program, parameters, [y]).solve(*(v[:4] for v in inputs), verify=True)
    assert all(s.status is bg.Status.GLOBAL and abs(s.stats.follower_gap) < 1e-6 for s in solutions)


def dense(batched):
    """A dense program with every block a parameter, and random values."""
    rng = np.random.default_rng(2)
    n, m = 5, 7
    y, P = cp.Variable(n, name="y"), cp.Parameter((n, n), PSD=True, name="P")
    q, G, h = cp.Parameter(n, name="q"), cp.Parameter((m, n), name="G"), cp.Parameter(m, name="h")
    A, b = cp.Parameter((2, n), name="A"), cp.Parameter(2, name="b")
    problem = cp.Problem(cp.Minimize(cp.quad_form(y, P) / 2 + q @ y), [G @ y <= h, A @ y == b])
    lead = (4,) if batched else ()
    root = rng.standard_normal((*lead, n, n))
    values = [root @ root.mT + np.eye(n), *(rng.standard_normal((*lead, *p.shape)) for p in (q, G, h, A, b))]
    values[3] = abs(values[3]) + 1
    values[5] *= 0.1
    return problem, y, [P, q, G, h, A, b], values


@pytest.mark.parametrize("batched", [True, False])
def test_first_and_second_derivatives_of_all_blocks(batched):
    problem, y, parameters, values = dense(batched)
    layer = bg.Layer(bg.argmin(problem), parameters, [y])

    def answer(P, *rest):
        return layer((P + P.mT) / 2, *rest)[0]

    inputs = [leaf(v) for v in values]
    assert torch.autograd.gradcheck(answer, inputs)
    assert torch.autograd.gradgradcheck(answer, inputs)


def test_a_dense_batch_agrees_with_clarabel():
    problem, y, parameters, values = dense(batched=True)
    solutions = bg.Layer(bg.argmin(problem), parameters, [y]).solve(*map(torch.tensor, values), verify=True)
    assert {s.stats.solver for s in solutions} == {"ActiveSet"}
    assert max(abs(s.stats.follower_gap) for s in solutions) < 1e-7
    assert max(max(s.stats.residual, s.stats.violation) for s in solutions) < 1e-9


def test_bad_items_do_not_touch_the_others():
    y, p, h = cp.Variable(2, name="y"), cp.Parameter(2, name="p"), cp.Parameter(2, name="h")
    problem = cp.Problem(
        cp.Minimize(cp.sum_squares(y - p) + y[0] * 3), [cp.sum(y) <= h[0], y >= h[1], y[0] - y[1] <= 9]
    )
    layer = bg.Layer(bg.argmin(problem), [p, h], [y], on_failure="nan")
    P = leaf([[1.0, 2.0], [1.0, 2.0], [float("nan"), 0.0], [3.0, 3.0]])
    H = leaf([[1.0, 0.0], [-1.0, 2.0], [1.0, 0.0], [8.0, -1.0]])
    names = [s.status.name for s in layer.solve(P, H)]
    assert names == ["GLOBAL", "INFEASIBLE_UPPER", "INVALID_INPUT", "GLOBAL"]
    (answer,) = layer(P, H)
    answer.nansum().backward()
    assert torch.isnan(answer[1:3]).all()
    assert torch.isfinite(answer[[0, 3]]).all()
    assert not P.grad[1:3].any()
    assert P.grad[[0, 3]].any()


@pytest.mark.parametrize(
    ("goal", "rows", "status"),
    [
        (lambda y: cp.sum(y), lambda y: [y >= 1], "GLOBAL"),
        (lambda y: cp.sum(y), lambda y: [y <= 1], "UNBOUNDED_UPPER"),
        (lambda y: cp.sum(y), lambda y: [y <= 1, y >= 2], "INFEASIBLE_UPPER"),
        (lambda y: cp.square(y[0]), lambda y: [y >= 1], "GLOBAL"),
        (lambda y: cp.sum_squares(y), lambda y: [y[0] + y[1] == 1, 2 * y[0] + 2 * y[1] == 2], "GLOBAL"),
        (lambda y: cp.sum_squares(y), lambda y: [y[0] + y[1] == 1, y[0] + y[1] == 2], "INFEASIBLE_UPPER"),
        (lambda y: cp.norm1(y - 3), lambda y: [cp.sum(y) <= 1], "GLOBAL"),
        (lambda y: cp.sum(cp.huber(y - 3)), lambda y: [cp.sum(y) <= 1], "GLOBAL"),
        (lambda y: cp.max(y) + cp.sum_squares(y), lambda y: [cp.sum(y) >= 1], "GLOBAL"),
    ],
)
def test_statuses(goal, rows, status):
    y = cp.Variable(2, name="y")
    solution = bg.argmin(cp.Problem(cp.Minimize(goal(y)), rows(y))).solve(verify=True)
    assert solution.status.name == status
    if solution.status.ok:
        assert abs(solution.stats.follower_gap) < 1e-6
        assert np.isclose(
            cp.Problem(cp.Minimize(goal(y)), rows(y)).solve(solver=cp.CLARABEL), solution.value, atol=1e-6
        )


def test_maximize_and_lower_value():
    y, p = cp.Variable(name="y"), cp.Parameter(name="p")
    program = bg.argmin(cp.Problem(cp.Maximize(p * y - cp.square(y)), [y <= 1]))
    solution = program.solve({p: 1.0})
    assert np.isclose(solution.value, 0.25)
    assert np.isclose(solution.stats.bound, 0.25)
    assert np.isnan(solution.lower_value)
    assert "One-level program" in program.explain()


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (lambda: "y", "give a cvxpy.Problem"),
        (lambda: cp.Problem(cp.Minimize(0)), "no variables"),
        (lambda: cp.Problem(cp.Minimize(cp.square(cp.Variable(integer=True, name="k")))), "'k' is integer"),
    ],
)
def test_refusals(problem, message):
    with pytest.raises(bg.DeclarationError, match=message):
        bg.argmin(problem())


BALLS = {
    "a norm": lambda y, a, r: cp.norm(2 * (y - a)) <= r + 0.1,
    "a norm, the other way round": lambda y, a, r: 2 * r >= cp.norm(a - y),
    "a square": lambda y, a, r: cp.sum_squares(y - a) <= r,
}


@pytest.mark.parametrize("name", BALLS)
def test_balls_agree_with_the_cone_program_and_finite_differences(name):
    y, p, a = (cp.Variable(4, name="y"), cp.Parameter(4, name="p"), cp.Parameter(4, name="a"))
    r = cp.Parameter(nonneg=True, name="r")
    constraint = BALLS[name](y, a, r)
    program = bg.argmin(cp.Problem(cp.Minimize(cp.sum_squares(y - p) + p @ y), [constraint]))
    rng = np.random.default_rng(0)
    inputs = [leaf(rng.standard_normal((8, 4))), leaf(0.3 * rng.standard_normal((8, 4))), leaf(2 * rng.random(8))]
    found = {}
    for solver in (None, bg.Interior()):
        layer = bg.Layer(program, [p, a, r], [y, constraint.dual_variables[0]], solver=solver)
        found[solver] = [v.detach().numpy() for v in layer(*inputs)]
        assert {s.stats.solver for s in layer.solve(*inputs)} == {"Interior" if solver else "Formula"}
        assert torch.autograd.gradcheck(lambda *v, layer=layer: layer(*v), inputs, atol=1e-5)
    for ours, other in zip(*found.values(), strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-8)
    assert (found[None][1] > 0).any()
    assert (found[None][1] == 0).any()
    verified = bg.Layer(program, [p, a, r], [y]).solve(*inputs, verify=True)
    assert max(abs(s.stats.follower_gap) for s in verified) < 1e-7


def test_dependent_rows_are_called_singular():
    """At a corner where more rows push back than there are variables; the rank of these rows is the oracle."""
    y, t, total, cap = cp.Variable(3, name="y"), cp.Parameter(3), cp.Parameter(), cp.Parameter(3)
    rows = [y >= 0, cp.sum(y) == total, y <= cap]
    layer = bg.Layer(bg.argmin(cp.Problem(cp.Minimize(cp.sum_squares(y - t) / 2), rows)), variables=[y])
    wishes = [[1.0, -1, 1], [1, -1, 1], [-1, -2, -1], [-1, -2, -1]]
    totals, caps = [1.0, 1, 0, 1], [[0.5, 1, 0.5], [1, 1, 1], [1, 1, 1], [1, 1, 1]]
    values = {t: wishes, total: totals, cap: caps}
    given = [torch.tensor(values[i.handle], dtype=torch.float64) for i in layer.program.inputs]
    (found,) = layer(*given)
    eye = np.eye(3)
    for answer, wish, upper, solution in zip(found.numpy(), wishes, caps, layer.solve(*given), strict=True):
        assert solution.stats.solver == "ActiveSet"
        J = np.vstack([np.ones((1, 3)), eye[answer == 0], eye[answer == upper]])
        assert solution.stats.singular == (np.linalg.matrix_rank(J) < len(J)), (wish, solution)
    assert [s.stats.singular for s in layer.solve(*given)] == [True, False, True, False]


def test_balls_that_are_empty_or_a_point():
    y, p, r = cp.Variable(2, name="y"), cp.Parameter(2, name="p"), cp.Parameter(name="r")
    P, R = leaf([[3.0, 4.0]] * 4), leaf([1.0, -1.0, 0.0, float("nan")])
    norm, square = (
        bg.Layer(bg.argmin(cp.Problem(cp.Minimize(cp.sum_squares(y - p)), [c])), [p, r], [y], on_failure="nan")
        for c in (cp.norm(y) <= r, cp.sum_squares(y) <= r)
    )
    for layer in (norm, square):
        assert [s.status.name for s in layer.solve(P, R)] == ["GLOBAL", "INFEASIBLE_UPPER", "GLOBAL", "INVALID_INPUT"]
        np.testing.assert_allclose(layer(P, R)[0][[0, 2]].detach(), [[0.6, 0.8], [0.0, 0.0]], atol=1e-12)
    (gradient,) = torch.autograd.grad(norm(P, R)[0][[0, 2]].sum(), [R])
    np.testing.assert_allclose(gradient, [1.4, 0.0, 1.4, 0.0], atol=1e-12)
    with pytest.warns(bg.SingularWarning, match=r"items \[2\]"):  # the square has no multiplier at a point
        square(P, R)[0][[0, 2]].sum().backward()
    assert torch.isfinite(R.grad).all()
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(norm(P[:1], R[:1])[0].sum(), [P], create_graph=True)


@pytest.mark.parametrize(
    "rows",
    [
        lambda y: [cp.norm(y) <= 1, y >= 0],
        lambda y: [cp.norm(cp.multiply([1.0, 2.0, 3.0], y)) <= 1],
        lambda y: [cp.norm(y[:2]) <= 1],
        lambda y: [cp.norm(y, 1.5) <= 1],
        lambda y: [cp.norm(y) <= 1 + y[0]],
    ],
)
def test_what_is_no_ball_goes_to_interior(rows):
    y = cp.Variable(3, name="y")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(y - [1.0, 2.0, 3.0])), rows(y))
    solution = bg.argmin(problem).solve(verify=True)
    assert solution.stats.solver == "Interior"
    assert solution.status is bg.Status.GLOBAL
    assert abs(solution.stats.follower_gap) < 1e-7


def test_active_set_refuses_two_levels():
    x, y = cp.Variable(name="x"), cp.Variable(name="y")
    program = bg.bilevel(
        cp.Problem(cp.Minimize(cp.square(x) + y)), cp.Problem(cp.Minimize(cp.square(y - x))), responds=[y]
    )
    with pytest.raises(bg.CapabilityError, match="one level, and this program has two"):
        program.solve(solver=bg.ActiveSet())


def test_smooth_but_not_convex_is_a_local_optimum_with_its_gradient():
    """|y|²/2 − c'log y for c of any declared sign: y = √c where c > 0, so dy/dc = 1 / (2 y)."""
    y, c = cp.Variable(2, name="y"), cp.Parameter(2, name="c")
    program = bg.argmin(cp.Problem(cp.Minimize(cp.sum_squares(y) / 2 - c @ cp.log(y)), [y >= 0.1, y <= 5]))
    layer = bg.Layer(program, parameters=[c], variables=[y])
    at = torch.tensor([[1.0, 4.0], [2.0, 0.25]], dtype=torch.float64, requires_grad=True)
    (found,) = layer(at)
    torch.testing.assert_close(found, at.sqrt(), rtol=0, atol=1e-9)
    found.sum().backward()
    torch.testing.assert_close(at.grad, 0.5 / at.detach().sqrt(), rtol=0, atol=1e-8)
    assert program.solve({c: [1.0, 4.0]}).status is bg.Status.LOCAL


def test_a_concave_objective_ends_in_a_corner():
    y = cp.Variable(name="y")
    solution = bg.argmin(cp.Problem(cp.Minimize(cp.sqrt(y)), [y >= 1, y <= 3])).solve()
    assert solution.status is bg.Status.LOCAL
    np.testing.assert_allclose(solution[y], 1.0, atol=1e-9)
