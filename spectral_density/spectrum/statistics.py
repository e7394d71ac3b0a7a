"""Statistics of a spectrum with standard errors: counts, effective rank, exponent of the tail.

A statistic errs for two reasons. Few start vectors: the mass that one gives to a set of k of m
eigenvalues is Beta(k / 2, (m - k) / 2), whatever the matrix, so that its variance needs no second
draw; simple eigenvalues of known weight add none. Few steps: the change from the rules of fewer
steps, over the same start vectors, estimates that part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import exp, hypot, inf, log, sqrt
from typing import TYPE_CHECKING

import numpy as np
from scipy import special, stats

from spectral_density.linalg.estimates import with_error
from spectral_density.linalg.quadrature import WEIGHT_FLOOR, Quadrature, gauss_quadrature
from spectral_density.spectrum.accuracy import CONFIDENCE

if TYPE_CHECKING:
    from spectral_density.spectrum.spectrum import Spectrum

# Rules of these shares of the steps show what more steps would change.
_FEWER_STEPS = (15 / 16, 14 / 16, 13 / 16, 12 / 16)
# Of all eigenvalues: where the node at an end of an interval weighs more, most of these may be on
# either side of it, and no rule of fewer steps would show that.
_UNRESOLVED = 0.05
# Eigenvalues: less than this is rounding of weights.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class SpectrumStatistic:
    """A number computed from a spectrum, with its standard error and its 95 % limits."""

    value: float
    standard_error: float  # of start vectors and steps together, in the units of `value`
    lower: float  # limits that hold the truth for 95 % of seeds; where it is not resolved, for more
    upper: float
    resolved: bool = True  # False: what decides is not known, such as a cluster that is cut

    def __str__(self) -> str:
        """Say the value to two digits of its error, or the bounds."""
        if not self.resolved:
            return f"{self.lower:.4g} to {self.upper:.4g} (not resolved)"
        return with_error(self.value, self.standard_error)


def count_between(spectrum: Spectrum, low: float, high: float) -> SpectrumStatistic:
    """Estimate the number of eigenvalues above `low` and up to `high`.

    Known simple eigenvalues count by their values. The mass of the others is cut by the midpoint
    rule between nodes whose residuals overlap, and by a step between others.

    References:
        Karlin, Shapley (1953), Mem. AMS 12 (the bounds where it is not resolved).
    """
    known, nodes, weights = _parts(spectrum)
    left = spectrum.size - len(known)
    inside = int(np.sum((known > low) & (known <= high)))
    if not left:
        return SpectrumStatistic(inside, 0.0, inside, inside)
    residuals = [r[~s] for r, s in zip(spectrum.residuals, spectrum.simple, strict=True)]
    rules = list(zip(nodes, weights, residuals, strict=True))
    share = float(np.mean([_mass_below(*rule, high) - _mass_below(*rule, low) for rule in rules]))
    share = min(max(share, 0.0), 1.0)
    least, most = _mass_bounds(rules, spectrum.block, low, high)
    sampled = _beta_limits(share, left, spectrum.num_vectors)
    value = _rounded(inside + left * share)
    if most - least > _UNRESOLVED:
        lower = inside + left * _beta_limits(least, left, spectrum.num_vectors)[0]
        upper = inside + left * _beta_limits(most, left, spectrum.num_vectors)[1]
        error = (upper - lower) / sqrt(12)  # of a uniform law between the bounds
        return SpectrumStatistic(value, error, _rounded(lower), _rounded(upper), resolved=False)
    steps = _error_of_steps(
        spectrum, lambda rule: _smooth_below(rule, high) - _smooth_below(rule, low)
    )
    # Nodes that are known, or that their residuals separate, are counted on their side already.
    certain = most - least <= _ROUNDING / left or share in (0.0, 1.0)
    steps = 0.0 if certain else spectrum.size * steps
    spread = left * sqrt(2 * share * (1 - share) / ((left + 2) * spectrum.num_vectors))
    below, above = (abs(left * (limit - share)) for limit in sampled)
    factor = stats.norm.isf((1 - CONFIDENCE) / 2)
    return SpectrumStatistic(
        value,
        hypot(spread, steps),
        max(_rounded(value - hypot(below, factor * steps)), 0.0),
        min(_rounded(value + hypot(above, factor * steps)), float(spectrum.size)),
    )


def effective_rank(spectrum: Spectrum) -> SpectrumStatistic:
    """Estimate the exponential of the entropy of |lambda| / sum |lambda|.

    It is k for k eigenvalues of one magnitude among zeros, and 0 for the zero matrix. Where its
    error is larger than half of it, it is not resolved: the bulk decides, which is not known.

    References:
        Roy, Vetterli (2007), EUSIPCO, "The effective rank".
    """
    total = spectrum.size * _mean(spectrum, np.abs)
    if not total:
        return SpectrumStatistic(0.0, 0.0, 0.0, 0.0)
    entropy_sum = spectrum.size * _mean(spectrum, _times_log)
    value = exp(log(total) - entropy_sum / total)

    def influence(nodes: np.ndarray) -> np.ndarray:
        linear = np.abs(nodes) * (1 + entropy_sum / total)
        return value / total * (linear - _times_log(nodes))

    def of_rule(rule: Quadrature) -> float:
        linear = rule.weights @ np.abs(rule.nodes)
        return float(rule.weights @ _times_log(rule.nodes) / linear - log(linear))

    steps = value * _error_of_steps(spectrum, of_rule)
    found = _gaussian(value, hypot(_error_of_draws(spectrum, influence), steps), 0.0)
    upper = min(found.upper, float(spectrum.size))
    return replace(found, upper=upper, resolved=found.standard_error <= value / 2)


def tail_exponent(spectrum: Spectrum, threshold: float) -> SpectrumStatistic:
    """Estimate the exponent a of a density in proportion to lambda^-a above a threshold x.

    It is the estimate of maximum likelihood from the N eigenvalues above x, a = 1 + N / sum
    ln(lambda_i / x). The error is that to the a of all eigenvalues of this matrix; whether they
    follow a power law at all, it does not say.

    Raises:
        ValueError: if the threshold is not positive or no eigenvalue is above it.

    References:
        Hill (1975), Ann. Statist. 3:1163.
        Clauset, Shalizi, Newman (2009), SIAM Review 51:661, equation 3.1.
    """
    if not 0 < threshold < inf:
        raise ValueError(f"the threshold of a tail must be positive and finite, got {threshold!r}.")

    def logs(nodes: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(nodes / threshold, 1.0))

    total = spectrum.size * _mean(spectrum, logs)
    count = count_between(spectrum, threshold, inf)
    if not total or not count.value:
        raise ValueError(
            f"no eigenvalue is above {threshold:g}: the exponent of a tail needs a threshold below "
            f"the largest, {spectrum.extreme_eigenvalues.largest:g}."
        )
    value = 1 + count.value / total

    def influence(nodes: np.ndarray) -> np.ndarray:
        return (nodes > threshold) / total - count.value * logs(nodes) / total**2

    def of_rule(rule: Quadrature) -> float:
        above = 1 - _smooth_below(rule, threshold)
        return float(above / (rule.weights @ logs(rule.nodes)))

    if not count.resolved:
        error = count.standard_error / total
        return SpectrumStatistic(
            value, error, 1 + count.lower / total, 1 + count.upper / total, resolved=False
        )
    # Where all eigenvalues above the threshold are known, nothing is left to err.
    steps = _error_of_steps(spectrum, of_rule) if count.standard_error else 0.0
    return _gaussian(value, hypot(_error_of_draws(spectrum, influence), steps), 1.0)


def negative_mass_bounds(spectrum: Spectrum) -> tuple[float, float]:
    """Return bounds of the share of eigenvalues below zero; see `Spectrum`."""
    bounds = []
    zero = spectrum.rounding_alone
    for nodes, weights, residuals in zip(
        spectrum.nodes, spectrum.deflated_weights, spectrum.residuals, strict=True
    ):
        carries = weights > WEIGHT_FLOOR
        nodes, weights, residuals = nodes[carries], weights[carries], residuals[carries]
        count = int(np.sum(nodes < -zero))
        # Of the negative nodes only the last can be unsure, of the others only the first (of a
        # block as many as it has vectors); and all that products at full precision might move
        # across.
        unsure = np.abs(nodes) < spectrum.rounding - zero
        beside = slice(max(count - spectrum.block, 0), count + spectrum.block)
        unsure[beside] |= (residuals > np.maximum(np.abs(nodes), zero))[beside]
        doubtful = np.where(unsure, weights, 0.0)
        below = weights[:count].sum()
        bounds.append((below - doubtful[:count].sum(), below + doubtful[count:].sum()))
    lower, upper = np.mean(bounds, axis=0)
    return float(lower), float(upper)


# Parts -------------------------------------------------------------------------------------------


def _parts(spectrum: Spectrum) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Return the known eigenvalues, and of each draw the other nodes with weights of sum 1."""
    known = spectrum.nodes[0][spectrum.simple[0]]
    nodes = [each[~mask] for each, mask in zip(spectrum.nodes, spectrum.simple, strict=True)]
    weights = [w[~mask] for w, mask in zip(spectrum.deflated_weights, spectrum.simple, strict=True)]
    return known, nodes, [w / (w.sum() or 1.0) for w in weights]


