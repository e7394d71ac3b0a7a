"""Gradient functions of operations for which TensorFlow has no second derivative, or a wrong one.

TensorFlow differentiates an operation by a function registered under its name. Where that of a
gradient is missing, is declared not differentiable or is wrong, the one here is exact.
`keras_internals` registers them while this package traces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.framework import ops

from spectral_density.engines.tensorflow.tf_graphs import attributes_of

# TensorFlow's own.
_SOFTMAX_CROSS_ENTROPY = ops.gradient_registry.lookup("SoftmaxCrossEntropyWithLogits")
_POWER = ops.gradient_registry.lookup("Pow")
_CONVOLUTION = ops.gradient_registry.lookup("Conv2D")

EXACT: dict[str, Callable[..., Any]] = {}
"""Gradient functions by the name of the operation that they differentiate."""


def _gradient_of(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        EXACT.update(dict.fromkeys(names, function))
        return function

    return register


def _linear(
    compute: Callable[[], Any], inputs: Sequence[tf.Tensor], adjoint: Callable[..., Any], name: str
) -> Any:
    """Return `compute()`, a linear function of `inputs`, recorded with its adjoint.

    For operations registered as not differentiable: tapes keep none of their inputs.
    """
    with record.stop_recording():
        outputs = compute()
    record.record_operation(name, tf.nest.flatten(outputs), list(inputs), adjoint)
    return outputs


def _by_autodiff(
    function: Callable[..., Any], inputs: Sequence[tf.Tensor], gradients: Sequence[Any]
) -> list[tf.Tensor]:
    """Return the gradient of an equal function in operations with all their derivatives."""
    # Watched in the graph that is current, which need not be that of the inputs.
    inputs = [tf.identity(tensor) for tensor in inputs]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(inputs)
        outputs = function(*inputs)
    return tape.gradient(
        outputs,
        inputs,
        output_gradients=gradients,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )


# Images ----------------------------------------------------------------------------------------


@_gradient_of("ResizeBilinear")
def resize_bilinear_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate bilinear resizing, whose gradient is registered as not differentiable."""
    image = op.inputs[0]
    options = attributes_of(op, "align_corners", "half_pixel_centers")
    size = tf.shape(grad)[1:3]
    resized = _linear(
        lambda: tf.raw_ops.ResizeBilinearGrad(grads=grad, original_image=image, **options),
        [grad],
        lambda again: [tf.raw_ops.ResizeBilinear(images=again, size=size, **options)],
        "ResizeBilinearGrad",
    )
    return [resized, None]


_RESIZE: dict[str, Any] = {
    "ResizeBilinear": tf.raw_ops.ResizeBilinear,
    "ResizeBicubic": tf.raw_ops.ResizeBicubic,
    "ResizeNearestNeighbor": tf.raw_ops.ResizeNearestNeighbor,
}


@_gradient_of("ResizeBilinearGrad", "ResizeBicubicGrad", "ResizeNearestNeighborGrad")
def resize_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradients of resizing: linear, with the resizing itself as the adjoint.

    That of bilinear resizing is needed within nested functions alone.
    """
    options = attributes_of(op, "align_corners", "half_pixel_centers")
    size = tf.shape(op.inputs[0])[1:3]
    resize = _RESIZE[op.type.removesuffix("Grad")]
    return [resize(images=grad, size=size, **options), None]


@_gradient_of("ScaleAndTranslate")
def scale_and_translate_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate resizing with antialiasing, for images that are not float32 as well.

    It computes in float32; TensorFlow's own gradient takes images of that type only.
    """
    image, _, scale, translation = op.inputs
    pulled = tf.raw_ops.ScaleAndTranslateGrad(
        grads=grad,
        original_image=tf.cast(image, grad.dtype),
        scale=scale,
        translation=translation,
        **attributes_of(op, "kernel_type", "antialias"),
    )
    return [tf.cast(pulled, image.dtype), None, None, None]


