"""Partial eigendecompositions of symmetric matrices, their products, and Rayleigh-Ritz."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, repr=False, eq=False)
class PartialEigendecomposition:
    """V diag(values) V' in place of a symmetric matrix, from some of its eigenpairs."""

    values: np.ndarray  # (k,)
    vectors: np.ndarray  # (n, k), orthonormal columns

    @property
    def rank(self) -> int:
        """Number of eigenpairs, k."""
        return len(self.values)

    def multiply(self, block: np.ndarray) -> np.ndarray:
        """Return V diag(values) V' block, for one vector (n,) or a block (n, j)."""
        return multiply_low_rank(self.vectors, self.values, block)


def multiply_low_rank(vectors: np.ndarray, weights: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Return V diag(weights) V' block, for one vector (n,) or a block (n, j).

    It is computed in the precision of vectors and block, not in that of the weights.
    """
    along = (weights * (vectors.T @ block).T).T
    return vectors @ along.astype(np.result_type(vectors, block), copy=False)


def magnitude_order(values: np.ndarray) -> np.ndarray:
    """Return the indices that sort values by magnitude, the largest first."""
    return np.argsort(-np.abs(values), kind="stable")


def rayleigh_ritz(basis: np.ndarray, products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Ritz pairs of a symmetric matrix A in the span of orthonormal columns Q.

    Args:
        basis: Q, shape (n, r).
        products: A Q, shape (n, r); what rounding leaves unsymmetric of Q'A Q is averaged.

    Returns:
        Ritz values, largest magnitude first, shape (r,), and W, shape (r, r): the Ritz vectors are
        the columns of Q W.
    """
    core = (basis.T @ products).astype(np.float64, copy=False)
    values, weights = np.linalg.eigh((core + core.T) / 2)
    order = magnitude_order(values)
    return values[order], weights[:, order]
