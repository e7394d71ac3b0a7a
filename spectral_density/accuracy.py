"""How far a spectrum may be from the truth, for want of steps and of draws, and how a run ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy import special, stats

from spectral_density.linalg.quadrature import WEIGHT_FLOOR, Quadrature, gauss_quadrature

CONFIDENCE = 0.95
# Beyond this many degrees of freedom chi-squared is Gaussian.
_MANY_DEGREES = 1e4


class Ending(Enum):
    """What ended a run; the value is a message that says what to do."""

    PLAN = "all steps and draws asked for were made."
    TOLERANCE = "the tolerance was met."
    ORDER = (
        "the steps allowed were made, and the distribution still changes by more than the "
        "tolerance leaves it: raise order."
    )
    DRAWS = "the draws allowed were made, and the band is still too wide: raise num_draws."
    BUDGET = "the budget is used up before the tolerance was met: raise max_products."

    @property
    def message(self) -> str:
        """What it means, and what to do."""
        return self.value


@dataclass(frozen=True)
class Accuracy:
    """Estimated Wasserstein-1 distance of a spectrum from the truth, in shares of its range.

    The Wasserstein-1 distance is the area between two cumulative distributions; the range is that
    between the extreme nodes.
    """

    order: float  # distance between the distributions at this order and at half of it
    draws: float  # area of half the 95 % band of the cumulative distribution

    @property
    def total(self) -> float:
        """Both together: what a tolerance is held against."""
        return self.order + self.draws


def order_error(alpha: np.ndarray, beta: np.ndarray, size: int) -> float:
    """Return the Wasserstein-1 distance between order m and ceil(m / 2), as a share of the range.

    The error of Gauss quadrature falls with 1 / m or faster, so that of order m is about this
    distance or less. With m = n there is none.

    Args:
        alpha: diagonals of T, shape (num_draws, m).
        beta: off-diagonals, shape (num_draws, m - 1).
        size: number n of eigenvalues.

    References:
        Chen, Trogdon, Ubaru (2021), arXiv 2105.06595 (the rate).
    """
    order = alpha.shape[1]
    if order == size:
        return 0.0
    half = (order + 1) // 2
    now = [gauss_quadrature(a, b) for a, b in zip(alpha, beta, strict=True)]
    if half == order:
        return 1.0  # one step shows nothing
    before = [gauss_quadrature(a[:half], b[: half - 1]) for a, b in zip(alpha, beta, strict=True)]
    spread = support_range(now)
    return _wasserstein(now, before) / spread if spread else 0.0


def draws_error(nodes: np.ndarray, weights: np.ndarray, simple: np.ndarray, size: int) -> float:
    """Return the area of half the 95 % band of the cumulative distribution, per range.

    The mass that a start vector gives to a set of eigenvalues is nearly chi-squared, with a
    variance that only their number decides: for p = F(x), 2 p (1 - p) / (n + 2) a draw. The band
    reaches up to the mass that would show as little as p with a probability of 2.5 %. Simple
    eigenvalues of known weight have no part in it, and the others are n less their number.

    Args:
        nodes: shape (num_draws, m).
        weights: deflated weights, the same shape.
        simple: mask of nodes of known weight, the same shape.
        size: number n of eigenvalues.
    """
    num_draws = len(nodes)
    carrying = nodes[weights > WEIGHT_FLOOR]
    spread = float(carrying.max() - carrying.min())
    known = int(simple[0].sum())
    left = size - known
    random = np.where(simple, 0.0, weights) / num_draws
    mass = float(random.sum())
    if not spread or left < 2 or mass <= WEIGHT_FLOOR:
        return 0.0
    order = np.argsort(nodes, axis=None)
    points = np.ravel(nodes)[order]
    below = np.cumsum(np.ravel(random)[order])[:-1] / mass
    share = np.clip(np.minimum(below, 1 - below), 0.0, 0.5)
    share[share <= WEIGHT_FLOOR] = 0.0
    unit = (1 - share) / ((left + 2) * num_draws)
    _, upper = chi_squared_limits(share, unit, (1 - CONFIDENCE) / 2)
    half = np.where(share > 0, upper - share, 0.0)
    return float(mass * (half @ np.diff(points)) / spread)


def chi_squared_limits(
    mean: np.ndarray, unit: np.ndarray, tail: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return confidence limits of E[X] where X / unit is chi-squared and X = mean was seen.

    The degrees of freedom E[X] / unit at the limits are those that make what was seen, or less,
    or more, as improbable as `tail`. A unit of 0 means that X is certain.
    """
    degrees = np.divide(mean, unit, out=np.full_like(mean, np.inf), where=unit > 0)
    half = stats.norm.isf(tail) * np.sqrt(2 * unit * mean)  # the limit of many degrees
    lower, upper = mean - half, mean + half
    few = degrees < _MANY_DEGREES
    lower[few] = unit[few] * special.chdtriv(1 - tail, degrees[few])
    upper[few] = unit[few] * special.chdtriv(tail, degrees[few])
    # A draw of next to nothing is itself below its lower limit.
    return np.clip(lower, 0.0, mean), upper


def support_range(quadratures: Sequence[Quadrature]) -> float:
    """Return the distance between the extreme nodes that carry weight in any draw."""
    carrying = np.concatenate([q.nodes[q.weights > WEIGHT_FLOOR] for q in quadratures])
    return float(carrying.max() - carrying.min())


def _wasserstein(one: Sequence[Quadrature], other: Sequence[Quadrature]) -> float:
    """Return the Wasserstein-1 distance between two quadratures averaged over their draws."""
    nodes, weights = (
        [np.concatenate([getattr(q, name) for q in quadratures]) for quadratures in (one, other)]
        for name in ("nodes", "weights")
    )
    return float(stats.wasserstein_distance(*nodes, *weights))
