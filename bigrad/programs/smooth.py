"""A bilevel program whose upper level is smooth but not quadratic: a smooth program with complementarity pairs, and its adjoint.

    min over v of F(v; theta)  with  r(v; theta) == 0 or <= 0,   lam_i >= 0, s_i >= 0, lam_i s_i == 0

v = (x, y, extra, lam, nu): leader variables, follower variables, auxiliary variables of both levels, the follower's multipliers.
The rows r are, in this order, the follower's stationarity P u + q - A'lam + H'nu, minus its slacks -s, its equalities, the upper
inequalities and the upper equalities. The first three come from CVXPY's cone program of the lower level and are bilinear, the last two
and F from CVXPY's derivative engine. With m = (sigma, kappa, eta, gamma, eps) the multipliers of r, the unknown is w = (v, m) and

    L(w) = F(v) + m'r(v) - tau'lam,

so that stationarity in lam gives tau. Signs and order are those of bigrad/quadratic.py, of which this is the general form.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
from cvxpy.atoms.affine.binary_operators import DivExpression
from cvxpy.atoms.quad_over_lin import quad_over_lin
from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ParamConeProg
from cvxpy.utilities import scopes

from bigrad.linear import solve_free
from bigrad.programs.bilinear import Bilinear, entries
from bigrad.programs.engine import EQUALITIES, INEQUALITIES, Canonical, Engine, bounds, canonicalise
from bigrad.solution import DeclarationError

LOST = 1e-6
"""An adjoint equation of a singular matrix counts as unsolvable if its error is above this, relative to the cotangent."""


class Layout(NamedTuple):
    """Sizes of the parts of w: leader, follower and auxiliary variables, pairs, follower equalities, then rows of stationarity,
    upper inequalities and upper equalities.
    """

    x: int
    y: int
    extra: int
    pairs: int
    equalities: int
    stationarity: int
    upper: int
    upper_equalities: int

    @property
    def primal(self) -> int:
        """Length of v = (x, y, extra, lam, nu)."""
        return sum(self[:5])

    @property
    def blocks(self) -> list[slice]:
        """Slices of w = (x, y and extra, lam, nu, sigma, kappa, eta, gamma, eps)."""
        x, y, extra, pairs, equalities, stationarity, *upper = self
        ends = np.cumsum([0, x, y + extra, pairs, equalities, stationarity, pairs, equalities, *upper])
        return [slice(int(a), int(b)) for a, b in zip(ends[:-1], ends[1:], strict=True)]


class Follower(NamedTuple):
    """The lower level at a fixed x, over all of its variables u: min 1/2 u'Pu + q'u, A u + b >= 0, H u + h == 0; `at`: u's place in v."""

    P: np.ndarray
    q: np.ndarray
    A: np.ndarray
    b: np.ndarray
    H: np.ndarray
    h: np.ndarray
    at: np.ndarray


