"""CP-SAT models, read as linear rows with integers as far as that goes; the rest of the constraints are named.

Boolean constraints and enforced linear ones become rows that are exact at integers: with literals l, all true, to enforce
e >= a, the row is e >= a - (a - min e) sum(1 - l), where min e comes from the bounds that every CP-SAT variable has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
from ortools.sat.python import cp_model, cp_model_helper

from bigrad.discrete.nested import Rows
from bigrad.programs.level import Level
from bigrad.solution import DeclarationError

WIDE = 2**62
"""CP-SAT's infinity: a bound beyond it is none."""
KINDS = [f.removeprefix("has_") for f in dir(cp_model_helper.ConstraintProto) if f.startswith("has_")]


@dataclass(frozen=True, eq=False)
class CpSatVariables:
    """The variables of a CP-SAT model, in its own order."""

    model: cp_model.CpModel

    def find(self, handle: Any) -> int | None:
        """See Variables."""
        own = isinstance(handle, cp_model.IntVar) and handle.model_proto is self.model.proto
        return handle.index if own else None

    def handle(self, place: int) -> cp_model.IntVar:
        """See Variables."""
        return self.model.get_int_var_from_proto_index(place)


@dataclass
class _Rows:
    """Rows in the making: lower <= sum of coefficient * variable <= upper."""

    lows: np.ndarray
    highs: np.ndarray
    entries: list[tuple[list[int], list[float]]] = field(default_factory=list)
    bounds: list[tuple[float, float]] = field(default_factory=list)

    def add(self, places: Iterable[int], values: Iterable[float], lower: float, upper: float, given: list[int]) -> None:
        """A row that holds where all the literals `given` are true."""
        at, to = list(places), list(values)
        if not given:
            self._put(at, to, lower, upper)
            return
        ends = [(v * self.lows[k], v * self.highs[k]) for k, v in zip(at, to, strict=True)]
        least, most = sum(min(e) for e in ends), sum(max(e) for e in ends)
        # lower <= e + room * sum(1 - l) for the lower side, and likewise for the upper one
        for bound, room, one in ((lower, lower - least, True), (upper, upper - most, False)):
            if np.isfinite(bound) and (room > 0 if one else room < 0):
                literal_at, literal_values, shift = self.literals(given)
                # room * sum(1 - l) = room * (count - sum l)
                row = [*to, *(-room * v for v in literal_values)]
                side = bound - room * (len(given) - shift)
                self._put([*at, *literal_at], row, side if one else -np.inf, np.inf if one else side)

    def at_least(self, literals: list[int], least: float, most: float, given: list[int]) -> None:
        """Between `least` and `most` of the literals are true, where all those of `given` are."""
        at, values, shift = self.literals(literals)
        self.add(at, values, least - shift, most - shift, given)

    @staticmethod
    def literals(literals: list[int]) -> tuple[list[int], list[float], float]:
        """The sum of literals as variables, coefficients and a constant."""
        at = [k if k >= 0 else -k - 1 for k in literals]
        values = [1.0 if k >= 0 else -1.0 for k in literals]
        return at, values, float(sum(k < 0 for k in literals))

    def _put(self, at: list[int], values: list[float], lower: float, upper: float) -> None:
        self.entries.append((at, values))
        self.bounds.append((lower, upper))

    def finish(self) -> Rows:
        """The rows as a sparse matrix; repeated variables add up."""
        count = [len(at) for at, _ in self.entries]
        rows = np.repeat(np.arange(len(count)), count)
        at = np.array([k for places, _ in self.entries for k in places], dtype=int)
        values = np.array([v for _, part in self.entries for v in part], dtype=float)
        matrix = sp.csr_array((values, (rows, at)), shape=(len(count), len(self.lows)), dtype=float)
        matrix.sum_duplicates()
        bounds = np.array(self.bounds, dtype=float).reshape(-1, 2)
        return Rows(matrix, bounds[:, 0], bounds[:, 1])


