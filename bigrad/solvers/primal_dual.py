"""A batch of convex quadratic programs by a primal-dual interior-point method, all items in step, on any device.

    min 1/2 z'Qz + c'z   subject to   Gz + s == g, s >= 0,   Ez == e

Mehrotra, "On the implementation of a primal-dual interior point method", SIAM Journal on Optimization, 1992. In torch:
one batched Cholesky factorisation an iteration, and nothing but a flag crosses to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from bigrad.algebra.affine import mv, namespace
from bigrad.algebra.quadratic import Data, Sizes

if TYPE_CHECKING:
    from torch import Tensor

RIDGE = 1e-12
"""Added to the diagonal of the Newton matrix, in the units of the rescaled program."""
BACK = 0.995
"""How far to go towards the boundary."""


class Interior(NamedTuple):
    """Points (batch, n), multipliers of G and E, which items met the tolerance, and the iterations of all."""

    z: Tensor
    lam: Tensor
    nu: Tensor
    met: Tensor
    iterations: int


def interior(data: Data, sizes: Sizes, batch: int, iterations: int, tolerance: float) -> Interior:
    """Solve the upper level alone; an item that meets the tolerance stands still while the others go on.

    tolerance: of all residuals and of the mean product of slack and multiplier, relative to 1 + the size of the data.
    """
    xp = namespace(data.Q)

    def each(block: Tensor, rank: int) -> Tensor:
        return xp.broadcast_to(block, (batch, *block.shape[block.ndim - rank :]))

    Q, G, E = each(data.Q, 2), each(data.G, 2), each(data.E, 2)
    c, g, e = each(data.c, 1), each(data.g, 1), each(data.e, 1)
    rows = _units(G)
    G, g = G / rows[..., None], g / rows
    flat = _units(E)
    E, e = E / flat[..., None], e / flat
    size = 1 + top(c)
    Q, c = Q / size[:, None, None], c / size[:, None]
    scale = 1 + xp.maximum(top(g), top(e))

    z, nu = _newton(Q, G, E, xp.ones_like(g))(mv(G.mT, g) - c, e)
    s, lam = _positive(g - mv(G, z)), _positive(mv(G, z) - g)
    met, spent = size < 0, 0
    while spent < iterations:
        rz = mv(Q, z) + c + mv(G.mT, lam) + mv(E.mT, nu)
        rs, re = mv(G, z) + s - g, mv(E, z) - e
        mu = (s * lam).sum(-1) / max(sizes.upper, 1)
        worst = xp.maximum(xp.maximum(top(rz), mu), xp.maximum(top(rs), top(re)))
        met = met | (worst <= tolerance * scale)
        if bool(met.all()):
            break
        towards = _Step(_newton(Q, G, E, lam / s), G, s, lam, (rz, rs, re))
        _, _, ds, dlam = towards(s * lam)
        far = towards.reach(ds, dlam)
        after = ((s + far * ds) * (lam + far * dlam)).sum(-1) / max(sizes.upper, 1)
        centre = xp.where(mu > 0, (after / mu) ** 3 * mu, 0.0)[:, None]
        dz, dnu, ds, dlam = towards(s * lam + ds * dlam - centre)
        move = xp.where(met[:, None], 0.0, BACK * towards.reach(ds, dlam))
        spent += 1
        z, nu, s, lam = z + move * dz, nu + move * dnu, s + move * ds, lam + move * dlam
    return Interior(z, lam * size[:, None] / rows, nu * size[:, None] / flat, met, spent)


class _Step(NamedTuple):
    """Newton directions at one point, whose residuals are given."""

    solve: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    G: Tensor
    s: Tensor
    lam: Tensor
    residuals: tuple[Tensor, Tensor, Tensor]

    def __call__(self, product: Tensor) -> tuple[Tensor, ...]:
        """The direction (z, nu, s, lam) that lowers s lam by `product`, to first order."""
        rz, rs, re = self.residuals
        turn = (self.lam * rs - product) / self.s
        dz, dnu = self.solve(-rz - mv(self.G.mT, turn), -re)
        ds = -rs - mv(self.G, dz)
        return dz, dnu, ds, -(product + self.lam * ds) / self.s

    def reach(self, ds: Tensor, dlam: Tensor) -> Tensor:
        """How far s and lam stay positive, at most 1, (batch, 1)."""
        if not ds.shape[-1]:
            return ds.new_ones(len(ds), 1)
        ratio = (-ds / self.s).amax(-1).maximum((-dlam / self.lam).amax(-1))
        return 1 / ratio.clamp(min=1.0)[:, None]


def _positive(values: Tensor) -> Tensor:
    """Shifted by one number an item so that all are at least one, where some are not positive."""
    if not values.shape[-1]:
        return values
    least = values.amin(-1, keepdim=True)
    return values + (1 - least) * (least <= 0)


def _newton(Q: Tensor, G: Tensor, E: Tensor, weights: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Solves [H E'; E 0] (z, nu) = (a, b), H = Q + G' diag(weights) G, both factors raised where they must."""
    xp = namespace(Q)
    root = _factor(Q + G.mT @ (weights[..., None] * G))
    lifted = xp.linalg.solve_triangular(root, E.mT, upper=False)
    gram = _factor(lifted.mT @ lifted)

    def solve(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        start = xp.linalg.solve_triangular(root, a[..., None], upper=False)
        nu = xp.cholesky_solve(lifted.mT @ start - b[..., None], gram)
        z = xp.linalg.solve_triangular(root.mT, start - lifted @ nu, upper=True)
        return z[..., 0], nu[..., 0]

    return solve


def _factor(matrix: Tensor) -> Tensor:
    """Cholesky factors, with as little added to the diagonal as makes them exist."""
    xp, eye = namespace(matrix), matrix.new_ones(matrix.shape[-1]).diag()
    root, failed = xp.linalg.cholesky_ex(matrix + RIDGE * eye)
    largest = top(matrix.diagonal(dim1=-2, dim2=-1))[:, None, None]
    for more in (1e-14, 1e-11, 1e-8):
        if not bool(failed.any()):
            break
        again, still = xp.linalg.cholesky_ex(matrix + (RIDGE + more * largest) * eye)
        root, failed = xp.where((failed > 0)[:, None, None], again, root), xp.where(failed > 0, still, failed)
    return root


def _units(rows: Tensor) -> Tensor:
    norm = abs(rows).amax(-1) if rows.shape[-1] else abs(rows).sum(-1)
    return namespace(rows).where(norm > 0, norm, 1.0)


def top(values: Tensor) -> Tensor:
    """The largest size in each row."""
    return abs(values).amax(-1) if values.shape[-1] else abs(values).sum(-1)
