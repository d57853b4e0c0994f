"""One level with cones: solutions, dual variables and gradients of every cone, statuses, refusals."""

import pickle
import warnings
from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from derivatives import compare
from helpers import solved

import bigrad as bg
from bigrad.programs import newton
from bigrad.programs.projection import Cones

n = 3


@dataclass
class Lone:
    """A problem of one level as its user wrote it, and values for its parameters."""

    problem: cp.Problem
    values: dict[cp.Parameter, Any] = field(default_factory=dict)

    @property
    def program(self) -> bg.Program:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # CVXPY's advice on powers
            return bg.argmin(self.problem)


def leaves(rng: np.random.Generator) -> tuple[cp.Variable, dict[str, cp.Parameter], dict[cp.Parameter, np.ndarray]]:
    """A variable, parameters by name, and random values for them."""
    x = cp.Variable(n, name="x")
    p = {
        "t": cp.Parameter(n, name="t"),
        "r": cp.Parameter(name="r", nonneg=True),
        "F": cp.Parameter((4, n), name="F"),
        "C": cp.Parameter((n, n), symmetric=True, name="C"),
        "P": cp.Parameter((n, n), PSD=True, name="P"),
    }
    C, root = rng.standard_normal((2, n, n))
    numbers = [
        rng.standard_normal(n),
        np.array(rng.uniform(0.5, 1.5)),
        rng.standard_normal((4, n)),
        C + C.T,
        root @ root.T,
    ]
    return x, p, dict(zip(p.values(), numbers, strict=True))


def lone(goal: Any, rows: Any, values: dict[cp.Parameter, Any]) -> Lone:
    problem = cp.Problem(goal if isinstance(goal, cp.Minimize | cp.Maximize) else cp.Minimize(goal), list(rows))
    known = {p.id for p in problem.parameters()}
    return Lone(problem, {p: v for p, v in values.items() if p.id in known})


def ball(x, p):
    return cp.sum(x) + cp.quad_form(x, p["P"]), [cp.norm(x - p["t"]) <= p["r"]]


def ellipsoid(x, p):
    return cp.Maximize(p["t"] @ x), [cp.sum_squares(p["F"] @ x) <= p["r"], x[0] >= -0.2, cp.sum(x[1:]) == 0.1]


def group_lasso(x, p):
    return cp.sum_squares(p["F"] @ x - 1) + p["r"] * cp.norm(x[:2]) + cp.norm1(x), []


def own_cone(x, p):
    return cp.sum_squares(x - p["t"]), [cp.SOC(x[0], x[1:]), cp.SOC(np.ones(2), cp.vstack([x[:2], x[1:]]).T, axis=0)]


def entropy(x, p):
    return cp.Maximize(cp.sum(cp.entr(x)) + p["t"] @ x), [cp.sum(x) == 1]


def log_sum_exp(x, p):
    return cp.log_sum_exp(p["F"] @ x) + p["r"] * cp.sum_squares(x), [x >= -0.5, x <= 1]


def logistic(x, p):
    return cp.sum(cp.logistic(p["F"] @ x - 1)) + p["r"] * cp.sum_squares(x) + p["t"] @ x / 9, []


def own_exponential(x, p):
    return cp.sum_squares(x - p["t"]), [cp.ExpCone(x[0], x[1], x[2])]


def geometric_mean(x, p):
    return cp.Maximize(cp.geo_mean(x) - cp.sum_squares(x)), [cp.sum(cp.multiply([1, 2, 3.0], x)) <= p["r"]]


def geometric_mean_by_powers(x, p):
    return cp.Maximize(cp.geo_mean(x, approx=False) - cp.sum_squares(x)), [x @ [1, 2, 3.0] <= p["r"]]


def powers(x, p):
    return cp.sum(cp.power(cp.abs(x - p["t"]), 2.5, approx=False)) + p["r"] * cp.sum(x), [cp.sum(x) >= -1]


def own_power(x, p):
    return cp.sum_squares(x - p["t"]), [cp.PowCone3D(x[0], x[1], x[2], 0.3)]


def semidefinite(x, p):
    X = cp.Variable((n, n), PSD=True, name="X")
    return cp.sum_squares(X - p["C"]), [cp.trace(X) <= 4 * p["r"]]


