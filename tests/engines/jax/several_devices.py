"""Products on four devices against one device and closed forms; run by test_several_devices.py."""

import re
from itertools import pairwise

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spectral_density import (
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    estimate_spectrum,
)

# Keras, where it sets weights, with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(94, 6)).astype(np.float32)
LABELS = RNG.integers(0, 3, 94)
VECTORS = RNG.normal(size=(21, 3))
PARAMS = {"b": jnp.ones(3), "w": jnp.asarray(RNG.normal(size=(6, 3)), np.float32)}

# Sizes of the batches: rounds of four that come out even or do not, a ragged last, few batches.
SPLITS = {
    "even": [8] * 8,
    "filled up": [8] * 6,
    "ragged": [8] * 9 + [3],
    "two forms": [8] * 5 + [4] * 6,
    "few": [16, 16, 3],
    "one": [88],
    "one uneven": [93],
}


def batches(sizes):
    ends = np.cumsum([0, *sizes])
    return [(X[a:b], LABELS[a:b]) for a, b in pairwise(ends)]


def predict(params, batch):
    return batch[0] @ params["w"] + params["b"]


def losses(outputs, batch):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), batch[1][:, None], 1)[:, 0]


def loss(outputs, batch):
    return jnp.mean(losses(outputs, batch))


def whole(params, batch):
    return loss(predict(params, batch), batch)


def closed_form(n):
    """The Hessian of softmax regression in (b, w), float64."""
    x = np.column_stack([np.ones(n), X[:n]]).astype(np.float64)
    z = x @ np.vstack([PARAMS["b"], PARAMS["w"]]).astype(np.float64)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    of_outputs = np.einsum("ni,ij->nij", p, np.eye(3)) - np.einsum("ni,nj->nij", p, p)
    return np.einsum("na,nb,nij->aibj", x, x, of_outputs).reshape(21, 21) / n


def on_one(tree):
    return jax.device_put(tree, jax.devices()[1])


def near(found, true, tolerance=1e-6):
    return np.linalg.norm(found - true) <= tolerance * np.linalg.norm(true)


def test_there_are_four_devices():
    assert jax.device_count() == 4


@pytest.mark.parametrize("linearize", [True, False])
@pytest.mark.parametrize("memory_share", [0.25, 0])
@pytest.mark.parametrize("name", SPLITS)
def test_the_hessian_is_that_of_the_closed_form(name, memory_share, linearize):
    data = batches(SPLITS[name])
    options = {"memory_share": memory_share, "linearize": linearize}
    operator = HessianOperator(PARAMS, whole, data, **options)
    assert "4 devices (cpu)" in repr(operator)
    true = closed_form(sum(SPLITS[name])) @ VECTORS
    for _ in range(2):  # what is kept, and from what is kept
        assert near(operator @ VECTORS, true, 2e-6)
    alone = HessianOperator(on_one(PARAMS), whole, data, **options)
    assert "device cpu:1" in repr(alone)
    assert near(operator @ VECTORS, alone @ VECTORS)
    product, gradient = operator.product_and_gradient(VECTORS[:, 0])
    assert near(product, true[:, 0], 2e-6)
    assert near(gradient, alone.gradient())


@pytest.mark.parametrize("name", ["filled up", "ragged"])
def test_other_matrices_are_those_of_one_device(name):
    data = batches(SPLITS[name])
    for matrix, of_batch in ((GaussNewtonOperator, loss), (FisherOperator, losses)):
        options = {"kind": "empirical"} if matrix is FisherOperator else {}
        several = matrix(PARAMS, (predict, of_batch), data, **options)
        alone = matrix(on_one(PARAMS), (predict, of_batch), data, **options)
        assert near(several @ VECTORS, alone @ VECTORS)


def test_the_same_devices_give_the_same_bits():
    data = batches(SPLITS["ragged"])
    first, second = (HessianOperator(PARAMS, whole, data) for _ in range(2))
    np.testing.assert_array_equal(first @ VECTORS, second @ VECTORS)


