"""From one CVXPY level to affine maps of its data: the only module that knows CVXPY's canonicalisation.

A level `minimize f subject to constraints` becomes `1/2 u'Pu + q'u + d` with rows `A u <= b` or `A u == b`, every block
affine in the inputs. CVXPY writes a square of an affine expression with an auxiliary variable t == Tz + l; those are
eliminated here, so that the level keeps the size its author gave it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.atoms.quad_form import QuadForm, SymbolicQuadForm
from cvxpy.lin_ops import CONSTANT_ID
from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ConeMatrixStuffing, ParamConeProg
from cvxpy.settings import COO_CANON_BACKEND, DPP_PARAM_THRESHOLD
from cvxpy.utilities import scopes
from cvxpy.utilities.coeff_extractor import CoeffExtractor

from bigrad.algebra.affine import Affine, constant
from bigrad.programs import expressions
from bigrad.programs.conic import exact_cones, small_cones, without_exact_form
from bigrad.solution import DeclarationError

LINEAR_CONES = (cp.constraints.zero.Zero, cp.constraints.nonpos.NonNeg)


@dataclass(frozen=True, eq=False)
class Level:
    """One canonicalised level in u = (z, t), t = T z + l: `1/2 u'Pu + q'u + d`, `A z == b` in the first `equalities`
    rows, then `A z <= b`.

    `offsets` gives the position in z of each variable by CVXPY id; the caller's come first, in the caller's order, then
    auxiliaries. origin: the rows of the stuffed program by these rows; it takes the multipliers of the latter to those of
    the former, for rows that the caller wrote. owned: which of the former belong to each constraint, by CVXPY id.
    """

    offsets: dict[int, int]
    size: int
    equalities: int
    P: Affine
    q: Affine
    d: Affine
    T: Affine
    l: Affine  # noqa: E741
    A: Affine
    b: Affine
    origin: sp.csr_array
    owned: Mapping[int, slice] = field(default_factory=dict)


def empty() -> Level:
    """A level without variables."""
    vector, matrix = constant(np.zeros(0)), constant(np.zeros((0, 0)))
    none = sp.csr_array((0, 0))
    return Level(
        {}, 0, 0, P=matrix, q=vector, d=constant(np.zeros(())), T=matrix, l=vector, A=matrix, b=vector, origin=none
    )


@dataclass(frozen=True, eq=False)
class NoCone:
    """What a ParamConeProg without variables would be; CVXPY stuffs none."""

    x: Any = field(default_factory=lambda: SimpleNamespace(size=0))
    cone_dims: Any = field(default_factory=lambda: SimpleNamespace(zero=0))
    P: None = None
    q: sp.csc_array = field(default_factory=lambda: sp.csc_array((1, 1)))
    A: sp.csc_array = field(default_factory=lambda: sp.csc_array((0, 1)))
    constr_size: int = 0
    constraints: tuple[cp.Constraint, ...] = ()
    var_id_to_col: Mapping[int, int] = field(default_factory=dict)
    param_id_to_col: Mapping[int, int] = field(default_factory=dict)
    param_id_to_size: Mapping[int, int] = field(default_factory=dict)


def cones_beyond_linear(program: ParamConeProg) -> list[str]:
    """Names of the cones in the program that are neither equalities nor inequalities."""
    return sorted({type(c).__name__ for c in program.constraints if not isinstance(c, LINEAR_CONES)})


def stuff(objective: cp.Expression, constraints: Sequence[cp.Constraint]) -> ParamConeProg:
    """CVXPY's own parametrised cone program for `minimize objective`, quadratic terms kept, curvature taken on trust.

    Raises DeclarationError for cones that CVXPY only approximates.
    """
    return stuff_and_locate(objective, constraints)[0]


def stuff_and_locate(
    objective: cp.Expression, constraints: Sequence[cp.Constraint]
) -> tuple[ParamConeProg, list[slice]]:
    """The same, and which rows of the cone program each equality or inequality became; others' are not told."""
    with scopes.quad_form_dpp_scope():
        reduction, own = exact_cones(), []
        goal, rows = reduction.canonicalize_tree(cp.Minimize(objective), True)
        for constraint in constraints:
            if isinstance(constraint, cp.constraints.NonPos):  # CVXPY's stuffing would drop it without a word
                constraint = -constraint.args[0] >= 0
            row, extra = reduction.canonicalize_tree(constraint, False)
            own.append(row.id)
            rows += [*extra, row]
        rows = small_cones(rows)
        if beyond := without_exact_form(rows):
            raise DeclarationError(
                f"The program needs the cones {', '.join(beyond)}, which have no exact road here. Either level may use equalities, "
                "inequalities, second-order, exponential, power and semidefinite cones."
            )
        problem = cp.Problem(goal, rows)
        many = sum(p.size for p in problem.parameters()) >= DPP_PARAM_THRESHOLD
        program = _Stuffing(quad_obj=True, canon_backend=COO_CANON_BACKEND if many else None).apply(problem)[0]
    ends = np.cumsum([0, *(c.size for c in program.constraints)])
    at = {c.id: slice(int(a), int(b)) for c, a, b in zip(program.constraints, ends, ends[1:], strict=False)}
    return program, [at.get(i, slice(0)) for i in own]


