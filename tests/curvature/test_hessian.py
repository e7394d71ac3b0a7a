import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import (
    CASES,
    NUM_EXAMPLES,
    SPLIT,
    affine,
    batch_norm,
    classes,
    classification,
    compiled,
    flat_gradient,
    jacobian_hessian,
    keras_truth,
    mlp,
    normals,
    one_parameter,
    regression,
    regularized,
    relative_error,
    sequential,
    set_random_weights,
    split,
    tf_variables,
    truth,
    vectors,
)
from scipy.sparse.linalg import eigsh

from spectral_density.curvature import HessianOperator
from spectral_density.engines.tensorflow.compiled_products import MAX_WIDTH

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def cubic(x):
    return 2 * x[0] ** 3 * x[1] ** 3


def squared_error(model, batch):
    return tf.reduce_mean(tf.square(model(batch[0]) - batch[1]))


def small(dtype="float32", sizes=SPLIT, **options):
    """The operator of the small MLP, its truth under the same name."""
    return HessianOperator(mlp(dtype), SPARSE, split(classification(), sizes), **options)


# The dense matrix --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for name, case in CASES.items() for dtype in case.dtypes]
)
def test_products_gradient_and_loss_are_those_of_the_full_batch_objective(name, dtype):
    case, true = CASES[name], truth(name)
    assert keras.config.floatx() == "float32"
    hessian = HessianOperator(compiled(case, dtype), None, split(case.data(), case.splits))
    block = vectors(hessian.shape[0])
    tolerance = TOLERANCE[dtype]
    assert hessian.product_dtype == dtype
    assert relative_error(hessian @ block, true.hessian @ block) <= tolerance
    assert relative_error(hessian.gradient(), true.gradient) <= tolerance
    assert hessian.loss() == pytest.approx(true.loss, rel=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_to_dense_is_the_hessian_column_by_column(name, dtype):
    case, true = CASES[name], truth(name)
    hessian = HessianOperator(compiled(case, dtype), None, split(case.data(), (NUM_EXAMPLES,)))
    assert relative_error(hessian.to_dense(), true.hessian) <= TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("policy", "tolerance"),
    [("mixed_float16", 5e-3), ("mixed_bfloat16", 5e-2), ("float16", 5e-3), ("bfloat16", 5e-2)],
)
def test_half_precision_is_near_the_hessian(policy, tolerance):
    hessian = small(policy)
    block, true = vectors(hessian.shape[0]), truth("mlp").hessian
    assert relative_error(hessian @ block, true @ block) <= tolerance


def test_ragged_batches_are_the_full_batch():
    ragged, full = small(), small(sizes=(NUM_EXAMPLES,))
    block = vectors(full.shape[0])
    assert relative_error(ragged @ block, full @ block) <= 1e-6
    assert relative_error(ragged.gradient(), full.gradient()) <= 1e-6


def test_a_cubic_by_hand():
    hessian = HessianOperator.from_function(cubic, tf.Variable([1.0, 1.0]))
    np.testing.assert_allclose(hessian.to_dense(), [[12, 18], [18, 12]], rtol=1e-6)
    np.testing.assert_allclose(hessian.gradient(), [6, 6], rtol=1e-6)
    assert hessian.loss() == 2


def test_from_function_hands_over_the_very_structure_it_was_given():
    given = {"a": keras.Variable([1.0, 2.0]), "b": (tf.Variable(3.0, dtype=tf.float64),)}
    seen = []

    def loss(variables):
        seen.append(variables)
        a, b = variables["a"].value, variables["b"][0]
        return tf.reduce_sum(tf.cast(a, tf.float64) ** 2) * b

    hessian = HessianOperator.from_function(loss, given)
    expected = [[6, 0, 2], [0, 6, 4], [2, 4, 0]]
    np.testing.assert_allclose(hessian.to_dense(), expected, rtol=1e-6)
    assert all(variables is given for variables in seen)


def test_a_subset_of_variables_is_a_block_of_the_matrix():
    model = mlp("float64")
    hessian = HessianOperator(model, SPARSE, split(classification()), variables="logits")
    where = HessianOperator(model, SPARSE, split(classification())).parameters.slices[2].start
    block = vectors(hessian.shape[0])
    expected = truth("mlp").hessian[where:, where:] @ block
    assert relative_error(hessian @ block, expected) <= 1e-10


# Models of other kinds ---------------------------------------------------------------------------


