"""Networks as nested minimisations: finite targets, and rules that contrast two states. After Zach, arXiv 2105.07231."""

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
from bigrad.fenchel.contrastive import (
    AbstractContrastive,
    AuxiliaryCoordinates,
    ContrastiveHebbian,
    Lifted,
    Settled,
)

__all__ = [
    "AbstractContrastive",
    "AbstractFenchel",
    "AuxiliaryCoordinates",
    "ContrastiveHebbian",
    "FenchelHardsigmoid",
    "FenchelHardtanh",
    "FenchelLeakyReLU",
    "FenchelReLU",
    "FenchelSigmoid",
    "FenchelSoftmax",
    "FenchelTanh",
    "Lifted",
    "Settled",
]
