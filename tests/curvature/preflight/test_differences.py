"""Right networks pass and wrong operations fail, in the layer they are behind.

The faults stay whatever is made right while tracing: custom gradients whose second derivatives are
missing, or off by a factor.
"""

import contextlib
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import CASES, classes, compiled, mlp, normals, set_random_weights, split

from spectral_density.curvature import FisherOperator, GaussNewtonOperator, HessianOperator
from spectral_density.curvature.preflight import PreflightError, preflight
from spectral_density.engines.tensorflow import inspection
from spectral_density.engines.tensorflow.beside_weights import TracedBesideWeights


def of_logits(dtype="float32"):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=dtype)


@tf.custom_gradient
def without_second_derivative(x):
    """A softened identity with its own slope, held fixed where it is differentiated again."""
    slope = tf.stop_gradient(1 + 0.5 * (1 - tf.tanh(x) ** 2))
    return x + 0.5 * tf.tanh(x), lambda upstream: tf.stop_gradient(upstream) * slope


@tf.custom_gradient
def with_half_a_second_derivative(x):
    def gradient(upstream):
        slope = 1 - tf.tanh(x) ** 2
        return upstream * 0.5 * (slope + tf.stop_gradient(slope))

    return tf.tanh(x), gradient


@tf.custom_gradient
def square_with_half_the_curvature_of_the_mean(x):
    """What TensorFlow's moments do: the mean in the gradient of a variance is stopped."""
    mean = tf.reduce_mean(x, -1, keepdims=True)

    def gradient(upstream):
        return upstream * 2 * (x - tf.stop_gradient(mean)) / x.shape[-1]

    return tf.reduce_mean((x - mean) ** 2, -1, keepdims=True), gradient


def wrongly_normalized(x):
    variance = square_with_half_the_curvature_of_the_mean(x)
    return (x - tf.reduce_mean(x, -1, keepdims=True)) * tf.math.rsqrt(variance + 1e-3)


@tf.custom_gradient
def with_another_gradient(x):
    return tf.tanh(x), lambda upstream: 1.2 * upstream * (1 - tf.tanh(x) ** 2)


class Wrong(layers.Layer):
    def __init__(self, function, **options):
        super().__init__(**options)
        self.function = function

    def call(self, x):
        return self.function(x)


FAULTS = {
    "no second derivative": without_second_derivative,
    "half a second derivative": with_half_a_second_derivative,
}


def dense(activation, dtype, fault=None, after=0):
    stack = [keras.Input((6,), dtype=dtype)]
    for number in range(3):
        stack.append(layers.Dense(10, activation, dtype=dtype, name=f"hidden{number}"))
        if fault is not None and number == after:
            stack.append(Wrong(fault, dtype=dtype))
    return keras.Sequential([*stack, layers.Dense(3, dtype=dtype, name="head")])


def convolutions(activation, dtype, fault=None, after=0):
    stack = [keras.Input((8, 8, 1), dtype=dtype)]
    for number in range(3):
        stack.append(
            layers.Conv2D(
                4, 3, activation=activation, padding="same", dtype=dtype, name=f"conv{number}"
            )
        )
        if fault is not None and number == after:
            stack.append(Wrong(fault, dtype=dtype))
        if number < 2:
            stack.append(layers.MaxPooling2D(2, dtype=dtype))
    return keras.Sequential([*stack, layers.Flatten(), layers.Dense(3, dtype=dtype, name="head")])


def transformer(activation, dtype, fault=None, after=0):
    inputs = keras.Input((4, 6), dtype=dtype)
    h = inputs
    for number in range(2):
        normal = layers.LayerNormalization(dtype=dtype, name=f"norm{number}")(h)
        h = h + layers.MultiHeadAttention(2, 3, dtype=dtype, name=f"attention{number}")(
            normal, normal
        )
        wide = layers.Dense(8, activation, dtype=dtype, name=f"hidden{number}")(h)
        if fault is not None and number == after:
            wide = Wrong(fault, dtype=dtype)(wide)
        h = h + layers.Dense(6, dtype=dtype, name=f"down{number}")(wide)
    pooled = layers.GlobalAveragePooling1D(dtype=dtype)(h)
    return keras.Model(inputs, layers.Dense(3, dtype=dtype, name="head")(pooled))


