import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import normals, relative_error, sequential, set_random_weights, tf_variables

from spectral_density.curvature import HessianOperator
from spectral_density.engines.tensorflow.filter_normalization import normalized_filters

TINY = 1e-12  # epsilon of the normalizations: what predictions may change by


def norm(**options):
    return layers.BatchNormalization(epsilon=TINY, **options)


def conv_net(dtype="float64", **options):
    """Two convolutions and a dense layer that feed batch normalizations, and one that doesn't."""
    return sequential(
        layers.Conv2D(3, 3, name="conv", dtype=dtype, **options),
        norm(name="norm", dtype=dtype),
        layers.Activation("tanh", dtype=dtype),
        layers.Conv2D(2, 2, activation="tanh", name="active", dtype=dtype),
        layers.Flatten(dtype=dtype),
        layers.Dense(4, name="dense", dtype=dtype, **options),
        norm(name="norm_2", dtype=dtype, center=False, scale=False),
        layers.Dense(2, name="logits", dtype=dtype),
        shape=(6, 6, 2),
    )


def images():
    return normals(7, 6, 6, 2)


def values(model):
    return [v.numpy() for v in model.variables]


def assert_same_bits(model, before):
    for now, then in zip(values(model), before, strict=True):
        assert now.tobytes() == then.tobytes()


def assert_normalizes(model, x, expected, pairs=None, tolerance=1e-9):
    """Predictions stay, the layers of the report are those expected, and everything comes back."""
    before, predicted = values(model), np.asarray(model(x, training=False))
    with normalized_filters(model, pairs) as found:
        assert [(r.layer, r.batch_normalization) for r in found] == expected
        assert any(
            now.tobytes() != b.tobytes() for now, b in zip(values(model), before, strict=True)
        )
        inside = np.asarray(model(x, training=False))
    np.testing.assert_allclose(inside, predicted, rtol=tolerance, atol=tolerance)
    assert_same_bits(model, before)
    np.testing.assert_array_equal(model(x, training=False), predicted)
    return found


# What it does ------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_bias", [True, False])
def test_predictions_at_inference_stay_and_every_bit_comes_back(use_bias):
    model = conv_net(use_bias=use_bias)
    found = assert_normalizes(model, images(), [("conv", "norm"), ("dense", "norm_2")])
    kernel = model.get_layer("conv").kernel.numpy()
    np.testing.assert_allclose(found[0].norms, np.linalg.norm(kernel.reshape(-1, 3), axis=0))
    np.testing.assert_allclose(
        found[1].norms, np.linalg.norm(model.get_layer("dense").kernel.numpy(), axis=0)
    )


def test_inside_each_filter_has_unit_norm_and_the_rest_follows():
    model = conv_net()
    conv, batch_norm = model.get_layer("conv"), model.get_layer("norm")
    other = model.get_layer("active").kernel.numpy()
    bias, mean = conv.bias.numpy(), batch_norm.moving_mean.numpy()
    variance, gamma = batch_norm.moving_variance.numpy(), batch_norm.gamma.numpy()
    with normalized_filters(model) as (first, _):
        np.testing.assert_allclose(np.linalg.norm(np.reshape(conv.kernel, (-1, 3)), axis=0), 1)
        np.testing.assert_allclose(conv.bias, bias / first.norms)
        np.testing.assert_allclose(batch_norm.moving_mean, mean / first.norms)
        np.testing.assert_allclose(batch_norm.moving_variance, variance / first.norms**2)
        np.testing.assert_array_equal(batch_norm.gamma, gamma)
        np.testing.assert_array_equal(model.get_layer("active").kernel, other)


def test_epsilon_is_all_that_changes_a_prediction():
    gaps = []
    for epsilon in (1e-3, 1e-5):
        model = conv_net()
        for name in ("norm", "norm_2"):
            model.get_layer(name).epsilon = epsilon
        predicted = np.asarray(model(images(), training=False))
        with normalized_filters(model):
            gaps.append(np.abs(model(images(), training=False) - predicted).max())
    assert 0 < gaps[0] < 1e-2
    assert gaps[1] == pytest.approx(gaps[0] / 100, rel=0.05)


