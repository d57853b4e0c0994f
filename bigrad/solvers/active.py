"""From a point and the sides of its pairs to a settled answer: polish on the active set, classify kinks, measure
residuals.

The polish is one solve with the KKT matrix at the active set, the same matrix that the gradient uses; it takes a
solver's 1e-9 to machine precision. At a biactive pair (multiplier and slack both zero) the side that the solver held
stays held, and the other side is held too if its own multiplier is positive. A weakly active constraint (multiplier
zero) is left free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bigrad.algebra.exchange import Exchange, Items
from bigrad.algebra.linear import exchange, solve_free
from bigrad.algebra.quadratic import Data, Sizes, kkt, residual
from bigrad.programs.system import Layout

TOUCH = 1e-7
"""A slack or multiplier below this, relative to 1 + the largest value of its kind, counts as zero."""
SHARP = 1e-15
"""Residuals and violations below this cannot be polished."""
ROUGH, FINE = 1e-12, 1e-10
"""A violation above the first is worth a second step; residuals and violations below the second are as good as none."""


@dataclass(frozen=True, eq=False)
class Settled:
    """Arrays over the batch: polished w, its free mask, the sides, and the measurements that Stats reports."""

    w: np.ndarray
    free: np.ndarray
    residual: np.ndarray
    violation: np.ndarray
    biactive: np.ndarray
    degenerate: np.ndarray
    strongly_stationary: np.ndarray
    second_order: np.ndarray
    singular: np.ndarray
    items: Items | None = None


def settle(
    data: Data,
    sizes: Sizes,
    w: np.ndarray,
    tight: np.ndarray,
    *,
    convex: bool,
    known: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    ready: Exchange | None = None,
) -> Settled:
    """Polish and classify w (batch, unknowns) with pairs on the sides `tight` (batch, pairs).

    convex: the upper objective is convex, so stationarity is enough; else the curvature on the active set is checked.
    known: (free, singular, polished), active sets of which it is known whether they are singular, and the items that were
    polished on theirs. An item that lies on its own and needs no polish is spared the matrix. ready: of a shared KKT
    matrix, if it is at hand.
    """
    w, pull = w.copy(), residual(data, sizes, w)
    free = free_unknowns(pull, sizes, w, tight)
    scale = sizes_of(data, len(w))
    dual, primal = measure(pull, scale, sizes, w, free)
    singular, flat = np.zeros(len(w), bool), np.ones(len(w), bool)
    todo = np.ones(len(w), bool)
    if known is not None and convex:
        singular = known[1].copy()
        todo = (known[0] != free).any(-1) | ((np.maximum(dual, primal) > SHARP) & ~known[2])
    rows, items = np.flatnonzero(todo), None
    if ready is not None or len(rows):
        ready = exchange(kkt(data, sizes, len(w), shared=True)[0], free) if ready is None else ready
        items = None if ready is None else ready.items(free)
    if len(rows):
        part = items and items.pick(rows)
        polished = _polished(data.pick(rows), sizes, scale[rows], w[rows], free[rows], dual[rows], primal[rows], part)
        w[rows], dual[rows], primal[rows], singular[rows], matrix = polished
        if not convex:
            flat = curves_upwards(matrix, free, sizes)
        pull = residual(data, sizes, w)
    biactive, degenerate, strong = kinks(pull, sizes, w)
    return Settled(w, free, dual, primal, biactive, degenerate, strong, flat, singular, items)


def sizes_of(data: Data, batch: int) -> np.ndarray:
    """1 + the largest number among the right-hand sides of each item, (batch,): what residuals are relative to."""
    return 1 + np.max([np.broadcast_to(abs(b).max(-1, initial=0.0), batch) for b in data.limits], axis=0)


def _polished(
    data: Data,
    sizes: Sizes,
    scale: np.ndarray,
    w: np.ndarray,
    free: np.ndarray,
    dual: np.ndarray,
    primal: np.ndarray,
    items: Items | None,
) -> tuple[np.ndarray, ...]:
    """Polished w, its measurements, which items are singular, and the matrices."""
    matrix, rhs = kkt(data, sizes, len(w), shared=True)
    held = np.where(free, w, 0.0)
    step, singular = solve_free(matrix, free, -residual(data, sizes, held), items)
    polished = held + step
    after = measure(residual(data, sizes, polished), scale, sizes, polished, free)
    fine = np.maximum(after[0], after[1]) <= np.maximum(np.maximum(dual, primal), FINE)
    better = fine & (after[1] <= np.maximum(primal, FINE))
    w = np.where(better[:, None], polished, w)
    dual, primal = np.where(better, after[0], dual), np.where(better, after[1], primal)
    rough = np.flatnonzero(primal > ROUGH)
    if len(rough):
        part = data.pick(rough)
        pull = residual(part, sizes, w[rough])
        nearest = np.broadcast_to(matrix, (len(w), *matrix.shape[1:]))[rough]
        snapped = _snap(nearest.copy(), rhs[rough], pull, sizes, w[rough])
        now = measure(residual(part, sizes, snapped), scale[rough], sizes, snapped, free[rough])
        gain = (now[1] < primal[rough]) & (now[0] <= np.maximum(dual[rough], primal[rough]))
        at = rough[gain]
        w[at], dual[at], primal[at] = snapped[gain], now[0][gain], now[1][gain]
    return w, dual, primal, singular, matrix


def _slacks(pull: np.ndarray, sizes: Sizes | Layout, w: np.ndarray) -> tuple[np.ndarray, ...]:
    """Slack and multiplier of the pairs (lam, s), multipliers of their two sides (tau, kappa), slack and multiplier of the
    upper rows; from w and the gradient `pull` of the Lagrangian there."""
    _, _, lam, _, _, kappa, _, gamma, _ = sizes.blocks
    return w[:, lam], -pull[:, kappa], pull[:, lam], w[:, kappa], -pull[:, gamma], w[:, gamma]


def near_zero(values: np.ndarray, touch: float = TOUCH) -> np.ndarray:
    """The threshold below which entries of a batch of vectors count as zero, (batch, 1)."""
    return touch * (1 + abs(values).max(-1, keepdims=True, initial=0.0))


def asking(
    tight: np.ndarray, lam: np.ndarray, slack: np.ndarray, kappa: np.ndarray, tau: np.ndarray, touch: float = TOUCH
) -> np.ndarray:
    """How strongly each biactive pair's other multiplier asks to cross to the other side; 0 where it does not."""
    idle, closed = lam <= near_zero(lam, touch), slack <= near_zero(slack, touch)
    ask = np.where(tight, np.where(idle, -kappa, 0.0), np.where(closed, -tau, 0.0))
    return np.where(ask > near_zero(np.concatenate([kappa, tau], -1), touch), ask, 0.0)


