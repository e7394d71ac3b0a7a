"""A few eigenpairs of the matrix of a training step: computed, tracked, and told from noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density.linalg.arguments import block_product, stream
from spectral_density.linalg.lanczos import lanczos
from spectral_density.linalg.norms import euclidean_norm
from spectral_density.linalg.randomized import randomized_eigh
from spectral_density.linalg.threads import blas_threads

# Vectors multiplied at once while an adaptive space grows.
_BLOCK_SIZE = 8
# What is left of a block below this share of it is rounding.
_NEGLIGIBLE = 1e-10
# Least eigenvalue of a Gram matrix whose Cholesky factor orthogonalizes to eight digits.
_WELL_CONDITIONED = 1e-4
_KEY = 7042


@dataclass(frozen=True, eq=False)
class LowRank:
    """U diag(values) U' in place of a symmetric matrix A."""

    values: np.ndarray  # (r,), signed, largest magnitude first
    vectors: np.ndarray  # (n, r), U, orthonormal columns, float64 or, rounded, float32
    norm: float  # largest |eigenvalue| found, of those left out as noise too
    images: np.ndarray | None = None  # (n, r or more), A U, from which `tracked_eigenpairs` goes on

    def saddle_free_step(self, gradient: np.ndarray, gamma: float) -> np.ndarray:
        """Return -(|U diag(values) U'| + gamma I)^-1 g."""
        magnitudes = np.abs(self.values)
        shares = magnitudes / (magnitudes + gamma)
        along = shares * (self.vectors.T @ gradient.astype(self.vectors.dtype))
        return (self.vectors @ along.astype(self.vectors.dtype) - gradient) / gamma

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
    found = randomized_eigh(
        operator, rank, oversampling=oversampling, num_probes=0, seed=seed, progress=False
    )
    return _low_rank(found.values, found.vectors, found.vectors * found.values)


def lanczos_eigenpairs(
    operator: LinearOperator, gradient: np.ndarray, rank: int, oversampling: int, seed: int
) -> LowRank:
    """Return Ritz pairs of largest magnitude from rank + oversampling products, one by one.

    The space begins with the gradient, so that the step is right along it.
    """
    order = min(rank + oversampling, operator.shape[0])
    found = lanczos(operator, order, start=gradient, seed=seed, progress=False, check=False)
    if found.basis is None:
        raise ValueError("lanczos returned no basis.")
    with blas_threads(len(gradient)):
        alpha, beta, basis = found.alpha[0], found.beta[0], np.asarray(found.basis[0])
        values, weights = np.linalg.eigh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1))
        chosen = np.argsort(-np.abs(values), kind="stable")[:rank]
        vectors = basis.T @ weights[:, chosen]
    return _low_rank(values[chosen], vectors, vectors * values[chosen])


def tracked_eigenpairs(operator: LinearOperator, images: np.ndarray) -> LowRank:
    """Return Ritz pairs in the space of the last eigenvectors' images, from one block product.

    The matrix has changed little since, so that one step of subspace iteration follows it. What is
    kept for the next refresh are products with this one's matrix. All is in the images' precision.
    """
    with blas_threads(len(images)):
        basis = _nearly_orthonormal(images)
    products = block_product(operator, basis, "while tracking eigenvectors")
    with blas_threads(len(images)):
        products = products.astype(basis.dtype, copy=False)
        core = (basis.T @ products).astype(np.float64)
        values, weights = np.linalg.eigh((core + core.T) / 2)
        order = np.argsort(-np.abs(values), kind="stable")
        weights = weights[:, order]
        return _low_rank(values[order], _combined(basis, weights), _combined(products, weights))


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
        block = _orthonormal(np.column_stack([gradient / norm, random]))
    basis, products = np.empty((size, 0)), np.empty((size, 0))
    while True:
        new = block_product(operator, block, "while the space grows")
        with blas_threads(size):
            basis, products = np.hstack([basis, block]), np.hstack([products, new])
            core = basis.T @ products
            values, weights = np.linalg.eigh((core + core.T) / 2)
            pairs = _low_rank(values, basis @ weights, None)
            # The gradient lies in the space, so the step does.
            along = pairs.vectors.T @ gradient
            step = -along / (np.abs(values) + gamma(pairs))
            image = products @ (weights @ step)
            outside = image - basis @ (basis.T @ image)
            done = float(np.linalg.norm(outside)) <= tolerance * norm
            room = min(max_rank, size) - basis.shape[1]
            block = np.empty((size, 0)) if done or not room else _extension(new, basis, room)
        if not block.shape[1]:
            order = np.argsort(-np.abs(values), kind="stable")
            return _low_rank(values[order], basis @ weights[:, order], None)


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


def _low_rank(values: np.ndarray, vectors: np.ndarray, images: np.ndarray | None) -> LowRank:
    return LowRank(values, vectors, float(np.abs(values).max(initial=0.0)), images)


def _orthonormal(block: np.ndarray) -> np.ndarray:
    return np.linalg.qr(block)[0]


def _nearly_orthonormal(block: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of columns that are orthogonal but for a change of the matrix.

    By a Cholesky factor of the Gram matrix, at a fraction of what Householder's QR takes; of such
    columns, scaled to one length, the Gram matrix is well conditioned.
    """
    wide = block.astype(np.float64, copy=False)
    gram = wide.T @ wide
    sizes = np.sqrt(np.diag(gram))
    if sizes.min() <= max(_NEGLIGIBLE * sizes.max(), np.finfo(block.dtype).tiny):
        return _orthonormal(block)
    gram /= np.outer(sizes, sizes)
    if np.linalg.eigvalsh(gram)[0] < _WELL_CONDITIONED:
        return _orthonormal(block)
    factor = np.linalg.cholesky(gram)
    return _combined(block, np.linalg.inv(factor).T / sizes[:, np.newaxis])


def _combined(block: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return block @ weights in the block's dtype, column by column as products take and give."""
    return (weights.T.astype(block.dtype) @ block.T).T


def _extension(block: np.ndarray, basis: np.ndarray, room: int) -> np.ndarray:
    """Return orthonormal columns of what of a block lies outside of the basis, at most `room`."""
    outside = block - basis @ (basis.T @ block)
    left, sizes, _ = np.linalg.svd(outside, full_matrices=False)
    kept = min(int(np.count_nonzero(sizes > _NEGLIGIBLE * np.linalg.norm(block))), room)
    left = left[:, :kept]
    return _orthonormal(left - basis @ (basis.T @ left)) if kept else left
