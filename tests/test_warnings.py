"""A warning shows the line of the user that it is about, whatever runs in between."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

import spectral_density as sd

X, Y = np.eye(6, 4, dtype="float32"), np.arange(6) % 3


def model(activation=None):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation)])


def gauss_newton_at_probabilities():
    """Warned of while TensorFlow traces the model."""
    loss = keras.losses.SparseCategoricalCrossentropy()
    sd.GaussNewtonOperator(model(lambda x: tf.nn.softmax(x) * 1.0), loss, [(X, Y)])


def many_shapes():
    """Warned of while a dataset is surveyed."""
    lengths = range(1, 11)
    data = [(np.ones((n, 4), "float32"), np.zeros((n, 3), "float32")) for n in lengths]
    sd.HessianOperator(model(), "mse", data)


def doubt_in_an_algorithm():
    """Warned of by the check that an algorithm makes."""
    loss = keras.losses.SparseCategoricalCrossentropy()
    sd.estimate_spectrum(sd.HessianOperator(model(), loss, [(X, Y)]), order=2, num_draws=2)


def no_convergence():
    matrix = np.diag(np.linspace(1.0, 2.0, 50))
    sd.power_iteration(matrix, max_products=3)


CALLS = [gauss_newton_at_probabilities, many_shapes, doubt_in_an_algorithm, no_convergence]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_a_warning_is_of_the_line_that_calls_the_package(call):
    with pytest.warns(Warning) as caught:
        call()
    lines, first = inspect.getsourcelines(call)
    for warning in caught:
        assert warning.filename == __file__
        assert first <= warning.lineno < first + len(lines)
