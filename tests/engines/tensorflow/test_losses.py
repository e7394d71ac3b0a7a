import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import (
    CASES,
    NUM_EXAMPLES,
    classes,
    classification,
    compiled,
    keras_truth,
    mlp,
    normals,
    regression,
    regularized,
    relative_error,
    split,
    squared_difference,
    truth,
    two_outputs,
    vectors,
    weights_of_examples,
)

from spectral_density.curvature import GaussNewtonOperator, HessianOperator

X, Y = classification()
ONE_HOT = np.eye(3, dtype=np.float32)[Y]


def per_example(y_true, y_pred):
    return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)


def loss_fn(model, batch):
    return tf.reduce_mean(tf.square(model(batch[0]) - batch[1]))


def summed(model, batch):
    return tf.reduce_sum(tf.reduce_mean(tf.square(model(batch[0]) - batch[1]), axis=-1))


def predict(model, batch):
    return model(batch[0])


def of_outputs(outputs, batch):
    return tf.reduce_mean(tf.square(outputs - batch[1]))


SAME = {
    "object": keras.losses.MeanSquaredError(),
    "name": "mse",
    "long name": "mean_squared_error",
    "class name": "MeanSquaredError",
    "compiled": None,
    "function from keras.losses": keras.losses.mean_squared_error,
    "function of y_true": per_example,
    "lambda of y_true": lambda y_true, y_pred: per_example(y_true, y_pred),
    "partial": functools.partial(per_example),
    "loss_fn": loss_fn,
    "pair": (predict, of_outputs),
    "list of one": ["mse"],
}


@pytest.mark.parametrize("kind", SAME)
def test_every_form_of_a_loss_gives_the_same_matrix(kind):
    model = mlp()
    model.compile(loss="mse")
    hessian = HessianOperator(model, SAME[kind], split((X, ONE_HOT)))
    reference = keras_truth(mlp(), "mse", (X, ONE_HOT))
    block = vectors(hessian.shape[0])
    assert relative_error(hessian @ block, reference.hessian @ block) <= 1e-5
    assert hessian.loss() == pytest.approx(reference.loss, rel=1e-6)


@pytest.mark.parametrize(
    ("loss", "reduction", "factor"),
    [
        (keras.losses.MeanSquaredError(), "sum", NUM_EXAMPLES),
        (keras.losses.MeanSquaredError(reduction="sum"), None, NUM_EXAMPLES),
        (keras.losses.MeanSquaredError(reduction="sum"), "mean", 1),
        (keras.losses.MeanSquaredError(), "mean", 1),
        ("mse", "sum", NUM_EXAMPLES),
        (loss_fn, "mean", 1),
        (summed, "sum", NUM_EXAMPLES),
    ],
)
def test_reductions(loss, reduction, factor):
    hessian = HessianOperator(mlp(), loss, split((X, ONE_HOT)), reduction=reduction)
    mean = HessianOperator(mlp(), "mse", [(X, ONE_HOT)])
    v = vectors(mean.shape[0])
    assert relative_error(hessian @ v, factor * (mean @ v)) <= 1e-5
    assert hessian.loss() == pytest.approx(factor * mean.loss(), rel=1e-5)
    assert relative_error(hessian.gradient(), factor * mean.gradient()) <= 1e-5


def test_a_float32_loss_does_not_round_a_float64_model():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert loss.dtype == "float32"
    hessian = HessianOperator(mlp("float64"), loss, split((X, Y)))
    v = vectors(hessian.shape[0])
    assert relative_error(hessian @ v, truth("mlp").hessian @ v) <= 1e-10


def test_regularization_counts_once_however_many_batches():
    data = regression()
    for sizes in [(NUM_EXAMPLES,), (1,) * NUM_EXAMPLES]:
        hessian = HessianOperator(regularized(), "mse", split(data, sizes))
        expected = truth("regularizers and add_loss").loss
        assert hessian.loss() == pytest.approx(expected, rel=1e-5)


