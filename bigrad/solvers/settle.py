"""From the best point of a search on a large program to what is reported of it: the sparse twin of verdict.py."""

from __future__ import annotations

import numpy as np

from bigrad.algebra.sparse import curves_upwards, solve_sparse
from bigrad.solution import Status
from bigrad.solvers.active import free_unknowns, kinks
from bigrad.solvers.model import Frame
from bigrad.solvers.sequence import Sequential
from bigrad.solvers.sparse_qp import BROKEN, LATE
from bigrad.solvers.verdict import FEASIBLE, TINY, Verdict, claim, measure

STEPS = 6
"""Newton steps of the polish at most."""


def conclude(search: Sequential, starts: int) -> Verdict:
    """The verdict on a search."""
    blank = Verdict(Status.FAILED, bound=search.bound, starts=starts, iterations=search.iterations)
    if search.unbounded:
        return blank._replace(status=Status.UNBOUNDED_UPPER)
    if search.v is None:
        if search.late or LATE in search.endings:
            return blank._replace(status=Status.TIME_LIMIT)
        status = reason(search.frame)
        return blank._replace(
            status=Status.FAILED if status is Status.NOT_FOUND and BROKEN in search.endings else status
        )
    frame, system = search.frame, search.frame.system
    w, free, singular = polish(frame, search.v, search.m, search.tight)
    biactive, degenerate, strong = (a[0] for a in kinks(system.residual(w)[None], frame.layout, w[None]))
    residual, violation = measure(system, w, free)
    value = system.objective(w[: frame.n])
    if violation > FEASIBLE or not np.isfinite(value):
        return blank._replace(status=Status.NOT_FOUND)
    local = bool(strong) and (search.convex or curves_upwards(system.sparse(w), free, frame.n))
    cut = search.late and not search.settled
    return blank._replace(
        status=claim(max(residual, violation), value, search.bound, local, cut),
        value=value,
        w=w,
        free=free,
        tight=search.tight,
        residual=residual,
        violation=violation,
        biactive=int(biactive),
        degenerate=int(degenerate),
        strongly_stationary=bool(strong),
        singular=singular,
    )


def polish(frame: Frame, v: np.ndarray, m: np.ndarray, tight: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """w = (v, m) by Newton's method on the conditions of the active set, the mask of that set, and whether it is singular.

    An interior-point solution leaves slack and multiplier of each inequality small and positive; the smaller one is
    zero.
    """
    system, layout = frame.system, frame.layout
    _, _, lam, _, _, kappa, _, gamma, _ = layout.blocks
    w = np.r_[v, m]
    pull = system.residual(w)
    free = np.ones(len(w), bool)
    free[kappa] = tight | (w[kappa] > -pull[kappa])
    free[lam] = tight & ~(pull[lam] > w[lam])
    free[gamma] = w[gamma] > -pull[gamma]
    best, mask, singular = w, free_unknowns(pull[None], layout, w[None], tight[None])[0], False
    error = measure(system, best, mask)
    for guess in (free, mask):
        current = np.where(guess, best, 0.0)
        for _ in range(STEPS):
            solved = solve_sparse(system.sparse(current), guess, -system.residual(current))
            current, singular = current + solved.u, solved.singular
            own = free_unknowns(system.residual(current)[None], layout, current[None], tight[None])[0]
            now = measure(system, current, own)
            if max(now) >= max(error) or now[1] > max(error[1], TINY):
                break
            best, mask, error = current, own, now
            if max(now) <= TINY:
                break
        if max(error) <= TINY:
            break
    return best, mask, singular


def reason(frame: Frame) -> Status:
    """Why a program has no answer, as far as its linear rows prove it: linear programs by HiGHS."""
    from scipy.optimize import linprog

    system = frame.system
    if not frame.linear:
        return Status.NOT_FOUND
    J, level = frame.jacobian(system.origin), system.rows(np.zeros(frame.n))
    known = J[:, frame.layout.x :]
    own = abs(known).sum(axis=1) == 0
    bounds = np.c_[system.low, system.high]

    def impossible(soft: np.ndarray, rigid: np.ndarray) -> bool:
        equal = (J[rigid], -level[rigid]) if len(rigid) else (None, None)
        below = (J[soft], -level[soft]) if len(soft) else (None, None)
        return linprog(np.zeros(frame.n), *below, *equal, bounds=bounds, method="highs").status == 2

    gamma, eps = frame.gamma[own[frame.gamma]], frame.eps[own[frame.eps]]
    if impossible(gamma, eps):
        return Status.INFEASIBLE_UPPER
    if impossible(np.r_[gamma, frame.kappa], np.r_[eps, frame.eta]):
        return Status.INFEASIBLE_LOWER
    if impossible(np.r_[gamma, frame.kappa], np.r_[eps, frame.eta, frame.sigma]):
        return Status.UNBOUNDED_LOWER
    if impossible(np.r_[frame.gamma, frame.kappa], np.r_[frame.eps, frame.eta, frame.sigma]):
        return Status.INFEASIBLE_UPPER
    return Status.NOT_FOUND
