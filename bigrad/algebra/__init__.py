"""Arrays: affine maps of the inputs, the bilevel quadratic program in them, and linear systems."""
