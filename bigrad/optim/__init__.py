"""Torch optimisers of bilevel learning problems: a closure for each level, or one of the layer of the lower level."""
