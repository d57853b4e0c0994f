"""Canary for CVXPY's private derivative engine.

Fails loudly when its classes move, change their signatures, or change their answers.
"""

import inspect

import cvxpy as cp
import numpy as np
import pytest
from cvxpy.reductions.dnlp2smooth.dnlp2smooth import Dnlp2Smooth
from cvxpy.reductions.solvers.nlp_solvers.diff_engine import C_problem

from bigrad.programs.bilinear import Bilinear, Pattern, entries
from bigrad.programs.engine import Engine, bounds, canonicalise

x, y = cp.Variable(3, name="x"), cp.Variable(3, name="y")
c, M = cp.Parameter(3, name="c"), cp.Parameter((2, 3), name="M")
k, P = cp.Parameter(name="k", nonneg=True), cp.Parameter((3, 3), name="P", PSD=True)
PARAMETERS = (c, M, k, P)

EXPRESSIONS = {
    "exp": cp.sum(cp.exp(cp.multiply(c, x))) + c @ y,
    "log": -cp.sum(cp.log(x + 1)) + k * cp.sum(y),
    "bilinear": (M @ x) @ (M @ y) + (c @ x) * y[0],
    "elementwise": (2 * c + 1) @ cp.multiply(x, y),
    "price times demand": x @ y - cp.sum(cp.exp(y)),
    "quadratic form": cp.quad_form(y - c, P) + cp.exp(x[0]),
    "matrix parameter": cp.sum_squares(M @ y - 1) + cp.sum(cp.exp(x)),
    "max": k * cp.max(y - x) + cp.sum(cp.exp(x)),
    "abs": k * cp.norm1(y - x) + cp.sum(cp.exp(x)),
    "huber": cp.sum(cp.huber(x - c)) + cp.exp(y[0]),
    "log_sum_exp": cp.log_sum_exp(M @ x) + cp.sum_squares(y),
    "norm": cp.norm(M @ x - 3, 2) + cp.exp(y[0]),
    "quotient": cp.sum_squares(x - c) / (y[0] + 2),
    "powers": cp.sum(cp.power(x, 1.5)) + cp.sum(cp.inv_pos(y)) + cp.sum(cp.power(x, 3)),
    "kl_div": cp.sum(cp.kl_div(x, y)) + cp.sum(cp.entr(x)),
    "logistic": cp.sum(cp.logistic(M @ x)) + cp.sum_squares(y),
    "product": cp.prod(x + 1) + cp.sum_squares(y),
    "geometric mean": -cp.geo_mean(x) + cp.sum_squares(y),
    "indexing": cp.sum(cp.exp(cp.hstack([x[:2], y[1:]]))) + cp.sum(cp.multiply(cp.diff(x), y[1:])),
}