NETWORKS = {
    "relu MLP": (dense, "relu", (6,)),
    "relu6 MLP": (dense, "relu6", (6,)),
    "leaky relu CNN": (convolutions, "leaky_relu", (8, 8, 1)),
    "relu CNN": (convolutions, "relu", (8, 8, 1)),
    "tanh MLP": (dense, "tanh", (6,)),
    "gelu transformer": (transformer, "gelu", (4, 6)),
}


def made(name, dtype="float32", fault=None, after=0, trained=False):
    build, activation, shape = NETWORKS[name]
    keras.utils.set_random_seed(3)
    model = build(activation, dtype, fault, after)
    x, y = normals(12, *shape).astype(dtype), classes(12)
    if trained:
        fitted(model, x, y, of_logits(dtype))
    return HessianOperator(model, of_logits(dtype), [(x[:9], y[:9]), (x[9:], y[9:])])


def fitted(model, x, y, loss, below=1e-4, rate=1e-2):
    """Train until the loss is below a limit."""
    variables = [variable.value for variable in model.trainable_variables]
    optimizer = keras.optimizers.Adam(rate)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=False))
        optimizer.apply(tape.gradient(value, variables))
        return value

    for _ in range(1500):
        if float(step()) < below:
            return
    raise RuntimeError("the network did not fit")


def statuses(report):
    return report["derivative"].status, report["gradient"].status


# Right networks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_right_network_passes(name):
    report = preflight(made(name))
    assert statuses(report) == ("passed", "passed"), report
    assert report.verdict == "sound"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("relu MLP", "float32"),
        ("relu MLP", "float64"),
        ("relu CNN", "float32"),
        pytest.param("gelu transformer", "float32", marks=pytest.mark.exhaustive),
    ],
)
def test_a_right_network_passes_once_it_is_trained(name, dtype):
    report = preflight(made(name, dtype, trained=True))
    assert statuses(report) == ("passed", "passed"), report


@pytest.mark.exhaustive
@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "trained"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_right_network_passes(name, dtype, trained):
    report = preflight(made(name, dtype, trained=trained))
    assert statuses(report) == ("passed", "passed"), report


def test_a_network_whose_cross_entropy_is_rounding_is_not_judged():
    operator = made("relu CNN")
    kernel, bias = operator.parameters.variables[-2:]
    kernel.assign(tf.zeros_like(kernel))
    bias.assign([40.0, 0.0, 0.0])
    same = [(batch[0], np.zeros(len(batch[1]), int)) for batch in operator.batches]
    report = preflight(operator.with_dataset(same))
    assert statuses(report) == ("skipped", "skipped"), report


def test_at_a_minimum_the_gradient_is_judged_by_the_bend_of_the_loss():
    x = normals(12, 6)
    model = set_random_weights(dense("tanh", "float32"))
    report = preflight(HessianOperator(model, "mse", [(x, np.asarray(model(x)))]))
    assert statuses(report) == ("passed", "passed"), report


@pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_is_not_judged(name, recwarn):
    x, y = normals(12, 3), classes(12)
    report = HessianOperator(mlp(name), of_logits(), [(x, y)]).check()
    assert statuses(report) == ("skipped", "skipped")
    assert "half precision" in report["derivative"].message
    assert not recwarn.list


# Networks of keras.applications ------------------------------------------------------------------

# By their name: how they are made, the pixels, an activation, and the layers before it, of which
# the last may be wrong by less than differences resolve.
APPLICATIONS = {
    "MobileNetV2": (
        lambda **options: keras.applications.MobileNetV2(alpha=0.35, **options),
        32,
        "block_6_expand_relu",
        ("block_6_expand_BN",),
    ),
    "ResNet50": (keras.applications.ResNet50, 32, "conv3_block2_1_relu", ("conv3_block2_1_bn",)),
    "InceptionV3": (
        keras.applications.InceptionV3,
        75,
        "activation_30",
        ("batch_normalization_30", "conv2d_30"),
    ),
}