class _Stuffing(ConeMatrixStuffing):
    """CVXPY's own, but affine terms of the objective stay sparse: it makes them variables by parameters, dense."""

    def stuffed_objective(self, problem: cp.Problem, extractor: CoeffExtractor) -> tuple[Any, ...]:
        parts = expressions.terms(problem.objective.expr)
        affine = [t for t in parts if _straight(t)]
        if not affine or not all(t.is_scalar() for t in parts):
            return super().stuffed_objective(problem, extractor)
        curved = sum((t for t in parts if not _straight(t)), cp.Constant(0.0))
        linear, size = extractor.affine(sum(affine)), extractor.x_length
        own, narrow = curved.parameters(), copy(extractor)
        places = np.cumsum([0, *(p.size for p in own)])
        narrow.param_id_map = dict(zip([*(p.id for p in own), CONSTANT_ID], places.tolist(), strict=True))
        narrow.param_to_size = {p.id: p.size for p in own} | {CONSTANT_ID: 1}
        if not curved.variables():
            return sp.csc_array((size * size, linear.shape[1])), linear + 0.0, cp.Variable(size)
        P, q, x = super().stuffed_objective(cp.Problem(cp.Minimize(curved)), narrow)
        columns = [extractor.param_id_map[p.id] + np.arange(p.size) for p in own]
        wide = np.concatenate([*columns, [extractor.param_id_map[CONSTANT_ID]]]).astype(int)
        return _widened(P, wide, linear.shape[1]), linear + _widened(q, wide, linear.shape[1]), x


def _straight(term: cp.Expression) -> bool:
    """Whether a term has no square in it, not even one multiplied by zero."""
    return term.is_affine() and not {QuadForm, SymbolicQuadForm} & set(term.atoms())


def _widened(tensor: sp.spmatrix, columns: np.ndarray, width: int) -> sp.csc_array:
    """The tensor with its columns moved to these places of a wider one."""
    coo = sp.coo_array(tensor)
    row, column = coo.coords
    return sp.csc_array((coo.data, (row, columns[column])), shape=(tensor.shape[0], width))


def level(program: ParamConeProg, variables: Sequence[cp.Variable], inputs: Sequence[cp.Parameter]) -> Level:
    """The affine maps of a stuffed linear-quadratic level, auxiliary squares eliminated."""
    n, rows = program.x.size, program.constr_size
    position = {parameter.id: k for k, parameter in enumerate(inputs)}
    objective, linear, matrix = (_split(t, program, position) for t in (program.P, program.q, program.A))
    own = [
        np.arange(program.var_id_to_col[v.id], program.var_id_to_col[v.id] + v.size)
        for v in variables
        if v.id in program.var_id_to_col
    ]
    known = np.concatenate([*own, np.zeros(0, int)]).astype(int)
    spare = np.setdiff1d(np.arange(n), known)
    equalities = program.cone_dims.zero
    out, by = _definitions(sp.coo_array(program.A), rows, equalities, spare)
    kept = np.concatenate([known, np.setdiff1d(spare, out)])
    others = np.setdiff1d(np.arange(rows), by)
    order = np.concatenate([kept, out])

    pivot = matrix.base[by + rows * out]
    T = matrix.rows((by[:, None] + rows * kept).ravel(), (len(out), len(kept))).scaled(np.repeat(-1 / pivot, len(kept)))
    grid = (order[:, None] + n * order).ravel()
    flipped = (order + n * order[:, None]).ravel()
    P = _mean(objective.rows(grid, (n, n)), objective.rows(flipped, (n, n)))
    starts = np.cumsum([0, *(v.size for v in variables if v.id in program.var_id_to_col)])
    offsets = {
        v.id: int(s) for v, s in zip((v for v in variables if v.id in program.var_id_to_col), starts, strict=False)
    }
    found = Level(
        offsets=offsets,
        size=len(kept),
        equalities=equalities - len(by),
        P=P,
        q=linear.rows(order, (n,)),
        d=linear.rows(np.array([n]), ()),
        T=T,
        l=matrix.rows(by + rows * n, (len(out),)).scaled(-1 / pivot),
        A=matrix.rows((others[:, None] + rows * kept).ravel(), (len(others), len(kept))).scaled(
            np.full(len(others) * len(kept), -1.0)
        ),
        b=matrix.rows(others + rows * n, (len(others),)),
        origin=sp.csr_array((np.ones(len(others)), (others, np.arange(len(others)))), shape=(rows, len(others))),
        owned={c.id: slice(end - c.size, end) for c, end in _ends(program)},
    )
    return _without_caps(found, len(known))


