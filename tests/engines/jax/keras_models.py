"""What is particular to Keras models under the JAX backend.

Run by test_keras_models.py in a process of its own, with KERAS_BACKEND=jax.
"""

import builtins
import re

import jax
import jax.numpy as jnp
import keras
import mismatches
import numpy as np
import pytest
from errors_page import rows
from jax.flatten_util import ravel_pytree
from keras import layers

from spectral_density import FisherOperator, GaussNewtonOperator, HessianOperator, PreflightError
from tests.engines.jax.rounding_chip import rounding_chip

# Keras, where it sets weights, with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype(np.float32)
LABELS, TARGETS = RNG.integers(0, 3, 12), RNG.normal(size=(12, 2)).astype(np.float32)
WEIGHTS = RNG.uniform(size=12).astype(np.float32)
CUTS = ((0, 5), (5, 10), (10, 12))


def cut(*arrays, cuts=CUTS):
    return [tuple(array[a:b] for array in arrays) for a, b in cuts]


def network(*stack, shape=(4,)):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input(shape), *stack])


def classifier(activation=None):
    return network(layers.Dense(5, "tanh", name="hidden"), layers.Dense(3, activation, name="last"))


def regression(*stack):
    return network(layers.Dense(5, "tanh"), *stack, layers.Dense(2))


def sparse(**options):
    return keras.losses.SparseCategoricalCrossentropy(**options)


def dense_of_stateless_call(model, loss, x, y, training):
    """The Hessian of one batch from Keras's own stateless call."""
    trainable = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]
    flat, back = ravel_pytree(trainable)

    def value(vector):
        outputs, _ = model.stateless_call(back(vector), others, x, training=training)
        return loss(y, outputs)

    return np.asarray(jax.hessian(value)(flat))


def near(found, true, tolerance=2e-5):
    return np.linalg.norm(found - true) <= tolerance * np.linalg.norm(true)


# State -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [layers.BatchNormalization, lambda: layers.Dropout(0.3)])
def test_in_training_mode_state_is_held_constant_and_nothing_is_changed(layer):
    model = regression(layer())
    before = [np.array(v.value) for v in model.variables]
    loss = keras.losses.MeanSquaredError()
    operator = HessianOperator(model, loss, [(X, TARGETS)], training=True)
    true = dense_of_stateless_call(model, loss, X, TARGETS, training=True)
    assert near(operator.to_dense(), true)
    v = np.ones(operator.shape[0])
    np.testing.assert_array_equal(operator @ v, operator @ v)
    with pytest.raises(PreflightError, match="halves changes its product"):
        operator.check()
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.value, value)


def test_dropout_is_named_by_its_layer():
    model = regression(layers.Dropout(0.3, name="drop"))
    with pytest.raises(PreflightError, match=r"place in the batch: .*drop"):
        HessianOperator(model, "mse", [(X, TARGETS)], training=True).check()


def test_weights_are_read_afresh_and_so_are_variables_outside_of_the_model():
    model, factor = regression(), keras.Variable(2.0)

    def scaled(model, batch):
        return factor * keras.ops.mean(keras.ops.square(model(batch[0]) - batch[1]))

    operator = HessianOperator(model, scaled, cut(X, TARGETS))
    plain = HessianOperator(model, "mse", cut(X, TARGETS))
    assert near(operator.to_dense(), 2 * plain.to_dense())
    before = operator.fingerprint()["other variables"]
    factor.assign(3.0)
    model.layers[0].kernel.assign(1.5 * model.layers[0].kernel)
    assert near(operator.to_dense(), 3 * plain.to_dense())
    assert operator.fingerprint()["other variables"] != before


# Losses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "loss", "of_logits", "y"),
    [
        ("softmax", sparse(), sparse(from_logits=True), LABELS),
        (
            "sigmoid",
            keras.losses.BinaryCrossentropy(),
            keras.losses.BinaryCrossentropy(from_logits=True),
            np.eye(3, dtype=np.float32)[LABELS],
        ),
    ],
)
def test_an_activation_at_the_end_belongs_to_the_loss(activation, loss, of_logits, y):
    ended, plain = classifier(activation), classifier()
    plain.set_weights(ended.get_weights())
    found = GaussNewtonOperator(ended, loss, cut(X, y))
    true = GaussNewtonOperator(plain, of_logits, cut(X, y)).to_dense()
    assert near(found.to_dense(), true)
    assert found.check().verdict == "sound"
    assert near(FisherOperator(ended, loss, cut(X, y)).to_dense(), true)


