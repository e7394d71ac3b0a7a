"""Slopes of errors against step lengths on logarithmic axes: observed orders of convergence."""

from __future__ import annotations

import numpy as np


def neighbour_slopes(sizes: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Return the slopes of log |error| against log |size| between neighbours, (k - 1,).

    They are NaN or infinite where an error is zero.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.diff(np.log(np.abs(errors))) / np.diff(np.log(np.abs(sizes)))


def fitted_slope(
    sizes: np.ndarray, errors: np.ndarray, smallest: float, largest: float, *, name: str
) -> float:
    """Return the least-squares slope of log |error| against log |size| between two sizes.

    Args:
        sizes: steps or scales, (k,), of either sign.
        errors: (k,).
        smallest: magnitudes of `sizes` less than this are left out.
        largest: magnitudes greater than this are left out.
        name: of the sizes in the error message, such as "steps".

    Raises:
        ValueError: if fewer than two sizes of finite, non-zero error are left.
    """
    sizes, errors = np.abs(sizes), np.abs(errors)
    used = (sizes >= smallest) & (sizes <= largest) & np.isfinite(errors) & (errors > 0)
    count = len(np.unique(sizes[used]))
    if count < 2:
        raise ValueError(
            f"a slope needs two {name} between {smallest:g} and {largest:g} whose error is finite "
            f"and not zero, and there are {count}."
        )
    return float(np.polyfit(np.log(sizes[used]), np.log(errors[used]), 1)[0])
