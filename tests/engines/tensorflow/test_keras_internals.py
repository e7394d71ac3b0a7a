"""Each patch of TensorFlow or Keras, against central differences of the gradient in float64.

A test that fails with a new version of either shows the patch that the version breaks.
"""

import re
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from models import normals, sequential, set_random_weights
from tensorflow.python.framework import ops
from tensorflow.python.ops import custom_gradient, nn_fused_batch_norm_grad, nn_impl

from spectral_density.curvature import FisherOperator, GaussNewtonOperator, HessianOperator
from spectral_density.engines.tensorflow.exact_gradients import exact_second_derivatives

layers = keras.layers

IDS = tf.constant([0, 2, 2, 1])
ROWS = tf.SparseTensor([[0, 0], [0, 1], [1, 0]], tf.constant([0, 2, 3], tf.int64), [2, 2])
INDICES = tf.constant([[0, 1], [1, 1], [2, 0], [2, 2]], tf.int64)
WITH_ZEROS = np.array([[0.0, 2.0, 0.0, 3.0], [1.0, 0.0, 2.0, 1.0], [1.0, 2.0, 1.0, -1.0]])


def smooth(values):
    """A scalar whose second derivative is nowhere constant."""
    values = tf.cast(values, tf.float64)
    return tf.reduce_sum(values**3) / 3 + tf.reduce_sum(tf.sin(values))


def sparse(values, indices=INDICES, shape=(3, 3)):
    return tf.SparseTensor(indices, values, shape)


def hessian(loss, *shape_or_values, dtype="float64"):
    """The dense Hessian of a function of one variable, and the central differences that it is."""
    first = shape_or_values[0]
    value = first if isinstance(first, np.ndarray) else normals(*shape_or_values)
    variable = tf.Variable(value.astype(dtype))
    operator = HessianOperator.from_function(loss, variable)
    return operator.to_dense(), central_differences(operator, [variable], step_of(dtype))


def step_of(dtype):
    return 1e-4 if dtype == "float64" else 1e-2


def central_differences(operator, variables, step):
    rows = []
    for variable in variables:
        before = variable.numpy()
        for place in np.ndindex(before.shape):
            gradients = []
            for sign in (1, -1):
                moved = before.copy()
                moved[place] += sign * step
                variable.assign(moved)
                gradients.append(operator.gradient())
            variable.assign(before)
            rows.append((gradients[0] - gradients[1]) / (2 * step))
    return np.array(rows)


def assert_exact(loss, *shape_or_values, dtype="float64"):
    exact, differences = hessian(loss, *shape_or_values, dtype=dtype)
    assert np.abs(differences).max() > 1e-2
    # TensorFlow resizes images in float32 whatever their type: differences are rounded.
    tolerance = 2e-7 if dtype == "float64" else 2e-3
    scale = np.abs(differences).max()
    np.testing.assert_allclose(exact, differences, rtol=0, atol=tolerance * scale)


def drawn(pool, overlapping):
    return lambda v: smooth(pool(tf.tanh(v), [1, 1.44, 1.7, 1], False, overlapping, seed=3)[0])


