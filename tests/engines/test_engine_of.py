"""Which engine takes what."""

import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf

from spectral_density.engines import engine_name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ({"kernel": jnp.ones(3)}, "jax"),
        ([np.ones(3), {"bias": jnp.ones(1)}], "jax"),
        ([np.ones(3), {"bias": 1.0}], "jax"),
        (jnp.ones(3), "jax"),
        ({"kernel": tf.Variable([1.0])}, "tensorflow"),
        ([tf.Variable([1.0]), tf.Variable(2.0)], "tensorflow"),
        (tf.Module(), "tensorflow"),
        ({"kernel": np.ones(3)}, "jax"),
        (np.ones(3), "tensorflow"),
        ({}, "tensorflow"),
    ],
)
def test_arrays_go_to_jax_and_anything_else_to_tensorflow(model, name):
    assert engine_name(model) == name


def test_a_keras_model_goes_to_the_backend_that_keras_has():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert engine_name(model) == keras.config.backend() == "tensorflow"
