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
    from bigrad.declare import bilevel
    from bigrad.gradients.implicit import Implicit
    from bigrad.layer import Layer
    from bigrad.program import Program
    from bigrad.solution import (
        BigradError,
        CapabilityError,
        DeclarationError,
        InputError,
        SingularWarning,
        Solution,
        SolveError,
        Stats,
        Status,
    )
    from bigrad.solvers.pieces import Pieces
    from bigrad.solvers.relaxation import Relaxation
    from bigrad.solvers.sparse import Sparse

__version__ = "0.1.0"

_HOMES = {
    "Auto": "auto",
    "BigradError": "solution",
    "CapabilityError": "solution",
    "DeclarationError": "solution",
    "Implicit": "gradients.implicit",
    "InputError": "solution",
    "Layer": "layer",
    "Pieces": "solvers.pieces",
    "Program": "program",
    "Relaxation": "solvers.relaxation",
    "SingularWarning": "solution",
    "Solution": "solution",
    "SolveError": "solution",
    "Sparse": "solvers.sparse",
    "Stats": "solution",
    "Status": "solution",
    "bilevel": "declare",
    "datasets": "",
}
__all__ = [
    "Auto",
    "BigradError",
    "CapabilityError",
    "DeclarationError",
    "Implicit",
    "InputError",
    "Layer",
    "Pieces",
    "Program",
    "Relaxation",
    "SingularWarning",
    "Solution",
    "SolveError",
    "Sparse",
    "Stats",
    "Status",
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
