"""The house rules: who imports whom, what is exported and documented, and that importing has no side effects."""

import ast
import importlib
import inspect
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bigrad"
FILES = sorted(PACKAGE.rglob("*.py"))

EXPORTS = [
    "Absolute",
    "ActiveSet",
    "Adaptive",
    "Additive",
    "Assignment",
    "AtCentre",
    "Auto",
    "BOME",
    "AuxiliaryCoordinates",
    "Ball",
    "BigradError",
    "Box",
    "CG",
    "CapabilityError",
    "Central",
    "Common",
    "ContrastiveHebbian",
    "Cuts",
    "DeclarationError",
    "Family",
    "FenchelHardsigmoid",
    "FenchelHardtanh",
    "FenchelLeakyReLU",
    "FenchelReLU",
    "FenchelSigmoid",
    "FenchelSoftmax",
    "FenchelTanh",
    "Descent",
    "Differences",
    "EqProp",
    "ErrorBound",
    "Exact",
    "FISTA",
    "Flow",
    "Formula",
    "Forward",
    "Fresh",
    "GapGradient",
    "GapValue",
    "GMRES",
    "Given",
    "Global",
    "GradientDescent",
    "GraphPath",
    "GridPath",
    "Gumbel",
    "HeavyBall",
    "IMLE",
    "Identity",
    "Implicit",
    "InputError",
    "Interior",
    "Interpolate",
    "Joint",
    "Knapsack",
    "LBFGS",
    "Layer",
    "LeaveOneOut",
    "Levels",
    "Lifted",
    "MAID",
    "MINRES",
    "MeanFree",
    "Mehrotra",
    "Memory",
    "Multiplicative",
    "Neumann",
    "Normal",
    "Normalised",
    "Oracle",
    "Perturbed",
    "Pieces",
    "Program",
    "Progress",
    "ProjectedGradient",
    "Proximal",
    "Regularised",
    "Relative",
    "Relaxation",
    "Saddle",
    "Score",
    "SecondOrder",
    "Simplex",
    "SingularWarning",
    "Solution",
    "SolveError",
    "SolveWarning",
    "SpanningTree",
    "Sparse",
    "Spread",
    "Stats",
    "Status",
    "SumOfGamma",
    "T1T2",
    "TopK",
    "Tour",
    "UnitNorm",
    "Unrolled",
    "argmin",
    "bilevel",
    "datasets",
    "losses",
]

# From top to bottom; a module imports only from rungs below its own. "" is bigrad/__init__.py.
LADDER = [
    {""},
    {"datasets"},
    {"family", "networks"},
    {"optim"},
    {"fenchel", "layer", "losses"},
    {"declare"},
    {"auto"},
    {"exact"},
    {"solvers", "gradients"},
    {"oracles"},
    {"failure", "programs"},
    {"memory", "program"},
    {"discrete", "inner"},
    {"algebra", "handles", "oracle", "parallel", "processes", "sets"},
    {"solution"},
]
# Inside a folder too, a module imports only neighbours further down its list; those on one line do not know each other.
INSIDE = {
    "algebra": [
        {"sensitivity"},
        {"linear", "quadratic"},
        {"affine", "exchange", "krylov", "sparse"},
    ],
    "discrete": [
        {"player"},
        {"combinatorial", "mip"},
        {"mibs", "milp", "whole"},
        {"nested"},
    ],
    "exact": [
        {"cuts"},
        {"against", "nested"},
        {"reasoned"},
        {"found", "hitting", "trunk"},
        {"tree"},
        {"dual", "knapsack", "master", "optimality", "second"},
        {"answers", "ended"},
    ],
    "solvers": [
        {"certificate"},
        {"nonlinear", "saddle"},
        {"mehrotra"},
        {"active_set"},
        {"descent", "formula", "interior", "pieces", "relaxation", "sparse", "spread"},
        {"integers", "proof", "settle", "trail"},
        {"branch", "tangent", "verdict"},
        {"projected", "reformulation", "search", "sequence", "spatial", "stages"},
        {"lbfgs", "methods", "model", "piece", "recall", "sos", "starts", "uno"},
        {"equilibrium"},
        {"active", "attain", "conic", "convex", "diagnose", "primal_dual", "scaling", "separable"},
        {"base", "sparse_qp"},
    ],
    "gradients": [
        {"joint", "levels"},
        {"perturbed", "regularised", "score"},
        {"identity", "imle", "implicit", "interpolate", "proximal", "sampled"},
        {"eqprop", "unrolled"},
        {"adjoint", "estimator"},
        {"bounds"},
        {"probes"},
        {"baselines", "draws", "perturbation", "products", "stencils"},
        {"base", "noise", "potential", "steps"},
    ],
    "fenchel": [
        {"contrastive"},
        {"activations", "layers"},
        {"base"},
    ],
    "losses": [
        {"contrastive", "ranking"},
        {"directional", "fenchel_young", "pool", "regret", "spo"},
        {"base"},
    ],
    "optim": [{"bome", "maid"}, {"inexact", "options"}, {"levels"}, {"predict"}],
    "oracles": [
        {"grid"},
        {"assignment", "flow", "given", "knapsack", "paths", "top", "tour", "tree"},
        {"held_karp", "network"},
        {"domain"},
    ],
    "programs": [
        {"saddle"},
        {"mixed", "single"},
        {"ball"},
        {"cvxpy", "ortools", "torch"},
        {"merged"},
        {"nested"},
        {"linked", "portable"},
        {"cpsat", "elements", "mathopt"},
        {"answer", "level", "polynomial"},
        {"assemble", "convex", "data", "smooth"},
        {"newton", "prices", "source", "symbolic", "system"},
        {"canonical", "checks", "engine", "payoff", "projection", "roles"},
        {"blocks", "conic"},
        {"spectra"},
        {"atoms", "bilinear", "cones", "curved", "expressions"},
    ],
}

