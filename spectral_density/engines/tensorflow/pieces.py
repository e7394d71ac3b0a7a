"""Operations with kinks, computed again on the piece that they were on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from spectral_density.engines.tensorflow.keras_internals import attributes_of

_raw = tf.raw_ops

Piece = Callable[[Any, Sequence[tf.Tensor], Sequence[tf.Tensor]], list[tf.Tensor]]


def _relu(operation: Any, now: Sequence[tf.Tensor], held: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    return [_raw.ReluGrad(gradients=now[0], features=held[0])]


def _relu6(operation: Any, now: Sequence[tf.Tensor], held: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    moved = _raw.Relu6Grad(gradients=now[0] - held[0], features=held[0])
    return [_raw.Relu6(features=held[0]) + moved]


def _leaky_relu(
    operation: Any, now: Sequence[tf.Tensor], held: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    alpha = operation.get_attr("alpha")
    return [_raw.LeakyReluGrad(gradients=now[0], features=held[0], alpha=alpha)]


def _abs(operation: Any, now: Sequence[tf.Tensor], held: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    return [now[0] * tf.sign(held[0])]


def _maximum(
    operation: Any, now: Sequence[tf.Tensor], held: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    return [tf.where(held[0] >= held[1], now[0], now[1])]


def _minimum(
    operation: Any, now: Sequence[tf.Tensor], held: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    return [tf.where(held[0] <= held[1], now[0], now[1])]


def _clip(operation: Any, now: Sequence[tf.Tensor], held: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    value, low, high = held
    above = tf.where(value > high, now[2], now[0])
    return [tf.where(value < low, now[1], above)]


def _extreme(
    operation: Any, now: Sequence[tf.Tensor], held: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    """Return the mean of the elements that were the largest (or smallest) along the axes."""
    reduce = tf.reduce_max if operation.type == "Max" else tf.reduce_min
    keep_dims = operation.get_attr("keep_dims")
    value, axes = held[0], now[1]
    attained = tf.cast(tf.equal(value, reduce(value, axes, keepdims=True)), value.dtype)
    return [
        tf.reduce_sum(attained * now[0], axes, keepdims=keep_dims)
        / tf.reduce_sum(attained, axes, keepdims=keep_dims)
    ]


def _max_pool(
    operation: Any, now: Sequence[tf.Tensor], held: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    options = attributes_of(operation, "ksize", "strides", "padding", "data_format")
    if options["data_format"] == "NHWC" and options["padding"] in ("SAME", "VALID"):
        del options["data_format"]
        places = _raw.MaxPoolWithArgmax(input=held[0], include_batch_in_index=True, **options)[1]
        return [tf.gather(tf.reshape(now[0], [-1]), places)]
    # The kernel writes into its last input where shapes agree: it must not be the only user.
    options["explicit_paddings"] = operation.get_attr("explicit_paddings")
    pooled = _raw.MaxPool(input=held[0], **options)
    kept = tf.identity(now[0])
    found = _raw.MaxPoolGradGrad(
        orig_input=held[0],
        orig_output=pooled,
        grad=kept,
        **{key: value for key, value in options.items() if key != "explicit_paddings"},
    )
    return [found]


def _max_pool_3d(
    operation: Any, now: Sequence[tf.Tensor], held: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    options = attributes_of(operation, "ksize", "strides", "padding", "data_format")
    pooled = _raw.MaxPool3D(input=held[0], **options)
    return [_raw.MaxPool3DGradGrad(orig_input=held[0], orig_output=pooled, grad=now[0], **options)]


def _top_k(operation: Any, now: Sequence[tf.Tensor], held: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    _, places = tf.math.top_k(held[0], now[1], sorted=operation.get_attr("sorted"))
    rank = now[0].shape.rank
    values = tf.gather(now[0], places, batch_dims=rank - 1, axis=rank - 1)
    return [values, tf.cast(places, operation.outputs[1].dtype)]


# Operations that are smooth on each piece: computed again on the piece that they were on.
PIECES: dict[str, Piece] = {
    "Relu": _relu,
    "Relu6": _relu6,
    "LeakyRelu": _leaky_relu,
    "Abs": _abs,
    "Maximum": _maximum,
    "Minimum": _minimum,
    "ClipByValue": _clip,
    "Max": _extreme,
    "Min": _extreme,
    "MaxPool": _max_pool,
    "MaxPool3D": _max_pool_3d,
    "TopKV2": _top_k,
}
