"""Torch optimisers of bilevel learning problems: both levels' parameters in one object, a closure for each level."""

from bigrad.optim.bome import BOME, AbstractDecrease, GapGradient, GapValue, Taken

__all__ = ["BOME", "AbstractDecrease", "GapGradient", "GapValue", "Taken"]
