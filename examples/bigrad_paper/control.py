"""Stochastic control against an adversary, after section 5 of BiGrad (Alesiani, AAAI 2023, arXiv 2302.14473).

A policy answers the state x by the u in a box that minimises u'Pu/2 + x'Qu + q'u; P, Q and q start at the LQR and are
trained through rollouts, as in Agrawal et al., "Learning convex optimization control policies" (2019). The bilevel layer
plays a game instead, min over u max over |e| <= sigma of u'Pu/2 + (x + e)'Qu + q'u: the controller against an adversary
who says where the state is. The OptNet-style layer answers the adversary's best response to its own first answer.
docs/experiments/control.md says what was chosen here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cvxpy as cp
import numpy as np
import torch
from runner import Experiment, Record, main
from scipy.linalg import cholesky, solve_discrete_are
from torch import Tensor

import bigrad as bg

STATES, CONTROLS = 2, 3
CORNERS = torch.tensor([[i, j] for i in (-1.0, 1.0) for j in (-1.0, 1.0)] + [[0.0, 0.0]], dtype=torch.float64)


class Plant(NamedTuple):
    """x' = A x + B u + w, with costs |x|^2 + |u|^2; S: the LQR's cost-to-go x'Sx, P and Q: its u'Pu/2 + x'Qu."""

    A: Tensor
    B: Tensor
    S: Tensor
    P: Tensor
    Q: Tensor

    def after(self, x: Tensor, u: Tensor) -> Tensor:
        return x @ self.A.T + u @ self.B.T

    @property
    def gain(self) -> Tensor:
        """K of the LQR u = -K x, (controls, states)."""
        return torch.linalg.solve(self.P, self.Q.T)


def plant(seed: int, authority: float) -> Plant:
    """A = I + randn / 100 and B = authority × randn, drawn as in the base problem."""
    draw = np.random.default_rng(seed)
    A = np.eye(STATES) + 1e-2 * draw.standard_normal((STATES, STATES))
    B = authority * draw.standard_normal((STATES, CONTROLS))
    S = solve_discrete_are(A, B, np.eye(STATES), np.eye(CONTROLS))
    return Plant(*map(torch.as_tensor, (A, B, S, np.eye(CONTROLS) + B.T @ S @ B, A.T @ S @ B)))


