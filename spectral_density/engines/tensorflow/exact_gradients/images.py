"""Exact gradients of resizing and cropping images."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from spectral_density.engines.tensorflow.exact_gradients.registry import gradient_of
from spectral_density.engines.tensorflow.keras_internals import attributes_of, linear


@gradient_of("ResizeBilinear")
def resize_bilinear_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate bilinear resizing, whose gradient is registered as not differentiable."""
    image = op.inputs[0]
    options = attributes_of(op, "align_corners", "half_pixel_centers")
    size = tf.shape(grad)[1:3]
    resized = linear(
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


@gradient_of("ResizeBilinearGrad", "ResizeBicubicGrad", "ResizeNearestNeighborGrad")
def resize_second_gradient(op: Any, grad: tf.Tensor) -> list[Any]:
    """Differentiate the gradients of resizing: linear, with the resizing itself as the adjoint.

    That of bilinear resizing is needed within nested functions alone.
    """
    options = attributes_of(op, "align_corners", "half_pixel_centers")
    size = tf.shape(op.inputs[0])[1:3]
    resize = _RESIZE[op.type.removesuffix("Grad")]
    return [resize(images=grad, size=size, **options), None]


@gradient_of("ScaleAndTranslate")
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


@gradient_of("ScaleAndTranslateGrad")
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


@gradient_of("CropAndResizeGradImage")
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
