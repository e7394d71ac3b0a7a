"""Euclidean norms whose squares neither over- nor underflow."""

from __future__ import annotations

import numpy as np


def euclidean_norm(vector: np.ndarray) -> float:
    """Return ||v||."""
    largest = float(np.abs(vector).max(initial=0.0))
    return largest * float(np.linalg.norm(vector / largest)) if largest else 0.0


def column_norms(block: np.ndarray) -> np.ndarray:
    """Return the norm of each column, shape (k,) of (n, k)."""
    largest = np.abs(block).max(initial=0.0)
    if not largest:
        return np.zeros(block.shape[1])
    return largest * np.linalg.norm(block / largest, axis=0)
