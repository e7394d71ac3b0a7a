"""Start vectors of Krylov methods, random or given."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectral_density.linalg.arguments import random_direction
from spectral_density.linalg.orthogonalization import orthonormalize, qr

# Random streams: a key of this file's own, so that no start vector is drawn elsewhere.
_KEY = 7044
# Of a unit vector: less than this is no direction of its own.
_DEPENDENT = 1e-10


def start_vector(size: int, seed: int = 0, draw: int = 0) -> np.ndarray:
    """Return the start vector of a draw: uniform on the unit sphere, shape (size,), float64."""
    return new_direction(size, seed, draw, 0)


def start_block(size: int, seed: int, draw: int, block: int) -> np.ndarray:
    """Return the start vectors of a draw of blocks: orthonormal rows, shape (block, size).

    They are those of the draws `draw * block` and following of single vectors, made orthonormal one
    after the other: uniform among all orthonormal blocks.
    """
    rows = np.stack([start_vector(size, seed, draw * block + i) for i in range(block)])
    orthonormalize(rows)
    return rows


def new_direction(size: int, seed: int, draw: int, step: int) -> np.ndarray:
    """Return the random unit vector that continues a draw where its Krylov space ends."""
    return random_direction(size, seed, _KEY, draw, step)


def as_starts(start: Any, size: int, num_draws: int) -> np.ndarray:
    """Return given start vectors as unit columns, shape (size, num_draws).

    Raises:
        TypeError: if they are complex.
        ValueError: if they have another shape, or one is zero or not finite.
    """
    if np.iscomplexobj(start):
        raise TypeError("start must be real.")
    starts = np.array(start, dtype=np.float64)
    shape = starts.shape
    if starts.ndim == 1:
        starts = starts[:, np.newaxis]
    if starts.shape != (size, num_draws):
        expected = f"({size},) or ({size}, 1)" if num_draws == 1 else f"({size}, {num_draws})"
        raise ValueError(f"start must have shape {expected}, got {shape}.")
    if not np.isfinite(starts).all():
        raise ValueError("start must be finite.")
    largest = np.abs(starts).max(axis=0)
    if not largest.all():
        raise ValueError("start must not be zero: every column needs a direction.")
    starts /= largest  # first, so that no square under- or overflows
    starts /= np.linalg.norm(starts, axis=0)
    return starts


def as_start_blocks(starts: np.ndarray, block: int) -> np.ndarray:
    """Return given unit columns as blocks of orthonormal columns, `block` columns each.

    Raises:
        ValueError: if the vectors of a block are not linearly independent.
    """
    blocks = starts.copy()
    for first in range(0, starts.shape[1], block):
        q, triangle = qr(starts[:, first : first + block])
        sizes = np.abs(np.diag(triangle))
        if sizes.min() <= _DEPENDENT:
            raise ValueError(
                f"start must have linearly independent columns in each block of {block}: of column "
                f"{first + int(np.argmin(sizes))}, {sizes.min():.1e} is outside of those before it."
            )
        blocks[:, first : first + block] = q * np.sign(np.diag(triangle))
    return blocks


def start_columns(start: Any, size: int, block_size: int) -> np.ndarray:
    """Return given start vectors as unit columns, shape (n, count), count at most block_size."""
    shape = np.shape(start)
    count = min(max(shape[1], 1), block_size) if len(shape) == 2 else 1
    return as_starts(start, size, count)
