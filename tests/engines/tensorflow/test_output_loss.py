"""The Hessian of a loss in the outputs, in closed form."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import (
    NUM_EXAMPLES,
    classes,
    floatx,
    jacobian_hessian,
    normals,
    relative_error,
    vectors,
    weights_of_examples,
)

from spectral_density.engines.tensorflow.output_loss import closed_form

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
LABELS = classes(NUM_EXAMPLES)
ONE_HOT = np.eye(3)[LABELS]
SMOOTH = np.random.default_rng(9).dirichlet(np.ones(3), NUM_EXAMPLES)
BITS = np.random.default_rng(9).integers(0, 2, (NUM_EXAMPLES, 3))
CLOSED = {
    "sparse labels": ("categorical", SPARSE, LABELS),
    "dense labels": (
        "categorical",
        keras.losses.CategoricalCrossentropy(from_logits=True),
        SMOOTH,
    ),
    "smoothed labels": (
        "categorical",
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2),
        ONE_HOT,
    ),
    "sigmoid": ("bernoulli", keras.losses.BinaryCrossentropy(from_logits=True), BITS),
    "smoothed sigmoid": (
        "bernoulli",
        keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.2),
        BITS,
    ),
    "squared error": ("normal", keras.losses.MeanSquaredError(), normals(NUM_EXAMPLES, 3)),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_are_what_autodiff_says(name):
    distribution, loss, y = CLOSED[name]
    z = tf.constant(3 * normals(NUM_EXAMPLES, 3, seed=6), tf.float64)
    weights = tf.constant(weights_of_examples(), tf.float64)
    with floatx("float64"):
        y = tf.cast(y, tf.float64)
        free = tf.Variable(z)
        hessian = jacobian_hessian(lambda: tf.reduce_sum(weights * loss.call(y, free)), [free])
    u = vectors(NUM_EXAMPLES * 3)[:, 0]
    (product,) = closed_form(distribution, z, weights, [tf.reshape(u, z.shape)])
    assert relative_error(np.ravel(product), hessian @ u) <= 1e-13


def test_closed_forms_hold_where_probabilities_have_rounded_to_one():
    z = tf.constant([[60.0, 0.0], [-60.0, 0.0]], tf.float64)
    u = tf.constant([[1.0, 0.0], [1.0, 0.0]], tf.float64)
    weights = tf.ones([2], tf.float64)
    tail = np.exp(-60)
    (product,) = closed_form("bernoulli", z, weights, [u])
    np.testing.assert_allclose(product, [[tail / 2, 0], [tail / 2, 0]], rtol=1e-12)
    (product,) = closed_form("categorical", z, weights, [u])
    assert np.isfinite(product).all() and abs(product[1, 0] / tail - 1) < 1e-12
