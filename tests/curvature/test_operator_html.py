import keras
import numpy as np
import tensorflow as tf
from models import CASES, compiled

from spectral_density.curvature.gauss_newton import GaussNewtonOperator
from spectral_density.curvature.hessian import HessianOperator


def test_an_operator_shows_what_it_is_and_its_layers_and_computes_nothing():
    case = CASES["mlp"]
    operator = GaussNewtonOperator(compiled(case), None, [case.data()])
    passes = operator.num_passes
    html = operator._repr_html_()
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
    operator = HessianOperator(model, "mse", [(np.ones((3, 2)), np.ones((3, 2)))])
    html = operator._repr_html_()
    assert "layer_5 6, and 3 more" in html
    assert html.count("<rect") == 1 + 9


def test_names_cannot_break_the_page():
    variable = tf.Variable([1.0, 2.0], name="w")
    operator = HessianOperator.from_function(lambda w: tf.reduce_sum(w**2), variable)
    html = operator._repr_html_()
    assert "&lt;lambda&gt;" in html
    assert "<lambda>" not in html
