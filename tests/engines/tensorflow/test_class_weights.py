"""Class weights are those of Keras's own `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import spectral_density as sd

RNG = np.random.default_rng(0)
X = RNG.normal(size=(10, 3)).astype("float32")
LABELS = np.arange(10) % 3
WEIGHTS = {0: 1.0, 1: 10.0}  # class 2 has none, and counts 1


def classifier(loss="sparse_categorical_crossentropy"):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, activation="softmax")])
    model.compile(keras.optimizers.SGD(1.0), loss)
    return model


def gradient_of_fit(model, y, class_weight):
    """Return minus the step of gradient descent with the rate 1 on all examples."""
    before = model.get_weights()
    model.fit(X, y, batch_size=10, epochs=1, shuffle=False, class_weight=class_weight, verbose=0)
    after = model.get_weights()
    model.set_weights(before)
    return np.concatenate([(a - b).ravel() for a, b in zip(before, after, strict=True)])


LABELINGS = {
    "integers": ("sparse_categorical_crossentropy", LABELS),
    "a column": ("sparse_categorical_crossentropy", LABELS[:, None]),
    "floats": ("sparse_categorical_crossentropy", LABELS.astype("float32")),
    "one-hot": ("categorical_crossentropy", np.eye(3, dtype="float32")[LABELS]),
}


@pytest.mark.parametrize("labeling", LABELINGS)
@pytest.mark.parametrize("kind", [sd.HessianOperator, sd.FisherOperator])
def test_the_gradient_is_that_of_fit(kind, labeling):
    loss, y = LABELINGS[labeling]
    model = classifier(loss)
    expected = gradient_of_fit(model, y, WEIGHTS)
    operator = kind(model, None, [(X[:6], y[:6]), (X[6:], y[6:])], class_weight=WEIGHTS)
    np.testing.assert_allclose(operator.gradient(), expected, rtol=1e-4, atol=1e-6)


def datasets():
    pairs = [(X[:6], LABELS[:6]), (X[6:], LABELS[6:])]

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, number):
            return pairs[number]

    return {
        "list": pairs,
        "tf.data": tf.data.Dataset.from_tensor_slices((X, LABELS)).batch(6),
        "PyDataset": Batches(),
        "callable": lambda: iter(pairs),
    }


@pytest.mark.parametrize("form", datasets())
@pytest.mark.parametrize("memory_share", [0.25, 0.0], ids=["kept", "streamed"])
def test_every_form_of_a_dataset_is_weighted(form, memory_share):
    model = classifier()
    by_class = sd.GaussNewtonOperator(
        model, None, datasets()[form], class_weight=WEIGHTS, memory_share=memory_share
    )
    weights = np.array([1.0, 10.0, 1.0], "float32")[LABELS]
    by_example = sd.GaussNewtonOperator(model, None, [(X, LABELS, weights)])
    v = np.linspace(-1, 1, by_class.shape[0])
    np.testing.assert_allclose(by_class @ v, by_example @ v, rtol=1e-4, atol=1e-6)


def test_sample_weights_and_class_weights_multiply():
    model = classifier()
    given = np.linspace(0.5, 2, 10).astype("float32")
    both = sd.HessianOperator(model, None, [(X, LABELS, given)], class_weight=WEIGHTS)
    product = given * np.array([1.0, 10.0, 1.0], "float32")[LABELS]
    expected = sd.HessianOperator(model, None, [(X, LABELS, product)])
    np.testing.assert_allclose(both.gradient(), expected.gradient(), rtol=1e-6)


def test_other_data_are_weighted_too_and_the_fingerprint_knows():
    model = classifier()
    weighted = sd.HessianOperator(model, None, [(X[:5], LABELS[:5])], class_weight=WEIGHTS)
    plain = sd.HessianOperator(model, None, [(X[:5], LABELS[:5])])
    assert weighted.fingerprint()["class weights"] == {"0": 1.0, "1": 10.0}
    assert weighted.fingerprint()["data"] != plain.fingerprint()["data"]
    other = weighted.with_dataset([(X, LABELS)])
    expected = sd.HessianOperator(model, None, [(X, LABELS)], class_weight=WEIGHTS)
    np.testing.assert_allclose(other.gradient(), expected.gradient(), rtol=1e-6)


def two_outputs():
    inputs = keras.Input((3,))
    outputs = [keras.layers.Dense(3, name=name)(inputs) for name in ("a", "b")]
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda w: sd.HessianOperator(classifier(), None, [(X, LABELS)], class_weight=w), None, ""),
        (
            lambda w: sd.HessianOperator(
                classifier(), lambda model, b: tf.reduce_mean(model(b)), [X], class_weight=w
            ),
            ValueError,
            "needs a Keras loss",
        ),
        (
            lambda w: sd.HessianOperator(
                two_outputs(), "mse", [(X, [np.ones((10, 3))] * 2)], class_weight=w
            ),
            ValueError,
            "one output",
        ),
        (
            lambda w: sd.HessianOperator(
                classifier(), "mse", [(X, np.ones((10, 2, 2)))], class_weight=w
            ),
            ValueError,
            "one class for each example",
        ),
        (
            lambda w: sd.HessianOperator(classifier(), None, [(X, LABELS)], class_weight=[1.0]),
            TypeError,
            "dict",
        ),
        (
            lambda w: sd.HessianOperator(classifier(), None, [(X, LABELS)], class_weight={0: -1}),
            ValueError,
            ">= 0",
        ),
        (
            lambda w: sd.HessianOperator(classifier(), None, [(X, LABELS)], class_weight={0.5: 1}),
            TypeError,
            "integers",
        ),
        (
            lambda w: sd.HessianOperator(classifier(), None, [(X, LABELS)], class_weight={"a": 1}),
            TypeError,
            "integers, got 'a'",
        ),
        (
            lambda w: sd.HessianOperator(classifier(), None, [(X, LABELS)], class_weight={0: "b"}),
            TypeError,
            "must be a number, got 'b'",
        ),
        (
            lambda w: sd.HessianOperator(classifier(), None, (X, LABELS), class_weight=w),
            TypeError,
            "tuple of arrays",
        ),
    ],
)
def test_what_cannot_be_weighted_says_so(make, error, message):
    if error is None:
        make(WEIGHTS)
        return
    with pytest.raises(error, match=message):
        make(WEIGHTS)