DOUBLE = {
    "nearest neighbor": (
        (1, 3, 4, 1),
        lambda v: smooth(tf.image.resize(v, (4, 5), "nearest")),
    ),
    "softsign": ((5,), lambda v: smooth(tf.nn.softsign(v))),
    "keras softsign": ((5,), lambda v: smooth(keras.activations.softsign(v))),
    "embedding sum": (
        (5, 2),
        lambda v: smooth(tf.nn.embedding_lookup_sparse(v, ROWS, None, combiner="sum")),
    ),
    "embedding mean": (
        (5, 2),
        lambda v: smooth(tf.nn.embedding_lookup_sparse(v, ROWS, None, combiner="mean")),
    ),
    "embedding sqrtn": (
        (5, 2),
        lambda v: smooth(tf.nn.safe_embedding_lookup_sparse(v, ROWS, combiner="sqrtn")),
    ),
    "segment mean, empty segments": (
        (4, 2),
        lambda v: smooth(tf.sparse.segment_mean(v, IDS, [0, 0, 1, 3], num_segments=6)),
    ),
    "segment sum, sparse gradient": (
        (4, 2),
        lambda v: smooth(
            tf.sparse.segment_sum(tf.tanh(v), IDS, [0, 0, 1, 3], sparse_gradient=True)
        ),
    ),
    "sparse add": (
        (6,),
        lambda v: smooth(tf.sparse.add(sparse(v[:2], INDICES[:2]), sparse(v[2:])).values),
    ),
    "sparse slice": ((4,), lambda v: smooth(tf.sparse.slice(sparse(v), [1, 0], [2, 2]).values)),
    "sparse softmax": ((4,), lambda v: smooth(tf.sparse.softmax(sparse(v)).values)),
    "fill empty rows": (
        (4,),
        lambda v: smooth(tf.sparse.fill_empty_rows(sparse(v[:3], INDICES[1:]), v[3])[0].values),
    ),
    "dilation": (
        (1, 4, 4, 1),
        lambda v: smooth(
            tf.nn.dilation2d(v, tf.sin(v[0, :2, :3]), [1, 1, 2, 1], "SAME", "NHWC", [1, 2, 1, 1])
        ),
    ),
    "erosion": (
        (1, 4, 4, 1),
        lambda v: smooth(
            tf.nn.erosion2d(v, tf.sin(v[0, :2, :3]), [1, 1, 1, 1], "VALID", "NHWC", [1, 1, 1, 1])
        ),
    ),
    "fractional average": ((1, 6, 7, 1), drawn(tf.nn.fractional_avg_pool, True)),
    "fractional maximum": ((1, 6, 7, 1), drawn(tf.nn.fractional_max_pool, False)),
    "fractional maximum, overlapping": ((1, 6, 7, 1), drawn(tf.nn.fractional_max_pool, True)),
    "maximum with argmax": (
        (2, 3, 3, 1),
        lambda v: smooth(tf.nn.max_pool_with_argmax(tf.tanh(v), 2, 2, "SAME")[0]),
    ),
    "explicitly padded maximum": (
        (1, 3, 4, 1),
        lambda v: smooth(tf.nn.max_pool2d(tf.tanh(v), 3, 1, [[0, 0], [1, 1], [2, 1], [0, 0]])),
    ),
    "mean and variance": ((4, 2), lambda v: smooth(tf.nn.moments(v, [0])[1])),
    "moments of v1": ((4, 2), lambda v: smooth(tf.compat.v1.nn.moments(v, [0])[1])),
    "moments of v2": ((4, 2), lambda v: smooth(tf.compat.v2.nn.moments(v, [0])[1])),
    "moments imported": ((4, 2), lambda v: smooth(nn_impl.moments_v2(v, [0])[1])),
    "moments of Keras": ((4, 2), lambda v: smooth(keras.ops.moments(v, [0])[1])),
    "weighted moments": (
        (4, 2),
        lambda v: smooth(tf.nn.weighted_moments(v, [0], [[0.2], [0.5], [1.0], [0.7]])[1]),
    ),
    "soft labels": (
        (2, 3),
        lambda v: tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(v), 2 * v)),
    ),
    "soft labels of Keras": (
        (2, 3),
        lambda v: tf.reduce_sum(
            keras.losses.categorical_crossentropy(tf.nn.softmax(v**2), v, from_logits=True)
        ),
    ),
    "soft sigmoid labels": (
        (2, 3),
        lambda v: tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(tf.sigmoid(v), 2 * v)),
    ),
    "distillation": (
        (2, 3),
        lambda v: tf.reduce_sum(
            keras.losses.categorical_crossentropy(tf.nn.softmax(v / 2), tf.nn.softmax(v))
        ),
    ),
    "recomputed": ((5,), lambda v: smooth(tf.recompute_grad(tf.tanh)(v))),
    "product": (WITH_ZEROS, lambda v: smooth(tf.reduce_prod(v, 1)[:2] + tf.reduce_prod(v))),
    "product of Keras": (WITH_ZEROS, lambda v: smooth(keras.ops.prod(v, 0))),
    "cumulative": (WITH_ZEROS, lambda v: smooth(tf.math.cumprod(v, 1))),
    "cumulative, exclusive": (
        WITH_ZEROS,
        lambda v: smooth(tf.math.cumprod(v, -1, exclusive=True, reverse=True)),
    ),
    "cumulative of unknown length": (
        WITH_ZEROS,
        lambda v: smooth(tf.math.cumprod(tf.boolean_mask(v, v < 2.5))),
    ),
    "segments": (WITH_ZEROS, lambda v: smooth(tf.math.segment_prod(v, [0, 0, 2]))),
    "unsorted segments": (
        WITH_ZEROS[0],
        lambda v: smooth(tf.math.unsorted_segment_prod(v, [1, 1, 0, -1], 2)),
    ),
    "powers": (WITH_ZEROS[0], lambda v: smooth(v[:, None] ** [0.0, 1.0, 2.0])),
}


