"""The Nystrom approximation of a positive semidefinite operator from one random block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral_density._progress import progress_bar
from spectral_density.linalg.arguments import (
    as_real_square,
    integer,
    product_error,
    product_precision,
    rank_within,
)
from spectral_density.linalg.gaussian_blocks import PROBE, TEST, gaussian, probed_norm
from spectral_density.linalg.krylov_space import ROUNDING, KrylovSpace, block_width
from spectral_density.linalg.low_rank import PartialEigendecomposition, multiply_low_rank
from spectral_density.linalg.orthogonalization import qr
from spectral_density.linalg.threads import blas_threads

# A negative x'Ax below this share of ||A|| may be rounding of float32 products.
_INDEFINITE = 1e-5


@dataclass(frozen=True, repr=False, eq=False)
class Nystrom(PartialEigendecomposition):
    """Nystrom approximation V diag(values) V' of a positive semidefinite A; A minus it is, too."""

    values: np.ndarray  # (rank,), descending, not negative, never above the true ones
    vectors: np.ndarray  # (n, rank), orthonormal columns
    shift: float  # what was added to the diagonal while factorizing, and taken off again
    error_bound: float  # ||A - V diag(values) V'|| is at most this; infinite without probes
    failure_probability: float  # that the bound does not hold
    num_products: int
    num_passes: int  # products with blocks: one

    def __repr__(self) -> str:
        """Name the shape and the bound, never the arrays."""
        return (
            f"Nystrom(n={len(self.vectors):,}, rank={len(self.values)}, "
            f"error_bound={self.error_bound:.3g}, {self.num_products} products)"
        )


def nystrom(
    operator: Any,
    /,
    rank: int,
    *,
    oversampling: int = 10,
    num_probes: int = 5,
    seed: int = 0,
    progress: bool | None = None,
) -> Nystrom:
    """Approximate a positive semidefinite operator from its product with one random block.

    A W (W' A W)^-1 W' A of rank + oversampling Gaussian test vectors W, factorized with a small
    shift of the diagonal that is taken off again, cut to `rank`. Its eigenvalues never exceed the
    true ones. It takes rank + oversampling + num_probes products in one pass: half of those of
    `randomized_eigh` at depth 1, whose eigenvalues are a few times nearer where the spectrum
    decays slowly.

    Args:
        operator: symmetric, positive semidefinite and real, shape (n, n): `LinearOperator`, array
            or sparse matrix.
        rank: number of eigenpairs.
        oversampling: test vectors beyond `rank`.
        num_probes: Gaussian vectors beside the test vectors, from whose products `error_bound`
            comes. It fails with probability 10^-num_probes at most. 0 for no bound.
        seed: seed of the test vectors and the probes.
        progress: show a progress bar; None shows it in terminals and notebooks only.

    Returns:
        Nystrom with `values`, `vectors`, `shift` and `error_bound`.

    Raises:
        TypeError: if the operator or its products are not real, or an argument has a wrong type.
        ValueError: if the operator is not square, an argument is out of its range, or the
            operator turns out to be indefinite. Negative eigenvalues too small or too few to show
            in the test vectors stay unseen.
        FloatingPointError: if a product with the operator is not finite.

    References:
        Tropp, Yurtsever, Udell, Cevher (2017), arXiv 1706.05736, algorithm 3 (the shift).
        Frangella, Tropp, Udell (2021), arXiv 2110.02820, algorithm 2.1.
    """
    linear = as_real_square(operator)
    rank = rank_within(rank, linear)
    width = block_width(rank, oversampling, linear)
    num_probes = integer(num_probes, "num_probes", 0)
    seed = integer(seed, "seed", 0)
    size = linear.shape[0]
    with blas_threads(size):
        tests, _ = qr(gaussian(size, seed, TEST, width))
    probes = gaussian(size, seed, PROBE, num_probes)
    with progress_bar(width + num_probes, "Nystrom", progress) as bar:
        space = KrylovSpace(linear, True, seed, bar.update)
        both = space.multiply(np.hstack([tests, probes]))
    products, probe_products = both[:, :width], both[:, width:]
    with blas_threads(size):
        eps, off = product_precision(linear), product_error(linear)
        values, vectors, shift = _nystrom_factors(tests, products, eps, off)
        values, vectors = values[:rank], vectors[:, :rank]
        misses = probe_products - multiply_low_rank(vectors, values, probes)
    return Nystrom(
        values=values,
        vectors=vectors,
        shift=shift,
        error_bound=probed_norm(misses) + off * float(values[:1].sum()),
        failure_probability=10.0**-num_probes,
        num_products=space.num_products,
        num_passes=space.num_passes,
    )


def _nystrom_factors(
    tests: np.ndarray, products: np.ndarray, eps: float, off: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return eigenvalues, eigenvectors and shift of Y (W' Y)^-1 Y', W orthonormal and Y = A W."""
    scale = np.abs(products).max()
    if not scale:
        return np.zeros(tests.shape[1]), tests, 0.0
    products = products / scale
    core = tests.T @ products
    lowest, directions = np.linalg.eigh((core + core.T) / 2)
    norm = np.linalg.norm(products, 2)
    if lowest[0] < -max(_INDEFINITE, 100 * eps, 10 * off) * norm:
        raise ValueError(
            f"The operator is not positive semidefinite: x'Ax = {scale * lowest[0]:.3g} for a "
            f"unit vector x, beside ||Ax|| of up to {scale * norm:.3g}. Use randomized_eigh, which "
            "takes eigenvalues of both signs."
        )
    # Rounding must not make the shifted core indefinite, nor what the operator itself rounded.
    shift = max(eps * np.linalg.norm(products), -2 * lowest[0])
    pivots = np.maximum(lowest + shift, shift / 2)
    q, triangle = qr((products + shift * tests) @ (directions / np.sqrt(pivots)))
    left, sizes, _ = np.linalg.svd(triangle)
    # Smaller ones are rounding, which the shift is there to hide.
    values = sizes**2 - shift
    values[values <= max(shift, ROUNDING * eps * values[0])] = 0.0
    return scale * values, q @ left, float(scale * shift)
