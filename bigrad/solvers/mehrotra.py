"""Mehrotra: one level, a batch of convex quadratic programs in torch, on the device where its data lie.

The interior-point method of bigrad/solvers/primal_dual.py says which rows are active, and one solve with the KKT matrix at
that active set, the one that the gradient uses, takes its answer to machine precision.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bigrad.algebra.affine import Array, mv
from bigrad.algebra.linear import Bordered, cholesky, lower_solve, solve_free
from bigrad.algebra.quadratic import Data, Sizes, kkt, stack, value
from bigrad.program import Program
from bigrad.solution import Outcome, Point, Status
from bigrad.solvers.active import TOUCH
from bigrad.solvers.active_set import SURE, ActiveSet
from bigrad.solvers.base import AbstractSolver, batch_size, check_settings
from bigrad.solvers.primal_dual import interior
from bigrad.solvers.primal_dual import top as _top

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Mehrotra(AbstractSolver):
    """Solver for one-level quadratic and linear programs whose inputs lie on an accelerator: nothing but a flag an item
    and iteration comes back to the host.

    `Auto` takes it for CUDA tensors; on a CPU ActiveSet is faster. iterations: at most, of the whole batch. Items that do
    not converge, such as those without a solution, go to ActiveSet on the CPU, which finds out why.
    """

    iterations: int = 60
    on_device: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_settings(self, iterations=1)

    def accepts(self, program: Program) -> str | None:
        """Refuses what ActiveSet does."""
        return None if (reason := ActiveSet().accepts(program)) is None else reason.replace("ActiveSet()", "Mehrotra()")

    def choose(self, program: Program) -> tuple[AbstractSolver, str]:
        """Itself."""
        return self, "One convex quadratic program an item, by an interior-point method on the device of the inputs."

    def solve(
        self, program: Program, theta: tuple[Array, ...], warm_start: Sequence[Point | None] | None = None
    ) -> Outcome:
        """Solve a batch; see AbstractSolver.solve. theta may be torch tensors, and z, w and free of the Outcome then are."""
        import torch

        begun = time.perf_counter()
        maps, batch = program.quadratic, batch_size(theta)
        assert maps is not None
        given = tuple(torch.as_tensor(t) for t in theta)
        with torch.no_grad():
            data = maps(tuple(torch.where(torch.isfinite(t), t, 0.0) for t in given))
            if not given:
                data = Data(*(torch.as_tensor(block) for block in data))
            outcome = _settled(data, maps.sizes, batch, self.iterations, begun)
        rest = np.flatnonzero(~outcome.ok | program.invalid(given, batch))
        if len(rest):
            some = tuple((t[rest] if t.ndim > 1 else t).cpu().numpy() for t in given)
            outcome = outcome.with_items(rest, ActiveSet().solve(program, some))
        return outcome.on_host() if all(isinstance(t, np.ndarray) for t in theta) else outcome


def _settled(data: Data, sizes: Sizes, batch: int, iterations: int, begun: float) -> Outcome:
    """The answers of a batch with their measurements; FAILED where the method did not converge."""
    import torch

    n, soft = sizes.x, sizes.upper
    J, ends = stack(data.G, data.E), stack(data.g[..., None], data.e[..., None])[..., 0]
    c, d = data.c.expand(batch, n), ends.expand(batch, ends.shape[-1])
    found = interior(data, sizes, batch, iterations, SURE)
    held = torch.cat([found.lam > d[:, :soft] - mv(data.G, found.z), torch.ones_like(found.nu, dtype=torch.bool)], -1)
    rough = torch.cat([found.z, found.lam, found.nu], -1)
    root, fine = cholesky(data.Q)
    factors, free = None, torch.cat([torch.ones_like(c, dtype=torch.bool), held], -1)
    if bool(fine.all()):
        factors = Bordered(root, lower_solve(root, J.mT))
        exact, singular = factors.solve(held, -c, d)
    else:
        matrix, rhs = kkt(data, sizes, batch)
        step, singular = solve_free(matrix, free, rhs - mv(matrix, torch.where(free, rough, 0.0)))
        exact = torch.where(free, rough, 0.0) + step
    before, after = _measure(data, J, c, d, soft, rough), _measure(data, J, c, d, soft, exact)
    better = (torch.maximum(*after) <= torch.maximum(*before)) & ~singular
    w = torch.where(better[:, None], exact, rough)
    residual, violation = (torch.where(better, a, b) for a, b in zip(after, before, strict=True))
    gamma, gap = w[:, n : n + soft], d[:, :soft] - mv(data.G, w[:, :n])
    idle = gamma <= _near_zero(gamma)
    free[:, n : n + soft] &= ~idle
    good = (found.met & (torch.maximum(residual, violation) <= SURE)).cpu().numpy()
    F, none = value(data, w[:, :n]).cpu().numpy(), np.zeros(batch, int)
    return Outcome(
        solver="Mehrotra",
        smooth=False,
        status=np.array([Status.GLOBAL if g else Status.FAILED for g in good], dtype=object),
        z=w[:, :n],
        w=w,
        free=free,
        tight=np.zeros((batch, 0), bool),
        value=F,
        bound=F,
        starts=none + 1,
        iterations=none + found.iterations,
        residual=residual.cpu().numpy(),
        violation=violation.cpu().numpy(),
        biactive=none,
        degenerate=(idle & (gap <= _near_zero(gap))).sum(-1).cpu().numpy(),
        strongly_stationary=good,
        singular=singular.cpu().numpy(),
        seconds=np.full(batch, (time.perf_counter() - begun) / batch),
        factors=factors,
    )


def _measure(data: Data, J: Tensor, c: Tensor, d: Tensor, soft: int, w: Tensor) -> tuple[Tensor, Tensor]:
    """Largest residual of stationarity, wrong sign and complementarity, and largest violation, relative to the data."""
    n = c.shape[-1]
    z, gamma, gap = w[:, :n], w[:, n : n + soft], d - mv(J, w[:, :n])
    scale = 1 + _top(c).maximum(_top(d))
    dual = _top(mv(data.Q, z) + c + mv(J.mT, w[:, n:])).maximum(_top(gamma.clamp(max=0.0)))
    dual = dual.maximum(_top(gamma.minimum(gap[:, :soft])))
    return dual / scale, _top(gap[:, :soft].clamp(max=0.0)).maximum(_top(gap[:, soft:])) / scale


def _near_zero(values: Tensor) -> Any:
    return TOUCH * (1 + _top(values))[:, None]
