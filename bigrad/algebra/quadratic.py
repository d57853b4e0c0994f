"""A bilevel quadratic program as arrays: its data at given inputs, its KKT matrix, its residual. Pure functions.

    min over x, y of  1/2 z'Qz + c'z + c0,  z = (x, y),   G z <= g,  E z == e
    y in argmin of    1/2 y'Py + (Cx + p)'y,   Ay + Bx <= b,  Hy + Kx == h

The follower's optimality conditions, with multipliers lam >= 0 and nu, make this a program in v = (x, y, lam, nu) with
the complementarity pairs (lam_i, s_i), s = b - Ay - Bx. On one side of every pair it is an ordinary quadratic program,
with Lagrangian

    F(z) + sigma'(Cx + Py + p + A'lam + H'nu) - kappa's + eta'(Hy + Kx - h) + gamma'(Gz - g) + eps'(Ez - e) - tau'lam.

Stationarity in lam gives tau = A sigma, so (v, sigma, kappa, eta, gamma, eps) is the whole unknown w. Arrays are numpy
or torch, each with or without a leading batch dimension.

Prices: where the upper level mentions the follower's multipliers, z is all of v, and Q, c, G and E have as many columns.

Several followers: y holds the variables of all, and row i of Py + Cx + p + A'lam + H'nu is the stationarity of the one
who chooses y_i, so that P is not symmetric in a game; `Maps.own` marks what each sees of its own Hessian.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from bigrad.algebra.affine import Affine, Array, dot, mv, namespace


class Data(NamedTuple):
    """Arrays of a bilevel quadratic program, named as in the module's formula; (batch, ...) or without a batch."""

    Q: Array
    c: Array
    c0: Array
    G: Array
    g: Array
    E: Array
    e: Array
    P: Array
    C: Array
    p: Array
    A: Array
    B: Array
    b: Array
    H: Array
    K: Array
    h: Array

    @property
    def limits(self) -> tuple[Array, ...]:
        """The vectors, which make up the right-hand side of the KKT system."""
        return self.c, self.p, self.b, self.h, self.g, self.e

    def pick(self, items: Array) -> Data:
        """The data of some items; blocks without a batch stay as they are and serve all."""
        return Data(*(b[items] if b.ndim > r else b for b, r in zip(self, RANKS, strict=True)))


RANKS = (2, 1, 0, 2, 1, 2, 1, 2, 2, 1, 2, 2, 1, 2, 2, 1)
"""Dimensions of each block of Data without a batch."""


class Sizes(NamedTuple):
    """Numbers of leader and follower variables, pairs, follower equalities, upper inequalities, upper equalities."""

    x: int
    y: int
    pairs: int
    equalities: int
    upper: int
    upper_equalities: int

    @property
    def primal(self) -> int:
        """Length of v = (x, y, lam, nu)."""
        return sum(self[:4])

    @property
    def answers(self) -> int:
        """Length of (x, y)."""
        return self.x + self.y

    @property
    def blocks(self) -> tuple[slice, ...]:
        """Slices of w = (x, y, lam, nu, sigma, kappa, eta, gamma, eps)."""
        return _blocks(self)


@cache
def _blocks(sizes: Sizes) -> tuple[slice, ...]:
    ends = accumulate([*sizes[:4], sizes.y, *sizes[2:]], initial=0)
    return tuple(slice(a, b) for a, b in pairwise(ends))


