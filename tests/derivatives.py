"""Central differences of re-solves against the layer's gradient, one-sided differences told apart; shared by the gradient tests."""

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
KINK = 1e-3
"""One-sided differences that differ by more than this, relative to the block's gradient, are two."""


@dataclass
class Difference:
    """One direction in one parameter: the layer's directional derivative, the two one-sided differences, the norm of the block's gradient.

    jumped: a re-solve did not stay near the solution, so it is no derivative at all. error and kink are relative to `scale`.
    """

    parameter: str
    kind: str
    gradient: float
    left: float
    right: float
    scale: float
    jumped: bool

    @property
    def kinked(self) -> bool:
        return self.jumped or abs(self.right - self.left) > KINK * self.scale

    @property
    def error(self) -> float:
        return abs(self.gradient - (self.left + self.right) / 2) / self.scale

    @property
    def one_sided(self) -> float:
        """Distance to the nearer one-sided difference."""
        return min(abs(self.gradient - self.left), abs(self.gradient - self.right)) / self.scale


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
) -> Report:
    """Differentiate a random linear function of the solution in every parameter, and difference re-solves along directions.

    Every re-solve starts from the solution itself, so that all of them follow the same local optimum.
    """
    rng = np.random.default_rng(seed)
    program = case.program
    variables = [u.handle for u in program.unknowns] if variables is None else list(variables)
    parameters = list(case.values)
    layer = bg.Layer(program, parameters, variables, solver=solver, on_failure="nan")
    solution = program.solve(case.values, solver=solver)
    assert solution.status.ok, solution.status
    cotangents = [torch.as_tensor(rng.standard_normal(v.shape)) for v in variables]
    tensors = [torch.tensor(np.asarray(case.values[p], dtype=float), requires_grad=True) for p in parameters]

    def loss(outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        return sum((c * o).flatten(o.ndim - c.ndim).sum(-1) for c, o in zip(cotangents, outputs, strict=True))

    here = loss(layer(*tensors, warm_start=[solution]))
    base = float(here.detach())
    gradients = [g.numpy() for g in torch.autograd.grad(here, tensors)]
    gradients = [
        (g + g.T) / 2 if p.attributes["PSD"] or p.attributes["symmetric"] else g
        for p, g in zip(parameters, gradients, strict=True)
    ]
    floor = 1e-4 * (1e-3 + max(np.linalg.norm(g) for g in gradients))
    todo = [
        (k, kind, d)
        for k, (p, g) in enumerate(zip(parameters, gradients, strict=True))
        for kind, d in directions(p, g, rng, random, coordinates)
    ]
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
        with torch.no_grad():
            outputs = layer(*map(torch.as_tensor, values), warm_start=[solution] * (2 * len(open_)))
            there = loss(outputs)
            centre = layer(*[t.detach() for t in tensors], warm_start=[solution])
            moved = torch.stack([(o - c).flatten(1).abs().amax(-1) for o, c in zip(outputs, centre, strict=True)]).amax(
                0
            )
        for row, t in enumerate(open_):
            k, kind, d = todo[t]
            up, down = float(there[2 * row]), float(there[2 * row + 1])
            far = not max(float(moved[2 * row]), float(moved[2 * row + 1])) < 1e4 * h * np.linalg.norm(d)
            scale = max(np.linalg.norm(gradients[k]), floor)
            done[t] = Difference(
                parameters[k].name(),
                kind,
                float((gradients[k] * d).sum()),
                (base - down) / h,
                (up - base) / h,
                scale,
                far,
            )
    return Report(solution, [done[t] for t in range(len(todo))])
