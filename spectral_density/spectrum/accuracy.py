"""Accuracy of a spectrum: errors of few steps and of few draws, and how a run ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy import optimize, special, stats

from spectral_density.linalg.quadrature import WEIGHT_FLOOR, Quadrature, gauss_quadrature

CONFIDENCE = 0.95
# With which the distance of a whole distribution is below its limit, see `draws_error`.
_DISTANCE_CONFIDENCE = 0.99
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
    PRECISION = (
        "steps and draws would do, and what the products are off full precision is more than the "
        "tolerance leaves: leave matmul_precision out."
    )

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
    draws: float  # limit of the distance that start vectors leave, see `draws_error`
    products: float = 0.0  # what products at a lower precision leave, see `products_error`
    spread: float = float("nan")  # the range, in the units of the eigenvalues

    @property
    def total(self) -> float:
        """All together, which a tolerance bounds."""
        return self.order + self.draws + self.products

    @property
    def distance(self) -> float:
        """The same in the units of the eigenvalues."""
        return self.total * self.spread


def order_error(alpha: np.ndarray, beta: np.ndarray, size: int) -> float:
    """Return the Wasserstein-1 distance between order m and ceil(m / 2), as a share of the range.

    The error of Gauss quadrature falls with 1 / m or faster, so that of order m is about this
    distance or less. With m = n there is none.

    Args:
        alpha: diagonals of T, shape (num_draws, m); of blocks (num_draws, m, b, b).
        beta: off-diagonals, shape (num_draws, m - 1); of blocks (num_draws, m - 1, b, b).
        size: number n of eigenvalues.

    References:
        Chen, Trogdon, Ubaru (2021), arXiv 2105.06595 (the rate).
    """
    order = alpha.shape[1]
    if order * (alpha.shape[2] if alpha.ndim == 4 else 1) == size:
        return 0.0
    half = (order + 1) // 2
    now = [gauss_quadrature(a, b) for a, b in zip(alpha, beta, strict=True)]
    if half == order:
        return 1.0  # one step says nothing
    before = [gauss_quadrature(a[:half], b[: half - 1]) for a, b in zip(alpha, beta, strict=True)]
    low, high = support(*_joined(now))
    return _wasserstein(now, before) / (high - low) if high > low else 0.0


def products_error(nodes: np.ndarray, weights: np.ndarray, error: float) -> float:
    """Return a limit of the distance to the spectrum of another matrix, as a share of the range.

    The sorted eigenvalues of A and A + E differ by at most ||E||_F in the square root of their sum
    of squares, so that the distance is at most ||E||_F / sqrt(n).

    Args:
        nodes: shape (num_draws, m).
        weights: deflated weights, the same shape.
        error: ||E||_F / ||A||_F.

    References:
        Hoffman, Wielandt (1953), Duke Math. J. 20:37.
    """
    low, high = support(nodes, weights)
    if not error or high == low:
        return 0.0
    root_mean_square = np.sqrt(np.sum(weights * nodes**2) / len(nodes))
    return float(error * root_mean_square / (high - low))


def draws_error(
    nodes: np.ndarray, weights: np.ndarray, simple: np.ndarray, size: int, block: int = 1
) -> float:
    """Return a limit of the distance to the distribution of all start vectors.

    The mass that a start vector gives to a set of eigenvalues is nearly chi-squared, with a
    variance that only their number decides: for p = F(x), 2 p (1 - p) / (n + 2) a draw. The band
    reaches up to the mass that would show as little as p with a probability of 2.5 %. Simple
    eigenvalues of known weight are left out, and the others are n less their number.

    Returned is, per range, the area of half this 95 % band, or the 99 % limit of the distance
    where that is more. The band holds point by point. The distance is a sum over many points that
    hardly ever err by as much together, and then stays below the area for nearly all seeds. But
    the distance between two distinct eigenvalues is the error of one share, which exceeds half its
    band for 5 % of seeds.

    Args:
        nodes: shape (num_draws, m).
        weights: deflated weights, the same shape.
        simple: mask of nodes of known weight, the same shape.
        size: number n of eigenvalues.
        block: number of start vectors of a draw; orthogonal ones err a little less than others.
    """
    num_draws = len(nodes)
    low, high = support(nodes, weights)
    spread = high - low
    known = int(simple[0].sum())
    left = size - known
    random = np.where(simple, 0.0, weights) / num_draws
    mass = float(random.sum())
    if not spread or left < 2 or mass <= WEIGHT_FLOOR:
        return 0.0
    order = np.argsort(nodes, axis=None)
    below = np.cumsum(np.ravel(random)[order])[:-1] / mass
    share = np.clip(np.minimum(below, 1 - below), 0.0, 0.5)
    uncertain = share > WEIGHT_FLOOR
    below, share = below[uncertain], share[uncertain]
    gaps = np.diff(np.ravel(nodes)[order])[uncertain]
    unit = (1 - share) / ((left + 2) * num_draws * block)

    def area(confidence: float) -> float:
        _, upper = chi_squared_limits(share, unit, (1 - confidence) / 2)
        return float((upper - share) @ gaps)

    limit = _together(below, gaps) * area(_DISTANCE_CONFIDENCE)
    return mass * max(area(CONFIDENCE), limit) / spread


def eigenvalues_in_kernel(
    nodes: np.ndarray, weights: np.ndarray, simple: np.ndarray, size: int, sigma: float
) -> float:
    """Return how many eigenvalues a Gaussian kernel sees at once, at the median eigenvalue.

    The height of a kernel density at x errs by sqrt(2 / count) of itself for a start vector, where
    count = n p(x) 2 sqrt(pi) sigma: the square of the kernel is one that is narrower by sqrt(2).
    Simple eigenvalues of known weight are left out; without any others it is infinite.

    Args:
        nodes: shape (num_draws, m).
        weights: deflated weights, the same shape.
        simple: mask of nodes of known weight, the same shape.
        size: number n of eigenvalues.
        sigma: standard deviation of the kernel.
    """
    random = np.where(simple, 0.0, weights).ravel() / len(nodes)
    carrying = random > WEIGHT_FLOOR
    points, masses = nodes.ravel()[carrying], random[carrying]
    if not len(points):
        return float("inf")
    distances = (points[:, np.newaxis] - points) / (2 * sigma)
    counts = size * np.exp(-(distances**2)) @ masses
    order = np.argsort(counts)
    below = np.cumsum(masses[order])
    return float(counts[order][np.searchsorted(below, below[-1] / 2)])


def _together(below: np.ndarray, gaps: np.ndarray) -> float:
    """Return the limit of sum g |X| as a share of the sum of those of its terms.

    X are the errors of cumulative shares p: Gaussian, with covariances p_i (1 - p_j), i <= j, but
    for a factor. With a = g sqrt(p (1 - p)) the sum has the mean sqrt(2 / pi) sum a, and a variance
    of at most (1 - 2 / pi) sum a_i a_j rho_ij^2: E |Y Z| of unit Gaussians is 2 / pi more than a
    series of even powers of their correlation rho with positive coefficients. The law is taken for
    that of chi times a constant, which it is for one term. The share is 1 then.
    """
    above = 1 - below
    total = float(gaps @ np.sqrt(below * above))
    if not total:
        return 0.0
    # a_i a_j rho_ij^2 = first_i second_j for i <= j
    first = gaps * below * np.sqrt(below / above)
    second = gaps * above * np.sqrt(above / below)
    crossed = float(second @ (2 * np.cumsum(first) - first))
    mean = np.sqrt(2 / np.pi) * total
    square = mean**2 + (1 - 2 / np.pi) * crossed
    degrees = _degrees_of_chi(mean**2 / square)
    tail = 1 - _DISTANCE_CONFIDENCE
    limit = np.sqrt(square / degrees) * stats.chi.isf(tail, degrees)
    return float(limit / (total * stats.chi.isf(tail, 1)))


def _degrees_of_chi(ratio: float) -> float:
    """Return the degrees of freedom at which chi has this E[chi]^2 / E[chi^2]."""

    def excess(degrees: float) -> float:
        logs = special.gammaln((degrees + 1) / 2) - special.gammaln(degrees / 2)
        return 2 * float(np.exp(2 * logs)) / degrees - ratio

    if excess(1.0) >= 0:
        return 1.0
    if excess(_MANY_DEGREES) <= 0:
        return _MANY_DEGREES
    return float(optimize.brentq(excess, 1.0, _MANY_DEGREES))


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


def support(nodes: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return the extreme nodes that carry weight in any draw."""
    carrying = nodes[weights > WEIGHT_FLOOR]
    return float(carrying.min()), float(carrying.max())


def wasserstein(
    nodes: np.ndarray, weights: np.ndarray, other_nodes: np.ndarray, other_weights: np.ndarray
) -> float:
    """Return the Wasserstein-1 distance between two weighted sets of nodes of any shapes."""
    pair, other = (nodes.ravel(), other_nodes.ravel()), (weights.ravel(), other_weights.ravel())
    return float(stats.wasserstein_distance(*pair, *other))


def _wasserstein(one: Sequence[Quadrature], other: Sequence[Quadrature]) -> float:
    """Return the Wasserstein-1 distance between two quadratures averaged over their draws."""
    (nodes, weights), (other_nodes, other_weights) = _joined(one), _joined(other)
    return wasserstein(nodes, weights, other_nodes, other_weights)


def _joined(quadratures: Sequence[Quadrature]) -> tuple[np.ndarray, np.ndarray]:
    """Return the nodes and weights of all draws, each in one vector."""
    return (
        np.concatenate([q.nodes for q in quadratures]),
        np.concatenate([q.weights for q in quadratures]),
    )
