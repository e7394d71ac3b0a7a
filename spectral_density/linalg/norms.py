"""Euclidean norms whose squares neither over- nor underflow."""

from __future__ import annotations

from functools import cache

import numpy as np

from spectral_density.linalg.threads import blas_threads


def euclidean_norm(vector: np.ndarray) -> float:
    """Return ||v||, by one pass over the vector and one BLAS thread where its squares allow."""
    with blas_threads(vector.size):
        if vector.dtype.kind == "f":
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                squares = float(np.vdot(vector, vector))
            # What underflows is below the rounding of such a sum.
            if _least_square(vector.dtype) < squares < np.inf:
                return float(np.sqrt(squares))
        largest = float(np.abs(vector).max(initial=0.0))
        return largest * float(np.linalg.norm(vector / largest)) if largest else 0.0


def vector_norm(vector: np.ndarray) -> float:
    """Return ||v|| of a float64 vector, to the bits of NumPy's where its squares allow."""
    with np.errstate(over="ignore", under="ignore"):
        norm = float(np.linalg.norm(vector))
    least = np.sqrt(_least_square(np.dtype(np.float64)))
    return norm if least < norm < np.inf else euclidean_norm(vector)


def inner(left: np.ndarray, right: np.ndarray) -> float:
    """Return left'right of two vectors, by one BLAS thread."""
    with blas_threads(left.size):
        return float(left @ right)


def column_norms(block: np.ndarray) -> np.ndarray:
    """Return the norm of each column, shape (k,) of (n, k)."""
    largest = np.abs(block).max(initial=0.0)
    if not largest:
        return np.zeros(block.shape[1])
    return largest * np.linalg.norm(block / largest, axis=0)


@cache
def _least_square(dtype: np.dtype) -> float:
    """Return the least sum of squares whose summands may underflow without being missed."""
    limits = np.finfo(dtype)
    return float(limits.tiny / limits.eps)
