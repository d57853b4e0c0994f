"""A bilevel program whose upper level is smooth but not quadratic: a smooth program with complementarity pairs, and
its adjoint.

    min over v of F(v; theta)  with  r(v; theta) == 0 or <= 0,   lam_i >= 0, s_i >= 0, lam_i s_i == 0

v = (x, y, extra, lam, nu): leader variables, follower variables, auxiliary variables of both levels, the follower's
multipliers. The rows r are, in this order, the follower's stationarity P u + q - A'lam + H'nu, minus its slacks -s,
its equalities, the upper inequalities and the upper equalities. The first three come from CVXPY's cone program of
the lower level and are bilinear, the last two and F from CVXPY's derivative engine. Each cone of the follower adds its
point s == A u + b, its multiplier, one pair and their rows (bigrad/programs/blocks.py). With m = (sigma, kappa, eta,
gamma, eps) the multipliers of r, the unknown is w = (v, m) and

    L(w) = F(v) + m'r(v) - tau'lam,

so that stationarity in lam gives tau. Signs and order are those of bigrad/algebra/quadratic.py, of which this is the general
form.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ParamConeProg

from bigrad.algebra.linear import solve_free
from bigrad.algebra.sparse import solve_sparse
from bigrad.programs.bilinear import Bilinear, entries
from bigrad.programs.blocks import Blocks
from bigrad.programs.checks import beyond_affine, not_smooth
from bigrad.programs.conic import Conic, conic
from bigrad.programs.engine import EQUALITIES, INEQUALITIES, Canonical, Engine, bounds, canonicalise
from bigrad.programs.system import Compiled, Layout, System
from bigrad.solution import DeclarationError

DENSE = 1000
"""Unknowns up to which the adjoint equation is solved densely, which is then as fast as sparsely."""
LOST = 1e-6
"""The adjoint equation of a singular matrix counts as unsolvable if it is off by more than this, relatively."""


@dataclass(frozen=True, eq=False)
class Smooth:
    """The smooth form of a bilevel program, compiled once; safe to share between threads, which then take turns.

    objective: minimised, and constraints: of the upper level, in plain variables. leader, follower: those variables.
    parameters: the user's. cone: CVXPY's cone program of the lower level, in the parameters and the stand-ins, one for
    each leader variable, then, in a game, one for each follower variable. multipliers: the variable of the upper level
    that stands for (lam, nu), if it mentions prices.
    """

    objective: cp.Expression
    constraints: tuple[cp.Constraint, ...]
    leader: tuple[cp.Variable, ...]
    follower: tuple[cp.Variable, ...]
    parameters: tuple[cp.Parameter, ...]
    cone: ParamConeProg
    stand_ins: tuple[cp.Parameter, ...]
    multipliers: cp.Variable | None = None
    _lock: Any = field(default_factory=threading.RLock, init=False, repr=False)

    def check(self, reason: str) -> None:
        """Compile, and raise DeclarationError where the derivative engine cannot take the upper level.

        reason: why the program is not quadratic.
        """
        lead = f"The program is not quadratic ({reason}), so the upper level must be smooth"
        for piece in (self.objective, *self.constraints):
            what = "objective" if piece is self.objective else "constraint"
            if not isinstance(piece, (cp.Expression, *EQUALITIES, *INEQUALITIES)):
                raise DeclarationError(
                    f"{lead}, and the constraint {piece} is a cone without a smooth form. "
                    "Write it with norms or squares."
                )
            if not (piece.is_linearizable_convex() if isinstance(piece, cp.Expression) else piece.is_dnlp()):
                culprit = not_smooth(piece)
                raise DeclarationError(
                    f"{lead}, and the {what} {piece} breaks CVXPY's rules for nonlinear programs (DNLP) at {culprit}: "
                    "a kink may stand only where a better objective straightens it, like max in a cost. Use a smooth "
                    "expression there, or a variable with constraints."
                )
            for bad, advice in beyond_affine(piece):
                raise DeclarationError(
                    f"{lead}, and parameters must enter affinely: in the {what} {piece}, look at {bad}. {advice}"
                )
        try:
            agree = self._engine.audit(self.canonical)
        except (NotImplementedError, ValueError, TypeError) as error:
            culprit = next((p for p in (self.objective, *self.constraints) if not self._takes(p)), self.objective)
            raise DeclarationError(
                f"{lead}, and CVXPY's derivative engine cannot take {culprit}: {error} Write it with other functions."
            ) from None
        if not agree:
            raise DeclarationError(
                f"{lead}, but CVXPY's derivative engine evaluates it wrongly. Please report it: {self.objective}."
            )

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
    def canonical(self) -> Canonical:
        """The upper level as the engine has it."""
        return canonicalise(self.objective, self.constraints, self.parameters)

    @cached_property
    def _extra(self) -> tuple[cp.Variable, ...]:
        """Auxiliary variables of the upper level."""
        own = {v.id for v in (*self.leader, *self.follower, self.multipliers) if v is not None}
        return tuple(v for v in self.canonical.variables if v.id not in own)

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
        equalities, blocks, size = int(self._conic.rigid.sum()), len(self._conic.cones), self._conic.size
        engine, (low, high) = self._sizes
        return Layout(
            x=x,
            y=y,
            extra=self.cone.x.size - known + size + blocks + len(low),
            pairs=self.cone.constr_size - equalities - size + blocks,
            equalities=equalities + size,
            stationarity=self.cone.x.size + size + blocks,
            upper=engine[0] + int(np.isfinite(low).sum() + np.isfinite(high).sum()) + blocks,
            upper_equalities=engine[1],
        )

    @property
    def cones(self) -> bool:
        """Whether the lower level has cones."""
        return bool(self._conic.cones)

    @cached_property
    def _conic(self) -> Conic:
        return conic(self.cone, self.follower)

    @cached_property
    def blocks(self) -> Blocks:
        """The cones: s and charts behind the auxiliary variables of the lower level, lam and mu among its multipliers."""
        layout, count, size = self.layout, len(self._conic.cones), self._conic.size
        _, _, lam, nu, sigma, kappa, _, gamma, _ = layout.blocks
        first = int(max(self._columns.max(initial=-1) + 1, layout.x + layout.y))
        rows = sigma.start - layout.primal
        return Blocks(
            cones=self._conic.cones,
            lean=self._conic.lean,
            s=first + np.arange(size),
            lam=nu.stop - size + np.arange(size),
            mu=lam.stop - count + np.arange(count),
            chart=first + size + np.arange(count),
            coupling=rows + self.cone.x.size + np.arange(size),
            pinned=rows + self.cone.x.size + size + np.arange(count),
            slack=kappa.stop - layout.primal - count + np.arange(count),
            domain=gamma.stop - layout.primal - count + np.arange(count),
        )

    @cached_property
    def steady(self) -> np.ndarray:
        """Which coordinates of the cones' points are constants, bool."""
        layout, terms, size = self.layout, self._lower, self._conic.size
        first = layout.blocks[6].stop - layout.primal - size
        own = (terms.left < terms.size - 1) & ~np.isin(terms.left, self.blocks.s) & (terms.coefficient != 0)
        own |= (terms.right < terms.size - 1) & (terms.coefficient != 0)
        return ~np.isin(first + np.arange(size), terms.row[own])

    @cached_property
    def _sizes(self) -> tuple[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
        """Inequalities and equalities of the canonical upper level, and bounds of its auxiliary variables."""
        upper = self.canonical
        return (sum(r.size for r in upper.inequalities), sum(r.size for r in upper.equalities)), bounds(self._extra)

    @cached_property
    def _place(self) -> dict[int, int]:
        """Place in v of each variable of the upper level by CVXPY id."""
        variables = (*self.leader, *self.follower, *self._extra)
        starts = np.cumsum([0, *(v.size for v in variables)])
        place = {v.id: int(s) for v, s in zip(variables, starts, strict=False)}
        behind = int((self._columns >= self.layout.x + self.layout.y).sum()) + self._conic.size + len(self._conic.cones)
        place = {i: s + (behind if i in {v.id for v in self._extra} else 0) for i, s in place.items()}
        return place if self.multipliers is None else place | {self.multipliers.id: self.layout.blocks[2].start}

    @cached_property
    def _engine(self) -> Engine:
        return Engine(self.canonical, self._place, self.layout.primal)

    @cached_property
    def _domain(self) -> tuple[np.ndarray, np.ndarray]:
        """Bounds on v: those of auxiliary variables, and lam >= 0."""
        layout = self.layout
        low, high = np.full(layout.primal, -np.inf), np.full(layout.primal, np.inf)
        end = layout.x + layout.y + layout.extra
        _, (below, above) = self._sizes
        low[end - len(below) : end], high[end - len(above) : end] = below, above
        low[layout.blocks[2]] = 0.0
        return low, high

    @cached_property
    def _origin(self) -> np.ndarray:
        """A v where every function of the upper level can be evaluated."""
        v = np.zeros(self.layout.primal)
        for variable, value in zip(self.canonical.variables, self.canonical.start, strict=True):
            v[self._place[variable.id] + np.arange(variable.size)] = np.ravel(value, order="F")
        blocks = self.blocks
        s, lam = blocks.inner()
        return blocks.seat(np.clip(v, *self._domain), s, lam)

    @cached_property
    def _inputs(self) -> np.ndarray:
        """Place in e = (v, theta, 1) of each column of the cone program's tensors."""
        layout, at = self.layout, {}
        offset = 0
        for v, p in zip((*self.leader, *self.follower), self.stand_ins, strict=False):
            at[p.id] = offset
            offset += v.size
        offset = layout.primal
        for p in self.parameters:
            at[p.id] = offset
            offset += p.size
        place = np.full(self.cone.q.shape[1], offset)
        for i, start in at.items():
            if i in self.cone.param_id_to_col:
                steps = np.arange(self.cone.param_id_to_size[i])
                place[self.cone.param_id_to_col[i] + steps] = start + steps
        return place

    @cached_property
    def _lower(self) -> Bilinear:
        """The follower's stationarity, minus its slacks, its equalities, and the cones' A u + b - s."""
        layout, cone, place, blocks = self.layout, self.cone, self._inputs, self.blocks
        n, where, rigid = cone.x.size, self._conic.where, self._conic.rigid
        size = layout.primal + sum(p.size for p in self.parameters) + 1
        one, u = size - 1, np.r_[self._columns, size - 1]
        _, _, lam, nu, _, kappa, eta, *_ = layout.blocks
        multiplier, row_at = np.zeros(len(where), int), np.zeros(len(where), int)
        equalities, inside, soft = int(rigid.sum()), where >= 0, ~rigid & (where < 0)
        for chosen, offset, first in ((rigid, nu.start, eta.start), (soft, lam.start, kappa.start)):
            multiplier[chosen], row_at[chosen] = (start + np.arange(chosen.sum()) for start in (offset, first))
        multiplier[inside], row_at[inside] = blocks.lam[where[inside]], eta.start + equalities + where[inside]
        row_at -= layout.primal
        terms: list[tuple[np.ndarray, ...]] = []
        if cone.P is not None:
            r, c, k, value = entries(cone.P, n)
            terms += [(r, place[k], u[c], value / 2), (c, place[k], u[r], value / 2)]
        r, _, k, value = entries(cone.q, n + 1)
        inside = r < n
        terms.append((r[inside], place[k[inside]], np.full(inside.sum(), one), value[inside]))
        r, c, k, value = entries(cone.A, cone.constr_size)
        sign = np.where(soft[r], -1.0, 1.0)
        terms.append((row_at[r], place[k], u[c], sign * value))
        both = np.arange(len(blocks.s))
        terms.append(
            (eta.start - layout.primal + equalities + both, blocks.s, np.full(len(both), one), -np.ones(len(both)))
        )
        inside = c < n
        r, c, k, value = r[inside], c[inside], k[inside], value[inside]
        terms.append((c, place[k], multiplier[r], np.where(rigid[r], value, -value)))
        row, left, right, coefficient = (np.concatenate(parts) for parts in zip(*terms, strict=True))
        return Bilinear(
            layout.stationarity + layout.pairs + layout.equalities, layout.primal, size, row, left, right, coefficient
        )

    @cached_property
    def _compiled(self) -> Compiled:
        layout, (low, high) = self.layout, self._domain

        @cache
        def promoted(wanted: tuple[bool, ...]) -> Engine:
            return Engine(self.canonical, self._place, layout.primal, wanted)

        return Compiled(
            layout=layout,
            lower=self._lower,
            engine=self._engine,
            promoted=promoted,
            cone=self.cone,
            conic=self._conic,
            blocks=self.blocks,
            columns=self._columns,
            inputs=self._inputs,
            low=low,
            high=high,
            origin=self._origin,
            priced=self.multipliers is not None,
            convex=self._convex,
        )

    @contextmanager
    def at(self, theta: Sequence[np.ndarray]) -> Iterator[System]:
        """The program at one set of flat parameter values. Other threads wait until the block is left."""
        with self._lock:
            self._engine.give(theta)
            yield System(self._compiled, np.concatenate([*theta, np.zeros(0)]).astype(float))

    def adjoint(
        self,
        theta: Sequence[np.ndarray],
        w: np.ndarray,
        free: np.ndarray,
        cotangent: np.ndarray,
        wanted: Sequence[bool] | None = None,
    ) -> tuple[tuple[np.ndarray, ...], bool]:
        """Gradients of cotangent'z with respect to each flat parameter, and whether they do not exist.

        w and free: one row of an Outcome. cotangent: over the first entries of w. wanted: which parameters need a gradient
        (default: all); the others get none of the upper level's. One symmetric solve with the KKT matrix, the unknowns
        that are not `free` held at zero; where it has none, the minimum-norm choice is returned. Wanted parameters of the
        upper level become unknowns of the engine; matrices of some thousand entries make that slow.
        """
        n, chosen = self.layout.primal, tuple(wanted or [True] * len(self.parameters))
        rhs = np.zeros(len(w))
        rhs[: len(cotangent)] = cotangent
        with self.at(theta) as system:
            u, lost = (_adjoint_sparse if len(w) > DENSE else _adjoint_dense)(system, w, free, rhs)
            pulled = -system.pull(w, u[:n], u[n:], chosen)
        ends = np.cumsum([0, *(p.size for p in self.parameters)])
        gradients = tuple(pulled[a:b] for a, b in pairwise(ends))
        return gradients, lost

    @cached_property
    def _convex_form(self) -> bool:
        """Whether forgetting that the follower optimises leaves a convex program, by CVXPY's rules."""
        terms, layout = self._lower, self.layout
        inside = (terms.left < layout.primal) & (terms.right < layout.primal)
        crossed = inside & ((terms.row >= layout.stationarity) | (self.multipliers is not None))
        upper = self.objective.is_convex() and all(c.is_dcp() for c in self.constraints)
        return bool(upper and not crossed.any())

    def _convex(self, theta: np.ndarray) -> bool:
        """The same at given values, which may break what a Parameter declares (PSD, NSD)."""
        ends = np.cumsum([0, *(p.size for p in self.parameters)])
        for p, (a, b) in zip(self.parameters, pairwise(ends), strict=True):
            for kind, sign in (("PSD", 1.0), ("NSD", -1.0)):
                if p.attributes[kind]:
                    matrix = sign * theta[a:b].reshape(p.shape)
                    spectrum = np.linalg.eigvalsh(matrix + matrix.T)
                    if spectrum[0] < -1e-9 * (1 + spectrum[-1]):
                        return False
        return self._convex_form


def _adjoint_dense(system: System, w: np.ndarray, free: np.ndarray, rhs: np.ndarray) -> tuple[np.ndarray, bool]:
    """Solution of the adjoint equation, and whether there is none."""
    matrix = system.matrix(w)
    u, singular = solve_free(matrix[None], free[None], rhs[None])
    gap = abs((matrix @ u[0] - rhs) * free).max(initial=0.0)
    return u[0], bool(singular[0]) and bool(gap > LOST * abs(rhs).max(initial=0.0))


def _adjoint_sparse(system: System, w: np.ndarray, free: np.ndarray, rhs: np.ndarray) -> tuple[np.ndarray, bool]:
    """The same by one sparse factorisation."""
    solved = solve_sparse(system.sparse(w), free, rhs)
    return solved.u, solved.lost > LOST