def spectral(x, p):
    X = cp.Variable((n, n), symmetric=True, name="X")
    return cp.lambda_max(p["C"] + X) + cp.sum_squares(X) / 3 + p["t"] @ cp.diag(X), []


def linear_matrix(x, p):
    M = [np.eye(n), np.ones((n, n)), np.diag([1.0, -1.0, 0.5])]
    return cp.sum_squares(x - p["t"]), [sum(x[k] * M[k] for k in range(n)) - p["C"] >> 0]


def nuclear(x, p):
    return cp.normNuc(cp.reshape(cp.hstack([x, x[:1]]), (2, 2), order="F") - p["F"][:2, :2]) + cp.sum_squares(
        x - p["t"]
    ), []


def determinant(x, p):
    X = cp.Variable((n, n), symmetric=True, name="X")
    return -cp.log_det(X) + cp.sum_squares(X - p["C"]), [cp.trace(X) <= 3]


ATOMS = [
    ball, ellipsoid, group_lasso, own_cone, entropy, log_sum_exp, logistic, own_exponential, geometric_mean,
    geometric_mean_by_powers, powers, own_power, semidefinite, spectral, linear_matrix, nuclear, determinant,
]  # fmt: skip


def made(atom: Any, seed: int) -> Lone:
    x, p, values = leaves(np.random.default_rng(seed))
    goal, rows = atom(x, p)
    return lone(goal, rows, values)


@pytest.mark.filterwarnings("ignore:(Power|GeoMean|geo_mean|Pnorm).* atom:UserWarning")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("atom", ATOMS, ids=lambda atom: atom.__name__)
def test_solution_duals_and_gradients(atom, seed):
    case = made(atom, seed)
    program = case.program
    shown = [u.handle for u in program.outputs]
    solution = program.solve(case.values, verify=True)
    assert solution.status is bg.Status.GLOBAL
    assert max(solution.stats.residual, solution.stats.violation) < 1e-9
    assert abs(solution.stats.follower_gap) < 1e-7 * (1 + abs(solution.value))
    for p, value in case.values.items():
        p.value = value
    sense = 1.0 if isinstance(case.problem.objective, cp.Minimize) else -1.0
    assert solution.value == pytest.approx(sense * solved(case.problem), abs=1e-7)
    for handle in shown:
        assert (
            np.abs(np.ravel(solution[handle]) - np.ravel(handle.value)).max() < 1e-4
        )  # the reference stops early, not we
    report = compare(case, shown, seed=seed, coordinates=1, random=1)
    assert len(report.agreeing) == len(report.differences)
    assert report.worst < 1e-5
    assert max(abs(d.gradient - (d.left + d.right) / 2) / d.scale for d in report.differences) < 1e-4  # noise and all


def test_projection_onto_a_ball_in_closed_form():
    x, t = cp.Variable(4, name="x"), cp.Parameter(4, name="t")
    layer = bg.Layer(bg.argmin(cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [cp.norm(x) <= 1])), [t], [x])
    points = torch.tensor(
        np.random.default_rng(0).standard_normal((6, 4)) * [[3], [3], [3], [0.1], [0.1], [3]], requires_grad=True
    )
    (found,) = layer(points)
    exact = points / torch.clamp(points.norm(dim=1, keepdim=True), min=1.0)
    assert torch.allclose(found, exact, atol=1e-12)
    weights = torch.linspace(-1, 2, 24, dtype=torch.float64).reshape(6, 4)
    (ours,) = torch.autograd.grad((weights * found).sum(), points)
    (truth,) = torch.autograd.grad((weights * exact).sum(), points)
    assert torch.allclose(ours, truth, atol=1e-10)


def test_softmax_and_its_value_gradient():
    x, c = cp.Variable(5, name="x"), cp.Parameter(5, name="c")
    total = cp.sum(x) == 1
    layer = bg.Layer(
        bg.argmin(cp.Problem(cp.Maximize(c @ x + cp.sum(cp.entr(x))), [total])), [c], [x, total.dual_variables[0]]
    )
    scores = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    share, price = layer(scores)
    assert torch.allclose(share, torch.softmax(scores, 0), atol=1e-11)
    assert price.item() == pytest.approx(torch.logsumexp(scores, 0).item() - 1, abs=1e-10)
    assert torch.allclose(torch.autograd.grad(price, scores)[0], torch.softmax(scores, 0).detach(), atol=1e-10)