def _mean(spectrum: Spectrum, function: Callable[[np.ndarray], np.ndarray]) -> float:
    return float(np.sum(spectrum.deflated_weights * function(spectrum.nodes)) / spectrum.num_draws)


def _times_log(nodes: np.ndarray) -> np.ndarray:
    """Return |x| ln |x|, 0 at 0."""
    return special.xlogy(np.abs(nodes), np.abs(nodes))


def _mass_below(nodes: np.ndarray, weights: np.ndarray, residuals: np.ndarray, x: float) -> float:
    """Return the mass up to x in one rule of total mass 1."""
    after = int(np.searchsorted(nodes, x, side="right"))
    if after in (0, len(nodes)):
        return float(after > 0)
    below, above = nodes[after - 1], nodes[after]
    mass = float(weights[:after].sum())
    if below + residuals[after - 1] < above - residuals[after]:
        return mass
    part = (x - below) / (above - below)
    return mass - (1 - part) * weights[after - 1] / 2 + part * weights[after] / 2


def _smooth_below(rule: Quadrature, x: float) -> float:
    """Return the mass up to x by the midpoint rule everywhere."""
    return _mass_below(rule.nodes, rule.weights, np.full(rule.order, inf), x)


def _mass_bounds(
    rules: list[tuple[np.ndarray, np.ndarray, np.ndarray]], block: int, low: float, high: float
) -> tuple[float, float]:
    """Return the means over draws of bounds of the mass between two points."""
    lowest, highest = zip(*(_bounds_below(*rule, low, block) for rule in rules), strict=True)
    least, most = zip(*(_bounds_below(*rule, high, block) for rule in rules), strict=True)
    lower = float(np.mean(np.maximum(np.subtract(least, highest), 0.0)))
    return lower, float(np.mean(np.subtract(most, lowest)))


