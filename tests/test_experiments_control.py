"""The control experiment's pieces, each against a second opinion; its quick run, end to end."""

import itertools

import control
import cvxpy as cp
import numpy as np
import pytest
import torch
from control import GAME, Fixed, Push, Sensor, Trained

import bigrad as bg


def parameters(seed: int, batch: int = 6) -> tuple[Trained, torch.Tensor]:
    """Parameters and states at which some answers are on the box, and some rows of Q u are zero or of either sign."""
    torch.manual_seed(seed)
    root = torch.eye(3, dtype=torch.float64) + 0.3 * torch.randn(batch, 3, 3, dtype=torch.float64)
    Q, q = torch.randn(batch, 2, 3, dtype=torch.float64), 0.2 * torch.randn(batch, 3, dtype=torch.float64)
    p = Trained(root, Q, q, torch.linspace(0.1, 0.6, batch, dtype=torch.float64))
    return p, torch.randn(batch, 2, dtype=torch.float64)


@pytest.mark.parametrize("authority", [1e-2 / 3, 1 / 3])
def test_lqr_is_the_fixed_point_of_riccati_s_recursion(authority):
    plant = control.plant(3, authority)
    A, B = plant.A.numpy(), plant.B.numpy()
    S = np.eye(2)
    for _ in range(3000 if authority < 0.1 else 200):
        gain = np.linalg.solve(np.eye(3) + B.T @ S @ B, B.T @ S @ A)
        S = np.eye(2) + A.T @ S @ (A - B @ gain)
    np.testing.assert_allclose(plant.S, S, rtol=1e-8)
    np.testing.assert_allclose(plant.gain, gain, rtol=1e-8, atol=1e-10)