# What `import bigrad` must not load; tests that need one import it themselves.
HEAVY = [
    "clarabel",
    "cvxpy",
    "daqp",
    "highspy",
    "joblib",
    "matplotlib",
    "ortools",
    "pyscipopt",
    "scipy.optimize",
    "torch",
    "tqdm",
    "unopy",
]


def name_of(file: Path) -> str:
    """Dotted name inside the package: "" for bigrad/__init__.py, "solvers.pieces" for bigrad/solvers/pieces.py."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def label(file: Path) -> str:
    return str(file.relative_to(ROOT))


MODULES = {name_of(file) for file in FILES}
each_file = pytest.mark.parametrize("file", FILES, ids=label)


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and name of every bigrad module that a file imports, at its top or inside a function."""
    module = name_of(file)
    inside = module.split(".") if file.name == "__init__.py" and module else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ["bigrad", *inside[: len(inside) - node.level + 1]] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" for alias in node.names]
            targets = [name if name.removeprefix("bigrad.") in MODULES else source for name in names]
        else:
            continue
        for target in targets:
            if target == "bigrad" or target.startswith("bigrad."):
                yield node.lineno, target.removeprefix("bigrad").removeprefix(".")


def height(ladder: list[set[str]], name: str) -> int:
    found = [rung for rung, names in enumerate(ladder) if name in names]
    assert found, f"'{name}' has no place on the ladder {ladder}; give it one"
    return found[0]


def may_import(importer: str, imported: str) -> bool:
    folder, _, module = imported.partition(".")
    if folder and importer.split(".")[0] == folder:
        inside = INSIDE[folder]
        return importer == folder or (module and height(inside, importer.split(".")[1]) < height(inside, module))
    return height(LADDER, importer.split(".")[0]) < height(LADDER, folder)


@each_file
def test_imports_point_down(file):
    importer = name_of(file)
    wrong = [
        f"{label(file)}:{line} imports bigrad.{target}"
        for line, target in imports(file)
        if not may_import(importer, target)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("layer", "auto", True),
        ("auto", "layer", False),
        ("layer", "losses", False),
        ("algebra.linear", "", False),
        ("solvers.pieces", "solvers.base", True),
        ("solvers.pieces", "solvers.relaxation", False),
        ("solvers.pieces", "solvers", False),
        ("solvers.pieces", "gradients.base", False),
        ("solvers", "solvers.pieces", True),
        ("programs.cvxpy", "programs.canonical", True),
        ("programs.cvxpy", "programs.torch", False),
        ("programs.cvxpy", "program", True),
        ("program", "programs.cvxpy", False),
    ],
)
def test_the_ladder_tells_up_from_down(importer, imported, allowed):
    assert bool(may_import(importer, imported)) == allowed


@pytest.mark.parametrize(
    ("path", "code", "targets"),
    [
        ("layer.py", "import bigrad", [""]),
        ("layer.py", "from bigrad import datasets, Auto", ["datasets", ""]),
        ("layer.py", "def f():\n    from .solvers.base import AbstractSolver", ["solvers.base"]),
        ("solvers/pieces.py", "from . import base\nfrom ..datasets import textbook", ["solvers.base", "datasets"]),
        ("solvers/__init__.py", "from .base import AbstractSolver", ["solvers.base"]),
        ("layer.py", "import torch, bigradient", []),
    ],
)
def test_every_kind_of_import_is_seen(path, code, targets, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "MODULES", {"", "datasets", "layer", "solvers", "solvers.base"})
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    file.write_text(code)
    assert [target for _, target in imports(file)] == targets


