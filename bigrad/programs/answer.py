"""One player's best decision where the other's is held, by scipy: a second opinion."""

from __future__ import annotations

import numpy as np

from bigrad.discrete.nested import Nested


def best(nested: Nested, leader: bool, other: np.ndarray) -> np.ndarray | None:
    """The decision, (own variables,), at the other's, (other variables,); None if none is found. The leader's is the one of
    a single level."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    n = nested.leaders
    own, others = (slice(0, n), slice(n, None)) if leader else (slice(n, None), slice(0, n))
    rows = nested.leader_rows if leader else nested.follower_rows
    costs = nested.leader.on_leader(other) if leader else nested.follower.on_follower(other)
    shift = rows.matrix[:, others] @ other
    constraint = LinearConstraint(rows.matrix[:, own], rows.lower - shift, rows.upper - shift)
    bounds = Bounds(nested.lower[own], nested.upper[own])
    found = milp(costs, constraints=constraint, bounds=bounds, integrality=nested.integer[own].astype(int))
    return None if found.x is None else np.asarray(found.x)
