"""ActiveSet: one level, a batch of strictly convex quadratic programs, each as a least-distance problem.

With Q = LL' and u = L'z + L^-1 c, the program min 1/2 z'Qz + c'z subject to Gz <= g, Ez == e asks for the shortest u
with Mu <= d, M = (G; E) L^-T. The factorisations are batched (one serves all items that share Q), and DAQP needs a
fraction of its time for a Hessian that is the identity. One solve on the active rows then makes the answer exact.
Programs that separate (bigrad/solvers/separable.py) have a closed form.
Arnstrom, Bemporad and Axehill, "A dual active-set solver for embedded quadratic programming", IEEE Transactions on
Automatic Control, 2022.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import daqp
import numpy as np

from bigrad.algebra.affine import mv
from bigrad.algebra.linear import Bordered, cholesky, lower_solve
from bigrad.algebra.quadratic import Data, Maps, Sizes, stack
from bigrad.parallel import single_blas
from bigrad.program import Program
from bigrad.solution import Outcome, Point, Status
from bigrad.solvers.active import near_zero
from bigrad.solvers.base import AbstractSolver, batch_size, check_settings, whole_numbers
from bigrad.solvers.convex import EQUALITY, INFINITY, SETTINGS
from bigrad.solvers.pieces import Pieces
from bigrad.solvers.separable import Separable

SURE = 1e-9
"""An answer whose residual and violation are below this, relative to its data, is settled; any other goes to Pieces."""


@dataclass(frozen=True)
class ActiveSet(AbstractSolver):
    """Solver for one-level quadratic and linear programs: the fastest road to a proven optimum of a dense batch.

    Items whose objective is not strictly convex, and those without a solution, are handed to Pieces, which tells
    infeasible from unbounded. time_limit: seconds for the whole batch of such items, or None.
    """

    time_limit: float | None = None

    def __post_init__(self) -> None:
        check_settings(self)

    def accepts(self, program: Program) -> str | None:
        """Refuses programs of two levels and those that are not convex quadratic."""
        if refusal := whole_numbers("ActiveSet", program):
            return refusal
        if program.quadratic is not None and program.quadratic.sizes.y:
            return "ActiveSet() is for one level, and this program has two. Use Pieces()."
        return None if (reason := Pieces().accepts(program)) is None else reason.replace("Pieces()", "ActiveSet()")

    def choose(self, program: Program) -> tuple[AbstractSolver, str]:
        """Itself."""
        return self, "One convex quadratic program an item, by a dual active-set method; the optimum is global."

    def solve(
        self, program: Program, theta: tuple[np.ndarray, ...], warm_start: Sequence[Point | None] | None = None
    ) -> Outcome:
        """Solve a batch; see AbstractSolver.solve. A warm start is not needed and not used."""
        begun = time.perf_counter()
        maps, batch = program.quadratic, batch_size(theta)
        assert maps is not None
        if _flat(maps):  # a linear program is not for this road
            return self._slowly(program, theta)
        ready = ~program.invalid(theta, batch)
        with single_blas:
            data = maps(theta if ready.all() else tuple(np.where(np.isfinite(t), t, 0.0) for t in theta))
            if not data.Q.any():
                return self._slowly(program, theta)
            outcome = settled(data, maps.sizes, batch, _form(maps))
        done = ready & outcome.ok
        seconds = (time.perf_counter() - begun) / batch
        outcome = replace(outcome, seconds=np.full(batch, seconds))
        if done.all():
            return outcome
        rest = np.flatnonzero(~done)
        some = tuple(t[rest] if t.ndim > 1 else t for t in theta)
        return outcome.with_items(rest, self._slowly(program, some))

    def _slowly(self, program: Program, theta: tuple[np.ndarray, ...]) -> Outcome:
        """By DAQP as it is, which needs no strict convexity, and with a word on every failure."""
        found = Pieces(starts=1, nodes=0, time_limit=self.time_limit).solve(program, theta)
        return replace(found, solver="ActiveSet")


@lru_cache(maxsize=64)
def _flat(maps: Maps) -> bool:
    """Whether the objective is linear whatever the parameters are."""
    return not maps.Q.terms and not maps.T.terms and not maps.hessian(()).any()


@lru_cache(maxsize=64)
def _form(maps: Maps) -> Separable | None:
    """The program's separable structure, if its matrices are constant."""
    if any(block.terms for block in (maps.Q, maps.T, maps.G, maps.E)):
        return None
    return Separable.of(maps.hessian(()), maps.G(()), maps.E(()))