@contextlib.contextmanager
def default_precision(dtype):
    before = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(before[1])
        keras.config.set_dtype_policy(before[0])


def application(name, dtype="float32", fault=None, trained=False, at=None):
    """Return an operator, of a network with statistics of its data, and weights of random ones."""
    build, pixels, behind, _ = APPLICATIONS[name]
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    with default_precision(dtype):
        model = build(
            input_shape=(pixels, pixels, 3), weights=None, classes=3, classifier_activation=None
        )
    if fault is not None:
        put_behind(model.get_layer(at or behind), fault)
    x, y = normals(4, pixels, pixels, 3, seed=5).astype(dtype), np.arange(4) % 3
    if trained:
        for layer in model.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.momentum = 0.3
        for _ in range(12):
            model(x, training=True)
        fitted(model, x, y, of_logits(dtype), rate=1e-3)
    return HessianOperator(model, of_logits(dtype), [(x, y)])


def put_behind(layer, function):
    call = layer.call
    layer.call = lambda *args, **options: function(call(*args, **options))


@pytest.mark.exhaustive
@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "trained"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", APPLICATIONS)
def test_every_right_application_passes(name, dtype, trained):
    report = preflight(application(name, dtype, trained=trained))
    assert statuses(report) == ("passed", "passed"), report


@pytest.mark.exhaustive
@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "trained"])
@pytest.mark.parametrize("name", APPLICATIONS)
def test_every_application_with_a_wrong_operation_fails(name, trained):
    report = preflight(application(name, fault=without_second_derivative, trained=trained))
    assert report["derivative"].status == "failed", report
    message = report["derivative"].message
    assert any(f"'{layer}'" in message for layer in APPLICATIONS[name][-1]), message


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", APPLICATIONS)
def test_every_application_with_a_wrong_normalization_fails(name):
    """It is 4e-5 of the product in MobileNetV2, less than trained networks lose by rounding."""
    report = preflight(application(name, fault=wrongly_normalized))
    assert report["derivative"].status == "failed", report
    message = report["derivative"].message
    assert any(f"'{layer}'" in message for layer in APPLICATIONS[name][-1]), message


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", APPLICATIONS)
def test_every_application_with_a_resize_is_right(name):
    def resized(x):
        height, width = x.shape[1:3]
        return tf.image.resize(tf.image.resize(x, (2 * height, 3 * width)), (height, width))

    report = preflight(application(name, fault=resized))
    assert statuses(report) == ("passed", "passed"), report


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", APPLICATIONS)
def test_every_application_with_a_python_function_is_refused(name):
    def in_python(x):
        return tf.ensure_shape(tf.py_function(tf.sin, [x], x.dtype), x.shape)

    with pytest.raises(ValueError, match=APPLICATIONS[name][-2]):
        application(name, fault=in_python)


# Wrong operations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fault", "after"),
    [
        ("relu MLP", "no second derivative", 0),
        ("relu MLP", "half a second derivative", 1),
        ("relu CNN", "no second derivative", 1),
        ("gelu transformer", "half a second derivative", 0),
    ],
)
def test_a_wrong_second_derivative_fails_and_names_the_layer_before_it(name, fault, after):
    report = preflight(made(name, fault=FAULTS[fault], after=after))
    assert statuses(report) == ("failed", "passed"), report
    layer = "conv" if "CNN" in name else "hidden"
    assert f"'{layer}{after}'" in report["derivative"].message


@pytest.mark.exhaustive
@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "trained"])
@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["relu MLP", "leaky relu CNN", "gelu transformer"])
def test_every_wrong_second_derivative_fails(name, fault, after, trained):
    report = preflight(made(name, fault=FAULTS[fault], after=after, trained=trained))
    assert report["derivative"].status == "failed", report


def test_a_wrong_second_derivative_fails_in_a_trained_network():
    report = preflight(made("relu MLP", fault=without_second_derivative, after=1, trained=True))
    assert report["derivative"].status == "failed", report