VARIANTS = {
    "erosion",
    "safe embedding",
    "embedding sum",
    "segment mean, empty segments",
    "fractional maximum",
    "fractional average",
    "explicitly padded maximum",
    "moments of v1",
    "moments imported",
    "moments of Keras",
    "keras softsign",
    "weighted moments",
    "soft sigmoid labels",
    "distillation",
    "product of Keras",
    "cumulative",
    "segments",
    "nearest",
    "products",
    "moments",
    "group",
    "batch",
    "bilinear, aligned",
    "lanczos",
}


def quick_first(names):
    """Leave members of a kind that is tried already to the exhaustive tests."""
    exhaustive = pytest.mark.exhaustive
    return [pytest.param(n, marks=[exhaustive] if n in VARIANTS else []) for n in names]


@pytest.mark.parametrize("name", quick_first(DOUBLE))
def test_the_second_derivative_of_each_operation_is_that_of_its_gradient(name):
    point, loss = DOUBLE[name]
    assert_exact(loss, *((point,) if isinstance(point, np.ndarray) else point))


BOXES = tf.constant([[0.1, 0.1, 0.8, 0.9]])

SINGLE = {
    "bilinear": ((1, 2, 3, 1), lambda v: smooth(tf.image.resize(v, (4, 5)))),
    "bilinear, antialiased": (
        (1, 3, 3, 1),
        lambda v: smooth(tf.image.resize(v, (2, 2), antialias=True)),
    ),
    "bilinear, aligned": (
        (1, 2, 3, 1),
        lambda v: smooth(tf.compat.v1.image.resize(v, (4, 5), 0, align_corners=True)),
    ),
    "bicubic": ((1, 2, 3, 1), lambda v: smooth(tf.image.resize(v, (4, 5), "bicubic"))),
    "lanczos": ((1, 2, 3, 1), lambda v: smooth(tf.image.resize(v, (4, 5), "lanczos3"))),
    "Keras": ((1, 2, 3, 1), lambda v: smooth(keras.ops.image.resize(v, (4, 5), "bilinear"))),
    "crops": (
        (1, 3, 4, 1),
        lambda v: smooth(tf.image.crop_and_resize(v, BOXES, [0], (3, 3))),
    ),
    "local response": ((1, 1, 2, 4), lambda v: smooth(tf.nn.lrn(v, 1, 1.0, 0.7, 0.6))),
    "maximum in 3d": (
        (1, 2, 3, 2, 1),
        lambda v: smooth(tf.nn.max_pool3d(tf.tanh(v), 3, 1, "SAME")),
    ),
}


@pytest.mark.parametrize("name", quick_first(SINGLE))
def test_what_tensorflow_has_in_float32_alone_has_a_second_derivative(name):
    shape, loss = SINGLE[name]
    assert_exact(loss, *shape, dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bilinear_resizing_of_an_image_has_its_norm(dtype):
    image = tf.Variable(tf.reshape(tf.constant([1.0, 2.0, 3.0, 4.0], dtype), (1, 2, 2, 1)))
    operator = HessianOperator.from_function(
        lambda v: tf.reduce_sum(tf.image.resize(v, (4, 4)) ** 2), image
    )
    assert np.linalg.norm(operator.to_dense()) == pytest.approx(11.125, rel=1e-6)


# Where operations are --------------------------------------------------------------------------

PLACED = {
    "nearest": lambda u: tf.image.resize(tf.reshape(u, (1, 2, 2, 1)), (3, 3), "nearest"),
    "softsign": tf.nn.softsign,
    "product": lambda u: tf.math.cumprod(u * [1.0, 0.0, 1.0, 1.0]),
    "moments": lambda u: tf.nn.moments(u, [0])[1],
    "labels": lambda u: tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(u), 2 * u),
    "segments": lambda u: tf.sparse.segment_mean(u, IDS, [0, 0, 1, 1]),
    "maximum": lambda u: tf.nn.max_pool1d(tf.reshape(u, (1, 4, 1)), 3, 1, "SAME"),
}


