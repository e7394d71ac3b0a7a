import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from spectral_density.engines.tensorflow.variables import Variables, select


def model():
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="dense")], name="inner")
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.Sequential([keras.Input((3,)), inner], name="block"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="quiet"),
            layers.Dense(2, name="dense_1"),
            layers.Dense(2, name="dense_10", use_bias=False),
        ],
        name="outer",
    )


def test_variables_lie_end_to_end_in_the_model_s_order():
    parameters = select(model())
    assert parameters.size == 6 + 2 + 2 + 2 + 4 + 2 + 4
    assert parameters.shapes[0] == (3, 2) and parameters.slices[1] == slice(6, 8)
    vector = np.arange(parameters.size, dtype=float)
    pieces = parameters.unflatten(vector)
    assert [piece.shape for piece in pieces] == list(parameters.shapes)
    np.testing.assert_array_equal(parameters.flatten(pieces), vector)
    assert pieces[0].base is not None  # views
    assert "outer/dense_1/kernel" in repr(parameters) or "dense_1/kernel" in repr(parameters)


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("dense_1", ["dense_1/kernel", "dense_1/bias"]),
        ("dense_1/bias", ["dense_1/bias"]),
        ("block", ["dense/kernel", "dense/bias"]),
        ("inner", ["dense/kernel", "dense/bias"]),
        ("inner/dense", ["dense/kernel", "dense/bias"]),
        ("gamma", ["norm/gamma"]),
        (re.compile("bias$"), ["dense/bias", "dense_1/bias"]),
        (["dense_10", "dense_1"], ["dense_1/kernel", "dense_1/bias", "dense_10/kernel"]),
        (("dense_1", "dense_1/bias"), ["dense_1/kernel", "dense_1/bias"]),
        (None, None),
    ],
)
def test_selection_by_name(choice, names):
    parameters = select(model(), choice)
    if names is None:
        assert len(parameters.names) == 7
    else:
        assert len(parameters.names) == len(names)
        assert all(a.endswith(b) for a, b in zip(parameters.names, names, strict=True))


def test_selection_by_object():
    net = model()
    layer = net.get_layer("dense_1")
    for choice in (layer, [layer.kernel, layer.bias], [layer, layer.bias.value]):
        assert select(net, choice).variables == (layer.kernel.value, layer.bias.value)


def test_a_frozen_variable_may_be_named_by_object():
    net = model()
    mean = net.get_layer("norm").moving_mean
    assert select(net, mean).variables == (mean.value,)


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        ("nope", ValueError, "'nope'. There are: .*dense_1/kernel"),
        ("dens", ValueError, "There are"),
        ("moving_mean", ValueError, "no layer or trainable variable"),
        ("kernel", ValueError, "names several"),
        (re.compile("nope"), ValueError, "matches 'nope'. There are"),
        ([], ValueError, "empty"),
        ((), ValueError, "empty"),
        (["dense_1", "nope"], ValueError, "nope"),
        (np.ones(2), TypeError, "ndarray"),
        (3, TypeError, "int"),
        ("quiet", ValueError, "layer 'quiet' has no trainable variables"),
        (layers.ReLU(), ValueError, "no trainable variables"),
    ],
)
def test_what_names_no_variable(choice, error, message):
    with pytest.raises(error, match=message):
        select(model(), choice)


def test_a_variable_twice_is_an_error():
    variable = tf.Variable(1.0)
    with pytest.raises(ValueError, match="twice"):
        Variables([variable, variable])


def test_the_widest_dtype_holds_them_all():
    narrow, wide = tf.Variable([1.0]), tf.Variable([2.0], dtype=tf.float64)
    parameters = Variables([narrow, wide])
    assert parameters.dtype == np.float64
    assert [t.dtype for t in parameters.split(tf.ones(2, tf.float64))] == [tf.float32, tf.float64]


def test_join_takes_missing_and_indexed_gradients():
    parameters = Variables([tf.Variable(tf.zeros([3, 2])), tf.Variable([0.0])])
    rows = tf.IndexedSlices(tf.ones([2, 2]), tf.constant([1, 1]), tf.constant([3, 2]))
    np.testing.assert_array_equal(parameters.join([rows, None]), [0, 0, 2, 2, 0, 0, 0])