def _bounds_below(
    nodes: np.ndarray, weights: np.ndarray, residuals: np.ndarray, x: float, block: int
) -> tuple[float, float]:
    """Return bounds of the mass up to x: less the node below where it may be above, and reverse.

    Of a block of b start vectors the b nodes on either side.
    """
    after = int(np.searchsorted(nodes, x, side="right"))
    mass = float(weights[:after].sum())
    below, above = slice(max(after - block, 0), after), slice(after, after + block)
    falling = weights[below][nodes[below] + residuals[below] >= x]
    rising = weights[above][nodes[above] - residuals[above] <= x]
    return mass - float(falling.sum()), mass + float(rising.sum())


def _beta_limits(share: float, size: int, num_draws: int) -> tuple[float, float]:
    """Return the 95 % limits of a share of `size` eigenvalues that the draws show on average.

    The mean over draws is taken for a Beta variable of the same mean and variance.
    """
    total = (size + 2) * num_draws / 2 - 1
    tail = (1 - CONFIDENCE) / 2

    def limit(seen: float, upper: bool) -> float:
        if not 0 < seen < 1:
            return float(seen)
        # The share at which what is seen, or less, or more, is as improbable as the tail.
        target = tail if upper else 1 - tail
        low, high = (seen, 1.0) if upper else (0.0, seen)
        for _ in range(60):
            middle = (low + high) / 2
            less = special.betainc(middle * total, (1 - middle) * total, seen) > target
            low, high = (middle, high) if less else (low, middle)
        return (low + high) / 2

    return limit(share, False), limit(share, True)


