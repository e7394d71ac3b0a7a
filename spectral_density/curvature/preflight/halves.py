"""The first batch of a dataset, cut in two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spectral_density.curvature.sweep import Sweep
from spectral_density.engines.data import BatchInput


class Halves(NamedTuple):
    """The first batch in two parts."""

    products: list[np.ndarray]  # of each part with u, shape (n,)
    shares: list[float]  # of the examples


def in_two(sweep: Sweep, at: BatchInput) -> tuple[list[BatchInput], list[float]] | None:
    """Return two parts of a batch, and their shares of its examples."""
    functions = sweep.derivatives.functions
    parts = functions.halves(at.batch)
    if parts is None:
        return None
    size = parts[-1][2]
    shares = [(stop - start) / size for _, start, stop in parts]
    # Weights that a user gives need not add up: one for each batch, say.
    weights = [sweep.batches.weight_of(half) for half, _, _ in parts]
    whole = float(at.weight)
    if not np.isclose(sum(weights), whole, rtol=1e-6):
        weights = [whole * share for share in shares]
    inputs = [
        at._replace(
            batch=half,
            first_example=at.first_example + start,
            weight=sweep.derivatives.tensors.number(weight),
        )
        for (half, start, _), weight in zip(parts, weights, strict=True)
    ]
    return inputs, shares


def weights_add_up(sweep: Sweep, parts: Sequence[BatchInput], at: BatchInput) -> bool:
    """Tell whether the weight of a batch is the sum of those of its parts, as `in_two` has them."""
    weights = [sweep.batches.weight_of(part.batch) for part in parts]
    return bool(np.isclose(sum(weights), float(at.weight), rtol=1e-6))
