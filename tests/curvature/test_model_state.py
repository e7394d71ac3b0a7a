"""Where a model stands: loss, gradient norm and accuracy, against Keras's own and closed forms."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from spectral_density import HessianOperator, Spectrum, estimate_spectrum

RNG = np.random.default_rng(3)
X = RNG.normal(size=(30, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, 30)
BATCHES = [(0, 13), (13, 30)]


def cut(*arrays):
    return [tuple(array[a:b] for array in arrays) for a, b in BATCHES]


def network(outputs=3, activation=None):
    keras.utils.set_random_seed(1)
    hidden = layers.Dense(5, "tanh")
    return keras.Sequential([keras.Input((4,)), hidden, layers.Dense(outputs, activation)])


@pytest.mark.parametrize(
    ("loss", "labels", "activation", "metric"),
    [
        ("sparse_categorical_crossentropy", LABELS, "softmax", "sparse_categorical_accuracy"),
        ("categorical_crossentropy", np.eye(3)[LABELS], "softmax", "categorical_accuracy"),
        ("binary_crossentropy", (LABELS[:, None] > 1) * 1.0, "sigmoid", "binary_accuracy"),
    ],
)
def test_loss_and_accuracy_are_those_of_keras(loss, labels, activation, metric):
    model = network(1 if activation == "sigmoid" else 3, activation)
    model.compile(loss=loss, metrics=[metric])
    loss_value, accuracy = model.evaluate(X, labels, verbose=0)
    state = HessianOperator(model, None, cut(X, labels)).model_state()
    assert state.loss == pytest.approx(loss_value, rel=1e-5)
    assert state.accuracy == pytest.approx(accuracy)
    assert f"accuracy {100 * accuracy:.1f} %" in str(state)


def test_at_logits_accuracy_is_that_of_the_largest():
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    state = HessianOperator(model, loss, cut(X, LABELS)).model_state()
    assert state.accuracy == np.mean(np.argmax(np.asarray(model(X)), axis=1) == LABELS)


def test_the_gradient_norm_is_that_of_the_loss_in_the_variables():
    # Of a linear model with squared errors: gradient 2 X'(Xw - y) / N.
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1, use_bias=False)])
    y = RNG.normal(size=(30, 1)).astype(np.float32)
    state = HessianOperator(model, "mse", cut(X, y)).model_state()
    residual = X @ model.get_weights()[0] - y
    assert state.gradient_norm == pytest.approx(np.linalg.norm(2 * X.T @ residual / 30), rel=1e-5)
    assert state.loss == pytest.approx(np.mean(residual**2), rel=1e-5)
    assert state.accuracy is None
    assert "accuracy" not in str(state)


def test_a_function_has_no_accuracy():
    w = tf.Variable([3.0, 4.0])
    state = HessianOperator.from_function(lambda v: tf.reduce_sum(v**2) / 2, w).model_state()
    assert (state.loss, state.gradient_norm, state.accuracy) == (12.5, 5.0, None)


def test_nothing_is_changed_in_training_mode():
    keras.utils.set_random_seed(1)
    stack = [layers.Dense(5, "tanh"), layers.BatchNormalization(), layers.Dense(3)]
    model = keras.Sequential([keras.Input((4,)), *stack])
    before = model.get_weights()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    operator = HessianOperator(model, loss, [(X, LABELS)], training=True)
    assert operator.model_state().accuracy is not None
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_spectrum_says_where_the_model_stood_and_keeps_it(tmp_path):
    model = network(activation="softmax")
    hessian = HessianOperator(model, "sparse_categorical_crossentropy", cut(X, LABELS))
    spectrum = estimate_spectrum(hessian, 5, 2)
    state = hessian.model_state()
    assert spectrum.model_state == state.numbers()
    assert f"model        {state} on these data" in str(spectrum)
    again = Spectrum.load(spectrum.save(tmp_path / "spectrum"))
    assert again.model_state == spectrum.model_state
    assert str(again) == str(spectrum)


def test_without_a_check_nothing_is_computed_but_the_spectrum():
    model = network(activation="softmax")
    hessian = HessianOperator(model, "sparse_categorical_crossentropy", cut(X, LABELS))
    before = hessian.num_passes
    spectrum = estimate_spectrum(hessian, 5, 1, check=False)
    assert hessian.num_passes == before + 5
    assert spectrum.model_state == {}
    assert "model " not in str(spectrum)
