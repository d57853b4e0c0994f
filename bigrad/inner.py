"""Inner: a lower level written in torch, y*(x) = argmin over y of g(x, y), as solvers and gradient rules see it.

y is one flat vector here, in the precision and on the device in which its start was given; the user's function sees it in
its own shape, a tensor or a dict of tensors, as views. One call of a layer binds the function to its arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from bigrad.sets import AbstractSet, Box, Simplex
from bigrad.solution import InputError

ONCE = (
    "The inner loss could not be differentiated twice: {why}. Take bigrad.Implicit(products=bigrad.Differences()) or "
    "bigrad.EqProp(…), which need first derivatives only."
)
Tree = Any
"""Tensors in dicts, lists and tuples, or anything else, which is passed on as it is."""


@dataclass(frozen=True)
class Sizes:
    """So many unknowns, all at one level, and no pairs."""

    x: int
    y: int = 0
    pairs: int = 0


@dataclass(frozen=True, eq=False)
class Inner:
    """The declared lower level.

    function: (x, y, *more) to a scalar. names, shapes: of the tensors of y, one without a name if it is a tensor. start:
    y flat, where solvers begin. within: one set or projection for each tensor of y, None where it is free.
    """

    function: Callable[..., Any]
    names: tuple[str | None, ...]
    shapes: tuple[torch.Size, ...]
    start: Tensor
    within: tuple[AbstractSet | Callable[[Tensor], Tensor] | None, ...]

    @property
    def places(self) -> list[slice]:
        """Where each tensor of y stands in the flat vector."""
        ends = [0]
        for shape in self.shapes:
            ends.append(ends[-1] + shape.numel())
        return [slice(a, b) for a, b in pairwise(ends)]

    @property
    def layout(self) -> Sizes:
        """The sizes of w."""
        return Sizes(len(self.start))

    @property
    def kind(self) -> str:
        """What this is, for a person to read."""
        return f"A torch function of {len(self.start)} variables{', projected' if self.constrained else ''}."

    @property
    def constrained(self) -> bool:
        """Whether y is kept in a set."""
        return any(s is not None for s in self.within)

    @property
    def faces(self) -> bool:
        """Whether all sets know their faces, so that the derivative of y* is a symmetric solve."""
        return all(s is None or isinstance(s, AbstractSet) for s in self.within)

    @property
    def flat_faces(self) -> bool:
        """Whether all faces are flat."""
        return all(s is None or isinstance(s, Box | Simplex) for s in self.within)

    def unflatten(self, y: Tensor) -> Tree:
        """The user's own form of a flat y; views."""
        flat = y.split([s.numel() for s in self.shapes])  # whose backward pass is one concatenation
        parts = [t.view(s) for t, s in zip(flat, self.shapes, strict=True)]
        return parts[0] if self.names[0] is None else dict(zip(self.names, parts, strict=True))

    def flatten(self, y: Tree, what: str) -> Tensor:
        """A y in the user's form as a flat vector; InputError, naming it `what`, if it does not fit."""
        known = {n: tuple(s) for n, s in zip(self.names, self.shapes, strict=True)}
        parts = {None: y} if self.names[0] is None else y
        fits = isinstance(parts, dict) and all(isinstance(t, Tensor) for t in parts.values())
        given = {n: tuple(t.shape) for n, t in parts.items()} if fits else type(y).__name__
        if given != known:
            got, need = (d.get(None, d) if isinstance(d, dict) else d for d in (given, known))
            raise InputError(
                f"{what} is {got}; needed is y in the form of responds, {need}, one Solution, or memory.at([key])."
            )
        return torch.cat([parts[n].detach().reshape(-1).to(self.start) for n in self.names])

    def project(self, y: Tensor) -> Tensor:
        """The nearest point of the set; y itself where it is free."""
        if not self.constrained:
            return y
        return self._by_tensor(lambda s, part: s.project(part) if isinstance(s, AbstractSet) else s(part), y)

    def along(self, y: Tensor, slope: Tensor, v: Tensor) -> Tensor:
        """T v of bigrad.sets, with the curvature's term: see `bent`."""
        return self._by_tensor(lambda s, *parts: s.along(*parts), y, slope, v) if self.constrained else v

    def bent(self, y: Tensor, slope: Tensor, v: Tensor) -> Tensor:
        """c v of bigrad.sets."""
        return self._by_tensor(lambda s, a, b, c: c * s.curvature(a, b), y, slope, v, free=torch.zeros_like)

    def _by_tensor(self, act: Callable[..., Tensor], *flats: Tensor, free: Any = None) -> Tensor:
        found = []
        for place, shape, within in zip(self.places, self.shapes, self.within, strict=True):
            parts = [f[place].view(shape) for f in flats]
            unheld = parts[-1] if free is None else free(parts[-1])
            part = unheld if within is None else act(within, *parts)
            if not isinstance(part, Tensor) or part.shape != shape:
                got = f"shape {tuple(part.shape)}" if isinstance(part, Tensor) else f"{part!r:.60}"
                raise InputError(f"The projection {within} returned {got}; needed is a tensor of shape {tuple(shape)}.")
            found.append(part.reshape(-1))
        return torch.cat(found)

    def bind(self, values: Sequence[Tree]) -> Bound:
        """The lower level at the arguments of one call."""
        leaves: list[Tensor] = []
        wanted = torch.is_grad_enabled()

        def pick(t: Tensor) -> Tensor | int:
            if not (wanted and t.requires_grad):
                return t.clone() if t.is_inference() else t.detach()
            leaves.append(t)
            return len(leaves) - 1

        args = tuple(_map(v, lambda t: _Leaf(pick(t)), Tensor) for v in values)
        bound = Bound(self, args, tuple(leaves))
        if wanted:
            with torch.enable_grad():
                loss = bound.energy(self.start, bound.still)
            if loss.requires_grad:
                raise InputError(
                    "The inner loss depends on tensors that require gradients but are not among its arguments, so their hypergradient "
                    "would be lost: pass them to the layer, layer(x, …), in dicts or lists if you like; detach those that are data."
                )
            bound = replace(bound, first=float(loss.detach()))
        return bound


