"""Central differences of re-solves against the layer's gradient, one-sided differences told apart.

Shared by the gradient tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from helpers import Case

import bigrad as bg

STEPS = (1e-5, 1e-6, 1e-7)
"""Tried in turn: a kink of the solution map that a step reaches across says nothing about the derivative."""
EXACT = 1e-9
"""A re-solve with a larger residual or violation is too coarse to difference."""
KINK = 1e-4
"""One-sided differences that differ by more than this, relative to the block's gradient, are two."""


@dataclass
class Difference:
    """One direction in one parameter: the layer's directional derivative and the two one-sided differences.

    scale: the norm of the block's gradient, to which errors are relative. noise: what the rounding of the re-solves can do to a
    difference. A side is NaN where the re-solve found no exact solution near by: the solution jumps.
    """

    parameter: str
    kind: str
    gradient: float
    left: float
    right: float
    scale: float
    noise: float

    @property
    def kinked(self) -> bool:
        """The two sides differ."""
        return not abs(self.right - self.left) <= KINK * self.scale + 2 * self.noise

    @property
    def error(self) -> float:
        """Error against the central difference."""
        return max(0.0, abs(self.gradient - (self.left + self.right) / 2) - self.noise) / self.scale

    @property
    def one_sided(self) -> float:
        """Error against the nearer one-sided difference; infinite where there is none."""
        sides = [abs(self.gradient - side) for side in (self.left, self.right) if np.isfinite(side)]
        return min(sides, default=np.inf) / self.scale


@dataclass
class Report:
    """All differences of one program, and its solution."""

    solution: bg.Solution
    differences: list[Difference]

    @property
    def agreeing(self) -> list[Difference]:
        return [d for d in self.differences if not d.kinked]

    @property
    def kinks(self) -> list[Difference]:
        return [d for d in self.differences if d.kinked]

    @property
    def worst(self) -> float:
        return max((d.error for d in self.agreeing), default=0.0)


def directions(
    parameter: cp.Parameter, gradient: np.ndarray, rng: np.random.Generator, random: int, coordinates: int | None
) -> list[tuple[str, np.ndarray]]:
    """Random signs, the gradient itself, and some (None: all) coordinates; symmetric ones for a symmetric parameter."""
    found = [("signs", rng.choice([-1.0, 1.0], parameter.shape)) for _ in range(random)]
    norm = np.linalg.norm(gradient)
    if norm > 0:
        found.append(("gradient", gradient / norm))
    count = parameter.size if coordinates is None else min(coordinates, parameter.size)
    for k in rng.choice(parameter.size, count, replace=False) if coordinates is not None else range(parameter.size):
        unit = np.zeros(parameter.size)
        unit[k] = 1.0
        found.append((f"entry {k}", unit.reshape(parameter.shape)))
    if parameter.attributes["PSD"] or parameter.attributes["symmetric"]:
        found = [(kind, (d + d.T) / 2) for kind, d in found]
    return found


def compare(
    case: Case,
    variables: Sequence[Any] | None = None,
    *,
    seed: int = 0,
    random: int = 2,
    coordinates: int | None = 2,
    solver: Any = None,
    steps: Sequence[float] = STEPS,
    floor: float = 1e-4,
) -> Report:
    """Differentiate a random linear function of the solution in every parameter, and difference re-solves along
    directions.

    Every re-solve starts from the solution itself, so that all of them follow the same local optimum. floor: errors are
    relative to the block's gradient, or to this times 1 + the largest block's.
    """
    rng = np.random.default_rng(seed)
    program = case.program
    variables = [u.handle for u in program.unknowns] if variables is None else list(variables)
    parameters = list(case.values)
    layer = bg.Layer(program, parameters, variables, solver=solver, on_failure="nan")
    solution = program.solve(case.values, solver=solver)
    assert solution.status.ok, solution.status
    solution = program.solve(case.values, solver=solver, warm_start=solution)  # a second look may find a better optimum
    weights = [rng.standard_normal(v.shape) for v in variables]
    tensors = [torch.tensor(np.asarray(case.values[p], dtype=float), requires_grad=True) for p in parameters]
    outputs = layer(*tensors, warm_start=[solution])
    loss = sum((torch.as_tensor(c) * o).sum() for c, o in zip(weights, outputs, strict=True))
    gradients = [g.numpy() for g in torch.autograd.grad(loss, tensors)]
    gradients = [
        (g + g.T) / 2 if p.attributes["PSD"] or p.attributes["symmetric"] else g
        for p, g in zip(parameters, gradients, strict=True)
    ]
    base, least = float(loss.detach()), floor * (1 + max(np.linalg.norm(g) for g in gradients))
    todo = [
        (k, kind, d)
        for k, (p, g) in enumerate(zip(parameters, gradients, strict=True))
        for kind, d in directions(p, g, rng, random, coordinates)
    ]

    def score(there: bg.Solution, step: float) -> tuple[float, float]:
        """The loss at a re-solve, and its noise; NaN if that is no neighbour of the solution or not exact."""
        close = max(np.abs(there[v] - solution[v]).max() for v in variables) < 1e4 * step
        inexact = max(there.stats.residual, there.stats.violation)
        if not there.status.ok or not close or inexact > EXACT:
            return np.nan, np.nan
        value = sum(float((c * there[v]).sum()) for c, v in zip(weights, variables, strict=True))
        return value, 1e-15 * (1 + abs(value)) + 30 * inexact

    done: dict[int, Difference] = {}
    for h in steps:
        open_ = [t for t in range(len(todo)) if t not in done or done[t].kinked]
        if not open_:
            break
        values = [np.repeat(np.asarray(case.values[p], dtype=float)[None], 2 * len(open_), 0) for p in parameters]
        for row, t in enumerate(open_):
            k, _, d = todo[t]
            values[k][2 * row] += h * d
            values[k][2 * row + 1] -= h * d
        found = layer.solve(*map(torch.as_tensor, values), warm_start=[solution] * (2 * len(open_)))
        for row, t in enumerate(open_):
            k, kind, d = todo[t]
            (up, one), (down, two) = (score(found[2 * row + side], h * float(np.linalg.norm(d))) for side in (0, 1))
            slope, scale = float((gradients[k] * d).sum()), max(float(np.linalg.norm(gradients[k])), least)
            noise = (one + two) / h
            done[t] = Difference(parameters[k].name(), kind, slope, (base - down) / h, (up - base) / h, scale, noise)
    return Report(solution, [done[t] for t in range(len(todo))])
