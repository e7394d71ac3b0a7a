"""What every curvature operator does, whichever matrix it is."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import html_of
from models import CASES, compiled

import spectral_density as sd


def network():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((None, 2)), keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)]
    return keras.Sequential(layers)


def sequences(lengths, rows=3):
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(rows, t, 2)).astype("f4"), np.zeros((rows, 1))) for t in lengths]


def test_within_a_graph_it_says_that_it_belongs_outside():
    model, data = network(), sequences([4])
    hessian = sd.HessianOperator(model, "mse", data)
    asked = [
        lambda: hessian @ np.ones(3),
        hessian.gradient,
        hessian.loss,
        lambda: sd.HessianOperator(model, "mse", data),
        lambda: sd.FisherOperator(model, "mse", data),
    ]
    for ask in asked:
        with pytest.raises(RuntimeError, match="while a graph is being traced"):
            tf.function(ask, autograph=False)()
    assert hessian.num_passes == 0


@pytest.mark.parametrize(
    "data",
    [
        sequences(range(3, 15)),
        [batch for rows in range(2, 12) for batch in sequences([4], rows)],
        [batch for rows in (2, 3, 4) for batch in sequences(range(3, 7), rows)],
    ],
    ids=["lengths", "batch sizes", "both"],
)
def test_batches_of_many_shapes_are_warned_of_once(data):
    model = network()
    with pytest.warns(UserWarning, match="more than 8 shapes.*Pad or bucket") as caught:
        hessian = sd.HessianOperator(model, "mse", data)
        hessian.with_dataset(data)
    assert len(caught) == 1
    assert hessian.num_passes == 0


def test_a_few_shapes_are_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sd.HessianOperator(network(), "mse", sequences([3, 4, 5, 6] * 4))


# In notebooks ------------------------------------------------------------------------------------


def test_an_operator_shows_what_it_is_and_its_layers_and_computes_nothing():
    case = CASES["mlp"]
    operator = sd.GaussNewtonOperator(compiled(case), None, [case.data()])
    passes = operator.num_passes
    html = html_of(operator)
    assert operator.num_passes == passes
    assert operator.num_traces == 0
    assert "<b>GaussNewtonOperator</b>" in html
    assert "hidden 16, logits 15" in html
    assert "31 x 31" in html
    assert "float32" in html
    assert html.count("<rect") == 1 + 2


def test_many_layers_are_counted_not_listed():
    stack = [keras.layers.Dense(2, name=f"layer_{i}") for i in range(9)]
    model = keras.Sequential([keras.Input((2,)), *stack])
    operator = sd.HessianOperator(model, "mse", [(np.ones((3, 2)), np.ones((3, 2)))])
    html = html_of(operator)
    assert "layer_5 6, and 3 more" in html
    assert html.count("<rect") == 1 + 9


def test_names_cannot_break_the_page():
    variable = tf.Variable([1.0, 2.0], name="w")
    operator = sd.HessianOperator.from_function(lambda w: tf.reduce_sum(w**2), variable)
    html = html_of(operator)
    assert "&lt;lambda&gt;" in html
    assert "<lambda>" not in html
