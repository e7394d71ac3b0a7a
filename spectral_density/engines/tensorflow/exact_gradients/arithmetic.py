"""Exact gradients of activations, losses, powers and products."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from spectral_density.engines.tensorflow.exact_gradients.registry import by_autodiff, gradient_of
from spectral_density.engines.tensorflow.keras_internals import attributes_of, registered_gradient

# TensorFlow's own.
_SOFTMAX_CROSS_ENTROPY = registered_gradient("SoftmaxCrossEntropyWithLogits")
_POWER = registered_gradient("Pow")


@gradient_of("SoftsignGrad")
def softsign_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of softsign, which has none registered."""
    outer, x = op.inputs
    slope = tf.math.reciprocal(1 + tf.abs(x))
    return [grad * slope**2, -2 * grad * outer * tf.sign(x) * slope**3]


@gradient_of("IsotonicRegression")
def isotonic_regression_gradient(op: Any, grad: tf.Tensor, _: Any) -> list[Any]:
    """Differentiate isotonic regression of tensors of any rank; TensorFlow's is for matrices."""
    segments = op.outputs[1]
    length = tf.shape(segments)[-1]
    flat = tf.reshape(segments, [-1, length])
    flat = tf.reshape(flat + length * tf.range(tf.shape(flat)[0])[:, tf.newaxis], [-1])
    means = tf.math.unsorted_segment_mean(tf.reshape(grad, [-1]), flat, tf.size(flat))
    return [tf.reshape(tf.gather(means, flat), tf.shape(grad))]


@gradient_of("LRNGrad")
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
    return [*by_autodiff(gradient, [outer, x], [grad]), None]


@gradient_of("SoftmaxCrossEntropyWithLogits")
def softmax_cross_entropy_gradient(op: Any, grad_loss: Any, grad_backprop: Any) -> list[Any]:
    """Differentiate the cross-entropy in its labels a second time.

    The second output is softmax(logits) - labels, the gradient in the logits. TensorFlow's
    derivative of it leaves out the labels.
    """
    of_logits, of_labels = _SOFTMAX_CROSS_ENTROPY(op, grad_loss, grad_backprop)
    return [of_logits, of_labels if grad_backprop is None else of_labels - grad_backprop]


@gradient_of("Pow")
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


@gradient_of("Cumprod")
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


@gradient_of("SegmentProd", "UnsortedSegmentProd")
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
