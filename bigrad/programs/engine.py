"""CVXPY's own derivative engine behind one door: the only module that touches its private classes (`Dnlp2Smooth`,
`C_problem`).

An upper level in plain variables and parameters becomes a smooth program in those variables and CVXPY's auxiliary
ones (max, abs, log and others are rewritten with auxiliary variables), whose values, gradients, sparse Jacobians and
Hessians come from C. Rules found by trial, each pinned by tests/test_engine.py: run `Dnlp2Smooth` first; evaluate
the gradient and the Jacobian before the Hessian; for derivatives with respect to parameters, turn them into
variables.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.atoms.quad_form import QuadForm
from cvxpy.constraints.nonpos import Inequality, NonNeg, NonPos
from cvxpy.constraints.zero import Equality, Zero
from cvxpy.reductions.dnlp2smooth.dnlp2smooth import Dnlp2Smooth
from cvxpy.reductions.solvers.nlp_solvers.diff_engine import C_problem

from bigrad.programs.bilinear import Pattern
from bigrad.programs.expressions import Holding

EQUALITIES = (Equality, Zero)
INEQUALITIES = (Inequality, NonPos, NonNeg)


@dataclass(frozen=True, eq=False)
class Canonical:
    """A smooth program in CVXPY's words: minimise `objective` subject to `inequalities` <= 0 and `equalities` == 0.

    variables: the caller's that appear, then CVXPY's auxiliary ones. parameters: private copies, without attributes,
    of the caller's. start: a value of each variable inside its domain, where every function can be evaluated.
    """

    objective: cp.Expression
    inequalities: tuple[cp.Expression, ...]
    equalities: tuple[cp.Expression, ...]
    variables: tuple[cp.Variable, ...]
    parameters: tuple[cp.Parameter, ...]
    start: tuple[np.ndarray, ...]


def canonicalise(
    objective: cp.Expression, constraints: Sequence[cp.Constraint], parameters: Sequence[cp.Parameter]
) -> Canonical:
    """Rewrite an upper level for the engine. Raises NotImplementedError or ValueError for what it does not know."""
    copies = tuple(cp.Parameter(p.shape, name=p.name(), value=np.ones(p.shape)) for p in parameters)
    swap = {id(p): copy for p, copy in zip(parameters, copies, strict=True)}
    rows = [_row(c, swap) for c in constraints]
    problem = cp.Problem(cp.Minimize(_expanded(objective).tree_copy(swap)), rows)
    own = problem.variables()
    with Holding({v: np.ones(v.shape) for v in own}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a divisor that CVXPY cannot prove to be positive; it becomes a constraint
        smooth, _ = Dnlp2Smooth().apply(problem)
        known = {v.id for v in own}
        every = (*own, *(v for v in smooth.variables() if v.id not in known))
        start = tuple(np.ones(v.shape) if v.value is None else np.array(v.value, dtype=float) for v in every)
    rows = smooth.constraints
    return Canonical(
        objective=smooth.objective.expr,
        inequalities=tuple(c.expr for c in rows if isinstance(c, INEQUALITIES)),
        equalities=tuple(c.expr for c in rows if isinstance(c, EQUALITIES)),
        variables=every,
        parameters=copies,
        start=start,
    )


class Engine:
    """Values and derivatives of a Canonical program at v, where variable i of CVXPY id `id` stands at `place[id]`.

    wanted: which parameters are unknowns too; entry k of all parameters, flattened and joined, stands at `size` + k.
    Holds one evaluation point; its caller keeps other threads out.
    """

    def __init__(self, canonical: Canonical, place: Mapping[int, int], size: int, wanted: Sequence[bool] | None = None):
        goal, rows = canonical.objective, [*canonical.inequalities, *canonical.equalities]
        self.inequalities = sum(r.size for r in canonical.inequalities)
        self.equalities = sum(r.size for r in canonical.equalities)
        where, self.size = dict(place), size
        self.canonical, self.place = canonical, place
        values: dict[Any, np.ndarray] = {v: np.ones(v.shape) for v in canonical.variables}
        if wanted is not None:
            stands = {id(p): cp.Variable(p.shape) for p, w in zip(canonical.parameters, wanted, strict=True) if w}
            goal, rows = goal.tree_copy(stands), [r.tree_copy(stands) for r in rows]
            for p in canonical.parameters:
                if id(p) in stands:
                    where[stands[id(p)].id] = self.size
                    values[stands[id(p)]] = np.ones(p.shape)
                self.size += p.size
        problem = cp.Problem(cp.Minimize(goal), [Zero(r) for r in rows])
        variables = problem.variables()
        columns = [where[v.id] + np.arange(v.size) for v in variables]
        self.columns = np.concatenate([*columns, np.zeros(0, int)]).astype(int)
        order = {p.id: k for k, p in enumerate(canonical.parameters)}
        self._inputs = [order[p.id] for p in problem.parameters()]
        with Holding(values):
            self._c = C_problem(problem, verbose=False)
        self._c.init_jacobian_coo()
        self._c.init_hessian_coo_lower_tri()
        self.jacobian_at = self._pattern(self._c.get_jacobian_sparsity_coo(), None)
        self.hessian_at = self._pattern(self._c.get_problem_hessian_sparsity_coo(), self.columns)
        self._point: np.ndarray | None = None

    def _pattern(self, at: tuple[np.ndarray, np.ndarray], rows: np.ndarray | None) -> Pattern:
        a, b = at if rows is None else (rows[at[0]], rows[at[1]])
        if rows is None:
            return Pattern.of(a, self.columns[b])
        return Pattern.of(np.maximum(a, b), np.minimum(a, b))

    def give(self, theta: Sequence[np.ndarray]) -> None:
        """Set the parameters, flattened, in the order of `Canonical.parameters`."""
        self.theta = theta
        if self._inputs:
            self._c.update_params(np.concatenate([theta[k] for k in self._inputs]).astype(float))
        self._point = None

    def _at(self, v: np.ndarray) -> None:
        if self._point is None or not np.array_equal(self._point, v):
            self._point = v.copy()
            short = np.ascontiguousarray(v[self.columns])
            self._objective = float(self._c.objective_forward(short))
            count = self.inequalities + self.equalities
            self._rows = np.array(self._c.constraint_forward(short)) if count else np.zeros(0)
            self._gradient: np.ndarray | None = None

    def _differentiate(self, v: np.ndarray) -> None:
        self._at(v)
        if self._gradient is None:
            self._gradient = np.zeros(self.size)
            self._gradient[self.columns] = self._c.gradient()
            self._jacobian = self.jacobian_at(np.asarray(self._c.eval_jacobian_vals(), dtype=float))

    def objective(self, v: np.ndarray) -> float:
        """The objective."""
        self._at(v)
        return self._objective

    def rows(self, v: np.ndarray) -> np.ndarray:
        """Inequalities, then equalities."""
        self._at(v)
        return self._rows

    def gradient(self, v: np.ndarray) -> np.ndarray:
        """Gradient of the objective, dense."""
        self._differentiate(v)
        assert self._gradient is not None
        return self._gradient

    def jacobian(self, v: np.ndarray) -> np.ndarray:
        """Entries of the Jacobian of the rows, at `jacobian_at`."""
        self._differentiate(v)
        return self._jacobian

    def hessian(self, v: np.ndarray, factor: float, multipliers: np.ndarray) -> np.ndarray:
        """Entries, at `hessian_at`, of the lower triangle of the Hessian of factor * objective + multipliers' rows."""
        self._differentiate(v)
        values = self._c.eval_hessian_vals_coo_lower_tri(float(factor), np.ascontiguousarray(multipliers, dtype=float))
        return self.hessian_at(np.asarray(values, dtype=float))

    def audit(self, canonical: Canonical) -> bool:
        """Whether the engine's values agree with CVXPY's own at a random point and random parameters."""
        rng = np.random.default_rng(0)
        leaves: dict[Any, np.ndarray] = {
            v: rng.uniform(0.5, 1.5, v.shape) for v in (*canonical.variables, *canonical.parameters)
        }
        with Holding(leaves), np.errstate(all="ignore"):
            pieces: list[Any] = [canonical.objective, *canonical.inequalities, *canonical.equalities]
            expected = np.concatenate([np.ravel(piece.value, order="F") for piece in pieces])
            short = [np.ravel(leaves[v], order="F") for v in self._order(canonical)]
            v = np.zeros(self.size)
            v[self.columns] = np.concatenate([*short, np.zeros(0)])
            self.give([np.ravel(leaves[p], order="F") for p in canonical.parameters])
            got = np.r_[self.objective(v), self.rows(v)]
        return np.allclose(got, expected, rtol=1e-9, atol=1e-9, equal_nan=True)

    @staticmethod
    def _order(canonical: Canonical) -> list[cp.Variable]:
        rows = [*canonical.inequalities, *canonical.equalities]
        return cp.Problem(cp.Minimize(canonical.objective), [Zero(r) for r in rows]).variables()


