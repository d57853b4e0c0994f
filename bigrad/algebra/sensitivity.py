"""How the optimality conditions of a bilevel quadratic program move with its inputs: the last step of an adjoint.

With R the residual of bigrad/algebra/quadratic.py and a the adjoint, the gradient of a'R over an input needs no more than outer
products of parts of a and w, one per block that the input enters, pulled back through that block's affine map. Squares
of affine expressions stay factored: with u = (z, Tz + l) the upper objective contributes a_u'(Qu + c), a_u = (a_z, T
a_z), and the lower one likewise.
"""

from __future__ import annotations

from collections.abc import Sequence

from bigrad.algebra.affine import Affine, Array, mv, namespace
from bigrad.algebra.quadratic import Maps

Product = tuple[Array, Array]
"""Left and right vectors, (batch, rows) and (batch, columns), whose outer product is meant."""


def pull(maps: Maps, theta: Sequence[Array], w: Array, a: Array, wanted: Sequence[bool]) -> list[Array | None]:
    """Gradients of sum over the batch of a'R(w, theta), each of its input's shape, None where not wanted.

    theta[k]: (size_k,) or (batch, size_k); w, a: (batch, unknowns).
    """
    xp, sizes = namespace(w), maps.sizes
    x, y, lam, nu, sigma, kappa, eta, gamma, eps = (w[..., s] for s in sizes.blocks)
    dx, dy, dlam, dnu, dsigma, dkappa, deta, dgamma, deps = (a[..., s] for s in sizes.blocks)
    z, dz = (v[..., : maps.G.shape[1]] for v in (w, a))
    others, dothers = (x, dx) if maps.own is None else (v[..., : sizes.answers] for v in (w, a))

    def lifted(map_: Affine, main: Array, *rest: Array) -> Array:
        return xp.concatenate([main, sum(rest, mv(map_(theta), main))], -1)

    def linear(level: int, squares: Affine, q: Affine, m: Affine, main: Array) -> list[tuple[Affine, Array]]:
        if (whole := maps.linear[level]) is not None:
            return [(whole, main)]
        return [(q, lifted(squares, main)), (m, mv(maps.weights(tuple(theta))[level].mT, main))]

    vectors: list[tuple[Affine, Array]] = [
        (maps.g, -dgamma), (maps.e, -deps), (maps.b, -dkappa), (maps.h, -deta),
    ]  # fmt: skip
    outers: list[tuple[Affine, list[Product]]] = [
        (maps.G, [(gamma, dz), (dgamma, z)]),
        (maps.E, [(eps, dz), (deps, z)]),
        (maps.A, [(kappa, dy), (dlam, sigma), (lam, dsigma), (dkappa, y)]),
        (maps.H, [(eta, dy), (dnu, sigma), (nu, dsigma), (deta, y)]),
    ]
    if _moves(maps.Q, maps.T):
        n, Q = z.shape[-1], maps.Q(theta)
        u, du = lifted(maps.T, z, maps.l(theta)), lifted(maps.T, dz)
        slope, bend = (mv(Q, u) + maps.c(theta))[..., n:], mv(Q, du)[..., n:]
        vectors += [(maps.c, du), (maps.l, bend)]
        outers += [(maps.Q, [(du, u)]), (maps.T, [(slope, dz), (bend, z)])]
    elif _moves(maps.c, maps.l):
        vectors += linear(0, maps.T, maps.c, maps.l, dz)
    if _moves(maps.P, maps.U):
        n, P, V, W = y.shape[-1], maps.P(theta), maps.V(theta), maps.W(theta)
        u, du = lifted(maps.U, y, mv(V, others), maps.m(theta)), lifted(maps.U, dy, mv(V, dothers))
        su, dsu = lifted(maps.U, sigma), lifted(maps.U, dsigma)
        slope, dslope = (mv(P, u) + maps.p(theta) + mv(W, others))[..., n:], (mv(P, du) + mv(W, dothers))[..., n:]
        bend, dbend = mv(P, su)[..., n:], mv(P, dsu)[..., n:]
        vectors += [(maps.p, dsu), (maps.m, dbend)]
        outers += [
            (maps.P, [(su, du), (dsu, u)]),
            (maps.U, [(dslope, sigma), (bend, dy), (slope, dsigma), (dbend, y)]),
        ]
    elif _moves(maps.p, maps.m):
        vectors += linear(1, maps.U, maps.p, maps.m, dsigma)

    found: list[Array | None] = []
    for k, need in enumerate(wanted):
        if not need:
            found.append(None)
            continue
        alone = theta[k].ndim == 1
        parts = [block.pull(k, v.sum(0) if alone else v) for block, v in vectors if k in block.terms]
        parts += [block.pull(k, _outer(products, alone)) for block, products in outers if k in block.terms]
        found.append(sum(parts[1:], parts[0]) if parts else xp.zeros_like(theta[k]))
    return found


def _moves(*blocks: Affine) -> bool:
    return any(block.terms for block in blocks)


def _outer(products: list[Product], summed: bool) -> Array:
    """The sum of outer products, flattened, over the batch too if `summed`."""
    xp = namespace(products[0][0])
    if summed:
        left, right = (xp.concatenate(side, 0) for side in zip(*products, strict=True))
        return (left.mT @ right).reshape(-1)
    left, right = (xp.stack(side, -1) for side in zip(*products, strict=True))
    return (left @ right.mT).reshape(len(left), -1)
