"""What a matrix needs of a loss, checked: the sentences that say what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spectral_density._warnings import warn
from spectral_density.engines.engine import Needs


def check_coefficients(needs: Needs, coefficients: np.ndarray) -> None:
    """Raise if a term of the loss counts less than nothing where it must not."""
    if needs.positive_weights and np.any(coefficients < 0):
        raise ValueError(
            "a loss weight is negative: an outer product of gradients cannot count less than "
            "nothing. Use loss_weights >= 0."
        )


def refuse_negative_weights(sample_weights: Sequence[Any]) -> None:
    """Raise if a sample weight is negative; None stands for none."""
    if any(np.any(np.asarray(part) < 0) for part in sample_weights if part is not None):
        raise ValueError(
            "a sample weight is negative: an outer product of gradients cannot count less than "
            "nothing. Use weights >= 0."
        )


def check_distribution(needs: Needs, endings: Sequence[Any], description: str) -> None:
    """Raise if an output has no distribution of its labels that is known."""
    if not endings or any(ending.distribution is None for ending in endings):
        raise ValueError(
            f"{needs.distribution} needs the distribution of the labels, and "
            f"{description} has none that is known here: use Keras's softmax or "
            "sigmoid cross-entropy (at logits, or with a model that ends in Keras's "
            'softmax or sigmoid) or mean squared error, or kind="empirical".'
        )


def check_example_losses(
    needs: Needs, shapes: Sequence[tuple[tuple[Any, ...], tuple[Any, ...]]]
) -> None:
    """Raise unless a loss has a value, or more, for each example.

    Args:
        needs: of the matrix.
        shapes: those of the values of each term, and of its output.
    """
    rows = set()
    for values, output in shapes:
        if not values or values[0] != output[0]:
            raise ValueError(
                f"{needs.example_losses} needs a loss of one value (or more) for each "
                f"example, got shape {values} for outputs of shape {output}."
            )
        rows.add(values[0])
    if len(rows) > 1:
        raise ValueError(
            f"the outputs have {sorted(rows)} rows: which of them belong to one example?"
        )


def warn_of_variables_beyond_outputs(names: Sequence[str]) -> None:
    """Warn where a user's loss reads variables itself, of which J knows nothing."""
    warn(
        f"loss(outputs, batch) reads variables beside the outputs: {', '.join(names)}. "
        "The matrix holds nothing of what they do there. Compute it in predict, or use "
        "HessianOperator."
    )
