"""The loss of one output: its values, their weights, and the denominator, as Keras has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from spectral_density.engines.keras_shared.objective import Term
from spectral_density.engines.tensorflow.keras_internals import mask_of


class OutputTerm(NamedTuple):
    """One output of a batch with its loss, labels and weights."""

    number: int  # of the term among the objective's
    position: int  # of the output among the flattened outputs
    term: Term
    label: Any
    output: tf.Tensor
    sample_weight: Any


def weighted_sum(part: OutputTerm, count: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the weighted sum of a term's values over a batch, and its denominator."""
    values = term_values(part)
    if values.shape.rank == 0:
        return _weighted_scalar(part.term, values, part.sample_weight, count)
    weights, denominator = term_weights(part, values)
    if weights is None:
        return tf.reduce_sum(values), denominator
    # A masked value may be anything, NaN included, and counts for nothing.
    return tf.reduce_sum(tf.math.multiply_no_nan(values, weights)), denominator


def term_values(part: OutputTerm) -> tf.Tensor:
    """Return the values of a term's loss, in the wider of the loss's and the output's dtypes.

    A float32 loss must not round a float64 model.
    """
    dtype = max(tf.as_dtype(part.term.dtype), part.output.dtype, key=lambda d: d.size)
    return part.term.values(tf.cast(part.label, dtype), tf.cast(part.output, dtype))


def term_weights(part: OutputTerm, values: tf.Tensor) -> tuple[tf.Tensor | None, tf.Tensor]:
    """Return the weights of a term's values, of their rank or None for ones, and the denominator.

    As Keras does it (`keras.losses.Loss.__call__`), but before the division.
    """
    dtype = values.dtype
    # The output's mask says which steps are padding, that of the values which labels are ignored.
    found = [mask_of(tensor) for tensor in (part.output, values)]
    masks = [tf.cast(mask, tf.bool) for mask in found if mask is not None]
    denominator = tf.cast(tf.size(values), dtype)
    weights = None
    if masks:
        mask = masks[0] if len(masks) == 1 else masks[0] & masks[1]
        weights = tf.cast(mask, dtype)
        denominator *= tf.reduce_sum(weights) / tf.cast(tf.size(mask), dtype)
    if part.sample_weight is not None:
        given = _match_rank(tf.cast(part.sample_weight, dtype), values)
        weights = given if weights is None else given * _match_rank(weights, given)
    if weights is None:
        return None, denominator
    weights = _match_rank(weights, values)
    if part.term.reduction == "mean_with_sample_weight":
        denominator = tf.reduce_sum(weights)
    return weights, denominator


def _weighted_scalar(
    term: Term, value: tf.Tensor, sample_weight: Any, count: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the sum and the denominator of a loss that reduces by itself: a mean over the batch.

    Keras multiplies it with the weight of each example, as if all had the same loss.
    """
    count = tf.cast(count, value.dtype)
    if sample_weight is None:
        return (value if term.reduction == "sum" else value * count), count
    total = tf.reduce_sum(tf.cast(sample_weight, value.dtype))
    return value * total, total if term.reduction == "mean_with_sample_weight" else count


def with_ranks_matched(
    values: Callable[[Any, Any], tf.Tensor],
) -> Callable[[Any, Any], tf.Tensor]:
    """Give labels and outputs one rank where a last axis of size 1 is all that differs.

    `compile` does so around a function; labels (n,) and outputs (n, 1) would broadcast to (n, n).
    """

    def matched(y: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
        if y.shape.rank == output.shape.rank + 1 and y.shape[-1] == 1:
            output, y = _same_rank(output, y)
        elif output.shape.rank == y.shape.rank + 1 and output.shape[-1] == 1:
            y, output = _same_rank(y, output)
        return values(y, output)

    return matched


def _same_rank(short: tf.Tensor, long: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    if short.shape.rank == 1:
        return tf.expand_dims(short, -1), long
    return short, tf.squeeze(long, -1)


def _match_rank(weights: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Give per-example weights the rank of the values that they multiply."""
    if weights.shape.rank == values.shape.rank + 1 and weights.shape[-1] == 1:
        return tf.squeeze(weights, -1)
    while weights.shape.rank < values.shape.rank:
        weights = tf.expand_dims(weights, -1)
    return weights
