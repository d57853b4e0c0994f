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
    from bigrad.solvers.mehrotra import Mehrotra
    from bigrad.solvers.pieces import Pieces
    from bigrad.solvers.relaxation import Relaxation

__version__ = "0.1.0"

_HOMES = {
    "ActiveSet": "solvers.active_set",
    "Auto": "auto",
    "BigradError": "solution",
    "CapabilityError": "solution",
    "DeclarationError": "solution",
    "Global": "solvers.certificate",
    "Implicit": "gradients.implicit",
    "InputError": "solution",
    "Layer": "layer",
    "Mehrotra": "solvers.mehrotra",
    "Pieces": "solvers.pieces",
    "Program": "program",
    "Proximal": "gradients.proximal",
    "Relaxation": "solvers.relaxation",
    "SingularWarning": "solution",
    "Solution": "solution",
    "SolveError": "solution",
    "SolveWarning": "solution",
    "Stats": "solution",
    "Status": "solution",
    "argmin": "declare",
    "bilevel": "declare",
    "datasets": "",
}
__all__ = [
    "ActiveSet",
    "Auto",
    "BigradError",
    "CapabilityError",
    "DeclarationError",
    "Global",
    "Implicit",
    "InputError",
    "Layer",
    "Mehrotra",
    "Pieces",
    "Program",
    "Proximal",
    "Relaxation",
    "SingularWarning",
    "Solution",
    "SolveError",
    "SolveWarning",
    "Stats",
    "Status",
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
