"""Low-rank factorizations from products with a few random blocks, with bounds on their errors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import hypot, inf, sqrt
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from spectral_density._progress import progress_bar
from spectral_density.linalg.arguments import (
    as_real_square,
    block_product,
    integer,
    number,
    product_precision,
    rounding_share,
    stream,
)
from spectral_density.linalg.norms import column_norms
from spectral_density.linalg.threads import blas_threads

# A matrix B exceeds _PROBE_FACTOR * max ||B z_i|| over r Gaussian vectors with probability at most
# 10^-r (Halko, Martinsson, Tropp, lemma 4.1 with alpha = 10).
_PROBE_FACTOR = 10 * np.sqrt(2 / np.pi)
# Products are rounded: what is left of a block below this many eps of ||A|| is no direction.
_ROUNDING = 10
# A pass of Gram-Schmidt that keeps this share of every direction left them orthogonal.
_KEPT_SHARE = np.sqrt(0.5)
_MAX_PASSES = 4
# Far above what rounding does to float32 products, far below what asymmetry does to a result.
_ASYMMETRY = 1e-3
# The same for a negative x'Ax: rounding of float32 products does no more.
_INDEFINITE = 1e-5

# Random streams: a key of this file's own, so that no draw here is a start vector of Lanczos.
_KEY = 7041
_TEST, _PROBE, _COMPLETION = range(3)


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
class RandomizedEigh:
    """Eigenpairs of largest magnitude of a symmetric A ~ V diag(values) V'."""

    values: np.ndarray  # (rank,), signed, largest magnitude first
    vectors: np.ndarray  # (n, rank), orthonormal columns
    residuals: np.ndarray  # (rank,), ||A v - value v||: some true eigenvalue is at most that far
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


