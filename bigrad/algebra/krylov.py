"""Linear solvers of A x = b that know A only by its products: CG, MINRES, GMRES, Neumann, T1T2.

`solve(matvec, b)` returns x and the residual |A x - b| that it reached. They work on torch vectors of any precision and
device. `tol` is relative to |b|, `atol` is absolute; None is the precision's own (1.6e-10 in float64, 5e-5 in float32).
`tol=0` takes `steps` steps, whatever the residual, and is silent about it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from bigrad.solution import InputError, SolveError, Status

if TYPE_CHECKING:
    from torch import Tensor

Product = Callable[["Tensor"], "Tensor"]
"""v to A v."""
MOST = 1000
"""Steps where none are named, unless the dimension asks for fewer."""


@dataclass(frozen=True, eq=False)
class Solved:
    """x, |A x - b| (None if it was not computed), the number of products with A, and a sentence about what went wrong."""

    x: Tensor
    residual: float | None
    iterations: int
    cause: str = ""


class AbstractLinear(ABC):
    """How A x = b is solved. symmetric: whether A must be."""

    symmetric: ClassVar[bool]

    @abstractmethod
    def solve(self, matvec: Product, b: Tensor) -> Solved:
        """x from zero. SolveError where the method cannot take such an A."""

    def promised(self, b: Tensor, mu: float, L: float | None) -> float | None:
        """The residual that it reaches where mu <= A <= L, unless it says that it did not; None if there is none."""
        return None


@dataclass(frozen=True)
class AbstractKrylov(AbstractLinear):
    """A method that goes on until the residual is small. tol, atol: relative to |b| and absolute; steps: products, at most."""

    tol: float | None = None
    steps: int | None = None
    atol: float = 0.0

    def __post_init__(self) -> None:
        if (self.steps is not None and self.steps < 1) or (self.tol is not None and not self.tol >= 0):
            raise InputError(f"{self}: steps must be at least 1, tol positive, zero or None.")
        if self.tol == 0 and self.steps is None:
            raise InputError(f"{self}: with tol=0 say how many steps to take.")

    def promised(self, b: Tensor, mu: float, L: float | None) -> float | None:
        """The residual asked for, unless tol=0."""
        return None if self.tol == 0 else self._goal(b)

    def _goal(self, b: Tensor) -> float:
        import torch

        share = torch.finfo(b.dtype).eps ** 0.625 if self.tol is None else self.tol
        return max(share * float(b.norm()), self.atol)

    def _done(self, x: Tensor, residual: float, goal: float, steps: int) -> Solved:
        """The answer, with a complaint if it is not good enough; NaN is not."""
        fine = residual <= goal or (self.tol == 0 and residual < float("inf"))
        ask = f"{self} stopped with a residual of {residual:.1e} after {steps} products; asked for was {goal:.1e}. Raise steps or tol."
        return Solved(x, residual, steps, "" if fine else ask)


@dataclass(frozen=True)
class CG(AbstractKrylov):
    """Conjugate gradients, for symmetric positive definite A. Hestenes and Stiefel 1952.

    The first choice at a strict minimum: three vectors of memory, at most as many steps as dimensions. An indefinite A
    raises SolveError, since the point is then no minimum. tol, atol: the residual to stop at, relative to |b| and absolute.
    steps: products with A, at most.
    """

    symmetric: ClassVar[bool] = True

    def solve(self, matvec: Product, b: Tensor) -> Solved:
        """See AbstractLinear.solve."""
        import torch

        goal, most = self._goal(b), self.steps or min(2 * len(b) + 10, MOST)
        x, r = b.new_zeros(b.shape), b.clone()
        p, square, taken, largest = r.clone(), float(r @ r), 0, 0.0
        length = square  # |p|^2: r is orthogonal to the last p
        eps = torch.finfo(b.dtype).eps
        least = max(goal, eps**2 * square**0.5)  # below that no step changes x
        while taken < most and square**0.5 > least:
            product = matvec(p)
            bend, taken = float(p @ product), taken + 1
            largest = max(largest, bend / length)
            if bend <= eps * largest * length:
                raise SolveError(
                    f"{self} met curvature p'Hp / p'p = {bend / length:.2e} at step {taken} (residual {square**0.5:.1e}), and "
                    "needs a positive definite Hessian: the point is no strict minimum of the inner loss. Solve the lower level "
                    "more exactly, add a strictly convex term to it, or take bigrad.MINRES().",
                    {0: Status.NONCONVEX_LOWER},
                )
            step = square / bend
            x.add_(p, alpha=step)
            r.sub_(product, alpha=step)
            del product  # a vector less while the next is made
            square, old = float(r @ r), square
            torch.add(r, p, alpha=square / old, out=p)
            length = square + (square / old) ** 2 * length
        return self._done(x, square**0.5, goal, taken)

    def promised(self, b: Tensor, mu: float, L: float | None) -> float | None:
        """With tol=0, 2 sqrt(L / mu) ((sqrt L - sqrt mu) / (sqrt L + sqrt mu))^steps |b|."""
        if self.tol != 0 or self.steps is None or L is None:
            return super().promised(b, mu, L)
        rate = (L**0.5 - mu**0.5) / (L**0.5 + mu**0.5)
        return max(2 * (L / mu) ** 0.5 * rate**self.steps * float(b.norm()), self.atol)


@dataclass(frozen=True)
class MINRES(AbstractKrylov):
    """Minimal residuals for symmetric A, indefinite ones too. Paige and Saunders, SIAM J. Numer. Anal. 1975.

    Choose it at saddle points, or where the inner loss is only nearly minimised. Where A is singular and b no product of it, the
    answer is the one of least residual on the way (Choi, Paige and Saunders, SIAM J. Sci. Comput. 2011). Seven vectors of
    memory, eight there. tol, atol, steps: as for CG.
    """

    symmetric: ClassVar[bool] = True

    def solve(self, matvec: Product, b: Tensor) -> Solved:
        """See AbstractLinear.solve."""
        import torch

        eps = torch.finfo(b.dtype).eps
        goal, most = self._goal(b), self.steps or min(4 * len(b) + 10, MOST)
        x, size = b.new_zeros(b.shape), float(b.norm())
        eta, taken, beta, largest = size, 0, 0.0, 0.0
        c = c_old = 1.0
        s = s_old = 0.0
        v = b / size if size else b
        v_old, w, w_old = (b.new_zeros(b.shape) for _ in range(3))
        least, kept, lost = eps**0.5, None, False
        while taken < most and abs(eta) > goal:
            fresh, taken = matvec(v), taken + 1
            alpha = float(v @ fresh)
            fresh = fresh - alpha * v - beta * v_old
            next_beta = float(fresh.norm())
            rho = c * alpha - c_old * s * beta
            length = (rho**2 + next_beta**2) ** 0.5
            largest = max(largest, (alpha**2 + beta**2 + next_beta**2) ** 0.5)
            flatness = (rho**2 + (c * next_beta) ** 2) ** 0.5 / (largest or 1.0)  # |A r| / |A| |r|, r = b - A x
            if flatness < least:
                least, kept = flatness, Solved(x.clone(), abs(eta), taken)
            if length == 0:
                break
            w, w_old = (v - s_old * beta * w_old - (s * alpha + c_old * c * beta) * w) / length, w
            c_old, s_old, c, s = c, s, rho / length, next_beta / length
            x.add_(w, alpha=c * eta)
            eta *= -s
            lost = not float(x.norm()) * largest <= size / eps**0.75  # to rounding errors, along what A does not see
            if lost:
                break
            v_old, v, beta = v, fresh / next_beta if next_beta else fresh, next_beta
        if kept is None or not (lost or abs(eta) > goal):
            return self._done(x, abs(eta), goal, taken)
        why = "the loss depends on y in directions in which the inner loss is flat"
        why = f"{self} stopped at the least residual, {kept.residual:.1e}: {why}."
        return replace(kept, cause="" if self.tol == 0 else why)


@dataclass(frozen=True)
class GMRES(AbstractKrylov):
    """Minimal residuals for any A, restarted. Saad and Schultz, SIAM J. Sci. Stat. Comput. 1986.

    Choose it where A is not symmetric, as under a projection that is a plain function. `restart` vectors of memory.
    tol, atol, steps: as for CG.
    """

    restart: int = 50
    symmetric: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.restart < 1:
            raise InputError(f"{self}: restart must be at least 1.")

    def solve(self, matvec: Product, b: Tensor) -> Solved:
        """See AbstractLinear.solve."""
        goal, most = self._goal(b), self.steps or min(4 * len(b) + 10, MOST)
        x, r, taken = b.new_zeros(b.shape), b.clone(), 0
        residual = float(r.norm())
        while taken < most and residual > goal:
            step, products = self._cycle(matvec, r, min(self.restart, most - taken), goal)
            x += step
            fresh = b - matvec(x)
            taken, last, residual = taken + products + 1, residual, float(fresh.norm())
            r = fresh
            if not residual < last * (1 - 1e-12):  # stagnation, or NaN
                break
        return self._done(x, residual, goal, taken)

    @staticmethod
    def _cycle(matvec: Product, r: Tensor, most: int, goal: float) -> tuple[Tensor, int]:
        """One Arnoldi process and its least-squares answer."""
        import torch

        size = float(r.norm())
        basis, table = [r / size], torch.zeros(most + 1, most, dtype=torch.float64)
        known = torch.zeros(most + 1, dtype=torch.float64)
        known[0], k = size, 0
        answer = torch.zeros(0, dtype=torch.float64)
        while k < most:
            fresh = matvec(basis[-1])
            for _ in range(2):  # once more, for orthogonality to the last digit
                for i, old in enumerate(basis):
                    overlap = float(old @ fresh)
                    table[i, k] += overlap
                    fresh = fresh - overlap * old
            table[k + 1, k] = length = float(fresh.norm())
            k += 1
            answer = torch.linalg.lstsq(table[: k + 1, :k], known[: k + 1, None], driver="gelsd").solution[:, 0]
            left = float((table[: k + 1, :k] @ answer - known[: k + 1]).norm())
            if left <= goal or length <= 1e-14 * size or length != length:
                break
            basis.append(fresh / length)
        return sum((float(a) * v for a, v in zip(answer, basis, strict=False)), torch.zeros_like(r)), k


@dataclass(frozen=True)
class Neumann(AbstractLinear):
    """x = alpha (b + (1 - alpha A) b + … + (1 - alpha A)^terms b). Lorraine, Vicol and Duvenaud, AISTATS 2020.

    alpha: below 2 / (largest eigenvalue of A), best about 1 / that. Choose it where CG's inner products are too dear or A
    is noisy; a fixed number of products, and the error falls like (1 - alpha mu)^terms. A series that grows says so.
    """

    terms: int
    alpha: float
    symmetric: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.terms < 0 or not self.alpha > 0:
            raise InputError(f"{self}: terms must not be negative, alpha must be positive.")

    def solve(self, matvec: Product, b: Tensor) -> Solved:
        """See AbstractLinear.solve; the last term left out is the residual, which costs one product more."""
        v, x = b, b.clone()
        for k in range(self.terms + 1):
            v = v - self.alpha * matvec(v)
            if k < self.terms:
                x += v
        residual, size = float(v.norm()), float(b.norm())
        grew = f"{self} grew from {size:.1e} to {residual:.1e}: alpha is above 2 / (largest eigenvalue), or A is not positive. Lower alpha."
        return Solved(self.alpha * x, residual, self.terms + 1, "" if residual <= size else grew)

    def promised(self, b: Tensor, mu: float, L: float | None) -> float | None:
        """The larger of 1 - alpha mu and alpha L - 1, to the power terms + 1, times |b|."""
        rate = None if L is None else max(1 - self.alpha * mu, self.alpha * L - 1)
        return None if rate is None else float(rate ** (self.terms + 1) * b.norm())


@dataclass(frozen=True)
class T1T2(AbstractLinear):
    """x = scale b: the inverse Hessian taken for a multiple of the identity. Luketina et al., ICML 2016.

    No product at all; the direction is often useful, the length and the residual are unknown.
    """

    scale: float = 1.0
    symmetric: ClassVar[bool] = False

    def solve(self, matvec: Product, b: Tensor) -> Solved:
        """See AbstractLinear.solve."""
        return Solved(self.scale * b, None, 0)