def test_exported_names():
    bigrad = importlib.import_module("bigrad")
    assert sorted(bigrad.__all__) == sorted(EXPORTS)
    undocumented = [name for name in EXPORTS if not inspect.getdoc(getattr(bigrad, name))]
    assert not undocumented
    assert set(EXPORTS) <= set(dir(bigrad))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = bigrad.no_such_name


def undocumented(node: ast.AST, path: str) -> Iterator[str]:
    """Every public class, function and method in and below a node that has no docstring."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if child.name.startswith("_") or "overload" in map(ast.unparse, child.decorator_list):
                continue
            if not ast.get_docstring(child):
                yield f"{path}:{child.lineno} {child.name}"
            if isinstance(child, ast.ClassDef):
                yield from undocumented(child, path)
        elif isinstance(child, ast.If | ast.Try):
            yield from undocumented(child, path)


@each_file
def test_public_names_have_docstrings(file):
    tree = ast.parse(file.read_text("utf-8"))
    assert ast.get_docstring(tree), f"{label(file)} does not say what it is"
    missing = list(undocumented(tree, label(file)))
    assert not missing, "\n".join(missing)


@each_file
def test_files_are_short(file):
    assert len(file.read_text("utf-8").splitlines()) <= 400
    assert file.stem not in {"util", "utils"}


def test_the_design_names_every_file():
    named = set(re.findall(r"\w+\.py", (ROOT / "docs" / "design.md").read_text("utf-8")))
    missing = [label(file) for file in FILES if file.name not in named]
    assert not missing, f"docs/design.md does not say where {', '.join(missing)} belong"


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter in which every warning is an error."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)


def test_importing_bigrad_loads_nothing_heavy_and_says_nothing():
    done = run(f"import bigrad, json, sys; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    assert done.stderr == ""


AGAINST_A_PATH = """
import sys
import bigrad as bg
import torch
from ortools.sat.python import cp_model

leader = cp_model.CpModel()
blocked = [leader.new_bool_var(f"blocked{k}") for k in range(4)]
leader.add(sum(blocked) <= 1)
game = bg.bilevel(leader, bg.GridPath(2, 2), costs={"w": range(4), "d": list(enumerate(blocked))})
w, d = torch.ones(4, requires_grad=True), torch.ones(4)
bg.Layer(game)(w, d)[1].sum().backward()
assert game.solve({"w": torch.ones(4), "d": d}).status is bg.Status.GLOBAL
print("cvxpy" in sys.modules)
"""


@pytest.mark.skipif(find_spec("ortools") is None, reason="needs the extra 'ortools'")
def test_a_combinatorial_program_does_not_wait_for_cvxpy():
    done = run(AGAINST_A_PATH)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


SOLVE_IN_BOTH = """
import cvxpy as cp
from ortools.math_opt.python import mathopt
from ortools.sat.python import cp_model

x = cp.Variable(2)
value = cp.Problem(cp.Minimize(cp.sum(x)), [x >= 1]).solve(solver=cp.HIGHS)
assert abs(value - 2) < 1e-9, value

model = mathopt.Model()
y = model.add_variable(lb=1.0)
model.minimize(2 * y)
value = mathopt.solve(model, mathopt.SolverType.GLOP).objective_value()
assert abs(value - 2) < 1e-9, value

model = cp_model.CpModel()
z = model.new_int_var(1, 5, "z")
model.minimize(2 * z)
solver = cp_model.CpSolver()
solver.parameters.num_workers = 1
assert solver.solve(model) == cp_model.OPTIMAL and solver.objective_value == 2
"""
CVXPY, MATHOPT, CPSAT = "cvxpy", "ortools.math_opt.python.mathopt", "ortools.sat.python.cp_model"
ORDERS = [
    *itertools.permutations([CVXPY, MATHOPT, CPSAT]),
    ("highspy", MATHOPT, CVXPY, "torch", "daqp", "unopy"),
    ("unopy", "daqp", "torch", CPSAT, "highspy", CVXPY),
    (MATHOPT, "highspy", "unopy", CVXPY, "torch"),
    ("torch", CPSAT, "unopy", "highspy", MATHOPT, "daqp"),
]


@pytest.mark.skipif(find_spec("ortools") is None, reason="needs the extra 'ortools'")
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: " ".join(name.split(".")[-1] for name in order))
def test_solvers_work_in_every_order_of_import(order):
    done = run("\n".join(f"import {name}" for name in order) + SOLVE_IN_BOTH)
    assert done.returncode == 0, done.stderr


TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [p for p in TEXTS if "```python" in p.read_text("utf-8")]


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    # sketches that need more than a laptop are fenced as ```py
    text, names = page.read_text("utf-8"), {"__name__": page.stem}
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        first_line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * first_line + block[1], str(page), "exec"), names)
