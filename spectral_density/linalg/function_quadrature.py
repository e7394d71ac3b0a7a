"""Gauss and Gauss-Radau quadrature of a function of a damped matrix, with error estimates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spectral_density.linalg.quadrature import Quadrature, gauss_quadrature, gauss_radau_quadrature
from spectral_density.linalg.tridiagonalization import Tridiagonalization

# How far below `lower_bound` the prescribed node is put, as a share of the distance to -damping. A
# node on the bound itself would coincide with the eigenvalues there.
_BELOW_BOUND = 0.01


@dataclass(frozen=True)
class DampedFunction:
    """f(A + damping I), all of whose even derivatives are negative."""

    function: Callable[[np.ndarray], np.ndarray]  # f, of eigenvalues plus damping
    damping: float

    def __call__(self, eigenvalues: np.ndarray) -> np.ndarray:
        """Return the values at eigenvalues of A."""
        return self.function(eigenvalues + self.damping)

    def mean(self, rule: Quadrature) -> float:
        """Return the integral by a quadrature rule."""
        return float(rule.weights @ self(rule.nodes))

    def variance(self, rule: Quadrature) -> float:
        """Return the variance by a quadrature rule."""
        values = self(rule.nodes)
        return float(rule.weights @ (values - rule.weights @ values) ** 2)

    def rounding_error(
        self, eigenvalues: np.ndarray, counts: np.ndarray | float, shift: float
    ) -> float:
        """Return what eigenvalues that rounding moved by up to `shift` make of a trace.

        Each is moved for itself, and all on average where the function is far from linear over that
        length. None is moved below zero, of which semidefinite matrices have none.
        """
        damping, shifted = self.damping, eigenvalues + self.damping
        values = self.function(shifted)
        up = self.function(shifted + shift) - values
        lowest = np.minimum(shifted, damping) if damping else eigenvalues / 2
        down = self.function(np.maximum(shifted - shift, lowest)) - values
        moved = np.maximum(np.abs(up), np.abs(down))
        bias = np.abs(up + down) / 2
        return float(np.hypot(np.sqrt(np.sum(counts * moved**2)), np.sum(counts * bias)))

    def check_positive(
        self, smallest: float, what: str, size: int, rounding: float, norm: float
    ) -> None:
        """Raise if A + damping I is not positive definite.

        Args:
            smallest: the smallest eigenvalue of A, or Ritz value.
            what: which of these it is.
            size: rows of A.
            rounding: relative rounding of products.
            norm: of A.

        Raises:
            ValueError: if it is not, or if A is singular to rounding and not damped.
        """
        damping = self.damping
        # NumPy's measure of rank, or more.
        negligible = max(rounding, size * float(np.finfo(np.float64).eps)) * norm
        if not damping and abs(smallest) <= negligible:
            raise ValueError(
                f"A has the {what} {smallest:.6g}, which is zero to rounding, and is singular: a "
                "positive definite matrix is needed, and the determinant of this one is zero, or "
                f"not known. Use a damping, above {negligible:.1g} for digits that are not "
                "rounding."
            )
        if not smallest + damping > 0:
            raise ValueError(
                f"A + damping I must be positive definite, but A has the {what} {smallest:.6g} and "
                f"damping is {damping:g}. Use a damping above {-smallest:.6g}."
            )


class FunctionQuadrature:
    """v' f(A + damping I) v of random unit vectors v, by Gauss rules, with their errors."""

    def __init__(
        self, function: DampedFunction, size: int, lower_bound: float | None, rounding: float
    ) -> None:
        self.function = function
        self.size = size
        self.lower_bound = lower_bound
        self.rounding = rounding
        # Of each draw: v' f(A + damping I) v and how much too high it may be; then the rounding of
        # the trace, n times as much, and the variance of the function over the eigenvalues, the
        # largest that any of the rules shows.
        self.rules: list[tuple[float, float, float, float]] = []

    @property
    def num_draws(self) -> int:
        """Number of draws so far."""
        return len(self.rules)

    def add(self, result: Tridiagonalization) -> None:
        """Add the draws of a Lanczos run."""
        columns = result.alpha, result.beta, result.residual_norms
        self.rules += [self._rule(*column) for column in zip(*columns, strict=True)]

    def _rule(
        self, alpha: np.ndarray, beta: np.ndarray, residual: float
    ) -> tuple[float, float, float, float]:
        function = self.function
        gauss = gauss_quadrature(alpha, beta)
        norm = float(np.abs(gauss.nodes).max())
        shift = self.rounding * norm
        function.check_positive(gauss.nodes[0], "Ritz value", self.size, self.rounding, norm)
        others = self._half_rule(alpha, beta)
        node = self._prescribed_node(float(gauss.nodes[0]), shift)
        others.append(gauss_radau_quadrature(alpha, beta, residual, gauss, node))
        value = function.mean(gauss)
        error = max(abs(value - function.mean(other)) for other in others)
        rounded = function.rounding_error(gauss.nodes, self.size * gauss.weights, shift)
        return value, error, rounded, max(map(function.variance, (gauss, *others)))

    def _half_rule(self, alpha: np.ndarray, beta: np.ndarray) -> list[Quadrature]:
        """Return the rule with half as many nodes where no lower bound makes the error certain."""
        if self.lower_bound is not None:
            return []
        half = len(alpha) // 2
        if not half:
            raise ValueError(
                "order is 1, which leaves nothing to estimate the quadrature's error from. Use a "
                "larger order, or state a lower_bound of the eigenvalues."
            )
        return [gauss_quadrature(alpha[:half], beta[: half - 1])]

    def _prescribed_node(self, lowest: float, shift: float) -> float:
        """Return the node of the Gauss-Radau rule, given the lowest Ritz value.

        Args:
            lowest: the lowest Ritz value.
            shift: what rounding may move it by.

        Raises:
            ValueError: if the lower bound is above it.
        """
        damping, bound = self.function.damping, self.lower_bound
        if bound is None:
            # That of a semidefinite matrix, if it is one; without damping, of one that is not
            # singular to rounding. Otherwise half of what the lowest Ritz value leaves.
            bound = 0.0 if damping else shift
            if not lowest > bound:
                bound = (lowest - damping) / 2
        node = bound - _BELOW_BOUND * (bound + damping)
        if not lowest > node:
            raise ValueError(
                f"The operator has an eigenvalue of at most {lowest:.6g}, which is below "
                "lower_bound. State a bound that holds, or none."
            )
        return node
