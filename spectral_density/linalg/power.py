"""The power method for the eigenpair of largest magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from spectral_density._progress import progress_bar
from spectral_density._warnings import warn
from spectral_density.linalg.arguments import (
    as_real_square,
    integer,
    product_error,
    random_direction,
)
from spectral_density.linalg.eigen import ConvergenceWarning, residual_tolerance
from spectral_density.linalg.start_vectors import start_columns
from spectral_density.linalg.threads import blas_threads
from spectral_density.linalg.vectors import Vectors, rounding_of, vectors_of

# Random streams: a key of this file's own.
_KEY = 7046


@dataclass(frozen=True, repr=False, eq=False)
class PowerIteration:
    """The eigenpair of largest magnitude, by the power method."""

    value: float  # Rayleigh quotient v' A v
    vector: np.ndarray  # (n,), of length 1
    residual: float  # ||A v - value v||: some eigenvalue of A is at most this far away
    converged: bool  # residual <= tolerance * ||A v||, but for what products are off by
    num_products: int

    def __repr__(self) -> str:
        """Name the value and how good it is, never the vector."""
        state = "converged" if self.converged else "not converged"
        return (
            f"PowerIteration({self.value:.9g}, residual {self.residual:.1e}, {state}, "
            f"{self.num_products:,} products)"
        )


def power_iteration(
    operator: Any,
    /,
    *,
    tolerance: float | None = None,
    max_products: int = 1000,
    start: np.ndarray | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> PowerIteration:
    """Find the eigenvalue of largest magnitude by the power method.

    The classical baseline: the error falls by |lambda_2 / lambda_1| a product, where
    `top_eigenpairs` gains as much in the square root of the number of products. Two eigenvalues of
    largest magnitude and opposite sign keep it from converging, which is noticed and reported.

    Args:
        operator: symmetric and real, shape (n, n): `LinearOperator`, array or sparse matrix.
        tolerance: residual over ||A v|| at which it has converged; None is eps^(3/4) of the
            products, see `top_eigenpairs`.
        max_products: products at most.
        start: start vector instead of a random one, shape (n,).
        seed: seed of the random start.
        progress: show a progress bar; None shows it in terminals and notebooks only.

    Returns:
        PowerIteration with `value`, `vector` and true `residual`. Where it has not converged, the
        best so far with `converged` false, and a `ConvergenceWarning`.

    Raises:
        TypeError: if the operator or its products are not real, or an argument has a wrong type.
        ValueError: if the operator is not square, or an argument is out of its range.
        FloatingPointError: if a product with the operator is not finite.

    References:
        Golub, Van Loan (2013), Matrix Computations, section 8.2.1.
    """
    operator = as_real_square(operator)
    size = integer(operator.shape[0], "The number of rows", 1)
    vectors = vectors_of(operator)
    off = product_error(operator)
    tolerance = residual_tolerance(tolerance, rounding_of(operator, vectors), off)
    max_products = integer(max_products, "max_products", 1)
    seed = integer(seed, "seed", 0)
    if start is None:
        first = random_direction(size, seed, _KEY)
    else:
        first = start_columns(start, size, 1)[:, 0].copy()
    vector, before = vectors.to_engine(first), None
    with progress_bar(max_products, "Power iteration", progress) as bar:
        for count in range(1, max_products + 1):
            (product,), _ = vectors.products(operator, [vector], f"at step {count}")
            bar.update(1)
            with blas_threads(size):
                step = _Step.from_product(vectors, vector, product)
                converged = step.residual <= tolerance * step.norm
                alternates = not converged and step.alternates(vectors, before, tolerance)
            if converged or alternates or count == max_products:
                break
            before, vector = vector, step.direction
    result = PowerIteration(
        value=float(np.ldexp(step.value, step.exponent)),
        vector=vectors.to_host(vector).astype(np.float64, copy=False),
        residual=float(np.ldexp(step.residual + off * step.norm, step.exponent)),
        converged=converged,
        num_products=count,
    )
    if not converged:
        _warn(result, step, tolerance, alternates)
    return result


class _Step(NamedTuple):
    """The product with a unit vector v, in units of 2**exponent: no square over- or underflows."""

    value: float  # v' A v
    norm: float  # ||A v||
    residual: float  # ||A v - value v||
    exponent: int
    direction: Any  # A v / ||A v||

    @classmethod
    def from_product(cls, vectors: Vectors, vector: Any, product: Any) -> _Step:
        exponent = int(np.frexp(vectors.peak([product]))[1])
        product = vectors.times_power(product, -exponent)
        norm = vectors.norm(product)
        value = float(vectors.inner(vector, product))
        rest = vectors.subtract(vectors.copy(product), value, vector)
        residual = vectors.norm(rest)
        if norm:
            product = vectors.divided(product, norm)
        return cls(value, norm, residual, exponent, product)

    def alternates(self, vectors: Vectors, before: Any, tolerance: float) -> bool:
        """Return whether two products lead back to where they began, and one far away."""
        if before is None or self.residual <= tolerance**0.5 * self.norm:
            return False
        moved = vectors.subtract(vectors.copy(self.direction), 1.0, before)
        return vectors.norm(moved) <= tolerance


def _warn(result: PowerIteration, step: _Step, tolerance: float, alternates: bool) -> None:
    why = f"has not converged in {result.num_products} products"
    remedy = "raise max_products, or use top_eigenpairs, which needs fewer"
    if alternates:
        magnitude = np.ldexp(step.norm, step.exponent)
        why = f"cannot converge: both {magnitude:.6g} and {-magnitude:.6g} are eigenvalues"
        remedy = 'use top_eigenpairs with which="BE" or "LM"'
    warn(
        f"power_iteration {why}. The residual is {result.residual:.2g} where "
        f"{np.ldexp(tolerance * step.norm, step.exponent):.2g} was asked for: {remedy}.",
        ConvergenceWarning,
    )