def third_derivatives(value, u):
    with tf.GradientTape() as tape:
        tape.watch(u)
        inside = value(u)
    return tf.reduce_sum(tape.gradient(inside, u) ** 2)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.exhaustive] * (n != "softsign")) for n in PLACED]
)
def test_second_derivatives_hold_in_functions_loops_branches_and_maps(name):
    def value(u):
        return smooth(PLACED[name](u))

    def loss(v):
        u = tf.tanh(v)
        looped = tf.while_loop(
            lambda step, total: step < 2,
            lambda step, total: (step + 1, total + value(u + tf.cast(step, u.dtype) * v)),
            (0, tf.zeros([], tf.float64)),
        )[1]
        branched = tf.cond(v[0] > -9, lambda: value(u), lambda: value(v))
        mapped = tf.reduce_sum(tf.map_fn(lambda s: value(s * u), tf.constant([0.5, 2.0], u.dtype)))
        nested = tf.function(lambda w: tf.function(value)(2 * w))(u)
        return looped + branched + mapped + nested

    assert_exact(loss, 4)


@pytest.mark.parametrize("name", quick_first(PLACED))
def test_a_loss_with_derivatives_inside_has_third_ones(name):
    assert_exact(lambda v: third_derivatives(lambda u: smooth(PLACED[name](u)), tf.tanh(v)), 4)


# Layers ----------------------------------------------------------------------------------------


def image_net(middle, dtype="float64"):
    return set_random_weights(
        sequential(
            layers.Conv2D(1, 2, padding="same", activation="tanh", name="before", dtype=dtype),
            middle,
            layers.Conv2D(1, 2, activation="tanh", dtype=dtype),
            layers.Flatten(dtype=dtype),
            layers.Dense(1, dtype=dtype),
            shape=(3, 3, 1),
        )
    )


MIDDLES = {
    "max-pooling of the same shape": lambda: layers.MaxPooling2D(
        2, strides=1, padding="same", dtype="float64"
    ),
    "nearest upsampling": lambda: layers.UpSampling2D(2, dtype="float64"),
    "normalization": lambda: layers.LayerNormalization(axis=[1, 2], dtype="float64"),
    "softsign": lambda: layers.Activation("softsign", dtype="float64"),
    "products": lambda: layers.Lambda(lambda x: tf.math.cumprod(x, 1), dtype="float64"),
    "rematerialized": lambda: rematerialized(layers.Conv2D(1, 2, activation="tanh")),
}


def rematerialized(layer):
    with keras.RematScope(mode="full"):
        return type(layer).from_config({**layer.get_config(), "dtype": "float64"})


@pytest.mark.parametrize("name", quick_first(MIDDLES))
def test_a_layer_before_the_operation_has_its_hessian_and_gauss_newton_matrix(name):
    model = image_net(MIDDLES[name]())
    x, y = normals(3, 3, 3, 1).astype("f8"), normals(3, 1, seed=2).astype("f8")
    chosen = {"variables": "before"}
    operator = HessianOperator(model, "mse", [(x, y)], **chosen)
    variables = list(operator.parameters.variables)
    differences = central_differences(operator, variables, 1e-5)
    exact = operator.to_dense()
    atol = 1e-7 * np.abs(differences).max()
    np.testing.assert_allclose(exact, differences, rtol=0, atol=atol)
    jacobian = differences_of_outputs(model, x, variables)
    matrix = GaussNewtonOperator(model, "mse", [(x, y)], **chosen).to_dense()
    np.testing.assert_allclose(matrix, 2 / y.size * jacobian.T @ jacobian, rtol=0, atol=1e-7)


def test_functions_and_fisher_matrices_take_the_same_derivatives():
    model = image_net(MIDDLES["softsign"]())
    x, y = normals(3, 3, 3, 1).astype("f8"), normals(3, 1, seed=2).astype("f8")
    chosen = {"variables": "before"}
    by_loss = HessianOperator(model, "mse", [(x, y)], **chosen).to_dense()
    by_function = HessianOperator(
        model, lambda m, b: tf.reduce_mean((m(b[0]) - b[1]) ** 2), [(x, y)], **chosen
    )
    np.testing.assert_allclose(by_function.to_dense(), by_loss, rtol=0, atol=1e-12)
    gauss_newton = GaussNewtonOperator(model, "mse", [(x, y)], **chosen).to_dense()
    fisher = FisherOperator(model, "mse", [(x, y)], **chosen).to_dense()
    ratio = fisher[0, 0] / gauss_newton[0, 0]
    np.testing.assert_allclose(fisher, ratio * gauss_newton, rtol=0, atol=1e-9)


