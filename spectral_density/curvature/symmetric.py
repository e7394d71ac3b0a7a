"""Symmetric matrices given by products with blocks, as SciPy linear operators."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import psutil
from scipy.sparse.linalg import LinearOperator

from spectral_density._progress import progress_bar

# Columns of the dense matrix that are computed in one pass.
_DENSE_WIDTH = 16


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
