"""A convex-concave zero-sum bilevel program as one convex program, by conic duality of the follower.

    min over x in X of  max over y in Y of  own(x) + gain(y) + pull(x)'y

The follower's problem is a cone program in u (its y among them), min 1/2 u'Pu + q'u + d - pull(x)'y with b - Au in K; its
dual is a minimum as well, and joins the leader's:

    min over x, omega, lam of  own(x) + 1/2 omega'P omega + b'lam - d
    subject to  P omega + q + A'lam == pull(x) at y's places,   lam in K*,   x in X.

The multiplier of that equality is -u, so it holds the follower's answer, and one gap proves the optimality of both
players: (x, y) is a saddle point. Juditsky and Nemirovski, "On well-structured convex-concave saddle point problems and
variational inequalities with monotone operators", 2022; Schiele, Luxenberg and Boyd, "Disciplined saddle programming",
2024.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import cached_property, partial
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

from bigrad.program import Program, Solver, Unknown
from bigrad.programs import cvxpy as levels
from bigrad.programs import single
from bigrad.programs.convex import Block, Convex
from bigrad.programs.data import gathered
from bigrad.programs.expressions import terms
from bigrad.programs.payoff import NO_SUM, NoGameError, Payoff, split
from bigrad.programs.projection import Cones, svec_matrix
from bigrad.programs.roles import Roles, sort_roles
from bigrad.programs.single import Single
from bigrad.programs.source import Source
from bigrad.solution import DeclarationError, Point, Solution


@dataclass(frozen=True, eq=False)
class Game:
    """The one convex program of a saddle program, and the players' own sets, for a diagnosis.

    program: its unknowns are those of the bilevel program, in the same order. answer: the follower's problem without the
    part that the leader pulls at; own: the places of its variables there.
    """

    program: Program
    answer: Convex
    own: np.ndarray
    sets: tuple[cp.Problem, cp.Problem]
    parameters: tuple[cp.Parameter, ...]

    @cached_property
    def leader(self) -> Program:
        """Any decision that keeps the leader's own constraints."""
        return single.declare(self.sets[0], self.program.default, self.parameters)

    @cached_property
    def follower(self) -> Program:
        """Any answer that keeps the follower's."""
        return single.declare(self.sets[1], self.program.default, self.parameters)


def declare(
    upper: cp.Problem, lower: Sequence[cp.Problem], responds: Sequence[Sequence[cp.Variable]], default: Solver
) -> Program:
    """The Program of CVXPY problems, with the form of a game where it has one; `bigrad.bilevel` documents the rest."""
    rebuild = (
        _reload,
        (
            (upper.objective, upper.constraints),
            [(problem.objective, problem.constraints) for problem in lower],
            [list(answers) for answers in responds],
            default,
        ),
    )
    if len(lower) > 1:
        program = levels.declare(upper, lower, responds, default, rebuild)
        return replace(program, why_not_saddle="it has several followers")
    roles = sort_roles(upper, lower, responds, matrices=True)
    why = ""
    try:
        game = _game(upper, lower[0], roles, default)
    except (NoGameError, DeclarationError) as reason:
        why = str(reason)
    late = partial(levels.declare, upper, lower, responds, default, rebuild)
    if why:  # outside of the handler: a refusal does not drag this reason behind it
        return replace(_bilevel(late, why), why_not_saddle=why)
    sign = 1.0 if isinstance(upper.objective, cp.Minimize) else -1.0
    return ZeroSum.late(game, sign, Source(upper, lower, roles), rebuild, late)


def _bilevel(late: Callable[[], Program], why: str) -> Program:
    """The Program without the form of a game, which it has not for the reason `why`."""
    try:
        return late()
    except DeclarationError as refusal:
        if why.startswith(NO_SUM):
            raise
        raise DeclarationError(f"{refusal} As a zero-sum game it cannot be solved either: {why}.") from None


class ZeroSum(Program):
    """The Program of a game. A saddle point does not need its bilevel form, which is declared when first asked for."""

    @classmethod
    def late(
        cls, game: Game, sign: float, source: Source, rebuild: tuple[Any, ...], bilevel: Callable[[], Program]
    ) -> ZeroSum:
        """One whose fields in LATE are those of `bilevel()`, or of a program without a bilevel form where that refuses."""
        self = object.__new__(cls)
        one = game.program
        known = {f.name: f.default for f in fields(Program) if f.default is not MISSING}
        known |= {"inputs": one.inputs, "sign": sign, "source": source, "default": one.default, "rebuild": rebuild}
        self.__dict__.update(known, saddle=game, why_not_saddle="", bilevel=bilevel, turn=threading.RLock())
        return self

    def __getattr__(self, name: str) -> Any:
        """A field that is not there yet."""
        if name not in LATE:
            raise AttributeError(name)
        with self.turn:
            if name not in self.__dict__:
                self.__dict__.update(self._late())
        return self.__dict__[name]

    def _late(self) -> dict[str, Any]:
        one = self.saddle.program
        try:
            form = self.bilevel()
        except DeclarationError as refusal:
            why = str(refusal).split(":")[0].rstrip(".")
            none = {"quadratic": None, "smooth": None, "why_not_quadratic": why}
            return {n: getattr(one, n) for n in LATE} | none
        return {n: getattr(form, n) for n in (*LATE, "source", "derived")}

    def points(self, starts: Iterable[Solution | Point | None]) -> list[Point | None]:
        """Where solves may start from: a saddle point holds the variables alone."""
        found = [s.point if isinstance(s, Solution) else s for s in starts]
        if self.quadratic is None and self.smooth is None:  # without a bilevel form no solver needs a start
            return [None] * len(found)
        sizes = [int(np.prod(u.shape)) for u in self.unknowns]
        ends, layout = np.cumsum([0, *sizes]), self.layout
        for i, point in enumerate(found):
            if point is not None and len(point.z) == ends[-1] and not len(point.tight):
                z = np.zeros(layout.x + layout.y)
                for u, begin, end in zip(self.unknowns, ends, ends[1:], strict=False):
                    if isinstance(u.place, slice):
                        z[u.place] = point.z[begin:end]
                found[i] = replace(point, z=z, tight=np.zeros(layout.pairs, bool))
        return super().points(found)