def differences_of_outputs(model, x, variables, step=1e-5):
    columns = []
    for variable in variables:
        before = variable.numpy()
        for place in np.ndindex(before.shape):
            outputs = []
            for sign in (1, -1):
                moved = before.copy()
                moved[place] += sign * step
                variable.assign(moved)
                outputs.append(np.asarray(model(x)).ravel())
            variable.assign(before)
            columns.append((outputs[0] - outputs[1]) / (2 * step))
    return np.stack(columns, axis=1)


def test_a_bilinear_upsampling_leaves_the_layer_before_it_its_curvature():
    model = image_net(layers.UpSampling2D(2, interpolation="bilinear"), "float32")
    x, y = normals(3, 3, 3, 1), normals(3, 1, seed=2)
    weights = np.repeat(np.eye(3), 2, axis=0)  # the same two matrices by hand
    for place in range(6):
        centre = (place + 0.5) / 2 - 0.5
        near = np.clip([np.floor(centre), np.floor(centre) + 1], 0, 2).astype(int)
        weights[place] = 0
        np.add.at(weights[place], near, [1 - (centre % 1), centre % 1])
    by_hand = image_net(
        layers.Lambda(lambda z: tf.einsum("ih,bhwc,jw->bijc", weights, z, weights)), "float64"
    )
    by_hand.set_weights(model.get_weights())
    for operator in (HessianOperator, GaussNewtonOperator):
        exact = operator(by_hand, "mse", [(x.astype("f8"), y)], variables="before").to_dense()
        found = operator(model, "mse", [(x, y)], variables="before").to_dense()
        assert np.linalg.norm(found - exact) <= 1e-5 * np.linalg.norm(exact)


def with_differential_equation(model, points):
    with tf.GradientTape() as outer:
        outer.watch(points)
        with tf.GradientTape() as inner:
            inner.watch(points)
            u = model(points, training=True)
        slope = inner.gradient(u, points)
    return tf.reduce_mean((outer.gradient(slope, points) + u) ** 2)


NORMALIZATIONS = {
    "layer": lambda lib: [lib.layers.LayerNormalization()],
    "batch, fused": lambda lib: [lib.layers.Reshape((1, 1, 4)), lib.layers.BatchNormalization()],
    "batch": lambda lib: [lib.layers.BatchNormalization()],
    "group": lambda lib: [lib.layers.GroupNormalization(1)],
}


@pytest.mark.parametrize(
    "library",
    [keras, pytest.param(tf_keras, marks=pytest.mark.exhaustive)],
    ids=["keras", "tf_keras"],
)
@pytest.mark.parametrize("name", quick_first(NORMALIZATIONS))
def test_normalizations_have_their_second_and_third_derivatives(name, library):
    model = library.Sequential(
        [
            library.layers.Input((1,)),
            library.layers.Dense(4),
            *NORMALIZATIONS[name](library),
            library.layers.Activation("tanh"),
            library.layers.Flatten(),
            library.layers.Dense(1),
        ]
    )
    weights = [w.astype("float64") for w in set_random_weights_of(model)]
    points = normals(6, 1).astype("float64")

    def by_hand(v, points):
        z = points @ v[0] + v[1]
        axes = [0] if name.startswith("batch") else [1]
        centred = z - tf.reduce_mean(z, axes, keepdims=True)
        variance = tf.reduce_mean(centred**2, axes, keepdims=True)
        h = tf.tanh(centred / tf.sqrt(variance + 1e-3) * v[2] + v[3])
        return h @ v[4] + v[5]

    truth = [tf.Variable(w) for w in weights]
    vector = normals(sum(w.size for w in weights))
    for loss in (
        with_differential_equation,
        lambda m, b: tf.reduce_mean((m(b, training=True) - tf.sin(b)) ** 2),
    ):
        expected = HessianOperator.from_function(
            lambda v, loss=loss: loss(lambda b, training: by_hand(v, b), tf.constant(points)),
            truth,
        )
        found = HessianOperator(model, loss, [points.astype("float32")]) @ vector
        np.testing.assert_allclose(
            found, expected @ vector, rtol=0, atol=1e-4 * np.linalg.norm(found)
        )