@dataclass(frozen=True)
class Sensor:
    """The adversary adds d to what the controller sees of the state, every |d_i| <= strength."""

    strength: float

    def step(self, plant: Plant, policy: "Policy", x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        u = policy(x + d)
        return u, plant.after(x, u)


@dataclass(frozen=True)
class Push:
    """The adversary adds d to the next state, every |d_i| <= strength."""

    strength: float

    def step(self, plant: Plant, policy: "Policy", x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        u = policy(x)
        return u, plant.after(x, u) + d


Policy = Callable[[Tensor], Tensor]
"""From states (…, batch, 2) to controls (…, batch, 3)."""
Attack = Sensor | Push


@torch.no_grad()
def greedy(attack: Attack, plant: Plant, policy: Policy, x: Tensor) -> Tensor:
    """The corner of the adversary's box, or its middle, with the largest |u|^2 + x'Sx after the step; no gradient needed."""
    corners = attack.strength * CORNERS
    u, after = attack.step(plant, policy, x, corners[:, None])
    value = u.square().sum(-1) + (after @ plant.S * after).sum(-1)
    return corners[value.argmax(0)]


def rollout(
    plant: Plant, policy: Policy, w: Tensor, attack: Attack, plan: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The average cost of each trajectory, (batch,), from x = 0 under the noise w (time, batch, 2), and what the adversary did:
    its plan (time, batch, 2), or greedy moves."""
    x, cost, moves = torch.zeros_like(w[0]), torch.zeros_like(w[0, :, 0]), []
    for t, noise in enumerate(w):
        moves.append(greedy(attack, plant, policy, x) if plan is None else plan[t])
        u, after = attack.step(plant, policy, x, moves[-1])
        cost = cost + (x.square().sum(1) + u.square().sum(1)) / len(w)
        x = after + noise
    return cost, torch.stack(moves)


def planned(plant: Plant, policy: Policy, w: Tensor, attack: Attack, steps: int) -> Tensor:
    """The worst cost of each trajectory that the greedy adversary, or ascent on its whole plan from there, finds."""
    with torch.no_grad():
        worst, plan = rollout(plant, policy, w, attack)
    for _ in range(steps):
        plan = plan.detach().requires_grad_()
        cost, _ = rollout(plant, policy, w, attack, plan)
        worst = torch.maximum(worst, cost.detach())
        (slope,) = torch.autograd.grad(cost.sum(), plan)
        plan = (plan + attack.strength / 4 * slope.sign()).clamp(-attack.strength, attack.strength)
    return worst


def layers() -> tuple[bg.Layer, bg.Layer]:
    """The single-level layer (root of P, linear term) -> u, and the game (sigma, root of P, Q, linear term) -> u, e."""
    u = cp.Variable(CONTROLS, name="u", bounds=[-1, 1])
    e, sigma = cp.Variable(STATES, name="e"), cp.Parameter(nonneg=True, name="sigma")
    root, Q = cp.Parameter((CONTROLS, CONTROLS), name="root"), cp.Parameter((STATES, CONTROLS), name="Q")
    linear = cp.Parameter(CONTROLS, name="linear")
    own = 0.5 * cp.sum_squares(root @ u) + linear @ u
    payoff = own + u @ Q.T @ e
    adversary = cp.Problem(cp.Maximize(payoff), [e <= sigma, -e <= sigma])
    game = bg.bilevel(cp.Problem(cp.Minimize(payoff)), adversary, responds=[e])
    return (
        bg.Layer(bg.argmin(cp.Problem(cp.Minimize(own))), parameters=[root, linear], variables=[u]),
        bg.Layer(game, parameters=[sigma, root, Q, linear], variables=[u, e]),
    )


SINGLE, GAME = layers()


class Trained(NamedTuple):
    """Parameters of policies, one for each item of a batch: the root of P, Q, q, and the adversary's bound inside."""

    root: Tensor
    Q: Tensor
    q: Tensor
    sigma: Tensor

    def linear(self, x: Tensor) -> Tensor:
        return torch.einsum("bn,bnm->bm", x, self.Q) + self.q


def single_level(p: Trained, x: Tensor) -> Tensor:
    """argmin of u'Pu/2 + x'Qu + q'u."""
    return SINGLE(p.root, p.linear(x))[0]


def best_response(p: Trained, x: Tensor) -> Tensor:
    """Two single-level answers: to x, and to x plus the e that is worst for the first answer, sigma × sign(Q u)."""
    against = torch.einsum("bnm,bm->bn", p.Q, single_level(p, x)).sign()
    return single_level(p, x + p.sigma[:, None] * against)


def bilevel(p: Trained, x: Tensor) -> Tensor:
    """min over u, max over e of u'Pu/2 + (x + e)'Qu + q'u."""
    return GAME(p.sigma, p.root, p.Q, p.linear(x))[0]


def policy(answer: Callable[[Trained, Tensor], Tensor], p: Trained) -> Policy:
    """The policy of one set of parameters (leading dimension 1), or of one for each item of a batch."""

    def control(x: Tensor) -> Tensor:
        lead = x.shape[:-1]
        every = Trained(*(v.expand(*lead, *v.shape[1:]).reshape(-1, *v.shape[1:]) for v in p))
        return answer(every, x.reshape(-1, STATES)).view(*lead, CONTROLS)

    return control


@dataclass(frozen=True)
class Candidate:
    """What training may be told: a learning rate, and sigma as a multiple of the true adversary's strength."""

    rate: float
    sigma: float


@dataclass(frozen=True)
class Method:
    """A layer that is trained, with the candidates that validation chooses from: as many for each."""

    answer: Callable[[Trained, Tensor], Tensor]
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Fixed:
    """A policy u = -clip(share × K x) that is not trained."""

    share: float


AGAINST = tuple(Candidate(rate, sigma) for rate in (0.02, 0.1) for sigma in (1 / 3, 1.0))
METHODS = {
    "no control": Fixed(0.0),
    "LQR": Fixed(1.0),
    "single level": Method(single_level, tuple(Candidate(rate, 0.0) for rate in (0.01, 0.02, 0.05, 0.1))),
    "best response": Method(best_response, AGAINST),
    "bilevel": Method(bilevel, AGAINST),
}


@dataclass(frozen=True)
class Scenario:
    """A plant's authority, B = authority × randn, and its adversary."""

    name: str
    authority: float
    attack: Attack


@dataclass(frozen=True)
class Settings:
    """horizons: control steps, the longer one in training. checks: training steps after which there is a test."""

    scenarios: tuple[Scenario, ...] = (
        Scenario("base plant", 1e-2 / 3, Sensor(0.3)),
        Scenario("strong plant", 1 / 3, Sensor(0.3)),
        Scenario("pushed strong plant", 1 / 3, Push(0.1)),
    )
    horizons: tuple[int, int] = (10, 30)
    checks: tuple[int, ...] = (0, 10, 30)
    noise: float = 0.2
    batch: int = 8
    momentum: float = 0.9
    clip: float = 1.0
    validation: int = 32
    test: int = 128
    ascent: int = 10


QUICK = Settings(
    scenarios=Settings().scenarios[1:2], horizons=(10, 20), checks=(0, 5, 10), validation=16, test=48, ascent=5
)


def train(method: Method, plant: Plant, attack: Attack, seed: int, s: Settings) -> dict[int, Policy]:
    """The policy after each number of training steps in s.checks, of the candidate that was best in validation then.

    All candidates are trained at once, as items of one batch, on the same noise.
    """
    draws = torch.Generator().manual_seed(10_000 + seed)
    many, horizon = len(method.candidates), s.horizons[-1]

    def noise(batch: int) -> Tensor:
        return s.noise * torch.randn(horizon, batch, STATES, generator=draws, dtype=torch.float64)

    root = torch.as_tensor(cholesky(plant.P.numpy()))
    start = (root, plant.Q, torch.zeros(CONTROLS, dtype=torch.float64))
    leaves = [[p.clone().requires_grad_() for p in start] for _ in range(many)]
    groups = [{"params": own, "lr": c.rate} for own, c in zip(leaves, method.candidates, strict=True)]
    optimiser = torch.optim.SGD(groups, lr=0.0, momentum=s.momentum)
    sigma = torch.tensor([c.sigma * attack.strength for c in method.candidates], dtype=torch.float64)

    def costs(w: Tensor) -> Tensor:
        """The average cost of every candidate."""
        batch = w.shape[1]
        stacked = (*(torch.stack(p) for p in zip(*leaves, strict=True)), sigma)
        every = Trained(*(p.repeat_interleave(batch, 0) for p in stacked))
        cost, _ = rollout(plant, policy(method.answer, every), w.repeat(1, many, 1), attack)
        return cost.view(many, batch).mean(1)

    check, found = noise(s.validation), {}
    for step in range(s.checks[-1] + 1):
        if step in s.checks:
            with torch.no_grad():
                best = int(costs(check).argmin())
            kept = Trained(*(p.detach().clone()[None] for p in (*leaves[best], sigma[best])))
            found[step] = policy(method.answer, kept)
        if step == s.checks[-1]:
            break
        optimiser.zero_grad()
        costs(noise(s.batch)).sum().backward()
        for own in leaves:
            torch.nn.utils.clip_grad_norm_(own, s.clip)
        optimiser.step()
    return found


def run(method: Fixed | Method, seed: int, s: Settings) -> dict[str, float]:
    """Average costs on one plant of every scenario."""
    figures = {}
    for scenario in s.scenarios:
        there, attack, name = plant(seed, scenario.authority), scenario.attack, scenario.name
        if isinstance(method, Fixed):
            gain = method.share * there.gain
            policies: dict[int, Policy] = dict.fromkeys(s.checks, lambda x, gain=gain: (-x @ gain.T).clamp(-1, 1))
        else:
            policies = train(method, there, attack, seed, s)
        draws = torch.Generator().manual_seed(20_000 + seed)
        w = s.noise * torch.randn(s.horizons[-1], s.test, STATES, generator=draws, dtype=torch.float64)
        with torch.no_grad():
            for step, trained in policies.items():
                figures[f"{name}, {step} training steps"] = rollout(there, trained, w, attack)[0].mean()
            last = policies[s.checks[-1]]
            short = w[: s.horizons[0]]
            figures[f"{name}, {s.horizons[0]} control steps"] = rollout(there, last, short, attack)[0].mean()
            figures[f"{name}, no adversary"] = rollout(there, last, w, attack, torch.zeros_like(w))[0].mean()
        figures[f"{name}, planned attack"] = planned(there, last, w, attack, s.ascent).mean()
    return {k: float(v) for k, v in figures.items()}


def rows(s: Settings) -> dict[str, str]:
    """Those of the table."""
    kinds = (
        *(f"{c} training steps" for c in s.checks),
        f"{s.horizons[0]} control steps",
        "planned attack",
        "no adversary",
    )
    return {f"{scenario.name}, {kind}": ".3f" for scenario in s.scenarios for kind in kinds}


def picture(records: Sequence[Record], path: Path) -> None:
    """Cost of every method and seed in every scenario, after all training, under the planned attack; bars are means."""
    from matplotlib.figure import Figure

    names = [k.removesuffix(", planned attack") for k in records[0].figures if k.endswith("planned attack")]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for where, method in enumerate(METHODS):
            costs = [r.figures[f"{name}, planned attack"] for r in records if r.method == method]
            axes.plot([where] * len(costs), costs, "o", ms=4, alpha=0.5, color="tab:gray")
            axes.plot(
                [where - 0.3, where + 0.3], [np.mean(costs)] * 2, color="tab:red" if method == "bilevel" else "tab:blue"
            )
        axes.set_xticks(range(len(METHODS)), METHODS, rotation=30, ha="right")
        axes.set_ylim(bottom=0)
        axes.set_title(name)
    panels[0].set_ylabel("average cost, planned attack")
    figure.savefig(path, dpi=100)


EXPERIMENT = Experiment("control", METHODS, run, Settings(), QUICK, rows(Settings()) | rows(QUICK), picture=picture)

if __name__ == "__main__":
    main(EXPERIMENT)