def test_a_wrong_gradient_fails():
    report = preflight(made("relu MLP", fault=with_another_gradient, after=1))
    assert report["gradient"].status == "failed", report
    assert "another function" in report["gradient"].message


def test_check_raises_of_a_wrong_derivative_unless_it_is_switched_off():
    operator = made("tanh MLP", fault=with_half_a_second_derivative)
    report = operator.check(derivative=False)
    assert statuses(report) == ("skipped", "skipped")
    assert "not asked for" in report["derivative"].message
    with pytest.raises(PreflightError, match="hidden0"):
        operator.check()
    assert operator.check(derivative=False).verdict == "sound"


FUNCTIONS = {
    "equal eigenvalues": (
        lambda m: tf.reduce_sum(tf.linalg.eigvalsh((m + tf.transpose(m)) / 2) ** 2),
        np.eye(2),
    ),
    "a product with zeros": (tf.reduce_prod, np.array([0.0, 0.0, 3.0])),
    "a fixed slope": (
        lambda v: tf.reduce_sum(without_second_derivative(v) ** 2),
        np.array([0.5, 1.0, 2.0]),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_wrong_function_of_variables_fails_or_is_right(name):
    function, start = FUNCTIONS[name]
    operator = HessianOperator.from_function(function, tf.Variable(start))
    report = preflight(operator)
    dense, n, step = operator.to_dense(), start.size, 1e-5
    truth = np.zeros((n, n))
    for column in range(n):
        ends = []
        for sign in (1, -1):
            moved = start.reshape(-1).copy()
            moved[column] += sign * step
            v = tf.Variable(moved.reshape(start.shape))
            with tf.GradientTape() as tape:
                value = function(v)
            ends.append(np.reshape(tape.gradient(value, v), -1))
        truth[:, column] = (ends[0] - ends[1]) / (2 * step)
    is_right = np.allclose(dense, truth, atol=1e-5 * np.abs(truth).max())
    assert report["derivative"].status == ("passed" if is_right else "failed"), report


def test_one_normalization_fails_in_a_network_trained_in_float32():
    """It is one percent of the product, and less than rounding was in float32."""
    report = preflight(made("relu MLP", fault=wrongly_normalized, after=1, trained=True))
    assert report["derivative"].status == "failed", report
    assert "'hidden1'" in report["derivative"].message


FAST = {
    "sines of large numbers": (lambda v: tf.reduce_sum(tf.sin(v)), [1e6, 2e6]),
    "sines of large numbers in float64": (
        lambda v: tf.reduce_sum(tf.sin(v)),
        np.array([1e6, 2e6]),
    ),
    "a cosine at zero": (lambda v: tf.reduce_sum(tf.cos(1e7 * v)), np.zeros(5)),
    "two scales in one variable": (
        lambda v: tf.sin(v[0] * 1e8) * tf.sin(v[1] * 1e-6) + v[0] * v[1],
        np.array([1e-8, 1e6]),
    ),
}


@pytest.mark.parametrize("name", FAST)
def test_functions_that_vary_within_the_step_are_not_judged(name):
    function, start = FAST[name]
    report = preflight(HessianOperator.from_function(function, tf.Variable(start)))
    assert "failed" not in statuses(report), report


# What is stopped on purpose ----------------------------------------------------------------------


def test_values_that_a_loss_stops_are_held():
    def siamese(model, batch):
        one, two = model(batch[0]), model(-batch[0])
        return tf.reduce_mean((one - tf.stop_gradient(two)) ** 2)

    operator = HessianOperator(dense("tanh", "float32"), siamese, [(normals(12, 6),)])
    assert statuses(preflight(operator)) == ("passed", "passed")


def test_a_straight_through_estimator_of_the_users_own_is_its_surrogate():
    def loss(model, batch):
        z = model(batch[0])
        return tf.reduce_mean((z + tf.stop_gradient(tf.round(z) - z)) ** 2)

    operator = HessianOperator(dense("tanh", "float32"), loss, [(normals(12, 6),)])
    assert statuses(preflight(operator)) == ("passed", "passed")


# Gauss-Newton and Fisher -------------------------------------------------------------------------


def through_outputs(fault=None, loss="mse"):
    x = normals(12, 6)
    y = {"mse": normals(12, 3, seed=4), "bce": classes(12, 3, count=2), "ce": classes(12)}[loss]
    losses = {
        "mse": "mse",
        "bce": keras.losses.BinaryCrossentropy(from_logits=True),
        "ce": of_logits(),
    }
    return dense("relu", "float32", fault, 1), losses[loss], [(x[:8], y[:8]), (x[8:], y[8:])]


KINDS = {
    "Gauss-Newton": GaussNewtonOperator,
    "type 2": lambda *a: FisherOperator(*a),
    "Monte Carlo": lambda *a: FisherOperator(*a, kind="monte_carlo", num_samples=2),
    "empirical": lambda *a: FisherOperator(*a, kind="empirical"),
}


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        *(("Gauss-Newton", "ce"), ("type 2", "mse"), ("empirical", "ce"), ("empirical", "mse")),
        *(("Monte Carlo", "ce"), ("Monte Carlo", "bce"), ("Monte Carlo", "mse")),
    ],
)
def test_gauss_newton_and_fisher_matrices_pass(kind, loss):
    report = preflight(KINDS[kind](*through_outputs(loss=loss)))
    assert statuses(report) == ("passed", "passed"), report


