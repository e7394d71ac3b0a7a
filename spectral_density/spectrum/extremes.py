"""Ends and outliers of a spectrum: Ritz values with bounds of their errors."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log10
from typing import TYPE_CHECKING

import numpy as np

from spectral_density.linalg.quadrature import WEIGHT_FLOOR

if TYPE_CHECKING:
    from spectral_density.spectrum.spectrum import Spectrum

# An end has converged where its bound is below this share of its distance from the bulk.
_CONVERGED = 1e-2


@dataclass(frozen=True)
class ExtremeEigenvalues:
    """The outermost Ritz values, each with a bound on its distance to some eigenvalue.

    A Ritz value is inside the range of the eigenvalues: the smallest eigenvalue is `smallest` or
    below, the largest is `largest` or above, whatever the bounds. Where an end has converged, it
    is that near to the extreme eigenvalue itself.
    """

    smallest: float
    largest: float
    smallest_bound: float  # ||A y - theta y|| plus rounding
    largest_bound: float
    smallest_converged: bool = False
    largest_converged: bool = False

    def __str__(self) -> str:
        """Say what is known of both ends."""
        return f"smallest {self.smallest_text}; largest {self.largest_text}"

    @property
    def smallest_text(self) -> str:
        """What is known of the smallest eigenvalue, in words."""
        return _text(self.smallest, self.smallest_bound, self.smallest_converged, "below")

    @property
    def largest_text(self) -> str:
        """What is known of the largest eigenvalue, in words."""
        return _text(self.largest, self.largest_bound, self.largest_converged, "above")


@dataclass(frozen=True)
class Outlier:
    """A single eigenvalue that stands alone and has converged."""

    value: float
    bound: float  # of the distance to the eigenvalue


def extreme_eigenvalues(spectrum: Spectrum) -> ExtremeEigenvalues:
    """Return the smallest and largest Ritz value over all draws; see `Spectrum`."""
    carries = spectrum.weights > WEIGHT_FLOOR
    low = np.where(carries, spectrum.nodes, np.inf)
    high = np.where(carries, spectrum.nodes, -np.inf)
    first = np.unravel_index(np.argmin(low), low.shape)
    last = np.unravel_index(np.argmax(high), high.shape)
    bulk = _median(spectrum.nodes[carries], spectrum.weights[carries])

    def end(index: tuple[np.intp, ...]) -> tuple[float, float, bool]:
        value, residual = float(spectrum.nodes[index]), float(spectrum.residuals[index])
        # Relative to the distance from where most eigenvalues are: Lanczos finds values that stand
        # out first, and a node within the bulk has any of its eigenvalues within the bound.
        converged = residual <= max(_CONVERGED * abs(value - bulk), spectrum.rounding)
        return value, residual + spectrum.rounding, converged

    (smallest, smallest_bound, lower), (largest, largest_bound, upper) = end(first), end(last)
    return ExtremeEigenvalues(smallest, largest, smallest_bound, largest_bound, lower, upper)


def outliers(spectrum: Spectrum) -> tuple[Outlier, ...]:
    """Return the known simple eigenvalues, largest magnitude first; see `Spectrum`."""
    known = spectrum.simple[0]
    values, bounds = spectrum.nodes[0][known], spectrum.residuals[0][known] + spectrum.rounding
    order = np.argsort(-np.abs(values), kind="stable")
    return tuple(Outlier(float(values[i]), float(bounds[i])) for i in order)


def to_digits_of(value: float, bound: float) -> str:
    """Write a value with six digits, or fewer where its bound leaves fewer."""
    if not bound > 0:
        return f"{value:.6g}"
    short = f"{value:.6g}"
    decimals = max(0, 1 - floor(log10(bound)))
    rounded = f"{value:.{decimals}f}"
    return rounded if len(rounded) < len(short) else short


def rounded_up(bound: float) -> str:
    """Write a bound with one digit that is not below it, such as 4e-06."""
    if not bound > 0:
        return f"{bound:.1g}"
    power = floor(log10(bound))
    # What is above a digit by rounding alone is that digit.
    return f"{ceil(bound / 10.0**power - 1e-9) * 10.0**power:.1g}"


def _text(value: float, bound: float, converged: bool, beyond: str) -> str:
    if converged:
        return f"{to_digits_of(value, bound)} (known to {rounded_up(bound)})"
    return f"{value:.3g} or {beyond}: not converged, more steps"


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, cumulative[-1] / 2)])