@dataclass(frozen=True, eq=False)
class Maps:
    """Affine maps from the inputs to the blocks, squares of affine expressions still factored.

    Upper level: 1/2 u'Qu + c'u + d with u = (z, T z + l). Lower: 1/2 u'Pu + (p + Wx)'u with u = (y, U y + V x + m). In a
    game, W and V have further columns for y: what each follower sees of the others. own: None, or bool (y, y), which
    entries of P are second derivatives of one follower's objective in its own variables.
    """

    Q: Affine
    c: Affine
    d: Affine
    T: Affine
    l: Affine  # noqa: E741
    G: Affine
    g: Affine
    E: Affine
    e: Affine
    P: Affine
    p: Affine
    W: Affine
    U: Affine
    V: Affine
    m: Affine
    A: Affine
    B: Affine
    b: Affine
    H: Affine
    K: Affine
    h: Affine
    own: np.ndarray | None = None

    def _bent(self, theta: tuple[Array, ...], curved: str, squares: str) -> tuple[Array, Array]:
        """The Hessian of 1/2 u'Pu in z, u = (z, T z + l), and the weight by which l enters its linear term."""
        P, T = getattr(self, curved), getattr(self, squares)
        if P.terms or T.terms or (theta and not isinstance(theta[0], np.ndarray)):
            return _hessian(P(theta), T(theta))
        if curved not in self._steady:
            self._steady[curved] = _hessian(P(()), T(()))
        return self._steady[curved]

    @cached_property
    def _steady(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {}

    def nudged(self, own: np.ndarray, weight: float, k: int) -> Maps:
        """The program with weight |v|^2 / 2 + theta_k'v added to its upper objective, v = z[own], k a new input."""
        square, pick = np.zeros(self.Q.shape), np.zeros((self.c.shape[0], len(own)))
        square[own, own], pick[own, np.arange(len(own))] = weight, 1.0
        return replace(self, Q=self.Q.plus(square), c=self.c.plus(np.zeros(len(pick)), {k: sp.csr_array(pick)}))

    def weights(self, theta: tuple[Array, ...]) -> tuple[Array, Array]:
        """The weights by which l and m enter the linear terms of the upper and the lower objective."""
        return self._bent(theta, "Q", "T")[1], self._bent(theta, "P", "U")[1]

    def hessian(self, theta: tuple[Array, ...]) -> Array:
        """Q alone."""
        return self._bent(theta, "Q", "T")[0]

    @cached_property
    def linear(self) -> tuple[Affine | None, Affine | None]:
        """The linear terms of the upper level in z and of the lower one in y, squares multiplied out; None where their
        curvature moves with the inputs, or where that would take more products than the factors do.
        """
        return _linear(self.Q, self.T, self.c, self.l), _linear(self.P, self.U, self.p, self.m)

    @cached_property
    def _fixed(self) -> dict[str, np.ndarray]:
        """The blocks that no input enters."""
        return {f.name: a(()) for f in fields(self) if isinstance(a := getattr(self, f.name), Affine) and not a.terms}

    @property
    def sizes(self) -> Sizes:
        """The program's dimensions."""
        (pairs, y), x = self.A.shape, self.B.shape[1]
        return Sizes(x, y, pairs, self.H.shape[0], self.G.shape[0], self.E.shape[0])

    def __call__(self, theta: tuple[Array, ...]) -> Data:
        """The data at flattened inputs `theta[k]` of shape (size_k,) or (batch, size_k)."""
        on_host = not theta or isinstance(theta[0], np.ndarray)
        fixed = self._fixed if on_host else {}
        at = fixed | {f.name: getattr(self, f.name)(theta) for f in fields(self) if f.name not in (*fixed, "own")}
        c, p = (a(theta) if a and on_host else None for a in self.linear)
        Q, c, c0, _ = _collapse(self._bent(theta, "Q", "T"), at["Q"], at["c"], at["d"], at["T"], at["l"], c)
        P, p, _, weight = _collapse(self._bent(theta, "P", "U"), at["P"], at["p"], None, at["U"], at["m"], p)
        y = P.shape[-1]
        C = at["W"][..., :y, :] + at["U"].mT @ at["W"][..., y:, :] + weight @ at["V"]
        if self.own is not None:
            x = self.sizes.x
            P, C = P + C[..., x:], C[..., :x]
        rest = {k: at[k] for k in ("G", "g", "E", "e", "A", "B", "b", "H", "K", "h")}
        return Data(Q=Q, c=c, c0=c0, P=P, C=C, p=p, **rest)


def _hessian(P: Array, T: Array) -> tuple[Array, Array]:
    """With t = T z + l in 1/2 u'Pu, u = (z, t): the Hessian in z, and the weight by which l enters the linear term."""
    n = T.shape[-1]
    if not T.shape[-2]:
        return P, P[..., n:]
    Pzz, Pzt, Ptt = P[..., :n, :n], P[..., :n, n:], P[..., n:, n:]
    cross, weight = Pzt @ T, Pzt + T.mT @ Ptt
    return Pzz + cross + cross.mT + T.mT @ Ptt @ T, weight


def _collapse(
    bent: tuple[Array, Array], P: Array, q: Array, d: Array | None, T: Array, m: Array, linear: Array | None
) -> tuple[Array, Array, Array, Array]:
    """Substitute t = T z + m in 1/2 u'Pu + q'u + d, u = (z, t): Hessian, linear term, which may be known, constant if d is
    given, and the weight of m.
    """
    (hessian, weight), n = bent, T.shape[-1]
    if not T.shape[-2]:
        return hessian, q, d, weight
    if linear is None:
        linear = q[..., :n] + mv(T.mT, q[..., n:]) + mv(weight, m)
    if d is not None:
        tail = P[..., n:, n:]
        plain = (
            isinstance(tail, np.ndarray)
            and tail.ndim == 2
            and np.count_nonzero(tail) <= np.count_nonzero(tail.diagonal())
        )
        d = d + dot(q[..., n:] + (tail.diagonal() * m if plain else mv(tail, m)) / 2, m)
    return hessian, linear, d, weight


SPARSE = 4
"""Entries a row and column up to which a matrix is multiplied sparse."""


def _linear(P: Affine, T: Affine, q: Affine, m: Affine) -> Affine | None:
    """The linear term of 1/2 u'Pu + q'u, u = (z, T z + m), in z."""
    if P.terms or T.terms:
        return None
    n, tall = T.shape[1], T(())
    into = sp.hstack([sp.eye_array(n), sp.csr_array(tall.T)], format="csr")
    weight = sp.csr_array(_hessian(P(()), tall)[1])
    if into.nnz + weight.nnz > SPARSE * sum(into.shape):
        return None
    return q.mixed(into, (n,)).added(m.mixed(weight, (n,)))


def apart(P: Array, own: np.ndarray | None) -> tuple[Array, Array | None]:
    """P as each follower sees it alone, and the rest, None where nobody sees another (`Maps.own`)."""
    return (P, None) if own is None else (P * own, P * ~own)


def stack(*blocks: Array) -> Array:
    """The blocks' rows one above the other, with or without a batch."""
    xp, leads = namespace(blocks[0]), {m.shape[:-2] for m in blocks}
    if len(leads) > 1:
        lead = xp.broadcast_shapes(*leads)
        return xp.concatenate([xp.broadcast_to(m, (*lead, *m.shape[-2:])) for m in blocks], -2)
    return xp.concatenate(blocks, -2)


def beside(*blocks: Array) -> Array:
    """The blocks' columns side by side, with or without a batch."""
    return stack(*(m.mT for m in blocks)).mT


def value(data: Data, v: Array) -> Array:
    """Upper objective at v or w, of which it reads the first entries, minimised sense, shape (batch,)."""
    z = v[..., : data.Q.shape[-1]]
    return dot(mv(data.Q, z), z) / 2 + dot(data.c, z) + data.c0


def residual(data: Data, sizes: Sizes, w: Array) -> Array:
    """Gradient of the Lagrangian in w (tau left out): zero in every component that is free at a solution."""
    x, y, lam, nu, sigma, kappa, eta, gamma, eps = (w[..., s] for s in sizes.blocks)
    width = data.Q.shape[-1]
    z = w[..., :width]
    xp = namespace(w)
    above = mv(data.Q, z) + data.c + mv(data.G.mT, gamma) + mv(data.E.mT, eps)
    rows = [mv(data.G, z) - data.g, mv(data.E, z) - data.e]
    if not sizes.y:
        return xp.concatenate([above, *rows], -1)
    lower = xp.concatenate(
        [
            mv(data.C.mT, sigma) + mv(data.B.mT, kappa) + mv(data.K.mT, eta),
            mv(data.P.mT, sigma) + mv(data.A.mT, kappa) + mv(data.H.mT, eta),
            mv(data.A, sigma),
            mv(data.H, sigma),
        ],
        -1,
    )
    parts = [
        above + lower[..., :width],
        lower[..., width:],
        mv(data.C, x) + mv(data.P, y) + data.p + mv(data.A.mT, lam) + mv(data.H.mT, nu),
        mv(data.A, y) + mv(data.B, x) - data.b,
        mv(data.H, y) + mv(data.K, x) - data.h,
    ]
    return xp.concatenate([*parts, *rows], -1)


def crossing(data: Data, sizes: Sizes, w: Array) -> Array:
    """tau, the multipliers of lam >= 0 that stationarity in lam asks for, (batch, pairs)."""
    _, _, lam, _, sigma, _, _, gamma, eps = sizes.blocks
    tau = mv(data.A, w[..., sigma])
    if (width := data.Q.shape[-1]) > lam.start:
        pull = mv(data.Q, w[..., :width]) + data.c + mv(data.G.mT, w[..., gamma]) + mv(data.E.mT, w[..., eps])
        tau = tau + pull[..., lam]
    return tau


def kkt(data: Data, sizes: Sizes, batch: int, *, shared: bool = False) -> tuple[Array, Array]:
    """The symmetric matrix M and right-hand side r with residual(w) = M w - r, of shapes (batch, n, n) and (batch, n).

    shared: give M as (1, n, n) where no block of it has a batch.
    """
    x, y, lam, nu, sigma, kappa, eta, gamma, eps = blocks = sizes.blocks
    z = slice(0, data.Q.shape[-1])
    xp, kind = namespace(data.P), {"dtype": data.P.dtype, "device": data.P.device}
    one = shared and all(b.ndim == 2 for b, r in zip(data, RANKS, strict=True) if r == 2)
    matrix = xp.zeros((1 if one else batch, eps.stop, eps.stop), **kind)
    matrix[:, z, z] = data.Q
    for row, column, block in (
        (sigma, x, data.C), (sigma, y, data.P), (sigma, lam, data.A.mT), (sigma, nu, data.H.mT), (kappa, x, data.B),
        (kappa, y, data.A), (eta, x, data.K), (eta, y, data.H), (gamma, z, data.G), (eps, z, data.E),
    ):  # fmt: skip
        matrix[:, row, column] = block
        matrix[:, column, row] = block.mT
    rhs = xp.zeros((batch, eps.stop), **kind)
    for place, vector in zip((z, *blocks[4:]), (-data.c, -data.p, data.b, data.h, data.g, data.e), strict=True):
        rhs[:, place] = vector
    return matrix, rhs