def test_the_gradient_of_a_symmetric_parameter_is_on_both_triangles():
    X, C = cp.Variable((2, 2), PSD=True, name="X"), cp.Parameter((2, 2), symmetric=True, name="C")
    layer = bg.Layer(bg.argmin(cp.Problem(cp.Minimize(cp.sum_squares(X - C)))), [C], [X])
    given = torch.tensor([[1.0, 2.0], [2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    (found,) = layer(given)
    spectrum, frame = torch.linalg.eigh(given)
    exact = frame @ torch.diag(torch.clamp(spectrum, min=0)) @ frame.T
    weights = torch.tensor([[1.0, 0.5], [0.5, -2.0]], dtype=torch.float64)
    (ours,), (truth,) = (torch.autograd.grad((weights * a).sum(), given) for a in (found, exact))
    assert torch.allclose(found, exact, atol=1e-12)
    assert torch.allclose(ours, (truth + truth.T) / 2, atol=1e-9)


x, y, t = cp.Variable(n, name="x"), cp.Variable(n, name="y"), cp.Parameter(n, name="t")
r, P = cp.Parameter(name="r"), cp.Parameter((n, n), name="P", PSD=True)
Status = bg.Status


@pytest.mark.parametrize(
    ("goal", "rows", "values", "status"),
    [
        (cp.sum(x), [cp.norm(x - t) <= r], {t: np.zeros(n), r: -1.0}, Status.INFEASIBLE_UPPER),
        (cp.sum(x), [cp.norm(x) <= 1, x[0] >= 2], {}, Status.INFEASIBLE_UPPER),
        (x[0] - 2 * x[1], [cp.norm(x[:2]) <= x[2]], {}, Status.UNBOUNDED_UPPER),
        (x[0] - 2 * x[1], [cp.norm(x[:2]) <= x[2], cp.exp(x[2]) <= -1], {}, Status.INFEASIBLE_UPPER),
        (cp.exp(x[0]) + x[1], [x[0] == 1, x[1] >= x[2]], {}, Status.UNBOUNDED_UPPER),
        (-cp.log(x[0]), [x[0] <= -1], {}, Status.INFEASIBLE_UPPER),
        (cp.sum(x), [cp.norm(x - t) <= 1], {t: np.full(n, np.nan)}, Status.INVALID_INPUT),
        (cp.quad_form(x, P), [cp.norm(x - 1) <= 1], {P: -np.eye(n)}, Status.INVALID_INPUT),
    ],
)
def test_statuses(goal, rows, values, status):
    program = bg.argmin(cp.Problem(cp.Minimize(goal), rows))
    solution = program.solve(values)
    assert solution.status is status
    assert np.isnan(solution.value)


def test_an_unbounded_logarithm_claims_nothing():
    assert bg.argmin(cp.Problem(cp.Maximize(cp.log(x[0])))).solve().status not in (Status.GLOBAL, Status.LOCAL)


def test_limits_are_told():
    program = bg.argmin(cp.Problem(cp.Minimize(cp.sum(cp.exp(5 * x)) + cp.norm(x - 20)), [cp.norm(x) <= 30]))
    assert program.solve(solver=bg.Interior(max_iterations=1)).status is Status.ITERATION_LIMIT
    assert program.solve(solver=bg.Interior(time_limit=0.0)).status is Status.TIME_LIMIT


def test_one_bad_item_leaves_the_others_alone():
    layer = bg.Layer(
        bg.argmin(cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [cp.norm(x) <= r])), [t, r], [x], on_failure="nan"
    )
    points = torch.ones((3, n), dtype=torch.float64, requires_grad=True)
    radius = torch.tensor([1.0, -1.0, 3.0], dtype=torch.float64)
    (found,) = layer(points, radius)
    assert [s.status for s in layer.solve(points, radius)] == [Status.GLOBAL, Status.INFEASIBLE_UPPER, Status.GLOBAL]
    assert torch.isnan(found[1]).all()
    found[[0, 2]].sum().backward()
    assert torch.equal(points.grad[1], torch.zeros(n, dtype=torch.float64))
    assert torch.allclose(points.grad[2], torch.ones(n, dtype=torch.float64))


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (cp.Problem(cp.Minimize(cp.norm(cp.Variable(2, boolean=True)))), "integer"),
        (cp.Problem(cp.Minimize(cp.norm(cp.Variable(2, complex=True)))), "complex"),
        (cp.Problem(cp.Minimize(cp.norm(cp.Variable((2, 2), diag=True) - 1))), "diag"),
        (cp.Problem(cp.Minimize(cp.norm(x - 1)), [cp.norm(x) >= 1]), "not convex"),
        (cp.Problem(cp.Minimize(cp.Parameter(nonneg=True) * cp.norm(x - t))), "not DPP"),
    ],
)
def test_refusals_name_the_reason(problem, words):
    with pytest.raises(bg.DeclarationError, match=words):
        bg.argmin(problem)