def scaled(model, factor):
    """Multiply one filter, and let what the normalization has seen of it follow."""
    conv, batch_norm = model.get_layer("conv"), model.get_layer("norm")
    factors = np.array([1.0, factor, 1.0])
    for variable in (conv.kernel, conv.bias, batch_norm.moving_mean):
        variable.assign(variable.numpy() * factors)
    batch_norm.moving_variance.assign(batch_norm.moving_variance.numpy() * factors**2)
    return model


def test_the_hessian_inside_does_not_see_the_scale_of_a_filter():
    data = [(images(), normals(7, 2))]
    inside, outside = [], []
    for factor in (1.0, 7.3, 0.02):
        model = scaled(conv_net(), factor)
        # Built outside: products read the variables afresh.
        hessian = HessianOperator(model, "mse", data, variables=["conv", "norm"])
        v = np.random.default_rng(0).normal(size=hessian.shape[0])
        outside.append(hessian @ v)
        with normalized_filters(model):
            inside.append(hessian @ v)
    for product in inside[1:]:
        assert relative_error(product, inside[0]) < 1e-8
    assert relative_error(outside[1], outside[0]) > 0.1


def test_everything_comes_back_after_an_exception_and_a_step_of_training():
    model = conv_net()
    before = values(model)
    with pytest.raises(KeyboardInterrupt), normalized_filters(model):
        raise KeyboardInterrupt
    assert_same_bits(model, before)
    with normalized_filters(model):
        model(images(), training=True)  # writes moving averages
        model.get_layer("conv").kernel.assign_add(np.ones((3, 3, 2, 3)))
    assert_same_bits(model, before)


def test_a_zero_filter_is_left_as_it_is():
    model = conv_net()
    conv = model.get_layer("conv")
    kernel = conv.kernel.numpy()
    kernel[..., 1] = 0
    conv.kernel.assign(kernel)
    found = assert_normalizes(model, images(), [("conv", "norm"), ("dense", "norm_2")])
    assert found[0].norms[1] == 0
    with normalized_filters(model):
        assert not np.any(conv.kernel.numpy()[..., 1])
        assert conv.bias.numpy()[1] != 0


def test_all_filters_of_unit_norm_already_are_no_error():
    model = conv_net()
    with normalized_filters(model):
        inner = values(model)
        with normalized_filters(model) as found:
            np.testing.assert_allclose(found[0].norms, 1)
        assert_same_bits(model, inner)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_neither_overflow_nor_vanish(scale):
    model = conv_net("float64")
    kernel = model.get_layer("dense").kernel
    kernel.assign(kernel.numpy() * scale * 1e-140 if scale < 1 else kernel.numpy() * 1e170)
    model.get_layer("norm_2").moving_variance.assign(np.zeros(4))
    with normalized_filters(model):
        np.testing.assert_allclose(np.linalg.norm(kernel.numpy(), axis=0), 1)


def test_a_norm_too_small_to_divide_by_is_an_error_and_changes_nothing():
    model = conv_net("float32")
    kernel = model.get_layer("dense").kernel
    kernel.assign(kernel.numpy() * 1e-30)
    before = values(model)
    with pytest.raises(FloatingPointError, match="filters of 'dense'"), normalized_filters(model):
        raise AssertionError
    assert_same_bits(model, before)
    kernel.assign(kernel.numpy() * np.nan)
    with (
        pytest.raises(FloatingPointError, match="layer 'dense' is not finite"),
        normalized_filters(model),
    ):
        raise AssertionError


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_other_precisions(dtype):
    tolerance = {"float32": 1e-4, "mixed_float16": 2e-2}.get(dtype, 0.2)
    assert_normalizes(
        conv_net(dtype), images(), [("conv", "norm"), ("dense", "norm_2")], tolerance=tolerance
    )


