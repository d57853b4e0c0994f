"""Two models that share no variables, linked into one nested program; or one model alone.

Each model keeps its own variables. The copies of the other player's decisions that it contains are named by the user,
and here they become those decisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from bigrad.discrete.combinatorial import Combinatorial, Place
from bigrad.discrete.nested import Nested, Objective, Rows
from bigrad.handles import listed
from bigrad.programs.level import Level
from bigrad.solution import DeclarationError


@dataclass(frozen=True, eq=False)
class Linked:
    """Two levels and who is who: the place in (x, y) of each of their variables.

    leader_at, follower_at: (size of the level,); -1 for a variable that is gone, because it is nothing but the product of a
    boolean of the leader's and one of the follower's, and only the objective mentions it.
    """

    leader: Level
    follower: Level | None
    leader_at: np.ndarray
    follower_at: np.ndarray
    leaders: int

    def find(self, handle: Any) -> tuple[int, bool] | None:
        """The place of a variable in (x, y), -1 for a product; and whether the object belongs to the leader's model."""
        if (k := self.leader.variables.find(handle)) is not None:
            return int(self.leader_at[k]), True
        if self.follower is not None and (k := self.follower.variables.find(handle)) is not None:
            return int(self.follower_at[k]), False
        return None

    def owner(self, handle: Any, what: str) -> tuple[int, bool]:
        """The same, or a DeclarationError that names it."""
        if (found := self.find(handle)) is None:
            raise DeclarationError(f"{what}: {describe(handle)} is a variable of neither model.")
        return found


def describe(handle: Any) -> str:
    """A user's object, in a message."""
    return f"{type(handle).__name__} '{getattr(handle, 'name', None) or handle}'"


def link(
    leader: Level, follower: Level | None, copies: Mapping[Any, Any], responds: Mapping[Any, Any] | Sequence[Any]
) -> Linked:
    """Checks both maps, each from an owner's variable to its copy in the other model, and orders the variables."""
    if follower is None:
        return Linked(leader, None, np.arange(leader.size), np.zeros(0, int), leader.size)
    down = _pairs(copies, leader, follower, "link", "leader", "follower")
    answers = responds if isinstance(responds, Mapping) else dict.fromkeys(())
    up = _pairs(answers, follower, leader, "responds", "follower", "leader")
    seen = [_place(follower, handle, "responds", "follower") for handle in responds]
    both = [n for n, c in down.items() if n in up.values()] + [n for n, c in up.items() if n in down.values()]
    if both:
        raise DeclarationError(
            "link and responds: a variable is both an owner's and a copy; each decision belongs to one player."
        )
    leader_at, follower_at = np.full(leader.size, -1), np.full(follower.size, -1)
    own = _own(leader, up.values(), down)
    leader_at[own] = np.arange(len(own))
    answer = _own(follower, down.values(), [*up, *seen])
    follower_at[answer] = len(own) + np.arange(len(answer))
    if not len(own):
        raise DeclarationError("bilevel(…): every variable of the leader's model is a copy of the follower's.")
    if not len(answer):
        raise DeclarationError("bilevel(…): every variable of the follower's model is a copy of the leader's.")
    for n, c in down.items():
        follower_at[c] = leader_at[n]
    for n, c in up.items():
        leader_at[c] = follower_at[n]
    return Linked(leader, follower, leader_at, follower_at, len(own))


def _own(level: Level, copies: Iterable[int], visible: Iterable[int]) -> np.ndarray:
    """A level's own variables, without those that are only products of an own boolean and a copy in the objective."""
    copied, seen = set(copies), set(visible)
    gone = [
        p
        for p, (i, j) in level.products.items()
        if (i in copied) != (j in copied) and p not in copied | seen and not _elsewhere(level, p)
    ]
    return np.setdiff1d(np.arange(level.size), [*copied, *gone])


def _elsewhere(level: Level, product: int) -> bool:
    """Whether any row but those that define it, or another product, mentions a product."""
    rows = set(level.rows.matrix.tocsc()[:, [product]].nonzero()[0].tolist())
    factor = any(product in pair for pair in level.products.values())
    return bool(level.rest) or factor or not rows <= set(level.product_rows[product])


def _place(level: Level, handle: Any, what: str, whose: str) -> int:
    k = level.variables.find(handle)
    if k is None:
        raise DeclarationError(f"{what}: {describe(handle)} is not a variable of the {whose}'s model.")
    return k


