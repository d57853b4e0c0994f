"""The file format of MibS: NAME.mps, all columns and rows of both levels, and NAME.aux, which names the follower's.

The aux file has one key and one value a line, or a block of values behind a key:

    N, M      how many columns and rows are the follower's
    LC, LR    one such column or row: its place in the MPS file, from 0 (the objective is no row), or its name
    LO        the follower's cost of that column, in the order of the LC;  OS   1: it minimises (default), -1: it maximises
    IC, IB    interdiction: the leader's cost of removing a column, and its budget

or, with names, @NUMVARS, @NUMCONSTRS, @VARSBEGIN ... @VARSEND (column and cost), @CONSTSBEGIN ... @CONSTSEND. With
interdiction the MPS file is the follower's program min d'y alone, and the leader removes columns x: max over IC'x <= IB
of min d'y with y_j <= u_j (1 - x_j), written as the minimum of -d'y. Tahernejad, Ralphs and DeNegre, "A branch-and-cut
algorithm for mixed integer bilevel linear optimization problems and its implementation", 2020.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from bigrad.discrete.nested import Nested, Objective, Rows
from bigrad.solution import InputError

_KEYS = {"N", "M", "LC", "LR", "LO", "OS", "IC", "IB"}


@dataclass(frozen=True, eq=False)
class MibsProblem:
    """A program read from MibS's files: its arrays, and the names of the leader's and the follower's columns."""

    name: str
    nested: Nested
    leader_names: tuple[str, ...]
    follower_names: tuple[str, ...]


@dataclass
class _Aux:
    """What the aux file says, in its own words."""

    path: Path
    values: dict[str, list[str]] = field(default_factory=lambda: {key: [] for key in _KEYS})

    def fail(self, message: str) -> InputError:
        return InputError(f"{self.path}: {message}")

    def numbers(self, key: str) -> np.ndarray:
        """The values of a key as floats."""
        try:
            numbers = np.array([float(text) for text in self.values[key]])
        except ValueError as error:
            raise self.fail(f"{key} needs a number, but {error}.") from None
        if not np.isfinite(numbers).all():
            raise self.fail(f"{key} has a value that is not finite.")
        return numbers

    def one(self, key: str, default: float | None = None) -> float:
        """The one value of a key."""
        numbers = self.numbers(key)
        if len(numbers) == 1:
            return float(numbers[0])
        if not len(numbers) and default is not None:
            return default
        raise self.fail(f"{key} must be given once, but was given {len(numbers)} times.")

    def places(self, key: str, names: list[str]) -> np.ndarray:
        """Columns or rows by their place or their name."""
        place = {name: i for i, name in enumerate(names)}
        found = []
        for text in self.values[key]:
            if text in place:
                found.append(place[text])
            elif text.lstrip("-").isdigit():
                found.append(int(text))
            else:
                raise self.fail(f"{key} {text}: the MPS file has no such name among {len(names)}.")
        if len(set(found)) < len(found):
            raise self.fail(f"{key} names place {next(i for i in found if found.count(i) > 1)} twice.")
        return np.array(found, dtype=int)


def read_mibs(path: str | Path) -> MibsProblem:
    """Read NAME.mps and NAME.aux; path: either file, or NAME without an ending.

    Raises:
        FileNotFoundError: one of the two is not there.
        InputError: a file breaks the format; the message names file, line or key.
    """
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".mps", ".aux") else path
    mps, aux_path = Path(f"{stem}.mps"), Path(f"{stem}.aux")
    for file in (mps, aux_path):
        if not file.is_file():
            raise FileNotFoundError(
                f"read_mibs({str(path)!r}): there is no file {file}; it needs NAME.mps and NAME.aux."
            )
    aux, program = _read_aux(aux_path), _read_mps(mps)
    return (
        _interdiction(stem.name, aux, program)
        if aux.values["IC"] or aux.values["IB"]
        else _plain(stem.name, aux, program)
    )


