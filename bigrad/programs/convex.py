"""A convex problem of one level as a parametrised cone program, and its adjoint.

    min over u of 1/2 u'Pu + q'u + d   subject to   b - A u in K,       P, q, d, A, b affine in theta

CVXPY's own chain of reductions for Clarabel makes the cone program, so that every variable attribute and every atom
means here what it means there; how variables and multipliers are read out of w = (u, lam) is found by sending
numbered entries back through that chain. The adjoint is one solve with the derivative of the optimality conditions
(newton.py): with dR/dw' a = cotangent, the gradient is -a' dR/dtheta, through the sparse tensors of the affine maps.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.constraints import PowConeND
from cvxpy.reductions.cone2cone.approx import ApproxCone2Cone
from cvxpy.reductions.cvx_attr2constr import CvxAttr2Constr
from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ParamConeProg
from cvxpy.reductions.solvers.conic_solvers.clarabel_conif import CLARABEL
from cvxpy.utilities import scopes

from bigrad.parallel import single_blas
from bigrad.programs.bilinear import entries
from bigrad.programs.newton import Conic, solve
from bigrad.programs.projection import Cones
from bigrad.solution import DeclarationError

LOST = 1e-6
"""The adjoint equation of a singular matrix counts as unsolvable if it is off by more than this, relatively."""


class Layout(NamedTuple):
    """Sizes of w = (u, lam); one level has no pairs."""

    x: int
    multipliers: int
    y: int = 0
    pairs: int = 0


class _Three(CLARABEL):
    """Clarabel's interface without power cones of more than three dimensions, which CVXPY then splits."""

    SUPPORTED_CONSTRAINTS: ClassVar[list[type]] = [c for c in CLARABEL.SUPPORTED_CONSTRAINTS if c is not PowConeND]

    def name(self) -> str:
        """CVXPY asks for one of its own."""
        return "CLARABEL3"


