"""Blocks of columns: Gaussian ones, orthonormal ones, and the norm that Gaussian ones show."""

from __future__ import annotations

from math import inf

import numpy as np
import scipy.linalg

from spectral_density.linalg.arguments import stream
from spectral_density.linalg.norms import column_norms

# Random streams: a key of this file's own, so that no draw here is a start vector of Lanczos.
_KEY = 7041
TEST, PROBE, _COMPLETION = range(3)

# A matrix B exceeds _PROBE_FACTOR * max ||B z_i|| over r Gaussian vectors with probability at most
# 10^-r (Halko, Martinsson, Tropp, lemma 4.1 with alpha = 10).
_PROBE_FACTOR = 10 * np.sqrt(2 / np.pi)

# A pass of Gram-Schmidt that keeps this share of every direction left them orthogonal.
_KEPT_SHARE = np.sqrt(0.5)
_MAX_PASSES = 4


def gaussian(size: int, seed: int, kind: int, count: int, first: int = 0) -> np.ndarray:
    """Return Gaussian vectors `first`, `first` + 1, ...: the same ones however many are drawn."""
    block = np.empty((size, count), order="F")
    for column in range(count):
        block[:, column] = stream(seed, _KEY, kind, first + column).standard_normal(size)
    return block


def without(block: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return (I - Q Q') block."""
    return block - basis @ (basis.T @ block)


def qr(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return orthonormal Q and triangular R, block = Q R."""
    return scipy.linalg.qr(block, mode="economic", check_finite=False)


def orthonormal(block: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the block's part outside of the basis; both full rank."""
    for _ in range(_MAX_PASSES):
        block, triangle = qr(without(block, basis))
        if np.linalg.svd(triangle, compute_uv=False).min() >= _KEPT_SHARE:
            break
    return block


def random_complement(basis: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return random orthonormal columns orthogonal to those of the basis."""
    block = gaussian(len(basis), seed, _COMPLETION, count)
    return orthonormal(qr(without(block, basis))[0], basis)


def probed_norm(products: np.ndarray) -> float:
    """Bound the norm of a matrix by its products with Gaussian vectors; infinite without any."""
    return float(_PROBE_FACTOR * column_norms(products).max()) if products.shape[1] else inf
