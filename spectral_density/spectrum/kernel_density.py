"""Gaussian kernel densities of quadratures and of their logarithms, with error bands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from scipy.integrate import trapezoid

from spectral_density._repr import repr_with_shapes
from spectral_density.spectrum.accuracy import CONFIDENCE, chi_squared_limits

_GRID_POINTS_PER_SIGMA = 4
_MIN_GRID, _MAX_GRID = 1_000, 200_000
_TAIL = 4.0  # the default grid ends this many sigmas beyond the extreme nodes
_LOG_TAIL = 7.0  # there a kernel is below the share of one eigenvalue, so that curves come down
# About this many eigenvalues in a kernel's window, the interval between draws takes over from that
# of chi-squared.
_FEW_EIGENVALUES = 10.0
# What the variance by law counts for beside that between draws; calibrated by coverage.
_DRAWS_OF_LAW = 8
_LEAST_WIDTH = 64 * np.finfo(np.float64).eps  # of the largest magnitude; what is less is rounding
_CHUNK = 4_000_000  # entries of the matrix of grid points and nodes that is in memory


@dataclass(frozen=True)
class Density:
    """A smoothed eigenvalue density: the Gaussian kernel density of one normalized matrix.

    The integral of `values` over `grid` is 1 - lost_mass. `lower` and `upper` are pointwise 95 %
    confidence limits for the density that all eigenvalues, smoothed alike, would have.
    """

    grid: np.ndarray  # (g,), ascending, in the units of the eigenvalues
    values: np.ndarray  # (g,), probability per unit of eigenvalue
    lower: np.ndarray  # (g,)
    upper: np.ndarray  # (g,)
    lost_mass: float  # 1 minus the integral over the grid, by the trapezoid rule
    sigma: float  # standard deviation of the kernel

    __repr__ = repr_with_shapes


@dataclass(frozen=True)
class LogDensity:
    """An eigenvalue density over ln |lambda|, the negative and the positive side apart.

    Both sides together integrate to 1 - lost_mass over d ln |lambda|.
    """

    magnitudes: np.ndarray  # (g,), |lambda|, spaced evenly in the logarithm
    negative: np.ndarray  # (g,)
    positive: np.ndarray  # (g,)
    lost_mass: float
    sigma: float  # standard deviation of the kernel, in ln |lambda|

    __repr__ = repr_with_shapes


def default_kernel_width(low: float, high: float, order: int) -> float:
    """Return range / ((order - 1) sqrt(8 ln 3)), Papyan's kernel width with kappa = 3.

    Where the range is zero but for rounding, or the order 1, it is a thousandth of the largest
    magnitude.

    References:
        Papyan (2019), arXiv 1811.07062, appendix on kernel polynomials.
    """
    largest = max(abs(low), abs(high))
    width = (high - low) / (max(order - 1, 1) * np.sqrt(8 * np.log(3)))
    # Points of a grid that are a fraction of the width apart have to be different numbers.
    if order > 1 and width > _LEAST_WIDTH * largest:
        return width
    return 1e-3 * (largest or np.finfo(np.float64).tiny ** 0.25)


def default_grid(low: float, high: float, sigma: float) -> np.ndarray:
    """Return evenly spaced points over a range with 4 sigma at each end, 4 of them a sigma."""
    low, high = low - _TAIL * sigma, high + _TAIL * sigma
    count = int(np.clip(_GRID_POINTS_PER_SIGMA * (high - low) / sigma, _MIN_GRID, _MAX_GRID))
    return np.linspace(low, high, count)


def kernel_density(
    nodes: np.ndarray,
    weights: np.ndarray,
    known: np.ndarray,
    *,
    size: int,
    points: np.ndarray,
    sigma: float,
) -> Density:
    """Return the mean over draws of kernel densities, with its 95 % band.

    Args:
        nodes: shape (num_draws, m); the vectors of a block are draws that share their nodes.
        weights: of the nodes, the same shape.
        known: mask of nodes whose weight is known and adds no error, the same shape.
        size: number n of eigenvalues.
        points: where to evaluate, (g,), ascending.
        sigma: standard deviation of the kernel.
    """
    random = np.where(known, 0.0, weights)
    each = _smooth(points, nodes, random, sigma)
    certain = _smooth(points, nodes, weights - random, sigma).mean(axis=0)
    # The square of a Gaussian kernel is another Gaussian.
    squares = _smooth(points, nodes, random, sigma / np.sqrt(2)).mean(axis=0)
    squares /= 2 * sigma * np.sqrt(np.pi)
    share = float(random.sum(axis=1).mean())
    lower, upper = _band(each, squares, size, share, 1 / (sigma * np.sqrt(2 * np.pi)))
    values = certain + each.mean(axis=0)
    return Density(
        grid=points,
        values=values,
        lower=certain + lower,
        upper=certain + upper,
        lost_mass=float(1.0 - trapezoid(values, points)),
        sigma=sigma,
    )


def log_kernel_density(
    nodes: np.ndarray, weights: np.ndarray, *, sigma: float, floor: float | None, num_points: int
) -> LogDensity:
    """Return the mean over draws of kernel densities in ln |node|, both signs apart.

    Args:
        nodes: shape (num_draws, m).
        weights: of the nodes, the same shape.
        sigma: standard deviation of the kernel in ln |node|.
        floor: magnitudes below it, zero included, count as this one; None for 1e-9 times the
            largest.
        num_points: number of grid points.

    Raises:
        ValueError: if sigma or floor are out of range.
    """
    check_kernel_width(sigma)
    largest = float(np.abs(nodes).max()) or 1.0
    floor = 1e-9 * largest if floor is None else float(floor)
    if not 0 < floor <= largest:
        raise ValueError(f"floor must be positive and at most {largest}, got {floor}.")
    logs = np.log(np.maximum(np.abs(nodes), floor))
    low, high = np.log(floor) - _LOG_TAIL * sigma, np.log(largest) + _LOG_TAIL * sigma
    grid = np.linspace(low, high, num_points)
    negative = _smooth(grid, logs, np.where(nodes < 0, weights, 0.0), sigma).mean(axis=0)
    positive = _smooth(grid, logs, np.where(nodes < 0, 0.0, weights), sigma).mean(axis=0)
    lost = float(1.0 - trapezoid(negative + positive, grid))
    return LogDensity(np.exp(grid), negative, positive, lost, sigma)


def check_kernel_width(sigma: float) -> None:
    """Check the standard deviation of a kernel.

    Raises:
        ValueError: if it is not positive or not finite.
    """
    if not (np.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be positive and finite, got {sigma}.")


def checked_grid(grid: Any) -> np.ndarray:
    """Return a grid as an array, (g,).

    Raises:
        ValueError: if it is not ascending, or has fewer than two points.
    """
    points = np.asarray(grid, dtype=np.float64)
    if points.ndim != 1 or len(points) < 2 or not np.all(np.diff(points) > 0):
        raise ValueError(
            f"grid must be ascending, with at least two points, got shape {points.shape}."
        )
    return points


def _band(
    each: np.ndarray, squares: np.ndarray, size: int, share: float, height: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return pointwise confidence limits for the mean over draws of kernel densities.

    Args:
        each: densities of the draws, (num_draws, g).
        squares: mean over draws of the densities with the kernel squared, (g,).
        size: number n of eigenvalues.
        share: of the eigenvalues that these densities are of; the others are known.
        height: of the kernel, which no density exceeds.
    """
    num_draws, mean = len(each), each.mean(axis=0)
    tail = (1 - CONFIDENCE) / 2
    # v' f(A) v is a mixture of chi-squared variables with variance 2/(n+2) Var f. Matching two
    # moments (Satterthwaite 1946) makes it `unit` times one chi-squared variable, exactly so for a
    # lone eigenvalue. The unit follows from the kernel's height there, whatever weight was drawn;
    # what is unknown is the number of degrees.
    spread = 2 / (share * size + 2) * np.maximum(share * squares - mean**2, 0.0)
    unit = np.divide(spread, 2 * mean, out=np.zeros_like(mean), where=mean > 0)
    lower, upper = chi_squared_limits(mean, unit / num_draws, tail)
    upper = np.minimum(upper, height)
    if num_draws == 1:
        return lower, upper
    # A few draws say little of their own variance, and the law of the weights knows it but for what
    # the nodes of few steps add: the mean of both is taken.
    degrees = _DRAWS_OF_LAW + num_draws - 1
    variance = (_DRAWS_OF_LAW * spread + (num_draws - 1) * each.var(axis=0, ddof=1)) / degrees
    half = stats.t.isf(tail, degrees) * np.sqrt(variance / num_draws)
    # As far up as down on a logarithmic scale: a density is not negative, nor is its limit.
    above = mean + half
    below = np.divide(mean**2, above, out=np.zeros_like(mean), where=above > 0)
    many = _share_of_many(mean, unit)
    # 0^0 is 1: a share of nothing counts for nothing.
    return lower ** (1 - many) * below**many, upper ** (1 - many) * above**many


def _share_of_many(mean: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Return the share, 0 to 1, that the interval between draws has in the band.

    It goes smoothly from one interval to the other, over a factor of four in the number of
    eigenvalues that a kernel sees, so that the band has no steps.
    """
    count = np.divide(mean, unit, out=np.full_like(mean, np.inf), where=unit > 0)
    least, most = _FEW_EIGENVALUES / 2, _FEW_EIGENVALUES * 2
    x = np.log(np.clip(count, least, most) / least) / np.log(most / least)
    return x**2 * (3 - 2 * x)


def _smooth(points: np.ndarray, nodes: np.ndarray, weights: np.ndarray, sigma: float) -> np.ndarray:
    """Return sum_j weights[d, j] N(points; nodes[d, j], sigma^2), shape (num_draws, g)."""
    result = np.empty((len(nodes), len(points)))
    step = max(1, _CHUNK // nodes.shape[1])
    for start in range(0, len(points), step):
        part = points[start : start + step]
        for draw, (centers, masses) in enumerate(zip(nodes, weights, strict=True)):
            scaled = (part[:, None] - centers) / sigma
            result[draw, start : start + step] = np.exp(-0.5 * scaled**2) @ masses
    return result / (sigma * np.sqrt(2 * np.pi))
