import warnings
from dataclasses import dataclass
from functools import cache, partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import (
    CASES,
    NUM_EXAMPLES,
    SPLIT,
    classes,
    classification,
    compiled,
    flat_gradient,
    floatx,
    jacobian_hessian,
    mlp,
    normals,
    regression,
    relative_error,
    sequential,
    set_random_weights,
    split,
    tf_variables,
    vectors,
)

from spectral_density.curvature import HessianOperator
from spectral_density.curvature.gauss_newton import GaussNewtonOperator
from spectral_density.engines.tensorflow.compiled_products import MAX_WIDTH

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
ADDED = "regularizers and add_loss"
ONE_HOT = np.eye(3)[classes(NUM_EXAMPLES)]
SMOOTH = np.random.default_rng(9).dirichlet(np.ones(3), NUM_EXAMPLES)
BITS = np.random.default_rng(9).integers(0, 2, (NUM_EXAMPLES, 3))


# The truth: Keras's objective as a function of the outputs, and the outputs' Jacobian, densely ----


def jacobian(outputs, variables):
    """Dense Jacobian of the tensors that `outputs()` returns, (sizes, num_params), float64."""
    with tf.GradientTape(persistent=True) as tape:
        flat = tf.concat([tf.reshape(z, [-1]) for z in outputs()], 0)
    blocks = tape.jacobian(flat, variables, experimental_use_pfor=False)
    size = flat.shape[0]
    columns = [
        np.zeros((size, int(np.prod(v.shape))))
        if b is None
        else np.reshape(tf.convert_to_tensor(b), (size, -1))
        for b, v in zip(blocks, variables, strict=True)
    ]
    return np.concatenate(columns, axis=1).astype(np.float64)


def output_hessian(value, outputs):
    """Dense Hessian of `value(list of tensors)` at `outputs`."""
    free = [tf.Variable(z) for z in outputs]

    def objective():
        watched = [tf.identity(v) for v in free]
        for z, new in zip(outputs, watched, strict=True):
            if getattr(z, "_keras_mask", None) is not None:
                new._keras_mask = z._keras_mask
        return value(watched)

    return jacobian_hessian(objective, free)


def penalty_hessian(model, variables):
    """Hessian of the weight regularization."""

    def penalty():
        total = tf.zeros([], tf.float64)
        for v in model.trainable_variables:
            if v.regularizer is not None:
                total += v.regularizer(v)
        return total + 0.0 * tf.add_n([tf.reduce_sum(v) for v in variables])

    return jacobian_hessian(penalty, variables)


@dataclass(frozen=True)
class Truth:
    """The full-batch objective of `fit`, its gradient and its Gauss-Newton matrix."""

    loss: float
    gradient: np.ndarray
    matrix: np.ndarray


def keras_truth(model, loss, data, loss_weights=None):
    """J' H J with the Hessian of Keras's `compute_loss` in the model's outputs."""
    model.compile(loss=loss, loss_weights=loss_weights)
    x, y, *rest = tf.nest.map_structure(tf.convert_to_tensor, data)
    structure = model(x, training=False)
    outputs = tf.nest.flatten(structure)

    def value(tensors):
        return model.compute_loss(x, y, tf.nest.pack_sequence_as(structure, tensors), *rest)

    variables = tf_variables(model)
    J = jacobian(lambda: tf.nest.flatten(model(x, training=False)), variables)
    matrix = J.T @ output_hessian(value, outputs) @ J
    if any(v.regularizer is not None for v in model.trainable_variables):
        matrix += penalty_hessian(model, variables)

    def objective():
        return model.compute_loss(x, y, model(x, training=False), *rest)

    return Truth(float(objective()), np.asarray(flat_gradient(objective, variables)), matrix)


@cache
def truth(name):
    case = CASES[name]
    with floatx("float64"):
        return keras_truth(case.build("float64"), case.loss(), case.data(), case.loss_weights)


def operator_of(name, dtype, **options):
    case = CASES[name]
    data = split(case.data(), case.splits)
    with warnings.catch_warnings():
        if name == ADDED:
            warnings.filterwarnings("ignore", "the model's layers add losses", UserWarning)
        return GaussNewtonOperator(compiled(case, dtype), None, data, **options)


