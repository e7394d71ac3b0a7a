import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from curvature.preflight.problems import (
    SIZES,
    SPARSE,
    contrastive,
    examples,
    hessian,
    noise_added,
    squared_error,
)
from keras import layers
from models import (
    CASES,
    NUM_EXAMPLES,
    affine,
    batch_norm,
    classes,
    classification,
    compiled,
    mlp,
    normals,
    regression,
    sequential,
    set_random_weights,
    split,
    weight_tied,
)

from spectral_density import approximate_hessian, estimate_spectrum, lanczos, top_eigenpairs
from spectral_density.curvature import FisherOperator, GaussNewtonOperator, HessianOperator
from spectral_density.curvature.preflight import PreflightError, preflight
from spectral_density.engines.tensorflow.compiled_products import CompiledProducts


def of_sequences(model, **options):
    data = (normals(NUM_EXAMPLES, 3, 2), classes(NUM_EXAMPLES))
    return hessian(model, data=data, **options)


def dense_with(*middle, **options):
    return hessian(
        sequential(layers.Dense(4, activation="tanh"), *middle, layers.Dense(3)), **options
    )


def shared(name, dtype="float32"):
    """An operator on one of the cases that products are tested on."""
    case = CASES[name]
    sizes = (12,) if len(case.splits) == 1 else SIZES
    return HessianOperator(compiled(case, dtype), None, split(case.data(), sizes))


class StochasticDepth(layers.Layer):
    """Drops a residual branch with probability 1/2, in training only."""

    def __init__(self):
        super().__init__()
        self.branch = layers.Dense(4, activation="tanh")
        self.generator = keras.random.SeedGenerator(3)

    def call(self, x, training=False):
        branch = self.branch(x)
        if training:
            branch *= keras.ops.cast(
                keras.random.uniform((keras.ops.shape(x)[0], 1), seed=self.generator) < 0.5,
                "float32",
            )
        return x + branch


class TrainTimeNoise(layers.Layer):
    """Multiplies with noise from TensorFlow's global generator, in training only."""

    def call(self, x, training=False):
        return x * tf.random.normal(tf.shape(x), 1.0, 0.3) if training else x


class CentersBatch(layers.Layer):
    """Batch statistics without any state, in both modes."""

    def call(self, x):
        return x - keras.ops.mean(x, axis=0, keepdims=True)


def images():
    return normals(NUM_EXAMPLES, 6, 6, 2), classes(NUM_EXAMPLES)


def depthwise_and_transposed():
    return sequential(
        layers.DepthwiseConv2D(3, activation="tanh"),
        layers.Conv2DTranspose(2, 2, strides=2),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3),
        shape=(6, 6, 2),
    )


def sum_of_squares(model, batch):
    return tf.reduce_sum(tf.square(model(batch[0]) - batch[1]))


def noisy(model, batch):
    return squared_error(model, (batch[0] + tf.random.normal(tf.shape(batch[0])), batch[1]))


def cancelled(model, batch):
    """The mean of ||W'x||^2, less the same in another order of summing: zero on paper."""
    x, kernel = batch[0], model.layers[0].kernel.value
    other = tf.matmul(tf.matmul(x, x, transpose_a=True), kernel)
    difference = tf.reduce_sum(tf.square(model(x))) - tf.reduce_sum(kernel * other)
    return difference / tf.cast(tf.shape(x)[0], tf.float32)


def same_noise(model, batch):
    noise = tf.random.stateless_normal(tf.shape(batch[0]), seed=(1, 2))
    return squared_error(model, (batch[0] + noise, batch[1]))


def masked_mean(model, batch):
    """A mean over part of the batch: neither a mean nor a sum over its examples."""
    share = tf.sigmoid(batch[1])
    return tf.reduce_sum(tf.square(model(batch[0]) - batch[1]) * share) / tf.reduce_sum(share)


@tf.custom_gradient
def one_sided(x):
    """Its gradient is no gradient of anything."""

    def gradient(upstream):
        return upstream * tf.stack([x[:, 1], x[:, 0] ** 2], axis=1)

    return x, gradient


def with_wrong_gradient(model, batch):
    return tf.reduce_mean(tf.square(one_sided(model(batch[0])) - batch[1]))


