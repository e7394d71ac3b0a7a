"""Arguments that a function does not take: each has a sentence that says what to write."""

import inspect

import keras
import mismatches
import numpy as np
import pytest

import spectral_density as sd

OF_FIT = [name for name in inspect.signature(keras.Model.fit).parameters if name != "self"]
OF_COMPILE = [name for name in inspect.signature(keras.Model.compile).parameters if name != "self"]
OPERATORS = (sd.HessianOperator, sd.GaussNewtonOperator, sd.FisherOperator)
DATA = [(mismatches.X, mismatches.Y)]


@pytest.mark.parametrize("name", OF_FIT)
def test_every_argument_of_fit_is_taken_or_has_a_sentence(name):
    for operator in OPERATORS:
        if name in inspect.signature(operator).parameters:
            continue
        with pytest.raises(TypeError, match=f"{operator.__name__} has no argument '{name}': "):
            operator(mismatches.compiled(), dataset=DATA, **{name: 1})
    with pytest.raises(TypeError, match=f"estimate_spectrum has no argument '{name}': "):
        sd.estimate_spectrum(np.eye(3), **{name: 1})


@pytest.mark.parametrize("name", ["loss", "dataset", "variables", "model", "data", "params"])
def test_what_belongs_to_an_operator_is_sent_there(name):
    with pytest.raises(TypeError, match=r"belong to the operator"):
        sd.estimate_spectrum(np.eye(3), **{name: 1})


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_compiled_loss_needs_no_none(operator):
    model = mismatches.compiled()
    found, true = operator(model, dataset=DATA), operator(model, None, DATA)
    v = np.random.default_rng(0).normal(size=found.shape[0])
    np.testing.assert_array_equal(found @ v, true @ v)


def test_help_and_editors_see_the_arguments_of_the_function_itself():
    assert list(inspect.signature(sd.HessianOperator).parameters)[:3] == [
        "model",
        "loss",
        "dataset",
    ]
    assert "num_draws" in inspect.signature(sd.estimate_spectrum).parameters


def test_too_many_arguments_are_counted_without_self():
    with pytest.raises(TypeError, match="takes operator, order, num_draws by position, and 4 were"):
        sd.estimate_spectrum(np.eye(3), 2, 1, 0)


def test_labels_that_are_masked_or_ignored_may_be_no_class():
    ignoring = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    labels = np.where(np.arange(12) < 6, -1, mismatches.Y)
    operator = sd.HessianOperator(mismatches.network(), ignoring, [(mismatches.X, labels)])
    assert np.isfinite(operator @ np.ones(operator.shape[0])).all()


@pytest.mark.parametrize(
    ("loss", "labels", "units"),
    [
        ("sparse_categorical_crossentropy", mismatches.Y[:, None], 3),
        ("binary_crossentropy", (mismatches.Y > 0).astype("int32"), 1),
        ("mse", mismatches.HOT, 3),
        ("mse", mismatches.HOT[:, 0], 1),
        ("hinge", mismatches.HOT[:, 0], 1),
    ],
)
def test_what_keras_matches_by_a_last_axis_of_one_is_taken(loss, labels, units):
    model = mismatches.network(units, activation="softmax" if units > 1 else "sigmoid")
    model.compile("sgd", loss)
    true = model.evaluate(mismatches.X, labels, verbose=0)
    found = sd.HessianOperator(model, dataset=[(mismatches.X, labels)]).loss()
    np.testing.assert_allclose(found, true, rtol=1e-5)


def test_inputs_without_their_last_axis_of_one_are_taken_as_keras_does():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
    x = mismatches.X[:, 0]
    operator = sd.HessianOperator(model, mismatches.SPARSE, [(x, mismatches.Y)])
    assert operator.batches.num_examples == 12


@pytest.mark.parametrize("name", OF_COMPILE)
def test_every_argument_of_compile_is_taken_or_has_an_answer(name):
    if name == "loss":
        return
    with pytest.raises(TypeError, match=f"HessianOperator has no argument '{name}': "):
        sd.HessianOperator(mismatches.compiled(), dataset=DATA, **{name: 1})