@pytest.mark.parametrize("kind", KINDS)
def test_gauss_newton_and_fisher_matrices_fail_behind_a_wrong_operation(kind):
    @tf.custom_gradient
    def without_pushforward(x):
        """What is linear in a cotangent is stopped there, so that J v loses it."""
        return tf.tanh(x), lambda up: tf.stop_gradient(up) * (1 - tf.tanh(x) ** 2)

    report = preflight(KINDS[kind](*through_outputs(without_pushforward)))
    assert statuses(report) == ("failed", "passed"), report
    assert "'hidden1'" in report["derivative"].message


def test_a_wrong_matrix_at_the_outputs_fails():
    def loss(outputs, batch):
        return tf.reduce_mean(with_half_a_second_derivative(outputs) ** 2)

    model, _, data = through_outputs()
    operator = GaussNewtonOperator(model, (lambda model, batch: model(batch[0]), loss), data)
    report = preflight(operator)
    assert report["derivative"].status == "failed"
    assert "at the outputs" in report["derivative"].message


# What it costs and leaves behind -----------------------------------------------------------------


def test_five_gradients_and_one_product_of_the_first_batch(monkeypatch):
    made_of = []

    class Counted(TracedBesideWeights):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made_of.append(self)

    monkeypatch.setattr(inspection, "TracedBesideWeights", Counted)
    for operator in (made("relu CNN"), KINDS["empirical"](*through_outputs())):
        with_it, without = (preflight(operator, derivative=d).num_products for d in (True, False))
        assert with_it - without == pytest.approx(1 / 2)
    assert [batch.num_gradients for batch in made_of] == [5, 5]


def test_no_graph_is_traced_for_it():
    operator = made("relu MLP")
    preflight(operator, derivative=False)
    traces = operator.num_traces
    preflight(operator)
    assert operator.num_traces == traces


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_weights_and_state_are_restored_bit_for_bit(error, monkeypatch):
    x, y = normals(12, 3), classes(12)
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4), layers.BatchNormalization(), layers.Dense(3)]
    )
    operator = HessianOperator(model, of_logits(), [(x, y)], training=True)
    before = [variable.numpy().copy() for variable in model.variables]
    if error is not None:
        gradients = itertools.count()
        whole = TracedBesideWeights.at

        def gradient(self, displacement):
            if next(gradients) == 3:
                raise error
            return whole(self, displacement)

        monkeypatch.setattr(TracedBesideWeights, "at", gradient)
        with pytest.raises(error):
            preflight(operator)
    else:
        preflight(operator)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_the_penalty_on_weights_is_no_part_of_it():
    case = CASES["regularizers and add_loss"]
    operator = HessianOperator(compiled(case), None, split(case.data(), (6, 3, 3)))
    assert statuses(preflight(operator)) == ("passed", "passed")
