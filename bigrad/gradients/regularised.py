"""Regularised: decisions smoothed by a quadratic term over the convex hull of all. Niculae et al., "SparseMAP", ICML
2018; the min-norm-point form of Frank-Wolfe is Wolfe, "Finding the nearest point in a polytope", 1976.

    f(c) = argmin over f in conv phi(Y) of  s c'f + weight/2 |f|^2        s = +1 where c is minimised, -1 where maximised

f is the point of the hull nearest to -s c / weight, a mean of few vertices: y(c) = sum_k w_k y_k. Within the face that
these span it moves linearly, so with V the differences of the phi(y_k), Y those of the y_k,

    grad_c = -(s / weight) V^+ Y g                                        (y = phi: g projected onto the face)
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from bigrad.gradients.estimator import AbstractEstimator, Back, features, solve
from bigrad.gradients.potential import AbstractPotential, Potential
from bigrad.oracle import Oracle
from bigrad.solution import InputError, SolveWarning


@dataclass(frozen=True)
class Face:
    """Vertices whose mean a point is: features (k, n), decisions (k, m), weights (k,), positive, of sum 1."""

    vertices: np.ndarray
    decisions: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Regularised(AbstractEstimator, AbstractPotential):
    """Sparse mean decisions forward, the exact derivative on their face backward: no noise, no variance.

    For one player: with two, the hull of their answers is not what either optimises over. Choose it for the
    Fenchel-Young loss of a decision that should be met exactly. weight: larger smooths more. iterations: solves at most;
    tolerance: gap, relative to the size of the values, at which an item is done; a SolveWarning names items that are not.
    """

    weight: float = 1.0
    iterations: int = 100
    tolerance: float = 1e-9

    def __post_init__(self) -> None:
        if not (self.weight > 0 and self.iterations >= 1 and self.tolerance > 0):
            raise InputError(f"{self}: weight and tolerance must be positive, iterations at least 1.")

    def estimate(self, oracle: Oracle, costs: np.ndarray) -> tuple[np.ndarray, Back]:
        """See AbstractEstimator.estimate."""
        faces = self._faces(oracle, costs)

        def back(push: np.ndarray) -> np.ndarray:
            return np.stack([-oracle.sense / self.weight * _slope(f, g) for f, g in zip(faces, push, strict=True)])

        return np.stack([f.weights @ f.decisions for f in faces]), back

    def potential(self, oracle: Oracle, costs: np.ndarray) -> Potential:
        """F(c) = min s c'f + weight/2 |f|^2, its slope s f."""
        faces = self._faces(oracle, costs)
        f = np.stack([face.weights @ face.vertices for face in faces])
        value = (oracle.sense * costs * f).sum(1) + self.entropy(f)
        return Potential(value, oracle.sense * f, np.stack([face.weights @ face.decisions for face in faces]))

    def entropy(self, features: np.ndarray) -> np.ndarray:
        """weight/2 |phi|^2."""
        found: np.ndarray = self.weight / 2 * (features**2).sum(1)
        return found

    def _faces(self, oracle: Oracle, costs: np.ndarray) -> list[Face]:
        y = solve(oracle, costs)
        faces = [Face(v[None], d[None], np.ones(1)) for v, d in zip(features(oracle, y, costs), y, strict=True)]
        goals, gap = -oracle.sense * costs / self.weight, np.zeros(len(costs))
        for _ in range(self.iterations):
            f = np.stack([face.weights @ face.vertices for face in faces])
            uphill = self.weight * (f - goals)
            y = solve(oracle, oracle.sense * uphill)
            phi = features(oracle, y, costs)
            gap = (uphill * (f - phi)).sum(1) / (1 + abs(uphill * f).sum(1))
            if (gap <= self.tolerance).all():
                return faces
            for i in np.flatnonzero(gap > self.tolerance):
                faces[i] = _nearest(_joined(faces[i], phi[i], y[i]), goals[i])
        lost = np.flatnonzero(gap > self.tolerance)[:8].tolist()
        warnings.warn(f"{self}: not yet optimal at items {lost}; raise iterations.", SolveWarning, stacklevel=2)
        return faces


def _joined(face: Face, vertex: np.ndarray, decision: np.ndarray) -> Face:
    return Face(np.vstack([face.vertices, vertex]), np.vstack([face.decisions, decision]), np.append(face.weights, 0.0))


def _nearest(face: Face, goal: np.ndarray) -> Face:
    """The point of a face's hull nearest to a goal: to the affine hull's, dropping vertices that are met on the way."""
    while True:
        base = face.vertices[0]
        rest = np.linalg.lstsq((face.vertices[1:] - base).T, goal - base, rcond=None)[0]
        wanted = np.append(1 - rest.sum(), rest)
        if (wanted > 1e-12).all():
            return Face(face.vertices, face.decisions, wanted)
        falling = wanted <= 1e-12
        way = face.weights[falling] / np.maximum(face.weights[falling] - wanted[falling], 1e-300)
        weights = face.weights + min(1.0, way.min()) * (wanted - face.weights)
        keep = weights > 1e-12
        keep[np.flatnonzero(falling)[way.argmin()]] = False
        face = Face(face.vertices[keep], face.decisions[keep], weights[keep] / weights[keep].sum())


def _slope(face: Face, push: np.ndarray) -> np.ndarray:
    """V^+ Y g."""
    along = np.linalg.pinv(face.vertices[1:] - face.vertices[0])
    found: np.ndarray = along @ ((face.decisions[1:] - face.decisions[0]) @ push)
    return found
