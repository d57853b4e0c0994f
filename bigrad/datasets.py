"""Bundled data and problems, each with its origin and, for problems, its known answer.

`italy_power_demand` and `semo_prices` are real data to learn from; `textbook` are bilevel programs of the literature with
verified global optima, `toll_grid` makes programs of any size, `read_mibs` reads your own files. Everything comes with the package:
nothing is downloaded. Licences: ``bigrad/data/LICENSES.md``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bigrad.networks import TollNetwork, toll_grid
from bigrad.solution import InputError

if TYPE_CHECKING:
    import cvxpy as cp

    from bigrad.program import Program

__all__ = [
    "Coefficients",
    "ItalyPowerDemand",
    "Quadratic",
    "Rows",
    "SemoPrices",
    "TextbookProblem",
    "TollNetwork",
    "italy_power_demand",
    "read_mibs",
    "semo_prices",
    "textbook",
    "toll_grid",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_DATA = files("bigrad") / "data"


@dataclass(frozen=True, eq=False)
class ItalyPowerDemand:
    """Hourly electricity demand of Italy, split into training and test days.

    Attributes:
        train: (n, 24) demand of the training days, one column for each hour from midnight, without unit: every day is
            standardised to mean 0 and sample standard deviation 1.
        test: (m, 24) demand of the test days, likewise.
        train_season: (n,) season of each training day, 1 for October to March and 2 for April to September.
        test_season: (m,) season of each test day.
    """

    train: Floats
    test: Floats
    train_season: Integers
    test_season: Integers


def italy_power_demand(train: int | None = None, seed: int = 0) -> ItalyPowerDemand:
    """Return 1096 days of hourly electricity demand in Italy, in a training and a test part.

    The archive lists the days in no order of time and without dates, so its own split mixes days of one week over both
    parts, and so does a redraw.

    Args:
        train: the number of training days, 1 to 1095, drawn at random from all days; None keeps the archive's own split
            of 67 training and 1029 test days.
        seed: the seed of that draw; not used when `train` is None.

    Returns:
        New arrays on each call, yours to change.

    Raises:
        InputError: `train` leaves one of the two parts empty.

    Source:
        ItalyPowerDemand of the UCR time series archive (Keogh et al., "Intelligent Icons", ICDM 2006), as shipped with
        the package aeon (BSD-3-Clause).
    """
    with (_DATA / "italy_power_demand.npz").open("rb") as file, np.load(file) as archive:
        demand = np.concatenate([archive["train"], archive["test"]]).astype(np.float64)
        season = np.concatenate([archive["train_season"], archive["test_season"]]).astype(np.int64)
        count = len(archive["train"])
    if train is not None:
        if not 1 <= train < len(demand):
            raise InputError(
                f"italy_power_demand(train={train}): there are {len(demand)} days and both parts need one; "
                f"choose 1 to {len(demand) - 1}, or None for the archive's own split."
            )
        order = np.random.default_rng(seed).permutation(len(demand))
        demand, season, count = demand[order], season[order], train
    return ItalyPowerDemand(demand[:count], demand[count:], season[:count], season[count:])


@dataclass(frozen=True, eq=False)
class SemoPrices:
    """Half-hourly electricity prices of Ireland as knapsacks: a day is an instance, a half-hour one of its 48 items.

    Days follow each other in time, and the test days come after the training days. An item weighs the same every day;
    its value is the price of its half-hour, in euro per MWh, times its weight, with some noise.

    Attributes:
        features: the names of the features.
        weights: (48,) weight of each item: 3, 5 or 7; 240 in all.
        train_features: (552, 48, 8) of each half-hour the calendar, the market's forecasts, and the CO2 intensity as
            measured; in their own units, so standardise them.
        train_values: (552, 48) value of each item.
        test_features: (237, 48, 8) the same of the test days.
        test_values: (237, 48)
    """

    features: tuple[str, ...]
    weights: Integers
    train_features: Floats
    train_values: Floats
    test_features: Floats
    test_values: Floats


def semo_prices() -> SemoPrices:
    """Return 789 days of Irish electricity prices, the energy knapsack of decision-focused learning.

    Its usual task: predict the values of a day's items from their features, so that the items which fit into a capacity
    of 60, 120 or 180, and look best, are worth as much as can be. The file's first feature, the number of the day, is
    left out: it only names the day.

    Returns:
        New arrays on each call, yours to change; the split is the file's own.

    Source:
        Prices of the Single Electricity Market Operator of Ireland; Ifrim, O'Sullivan and Simonis, "Properties of energy-
        price forecasts for scheduling", CP 2012. Knapsack: Mandi et al., "Smart predict-and-optimize for hard
        combinatorial optimization problems", AAAI 2020; file: ``Knapsack/Trainer/Data.npz`` of PredOpt/predopt-benchmarks
        (MIT; Mandi et al., "Decision-focused learning: foundations, state of the art, benchmark and future
        opportunities", JAIR 2024).
    """
    with (_DATA / "semo_prices.npz").open("rb") as file, np.load(file) as archive:
        x = [archive[part].astype(np.float64).reshape(-1, 48, 9)[..., 1:] for part in ("x_train", "x_test")]
        y = [archive[part].astype(np.float64).reshape(-1, 48) for part in ("y_train", "y_test")]
        weights = archive["knapsack_weights"].astype(np.int64)
    return SemoPrices(
        ("holiday", "weekday", "week", "month", "forecast wind", "forecast load", "forecast price", "CO2 intensity"),
        weights,
        np.ascontiguousarray(x[0]),
        y[0],
        np.ascontiguousarray(x[1]),
        y[1],
    )


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The function 0.5 z'Qz + c'z + c0 of z = (x, y), with Q (n, n) symmetric and c (n,), where n = nx + ny."""

    Q: Floats
    c: Floats
    c0: float


@dataclass(frozen=True, eq=False)
class Rows:
    """The affine rows A z <= b, or A z == b, of z = (x, y), with A (rows, nx + ny) and b (rows,); often no rows."""

    A: Floats
    b: Floats


@dataclass(frozen=True, eq=False)
class Coefficients:
    """The data of a quadratic textbook problem.

    Attributes:
        F: upper objective.
        f: lower objective.
        G: upper inequalities A z <= b.
        H: upper equalities A z == b.
        g: lower inequalities A z <= b.
        h: lower equalities A z == b.
    """

    F: Quadratic
    f: Quadratic
    G: Rows
    H: Rows
    g: Rows
    h: Rows


@dataclass(frozen=True, eq=False)
class TextbookProblem:
    """A bilevel program of the literature and its global optimum.

    It is to minimise F(x, y) over x and y such that G(x, y) <= 0, H(x, y) == 0 and y minimises f(x, .) subject to
    g(x, .) <= 0 and h(x, .) == 0: the optimistic form, in which the leader picks among the follower's best responses.
    The lower level is convex in y.

    Attributes:
        name: its name in the collection that it comes from.
        collection: that collection.
        category: its category there.
        nx: number of upper variables, may be 0.
        ny: number of lower variables.
        upper: kind of the upper objective: "linear", "quadratic" or "nonlinear".
        lower: kind of the lower objective, and of its constraints where these are not affine.
        F: upper objective, an expression in x[i] and y[j], in Python with functions as numpy names them.
        f: lower objective.
        G: upper inequalities, each <= 0.
        H: upper equalities, each == 0.
        g: lower inequalities, each <= 0.
        h: lower equalities, each == 0.
        coefficients: the same as matrices; None where an objective is not quadratic or a constraint not affine.
        F_star: upper objective at the global optimum, verified by an independent global search; None where the
            program is infeasible, which goes for `x_star`, `y_star` and `f_star` too.
        x_star: (nx,) a global optimum; there may be others.
        y_star: (ny,) its response.
        f_star: lower objective there.
    """

    name: str
    collection: str
    category: str
    nx: int
    ny: int
    upper: str
    lower: str
    F: str
    f: str
    G: tuple[str, ...]
    H: tuple[str, ...]
    g: tuple[str, ...]
    h: tuple[str, ...]
    coefficients: Coefficients | None
    F_star: float | None
    x_star: Floats | None
    y_star: Floats | None
    f_star: float | None

    def program_parts(self) -> tuple[cp.Problem, cp.Problem, cp.Variable | None, cp.Variable]:
        """Declare the two levels in CVXPY, ready for ``bilevel(upper, lower, responds=[y])``.

        Each call makes new variables. A convex upper objective is DCP; any other is a sum of products and squares.

        Returns:
            (upper, lower, x, y), where x is None if no term of the program contains an upper variable.

        Raises:
            InputError: the problem has no `coefficients`.
        """
        if self.coefficients is None:
            raise InputError(
                f"{self.name} is not quadratic with affine constraints, so it has no coefficients to declare it from; "
                f"write its expressions F, f, G, H, g and h in CVXPY by hand."
            )
        import cvxpy as cp

        data, nx = self.coefficients, self.nx
        x, y = cp.Variable(nx, name="x") if nx else None, cp.Variable(self.ny, name="y")
        blocks: list[tuple[cp.Variable, slice]] = [(y, slice(nx, None))]
        if x is not None:
            blocks.insert(0, (x, slice(nx)))
        z = [variable[i] for variable, _ in blocks for i in range(variable.size)]

        def linear(A: Floats) -> Any:
            """A z, where blocks of zeros leave no trace."""
            return sum(A[..., part] @ variable for variable, part in blocks if A[..., part].any())

        def square(Q: Floats) -> Any:
            """0.5 z'Qz: DCP if Q is positive semidefinite, term by term if not."""
            if np.linalg.eigvalsh(Q).min() < -1e-12:
                entries = [(i, j) for i, j in np.argwhere(np.triu(Q))]
                return sum(0.5 * Q[i, i] * cp.square(z[i]) if i == j else Q[i, j] * (z[i] * z[j]) for i, j in entries)
            if Q[:nx, nx:].any():
                return 0.5 * cp.quad_form(cp.hstack([variable for variable, _ in blocks]), Q, assume_PSD=True)
            used = [(variable, Q[part, part]) for variable, part in blocks if Q[part].any()]
            return sum(0.5 * cp.quad_form(variable, P, assume_PSD=True) for variable, P in used)

        def response(Q: Floats) -> Any:
            """0.5 z'Qz as a convex term of y, products of x and y, and a term of x alone."""
            only_x, only_y, mixed = np.zeros_like(Q), np.zeros_like(Q), Q[nx:, :nx]
            only_x[:nx, :nx], only_y[nx:, nx:] = Q[:nx, :nx], Q[nx:, nx:]
            return square(only_y) + ((mixed @ x) @ y if x is not None and mixed.any() else 0.0) + square(only_x)

        def constraints(inequalities: Rows, equalities: Rows) -> list[Any]:
            below = [linear(inequalities.A) <= inequalities.b] if len(inequalities.b) else []
            return below + ([linear(equalities.A) == equalities.b] if len(equalities.b) else [])

        F, f = data.F, data.f
        upper = cp.Problem(cp.Minimize(square(F.Q) + linear(F.c) + F.c0), constraints(data.G, data.H))
        lower = cp.Problem(cp.Minimize(response(f.Q) + linear(f.c) + f.c0), constraints(data.g, data.h))
        mentioned = [variable.id for problem in (upper, lower) for variable in problem.variables()]
        return upper, lower, x if x is not None and x.id in mentioned else None, y


def textbook() -> tuple[TextbookProblem, ...]:
    """Return 62 small continuous bilevel programs of the literature with their verified global optima.

    Of these, those with `coefficients` have quadratic or linear objectives and affine constraints; one of them is
    infeasible on purpose.

    Source:
        BOLIB 2 (Zhou, Zemkoho, Tin 2020), BASBLib 2.3 (Paulavičius, Adjiman 2017) and the tests of BilevelJuMP and
        YALMIP. The optima were verified by an independent global search: a grid over x with a convex lower solve, or a
        mixed-integer program.
    """
    return tuple(_problem(entry) for entry in json.loads((_DATA / "textbook.json").read_text("utf-8"))["problems"])


def _problem(entry: dict[str, Any]) -> TextbookProblem:
    """Turn one entry of the file into a problem."""
    size = entry["nx"] + entry["ny"]

    def array(values: list[float] | None) -> Floats | None:
        return None if values is None else np.array(values, dtype=np.float64)

    def quadratic(part: dict[str, Any]) -> Quadratic:
        return Quadratic(np.array(part["Q"], np.float64), np.array(part["c"], np.float64), float(part["c0"]))

    def rows(part: dict[str, Any]) -> Rows:
        return Rows(np.array(part["A"], np.float64).reshape(-1, size), np.array(part["b"], np.float64) + 0.0)

    coefficients = None
    if (data := entry.get("coef")) is not None:
        coefficients = Coefficients(
            quadratic(data["F"]), quadratic(data["f"]), *(rows(data[part]) for part in ("G", "H", "g", "h"))
        )
    return TextbookProblem(
        name=entry["name"],
        collection=entry["lib"],
        category=entry["category"],
        nx=entry["nx"],
        ny=entry["ny"],
        upper=entry["upper"],
        lower=entry["lower"],
        F=entry["F"],
        f=entry["f"],
        G=tuple(entry["G"]),
        H=tuple(entry["H"]),
        g=tuple(entry["g"]),
        h=tuple(entry["h"]),
        coefficients=coefficients,
        F_star=entry["F_star"],
        x_star=array(entry["x_star"]),
        y_star=array(entry["y_star"]),
        f_star=entry.get("f_star"),
    )


def read_mibs(path: str | Path) -> Program:
    """The program of an instance in MibS's format (BOBILib's), to be minimised by the leader.

    path: NAME.mps, NAME.aux or NAME: both files are read, index-based or name-based, the interdiction form too
    (`bigrad/discrete/mibs.py` has the format). The columns' names stand for the variables, `solution["x1"]`; the objectives'
    coefficients are the inputs `leader` (all columns, the leader's first) and `follower` (its own), `follower` alone where
    the leader removes columns: it stands against the follower.

    Raises FileNotFoundError where one of the files is not there, InputError for one that breaks the format.
    """
    from bigrad.auto import Auto
    from bigrad.discrete import mibs
    from bigrad.programs.nested import declare

    problem = mibs.read_mibs(path)
    return declare(problem.nested, problem.leader_names, problem.follower_names, Auto())
