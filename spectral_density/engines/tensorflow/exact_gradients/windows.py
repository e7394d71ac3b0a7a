"""Exact gradients of convolutions, pooling and morphological dilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from spectral_density.engines.tensorflow.exact_gradients.registry import (
    by_autodiff,
    gradient_of,
)
from spectral_density.engines.tensorflow.keras_internals import attributes_of, registered_gradient

# TensorFlow's own.
_CONVOLUTION = registered_gradient("Conv2D")


@gradient_of("Conv2D")
def convolution_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate dilated convolutions, whose gradients TensorFlow computes on GPUs only."""
    options = attributes_of(op, "strides", "dilations", "padding", "data_format")
    rates = options["dilations"]
    if options["data_format"] != "NHWC" or set(rates) == {1}:
        return _CONVOLUTION(op, grad)
    x, kernel = op.inputs
    sizes = [(tf.shape(kernel)[axis] - 1) * rates[axis + 1] + 1 for axis in (0, 1)]
    paddings = _paddings(op, {**options, "ksize": [1, *sizes, 1]}, [1, 2], x, grad)
    _, down, across, _ = options["strides"]

    def dilated(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        whole = tf.nn.with_space_to_batch(
            x if paddings is None else tf.pad(x, paddings),
            dilation_rate=rates[1:3],
            padding="VALID",
            op=lambda part, *_: tf.nn.conv2d(part, kernel, 1, "VALID"),
        )
        return whole[:, ::down, ::across]

    return by_autodiff(dilated, [x, kernel], [grad])


@gradient_of("MaxPoolGrad")
def max_pool_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of max-pooling where the output has the shape of the input.

    In a graph `MaxPoolGradGrad` may write its output over the gradient that it still reads from,
    if both have the same shape. Padded beforehand they have not.
    """
    return _max_pool_second_gradient(op, grad, "HW", tf.raw_ops.MaxPoolGradGrad)


@gradient_of("MaxPool3DGrad")
def max_pool_3d_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of max-pooling in three dimensions: see the one in two."""
    return _max_pool_second_gradient(op, grad, "DHW", tf.raw_ops.MaxPool3DGradGrad)


def _max_pool_second_gradient(op: Any, grad: Any, axes: str, compute: Any) -> list[Any]:
    x, y = op.inputs[:2]
    options = attributes_of(op, "ksize", "strides", "padding", "data_format")
    places = [options["data_format"].index(axis) for axis in axes]
    paddings = _paddings(op, options, places, x, y)
    # TensorFlow's second gradient drops explicit paddings, and fails.
    if options["padding"] == "EXPLICIT" or (paddings is not None and not _differ(x.shape, y.shape)):
        x = tf.pad(x, paddings, constant_values=x.dtype.min)
        grad = tf.pad(grad, paddings)
        options["padding"] = "VALID"
    return [None, None, compute(orig_input=x, orig_output=y, grad=grad, **options)]


def _differ(a: tf.TensorShape, b: tf.TensorShape) -> bool:
    if a.rank is None or b.rank is None:
        return False
    return any(None not in (m, n) and m != n for m, n in zip(a, b, strict=True))


def _paddings(
    op: Any, options: dict[str, Any], places: list[int], x: tf.Tensor, y: tf.Tensor
) -> Any | None:
    """Return the paddings of a pooling operation, (rank, 2), or None if it has none."""
    rank = len(options["ksize"])
    if options["padding"] == "VALID":
        return None
    if options["padding"] == "EXPLICIT":
        return tf.reshape(tf.constant(op.get_attr("explicit_paddings"), tf.int32), [rank, 2])
    before = [tf.constant(0)] * rank
    after = [tf.constant(0)] * rank
    shape, pooled = tf.shape(x), tf.shape(y)
    for place in places:
        covered = (pooled[place] - 1) * options["strides"][place] + options["ksize"][place]
        total = tf.maximum(covered - shape[place], 0)
        before[place], after[place] = total // 2, total - total // 2
    return tf.stack([before, after], axis=1)


@gradient_of("MaxPoolGradWithArgmax")
def max_pool_with_argmax_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of max-pooling with argmax, which has none registered."""
    _, outer, argmax = op.inputs
    if op.get_attr("include_batch_in_index"):
        picked = tf.gather(tf.reshape(grad, [-1]), tf.reshape(argmax, [-1]))
    else:
        batch = tf.shape(grad)[0]
        picked = tf.gather(
            tf.reshape(grad, [batch, -1]), tf.reshape(argmax, [batch, -1]), batch_dims=1
        )
    return [None, tf.reshape(picked, tf.shape(outer)), None]


@gradient_of("FractionalAvgPoolGrad")
def fractional_average_pool_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of fractional average pooling, which has none registered."""
    _, _, rows, columns = op.inputs
    overlapping = op.get_attr("overlapping")
    shape = tf.shape(grad)
    down = _window_means(rows, shape[1], overlapping, grad.dtype)
    across = _window_means(columns, shape[2], overlapping, grad.dtype)
    return [None, tf.einsum("ih,bhwc,jw->bijc", down, grad, across), None, None]


def _window_means(starts: tf.Tensor, size: Any, overlapping: bool, dtype: Any) -> tf.Tensor:
    starts = _of_unknown_length(starts)
    places = tf.range(tf.cast(size, starts.dtype))[tf.newaxis]
    first, last = starts[:-1, tf.newaxis], starts[1:, tf.newaxis]
    within = tf.cast((places >= first) & (places < last + int(overlapping)), dtype)
    return within / tf.reduce_sum(within, axis=1, keepdims=True)


def _of_unknown_length(starts: tf.Tensor) -> tf.Tensor:
    """Hide the static length of window boundaries: TensorFlow's is one too small."""
    return tf.raw_ops.PlaceholderWithDefault(input=starts, shape=[None])


@gradient_of("FractionalMaxPoolGrad")
def fractional_max_pool_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of fractional max-pooling, which has none registered."""
    x, _, outer, rows, columns = op.inputs
    overlapping = op.get_attr("overlapping")

    def windows(image: tf.Tensor, fill: Any) -> tf.Tensor:
        """Return all entries of each window, (batch, rows, columns, channels, entries)."""
        down, in_rows = _window_places(rows, tf.shape(image)[1], overlapping)
        across, in_columns = _window_places(columns, tf.shape(image)[2], overlapping)
        image = tf.gather(tf.gather(image, down, axis=1), across, axis=3)
        inside = in_rows[:, :, tf.newaxis, tf.newaxis] & in_columns
        image = tf.where(inside[tf.newaxis, ..., tf.newaxis], image, fill)
        shape = tf.shape(image)
        return tf.reshape(
            tf.transpose(image, [0, 1, 3, 5, 2, 4]),
            [shape[0], shape[1], shape[3], shape[5], shape[2] * shape[4]],
        )

    largest = tf.argmax(windows(x, x.dtype.min), axis=-1)
    picked = tf.gather(windows(grad, tf.zeros([], grad.dtype)), largest, batch_dims=4)
    return [None, None, tf.reshape(picked, tf.shape(outer)), None, None]


def _window_places(starts: tf.Tensor, size: Any, overlapping: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the places in each window and which of them are in it, both (windows, widest)."""
    starts = _of_unknown_length(starts)
    widths = starts[1:] - starts[:-1] + int(overlapping)
    size = tf.cast(size, starts.dtype)
    steps = tf.range(tf.reduce_max(widths))
    places = starts[:-1, tf.newaxis] + steps
    inside = (steps < widths[:, tf.newaxis]) & (places < size)
    return tf.minimum(places, size - 1), inside


@gradient_of("Dilation2DBackpropInput")
def dilation_input_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of dilation in the input, which has none registered."""
    windows = _dilation_windows(op)
    picked = tf.reduce_sum(_largest(op, windows) * windows(grad, 0), axis=3)
    return [None, None, picked]


@gradient_of("Dilation2DBackpropFilter")
def dilation_filter_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of dilation in the filter, which has none registered."""
    flat = tf.reshape(grad, [-1, tf.shape(grad)[-1]])
    return [None, None, tf.reduce_sum(_largest(op, _dilation_windows(op)) * flat, axis=3)]


def _dilation_windows(op: Any) -> Callable[[tf.Tensor, Any], tf.Tensor]:
    """Return a function that gives all entries of each window: (batch, h, w, entries, channels)."""
    filters, outer = op.inputs[1:]
    strides, rates = op.get_attr("strides"), op.get_attr("rates")
    kernel, pooled = tf.shape(filters), tf.shape(outer)

    def windows(image: tf.Tensor, fill: Any) -> tf.Tensor:
        paddings, places = [[0, 0]], []
        for axis in (1, 2):
            reach = (kernel[axis - 1] - 1) * rates[axis] + 1
            covered = (pooled[axis] - 1) * strides[axis] + reach
            total = tf.maximum(covered - tf.shape(image)[axis], 0)
            before = total // 2 if op.get_attr("padding") == b"SAME" else 0 * total
            paddings.append([before, total - before])
            starts = tf.range(pooled[axis]) * strides[axis]
            places.append(starts[:, tf.newaxis] + tf.range(kernel[axis - 1]) * rates[axis])
        image = tf.pad(image, [*paddings, [0, 0]], constant_values=tf.cast(fill, image.dtype))
        image = tf.gather(tf.gather(image, places[0], axis=1), places[1], axis=3)
        image = tf.transpose(image, [0, 1, 3, 2, 4, 5])
        shape = tf.shape(image)
        return tf.reshape(image, tf.concat([shape[:3], [-1], shape[5:]], 0))

    return windows


def _largest(op: Any, windows: Callable[[tf.Tensor, Any], tf.Tensor]) -> tf.Tensor:
    """Return 1 where a window of a dilation is largest, and 0 elsewhere."""
    x, filters = op.inputs[:2]
    values = windows(x, x.dtype.min) + tf.reshape(filters, [-1, tf.shape(filters)[-1]])
    return tf.one_hot(tf.argmax(values, axis=3), tf.shape(values)[3], axis=3, dtype=values.dtype)
