"""Small seeded models with their data and losses, and their dense Hessians from a tape."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from keras import layers

SPLIT = (5, 5, 3)  # ragged batches; every case has their sum of examples
NUM_EXAMPLES = sum(SPLIT)


@dataclass(frozen=True)
class Case:
    """A model, full-batch data, and what `compile` is given."""

    build: Callable[[str], Any]  # dtype, or the name of a mixed policy -> model
    data: Callable[[], tuple]  # -> (x, y) or (x, y, sample_weight), NumPy
    loss: Callable[[], Any]
    loss_weights: Any = None
    splits: tuple[int, ...] = SPLIT
    dtypes: tuple[str, ...] = ("float32", "float64")


@contextmanager
def floatx(dtype):
    """Make `dtype` Keras's default: only the truth needs it, a loss casts to it."""
    before = keras.config.floatx()
    keras.config.dtype_policy()  # is made of floatx when it is first asked for, and stays
    keras.config.set_floatx(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(before)


@contextmanager
def default_dtype(dtype):
    """Make `dtype` that of layers and losses that are given none."""
    before = keras.config.dtype_policy()
    with floatx(dtype):
        keras.config.set_dtype_policy(dtype)
        try:
            yield
        finally:
            keras.config.set_dtype_policy(before)


def set_random_weights(model, seed=0):
    """Give every variable a value that is exact in float32, variances a positive one."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "seed" in variable.name or "float" not in variable.dtype:
            continue
        value = 0.6 * rng.normal(size=variable.shape)
        if "variance" in variable.name or "gamma" in variable.name:
            value = 0.5 + np.abs(value)
        variable.assign(value.astype(np.float32))
    return model


def split(data, sizes=SPLIT):
    """Cut a structure of arrays into batches of these sizes."""
    ends = np.cumsum([0, *sizes])
    return [tf.nest.map_structure(lambda a, s=s, e=e: a[s:e], data) for s, e in pairwise(ends)]


def whole_moments(x, axes, shift=None, keepdims=False, name=None):
    """Mean and variance; `tf.nn.moments` stops a gradient that second derivatives need."""
    mean = tf.reduce_mean(x, axes, keepdims=keepdims)
    square = tf.reduce_mean(x**2, axes, keepdims=keepdims)
    return mean, square - mean**2


def jacobian_hessian(objective, variables):
    """Dense Hessian of `objective()`, row by row from a tape, as float64."""
    with (
        mock.patch("tensorflow.nn.moments", whole_moments),
        tf.GradientTape(persistent=True) as tape,
    ):
        flat = flat_gradient(objective, variables)
    blocks = tape.jacobian(flat, variables, experimental_use_pfor=False)
    n = flat.shape[0]
    columns = [
        np.zeros((n, int(np.prod(v.shape)))) if b is None else np.reshape(b, (n, -1))
        for b, v in zip(blocks, variables, strict=True)
    ]
    return np.concatenate(columns, axis=1).astype(np.float64)


def tf_variables(model):
    """Trainable `tf.Variable`s of a Keras 3 or tf_keras model."""
    return [v.value if isinstance(v, keras.Variable) else v for v in model.trainable_variables]


def flat_gradient(objective, variables):
    """Gradient of `objective()`, one vector."""
    with tf.GradientTape() as tape:
        value = objective()
    parts = tape.gradient(value, variables, unconnected_gradients="zero")
    return tf.concat([tf.reshape(tf.convert_to_tensor(p), [-1]) for p in parts], 0)


@dataclass(frozen=True)
class Truth:
    """The full-batch objective of `fit`, its gradient and its Hessian, in float64."""

    loss: float
    gradient: np.ndarray
    hessian: np.ndarray


@cache
def truth(name):
    """Differentiate Keras's own full-batch objective in float64."""
    case = CASES[name]
    with floatx("float64"):
        model = case.build("float64")
        return keras_truth(model, case.loss(), case.data(), case.loss_weights)


def keras_truth(model, loss, data, loss_weights=None):
    """Differentiate what Keras's `compute_loss` says of one batch at training=False."""
    model.compile(loss=loss, loss_weights=loss_weights)
    x, y, *rest = tf.nest.map_structure(tf.convert_to_tensor, data)

    def objective():
        return model.compute_loss(x, y, model(x, training=False), *rest)

    variables = tf_variables(model)
    return Truth(
        float(objective()),
        np.asarray(flat_gradient(objective, variables)),
        jacobian_hessian(objective, variables),
    )


def compiled(case, dtype="float32"):
    model = case.build(dtype)
    model.compile(optimizer="sgd", loss=case.loss(), loss_weights=case.loss_weights)
    return model


def vectors(n, k=2, seed=11):
    return np.random.default_rng(seed).normal(size=(n, k))


def relative_error(found, true):
    """Frobenius error relative to the truth's norm."""
    return np.linalg.norm(found - true) / np.linalg.norm(true)


# Data --------------------------------------------------------------------------------------------


def normals(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def classes(*shape, count=3, seed=2):
    return np.random.default_rng(seed).integers(0, count, size=shape)


def tokens(length=3, count=6, seed=3):
    """Sequences padded with zeros: lengths from 1 to `length`."""
    rng = np.random.default_rng(seed)
    x = rng.integers(1, count, size=(NUM_EXAMPLES, length))
    lengths = 1 + np.arange(NUM_EXAMPLES) * 7 % length
    return np.where(np.arange(length) < lengths[:, None], x, 0)


def regression():
    return normals(NUM_EXAMPLES, 3), normals(NUM_EXAMPLES, 2, seed=2)


def classification():
    return normals(NUM_EXAMPLES, 3), classes(NUM_EXAMPLES)


def weights_of_examples():
    return np.random.default_rng(4).uniform(0.1, 3.0, NUM_EXAMPLES).astype(np.float32)


# Models ------------------------------------------------------------------------------------------


def sequential(*stack, shape=(3,)):
    return set_random_weights(keras.Sequential([keras.Input(shape), *stack]))


def mlp(dtype="float32"):
    return sequential(
        layers.Dense(4, activation="tanh", dtype=dtype, name="hidden"),
        layers.Dense(3, dtype=dtype, name="logits"),
    )


def relu_mlp(dtype="float32"):
    return sequential(layers.Dense(6, activation="relu", dtype=dtype), layers.Dense(3, dtype=dtype))


def cnn(dtype="float32"):
    return sequential(
        layers.Conv2D(2, 3, activation="relu", dtype=dtype),
        layers.MaxPooling2D(2, dtype=dtype),
        layers.Conv2D(2, 2, activation="tanh", dtype=dtype),
        layers.Flatten(dtype=dtype),
        layers.Dense(3, dtype=dtype),
        shape=(8, 8, 1),
    )


def batch_norm(dtype="float32"):
    return sequential(
        layers.Dense(4, activation="tanh", dtype=dtype),
        layers.BatchNormalization(dtype=dtype),
        layers.Dropout(0.5, dtype=dtype),
        layers.Dense(3, dtype=dtype),
    )


def layer_norm(dtype="float32"):
    return sequential(
        layers.Dense(4, activation="gelu", dtype=dtype),
        layers.LayerNormalization(dtype=dtype),
        layers.Dense(3, dtype=dtype),
    )


def embedding(dtype="float32"):
    return sequential(
        layers.Embedding(6, 3, dtype=dtype),
        layers.GlobalAveragePooling1D(dtype=dtype),
        layers.Dense(3, dtype=dtype, activation="softplus"),
        shape=(3,),
    )


def recurrent(layer):
    def build(dtype="float32"):
        return sequential(layer(2, dtype=dtype), layers.Dense(3, dtype=dtype), shape=(3, 2))

    return build


def masked_sequence(layer):
    """The mask of the padding travels to the loss of each step."""

    def build(dtype="float32"):
        return sequential(
            layers.Embedding(6, 2, mask_zero=True, dtype=dtype),
            layer(2, return_sequences=True, unroll=True, dtype=dtype),
            layers.TimeDistributed(layers.Dense(3, dtype=dtype), dtype=dtype),
            shape=(3,),
        )

    return build


def attention(dtype="float32"):
    inputs = keras.Input((3, 2))
    mixed = layers.MultiHeadAttention(2, 2, dtype=dtype)(inputs, inputs)
    pooled = layers.GlobalAveragePooling1D(dtype=dtype)(mixed)
    outputs = layers.Dense(3, dtype=dtype)(pooled)
    return set_random_weights(keras.Model(inputs, outputs))


def shared_layer(dtype="float32"):
    """One layer applied twice, to two inputs and to its own output."""
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    shared = layers.Dense(3, activation="tanh", dtype=dtype)
    joined = layers.Concatenate(dtype=dtype)([shared(a), shared(shared(b))])
    return set_random_weights(keras.Model([a, b], layers.Dense(2, dtype=dtype)(joined)))


def two_outputs(as_dict):
    def build(dtype="float32"):
        inputs = keras.Input((3,))
        hidden = layers.Dense(3, activation="tanh", dtype=dtype)(inputs)
        # "zeta" comes first, and last in the alphabet.
        first = layers.Dense(2, dtype=dtype, name="zeta")(hidden)
        second = layers.Dense(3, dtype=dtype, name="alpha")(hidden)
        outputs = {"zeta": first, "alpha": second} if as_dict else [first, second]
        return set_random_weights(keras.Model(inputs, outputs))

    return build


class WeightTied(keras.Model):
    """Subclassed; its output layer is the transpose of its first."""

    def __init__(self, dtype):
        super().__init__(dtype=dtype)
        self.encoder = layers.Dense(2, activation="tanh", dtype=dtype)
        self.unused = self.add_weight(shape=(2,), name="unused", dtype=dtype)

    def call(self, x):
        return keras.ops.matmul(self.encoder(x), keras.ops.transpose(self.encoder.kernel))


def weight_tied(dtype="float32"):
    model = WeightTied(dtype)
    model(np.zeros((1, 3), np.float32))
    return set_random_weights(model)


class AddsLoss(layers.Layer):
    """Adds the mean square of what passes through."""

    def call(self, x):
        self.add_loss(0.3 * keras.ops.mean(keras.ops.square(x)))
        return x


def regularized(dtype="float32"):
    return sequential(
        layers.Dense(
            3,
            activation="tanh",
            dtype=dtype,
            kernel_regularizer=keras.regularizers.L2(0.1),
            bias_regularizer=keras.regularizers.L1L2(0.0, 0.2),
        ),
        AddsLoss(dtype=dtype),
        layers.Dense(2, dtype=dtype, kernel_regularizer="l2"),
    )


def frozen(dtype="float32"):
    model = sequential(
        layers.Dense(4, activation="tanh", dtype=dtype, kernel_regularizer="l2"),
        layers.Dense(3, activation="tanh", dtype=dtype, kernel_regularizer="l2"),
        layers.Dense(2, dtype=dtype),
    )
    model.layers[0].trainable = False
    return model


def affine(dtype="float32"):
    """The loss is affine in the last bias, whose rows of the Hessian are zero."""
    return sequential(layers.Dense(2, activation="tanh", dtype=dtype), layers.Dense(1, dtype=dtype))


def one_parameter(dtype="float32"):
    return sequential(layers.Dense(1, use_bias=False, dtype=dtype), shape=(1,))


def _sparse(**options):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


def affine_loss(y_true, y_pred):
    return keras.ops.sum(y_true * y_pred, axis=-1)


def squared_difference(y_true, y_pred):
    return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)


def scalar_loss(y_true, y_pred):
    return keras.ops.mean(keras.ops.square(y_true - y_pred))


def _two_labels():
    return [normals(NUM_EXAMPLES, 2, seed=5), classes(NUM_EXAMPLES)]


def _two_labels_by_name():
    first, second = _two_labels()
    return {"zeta": first, "alpha": second}


def _sequence_data():
    return tokens(), classes(NUM_EXAMPLES, 3)


CASES = {
    "mlp": Case(mlp, classification, _sparse),
    "relu mlp": Case(relu_mlp, classification, _sparse),
    "cnn": Case(
        cnn,
        lambda: (normals(NUM_EXAMPLES, 8, 8, 1), classes(NUM_EXAMPLES)),
        _sparse,
    ),
    "batch norm": Case(batch_norm, classification, _sparse),
    "layer norm": Case(layer_norm, classification, _sparse),
    "embedding": Case(embedding, lambda: (tokens(), normals(NUM_EXAMPLES, 3)), lambda: "mse"),
    # Loops in the graph take seconds to trace: one batch, one dtype each.
    "lstm": Case(
        recurrent(layers.LSTM),
        lambda: (normals(NUM_EXAMPLES, 3, 2), classes(NUM_EXAMPLES)),
        _sparse,
        splits=(NUM_EXAMPLES,),
        dtypes=("float64",),
    ),
    "gru": Case(
        recurrent(layers.GRU),
        lambda: (normals(NUM_EXAMPLES, 3, 2), classes(NUM_EXAMPLES)),
        _sparse,
        splits=(NUM_EXAMPLES,),
        dtypes=("float32",),
    ),
    "attention": Case(
        attention, lambda: (normals(NUM_EXAMPLES, 3, 2), classes(NUM_EXAMPLES)), _sparse
    ),
    "shared layer, two inputs": Case(
        shared_layer,
        lambda: (
            [normals(NUM_EXAMPLES, 3), normals(NUM_EXAMPLES, 3, seed=8)],
            normals(NUM_EXAMPLES, 2, seed=9),
        ),
        lambda: "mse",
    ),
    "two outputs, lists": Case(
        two_outputs(False),
        lambda: (normals(NUM_EXAMPLES, 3), _two_labels()),
        lambda: ["mse", _sparse()],
        [0.3, 1.7],
    ),
    "two outputs, dicts for a list": Case(
        two_outputs(False),
        lambda: (normals(NUM_EXAMPLES, 3), _two_labels_by_name()),
        lambda: {"zeta": "mse", "alpha": _sparse()},
        {"zeta": 0.3, "alpha": 1.7},
    ),
    "two outputs, dicts": Case(
        two_outputs(True),
        lambda: (normals(NUM_EXAMPLES, 3), _two_labels_by_name()),
        lambda: {"zeta": "mse", "alpha": _sparse()},
        {"zeta": 0.3, "alpha": 1.7},
    ),
    "two outputs, weights by name": Case(
        two_outputs(True),
        lambda: (
            normals(NUM_EXAMPLES, 3),
            _two_labels_by_name(),
            {"zeta": weights_of_examples(), "alpha": weights_of_examples()[::-1].copy()},
        ),
        lambda: {"zeta": "mse", "alpha": _sparse()},
    ),
    "two outputs, one loss": Case(
        two_outputs(False),
        lambda: (
            normals(NUM_EXAMPLES, 3),
            [normals(NUM_EXAMPLES, 2, seed=5), normals(NUM_EXAMPLES, 3, seed=6)],
        ),
        lambda: "mse",
    ),
    "weight tied, subclassed, unused variable": Case(
        weight_tied, lambda: (normals(NUM_EXAMPLES, 3), normals(NUM_EXAMPLES, 3)), lambda: "mse"
    ),
    "regularizers and add_loss": Case(regularized, regression, lambda: "mse"),
    "frozen layer": Case(frozen, regression, lambda: "mse"),
    "affine in a variable": Case(
        affine, lambda: (normals(NUM_EXAMPLES, 3), normals(NUM_EXAMPLES, 1)), lambda: affine_loss
    ),
    "one parameter": Case(
        one_parameter,
        lambda: (normals(NUM_EXAMPLES, 1), normals(NUM_EXAMPLES, 1, seed=2)),
        lambda: "mse",
    ),
    "sample weights": Case(mlp, lambda: (*classification(), weights_of_examples()), _sparse),
    "mean with sample weights": Case(
        mlp,
        lambda: (*classification(), weights_of_examples()),
        lambda: _sparse(reduction="mean_with_sample_weight"),
    ),
    "sum": Case(
        mlp, lambda: (*classification(), weights_of_examples()), lambda: _sparse(reduction="sum")
    ),
    "weights as a column": Case(
        mlp, lambda: (*classification(), weights_of_examples()[:, None]), _sparse
    ),
    "masked sequence": Case(masked_sequence(layers.LSTM), _sequence_data, _sparse),
    "masked sequence, sum": Case(
        masked_sequence(layers.SimpleRNN),
        _sequence_data,
        lambda: _sparse(reduction="sum"),
        dtypes=("float64",),
    ),
    "masked sequence, mean with sample weight": Case(
        masked_sequence(layers.SimpleRNN),
        lambda: (*_sequence_data(), np.abs(normals(NUM_EXAMPLES, 3, seed=7))),
        lambda: _sparse(reduction="mean_with_sample_weight"),
        dtypes=("float64",),
    ),
    "masked sequence, weights of steps": Case(
        masked_sequence(layers.SimpleRNN),
        lambda: (*_sequence_data(), np.abs(normals(NUM_EXAMPLES, 3, seed=7))),
        _sparse,
        dtypes=("float64",),
    ),
    "masked sequence, ignored class": Case(
        masked_sequence(layers.SimpleRNN),
        _sequence_data,
        lambda: _sparse(ignore_class=2),
        dtypes=("float64",),
    ),
    "ignored class": Case(mlp, classification, lambda: _sparse(ignore_class=1)),
    "labels without the last axis": Case(
        affine, lambda: (normals(NUM_EXAMPLES, 3), normals(NUM_EXAMPLES)), lambda: "mse"
    ),
    "own loss that is a mean, weights": Case(
        affine,
        lambda: (normals(NUM_EXAMPLES, 3), normals(NUM_EXAMPLES, 1), weights_of_examples()),
        lambda: scalar_loss,
        splits=(NUM_EXAMPLES,),  # Keras's value depends on the cut into batches
    ),
    "own loss, labels without the last axis": Case(
        affine,
        lambda: (normals(NUM_EXAMPLES, 3), normals(NUM_EXAMPLES)),
        lambda: squared_difference,
    ),
    "labels as a column": Case(
        mlp, lambda: (normals(NUM_EXAMPLES, 3), classes(NUM_EXAMPLES, 1)), _sparse
    ),
}