@dataclass(frozen=True, eq=False)
class Smooth:
    """The smooth form of a bilevel program, compiled when first used; safe to share between threads, which then take turns.

    objective: minimised, and constraints: of the upper level, in plain variables. leader, follower: those variables. parameters: the
    user's. cone: CVXPY's cone program of the lower level, in the parameters and the stand-ins, one for each leader variable.
    """

    objective: cp.Expression
    constraints: tuple[cp.Constraint, ...]
    leader: tuple[cp.Variable, ...]
    follower: tuple[cp.Variable, ...]
    parameters: tuple[cp.Parameter, ...]
    cone: ParamConeProg
    stand_ins: tuple[cp.Parameter, ...]
    _lock: Any = field(default_factory=threading.RLock, init=False, repr=False)

    def check(self, reason: str) -> None:
        """Raise DeclarationError where the derivative engine cannot take the upper level; `reason`: why it is not quadratic."""
        lead = f"The upper level is not quadratic ({reason}), so it must be smooth"
        for piece in (self.objective, *self.constraints):
            what = "objective" if piece is self.objective else "constraint"
            if not isinstance(piece, (cp.Expression, *EQUALITIES, *INEQUALITIES)):
                raise DeclarationError(f"{lead}; the constraint {piece} is a cone, which has no smooth form here. Write it with norms or squares.")
            if not (piece.is_linearizable_convex() if isinstance(piece, cp.Expression) else piece.is_dnlp()):
                culprit = _culprit(piece)
                raise DeclarationError(
                    f"{lead}, and the {what} {piece} breaks CVXPY's rules for nonlinear programs (DNLP) at {culprit}: a kink may only stand "
                    "where minimising presses it down. Replace it by a smooth expression, or by a variable with constraints."
                )
            for bad, advice in _beyond_affine(piece):
                raise DeclarationError(
                    f"{lead}, and parameters must enter affinely: in the {what} {piece}, look at {bad}. {advice}"
                )
        try:
            agree = self._engine.audit(self._canonical)
        except (NotImplementedError, ValueError, TypeError) as error:
            culprit = next((p for p in (self.objective, *self.constraints) if not self._takes(p)), self.objective)
            raise DeclarationError(
                f"{lead}, and CVXPY's derivative engine cannot take {culprit}: {error} Write it with other functions."
            ) from None
        if not agree:
            raise DeclarationError(f"{lead}, but CVXPY's derivative engine evaluates it wrongly; please report the expression {self.objective}.")

    def _takes(self, piece: Any) -> bool:
        """Whether the engine takes this piece alone."""
        goal, rows = (piece, []) if piece is self.objective else (cp.Constant(0.0), [piece])
        try:
            canonical = canonicalise(goal, rows, self.parameters)
            sizes = np.cumsum([0, *(v.size for v in canonical.variables)])
            Engine(canonical, {v.id: int(s) for v, s in zip(canonical.variables, sizes, strict=False)}, int(sizes[-1]))
        except (NotImplementedError, ValueError, TypeError):
            return False
        return True

    @cached_property
    def _canonical(self) -> Canonical:
        return canonicalise(self.objective, self.constraints, self.parameters)

    @cached_property
    def _extra(self) -> tuple[cp.Variable, ...]:
        """Auxiliary variables of the upper level."""
        own = {v.id for v in (*self.leader, *self.follower)}
        return tuple(v for v in self._canonical.variables if v.id not in own)

    @cached_property
    def _columns(self) -> np.ndarray:
        """Place in v of each variable of the cone program."""
        ends = np.cumsum([0, *(v.size for v in (*self.leader, *self.follower))])
        places = dict(zip((v.id for v in (*self.leader, *self.follower)), ends[:-1], strict=True))
        columns = np.full(self.cone.x.size, -1)
        for v in self.follower:
            if v.id in self.cone.var_id_to_col:
                columns[self.cone.var_id_to_col[v.id] + np.arange(v.size)] = places[v.id] + np.arange(v.size)
        new = columns < 0
        columns[new] = ends[-1] + np.arange(new.sum())
        return columns

    @cached_property
    def layout(self) -> Layout:
        """The sizes of the parts of w."""
        x, y = (sum(v.size for v in part) for part in (self.leader, self.follower))
        known = sum(v.size for v in self.follower if v.id in self.cone.var_id_to_col)
        equalities = self.cone.cone_dims.zero
        engine, (low, high) = self._sizes
        return Layout(
            x=x,
            y=y,
            extra=self.cone.x.size - known + len(low),
            pairs=self.cone.constr_size - equalities,
            equalities=equalities,
            stationarity=self.cone.x.size,
            upper=engine[0] + int(np.isfinite(low).sum() + np.isfinite(high).sum()),
            upper_equalities=engine[1],
        )

    @cached_property
    def _sizes(self) -> tuple[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
        """Inequalities and equalities of the canonical upper level, and bounds of its auxiliary variables."""
        upper = self._canonical
        return (sum(r.size for r in upper.inequalities), sum(r.size for r in upper.equalities)), bounds(self._extra)

    @cached_property
    def _place(self) -> dict[int, int]:
        """Place in v of each variable of the upper level by CVXPY id."""
        variables = (*self.leader, *self.follower, *self._extra)
        starts = np.cumsum([0, *(v.size for v in variables)])
        place = {v.id: int(s) for v, s in zip(variables, starts, strict=False)}
        behind = int((self._columns >= self.layout.x + self.layout.y).sum())
        return {i: s + (behind if i in {v.id for v in self._extra} else 0) for i, s in place.items()}

    @cached_property
    def _engine(self) -> Engine:
        return Engine(self._canonical, self._place, self.layout.primal)

    @cached_property
    def _promoted(self) -> Engine:
        return Engine(self._canonical, self._place, self.layout.primal, promote=True)

    @cached_property
    def domain(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds on v: those of auxiliary variables, and lam >= 0."""
        layout = self.layout
        low, high = np.full(layout.primal, -np.inf), np.full(layout.primal, np.inf)
        end = layout.x + layout.y + layout.extra
        _, (below, above) = self._sizes
        low[end - len(below) : end], high[end - len(above) : end] = below, above
        low[layout.blocks[2]] = 0.0
        return low, high

    @cached_property
    def origin(self) -> np.ndarray:
        """A v where every function of the upper level can be evaluated."""
        v = np.zeros(self.layout.primal)
        for variable, value in zip(self._canonical.variables, self._canonical.start, strict=True):
            v[self._place[variable.id] + np.arange(variable.size)] = np.ravel(value, order="F")
        return np.clip(v, *self.domain)

    @cached_property
    def _inputs(self) -> np.ndarray:
        """Place in e = (v, theta, 1) of each column of the cone program's tensors."""
        layout, at = self.layout, {}
        offset = 0
        for v, p in zip(self.leader, self.stand_ins, strict=True):
            at[p.id] = offset
            offset += v.size
        offset = layout.primal
        for p in self.parameters:
            at[p.id] = offset
            offset += p.size
        place = np.full(self.cone.q.shape[1], offset)
        for i, column in self.cone.param_id_to_col.items():
            if i in at:
                place[column : column + self.cone.param_id_to_size[i]] = at[i] + np.arange(self.cone.param_id_to_size[i])
        return place

    @cached_property
    def _lower(self) -> Bilinear:
        """The follower's stationarity, minus its slacks, and its equalities."""
        layout, cone, place = self.layout, self.cone, self._inputs
        n, equalities = cone.x.size, layout.equalities
        size = layout.primal + sum(p.size for p in self.parameters) + 1
        one, u = size - 1, np.r_[self._columns, size - 1]
        _, _, lam, nu, _, kappa, eta, *_ = layout.blocks
        multiplier = np.r_[np.arange(nu.start, nu.stop), np.arange(lam.start, lam.stop)]
        row_at = np.r_[np.arange(eta.start, eta.stop), np.arange(kappa.start, kappa.stop)] - layout.primal
        terms: list[tuple[np.ndarray, ...]] = []
        if cone.P is not None:
            r, c, k, value = entries(cone.P, n)
            terms += [(r, place[k], u[c], value / 2), (c, place[k], u[r], value / 2)]
        r, _, k, value = entries(cone.q, n + 1)
        inside = r < n
        terms.append((r[inside], place[k[inside]], np.full(inside.sum(), one), value[inside]))
        r, c, k, value = entries(cone.A, cone.constr_size)
        sign = np.where(r < equalities, 1.0, -1.0)
        terms.append((row_at[r], place[k], u[c], sign * value))
        inside = c < n
        r, c, k, value = r[inside], c[inside], k[inside], value[inside]
        terms.append((c, place[k], multiplier[r], np.where(r < equalities, value, -value)))
        row, left, right, coefficient = (np.concatenate(parts) for parts in zip(*terms, strict=True))
        return Bilinear(layout.stationarity + layout.pairs + layout.equalities, layout.primal, size, row, left, right, coefficient)

    @contextmanager
    def at(self, theta: Sequence[np.ndarray]) -> Iterator[System]:
        """The program at one set of flat parameter values. Other threads wait until the block is left."""
        with self._lock:
            self._engine.give(theta)
            yield System(self, self._engine, np.concatenate([*theta, np.ones(1)]).astype(float))

    def adjoint(
        self, theta: Sequence[np.ndarray], w: np.ndarray, free: np.ndarray, cotangent: np.ndarray
    ) -> tuple[tuple[np.ndarray, ...], bool]:
        """Gradients of cotangent'z with respect to each flat parameter, and whether there is none.

        w and free: one row of an Outcome. cotangent: over z. One symmetric solve with the KKT matrix, the unknowns that are not `free`
        held where they are. There is no gradient (the minimum-norm choice is returned) where that matrix is singular and the cotangent
        outside its range. Parameters become variables of the engine for this, matrices included: with matrix parameters
        of some thousand entries in the upper level the Hessian fills up and the call is slow; those of the lower level cost nothing.
        """
        n = self.layout.primal
        rhs = np.zeros(len(w))
        rhs[: len(cotangent)] = cotangent
        with self.at(theta) as system:
            matrix = system.matrix(w)
            u, singular = solve_free(matrix[None], free[None], rhs[None])
            pulled = -system.pull(w, u[0, :n], u[0, n:])
        gap = abs((matrix @ u[0] - rhs) * free).max(initial=0.0)
        ends = np.cumsum([p.size for p in self.parameters])[:-1] if self.parameters else []
        gradients = tuple(np.split(pulled, ends)) if self.parameters else ()
        return gradients, bool(singular[0]) and gap > LOST * abs(rhs).max(initial=0.0)

    @cached_property
    def convex(self) -> bool:
        """Whether forgetting that the follower optimises leaves a convex program, whose optimum is then a proven bound."""
        terms, layout = self._lower, self.layout
        inside = (terms.left < layout.primal) & (terms.right < layout.primal)
        crossed = inside & (terms.row >= layout.stationarity)
        upper = self.objective.is_convex() and all(c.is_dcp() for c in self.constraints)
        return bool(upper and not crossed.any())


class System:
    """A Smooth program at fixed parameter values: the functions that a solver calls, at v or at w = (v, m)."""

    def __init__(self, smooth: Smooth, engine: Engine, tail: np.ndarray):
        self.smooth, self.engine, self.tail = smooth, engine, tail
        self.layout = smooth.layout
        self.lower = smooth._lower
        self.low, self.high = smooth.domain
        self.origin = smooth.origin
        n, count = self.layout.primal, self.lower.count
        self.below = np.flatnonzero(np.isfinite(self.low[: n - self.layout.pairs - self.layout.equalities]))
        self.above = np.flatnonzero(np.isfinite(self.high))
        self.bound_columns = bound = np.r_[self.below, self.above]
        self.bound_rows = count + engine.inequalities + np.arange(len(bound))
        self._slot = count + np.r_[np.arange(engine.inequalities), engine.inequalities + len(bound) + np.arange(engine.equalities)]
        self._signs = np.r_[-np.ones(len(self.below)), np.ones(len(self.above))]
        self.jacobian_at = (
            np.r_[self.lower.jacobian_at.rows, self._slot[engine.jacobian_at.rows], self.bound_rows],
            np.r_[self.lower.jacobian_at.columns, engine.jacobian_at.columns, bound],
        )
        self.hessian_at = (
            np.r_[self.lower.hessian_at.rows, engine.hessian_at.rows],
            np.r_[self.lower.hessian_at.columns, engine.hessian_at.columns],
        )

    def objective(self, v: np.ndarray) -> float:
        """F(v)."""
        return self.engine.objective(v)

    def gradient(self, v: np.ndarray) -> np.ndarray:
        """Gradient of F, dense."""
        return self.engine.gradient(v)

    def rows(self, v: np.ndarray) -> np.ndarray:
        """All rows r(v), in the order of m."""
        upper, k = self.engine.rows(v), self.engine.inequalities
        bound = np.r_[self.low[self.below] - v[self.below], v[self.above] - self.high[self.above]]
        return np.concatenate([self.lower.values(np.r_[v, self.tail]), upper[:k], bound, upper[k:]])

    def jacobian(self, v: np.ndarray) -> np.ndarray:
        """Entries of the Jacobian of r, at `jacobian_at`."""
        return np.concatenate([self.lower.jacobian(np.r_[v, self.tail]), self.engine.jacobian(v), self._signs])

    def hessian(self, v: np.ndarray, factor: float, m: np.ndarray) -> np.ndarray:
        """Entries of the lower triangle of the Hessian of factor F + m'r, at `hessian_at`; entries may repeat."""
        return np.concatenate([self.lower.hessian(m), self.engine.hessian(v, factor, m[self._slot])])

    def matrix(self, w: np.ndarray) -> np.ndarray:
        """The symmetric matrix of second derivatives of L at w, dense."""
        n = self.layout.primal
        v, m = w[:n], w[n:]
        matrix = np.zeros((len(w), len(w)))
        np.add.at(matrix, self.hessian_at, self.hessian(v, 1.0, m))
        matrix[:n, :n] += np.tril(matrix[:n, :n], -1).T
        np.add.at(matrix, (n + self.jacobian_at[0], self.jacobian_at[1]), self.jacobian(v))
        matrix[:n, n:] = matrix[n:, :n].T
        return matrix

    def residual(self, w: np.ndarray) -> np.ndarray:
        """Gradient of L at w, tau left out."""
        n = self.layout.primal
        v, m = w[:n], w[n:]
        pull = np.bincount(self.jacobian_at[1], self.jacobian(v) * m[self.jacobian_at[0]], n)
        return np.concatenate([self.gradient(v) + pull, self.rows(v)])

    def pull(self, w: np.ndarray, dv: np.ndarray, dm: np.ndarray) -> np.ndarray:
        """Gradient with respect to all inputs, in one vector, of dv' dL/dv + dm' r at w."""
        n, promoted = self.layout.primal, self.smooth._promoted
        v, m = w[:n], w[n:]
        total = self.lower.pull(np.r_[v, self.tail], m, dv, dm)
        if not len(total):
            return total
        both = np.r_[v, self.tail[:-1]]
        multipliers, moved = m[self._slot], np.r_[dv, np.zeros(len(total))]
        rows, columns = promoted.hessian_at.rows, promoted.hessian_at.columns
        mixed = (rows >= n) & (columns < n)
        values = promoted.hessian(both, 1.0, multipliers)[mixed] * moved[columns[mixed]]
        total = total + np.bincount(rows[mixed] - n, values, len(total))
        rows, columns = promoted.jacobian_at.rows, promoted.jacobian_at.columns
        mixed = columns >= n
        values = promoted.jacobian(both)[mixed] * dm[self._slot][rows[mixed]]
        return total + np.bincount(columns[mixed] - n, values, len(total))

    def follower(self, x: np.ndarray) -> Follower:
        """The lower level at x."""
        cone, layout = self.smooth.cone, self.layout
        inputs = np.r_[x, np.zeros(layout.primal - layout.x), self.tail][self.smooth._inputs]
        n, rows, k = cone.x.size, cone.constr_size, layout.equalities
        P = np.zeros((n, n)) if cone.P is None else (cone.P @ inputs).reshape(n, n)
        A = (cone.A @ inputs).reshape(n + 1, rows).T
        return Follower((P + P.T) / 2, (cone.q @ inputs)[:n], A[k:, :n], A[k:, n], A[:k, :n], A[:k, n], self.smooth._columns)


def _culprit(piece: Any) -> Any:
    """The first deepest subexpression that breaks the DNLP rules while its arguments keep them; the piece itself if none does."""
    for arg in piece.args:
        if not arg.is_dnlp():
            return _culprit(arg)
    return piece


def _beyond_affine(piece: Any) -> Iterator[tuple[Any, str]]:
    """Subexpressions in which a parameter enters other than affinely, with what to do about each."""
    if not piece.parameters():
        return
    if isinstance(piece, cp.Expression) and not piece.variables():
        with scopes.dpp_scope():
            if not piece.is_affine():
                yield piece, "Make it one parameter."
        return
    if isinstance(piece, DivExpression | quad_over_lin) and piece.args[1].parameters():
        yield piece, "Multiply by a parameter that holds the inverse instead of dividing by one."
    for name in ("M", "p"):
        setting = getattr(piece, name, None)
        if isinstance(setting, cp.Expression) and setting.parameters():
            yield piece, f"Its {'threshold' if name == 'M' else 'power'} must be a number."
    for arg in piece.args:
        yield from _beyond_affine(arg)