# Which layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Conv1D(3, 2), (5, 2)),
        (layers.Conv2D(4, 2, groups=2), (5, 5, 2)),
        (layers.Conv3D(2, 2), (3, 3, 3, 2)),
        (layers.Conv1DTranspose(3, 2), (5, 2)),
        (layers.Conv2DTranspose(3, 2), (5, 5, 2)),
        (layers.Conv3DTranspose(2, 2), (3, 3, 3, 2)),
        (layers.DepthwiseConv1D(2, depth_multiplier=2), (5, 3)),
        (layers.DepthwiseConv2D(2, depth_multiplier=3), (5, 5, 2)),
        (layers.Dense(3), (4,)),
        (layers.Dense(3), (4, 2)),
    ],
)
def test_every_kind_of_filter(layer, shape):
    config = layer.get_config() | {"name": "layer", "dtype": "float64"}
    model = sequential(
        type(layer).from_config(config), norm(name="norm", dtype="float64"), shape=shape
    )
    assert_normalizes(model, normals(4, *shape), [("layer", "norm")])


def test_frozen_layers_are_normalized_too():
    model = conv_net()
    for layer in model.layers:
        layer.trainable = False
    assert_normalizes(model, images(), [("conv", "norm"), ("dense", "norm_2")])


def functional(build, shape=(5, 5, 2)):
    inputs = keras.Input(shape, dtype="float64")
    with_dtype = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        return set_random_weights(keras.Model(inputs, build(inputs)))
    finally:
        keras.config.set_dtype_policy(with_dtype)


def test_a_residual_network_is_read_from_its_graph():
    def build(x):
        y = norm(name="n1")(layers.Conv2D(2, 3, padding="same", name="c1")(x))
        y = layers.Activation("relu")(y)
        y = norm(name="n2")(layers.Conv2D(2, 3, padding="same", name="c2")(y))
        shortcut = layers.Conv2D(2, 1, name="c3")(x)
        y = layers.Add()([y, shortcut])
        y = y + 0.5 * norm(name="n4")(y)
        return layers.Dense(2, name="out")(layers.GlobalAveragePooling2D()(y))

    assert_normalizes(functional(build), normals(4, 5, 5, 2), [("c1", "n1"), ("c2", "n2")])


def test_an_output_used_elsewhere_too_is_left_alone():
    def build(x):
        both = layers.Conv2D(2, 3, name="both")(x)
        good = norm(name="good")(layers.Conv2D(2, 3, name="alone")(x))
        out = layers.Conv2D(2, 3, name="out")(x)
        return [layers.Add()([norm()(both), both]), good, out, norm()(out)]

    model = functional(build)
    with normalized_filters(model) as found:
        assert [(r.layer, r.batch_normalization) for r in found] == [("alone", "good")]


def test_shared_layers_are_left_alone():
    def build(x):
        twice, shared_norm = layers.Conv2D(2, 1), norm()
        y = norm()(twice(norm()(twice(x))))
        y = shared_norm(layers.Conv2D(2, 1)(shared_norm(layers.Conv2D(2, 1)(y))))
        return norm(name="norm")(layers.Conv2D(2, 1, name="once")(y))

    assert_normalizes(functional(build), normals(4, 5, 5, 2), [("once", "norm")])


def test_tied_kernels_are_left_alone():
    def build(x):
        first, second = layers.Conv2D(2, 1), layers.Conv2D(2, 1)
        y = norm()(first(x))
        second.build(y.shape)
        with second._open_name_scope():
            second._tracker.unlock()
            second._untrack_variable(second._kernel)
            second._kernel = first._kernel
            second._tracker.lock()
        return norm(name="norm")(layers.Conv2D(2, 1, name="own")(norm()(second(y))))

    assert_normalizes(functional(build), normals(4, 5, 5, 2), [("own", "norm")])


