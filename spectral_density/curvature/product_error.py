"""Distance of products at a lower precision from those at full precision."""

from __future__ import annotations

from math import ceil, floor, isfinite, log10

import numpy as np

from spectral_density.curvature.sweep import Sweep
from spectral_density.linalg.arguments import stream

# Key of the random vector.
_KEY = 7052


def measured_product_error(sweep: Sweep, scales: np.ndarray | float = 1.0) -> float:
    """Return how far products are from those at full precision, relative to these, by norm.

    For a random vector and the first batch, which takes a product at either precision. It estimates
    ||E||_F / ||A||_F, where products are those of A + E. Two digits, rounded up: what repeats but
    for the last bits is the same number.

    Args:
        sweep: over the dataset.
        scales: of rows and columns, (num_params,): then it is that of S E S and S A S.
    """
    derivatives = sweep.derivatives
    parameters = derivatives.parameters
    vector = stream(0, _KEY).normal(size=(1, parameters.size))
    scaled = vector * scales
    rows = derivatives.tensors.to_rows(scaled / np.linalg.norm(scaled), parameters.dtype)
    at = next(sweep.inputs())
    with derivatives.state.unchanged():
        found = scales * sweep.matrix.of_batch(at, rows, sweep.local)
        exact = scales * sweep.matrix.exact.of_batch(at, rows, sweep.local)
    gap, size = float(np.linalg.norm(found - exact)), float(np.linalg.norm(exact))
    return _two_digits(gap / size) if size and gap else 0.0


def _two_digits(figure: float) -> float:
    """Return a positive number with two digits, rounded up."""
    if not isfinite(figure):
        return figure
    unit = 10.0 ** (floor(log10(figure)) - 1)
    return float(f"{ceil(figure / unit) * unit:.1e}")
