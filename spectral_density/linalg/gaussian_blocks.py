"""Gaussian blocks of vectors, random complements of a basis, and probed norm bounds."""

from __future__ import annotations

from math import inf

import numpy as np

from spectral_density.linalg.arguments import stream
from spectral_density.linalg.norms import column_norms
from spectral_density.linalg.orthogonalization import orthonormal_extension, project_out, qr

# Random streams: a key of this file's own, so that no draw here is a start vector of Lanczos.
_KEY = 7041
TEST, PROBE, _COMPLETION = range(3)

# A matrix B exceeds _PROBE_FACTOR * max ||B z_i|| over r Gaussian vectors with probability at most
# 10^-r (Halko, Martinsson, Tropp, lemma 4.1 with alpha = 10).
_PROBE_FACTOR = 10 * np.sqrt(2 / np.pi)


def gaussian(size: int, seed: int, kind: int, count: int, first: int = 0) -> np.ndarray:
    """Return Gaussian vectors `first`, `first` + 1, ...: the same ones however many are drawn."""
    block = np.empty((size, count), order="F")
    for column in range(count):
        block[:, column] = stream(seed, _KEY, kind, first + column).standard_normal(size)
    return block


def random_complement(basis: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return random orthonormal columns orthogonal to those of the basis."""
    block = gaussian(len(basis), seed, _COMPLETION, count)
    return orthonormal_extension(qr(project_out(block, basis))[0], basis)


def probed_norm(products: np.ndarray) -> float:
    """Bound the norm of a matrix by its products with Gaussian vectors; infinite without any."""
    return float(_PROBE_FACTOR * column_norms(products).max()) if products.shape[1] else inf
