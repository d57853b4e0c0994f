"""What a layer raises where items of a batch could not be solved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bigrad.program import Program
from bigrad.solution import Outcome, SolveError, Status


def failure(
    outcome: Outcome, batched: bool, program: Program | None = None, given: Mapping[Any, np.ndarray] | None = None
) -> SolveError:
    """The error that names the items of an outcome that failed."""
    bad = {int(i): outcome.status[i] for i in np.flatnonzero(~outcome.ok)}
    causes = {i: outcome.stats(i, 1.0).cause for i in bad}
    if program and given:
        causes |= {i: program.fault(given, i) for i, s in bad.items() if s is Status.INVALID_INPUT and not causes[i]}
    shown = [
        f"{f'  item {i}: ' if batched else '  '}{s.name}. {s.value} {causes[i]}".rstrip()
        for i, s in list(bad.items())[:8]
    ]
    more = [f"  … and {len(bad) - 8} more."] if len(bad) > 8 else []
    head = (
        f"{len(bad)} of {len(outcome.status)} items could not be solved:"
        if batched
        else "The program could not be solved:"
    )
    tail = 'Mend these inputs, or make the layer with on_failure="nan" to keep the other items; layer.solve(…) returns every status.'
    return SolveError("\n".join([head, *shown, *more, tail]), bad)
