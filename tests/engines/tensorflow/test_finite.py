import logging
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import affine, mlp, normals, sequential, split

from spectral_density import SpectrumCallback
from spectral_density.curvature import FisherOperator, GaussNewtonOperator, HessianOperator
from spectral_density.curvature.preflight import preflight

SINGULAR = "The curvature is not finite, while the loss and its gradient are"
DATA = tf.constant([[1.0, 2.0], [0.0, 0.0]], tf.float64)


def lengths(points):
    """The sum of |row| with the gradient made safe by tf.where, and the curvature not."""
    squares = tf.reduce_sum(points**2, axis=-1)
    return tf.reduce_sum(tf.where(squares > 0, tf.sqrt(squares), tf.zeros_like(squares)))


# A finite loss and gradient, and an infinite second derivative at 0.
CURVED = {
    "a root under tf.where": (lambda v: lengths(tf.matmul(DATA, v)), np.ones((2, 2))),
    "a power below 2": (lambda v: tf.reduce_sum(v**1.5), [0.0, 1.0]),
    "a power of a magnitude": (lambda v: tf.reduce_sum(tf.abs(v) ** 1.2), [0.0, -1.0]),
    "a product with a root": (
        lambda v: tf.reduce_sum(tf.where(v > 0, v * tf.sqrt(v), 0 * v)),
        [0.0, 1.0],
    ),
}


@pytest.mark.parametrize("name", CURVED)
def test_infinite_curvature_is_not_blamed_on_the_data(name):
    function, start = CURVED[name]
    operator = HessianOperator.from_function(function, tf.Variable(start, dtype=tf.float64))
    assert np.isfinite(operator.loss())
    assert np.isfinite(operator.gradient()).all()
    with pytest.raises(FloatingPointError, match=SINGULAR) as error:
        operator @ np.ones((operator.shape[0], 3))
    message = str(error.value)
    assert "in batch 0 of 1" in message
    assert "epsilon" in message
    assert " data" not in message
    assert preflight(operator)["finite"].message == message


def test_an_infinite_gradient_of_a_finite_loss_is_said_to_be_one():
    operator = HessianOperator.from_function(tf.norm, tf.Variable([0.0, 0.0]))
    with pytest.raises(FloatingPointError, match="The gradient is not finite, while the loss is"):
        operator @ np.ones(2)


def with_spoiled(part, index, value=np.nan, count=10):
    """Batches of 32 examples, of which one holds a number that is none."""
    x, y = normals(32 * count, 3), normals(32 * count, 3, seed=2)
    w = np.ones(32 * count, np.float32)
    (x, y, w)[part][32 * index + 5] = value
    return split((x, y, w), (32,) * count)


@pytest.mark.parametrize("memory_share", [0, 0.25])
def test_of_batches_computed_together_the_one_is_named(memory_share):
    operator = HessianOperator(mlp(), "mse", with_spoiled(0, 6), memory_share=memory_share)
    assert len(operator.batches.parcels) < len(operator.batches)
    says = "is not finite in batch 6 of 10 .* NaN or infinity is in its data: inputs"
    for compute in (
        operator.gradient,
        lambda: operator @ np.ones(31),
        lambda: operator.matmat(np.ones((31, 3))),
        operator.check,
    ):
        with pytest.raises((FloatingPointError, ValueError), match=says):
            compute()


@pytest.mark.parametrize("kind", [GaussNewtonOperator, FisherOperator])
def test_the_batch_is_named_for_every_matrix(kind):
    operator = kind(affine(), "mse", with_spoiled(0, 2, np.inf, count=3))
    with pytest.raises(FloatingPointError, match=r"batch 2 of 3.*data: inputs"):
        operator @ np.ones(operator.shape[0])


@pytest.mark.parametrize(("part", "name"), [(1, "labels"), (2, "sample weights")])
def test_the_part_of_the_data_is_named(part, name):
    operator = HessianOperator(affine(), "mse", with_spoiled(part, 1, count=2))
    with pytest.raises((FloatingPointError, ValueError), match=f"batch 1 of 2.*data: {name}"):
        operator.gradient()


def test_weights_are_named_before_the_data():
    model = sequential(layers.Dense(2), layers.BatchNormalization(name="norm"), layers.Dense(1))
    operator = HessianOperator(model, "mse", with_spoiled(0, 1, count=2))
    model.get_layer("norm").moving_mean.assign([0.0, np.nan])
    with pytest.raises(FloatingPointError, match=r"in the weights: .*norm/moving_mean"):
        operator @ np.ones(operator.shape[0])


def test_a_loss_that_is_none_is_said_to_be_one():
    def loss(model, batch):
        return tf.reduce_mean(tf.math.log(0 * model(batch[0])))

    operator = HessianOperator(affine(), loss, with_spoiled(1, 0, 1.0, count=2))
    with pytest.raises(FloatingPointError, match=r"batch 0 of 2.*The loss is not finite.*log of 0"):
        operator @ np.ones(operator.shape[0])


def test_labels_that_a_loss_leaves_out_come_back_in_its_derivatives():
    def loss(model, batch):
        x, y, _ = batch
        errors = (model(x) - y) ** 2
        return tf.reduce_mean(tf.where(tf.math.is_nan(y), 0.0, errors))

    operator = HessianOperator(affine(), loss, with_spoiled(1, 1, count=2))
    assert np.isfinite(operator.loss())
    with pytest.raises(FloatingPointError, match=r"data: labels.*The gradient is not finite"):
        operator.gradient()


class Length(keras.regularizers.Regularizer):
    """The norm of the weights, not its square."""

    def __call__(self, w):
        return keras.ops.sqrt(keras.ops.sum(w**2))


def test_a_penalty_that_is_none_is_told_from_the_data():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(1, kernel_initializer="zeros", kernel_regularizer=Length()),
        ]
    )
    operator = HessianOperator(model, "mse", split((normals(6, 3), normals(6, 1)), (3, 3)))
    for compute in (operator.gradient, lambda: operator @ np.ones(4)):
        with pytest.raises(FloatingPointError, match="of the weight regularization is not finite"):
            compute()
    assert "weight regularization" in preflight(operator)["finite"].message


def test_a_stream_that_gives_other_data_is_no_overflow():
    batches = with_spoiled(0, 1, count=2)
    passes = []

    def once():
        passes.append(None)
        # The constructor makes two passes; the third is that of the product.
        return iter(batches if len(passes) == 3 else batches[:1] * 2)

    operator = HessianOperator(affine(), "mse", once, memory_share=0)
    with pytest.raises(FloatingPointError, match=r"iterated again.*dataset\.cache\(\)"):
        operator @ np.ones(operator.shape[0])


def test_a_callback_records_the_batch_and_the_cause(caplog):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, use_bias=False)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    points = normals(6, 2)
    points[3:] = 0
    callback = SpectrumCallback(
        split((points, points), (3, 3)),
        lambda model, batch: lengths(model(batch[0])),
        num_eigenvalues=1,
        order=2,
    )
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training goes on
        history = model.fit(points, points, callbacks=[callback], verbose=0).history
    assert np.isnan(history["hessian_eigenvalue_1"]).all()
    assert f"batch 1 of 2 (counted from 0). {SINGULAR}" in caplog.text
