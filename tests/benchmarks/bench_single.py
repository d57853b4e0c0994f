"""One level: dense quadratic programs and projections as layers, forward and backward, against the usual libraries.

    python tests/benchmarks/bench_single.py

min 1/2 y'Py + q'y, Gy <= h with n = 50 and 100 variables, 50 inequalities, batch 64; projections on a simplex, a box and a ball, and a
soft threshold, n = 100, batch 128; float64. The figures to meet: programs at most 1/10 of cvxpylayers' default and not slower than the
fastest of moreau, proxsuite, dQP and qpth; projections at most 1/100 of cvxpylayers' default; accuracy 1e-8. A library
that is not installed is left out, and said so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import cvxpy as cp
import numpy as np
import torch
from timing import Times, in_turn, machine

import bigrad as bg

ROWS, BATCH = 50, 64
Layer = Callable[..., torch.Tensor]


def main() -> None:
    print(
        machine("cvxpylayers", "moreau", "proxsuite", "libdqp", "qpth", "daqp", "torch"),
        f"torch threads {torch.get_num_threads()}",
        sep=", ",
    )
    for n in (50, 100):
        for matrices in (False, True):
            programs(n, matrices)
    projections()


def programs(n: int, matrices: bool) -> None:
    """Gradients of q and h, and with `matrices` of P and G too (which are then batched)."""
    rng = np.random.default_rng(0)
    root = rng.standard_normal((BATCH, n, n)) / np.sqrt(n)
    P = root @ root.mT + 0.1 * np.eye(n)
    G = rng.standard_normal((BATCH, ROWS, n))
    q, h = rng.standard_normal((BATCH, n)), rng.random((BATCH, ROWS))
    if not matrices:
        P[:], G[:] = P[0], G[0]
    weights = torch.as_tensor(rng.standard_normal((BATCH, n)))
    given = [torch.as_tensor(a if matrices or a.ndim < 3 else a[0]).clone() for a in (P, q, G, h)]
    for k, t in enumerate(given):
        t.requires_grad_(matrices or k in (1, 3))
    wanted = [t for t in given if t.requires_grad]
    layers = dict(_programs(n, given, matrices))
    gradients, answers = {}, {}

    def run(name: str) -> None:
        y = layers[name](*given)
        answers[name] = y.detach()
        first, *rest = torch.autograd.grad((weights * y).sum(), wanted)
        gradients[name] = ((first + first.mT) / 2 if matrices else first, *rest)

    times = _timed(layers, run)
    print(f"\nQP n = {n}, {ROWS} inequalities, batch {BATCH}; gradients of {'P, q, G, h' if matrices else 'q, h'}")
    _table(times, answers, gradients, *exact(P, q, G, h, weights.numpy(), matrices))


def exact(P, q, G, h, weights, matrices):
    """Answers and gradients by DAQP at its tightest and an exact solve on the active rows."""
    import daqp

    found, pulled = [], []
    for i in range(len(q)):
        y, _, _, info = daqp.solve(
            P[i].copy(),
            q[i].copy(),
            G[i].copy(),
            h[i].copy(),
            np.full(ROWS, -1e30),
            np.zeros(ROWS, np.int32),
            primal_tol=1e-13,
        )
        at = info["lam"] > 1e-10
        A, n = G[i][at], len(y)
        K = np.block([[P[i], A.T], [A, np.zeros((at.sum(), at.sum()))]])
        solved = np.linalg.solve(K, np.r_[-q[i], h[i][at]])
        y, lam = solved[:n], solved[n:]
        a = -np.linalg.solve(K, np.r_[weights[i], np.zeros(at.sum())])
        dh = np.zeros(ROWS)
        dh[at] = -a[n:]
        dG = np.zeros((ROWS, n))
        dG[at] = np.outer(a[n:], y) + np.outer(lam, a[:n])
        found.append(y)
        pulled.append(((np.outer(a[:n], y) + np.outer(y, a[:n])) / 2, a[:n], dG, dh))
    grads = [np.stack(g) for g in zip(*pulled, strict=True)]
    return np.stack(found), grads if matrices else [grads[1], grads[3]]


def _programs(n: int, given: list[torch.Tensor], matrices: bool) -> Iterator[tuple[str, Layer]]:
    y = cp.Variable(n, name="y")
    q, h = cp.Parameter(n, name="q"), cp.Parameter(ROWS, name="h")
    P0, G0 = given[0].detach().numpy(), given[2].detach().numpy()
    if matrices:
        P, G = cp.Parameter((n, n), PSD=True, name="P"), cp.Parameter((ROWS, n), name="G")
        ours = bg.argmin(cp.Problem(cp.Minimize(0.5 * cp.quad_form(y, P) + q @ y), [G @ y <= h]))
        layer = bg.Layer(ours, parameters=[P, q, G, h], variables=[y])
        yield "bigrad", lambda P, q, G, h: layer(P, q, G, h)[0]
    else:
        ours = bg.argmin(cp.Problem(cp.Minimize(0.5 * cp.quad_form(y, cp.psd_wrap(P0)) + q @ y), [G0 @ y <= h]))
        layer = bg.Layer(ours, parameters=[q, h], variables=[y])
        yield "bigrad", lambda P, q, G, h: layer(q, h)[0]

    from cvxpylayers.torch import CvxpyLayer

    if matrices:
        S, G = cp.Parameter((n, n), name="S"), cp.Parameter((ROWS, n), name="G")
        theirs = CvxpyLayer(
            cp.Problem(cp.Minimize(0.5 * cp.sum_squares(S @ y) + q @ y), [G @ y <= h]), [S, q, G, h], [y]
        )
        yield "cvxpylayers", lambda P, q, G, h: theirs(torch.linalg.cholesky(P).mT, q, G, h)[0]
    else:
        S0 = np.linalg.cholesky(P0).T
        theirs = CvxpyLayer(cp.Problem(cp.Minimize(0.5 * cp.sum_squares(S0 @ y) + q @ y), [G0 @ y <= h]), [q, h], [y])
        yield "cvxpylayers", lambda P, q, G, h: theirs(q, h)[0]
    yield from _peers(n)


def _batched(P: torch.Tensor, q: torch.Tensor, G: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return P.expand(BATCH, *P.shape[-2:]), q, G.expand(BATCH, *G.shape[-2:]), h


def _peers(n: int) -> Iterator[tuple[str, Layer]]:
    none = torch.zeros(0, dtype=torch.float64)
    try:
        import moreau
        from moreau.torch import Solver

        rows = torch.arange(ROWS + 1) * n
        full, tall = torch.arange(n + 1) * n, rows
        cols, wide = torch.arange(n).repeat(n), torch.arange(n).repeat(ROWS)
        cones = moreau.Cones(num_nonneg_cones=ROWS)
        settings = moreau.Settings(batch_size=BATCH)
        solver = Solver(
            n=n,
            m=ROWS,
            P_row_offsets=full,
            P_col_indices=cols,
            A_row_offsets=tall,
            A_col_indices=wide,
            cones=cones,
            settings=settings,
        )

        def direct(P: torch.Tensor, q: torch.Tensor, G: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            P, q, G, h = _batched(P, q, G, h)
            return solver.solve(P.reshape(BATCH, -1), G.reshape(BATCH, -1), q, h).x

        yield "moreau", direct
    except ImportError:
        print("moreau is not installed")
    try:
        from proxsuite.torch.qplayer import QPFunction

        def proxqp(P: torch.Tensor, q: torch.Tensor, G: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            P, q, G, h = _batched(P, q, G, h)
            below = torch.full_like(h, -1e20)
            return QPFunction(eps=1e-10)(P, q, none, none, G, below, h)[0]

        yield "proxsuite", proxqp
    except ImportError:
        print("proxsuite is not installed")
    try:
        from dqp import build_settings, dQP_layer

        settings = build_settings(solve_type="dense", qp_solver="daqp")
        module = dQP_layer(settings=settings)
        yield "dQP", lambda P, q, G, h: module(*_batched(P, q, G, h))[0]
    except ImportError:
        print("dQP (libdqp) is not installed")
    try:
        from qpth.qp import QPFunction as Qpth

        yield "qpth", lambda P, q, G, h: Qpth(verbose=-1, eps=1e-12)(*_batched(P, q, G, h), none, none)
    except ImportError:
        print("qpth is not installed")


def projections() -> None:
    """Onto a simplex and a box."""
    n, batch = 100, 128
    rng = np.random.default_rng(0)
    y, p = cp.Variable(n, name="y"), cp.Parameter(n, name="p")
    regions = {
        "simplex": [cp.sum(y) == 1, y >= 0],
        "box": [y >= -0.5, y <= 0.5],
        "ball": [cp.norm(y) <= 3],
        "soft threshold": [],
    }
    given = torch.tensor(rng.standard_normal((batch, n)), requires_grad=True)
    weights = torch.as_tensor(rng.standard_normal((batch, n)))
    from cvxpylayers.torch import CvxpyLayer

    for name, rows in regions.items():
        problem = cp.Problem(cp.Minimize(cp.sum_squares(y - p) + (0 if rows else cp.norm1(y))), rows)
        ours, theirs = bg.Layer(bg.argmin(problem), [p], [y]), CvxpyLayer(problem, [p], [y])
        layers: dict[str, Layer] = {"bigrad": lambda v, f=ours: f(v)[0], "cvxpylayers": lambda v, f=theirs: f(v)[0]}
        gradients, answers = {}, {}

        def run(which: str, layers: dict[str, Layer] = layers, g: dict = gradients, a: dict = answers) -> None:
            out = layers[which](given)
            a[which] = out.detach()
            g[which] = torch.autograd.grad((weights * out).sum(), [given])

        times = _timed(layers, run)
        print(f"\nProjection: {name}, n = {n}, batch {batch}")
        _table(times, answers, gradients, *_project(name, given.detach().numpy(), weights.numpy()))


def _project(name: str, p: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The answer and the gradient of weights'answer, by formula."""
    if name == "box":
        return np.clip(p, -0.5, 0.5), [np.where(abs(p) < 0.5, weights, 0.0)]
    if name == "soft threshold":
        return np.sign(p) * np.maximum(abs(p) - 0.5, 0.0), [np.where(abs(p) > 0.5, weights, 0.0)]
    if name == "ball":
        size = np.linalg.norm(p, axis=-1, keepdims=True)
        shrunk = 3 / size * (weights - p * (p * weights).sum(-1, keepdims=True) / size**2)
        return p * np.minimum(3 / size, 1.0), [np.where(size > 3, shrunk, weights)]
    ordered = -np.sort(-p, axis=-1)
    level = (np.cumsum(ordered, -1) - 1) / np.arange(1, p.shape[-1] + 1)
    top = np.take_along_axis(level, (ordered > level).sum(-1, keepdims=True) - 1, -1)
    pulled = np.where(p > top, weights, 0.0)
    pulled -= np.where(p > top, pulled.sum(-1, keepdims=True) / (p > top).sum(-1, keepdims=True), 0.0)
    return np.maximum(p - top, 0.0), [pulled]


def _timed(layers: dict[str, Layer], run: Callable[[str], None]) -> dict[str, Times]:
    works = {}
    for name in layers:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run(name)
            works[name] = lambda name=name: run(name)
        except Exception as error:  # a peer that cannot take the program is shown as such
            print(f"  {name}: {type(error).__name__}: {error}")
    return dict(zip(works, in_turn(*works.values(), rounds=9, warmup=1, alone=True), strict=True))


def _table(
    times: dict[str, Times],
    answers: dict[str, torch.Tensor],
    gradients: dict[str, tuple[torch.Tensor, ...]],
    point: np.ndarray,
    pulled: list[np.ndarray],
) -> None:
    base = times["bigrad"].median
    for name, taken in times.items():
        off = abs(answers[name].numpy() - point).max()
        wrong = max(_apart(g, e) for g, e in zip(gradients[name], pulled, strict=True))
        print(
            f"  {name:12} {taken.show():34} bigrad/{name} {base / taken.median:7.3f}   error {off:.0e}, of gradients {wrong:.0e}"
        )


def _apart(found: torch.Tensor, expected: np.ndarray) -> float:
    return float(abs(found.numpy() - expected).max() / abs(expected).max())


if __name__ == "__main__":
    main()
