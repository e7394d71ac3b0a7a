"""Sums over a dataset that are not finite: the batch and the cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from spectral_density.curvature.symmetric import is_half
from spectral_density.engines.data import BatchInput

if TYPE_CHECKING:
    from spectral_density.curvature.sweep import Sweep


def raise_not_finite(
    sweep: Sweep, what: str, function: Callable[[BatchInput, int], np.ndarray]
) -> None:
    """Raise for a sum over the dataset that holds NaN or infinity, naming the batch.

    Args:
        sweep: over the dataset.
        what: the sum is of.
        function: what a batch adds to it.

    Raises:
        FloatingPointError: naming the batch, and the cause.
    """
    in_half = ""
    dtype = sweep.derivatives.product_dtype
    if is_half(dtype):
        in_half = (
            f" The model computes in half precision ({dtype.name}), which may overflow: "
            "compute in float32 or float64."
        )
    found = _first_not_finite(sweep, what, function)
    if sweep.replicas is not None:
        found = min(filter(None, sweep.replicas.gather(found)), default=None)
    if found is not None:
        number, why = found
        raise FloatingPointError(
            f"the {what} is not finite in batch {number} of {len(sweep.batches)} "
            f"(counted from 0). {why}{in_half}"
        )
    if not sweep.batches.kept:
        raise FloatingPointError(
            f"the {what} is not finite, and no batch says why when the data is iterated again: "
            "a pass gave other data, or the sum over the batches overflows. "
            "dataset.cache() fixes the data."
        )
    raise FloatingPointError(f"the {what} overflows when summed over the batches.{in_half}")


def _first_not_finite(
    sweep: Sweep, what: str, function: Callable[[BatchInput, int], np.ndarray]
) -> tuple[int, str] | None:
    """Return the first batch computed here whose result is not finite, and why it is not."""
    derivatives, local = sweep.derivatives, sweep.local

    def is_finite(at: BatchInput) -> bool:
        return bool(np.isfinite(function(at, local)).all())

    for numbers, at in zip(sweep.batches.parcels, sweep.inputs(), strict=True):
        if is_finite(at):
            continue
        if len(numbers) == 1:
            return numbers.start, derivatives.inspection.why_not_finite(what, at, local)
        # Of batches computed together each is tried alone.
        for number, batch in zip(numbers, sweep.batches.apart(at.batch, numbers), strict=True):
            alone = at._replace(
                batch=batch,
                weight=derivatives.tensors.number(derivatives.functions.count_examples(batch)),
            )
            if not is_finite(alone):
                return number, derivatives.inspection.why_not_finite(what, alone, local)
        return numbers.start, (
            f"It is so only where batches {numbers.start} to {numbers.stop - 1} are computed "
            "together: look for an overflow."
        )
    return None


def check_penalty(added: np.ndarray, what: str) -> None:
    """Raise if what weight regularization adds to a gradient or product is not finite.

    Raises:
        FloatingPointError: if it holds NaN or infinity.
    """
    if not np.isfinite(added).all():
        raise FloatingPointError(
            f"the {what} of the weight regularization is not finite, and that of the data is. Look "
            "for NaN in the weights, or a norm that is not squared at weights of 0: add an epsilon "
            "under its root."
        )
