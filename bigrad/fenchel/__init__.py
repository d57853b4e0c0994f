"""Networks as nested minimisations: activations that hand back finite targets. After Zach, arXiv 2105.07231."""

from bigrad.fenchel.activations import (
    FenchelHardsigmoid,
    FenchelHardtanh,
    FenchelLeakyReLU,
    FenchelReLU,
    FenchelSigmoid,
    FenchelSoftmax,
    FenchelTanh,
)
from bigrad.fenchel.base import AbstractFenchel

__all__ = [
    "AbstractFenchel",
    "FenchelHardsigmoid",
    "FenchelHardtanh",
    "FenchelLeakyReLU",
    "FenchelReLU",
    "FenchelSigmoid",
    "FenchelSoftmax",
    "FenchelTanh",
]