def test_nested_models_are_searched_and_may_be_shared():
    def build(x):
        inner = keras.Sequential(
            [layers.Conv2D(2, 1, name="conv"), norm(name="norm"), layers.Conv2D(2, 1, name="last")]
        )
        return norm(name="outer")(layers.Dense(2, name="dense")(inner(inner(x))))

    assert_normalizes(
        functional(build), normals(4, 5, 5, 2), [("dense", "outer"), ("conv", "norm")]
    )


def test_a_layer_of_a_nested_model_that_is_also_used_outside_is_left_alone():
    def build(x):
        inner = keras.Sequential([layers.Conv2D(2, 1), norm()])
        y = inner(x) + inner.layers[0](x)
        return norm(name="norm")(layers.Conv2D(2, 1, name="conv")(y))

    assert_normalizes(functional(build), normals(4, 5, 5, 2), [("conv", "norm")])


def test_a_layer_in_two_models_is_judged_in_the_one_given():
    inputs = keras.Input((3,))
    hidden = layers.Dense(2, name="dense", dtype="float64")(inputs)
    model = keras.Model(inputs, norm(name="norm", dtype="float64")(hidden))
    keras.Model(inputs, layers.Dense(2)(hidden))
    set_random_weights(model)
    assert_normalizes(model, normals(4, 3), [("dense", "norm")])


def test_channels_must_be_those_of_the_normalization():
    model = sequential(layers.Dense(3), norm(axis=1), layers.Dense(2), shape=(3, 2))
    with pytest.raises(ValueError, match="nothing to normalize"), normalized_filters(model):
        raise AssertionError
    last = sequential(
        layers.Dense(3, name="dense", dtype="float64"),
        norm(axis=2, name="norm", dtype="float64"),
        shape=(3, 2),
    )
    assert_normalizes(last, normals(4, 3, 2), [("dense", "norm")])


def test_nothing_to_normalize_is_an_error():
    for stack in (
        [layers.Dense(2)],
        [layers.Dense(2, activation="relu"), norm()],
        [layers.Dense(2), layers.ReLU(), norm()],
        [norm(), layers.Dense(2)],
        [layers.Dense(2), layers.LayerNormalization()],
    ):
        with (
            pytest.raises(ValueError, match="nothing to normalize in"),
            normalized_filters(sequential(*stack)),
        ):
            raise AssertionError
    separable = sequential(layers.SeparableConv2D(2, 1), norm(), shape=(3, 3, 2))
    with pytest.raises(ValueError, match="nothing to normalize"), normalized_filters(separable):
        raise AssertionError


# Subclassed models -------------------------------------------------------------------------------


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(dtype="float64")
        self.dense = layers.Dense(3, dtype="float64", name="dense")
        self.norm = norm(dtype="float64", name="norm")
        self.active = layers.Dense(3, "tanh", dtype="float64", name="active")
        self.wide = layers.Dense(4, dtype="float64", name="wide")

    def call(self, x, training=False):
        y = self.norm(self.dense(x), training=training)
        return self.wide(self.active(y))


def subclassed():
    model = Subclassed()
    model(normals(2, 3))
    return set_random_weights(model)


def test_a_subclassed_model_needs_pairs():
    model = subclassed()
    with (
        pytest.raises(ValueError, match=r"Subclassed with a call of its own.*pairs="),
        normalized_filters(model),
    ):
        raise AssertionError
    x = normals(4, 3)
    assert_normalizes(model, x, [("dense", "norm")], pairs=[("dense", "norm")])
    assert_normalizes(model, x, [("dense", "norm")], pairs=[(model.dense, model.norm)])