def tf_data(*steps, memory_share=0.25):
    dataset = examples()
    for step in steps:
        dataset = step(dataset)
    return HessianOperator(mlp(), SPARSE, dataset, memory_share=memory_share)


@dataclass(frozen=True)
class Row:
    """An operator, what preflight should say of it, and where."""

    make: Callable[[], Any]
    verdict: str = "sound"
    check: str = ""
    says: str = ""


def sound(name, dtype="float32"):
    return Row(lambda: shared(name, dtype))


def unsound(make, check, says):
    return Row(make, "unsound", check, says)


def doubtful(make, check, says):
    return Row(make, "doubtful", check, says)


TABLE = {
    # Sound models ------------------------------------------------------------------------------
    "MLP": sound("mlp"),
    "ReLU MLP": sound("relu mlp"),
    "CNN with max-pooling": sound("cnn"),
    "dropout and BatchNorm in inference": sound("batch norm"),
    "LayerNorm": sound("layer norm"),
    "LayerNorm in training mode": Row(
        lambda: dense_with(layers.LayerNormalization(), training=True)
    ),
    "embedding": sound("embedding"),
    "LSTM in a loop": sound("lstm", "float64"),
    "GRU in a loop": sound("gru"),
    "attention": sound("attention"),
    "shared layer, two inputs": sound("shared layer, two inputs"),
    "two outputs": sound("two outputs, dicts"),
    "two outputs, weights": sound("two outputs, weights by name"),
    "regularizers and add_loss": sound("regularizers and add_loss"),
    "stochastic depth in inference": Row(lambda: dense_with(StochasticDepth())),
    "weight-tied autoencoder, unused variable": sound("weight tied, subclassed, unused variable"),
    "depthwise and transposed convolutions": Row(
        lambda: hessian(depthwise_and_transposed(), data=images())
    ),
    "mixed float16": Row(lambda: hessian(mlp("mixed_float16"))),
    "mixed bfloat16": Row(lambda: hessian(mlp("mixed_bfloat16"))),
    "float64": sound("mlp", "float64"),
    "frozen layer": sound("frozen layer"),
    "noise of training in inference": Row(lambda: dense_with(TrainTimeNoise())),
    "masked sequence": sound("masked sequence"),
    "masked sequence, weighted mean": sound("masked sequence, mean with sample weight"),
    "sample weights": sound("sample weights"),
    "loss that is a sum": sound("sum"),
    "affine in a variable": sound("affine in a variable"),
    "one example a batch": Row(lambda: hessian(mlp(), sizes=(1,) * NUM_EXAMPLES)),
    "one batch": Row(lambda: hessian(mlp(), sizes=(NUM_EXAMPLES,))),
    "matrix of rounding alone": Row(
        lambda: hessian(sequential(layers.Dense(2, use_bias=False)), cancelled)
    ),
    "Gauss-Newton": Row(
        lambda: GaussNewtonOperator(batch_norm(), SPARSE, split(classification(), SIZES))
    ),
    "Fisher, labels drawn": Row(
        lambda: FisherOperator(
            mlp(), SPARSE, split(classification(), SIZES), kind="monte_carlo", num_samples=2
        )
    ),
    "empirical Fisher": Row(
        lambda: FisherOperator(mlp(), SPARSE, split(classification(), SIZES), kind="empirical")
    ),
    "function, mean": Row(lambda: hessian(affine(), squared_error, regression())),
    "function, sum": Row(lambda: hessian(affine(), sum_of_squares, regression(), reduction="sum")),
    "function of a variable": Row(
        lambda: HessianOperator.from_function(
            lambda v: tf.reduce_sum(v**4), tf.Variable([1.0, 2.0])
        )
    ),
    "batches weighed alike": Row(
        lambda: hessian(affine(), squared_error, regression(), batch_weight=lambda batch: 1.0)
    ),
    "softmax and its cross-entropy": Row(
        lambda: hessian(softmax_mlp(), "sparse_categorical_crossentropy")
    ),
    "shuffled once and for all, streamed": Row(
        lambda: tf_data(
            lambda d: d.shuffle(9, seed=1, reshuffle_each_iteration=False),
            lambda d: d.batch(6, drop_remainder=True),
            memory_share=0,
        )
    ),
    "shuffled, kept": Row(lambda: tf_data(lambda d: d.shuffle(60), lambda d: d.batch(20))),
    "shuffled, streamed": Row(
        lambda: tf_data(lambda d: d.shuffle(60), lambda d: d.batch(20), memory_share=0)
    ),
    # Unsound models ----------------------------------------------------------------------------
    "dropout in training": unsound(
        lambda: dense_with(layers.Dropout(0.5, seed=1, name="drop"), training=True),
        "repeatable",
        "Dropout 'drop'",
    ),
    "little dropout in training, one batch": unsound(
        lambda: dense_with(layers.Dropout(0.05, seed=1), training=True, sizes=(NUM_EXAMPLES,)),
        "repeatable",
        "Dropout",
    ),
    "dropout in training, one example a batch": unsound(
        lambda: dense_with(layers.Dropout(0.3, seed=1), training=True, sizes=(1,) * NUM_EXAMPLES),
        "repeatable",
        "Dropout",
    ),
    "dropout inside attention in training": unsound(
        lambda: of_sequences(attention_with_dropout(), training=True),
        "repeatable",
        "Dropout",
    ),
    "dropout inside an LSTM in training": unsound(
        lambda: of_sequences(
            sequential(
                layers.LSTM(2, dropout=0.5, seed=1, unroll=True), layers.Dense(3), shape=(3, 2)
            ),
            training=True,
        ),
        "repeatable",
        "LSTM",
    ),
    "state carried from batch to batch": unsound(
        lambda: of_sequences(stateful_rnn(), sizes=(4, 4, 4)),
        "repeatable",
        "depends on a state that each call changes: SimpleRNN",
    ),
    "noise of a fixed seed": unsound(
        lambda: hessian(weight_tied(), same_noise, (regression()[0],) * 2),
        "split",
        "Random numbers depend on the place",
    ),
    "BatchNorm in training": unsound(
        lambda: dense_with(layers.BatchNormalization(name="norm"), training=True),
        "split",
        "BatchNormalization 'norm'",
    ),
    "stochastic depth in training": unsound(
        lambda: dense_with(StochasticDepth(), training=True), "repeatable", "StochasticDepth"
    ),
    "Gaussian noise in training": unsound(
        lambda: dense_with(layers.GaussianNoise(0.1, seed=1), training=True),
        "repeatable",
        "GaussianNoise",
    ),
    "random augmentation layer in training": unsound(
        lambda: hessian(
            sequential(
                layers.RandomBrightness(0.5, value_range=(-1, 1), seed=1),
                layers.Flatten(),
                layers.Dense(3),
                shape=(6, 6, 2),
            ),
            data=images(),
            training=True,
        ),
        "repeatable",
        "RandomBrightness",
    ),
    "own noise in training": unsound(
        lambda: dense_with(TrainTimeNoise(), training=True), "repeatable", "TrainTimeNoise"
    ),
    "noise in the loss": unsound(
        lambda: hessian(weight_tied(), noisy, (regression()[0],) * 2),
        "repeatable",
        "RandomStandard",
    ),
    "batch statistics without a state": unsound(
        lambda: dense_with(CentersBatch()), "split", "others in its batch"
    ),
    "contrastive loss": unsound(
        lambda: hessian(mlp(), contrastive), "split", "others in its batch"
    ),
    "mean declared as a sum": unsound(
        lambda: hessian(weight_tied(), squared_error, (regression()[0],) * 2, reduction="sum"),
        "split",
        'reduction="mean"',
    ),
    "sum declared as a mean": unsound(
        lambda: hessian(weight_tied(), sum_of_squares, (regression()[0],) * 2),
        "split",
        'reduction="sum"',
    ),
    "mean of a part": unsound(
        lambda: hessian(weight_tied(), masked_mean, (regression()[0],) * 2),
        "split",
        "neither a mean nor a sum",
    ),
    "weighted mean of a scalar loss": unsound(
        lambda: HessianOperator(
            compiled(CASES["own loss that is a mean, weights"]),
            None,
            split(CASES["own loss that is a mean, weights"].data(), SIZES),
        ),
        "split",
        "halves",
    ),
    "gradient that is none": unsound(
        lambda: hessian(
            sequential(layers.Dense(2, activation="tanh")), with_wrong_gradient, regression()
        ),
        "symmetric",
        "custom gradient",
    ),
    "drop_remainder with shuffling, streamed": unsound(
        lambda: tf_data(
            lambda d: d.shuffle(60), lambda d: d.batch(20, drop_remainder=True), memory_share=0
        ),
        "data",
        "drop_remainder",
    ),
    "augmentation in the dataset, streamed": unsound(
        lambda: tf_data(lambda d: d.batch(20), lambda d: d.map(noise_added), memory_share=0),
        "data",
        "3 of 3 batches",
    ),
    "NaN in the weights": unsound(lambda: with_spoiled_weight(np.nan), "finite", "hidden/bias"),
    "infinity in the data": unsound(lambda: with_spoiled_data(), "finite", "batch 1 of 3"),
    "a loss without the model": unsound(
        lambda: hessian(mlp(), lambda model, batch: tf.reduce_mean(batch[0])),
        "variables",
        "Does loss_fn use the model",
    ),
    # Doubtful models ---------------------------------------------------------------------------
    "augmentation in the dataset, kept": doubtful(
        lambda: tf_data(lambda d: d.batch(20), lambda d: d.map(noise_added)), "data", "3 of 3"
    ),
    "logits under a loss of probabilities": doubtful(
        lambda: hessian(mlp(), keras.losses.SparseCategoricalCrossentropy()),
        "outputs",
        "from_logits=True",
    ),
    "logits under a binary loss of probabilities": doubtful(
        lambda: hessian(
            affine(), "binary_crossentropy", (regression()[0], classes(NUM_EXAMPLES, 1, count=2))
        ),
        "outputs",
        "binary_crossentropy expects probabilities",
    ),
    "probabilities under a loss of logits": doubtful(
        lambda: hessian(
            sequential(layers.Dense(3), layers.Lambda(lambda x: tf.exp(tf.nn.log_softmax(x))))
        ),
        "outputs",
        "sums to 1",
    ),
    "a coupling hardly more than rounding": doubtful(
        lambda: hessian(affine(), nearly_a_mean, regression()), "split", "halves"
    ),
}