def error(found, true):
    """Relative error; where the truth is the zero matrix, absolute."""
    return np.linalg.norm(found - true) / (np.linalg.norm(true) or 1.0)


# The dense matrix --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for name, case in CASES.items() for dtype in case.dtypes]
)
def test_products_are_those_of_the_dense_matrix(name, dtype):
    ggn, true = operator_of(name, dtype), truth(name)
    v = vectors(ggn.shape[0])[:, 0]
    assert ggn.product_dtype == dtype
    product, gradient = ggn.product_and_gradient(v)
    assert error(product, true.matrix @ v) <= TOLERANCE[dtype]
    assert relative_error(gradient, true.gradient) <= TOLERANCE[dtype]
    assert ggn.loss() == pytest.approx(true.loss, rel=TOLERANCE[dtype])


def small(dtype="float32", sizes=SPLIT, loss=SPARSE, **options):
    return GaussNewtonOperator(mlp(dtype), loss, split(classification(), sizes), **options)


def test_ragged_batches_are_the_full_batch():
    ragged, full = small(), small(sizes=(NUM_EXAMPLES,))
    block = vectors(full.shape[0])
    assert relative_error(ragged @ block, full @ block) <= 1e-6


def test_a_block_is_its_vectors_in_one_pass_and_one_trace_per_signature_and_width():
    ggn = small("float64")
    block = vectors(ggn.shape[0], MAX_WIDTH + 1)
    singles = np.stack([ggn @ v for v in block.T[:3]], axis=1)
    assert ggn.num_traces == 2
    before = ggn.num_passes
    product = ggn @ block
    assert (ggn.num_passes, ggn.num_traces) == (before + 1, 4)
    assert relative_error(product[:, :3], singles) <= 1e-13
    assert relative_error(product, truth("mlp").matrix @ block) <= 1e-10
    np.testing.assert_array_equal(ggn @ block, product)
    assert ggn.num_traces == 4


@pytest.mark.parametrize(("dtype", "epsilon"), [("float32", 1e-6), ("float64", 1e-14)])
def test_symmetric_and_positive_semidefinite_to_rounding(dtype, epsilon):
    matrix = small(dtype).to_dense()
    values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    assert np.abs(matrix - matrix.T).max() <= epsilon * values[-1]
    assert values[0] >= -epsilon * values[-1]
    assert (values > 1e-5 * values[-1]).sum() <= 2 * NUM_EXAMPLES


def test_a_subset_of_variables_is_a_block_of_the_matrix():
    ggn = small("float64", variables="logits")
    n = ggn.shape[0]
    assert relative_error(ggn.to_dense(), truth("mlp").matrix[-n:, -n:]) <= 1e-10


def test_half_precision_is_near():
    for policy, tolerance in [("mixed_float16", 5e-3), ("mixed_bfloat16", 5e-2)]:
        ggn = small(policy, sizes=(NUM_EXAMPLES,))
        v = vectors(ggn.shape[0])[:, 0]
        assert relative_error(ggn @ v, truth("mlp").matrix @ v) <= tolerance


# G and H -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("regularizer", [None, "l2"])
def test_a_linear_model_with_squared_error_has_no_other_curvature(regularizer):
    model = sequential(layers.Dense(2, dtype="float64", kernel_regularizer=regularizer))
    data = split(regression())
    block = vectors(8)
    expected = HessianOperator(model, "mse", data) @ block
    ggn = GaussNewtonOperator(model, "mse", data)
    assert relative_error(ggn @ block, expected) <= 1e-14
    residue = HessianOperator(model, "mse", data) - ggn
    assert np.linalg.norm(residue @ block) <= 1e-14 * np.linalg.norm(expected)


@pytest.mark.parametrize(("activation", "piecewise_linear"), [("relu", True), ("tanh", False)])
def test_a_single_kernel_has_no_other_curvature_where_the_network_is_piecewise_linear(
    activation, piecewise_linear
):
    model = sequential(
        layers.Dense(6, activation=activation, dtype="float64", name="first"),
        layers.Dense(5, activation=activation, dtype="float64"),
        layers.Dense(3, dtype="float64"),
    )
    data = split(classification(), (NUM_EXAMPLES,))
    kernel = model.get_layer("first").kernel
    hessian = HessianOperator(model, SPARSE, data, variables=kernel).to_dense()
    ggn = GaussNewtonOperator(model, SPARSE, data, variables=kernel).to_dense()
    distance = relative_error(ggn, hessian)
    assert distance <= 1e-6 if piecewise_linear else distance >= 1e-2


