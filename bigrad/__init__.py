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
    from bigrad import datasets, losses
    from bigrad.auto import Auto
    from bigrad.declare import argmin, bilevel
    from bigrad.gradients.baselines import AtCentre, LeaveOneOut
    from bigrad.gradients.draws import Common, Fresh
    from bigrad.gradients.identity import Identity, MeanFree, Normalised, UnitNorm
    from bigrad.gradients.imle import IMLE
    from bigrad.gradients.implicit import Implicit
    from bigrad.gradients.interpolate import Interpolate
    from bigrad.gradients.noise import Gumbel, Normal, SumOfGamma
    from bigrad.gradients.perturbation import Additive, Multiplicative
    from bigrad.gradients.perturbed import Perturbed
    from bigrad.gradients.proximal import Proximal
    from bigrad.gradients.regularised import Regularised
    from bigrad.gradients.score import Score
    from bigrad.gradients.steps import Absolute, Adaptive, Relative
    from bigrad.layer import Layer
    from bigrad.memory import Memory
    from bigrad.oracle import Oracle
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
    "Absolute": "gradients.steps",
    "ActiveSet": "solvers.active_set",
    "Adaptive": "gradients.steps",
    "Additive": "gradients.perturbation",
    "AtCentre": "gradients.baselines",
    "Auto": "auto",
    "BigradError": "solution",
    "CapabilityError": "solution",
    "Common": "gradients.draws",
    "DeclarationError": "solution",
    "Formula": "solvers.formula",
    "Fresh": "gradients.draws",
    "Global": "solvers.certificate",
    "Gumbel": "gradients.noise",
    "IMLE": "gradients.imle",
    "Identity": "gradients.identity",
    "Implicit": "gradients.implicit",
    "InputError": "solution",
    "Interior": "solvers.interior",
    "Interpolate": "gradients.interpolate",
    "Layer": "layer",
    "LeaveOneOut": "gradients.baselines",
    "MeanFree": "gradients.identity",
    "Mehrotra": "solvers.mehrotra",
    "Memory": "memory",
    "Multiplicative": "gradients.perturbation",
    "Normal": "gradients.noise",
    "Normalised": "gradients.identity",
    "Oracle": "oracle",
    "Perturbed": "gradients.perturbed",
    "Pieces": "solvers.pieces",
    "Program": "program",
    "Proximal": "gradients.proximal",
    "Regularised": "gradients.regularised",
    "Relative": "gradients.steps",
    "Relaxation": "solvers.relaxation",
    "Saddle": "solvers.saddle",
    "Score": "gradients.score",
    "SingularWarning": "solution",
    "Solution": "solution",
    "SolveError": "solution",
    "SolveWarning": "solution",
    "Sparse": "solvers.sparse",
    "Spread": "solvers.spread",
    "Stats": "solution",
    "Status": "solution",
    "SumOfGamma": "gradients.noise",
    "UnitNorm": "gradients.identity",
    "argmin": "declare",
    "bilevel": "declare",
    "datasets": "",
    "losses": "",
}
__all__ = [
    "IMLE",
    "Absolute",
    "ActiveSet",
    "Adaptive",
    "Additive",
    "AtCentre",
    "Auto",
    "BigradError",
    "CapabilityError",
    "Common",
    "DeclarationError",
    "Formula",
    "Fresh",
    "Global",
    "Gumbel",
    "Identity",
    "Implicit",
    "InputError",
    "Interior",
    "Interpolate",
    "Layer",
    "LeaveOneOut",
    "MeanFree",
    "Mehrotra",
    "Memory",
    "Multiplicative",
    "Normal",
    "Normalised",
    "Oracle",
    "Perturbed",
    "Pieces",
    "Program",
    "Proximal",
    "Regularised",
    "Relative",
    "Relaxation",
    "Saddle",
    "Score",
    "SingularWarning",
    "Solution",
    "SolveError",
    "SolveWarning",
    "Sparse",
    "Spread",
    "Stats",
    "Status",
    "SumOfGamma",
    "UnitNorm",
    "argmin",
    "bilevel",
    "datasets",
    "losses",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bigrad' has no attribute '{name}'; it offers {', '.join(__all__)}.")
    home = _HOMES[name]
    return getattr(import_module(f"bigrad.{home}"), name) if home else import_module(f"bigrad.{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