def tf_keras_model(tf_keras, dtype="float64"):
    model = tf_keras.Sequential(
        [
            tf_keras.layers.Dense(
                3,
                activation="tanh",
                dtype=dtype,
                input_shape=(3,),
                kernel_regularizer=tf_keras.regularizers.L2(0.1),
                activity_regularizer=tf_keras.regularizers.L2(0.2),
            ),
            tf_keras.layers.BatchNormalization(dtype=dtype),
            tf_keras.layers.Dense(1, dtype=dtype, kernel_regularizer="l2"),
        ]
    )
    rng = np.random.default_rng(5)
    model.set_weights([0.5 + 0.3 * rng.random(w.shape) for w in model.get_weights()])
    return model


@pytest.fixture
def tf_keras():
    module = pytest.importorskip("tf_keras")
    before = module.backend.floatx()
    module.backend.set_floatx("float64")
    yield module
    module.backend.set_floatx(before)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("labels", [(NUM_EXAMPLES,), (NUM_EXAMPLES, 1)])
@pytest.mark.parametrize("kind", ["name", "object", "function"])
def test_tf_keras_models(tf_keras, kind, labels, weighted):
    model = tf_keras_model(tf_keras)
    loss = {
        "name": "mse",
        "object": tf_keras.losses.MeanSquaredError(),
        "function": tf_keras.losses.mean_squared_error,
    }[kind]
    data = (normals(NUM_EXAMPLES, 3), normals(*labels))
    data = (*data, np.linspace(0.2, 2, NUM_EXAMPLES)) if weighted else data
    # The full batch: tf_keras divides activity by the batch, so that batches would agree as well.
    true = keras_truth(model, loss, data)
    hessian = HessianOperator(model, None, split(data))
    block = vectors(hessian.shape[0])
    assert relative_error(hessian @ block, true.hessian @ block) <= 1e-10
    assert relative_error(hessian.gradient(), true.gradient) <= 1e-10
    assert hessian.loss() == pytest.approx(true.loss, rel=1e-10)


class Module(tf.Module):
    def __init__(self):
        super().__init__("line")
        self.slope = tf.Variable(normals(3, 2), name="slope")
        self.fixed = tf.Variable(1.0, trainable=False)

    def __call__(self, x):
        return tf.tanh(x @ self.slope) * self.fixed


@pytest.mark.parametrize("loss", ["mse", keras.losses.MeanSquaredError(), squared_error])
def test_tf_modules(loss):
    module, data = Module(), regression()
    hessian = HessianOperator(module, loss, split(data))
    expected = jacobian_hessian(lambda: squared_error(module, data), module.trainable_variables)
    assert relative_error(hessian.to_dense(), expected) <= 1e-5


def test_training_mode_keeps_the_same_dropout_at_every_product():
    model, data = batch_norm("float64"), split(classification())
    hessian = HessianOperator(model, SPARSE, data, training=True)
    v, w = vectors(hessian.shape[0]).T
    assert w @ (hessian @ v) == pytest.approx(v @ (hessian @ w), rel=1e-9)
    np.testing.assert_array_equal(hessian @ v, hessian @ v)


def test_an_if_on_a_tensor_is_allowed_in_a_loss_function():
    def loss_fn(model, batch):
        value = squared_error(model, batch)
        if value > 0:
            value = 3 * value
        return value

    model, data = affine(), [(normals(5, 3), normals(5, 1))]
    thrice = HessianOperator(model, loss_fn, data)
    once = HessianOperator(model, squared_error, data)
    v = vectors(once.shape[0])
    assert relative_error(thrice @ v, 3 * (once @ v)) <= 1e-6


# A scipy operator --------------------------------------------------------------------------------


def test_eigsh_takes_it_as_it_is():
    hessian = small("float64")
    values = eigsh(hessian, k=3, which="LA", return_eigenvectors=False)
    expected = np.linalg.eigvalsh(truth("mlp").hessian)[-3:]
    np.testing.assert_allclose(np.sort(values), expected, rtol=1e-10)


def test_operator_arithmetic():
    hessian = small("float64", sizes=(NUM_EXAMPLES,))
    dense, v = truth("mlp").hessian, vectors(hessian.shape[0])
    for operator, matrix in [
        (2 * hessian - hessian.T, dense),
        (hessian @ hessian, dense @ dense),
        (hessian**2, dense @ dense),
        (-hessian.H, -dense),
    ]:
        assert relative_error(operator @ v, matrix @ v) <= 1e-10
    assert relative_error(hessian.rmatvec(v[:, 0]), dense @ v[:, 0]) <= 1e-10
    assert relative_error(v[:, 0] @ hessian, dense @ v[:, 0]) <= 1e-10


