"""Operations of a traced graph made again in float64, where they were in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from spectral_density.engines.tensorflow.keras_internals import attributes_of, made_again, runs_with

_SINGLE, _DOUBLE = tf.float32.as_datatype_enum, tf.float64.as_datatype_enum


class NoFloat64Error(TypeError):
    """An operation takes a variable, and not its value."""


def widen(tensor: tf.Tensor) -> tf.Tensor:
    """Return a tensor in float64 if it is in float32."""
    return tf.cast(tensor, tf.float64) if tensor.dtype == tf.float32 else tensor


def of_weight(operation: Any, inputs: Sequence[tf.Tensor], weight: tf.Tensor) -> tf.Tensor:
    """Return what an operation takes from a variable, with a tensor in place of its value.

    Raises:
        NoFloat64Error: if the operation does not only read.
    """
    if operation.type == "ReadVariableOp":
        return weight
    if operation.type == "ResourceGather":
        return tf.gather(weight, inputs[1], batch_dims=operation.get_attr("batch_dims"))
    if operation.type == "ResourceGatherNd":
        return tf.gather_nd(weight, inputs[1])
    if operation.type == "VariableShape":
        return tf.shape(weight, out_type=operation.outputs[0].dtype)
    raise NoFloat64Error(f"{operation.type} takes a variable itself")


def in_float64(operation: Any, inputs: Sequence[tf.Tensor]) -> tuple[list[tf.Tensor], bool]:
    """Return the outputs of an operation in float64 in place of float32, and if it rounds them.

    One that has no float64 is computed as it was, and rounds.

    Args:
        operation: of another graph.
        inputs: in float64 in place of float32.
    """
    if operation.type.removesuffix("Grad") in _RESIZING:
        return [_resized(operation, inputs)], False
    attributes, changed = _in_double(operation)
    if changed and operation.type != "Const" and _has_double(operation, attributes):
        return made_again(operation, inputs, attributes), False
    as_before = [
        tf.cast(given, tensor.dtype) if given.dtype != tensor.dtype else given
        for given, tensor in zip(inputs, operation.inputs, strict=True)
    ]
    outputs = made_again(operation, as_before)
    rounds = any(tensor.dtype == tf.float32 for tensor in (*operation.inputs, *outputs))
    return [widen(tensor) for tensor in outputs], rounds


_RESIZING: dict[str, tuple[Callable[..., tf.Tensor], tuple[str, ...]]] = {
    "ResizeBilinear": (tf.raw_ops.ResizeBilinear, ("align_corners", "half_pixel_centers")),
    "ResizeBicubic": (tf.raw_ops.ResizeBicubic, ("align_corners", "half_pixel_centers")),
    "ScaleAndTranslate": (tf.raw_ops.ScaleAndTranslate, ("kernel_type", "antialias")),
}


def _resized(operation: Any, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return images resized in float64, or the gradient of it.

    One matrix each for rows and columns, of what the operation makes of unit vectors, in float32.
    """
    is_gradient = operation.type.endswith("Grad")
    resize, names = _RESIZING[operation.type.removesuffix("Grad")]
    options = attributes_of(operation, *names)
    images = tf.cast(inputs[0], tf.float64)
    before = tf.shape(inputs[1] if is_gradient else images)[1:3]
    after = tf.shape(images)[1:3] if is_gradient else inputs[1]

    def along(axis: int) -> tf.Tensor:
        units = tf.eye(before[axis])[None, :, None, :]
        moved = {
            name: tf.stack([tf.cast(given[axis], tf.float32), float(name == "scale")])
            for name, given in zip(("scale", "translation"), inputs[2:], strict=False)
        }
        found = resize(images=units, size=[after[axis], 1], **moved, **options)
        return tf.cast(found[0, :, 0, :], tf.float64)

    rows, columns = along(0), along(1)
    equation = "ah,nabc,bw->nhwc" if is_gradient else "ah,nhwc,bw->nabc"
    found = tf.einsum(equation, rows, images, columns)
    dtype = operation.outputs[0].dtype
    return found if dtype == tf.float32 else tf.cast(found, dtype)


def _in_double(operation: Any) -> tuple[dict[str, Any], bool]:
    """Return the attributes of an operation with float64 for float32, and whether any changed."""
    attributes: dict[str, Any] = {}
    changed = False
    for name, value in operation.node_def.attr.items():
        attributes[name] = type(value)()
        attributes[name].CopyFrom(value)
        if value.type == _SINGLE:
            attributes[name].type = _DOUBLE
        elif _SINGLE in value.list.type:
            kinds = [_DOUBLE if kind == _SINGLE else kind for kind in value.list.type]
            attributes[name].list.type[:] = kinds
        else:
            continue
        changed = True
    return attributes, changed


def _has_double(operation: Any, attributes: dict[str, Any]) -> bool:
    definition = operation.op_def
    fixed = {argument.type for argument in (*definition.input_arg, *definition.output_arg)}
    runs_functions = any(value.HasField("func") or value.list.func for value in attributes.values())
    # Variables and lists of tensors keep the dtype that they were made with.
    held = any(
        tensor.dtype in (tf.resource, tf.variant)
        for tensor in (*operation.inputs, *operation.outputs)
    )
    if _SINGLE in fixed or held or runs_functions or "Random" in operation.type:
        return False
    kinds = {name: value.type for name, value in attributes.items() if value.HasField("type")}
    return runs_with(operation.type, kinds)