LATE = ("unknowns", "quadratic", "convex", "why_not_quadratic", "smooth", "duals")


def _reload(above: tuple[Any, Any], below: list[tuple[Any, Any]], responds: list[Any], default: Solver) -> Program:
    upper, *lower = (cp.Problem(*pair) for pair in (above, *below))
    levels.renumber(upper, *lower)
    return declare(upper, lower, responds, default)


def _game(upper: cp.Problem, lower: cp.Problem, roles: Roles, default: Solver) -> Game:
    ours = {v.id for v in roles.follower}
    F, G = (
        gathered(p.objective.expr if isinstance(p.objective, sense) else -p.objective.expr)
        for p, sense in ((upper, cp.Minimize), (lower, cp.Maximize))
    )
    payoff = split(F, G, roles.follower)
    above, below = list(payoff.above), list(payoff.below)
    for name, problem in (("upper", upper), ("lower", lower)):
        for c in problem.constraints:
            answers = [v.id in ours for v in c.variables()]
            if any(answers) and (name == "upper" or not all(answers)):
                raise NoGameError(f"the {name} constraint {c} couples the players")
            (below if any(answers) else above).append(c)
    rows = [_gathered(c) for c in below]
    answer = cp.Problem(cp.Maximize(sum(payoff.gain) if payoff.gain else _nothing(roles.follower)), rows)
    missing = [v for v in payoff.follower if v.id not in {u.id for u in answer.variables()}]
    if missing:
        answer = cp.Problem(cp.Maximize(answer.objective.expr + _nothing(missing)), rows)
    if not answer.is_dpp(quad_form_dpp="qp"):
        raise NoGameError("the follower's problem is not concave and affine in the parameters by CVXPY's rules")
    problem, balance, lam, form = _dualised(answer, payoff, [_gathered(c) for c in above], roles)
    if not problem.is_dpp(quad_form_dpp="qp"):
        raise NoGameError("the leader's problem is not convex and affine in the parameters by CVXPY's rules")
    one = single.declare(problem, default, roles.parameters)
    place = {u.handle.id: u.place for u in one.outputs}
    width = one.quadratic.sizes.blocks[-1].stop if one.quadratic else sum(one.smooth.layout)
    u = -_rows(place[balance.dual_variables[0].id], width)
    multipliers = sp.csr_array((0, width)) if lam is None else _rows(place[lam.id], width)
    w = sp.vstack([u, multipliers], format="csr")
    unknowns = [
        *(Unknown(v, v.name(), v.shape, True, place[v.id]) for v in roles.leader),
        *(Unknown(v, v.name(), v.shape, False, sp.csr_array(form.read[v.id] @ w)) for v in roles.follower),
    ]
    prices = [
        Unknown(d, f"dual variable {d.name()}", d.shape, False, sp.csr_array(form.read[own.id] @ w))
        for c, row in list(zip(below, rows, strict=True))[len(payoff.below) :]
        for d, own in zip(c.dual_variables, row.dual_variables, strict=True)
    ]
    one = replace(
        one, unknowns=tuple(unknowns), duals=tuple(prices), source=_Leader(upper, above[len(payoff.above) :], roles)
    )
    sets = (
        cp.Problem(cp.Minimize(_nothing(roles.leader)), above),
        cp.Problem(cp.Minimize(_nothing(payoff.follower)), below),
    )
    own = np.unique(np.concatenate([sp.coo_array(form.read[v.id]).col for v in roles.follower]))
    return Game(one, form, own, sets, roles.parameters)


def _gathered(constraint: cp.Constraint) -> cp.Constraint:
    args = [gathered(arg) for arg in constraint.args]
    return constraint.copy(args) if any(a is not b for a, b in zip(args, constraint.args, strict=True)) else constraint