@dataclass(frozen=True, repr=False, eq=False)
class Nystrom:
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
    products goes into the test alone.

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
        block_size: probes of the bound, and test vectors that join at once to a tolerance.
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
    linear, symmetric = _as_real(operator, symmetric)
    krylov_depth = integer(krylov_depth, "krylov_depth", 1)
    block_size = integer(block_size, "block_size", 1)
    seed = integer(seed, "seed", 0)
    full = min(linear.shape)
    if tolerance is not None:
        tolerance = number(tolerance, "tolerance", above=0.0)
        most = full if max_rank is None else _rank(max_rank, linear, "max_rank")
        with progress_bar(most, "Range finder, basis vectors", progress) as bar:
            space = _Space(linear, symmetric, seed)
            return _to_tolerance(space, tolerance, krylov_depth, block_size, most, bar.update)
    if max_rank is not None:
        raise ValueError("max_rank goes with tolerance; with rank, leave it out.")
    width = _width(_rank(rank, linear), oversampling, linear)
    total = width * (krylov_depth if symmetric else 2 * krylov_depth - 1) + block_size
    with progress_bar(total, "Range finder", progress) as bar:
        space = _Space(linear, symmetric, seed, bar.update)
        probes = _sketch(space, width, krylov_depth, block_size)
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
    product of A with the basis is known from building it, but for its last block, and probes go
    along in the first and last pass. One that is not symmetric takes 2 d l + 2 num_probes in 2 d
    passes. An operator of lower rank than asked for takes fewer, and one more pass for its zeros.
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
    linear, symmetric = _as_real(operator, symmetric)
    space, probes = _sketch_and_products(
        linear, symmetric, rank, oversampling, krylov_depth, num_probes, seed, progress, "SVD"
    )
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
        p, triangle = _qr(products)
        left, values, right = np.linalg.svd(triangle)
        kept = min(rank, len(values))
        u, v = basis @ right[:kept].T, p @ left[:, :kept]
        range_error = _range_error(space, probes)
        bounds = np.full(kept, range_error)
        if symmetric and num_probes:
            bounds = np.minimum(bounds, _triple_residuals(space, probes, v))
        bounds += product_precision(linear) * values[:1]
        error = hypot(range_error, values[kept] if kept < len(values) else 0.0)
        if kept < rank:
            u = np.hstack([u, _complement(basis, rank - kept, seed)])
            v = np.hstack([v, _complement(p, rank - kept, seed)])
            values = np.append(values, np.zeros(rank - kept))
    if kept < rank:
        zeros = space.multiply(v[:, kept:])
        bounds = np.append(bounds, column_norms(zeros))
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
    space, probes = _sketch_and_products(
        linear, True, rank, oversampling, krylov_depth, num_probes, seed, progress, "eigh"
    )
    basis, products = space.basis, space.products
    with blas_threads(len(basis)):
        core = basis.T @ products
        core = (core + core.T) / 2
        asymmetry = _asymmetry(space)
        values, coordinates = np.linalg.eigh(core)
        order = np.argsort(-np.abs(values), kind="stable")
        left_out = float(np.abs(values[order[rank]])) if rank < len(order) else 0.0
        order = order[:rank]
        kept, values = len(order), values[order]
        vectors = basis @ coordinates[:, order]
        residuals = column_norms(products @ coordinates[:, order] - vectors * values)
        error = _compression_error(space, probes, left_out)
        if kept < rank:
            vectors = np.hstack([vectors, _complement(vectors, rank - kept, seed)])
            values = np.append(values, np.zeros(rank - kept))
    if _is_asymmetric(asymmetry, linear, basis):
        warnings.warn(
            f"The operator is not symmetric: Q'A Q differs from its transpose by {asymmetry:.2g} "
            "of ||A Q||. The eigenpairs are those of its symmetric part; the residuals are A's.",
            RuntimeWarning,
            stacklevel=2,
        )
    if kept < rank:
        residuals = np.append(residuals, column_norms(space.multiply(vectors[:, kept:])))
    return RandomizedEigh(
        values=values,
        vectors=vectors,
        residuals=residuals,
        error_bound=error,
        failure_probability=_failure_probability(num_probes),
        num_products=space.num_products,
        num_passes=space.num_passes,
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
    rank = _rank(rank, linear)
    width = _width(rank, oversampling, linear)
    num_probes = integer(num_probes, "num_probes", 0)
    seed = integer(seed, "seed", 0)
    size = linear.shape[0]
    with blas_threads(size):
        tests, _ = _qr(_gaussian(size, seed, _TEST, width))
    probes = _gaussian(size, seed, _PROBE, num_probes)
    with progress_bar(width + num_probes, "Nystrom", progress) as bar:
        space = _Space(linear, True, seed, bar.update)
        both = space.multiply(np.hstack([tests, probes]))
    products, probe_products = both[:, :width], both[:, width:]
    with blas_threads(size):
        values, vectors, shift = _nystrom_factors(tests, products, product_precision(linear))
        values, vectors = values[:rank], vectors[:, :rank]
        misses = probe_products - vectors @ (values[:, np.newaxis] * (vectors.T @ probes))
    return Nystrom(
        values=values,
        vectors=vectors,
        shift=shift,
        error_bound=_probed_norm(misses),
        failure_probability=10.0**-num_probes,
        num_products=space.num_products,
        num_passes=space.num_passes,
    )


@dataclass(frozen=True)
class _Probes:
    """Gaussian vectors that no basis has seen, and their products."""

    vectors: np.ndarray  # (n, k), Z
    products: np.ndarray  # (m, k), A Z
    range_norm: float = inf  # bound of ||B||, B = (I - Q Q') A, through products with B'B


class _Space:
    """A block Krylov space of the operator: its basis, and what the products so far tell.

    With `keep`, the adjoint's products with the basis are kept as they come: for a symmetric
    operator those that build the space, so that only the last block is left for `finish`.
    """

    def __init__(
        self,
        operator: LinearOperator,
        symmetric: bool,
        seed: int,
        advance: Callable[[int], Any] = lambda count: None,
        keep: bool = False,
    ) -> None:
        self.operator = operator
        self.symmetric = symmetric
        self.seed = seed
        self.advance = advance
        self.keep = keep
        self.num_products = 0
        self.num_passes = 0
        self._basis = _Columns(operator.shape[0])
        self._products = _Columns(operator.shape[1])
        self._rounding = _ROUNDING * product_precision(operator)
        self._norm = 0.0  # the largest ||A x|| of a unit x so far

    @property
    def basis(self) -> np.ndarray:
        """Q, shape (m, r)."""
        return self._basis.array

    @property
    def products(self) -> np.ndarray:
        """A' Q as far as it is known, shape (n, at most r)."""
        return self._products.array

    @property
    def rank(self) -> int:
        """Number of basis vectors, r."""
        return self._basis.count

    @property
    def is_full(self) -> bool:
        """Whether Q spans everything."""
        return self.rank == self.operator.shape[0]

    def multiply(self, block: np.ndarray, adjoint: bool = False) -> np.ndarray:
        """Return the product of A, or of A', with a block, in one pass."""
        operator = self.operator.H if adjoint and not self.symmetric else self.operator
        self.num_passes += 1
        try:
            products = block_product(operator, block, f"in pass {self.num_passes}")
        except (NotImplementedError, TypeError) as error:
            if not adjoint or self.symmetric or _has_adjoint(self.operator):
                raise
            raise ValueError(
                f"The operator of shape {self.operator.shape} has no adjoint, which only one "
                "that is symmetric can do without. Give it rmatvec or rmatmat."
            ) from error
        self.num_products += block.shape[1]
        self.advance(block.shape[1])
        return products

    def grow(self, block: np.ndarray, depth: int, most: int) -> int:
        """Add the products `block` of unit vectors and their Krylov space; return columns added."""
        before = self.rank
        added = self._extend(block, most)
        for _ in range(depth - 1):
            if not added or self.rank == most:
                break
            block = self.multiply(self.basis[:, -added:], adjoint=True)
            if self.keep:
                self._products.append(block)
            if not self.symmetric:
                sizes = column_norms(block)
                block = self.multiply(block / np.where(sizes > 0, sizes, 1.0))
            added = self._extend(block, most)
        return self.rank - before

    def finish(self, others: np.ndarray) -> np.ndarray:
        """Multiply what of the basis was not yet, and others in the same pass; return theirs."""
        rest = self.basis[:, self._products.count :]
        count = rest.shape[1]
        if not count + others.shape[1]:
            return others
        products = self.multiply(np.hstack([rest, others]), adjoint=True)
        self._products.append(products[:, :count])
        return products[:, count:]

    def probed_norm(self, products: np.ndarray) -> float:
        """Bound ||(I - Q Q') B|| by products of B with Gaussian vectors."""
        return 0.0 if self.is_full else _probed_norm(_without(products, self.basis))

    def _extend(self, block: np.ndarray, most: int) -> int:
        """Add what lies outside of the basis, but for rounding; return the columns added."""
        with blas_threads(len(block)):
            self._norm = max(self._norm, column_norms(block).max())
            q, triangle = _qr(_without(block, self.basis))
            left, sizes, _ = np.linalg.svd(triangle)
            kept = int(np.count_nonzero(sizes > self._rounding * self._norm))
            kept = min(kept, most - self.rank)
            if kept:
                self._basis.append(_orthonormal(q @ left[:, :kept], self.basis))
        return kept


class _Columns:
    """A matrix that grows by columns, which lie in one array throughout."""

    def __init__(self, rows: int) -> None:
        self.count = 0
        self._room = np.empty((rows, 0), order="F")

    @property
    def array(self) -> np.ndarray:
        """All columns, a view."""
        return self._room[:, : self.count]

    def append(self, block: np.ndarray) -> None:
        """Add columns."""
        end = self.count + block.shape[1]
        if end > self._room.shape[1]:
            room = np.empty((len(self._room), max(end, 2 * self.count)), order="F")
            room[:, : self.count] = self.array
            self._room = room
        self._room[:, self.count : end] = block
        self.count = end


def _sketch(space: _Space, width: int, depth: int, num_probes: int) -> _Probes:
    """Fill the space from `width` test vectors; probes go along in its first pass."""
    size = space.operator.shape[1]
    tests = _gaussian(size, space.seed, _TEST, width)
    probes = _gaussian(size, space.seed, _PROBE, num_probes)
    products = space.multiply(np.hstack([tests, probes]))
    own = products[:, width:].copy()  # the operator may use its buffer again
    space.grow(products[:, :width] / np.sqrt(size), depth, space.operator.shape[0])
    return _Probes(probes, own)


def _sketch_and_products(
    operator: LinearOperator,
    symmetric: bool,
    rank: Any,
    oversampling: Any,
    krylov_depth: Any,
    num_probes: Any,
    seed: Any,
    progress: bool | None,
    what: str,
) -> tuple[_Space, _Probes]:
    """Check the arguments and return the space with all its products, and the probes."""
    width = _width(_rank(rank, operator), oversampling, operator)
    krylov_depth = integer(krylov_depth, "krylov_depth", 1)
    num_probes = integer(num_probes, "num_probes", 0)
    seed = integer(seed, "seed", 0)
    total = width * (krylov_depth + 1 if symmetric else 2 * krylov_depth) + 2 * num_probes
    with progress_bar(total, f"Randomized {what}", progress) as bar:
        space = _Space(operator, symmetric, seed, bar.update, keep=True)
        probes = _sketch(space, width, krylov_depth, num_probes)
        with blas_threads(operator.shape[0]):
            outside = _without(probes.products, space.basis)
        # Of unit size in between, so that no square under- or overflows.
        scale = float(np.abs(outside).max(initial=0.0)) or 1.0
        squared = _probed_norm(space.finish(outside / scale))
    return space, replace(probes, range_norm=sqrt(scale) * sqrt(squared))


def _to_tolerance(
    space: _Space,
    tolerance: float,
    depth: int,
    block_size: int,
    most: int,
    advance: Callable[[int], Any],
) -> RangeBasis:
    """Extend the space by blocks until a new block of test vectors finds nothing left."""
    size = space.operator.shape[1]
    bound, num_tests = 0.0, 0
    while not space.is_full:
        vectors = _gaussian(size, space.seed, _TEST, block_size, num_tests * block_size)
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


def _range_error(space: _Space, probes: _Probes) -> float:
    """Bound ||B||, B = (I - Q Q') A, by the products with B and, through its root, with B'B.

    A product with a Gaussian vector shows the Frobenius norm. That of B'B is much nearer to its
    spectral norm than that of B, but its root cannot see below the root of rounding.
    """
    direct = space.probed_norm(probes.products)
    return min(direct, probes.range_norm)


def _tail_norm(space: _Space, probes: _Probes) -> float:
    """Bound ||(I - Q Q') A (I - Q Q')|| for a symmetric A."""
    inside = space.basis.T @ probes.vectors
    direct = space.probed_norm(probes.products - space.products @ inside)
    return min(direct, _range_error(space, probes))


def _triple_residuals(space: _Space, probes: _Probes, v: np.ndarray) -> np.ndarray:
    """Bound ||A v - s u|| = ||(I - Q Q') A v|| for a symmetric A.

    The product with the part of v in Q's range is known; the rest of v is small where it has
    converged, and meets the tail of A only.
    """
    inside = space.basis.T @ v
    known = column_norms(_without(space.products @ inside, space.basis))
    tail = _tail_norm(space, probes)
    return known + tail * column_norms(v - space.basis @ inside)


def _compression_error(space: _Space, probes: _Probes, left_out: float) -> float:
    """Bound ||A - V diag(values) V'|| for a symmetric A, `left_out` the largest value cut off.

    Along Q and its complement the difference is [[X, C'], [C, D]] with ||X|| = `left_out`, C known
    and D probed; its norm is at most that of the matrix of the norms.
    """
    tail = _tail_norm(space, probes)
    if tail == inf:
        return inf
    coupling = _qr(_without(space.products, space.basis))[1]
    across = np.linalg.norm(coupling, 2) if coupling.size and not space.is_full else 0.0
    return float(np.linalg.norm(np.array([[left_out, across], [across, tail]]), 2))


def _nystrom_factors(
    tests: np.ndarray, products: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return eigenvalues, eigenvectors and shift of Y (W' Y)^-1 Y', W orthonormal and Y = A W."""
    scale = np.abs(products).max()
    if not scale:
        return np.zeros(tests.shape[1]), tests, 0.0
    products = products / scale
    core = tests.T @ products
    lowest, directions = np.linalg.eigh((core + core.T) / 2)
    norm = np.linalg.norm(products, 2)
    if lowest[0] < -max(_INDEFINITE, 100 * eps) * norm:
        raise ValueError(
            f"The operator is not positive semidefinite: x'Ax = {scale * lowest[0]:.3g} for a "
            f"unit vector x, beside ||Ax|| of up to {scale * norm:.3g}. Use randomized_eigh, which "
            "takes eigenvalues of both signs."
        )
    # Rounding must not make the shifted core indefinite, nor what the operator itself rounded.
    shift = max(eps * np.linalg.norm(products), -2 * lowest[0])
    pivots = np.maximum(lowest + shift, shift / 2)
    q, triangle = _qr((products + shift * tests) @ (directions / np.sqrt(pivots)))
    left, sizes, _ = np.linalg.svd(triangle)
    # Further down there is nothing but rounding, which the shift was meant to hide.
    values = sizes**2 - shift
    values[values <= max(shift, _ROUNDING * eps * values[0])] = 0.0
    return scale * values, q @ left, float(scale * shift)


def _gaussian(size: int, seed: int, kind: int, count: int, first: int = 0) -> np.ndarray:
    """Return Gaussian vectors `first`, `first` + 1, ...: the same ones however many are drawn."""
    block = np.empty((size, count), order="F")
    for column in range(count):
        block[:, column] = stream(seed, _KEY, kind, first + column).standard_normal(size)
    return block


def _without(block: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return (I - Q Q') block."""
    return block - basis @ (basis.T @ block)


def _qr(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return scipy.linalg.qr(block, mode="economic", check_finite=False)


def _orthonormal(block: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the block's part outside of the basis; both full rank."""
    for _ in range(_MAX_PASSES):
        block, triangle = _qr(_without(block, basis))
        if np.linalg.svd(triangle, compute_uv=False).min() >= _KEPT_SHARE:
            break
    return block


def _complement(basis: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return random orthonormal columns orthogonal to those of the basis."""
    block = _gaussian(len(basis), seed, _COMPLETION, count)
    return _orthonormal(_qr(_without(block, basis))[0], basis)


def _failure_probability(num_probes: int) -> float:
    """Return the probability that one of the two bounds of `_range_error` does not hold."""
    return min(1.0, 2 * 10.0**-num_probes)


def _probed_norm(products: np.ndarray) -> float:
    """Bound the norm of a matrix by its products with Gaussian vectors; infinite without any."""
    return float(_PROBE_FACTOR * column_norms(products).max()) if products.shape[1] else inf


def _asymmetry(space: _Space) -> float:
    """Return how far Q'A Q is from symmetric, as a share of ||A Q||."""
    scale = np.abs(space.products).max(initial=0.0)
    if not scale:
        return 0.0
    core = space.basis.T @ (space.products / scale)
    return float(np.linalg.norm(core - core.T) / np.linalg.norm(space.products / scale))


def _is_asymmetric(asymmetry: float, operator: LinearOperator, basis: np.ndarray) -> bool:
    """Tell whether an asymmetry is more than rounding can explain."""
    if asymmetry <= max(_ASYMMETRY, _ROUNDING * product_precision(operator)):
        return False
    return asymmetry > 10 * rounding_share(operator, basis[:, 0])


def _has_adjoint(operator: LinearOperator) -> bool:
    """Whether the adjoint can multiply; SciPy reports it missing as one error or another."""
    try:
        operator.rmatvec(np.zeros(operator.shape[0]))
    except NotImplementedError:
        return False
    return True


def _as_real(operator: Any, symmetric: Any) -> tuple[LinearOperator, bool]:
    """Return the operator as a real `LinearOperator`, and whether it is symmetric."""
    if not (symmetric is None or isinstance(symmetric, (bool, np.bool_))):
        raise TypeError(f"symmetric must be True, False or None, got {symmetric!r}.")
    shape: tuple[int, ...] = getattr(operator, "shape", ())
    if len(shape) == 2 and shape[0] != shape[1]:
        if symmetric:
            raise ValueError(f"An operator of shape {tuple(shape)} is not symmetric.")
        linear = aslinearoperator(operator)
        if linear.dtype is not None and np.dtype(linear.dtype).kind not in "fiubV":
            raise TypeError(f"The operator must be real, got dtype {linear.dtype}.")
        return linear, False
    linear = as_real_square(operator)
    if symmetric is None:
        has_entries = isinstance(operator, np.ndarray) or scipy.sparse.issparse(operator)
        return linear, not has_entries or _has_symmetric_entries(operator)
    return linear, bool(symmetric)


def _has_symmetric_entries(matrix: Any) -> bool:
    """Whether a square array or sparse matrix is its own transpose but for rounding."""
    if not matrix.shape[0]:
        return True
    eps = product_precision(matrix)
    matrix = matrix.astype(np.float64)
    with np.errstate(invalid="ignore"):  # the products will say what is not finite
        return bool(abs(matrix - matrix.T).max() <= 100 * eps * abs(matrix).max())


def _rank(rank: Any, operator: LinearOperator, name: str = "rank") -> int:
    rank = integer(rank, name, 1)
    most = min(operator.shape)
    if rank > most:
        raise ValueError(
            f"{name} is {rank}, but an operator of shape {tuple(operator.shape)} has no rank above "
            f"{most}. Use {name} <= {most}."
        )
    return rank


def _width(rank: int, oversampling: Any, operator: LinearOperator) -> int:
    return min(rank + integer(oversampling, "oversampling", 0), *operator.shape)
