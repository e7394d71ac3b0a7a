"""Gauss quadratures of a symmetric operator, one a draw, and their moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from spectral_density.linalg.quadrature import (
    Quadrature,
    deflated_weights,
    gauss_quadrature,
    ritz_residuals,
)
from spectral_density.spectrum.accuracy import Ending
from spectral_density.spectrum.statistics import shorter_rules

if TYPE_CHECKING:
    from spectral_density.linalg.eigen import Eigenpairs

# For their spread to say how far their mean is off.
_ENOUGH_DRAWS = 4

ROUNDING = 10
"""Largest error of a product, in units of its precision; betas below that are rounding, too."""


@dataclass(frozen=True, eq=False, repr=False)
class Quadratures:
    """Nodes, weights and moments of the quadratures of a `Spectrum`, which has the fields."""

    alpha: np.ndarray = field(repr=False)
    beta: np.ndarray = field(repr=False)
    residual_norms: np.ndarray = field(repr=False)
    size: int
    simple: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool), repr=False)
    seed: int = 0
    description: str = ""
    precision: float = float(np.finfo(np.float64).eps)
    ended_by: Ending = Ending.PLAN
    product_error: float = 0.0
    model_state: Mapping[str, float] = field(default_factory=dict)
    choice: str = ""
    eigenpairs: Eigenpairs | None = None

    def __post_init__(self) -> None:
        """Convert to arrays, and check that their shapes fit together."""
        shape = np.shape(self.alpha)
        if len(shape) not in (2, 4) or 0 in shape:
            raise ValueError(
                f"alpha must have shape (num_draws, order), or (num_draws, order, b, b) of blocks, "
                f"got {shape}."
            )
        draws, order, *entry = shape
        block = entry[0] if entry else 1
        entry = [block, block] if entry else []
        expected = {
            "alpha": (draws, order, *entry),
            "beta": (draws, order - 1, *entry),
            "residual_norms": (draws, *entry),
            "simple": (draws, order * block),
        }
        for name, shape in expected.items():
            dtype = bool if name == "simple" else np.float64
            array = np.asarray(getattr(self, name), dtype=dtype)
            if name == "simple" and not array.size:
                array = np.zeros(shape, dtype=bool)
            if array.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {array.shape}.")
            object.__setattr__(self, name, array)
        if not 1 <= order <= self.size // block:
            limit = f"the size {self.size}" if block == 1 else f"{self.size} / {block}"
            raise ValueError(f"order must be between 1 and {limit}, got {order}.")

    # The quadrature ------------------------------------------------------------------------------

    @property
    def num_draws(self) -> int:
        """Number of draws, each of `block` start vectors."""
        return int(np.shape(self.alpha)[0])

    @property
    def order(self) -> int:
        """Number of Lanczos steps; each draw has as many nodes times `block`."""
        return int(np.shape(self.alpha)[1])

    @property
    def block(self) -> int:
        """Number of start vectors of a draw that share a Krylov space."""
        return int(np.shape(self.alpha)[2]) if np.ndim(self.alpha) == 4 else 1

    @property
    def num_vectors(self) -> int:
        """Number of start vectors of all draws."""
        return self.num_draws * self.block

    @property
    def is_exact(self) -> bool:
        """Whether there are as many steps as there can be, so that all eigenvalues are nodes."""
        return self.order * self.block == self.size

    @cached_property
    def rules(self) -> list[Quadrature]:
        """Gauss quadrature rules, one a draw, with their weights as they are."""
        return [gauss_quadrature(a, b) for a, b in zip(self.alpha, self.beta, strict=True)]

    @cached_property
    def shorter_rules(self) -> list[list[Quadrature]]:
        """Rules of fewer steps, a list of draws for each of a few orders; none if m = n."""
        return [] if self.is_exact else shorter_rules(self.alpha, self.beta, self.size)

    @cached_property
    def nodes(self) -> np.ndarray:
        """Ritz values, shape (num_draws, order * block), ascending in each draw."""
        return np.stack([q.nodes for q in self.rules])

    @cached_property
    def weights(self) -> np.ndarray:
        """Quadrature weights, of the shape of `nodes`; each draw sums to 1."""
        return np.stack([q.weights for q in self.rules])

    @cached_property
    def deflated_weights(self) -> np.ndarray:
        """Weights with those of simple eigenvalues set to 1/n, the others rescaled to sum 1."""
        weights = deflated_weights(self._vector_weights, self._of_vectors(self.simple), self.size)
        return weights if self.block == 1 else self._mean_of_blocks(weights)

    @cached_property
    def residuals(self) -> np.ndarray:
        """||A y - theta y|| of each node, in the shape of `nodes`: an eigenvalue is that near."""
        pairs = zip(self.rules, self.residual_norms, strict=True)
        return np.stack([ritz_residuals(q, norm) for q, norm in pairs])

    # Of each start vector: those of a block share its nodes.

    @cached_property
    def _vector_weights(self) -> np.ndarray:
        """Weights of each start vector, shape (num_vectors, order * block)."""
        return np.concatenate([q.vector_weights for q in self.rules])

    def _of_vectors(self, array: np.ndarray) -> np.ndarray:
        """Return an array of draws as one of start vectors."""
        return np.repeat(array, self.block, axis=0)

    def _mean_of_blocks(self, array: np.ndarray) -> np.ndarray:
        """Return an array of start vectors as one of draws."""
        return array.reshape(self.num_draws, self.block, -1).mean(axis=1)

    def _weights(self, deflate: bool) -> np.ndarray:
        return self.deflated_weights if deflate else self.weights

    def _powers(self, power: int, deflate: bool) -> np.ndarray:
        """Return the quadrature of lambda^power in each draw, (num_draws,)."""
        if int(power) != power or power < 0:
            raise ValueError(f"power must be an integer >= 0, got {power!r}.")
        return np.sum(self._weights(deflate) * self.nodes ** int(power), axis=1)

    # Moments and shares --------------------------------------------------------------------------

    def moment(self, power: int, *, deflate: bool = True) -> float:
        """Return the estimate of tr(A^power) / n.

        Args:
            power: an integer >= 0.
            deflate: use the known weight 1/n of simple eigenvalues.
        """
        return float(self._powers(power, deflate).mean())

    def moment_standard_error(self, power: int, *, deflate: bool = True) -> float:
        """Return the standard error of `moment`: between draws; of few, or of blocks, in theory.

        For a start vector v on the sphere, Var(v' f(A) v) = 2/(n+2) Var f(lambda). Those of a block
        are worth as many, and more by b / n. Eigenvalues of known weight are left out. The spread
        of two or three draws says next to nothing: they are taken by this law, too.
        """
        each = self._powers(power, deflate)
        if self.block > 1 or self.num_draws < _ENOUGH_DRAWS:
            return self._moment_error_in_theory(int(power), deflate)
        return float(each.std(ddof=1) / np.sqrt(self.num_draws))

    def _moment_error_in_theory(self, power: int, deflate: bool) -> float:
        known = self.simple & deflate
        left = self.size - int(known[0].sum())
        weights = np.where(known, 0.0, self._weights(deflate))
        total = float(weights.sum())
        if left < 2 or not total:
            return 0.0
        values = self.nodes**power
        mean = float(np.sum(weights * values)) / total
        variance = float(np.sum(weights * (values - mean) ** 2)) / total
        return left / self.size * float(np.sqrt(2 / (left + 2) * variance / self.num_vectors))

    @property
    def trace(self) -> float:
        """Estimate of the trace of the operator."""
        return self.size * self.moment(1)

    @property
    def trace_standard_error(self) -> float:
        """Standard error of `trace`."""
        return self.size * self.moment_standard_error(1)

    def cdf(self, x: Any, *, deflate: bool = True) -> np.ndarray:
        """Return the share of eigenvalues at or below `x`, by the midpoint rule.

        In each draw `cumsum(w) - w/2` is interpolated linearly through the nodes; then the draws
        are averaged. The steps of the quadrature itself are up to twice as far from the truth.

        Args:
            x: a number or an array of any shape.
            deflate: use the known weight 1/n of simple eigenvalues.
        """
        weights = self._weights(deflate)
        x = np.asarray(x, dtype=np.float64)
        middles = np.cumsum(weights, axis=1) - weights / 2
        draws = [
            np.interp(x, nodes, middle, left=0.0, right=1.0)
            for nodes, middle in zip(self.nodes, middles, strict=True)
        ]
        return np.mean(draws, axis=0)

    @property
    def rounding(self) -> float:
        """Error of products, recurrence and eigenvalues of T, to be added to residuals.

        That of rounding, and what products were off full precision.
        """
        return self.rounding_alone + float(self.product_error * np.abs(self.nodes).max())

    @property
    def rounding_alone(self) -> float:
        """That of rounding: what products at full precision leave."""
        units = ROUNDING * self.precision + self.order * np.finfo(np.float64).eps
        return float(units * np.abs(self.nodes).max())
