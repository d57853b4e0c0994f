"""Nested optimization that can be trained through: two ordinary models, one torch layer, the right gradients.

    program = bigrad.bilevel(upper, lower, responds=[y])
    solution = program.solve()
    layer = bigrad.Layer(program, parameters=[c], variables=[x, y])

Everything is imported when first used: `import bigrad` alone loads neither torch nor cvxpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigrad import datasets
    from bigrad.auto import Auto
    from bigrad.declare import argmin, bilevel
    from bigrad.gradients.implicit import Implicit
    from bigrad.gradients.proximal import Proximal
    from bigrad.layer import Layer
    from bigrad.memory import Memory
    from bigrad.oracles.assignment import Assignment
    from bigrad.oracles.flow import Flow
    from bigrad.oracles.given import Given
    from bigrad.oracles.grid import GridPath
    from bigrad.oracles.knapsack import Knapsack
    from bigrad.oracles.paths import GraphPath
    from bigrad.oracles.top import TopK
    from bigrad.oracles.tour import Tour
    from bigrad.oracles.tree import SpanningTree
    from bigrad.program import Program
    from bigrad.solution import (
        BigradError,
        CapabilityError,
        DeclarationError,
        InputError,
        SingularWarning,
        Solution,
        SolveError,
        SolveWarning,
        Stats,
        Status,
    )
    from bigrad.solvers.active_set import ActiveSet
    from bigrad.solvers.certificate import Global
    from bigrad.solvers.formula import Formula
    from bigrad.solvers.interior import Interior
    from bigrad.solvers.mehrotra import Mehrotra
    from bigrad.solvers.pieces import Pieces
    from bigrad.solvers.relaxation import Relaxation
    from bigrad.solvers.saddle import Saddle
    from bigrad.solvers.sparse import Sparse
    from bigrad.solvers.spread import Spread

__version__ = "0.1.0"

_HOMES = {
    "ActiveSet": "solvers.active_set",
    "Assignment": "oracles.assignment",
    "Auto": "auto",
    "BigradError": "solution",
    "CapabilityError": "solution",
    "DeclarationError": "solution",
    "Flow": "oracles.flow",
    "Formula": "solvers.formula",
    "Given": "oracles.given",
    "Global": "solvers.certificate",
    "GraphPath": "oracles.paths",
    "GridPath": "oracles.grid",
    "Implicit": "gradients.implicit",
    "InputError": "solution",
    "Interior": "solvers.interior",
    "Knapsack": "oracles.knapsack",
    "Layer": "layer",
    "Mehrotra": "solvers.mehrotra",
    "Memory": "memory",
    "Pieces": "solvers.pieces",
    "Program": "program",
    "Proximal": "gradients.proximal",
    "Relaxation": "solvers.relaxation",
    "Saddle": "solvers.saddle",
    "SingularWarning": "solution",
    "Solution": "solution",
    "SolveError": "solution",
    "SolveWarning": "solution",
    "SpanningTree": "oracles.tree",
    "Sparse": "solvers.sparse",
    "Spread": "solvers.spread",
    "Stats": "solution",
    "Status": "solution",
    "TopK": "oracles.top",
    "Tour": "oracles.tour",
    "argmin": "declare",
    "bilevel": "declare",
    "datasets": "",
}
__all__ = [
    "ActiveSet",
    "Assignment",
    "Auto",
    "BigradError",
    "CapabilityError",
    "DeclarationError",
    "Flow",
    "Formula",
    "Given",
    "Global",
    "GraphPath",
    "GridPath",
    "Implicit",
    "InputError",
    "Interior",
    "Knapsack",
    "Layer",
    "Mehrotra",
    "Memory",
    "Pieces",
    "Program",
    "Proximal",
    "Relaxation",
    "Saddle",
    "SingularWarning",
    "Solution",
    "SolveError",
    "SolveWarning",
    "SpanningTree",
    "Sparse",
    "Spread",
    "Stats",
    "Status",
    "TopK",
    "Tour",
    "argmin",
    "bilevel",
    "datasets",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bigrad' has no attribute '{name}'; it offers {', '.join(__all__)}.")
    home = _HOMES[name]
    return getattr(import_module(f"bigrad.{home}"), name) if home else import_module(f"bigrad.{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
