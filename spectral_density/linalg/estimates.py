"""Estimates from random samples, with their standard errors and confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import floor, inf, isfinite, log10

import numpy as np
from scipy import stats

from spectral_density.linalg.arguments import number

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number estimated from a random sample, with its standard error."""

    value: float
    standard_error: float  # of sampling and of the products' rounding, in the units of `value`
    num_products: int  # with the operator
    converged: bool | None = None  # whether a tolerance was met; None where none was asked for
    degrees_of_freedom: float = inf  # of the t-law of the error

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the two-sided confidence interval by Student's t-law.

        Args:
            level: probability that the interval holds the true value, above 0 and below 1.
        """
        half = _t_factor(level, self.degrees_of_freedom) * self.standard_error
        return self.value - half, self.value + half

    def scaled(self, factor: float) -> Estimate:
        """Return the estimate of a multiple."""
        return replace(self, value=factor * self.value, standard_error=factor * self.standard_error)

    @property
    def relative_error(self) -> float:
        """Half the width of the 95 % interval over |value|: what a tolerance is compared with."""
        lower, upper = self.interval(_CONFIDENCE)
        return _ratio(0.5 * (upper - lower), abs(self.value))

    def __str__(self) -> str:
        """Say the value to two digits of its error."""
        unmet = ", tolerance not met" if self.converged is False else ""
        products = f"{self.num_products:,} product{'s' if self.num_products != 1 else ''}"
        return f"{with_error(self.value, self.standard_error)} ({products}{unmet})"


@dataclass(frozen=True)
class QuadratureEstimate(Estimate):
    """The trace of a function of an operator: both errors, that of sampling and of quadrature.

    The truth is about `standard_error` away on account of the random start vectors, and too low by
    up to `quadrature_error` on account of the finite order: Gauss quadrature of the functions here
    is an upper bound.
    """

    quadrature_error: float = 0.0  # not negative; see `log_determinant` for what it is
    order: int = 0  # Lanczos steps a draw
    num_draws: int = 0  # start vectors, or 0 where all eigenvalues were computed

    def scaled(self, factor: float) -> QuadratureEstimate:
        """Return the estimate of a multiple, for a factor that is not negative."""
        return replace(
            self,
            value=factor * self.value,
            standard_error=factor * self.standard_error,
            quadrature_error=factor * self.quadrature_error,
        )

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the t-interval of the sampling error, its lower end less `quadrature_error`.

        Args:
            level: probability that the t-interval holds the true value, above 0 and below 1.
        """
        lower, upper = super().interval(level)
        return lower - self.quadrature_error, upper

    def __str__(self) -> str:
        """Say the value to two digits of its error, and the quadrature's part."""
        text = super().__str__()
        if not self.quadrature_error:
            return text
        return f"{text}, quadrature error {self.quadrature_error:.1e}"


@dataclass(frozen=True, eq=False)
class DiagonalEstimate:
    """The diagonal of an operator estimated from a random sample, with standard errors."""

    values: np.ndarray = field(repr=False)  # (n,)
    standard_errors: np.ndarray = field(repr=False)  # (n,), of each value, in its units
    num_products: int  # with the operator
    converged: bool | None = None  # whether a tolerance was met; None where none was asked for
    degrees_of_freedom: float = inf  # of the t-law of the errors

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Return two-sided confidence limits, each of shape (n,), that hold entry by entry.

        Args:
            level: probability that an entry is between its limits, above 0 and below 1.
        """
        half = _t_factor(level, self.degrees_of_freedom) * self.standard_errors
        return self.values - half, self.values + half

    def scaled(self, factor: float) -> DiagonalEstimate:
        """Return the estimate of a multiple."""
        return replace(
            self, values=factor * self.values, standard_errors=factor * self.standard_errors
        )

    @property
    def relative_error(self) -> float:
        """||half the widths of the 95 % intervals|| / ||values||, compared with a tolerance."""
        half = _t_factor(_CONFIDENCE, self.degrees_of_freedom) * self.standard_errors
        return _ratio(float(np.linalg.norm(half)), float(np.linalg.norm(self.values)))

    def __str__(self) -> str:
        """Say the size, the error and the price."""
        unmet = ", tolerance not met" if self.converged is False else ""
        return (
            f"diagonal of {len(self.values):,} entries, relative error {self.relative_error:.2g} "
            f"({self.num_products:,} products{unmet})"
        )


def _t_factor(level: float, degrees: float) -> float:
    level = number(level, "level", above=0.0)
    if not level < 1:
        raise ValueError(f"level must be below 1, got {level!r}.")
    return float(stats.t.isf((1 - level) / 2, degrees))


def _ratio(error: float, size: float) -> float:
    if size:
        return error / size
    return inf if error else 0.0


def with_error(value: float, error: float) -> str:
    """Write a value to the second digit of its error."""
    if not (isfinite(value) and isfinite(error)):
        return f"{value:.4g}"
    if not error:
        return f"{value:.10g} +- 0"
    largest = max(abs(value), error)
    power = floor(log10(largest))
    if -4 <= power <= 6:
        power = 0
    scale = 10.0**power
    digits = max(0, power + 1 - floor(log10(error)))
    if digits > 12:  # rounding, not sampling
        return f"{value:.12g} +- {error:.1e}"
    text = f"{value / scale:.{digits}f} +- {error / scale:.{digits}f}"
    return f"({text})e{power:+03d}" if power else text