@_gradient_of("ScaleAndTranslateGrad")
def scale_and_translate_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of resizing with antialiasing, which has none registered."""
    _, _, scale, translation = op.inputs
    resized = tf.raw_ops.ScaleAndTranslate(
        images=grad,
        size=tf.shape(op.inputs[0])[1:3],
        scale=scale,
        translation=translation,
        **attributes_of(op, "kernel_type", "antialias"),
    )
    return [resized, None, None, None]


@_gradient_of("CropAndResizeGradImage")
def crop_and_resize_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of crops in the image, which has none registered.

    Its derivative in the boxes is TensorFlow's own, which has none itself.
    """
    crops, boxes, box_indices, _ = op.inputs
    cropped = tf.raw_ops.CropAndResize(
        image=grad,
        boxes=boxes,
        box_ind=box_indices,
        crop_size=tf.shape(crops)[1:3],
        **attributes_of(op, "method"),
    )
    of_boxes = tf.raw_ops.CropAndResizeGradBoxes(
        grads=crops, image=grad, boxes=boxes, box_ind=box_indices
    )
    return [cropped, of_boxes, None, None]


# Convolutions ----------------------------------------------------------------------------------


@_gradient_of("Conv2D")
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

    return _by_autodiff(dilated, [x, kernel], [grad])


# Activations and normalizations ----------------------------------------------------------------


@_gradient_of("SoftsignGrad")
def softsign_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of softsign, which has none registered."""
    outer, x = op.inputs
    slope = tf.math.reciprocal(1 + tf.abs(x))
    return [grad * slope**2, -2 * grad * outer * tf.sign(x) * slope**3]


@_gradient_of("IsotonicRegression")
def isotonic_regression_gradient(op: Any, grad: tf.Tensor, _: Any) -> list[Any]:
    """Differentiate isotonic regression of tensors of any rank; TensorFlow's is for matrices."""
    segments = op.outputs[1]
    length = tf.shape(segments)[-1]
    flat = tf.reshape(segments, [-1, length])
    flat = tf.reshape(flat + length * tf.range(tf.shape(flat)[0])[:, tf.newaxis], [-1])
    means = tf.math.unsorted_segment_mean(tf.reshape(grad, [-1]), flat, tf.size(flat))
    return [tf.reshape(tf.gather(means, flat), tf.shape(grad))]


@_gradient_of("LRNGrad")
def local_response_normalization_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of local response normalization, which has none registered."""
    options = attributes_of(op, "depth_radius", "bias", "alpha", "beta")
    beta = options["beta"]

    def gradient(outer: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        channels = tf.shape(x)[-1]
        radius = tf.minimum(options["depth_radius"], channels)
        near = tf.linalg.band_part(tf.ones([channels, channels], x.dtype), radius, radius)
        norm = options["bias"] + options["alpha"] * tf.tensordot(x * x, near, 1)
        pulled = tf.tensordot(outer * x * norm ** (-beta - 1), near, 1)
        return outer * norm**-beta - 2 * options["alpha"] * beta * x * pulled

    # It is written in the input alone, so that nothing is left for the output.
    outer, x = op.inputs[:2]
    return [*_by_autodiff(gradient, [outer, x], [grad]), None]


@_gradient_of("SoftmaxCrossEntropyWithLogits")
def softmax_cross_entropy_gradient(op: Any, grad_loss: Any, grad_backprop: Any) -> list[Any]:
    """Differentiate the cross-entropy in its labels a second time.

    The second output is softmax(logits) - labels, the gradient in the logits. TensorFlow's
    derivative of it leaves out the labels.
    """
    of_logits, of_labels = _SOFTMAX_CROSS_ENTROPY(op, grad_loss, grad_backprop)
    return [of_logits, of_labels if grad_backprop is None else of_labels - grad_backprop]


# Powers and products ---------------------------------------------------------------------------


@_gradient_of("Pow")
def power_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate powers where exponents are zero.

    The derivative of x^1 is 1 x^0, and TensorFlow's of that 0 x^-1, which is NaN for x = 0.
    """
    x, exponent = op.inputs
    of_x, of_exponent = _POWER(op, grad)
    static = tf.get_static_value(exponent)
    if static is None or (static == 0).any():
        base = tf.math.conj(tf.where(exponent == 0, tf.ones([], x.dtype), x))
        factor = tf.math.conj(exponent)
        of_x = _summed_like(x, exponent, grad * factor * tf.pow(base, factor - 1))
    return [of_x, of_exponent]


