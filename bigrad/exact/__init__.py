"""Nested integer programs, exactly: Cuts, and the roads that it takes."""
