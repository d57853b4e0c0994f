"""What the optimisers' options must be."""

from __future__ import annotations

import math

from bigrad.solution import InputError


def positive(owner: str, **options: float) -> None:
    """InputError, naming the first option that is not a positive, finite number."""
    for name, value in options.items():
        if not (float(value) > 0 and math.isfinite(float(value))):
            raise InputError(f"{owner}({name}={value!r}): give a positive, finite number.")