def test_a_subclassed_model_inside_needs_pairs_where_it_normalizes():
    inputs = keras.Input((3,))
    outer = keras.Model(inputs, norm(name="after")(layers.Dense(3)(subclassed()(inputs))))
    with pytest.raises(ValueError, match="Subclassed with a call"), normalized_filters(outer):
        raise AssertionError


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ([("dense", "active")], TypeError, "'active' is a Dense, no BatchNormalization"),
        ([("norm", "norm")], TypeError, "'norm' is a BatchNormalization, no convolution"),
        ([("active", "norm")], ValueError, "the activation tanh stands between"),
        ([("wide", "norm")], ValueError, "4 filters feed 3 channels"),
        ([("dense", "norm"), ("dense", "norm")], ValueError, "shares its weights"),
        ([("none", "norm")], ValueError, "no layer is named 'none'.*There are: active, dense"),
        (["dense"], TypeError, "pairs must hold"),
        ("dense", TypeError, "pairs must be a list"),
        (5, TypeError, "pairs must be a list"),
        ([(layers.Dense(2), "norm")], ValueError, "is no layer of"),
        ([], ValueError, "nothing to normalize"),
    ],
)
def test_pairs_that_make_no_sense_are_errors(pairs, error, message):
    model = subclassed()
    before = values(model)
    with pytest.raises(error, match=message), normalized_filters(model, pairs):
        raise AssertionError
    assert_same_bits(model, before)


def test_models_of_another_kind_and_unbuilt_ones_are_errors():
    with pytest.raises(TypeError, match="Keras model, got Module"), normalized_filters(tf.Module()):
        raise AssertionError
    with (
        pytest.raises(ValueError, match="never built"),
        normalized_filters(keras.Sequential([layers.Dense(2)])),
    ):
        raise AssertionError


# tf_keras ----------------------------------------------------------------------------------------


def test_tf_keras_models_sequential_and_functional():
    tf_keras = pytest.importorskip("tf_keras")
    known = tf_keras.layers
    rng = np.random.default_rng(3)

    def randomize(model):
        model.set_weights([0.3 + rng.random(w.shape) for w in model.get_weights()])
        return model

    def bn(name):
        return known.BatchNormalization(epsilon=TINY, name=name, dtype="float64")

    sequence = tf_keras.Sequential(
        [
            known.Conv2D(2, 2, name="conv", dtype="float64", input_shape=(5, 5, 2)),
            bn("norm"),
            known.DepthwiseConv2D(2, depth_multiplier=2, name="depthwise", dtype="float64"),
            bn("norm_2"),
            known.Conv2DTranspose(3, 2, name="transpose", dtype="float64", use_bias=False),
            bn("norm_3"),
            known.SeparableConv2D(2, 1, dtype="float64"),
            bn("norm_4"),
        ]
    )
    x = normals(4, 5, 5, 2)
    pairs = [("conv", "norm"), ("depthwise", "norm_2"), ("transpose", "norm_3")]
    assert_normalizes(randomize(sequence), x, pairs)

    inputs = tf_keras.Input((5, 5, 2), dtype="float64")
    y = bn("outer")(known.Conv2D(2, 1, name="first", dtype="float64")(inputs))
    z = known.Conv2D(2, 1, name="twice", dtype="float64")(y)
    outputs = sequence(bn("other")(z) + z)
    model = randomize(tf_keras.Model(inputs, outputs))
    assert_normalizes(model, x, [("first", "outer"), *pairs])


def test_a_tf_keras_subclass_needs_pairs():
    tf_keras = pytest.importorskip("tf_keras")

    class Legacy(tf_keras.Model):
        def __init__(self):
            super().__init__(dtype="float64")
            self.dense = tf_keras.layers.Dense(3, dtype="float64", name="dense")
            self.norm = tf_keras.layers.BatchNormalization(epsilon=TINY, dtype="float64", name="n")

        def call(self, x, training=False):
            return self.norm(self.dense(x), training=training)

    model = Legacy()
    model(normals(2, 3))
    with pytest.raises(ValueError, match="Legacy with a call"), normalized_filters(model):
        raise AssertionError
    assert_normalizes(model, normals(4, 3), [("dense", "n")], pairs=[("dense", "n")])


def test_variables_are_assigned_in_place():
    model = conv_net()
    variables = tf_variables(model)
    with normalized_filters(model):
        assert all(a is b for a, b in zip(tf_variables(model), variables, strict=True))
