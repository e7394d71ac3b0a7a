"""Randomized singular value and eigenvalue decompositions, with error bounds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import hypot, inf, sqrt
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density._progress import progress_bar
from spectral_density._warnings import warn
from spectral_density.linalg.arguments import (
    as_real_operator,
    as_real_square,
    integer,
    product_error,
    product_precision,
    rank_within,
    rounding_share,
)
from spectral_density.linalg.gaussian_blocks import probed_norm, random_complement
from spectral_density.linalg.krylov_space import ROUNDING, KrylovSpace, Probes, block_width, sketch
from spectral_density.linalg.low_rank import PartialEigendecomposition, rayleigh_ritz
from spectral_density.linalg.norms import column_norms
from spectral_density.linalg.orthogonalization import project_out, qr
from spectral_density.linalg.threads import blas_threads

# Far above what rounding does to float32 products, far below what asymmetry does to a result.
_ASYMMETRY = 1e-3


@dataclass(frozen=True, repr=False, eq=False)
class RandomizedSVD:
    """Largest singular triples of A, as A ~ U diag(singular_values) Vt.

    The singular values are lower bounds of the true ones, rounding aside, and `upper_bounds`
    bound them from above. Everything called a bound holds but for `failure_probability`; without
    probes it is infinite.
    """

    U: np.ndarray  # (m, rank), orthonormal columns
    singular_values: np.ndarray  # (rank,), descending, never above the true ones
    Vt: np.ndarray  # (rank, n), orthonormal rows
    residual_bounds: np.ndarray  # (rank,), ||A v - s u|| is at most this; A' u - s v is zero
    range_error_bound: float  # ||A - Q Q' A|| is at most this, Q the whole basis
    error_bound: float  # ||A - U diag(s) Vt|| is at most this
    failure_probability: float  # that the bounds do not hold
    num_products: int
    num_passes: int  # products with blocks

    @property
    def upper_bounds(self) -> np.ndarray:
        """Bounds of the true singular values from above, shape (rank,)."""
        return np.hypot(self.singular_values, self.range_error_bound)

    def __repr__(self) -> str:
        """Name the shape and the bound, never the arrays."""
        return (
            f"RandomizedSVD(shape=({len(self.U):,}, {self.Vt.shape[1]:,}), "
            f"rank={len(self.singular_values)}, error_bound={self.error_bound:.3g}, "
            f"{self.num_products} products)"
        )


@dataclass(frozen=True, repr=False, eq=False)
class RandomizedEigh(PartialEigendecomposition):
    """Eigenpairs of largest magnitude of a symmetric A ~ V diag(values) V'."""

    values: np.ndarray  # (rank,), signed, largest magnitude first
    vectors: np.ndarray  # (n, rank), orthonormal columns
    residuals: np.ndarray  # (rank,), ||A v - value v||: some true eigenvalue is at most that far,
    # what the products are off by included
    error_bound: float  # ||A - V diag(values) V'|| is at most this; infinite without probes
    failure_probability: float  # that the bound does not hold
    num_products: int
    num_passes: int  # products with blocks

    def __repr__(self) -> str:
        """Name the shape and the bound, never the arrays."""
        return (
            f"RandomizedEigh(n={len(self.vectors):,}, rank={len(self.values)}, "
            f"error_bound={self.error_bound:.3g}, {self.num_products} products)"
        )


