"""Dominant eigenpairs of the matrix of a training step: computed, tracked, tested against noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density.linalg.arguments import block_product, stream
from spectral_density.linalg.low_rank import (
    PartialEigendecomposition,
    magnitude_order,
    multiply_low_rank,
    rayleigh_ritz,
)
from spectral_density.linalg.norms import euclidean_norm
from spectral_density.linalg.orthogonalization import (
    cholesky_qr,
    combine,
    project_out,
    qr,
    rank_revealing_extension,
)
from spectral_density.linalg.randomized import randomized_eigh
from spectral_density.linalg.threads import blas_threads
from spectral_density.linalg.tridiagonalization import lanczos

# Vectors multiplied together while an adaptive space grows.
_BLOCK_SIZE = 8
# What is left of a block below this share of it is rounding.
_NEGLIGIBLE = 1e-10
# Random streams: a key of this file's own.
_KEY = 7042


@dataclass(frozen=True, repr=False, eq=False)
class LowRank(PartialEigendecomposition):
    """U diag(values) U' in place of a symmetric A, from its eigenpairs of largest magnitude."""

    values: np.ndarray  # (r,), signed, largest magnitude first
    vectors: np.ndarray  # (n, r), U, orthonormal columns, float64 or, rounded, float32
    norm: float  # largest |eigenvalue|, of those left out as noise too
    images: np.ndarray | None = None  # (n, r or more), A U, for `tracked_eigenpairs`

    @classmethod
    def of_largest(
        cls, values: np.ndarray, vectors: np.ndarray, images: np.ndarray | None = None
    ) -> LowRank:
        """Return it for eigenpairs of which none has been left out."""
        return cls(values, vectors, float(np.abs(values).max(initial=0.0)), images)

    def saddle_free_step(self, gradient: np.ndarray, gamma: float) -> np.ndarray:
        """Return -(|U diag(values) U'| + gamma I)^-1 g."""
        magnitudes = np.abs(self.values)
        shares = magnitudes / (magnitudes + gamma)
        along = multiply_low_rank(self.vectors, shares, gradient.astype(self.vectors.dtype))
        return (along - gradient) / gamma

    def rounded(self) -> LowRank:
        """Return the same with vectors and images in float32, for products that are no better.

        Two passes over the vectors are what a step between refreshes consists of.
        """
        images = None if self.images is None else self.images.astype(np.float32, copy=False)
        return replace(self, vectors=self.vectors.astype(np.float32, copy=False), images=images)


def randomized_eigenpairs(
    operator: LinearOperator, rank: int, oversampling: int, seed: int
) -> LowRank:
    """Return the eigenpairs of largest magnitude from 2 (rank + oversampling) products."""
    pairs = randomized_eigh(
        operator, rank, oversampling=oversampling, num_probes=0, seed=seed, progress=False
    )
    return LowRank.of_largest(pairs.values, pairs.vectors, pairs.vectors * pairs.values)


def lanczos_eigenpairs(
    operator: LinearOperator, gradient: np.ndarray, rank: int, oversampling: int, seed: int
) -> LowRank:
    """Return Ritz pairs of largest magnitude from rank + oversampling products, one by one.

    The space begins with the gradient, so that the step is right along it.
    """
    order = min(rank + oversampling, operator.shape[0])
    result = lanczos(operator, order, start=gradient, seed=seed, progress=False, check=False)
    basis = result.basis
    if basis is None:
        raise ValueError("lanczos returned no basis.")
    with blas_threads(len(gradient)):
        values, weights = np.linalg.eigh(result.tridiagonal())
        largest = magnitude_order(values)[:rank]
        vectors = np.asarray(basis[0]).T @ weights[:, largest]
    return LowRank.of_largest(values[largest], vectors, vectors * values[largest])


