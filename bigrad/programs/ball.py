"""The projection onto a ball as a form of its own: a batch of them is a few lines of algebra.

    min over y of  q/2 |y|^2 + c'y   subject to   |E y - e| <= s   or   |E y - e|^2 <= s,      E'E = k^2 I

With y0 = -c / q, a = E'e / k^2 and the radius rho = s / k or sqrt(s) / k, the answer is y0 inside the ball, else a + rho v
with v = (y0 - a) / |y0 - a|; the constraint's multiplier is mu = q (|y0 - a| - rho) / k, for the square mu / (2 k rho). Here
w = (y, multiplier).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.atoms.pnorm import Pnorm, PnormApprox
from cvxpy.atoms.quad_over_lin import quad_over_lin

from bigrad.algebra.affine import product
from bigrad.algebra.quadratic import Data, Maps, Sizes
from bigrad.algebra.sensitivity import pull
from bigrad.program import Program
from bigrad.programs import canonical
from bigrad.programs.assemble import assemble
from bigrad.programs.cvxpy import upper_level
from bigrad.programs.roles import Roles

ROUND = 1e-12
"""How far a matrix may be from a multiple of the identity, relatively, to count as one."""


class Projected(NamedTuple):
    """A batch: y (batch, n), the multiplier mu of the norm, the radius, |y0 - a|, all (batch,), and v (batch, n)."""

    y: np.ndarray
    mu: np.ndarray
    radius: np.ndarray
    distance: np.ndarray
    v: np.ndarray

    @property
    def outside(self) -> np.ndarray:
        """Items whose y0 lies outside the ball."""
        return self.distance > self.radius


@dataclass(frozen=True, eq=False)
class Ball:
    """Such a program. maps: its objective, with the rows E y == e and, last, one whose right-hand side is s; general: the
    same as a cone program.
    """

    maps: Maps
    q: float
    E: np.ndarray
    k: float
    squared: bool
    general: Program

    @property
    def layout(self) -> Sizes:
        """One upper inequality; w = (y, multiplier)."""
        return Sizes(self.maps.sizes.x, 0, 0, 0, 1, 0)

    @staticmethod
    def of(
        objective: cp.Expression,
        above: Sequence[cp.Constraint],
        roles: Roles,
        plain: Mapping[int, cp.Variable],
        general: Program,
    ) -> Ball | None:
        """The form of a problem minimised in plain variables, or None if it is of another kind."""
        n = sum(v.size for v in roles.leader)
        if len(above) != 1 or not isinstance(above[0], cp.constraints.nonpos.Inequality):
            return None
        body, bound = above[0].args
        squared = isinstance(body, quad_over_lin) and body.is_scalar() and body.args[1].value == 1
        norm = isinstance(body, Pnorm | PnormApprox) and body.p == 2 and body.is_scalar()
        if not (squared or norm) or bound.variables() or not body.args[0].is_affine() or body.args[0].size != n:
            return None
        first = cp.vec(plain[roles.leader[0].id], order="F")[0]
        rows = [cp.vec(body.args[0], order="F") == 0, first - bound == 0]
        level, _, _ = upper_level(objective, rows, canonical.empty(), roles, plain)
        if level is None:
            return None
        maps = assemble(level, canonical.empty(), roles, plain)
        if maps.sizes.x != n or maps.G.shape[0] or any(block.terms for block in (maps.Q, maps.T, maps.E)):
            return None
        E = maps.E(())
        q, k = _multiple(maps.hessian(())), _multiple(E[:n].T @ E[:n])
        return None if q is None or k is None else Ball(maps, q, E, float(np.sqrt(k)), bool(squared), general)

    @cached_property
    def rows(self) -> sp.csr_array:
        """E without the last row."""
        return sp.csr_array(self.E[:-1])

    def project(self, data: Data, batch: int) -> Projected:
        """The answers; NaN where s is negative."""
        n, e = self.maps.sizes.x, np.broadcast_to(data.e, (batch, self.maps.sizes.x + 1))
        s = e[:, n] / self.E[n, 0]
        with np.errstate(invalid="ignore"):
            radius = (np.sqrt(s) if self.squared else np.where(s < 0, np.nan, s)) / self.k
        start, centre = (
            -np.broadcast_to(data.c, (batch, n)) / self.q,
            product(self.rows.T.tocsr(), e[:, :n]) / self.k**2,
        )
        far = start - centre
        distance = np.sqrt((far * far).sum(-1))
        v = far / np.where(distance > 0, distance, 1.0)[:, None]
        y = np.where((distance > radius)[:, None], centre + radius[:, None] * v, start)
        mu = self.q * np.maximum(distance - radius, 0.0) / self.k
        return Projected(y, mu, radius, distance, v)

    def multiplier(self, found: Projected) -> np.ndarray:
        """Of the constraint as it is written, (batch,); infinite at a square that must vanish."""
        with np.errstate(divide="ignore", invalid="ignore"):
            shrunk = found.mu / (2 * self.k * found.radius)
        return np.where(found.mu > 0, shrunk, 0.0) if self.squared else found.mu

    def pull(
        self,
        theta: tuple[np.ndarray, ...],
        found: Projected | None,
        cotangent: np.ndarray,
        ok: np.ndarray,
        wanted: Sequence[bool],
    ) -> list[np.ndarray | None]:
        """Gradients of cotangent'(y, multiplier), (batch, n) or (batch, n + 1), over the inputs, zero for items that are not ok;
        one on the rim counts as inside. found: the projections, if they are known.
        """
        batch, n = len(cotangent), self.maps.sizes.x
        found = self.project(self.maps(theta), batch) if found is None else found
        g, price = cotangent[:, :n], (cotangent[:, n] if cotangent.shape[1] > n else np.zeros(batch))
        out, rho, far = found.outside, found.radius, np.where(found.distance > 0, found.distance, 1.0)
        along = (found.v * g).sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            by_far = self.q / self.k * (1 / (2 * self.k * rho) if self.squared else 1.0)
            by_rho = -self.q / self.k * (far / (2 * self.k * rho**2) if self.squared else 1.0)
            slope = np.where(price == 0, 0.0, by_far * price)[:, None] * found.v
            turned = (rho / far)[:, None] * (g - found.v * along[:, None]) + slope
            grown = along + np.where(price == 0, 0.0, by_rho * price)
            dy0 = np.where(out[:, None], turned, g)
            da = np.where(out[:, None], g - turned, 0.0)
            ds = np.where(out, grown / (2 * self.k**2 * rho if self.squared else self.k), 0.0)
        adjoint = np.zeros((batch, n + n + 1))
        adjoint[:, :n] = -dy0 / self.q
        adjoint[:, n : 2 * n] = -product(self.rows, da) / self.k**2
        adjoint[:, 2 * n] = -ds / self.E[n, 0]
        adjoint[~ok] = 0.0
        return pull(self.maps, theta, np.zeros_like(adjoint), adjoint, wanted)


def _multiple(matrix: np.ndarray) -> float | None:
    """The number of which a matrix is the multiple of the identity, if it is one and positive."""
    number = float(matrix.trace()) / len(matrix)
    alike = abs(matrix - number * np.eye(len(matrix))).max() <= ROUND * abs(number)
    return number if alike and number > 0 else None