@dataclass(frozen=True, eq=False)
class _Mps:
    costs: np.ndarray
    constant: float
    matrix: sp.csr_array
    rows: tuple[np.ndarray, np.ndarray]
    bounds: tuple[np.ndarray, np.ndarray]
    integer: np.ndarray
    columns: list[str]
    row_names: list[str]


def _read_mps(path: Path) -> _Mps:
    import highspy

    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    if highs.readModel(str(path)) == highspy.HighsStatus.kError:
        raise InputError(f"{path}: HiGHS cannot read it as an MPS file.")
    lp = highs.getLp()
    n, m = lp.num_col_, lp.num_row_
    parts = (np.array(lp.a_matrix_.value_), np.array(lp.a_matrix_.index_), np.array(lp.a_matrix_.start_))
    if lp.a_matrix_.format_ == highspy.MatrixFormat.kColwise:
        matrix = sp.csr_array(sp.csc_array(parts, shape=(m, n)))
    else:
        matrix = sp.csr_array(parts, shape=(m, n))
    sense = -1.0 if lp.sense_ == highspy.ObjSense.kMaximize else 1.0
    kinds = highspy.HighsVarType
    odd = [k for k, kind in enumerate(lp.integrality_) if kind not in (kinds.kContinuous, kinds.kInteger)]
    if odd:
        raise InputError(
            f"{path}: column {lp.col_names_[odd[0]]} is semi-continuous, which bilevel programs here have no word for."
        )
    integer = np.array([kind == kinds.kInteger for kind in lp.integrality_] or [False] * n, dtype=bool)
    return _Mps(
        sense * np.array(lp.col_cost_),
        sense * lp.offset_,
        matrix,
        (np.array(lp.row_lower_), np.array(lp.row_upper_)),
        (np.array(lp.col_lower_), np.array(lp.col_upper_)),
        integer,
        list(lp.col_names_),
        list(lp.row_names_),
    )


def _read_aux(path: Path) -> _Aux:
    aux, block = _Aux(path), ""
    counts = {"@NUMVARS": "N", "@NUMCONSTRS": "M"}
    pending = ""
    for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if pending:
            aux.values[pending].append(words[0])
            pending = ""
        elif words[0] in counts:
            pending = counts[words[0]] if len(words) == 1 else ""
            if not pending:
                aux.values[counts[words[0]]].append(words[1])
        elif words[0].startswith("@"):
            block = {"@VARSBEGIN": "LC", "@CONSTSBEGIN": "LR", "@CONSTRSBEGIN": "LR"}.get(words[0], "")
        elif block == "LC" and len(words) == 2:
            aux.values["LC"].append(words[0])
            aux.values["LO"].append(words[1])
        elif block == "LR" and len(words) == 1:
            aux.values["LR"].append(words[0])
        elif not block and words[0] in _KEYS and len(words) >= 2:
            aux.values[words[0]].extend(words[1:])
        else:
            raise InputError(
                f"{path}, line {number}: '{line.strip()}' is not a key ({', '.join(sorted(_KEYS))}) and its value."
            )
    return aux


def _follower(aux: _Aux) -> np.ndarray:
    """The follower's costs, to be minimised, checked against the count of its columns."""
    columns, costs = aux.values["LC"], aux.numbers("LO")
    if len(columns) != aux.one("N", len(columns)):
        raise aux.fail(f"N says {aux.one('N'):g} columns, but {len(columns)} LC are given.")
    if len(aux.values["LR"]) != aux.one("M", len(aux.values["LR"])):
        raise aux.fail(f"M says {aux.one('M'):g} rows, but {len(aux.values['LR'])} LR are given.")
    if len(costs) != len(columns):
        raise aux.fail(f"LO needs one cost for each of the {len(columns)} LC, but {len(costs)} are given.")
    sense = aux.one("OS", 1.0)
    if sense not in (1.0, -1.0):
        raise aux.fail(f"OS must be 1 or -1, but is {sense:g}.")
    return sense * costs