def _without_caps(level: Level, own: int) -> Level:
    """Fourier-Motzkin elimination of auxiliaries that only pass a bound on: e <= t and t <= c become e <= c.

    CVXPY writes abs(e) <= c, max(e) <= c and their like so. Such a t costs nothing, stands in rows without other
    auxiliaries, and is bounded once on one side, so the number of rows does not grow.
    """
    width, rows = level.size, level.b.shape[0]
    moving = touches(replace(level.A, base=0 * level.A.base))
    fixed = level.A.base.reshape(rows, width)
    there = touches(level.A)
    priced = np.concatenate(
        [touches(m)[:, :width] for m in (level.P, replace(level.q, shape=(1, *level.q.shape)), level.T)]
    ).any(0)
    alone = there[:, own:].sum(1) == 1
    up, down = (fixed > 0).sum(0), (fixed < 0).sum(0)
    out = ~priced & ~moving.any(0) & ~there[: level.equalities].any(0) & (np.minimum(up, down) <= 1)
    out &= (there & ~alone[:, None]).sum(0) == 0
    out[:own] = False
    if not out.any():
        return level
    pairs = [np.zeros((0, 2), int)]
    for t in np.flatnonzero(out):
        above, below = np.flatnonzero(fixed[:, t] > 0), np.flatnonzero(fixed[:, t] < 0)
        pairs.append(np.stack(np.meshgrid(above, below, indexing="ij"), -1).reshape(-1, 2))
    joined = np.concatenate(pairs)
    stay = np.flatnonzero(~there[:, out].any(1))
    scale = abs(fixed[:, out]).sum(1)
    at = np.concatenate([np.arange(len(stay)), np.repeat(len(stay) + np.arange(len(joined)), 2)])
    mix = sp.csr_array(
        (np.concatenate([np.ones(len(stay)), 1 / scale[joined].ravel()]), (at, np.concatenate([stay, joined.ravel()]))),
        shape=(len(stay) + len(joined), rows),
    )
    keep = np.flatnonzero(~out)
    tail = np.arange(width, level.q.shape[0])
    u = np.concatenate([keep, tail])
    n = level.q.shape[0]
    squares = np.arange(level.T.shape[0])
    A = level.A.mixed(sp.csr_array(sp.kron(mix, sp.eye_array(width))), (mix.shape[0], width))
    return replace(
        level,
        size=len(keep),
        P=level.P.rows((u[:, None] * n + u).ravel(), (len(u), len(u))),
        q=level.q.rows(u, (len(u),)),
        T=level.T.rows((squares[:, None] * width + keep).ravel(), (len(squares), len(keep))),
        A=A.rows((np.arange(mix.shape[0])[:, None] * width + keep).ravel(), (mix.shape[0], len(keep))),
        b=level.b.mixed(mix, (mix.shape[0],)),
        origin=sp.csr_array(level.origin @ mix.T),
    )


def _ends(program: ParamConeProg) -> Iterator[tuple[cp.Constraint, int]]:
    """The constraints of a stuffed program, and where the rows of each end."""
    return zip(program.constraints, accumulate(c.size for c in program.constraints), strict=True)


def touches(block: Affine) -> np.ndarray:
    """Entries of a block that are not identically zero, in its shape."""
    sizes = sum((abs(m).sum(1) for m in block.terms.values()), abs(block.base))
    return np.reshape(sizes > 0, block.shape)


def _split(tensor: sp.csc_array, program: ParamConeProg, position: dict[int, int]) -> Affine:
    """CVXPY's tensor (entries by parameter values and a constant) as an affine map."""
    tensor = sp.csc_array(tensor)
    base = tensor[:, [tensor.shape[1] - 1]].toarray().ravel()
    terms = {}
    for parameter, column in program.param_id_to_col.items():
        if parameter in position:
            block = sp.csr_array(tensor[:, column : column + program.param_id_to_size[parameter]])
            block.eliminate_zeros()
            if block.nnz:
                terms[position[parameter]] = block
    return Affine(base.shape, base, terms)


def _mean(a: Affine, b: Affine) -> Affine:
    terms = {
        k: sp.csr_array(
            (
                a.terms.get(k, 0 * b.terms[k] if k in b.terms else 0)
                + b.terms.get(k, 0 * a.terms[k] if k in a.terms else 0)
            )
            / 2
        )
        for k in {*a.terms, *b.terms}
    }
    return Affine(a.shape, (a.base + b.base) / 2, terms)


def _definitions(A: sp.coo_array, rows: int, equalities: int, spare: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Auxiliary columns that stand in a single row, an equality, with a constant coefficient: (columns, their rows)."""
    entry, parameter = A.coords
    live = A.data != 0
    entry, parameter = entry[live], parameter[live]
    row, column = entry % rows if rows else entry, entry // rows if rows else entry
    picked, used, out = np.isin(column, spare), set(), []
    for c in np.unique(column[picked]):
        here = column == c
        r = np.unique(row[here])
        if len(r) == 1 and r[0] < equalities and r[0] not in used and (parameter[here] == A.shape[1] - 1).all():
            used.add(r[0])
            out.append((int(c), int(r[0])))
    pairs = np.array(out, dtype=int).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]