def test_sums_over_devices_are_those_of_float64():
    """Batches that cancel between devices to a millionth of each."""
    size = 64
    signs = np.where(np.arange(size) < size // 2, 1, -1) * 1e6
    factors = (signs + RNG.normal(size=size)).astype(np.float32)
    data = [(np.full(4, factor),) for factor in factors]
    operator = HessianOperator(
        {"x": jnp.ones(3)},
        lambda params, batch: jnp.mean(batch[0]) * jnp.sum(params["x"] ** 2) / 2,
        data,
    )
    true = factors.astype(np.float64).mean()
    np.testing.assert_allclose(operator @ np.ones(3), true, rtol=1e-6)


def test_the_check_and_a_spectrum():
    operator = HessianOperator(PARAMS, whole, batches(SPLITS["ragged"]))
    assert operator.check().verdict == "sound"
    spectrum = estimate_spectrum(operator, order=21, num_draws=1, seed=0)
    true = np.linalg.eigvalsh(closed_form(75))
    np.testing.assert_allclose(spectrum.nodes.max(), true.max(), rtol=1e-5)


def test_weights_that_are_cut_over_devices_are_refused():
    mesh = Mesh(np.array(jax.devices()[:3]), ("rows",))
    cut = jax.device_put(PARAMS["w"], NamedSharding(mesh, PartitionSpec("rows")))
    with pytest.raises(ValueError, match=r"cut over devices .*DataParallel"):
        HessianOperator({"w": cut, "b": PARAMS["b"]}, whole, batches([8]))


def test_two_of_the_devices_by_where_the_weights_are():
    mesh = Mesh(np.array(jax.devices()[:2]), ("examples",))
    params = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
    operator = HessianOperator(params, whole, batches(SPLITS["ragged"]))
    assert "2 devices (cpu)" in repr(operator)
    assert near(operator @ VECTORS, closed_form(75) @ VECTORS, 2e-6)


def test_nan_is_traced_to_its_batch():
    data = batches(SPLITS["ragged"])
    data[5] = (np.full_like(data[5][0], np.nan), data[5][1])
    with pytest.raises((ValueError, ArithmeticError), match="batch 5"):
        HessianOperator(PARAMS, whole, data) @ VECTORS


# Keras -------------------------------------------------------------------------------------------


def network():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, "tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3),
        ]
    )


@pytest.fixture
def distribution():
    yield keras.distribution.set_distribution
    keras.distribution.set_distribution(None)


@pytest.mark.parametrize("training", [False, True])
def test_keras_models_under_data_parallel(distribution, training):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    data = batches(SPLITS["ragged"])
    plain = network()
    v = np.ones(sum(np.size(w) for w in plain.trainable_variables))
    with jax.default_device(jax.devices()[0]):
        one = HessianOperator(plain, loss, data, training=training)
        true = one @ v
    distribution(keras.distribution.DataParallel())
    model = network()
    model.set_weights(plain.get_weights())
    operator = HessianOperator(model, loss, data, training=training)
    assert "4 devices (cpu)" in repr(operator)
    assert near(operator @ v, true)
    assert near(operator.gradient(), one.gradient())
    drawn = [FisherOperator(each, loss, data, kind="monte_carlo") @ v for each in (model, plain)]
    assert near(*drawn)
    assert GaussNewtonOperator(model, loss, data).check().verdict == "sound"


def test_model_parallel_is_refused(distribution):
    mesh = keras.distribution.DeviceMesh((1, 4), ("batch", "model"), jax.devices())
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*dense.*kernel"] = (None, "model")
    distribution(keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch"))
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    with pytest.raises(ValueError, match=re.compile("ModelParallel.*DataParallel", re.DOTALL)):
        HessianOperator(model, "mse", [(X, X[:, :4])])
