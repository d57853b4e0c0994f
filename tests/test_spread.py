"""Batches over processes and clusters: the same answers and gradients, and no item lost but the bad ones."""

import os
import pickle
import signal
import subprocess
import sys
import time
from ctypes import PyDLL
from dataclasses import dataclass
from pathlib import Path

import cvxpy as cp
import joblib
import numpy as np
import pytest
import torch
from helpers import random_quadratic

import bigrad as bg
from bigrad import processes
from bigrad.parallel import processors
from bigrad.solution import CapabilityError, Status
from bigrad.solvers.base import AbstractSolver, batch_size

DIES, HANGS, RAISES, REFUSES = 1.0, 2.0, 3.0, 4.0
ROOT = Path(__file__).resolve().parents[1]
RELAXED = bg.Relaxation(starts=1)


@dataclass(frozen=True)
class Fragile(AbstractSolver):
    """Does what the first input says: kills its process, hangs with the interpreter lock held, raises; else solves."""

    inner: AbstractSolver = RELAXED

    def accepts(self, program):
        return None

    def choose(self, program):
        return self, "It is fragile."

    def solve(self, program, theta, warm_start=None):
        said = set(np.ravel(theta[0]))
        if DIES in said:
            os.kill(os.getpid(), signal.SIGKILL)
        if HANGS in said:
            PyDLL(None).sleep(1000)
        if RAISES in said:
            raise ZeroDivisionError("on purpose")
        if REFUSES in said:
            raise CapabilityError("Fragile() does not want to.")
        return self.inner.solve(program, theta, warm_start)


@dataclass(frozen=True)
class Telling(AbstractSolver):
    """Solves, and tells in `iterations` how many processors its process thinks it may use, in `starts` its id."""

    def accepts(self, program):
        return None

    def choose(self, program):
        return self, "It tells."

    def solve(self, program, theta, warm_start=None):
        outcome = bg.Auto().solve(program, theta, warm_start)
        outcome.iterations[:], outcome.starts[:] = processors(), os.getpid()
        return outcome


def toll() -> tuple[bg.Program, list[cp.Variable]]:
    """The leader wants y near 2 c and x small, the follower answers max(x + c / 100, 0)."""
    said, x, y = cp.Parameter(name="said"), cp.Variable(name="x"), cp.Variable(name="y", nonneg=True)
    upper = cp.Problem(cp.Minimize(cp.square(y - 2 * said) + cp.square(x)))
    return bg.bilevel(upper, cp.Problem(cp.Minimize(cp.square(y - x - said / 100))), responds=[y]), [x, y]


def solutions(solver: AbstractSolver, said: list[float]) -> list[bg.Solution]:
    program, variables = toll()
    return bg.Layer(program, program_inputs(program), variables, solver=solver).solve(torch.tensor(said).double())


def program_inputs(program: bg.Program) -> list[cp.Parameter]:
    return [i.handle for i in program.inputs]


@pytest.fixture(params=["loky", "dask"])
def backend(request):
    """Two processes of joblib's own, or a Dask cluster of two on this machine."""
    if request.param == "loky":
        with joblib.parallel_config("loky"):
            yield "loky"
        return
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with (
        distributed.LocalCluster(**options) as cluster,
        distributed.Client(cluster) as client,
        joblib.parallel_config("dask", client=client),
    ):
        yield "dask"


def smooth() -> tuple[bg.Program, list[cp.Variable]]:
    """A program whose upper level is not quadratic."""
    c, x, y = cp.Parameter(name="c"), cp.Variable(name="x", bounds=[0, 3]), cp.Variable(name="y")
    upper = cp.Problem(cp.Minimize(cp.exp(x - c) - 2 * y))
    return bg.bilevel(upper, cp.Problem(cp.Minimize(cp.square(y - x)), [y <= 1.5]), responds=[y]), [x, y]


def quadratic() -> tuple[bg.Program, list[cp.Variable]]:
    made = random_quadratic((2, 3, 4), 1)
    for p, value in made.values.items():
        p.value = value
    return made.program, [*made.leader, *made.responds]


