"""Operations that have no float64, made again in it: against the operation, and their adjoints."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from models import normals

from spectral_density.engines.tensorflow.float64 import in_float64

RESIZES = {
    f"{name}, {', '.join(option for option, is_set in options.items() if is_set) or 'plain'}": (
        name,
        options,
    )
    for name, (align_corners, half_pixel_centers) in itertools.product(
        ("ResizeBilinear", "ResizeBicubic"), [(True, False), (False, True), (False, False)]
    )
    for options in [{"align_corners": align_corners, "half_pixel_centers": half_pixel_centers}]
} | {
    f"ScaleAndTranslate, {kernel}{', antialias' * antialias}": (
        "ScaleAndTranslate",
        {
            "scale": [8 / 5, 4 / 7],
            "translation": [0.3, -0.2],
            "kernel_type": kernel,
            "antialias": antialias,
        },
    )
    for kernel, antialias in itertools.product(("lanczos3", "triangle"), (False, True))
}


def traced(function, *arguments):
    """Return the last operation of a function, its inputs that are not constant, and its value."""
    concrete = tf.function(function, autograph=False).get_concrete_function(*arguments)
    outputs = concrete.outputs[0].op.inputs
    return outputs[0].op, concrete


def in_double(function, *arguments):
    """Return what a function of one operation gives in float32, and in float64."""
    operation, concrete = traced(function, *arguments)
    single = concrete(*arguments)

    @tf.function(autograph=False)
    def again(*doubles):
        names = [tensor.name for tensor in concrete.inputs]
        inputs = [
            doubles[names.index(tensor.name)]
            if tensor.name in names
            else tf.constant(tf.get_static_value(tensor))
            for tensor in operation.inputs
        ]
        (found,), rounds = in_float64(operation, inputs)
        assert not rounds
        return found

    return single, again(*[tf.cast(argument, tf.float64) for argument in arguments])


@pytest.mark.parametrize("case", RESIZES)
def test_resizing_in_float64_is_the_operation_and_its_gradient_the_adjoint(case):
    name, options = RESIZES[case]
    image = tf.constant(normals(2, 5, 7, 3, seed=1), tf.float32)
    other = tf.constant(normals(2, 8, 4, 3, seed=2), tf.float32)
    resize, gradient = getattr(tf.raw_ops, name), getattr(tf.raw_ops, f"{name}Grad")

    forward = in_double(lambda x: resize(images=x, size=[8, 4], **options), image)
    backward = in_double(lambda g, x: gradient(grads=g, original_image=x, **options), other, image)
    for single, double in (forward, backward):
        assert double.dtype == tf.float64
        np.testing.assert_allclose(double, single, atol=2e-6)
    resized, pulled = forward[1], backward[1]
    assert float(tf.reduce_sum(resized * tf.cast(other, tf.float64))) == pytest.approx(
        float(tf.reduce_sum(pulled * tf.cast(image, tf.float64))), rel=1e-13
    )
