"""CVXPY's cone program of a lower level, block by block: exact power cones, rows in the order of their cones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.atoms.elementwise.power import Power, PowerApprox
from cvxpy.atoms.geo_mean import GeoMeanApprox
from cvxpy.atoms.pnorm import PnormApprox
from cvxpy.constraints.nonpos import Inequality, NonNeg, NonPos
from cvxpy.constraints.power import PowConeND
from cvxpy.constraints.psd import SvecPSD
from cvxpy.constraints.zero import Equality, Zero
from cvxpy.reductions.cone2cone.exact import PowNDConversion
from cvxpy.reductions.dcp2cone.canonicalizers import CANON_METHODS
from cvxpy.reductions.dcp2cone.canonicalizers.geo_mean_canon import geo_mean_exact_canon
from cvxpy.reductions.dcp2cone.canonicalizers.pnorm_canon import pnorm_exact_canon
from cvxpy.reductions.dcp2cone.canonicalizers.power_canon import power_exact_canon
from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ParamConeProg
from cvxpy.reductions.dcp2cone.dcp2cone import Dcp2Cone
from cvxpy.utilities.psd_utils import TriangleKind, psd_format_mat

from bigrad.programs.bilinear import entries
from bigrad.programs.cones import Cone, exponential, power, second_order
from bigrad.programs.spectra import semidefinite


@dataclass(frozen=True, eq=False)
class Conic:
    """The rows of a cone program sorted: equalities, inequalities, then the coordinates of the cones.

    cones: in that order. where: for each row of the program its place among the coordinates, -1 for equalities and
    inequalities. rigid: rows that are equalities, of which the first `zero` are the author's. lean: which cones have an s
    that is never zero (+1) or a multiplier that is not (-1).
    """

    cones: tuple[Cone, ...]
    where: np.ndarray
    rigid: np.ndarray
    lean: np.ndarray
    zero: int

    @property
    def size(self) -> int:
        """The number of coordinates of all cones."""
        return sum(c.size for c in self.cones)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The cones' coordinates from the rows of the program (first axis)."""
        out = np.zeros((self.size, *rows.shape[1:]))
        inside = self.where >= 0
        out[self.where[inside]] = rows[inside]
        return out


def exact_cones() -> Dcp2Cone:
    """CVXPY's reduction to cones with powers, p-norms and geometric means as power cones, not rational approximations."""
    reduction = Dcp2Cone(quad_obj=True)
    reduction.cone_canon_methods = CANON_METHODS | {
        PowerApprox: _exact_power,
        GeoMeanApprox: _exact_mean,
        PnormApprox: _exact_norm,
    }
    return reduction


def _exact_power(atom: Any, args: list[Any], solver_context: Any = None) -> Any:
    return power_exact_canon(Power(atom.args[0], atom.p), args, solver_context)


def _exact_mean(atom: Any, args: list[Any], solver_context: Any = None) -> Any:
    return geo_mean_exact_canon(atom, args, solver_context)


def _exact_norm(atom: Any, args: list[Any], solver_context: Any = None) -> Any:
    return pnorm_exact_canon(atom, args, solver_context)


def small_cones(rows: Sequence[cp.Constraint]) -> list[cp.Constraint]:
    """The constraints with power cones of any dimension split into three-dimensional ones, semidefinite matrices as their
    triangles, and those of order two as [[a, b], [b, c]] with a + c >= |(a - c, 2b)|.
    """
    out: list[cp.Constraint] = []
    for row in rows:
        if isinstance(row, PowConeND):
            first, others = PowNDConversion.canonicalize(row, row.args)
            out += [first, *others]
        elif isinstance(row, cp.PSD) and row.args[0].shape == (1, 1):
            out.append(NonNeg(row.args[0]))
        elif isinstance(row, cp.PSD) and row.args[0].shape == (2, 2):
            X = row.args[0]
            out.append(cp.SOC(X[0, 0] + X[1, 1], cp.hstack([X[0, 0] - X[1, 1], X[0, 1] + X[1, 0]])))
        elif isinstance(row, cp.PSD) and row.args[0].ndim == 2:
            triangle = psd_format_mat(row, TriangleKind.UPPER, True) @ cp.vec(row.args[0], order="F")
            out.append(SvecPSD(triangle, row.args[0].shape[0]))
        else:
            out.append(row)
    return out


def conic(program: ParamConeProg, own: Sequence[cp.Variable]) -> Conic:
    """The cones of a stuffed program, without others; own: the variables that are not auxiliary.

    Some inequalities become equalities: CVXPY writes norm(y) <= c as norm(y) <= t and t <= c, and a t that only passes
    a bound on and may grow as it likes is put to its bound. So it is unique.
    """
    cones: list[Cone] = []
    where = np.full(program.constr_size, -1)
    row = size = 0
    for constraint in program.constraints:
        made = MAKE.get(type(constraint))
        if made is not None:
            new, order = made(constraint)
            where[row + order] = size + np.arange(len(order))
            cones += new
            size += len(order)
        row += constraint.size
    rigid = np.arange(len(where)) < program.cone_dims.zero
    if cones:
        rigid[_caps(program, cones, where, own)] = True
    return Conic(tuple(cones), where, rigid, _lean(program, cones, where), program.cone_dims.zero)


