"""Exact gradients of sparse and ragged operations, and of sums over segments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from spectral_density.engines.tensorflow.exact_gradients.registry import gradient_of
from spectral_density.engines.tensorflow.keras_internals import linear

_SPARSE_SEGMENTS: dict[str, Any] = {
    "SparseSegmentSum": tf.raw_ops.SparseSegmentSumWithNumSegments,
    "SparseSegmentMean": tf.raw_ops.SparseSegmentMeanWithNumSegments,
    "SparseSegmentSqrtN": tf.raw_ops.SparseSegmentSqrtNWithNumSegments,
}


@gradient_of("SparseSegmentSumGrad", "SparseSegmentMeanGrad", "SparseSegmentSqrtNGrad")
def sparse_segments_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradients of sums over segments of rows, which have none registered.

    `tf.nn.embedding_lookup_sparse` is made of these sums.
    """
    outer, indices, segments, _ = op.inputs
    summed = _SPARSE_SEGMENTS[op.type.removesuffix("Grad")](
        data=grad, indices=indices, segment_ids=segments, num_segments=tf.shape(outer)[0]
    )
    return [summed, None, None, None]


@gradient_of("SparseSegmentSumGradV2", "SparseSegmentMeanGradV2", "SparseSegmentSqrtNGradV2")
def sparse_segments_second_gradient_v2(op: Any, grad: tf.Tensor, _: Any) -> list[Any]:
    """Differentiate the same gradients where they are sparse: rows of the indices that occur."""
    outer, indices, segments, _ = op.inputs
    places = tf.searchsorted(op.outputs[1], indices)
    summed = _SPARSE_SEGMENTS[op.type.removesuffix("GradV2")](
        data=grad, indices=places, segment_ids=segments, num_segments=tf.shape(outer)[0]
    )
    return [summed, None, None, None]


@gradient_of("SparseAdd")
def sparse_add_gradient(op: Any, _: Any, grad: tf.Tensor, __: Any) -> list[Any]:
    """Differentiate sums of sparse tensors, whose gradient is registered as not differentiable."""
    first, second, total = op.inputs[0], op.inputs[3], op.outputs[0]
    of_first, of_second = linear(
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


@gradient_of("SparseAddGrad")
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


@gradient_of("SparseSoftmax")
def sparse_softmax_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the softmax of a sparse tensor; TensorFlow's gradient cannot be, once more."""
    values = op.outputs[0]
    _, rows = tf.unique(_ranked(op.inputs[0][:, :-1])[0])
    sums = tf.math.unsorted_segment_sum(grad * values, rows, tf.size(rows))
    return [None, (grad - tf.gather(sums, rows)) * values, None]


@gradient_of("SparseSliceGrad")
def sparse_slice_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of slices of sparse tensors, which has none registered."""
    _, of_input, start, of_output = op.inputs
    available, wanted = _ranked(of_input, of_output + start)
    return [tf.gather(grad, tf.searchsorted(available, wanted)), None, None, None]


@gradient_of("SparseFillEmptyRowsGrad", "RaggedFillEmptyRowsGrad")
def fill_empty_rows_second_gradient(op: Any, grad: tf.Tensor, of_default: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of filling empty rows, which has none registered."""
    places, outer = op.inputs
    filled = tf.fill(tf.shape(outer), of_default)
    return [None, tf.tensor_scatter_nd_update(filled, places[:, tf.newaxis], grad)]


@gradient_of("RaggedTensorToVariantGradient")
def ragged_to_variant_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradient of `tf.map_fn` over ragged rows, which has none registered."""
    splits = op.inputs[1]
    rows = tf.raw_ops.RaggedTensorToVariant(
        rt_nested_splits=[splits], rt_dense_values=grad, batched_input=True
    )
    return [rows, None, None]
