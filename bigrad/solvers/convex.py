"""One convex quadratic program, by DAQP, with a second opinion where its word is not to be trusted.

    min 1/2 v'Hv + f'v   subject to   bottom <= (v, A v) <= top,   rows marked EQUALITY with bottom == top,

where `top` and `bottom` may be longer than A: their first entries are then bounds on the first variables.

DAQP is fast and releases the interpreter lock, but on degenerate data it refuses dependent equalities, now and then
calls a feasible program infeasible at tolerances near rounding, and calls some bounded programs unbounded. A
wrong word here would become a wrong claim of a global optimum. DAQP: Arnstrom, Bemporad and Axehill, "A dual active-set
solver for embedded quadratic programming", 2022.
"""

from __future__ import annotations

import daqp
import numpy as np
import scipy.sparse as sp

from bigrad.solvers.sparse_qp import solve_qp

INFINITY, EQUALITY = 1e30, 5
SOLVED, INFEASIBLE, BROKEN, UNBOUNDED, OVERDETERMINED = 1, -1, -2, -3, -6
SETTINGS = {"primal_tol": 1e-9, "dual_tol": 1e-12, "iter_limit": 10_000, "eq_reduction": daqp.EQ_REDUCTION_OFF}
SLIT = 1e-8
"""Half width of the interval that stands in for an equality among dependent ones, relative to 1 + its right-hand side."""
LENIENT = 1e-6
"""The tolerance at which infeasibility is believed."""
HUGE = 1e15
"""A linear program that DAQP calls solved at such a point is as good as unbounded; its value there means nothing."""
PROXIMAL = 1e-2
"""Weight of the proximal term for a program that DAQP wrongly called unbounded."""


def quadratic_program(*problem: np.ndarray) -> tuple[np.ndarray, float, int, np.ndarray]:
    """DAQP on (H, f, A, top, bottom, sense): (v, value, flag, multipliers of v and of A v, positive at the top).

    Dependent equalities are given to it as narrow intervals, what it calls infeasible must be so at a lenient tolerance
    too, and an answer beyond all bounds is none.
    """
    answer = daqp.solve(*problem, **SETTINGS)
    if answer[2] == OVERDETERMINED:
        H, f, A, top, bottom, sense = problem
        width = np.where(sense == EQUALITY, SLIT * (1 + abs(top)), 0.0)
        problem = (H, f, A, top + width, bottom - width, np.zeros_like(sense))
        answer = daqp.solve(*problem, **SETTINGS)
    if answer[2] == INFEASIBLE:
        answer = daqp.solve(*problem, **SETTINGS | {"primal_tol": LENIENT})
    flag = UNBOUNDED if answer[2] == SOLVED and abs(answer[0]).max(initial=0.0) > HUGE else answer[2]
    return answer[0], answer[1], flag, answer[3]["lam"]


def if_unbounded(*problem: np.ndarray) -> tuple[np.ndarray, float, int, np.ndarray]:
    """A program that DAQP called unbounded, decided by HiGHS.

    Its recession cone says whether it is, and if not, it is solved, by Clarabel where DAQP cannot.
    """
    from scipy.optimize import linprog

    H, f, A, top, bottom, sense = problem
    n = len(f)
    rows = np.concatenate([np.eye(len(top) - len(A), n), A])
    equal = sense == EQUALITY
    below, above = ~equal & (top < INFINITY), ~equal & (bottom > -INFINITY)
    soft, rigid = np.concatenate([rows[below], -rows[above]]), rows[equal]
    ends, free = np.concatenate([top[below], -bottom[above]]), [(None, None)] * n
    scale = 1 + abs(f).max(initial=0.0)
    if linprog(np.zeros(n), soft, ends, rigid, top[equal], free, method="highs").status == 2:
        return f, 0.0, INFEASIBLE, top
    still = np.concatenate([rigid, H[H.any(-1)]])
    ray = linprog(f / scale, soft, np.zeros(len(soft)), still, np.zeros(len(still)), [(-1, 1)] * n, method="highs")
    if ray.status == 0 and ray.fun < -1e-9:
        return f, -np.inf, UNBOUNDED, top
    if H.any():
        answer = daqp.solve(*problem, **SETTINGS | {"eps_prox": PROXIMAL})
        if answer[2] > 0:
            return answer[0], answer[1], answer[2], answer[3]["lam"]
        found = solve_qp(sp.csc_array(H), f, sp.csc_array(rigid), top[equal], sp.csc_array(soft), ends, np.inf)
        if not found.sharp:
            return f, 0.0, BROKEN, top
        point, value, rigid_dual, soft_dual = found.v, found.value, found.equal, found.below
    else:
        result = linprog(f, soft, ends, rigid, top[equal], free, method="highs")
        if result.status != 0:
            return f, 0.0, BROKEN, top
        point, value, rigid_dual, soft_dual = result.x, result.fun, -result.eqlin.marginals, -result.ineqlin.marginals
    dual = np.zeros(len(top))
    dual[equal] = rigid_dual
    dual[below] = soft_dual[: below.sum()]
    dual[above] -= soft_dual[below.sum() :]
    return point, value, SOLVED, dual
