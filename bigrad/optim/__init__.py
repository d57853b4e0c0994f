"""Torch optimisers of bilevel learning problems: a closure for each level, or one of the layer of the lower level."""

from bigrad.optim.bome import BOME, AbstractDecrease, GapGradient, GapValue, Taken
from bigrad.optim.maid import MAID, Progress, Step

__all__ = ["BOME", "MAID", "AbstractDecrease", "GapGradient", "GapValue", "Progress", "Step", "Taken"]