def test_regularization_enters_as_in_the_hessian():
    model = sequential(
        layers.Dense(3, activation="tanh", dtype="float64", kernel_regularizer="l2"),
        layers.Dense(2, dtype="float64", bias_regularizer="l2"),
    )
    plain = sequential(
        layers.Dense(3, activation="tanh", dtype="float64"), layers.Dense(2, dtype="float64")
    )
    data, block = split(regression()), vectors(20)
    residues = [
        (HessianOperator(m, "mse", data) - GaussNewtonOperator(m, "mse", data)) @ block
        for m in (model, plain)
    ]
    assert relative_error(*residues) <= 1e-13


# The outputs are logits --------------------------------------------------------------------------


class EndsInSoftmax(keras.Model):
    def __init__(self):
        super().__init__(dtype="float64")
        self.first = layers.Dense(4, activation="tanh", dtype="float64")
        self.last = layers.Dense(3, dtype="float64")

    def call(self, x):
        return keras.activations.softmax(self.last(self.first(x)))


def stacked(*endings):
    return lambda: sequential(layers.Dense(4, activation="tanh", dtype="float64"), *endings)


def functional():
    inputs = keras.Input((3,))
    hidden = layers.Dense(4, activation="tanh", dtype="float64")(inputs)
    outputs = layers.Dense(3, activation="softmax", dtype="float64")(hidden)
    return set_random_weights(keras.Model(inputs, outputs))


def subclassed():
    model = EndsInSoftmax()
    model(np.zeros((1, 3)))
    return set_random_weights(model)


def dense64(**options):
    return layers.Dense(3, dtype="float64", **options)


