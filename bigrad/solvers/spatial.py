"""A smooth bilevel program for SCIP: its rows as they are, products and functions included, its pairs as special ordered
sets.

    min F(v)   subject to   r(v) == 0 or <= 0,   s_i lam_i == 0,   v_k integer where asked

in the words of bigrad/programs/smooth.py. A product with an integer is exact once SCIP has branched that far; any other
product and every curve is enclosed ever more tightly by branching in space (Bestuzheva et al., "Global optimization of
mixed-integer nonlinear programs with SCIP 8", 2023). A second-order cone is t^2 >= |u|^2, its point and multiplier
complementary in the Jordan product. An exponential or power cone with a constant in its second place is the epigraph of
a function of one variable, to whose graph the multiplier is normal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from bigrad.programs.smooth import Smooth
from bigrad.programs.symbolic import Functions, evaluate, unknown
from bigrad.programs.system import System
from bigrad.solvers import sos
from bigrad.solvers.sos import Found

CURVES = ("ExpCone", "PowCone3D")
FIRST = 1000
"""Priority in branching."""
DIGITS = 12
"""To which an exponent is rounded: CVXPY stores its inverse."""


def refusal(form: Smooth) -> str:
    """Which part of a program SCIP cannot be given; empty if there is none."""
    if name := unknown(form.canonical):
        return f"the function {name} in its upper level is none that SCIP has"
    cones = form.blocks.cones
    if odd := {cone.name for cone in cones} - {"SOC", *CURVES}:
        return f"its lower level needs the cone {min(odd)}"
    scales = form.steady[form.blocks.starts[:-1] + 1] if cones else []
    if any(cone.name in CURVES and not steady for cone, steady in zip(cones, scales, strict=True)):
        return "its lower level has an entropy, a geometric mean or another cone whose scale varies"
    return ""


def minimise(
    system: System,
    integer: np.ndarray,
    start: np.ndarray | None = None,
    *,
    box: tuple[np.ndarray, np.ndarray] | None = None,
    floor: float = -np.inf,
    gap: float = 0.0,
    seconds: float = np.inf,
    tolerance: float = sos.TOLERANCE,
) -> Found:
    """Search globally; the point found is v. integer: places in v, box: bounds on what is there. start: a v to begin
    with. See `sos.minimise`.
    """

    def run(base: float, left: float) -> Found:
        model = _Model(system, integer, sos.fresh((gap, gap), left, tolerance))
        model.answers()
        model.optimal()
        goal, rows = model.upper()
        model.rows(enumerate(rows))
        for k, low, high in zip(integer, *(box or ((), ())), strict=False):
            model.within(model.v[k], low, high)
        w = model.scip.addVar(lb=base)
        model.row(goal - w, equal=False)
        model.scip.setObjective(1.0 * w)
        if start is not None and not system.blocks.cones:
            slack = -system.rows(start)[model.kappa]
            pairs = zip([*model.v, *model.slack, w], [*start, *slack, max(system.objective(start), base)], strict=True)
            sos.offer(model.scip, pairs)
        return sos.solved(model.scip, model.v, model.pairs)

    return sos.followed(run, floor, seconds)


def empty(system: System, integer: np.ndarray, seconds: float, *, answers: bool = False, optimal: bool = False) -> bool:
    """Whether no point satisfies the leader's own rows, the follower's (`answers`) and its optimality (`optimal`)."""
    model = _Model(system, integer, sos.fresh((0.0, 0.0), seconds, sos.LENIENT))
    if answers or optimal:
        model.answers()
    if optimal:
        model.optimal()
    layout, at = system.layout, system.engine.jacobian_at
    theirs = np.r_[system.compiled.columns, np.arange(layout.x, layout.x + layout.y), system.blocks.lam]
    shared = set(at.rows[np.isin(at.columns, theirs) | (at.columns >= layout.blocks[2].start)].tolist())
    model.rows((k, entry) for k, entry in enumerate(model.upper()[1]) if k not in shared)
    return sos.solved(model.scip, model.v, model.pairs).status == sos.INFEASIBLE


class _Model:
    """SCIP's variables for v and the slacks, and the parts of the program to be added."""

    def __init__(self, system: System, integer: np.ndarray, scip: Any):
        self.system, self.scip, layout, n = system, scip, system.layout, system.layout.primal
        self.pairs: list[list[Any]] = []
        whole, blocks = set(integer.tolist()), system.blocks
        idle = {*blocks.chart.tolist(), *blocks.mu.tolist()}
        self.v = np.array([self._variable(k, k in whole, k in idle) for k in range(n)], dtype=object)
        if (
            whole
        ):  # integers first: a product with one is linear when that is settled, whatever the other factor's range
            scip.setParam("constraints/nonlinear/branching/external", True)
            for k in whole:
                scip.chgVarBranchPriority(self.v[k], FIRST)
        plain = layout.pairs - len(blocks.cones)
        self.slack = [scip.addVar(lb=0.0) for _ in range(plain)]
        _, _, lam, _, sigma, kappa, eta, *_ = layout.blocks
        self.lam = self.v[lam.start : lam.start + plain]
        self.kappa = np.arange(kappa.start - n, kappa.start - n + plain)
        self.eta = np.arange(eta.start - n, eta.stop - n)
        self.sigma = np.setdiff1d(np.arange(sigma.start - n, sigma.stop - n), np.r_[blocks.coupling, blocks.pinned])

    def _variable(self, k: int, whole: bool, idle: bool) -> Any:
        if idle:
            return self.scip.addVar(lb=0.0, ub=0.0)
        low, high = (float(b) if np.isfinite(b) else None for b in (self.system.low[k], self.system.high[k]))
        return self.scip.addVar(vtype="I" if whole else "C", lb=low, ub=high)

    def within(self, variable: Any, low: float, high: float) -> None:
        """low <= variable <= high, where finite."""
        if np.isfinite(low):
            self.scip.chgVarLb(variable, float(low))
        if np.isfinite(high):
            self.scip.chgVarUb(variable, float(high))

    def _apart(self, pair: list[Any]) -> None:
        """One of the two is zero."""
        self.scip.addConsSOS1(pair)
        self.pairs.append(pair)

    def row(self, expression: Any, *, equal: bool = True) -> None:
        """expression == 0, or <= 0."""
        if isinstance(expression, int | float):
            expression = expression * self.scip.addVar(lb=1.0, ub=1.0)
        self.scip.addCons(expression == 0.0 if equal else expression <= 0.0)

    def rows(self, numbered: Iterable[tuple[int, Any]]) -> None:
        """Rows of the upper level."""
        for k, expression in numbered:
            self.row(expression, equal=k >= self.system.engine.inequalities)

    def upper(self) -> tuple[Any, list[Any]]:
        """F and the rows of the upper level."""
        import pyscipopt as scip

        engine = self.system.engine
        functions = Functions(scip.exp, scip.log, scip.sin, scip.cos)
        return evaluate(engine.canonical, engine.place, tuple(engine.theta), self.v, functions)

    def _lower(self, row: int) -> Any:
        import pyscipopt

        terms, e = self.system.lower, [*self.v, *self.system.tail.tolist()]
        at = np.flatnonzero(terms.row == row)
        every = zip(terms.coefficient[at].tolist(), terms.left[at], terms.right[at], strict=True)
        return pyscipopt.quicksum(c * e[a] * e[b] for c, a, b in every)

    def answers(self) -> None:
        """The follower's rows, its slacks and the points of its cones."""
        for row in self.eta:
            self.row(self._lower(row))
        for row, slack in zip(self.kappa, self.slack, strict=True):
            self.row(self._lower(row) + slack)
        self.graphs = [None if cone.name == "SOC" else self._graph(cone, s) for cone, s, _ in self._cones()]
        for graph, (_, s, _) in zip(self.graphs, self._cones(), strict=True):
            if graph is None:
                self._ball(s)

    def optimal(self) -> None:
        """Its stationarity and complementarity; after its rows."""
        for row in self.sigma:
            self.row(self._lower(row))
        for pair in zip(self.lam, self.slack, strict=True):
            self._apart(list(pair))
        for graph, (cone, s, lam) in zip(self.graphs, self._cones(), strict=True):
            if graph is None:
                self._ball(lam)
                self.row(sum(a * b for a, b in zip(s, lam, strict=True)))
                for a, b in zip(s[1:], lam[1:], strict=True):
                    self.row(s[0] * b + lam[0] * a)
            else:
                over, slope, slack = graph
                head = 2 if cone.name == "ExpCone" else 0
                self.scip.chgVarLb(lam[head], 0.0)
                self._apart([lam[head], slack])
                self.row(lam[over] + lam[head] * slope)

    def _cones(self) -> Iterable[tuple[Any, np.ndarray, np.ndarray]]:
        blocks = self.system.blocks
        for cone, a in zip(blocks.cones, blocks.starts, strict=False):
            yield cone, self.v[blocks.s[a : a + cone.size]], self.v[blocks.lam[a : a + cone.size]]

    def _ball(self, p: np.ndarray) -> None:
        self.scip.chgVarLb(p[0], 0.0)
        self.scip.addCons(sum(u * u for u in p[1:]) - p[0] * p[0] <= 0.0)

    def _graph(self, cone: Any, s: np.ndarray) -> tuple[int, Any, Any]:
        """A cone as head >= h(over): the place of `over`, the slope of h there, and the slack.

        (x, c, z) with z >= c exp(x / c), or with x >= c |z / c|^p.
        """
        import pyscipopt

        scip = self.scip
        slack, slope, inverse = scip.addVar(lb=0.0), scip.addVar(lb=None), 1 / self._scale(s[1])
        if cone.name == "ExpCone":
            self.row(slope - pyscipopt.exp(inverse * s[0]))
            self.row(s[2] - slope * (1 / inverse) - slack)
            return 0, slope, slack
        p = round(1 / cone.alpha, DIGITS)
        parts = [scip.addVar(lb=0.0) for _ in range(2)]
        self._apart(parts)
        self.row(inverse * s[2] - parts[0] + parts[1])
        self.row(s[0] - (1 / inverse) * (parts[0] ** p + parts[1] ** p) - slack)
        self.row(slope - p * (parts[0] ** (p - 1) - parts[1] ** (p - 1)))
        return 2, slope, slack

    def _scale(self, variable: Any) -> float:
        """The constant that a row fixes a coordinate of a cone at."""
        place = next(k for k, u in enumerate(self.v) if u is variable)
        blocks, n = self.system.blocks, self.system.layout.primal
        row = self.system.layout.blocks[6].stop - n - len(blocks.s) + int(np.flatnonzero(blocks.s == place)[0])
        return float(self.system.rows(np.where(np.arange(n) == place, 0.0, self.system.origin))[row])
