"""Randomized range finders: an orthonormal basis to a rank or to a tolerance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral_density._progress import progress_bar
from spectral_density.linalg.arguments import as_real_operator, integer, number, rank_within
from spectral_density.linalg.gaussian_blocks import TEST, gaussian
from spectral_density.linalg.krylov_space import KrylovSpace, block_width, sketch
from spectral_density.linalg.threads import blas_threads


@dataclass(frozen=True, repr=False, eq=False)
class RangeBasis:
    """Orthonormal basis Q of a space that holds most of the range of A."""

    basis: np.ndarray  # (n, r), orthonormal columns
    error_bound: float  # ||(I - Q Q') A|| is at most this, in the spectral norm
    failure_probability: float  # that the bound does not hold
    converged: bool  # error_bound <= tolerance; True where a fixed rank was asked for
    num_products: int
    num_passes: int  # products with blocks

    @property
    def rank(self) -> int:
        """Number of basis vectors, r."""
        return self.basis.shape[1]

    def __repr__(self) -> str:
        """Name the shape and the bound, never the array."""
        unconverged = "" if self.converged else ", not converged"
        return (
            f"RangeBasis(n={self.basis.shape[0]:,}, rank={self.rank}, "
            f"error_bound={self.error_bound:.3g}{unconverged}, {self.num_products} products)"
        )


def range_finder(
    operator: Any,
    /,
    rank: int | None = None,
    *,
    tolerance: float | None = None,
    oversampling: int = 10,
    krylov_depth: int = 1,
    block_size: int = 10,
    max_rank: int | None = None,
    symmetric: bool | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> RangeBasis:
    """Find an orthonormal basis Q of the range of an operator, to a rank or to a tolerance.

    With `rank`, Q spans the block Krylov space [A W, A^2 W, ..., A^d W] of rank + oversampling
    Gaussian test vectors W, d = krylov_depth: at most (rank + oversampling) * d columns, and
    fewer where A has no more. With `tolerance`, blocks of new test vectors join until the bound
    ||(I - Q Q') A|| <= 10 sqrt(2 / pi) max_i ||(I - Q Q') A z_i|| over `block_size` new Gaussian
    vectors z_i meets it. Those that do not pass the test extend Q, so that only the last block of
    products serves the test alone.

    It takes d * (rank + oversampling) + block_size products in d passes to a rank; to a
    tolerance, d passes of at most `block_size` products for each extension, and one to finish.

    Args:
        operator: symmetric and real, shape (n, n): `LinearOperator`, array or sparse matrix.
            Any other real one of shape (m, n) whose adjoint can multiply will do, see `symmetric`.
        rank: dimension sought. Either this or `tolerance`.
        tolerance: largest ||(I - Q Q') A||, in units of the operator.
        oversampling: test vectors beyond `rank`.
        krylov_depth: powers of the operator in the space; more are worth it where the spectrum
            decays slowly. For one that is not symmetric, A A' takes the place of A after the
            first, and each power takes two passes.
        block_size: probes of the bound, and test vectors that are added together to a tolerance.
        max_rank: with `tolerance`, columns of Q at most; default as many as A has.
        symmetric: whether the operator is its own transpose. None looks at the entries of arrays
            and sparse matrices, and takes a square LinearOperator to be symmetric.
        seed: seed of the test vectors and the probes.
        progress: show a progress bar; None shows it in terminals and notebooks only.

    Returns:
        RangeBasis with `basis`, `error_bound` and `converged`. The bound fails with probability
        at most 10^-block_size for each time it was tested, and leaves out rounding.
        `converged` is False where `max_rank` or the rounding of the products ended the search.

    Raises:
        TypeError: if the operator or its products are not real, or an argument has a wrong type.
        ValueError: if an argument is out of its range.
        FloatingPointError: if a product with the operator is not finite.

    References:
        Halko, Martinsson, Tropp (2011), SIAM Rev. 53:217, arXiv 0909.4061, sections 4.3-4.4.
    """
    if (rank is None) == (tolerance is None):
        raise ValueError(
            f"Give either rank or tolerance, got rank={rank!r} and tolerance={tolerance!r}."
        )
    linear, symmetric = as_real_operator(operator, symmetric)
    krylov_depth = integer(krylov_depth, "krylov_depth", 1)
    block_size = integer(block_size, "block_size", 1)
    seed = integer(seed, "seed", 0)
    full = min(linear.shape)
    if tolerance is not None:
        tolerance = number(tolerance, "tolerance", above=0.0)
        most = full if max_rank is None else rank_within(max_rank, linear, "max_rank")
        with progress_bar(most, "Range finder, basis vectors", progress) as bar:
            space = KrylovSpace(linear, symmetric, seed)
            return _to_tolerance(
                space,
                tolerance,
                depth=krylov_depth,
                block_size=block_size,
                most=most,
                advance=bar.update,
            )
    if max_rank is not None:
        raise ValueError("max_rank goes with tolerance; with rank, leave it out.")
    width = block_width(rank_within(rank, linear), oversampling, linear)
    total = width * (krylov_depth if symmetric else 2 * krylov_depth - 1) + block_size
    with progress_bar(total, "Range finder", progress) as bar:
        space = KrylovSpace(linear, symmetric, seed, bar.update)
        probes = sketch(space, width, krylov_depth, block_size)
    with blas_threads(linear.shape[0]):
        bound = space.probed_norm(probes.products)
    return RangeBasis(
        basis=space.basis,
        error_bound=bound,
        failure_probability=10.0**-block_size,
        converged=True,
        num_products=space.num_products,
        num_passes=space.num_passes,
    )


def _to_tolerance(
    space: KrylovSpace,
    tolerance: float,
    *,
    depth: int,
    block_size: int,
    most: int,
    advance: Callable[[int], Any],
) -> RangeBasis:
    """Extend the space by blocks until a new block of test vectors is within the tolerance."""
    size = space.operator.shape[1]
    bound, num_tests = 0.0, 0
    while not space.is_full:
        vectors = gaussian(size, space.seed, TEST, block_size, num_tests * block_size)
        products = space.multiply(vectors)
        num_tests += 1
        with blas_threads(len(products)):
            bound = space.probed_norm(products)
        if bound <= tolerance or space.rank == most:
            break
        added = space.grow(products / np.sqrt(size), depth, most)
        if not added:
            break
        advance(added)
    else:
        bound = 0.0
    return RangeBasis(
        basis=space.basis,
        error_bound=bound,
        failure_probability=min(1.0, num_tests * 10.0**-block_size),
        converged=bound <= tolerance,
        num_products=space.num_products,
        num_passes=space.num_passes,
    )
