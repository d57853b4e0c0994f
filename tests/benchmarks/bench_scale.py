"""Hypergradients of large lower levels: memory against one backward pass, time and memory against TorchOpt and betty.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_scale.py

The lower level is a network of tanh units with a penalty for each weight; the penalties' logarithms are what is learnt outside.
Every library takes the same ten gradient steps and the same number of steps of conjugate gradients, from the same start, in float32;
times are the processor's. Peers:
`pip install torchopt==0.7.3 betty-ml==0.1.1`; betty is called at its function for CG, without its engine (in 0.1.1 it updates its
direction by the last residual but one, hence another answer; the work is the same). Memory is the most that torch's allocator held
beyond what there was before the call, by torch's own profiler: before it there are the data, the penalties, the start, and bigrad's
program, which holds a copy of the start. Figures to meet: within 4 times the memory of one backward pass, the weights included;
neither slower nor larger than the others.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from timing import Times, machine
from torch import Tensor, nn
from torch.func import functional_call

import bigrad as bg

STEPS, PRODUCTS, RATE = 10, 20, 0.5
Weights = dict[str, Tensor]


class Task:
    """width²·2 parameters; n items."""

    def __init__(self, width: int, n: int):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        self.start = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.penalty = {name: _spread(p).requires_grad_() for name, p in self.start.items()}
        self.program = bg.argmin(self.inner, responds=self.start)
        self.inputs, self.targets, self.valid, self.wanted = (torch.randn(n, width) for _ in range(4))

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.start.values())

    def inner(self, x: Weights, y: Weights) -> Tensor:
        fit = (functional_call(self.model, y, self.inputs) - self.targets).square().mean()
        return fit + 0.5 * sum((x[name].exp() * y[name].square()).sum() for name in y)

    def outer(self, y: Weights) -> Tensor:
        return (functional_call(self.model, y, self.valid) - self.wanted).square().mean()

    def backward(self) -> None:
        y = {name: p.clone().requires_grad_() for name, p in self.start.items()}
        torch.autograd.grad(self.inner({k: v.detach() for k, v in self.penalty.items()}, y), list(y.values()))

    def hypergradient(self, rule: bg.Implicit | bg.EqProp) -> Weights:
        solver = bg.Descent(bg.GradientDescent(RATE), steps=STEPS, tol=0)
        y = bg.Layer(self.program, solver=solver, gradient=rule)(self.penalty)
        found = torch.autograd.grad(self.outer(y), list(self.penalty.values()))
        return dict(zip(self.penalty, found, strict=True))

    def by_torchopt(self) -> Weights:
        import torchopt

        names = list(self.start)

        def loss(y: tuple[Tensor, ...], x: tuple[Tensor, ...]) -> Tensor:
            return self.inner(dict(zip(names, x, strict=True)), dict(zip(names, y, strict=True)))

        optimality = torch.func.grad(loss)
        cg = torchopt.linear_solve.solve_cg(maxiter=PRODUCTS, rtol=0.0, atol=0.0)

        @torchopt.diff.implicit.custom_root(optimality, argnums=1, solve=cg)
        def solve(y: tuple[Tensor, ...], x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            for _ in range(STEPS):
                y = tuple(t - RATE * g for t, g in zip(y, optimality(y, x), strict=True))
            return y

        penalties = tuple(self.penalty.values())
        y = solve(tuple(self.start.values()), penalties)
        found = torch.autograd.grad(self.outer(dict(zip(names, y, strict=True))), penalties)
        return dict(zip(names, found, strict=True))

    def by_betty(self) -> Weights:
        from betty.hypergradient.cg import cg

        y = {name: p.clone().requires_grad_() for name, p in self.start.items()}
        held = {name: p.detach() for name, p in self.penalty.items()}
        weights = list(y.values())
        optimiser = torch.optim.SGD(weights, lr=RATE)
        for _ in range(STEPS):
            for t, g in zip(weights, torch.autograd.grad(self.inner(held, y), weights), strict=True):
                t.grad = g
            optimiser.step()
        slope = torch.autograd.grad(self.outer(y), weights)
        lower = SimpleNamespace(
            paths=[],
            config=SimpleNamespace(cg_iterations=PRODUCTS, cg_alpha=1.0),
            cur_batch=None,
            training_step_exec=lambda batch: self.inner(self.penalty, y),
            trainable_parameters=lambda: weights,
            parameters=lambda: weights,
        )
        upper = SimpleNamespace(trainable_parameters=lambda: list(self.penalty.values()))
        return dict(zip(self.penalty, cg(slope, lower, upper), strict=True))


def _spread(p: Tensor) -> Tensor:
    """Penalties' logarithms from -2 to 0, in the shape of p."""
    return torch.linspace(-2, 0, p.numel()).view_as(p)


def peak(call: Callable[[], object]) -> float:
    """The most bytes that torch's allocator held beyond what there was before."""
    activity = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity], profile_memory=True, acc_events=True) as profile:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    totals = [e["args"]["Total Allocated"] for e in events if e.get("name") == "[memory]"]
    return float(max(totals))


def in_turn(*calls: Callable[[], object], rounds: int) -> list[Times]:
    """Processor times of the calls, one after the other in every round, the first round for warming up."""
    taken: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):
        for times, call in zip(taken, calls, strict=True):
            begun = time.process_time()
            call()
            if turn:
                times.append(time.process_time() - begun)
    return [Times(tuple(t)) for t in taken]


def available(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def main() -> None:
    print(machine("torch", "torchopt", "betty-ml"))
    implicit = bg.Implicit(bg.CG(tol=0, steps=PRODUCTS))
    task = Task(width=2236, n=64)
    begun = time.perf_counter()
    one = peak(task.backward)
    print(
        f"\n{task.size / 1e6:.1f} million parameters: one backward pass {one / 2**20:.0f} MiB, of which the weights 1 part in",
        end=" ",
    )
    print(f"{one / (4 * task.size):.1f}")
    for rule in (implicit, bg.EqProp(1e-2)):
        held = peak(lambda rule=rule: task.hypergradient(rule))
        print(
            f"  {type(rule).__name__:9} {held / 2**20:6.0f} MiB, {held / one:.2f} times that (to meet: 4)", flush=True
        )
    print(f"  in {time.perf_counter() - begun:.0f} s")

    task = Task(width=707, n=256)
    calls: dict[str, Callable[[], Any]] = {"bigrad": lambda: task.hypergradient(implicit)}
    calls |= {"TorchOpt": task.by_torchopt} if available("torchopt") else {}
    calls |= {"betty": task.by_betty} if available("betty") else {}
    times = in_turn(*calls.values(), rounds=5)
    print(f"\n{task.size / 1e6:.2f} million parameters, {STEPS} steps of descent and {PRODUCTS} of conjugate gradients")
    truth = torch.cat([g.flatten() for g in calls["bigrad"]().values()])
    for (name, call), taken in zip(calls.items(), times, strict=True):
        found = torch.cat([g.flatten() for g in call().values()])
        apart = float((found - truth).norm() / truth.norm())
        print(f"  {name:9} {taken.show():34} {peak(call) / 2**20:6.0f} MiB, apart by {apart:.0e}")


if __name__ == "__main__":
    main()