def _error_of_draws(spectrum: Spectrum, influence: Callable[[np.ndarray], np.ndarray]) -> float:
    """Return the standard error of a statistic that few start vectors leave, to first order.

    Args:
        spectrum: of what.
        influence: what an eigenvalue adds to the statistic, as a function of its value.
    """
    known, nodes, weights = _parts(spectrum)
    left = spectrum.size - len(known)
    if left < 2:
        return 0.0
    first = np.mean([w @ influence(x) for x, w in zip(nodes, weights, strict=True)])
    second = np.mean([w @ influence(x) ** 2 for x, w in zip(nodes, weights, strict=True)])
    variance = max(float(second - first**2), 0.0)
    return left * sqrt(2 * variance / ((left + 2) * spectrum.num_vectors))


def _error_of_steps(spectrum: Spectrum, statistic: Callable[[Quadrature], float]) -> float:
    """Return the root mean square change of the mean over draws from rules of fewer steps.

    Divided by the square root of two: both rules err, that of fewer steps more. All have their
    weights as they are, since no rule of fewer steps knows which eigenvalues are simple.
    """
    before = [np.mean([statistic(rule) for rule in rules]) for rules in spectrum.shorter_rules]
    if not before:
        return 0.0
    now = np.mean([statistic(rule) for rule in spectrum.rules])
    return float(np.sqrt(np.mean(np.square(np.subtract(before, now))) / 2))


def shorter_rules(alpha: np.ndarray, beta: np.ndarray, size: int) -> list[list[Quadrature]]:
    """Return, for a few numbers of steps below that of a run, the rules of its draws.

    Args:
        alpha: diagonals of T, shape (num_draws, m); of blocks (num_draws, m, b, b).
        beta: off-diagonals, shape (num_draws, m - 1); of blocks (num_draws, m - 1, b, b).
        size: number n of eigenvalues; with m = n the rules are exact, and there are none here.
    """
    order = alpha.shape[1]
    if order == size:
        return []
    orders = {round(share * order) for share in _FEWER_STEPS} - {0, order}
    return [
        [
            # The eigenvectors of T, by far the largest part, are of no use here.
            replace(gauss_quadrature(a[:m], b[: m - 1]), vectors=None)
            for a, b in zip(alpha, beta, strict=True)
        ]
        for m in sorted(orders)
    ]


def _gaussian(value: float, error: float, least: float) -> SpectrumStatistic:
    half = float(stats.norm.isf((1 - CONFIDENCE) / 2)) * error
    return SpectrumStatistic(value, error, max(value - half, least), value + half)


def _rounded(count: float) -> float:
    nearest = float(round(count))
    return nearest if abs(count - nearest) <= _ROUNDING * max(1.0, nearest) else float(count)