def test_an_activation_that_cannot_be_moved_is_told_of():
    with pytest.warns(UserWarning, match="cannot be moved into the loss"):
        GaussNewtonOperator(network(layers.Dense(3), Halved()), sparse(), cut(X, LABELS))


class Halved(layers.Layer):
    """A softmax, halved and doubled: nothing that ends in a softmax."""

    def call(self, x):
        return 2.0 * (0.5 * keras.ops.softmax(x))


def test_monte_carlo_labels_are_the_same_however_the_data_is_cut():
    model, loss = classifier(), sparse(from_logits=True)
    options = {"kind": "monte_carlo", "num_samples": 3, "seed": 4}
    parts = FisherOperator(model, loss, cut(X, LABELS), **options)
    whole = FisherOperator(model, loss, [(X, LABELS)], **options)
    drawn = np.concatenate([labels for (labels,) in parts.sampled_labels()], axis=1)
    np.testing.assert_array_equal(drawn, whole.sampled_labels()[0][0])
    logits = np.asarray(model(X), np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    slopes = p[None] - np.eye(3)[drawn]  # of -log p(y | z) in z
    gradients = np.einsum("sic,icn->sin", slopes, jacobian(model)).reshape(-1, parts.shape[0])
    assert near(parts.to_dense(), gradients.T @ gradients / len(gradients))
    assert parts.check().verdict == "sound"


def jacobian(model):
    """Of the outputs of all examples, (examples, outputs, weights)."""
    flat, back = ravel_pytree([v.value for v in model.trainable_variables])
    return np.asarray(
        jax.jacobian(lambda w: model.stateless_call(back(w), [], X)[0])(flat), np.float64
    )


def test_labels_that_are_drawn_are_those_at_full_precision_whatever_products_are_in():
    data = cut(X, TARGETS, cuts=((0, 12),))
    with rounding_chip():
        operator = FisherOperator(
            regression(), "mse", data, kind="monte_carlo", matmul_precision="bfloat16"
        )
        assert operator.product_error > 1e-3
        functions = operator.derivatives.functions_of_loss
        (at,) = operator.sweep.inputs()

        def labels(weights, constants):
            return functions.verbs(weights, constants, at).sampled_labels(1, 0)

        with jax.default_matmul_precision("bfloat16"):
            (drawn,) = jax.jit(labels)(*functions.arrays())
    # Targets of a normal distribution around the outputs, which products round to seven bits.
    np.testing.assert_allclose(drawn, operator.sampled_labels()[0][0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "slope"),
    [
        (keras.losses.MeanSquaredError(), lambda z, y: 2 * (z - y)),
        (
            keras.losses.BinaryCrossentropy(from_logits=True),
            lambda z, y: 1 / (1 + np.exp(-z)) - y,
        ),
    ],
    ids=["normal", "bernoulli"],
)
def test_monte_carlo_of_losses_that_average_over_outputs(loss, slope):
    """F = (C / N) sum of g g', g the gradient of Keras's mean over C outputs at a drawn label."""
    model, targets = regression(), (TARGETS > 0).astype(np.float32)
    options = {"kind": "monte_carlo", "num_samples": 200, "seed": 4}
    operator = FisherOperator(model, loss, cut(X, targets), **options)
    drawn = np.concatenate([labels for (labels,) in operator.sampled_labels()], axis=1)
    z = np.asarray(model(X), np.float64)
    gradients = np.einsum("sic,icn->sin", slope(z, drawn) / 2, jacobian(model))
    rows = gradients.reshape(-1, operator.shape[0])
    assert near(operator.to_dense(), 2 * rows.T @ rows / len(rows))
    # Labels of the model's own distribution: unbiased, so that type 2 is the mean over seeds.
    assert near(
        operator.to_dense(), GaussNewtonOperator(model, loss, cut(X, targets)).to_dense(), 0.15
    )


def test_the_empirical_fisher_matrix_counts_weights_once():
    model, loss = classifier(), sparse(from_logits=True)
    operator = FisherOperator(model, loss, cut(X, LABELS, WEIGHTS), kind="empirical")
    p = np.asarray(keras.ops.softmax(model(X)), np.float64)
    gradients = np.einsum("ic,icn->in", p - np.eye(3)[LABELS], jacobian(model))
    assert near(operator.to_dense(), (gradients * WEIGHTS[:, None]).T @ gradients / len(X))
    assert operator.check().verdict == "sound"


def test_functions_of_model_and_batch_and_of_labels_and_outputs():
    model = regression()
    true = HessianOperator(model, "mse", cut(X, TARGETS)).to_dense()

    def of_batch(network, batch):
        return keras.ops.mean(keras.ops.square(network(batch[0]) - batch[1]))

    def of_outputs(targets, outputs):
        return keras.ops.mean(keras.ops.square(outputs - targets), axis=-1)

    assert near(HessianOperator(model, of_batch, cut(X, TARGETS)).to_dense(), true)
    recognized = HessianOperator(model, of_outputs, cut(X, TARGETS))
    assert "as loss(y_true, y_pred)" in repr(recognized)
    assert near(recognized.to_dense(), true)
    pair = (
        lambda network, batch: network(batch[0]),
        lambda z, batch: jnp.mean((z - batch[1]) ** 2),
    )
    assert near(HessianOperator(model, pair, cut(X, TARGETS)).to_dense(), true)


def test_the_state_of_a_model_has_the_loss_and_accuracy_of_keras():
    model = classifier("softmax")
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    loss, accuracy = model.evaluate(X, LABELS, verbose=0)
    state = HessianOperator(model, None, cut(X, LABELS)).model_state()
    assert state.loss == pytest.approx(loss, rel=1e-5)
    assert state.accuracy == pytest.approx(accuracy)
    assert HessianOperator(regression(), "mse", cut(X, TARGETS)).model_state().accuracy is None


def test_losses_of_outputs_are_weighed():
    inputs = keras.Input((4,))
    hidden = layers.Dense(3, "tanh")(inputs)
    model = keras.Model(inputs, [layers.Dense(2)(hidden), layers.Dense(3)(hidden)])
    losses, data = ["mse", sparse(from_logits=True)], [(X, [TARGETS, LABELS])]

    def hessian(weights):
        model.compile(loss=losses, loss_weights=weights)
        return HessianOperator(model, None, data).to_dense()

    first, second = hessian([1.0, 0.0]), hessian([0.0, 1.0])
    assert near(hessian([0.3, 1.7]), 0.3 * first + 1.7 * second)
    assert near(hessian(None), first + second)


def test_weights_of_classes_are_weights_of_examples():
    model, loss = classifier(), sparse(from_logits=True)
    weighed = HessianOperator(model, loss, cut(X, LABELS), class_weight={0: 2.0, 2: 0.5})
    weights = np.array([2.0, 1.0, 0.5], np.float32)[LABELS]
    true = HessianOperator(model, loss, cut(X, LABELS, weights)).to_dense()
    np.testing.assert_array_equal(weighed.to_dense(), true)


def test_a_loss_of_a_whole_batch_is_taken_of_one_batch():
    model, loss = network(layers.Dense(2, "sigmoid")), keras.losses.Dice()
    y = (TARGETS > 0).astype(np.float32)
    true = dense_of_stateless_call(model, loss, X, y, training=False)
    assert near(HessianOperator(model, loss, [(X, y)]).to_dense(), true)
    with pytest.raises(ValueError, match="one number for its whole batch"):
        HessianOperator(model, loss, cut(X, y))


def test_half_precision_is_near_and_said():
    policy = "mixed_float16"
    model = network(layers.Dense(5, "tanh", dtype=policy), layers.Dense(2, dtype=policy))
    operator = HessianOperator(model, "mse", cut(X, TARGETS))
    assert operator.product_dtype == np.float16
    exact = network(layers.Dense(5, "tanh"), layers.Dense(2))
    exact.set_weights(model.get_weights())
    true = HessianOperator(exact, "mse", cut(X, TARGETS)).to_dense()
    assert near(operator.to_dense(), true, 2e-2)


# Selection, and bad input ------------------------------------------------------------------------


def test_layers_and_variables_are_chosen():
    model = classifier()
    whole = HessianOperator(model, sparse(from_logits=True), cut(X, LABELS)).to_dense()
    last = slice(4 * 5 + 5, None)
    for variables in ("last", model.layers[1], re.compile("last"), list(model.layers[1].weights)):
        operator = HessianOperator(
            model, sparse(from_logits=True), cut(X, LABELS), variables=variables
        )
        assert near(operator.to_dense(), whole[last, last])
    assert list(operator.derivatives.inspection.layers()) == ["last"]


def bad():
    model = classifier()
    yield model, {"variables": "head"}, "no layer or trainable variable is named 'head'"
    yield keras.Sequential([layers.Dense(3)]), {}, "was never built"
    frozen = classifier()
    frozen.trainable = False
    yield frozen, {}, "no trainable variables"
    quantized = classifier()
    quantized.quantize("int8")
    yield quantized, {}, r"layer '\w+' is quantized \(int8\)"


@pytest.mark.parametrize("index", range(4))
@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
def test_bad_models(index):
    model, options, message = list(bad())[index]
    with pytest.raises(ValueError, match=message):
        HessianOperator(model, sparse(from_logits=True), cut(X, LABELS), **options)


def test_a_label_that_is_no_class_is_refused_where_it_counts():
    wrong, weights = LABELS.copy(), WEIGHTS.copy()
    wrong[7], weights[7] = 3, 0.0
    model, loss = classifier(), sparse(from_logits=True)
    with pytest.raises(ValueError, match=r"labels are from 0 to 3.*the classes 0 to 2"):
        HessianOperator(model, loss, cut(X, wrong))
    right = HessianOperator(model, loss, cut(X, LABELS, weights)).to_dense()
    assert near(HessianOperator(model, loss, cut(X, wrong, weights)).to_dense(), right)
    wrong[7] = -1
    ignored = HessianOperator(model, sparse(from_logits=True, ignore_class=-1), cut(X, wrong))
    assert ignored.loss() > 0


def test_a_model_that_trains_by_its_own_code_is_refused():
    class Own(keras.Sequential):
        def compute_loss(self, *arguments, **options):
            return 2 * super().compute_loss(*arguments, **options)

    model = Own([keras.Input((4,)), layers.Dense(2)])
    model.compile(loss="mse")
    with pytest.raises(ValueError, match="has a compute_loss of its own"):
        HessianOperator(model, None, cut(X, TARGETS))


# Kernels without a second derivative -------------------------------------------------------------


def test_kernels_of_accelerators_are_switched_off_while_tracing_and_restored():
    """They are taken on GPUs alone: here layers tell what they were set to when called."""
    seen = []

    class Attention(layers.Layer):
        def __init__(self):
            super().__init__()
            self._flash_attention = True

        def call(self, x):
            seen.append(self._flash_attention)
            return x

    class Recurrent(layers.GRU):
        def call(self, sequences, initial_state=None, mask=None, training=False):
            seen.append(self.use_cudnn)
            return super().call(sequences, initial_state, mask, training)

    attention, recurrent = Attention(), Recurrent(3)
    model = network(attention, recurrent, shape=(5, 4))
    x, y = np.ones((6, 5, 4), np.float32), np.ones((6, 3), np.float32)
    seen.clear()
    operator = HessianOperator(model, "mse", [(x, y)])
    operator @ np.ones(operator.shape[0])
    assert set(seen) == {False}
    assert (attention._flash_attention, recurrent.use_cudnn) == (True, "auto")
    # The names are Keras's.
    assert hasattr(layers.MultiHeadAttention(1, 1), "_flash_attention")
    assert hasattr(layers.GroupQueryAttention(1, 1, 1), "_flash_attention")
    assert hasattr(layers.LSTM(1), "use_cudnn")


@pytest.mark.parametrize("passed", mismatches.CASES)
def test_bad_arguments_raise_what_the_page_of_errors_says(passed):
    name, says = rows()[passed]
    kind = getattr(builtins, name)
    if issubclass(kind, Warning):
        with pytest.warns(kind, match=re.escape(says)):
            mismatches.CASES[passed]()
        return
    with pytest.raises(kind, match=re.escape(says)):
        mismatches.CASES[passed]()


def test_filters_are_those_of_the_layers_and_kernels_of_pytrees_have_theirs_last():
    stack = [
        layers.DepthwiseConv2D(2, depth_multiplier=2, name="depthwise"),
        layers.Conv2DTranspose(5, 2, name="transposed"),
        layers.Flatten(),
        layers.Dense(2, name="dense"),
    ]
    model = network(*stack, shape=(3, 3, 2))
    batch = RNG.normal(size=(4, 3, 3, 2)).astype("f"), RNG.normal(size=(4, 2)).astype("f")
    operator = HessianOperator(model, "mse", [batch])
    axes = operator.derivatives.inspection.filter_axes()
    names = (name.partition("/")[2] for name in operator.parameters.names)
    found = dict(zip(names, axes, strict=True))
    assert found["depthwise/kernel"] == (2, 3)
    assert found["transposed/kernel"] == (2,)
    assert found["dense/kernel"] == (1,)
    assert found["dense/bias"] == ()
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    plain = HessianOperator.from_function(lambda p: jnp.sum(p["kernel"] ** 2 * p["bias"]), params)
    assert plain.derivatives.inspection.filter_axes() == [(), (1,)]