def test_solvers_refuse_what_is_not_theirs():
    round_, flat = (bg.argmin(cp.Problem(cp.Minimize(g), [x >= t])) for g in (cp.norm(x), cp.sum_squares(x)))
    assert "Interior(" in round_.explain()
    for program, solver in ((round_, bg.Relaxation()), (round_, bg.Pieces()), (flat, bg.Interior())):
        with pytest.raises(bg.CapabilityError):
            program.solve({t: np.ones(n)}, solver=solver)


def test_second_derivatives_are_an_error():
    layer = bg.Layer(bg.argmin(cp.Problem(cp.Minimize(cp.norm(x - t)), [cp.sum(x) == 1])), [t], [x])
    given = torch.arange(3.0, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(layer(given)[0][0], given)
    assert g.isfinite().all()
    with pytest.raises(NotImplementedError, match="Second derivatives"):
        torch.autograd.functional.hessian(lambda a: layer(a)[0][0] ** 2, given.detach())


def test_a_decision_that_nobody_cares_about_is_told():
    layer = bg.Layer(
        bg.argmin(cp.Problem(cp.Minimize(cp.norm(x - t) + cp.sum_squares(x)), [cp.norm(y) <= 1])), [t], [x, y]
    )
    given = torch.ones(n, dtype=torch.float64, requires_grad=True)
    layer(given)[0].sum().backward()  # x is unique
    with pytest.warns(bg.SingularWarning):
        layer(given)[1].sum().backward()


def test_a_touching_constraint_counts_as_inactive():
    layer = bg.Layer(bg.argmin(cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [cp.norm(x) <= 1])), [t], [x])
    given = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64, requires_grad=True)
    assert layer.solve(given)[0].stats.degenerate > 0
    jacobian = torch.stack([torch.autograd.grad(layer(given)[0][k], given)[0] for k in range(n)])
    assert torch.allclose(jacobian, torch.eye(n, dtype=torch.float64), atol=1e-6)


def test_sparse_algebra_agrees_with_dense(monkeypatch):
    results = []
    for limit in (newton.DENSE, 0):
        monkeypatch.setattr(newton, "DENSE", limit)
        for atom in (ellipsoid, log_sum_exp, semidefinite):
            case = made(atom, 3)
            shown = [u.handle for u in case.program.outputs]
            given = [torch.tensor(v, requires_grad=True) for v in case.values.values()]
            outputs = bg.Layer(case.program, list(case.values), shown)(*given)
            results.append(torch.cat([g.flatten() for g in torch.autograd.grad(sum(o.sum() for o in outputs), given)]))
    for dense, sparse in zip(results[:3], results[3:], strict=True):
        assert torch.allclose(dense, sparse, atol=1e-8)


def test_a_program_travels():
    case = made(ball, 0)
    program = pickle.loads(pickle.dumps(case.program))
    values = {
        i.handle: v for i, v in zip(program.inputs, (case.values[i.handle] for i in case.program.inputs), strict=True)
    }
    assert program.solve(values).value == pytest.approx(case.program.solve(case.values).value, abs=1e-10)


def test_values_and_dual_values_are_published():
    case = made(ball, 0)
    solution = case.program.solve(case.values)
    (row,) = case.problem.constraints
    assert row.dual_value == pytest.approx(float(solution[row.dual_variables[0]]))
    assert np.array_equal(case.problem.variables()[0].value, solution[case.problem.variables()[0]])