def tracked_eigenpairs(operator: LinearOperator, images: np.ndarray) -> LowRank:
    """Return Ritz pairs in the space of the last eigenvectors' images, from one block product.

    The matrix has changed little since, so that one step of subspace iteration follows it. What is
    kept for the next refresh are products with this one's matrix. All is in the images' precision.
    """
    with blas_threads(len(images)):
        basis = cholesky_qr(images)
    products = block_product(operator, basis, "while tracking eigenvectors")
    with blas_threads(len(images)):
        products = products.astype(basis.dtype, copy=False)
        values, weights = rayleigh_ritz(basis, products)
        return LowRank.of_largest(values, combine(basis, weights), combine(products, weights))


def adaptive_eigenpairs(
    operator: LinearOperator,
    gradient: np.ndarray,
    gamma: Callable[[LowRank], float],
    *,
    max_rank: int,
    tolerance: float,
    seed: int,
) -> LowRank:
    r"""Return Ritz pairs in a block Krylov space, grown until it holds what the step needs.

    The space Q begins with the gradient and random vectors. As the products A Q are known, so is
    what the matrix maps the step p, which lies in Q, to outside of it: it stops where
    ||(I - QQ') A p|| <= tolerance ||g||, the condition of an inexact Newton step, at no product
    more. No space can be too small for a gradient that is an eigenvector.

    Args:
        operator: symmetric, shape (n, n).
        gradient: g, shape (n,), not zero.
        gamma: the damping of a step with given eigenpairs.
        max_rank: dimension of the space at most.
        tolerance: relative to ||g||.
        seed: of the random vectors.

    References:
        Halko, Martinsson, Tropp (2011), SIAM Rev. 53:217, section 4.4 (growing to a tolerance).
        Dembo, Eisenstat, Steihaug (1982), SIAM J. Numer. Anal. 19:400 (the condition).
    """
    size, norm = len(gradient), euclidean_norm(gradient)
    width = min(_BLOCK_SIZE, max_rank)
    random = stream(seed, _KEY).standard_normal((size, width - 1))
    with blas_threads(size):
        block = qr(np.column_stack([gradient / norm, random]))[0]
    basis, products = np.empty((size, 0)), np.empty((size, 0))
    while True:
        new = block_product(operator, block, "while the space grows")
        with blas_threads(size):
            basis, products = np.hstack([basis, block]), np.hstack([products, new])
            values, weights = rayleigh_ritz(basis, products)
            pairs = LowRank.of_largest(values, basis @ weights)
            # The gradient lies in the space, so the step does.
            along = pairs.vectors.T @ gradient
            step = -along / (np.abs(values) + gamma(pairs))
            outside = project_out(products @ (weights @ step), basis)
            free = min(max_rank, size) - basis.shape[1]
            if not free or float(np.linalg.norm(outside)) <= tolerance * norm:
                return pairs
            threshold = _NEGLIGIBLE * float(np.linalg.norm(new))
            block = rank_revealing_extension(new, basis, threshold, free)
            if not block.shape[1]:
                return pairs


def significant(pairs: LowRank, parts: Sequence[LinearOperator], signal_to_noise: float) -> LowRank:
    """Return the eigenpairs whose curvature is more than noise, and leave out the others.

    Args:
        pairs: of the matrix over all the data.
        parts: the matrix over disjoint parts of the data, at least two.
        signal_to_noise: least |mean| / standard deviation of the Rayleigh quotients over the parts.

    References:
        O'Leary-Roseberry, Alger, Ghattas (2020), arXiv 2002.02881.
    """
    quotients = rayleigh_quotients(parts, pairs.vectors)
    means, spreads = quotients.mean(axis=0), quotients.std(axis=0, ddof=1)
    kept = np.abs(means) > signal_to_noise * spreads
    return replace(pairs, values=pairs.values[kept], vectors=pairs.vectors[:, kept])


def rayleigh_quotients(parts: Sequence[LinearOperator], vectors: np.ndarray) -> np.ndarray:
    """Return u'Au for each part's A and each column u, shape (num_parts, r)."""
    return np.array(
        [
            np.einsum("ij,ij->j", vectors, block_product(part, vectors, "with a part of the data"))
            for part in parts
        ]
    )