ENDINGS = {
    "activation of a layer": stacked(dense64(activation="softmax")),
    "activation layer": stacked(dense64(), layers.Activation("softmax", dtype="float64")),
    "softmax layer": stacked(dense64(), layers.Softmax(dtype="float64")),
    "followed by dropout": stacked(
        dense64(activation="softmax"), layers.Dropout(0.5, dtype="float64")
    ),
    "functional": functional,
    "subclassed": subclassed,
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_softmax_at_the_end_belongs_to_the_loss(name):
    data = split(classification())
    ggn = GaussNewtonOperator(ENDINGS[name](), "sparse_categorical_crossentropy", data)
    v = vectors(31)[:, 0]
    assert relative_error(ggn @ v, truth("mlp").matrix @ v) <= 1e-12


def test_a_softmax_at_the_end_belongs_to_the_loss_in_half_precision():
    model = sequential(
        layers.Dense(4, activation="tanh", dtype="mixed_float16"),
        layers.Dense(3, activation="softmax", dtype="mixed_float16"),
    )
    data = split(classification(), (NUM_EXAMPLES,))
    ggn = GaussNewtonOperator(model, "sparse_categorical_crossentropy", data)
    v = vectors(31)[:, 0]
    assert relative_error(ggn @ v, truth("mlp").matrix @ v) <= 5e-3


@pytest.mark.parametrize(
    ("activation", "loss", "y"),
    [
        ("softmax", keras.losses.CategoricalCrossentropy, ONE_HOT),
        (
            "softmax",
            partial(keras.losses.CategoricalCrossentropy, label_smoothing=0.1),
            SMOOTH,
        ),
        ("sigmoid", keras.losses.BinaryCrossentropy, BITS),
        ("sigmoid", partial(keras.losses.BinaryFocalCrossentropy, gamma=1.5), BITS),
    ],
)
def test_other_cross_entropies_take_their_activation_as_well(activation, loss, y):
    x = normals(NUM_EXAMPLES, 3)
    with floatx("float64"):
        true = keras_truth(mlp("float64"), loss(from_logits=True), (x, y.astype(np.float64)))
    model = stacked(dense64(activation=activation))()
    ggn = GaussNewtonOperator(model, loss(), split((x, y)))
    v = vectors(31)[:, 0]
    assert relative_error(ggn @ v, true.matrix @ v) <= 1e-10


def test_ignored_classes_of_a_model_that_ends_in_softmax():
    data = split(classification())
    ending = GaussNewtonOperator(
        ENDINGS["functional"](), keras.losses.SparseCategoricalCrossentropy(ignore_class=1), data
    )
    v = vectors(31)[:, 0]
    assert relative_error(ending @ v, truth("ignored class").matrix @ v) <= 1e-12


@pytest.mark.parametrize("loss", ["mse", "huber", "poisson"])
def test_other_losses_take_the_outputs_as_they_are(loss):
    data = (normals(NUM_EXAMPLES, 3), np.abs(normals(NUM_EXAMPLES, 3, seed=2)))
    with floatx("float64"):
        true = keras_truth(stacked(dense64(activation="sigmoid"))(), loss, data)
    ggn = GaussNewtonOperator(stacked(dense64(activation="sigmoid"))(), loss, split(data))
    v = vectors(31)[:, 0]
    assert relative_error(ggn @ v, true.matrix @ v) <= 1e-10


def own_cross_entropy(y_true, y_pred):
    return -tf.reduce_sum(y_true * tf.math.log(y_pred), axis=-1)


@pytest.mark.parametrize(
    ("build", "loss"),
    [
        (
            stacked(dense64(activation="softmax"), layers.Reshape((3,), dtype="float64")),
            "categorical_crossentropy",
        ),
        (stacked(dense64(activation="softmax")), own_cross_entropy),
        (
            stacked(dense64(activation="softmax")),
            (
                lambda model, batch: model(batch[0]),
                lambda z, batch: tf.reduce_mean(own_cross_entropy(tf.cast(batch[1], z.dtype), z)),
            ),
        ),
    ],
)
def test_a_warning_says_where_g_is_at_probabilities(build, loss):
    data = (normals(NUM_EXAMPLES, 3), ONE_HOT)
    model = build()
    with pytest.warns(UserWarning, match="G at probabilities is another matrix"):
        ggn = GaussNewtonOperator(model, loss, split(data))
    with floatx("float64"):
        rows = jacobian_of_losses(model, own_cross_entropy, data)
    v = vectors(31)[:, 0]
    # One probability of each example has curvature 1 / p^2: the empirical Fisher matrix.
    assert relative_error(ggn @ v, rows.T @ (rows @ v) / NUM_EXAMPLES) <= 1e-10


def jacobian_of_losses(model, loss, data):
    x, y = (tf.constant(part, tf.float64) for part in data)
    return jacobian(lambda: [loss(y, model(x))], tf_variables(model))


def test_a_warning_says_what_is_left_out_of_g():
    with pytest.warns(UserWarning, match="add losses in their call"):
        GaussNewtonOperator(compiled(CASES[ADDED]), None, split(CASES[ADDED].data()))


# Models and losses of other kinds ----------------------------------------------------------------


def test_tf_keras_models_that_end_in_softmax():
    tf_keras = pytest.importorskip("tf_keras")
    model = tf_keras.Sequential(
        [
            tf_keras.layers.Dense(4, activation="tanh", dtype="float64", input_shape=(3,)),
            tf_keras.layers.Dense(3, activation="softmax", dtype="float64"),
        ]
    )
    model.set_weights([np.asarray(v) for v in tf_variables(mlp("float64"))])
    data = split(classification())
    ggn = GaussNewtonOperator(model, "sparse_categorical_crossentropy", data)
    v = vectors(31)[:, 0]
    assert relative_error(ggn @ v, truth("mlp").matrix @ v) <= 1e-10


class Module(tf.Module):
    def __init__(self):
        super().__init__()
        self.layers = [tf.Variable(v) for v in tf_variables(mlp("float64"))]

    def __call__(self, x):
        a, b, c, d = self.layers
        return tf.nn.softmax(tf.tanh(tf.cast(x, tf.float64) @ a + b) @ c + d)


def test_tf_modules_that_end_in_softmax():
    data = split(classification())
    ggn = GaussNewtonOperator(Module(), "sparse_categorical_crossentropy", data)
    v = vectors(31)[:, 0]
    assert relative_error(ggn @ v, truth("mlp").matrix @ v) <= 1e-10


def mean_cross_entropy(outputs, batch):
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["y"], outputs["logits"])
    return tf.reduce_mean(losses)