SLACK = cp.Parameter(name="slack")
ROWS = [
    lambda x: cp.sum(x) <= 1 - SLACK,
    lambda x: cp.sum(x) == 2 - SLACK,
    lambda x: cp.abs(x[0] - 3) <= 0.5 - SLACK,
    lambda x: cp.norm1(x) <= 1 - SLACK,
    lambda x: cp.max(x) <= 0.4 - SLACK,
    lambda x: x[0] >= 1.5 + SLACK,
    lambda x: cp.norm(x) <= 1 - SLACK,
    lambda x: cp.sum(cp.exp(x)) <= 3 - SLACK,
    lambda x: cp.lambda_max(cp.diag(x) + 0.1) <= 0.5 - SLACK,
]


@pytest.mark.parametrize("sense", [cp.Minimize, cp.Maximize])
@pytest.mark.parametrize("row", range(len(ROWS)))
def test_a_price_is_the_slope_of_the_optimal_value(row, sense):
    """dV/d(slack) is the dual variable: tightening a constraint costs its price; quadratic lane and cones alike."""
    x = cp.Variable(n, name="x")
    constraint = ROWS[row](x)
    cost = cp.sum_squares(x - [1.0, 0.7, 0.4])
    program = bg.argmin(cp.Problem(sense(cost if sense is cp.Minimize else -cost), [constraint]))
    at, up, down = (program.solve({SLACK: s}) for s in (0.0, 1e-5, -1e-5))
    price = float(at[constraint.dual_variables[0]])
    slope = (up.value - down.value) / 2e-5 * (1 if sense is cp.Minimize else -1)
    assert at.status is Status.GLOBAL
    assert price == pytest.approx(slope, abs=1e-4)
    assert abs(price) > 0.05


def test_prices_of_a_quadratic_program_match_cvxpy_and_differentiate():
    rng = np.random.default_rng(4)
    F, b, e = cp.Parameter((5, 4), name="F"), cp.Parameter(5, name="b"), cp.Parameter(name="e")
    z = cp.Variable(4, name="z")
    rows = [F @ z <= b, cp.sum(z) == e, cp.abs(z) <= 1]
    case = lone(
        cp.sum_squares(z - [2, -1, 0.5, 1.0]) + cp.norm1(z), rows,
        {F: rng.standard_normal((5, 4)), b: rng.uniform(0, 0.5, 5), e: np.array(0.3)},
    )  # fmt: skip
    shown = [u.handle for u in case.program.outputs]
    solution = case.program.solve(case.values)
    for p, value in case.values.items():
        p.value = value
    solved(case.problem)
    for handle in shown:
        assert np.abs(solution[handle] - handle.value).max() < 1e-6
    report = compare(case, shown)
    assert len(report.agreeing) == len(report.differences)
    assert report.worst < 1e-6


def test_projections_and_their_derivatives():
    """Moreau: v = s - lam, s in K, lam in K*, s'lam = 0; derivatives against central differences."""
    rng = np.random.default_rng(0)
    cones = Cones(2, 3, (3, 3, 5), (2, 3, 3), 30, tuple(rng.uniform(0.1, 0.9, 30)))
    worst = []
    for _ in range(20):
        v = rng.standard_normal(cones.size) * 10 ** rng.uniform(-2, 1.5, cones.size)
        s = cones.project(v)
        assert np.abs(cones.project(s) - s).max() < 1e-8
        assert np.abs(cones.project(v - s)).max() < 1e-8  # -lam is in the polar cone
        assert abs(s @ (s - v)) < 1e-7
        D, h, step = np.zeros((cones.size,) * 2), rng.standard_normal(cones.size), 1e-6
        entries, at = cones.slope(v)
        D[at] = entries
        worst.append(np.abs(D @ h - (cones.project(v + step * h) - cones.project(v - step * h)) / (2 * step)))
    assert np.quantile(worst, 0.99) < 1e-6  # the others straddle a kink


def test_declared_bounds_and_signs_are_read_back_as_they_are():
    """CVXPY clips values to them on its way back; a map read through it must not be clipped."""
    y, z = cp.Variable(2, name="y", bounds=[-0.3, 0.4]), cp.Variable(2, name="z", nonpos=True)
    problem = cp.Problem(cp.Minimize(-cp.sum(y) + cp.norm(z + 2) + 1e-3 * cp.norm(y + 1)))
    solution = bg.argmin(problem).solve()
    assert solution.stats.solver == "Interior"
    np.testing.assert_allclose(solution[y], 0.4, atol=1e-7)
    np.testing.assert_allclose(solution[z], -2.0, atol=1e-6)
