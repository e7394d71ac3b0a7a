"""Orthogonalization of vectors and blocks of vectors against an orthonormal basis."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from spectral_density.linalg.norms import vector_norm

# Daniel, Gragg, Kaufman and Stewart: a pass that leaves more than this share of the norm left
# nothing along the basis but rounding; one that leaves less is repeated.
KEPT_SHARE = np.sqrt(0.5)
MAX_PASSES = 3
_MAX_BLOCK_PASSES = 4
# float32 sums run over pieces of this many entries, which are then added in float64.
_FLOAT32_PIECE = 8192
# Columns that are rotated together.
_ROTATE_LENGTH = 2**13
# A column of a Gram matrix below this share of the largest has no direction.
_NEGLIGIBLE = 1e-10
# Least eigenvalue of a Gram matrix whose Cholesky factor orthogonalizes to eight digits.
_WELL_CONDITIONED = 1e-4


def orthogonalize(w: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Remove from `w`, in place, what lies along orthonormal rows; return what was removed.

    Classical Gram-Schmidt against all rows together, repeated while the norm falls much. A float64
    `w` that is orthogonal to the rows but for rounding takes one pass.

    Args:
        w: shape (n,), float64.
        rows: shape (k, n), float64 or float32; float32 rows are never copied to float64.

    Returns:
        The coefficients along the rows, shape (k,).

    References:
        Daniel, Gragg, Kaufman, Stewart (1976), Math. Comp. 30:772 (when to orthogonalize again).
    """
    removed = np.zeros(len(rows))
    norm = vector_norm(w)
    for _ in range(MAX_PASSES):
        along = project(rows, w)
        removed += along
        for piece in _pieces(rows):
            w[piece] -= along.astype(rows.dtype, copy=False) @ rows[:, piece]
        last, norm = norm, vector_norm(w)
        if norm > KEPT_SHARE * last:
            break
    return removed


def project(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Return `rows @ vector` in float64, without a float64 copy of float32 rows."""
    result = np.zeros(len(rows))
    for piece in _pieces(rows):
        result += rows[:, piece] @ vector[piece].astype(rows.dtype, copy=False)
    return result


def orthonormalize(rows: np.ndarray) -> None:
    """Make rows that are orthonormal but for rounding so to the last digit, in place."""
    for index, row in enumerate(rows):
        orthogonalize(row, rows[:index])
        row /= np.linalg.norm(row)


def rotate(rows: np.ndarray, weights: np.ndarray) -> None:
    """Replace the first rows by combinations of all of them, in place, weights (rows, count)."""
    for begin in range(0, rows.shape[1], _ROTATE_LENGTH):
        piece = slice(begin, begin + _ROTATE_LENGTH)
        rows[: weights.shape[1], piece] = weights.T @ rows[:, piece]


def project_out(block: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return (I - Q Q') block for orthonormal columns Q."""
    return block - basis @ (basis.T @ block)


def project_out_rows(rows: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return rows without their parts along the orthonormal rows of a basis."""
    return rows - (rows @ basis.T) @ basis


def qr(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return orthonormal Q and triangular R of Householder's factorization, block = Q R."""
    return scipy.linalg.qr(block, mode="economic", check_finite=False)


def orthonormal_extension(block: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return orthonormal columns, as many as the block has, that span its part outside of a basis.

    Args:
        block: shape (n, k), of full rank outside of the basis.
        basis: orthonormal columns, shape (n, r).
    """
    for _ in range(_MAX_BLOCK_PASSES):
        block, triangle = qr(project_out(block, basis))
        if np.linalg.svd(triangle, compute_uv=False).min() >= KEPT_SHARE:
            break
    return block


def rank_revealing_extension(
    block: np.ndarray, basis: np.ndarray, threshold: float, most: int
) -> np.ndarray:
    """Return orthonormal columns for the directions of a block outside of a basis.

    Args:
        block: shape (n, k), of any rank.
        basis: orthonormal columns, shape (n, r).
        threshold: singular values of (I - Q Q') block that are not above it are rounding.
        most: columns to return at most, those of the largest singular values.
    """
    q, triangle = qr(project_out(block, basis))
    left, sizes, _ = np.linalg.svd(triangle)
    rank = min(int(np.count_nonzero(sizes > threshold)), most)
    return orthonormal_extension(q @ left[:, :rank], basis) if rank else q[:, :0]


def cholesky_qr(block: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of columns that are nearly orthogonal, in the block's dtype.

    By a Cholesky factor of the Gram matrix, at a fraction of what Householder's QR takes; of such
    columns, scaled to one length, the Gram matrix is well conditioned. Where it is not, QR is used.
    """
    wide = block.astype(np.float64, copy=False)
    gram = wide.T @ wide
    sizes = np.sqrt(np.diag(gram))
    if sizes.min() <= max(_NEGLIGIBLE * sizes.max(), np.finfo(block.dtype).tiny):
        return qr(block)[0]
    gram /= np.outer(sizes, sizes)
    if np.linalg.eigvalsh(gram)[0] < _WELL_CONDITIONED:
        return qr(block)[0]
    factor = np.linalg.cholesky(gram)
    return combine(block, np.linalg.inv(factor).T / sizes[:, np.newaxis])


def combine(block: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return block @ weights in the block's dtype, stored column by column as products are."""
    return (weights.T.astype(block.dtype) @ block.T).T


def _pieces(rows: np.ndarray) -> list[slice]:
    """Return the ranges of columns over which sums in the precision of the rows may run."""
    size = rows.shape[1]
    length = _FLOAT32_PIECE if rows.dtype == np.float32 else size
    return [slice(begin, begin + length) for begin in range(0, size, length)]
