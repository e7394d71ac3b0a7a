"""How far an estimated distribution of eigenvalues is from the exact one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Distribution:
    """A cumulative distribution, linear between its points and with steps at them."""

    points: np.ndarray  # (n,), ascending and distinct
    before: np.ndarray  # (n,), the limit from below
    at: np.ndarray  # (n,)

    @classmethod
    def of_masses(cls, points: np.ndarray, masses: np.ndarray) -> Distribution:
        """Return the steps of masses at points, in any order; negative mass is kept as it is."""
        points, inverse = np.unique(points, return_inverse=True)
        at = np.cumsum(np.bincount(inverse.ravel(), np.ravel(masses)))
        return cls(points, np.concatenate([[0.0], at[:-1]]), at)

    @classmethod
    def of_draws(cls, nodes: list[list[float]], weights: list[list[float]]) -> Distribution:
        """Return the mean of quadratures, which may have different numbers of nodes."""
        points = np.concatenate([np.asarray(draw) for draw in nodes])
        masses = np.concatenate([np.asarray(draw) for draw in weights]) / len(nodes)
        return cls.of_masses(points, masses)

    @classmethod
    def of_density(cls, grid: np.ndarray, values: np.ndarray) -> Distribution:
        """Return the integral of a density by the trapezoidal rule, scaled to end at 1."""
        pieces = np.diff(grid) * (values[1:] + values[:-1]) / 2
        at = np.concatenate([[0.0], np.cumsum(pieces)])
        return cls(grid, at / at[-1], at / at[-1])

    @classmethod
    def of_midpoints(cls, nodes: list[list[float]], weights: list[list[float]]) -> Distribution:
        """Interpolate `cumsum(w) - w/2` through the nodes of each draw, and take the mean."""
        points = np.unique(np.concatenate([np.asarray(draw) for draw in nodes]))
        below = np.zeros(len(points))
        at = np.zeros(len(points))
        for draw, masses in zip(np.asarray(nodes), np.asarray(weights), strict=True):
            middles = np.cumsum(masses) - masses / 2
            curve = np.interp(points, draw, middles)
            below += np.where(points <= draw[0], 0.0, np.where(points > draw[-1], 1.0, curve))
            at += np.where(points < draw[0], 0.0, np.where(points >= draw[-1], 1.0, curve))
        return cls(points, below / len(nodes), at / len(nodes))

    def limits(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the limits from below and above at other points."""
        right = np.searchsorted(self.points, points, side="right")
        left = np.searchsorted(self.points, points, side="left")
        ends = np.concatenate([[0.0], self.at]), np.concatenate([self.before, [self.at[-1]]])
        start = np.concatenate([[-np.inf], self.points])
        stop = np.concatenate([self.points, [np.inf]])

        def between(piece: np.ndarray) -> np.ndarray:
            low, high = ends[0][piece], ends[1][piece]
            inside = np.isfinite(start[piece]) & np.isfinite(stop[piece])
            width = np.where(inside, stop[piece] - np.where(inside, start[piece], 0.0), 1.0)
            share = np.where(inside, (points - np.where(inside, start[piece], 0.0)) / width, 0.0)
            outer = np.where(piece == 0, 0.0, self.at[-1])
            return np.where(inside, low + share * (high - low), outer)

        return between(left), between(right)


def differences(first: Distribution, second: Distribution) -> tuple[np.ndarray, ...]:
    points = np.union1d(first.points, second.points)
    limits = zip(first.limits(points), second.limits(points), strict=True)
    below, above = (one - other for one, other in limits)
    return points, below, above


def wasserstein(first: Distribution, second: Distribution) -> float:
    """Return the area between two cumulative distributions, exactly: the difference is linear."""
    points, below, above = differences(first, second)
    low, high = above[:-1], below[1:]
    same = low * high >= 0
    total = np.abs(low) + np.abs(high)
    crossing = (low**2 + high**2) / np.where(total > 0, total, 1.0)
    return float(np.sum(np.diff(points) * np.where(same, total, crossing)) / 2)


def kolmogorov(first: Distribution, second: Distribution) -> float:
    """Return the largest difference between two cumulative distributions."""
    _, below, above = differences(first, second)
    return float(max(np.abs(below).max(), np.abs(above).max()))