def bounds(variables: Sequence[cp.Variable]) -> tuple[np.ndarray, np.ndarray]:
    """Flattened lower and upper bounds that variables carry as attributes."""
    both = [[np.ravel(np.broadcast_to(b, v.shape), order="F").astype(float) for b in v.get_bounds()] for v in variables]
    none = np.zeros(0)
    return np.concatenate([*(b[0] for b in both), none]), np.concatenate([*(b[1] for b in both), none])


def _row(constraint: cp.Constraint, swap: Mapping[int, Any]) -> cp.Constraint:
    """The constraint as an equality or an inequality of expressions that the engine takes."""
    expression = constraint.args[0] if len(constraint.args) == 1 else constraint.expr
    expression = _expanded(expression).tree_copy(swap)
    if isinstance(constraint, EQUALITIES):
        return expression == 0
    return expression >= 0 if isinstance(constraint, NonNeg) else expression <= 0


def _expanded(expression: Any) -> Any:
    """Write quadratic forms whose matrix has parameters as x'(Px): only so can these parameters become variables."""
    if not expression.args:
        return expression
    args = [_expanded(arg) for arg in expression.args]
    if isinstance(expression, QuadForm) and args[1].parameters():
        vector = cp.reshape(args[0], (args[0].size, 1), order="F")
        return cp.sum(cp.multiply(vector, args[1] @ vector))
    return expression.copy(args) if any(a is not b for a, b in zip(args, expression.args, strict=True)) else expression