def test_a_sum_and_regularization_are_what_keras_adds_up():
    data = regression()
    true = keras_truth(regularized(), keras.losses.MeanSquaredError(reduction="sum"), data)
    hessian = HessianOperator(
        regularized(), keras.losses.MeanSquaredError(reduction="sum"), split(data)
    )
    v = vectors(hessian.shape[0])
    assert relative_error(hessian @ v, true.hessian @ v) <= 1e-5
    assert hessian.loss() == pytest.approx(true.loss, rel=1e-5)


def test_activity_regularization_is_keras_own_on_one_batch():
    def build():
        from models import sequential

        return sequential(
            keras.layers.Dense(3, activation="tanh", activity_regularizer="l2"),
            keras.layers.Dense(2, bias_regularizer="l2"),
        )

    data = regression()
    true = keras_truth(build(), "mse", data)
    hessian = HessianOperator(build(), "mse", [data])
    v = vectors(hessian.shape[0])
    assert relative_error(hessian @ v, true.hessian @ v) <= 1e-5
    assert hessian.loss() == pytest.approx(true.loss, rel=1e-6)


def test_labels_and_outputs_of_other_ranks_never_broadcast():
    x, y = normals(NUM_EXAMPLES, 3), normals(NUM_EXAMPLES)
    column = compiled(CASES["labels without the last axis"])
    for loss in ("mse", squared_difference, keras.losses.MeanSquaredError()):
        flat = HessianOperator(column, loss, split((x, y))).loss()
        assert flat == pytest.approx(HessianOperator(column, loss, [(x, y[:, None])]).loss(), 1e-6)


def test_masked_values_may_be_anything():
    """A weight of zero takes an infinite loss out of the sum."""
    x, y, w = X.copy(), ONE_HOT.copy(), weights_of_examples().copy()
    w[2] = 0
    hessian = HessianOperator(mlp(), "mse", split((x, y, w)))
    y[2] = np.inf
    spoiled = HessianOperator(mlp(), "mse", split((x, y, w)))
    assert spoiled.loss() == pytest.approx(hessian.loss(), rel=1e-6)


def test_one_loss_of_two_may_be_none():
    data = (normals(NUM_EXAMPLES, 3), [normals(NUM_EXAMPLES, 2), classes(NUM_EXAMPLES)])
    hessian = HessianOperator(two_outputs(False)(), ["mse", None], split(data))
    alone = HessianOperator(
        two_outputs(False)(),
        lambda model, batch: tf.reduce_mean(tf.square(model(batch[0])[0] - batch[1])),
        [(data[0], data[1][0])],
    )
    v = vectors(alone.shape[0])
    assert relative_error(hessian @ v, alone @ v) <= 1e-5