def read(model: cp_model.CpModel, which: str) -> Level:
    """The model as a Level; `which` names it in messages. Raises DeclarationError for a model that CP-SAT finds invalid."""
    proto = model.proto
    if why := model.validate():
        raise DeclarationError(f"{which}: CP-SAT finds the model invalid: {why}")
    if not len(proto.variables):
        raise DeclarationError(f"{which}: the model has no variables.")
    domains = [list(v.domain) for v in proto.variables]
    lows, highs = (np.array([d[k] for d in domains], dtype=float) for k in (0, -1))
    lows[lows <= -WIDE], highs[highs >= WIDE] = -np.inf, np.inf
    rows, products, product_rows = _Rows(lows, highs), dict[int, tuple[int, int]](), {}
    rest = {"a variable's domain with holes": None} if any(len(d) > 2 for d in domains) else {}
    for constraint in proto.constraints:
        kind = next((k for k in KINDS if getattr(constraint, f"has_{k}")()), "")
        before = len(rows.entries)
        if not _row(rows, constraint, kind, products):
            rest[kind] = None
        elif kind == "int_prod":
            product_rows[constraint.int_prod.target.vars[0]] = tuple(range(before, len(rows.entries)))
    linear, constant, sense, objective = _objective(proto, len(domains))
    return Level(
        CpSatVariables(model),
        tuple(v.name or f"variable {k}" for k, v in enumerate(proto.variables)),
        lows,
        highs,
        np.ones(len(domains), dtype=bool),
        rows.finish(),
        linear,
        {},
        constant,
        sense,
        objective,
        products,
        product_rows,
        tuple(rest),
    )


def _row(rows: _Rows, constraint: Any, kind: str, products: dict[int, tuple[int, int]]) -> bool:
    """Adds the rows of one constraint; False if it has none."""
    given = list(constraint.enforcement_literal)
    if kind == "linear":
        part = constraint.linear
        domain = [float(d) for d in part.domain]
        lower, upper = (-np.inf if domain[0] <= -WIDE else domain[0], np.inf if domain[-1] >= WIDE else domain[-1])
        bounded = np.isfinite(rows.lows[list(part.vars)]).all() and np.isfinite(rows.highs[list(part.vars)]).all()
        if len(domain) > 2 or (given and not bounded):
            return False
        rows.add(list(part.vars), [float(c) for c in part.coeffs], lower, upper, given)
    elif kind in ("bool_or", "at_most_one", "exactly_one"):
        literals = list(getattr(constraint, kind).literals)
        least, most = {"bool_or": (1, np.inf), "at_most_one": (-np.inf, 1), "exactly_one": (1, 1)}[kind]
        rows.at_least(literals, least, most, given)
    elif kind == "bool_and":
        for literal in constraint.bool_and.literals:
            rows.at_least([literal], 1, np.inf, given)
    elif kind == "int_prod":
        factors = [_boolean(rows, e) for e in constraint.int_prod.exprs]
        target = _boolean(rows, constraint.int_prod.target)
        if given or target is None or len(factors) != 2 or None in factors:
            return False
        i, j = sorted(int(f) for f in factors if f is not None)
        rows.add([target, i], [1.0, -1.0], -np.inf, 0.0, [])
        rows.add([target, j], [1.0, -1.0], -np.inf, 0.0, [])
        rows.add([target, i, j], [1.0, -1.0, -1.0], -1.0, np.inf, [])
        products[target] = (i, j)
    else:
        return False
    return True


def _boolean(rows: _Rows, expression: Any) -> int | None:
    """The variable, if the expression is a boolean one and nothing else."""
    plain = list(expression.coeffs) == [1] and not expression.offset
    k = expression.vars[0] if plain else -1
    return k if plain and k >= 0 and rows.lows[k] >= 0 and rows.highs[k] <= 1 else None


def _objective(proto: Any, size: int) -> tuple[np.ndarray, float, float, bool]:
    """Coefficients in the user's own sense, constant, sense, and whether there is an objective."""
    linear = np.zeros(size)
    if proto.has_floating_point_objective():
        part = proto.floating_point_objective
        for k, v in _terms(part):
            linear[k] += v
        return linear, part.offset, -1.0 if part.maximize else 1.0, True
    if not proto.has_objective():
        return linear, 0.0, 1.0, False
    part = proto.objective
    scale = part.scaling_factor or 1.0
    for k, v in _terms(part):
        linear[k] += v * scale
    return linear, part.offset * scale, -1.0 if scale < 0 else 1.0, True


def _terms(part: Any) -> Iterator[tuple[int, float]]:
    """Variables and coefficients, negated variables as what they are."""
    for k, v in zip(part.vars, part.coeffs, strict=True):
        yield (k, float(v)) if k >= 0 else (-k - 1, -float(v))
