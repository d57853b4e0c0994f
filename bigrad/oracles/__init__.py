"""Oracles at their own speed: batches of costs to exact decisions, one file a problem."""
