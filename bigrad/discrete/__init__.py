"""Nested integer programs as arrays, and one player's problem asked many times."""