def _summed_like(x: tf.Tensor, other: tf.Tensor, grad: tf.Tensor) -> tf.Tensor:
    """Sum a gradient over the axes along which `x` was broadcast."""
    shape = tf.shape(x)
    axes, _ = tf.raw_ops.BroadcastGradientArgs(s0=shape, s1=tf.shape(other))
    return tf.reshape(tf.reduce_sum(grad, axes), shape)


@_gradient_of("Cumprod")
def cumulative_product_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate cumulative products without dividing by their factors.

    TensorFlow divides, and takes x / 0 for 0. The gradient of `tf.reduce_prod` is made of
    cumulative products, so that its own derivative comes from here as well.
    """
    x, axis = op.inputs
    options = attributes_of(op, "exclusive", "reverse")
    order = _first(axis, x)
    back = tf.math.invert_permutation(order)
    x, grad = tf.transpose(x, order), tf.transpose(grad, order)
    if options["reverse"]:
        x, grad = x[::-1], grad[::-1]
    if options["exclusive"]:
        grad = _moved(grad, 1)
    # The k-th entry is x_0 ... x_{k-1} s_k, with s_k = g_k + x_{k+1} s_{k+1}.
    conjugate = tf.math.conj(x)
    before = tf.math.cumprod(conjugate, exclusive=True)
    result = before * _linear_recurrence(_moved(conjugate, 1), grad)
    if options["reverse"]:
        result = result[::-1]
    return [tf.transpose(result, back), None]


def _first(axis: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Return the permutation that brings an axis to the front."""
    rank, static = x.shape.rank, tf.get_static_value(axis)
    if rank is not None and static is not None:
        place = int(static) % rank
        return tf.constant([place, *(i for i in range(rank) if i != place)], tf.int32)
    place = tf.math.floormod(tf.cast(axis, tf.int32), tf.rank(x))
    return tf.concat([[place], tf.range(place), tf.range(place + 1, tf.rank(x))], 0)


def _moved(x: tf.Tensor, steps: Any) -> tf.Tensor:
    """Return x_{k + steps}, with zeros where there is none."""
    return tf.concat([x[steps:], tf.zeros_like(x[:steps])], 0)


def _linear_recurrence(factors: tf.Tensor, terms: tf.Tensor) -> tf.Tensor:
    """Return s with s_k = terms_k + factors_k s_{k+1}, from the last one, by doubling."""

    def double(steps: Any, a: tf.Tensor, b: tf.Tensor) -> tuple[Any, tf.Tensor, tf.Tensor]:
        return 2 * steps, a * _moved(a, steps), b + a * _moved(b, steps)

    length = factors.shape[0]
    if length is not None:
        steps = 1
        while steps < length:
            steps, factors, terms = double(steps, factors, terms)
        return terms
    _, _, terms = tf.while_loop(
        lambda steps, a, b: steps < tf.shape(a)[0],
        double,
        (tf.constant(1), factors, terms),
        shape_invariants=(tf.TensorShape([]), factors.shape, terms.shape),
    )
    return terms