def set_random_weights_of(model):
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign((0.8 + 0.5 * rng.normal(size=variable.shape)).astype("float32"))
    return [np.asarray(variable) for variable in model.trainable_variables]


@pytest.mark.parametrize("layer", [layers.LSTM, layers.GRU])
@pytest.mark.parametrize("use_cudnn", ["auto", True])
def test_no_recurrent_layer_takes_the_kernels_of_cudnn(layer, use_cudnn, monkeypatch):
    # Keras's package has a function of the same name as the module.
    module = sys.modules["keras.src.backend.tensorflow.rnn"]
    monkeypatch.setattr(module, "_is_gpu_available", lambda: True)
    recurrent = layer(2, use_cudnn=use_cudnn)
    recurrent.build((None, 70, 1))

    def operations():
        function = tf.function(lambda x: recurrent(x), autograph=False)
        graph = function.get_concrete_function(tf.TensorSpec((1, 70, 1))).graph.as_graph_def()
        nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
        return {node.op for node in nodes}

    assert "CudnnRNNV3" in operations()
    with exact_second_derivatives():
        assert not any("Cudnn" in name for name in operations())
    assert recurrent.use_cudnn == use_cudnn
    assert "CudnnRNNV3" in operations()


@pytest.mark.parametrize("layer", ["LSTM", "GRU"])
def test_no_recurrent_layer_of_tf_keras_brings_the_kernels_of_cudnn(layer):
    recurrent = getattr(tf_keras.layers, layer)(2)
    recurrent.build((None, 3, 1))
    with exact_second_derivatives():
        function = tf.function(lambda x: recurrent(x), autograph=False)
        graph = function.get_concrete_function(tf.TensorSpec((1, 3, 1))).graph.as_graph_def()
    assert not re.search("Cudnn", str(graph))
    assert recurrent._could_use_gpu_kernel


def test_half_precision_goes_through():
    v = tf.Variable(normals(1, 3, 3, 1).astype("float16"))

    def loss(v):
        pooled = tf.nn.max_pool2d(tf.nn.softsign(v), 2, 1, "SAME")
        resized = tf.cast(tf.image.resize(pooled, (4, 4)), tf.float16)
        variance = tf.nn.moments(v, [1, 2])[1]
        return tf.reduce_sum(resized**2) + tf.reduce_prod(v) + tf.reduce_sum(variance)

    assert np.isfinite(HessianOperator.from_function(loss, v).to_dense()).all()


# The context -----------------------------------------------------------------------------------


def patched():
    registry = ops.gradient_registry._registry
    names = [*registry]
    return (
        {name: registry[name]["type"] for name in names},
        [nn_impl.array_ops, nn_fused_batch_norm_grad.array_ops],
        [custom_gradient._graph_mode_decorator, custom_gradient._eager_mode_decorator],
        [*vars(layers.LSTM)],
        [*vars(tf_keras.layers.LSTM)],
    )


def test_all_is_restored_after_an_exception_and_after_a_context_within_it():
    before = patched()
    with pytest.raises(KeyError), exact_second_derivatives():
        inside = patched()
        with exact_second_derivatives():
            pass
        assert patched() == inside
        raise KeyError
    assert patched() == before
    assert inside != before


def test_values_and_gradients_stay_tensorflows_bit_for_bit():
    images = tf.constant(normals(1, 4, 4, 2).astype("float32"))

    def values_and_gradients():
        outputs = []
        for function in (
            lambda x: tf.image.resize(x, (3, 5)),
            lambda x: tf.nn.max_pool2d(x, 3, 1, "SAME"),
            lambda x: tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(x), x),
            lambda x: x**3,
            tf.nn.softsign,
            tf.nn.lrn,
        ):
            with tf.GradientTape() as tape:
                tape.watch(images)
                value = function(images)
            outputs += [value.numpy(), tape.gradient(value, images).numpy()]
        return outputs

    before = values_and_gradients()
    variance = tf.nn.moments(images, [1, 2])[1].numpy()
    with exact_second_derivatives():
        np.testing.assert_array_equal(tf.nn.moments(images, [1, 2])[1], variance)
        for now, then in zip(values_and_gradients(), before, strict=True):
            np.testing.assert_array_equal(now, then)