def attention_with_dropout():
    inputs = keras.Input((3, 2))
    mixed = layers.MultiHeadAttention(2, 2, dropout=0.5, seed=1)(inputs, inputs)
    pooled = layers.GlobalAveragePooling1D()(mixed)
    return set_random_weights(keras.Model(inputs, layers.Dense(3)(pooled)))


def with_spoiled_weight(value):
    model = mlp()
    model.layers[0].bias.assign([1.0, value, 0.0, 0.0])
    return hessian(model)


def with_spoiled_data():
    x, y = classification()
    x = x.copy()
    x[7, 0] = np.inf
    return hessian(mlp(), data=(x, y))


def stateful_rnn():
    inputs = keras.Input(batch_shape=(4, 3, 2))
    hidden = layers.SimpleRNN(2, stateful=True, unroll=True)(inputs)
    return set_random_weights(keras.Model(inputs, layers.Dense(3)(hidden)))


def softmax_mlp():
    return sequential(layers.Dense(4, activation="tanh"), layers.Dense(3, activation="softmax"))


def nearly_a_mean(model, batch):
    return squared_error(model, batch) ** 1.001


# The table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_the_verdict_of_the_table(name):
    row = TABLE[name]
    operator = row.make()
    report = preflight(operator)
    assert report.verdict == row.verdict, report
    assert operator.num_passes == 2 or row.check in ("finite", "variables")
    if row.check:
        assert row.says in report[row.check].message, report
        status = {"unsound": "failed", "doubtful": "doubtful"}[row.verdict]
        assert report[row.check].status == status, report
        others = {check.name for check in (*report.failed, *report.doubtful)} - {row.check}
        # What is not symmetric is no derivative either.
        assert others <= ({"derivative", "gradient"} if row.check == "symmetric" else set()), report


