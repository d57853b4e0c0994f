"""A declaration on OR-Tools models as what pickles: models do not, their protos do.

A variable travels as (whose model, its place there) and is found again in the rebuilt model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigrad.program import Solver
from bigrad.programs.level import Level, Variables


@dataclass(frozen=True, eq=False)
class Declaration:
    """What `declare` was given, which it is again, as a tuple, where it is unpickled.

    levels: both models as they were read; the follower's is None with one level or an oracle.
    """

    leader: Any
    follower: Any
    copies: Mapping[Any, Any]
    responds: Mapping[Any, Any] | Sequence[Any]
    costs: Mapping[str, Any]
    default: Solver
    levels: tuple[Level, Level | None]

    def __reduce__(self) -> tuple[Any, ...]:
        owners = [level.variables for level in self.levels if level is not None]

        def sent(handle: Any) -> Any:
            found = ((k, variables.find(handle)) for k, variables in enumerate(owners))
            return next((Sent(k, place) for k, place in found if place is not None), handle)

        handles = tuple(_mapped(part, sent) for part in (self.copies, self.responds, self.costs))
        return unpacked, (_proto(self.leader), _proto(self.follower), handles, self.default)


@dataclass(frozen=True)
class Sent:
    """A variable on its way: which model is its own, and its place there."""

    model: int
    place: int


def unpacked(leader: Any, follower: Any, handles: Any, default: Solver) -> tuple[Any, ...]:
    """The arguments of `declare` again, with models of their own."""
    models = _model(leader), _model(follower)
    owners = [_variables(model) for model in models]

    def found(handle: Any) -> Any:
        owner = owners[handle.model] if isinstance(handle, Sent) else None
        return handle if owner is None else owner.handle(handle.place)

    return (*models, *(_mapped(part, found) for part in handles), default)


def _mapped(part: Any, change: Callable[[Any], Any]) -> Any:
    """Dicts, lists and arrays of handles and pairs of handles, with each handle changed."""
    if isinstance(part, Mapping):
        return {k if isinstance(k, str) else change(k): _mapped(v, change) for k, v in part.items()}
    if isinstance(part, np.ndarray):
        changed = np.empty(part.shape, object)
        for at in np.ndindex(part.shape):
            changed[at] = _mapped(part[at], change)
        return changed
    if isinstance(part, tuple | list | range):
        return type(part)(_mapped(v, change) for v in part) if not isinstance(part, range) else part
    return change(part)


@dataclass(frozen=True)
class _CpSat:
    text: str


@dataclass(frozen=True)
class _MathOpt:
    blob: bytes


def _proto(model: Any) -> Any:
    """A model as its proto; an oracle, or None, as it is."""
    if not type(model).__module__.startswith("ortools."):
        return model
    from ortools.sat.python import cp_model

    if isinstance(model, cp_model.CpModel):
        return _CpSat(str(model.proto))
    return _MathOpt(model.export_model().SerializeToString())


def _model(proto: Any) -> Any:
    if isinstance(proto, _CpSat):
        from ortools.sat.python import cp_model

        model = cp_model.CpModel()
        model.proto.merge_text_format(proto.text)
        return model
    if isinstance(proto, _MathOpt):
        from ortools.math_opt import model_pb2
        from ortools.math_opt.python import mathopt

        return mathopt.Model.from_model_proto(model_pb2.ModelProto.FromString(proto.blob))
    return proto


def _variables(model: Any) -> Variables | None:
    """Who finds the variables of a model; None for an oracle."""
    if not type(model).__module__.startswith("ortools."):
        return None
    from ortools.sat.python import cp_model

    from bigrad.programs.cpsat import CpSatVariables
    from bigrad.programs.mathopt import MathOptVariables

    return CpSatVariables(model) if isinstance(model, cp_model.CpModel) else MathOptVariables(model)