def drawn(program: bg.Program, batch: int) -> list[torch.Tensor]:
    """Values of vectors near those that the parameters have, by item."""
    rng = np.random.default_rng(0)
    at = [np.ones(i.shape) if i.handle.value is None else i.handle.value for i in program.inputs]
    return [
        torch.tensor(v + 0.1 * rng.standard_normal((batch, *np.shape(v))) if np.ndim(v) < 2 and not i.sign else v)
        for i, v in zip(program.inputs, at, strict=True)
    ]


@pytest.mark.parametrize("made", [quadratic, smooth])
def test_answers_and_gradients_are_those_of_one_process(made, backend):
    program, variables = made()
    inputs = [v.requires_grad_() for v in drawn(program, 6)]

    def pulled(solver):
        outputs = bg.Layer(program, program_inputs(program), variables, solver=solver)(*inputs)
        loss = sum((o * torch.arange(1.0, 1 + o.numel(), dtype=o.dtype).reshape(o.shape)).sum() for o in outputs)
        return [*outputs, *torch.autograd.grad(loss, inputs)]

    for a, b in zip(pulled(None), pulled(bg.Spread(n_jobs=2, chunk=2)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def test_second_derivatives_in_chunks_of_their_own_units():
    program, variables = quadratic()
    layer = bg.Layer(program, program_inputs(program), variables, solver=bg.Spread(n_jobs=1, chunk=1))
    inputs = drawn(program, 2)
    k = [i.name for i in program.inputs].index("w")
    inputs[k] = (inputs[k] * torch.tensor([[1.0], [1e3]])).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: layer(*inputs[:k], w, *inputs[k + 1 :]), inputs[k], atol=1e-4)
    assert torch.autograd.gradgradcheck(lambda w: layer(*inputs[:k], w, *inputs[k + 1 :]), inputs[k], atol=1e-4)


def test_order_progress_and_threads(capsys):
    said = np.linspace(5, 9, 23)
    found = solutions(bg.Spread(Telling(), n_jobs=2, chunk=3, progress=True), list(said))
    expected = solutions(bg.Auto(), list(said))
    assert [s.value for s in found] == pytest.approx([s.value for s in expected])
    assert {s.stats.iterations for s in found} == {1}
    assert os.getpid() not in {s.stats.starts for s in found}
    assert "23/23" in capsys.readouterr().err
    here = solutions(bg.Spread(Telling(), n_jobs=1, chunk=3), list(said))
    assert {s.stats.starts for s in here} == {os.getpid()}
    assert processors() == len(os.sched_getaffinity(0))


def test_warm_starts_go_along():
    said = list(np.linspace(5, 9, 4))
    program, variables = toll()
    layer = bg.Layer(program, program_inputs(program), variables, solver=bg.Spread(RELAXED, n_jobs=2, chunk=1))
    first = layer.solve(torch.tensor(said))
    again = layer.solve(torch.tensor(said), warm_start=first)
    assert sum(s.stats.iterations for s in again) < sum(s.stats.iterations for s in first)
    assert [s.value for s in again] == pytest.approx([s.value for s in first])


@pytest.mark.parametrize(
    ("solver", "bad", "status", "cause"),
    [
        (bg.Spread(Fragile(), n_jobs=2, chunk=2), DIES, Status.FAILED, "died"),
        (bg.Spread(Fragile(), n_jobs=2, chunk=3), RAISES, Status.FAILED, "ZeroDivisionError: on purpose"),
        (bg.Spread(Fragile(), n_jobs=2, chunk=3, time_limit=1.0), RAISES, Status.FAILED, "on purpose"),
        (bg.Spread(Fragile(), n_jobs=2, chunk=1, time_limit=10.0), HANGS, Status.TIME_LIMIT, "given up"),
        pytest.param(
            bg.Spread(Fragile(), n_jobs=2, chunk=2, time_limit=10.0),
            HANGS,
            Status.TIME_LIMIT,
            "given up",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_items_take_no_other_with_them(solver, bad, status, cause, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 25.0)
    said = [5.0, 6.0, bad, 7.0, 8.0]
    found = solutions(solver, said)
    expected = solutions(RELAXED, [s for s in said if s != bad])
    assert [i for i, s in enumerate(found) if s.status is status] == [2]
    assert cause in found[2].stats.cause
    assert [s.value for s in found if s.status.ok] == pytest.approx([s.value for s in expected])


def test_every_item_bad_and_what_the_layer_then_says():
    program, variables = toll()
    spread = bg.Spread(Fragile(), n_jobs=2)
    with pytest.raises(bg.SolveError, match=r"item 1: FAILED.*ZeroDivisionError: on purpose") as raised:
        bg.Layer(program, program_inputs(program), variables, solver=spread)(torch.full((2,), RAISES))
    assert set(raised.value.failures) == {0, 1}
    kind = bg.Layer(program, program_inputs(program), variables, solver=spread, on_failure="nan")
    said = torch.tensor([RAISES, 6.0], dtype=torch.float64, requires_grad=True)
    x, y = kind(said)
    assert torch.isnan(x).tolist() == [True, False]
    grad = torch.autograd.grad((x + y).nansum(), said)[0]
    assert grad[0] == 0
    assert grad[1] != 0


@dataclass(frozen=True)
class Patient(AbstractSolver):
    """Keeps the time limit that it is given, and tells it."""

    time_limit: float | None = None

    def accepts(self, program):
        return None

    def choose(self, program):
        return self, "It has a time limit."

    def solve(self, program, theta, warm_start=None):
        outcome = bg.Auto().solve(program, theta, warm_start)
        outcome.seconds[:], outcome.starts[:] = self.time_limit or 0, batch_size(theta)
        return outcome


@pytest.mark.parametrize(
    ("own", "given", "kept"), [(None, None, 0.0), (None, 3.0, 3.0), (2.0, 3.0, 2.0), (4.0, None, 4.0)]
)
def test_the_time_limit_is_per_item(own, given, kept):
    found = solutions(bg.Spread(Patient(own), n_jobs=1, chunk=2, time_limit=given), [5.0, 6.0, 7.0])
    assert [s.stats.seconds for s in found] == [kept] * 3
    assert [s.stats.starts for s in found] == ([1, 1, 1] if given else [2, 2, 1])


def test_what_bigrad_raises_travels_back():
    with pytest.raises(CapabilityError, match=r"Fragile\(\) does not want to"):
        solutions(bg.Spread(Fragile(), n_jobs=2, chunk=1), [5.0, REFUSES, 6.0])
    program, _ = smooth()
    with pytest.raises(CapabilityError, match="Use Relaxation"):
        program.solve({program.inputs[0].handle: 1.0}, solver=bg.Spread(bg.Pieces()))
    error = pickle.loads(pickle.dumps(bg.SolveError("2 of 3", {1: Status.FAILED})))
    assert (str(error), error.failures) == ("2 of 3", {1: Status.FAILED})


@pytest.mark.parametrize("wrong", [{"chunk": 0}, {"time_limit": -1.0}, {"time_limit": 0.0}, {"solver": bg.Spread()}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(bg.InputError, match=next(iter(wrong))):
        bg.Spread(**wrong)


def test_what_is_sent_is_small_and_built_once():
    from bigrad.solvers import spread

    program, _ = quadratic()
    token, packed = spread._packed(program)
    assert len(packed) < 20_000
    assert spread._packed(program) == (token, packed)
    assert spread._program(token, packed) is program
    others = [spread._program(f"other {k}", packed) for k in range(spread.KEPT + 2)]
    assert spread._program(f"other {spread.KEPT + 1}", packed) is others[-1]
    assert len(spread._rebuilt) == spread.KEPT


INTERRUPTED = """
import sys, torch
sys.path.insert(0, "tests")
import test_spread as t
import bigrad as bg

class Slow(t.Telling):
    def solve(self, program, theta, warm_start=None):
        import os, pathlib, time
        pathlib.Path(sys.argv[1], str(os.getpid())).touch()
        time.sleep(60)

if __name__ == "__main__":
    t.solutions(bg.Spread(Slow(), n_jobs=2, chunk=1, progress=True), [5.0] * 8)
"""


def test_an_interrupt_ends_the_workers(tmp_path):
    (tmp_path / "pids").mkdir()
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    run = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "pids")], cwd=ROOT, env=environment, stderr=subprocess.PIPE
    )
    try:
        wait(lambda: any((tmp_path / "pids").iterdir()), 90)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=30)
    finally:
        run.kill()
    assert said.rstrip().endswith(b"KeyboardInterrupt")
    workers = [int(file.name) for file in (tmp_path / "pids").iterdir()]
    wait(lambda: not any(alive(pid) for pid in workers), 20)


def wait(done, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