def test_products_are_float64_in_the_shape_of_the_argument():
    hessian = small()
    n = hessian.shape[0]
    for shape in [(n,), (n, 1), (n, 3), (n, 0)]:
        for dtype in (np.float64, np.float32, np.int64):
            product = hessian @ np.ones(shape, dtype)
            assert product.shape == shape and product.dtype == np.float64


def test_wide_blocks_take_one_pass():
    hessian = HessianOperator(mlp("float64"), SPARSE, split(classification(), (NUM_EXAMPLES,)))
    block = vectors(hessian.shape[0], MAX_WIDTH + 1)
    before = hessian.num_passes
    product = hessian @ block
    assert hessian.num_passes == before + 1
    assert relative_error(product, truth("mlp").hessian @ block) <= 1e-10
    assert hessian.num_traces == 2


def test_product_and_gradient_from_one_pass():
    hessian = small("float64")
    v = vectors(hessian.shape[0], 1)[:, 0]
    before = hessian.num_passes
    product, gradient = hessian.product_and_gradient(v)
    assert hessian.num_passes == before + 1
    assert relative_error(product, truth("mlp").hessian @ v) <= 1e-10
    assert relative_error(gradient, truth("mlp").gradient) <= 1e-10


def test_one_trace_per_batch_signature_and_width():
    hessian = small()
    n = hessian.shape[0]
    assert hessian.num_traces == 0
    for _ in range(3):
        hessian @ np.ones(n)
    assert hessian.num_traces == 2  # batches of 5 and of 3
    for _ in range(2):
        hessian @ np.ones((n, 2))
    assert hessian.num_traces == 4


def test_many_operators_do_not_warn_of_retracing(caplog):
    logger = tf.get_logger()
    logger.addHandler(caplog.handler)
    try:
        for _ in range(4):
            hessian = HessianOperator(one_parameter(), "mse", split((np.ones((13, 1)),) * 2))
            hessian @ [1.0]
    finally:
        logger.removeHandler(caplog.handler)
    assert "retracing" not in caplog.text


def test_the_same_bits_twice():
    v = vectors(small().shape[0])[:, 0]
    first = small()
    np.testing.assert_array_equal(first @ v, first @ v)
    np.testing.assert_array_equal(first @ v, small() @ v)
    np.testing.assert_array_equal(first @ v, small(memory_share=0) @ v)


def test_the_operator_follows_the_model():
    model, data = regularized("float64"), split(regression())
    hessian = HessianOperator(model, "mse", data)
    v = vectors(hessian.shape[0])
    before = hessian @ v
    set_random_weights(model, seed=7)
    after = hessian @ v
    np.testing.assert_array_equal(after, HessianOperator(model, "mse", data) @ v)
    assert relative_error(before, after) > 1e-2
    assert hessian.num_traces == 2


def test_it_says_what_it_is():
    text = repr(small())
    assert text == (
        "HessianOperator(SparseCategoricalCrossentropy, 31 parameters, 3 batches, float32)"
    )


# Nothing is changed ------------------------------------------------------------------------------


def everything():
    """A compiled model after a step of training, with all kinds of state."""
    inputs = keras.Input((3,))
    x = layers.Dense(4, activation="tanh", kernel_regularizer="l2", activity_regularizer="l2")(
        inputs
    )
    x = layers.BatchNormalization()(x)
    x = layers.Dropout(0.3, seed=3)(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    model.compile(optimizer=keras.optimizers.Adam(), loss="mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    model.optimizer.apply([tf.ones(v.shape) for v in model.trainable_variables])
    model(regression()[0], training=True)
    return model


def snapshot(model):
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return (
        [np.asarray(v.value).copy() for v in variables],
        [np.asarray(loss).copy() for loss in model.losses],
    )


def assert_unchanged(model, before):
    for now, then in zip(snapshot(model), before, strict=True):
        assert len(now) == len(then)
        for a, b in zip(now, then, strict=True):
            np.testing.assert_array_equal(a, b)


def training_error(model, batch):
    return tf.reduce_mean(tf.square(model(batch[0], training=True) - batch[1]))


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (None, {}),
        (None, {"training": True}),
        (training_error, {}),
        (training_error, {"memory_share": 0}),
    ],
)
def test_nothing_is_changed(loss, options):
    model = everything()
    before = snapshot(model)
    hessian = HessianOperator(model, loss, split(regression()), **options)
    hessian @ vectors(hessian.shape[0])
    hessian.gradient()
    hessian.loss()
    assert_unchanged(model, before)
    assert all(layer.trainable for layer in model.layers)
    model.fit(*regression(), batch_size=5, verbose=0)  # and it trains on