def _second_order(constraint: Any) -> tuple[list[Cone], np.ndarray]:
    head, rest = constraint.args
    count, width = head.size, rest.size // max(head.size, 1)
    rows = np.c_[np.arange(count), count + np.arange(count * width).reshape(count, width)]
    return [second_order(width + 1)] * count, rows.ravel()


def _triples(constraint: Any) -> np.ndarray:
    count = constraint.args[0].size
    return np.arange(3 * count).reshape(3, count).T.ravel()


def _exponential(constraint: Any) -> tuple[list[Cone], np.ndarray]:
    return [exponential()] * constraint.args[0].size, _triples(constraint)


def _power(constraint: Any) -> tuple[list[Cone], np.ndarray]:
    alphas = np.ravel(constraint.alpha.value, order="F")
    return [power(float(a)) for a in alphas], _triples(constraint)


def _semidefinite(constraint: Any) -> tuple[list[Cone], np.ndarray]:
    return [semidefinite(constraint.get_data()[0])], np.arange(constraint.size)


MAKE: dict[type, Callable[[Any], tuple[list[Cone], np.ndarray]]] = {
    cp.constraints.second_order.SOC: _second_order,
    cp.constraints.exponential.ExpCone: _exponential,
    cp.constraints.power.PowCone3D: _power,
    SvecPSD: _semidefinite,
}
"""How each kind of cone constraint is taken apart: its cones, and its rows in their order."""


def without_exact_form(rows: Sequence[cp.Constraint]) -> list[str]:
    """Names of the kinds of constraints that are none of equalities, inequalities and the cones here.

    CVXPY's stuffing would leave them out without a word.
    """
    linear = (Equality, Inequality, NonNeg, NonPos, Zero)
    return sorted({type(c).__name__ for c in rows if not isinstance(c, (*linear, *MAKE))})


def _lean(program: ParamConeProg, cones: list[Cone], where: np.ndarray) -> np.ndarray:
    """Which cones stay away from an apex: +1 where one of the coordinates that vanish there is a nonzero constant, -1 for a
    second-order cone whose head is an auxiliary variable with a price of its own, the t of t >= norm(u) in a cost.
    """
    lean = np.zeros(len(cones))
    n, rows = program.x.size, program.constr_size
    row, column, at, _ = entries(program.A, rows)
    inside = (column < n) | (at < program.A.shape[1] - 1)
    priced = np.unique(entries(program.q, n + 1)[0])
    uses = np.bincount(column[column < n], minlength=n)
    starts = np.cumsum([0, *(c.size for c in cones)])
    place = np.argsort(where)[np.count_nonzero(where < 0) :]
    for k, cone in enumerate(cones):
        touched = column[inside & (row == place[starts[k]])]
        heads = place[starts[k] : starts[k + 1]] if cone.name in ("ExpCone", "PowCone3D") else place[[starts[k]]]
        if any(not inside[row == head].any() and (row == head).any() for head in heads):
            lean[k] = 1.0
        elif cone.name == "SOC" and len(touched) == 1 and touched[0] in priced and uses[touched[0]] == 1:
            lean[k] = -1.0
    return lean


def _caps(program: ParamConeProg, cones: list[Cone], where: np.ndarray, own: Sequence[cp.Variable]) -> list[int]:
    """Inequalities that bound a costless auxiliary variable whose growth every other row allows."""
    n, rows, zero = program.x.size, program.constr_size, program.cone_dims.zero
    row, column, at, value = entries(program.A, rows)
    fixed = at == program.A.shape[1] - 1
    spare = np.ones(n, bool)
    for v in own:
        if v.id in program.var_id_to_col:
            spare[program.var_id_to_col[v.id] + np.arange(v.size)] = False
    priced = entries(program.q, n + 1)[0]
    spare[priced[priced < n]] = False
    if program.P is not None:
        for side in entries(program.P, n)[:2]:
            spare[side] = False
    spare[column[(column < n) & (~fixed | (row < zero))]] = False
    starts, caps = np.cumsum([0, *(c.size for c in cones)]), []
    for c in np.flatnonzero(spare):
        here = column == c
        step, straight = np.zeros(starts[-1]), here & (where[row] < 0)
        inside = here & (where[row] >= 0)
        step[where[row[inside]]] = value[inside]
        falling = row[straight & (value < 0)]
        ends = zip(cones, starts[:-1], starts[1:], strict=True)
        if len(falling) == 1 and inside.any() and all(cone.holds(step[a:b]) for cone, a, b in ends):
            caps.append(int(falling[0]))
    return caps