def settled(data: Data, sizes: Sizes, batch: int, form: Separable | None) -> Outcome:
    """The answers of a batch, exact and with their measurements; FAILED where this road does not lead to one."""
    n, soft = sizes.x, sizes.upper
    J, ends = stack(data.G, data.E), stack(data.g[..., None], data.e[..., None])
    c, d = np.broadcast_to(data.c, (batch, n)), np.broadcast_to(ends[..., 0], (batch, ends.shape[-2]))
    factors, w, held, good = _closed(form, c, d, soft) if form else _dense(data.Q, J, c, d, soft)
    z, gamma = w[:, :n], w[:, n : n + soft]
    if form:
        gap, curved, pushed = d - (form.J @ z.T).T, form.diagonal * z, (form.columns @ w[:, n:].T).T
    else:
        gap, curved, pushed = d - mv(J, z), mv(data.Q, z), mv(J.mT, w[:, n:])
    slack = gap[:, :soft]
    scale = 1 + np.maximum(abs(c).max(-1, initial=0.0), abs(d).max(-1, initial=0.0))
    pull = abs(curved + c + pushed).max(-1, initial=0.0)
    residual = np.maximum(pull, (-gamma).max(-1, initial=0.0)) / scale
    violation = np.maximum((-slack).max(-1, initial=0.0), abs(gap[:, soft:]).max(-1, initial=0.0)) / scale
    idle = gamma <= near_zero(gamma)
    free = np.concatenate([np.ones((batch, n), bool), held[:, :soft] & ~idle, held[:, soft:]], -1)
    F, none = ((curved / 2 + c) * z).sum(-1) + data.c0, np.zeros(batch, int)
    good = good & (np.maximum(residual, violation) <= SURE)
    return Outcome(
        solver="ActiveSet",
        smooth=False,
        status=np.where(good, np.array(Status.GLOBAL), np.array(Status.FAILED)),
        z=z,
        w=w,
        free=free,
        tight=np.zeros((batch, 0), bool),
        value=F,
        bound=F,
        starts=none + 1,
        iterations=none + 1,
        residual=residual,
        violation=violation,
        biactive=none,
        degenerate=(idle & (slack <= near_zero(slack))).sum(-1),
        strongly_stationary=good,
        singular=~good | (form.singular(free[:, n:]) if form else False),
        seconds=np.zeros(batch),
        factors=factors,
    )


Answer = tuple[Any, np.ndarray, np.ndarray, np.ndarray]
"""Factors for the adjoint, unknowns, rows held, and which items are answered."""


def _closed(form: Separable, c: np.ndarray, d: np.ndarray, soft: int) -> Answer:
    """By formula, where the program separates."""
    w, good = form.optimum(c, d)
    held = w[:, c.shape[1] :] > 0
    held[:, soft:] = True
    return form, w, held, good


def _dense(Q: np.ndarray, J: np.ndarray, c: np.ndarray, d: np.ndarray, soft: int) -> Answer:
    """By the least-distance problem."""
    root, fine = cholesky(Q)
    if not fine.any():
        held = np.broadcast_to(np.arange(d.shape[1]) >= soft, d.shape)
        return None, np.zeros((len(d), c.shape[1] + d.shape[1])), held, np.zeros(len(d), bool)
    factors = Bordered(root, lower_solve(root, J.mT))
    held = _active(factors.lifted, lower_solve(root, -c[..., None])[..., 0], d, soft)
    w, singular = factors.solve(held, -c, d)
    return factors if fine.all() else None, w, held, fine & ~singular


def _active(lifted: np.ndarray, start: np.ndarray, d: np.ndarray, soft: int) -> np.ndarray:
    """The rows that hold with equality at each optimum and have a multiplier, bool (batch, rows)."""
    batch, rows = d.shape
    held = np.zeros((batch, rows), bool)
    held[:, soft:] = True
    if not rows:
        return held
    M = lifted.mT
    norm = np.sqrt((M * M).sum(-1))
    norm = np.where(norm > 0, norm, 1.0)
    M, far = np.ascontiguousarray(M / norm[..., None]), (d - mv(M, start)) / norm
    sense = np.zeros(rows, np.int32)
    sense[soft:] = EQUALITY
    worst = np.maximum((-far[:, :soft]).max(-1, initial=0.0), abs(far[:, soft:]).max(-1, initial=0.0))
    n = M.shape[-1]
    eye, zero = np.eye(n), np.zeros(n)
    top = far / np.where(worst > 0, worst, 1.0)[:, None]
    bottom = np.where(sense == EQUALITY, top, -INFINITY)
    for i in np.flatnonzero(worst > 0).tolist():  # where none is broken, the unconstrained optimum is the optimum
        answer = daqp.solve(eye, zero, M if M.ndim == 2 else M[i], top[i], bottom[i], sense, **SETTINGS)
        held[i, :soft] = answer[3]["lam"][:soft] > 0
    return held
