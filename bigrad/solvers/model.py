"""A convex quadratic model of a sparse program with complementarity pairs, around a point.

On the feasible set the follower's duality gap

    Psi(v) = u'r_stationarity - lam'r_slacks - nu'r_equalities = u'Pu + q'u + lam'b - nu'h

is zero, and where both levels' linear rows hold it is sum lam_i s_i. So F and F + alpha Psi are the same objective there, and for
the right alpha the second one is often convex where the first is not: revenue, price times demand, is linear in the
follower's cost and the multipliers by strong duality (Labbe, Marcotte and Savard, "A bilevel model of taxation and its
application to optimal highway pricing", 1998). What is still not convex gets squares of equality rows, which change
nothing where these hold (Debreu, "Definite and semidefinite quadratic forms", 1952), or else a proximal term that makes
its matrix diagonally dominant, which leaves concave sums of squares linear.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from bigrad.algebra.sparse import semidefinite

WEIGHTS = (1.0, 1e2, 1e4)
"""Of the squares of equality rows, relative to the largest second derivative."""


class Model(NamedTuple):
    """F + alpha Psi near v, plus what vanishes on the equality rows: gradient g, convex second derivatives B; the rows
    r and their Jacobian J; pull: alpha times the derivatives of Psi with respect to the rows.

    valid: B holds on all points that satisfy the follower's linear rows, so minima of the model are lower bounds if
    the program is quadratic. proximal: weight of the term added because nothing else made B convex.
    """

    v: np.ndarray
    F: float
    g: np.ndarray
    B: sp.csc_array
    J: sp.csr_array
    r: np.ndarray
    pull: np.ndarray
    alpha: float
    valid: bool
    proximal: float


class Frame:
    """A system at fixed inputs: where the parts of v and of the rows stand, and models of it.

    quadratic: the objective's second derivatives and the Jacobian of the rows are constant (at two points).
    """

    def __init__(self, system: Any):
        layout = system.layout
        self.system, self.layout, self.n, self.pairs = system, layout, layout.primal, layout.pairs
        self.count = layout.blocks[-1].stop - self.n
        _, _, lam, nu, *rows = (np.arange(b.start, b.stop) for b in layout.blocks)
        self.lam, self.nu, self.u = lam, nu, system.compiled.columns
        self.sigma, self.kappa, self.eta, self.gamma, self.eps = (r - self.n for r in rows)
        own = np.r_[self.sigma, self.kappa, self.eta]
        signs = np.r_[np.ones(len(self.sigma)), -np.ones(len(lam) + len(nu))]
        self.gap = sp.csr_array((signs, (own, np.r_[self.u, lam, nu])), shape=(self.count, self.n))
        one = system.origin + 0.25
        two = system.origin + np.linspace(0.5, 1.0, self.n)
        m = np.ones(self.count)
        self.linear = _same(system.jacobian(one), system.jacobian(two))
        self.quadratic = self.linear and _same(system.hessian(one, 1.0, m), system.hessian(two, 1.0, m))

    def jacobian(self, v: np.ndarray) -> sp.csr_array:
        """The Jacobian of all rows."""
        return sp.csr_array((self.system.jacobian(v), self.system.jacobian_at), shape=(self.count, self.n))

    def slack(self, v: np.ndarray) -> np.ndarray:
        """The slacks of the pairs."""
        return -self.system.rows(v)[self.kappa]

    def gap_at(self, v: np.ndarray) -> float:
        """The sum of the products of the pairs, none taken for negative."""
        return float(np.maximum(v[self.lam], 0.0) @ np.maximum(self.slack(v), 0.0))

    def model(self, v: np.ndarray, m: np.ndarray, held: np.ndarray) -> Model:
        """The model at v with multipliers m; `held` are rows whose squares may be added."""
        system = self.system
        J, r, F = self.jacobian(v), system.rows(v), system.objective(v)
        H, K = self._second(v, 1.0, m), self.gap.T @ J
        pull = self.gap @ v
        K = sp.csc_array(K + K.T + self._second(v, 0.0, pull))
        alpha = self._weight(H, K)
        for weight in (0.0, alpha) if alpha else (0.0,):
            if semidefinite(both := sp.csc_array(H + weight * K)):
                g = system.gradient(v) + weight * (self.gap.T @ r + J.T @ pull)
                return Model(v, F + weight * float(pull @ r), g, both, J, r, weight * pull, weight, True, 0.0)
        size = abs(H).max() if H.nnz else 1.0
        squares, pulled = sp.csc_array(J[held].T @ J[held]), J[held].T @ r[held]
        top = max(abs(squares).max() if squares.nnz else 0.0, np.finfo(float).tiny)
        for weight in np.array(WEIGHTS) * size / top:
            if semidefinite(both := sp.csc_array(H + weight * squares)):
                return Model(v, F, system.gradient(v) + weight * pulled, both, J, r, 0.0 * pull, 0.0, False, 0.0)
        rows = np.asarray(abs(H).sum(axis=1)).ravel() - abs(H.diagonal())
        damping = np.maximum(rows - H.diagonal(), 0.0)
        damped = sp.csc_array(H + sp.diags_array(damping))
        return Model(v, F, system.gradient(v), damped, J, r, 0.0 * pull, 0.0, False, float(damping.max()))

    def _second(self, v: np.ndarray, factor: float, m: np.ndarray) -> sp.csc_array:
        H = sp.csc_array((self.system.hessian(v, factor, m), self.system.hessian_at), shape=(self.n, self.n))
        return sp.csc_array(H + sp.tril(H, -1).T)

    def _weight(self, H: sp.csc_array, K: sp.csc_array) -> float:
        """The alpha for which H + alpha K has the smallest products of leader and follower variables."""
        x = self.layout.x
        H, K = H[:x][:, x:], K[:x][:, x:]
        size = float(K.multiply(K).sum())
        return -float(H.multiply(K).sum()) / size if size else 0.0


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    with np.errstate(invalid="ignore"):
        return bool((abs(a - b) <= 1e-12 * (1 + abs(a))).all())