# What a check costs and leaves behind ------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "products"), [((12,), 2.5), ((4,) * 3, 2 + 0.5 / 3)])
def test_two_passes_and_half_a_batch_are_all_that_is_computed(sizes, products):
    operator = hessian(mlp(), sizes=sizes)
    report = preflight(operator, derivative=False)
    assert operator.num_passes == 2
    assert report.num_products == pytest.approx(products, abs=1e-3)
    # And one of the first batch, to be compared with differences.
    report = preflight(operator)
    assert operator.num_passes == 4
    assert report.num_products == pytest.approx(products + 1 / len(sizes), abs=1e-3)


def test_nothing_is_left_changed_in_the_model():
    model = sequential(layers.Dense(3), layers.BatchNormalization(), layers.Dropout(0.5))
    operator = hessian(model, training=True)
    before = [variable.numpy().copy() for variable in model.variables]
    assert preflight(operator).failed
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_the_report_is_the_same_for_the_same_seed():
    first, second = (preflight(hessian(mlp()), seed=5) for _ in range(2))
    assert str(first) == str(second)
    assert dataclasses.is_dataclass(first)


def test_a_report_says_what_was_asked_and_found():
    report = preflight(hessian(mlp()))
    names = [check.name for check in report.checks]
    assert names == [
        *("finite", "data", "repeatable", "linearized", "split", "symmetric", "outputs"),
        *("surrogate", "variables", "derivative", "gradient"),
    ]
    text = str(report)
    assert text.startswith("HessianOperator(SparseCategoricalCrossentropy, 31 parameters")
    assert all(name in text for name in names)
    assert "sound" in text.splitlines()[0]
    # What passed is one line, what was skipped its own; in the details each has one.
    status = [line.split()[0] for line in text.splitlines()[1:-1]]
    assert status == [
        *("skipped" for check in report.checks if check.status == "skipped"),
        "passed",
    ]
    assert len(report.details.splitlines()) == 2 + len(names)
    with pytest.raises(KeyError, match="symmetric"):
        report["symmetry"]