@_gradient_of("SegmentProd", "UnsortedSegmentProd")
def segment_product_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate products over segments without dividing by their factors, as TensorFlow does.

    Each derivative is the product of the factors before and after, within the segment.
    """
    data, segments = op.inputs[:2]
    flat = tf.reshape(segments, [-1])
    rows = tf.reshape(data, tf.concat([[-1], tf.shape(data)[tf.rank(segments) :]], 0))
    order = tf.argsort(flat, stable=True)
    x, sorted_segments = tf.math.conj(tf.gather(rows, order)), tf.gather(flat, order)
    after = _products_after(x, sorted_segments)
    before = _products_after(x[::-1], sorted_segments[::-1])[::-1]
    others = tf.gather(before * after, tf.math.invert_permutation(order))
    pulled = tf.gather(grad, tf.maximum(flat, 0))
    pulled = tf.where(_like_rows(flat >= 0, pulled), pulled, tf.zeros_like(pulled))
    return [tf.reshape(pulled * others, tf.shape(data)), *[None] * (len(op.inputs) - 1)]


def _products_after(x: tf.Tensor, segments: tf.Tensor) -> tf.Tensor:
    """Return for each row the product of those after it in its segment."""
    last = tf.concat([segments[1:] != segments[:-1], tf.ones_like(segments[:1], tf.bool)], 0)
    last = _like_rows(last, x)
    following = tf.where(last, tf.zeros_like(x), _moved(x, 1))
    return _linear_recurrence(following, tf.where(last, tf.ones_like(x), tf.zeros_like(x)))


def _like_rows(flags: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    ones = tf.ones([tf.rank(x) - 1], tf.int32)
    return tf.reshape(flags, tf.concat([[-1], ones], 0))


# Pooling ---------------------------------------------------------------------------------------


@_gradient_of("MaxPoolGrad")
def max_pool_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of max-pooling where the output has the shape of the input.

    In a graph `MaxPoolGradGrad` may write its output over the gradient that it still reads from,
    if both have the same shape. Padded beforehand they have not.
    """
    return _max_pool_second_gradient(op, grad, "HW", tf.raw_ops.MaxPoolGradGrad)


@_gradient_of("MaxPool3DGrad")
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


@_gradient_of("MaxPoolGradWithArgmax")
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


@_gradient_of("FractionalAvgPoolGrad")
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


@_gradient_of("FractionalMaxPoolGrad")
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


@_gradient_of("Dilation2DBackpropInput")
def dilation_input_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of dilation in the input, which has none registered."""
    windows = _dilation_windows(op)
    picked = tf.reduce_sum(_largest(op, windows) * windows(grad, 0), axis=3)
    return [None, None, picked]


@_gradient_of("Dilation2DBackpropFilter")
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


# Sparse and ragged tensors ---------------------------------------------------------------------


_SPARSE_SEGMENTS: dict[str, Any] = {
    "SparseSegmentSum": tf.raw_ops.SparseSegmentSumWithNumSegments,
    "SparseSegmentMean": tf.raw_ops.SparseSegmentMeanWithNumSegments,
    "SparseSegmentSqrtN": tf.raw_ops.SparseSegmentSqrtNWithNumSegments,
}


@_gradient_of("SparseSegmentSumGrad", "SparseSegmentMeanGrad", "SparseSegmentSqrtNGrad")
def sparse_segments_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradients of sums over segments of rows, which have none registered.

    `tf.nn.embedding_lookup_sparse` is made of these sums.
    """
    outer, indices, segments, _ = op.inputs
    summed = _SPARSE_SEGMENTS[op.type.removesuffix("Grad")](
        data=grad, indices=indices, segment_ids=segments, num_segments=tf.shape(outer)[0]
    )
    return [summed, None, None, None]


@_gradient_of("SparseSegmentSumGradV2", "SparseSegmentMeanGradV2", "SparseSegmentSqrtNGradV2")
def sparse_segments_second_gradient_v2(op: Any, grad: tf.Tensor, _: Any) -> list[Any]:
    """Differentiate the same gradients where they are sparse: rows of the indices that occur."""
    outer, indices, segments, _ = op.inputs
    places = tf.searchsorted(op.outputs[1], indices)
    summed = _SPARSE_SEGMENTS[op.type.removesuffix("GradV2")](
        data=grad, indices=places, segment_ids=segments, num_segments=tf.shape(outer)[0]
    )
    return [summed, None, None, None]


