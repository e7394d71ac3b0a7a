"""What layers hold in `losses` is theirs after a trace, whichever model was called."""

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import spectral_density as sd
from spectral_density.engines.tensorflow.layer_losses import losses_put_back

X = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")


def linear():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])


def test_losses_of_other_models_are_not_left_symbolic():
    keras.utils.set_random_seed(0)
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, activity_regularizer="l2")])
    legacy = tf_keras.Sequential(
        [tf_keras.Input((3,)), tf_keras.layers.Dense(3, activity_regularizer="l2")]
    )
    clearing = keras.layers.Layer._clear_losses, tf_keras.layers.Layer._clear_losses
    for model in (other, legacy):
        model(X)
    before = [float(model.losses[0]) for model in (other, legacy)]
    hessian = sd.HessianOperator(
        linear(), lambda model, batch: tf.reduce_mean(model(legacy(other(batch))) ** 2), [X]
    )
    hessian @ np.ones(4)
    assert [float(model.losses[0]) for model in (other, legacy)] == before
    after = keras.layers.Layer._clear_losses, tf_keras.layers.Layer._clear_losses
    assert after == clearing


@pytest.mark.parametrize("package", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_they_are_restored_after_an_error_and_from_within_each_other(package):
    layers = package.layers
    model = package.Sequential(
        [package.Input((3,)), layers.Dense(3, activity_regularizer="l2"), layers.Dense(1)]
    )
    model(X)
    before = float(model.losses[0])
    with pytest.raises(RuntimeError, match="the user's own"), losses_put_back(None):
        model(2 * X)
        with losses_put_back(None):
            model(3 * X)
        assert float(model.losses[0]) == pytest.approx(4 * before, rel=1e-5)
        raise RuntimeError("the user's own")
    assert float(model.losses[0]) == before


def test_operators_are_built_in_several_threads_at_once():
    """Each thread puts back the losses of the layers that it has called, and of no others."""
    models = [
        keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(3, activity_regularizer="l2"), linear()]
        )
        for _ in range(4)
    ]

    def product(model):
        operator = sd.HessianOperator(model, "mse", [(X, X[:, :1])])
        return operator @ np.ones(operator.shape[0])

    with ThreadPoolExecutor(len(models)) as pool:
        together = list(pool.map(product, models))
    for model, found in zip(models, together, strict=True):
        np.testing.assert_allclose(found, product(model), rtol=1e-5, atol=1e-6)


def test_a_call_in_another_thread_keeps_what_it_has_left():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, activity_regularizer="l2")])
    model(X)
    before = float(model.losses[0])
    with losses_put_back(None), ThreadPoolExecutor(1) as pool:
        pool.submit(model, 2 * X).result()
    assert float(model.losses[0]) == pytest.approx(4 * before, rel=1e-5)