# check() -----------------------------------------------------------------------------------------


def test_check_raises_with_the_report():
    operator = dense_with(layers.Dropout(0.5, seed=1, name="drop"), training=True)
    with pytest.raises(
        PreflightError, match=r"(?s)differs by [\d.]+ of its norm.*Dropout 'drop'.*check=False"
    ) as error:
        operator.check()
    assert isinstance(error.value, ValueError)
    assert error.value.report.verdict == "unsound"


def test_check_warns_of_a_doubt_once_and_with_the_figure():
    operator = hessian(mlp(), keras.losses.SparseCategoricalCrossentropy())
    with pytest.warns(UserWarning, match=r"lies in \[-.*from_logits=True") as caught:
        operator.check()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert operator.check().verdict == "doubtful"


def test_check_of_a_sound_operator_returns_its_report():
    assert hessian(mlp()).check(seed=3).verdict == "sound"


def test_a_model_of_a_fixed_batch_size_is_not_cut():
    model = keras.Sequential([keras.Input(batch_shape=(4, 3)), layers.Dense(2)])
    report = preflight(hessian(set_random_weights(model), "mse", regression(), sizes=(4, 4, 4)))
    assert report.verdict == "sound", report


def test_a_loss_that_takes_no_half_is_not_cut():
    def loss(model, batch):
        return tf.reduce_mean(tf.reshape(model(batch[0]), [4]) ** 2)

    operator = hessian(affine(), loss, regression(), sizes=(4, 4, 4))
    report = preflight(operator)
    assert report.verdict == "sound", report
    assert report["split"].status == "skipped"
    assert "takes no half" in report["split"].message


# Variables ---------------------------------------------------------------------------------------


def test_unused_variables_are_listed_and_no_doubt():
    report = preflight(shared("weight tied, subclassed, unused variable"))
    assert [name.split("/")[-1] for name in report.unused_variables] == ["unused"]
    assert report["variables"].status == "passed"
    assert "does not use" in report["variables"].message


def test_a_variable_that_only_has_no_curvature_is_used():
    assert preflight(shared("affine in a variable")).unused_variables == ()


def test_a_variable_that_is_only_penalized_is_used():
    inputs = keras.Input((3,))
    layer = layers.Dense(2, kernel_regularizer="l2", name="aside")
    outputs = [layers.Dense(2)(inputs), layer(inputs)]
    model = set_random_weights(keras.Model(inputs, outputs))
    x, y = regression()
    operator = HessianOperator(model, ["mse", None], [(x, [y, y])])
    assert preflight(operator).unused_variables == ("aside/bias",)


# Other frameworks, other operators ---------------------------------------------------------------


