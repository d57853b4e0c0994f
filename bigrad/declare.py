"""`bilevel` and `argmin`: where a program is declared; the front end goes by the type of the models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bigrad.auto import Auto
from bigrad.program import Program
from bigrad.solution import DeclarationError

if TYPE_CHECKING:
    import cvxpy as cp


def bilevel(upper: cp.Problem, lower: cp.Problem, responds: Sequence[cp.Variable]) -> Program:
    """Declare a bilevel program: the leader solves `upper`, knowing that the follower answers with a solution of
    `lower`.

        min over x, y of F(x, y)  subject to the constraints of `upper` on (x, y),  y in argmin { f(x, y) : constraints
        of `lower` }

    upper, lower: ordinary CVXPY problems that share variables and parameters; Minimize or Maximize at either level.
    Bounds and signs declared on a variable are constraints of the level that chooses it. The Parameters of both are the
    program's inputs. responds: the follower's variables; every other variable is the leader's. Where the follower is
    indifferent, its answer is the one that the leader likes best (the optimistic convention). Terms of the lower
    objective that the follower cannot influence do not matter and may be of any form.

    The lower level must be convex in the follower's variables and reduce to linear constraints with a convex
    quadratic objective, and be DPP once the leader's variables are taken as parameters. The upper level may be
    anything smooth, or convex. Where the leader minimises what the follower maximises, convex and concave, the
    program is recognised as a zero-sum game (bigrad.Saddle), and the follower's problem may need cones. Raises
    DeclarationError, with what to change, for a declaration that cannot mean what it says.
    """
    import cvxpy as cp

    for name, problem in (("upper", upper), ("lower", lower)):
        if not isinstance(problem, cp.Problem):
            raise DeclarationError(f"bilevel(…): {name} is a {type(problem).__name__}; give a cvxpy.Problem.")
    try:
        answers = [responds] if isinstance(responds, cp.Variable) else list(responds)
    except TypeError:
        raise DeclarationError(
            f"bilevel(…, responds={responds!r}): give the list of the follower's variables."
        ) from None
    for v in answers:
        if not isinstance(v, cp.Variable):
            raise DeclarationError(
                f"bilevel(…, responds=…): {v!r} is not a cvxpy.Variable; name the follower's variables."
            )
    from bigrad.programs.saddle import declare

    return declare(upper, lower, answers, Auto())


def argmin(problem: cp.Problem) -> Program:
    """Declare a program with one level: an ordinary CVXPY problem, whose solution becomes a layer as that of two levels
    does.

        min over y of f(y)  subject to the constraints of `problem`

    problem: Minimize or Maximize, in all its variables; its Parameters are the program's inputs, and must enter it
    affinely (DPP). A convex problem, whatever cones it needs, is solved to a proven optimum; one that is merely smooth,
    to a local one. The constraints' dual variables are outputs too.
    Raises DeclarationError, with what to change, for a problem that cannot be taken.
    """
    import cvxpy as cp

    if not isinstance(problem, cp.Problem):
        raise DeclarationError(f"argmin(…): got a {type(problem).__name__}; give a cvxpy.Problem.")
    from bigrad.programs.single import declare

    return declare(problem, Auto())
