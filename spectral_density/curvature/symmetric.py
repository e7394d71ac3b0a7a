"""Symmetric matrices given by products with blocks, as SciPy linear operators.

Products may be computed in a precision of less range than float64: float16 holds numbers from 6e-8
to 65504, float32 from 1e-45 to 3e38. A product is linear in its vector, so that a vector times a
power of two, undone in float64 afterwards, has the same product to the bit wherever neither
vanishes nor overflows in between.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
from scipy.sparse.linalg import LinearOperator

from spectral_density._progress import progress_bar

# Columns of the dense matrix that are computed in one pass.
_DENSE_WIDTH = 16

# Vectors are scaled to a largest entry and a length of at most 2 to the power of these: between
# products of trained networks (means over thousands of examples), which vanish below 2^-8, and
# sums over the inputs of a layer, which overflow above 2^8 to 2^12.
_LARGEST, _LENGTH = 4, 8

# Where a product is not finite, its vector is taken this many powers of two smaller, twice.
_STEP, _TRIES = 6, 3

# In single and double precision only vectors whose largest entry is further from 1 than this power
# of two are scaled.
_MODERATE = 32


class SymmetricOperator(LinearOperator):
    """A real symmetric matrix whose products with the vectors of a block are computed together."""

    def __init__(self, size: int):
        """Take the number of rows."""
        super().__init__(dtype=np.dtype(np.float64), shape=(size, size))

    @abstractmethod
    def _products(self, block: np.ndarray) -> np.ndarray:
        """Return the products with a block of at least one vector, (n, k), float64."""

    def matvec(self, x: np.ndarray) -> np.ndarray:
        """Return the product with a vector of shape (n,) or (n, 1)."""
        return super().matvec(self.check_vectors(x))

    def matmat(self, X: np.ndarray) -> np.ndarray:
        """Return the product with a block of shape (n, k)."""
        return super().matmat(self.check_vectors(X))

    def to_dense(self, progress: bool | None = False) -> np.ndarray:
        """Return the matrix itself, shape (n, n), float64.

        Args:
            progress: show a bar; None for only in interactive runs.

        Raises:
            MemoryError: if the matrix does not fit into the free memory.
        """
        n = self.shape[0]
        needed, free = 8 * n * n, psutil.virtual_memory().available
        if needed > free:
            raise MemoryError(
                f"the dense matrix of {n:,} parameters takes {needed / 2**30:.1f} GiB, and "
                f"{free / 2**30:.1f} GiB are free. Choose fewer with variables=, or use products."
            )
        dense = np.empty((n, n))
        with progress_bar(n, "columns", progress) as bar:
            width = min(_DENSE_WIDTH, n)
            for start in range(0, n, width):
                # The last block overlaps the one before it: another width would be another graph.
                first = min(start, n - width)
                dense[:, first : first + width] = self.matmat(np.eye(n, width, -first))
                bar.update(first + width - start)
        return dense

    def check_vectors(self, vectors: np.ndarray) -> np.ndarray:
        """Return vectors as float64.

        Raises:
            ValueError: if they are complex, not finite, or of another shape.
        """
        vectors = np.asarray(vectors)
        n = self.shape[0]
        if np.iscomplexobj(vectors):
            raise ValueError("the matrix is real, and the vector is complex: pass its parts.")
        if vectors.ndim not in (1, 2) or vectors.shape[0] != n:
            raise ValueError(
                f"expected a vector of shape ({n},) or a block of shape ({n}, k), one row for each "
                f"parameter, got shape {vectors.shape}."
            )
        vectors = vectors.astype(np.float64, copy=False)
        if not np.isfinite(vectors).all():
            raise ValueError("the vector to multiply with holds NaN or infinity.")
        return vectors

    # SciPy's side --------------------------------------------------------------------------------

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self._products(x.reshape(-1, 1))[:, 0]

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        return self._products(X) if X.shape[1] else np.zeros(X.shape)

    def _adjoint(self) -> SymmetricOperator:
        return self

    def _transpose(self) -> SymmetricOperator:
        return self


def is_half(dtype: Any) -> bool:
    """Tell whether a dtype has half precision, of either kind."""
    return np.dtype(dtype).name in ("float16", "bfloat16")


def scaled_product(
    multiply: Callable[[np.ndarray, bool], list[np.ndarray]], block: np.ndarray
) -> list[np.ndarray]:
    """Return what `multiply` returns for a block, of which each column is scaled by a power of two.

    A column whose product is not finite is multiplied again, smaller.

    Args:
        multiply: takes a block (n, k) and whether its products have to be finite; returns the
            products (n, k), and more that does not depend on the block.
        block: (n, k), float64.
    """
    exponents = _exponents(block)
    for attempt in range(_TRIES):
        products, *rest = multiply(np.ldexp(block, exponents), attempt == _TRIES - 1)
        lost = ~np.isfinite(products).all(axis=0)
        if not lost.any():
            break
        exponents[lost] -= _STEP
    return [np.ldexp(products, -exponents), *rest]


def moderated_product(
    multiply: Callable[[np.ndarray], list[np.ndarray]], block: np.ndarray
) -> list[np.ndarray]:
    """Return what `multiply` returns for a block, of which no column is very small or very large.

    Vectors are float64 whatever products are computed in. Columns whose largest entry is far from 1
    are scaled by a power of two.

    Args:
        multiply: takes a block (n, k); returns the products (n, k), and more that does not depend
            on the block.
        block: (n, k), float64.
    """
    # Without a copy of the block.
    largest = np.maximum(block.max(axis=0, initial=0.0), -block.min(axis=0, initial=0.0))
    exponents = np.frexp(largest)[1]
    exponents = np.where(np.abs(exponents) > _MODERATE, -exponents, 0)
    if not exponents.any():
        return multiply(block)
    products, *rest = multiply(np.ldexp(block, exponents))
    return [np.ldexp(products, -exponents), *rest]


def _exponents(block: np.ndarray) -> np.ndarray:
    """Return for each column the power of two that takes it into the range; 0 for zero."""
    largest = np.abs(block).max(axis=0, initial=0.0)
    # First, so that no square under- or overflows.
    exponents = -np.frexp(largest)[1]
    length = np.linalg.norm(np.ldexp(block, exponents), axis=0)
    return exponents + np.minimum(_LARGEST, _LENGTH - np.frexp(length)[1])