def _pairs(pairs: Mapping[Any, Any], owner: Level, other: Level, what: str, whose: str, copier: str) -> dict[int, int]:
    """Places of owners and copies; each copy is one variable's, and of the same kind."""
    if not isinstance(pairs, Mapping):
        raise DeclarationError(
            f"{what}: got a {type(pairs).__name__}; give a dict from the {whose}'s variables to their copies."
        )
    found: dict[int, int] = {}
    for handle, copy in pairs.items():
        k, c = _place(owner, handle, what, whose), _place(other, copy, what, copier)
        if c in found.values():
            raise DeclarationError(f"{what}: '{other.names[c]}' is the copy of two variables.")
        if owner.integer[k] != other.integer[c]:
            one, two = (("integer", "continuous"), ("continuous", "integer"))[int(not owner.integer[k])]
            raise DeclarationError(
                f"{what}: '{owner.names[k]}' is {one} and its copy '{other.names[c]}' {two}; make them alike."
            )
        found[k] = c
    return found


def assemble(linked: Linked, costs: Mapping[str, Sequence[Any]]) -> tuple[Combinatorial, dict[str, np.ndarray]]:
    """The nested program as arrays, and what the costs are in the models as they stand, in the players' own senses."""
    leader, follower, nx = linked.leader, linked.follower, linked.leaders
    size = int(max(linked.leader_at.max(), linked.follower_at.max(initial=-1))) + 1
    lower, upper, integer = np.full(size, -np.inf), np.full(size, np.inf), np.zeros(size, bool)
    levels = [(leader, linked.leader_at, True)] + ([(follower, linked.follower_at, False)] if follower else [])
    for level, at, leads in levels:
        own = (at >= 0) & ((at < nx) == leads)
        lower[at[own]], upper[at[own]], integer[at[own]] = level.lower[own], level.upper[own], level.integer[own]
    rows = [_rows(level, at, lower, upper, (at < nx) == leads) for level, at, leads in levels]
    objectives = [_objective(level, at, nx, size, leads) for level, at, leads in levels]
    opposed = follower is not None and not leader.objective
    own = _objective_of_none(nx, size) if follower is None else objectives[1]
    low_rows = rows[1] if follower else Rows(sp.csr_array((0, size)), np.zeros(0), np.zeros(0))
    top = objectives[0]
    if opposed:
        top = Objective(-own.linear, -own.cross, -own.constant)
    base = Nested(nx, size - nx, lower, upper, integer, rows[0], low_rows, top, own)
    places, values = _places(linked, costs, opposed), {}
    taken: set[tuple[bool, int, int]] = set()
    for name, place in zip(costs, places, strict=True):
        values[name] = _take(base, place, taken, name, opposed)
    rest = tuple(dict.fromkeys([*leader.rest, *(follower.rest if follower else ())]))
    return Combinatorial(base, places, lambda handle: (linked.find(handle) or (None,))[0], opposed, rest=rest), values


def _rows(level: Level, at: np.ndarray, lower: np.ndarray, upper: np.ndarray, own: np.ndarray) -> Rows:
    """A level's rows over (x, y); the bounds that it declares on copies, where tighter than the owner's, are rows too."""
    size, there = len(lower), np.flatnonzero(at >= 0)
    tighter = np.flatnonzero((at >= 0) & ~own & ((level.lower > lower[at]) | (level.upper < upper[at])))
    columns = sp.csr_array((np.ones(len(there)), (there, at[there])), shape=(level.size, size))
    bounds = sp.csr_array((np.ones(len(tighter)), (np.arange(len(tighter)), at[tighter])), shape=(len(tighter), size))
    defining = [row for p in np.flatnonzero(at < 0).tolist() for row in level.product_rows[p]]
    kept = np.setdiff1d(np.arange(len(level.rows.lower)), defining)
    matrix = sp.vstack([level.rows.matrix[kept] @ columns, bounds])
    low = np.concatenate([level.rows.lower[kept], level.lower[tighter]])
    return Rows(sp.csr_array(matrix), low, np.concatenate([level.rows.upper[kept], level.upper[tighter]]))


def _objective_of_none(nx: int, size: int) -> Objective:
    return Objective(np.zeros(size), sp.csr_array((nx, size - nx)))


