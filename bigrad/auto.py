"""Auto: the default of both choices, the solver and the gradient rule, and why it chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bigrad.gradients.base import AbstractGradient
from bigrad.program import Program
from bigrad.solution import Outcome, Point
from bigrad.solvers.base import AbstractSolver

if TYPE_CHECKING:
    from torch import Tensor

LARGE = 1000
"""Variables and multipliers of both levels above which a smooth program is solved by sparse methods."""
MANY_PAIRS = 64
"""Above this many pairs, a nonconvex quadratic program takes Relaxation seconds and Sparse a fraction of one."""
FEW_PAIRS = 20
"""Up to this many pairs, a short branching search usually proves the optimum within a few milliseconds; above, it doubles with every
second pair."""


@dataclass(frozen=True)
class Auto(AbstractSolver, AbstractGradient):
    """Chooses by the program: Cuts for OR-Tools models and integer followers, with Interpolate for the gradient; Global where
    the leader has integer variables; Saddle for a convex-concave zero-sum game; for one level, ActiveSet for a convex
    quadratic program, Formula for the projection onto a ball and Interior for other cones; for two, Sparse for a large one,
    Pieces under a convex quadratic upper level; Relaxation for any other; Descent for a torch
    function; Implicit for the gradient.

    `program.explain()` and `layer.explain()` print the choice and its reason.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def accepts(self, program: Program) -> str | None:
        """None, but for integers in a program that SCIP cannot be given: some solver takes every other that could be declared."""
        asked = program.integers or program.combinatorial or program.inner
        return self.choose(program)[0].accepts(program) if asked else None

    def choose(self, program: Program) -> tuple[AbstractSolver, str]:
        """The solver that fits, and why."""
        if program.combinatorial:  # before the imports that load CVXPY, which such a program can do without
            from bigrad.exact.cuts import Cuts

            return Cuts(), Cuts().choose(program)[1]
        if program.inner:
            from bigrad.solvers.descent import Descent

            return Descent().choose(program)

        from bigrad.solvers.active_set import ActiveSet
        from bigrad.solvers.certificate import Global
        from bigrad.solvers.formula import Formula
        from bigrad.solvers.interior import Interior
        from bigrad.solvers.pieces import Pieces
        from bigrad.solvers.relaxation import Relaxation
        from bigrad.solvers.saddle import Saddle
        from bigrad.solvers.sparse import Sparse

        if program.integers:
            return Global(), f"The leader has integer variables. {Global().choose(program)[1]}"
        if program.saddle is not None:
            return Saddle().choose(program)
        if Formula().accepts(program) is None:
            return Formula().choose(program)
        if Interior().accepts(program) is None:
            return Interior().choose(program)
        large = program.quadratic is None and program.smooth.layout.primal > LARGE
        if large and Sparse().accepts(program) is None:
            return Sparse(), f"The program is large: {program.why_not_quadratic}."
        if program.quadratic is None:
            return Relaxation(), f"The program is not quadratic: {program.why_not_quadratic}."
        if not program.convex:
            if program.quadratic.sizes.pairs > MANY_PAIRS and Sparse().accepts(program) is None:
                return (
                    Sparse(),
                    "The upper objective is not convex in (x, y) together, and there are many complementarity pairs.",
                )
            return Relaxation(), "The upper objective is quadratic but not convex in (x, y) together."
        if not program.quadratic.sizes.y:
            return ActiveSet(), ActiveSet().choose(program)[1]
        few = program.quadratic.sizes.pairs <= FEW_PAIRS
        solver = Pieces(starts=8, nodes=256) if few else Pieces(starts=3, nodes=0)
        return solver, solver.choose(program)[1]

    def on_accelerator(self, program: Program) -> AbstractSolver:
        """The solver for inputs that lie on an accelerator: one that works there if it takes the program, else itself."""
        from bigrad.solvers.mehrotra import Mehrotra

        return self if Mehrotra().accepts(program) else Mehrotra()

    def solve(
        self, program: Program, theta: tuple[np.ndarray, ...], warm_start: Sequence[Point | None] | None = None
    ) -> Outcome:
        """Solve with the chosen solver."""
        return self.choose(program)[0].solve(program, theta, warm_start)

    def pull_back(
        self, program: Program, outcome: Outcome, theta: tuple[Tensor, ...], wanted: tuple[bool, ...], cotangent: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Differentiate with the chosen rule."""
        from bigrad.gradients.implicit import Implicit

        return Implicit().pull_back(program, outcome, theta, wanted, cotangent)
