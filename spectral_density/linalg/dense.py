"""Dense matrices from products of an operator with the columns of the identity."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density.linalg.arguments import block_product

BLOCK_COLUMNS = 16
"""Vectors that are multiplied together at most: one pass over the data for all of them."""

BLOCK_BYTES = 1024**3
"""Bytes that one such block may take."""


def blocks(begin: int, end: int, size: int) -> Iterator[range]:
    """Split a range of vectors of a size; the width depends on that alone, so results repeat."""
    width = max(1, min(BLOCK_COLUMNS, BLOCK_BYTES // (8 * max(size, 1))))
    for first in range(begin, end, width):
        yield range(first, min(first + width, end))


def identity_products(
    multiply: Callable[[np.ndarray], np.ndarray], size: int
) -> Iterator[tuple[range, np.ndarray]]:
    """Yield the columns of a matrix as rows, block by block, with their numbers.

    Args:
        multiply: returns the products with rows, shape (k, size), as rows.
        size: number of columns of the matrix.
    """
    for columns in blocks(0, size, size):
        rows = np.zeros((len(columns), size))
        rows[np.arange(len(columns)), columns] = 1.0
        yield columns, multiply(rows)


def dense_matrix(operator: LinearOperator) -> np.ndarray:
    """Return the matrix of an operator, shape (m, n), float64, from n products."""
    matrix = np.empty(operator.shape)
    for columns, images in identity_products(
        lambda rows: block_product(operator, rows.T).T, operator.shape[1]
    ):
        matrix[:, columns] = images.T
    return matrix
