"""MathOpt models, read as linear rows with integers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from ortools.math_opt.python import mathopt

from bigrad.discrete.nested import Rows
from bigrad.programs.level import Level
from bigrad.solution import DeclarationError


@dataclass(frozen=True, eq=False)
class MathOptVariables:
    """The variables of a MathOpt model, in the order of their ids."""

    model: mathopt.Model

    @cached_property
    def _all(self) -> tuple[mathopt.Variable, ...]:
        return tuple(sorted(self.model.variables(), key=lambda v: v.id))

    @cached_property
    def _places(self) -> dict[int, int]:
        return {v.id: k for k, v in enumerate(self._all)}

    def find(self, handle: Any) -> int | None:
        """See Variables."""
        if not isinstance(handle, mathopt.Variable) or handle.elemental is not self._all[0].elemental:
            return None
        return self._places.get(handle.id)

    def handle(self, place: int) -> mathopt.Variable:
        """See Variables."""
        return self._all[place]


def read(model: mathopt.Model, which: str) -> Level:
    """The model as a Level; `which` names it in messages. Raises DeclarationError for what cannot be had."""
    for kind, count in (
        ("quadratic constraints", model.get_num_quadratic_constraints()),
        ("indicator constraints", model.get_num_indicator_constraints()),
        ("auxiliary objectives", model.num_auxiliary_objectives()),
    ):
        if count:
            raise DeclarationError(
                f"{which}: the MathOpt model has {kind}, and only linear constraints and one objective are taken; "
                "write them as linear constraints with binary variables."
            )
    if not model.get_num_variables():
        raise DeclarationError(f"{which}: the model has no variables.")
    variables = MathOptVariables(model)
    own, places = variables._all, variables._places
    constraints = sorted(model.linear_constraints(), key=lambda c: c.id)
    row = {c.id: k for k, c in enumerate(constraints)}
    entries = [
        (row[e.linear_constraint.id], places[e.variable.id], e.coefficient)
        for e in model.linear_constraint_matrix_entries()
    ]
    at, to, value = (np.array(part) for part in zip(*entries, strict=True)) if entries else ([], [], [])
    matrix = sp.csr_array((value, (at, to)), shape=(len(constraints), len(own)), dtype=float)
    linear = np.zeros(len(own))
    for term in model.objective.linear_terms():
        linear[places[term.variable.id]] += term.coefficient
    quadratic: dict[tuple[int, int], float] = {}
    for product in model.objective.quadratic_terms():
        i, j = sorted((places[product.key.first_var.id], places[product.key.second_var.id]))
        quadratic[i, j] = quadratic.get((i, j), 0.0) + product.coefficient
    return Level(
        variables,
        tuple(v.name or f"variable {v.id}" for v in own),
        np.array([v.lower_bound for v in own], dtype=float),
        np.array([v.upper_bound for v in own], dtype=float),
        np.array([v.integer for v in own], dtype=bool),
        Rows(
            matrix,
            np.array([c.lower_bound for c in constraints], dtype=float),
            np.array([c.upper_bound for c in constraints], dtype=float),
        ),
        linear,
        quadratic,
        model.objective.offset,
        -1.0 if model.objective.is_maximize else 1.0,
        bool(linear.any() or quadratic or model.objective.offset or model.objective.is_maximize),
    )
