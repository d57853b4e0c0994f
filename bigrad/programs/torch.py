"""The front end for lower levels written in torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bigrad.inner import Inner
from bigrad.program import Program, Solver, Unknown
from bigrad.sets import AbstractSet, Box
from bigrad.solution import CapabilityError, DeclarationError


def declare(function: Callable[..., Any], responds: Any, within: Any, default: Solver) -> Program:
    """The program of `bigrad.argmin(function, responds=…, within=…)`."""
    inner = _inner(function, responds, within)
    unknowns = tuple(
        Unknown(name or "y", name or "y", tuple(shape), True, place)
        for name, shape, place in zip(inner.names, inner.shapes, inner.places, strict=True)
    )
    return Program(
        inputs=(),
        unknowns=unknowns,
        sign=1.0,
        quadratic=None,
        convex=False,
        why_not_quadratic="its objective is a torch function",
        smooth=None,
        source=Source(),
        default=default,
        rebuild=(declare, (function, responds, within, default)),
        shown=tuple(u.handle for u in unknowns),
        inner=inner,
    )


def _inner(function: Callable[..., Any], responds: Any, within: Any) -> Inner:
    if isinstance(responds, nn.Module):
        raise DeclarationError(
            f"argmin(…, responds={type(responds).__name__}(…)): give its parameters, responds=dict(model.named_parameters()), and use "
            "torch.func.functional_call(model, y, inputs) in the function."
        )
    parts: dict[Any, Any] = dict(responds) if isinstance(responds, Mapping) else {None: responds}
    what = "argmin(…, responds=…)"
    if not parts:
        raise DeclarationError(f"{what}: the dict is empty; name at least one tensor.")
    for name, t in parts.items():
        own = "" if name is None else f"['{name}']"
        if not isinstance(t, Tensor) or not t.is_floating_point():
            got = t.dtype if isinstance(t, Tensor) else type(t).__name__
            raise DeclarationError(
                f"{what}{own} is {got}; give a real tensor, y where solvers start, or a dict of them."
            )
        if not bool(torch.isfinite(t).all()):
            raise DeclarationError(
                f"{what}{own} holds a NaN or an infinity, and solvers start there; give finite numbers."
            )
    if len(kinds := {(t.dtype, t.device) for t in parts.values()}) > 1:
        given = ", ".join(f"{dtype} on {device}" for dtype, device in sorted(kinds, key=str))
        raise DeclarationError(f"{what}: the tensors are of several kinds ({given}); give one dtype and device.")
    if isinstance(within, Mapping) and set(within) - set(parts):
        raise DeclarationError(f"argmin(…, within=…): {sorted(set(within) - set(parts), key=str)} are not in responds.")
    sets = tuple(within.get(name) if isinstance(within, Mapping) else within for name in parts)
    for s in sets:
        if s is not None and not isinstance(s, AbstractSet) and not callable(s):
            raise DeclarationError(
                f"argmin(…, within={s!r:.60}): give bigrad.Box, Simplex or Ball, or a function that projects a tensor."
            )
    for (name, t), s in zip(parts.items(), sets, strict=True):
        if isinstance(s, Box) and not s.fits(t.shape):
            own = "" if name is None else f" for '{name}'"
            raise DeclarationError(f"argmin(…, within=…){own}: the bounds of {s} do not broadcast to {tuple(t.shape)}.")
    with torch.inference_mode(False):
        start = torch.cat([t.detach().reshape(-1) for t in parts.values()]).clone()
    return Inner(function, tuple(parts), tuple(t.shape for t in parts.values()), start, sets)


class Source:
    """There are no objects to fill."""

    def publish(self, values: Mapping[Any, np.ndarray | None]) -> None:
        """Nothing to do."""

    def lower_value(self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]) -> float:
        """There is one level, whose value is the Solution's."""
        return math.nan

    def follower_gap(self, inputs: Mapping[Any, np.ndarray], values: Mapping[Any, np.ndarray]) -> float:
        """No other solver takes a torch function."""
        raise CapabilityError(
            "verify=True: no second solver takes a torch function; read stats.residual and stats.error."
        )

    def infeasible(self, inputs: Mapping[Any, np.ndarray]) -> None:
        """A projection is never empty."""
