"""Where to start a lower level: the combination of earlier answers that would solve it if its gradient were affine.

Kept are triples (x_i, y_i, r_i), r = grad_y g(x, y). Of all combinations whose coefficients sum to one, that with the least

    |sum c_i r_i|^2 + width^2 |x - sum c_i x_i|^2,        y = sum c_i y_i,

where width >= |d/dx of grad_y g|, so that both terms are residuals. Triples at one x make it Anderson acceleration (Walker and Ni,
SIAM J. Numer. Anal. 2011); at several, a secant along the path, which is exact for quadratics once their x span it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Triple = tuple[Tensor, Tensor, Tensor]


def predicted(past: Sequence[Triple], x: Tensor, width: float) -> Tensor:
    """The y at x, from at least one triple, the latest last."""
    (at, y, r), rest = past[-1], past[:-1]
    if not rest:
        return y
    own, exact = y.dtype, torch.promote_types(y.dtype, torch.float32)  # LAPACK has no half precision
    away = torch.stack([torch.cat([width * (x_i - at), r_i - r]) for x_i, _, r_i in rest], 1)
    sizes = away.norm(dim=0)
    sizes = torch.where(sizes > 0, sizes, 1.0)
    basis, square = torch.linalg.qr((away / sizes).to(exact))
    goal = basis.T @ torch.cat([width * (x - at), -r]).to(exact)
    shares = (torch.linalg.pinv(square, rtol=float(torch.finfo(own).eps ** 0.625)) @ goal).to(own) / sizes
    return y + sum(c * (y_i - y) for c, (_, y_i, _) in zip(shares, rest, strict=True))


def kept(past: Sequence[Triple], new: Triple, most: int) -> list[Triple]:
    """With a new triple, and of the others the latest that fit; none twice."""
    x, y, _ = new
    rest = [t for t in past if not (torch.equal(t[0], x) and torch.equal(t[1], y))]
    return [*rest, new][-most:] if most else []
