"""`bilevel` and `argmin`: where a program is declared; the front end goes by the type of the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from bigrad.auto import Auto
from bigrad.program import Program
from bigrad.solution import DeclarationError

if TYPE_CHECKING:
    import cvxpy as cp


def bilevel(
    upper: Any,
    lower: Any,
    responds: Any = (),
    *,
    link: Mapping[Any, Any] | None = None,
    costs: Mapping[str, Any] | None = None,
) -> Program:
    """Declare a bilevel program: the leader solves `upper`, knowing that the follower answers with a solution of
    `lower`.

        min over x, y of F(x, y)  subject to the constraints of `upper` on (x, y),  y in argmin { f(x, y) : constraints
        of `lower` }

    upper, lower: ordinary CVXPY problems that share variables and parameters; Minimize or Maximize at either level.
    Bounds and signs declared on a variable are constraints of the level that chooses it. The Parameters of both are the
    program's inputs. responds: the follower's variables; every other variable is the leader's. Where the follower is
    indifferent, its answer is the one that the leader likes best (the optimistic convention). Terms of the lower
    objective that the follower cannot influence do not matter and may be of any form.

    The lower level must be convex in the follower's variables: a convex quadratic objective with linear, second-order,
    exponential, power and semidefinite cones, as nearly every convex atom is. Functions of the leader's variables and of
    Parameters may stand in it as data. The upper level may be anything smooth, or convex. Where the leader minimises what
    the follower maximises, convex and concave, the program is recognised as a zero-sum game (bigrad.Saddle). Raises
    DeclarationError, with what to change, for a declaration that cannot mean what it says.

    Integers: where a variable of the follower is integer or boolean, both problems must be linear in each player's variables:
    linear constraints without Parameters, and objectives that sum multiples of theta * x * y, at most one factor of each:
    a Parameter, a variable of the leader's, one of the follower's. Such a program is solved by `bigrad.Cuts` and
    differentiated by an estimator, as one of OR-Tools models. A leader with integer variables over a continuous follower
    may be anything that SCIP takes (`bigrad.Global`).

    Prices: the upper problem may mention `c.dual_variables[0]` of any equality or inequality c of the lower problem that
    involves the follower. Where the follower's dual solution is not unique, the leader picks among them too.

    Several followers: a list of lower problems and a list of lists of variables, `bilevel(upper, [f, g], responds=[[y],
    [z]])`. Each follower takes the leader's decision and the others' variables as given; together they are in a Nash
    equilibrium, of which the leader picks the one that it likes best. Each problem must be convex in its own variables.

    OR-Tools: two CP-SAT models (`cp_model.CpModel`) or two MathOpt models (`mathopt.Model`), which share no variables.
    link: {leader's variable: its copy in the follower's model}. responds: {follower's variable: its copy in the leader's
    model}, or the list of those to be seen where the leader's model needs no copies. A leader's model without an objective
    stands against the follower: it minimises minus what the follower minimises. costs: {name: variables}: the objective
    coefficients of these variables, in the objective of the model that owns the object, become the program's input `name`,
    of that length (or the shape of an array of variables); what they are in the model is its default. A pair (one
    player's variable, the other's) stands for their product, in the objective of the first one's model: the cost of
    interdiction. MathOpt objectives may hold such products, CP-SAT models booleans bound by `add_multiplication_equality`.
    The follower may be a `bigrad.Oracle`, or any Python function from one item's costs to its decision (`bigrad.Given` says
    more about it): its variables are then the indices of its answer, all named in costs, and the leader stands against it.
    """
    from bigrad.oracle import Oracle
    from bigrad.programs import ortools

    if isinstance(lower, FunctionType | MethodType | partial):
        from bigrad.oracles.given import Given

        lower = Given(lower)
    if isinstance(lower, Oracle) or ortools.is_model(upper) or ortools.is_model(lower):
        return ortools.declare(upper, lower, link or {}, responds, costs or {}, Auto())
    if link is not None or costs is not None:
        raise DeclarationError(
            "bilevel(…, link=…, costs=…): for OR-Tools models; CVXPY problems share variables, and their Parameters are the inputs."
        )
    import cvxpy as cp

    problems = list(lower) if isinstance(lower, list | tuple) else [lower]
    names = [f"lower[{k}]" for k in range(len(problems))] if isinstance(lower, list | tuple) else ["lower"]
    if not problems:
        raise DeclarationError("bilevel(upper, []): give at least one lower problem.")
    for name, problem in zip(("upper", *names), (upper, *problems), strict=True):
        if not isinstance(problem, cp.Problem):
            raise DeclarationError(f"bilevel(…): {name} is a {type(problem).__name__}; give a cvxpy.Problem.")
    answers = _lists(responds) if isinstance(lower, list | tuple) else [_answers(responds)]
    if len(answers) != len(problems):
        raise DeclarationError(
            f"bilevel(…): {len(problems)} lower problems and {len(answers)} lists in responds; give one list of variables for each "
            "problem, like responds=[[y], [z]]."
        )
    from bigrad.programs import mixed, saddle
    from bigrad.programs.checks import check_constants
    from bigrad.programs.roles import is_integer

    for name, problem in zip(("upper", *names), (upper, *problems), strict=True):
        check_constants(name, problem)
    if len(problems) == 1 and any(is_integer(v) for v in answers[0]):
        return mixed.declare(upper, problems[0], answers[0], Auto())
    return saddle.declare(upper, problems, answers, Auto())


def _lists(responds: Any) -> list[list[cp.Variable]]:
    """One list of variables per follower."""
    import cvxpy as cp

    if isinstance(responds, cp.Variable) or not isinstance(responds, Sequence):
        raise DeclarationError(
            f"bilevel(…, responds={responds!r}): with a list of lower problems, give a list of lists of variables, one for each."
        )
    for k, answers in enumerate(responds):
        if isinstance(answers, cp.Variable):
            raise DeclarationError(
                f"bilevel(…, responds=…): with a list of lower problems, responds[{k}] must be the list of that follower's variables, "
                f"like [{answers.name()}]."
            )
    return [_answers(answers) for answers in responds]


def _answers(responds: Any) -> list[cp.Variable]:
    """The variables of one follower."""
    import cvxpy as cp

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
    return answers


def argmin(
    problem: Any, responds: Any = None, *, within: Any = None, costs: Mapping[str, Any] | None = None
) -> Program:
    """Declare a program with one level: an ordinary CVXPY problem, whose solution becomes a layer as that of two levels
    does.

        min over y of f(y)  subject to the constraints of `problem`

    problem: Minimize or Maximize, in all its variables; its Parameters are the program's inputs. A convex problem,
    whatever cones it needs, is solved to a proven optimum; one that is merely smooth, to a local one. The constraints'
    dual variables are outputs too. With integer variables it must be linear, with Parameters in the objective only; it is
    then differentiated by an estimator. A CP-SAT or MathOpt model is taken as well; costs: as in `bilevel`.
    Raises DeclarationError, with what to change, for a problem that cannot be taken.

    A torch function, `argmin(inner, responds=w0)`: inner(x, y, *more) returns the scalar tensor to be minimised in y, and
    `Layer(program)(x, *more)` is y*, differentiable in every tensor among its arguments (in dicts and lists too). responds:
    where solvers start, a tensor or a dict of tensors such as a module's parameters, for `torch.func.functional_call`; y and
    y* have its form. within: keeps y in a `bigrad.Box`, `Simplex` or `Ball`, or in the set onto which a function projects; for
    a dict of tensors, one for all or a dict of them by name.
    """
    if responds is not None or isinstance(problem, FunctionType | MethodType | partial):
        return _torch(problem, responds, within, costs)
    if within is not None:
        raise DeclarationError("argmin(problem, within=…): for torch functions; write a model's constraints into it.")
    from bigrad.programs import ortools

    if ortools.is_model(problem):
        return ortools.declare(problem, None, {}, (), costs or {}, Auto())
    if costs is not None:
        raise DeclarationError(
            "argmin(problem, costs=…): for OR-Tools models; a CVXPY problem's Parameters are its inputs."
        )
    import cvxpy as cp

    if not isinstance(problem, cp.Problem):
        raise DeclarationError(
            f"argmin(…): got a {type(problem).__name__}; give a cvxpy.Problem, a cp_model.CpModel or a mathopt.Model."
        )
    from bigrad.programs import mixed, single
    from bigrad.programs.checks import check_constants
    from bigrad.programs.roles import is_integer

    check_constants("given", problem)
    if any(is_integer(v) for v in problem.variables()):
        return mixed.declare(problem, None, (), Auto())
    return single.declare(problem, Auto())


def _torch(function: Any, responds: Any, within: Any, costs: Any) -> Program:
    """The program of a torch function."""
    if not callable(function) or responds is None or costs is not None:
        raise DeclarationError(
            f"argmin({type(function).__name__}, responds={type(responds).__name__}): a torch lower level is a function of (x, y) and "
            "the tensor, or dict of tensors, where y starts: argmin(inner, responds=w0). A cvxpy.Problem needs no responds."
        )
    from bigrad.programs.torch import declare

    return declare(function, responds, within, Auto())
