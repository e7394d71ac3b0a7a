"""Vectors scaled by powers of two to the range of the precision that products are computed in.

float16 holds numbers from 6e-8 to 65504, float32 from 1e-45 to 3e38. A product is linear in its
vector, so that a vector times a power of two, undone in float64 afterwards, has the same product to
the bit wherever neither vanishes nor overflows in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

# Vectors are scaled to a largest entry and a length of at most 2 to the power of these: between
# products of trained networks (means over thousands of examples), which vanish below 2^-8, and
# sums over the inputs of a layer, which overflow above 2^8 to 2^12.
_LARGEST, _LENGTH = 4, 8

# Where a product is not finite, its vector is taken this many powers of two smaller, twice.
_STEP, _TRIES = 6, 3

# In single and double precision only vectors whose largest entry is further from 1 than this power
# of two are scaled.
_MODERATE = 32


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