def test_untrained_single_level_is_the_lqr_within_the_box():
    plant = control.plant(1, 1 / 3)
    root = torch.linalg.cholesky(plant.P).mT[None]
    start = Trained(root, plant.Q[None], torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    x = 0.1 * torch.randn(20, 2, dtype=torch.float64)
    expected = -x @ plant.gain.T
    assert expected.abs().max() < 1
    for answer in (control.single_level, control.best_response, control.bilevel):
        tolerance = 1e-6 if answer is control.bilevel else 1e-9  # sigma = 0: an adversary whose box has no interior
        np.testing.assert_allclose(control.policy(answer, start)(x), expected, atol=tolerance)


def test_game_is_the_robust_counterpart_that_cvxpy_solves():
    """max over the box of e'Q u is sigma |Q u|_1, a problem of one level."""
    p, x = parameters(0)
    found = control.bilevel(p, x)
    assert (found.abs() > 1 - 1e-9).any()
    for i in range(len(x)):
        u = cp.Variable(3)
        root, Q, q, sigma = (part[i].numpy() for part in p)
        robust = 0.5 * cp.sum_squares(root @ u) + (x[i].numpy() @ Q + q) @ u + float(sigma) * cp.norm1(Q @ u)
        cp.Problem(cp.Minimize(robust), [cp.norm_inf(u) <= 1]).solve(solver=cp.CLARABEL)
        np.testing.assert_allclose(found[i], u.value, atol=1e-5)


def test_game_has_the_same_controls_whoever_leads():
    """The payoff is convex in u and linear in e: max-min is min-max."""
    p, x = parameters(1)
    u, e = cp.Variable(3, bounds=[-1, 1]), cp.Variable(2)
    sigma, root, Q, linear = cp.Parameter(nonneg=True), cp.Parameter((3, 3)), cp.Parameter((2, 3)), cp.Parameter(3)
    payoff = 0.5 * cp.sum_squares(root @ u) + linear @ u + e @ Q @ u
    leader = cp.Problem(cp.Maximize(payoff), [cp.norm_inf(e) <= sigma])
    other = bg.bilevel(leader, cp.Problem(cp.Minimize(payoff)), responds=[u])
    values = (p.sigma, p.root, p.Q, p.linear(x))
    (swapped,) = bg.Layer(other, parameters=[sigma, root, Q, linear], variables=[u])(*values)
    found, against = GAME(*values)
    np.testing.assert_allclose(swapped, found, atol=1e-8)
    gain = torch.einsum("bn,bnm,bm->b", against, p.Q, found)
    np.testing.assert_allclose(gain, p.sigma * torch.einsum("bnm,bm->bn", p.Q, found).abs().sum(1), atol=1e-8)


def test_gradients_of_the_game_are_those_of_re_solves():
    p, x = parameters(2)
    p = Trained(*(part.requires_grad_() for part in p))
    weights = torch.randn(6, 3, dtype=torch.float64)
    slopes = torch.autograd.grad((weights * control.bilevel(p, x)).sum(), p)
    for k, slope in enumerate(slopes):
        move = 1e-6 * torch.randn_like(slope)
        with torch.no_grad():
            ahead, behind = (
                (weights * control.bilevel(Trained(*(v + s * move if j == k else v for j, v in enumerate(p))), x)).sum()
                for s in (1, -1)
            )
        np.testing.assert_allclose((slope * move).sum(), (ahead - behind) / 2, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("attack", [Sensor(0.3), Push(0.2)])
def test_greedy_adversary_takes_the_worst_corner(attack):
    plant, p = control.plant(0, 1 / 3), parameters(0, 1)[0]
    policy, x = control.policy(control.bilevel, p), torch.randn(5, 2, dtype=torch.float64)
    found = control.greedy(attack, plant, policy, x)

    def value(at: torch.Tensor, d: torch.Tensor) -> float:
        u, after = attack.step(plant, policy, at[None], d[None])
        return float(u.square().sum() + after[0] @ plant.S @ after[0])

    for at, d in zip(x, found, strict=True):
        moves = [
            attack.strength * torch.tensor(m, dtype=torch.float64) for m in itertools.product((-1, 0, 1), repeat=2)
        ]
        corners = [m for m in moves if m.abs().min() > 0 or m.abs().max() == 0]
        assert value(at, d) == max(value(at, m) for m in corners)
        if isinstance(attack, Push):  # convex in the move: no other point of the box is worse
            assert value(at, d) == max(value(at, m) for m in moves)


def test_planned_attack_is_between_greedy_and_the_worst_of_all_plans():
    """Under a linear policy the cost is convex in the plan, so the worst plan is at corners: enumerated."""
    torch.manual_seed(0)
    plant, attack = control.plant(0, 1 / 3), Push(0.2)
    w = 0.2 * torch.randn(3, 4, 2, dtype=torch.float64)

    def policy(x: torch.Tensor) -> torch.Tensor:
        return -0.3 * x @ plant.gain.T

    greedy, _ = control.rollout(plant, policy, w, attack)
    found = control.planned(plant, policy, w, attack, 10)
    plans = [torch.tensor(p).view(3, 1, 2).expand(3, 4, 2) for p in itertools.product((-0.2, 0.2), repeat=6)]
    every = torch.stack([control.rollout(plant, policy, w, attack, p.double())[0] for p in plans])
    assert (found >= greedy - 1e-12).all()
    assert (found <= every.amax(0) + 1e-12).all()
    assert found.sum() > greedy.sum()
    assert (found >= 0.999 * every.amax(0)).any()  # a lower bound: ascent from one start does not always find the worst


def test_training_lowers_the_cost_where_control_is_useless():
    """On the base plant an LQR pays for controls that hardly move it; the first policy is the untrained one."""
    s = control.Settings(horizons=(4, 8), checks=(0, 6), validation=16)
    plant, attack = control.plant(0, 1e-2 / 3), Sensor(0.3)
    method = control.Method(control.single_level, (control.Candidate(0.1, 0.0),))
    policies = control.train(method, plant, attack, 0, s)
    w = 0.2 * torch.randn(8, 32, 2, dtype=torch.float64)
    before, after = (control.rollout(plant, policies[step], w, attack)[0].mean() for step in (0, 6))
    assert after < 0.9 * before
    root = torch.linalg.cholesky(plant.P).mT[None]
    start = Trained(root, plant.Q[None], torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    x = torch.randn(5, 2, dtype=torch.float64)
    np.testing.assert_allclose(policies[0](x), control.policy(control.single_level, start)(x), atol=1e-9)


def test_without_control_the_cost_is_that_of_the_noise():
    """x_t = sum of A^(t-1-k) w_k, by hand."""
    s = control.QUICK
    scenario, horizon = s.scenarios[0], s.horizons[-1]
    figures = control.run(Fixed(0.0), 5, s)
    draws = torch.Generator().manual_seed(20_005)
    w = s.noise * torch.randn(horizon, s.test, 2, generator=draws, dtype=torch.float64)
    A, x, cost = control.plant(5, scenario.authority).A, torch.zeros(s.test, 2, dtype=torch.float64), 0.0
    for noise in w:
        cost += x.square().sum(1).mean().item() / horizon
        x = x @ A.T + noise
    assert figures[f"{scenario.name}, no adversary"] == pytest.approx(cost)
    assert figures[f"{scenario.name}, planned attack"] == pytest.approx(cost)  # a sensor's error moves no control


@pytest.mark.slow
def test_quick_run_writes_its_table_and_picture(tmp_path):
    pytest.importorskip("matplotlib")
    records = control.main(control.EXPERIMENT, ["--quick", "--seeds", "1", "--out", str(tmp_path)])
    assert {r.method for r in records} == set(control.METHODS)
    assert all(np.isfinite(list(r.figures.values())).all() for r in records)
    assert (tmp_path / "control.png").read_bytes().startswith(b"\x89PNG")
    assert "| bilevel |" in (tmp_path / "control.md").read_text()