def non_scalar(model, batch):
    return tf.reduce_mean(tf.square(model(batch[0], training=True) - batch[1]), axis=-1)


def infinite_in_training(model, batch):
    return tf.reduce_mean(tf.square(model(batch[0], training=True))) / 0.0


def raises_after_the_call(model, batch):
    model(batch[0], training=True)
    raise RuntimeError("the user's own")


X, Y = regression()
SPOILED = np.where(np.arange(NUM_EXAMPLES)[:, None] == 7, np.nan, X)
BAD_INPUT = {
    "non-scalar loss": (non_scalar, split((X, Y)), {}, ValueError, r"got shape \(5,\)"),
    "loss that ignores the model": (
        lambda model, batch: tf.reduce_sum(batch[0]),
        split((X, Y)),
        {},
        ValueError,
        "does not depend",
    ),
    "constant loss": (lambda model, batch: 1.0, split((X, Y)), {}, ValueError, "does not depend"),
    "integer loss": (
        lambda model, batch: tf.size(model(batch[0])),
        split((X, Y)),
        {},
        TypeError,
        "real floating-point",
    ),
    "complex loss": (
        lambda model, batch: tf.cast(squared_error(model, batch), tf.complex64),
        split((X, Y)),
        {},
        TypeError,
        "real floating-point",
    ),
    "no tensor": (lambda model, batch: None, split((X, Y)), {}, TypeError, "NoneType"),
    "loss that raises": (
        raises_after_the_call,
        split((X, Y)),
        {},
        RuntimeError,
        "the user's own",
    ),
    "empty dataset": (None, [], {}, ValueError, "empty"),
    "infinite dataset": (
        None,
        tf.data.Dataset.from_tensors((X, Y)).repeat(),
        {},
        ValueError,
        "infinite",
    ),
    "used up": (None, iter(split((X, Y))), {}, ValueError, "used up"),
    "one array": (None, [X], {}, ValueError, r"\(x, y\)"),
    "four arrays": (None, [(X, Y, Y, Y)], {}, ValueError, "tuple of 4"),
    "dict": (None, [{"x": X, "y": Y}], {}, ValueError, "loss_fn"),
    "a later batch without labels": (None, [(X, Y), (X,)], {}, ValueError, "tuple of 1"),
    "no labels": (None, [(X, None)], {}, ValueError, "no labels"),
    "labels of another length": (None, [(X, Y[:5])], {}, ValueError, r"\[5, 13\]"),
    "too few features": (None, [(X[:, :2], Y)], {}, ValueError, "shape"),
    "NaN in a batch": (None, split((SPOILED, Y)), {}, FloatingPointError, "in batch 1 of 3"),
    "infinity in a product": (
        infinite_in_training,
        split((X, Y)),
        {},
        FloatingPointError,
        "in batch 0 of 3",
    ),
    "unknown layer": (None, [(X, Y)], {"variables": "nope"}, ValueError, "There are: .*kernel"),
    "no variables": (None, [(X, Y)], {"variables": []}, ValueError, "empty"),
    "weights that sum to zero": (
        keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"),
        [(X, Y, np.zeros(NUM_EXAMPLES))],
        {},
        ValueError,
        "sum to zero",
    ),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_an_error_and_leaves_the_model_alone(name):
    loss, dataset, options, error, message = BAD_INPUT[name]
    model = everything()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        hessian = HessianOperator(model, loss, dataset, **options)
        hessian @ np.ones(hessian.shape[0])
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n: np.ones(n + 1), r"shape \(31,\)"),
        (lambda n: np.ones((n + 1, 2)), r"shape \(31,\)"),
        (lambda n: np.ones((1, n)), r"shape \(31,\)"),
        (lambda n: np.ones((n, 1, 1)), "1-d or 2-d"),
        (lambda n: np.ones(n) * 1j, "complex"),
        (lambda n: np.full(n, np.nan), "holds NaN"),
        (lambda n: np.full((n, 2), np.inf), "holds NaN"),
    ],
)
def test_bad_vectors(make, message):
    hessian = small(sizes=(NUM_EXAMPLES,))
    with pytest.raises(ValueError, match=message):
        hessian @ make(hessian.shape[0])
    assert hessian.num_passes == 0


