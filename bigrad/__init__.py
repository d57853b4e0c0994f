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
    from bigrad.algebra.krylov import CG, GMRES, MINRES, T1T2, Neumann
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

_NAMES = {
    "": "datasets losses",
    "auto": "Auto",
    "declare": "argmin bilevel",
    "exact.cuts": "Cuts",
    "family": "Family",
    "fenchel.activations": "FenchelHardsigmoid FenchelHardtanh FenchelLeakyReLU FenchelReLU FenchelSigmoid FenchelSoftmax FenchelTanh",
    "fenchel.contrastive": "AuxiliaryCoordinates ContrastiveHebbian Lifted",
    "gradients.baselines": "AtCentre LeaveOneOut",
    "gradients.bounds": "ErrorBound",
    "gradients.draws": "Common Fresh",
    "gradients.eqprop": "EqProp",
    "gradients.identity": "Identity MeanFree Normalised UnitNorm",
    "gradients.imle": "IMLE",
    "gradients.implicit": "Implicit",
    "gradients.interpolate": "Interpolate",
    "gradients.joint": "Joint",
    "gradients.levels": "Levels",
    "gradients.noise": "Gumbel Normal SumOfGamma",
    "gradients.perturbation": "Additive Multiplicative",
    "gradients.perturbed": "Perturbed",
    "gradients.products": "Differences Exact",
    "gradients.proximal": "Proximal",
    "gradients.regularised": "Regularised",
    "gradients.score": "Score",
    "gradients.stencils": "Central Forward SecondOrder",
    "gradients.steps": "Absolute Adaptive Relative",
    "gradients.unrolled": "Unrolled",
    "algebra.krylov": "CG GMRES MINRES Neumann T1T2",
    "layer": "Layer",
    "memory": "Memory",
    "optim.bome": "BOME GapGradient GapValue",
    "optim.maid": "MAID Progress",
    "oracle": "Oracle",
    "oracles.assignment": "Assignment",
    "oracles.flow": "Flow",
    "oracles.given": "Given",
    "oracles.grid": "GridPath",
    "oracles.knapsack": "Knapsack",
    "oracles.paths": "GraphPath",
    "oracles.top": "TopK",
    "oracles.tour": "Tour",
    "oracles.tree": "SpanningTree",
    "program": "Program",
    "sets": "Ball Box Simplex",
    "solution": "BigradError CapabilityError DeclarationError InputError SingularWarning Solution SolveError SolveWarning Stats Status",
    "solvers.active_set": "ActiveSet",
    "solvers.certificate": "Global",
    "solvers.descent": "Descent",
    "solvers.formula": "Formula",
    "solvers.interior": "Interior",
    "solvers.lbfgs": "LBFGS",
    "solvers.mehrotra": "Mehrotra",
    "solvers.methods": "FISTA GradientDescent HeavyBall",
    "solvers.pieces": "Pieces",
    "solvers.projected": "ProjectedGradient",
    "solvers.relaxation": "Relaxation",
    "solvers.saddle": "Saddle",
    "solvers.sparse": "Sparse",
    "solvers.spread": "Spread",
}
"""What each module offers; under "" the modules that are offered themselves."""
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}
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