def randomized_svd(
    operator: Any,
    /,
    rank: int,
    *,
    oversampling: int = 10,
    krylov_depth: int = 1,
    num_probes: int = 5,
    symmetric: bool | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> RandomizedSVD:
    """Compute the largest singular values and vectors from products with a few random blocks.

    Q is an orthonormal basis of the whole block Krylov space [A W, A^2 W, ..., A^d W] of
    rank + oversampling Gaussian test vectors W, d = krylov_depth; the singular value
    decomposition is that of Q Q' A, cut to `rank`. A deeper space is more accurate than as many
    products with more test vectors where the spectrum decays slowly.

    With l = rank + oversampling it takes (d + 1) l + 2 num_probes products in d + 1 passes: the
    product of A with the basis is known from building it, but for its last block, and probes are
    multiplied in the first and last pass. One that is not symmetric takes 2 d l + 2 num_probes in
    2 d passes. An operator of lower rank than asked for takes fewer, and one more pass for its
    zeros.
    The basis and its product are kept, 16 n d l bytes.

    Args:
        operator: symmetric and real, shape (n, n): `LinearOperator`, array or sparse matrix.
            Any other real one of shape (m, n) whose adjoint can multiply will do, see `symmetric`.
        rank: number of singular values.
        oversampling: test vectors beyond `rank`.
        krylov_depth: powers of the operator in the space. For one that is not symmetric, they are
            A, (A A') A, (A A')^2 A and so on.
        num_probes: Gaussian vectors beside the test vectors, from whose products the error bounds
            come: with B = (I - Q Q') A both ||B|| <= c max ||B z|| and ||B||^2 <= c max ||B'B z||,
            c = 10 sqrt(2 / pi), but for a probability of 10^-num_probes each. 0 for no bounds.
        symmetric: whether the operator is its own transpose. None looks at the entries of arrays
            and sparse matrices, and takes a square LinearOperator to be symmetric.
        seed: seed of the test vectors and the probes.
        progress: show a progress bar; None shows it in terminals and notebooks only.

    Returns:
        RandomizedSVD with `U`, `singular_values`, `Vt` and error bounds. Where the operator's
        rank is lower than asked for, the other singular values are exactly zero.

    Raises:
        TypeError: if the operator or its products are not real, or an argument has a wrong type.
        ValueError: if an argument is out of its range, or the operator turns out not to be
            symmetric.
        FloatingPointError: if a product with the operator is not finite.

    References:
        Halko, Martinsson, Tropp (2011), SIAM Rev. 53:217, arXiv 0909.4061, sections 4-5.
        Musco, Musco (2015), NeurIPS 28, arXiv 1504.05477 (block Krylov).
        Tropp, Webber (2023), arXiv 2306.12418 (block Krylov in practice).
    """
    linear, symmetric = as_real_operator(operator, symmetric)
    sizes = _Sizes.checked(linear, rank, oversampling, krylov_depth, num_probes)
    space = KrylovSpace(linear, symmetric, integer(seed, "seed", 0), keep=True)
    probes = _build(space, sizes, "Randomized SVD", progress)
    basis, products = space.basis, space.products
    with blas_threads(max(linear.shape)):
        asymmetry = _asymmetry(space) if symmetric else 0.0
        if _is_asymmetric(asymmetry, linear, basis):
            raise ValueError(
                f"The operator is not symmetric: Q'A Q differs from its transpose by "
                f"{asymmetry:.2g} of ||A Q||. Pass symmetric=False, which needs the operator's "
                "rmatvec or rmatmat."
            )
        # A' Q = P S R', so that Q Q' A = (Q R) S P'.
        p, triangle = qr(products)
        left, values, right = np.linalg.svd(triangle)
        kept = min(rank, len(values))
        u, v = basis @ right[:kept].T, p @ left[:, :kept]
        range_error = _range_error(space, probes)
        bounds = np.full(kept, range_error)
        if symmetric and num_probes:
            bounds = np.minimum(bounds, _triple_residuals(space, probes, v))
        off = product_error(linear) * float(values[:1].sum())
        bounds += product_precision(linear) * values[:1] + off
        error = hypot(range_error, values[kept] if kept < len(values) else 0.0) + off
        range_error += off
        if kept < rank:
            u = np.hstack([u, random_complement(basis, rank - kept, seed)])
            v = np.hstack([v, random_complement(p, rank - kept, seed)])
            values = np.append(values, np.zeros(rank - kept))
    if kept < rank:
        zeros = space.multiply(v[:, kept:])
        bounds = np.append(bounds, column_norms(zeros) + off)
    return RandomizedSVD(
        U=u,
        singular_values=values[:rank].copy(),
        Vt=v.T,
        residual_bounds=bounds,
        range_error_bound=range_error,
        error_bound=error,
        failure_probability=_failure_probability(num_probes),
        num_products=space.num_products,
        num_passes=space.num_passes,
    )


def randomized_eigh(
    operator: Any,
    /,
    rank: int,
    *,
    oversampling: int = 10,
    krylov_depth: int = 1,
    num_probes: int = 5,
    seed: int = 0,
    progress: bool | None = None,
) -> RandomizedEigh:
    """Compute the eigenpairs of largest magnitude from products with a few random blocks.

    Rayleigh-Ritz on the whole block Krylov space [A W, A^2 W, ..., A^d W] of rank + oversampling
    Gaussian test vectors W, d = krylov_depth. Signs are kept. Space, products, passes and memory
    are those of `randomized_svd`: (d + 1) (rank + oversampling) + 2 num_probes products in d + 1
    passes.

    Args:
        operator: symmetric and real, shape (n, n): `LinearOperator`, array or sparse matrix.
        rank: number of eigenpairs.
        oversampling: test vectors beyond `rank`.
        krylov_depth: powers of the operator in the space.
        num_probes: Gaussian vectors beside the test vectors, from whose products `error_bound`
            comes as in `randomized_svd`. 0 for no bound.
        seed: seed of the test vectors and the probes.
        progress: show a progress bar; None shows it in terminals and notebooks only.

    Returns:
        RandomizedEigh with `values`, `vectors` and their true `residuals`. Where the operator's
        rank is lower than asked for, the other eigenvalues are exactly zero.

    Raises:
        TypeError: if the operator or its products are not real, or an argument has a wrong type.
        ValueError: if the operator is not square, or an argument is out of its range.
        FloatingPointError: if a product with the operator is not finite.

    Warns:
        RuntimeWarning: if the products contradict a symmetric operator.

    References:
        Halko, Martinsson, Tropp (2011), SIAM Rev. 53:217, arXiv 0909.4061, section 5.3.
        Tropp, Webber (2023), arXiv 2306.12418 (block Krylov in practice).
    """
    linear = as_real_square(operator)
    sizes = _Sizes.checked(linear, rank, oversampling, krylov_depth, num_probes)
    space = KrylovSpace(linear, True, integer(seed, "seed", 0), keep=True)
    probes = _build(space, sizes, "Randomized eigh", progress)
    basis, products = space.basis, space.products
    with blas_threads(len(basis)):
        asymmetry = _asymmetry(space)
        values, weights = rayleigh_ritz(basis, products)
        left_out = float(np.abs(values[rank])) if rank < len(values) else 0.0
        values, weights = values[:rank], weights[:, :rank]
        kept = len(values)
        vectors = basis @ weights
        residuals = column_norms(products @ weights - vectors * values)
        off = product_error(linear) * float(np.abs(values[:1]).sum())
        error = _compression_error(space, probes, left_out) + off
        if kept < rank:
            vectors = np.hstack([vectors, random_complement(vectors, rank - kept, seed)])
            values = np.append(values, np.zeros(rank - kept))
    if _is_asymmetric(asymmetry, linear, basis):
        warn(
            f"The operator is not symmetric: Q'A Q differs from its transpose by {asymmetry:.2g} "
            "of ||A Q||. The eigenpairs are those of its symmetric part; the residuals are A's.",
            RuntimeWarning,
        )
    if kept < rank:
        residuals = np.append(residuals, column_norms(space.multiply(vectors[:, kept:])))
    return RandomizedEigh(
        values=values,
        vectors=vectors,
        residuals=residuals + off,
        error_bound=error,
        failure_probability=_failure_probability(num_probes),
        num_products=space.num_products,
        num_passes=space.num_passes,
    )


class _Sizes(NamedTuple):
    """Numbers of vectors and powers, checked."""

    width: int  # test vectors
    depth: int
    num_probes: int

    @classmethod
    def checked(
        cls, operator: LinearOperator, rank: Any, oversampling: Any, depth: Any, num_probes: Any
    ) -> _Sizes:
        return cls(
            block_width(rank_within(rank, operator), oversampling, operator),
            integer(depth, "krylov_depth", 1),
            integer(num_probes, "num_probes", 0),
        )


def _build(space: KrylovSpace, sizes: _Sizes, description: str, progress: bool | None) -> Probes:
    """Build the space with all its products, and return the probes."""
    width, depth, num_probes = sizes
    total = width * (depth + 1 if space.symmetric else 2 * depth) + 2 * num_probes
    with progress_bar(total, description, progress) as bar:
        space.advance = bar.update
        probes = sketch(space, width, depth, num_probes)
        with blas_threads(space.operator.shape[0]):
            outside = project_out(probes.products, space.basis)
        # Of unit size in between, so that no square under- or overflows.
        scale = float(np.abs(outside).max(initial=0.0)) or 1.0
        squared = probed_norm(space.finish(outside / scale))
    return replace(probes, range_norm=sqrt(scale) * sqrt(squared))


def _asymmetry(space: KrylovSpace) -> float:
    """Return how far Q'A Q is from symmetric, as a share of ||A Q||."""
    scale = np.abs(space.products).max(initial=0.0)
    if not scale:
        return 0.0
    core = space.basis.T @ (space.products / scale)
    return float(np.linalg.norm(core - core.T) / np.linalg.norm(space.products / scale))


def _is_asymmetric(asymmetry: float, operator: LinearOperator, basis: np.ndarray) -> bool:
    """Return whether an asymmetry is more than rounding can explain."""
    rounding = max(ROUNDING * product_precision(operator), 2 * product_error(operator))
    if asymmetry <= max(_ASYMMETRY, rounding):
        return False
    return asymmetry > 10 * rounding_share(operator, basis[:, 0])


def _range_error(space: KrylovSpace, probes: Probes) -> float:
    """Bound ||B||, B = (I - Q Q') A, by the products with B and, through its root, with B'B.

    A product with a Gaussian vector shows the Frobenius norm. That of B'B is much nearer to its
    spectral norm than that of B, but its root cannot see below the root of rounding.
    """
    direct = space.probed_norm(probes.products)
    return min(direct, probes.range_norm)


def _tail_norm(space: KrylovSpace, probes: Probes) -> float:
    """Bound ||(I - Q Q') A (I - Q Q')|| for a symmetric A."""
    inside = space.basis.T @ probes.vectors
    direct = space.probed_norm(probes.products - space.products @ inside)
    return min(direct, _range_error(space, probes))


def _triple_residuals(space: KrylovSpace, probes: Probes, v: np.ndarray) -> np.ndarray:
    """Bound ||A v - s u|| = ||(I - Q Q') A v|| for a symmetric A.

    The product with the part of v in Q's range is known; the rest of v is small where it has
    converged, and is multiplied by the tail of A only.
    """
    inside = space.basis.T @ v
    known = column_norms(project_out(space.products @ inside, space.basis))
    tail = _tail_norm(space, probes)
    return known + tail * column_norms(v - space.basis @ inside)


def _compression_error(space: KrylovSpace, probes: Probes, left_out: float) -> float:
    """Bound ||A - V diag(values) V'|| for a symmetric A, `left_out` the largest value cut off.

    Along Q and its complement the difference is [[X, C'], [C, D]] with ||X|| = `left_out`, C known
    and D probed; its norm is at most that of the matrix of the norms.
    """
    tail = _tail_norm(space, probes)
    if tail == inf:
        return inf
    coupling = qr(project_out(space.products, space.basis))[1]
    across = np.linalg.norm(coupling, 2) if coupling.size and not space.is_full else 0.0
    return float(np.linalg.norm(np.array([[left_out, across], [across, tail]]), 2))


def _failure_probability(num_probes: int) -> float:
    """Return the probability that one of the two bounds of `_range_error` does not hold."""
    return min(1.0, 2 * 10.0**-num_probes)