def test_product_and_gradient_takes_one_vector():
    hessian = small(sizes=(NUM_EXAMPLES,))
    with pytest.raises(ValueError, match=r"block of shape \(31, 2\)"):
        hessian.product_and_gradient(np.ones((31, 2)))


def test_gradient_of_an_independent_loss_is_an_error_too():
    hessian = HessianOperator(mlp(), lambda model, batch: tf.reduce_sum(batch[0]), [(X, Y)])
    with pytest.raises(ValueError, match="does not depend"):
        hessian.gradient()


def test_nan_in_a_gradient_names_the_batch():
    hessian = HessianOperator(affine(), squared_error, split((SPOILED, Y[:, :1])))
    with pytest.raises(FloatingPointError, match="the gradient is not finite in batch 1 of 3"):
        hessian.gradient()


def test_a_dense_matrix_too_large_for_memory_is_an_error():
    hessian = HessianOperator.from_function(
        lambda v: tf.reduce_sum(v**2), tf.Variable(tf.zeros([2_000_000]))
    )
    with pytest.raises(MemoryError, match=r"29802\.3 GiB"):
        hessian.to_dense()


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (keras.Sequential([layers.Dense(2)]), ValueError, "never built"),
        (lambda x: x, TypeError, "from_function"),
        (tf.Module(), ValueError, "no trainable variables"),
    ],
)
def test_bad_models(model, error, message):
    with pytest.raises(error, match=message):
        HessianOperator(model, "mse", [(X, Y)])


def test_an_all_frozen_model_is_an_error():
    model = sequential(layers.Dense(2))
    model.trainable = False
    with pytest.raises(ValueError, match="frozen"):
        HessianOperator(model, "mse", [(X, Y)])


def test_an_uncompiled_model_needs_a_loss():
    with pytest.raises(ValueError, match="not compiled"):
        HessianOperator(mlp(), None, [(X, classes(NUM_EXAMPLES))])


@pytest.mark.parametrize(
    ("function", "variables", "error", "message"),
    [
        (lambda v: v, tf.Variable([1.0, 2.0]), ValueError, r"got shape \(2,\)"),
        (lambda v: tf.constant(1.0), tf.Variable(1.0), ValueError, "does not depend"),
        (lambda v: 1.0, [], ValueError, "empty"),
        (lambda v: 1.0, tf.constant(1.0), TypeError, "tf.Variable"),
        (lambda v: 1.0, np.ones(2), TypeError, "tf.Variable"),
        (lambda v: 1.0, tf.Variable(1), ValueError, "not floating point"),
    ],
)
def test_bad_functions_and_variables(function, variables, error, message):
    with pytest.raises(error, match=message):
        HessianOperator.from_function(function, variables) @ np.ones(1)