def test_dropout_of_tf_keras_is_named():
    tf_keras = pytest.importorskip("tf_keras")
    dropout = tf_keras.layers.Dropout(0.5, seed=1, name="drop")
    stack = [tf_keras.layers.Dense(4, input_shape=(3,)), dropout, tf_keras.layers.Dense(3)]
    model = tf_keras.Sequential(stack)
    assert preflight(hessian(model, SPARSE)).verdict == "sound"
    report = preflight(hessian(model, SPARSE, training=True))
    assert "Dropout 'drop'" in report["repeatable"].message, report


def test_noise_that_python_draws_is_found():
    rng = np.random.default_rng(0)

    def loss(model, batch):
        noise = tf.numpy_function(lambda: rng.normal(size=3).astype(np.float32), [], tf.float32)
        return squared_error(model, (batch[0] + tf.ensure_shape(noise, [3]), batch[1]))

    report = preflight(hessian(weight_tied(), loss, (regression()[0],) * 2))
    assert "Python function" in report["repeatable"].message, report


@pytest.mark.parametrize("operator", [np.eye(2), hessian, None])
def test_other_operators_are_refused(operator):
    with pytest.raises(TypeError, match="HessianOperator"):
        preflight(operator)


def test_rounding_alone_is_measured_and_no_difference():
    report = preflight(TABLE["matrix of rounding alone"].make())
    assert report["split"].figure > 1e-2  # of a matrix that is zero
    assert report["split"].status == "passed"


# The drivers ask first ---------------------------------------------------------------------------


def coupled():
    """A fixed, symmetric, finite matrix that no split of the data leaves as it is."""
    return hessian(mlp(), contrastive)


DRIVERS = {
    "lanczos": lambda operator, **options: lanczos(operator, 3, **options).alpha,
    "estimate_spectrum": lambda operator, **options: (
        estimate_spectrum(operator, 3, 2, draws_at_once=1, **options).nodes
    ),
    "top_eigenpairs": lambda operator, **options: top_eigenpairs(operator, 1, **options).values,
}


@pytest.mark.parametrize("driver", DRIVERS.values(), ids=DRIVERS)
def test_a_driver_refuses_an_unsound_operator_unless_told_not_to_look(driver):
    operator = coupled()
    for _ in range(2):
        with pytest.raises(PreflightError, match="others in its batch"):
            driver(operator)
    passes = operator.num_passes
    assert passes == 4
    driver(operator, check=False)
    assert operator.num_passes > passes


@pytest.mark.parametrize("driver", DRIVERS.values(), ids=DRIVERS)
def test_looking_first_changes_no_bit(driver):
    found, alone = (driver(hessian(mlp()), check=check) for check in (True, False))
    np.testing.assert_array_equal(found, alone)


def test_looking_first_changes_no_bit_where_the_model_has_a_state():
    def run(check):
        model = sequential(layers.Dense(3), layers.BatchNormalization(), layers.Dropout(0.5))
        return lanczos(hessian(model), 3, check=check).alpha

    np.testing.assert_array_equal(run(True), run(False))


def test_approximate_hessian_looks_first():
    data = split(classification(), SIZES)
    with pytest.raises(PreflightError, match="others in its batch"):
        approximate_hessian(mlp(), contrastive, data, 3)
    v, _ = approximate_hessian(mlp(), contrastive, data, 3, check=False)
    assert v.shape == (31, 3)


def test_two_passes_once_for_the_weights_and_then_no_more():
    operator = hessian(mlp())
    lanczos(operator, 3)
    assert operator.num_passes == 2 + 3
    lanczos(operator, 3)
    estimate_spectrum(operator, 3, 1)
    # The spectrum records loss, gradient norm and accuracy: a pass each.
    assert operator.num_passes == 2 + 3 * 3 + 3
    kernel = operator.parameters.variables[0]
    kernel.assign(2.0 * kernel)
    lanczos(operator, 3)
    assert operator.num_passes == 2 * 2 + 4 * 3 + 3


def test_a_run_that_is_resumed_takes_two_passes_too(tmp_path):
    lanczos(hessian(mlp()), 3, checkpoint=tmp_path)
    operator = hessian(mlp())
    lanczos(operator, 5, checkpoint=tmp_path)
    # One more makes sure that the operator is the same.
    assert operator.num_passes == 2 + 1 + 2


