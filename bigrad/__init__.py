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
    from bigrad.exact.cuts import Cuts
    from bigrad.family import Family
    from bigrad.fenchel.activations import (
        FenchelHardsigmoid,
        FenchelHardtanh,
        FenchelLeakyReLU,
        FenchelReLU,
        FenchelSigmoid,
        FenchelSoftmax,
        FenchelTanh,
    )
    from bigrad.fenchel.contrastive import AuxiliaryCoordinates, ContrastiveHebbian, Lifted
    from bigrad.gradients.baselines import AtCentre, LeaveOneOut
    from bigrad.gradients.bounds import ErrorBound
    from bigrad.gradients.draws import Common, Fresh
    from bigrad.gradients.eqprop import EqProp
    from bigrad.gradients.identity import Identity, MeanFree, Normalised, UnitNorm
    from bigrad.gradients.imle import IMLE
    from bigrad.gradients.implicit import Implicit
    from bigrad.gradients.interpolate import Interpolate
    from bigrad.gradients.joint import Joint
    from bigrad.gradients.levels import Levels
    from bigrad.gradients.noise import Gumbel, Normal, SumOfGamma
    from bigrad.gradients.perturbation import Additive, Multiplicative
    from bigrad.gradients.perturbed import Perturbed
    from bigrad.gradients.products import Differences, Exact
    from bigrad.gradients.proximal import Proximal
    from bigrad.gradients.regularised import Regularised
    from bigrad.gradients.score import Score
    from bigrad.gradients.stencils import Central, Forward, SecondOrder
    from bigrad.gradients.steps import Absolute, Adaptive, Relative
    from bigrad.gradients.unrolled import Unrolled
    from bigrad.krylov import CG, GMRES, MINRES, T1T2, Neumann
    from bigrad.layer import Layer
    from bigrad.memory import Memory
    from bigrad.optim.bome import BOME, GapGradient, GapValue
    from bigrad.optim.maid import MAID, Progress
    from bigrad.oracle import Oracle
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
    from bigrad.sets import Ball, Box, Simplex
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
    from bigrad.solvers.descent import Descent
    from bigrad.solvers.formula import Formula
    from bigrad.solvers.interior import Interior
    from bigrad.solvers.lbfgs import LBFGS
    from bigrad.solvers.mehrotra import Mehrotra
    from bigrad.solvers.methods import FISTA, GradientDescent, HeavyBall
    from bigrad.solvers.pieces import Pieces
    from bigrad.solvers.projected import ProjectedGradient
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
    "Assignment": "oracles.assignment",
    "AtCentre": "gradients.baselines",
    "Auto": "auto",
    "BOME": "optim.bome",
    "AuxiliaryCoordinates": "fenchel.contrastive",
    "Ball": "sets",
    "BigradError": "solution",
    "Box": "sets",
    "CG": "krylov",
    "CapabilityError": "solution",
    "Central": "gradients.stencils",
    "Common": "gradients.draws",
    "ContrastiveHebbian": "fenchel.contrastive",
    "Cuts": "exact.cuts",
    "DeclarationError": "solution",
    "Family": "family",
    "FenchelHardsigmoid": "fenchel.activations",
    "FenchelHardtanh": "fenchel.activations",
    "FenchelLeakyReLU": "fenchel.activations",
    "FenchelReLU": "fenchel.activations",
    "FenchelSigmoid": "fenchel.activations",
    "FenchelSoftmax": "fenchel.activations",
    "FenchelTanh": "fenchel.activations",
    "Descent": "solvers.descent",
    "Differences": "gradients.products",
    "EqProp": "gradients.eqprop",
    "ErrorBound": "gradients.bounds",
    "Exact": "gradients.products",
    "FISTA": "solvers.methods",
    "Flow": "oracles.flow",
    "Formula": "solvers.formula",
    "Forward": "gradients.stencils",
    "Fresh": "gradients.draws",
    "GapGradient": "optim.bome",
    "GapValue": "optim.bome",
    "GMRES": "krylov",
    "Given": "oracles.given",
    "Global": "solvers.certificate",
    "GradientDescent": "solvers.methods",
    "GraphPath": "oracles.paths",
    "GridPath": "oracles.grid",
    "Gumbel": "gradients.noise",
    "HeavyBall": "solvers.methods",
    "IMLE": "gradients.imle",
    "Identity": "gradients.identity",
    "Implicit": "gradients.implicit",
    "InputError": "solution",
    "Interior": "solvers.interior",
    "Interpolate": "gradients.interpolate",
    "Joint": "gradients.joint",
    "Knapsack": "oracles.knapsack",
    "LBFGS": "solvers.lbfgs",
    "Layer": "layer",
    "LeaveOneOut": "gradients.baselines",
    "Levels": "gradients.levels",
    "Lifted": "fenchel.contrastive",
    "MAID": "optim.maid",
    "MINRES": "krylov",
    "MeanFree": "gradients.identity",
    "Mehrotra": "solvers.mehrotra",
    "Memory": "memory",
    "Multiplicative": "gradients.perturbation",
    "Neumann": "krylov",
    "Normal": "gradients.noise",
    "Normalised": "gradients.identity",
    "Oracle": "oracle",
    "Perturbed": "gradients.perturbed",
    "Pieces": "solvers.pieces",
    "Program": "program",
    "Progress": "optim.maid",
    "ProjectedGradient": "solvers.projected",
    "Proximal": "gradients.proximal",
    "Regularised": "gradients.regularised",
    "Relative": "gradients.steps",
    "Relaxation": "solvers.relaxation",
    "Saddle": "solvers.saddle",
    "Score": "gradients.score",
    "SecondOrder": "gradients.stencils",
    "Simplex": "sets",
    "SingularWarning": "solution",
    "Solution": "solution",
    "SolveError": "solution",
    "SolveWarning": "solution",
    "SpanningTree": "oracles.tree",
    "Sparse": "solvers.sparse",
    "Spread": "solvers.spread",
    "Stats": "solution",
    "Status": "solution",
    "SumOfGamma": "gradients.noise",
    "T1T2": "krylov",
    "TopK": "oracles.top",
    "Tour": "oracles.tour",
    "UnitNorm": "gradients.identity",
    "Unrolled": "gradients.unrolled",
    "argmin": "declare",
    "bilevel": "declare",
    "datasets": "",
    "losses": "",
}
__all__ = [
    "BOME",
    "CG",
    "FISTA",
    "GMRES",
    "IMLE",
    "LBFGS",
    "MAID",
    "MINRES",
    "T1T2",
    "Absolute",
    "ActiveSet",
    "Adaptive",
    "Additive",
    "Assignment",
    "AtCentre",
    "Auto",
    "AuxiliaryCoordinates",
    "Ball",
    "BigradError",
    "Box",
    "CapabilityError",
    "Central",
    "Common",
    "ContrastiveHebbian",
    "Cuts",
    "DeclarationError",
    "Descent",
    "Differences",
    "EqProp",
    "ErrorBound",
    "Exact",
    "Family",
    "FenchelHardsigmoid",
    "FenchelHardtanh",
    "FenchelLeakyReLU",
    "FenchelReLU",
    "FenchelSigmoid",
    "FenchelSoftmax",
    "FenchelTanh",
    "Flow",
    "Formula",
    "Forward",
    "Fresh",
    "GapGradient",
    "GapValue",
    "Given",
    "Global",
    "GradientDescent",
    "GraphPath",
    "GridPath",
    "Gumbel",
    "HeavyBall",
    "Identity",
    "Implicit",
    "InputError",
    "Interior",
    "Interpolate",
    "Joint",
    "Knapsack",
    "Layer",
    "LeaveOneOut",
    "Levels",
    "Lifted",
    "MeanFree",
    "Mehrotra",
    "Memory",
    "Multiplicative",
    "Neumann",
    "Normal",
    "Normalised",
    "Oracle",
    "Perturbed",
    "Pieces",
    "Program",
    "Progress",
    "ProjectedGradient",
    "Proximal",
    "Regularised",
    "Relative",
    "Relaxation",
    "Saddle",
    "Score",
    "SecondOrder",
    "Simplex",
    "SingularWarning",
    "Solution",
    "SolveError",
    "SolveWarning",
    "SpanningTree",
    "Sparse",
    "Spread",
    "Stats",
    "Status",
    "SumOfGamma",
    "TopK",
    "Tour",
    "UnitNorm",
    "Unrolled",
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