def test_another_backend_is_an_error(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    with pytest.raises(ValueError, match=r"'torch' backend.*KERAS_BACKEND=tensorflow"):
        HessianOperator(mlp(), SPARSE, [classification()])


def test_another_backend_is_an_error_in_a_real_one():
    pytest.importorskip("jax", reason="Keras's NumPy backend imports it")
    code = (
        "import keras, numpy as np\n"
        "from spectral_density.curvature import HessianOperator\n"
        "model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])\n"
        "try:\n"
        "    HessianOperator(model, 'mse', [(np.ones((2, 3)), np.ones((2, 2)))])\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": "numpy", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "'numpy' backend" in done.stdout, done.stderr
    assert "KERAS_BACKEND=tensorflow" in done.stdout


def test_gradient_against_the_tape_for_a_plain_function():
    model, data = affine("float64"), (normals(NUM_EXAMPLES, 3), normals(NUM_EXAMPLES, 1))
    wide = tuple(part.astype(np.float64) for part in data)
    hessian = HessianOperator(model, squared_error, split(wide))
    expected = flat_gradient(lambda: squared_error(model, wide), tf_variables(model))
    assert relative_error(hessian.gradient(), np.asarray(expected)) <= 1e-12
    assert hessian.loss() == pytest.approx(float(squared_error(model, wide)), rel=1e-12)


def fingerprint(model=None, **loss_options):
    x, y = np.eye(6, 4, dtype=np.float32), np.arange(6) % 3
    if model is None:
        model = set_random_weights(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, **loss_options)
    return HessianOperator(model, loss, [(x[:4], y[:4]), (x[4:], y[4:])]).fingerprint()


def test_a_fingerprint_is_that_of_the_matrix():
    import json

    first = fingerprint()
    # Layers are numbered as they are made, and their names are part of it.
    model = set_random_weights(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
    same, again = fingerprint(model), fingerprint(model)
    assert same == again
    assert json.loads(json.dumps(same)) == same
    assert first["data"] == same["data"]
    assert first["weights"] == same["weights"]
    assert fingerprint(model, reduction="sum")["loss"] != same["loss"]
    model.layers[0].bias.assign_add([0.0, 1e-6, 0.0])
    assert fingerprint(model)["weights"] != same["weights"]


def test_the_weights_of_batches_are_part_of_a_fingerprint():
    def of_weights(*weights):
        data = [{"x": normals(2, 3, seed=i), "weight": i} for i in range(len(weights))]
        hessian = HessianOperator(
            mlp(),
            lambda model, batch: tf.reduce_mean(model(batch["x"]) ** 2),
            data,
            batch_weight=lambda batch: weights[int(batch["weight"])],
        )
        return hessian.fingerprint()

    first, same, other = of_weights(1.0, 3.0), of_weights(1.0, 3.0), of_weights(3.0, 1.0)
    assert first["data"] == same["data"] == other["data"]
    for part in ("batch weights", "examples"):
        assert first[part] == same[part] != other[part]


def test_the_states_of_a_stateful_recurrent_layer_are_put_back():
    model = set_random_weights(
        keras.Sequential([keras.Input(batch_shape=(4, 3, 2)), keras.layers.GRU(3, stateful=True)])
    )
    (state,) = model.layers[0].states
    state.assign(np.full((4, 3), 0.25))
    rng = np.random.default_rng(0)
    data = [(rng.normal(size=(4, 3, 2)), rng.normal(size=(4, 3))) for _ in range(2)]
    hessian = HessianOperator(model, "mse", data)
    first = hessian @ np.ones(hessian.shape[0])
    np.testing.assert_array_equal(state, np.full((4, 3), 0.25, np.float32))
    np.testing.assert_allclose(hessian @ np.ones(hessian.shape[0]), first, rtol=1e-6)


@pytest.mark.parametrize("layer", ["LayerNormalization", "GroupNormalization"])
def test_normalization_has_all_its_second_derivatives(layer):
    """TensorFlow's own moments stop a gradient that the second derivative needs."""
    options = {"groups": 2} if layer == "GroupNormalization" else {}
    normalize = getattr(keras.layers, layer)(dtype="float64", **options)
    hidden = keras.layers.Dense(6, activation="tanh", dtype="float64")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="float64"),
            hidden,
            normalize,
            keras.layers.Dense(2, dtype="float64"),
        ]
    )
    rng = np.random.default_rng(0)
    hessian = HessianOperator(model, "mse", [(rng.normal(size=(7, 4)), rng.normal(size=(7, 2)))])
    v = rng.normal(size=hessian.shape[0])
    before = tf.nn.moments
    product = hessian @ v
    assert tf.nn.moments is before
    gradients, start = [], hessian.parameters.flatten(hessian.parameters.variables)
    for step in (1e-5, -1e-5):
        pieces = hessian.parameters.unflatten(start + step * v)
        for variable, piece in zip(hessian.parameters.variables, pieces, strict=True):
            variable.assign(piece)
        gradients.append(hessian.gradient())
    np.testing.assert_allclose(product, (gradients[0] - gradients[1]) / 2e-5, rtol=1e-5, atol=1e-7)


def test_a_checkpoint_says_in_words_whether_the_weights_or_the_data_differ(tmp_path):
    from spectral_density import lanczos
    from spectral_density.checkpoint import CheckpointError

    model = set_random_weights(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
    x, y = np.eye(6, 4, dtype=np.float32), np.arange(6) % 3
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def run(labels):
        hessian = HessianOperator(model, loss, [(x, labels)])
        return lanczos(hessian, 2, checkpoint=tmp_path, check=False)

    run(y)
    with pytest.raises(CheckpointError, match=r"of another problem: the data differ\."):
        run(y[::-1].copy())
    model.layers[0].bias.assign_add([0.0, 1e-6, 0.0])
    with pytest.raises(CheckpointError, match=r"problem: the weights of the model differ\."):
        run(y)