def test_arguments_are_looked_at_before_the_data():
    operator = hessian(mlp())
    for run in (
        lambda: estimate_spectrum(operator, 99),
        lambda: lanczos(operator, 0),
        lambda: top_eigenpairs(operator, 99),
    ):
        with pytest.raises(ValueError, match=r"order|must be at most"):
            run()
    assert operator.num_passes == 0


def test_a_driver_warns_of_a_doubt_once_and_of_the_line_that_started_it():
    operator = hessian(mlp(), keras.losses.SparseCategoricalCrossentropy())
    with pytest.warns(UserWarning, match="from_logits=True") as caught:
        estimate_spectrum(operator, 2, 1)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        top_eigenpairs(operator, 1)
        operator.parameters.variables[0].assign_add(tf.ones_like(operator.parameters.variables[0]))
        estimate_spectrum(operator, 2, 1)


def test_operators_that_are_put_together_are_taken_as_they_are():
    operator = coupled()
    estimate_spectrum(operator - 0.5 * operator, 3, 1)
    assert operator.num_passes == 2 * 3


def test_check_remembers_and_preflight_looks_afresh():
    operator = hessian(mlp())
    report = operator.check()
    assert operator.check() is report
    assert operator.num_passes == 2
    assert operator.check(seed=1) is not report
    assert preflight(operator) is not report
    assert operator.num_passes == 6


def test_the_figure_of_symmetry_is_the_share_of_the_matrix_that_is_not():
    # Both halves of the batch are the same, so that either has the matrix of the whole.
    x, y = normals(4, 15), normals(4, 2)
    model = sequential(layers.Dense(2), shape=(15,))
    operator = HessianOperator(
        model, with_wrong_gradient, [(np.tile(x, (2, 1)), np.tile(y, (2, 1)))], reduction="mean"
    )
    rows = np.array([operator @ row for row in np.eye(operator.shape[0])])
    share = np.linalg.norm(rows - rows.T) / np.linalg.norm(rows)
    figures = [preflight(operator, seed=seed)["symmetric"].figure for seed in range(30)]
    # Of one pair of vectors it is a random number of about that size.
    assert 0.5 * share <= np.sqrt(np.mean(np.square(figures))) <= 2 * share


def test_a_loss_that_takes_no_half_of_a_batch_is_sound_however_it_says_so():
    x = tf.constant(np.random.default_rng(0).normal(size=(6, 2)))

    def of_numpy(v, x):
        return np.eye(6) + x[:, :1] * v[0]

    def asserted(v, x):
        if x.shape[0] != 6:
            raise AssertionError("six examples")
        return v * x

    def indexed(v, x):
        return [v[0] * row for row in tf.unstack(x)][5]

    module = tf.Module()
    module.v = tf.Variable([0.3, -0.2], dtype=tf.float64)
    for function in (of_numpy, asserted, indexed):
        operator = HessianOperator(
            module,
            lambda model, batch, function=function: tf.reduce_mean(
                tf.sin(function(model.v, batch)) ** 2
            ),
            [x],
        )
        assert operator.check().verdict == "sound"


# What is kept between products -------------------------------------------------------------------


def kept(**options):
    """An operator whose batches leave something behind."""
    stack = [keras.Input((100,)), layers.Dense(256, "tanh"), layers.Dense(3)]
    model = set_random_weights(keras.Sequential(stack))
    return hessian(model, data=(normals(120, 100), classes(120)), sizes=(80, 40), **options)


def test_a_product_from_what_is_kept_is_compared_with_one_computed_anew():
    report = preflight(kept())
    assert report["linearized"].status == "passed"
    assert report["linearized"].figure <= 1e-5


def test_what_is_kept_fails_if_it_gives_another_product(monkeypatch):
    right = CompiledProducts.linearized

    def doubled(self, cache, at, rows):
        return 2 * right(self, cache, at, rows)

    monkeypatch.setattr(CompiledProducts, "linearized", doubled)
    check = preflight(kept())["linearized"]
    assert check.status == "failed"
    assert check.figure == pytest.approx(0.5, abs=1e-5)  # of the larger of both
    assert "linearize=False" in check.message


def test_nothing_is_compared_where_nothing_is_kept():
    assert preflight(kept(linearize=False))["linearized"].status == "skipped"
    assert preflight(shared("mlp"))["linearized"].status == "skipped"