@pytest.mark.parametrize(("reduction", "factor"), [(None, 1), ("mean", 1), ("sum", len(SPLIT))])
def test_a_pair_of_functions_gives_outputs_and_loss_apart(reduction, factor):
    x, y = classification()
    sizes = SPLIT if factor == 1 else (NUM_EXAMPLES,)
    pair = (lambda m, batch: {"logits": m(batch["x"]), "count": tf.size(batch["y"])},
            mean_cross_entropy)  # fmt: skip
    ggn = GaussNewtonOperator(
        mlp("float64"), pair, split({"x": x, "y": y}, sizes), reduction=reduction
    )
    v = vectors(31)[:, 0]
    product, gradient = ggn.product_and_gradient(v)
    assert relative_error(product, truth("mlp").matrix @ v) <= 1e-10
    assert relative_error(gradient, truth("mlp").gradient) <= 1e-10


def test_nothing_is_changed():
    inputs = keras.Input((3,))
    x = layers.Dense(4, activation="tanh", kernel_regularizer="l2")(inputs)
    x = layers.Dropout(0.3, seed=3)(layers.BatchNormalization()(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    model(regression()[0], training=True)
    before = [np.asarray(v.value).copy() for v in model.variables]
    ggn = GaussNewtonOperator(model, "mse", split(regression()), training=True)
    v, w = vectors(ggn.shape[0]).T
    assert w @ (ggn @ v) == pytest.approx(v @ (ggn @ w), rel=1e-4)
    np.testing.assert_array_equal(ggn @ v, ggn @ v)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.value, value)


def squared_error(model, batch):
    return tf.reduce_mean(tf.square(model(batch[0]) - batch[1]))


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (squared_error, ValueError, r"cannot be separated.*the pair \(predict, loss\)"),
        (keras.losses.MeanSquaredError, TypeError, "is the class"),
        ((squared_error,), TypeError, "a pair"),
        (None, ValueError, "not compiled"),
        ((lambda m, b: m(b[0]), lambda z, b: z), ValueError, r"scalar, got shape \(5, 2\)"),
        ((lambda m, b: b[0], lambda z, b: tf.reduce_sum(z)), ValueError, "does not depend"),
        (
            (lambda m, b: m(b[0]), lambda z, b: tf.reduce_sum(z**2) / 0.0),
            FloatingPointError,
            "in batch 0",
        ),
    ],
)
def test_bad_losses(loss, error, message):
    model = sequential(layers.Dense(2))
    with pytest.raises(error, match=message):
        ggn = GaussNewtonOperator(model, loss, split(regression()))
        ggn @ np.ones(ggn.shape[0])


def test_a_loss_that_reads_variables_beside_the_outputs_is_warned_of():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(1)])
    first, last = model.layers

    def predict(model, batch):
        return first(batch[0])

    def loss(outputs, batch):
        return tf.reduce_mean(last(outputs) ** 2)

    with pytest.warns(UserWarning, match="reads variables beside the outputs: .*kernel"):
        GaussNewtonOperator(model, (predict, loss), [(np.ones((4, 3), np.float32),)])


def test_labels_that_broadcast_against_the_outputs_count_each():
    inputs = keras.Input((3,), dtype="float64")
    hidden = keras.layers.Dense(2, dtype="float64")(inputs)
    outputs = keras.layers.Reshape((1, 2), dtype="float64")(hidden)
    model = set_random_weights(keras.Model(inputs, outputs))
    rng = np.random.default_rng(0)
    data = [(rng.normal(size=(4, 3)), rng.normal(size=(4, 5, 2)))]
    loss = keras.losses.MeanSquaredError(dtype="float64")
    ggn, hessian = (kind(model, loss, data) for kind in (GaussNewtonOperator, HessianOperator))
    np.testing.assert_allclose(ggn.to_dense(), hessian.to_dense(), atol=1e-14)


def test_a_loss_of_probabilities_that_is_no_cross_entropy_is_warned_of():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "sigmoid")])
    data = [(np.ones((4, 3), np.float32), np.ones((4, 2), np.float32))]
    with pytest.warns(UserWarning, match="cannot be moved into the loss"):
        GaussNewtonOperator(model, keras.losses.Dice(), data)
