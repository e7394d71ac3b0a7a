"""Labels drawn from a model's own distribution, and outer products of gradients at its outputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from spectral_density.engines.keras_shared.endings import OutputEnding
from spectral_density.engines.tensorflow.output_loss import (
    OutputsOfBatch,
    num_averaged,
    value_weights,
)
from spectral_density.engines.tensorflow.terms import OutputTerm, term_values
from spectral_density.engines.tensorflow.traced import note
from spectral_density.linalg.arguments import stream

# Random streams: a key of this file's own.
_KEY = 7049
_PHILOX = 1  # TensorFlow's number for the counter-based generator
_PER_COUNT = 4  # float32 numbers that one step of its counter gives


def sampled_gradients(
    outputs: OutputsOfBatch, scales: tf.Tensor, num_samples: int, seed: int
) -> list[tf.Tensor]:
    """Return the gradients at each output of the losses of labels drawn for each example.

    As `OutputsOfBatch.example_gradients` scales them, shape (num_samples, *output.shape).
    """
    labels = sampled_labels(outputs, num_samples, seed)
    return [
        _gradients(i, outputs, part, ending, scales=scales, labels=drawn)
        for i, ((part, ending), drawn) in enumerate(zip(outputs.terms(), labels, strict=True))
    ]


def sampled_labels(outputs: OutputsOfBatch, num_samples: int, seed: int) -> list[tf.Tensor]:
    """Return labels drawn for each output, shape (num_samples, examples, ...).

    Keyed by seed, output, sample and example: the same however the data is cut into batches.
    """
    return [
        _labels(i, outputs, ending, num_samples, seed)
        for i, (_, ending) in enumerate(outputs.terms())
    ]


def _gradients(
    i: int,
    outputs: OutputsOfBatch,
    part: OutputTerm,
    ending: OutputEnding,
    *,
    scales: tf.Tensor,
    labels: tf.Tensor,
) -> tf.Tensor:
    weights = value_weights(part, term_values(part), scales)
    dtype = weights.dtype
    z = tf.cast(outputs.tensors[i], dtype)
    if ending.distribution == "categorical":
        gradients = tf.nn.softmax(z) - tf.one_hot(labels, tf.shape(z)[-1], dtype=dtype)
    elif ending.distribution == "bernoulli":
        gradients = tf.nn.sigmoid(z) - tf.cast(labels, dtype)
    else:
        gradients = 2.0 * (z - tf.cast(labels, dtype))
    roots = tf.sqrt(weights / num_averaged(z, ending.distribution, dtype))[..., None]
    losses = tf.math.multiply_no_nan(_losses(ending.distribution, z, labels), roots)
    losses = tf.reduce_sum(losses, axis=tf.range(2, tf.rank(losses)))
    note("example losses", losses / tf.sqrt(tf.cast(tf.shape(labels)[0], dtype)))
    gradients = tf.math.multiply_no_nan(gradients, tf.broadcast_to(roots, tf.shape(gradients)))
    return tf.cast(gradients, outputs.tensors[i].dtype)


def _labels(
    i: int, outputs: OutputsOfBatch, ending: OutputEnding, num_samples: int, seed: int
) -> tf.Tensor:
    tensor, first = outputs.tensors[i], outputs.first_example
    key = tf.constant(stream(seed, _KEY, i).integers(2**64, size=1, dtype=np.uint64))
    categorical = ending.distribution == "categorical"
    shape = tf.shape(tensor)[:-1] if categorical else tf.shape(tensor)
    draw = (
        tf.raw_ops.StatelessRandomNormalV2
        if ending.distribution == "normal"
        else tf.raw_ops.StatelessRandomUniformV2
    )
    dtype = max(tensor.dtype, tf.float32, key=lambda d: d.size)
    z = tf.cast(tensor, dtype)
    numbers = tf.map_fn(
        lambda sample: _numbers(draw, key, sample, first, shape),
        tf.range(num_samples, dtype=tf.int64),
        fn_output_signature=tf.float32,
    )
    noise = tf.cast(numbers, dtype)
    if categorical:
        steps = tf.cumsum(tf.nn.softmax(z), axis=-1)[..., :-1]
        return tf.reduce_sum(tf.cast(steps <= noise[..., None], tf.int32), axis=-1)
    if ending.distribution == "bernoulli":
        return tf.cast(noise < tf.nn.sigmoid(z), tf.int32)
    return z + noise / np.sqrt(2.0)


def _numbers(
    draw: Callable[..., tf.Tensor],
    key: tf.Tensor,
    sample: tf.Tensor,
    first: tf.Tensor,
    shape: tf.Tensor,
) -> tf.Tensor:
    """Return random numbers, of which each example has its own wherever its batch begins.

    Philox computes its numbers from a key and a counter of two words, the low one counting on:
    here that is the place in the dataset, and the high one the number of the sample.
    """
    size = tf.reduce_prod(shape[1:])
    steps = (size + _PER_COUNT - 1) // _PER_COUNT
    flat = draw(
        shape=[shape[0] * steps * _PER_COUNT],
        key=key,
        counter=tf.cast(tf.stack([first * tf.cast(steps, tf.int64), sample]), tf.uint64),
        alg=_PHILOX,
        dtype=tf.float32,
    )
    return tf.reshape(tf.reshape(flat, [shape[0], steps * _PER_COUNT])[:, :size], shape)


def _losses(distribution: str | None, z: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return -log p(y | z) of labels, (num_samples, examples, ..., 1 or C), up to constants."""
    z = z[None]
    if distribution == "categorical":
        hot = tf.one_hot(labels, tf.shape(z)[-1], dtype=z.dtype)
        return -tf.reduce_sum(hot * tf.nn.log_softmax(z), axis=-1, keepdims=True)
    # Fixed, and no function of the outputs that they were drawn at.
    labels = tf.stop_gradient(tf.cast(labels, z.dtype))
    if distribution == "bernoulli":
        return tf.nn.softplus(z) - labels * z
    return tf.square(z - labels)


def outer_products(gradients: list[tf.Tensor], tangent: list[tf.Tensor]) -> list[tf.Tensor]:
    """Return the mean over samples s of r_si <r_si, u_i> for each example i.

    Gradients are of shape (num_samples, examples, ...), tangents of shape (examples, ...); the
    inner product is over all outputs of an example.
    """
    dtype = max((r.dtype for r in gradients), key=lambda d: d.size)
    along = tf.add_n(
        [
            tf.cast(tf.reduce_sum(_flat(r) * _flat(u[None]), axis=-1), dtype)
            for r, u in zip(gradients, tangent, strict=True)
        ]
    )
    return [
        tf.reshape(
            tf.reduce_mean(_flat(r) * tf.cast(along[..., None], r.dtype), axis=0), tf.shape(u)
        )
        for r, u in zip(gradients, tangent, strict=True)
    ]


def _flat(tensor: tf.Tensor) -> tf.Tensor:
    shape = tf.shape(tensor)
    return tf.reshape(tensor, [shape[0], shape[1], -1])