@dataclass(frozen=True, eq=False)
class _Leaf:
    """A tensor among the arguments, or the number of a leaf."""

    held: Tensor | int


@dataclass(frozen=True, eq=False)
class Bound:
    """The lower level at the arguments of one call. leaves: the tensors among them that want gradients.

    first: the loss at the declared start, where it is known. record: what the backward pass of this call reports; empty before it.
    """

    inner: Inner
    args: tuple[Tree, ...]
    leaves: tuple[Tensor, ...]
    first: float | None = None
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def still(self) -> tuple[Tensor, ...]:
        """The leaves as constants."""
        return tuple(t.detach() for t in self.leaves)

    def finite(self) -> bool:
        """Whether no tensor in x, or among those that want gradients, holds a NaN or an infinity; further data may."""
        found: list[bool] = [_finite(t) for t in self.still]
        _map(self.args[0], lambda leaf: _note(leaf.held, found), _Leaf)
        return all(found)

    def energy(self, y: Tensor, leaves: Sequence[Tensor]) -> Tensor:
        """g at a flat y, in the autograd graph of y and leaves; InputError for what is not a scalar."""
        args = [
            _map(a, lambda leaf: leaves[leaf.held] if isinstance(leaf.held, int) else leaf.held, _Leaf)
            for a in self.args
        ]
        before = _versions(args[0])
        loss = self.inner.function(*args[:1], self.inner.unflatten(y), *args[1:])
        if _versions(args[0]) != before:
            raise InputError(
                "The inner loss changes its first argument in place, so each evaluation is of another problem, and your own tensor has "
                "been changed. Write x - y for x.sub_(y), and x = x + 1 for x += 1."
            )
        if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
            got = (
                f"a tensor of {loss.dtype}, shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{loss!r:.60}"
            )
            raise InputError(
                f"The inner loss must be a real scalar tensor; the function returned {got}. Compute it by torch and reduce it "
                "with .sum() or .mean()."
            )
        return loss

    def gradient(self, y: Tensor, leaves: Sequence[Tensor], *, follow: bool = False) -> tuple[Tensor, Tensor]:
        """(g, its gradient in y), y in the graph; follow: in the graph themselves."""
        with _eager() if follow else nullcontext():
            loss = self.energy(y, leaves)
        slope = torch.autograd.grad(loss, y, create_graph=follow, allow_unused=True)[0] if loss.requires_grad else None
        if slope is None:
            raise InputError(
                "The inner loss does not depend on y through differentiable torch operations: it ignores y, or detaches it (.detach(), "
                ".item(), numpy, torch.no_grad()). Compute it from its second argument, as functional_call(model, y, inputs) does."
            )
        return loss, slope

    def curved(self, y: Tensor, leaves: Sequence[Tensor]) -> Tensor:
        """The gradient at y in the graph of y and leaves, made sure to be differentiable: InputError where torch would take
        it for constant without a word, after a backward marked `once_differentiable`. Compiled parts run as they were written."""
        with _eager():
            loss = self.energy(y, leaves)
        if not loss.requires_grad:
            return self.gradient(y, leaves, follow=True)[1]  # which says what is wrong
        seed = torch.ones_like(loss).requires_grad_()  # such a backward leaves a mark if its own input wants a gradient
        try:
            slope: Tensor | None = torch.autograd.grad(loss, y, seed, create_graph=True, allow_unused=True)[0]
        except RuntimeError as error:
            raise InputError(ONCE.format(why=str(error)[:120])) from error
        if slope is None:
            return self.gradient(y, leaves, follow=True)[1]
        seen, ahead = set(), [slope.grad_fn]
        while ahead:
            node = ahead.pop()
            if node is None or node in seen:
                continue
            if node.name() == "torch::autograd::Error" or "CompiledFunction" in node.name():
                raise InputError(ONCE.format(why="a once_differentiable backward, or torch.compile"))
            seen.add(node)
            ahead.extend(before for before, _ in node.next_functions)
        return slope

    def slope(self, y: Tensor, push: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(g, its gradient in y) as constants; with `push`, of g + push'y."""
        y = y.detach().requires_grad_()
        with torch.enable_grad():
            loss, slope = self.gradient(y, self.still)
        loss = loss.detach()
        return (loss, slope) if push is None else (loss + push @ y.detach(), slope + push)

    def partial(self, y: Tensor, leaves: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """The gradient of g in the leaves, y held; None where not wanted."""
        fresh = tuple(t.detach().requires_grad_(w) for t, w in zip(leaves, wanted, strict=True))
        with torch.enable_grad():
            return pulled(self.energy(y.detach(), fresh), fresh, wanted)


def pulled(
    value: Tensor, leaves: Sequence[Tensor], wanted: Sequence[bool], weight: Tensor | None = None, keep: bool = False
) -> tuple[Tensor | None, ...]:
    """The gradient of weight'value in the leaves that are wanted, zero where it does not depend on them."""
    own = [t for t, w in zip(leaves, wanted, strict=True) if w]
    found: tuple[Tensor | None, ...] = (None,) * len(own)
    if value.requires_grad:
        found = torch.autograd.grad(value, own, weight, retain_graph=keep, allow_unused=True)
    filled = iter([torch.zeros_like(t) if g is None else g for g, t in zip(found, own, strict=True)])
    return tuple(next(filled) if w else None for w in wanted)


def _eager() -> AbstractContextManager[Any]:
    """Where functions made by torch.compile, whose backward pass has no derivative, run as they were written."""
    made = "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance")  # since torch 2.6
    return torch.compiler.set_stance("force_eager") if made else nullcontext()


class Follow(Protocol):
    """How an outcome was reached, in how many `steps`, so that a gradient rule can go on from there or go through it again."""

    steps: int

    def first(self) -> Any:
        """The state at the start: tensors and numbers in a tuple."""

    def forth(self, bound: Bound, leaves: Sequence[Tensor] | None, state: Any, count: int) -> Any:
        """The state so many steps later; in the autograd graph of state and leaves, where these are given."""

    def answer(self, state: Any) -> Tensor:
        """y of the last state."""

    def promised(self, bound: Bound, mu: float, L: float | None) -> float | None:
        """The |y - y*| that was sure beforehand, where mu <= H <= L; None if none was."""

    def again(self, bound: Bound, y: Tensor, push: Tensor) -> tuple[Tensor, float, float]:
        """The minimiser of g + push'y, from y; the residual reached, and the one that is small enough."""


def _map(tree: Tree, act: Callable[[Any], Any], kind: type) -> Tree:
    if isinstance(tree, kind):
        return act(tree)
    if isinstance(tree, dict):
        return {k: _map(v, act, kind) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        parts: Iterator[Any] = (_map(v, act, kind) for v in tree)
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


def _versions(tree: Tree) -> list[int]:
    """How often each tensor has been changed in place."""
    found: list[int] = []
    _map(tree, lambda t: found.append(t._version), Tensor)
    return found


def _note(t: Tensor | int, found: list[bool]) -> None:
    if isinstance(t, Tensor) and t.is_floating_point():
        found.append(_finite(t))


def _finite(t: Tensor) -> bool:
    """Whether it holds no NaN and no infinity; its sum, which is quicker, can only overflow."""
    return bool(torch.isfinite(t.sum())) or bool(torch.isfinite(t).all())