def test_private_api_is_where_it_was() -> None:
    assert list(inspect.signature(C_problem.__init__).parameters) == ["self", "cvxpy_problem", "verbose"]
    methods = {
        "update_params": ["self", "theta"],
        "init_jacobian_coo": ["self"],
        "init_hessian_coo_lower_tri": ["self"],
        "objective_forward": ["self", "u"],
        "constraint_forward": ["self", "u"],
        "gradient": ["self"],
        "get_jacobian_sparsity_coo": ["self"],
        "eval_jacobian_vals": ["self"],
        "get_problem_hessian_sparsity_coo": ["self"],
        "eval_hessian_vals_coo_lower_tri": ["self", "obj_factor", "lagrange"],
    }
    for name, arguments in methods.items():
        assert list(inspect.signature(getattr(C_problem, name)).parameters) == arguments, name
    assert list(inspect.signature(Dnlp2Smooth.apply).parameters) == ["self", "problem"]


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_engine_agrees_with_cvxpy_and_with_differences(name: str) -> None:
    rows = [cp.sum_squares(x) <= 5 + k, M @ y == 1, x >= c]
    canonical = canonicalise(EXPRESSIONS[name], rows, PARAMETERS)
    assert all(p.value is None for p in PARAMETERS)
    assert all(v.value is None for v in (x, y))
    sizes = np.cumsum([0, *(v.size for v in canonical.variables)])
    place = {v.id: int(s) for v, s in zip(canonical.variables, sizes, strict=False)}
    n, inputs = int(sizes[-1]), sum(p.size for p in PARAMETERS)
    engine = Engine(canonical, place, n)
    assert engine.audit(canonical)
    assert (engine.inequalities, engine.equalities) >= (4, 2)

    rng = np.random.default_rng(1)
    values = [rng.uniform(0.5, 1.5, p.size) for p in PARAMETERS]
    low, high = bounds(canonical.variables)
    v = np.clip(rng.uniform(0.5, 1.5, n), low, np.where(high == 0, -0.5, high))
    m = rng.standard_normal(engine.inequalities + engine.equalities)
    engine.give(values)

    def dense(at: Pattern, entries: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        matrix = np.zeros(shape)
        matrix[at.rows, at.columns] = entries
        return matrix

    def lagrangian(v: np.ndarray, engine: Engine, factor: float = 0.7) -> np.ndarray:
        """Gradient of factor * objective + m'rows, and the rows."""
        J = dense(engine.jacobian_at, engine.jacobian(v), (len(m), engine.size))
        return np.r_[factor * engine.gradient(v) + J.T @ m, engine.rows(v)]

    h = 1e-6
    moves = h * np.eye(n)
    gradient = [(engine.objective(v + d) - engine.objective(v - d)) / (2 * h) for d in moves]
    slopes = np.array([(lagrangian(v + d, engine) - lagrangian(v - d, engine)) / (2 * h) for d in moves])
    lower = dense(engine.hessian_at, engine.hessian(v, 0.7, m), (n, n))  # at once, with nothing evaluated at v before
    assert not np.triu(lower, 1).any()
    np.testing.assert_allclose(engine.gradient(v), gradient, atol=2e-6)
    np.testing.assert_allclose(lower + np.tril(lower, -1).T, slopes[:, :n], atol=2e-5)
    np.testing.assert_allclose(dense(engine.jacobian_at, engine.jacobian(v), (len(m), n)), slopes[:, n:].T, atol=2e-6)

    wanted = (True, True, True, False)
    full = Engine(canonical, place, n, wanted)
    full.give(values)
    both = np.r_[v, *values]
    assert full.objective(both) == pytest.approx(engine.objective(v), rel=1e-12)
    corner = dense(full.hessian_at, full.hessian(both, 0.7, m), (n + inputs, n + inputs))[n:, :n]

    def at(moved: np.ndarray) -> np.ndarray:
        engine.give(np.split(moved, np.cumsum([p.size for p in PARAMETERS])[:-1]))
        return lagrangian(v, engine)[:n]

    theta = np.concatenate(values)
    mixed = np.array([(at(theta + d) - at(theta - d)) / (2 * h) for d in h * np.eye(inputs)])
    mixed[inputs - P.size :] = 0.0  # not wanted
    np.testing.assert_allclose(corner, mixed, atol=2e-5)


def test_quadratic_form_with_a_wanted_matrix() -> None:
    canonical = canonicalise(EXPRESSIONS["quadratic form"], [], PARAMETERS)
    place = {v.id: 3 * i for i, v in enumerate(canonical.variables)}
    engine = Engine(canonical, place, 6, (False, False, False, True))
    engine.give([np.zeros(p.size) for p in PARAMETERS])
    v = np.arange(25.0) / 10
    here = {i: v[s : s + 3] for i, s in place.items()}
    np.testing.assert_allclose(engine.gradient(v)[6 + 3 + 6 + 1 :], np.outer(here[y.id], here[y.id]).ravel())


def test_unknown_functions_are_refused() -> None:
    with pytest.raises(NotImplementedError):
        Engine(canonicalise(cp.cumsum(cp.exp(x))[2], [], ()), {x.id: 0}, 3)


def test_bilinear_derivatives() -> None:
    rng = np.random.default_rng(0)
    terms, count, unknowns, size = 40, 5, 4, 8
    row, left, right = (
        rng.integers(count, size=terms),
        rng.integers(size, size=terms),
        rng.integers(unknowns, size=terms),
    )
    system = Bilinear(count, unknowns, size, row, left, right, rng.standard_normal(terms))
    e, m, dv, dm = (
        np.r_[rng.standard_normal(size - 1), 1.0],
        *(rng.standard_normal(s) for s in (count, unknowns, count)),
    )
    J = np.zeros((count, unknowns))
    J[system.jacobian_at.rows, system.jacobian_at.columns] = system.jacobian(e)
    H = np.zeros((unknowns, unknowns))
    H[system.hessian_at.rows, system.hessian_at.columns] = system.hessian(m)
    h = 1e-6

    def moved(i: int, s: float) -> np.ndarray:
        return e + s * h * np.eye(size)[i]

    np.testing.assert_allclose(
        J.T, [(system.values(moved(i, 1)) - system.values(moved(i, -1))) / (2 * h) for i in range(unknowns)], atol=1e-8
    )

    def pulled(e: np.ndarray) -> np.ndarray:
        J = np.zeros((count, unknowns))
        J[system.jacobian_at.rows, system.jacobian_at.columns] = system.jacobian(e)
        return J.T @ m

    slopes = np.array([(pulled(moved(i, 1)) - pulled(moved(i, -1))) / (2 * h) for i in range(size - 1)])
    np.testing.assert_allclose(H + np.tril(H, -1).T, slopes[:unknowns], atol=1e-8)
    direct = np.array([(system.values(moved(i, 1)) - system.values(moved(i, -1))) / (2 * h) for i in range(size - 1)])
    np.testing.assert_allclose(system.pull(e, m, dv, dm), (slopes @ dv + direct @ dm)[unknowns:], atol=1e-8)


def test_entries_reads_column_major_tensors() -> None:
    import scipy.sparse as sp

    tensor = np.zeros((6, 2))  # a 3 x 2 matrix for each of two inputs
    tensor[4, 1] = 7.0
    assert [int(a[0]) for a in entries(sp.csc_array(tensor), 3)] == [1, 1, 1, 7]