class OwnObjective(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(x)

    def compute_loss(self, *args, **kwargs):
        return 2 * super().compute_loss(*args, **kwargs)


def test_a_compute_loss_of_its_own_is_refused():
    model = OwnObjective()
    model(X)
    model.compile(loss="mse")
    with pytest.raises(ValueError, match="compute_loss of its own"):
        HessianOperator(model, None, [regression()])


@pytest.mark.parametrize(
    ("loss", "options", "error", "message"),
    [
        (keras.losses.MeanSquaredError(reduction=None), {}, ValueError, "one value per example"),
        (keras.losses.MeanSquaredError(reduction="none"), {}, ValueError, "one value per example"),
        (keras.losses.MeanSquaredError, {}, TypeError, r"MeanSquaredError\(\)"),
        ("nonsense", {}, ValueError, "nonsense"),
        (3, {}, TypeError, "int"),
        ((loss_fn, 3), {}, TypeError, "tuple"),
        ("mse", {"reduction": "average"}, ValueError, "average"),
        (loss_fn, {"training": True}, ValueError, "training="),
        (["mse", "mse"], {}, ValueError, "2 entries"),
        ({"nope": "mse"}, {}, ValueError, "nope"),
        ([None], {}, ValueError, "nothing to differentiate"),
    ],
)
def test_what_is_no_loss(loss, options, error, message):
    with pytest.raises(error, match=message):
        HessianOperator(mlp(), loss, [(X, ONE_HOT)], **options)


@pytest.mark.parametrize("y", [normals(NUM_EXAMPLES, 2), [normals(NUM_EXAMPLES, 2)]])
def test_two_outputs_need_two_labels(y):
    with pytest.raises(ValueError, match="2 outputs"):
        HessianOperator(two_outputs(False)(), "mse", [(normals(NUM_EXAMPLES, 3), y)])


# What a function takes ---------------------------------------------------------------------------


class Callable:
    def __call__(self, labels, outputs):
        return self.method(labels, outputs)

    def method(self, labels, outputs):
        return keras.ops.mean(keras.ops.square(labels - outputs), axis=-1)


def unnamed(t, p):
    return tf.reduce_mean(tf.square(t - p), axis=-1)


def with_power(t, p, power):
    return tf.reduce_mean(tf.abs(t - p) ** power, axis=-1)


UNNAMED = {
    "function": unnamed,
    "lambda": lambda t, p: keras.ops.mean(keras.ops.square(t - p), -1),
    "partial": functools.partial(with_power, power=2.0),
    "object": Callable(),
    "method": Callable().method,
}


@pytest.mark.parametrize("kind", UNNAMED)
@pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
def test_a_function_of_labels_and_outputs_under_any_names(operator, kind):
    hessian = operator(mlp(), UNNAMED[kind], split((X, ONE_HOT)))
    assert hessian.loss() == pytest.approx(operator(mlp(), "mse", [(X, ONE_HOT)]).loss(), rel=1e-5)
    assert "as loss(y_true, y_pred)" in repr(hessian)


@pytest.mark.parametrize("kind", UNNAMED)
def test_a_compiled_function_under_any_names(kind):
    model = mlp()
    model.compile("sgd", UNNAMED[kind])
    hessian = HessianOperator(model, None, split((X, ONE_HOT)))
    assert hessian.loss() == pytest.approx(model.evaluate(X, ONE_HOT, verbose=0), rel=1e-5)


def test_a_function_of_model_and_batch_under_any_names():
    hessian = HessianOperator(mlp(), lambda net, d: loss_fn(net, d), split((X, ONE_HOT)))
    assert hessian.loss() == pytest.approx(
        HessianOperator(mlp(), "mse", [(X, ONE_HOT)]).loss(), rel=1e-5
    )
    assert "as loss" not in repr(hessian)


def fails_in_both(a, b):
    raise RuntimeError("the user's own")


@pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
def test_a_function_that_traces_in_neither_form_gives_both_errors(operator):
    with pytest.raises(TypeError, match="the user's own") as raised:
        operator(mlp(), fails_in_both, [(X, ONE_HOT)])
    text = str(raised.value)
    assert "loss_fn(model, batch) -> scalar: RuntimeError" in text
    assert "loss(y_true, y_pred) -> one value per example: RuntimeError" in text
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_an_error_in_a_function_of_a_model_is_its_own():
    def wrong(model, batch):
        raise ZeroDivisionError("the user's own")

    with pytest.raises(ZeroDivisionError, match="the user's own"):
        HessianOperator(mlp(), wrong, [(X, ONE_HOT)])


def test_a_loss_of_unknown_shape_says_how_to_give_it_one():
    table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float64, 1.0)
    v = tf.Variable([1.0, 2.0], dtype=tf.float64)

    def scaled(v):
        return tf.reduce_sum(v**2) * table.lookup(tf.constant(1, tf.int64))

    with pytest.raises(ValueError, match=r"shape of what it returns is not known.*tf\.reshape"):
        HessianOperator.from_function(scaled, v)
    hessian = HessianOperator.from_function(lambda v: tf.reshape(scaled(v), []), v)
    np.testing.assert_allclose(hessian.to_dense(), 2 * np.eye(2))