@dataclass(frozen=True, eq=False)
class Block:
    """A sparse matrix (or, with one column, a vector) whose entries, column by column, are affine in e = (theta, 1)."""

    shape: tuple[int, int]
    rows: np.ndarray
    columns: np.ndarray
    weights: sp.csr_array

    @staticmethod
    def of(shape: tuple[int, int], *terms: np.ndarray, spread: sp.csr_array) -> Block:
        """From terms (row, column, input, factor), summed where they meet; spread: CVXPY's inputs as a map of e."""
        row, column, k, factor = terms
        flat, at = np.unique(column * shape[0] + row, return_inverse=True)
        weights = sp.csr_array((factor, (at, k)), shape=(len(flat), spread.shape[0]))
        return Block(shape, flat % max(shape[0], 1), flat // max(shape[0], 1), sp.csr_array(weights @ spread))

    @cached_property
    def constant(self) -> bool:
        """Whether no entry depends on theta."""
        return bool(self.weights[:, [-1]].nnz == self.weights.nnz)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.searchsorted(self.columns, np.arange(self.shape[1] + 1))

    def __call__(self, e: np.ndarray) -> sp.csc_array:
        """The matrix."""
        return sp.csc_array((self.weights @ e, self.rows, self._ends), shape=self.shape)

    def vector(self, e: np.ndarray) -> np.ndarray:
        """The first column."""
        column = np.zeros(self.shape[0])
        column[self.rows] = self.weights @ e
        return column

    def pull(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Gradient over e of left' (matrix) right."""
        return (left[self.rows] * right[self.columns]) @ self.weights


@dataclass(frozen=True, eq=False)
class Convex:
    """The cone form of a convex problem; immutable, so threads share it freely.

    parameters: the user's, in the order of theta. read: for each of the user's variables and dual variables, by id, the
    matrix that reads its flattened value out of w.
    """

    parameters: tuple[cp.Parameter, ...]
    cones: Cones
    P: Block
    q: Block
    A: Block
    b: Block
    read: dict[int, sp.csr_array]

    @property
    def layout(self) -> Layout:
        """The sizes of the parts of w."""
        return Layout(self.A.shape[1], self.A.shape[0])

    @property
    def curved(self) -> bool:
        """Whether the quadratic part depends on parameters, which may make it concave."""
        return not self.P.constant

    @staticmethod
    def of(problem: cp.Problem, parameters: Sequence[cp.Parameter]) -> Convex:
        """Compile a convex problem that is affine in its parameters (DPP)."""
        program, reduced, invert = _chained(problem)
        n = program.x.size
        m = program.A.shape[0] // (n + 1)
        spread = _spread(program, parameters, reduced)
        r, c, k, value = entries(sp.csc_array((n * n, 1)) if program.P is None else program.P, n)
        P = Block.of((n, n), np.r_[r, c], np.r_[c, r], np.tile(k, 2), np.tile(value / 2, 2), spread=spread)
        r, _, k, value = entries(program.q, n + 1)
        q = Block.of((n + 1, 1), r, np.zeros_like(r), k, value, spread=spread)
        r, c, k, value = entries(program.A, m)
        own = c < n
        A = Block.of((m, n), r[own], c[own], k[own], -value[own], spread=spread)
        b = Block.of((m, 1), r[~own], 0 * r[~own], k[~own], value[~own], spread=spread)
        dims = program.cone_dims
        cones = Cones(
            dims.zero, dims.nonneg, tuple(dims.soc), tuple(dims.psd), dims.exp, tuple(float(a) for a in dims.p3d)
        )
        return Convex(tuple(parameters), cones, P, q, A, b, _readings(problem, invert, n, m))

    def at(self, theta: Sequence[np.ndarray]) -> Conic:
        """The cone program at flat parameter values."""
        e = np.concatenate([*theta, np.ones(1)])
        q = self.q.vector(e)
        return Conic(self.P(e), q[:-1], float(q[-1]), self.A(e), self.b.vector(e), self.cones)

    def adjoint(
        self,
        theta: Sequence[np.ndarray],
        w: np.ndarray,
        free: np.ndarray,
        cotangent: np.ndarray,
        wanted: Sequence[bool] | None = None,
    ) -> tuple[tuple[np.ndarray, ...], bool]:
        """Gradients of cotangent'w with respect to each flat parameter, and whether they do not exist.

        w: one row of an Outcome; free is not needed. cotangent: over w, or over its first entries. All parameters get
        theirs at the same cost, whichever are `wanted`. Where dR/dw is singular and the cotangent outside its range
        there is no gradient, and the minimum-norm choice is returned.
        """
        program, n = self.at(theta), self.layout.x
        u, lam = w[:n], w[n:]
        rhs = np.zeros(len(w))
        rhs[: len(cotangent)] = cotangent
        with single_blas:
            D = program.slope(u, lam)
            matrix = program.jacobian(D).T
            a, singular = solve(matrix, rhs)
        gap = abs(matrix @ a - rhs).max(initial=0.0)
        pull, push = a[:n], a[n:]
        push = push - D @ push
        one = np.ones(1)
        total = (
            self.P.pull(pull, u)
            + self.q.pull(np.r_[pull, 0.0], one)
            + self.A.pull(lam, pull)
            + self.b.pull(push, one)
            - self.A.pull(push, u)
        )
        ends = np.cumsum([0, *(p.size for p in self.parameters)])
        gradients = tuple(-total[i:j] for i, j in pairwise(ends))
        return gradients, singular and bool(gap > LOST * abs(rhs).max(initial=0.0))


def _chained(problem: cp.Problem) -> tuple[ParamConeProg, dict[int, int], Any]:
    """The formatted cone program of CVXPY's chain for Clarabel, the ids of the triangles that stand in it for symmetric
    parameters, and the chain's way back from (u, lam).
    """
    with scopes.quad_form_dpp_scope(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CVXPY's advice on power cones, given at each of its own solves too
        chain = problem._construct_chain(solver=_Three(), enforce_dpp=True)
        if any(isinstance(step, ApproxCone2Cone) for step in chain.reductions):
            raise DeclarationError(
                "argmin(problem): it has a relative entropy of matrices, which CVXPY only approximates, so no optimum could be proven."
            )
        *steps, clarabel = chain.reductions
        program, inverses = problem, []
        for step in steps:
            program, inverse = step.apply(program)
            inverses.append(inverse)
        program, _, last = clarabel._prepare_data_and_inv_data(program)
    last[cp.settings.OFFSET] = 0.0

    def invert(u: np.ndarray, lam: np.ndarray) -> Any:
        found = clarabel.invert(
            SimpleNamespace(x=u, z=lam, status="Solved", solve_time=0.0, iterations=0, obj_val=0.0), last
        )
        for step, inverse in zip(reversed(steps), reversed(inverses), strict=True):
            plain = found.primal_vars
            found = step.invert(found, inverse)
            if isinstance(step, CvxAttr2Constr):  # whose way back clips values to declared bounds; this one is linear
                found.primal_vars = step.var_forward(plain)
        return found

    reduced = {p: new[0] for step in steps for p, new in getattr(step, "param_id_map", {}).items()}
    return program, reduced, invert


def _spread(program: ParamConeProg, parameters: Sequence[cp.Parameter], reduced: dict[int, int]) -> sp.csr_array:
    """CVXPY's inputs as a map of e = (theta, 1); the triangle of a symmetric parameter is that of its symmetric part."""
    width = sum(p.size for p in parameters) + 1
    count = program.q.shape[1]
    rows, columns, factors = [np.array([count - 1])], [np.array([width - 1])], [np.ones(1)]
    start, met = 0, 0
    for p in parameters:
        at = program.param_id_to_col.get(reduced.get(p.id, p.id))
        if at is not None:
            numbers = np.arange(p.size).reshape(p.shape, order="F")
            i, j = np.triu_indices(p.shape[0]) if p.id in reduced else (None, None)
            pairs = [numbers[i, j], numbers[j, i]] if p.id in reduced else [numbers.ravel(order="F")]
            for places in pairs:
                rows.append(at + np.arange(len(places)))
                columns.append(start + places)
                factors.append(np.full(len(places), 1 / len(pairs)))
            met += len(pairs[0])
        start += p.size
    assert met == count - 1, "CVXPY's chain renamed a parameter in a way not known here"
    at = (np.concatenate(rows), np.concatenate(columns))
    return sp.csr_array((np.concatenate(factors), at), shape=(count, width))


def _readings(problem: cp.Problem, invert: Any, n: int, m: int) -> dict[int, sp.csr_array]:
    """For each variable and dual variable the matrix that reads it out of w: entry i is a factor times entry k of w.

    With all entries one, the way back shows the factors; with entry k worth k + 1, their places.
    """
    ones, numbers = (invert(x, z) for x, z in ((np.ones(n), np.ones(m)), (np.arange(n) + 1.0, np.arange(m) + 1.0)))
    read = {}
    for v in problem.variables():
        if v.id in ones.primal_vars:
            read[v.id] = _gather(v, ones.primal_vars[v.id], numbers.primal_vars[v.id], 0, n + m)
        else:
            read[v.id] = sp.csr_array((v.size, n + m))
    for constraint in problem.constraints:
        twins = [constraint.copy(constraint.args) for _ in range(2)]
        known = constraint.id in ones.dual_vars
        for twin, found in zip(twins, (ones, numbers), strict=True):
            if known:
                twin.save_dual_value(found.dual_vars[constraint.id])
        for k, dual in enumerate(constraint.dual_variables):
            factors, places = (t.dual_variables[k].value for t in twins)
            read[dual.id] = _gather(dual, factors, places, n, n + m) if known else sp.csr_array((dual.size, n + m))
    return read


def _gather(leaf: Any, factors: Any, numbers: Any, start: int, width: int) -> sp.csr_array:
    factor, number = (
        np.ravel(a.toarray() if sp.issparse(a) else np.asarray(a, dtype=float), order="F") for a in (factors, numbers)
    )
    live = np.flatnonzero(factor)
    at = start + np.round(number[live] / factor[live]).astype(int) - 1
    return sp.csr_array((factor[live], (live, at)), shape=(leaf.size, width))