def _dualised(
    answer: cp.Problem, payoff: Payoff, above: list[cp.Constraint], roles: Roles
) -> tuple[cp.Problem, cp.Constraint, cp.Variable | None, Convex]:
    """The one convex problem, its equality that holds the follower's answer, the follower's multipliers, and its form."""
    form = Convex.of(answer, roles.parameters)
    n, m = form.layout.x, form.layout.multipliers
    e = cp.hstack([*(cp.vec(p, order="F") for p in roles.parameters), np.ones(1)])
    linear = _vector(form.q, e)
    balance = linear[:n]
    for v in payoff.follower:
        for slopes in payoff.pull.get(v.id, ()):
            balance = balance - form.read[v.id][:, :n].T @ slopes
    goal = sum(payoff.own) - linear[n] + _nothing(roles.leader)
    rows, lam = list(above), None
    curved = np.unique(form.P.rows)
    if len(curved):
        omega = cp.Variable(len(curved), name="omega")
        P = _matrix(form.P, e)
        goal = goal + cp.quad_form(omega, cp.psd_wrap(P[curved][:, curved])) / 2
        balance = balance + P[:, curved] @ omega
    if m:
        lam = cp.Variable(m, name="lam")
        goal = goal + _vector(form.b, e) @ lam
        balance = balance + _matrix(form.A, e).T @ lam
        rows += _dual_cone(form.cones, lam)
    equality = balance == 0
    return cp.Problem(cp.Minimize(goal), [*rows, equality]), equality, lam, form


def _dual_cone(cones: Cones, lam: cp.Variable) -> list[cp.Constraint]:
    """lam in the dual cone, as CVXPY constraints."""
    rows: list[cp.Constraint] = []
    if cones.nonneg:
        rows.append(lam[cones.zero : cones.zero + cones.nonneg] >= 0)
    at = cones.zero + cones.nonneg
    for size in cones.soc:
        rows.append(cp.SOC(lam[at], lam[at + 1 : at + size]))
        at += size
    for order in cones.psd:
        size = order * (order + 1) // 2
        rows.append(cp.reshape(svec_matrix(order) @ lam[at : at + size], (order, order), order="F") >> 0)
        at += size
    if cones.exponential:
        u, v, w = (lam[at + k : at + 3 * cones.exponential : 3] for k in range(3))
        rows.append(cp.ExpCone(-v, -u, np.e * w))
        at += 3 * cones.exponential
    if cones.power:
        a = np.array(cones.power)
        u, v, w = (lam[at + k : at + 3 * len(a) : 3] for k in range(3))
        rows.append(cp.PowCone3D(cp.multiply(1 / a, u), cp.multiply(1 / (1 - a), v), w, a))
    return rows


def _matrix(block: Block, e: cp.Expression) -> Any:
    """A block of the follower's data, constant or as an expression in the parameters."""
    fixed = sp.csc_array((block.weights[:, [-1]].toarray().ravel(), (block.rows, block.columns)), shape=block.shape)
    if block.weights[:, :-1].nnz == 0:
        return fixed
    flat = block.columns * block.shape[0] + block.rows
    scatter = sp.csc_array((np.ones(len(flat)), (flat, np.arange(len(flat)))), shape=(np.prod(block.shape), len(flat)))
    return cp.reshape(sp.csc_array(scatter @ block.weights) @ e, block.shape, order="F")


def _vector(block: Block, e: cp.Expression) -> Any:
    found = _matrix(block, e)
    return found.toarray().ravel() if sp.issparse(found) else cp.vec(found, order="F")


def _nothing(variables: Sequence[cp.Variable]) -> cp.Expression:
    """Zero, as an expression that has these variables."""
    return 0.0 * sum(cp.sum(v) for v in variables)


def _rows(place: slice | sp.csr_array, width: int) -> sp.csr_array:
    if not isinstance(place, slice):
        return place
    size = place.stop - place.start
    return sp.csr_array((np.ones(size), (np.arange(size), np.arange(place.start, place.stop))), shape=(size, width))


class _Leader(Single):
    """The leader's side of a game: re-solved with the follower's answer fixed."""

    def __init__(self, upper: cp.Problem, rows: list[cp.Constraint], roles: Roles):
        self.upper, self.rows, self.roles, self.turn = upper, rows, roles, threading.RLock()

    def follower_gap(self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]) -> float:
        """The upper objective minus its minimum over the leader's decisions, for the same answer; inf if there is none."""
        held = {}
        for v in self.roles.follower:
            held[id(v)] = cp.Parameter(v.shape, nonneg=v.is_nonneg(), nonpos=v.is_nonpos() and not v.is_nonneg())
            held[id(v)].value = held[id(v)].project(values[v])
        sign = 1.0 if isinstance(self.upper.objective, cp.Minimize) else -1.0
        theirs = {v.id for v in self.roles.leader}
        own = [t for t in terms(sign * self.upper.objective.expr) if any(v.id in theirs for v in t.variables())]
        goal = sum(own).tree_copy(held) if own else _nothing(self.roles.leader)
        self.problem = cp.Problem(cp.Minimize(goal), self.rows)
        with self.turn:
            return super().follower_gap(inputs, values)
