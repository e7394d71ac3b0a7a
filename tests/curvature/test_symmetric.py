"""Half precision: products neither vanish nor overflow, and their precision is that computed in."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import relative_error

from spectral_density import estimate_spectrum, lanczos, top_eigenpairs
from spectral_density.curvature import FisherOperator, GaussNewtonOperator, HessianOperator
from spectral_density.curvature.symmetric import scaled_product
from spectral_density.linalg import product_precision

RNG = np.random.default_rng(100)
X = RNG.normal(size=(64, 8)).astype("f4")
NOISE = RNG.normal(size=(64, 1)).astype("f4")


def dense(dtype, width=16):
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(width, "tanh", dtype=dtype), layers.Dense(1, dtype=dtype)]
    )
    generator = np.random.default_rng(3)
    model.set_weights([generator.normal(size=w.shape) / 3 for w in model.get_weights()])
    return model


def normalized(dtype):
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(6, "tanh", dtype=dtype),
            layers.LayerNormalization(dtype=dtype),
            layers.Dense(1, dtype=dtype),
        ]
    )
    generator = np.random.default_rng(4)
    model.set_weights([generator.normal(size=w.shape) / 2 for w in model.get_weights()])
    return model


class Module(tf.Module):
    """A hidden layer and an output whose weights and products are of one dtype."""

    def __init__(self, dtype):
        super().__init__()
        generator = np.random.default_rng(5)
        self.w = tf.Variable(generator.normal(size=(8, 5)) / 3, dtype=dtype)
        self.u = tf.Variable(generator.normal(size=(5, 1)) / 2, dtype=dtype)

    def __call__(self, x):
        return tf.tanh(tf.cast(x, self.w.dtype) @ self.w) @ self.u


def module_loss(model, batch):
    return tf.reduce_mean((tf.cast(model(batch[0]), tf.float32) - batch[1]) ** 2)


def keras_matrix(make, kind=HessianOperator):
    def operator(dtype):
        model = make(dtype)
        targets = np.asarray(make("float32")(X)) + 0.1 * NOISE
        return kind(model, "mse", [(X, targets)])

    return operator


def of_module(dtype):
    return HessianOperator(Module(dtype), module_loss, [(X, NOISE)])


def of_function(dtype):
    w = tf.Variable(np.linspace(-1, 1, 6), dtype=dtype)
    return HessianOperator.from_function(lambda v: tf.reduce_sum(tf.exp(v) * v[::-1]), w)


def graph_function(dtype):
    """Half precision within a function that the loss calls, and float32 around it."""
    hidden = tf.function(
        lambda w: tf.cast(tf.tanh(tf.cast(X, dtype) @ tf.cast(w, dtype)), tf.float32)
    )
    w = tf.Variable(np.random.default_rng(6).normal(size=(8, 2)) / 2, dtype=tf.float32)
    return HessianOperator.from_function(
        lambda v: tf.reduce_mean((tf.reduce_sum(hidden(v), 1, keepdims=True) - NOISE) ** 2), w
    )


# What makes the operator for a dtype, and the dtype.
CASES = {
    "mixed_float16": (keras_matrix(dense), "mixed_float16"),
    "mixed_bfloat16": (keras_matrix(dense), "mixed_bfloat16"),
    "float16": (keras_matrix(dense), "float16"),
    "bfloat16": (keras_matrix(dense), "bfloat16"),
    "bfloat16 normalized": (keras_matrix(normalized), "bfloat16"),
    "module": (of_module, "float16"),
    "function": (of_function, "float16"),
    "called": (graph_function, "float16"),
    "Gauss-Newton": (keras_matrix(dense, GaussNewtonOperator), "mixed_float16"),
    "Fisher": (keras_matrix(dense, FisherOperator), "mixed_float16"),
    "bfloat16 Fisher": (keras_matrix(dense, FisherOperator), "bfloat16"),
}
TOLERANCE = {"float16": 1e-2, "bfloat16": 8e-2}


@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_float32_whatever_the_length_of_the_vector(name):
    make, dtype = CASES[name]
    operator, exact = make(dtype), make("float32")
    kind = dtype.removeprefix("mixed_")
    assert operator.product_dtype.name == kind
    assert kind in repr(operator)
    assert product_precision(operator) >= 2.0**-10
    v = np.random.default_rng(0).normal(size=operator.shape[0])
    v /= np.linalg.norm(v)
    product = operator @ v
    assert relative_error(product, exact @ v) <= TOLERANCE[kind]
    for c in (1e-30, 1e-6, 1e-5, 1e-3, 1e3, 1e6):
        assert relative_error(operator @ (c * v) / c, product) <= TOLERANCE[kind]
    # A power of two changes nothing, and columns are scaled each for itself.
    np.testing.assert_array_equal(operator @ (2.0**-20 * v), 2.0**-20 * product)
    scales = np.array([1e-6, 1.0, 1e6])
    block = operator @ (v[:, np.newaxis] * scales)
    for column, c in zip(block.T, scales, strict=True):
        assert relative_error(column / c, product) <= TOLERANCE[kind]
    np.testing.assert_array_equal(operator @ np.zeros_like(v), 0.0)


@pytest.mark.parametrize("name", ["mixed_float16", "bfloat16", "Gauss-Newton", "Fisher"])
def test_largest_eigenvalues_converge_to_their_bounds(name):
    make, dtype = CASES[name]
    operator = make(dtype)
    true = np.linalg.eigvalsh(make("float32").to_dense())[-1]
    pairs = top_eigenpairs(operator, 1, seed=1, check=False, progress=False)
    assert pairs.converged.all()
    tolerance = TOLERANCE[dtype.removeprefix("mixed_")] * true
    assert abs(pairs.values[0] - true) <= pairs.residuals[0] + tolerance
    extreme = estimate_spectrum(operator, 10, 2, check=False, progress=False).extreme_eigenvalues
    assert abs(extreme.largest - true) <= extreme.largest_bound + 1e-3 * true
    assert extreme.largest_bound >= 2.0**-10 * true
    for how in ("full", "none"):
        lanczos(operator, 12, reorthogonalize=how, check=False, progress=False)


def quadratic(curvature, dtype="float16"):
    w = tf.Variable([1e-3, 2e-3], dtype=dtype)
    scale = tf.constant(curvature, tf.as_dtype(dtype))
    return HessianOperator.from_function(lambda v: tf.reduce_sum(v * scale * v) / 2, w)


@pytest.mark.parametrize("curvature", [1e-4, 1.0, 3e3, 3e4])
def test_a_product_that_overflows_is_made_with_a_smaller_vector(curvature):
    operator = quadratic(curvature)
    for c in (1.0, 100.0, 1e9):
        found = operator @ np.array([c, -c])
        np.testing.assert_allclose(found, np.array([c, -c]) * curvature, rtol=2e-3)


def test_an_overflow_says_half_precision():
    # The curvature itself is beyond float16.
    w = tf.Variable([1e-3, 2e-3], dtype=tf.float16)
    operator = HessianOperator.from_function(lambda v: tf.reduce_sum((3e4 * v) ** 2), w)
    with pytest.raises(FloatingPointError, match=r"half precision \(float16\).*float32"):
        operator @ np.ones(2)
    with pytest.raises(FloatingPointError, match=r"the gradient.*half precision \(float16\)"):
        HessianOperator.from_function(lambda v: tf.reduce_sum((3e4 * v) ** 2), w).gradient()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_full_precision_is_not_scaled(dtype):
    operator = quadratic(3.0, dtype)
    assert operator.product_dtype == dtype
    np.testing.assert_array_equal(
        operator @ [1e-30, 1.0], [3 * float(np.dtype(dtype).type(1e-30)), 3]
    )


@pytest.mark.parametrize(("dtype", "length"), [("float16", 1e-9), ("float32", 1e-300)])
def test_a_small_vector_whose_entries_are_all_negative_is_scaled_too(dtype, length):
    v = -length * np.array([1.0, 2.0])
    np.testing.assert_allclose(quadratic(3.0, dtype) @ v, 3.0 * v, rtol=2e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("curvature", [HessianOperator, GaussNewtonOperator])
def test_in_full_precision_no_vector_is_too_small_or_large(curvature, dtype):
    operator = curvature(dense(dtype), "mse", [(X, NOISE)])
    v = np.random.default_rng(5).normal(size=operator.shape[0])
    lengths = np.array([1.0, 1e-305, 1e-160, 1e-44, 1e-20, 1e20, 1e44, 1e160, 1e300, 0.0])
    products = operator.matmat(np.outer(v, lengths))
    for product, length in zip(products.T[:-1], lengths[:-1], strict=True):
        assert relative_error(product / length, products[:, 0]) < 1e-5
    assert not products[:, -1].any()


def test_only_columns_that_overflow_are_made_again():
    exponents = []

    def multiply(block, finite):
        exponents.append(np.frexp(np.abs(block).max(axis=0))[1].tolist())
        products = block * [1.0, 1e5]
        return [np.where(np.abs(products) > 65504, np.inf, products)]

    block = np.array([[3e-9, 2.0], [1e-9, 1.0]])
    np.testing.assert_allclose(scaled_product(multiply, block)[0], block * [1.0, 1e5], rtol=1e-15)
    assert exponents == [[4, 4], [4, -2]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
def test_a_check_in_bfloat16_warns_of_nothing(dtype):
    assert HessianOperator(dense(dtype, 4), "mse", [(X, NOISE)]).check().verdict == "sound"
