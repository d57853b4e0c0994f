"""Declarations.

What is refused, with which words, and that what is accepted means what it says (brute force over the leader's x).
"""

import cvxpy as cp
import numpy as np
import pytest
from helpers import brute_force, case, check_point, random_atoms, reply, solved

import bigrad as bg


def scalars():
    return cp.Variable(name="x"), cp.Variable(name="y")


def declare(upper, lower, responds, above=(), below=()):
    return case(upper, lower, responds, above, below).program


X, Y = scalars()
Z = cp.Variable(name="z")
VX, VY = cp.Variable(2, name="vx"), cp.Variable(2, name="vy")
P, Q = cp.Parameter(name="p"), cp.Parameter(name="q")
N = cp.Parameter(name="n", nonneg=True)
INTEGER, BOOLEAN = cp.Variable(name="k", integer=True), cp.Variable(name="k", boolean=True)
COMPLEX, PSD = cp.Variable(name="k", complex=True), cp.Variable((2, 2), name="k", PSD=True)
DIAGONAL, EMPTY = cp.Variable((2, 2), name="k", diag=True), cp.Variable(0, name="k")
X2, Y2 = cp.square(X), cp.square(Y - X)

REFUSED = {
    "a lower variable nobody chooses": (lambda: declare(X2, Y2 + cp.square(Z), [Y]), "'z' appears in the lower problem only"),
    "only in a lower constraint": (lambda: declare(X2, Y2, [Y], below=[Y <= Z]), "if the leader chooses it, name it in the upper problem"),
    "a response the follower does not have": (lambda: declare(X2 + Z, Y2, [Y, Z]), "'z' does not appear in the lower problem"),
    "no response": (lambda: declare(X2, Y2, []), "name the variables that the follower chooses"),
    "responses that are no list": (lambda: bg.bilevel(cp.Problem(cp.Minimize(X2)), cp.Problem(cp.Minimize(Y2)), None), "give the list"),
    "a response that is an expression": (lambda: declare(X2, Y2, [Y + 1]), "is not a cvxpy.Variable"),
    "a response that is a parameter": (lambda: declare(X2 + P, Y2 + P * Y, [P]), "is not a cvxpy.Variable"),
    "a response by name": (
        lambda: bg.bilevel(cp.Problem(cp.Minimize(X2)), cp.Problem(cp.Minimize(Y2)), "y"),
        "is not a cvxpy.Variable",
    ),
    "an objective instead of a problem": (
        lambda: bg.bilevel(cp.Minimize(X2), cp.Problem(cp.Minimize(Y2)), [Y]),
        "upper is a Minimize; give a cvxpy.Problem",
    ),
    "a lower list": (lambda: bg.bilevel(cp.Problem(cp.Minimize(X2)), [Y >= 0], [Y]), r"lower\[0\] is a Inequality; give a cvxpy.Problem"),
    "a concave lower objective": (lambda: declare(X2, -Y2, [Y]), "not convex in the follower's variables.*Only a convex lower level"),
    "a convex lower objective, maximised": (lambda: declare(X2, cp.Maximize(Y2), [Y]), "not convex in the follower's variables"),
    "a nonconvex lower constraint": (lambda: declare(X2, Y2, [Y], below=[cp.square(Y) >= 1]), "the constraint .* breaks CVXPY's DCP rules"),
    "a product of the follower's variables": (lambda: declare(X2, Y * Z - X * Y, [Y, Z]), r"not convex.* at y \* z"),
    "a weight of unknown sign": (lambda: declare(X2, P * Y2, [Y]), "not convex"),
    "a leader's weight of unknown sign": (lambda: declare(X2, X * cp.square(Y), [Y]), "not convex"),
    "an approximated cone": (
        lambda: declare(X2, Y2, [Y], below=[cp.RelEntrConeQuad(Y + 1, cp.Constant(1.0), Y, 3, 3)]),
        "needs the cones RelEntrConeQuad.*second-order",
    ),
    "an approximated cone of the leader": (
        lambda: declare(X2, Y2 - X * Y, [Y], [cp.RelEntrConeQuad(X + 1, cp.Constant(1.0), X, 3, 3)]),
        "needs the cones RelEntrConeQuad.*second-order",
    ),
    "a diagonal follower": (lambda: declare(X2, cp.trace(DIAGONAL), [DIAGONAL]), "attribute diag"),
    "an integer follower": (lambda: declare(X2, cp.square(INTEGER - X), [INTEGER]), "follower variable 'k' is integer"),
    "a boolean follower": (lambda: declare(X2, cp.square(BOOLEAN - X), [BOOLEAN]), "follower variable 'k' is integer"),
    "a complex follower": (lambda: declare(X2, cp.square(cp.real(COMPLEX) - X), [COMPLEX]), "variable 'k' is complex"),
    "a complex parameter": (
        lambda: declare(X2, cp.square(Y - cp.real(cp.Parameter(name="w", complex=True))), [Y]),
        "parameter 'w' is complex",
    ),
    "a variable without entries": (lambda: declare(X2, Y2 + cp.sum(EMPTY), [Y, EMPTY]), r"shape \(0,\), with no entries"),
    "a PSD leader": (lambda: declare(cp.trace(PSD), cp.square(Y - PSD[0, 0]), [Y]), "cone without a smooth form"),
    "two parameters of one name": (
        lambda: declare(X2 + P * X, Y2 + cp.Parameter(name="p") * Y, [Y]),
        "Two different parameters have the name 'p'",
    ),
    "a kink the leader pulls at": (lambda: declare(X2 - cp.abs(Y), Y2, [Y]), "breaks CVXPY's rules for nonlinear programs"),
    "a cone above": (lambda: declare(X2, Y2, [Y], above=[cp.SOC(Y, VX)]), "is a cone.*smooth form"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_what_to_do(name):
    build, words = REFUSED[name]
    with pytest.raises(bg.DeclarationError, match=f"(?s){words}"):
        build()


def test_a_refusal_is_a_value_error_too():
    with pytest.raises(ValueError, match="name the variables"):
        declare(X2, Y2, [])


def grid(*variables, low=-3.0, high=3.0, count=9):
    """The same values for every scalar variable; for vectors, all combinations are made by the caller."""
    return {v: np.linspace(low, high, count) for v in variables}


def points(shape, low=-2.0, high=2.0, count=4):
    axes = np.meshgrid(*[np.linspace(low, high, count)] * int(np.prod(shape)))
    return [np.array(p).reshape(shape, order="F") for p in zip(*[a.ravel() for a in axes], strict=True)]


def accepted():
    """Programs to accept, with a grid of leader decisions."""
    x, y = scalars()
    z = cp.Variable(name="z")
    p, n = cp.Parameter(name="p"), cp.Parameter(name="n", nonneg=True)
    box = [x >= -3, x <= 3]
    near = cp.square(y - x)

    yield "maximize above", case(cp.Maximize(y - cp.square(x - 1)), near, y, box, [y <= 1.5]), grid(x)
    yield (
        "maximize below",
        case(cp.square(x - 1) + cp.square(y + 1), cp.Maximize(2 * y - cp.square(y - x)), y, box),
        grid(x),
    )
    yield "maximize both", case(cp.Maximize(-cp.abs(x) - y), cp.Maximize(-near - y), y, box, [y >= -1]), grid(x)
    yield (
        "maximize lower lp",
        case(cp.square(x - 2) + y, cp.Maximize(y), y, box, [y <= x, y <= 2 - x, y >= -9]),
        grid(x),
    )

    b, c = cp.Variable(name="x", bounds=[-1, 2]), cp.Variable(name="y", nonneg=True)
    yield "bounds and signs", case(cp.square(b + 3) + c, cp.square(c - b + 1), c), grid(b, low=-1, high=2)
    b, c = cp.Variable(name="x", nonpos=True), cp.Variable(name="y", bounds=[None, 1])
    yield (
        "one-sided bounds",
        case(cp.square(b - 3) + cp.square(c - 3) + b, cp.square(c - b - 5), c),
        grid(b, low=-6, high=0),
    )
    b = cp.Variable(2, name="x", bounds=[np.array([-np.inf, 0.0]), np.array([1.0, np.inf])])
    c = cp.Variable((2, 2), name="y", bounds=[np.array([[0.0, -np.inf], [-1, 0]]), np.array([[np.inf, 0.5], [1, 1.5]])])
    m = np.array([[1.0, -2.0], [0.5, 3.0]])
    yield (
        "array bounds with infinities",
        case(cp.sum_squares(b - np.array([3, -2])) + cp.sum(c) / 3, cp.sum_squares(c - m * b[0] - m.T * b[1]), c),
        {
            b: [
                np.array(q)
                for q in np.stack(np.meshgrid(np.linspace(-1, 1, 5), np.linspace(0, 2, 5)), -1).reshape(-1, 2)
            ]
        },
    )
    low, high = cp.Parameter(2, name="low"), cp.Parameter(name="high")
    b, c = cp.Variable(name="x", bounds=[-3, high]), cp.Variable(2, name="y", bounds=[low, high])
    yield (
        "parameters as bounds",
        case(
            cp.square(b - 4) + cp.sum(c),
            cp.sum_squares(c - cp.hstack([b, -b])),
            c,
            values={low: [-1.0, -0.5], high: 1.25},
        ),
        grid(b, low=-3, high=1.25),
    )

    yield "convex lower term of x alone", case(cp.square(x - 1) + y, near + cp.square(x) + x, y, box), grid(x)
    yield "concave lower term of x alone", case(cp.square(x - 1) + y, near - cp.square(x), y, box), grid(x)
    yield (
        "parameter times x alone",
        case(cp.square(x - 1) + y, near - p * x - p * cp.square(x), y, box, values={p: 2.0}),
        grid(x),
    )
    yield (
        "terms in brackets",
        case(cp.square(x - 1) + y, 2 * (near - cp.square(x)) / 3 + (cp.square(y) - cp.exp(x)) * 2, y, box),
        grid(x),
    )
    v, w = cp.Variable(2, name="x"), cp.Variable(2, name="y")
    yield (
        "vectors in brackets",
        case(
            cp.sum_squares(v - 1) + cp.sum(w),
            cp.sum(cp.square(w - v) - cp.square(v)) + np.array([1, 2]) @ (w - cp.exp(v)),
            w,
            [cp.abs(v) <= 2],
        ),
        {v: points(2)},
    )

    yield "upper constraint on y", case(cp.square(x - 2), near, y, [*box, y <= 1, x + y >= -2]), grid(x)
    yield (
        "upper equality on y",
        case(cp.square(x - 1), cp.square(y - x), y, [*box, 2 * y == 1], [y <= 0.5]),
        grid(x, low=0, high=3),
    )
    yield "lower constraint on x alone", case(cp.square(x - 2), near, y, box, [x <= 1, y >= x - 0.5]), grid(x, high=1)
    yield (
        "equalities at both levels",
        case(
            cp.sum_squares(v - 1) + cp.sum_squares(w + 1),
            cp.sum_squares(w - v),
            w,
            [cp.sum(v) == 0.5, cp.abs(v) <= 2],
            [w[0] + 2 * w[1] == v[0]],
        ),
        {v: [np.array([t, 0.5 - t]) for t in np.linspace(-1.5, 2, 15)]},
    )
    yield (
        "sum of both in one row",
        case(cp.square(x - 2) + cp.square(y + 1), cp.square(y), y, box, [x + y == 1]),
        grid(x),
    )

    for name, atom in {
        "abs": cp.abs,
        "huber": lambda e: cp.huber(e, 0.5),
        "pos": cp.pos,
        "neg": cp.neg,
        "max": lambda e: cp.maximum(e, 2 * e - 1, -3.0),
        "norm1": lambda e: cp.norm1(cp.hstack([e, e - 1])),
        "norm_inf": lambda e: cp.norm_inf(cp.hstack([e, 2 * e - 1])),
        "sum_largest": lambda e: cp.sum_largest(cp.hstack([e, 1 - e, 0.3]), 2),
        "scalene": lambda e: cp.scalene(e, 2, 1),
    }.items():
        yield f"{name} above", case(atom(x - 1) + atom(y) + cp.square(x) / 9, near + y, y, box), grid(x)
        yield (
            f"{name} below",
            case(cp.square(x - 1) + cp.square(y + 1), near + atom(y - 0.25) + atom(y + x), y, box),
            grid(x),
        )
        if name == "huber":
            continue
        yield (
            f"{name} in rows",
            case(
                cp.square(x - 3) + cp.square(y - 3), cp.square(y - 2), y, [*box, atom(x + y) <= 2], [atom(y - x) <= 1.5]
            ),
            grid(x),
        )

    yield (
        "a leader variable in the upper problem only",
        case(cp.square(x - z) + cp.square(z - 2) + y, near, y, [*box, z <= 1, z >= -3]),
        grid(x, z, count=5),
    )
    yield (
        "a follower variable in the lower problem only",
        case(cp.square(x - 2) + cp.square(y), cp.square(y - x) + cp.square(z + y), [y, z], box, [z >= 0]),
        grid(x),
    )
    yield "the follower ignores the leader", case(cp.square(x - y), cp.square(y - 1), y, [x <= 0.5, x >= -3]), grid(x)
    yield "the leader ignores the follower", case(cp.square(x - 1), near, y, box), grid(x)
    yield "a leader who only looks", case(cp.Constant(1.0), near, y, [*box, y <= 1]), grid(x)
    yield (
        "bilinear below",
        case(cp.square(x - 1) + cp.square(y - 1), cp.square(y) + x * y - n * y, y, box, [y >= 0, y <= 1.5], {n: 1.0}),
        grid(x),
    )
    m = np.array([[2.0, 0.5], [0.5, 1.0]])
    yield (
        "quadratic forms and x @ y",
        case(
            cp.quad_form(v - 1, m) + cp.sum_squares(w),
            cp.quad_form(w, m) + (m @ v) @ w - cp.sum(w),
            w,
            [cp.abs(v) <= 2],
            [w >= -0.5],
        ),
        {v: points(2)},
    )
    k, t = cp.Parameter((2, 2), name="K", PSD=True), cp.Parameter(2, name="t")
    yield (
        "parametric quadratic forms",
        case(
            cp.quad_form(v, k) + cp.sum_squares(w - t),
            cp.quad_form(w, k) + v @ w,
            w,
            [cp.abs(v) <= 2],
            values={k: m, t: [1.0, -1.0]},
        ),
        {v: points(2)},
    )
    a, b = cp.Variable((2, 1), name="x"), cp.Variable((2, 3), name="y")
    f, g = cp.Parameter((2, 3), name="F"), cp.Parameter((3, 2), name="G")
    F, G = np.arange(6.0).reshape(2, 3) / 3 - 1, np.array([[1.0, -1.0], [0.5, 2.0], [0.0, 1.0]])
    yield (
        "matrices",
        case(
            cp.sum_squares(a - 0.5) + cp.sum(cp.multiply(F - 0.2, b)), cp.sum_squares(b - a @ np.array([[1.0, 2.0,
            -1.0]]) - f) / 2, b, [cp.abs(a) <= 2], [g @ b <= 2, b[0, 1] <= b[1, 2]], {f: F, g: G},
        ),
        {a: points((2, 1))},
    )  # fmt: skip
    yield (
        "an indifferent follower",
        case(cp.square(x - 1) + cp.square(y - 3), cp.Constant(0.0), y, box, [y <= 2, y >= x]),
        grid(x),
    )
    yield (
        "a follower with a zero cost",
        case(cp.square(x - 1) + cp.square(y - 3), 0 * y + cp.square(x), y, box, [y <= 2, y >= x]),
        grid(x),
    )
    yield "true constraints", case(cp.square(x - 1) + y, near, y, [*box, True], [True]), grid(x)
    yield (
        "parameters of one level each",
        case(cp.square(x - p) + y, near + n * y, y, box, values={p: 1.0, n: 0.5}),
        grid(x),
    )
    yield "one parameter at both", case(cp.square(x - p) + y, near + p * y, y, box, values={p: 1.0}), grid(x)


INDIFFERENT = {"an indifferent follower", "a follower with a zero cost"}
ACCEPTED = {name: rest for name, *rest in accepted()}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_and_solved_as_declared(name):
    """Bilevel feasible by the user's own objects, no worse than any point of the grid, and equal to the leader's best there."""
    problem, leader = ACCEPTED[name]
    program = problem.program
    assert program.quadratic is not None
    solution = program.solve(problem.values, verify=True)
    assert solution.status is bg.Status.GLOBAL
    assert solution.stats.follower_gap <= 1e-6
    for v in (*problem.leader, *problem.responds):
        np.testing.assert_array_equal(v.value, solution[v])
        assert solution[v].shape == v.shape
    check_point(problem, solution)
    value = problem.sense * solution.value
    unique = name not in INDIFFERENT
    best = brute_force(problem, leader, polish=1, unique=unique)
    assert value <= best + (1e-5 if unique else 1e-3) * (1 + abs(best))
    at_x = reply(problem, {v: np.round(solution[v], 9) for v in problem.leader}, unique)
    assert value == pytest.approx(at_x, abs=1e-4 if unique else 1e-3)


def check_random_atoms(seed):
    """The solution of a random program against a scan of its one leader variable.

    Its status and how far it is above the scan's best.
    """
    problem = random_atoms(seed)
    (x,) = problem.leader
    solution = problem.program.solve(problem.values, verify=True)
    scan = min(reply(problem, {x: t}) for t in np.linspace(-2, 2, 17))
    if not solution.status.ok:
        assert not np.isfinite(scan), (seed, solution.status, scan)
        return solution.status, 0.0
    assert solution.stats.follower_gap <= 1e-6, seed
    assert solution.stats.violation <= 1e-8, seed
    assert solution.stats.residual <= 1e-6, seed
    check_point(problem, solution)
    value = problem.sense * solution.value
    assert value == pytest.approx(reply(problem, {x: solution[x]}), rel=1e-4, abs=1e-4), seed
    if solution.status is bg.Status.GLOBAL:
        assert value <= scan + 1e-5 * (1 + abs(scan)), seed
    return solution.status, value - scan


def test_random_expressions_are_canonicalised_rightly():
    found = [check_random_atoms(seed) for seed in range(15)]
    assert sum(status is bg.Status.GLOBAL for status, _ in found) >= 10


@pytest.mark.slow
def test_many_random_expressions_are_canonicalised_rightly():
    found = [check_random_atoms(seed) for seed in range(15, 300)]
    worse = sum(excess > 1e-5 for _, excess in found)
    print(f"\n{len(found)} programs; {worse} with a local optimum worse than the scan's best")
    assert worse <= 0.05 * len(found)


def test_a_single_variable_may_respond():
    x, y = scalars()
    problem = case(cp.square(x - 1), cp.square(y - x), y)
    alone = bg.bilevel(problem.upper, problem.lower, y).solve()
    assert (
        alone[y]
        == pytest.approx(bg.bilevel(problem.upper, problem.lower, responds=(y,)).solve()[y])
        == pytest.approx(1.0)
    )


def test_bounds_of_a_leader_bind_the_leader_only():
    """A bound on a leader's variable is no constraint of the follower.

    It may not make the follower infeasible or change its answer.
    """
    x = cp.Variable(name="x", bounds=[0, 1])
    y = cp.Variable(name="y")
    problem = case(cp.square(x - 2) + y, cp.square(y - 3 * x), y)
    solution = problem.program.solve()
    assert solution[x] == pytest.approx(0.5)
    assert solution[y] == pytest.approx(1.5)


def test_declaring_leaves_the_problems_alone():
    x, y = scalars()
    p = cp.Parameter(name="p", value=3.0)
    x.value = y.value = 7.0
    problem = case(cp.square(x - p) + y, cp.square(y - x) - cp.square(x), y, [x <= 2], [y >= 0])
    before = [
        str(e)
        for e in (
            problem.upper.objective,
            *problem.upper.constraints,
            problem.lower.objective,
            *problem.lower.constraints,
        )
    ]
    program = problem.program
    assert before == [
        str(e)
        for e in (
            problem.upper.objective,
            *problem.upper.constraints,
            problem.lower.objective,
            *problem.lower.constraints,
        )
    ]
    assert (x.value, y.value, p.value) == (7.0, 7.0, 3.0)
    solution = program.solve({p: 1.0}, verify=True)
    assert p.value == 3.0
    assert (x.value, y.value) == (solution[x], solution[y])
    assert solved(cp.Problem(cp.Minimize(cp.square(y - 4)), [y >= 0])) == pytest.approx(0, abs=1e-6)


def test_follower_values_of_the_lower_objective_keep_the_dropped_terms():
    x, y = scalars()
    problem = case(cp.square(x - 1), cp.Maximize(-cp.square(y - x) + cp.exp(x) + 5), y)
    solution = problem.program.solve()
    assert solution.lower_value == pytest.approx(np.exp(1) + 5)


@pytest.mark.parametrize(
    "upper", [lambda x, y: cp.exp(x) + cp.square(y), lambda x, y: cp.square(x - 1) - cp.log(y + 3)]
)
def test_smooth_upper_levels_are_accepted(upper):
    x, y = scalars()
    problem = case(upper(x, y), cp.square(y - x), y, [cp.abs(x) <= 2])
    program = problem.program
    assert program.quadratic is None
    solution = program.solve(verify=True)
    assert solution.status.ok
    check_point(problem, solution)
    best = brute_force(problem, {x: np.linspace(-2, 2, 9)}, polish=1)
    assert solution.value <= best + 1e-5


def test_an_upper_variable_inside_a_lower_row_takes_the_smooth_road():
    x, y = cp.Variable(name="x", nonneg=True), cp.Variable(name="y")
    problem = case(cp.square(x - 2) + 3 * y, cp.square(y - 1), y, [x >= 0.1], [x * y >= 1.5])
    program = problem.program
    assert program.quadratic is None
    assert "multiplies lower variables" in program.explain()
    solution = program.solve(verify=True)
    assert solution.status.ok
    check_point(problem, solution)
    best = brute_force(problem, {x: np.linspace(0.2, 4, 20)}, polish=1)
    assert solution.value <= best + 1e-4


def test_explain_names_solver_sizes_and_reason():
    x, y = scalars()
    text = case(cp.square(x) + y, cp.square(y - x), y, [x <= 2], [y >= 0]).program.explain()
    for words in ("leader 1, follower 1", "complementarity pairs 1", "convex", "Solver: Pieces("):
        assert words in text
    text = case(x * y, cp.square(y - x), y, [x <= 2, x >= -2]).program.explain()
    assert "not convex" in text
    assert "Solver: Relaxation(" in text


def test_programs_refuse_solvers_that_cannot_take_them():
    x, y = scalars()
    program = case(x * y, cp.square(y - x), y, [x <= 2, x >= -2]).program
    with pytest.raises(bg.CapabilityError, match=r"Use Relaxation\(\)"):
        program.solve(solver=bg.Pieces())
    with pytest.raises(bg.CapabilityError, match=r"Use Relaxation\(\)"):
        program.explain(bg.Pieces())


def test_programs_are_frozen():
    x, y = scalars()
    program = case(cp.square(x), cp.square(y - x), y).program
    with pytest.raises(AttributeError):
        program.sign = -1.0
