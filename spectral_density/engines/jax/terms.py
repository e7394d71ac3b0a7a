"""The loss of one output: its values, their weights, and the denominator, as Keras has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectral_density.engines.jax.keras_internals import mask_of, set_mask
from spectral_density.engines.keras_shared.objective import Term


class OutputTerm(NamedTuple):
    """One output of a batch with its loss, labels and weights."""

    number: int  # of the term among the objective's
    position: int  # of the output among the flattened outputs
    term: Term
    label: Any
    output: jax.Array
    mask: Any  # of the output, None for none
    sample_weight: Any


def weighted_sum(part: OutputTerm, count: Any) -> tuple[jax.Array, jax.Array]:
    """Return the weighted sum of a term's values over a batch, and its denominator."""
    values, of_values = term_values(part)
    if values.ndim == 0:
        return _weighted_scalar(part, values, count)
    weights, denominator = term_weights(part, values, of_values)
    if weights is None:
        return jnp.sum(values), denominator
    return jnp.sum(multiply_no_nan(values, weights)), denominator


def multiply_no_nan(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Return products that are 0 where the weight is: what is masked may be anything."""
    counted = weights != 0
    # The values are replaced before they are multiplied, so that no derivative sees them.
    return jnp.where(counted, jnp.where(counted, values, 0) * weights, 0)


def term_values(part: OutputTerm) -> tuple[jax.Array, Any]:
    """Return the values of a term's loss, and the mask that the loss gave them.

    In the wider of the loss's and the output's dtypes: a float32 loss must not round a float64
    model.
    """
    dtype = jnp.promote_types(jax.dtypes.canonicalize_dtype(part.term.dtype), part.output.dtype)
    output = part.output.astype(dtype)
    if part.mask is not None:
        set_mask(output, part.mask)
    values = part.term.values(jnp.asarray(part.label).astype(dtype), output)
    return values, mask_of(values)


def term_weights(
    part: OutputTerm, values: jax.Array, of_values: Any
) -> tuple[jax.Array | None, jax.Array]:
    """Return the weights of a term's values, of their rank or None for ones, and the denominator.

    As Keras does it (`keras.losses.Loss.__call__`), but before the division.
    """
    dtype = values.dtype
    # The output's mask says which steps are padding, that of the values which labels are ignored.
    masks = [jnp.asarray(mask).astype(bool) for mask in (part.mask, of_values) if mask is not None]
    denominator = jnp.asarray(values.size, dtype)
    weights = None
    if masks:
        mask = masks[0] if len(masks) == 1 else masks[0] & masks[1]
        weights = mask.astype(dtype)
        denominator *= jnp.sum(weights) / mask.size
    if part.sample_weight is not None:
        given = _match_rank(jnp.asarray(part.sample_weight).astype(dtype), values)
        weights = given if weights is None else given * _match_rank(weights, given)
    if weights is None:
        return None, denominator
    weights = jnp.broadcast_to(_match_rank(weights, values), values.shape)
    if part.term.reduction == "mean_with_sample_weight":
        denominator = jnp.sum(weights)
    return weights, denominator


def value_weights(part: OutputTerm, scales: Any) -> jax.Array:
    """Return the weight of each value of a term in the objective, of the shape of the values."""
    values, of_values = term_values(part)
    weights, _ = term_weights(part, values, of_values)
    scale = jnp.asarray(scales[part.number], values.dtype)
    return jnp.broadcast_to(scale if weights is None else scale * weights, values.shape)


def _weighted_scalar(part: OutputTerm, value: jax.Array, count: Any) -> tuple[Any, Any]:
    """Return the sum and the denominator of a loss that reduces by itself: a mean over the batch.

    Keras multiplies it with the weight of each example, as if all had the same loss.
    """
    count = jnp.asarray(count, value.dtype)
    reduction = part.term.reduction
    if part.sample_weight is None:
        return (value if reduction == "sum" else value * count), count
    total = jnp.sum(jnp.asarray(part.sample_weight).astype(value.dtype))
    return value * total, total if reduction == "mean_with_sample_weight" else count


def with_ranks_matched(values: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Give labels and outputs one rank where a last axis of size 1 is all that differs.

    `compile` does so around a function; labels (n,) and outputs (n, 1) would broadcast to (n, n).
    """

    def matched(y: jax.Array, output: jax.Array) -> Any:
        if y.ndim == output.ndim + 1 and y.shape[-1] == 1:
            output, y = _same_rank(output, y)
        elif output.ndim == y.ndim + 1 and output.shape[-1] == 1:
            y, output = _same_rank(y, output)
        return values(y, output)

    return matched


def _same_rank(short: jax.Array, long: jax.Array) -> tuple[jax.Array, jax.Array]:
    if short.ndim == 1:
        return short[..., None], long
    return short, jnp.squeeze(long, -1)


def _match_rank(weights: jax.Array, values: jax.Array) -> jax.Array:
    """Give per-example weights the rank of the values that they multiply."""
    if weights.ndim == values.ndim + 1 and weights.shape[-1] == 1:
        return jnp.squeeze(weights, -1)
    return weights.reshape(*weights.shape, *[1] * (values.ndim - weights.ndim))