def _objective(level: Level, at: np.ndarray, nx: int, size: int, leads: bool) -> Objective:
    """A level's objective over (x, y), minimised. Squares of booleans are the booleans; other quadratic terms must be
    products of a leader's and a follower's variable."""
    linear = np.zeros(size)
    np.add.at(linear, at[at >= 0], level.sense * level.linear[at >= 0])
    rows, columns, values = [], [], []
    gone = {level.products[p]: level.linear[p] for p in np.flatnonzero(at < 0).tolist()}
    for (i, j), value in [*level.quadratic.items(), *gone.items()]:
        one, other = sorted((int(at[i]), int(at[j])))
        if one < nx <= other:
            rows.append(one)
            columns.append(other - nx)
            values.append(level.sense * value)
        elif i == j and level.integer[i] and level.lower[i] >= 0 and level.upper[i] <= 1:
            linear[one] += level.sense * value
        else:
            raise DeclarationError(
                f"The {'leader' if leads else 'follower'}'s objective multiplies '{level.names[i]}' by '{level.names[j]}'; only "
                "products of a leader's and a follower's variable are taken. Write other products with an auxiliary variable."
            )
    cross = sp.csr_array((values, (rows, columns)), shape=(nx, size - nx), dtype=float)
    return Objective(linear, cross, level.sense * level.constant)


def _places(linked: Linked, costs: Mapping[str, Sequence[Any]], opposed: bool) -> tuple[Place, ...]:
    """Where each named list of costs stands."""
    places = []
    for name, handles in costs.items():
        if not isinstance(name, str):
            raise DeclarationError(f"costs: {name!r} is not a name; give costs={{'c': [variables]}}.")
        entries = listed(handles)[1]
        if not entries:
            raise DeclarationError(f"costs['{name}'] is empty; name at least one variable.")
        found = [_entry(linked, e, f"costs['{name}']") for e in entries]
        payers = {leads for _, _, leads in found}
        if len(payers) > 1:
            raise DeclarationError(
                f"costs['{name}'] names costs of both players; give each player's under a name of their own."
            )
        leads = payers.pop()
        if leads and opposed:
            raise DeclarationError(
                f"costs['{name}'] are the leader's, whose model has no objective: it opposes the follower. Give the model an objective."
            )
        level = linked.leader if leads else linked.follower
        assert level is not None
        one, other = (np.array([f[k] for f in found]) for k in (0, 1))
        places.append(Place(leads, level.sense, one, other))
    return tuple(places)


def _entry(linked: Linked, entry: Any, what: str) -> tuple[int, int, bool]:
    """A cost's two places, the second -1 where it is not on a product, and whether the leader pays it: who owns the model of
    the first variable."""
    if isinstance(entry, tuple):
        if len(entry) != 2:
            raise DeclarationError(f"{what}: a product has two variables, got {len(entry)}.")
        (first, leads), (second, _) = (linked.owner(e, what) for e in entry)
        one, other = sorted((first, second))
        if not one < linked.leaders <= other:
            raise DeclarationError(
                f"{what}: both factors of a product are the {'leader' if other < linked.leaders else 'follower'}'s; it needs one of each."
            )
        return one, other, leads
    place, leads = linked.owner(entry, what)
    if place < 0:
        level, at = (linked.leader, linked.leader_at) if leads else (linked.follower, linked.follower_at)
        assert level is not None
        product = level.variables.find(entry)
        assert product is not None
        one, other = sorted(int(at[k]) for k in level.products[product])
        return one, other, leads
    if not leads and place < linked.leaders:
        raise DeclarationError(
            f"{what}: {describe(entry)} is the follower's copy of a leader's variable, whose cost does not move the follower; "
            "name the leader's own variable, or a product."
        )
    return place, -1, leads


def _take(base: Nested, place: Place, taken: set[tuple[bool, int, int]], name: str, opposed: bool) -> np.ndarray:
    """Takes the costs out of the objectives, and returns them in their player's own sense."""
    objective, other = (base.leader, base.follower) if place.leader else (base.follower, base.leader)
    values = np.zeros(len(place.one))
    for k, (one, two) in enumerate(zip(place.one, place.other, strict=True)):
        key = (place.leader, int(one), int(two))
        if key in taken:
            raise DeclarationError(f"costs['{name}'] names a cost that is named already; each cost has one name.")
        taken.add(key)
        at: Any = one if two < 0 else (one, two - base.leaders)
        for objective_, mirrored in ((objective, False), (other, True)):
            if mirrored and not (opposed and not place.leader):
                continue
            array: Any = objective_.linear if two < 0 else objective_.cross
            value = array[at]
            if not mirrored:
                values[k] = place.sense * value
            if value:
                array[at] = 0.0
    return values