@_gradient_of("SparseAdd")
def sparse_add_gradient(op: Any, _: Any, grad: tf.Tensor, __: Any) -> list[Any]:
    """Differentiate sums of sparse tensors, whose gradient is registered as not differentiable."""
    first, second, total = op.inputs[0], op.inputs[3], op.outputs[0]
    of_first, of_second = _linear(
        lambda: list(
            tf.raw_ops.SparseAddGrad(
                backprop_val_grad=grad, a_indices=first, b_indices=second, sum_indices=total
            )
        ),
        [grad],
        lambda *again: [_scattered(again, (first, second), total)],
        "SparseAddGrad",
    )
    return [None, of_first, None, None, of_second, None, None]


@_gradient_of("SparseAddGrad")
def sparse_add_second_gradient(op: Any, *grads: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of sums of sparse tensors within nested functions."""
    _, first, second, total = op.inputs
    return [_scattered(grads, (first, second), total), None, None, None]


def _scattered(
    values: Sequence[tf.Tensor], indices: Sequence[tf.Tensor], total: tf.Tensor
) -> tf.Tensor:
    """Return the sum of sparse values at the indices in `total`, which may lack some."""
    ranks = _ranked(total, *indices)
    found = tf.concat(ranks[1:], 0)
    if tf.get_static_value(tf.shape(total)[0]) == 0:
        return tf.zeros([0], values[0].dtype)
    places = tf.minimum(tf.searchsorted(ranks[0], found), tf.shape(ranks[0])[0] - 1)
    present = tf.cast(tf.gather(ranks[0], places) == found, values[0].dtype)
    return tf.math.unsorted_segment_sum(
        tf.concat(values, 0) * present, places, tf.shape(ranks[0])[0]
    )


def _ranked(*indices: tf.Tensor) -> list[tf.Tensor]:
    """Return one number for each row of indices, in the same order."""
    sizes = tf.reduce_max(tf.concat(indices, 0), axis=0) + 1
    strides = tf.math.cumprod(sizes, exclusive=True, reverse=True)
    return [tf.reduce_sum(each * strides, axis=1) for each in indices]


@_gradient_of("SparseSoftmax")
def sparse_softmax_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the softmax of a sparse tensor; TensorFlow's gradient cannot be, once more."""
    values = op.outputs[0]
    _, rows = tf.unique(_ranked(op.inputs[0][:, :-1])[0])
    sums = tf.math.unsorted_segment_sum(grad * values, rows, tf.size(rows))
    return [None, (grad - tf.gather(sums, rows)) * values, None]


@_gradient_of("SparseSliceGrad")
def sparse_slice_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of slices of sparse tensors, which has none registered."""
    _, of_input, start, of_output = op.inputs
    available, wanted = _ranked(of_input, of_output + start)
    return [tf.gather(grad, tf.searchsorted(available, wanted)), None, None, None]


@_gradient_of("SparseFillEmptyRowsGrad", "RaggedFillEmptyRowsGrad")
def fill_empty_rows_second_gradient(op: Any, grad: tf.Tensor, of_default: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of filling empty rows, which has none registered."""
    places, outer = op.inputs
    filled = tf.fill(tf.shape(outer), of_default)
    return [None, tf.tensor_scatter_nd_update(filled, places[:, tf.newaxis], grad)]


@_gradient_of("RaggedTensorToVariantGradient")
def ragged_to_variant_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of `tf.map_fn` over ragged rows, which has none registered."""
    splits = op.inputs[1]
    rows = tf.raw_ops.RaggedTensorToVariant(
        rt_nested_splits=[splits], rt_dense_values=grad, batched_input=True
    )
    return [rows, None, None]