def _plain(name: str, aux: _Aux, program: _Mps) -> MibsProblem:
    costs = _follower(aux)
    n = len(program.columns)
    below, rows = aux.places("LC", program.columns), aux.places("LR", program.row_names)
    for key, found, size in (("LC", below, n), ("LR", rows, len(program.row_names))):
        wrong = found[(found < 0) | (found >= size)]
        if len(wrong):
            raise aux.fail(f"{key} {wrong[0]}: the MPS file has places 0 to {size - 1}.")
    above = np.setdiff1d(np.arange(n), below)
    order = np.concatenate([above, below])
    other = np.setdiff1d(np.arange(len(program.row_names)), rows)
    matrix = program.matrix[:, order]
    none = sp.csr_array((len(above), len(below)))
    nested = Nested(
        leaders=len(above),
        followers=len(below),
        lower=program.bounds[0][order],
        upper=program.bounds[1][order],
        integer=program.integer[order],
        leader_rows=Rows(sp.csr_array(matrix[other]), program.rows[0][other], program.rows[1][other]),
        follower_rows=Rows(sp.csr_array(matrix[rows]), program.rows[0][rows], program.rows[1][rows]),
        leader=Objective(program.costs[order], none, program.constant),
        follower=Objective(np.concatenate([np.zeros(len(above)), costs]), none),
    )
    names = program.columns
    return MibsProblem(name, nested, tuple(names[j] for j in above), tuple(names[j] for j in below))


def _interdiction(name: str, aux: _Aux, program: _Mps) -> MibsProblem:
    n, costs = len(program.columns), _follower(aux)
    prices, budget = aux.numbers("IC"), aux.one("IB")
    for key, found in (("LC", len(costs)), ("IC", len(prices))):
        if found != n:
            raise aux.fail(
                f"{key}: interdiction needs one for each of the {n} columns of the MPS file, but {found} are given."
            )
    below = aux.places("LC", program.columns)
    below = below - below.min() if n and (below >= n).any() else below  # places among both levels' columns
    if sorted(below) != list(range(n)):
        raise aux.fail(f"LC: interdiction needs the {n} columns of the MPS file, each once.")
    ordered, paid = np.zeros(n), np.zeros(n)
    ordered[below], paid[below] = costs, prices
    low, high = program.bounds
    wrong = np.flatnonzero(~np.isfinite(high) | (low > 0))
    if len(wrong):
        raise aux.fail(
            f"column {program.columns[wrong[0]]} cannot be removed: it needs a finite upper bound and may not exceed 0 below."
        )
    eye = sp.eye_array(n)
    follower_matrix = sp.vstack(
        [sp.hstack([sp.csr_array((len(program.row_names), n)), program.matrix]), sp.hstack([sp.diags_array(high), eye])]
    )
    nested = Nested(
        leaders=n,
        followers=n,
        lower=np.concatenate([np.zeros(n), low]),
        upper=np.concatenate([np.ones(n), high]),
        integer=np.concatenate([np.ones(n, dtype=bool), program.integer]),
        leader_rows=Rows(
            sp.csr_array(np.concatenate([paid, np.zeros(n)])[None]), np.array([-np.inf]), np.array([budget])
        ),
        follower_rows=Rows(
            sp.csr_array(follower_matrix),
            np.concatenate([program.rows[0], np.full(n, -np.inf)]),
            np.concatenate([program.rows[1], high]),
        ),
        leader=Objective(np.concatenate([np.zeros(n), -ordered]), sp.csr_array((n, n))),
        follower=Objective(np.concatenate([np.zeros(n), ordered]), sp.csr_array((n, n))),
    )
    return MibsProblem(name, nested, tuple(f"remove {c}" for c in program.columns), tuple(program.columns))