def free_unknowns(pull: np.ndarray, sizes: Sizes | Layout, w: np.ndarray, tight: np.ndarray) -> np.ndarray:
    """The unknowns that are not held at zero at w, bool (batch, unknowns): the active set, kinks decided by their multipliers."""
    lam, s, tau, kappa, gap, gamma = _slacks(pull, sizes, w)
    both = (lam <= near_zero(lam)) & (s <= near_zero(s))
    free = np.ones(w.shape, bool)
    _, _, at_lam, _, _, at_kappa, _, at_gamma, _ = sizes.blocks
    free[:, at_kappa] = tight | (both & (kappa > near_zero(kappa)))
    free[:, at_lam] = tight & ~(both & (tau > near_zero(tau)))
    free[:, at_gamma] = (gamma > near_zero(gamma)) & (gap <= 10 * near_zero(gap))
    return free


def _snap(nearest: np.ndarray, rhs: np.ndarray, pull: np.ndarray, sizes: Sizes, w: np.ndarray) -> np.ndarray:
    """w with its primal part moved, as little as possible, onto every constraint that it touches.

    At a degenerate vertex the constraints with multiplier zero are as real as the others, and the polish does not hold
    them.
    """
    lam, s, _, _, gap, _ = _slacks(pull, sizes, w)
    _, _, at_lam, _, _, at_kappa, _, at_gamma, _ = sizes.blocks
    free, m = np.ones(w.shape, bool), sizes.primal
    free[:, at_lam] = lam > near_zero(lam)
    free[:, at_kappa], free[:, at_gamma] = s <= near_zero(s), gap <= near_zero(gap)
    nearest[:, :m, :m] = np.eye(m)
    moved, _ = solve_free(nearest, free, np.concatenate([w[:, :m], rhs[:, m:]], -1))
    return np.concatenate([moved[:, :m], w[:, m:]], -1)


def measure(
    pull: np.ndarray, scale: np.ndarray, sizes: Sizes, w: np.ndarray, free: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Largest stationarity residual in the free unknowns with wrong signs of multipliers, and largest violation of a
    constraint, relative to `scale`."""
    lam, s, _, _, gap, gamma = _slacks(pull, sizes, w)
    pull = abs(pull)
    m = sizes.primal
    below = np.concatenate([-lam, -s, -gap, np.minimum(abs(lam), abs(s))], -1).max(-1, initial=0.0)
    _, _, _, _, _, at_kappa, _, at_gamma, _ = sizes.blocks
    rigid = np.ones(w.shape[1], bool)
    rigid[at_kappa] = rigid[at_gamma] = rigid[:m] = False
    equal = pull[:, rigid].max(-1, initial=0.0)
    dual = np.maximum((pull * free)[:, :m].max(-1, initial=0.0), (-gamma).max(-1, initial=0.0))
    return dual / scale, np.maximum(below, equal) / scale


def kinks(pull: np.ndarray, sizes: Sizes | Layout, w: np.ndarray) -> tuple[np.ndarray, ...]:
    """Biactive pairs, constraints whose multiplier vanishes, and whether all biactive multipliers have the right sign."""
    lam, s, tau, kappa, gap, gamma = _slacks(pull, sizes, w)
    both = (lam <= near_zero(lam)) & (s <= near_zero(s))
    weak = both & ((tau <= near_zero(tau)) | (kappa <= near_zero(kappa)))
    wrong = both & ((tau < -near_zero(tau)) | (kappa < -near_zero(kappa)))
    idle = (gap <= near_zero(gap)) & (gamma <= near_zero(gamma))
    return both.sum(-1), weak.sum(-1) + idle.sum(-1), np.logical_not(wrong.any(-1))


def curves_upwards(matrix: np.ndarray, free: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Whether the objective curves upwards along the active set.

    The KKT matrix has no more negative eigenvalues than rows.
    """
    m = sizes.primal
    held = np.where(free[:, :, None] & free[:, None, :], matrix, 0.0)
    spectrum = np.linalg.eigvalsh(held)
    scale = abs(spectrum).max(-1, keepdims=True)
    jacobian = held[:, m:, :m]
    rank = np.linalg.matrix_rank(jacobian) if jacobian.size else np.zeros(len(free), int)
    return (spectrum < -1e-9 * scale).sum(-1) <= rank
