"""What a traced loss writes keeps its bits; what it reads is part of what the matrix is."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import spectral_density as sd
from spectral_density.checkpoint import CheckpointError
from spectral_density.engines.tensorflow.graph_state import graph_hash

X = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
Y = np.random.default_rng(1).normal(size=(12, 1)).astype("float32")


def linear():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])


def quadratic(function):
    """The Hessian of |v|^2 plus what a function adds while it writes something."""
    v = tf.Variable([1.0, 2.0])
    return sd.HessianOperator.from_function(lambda v: tf.reduce_sum(v**2) + function(), v)


def other_network():
    keras.utils.set_random_seed(1)
    layers = [keras.Input((3,)), keras.layers.Dense(3), keras.layers.BatchNormalization()]
    other = keras.Sequential(layers)
    return other.variables, lambda: tf.reduce_mean(other(X, training=True) ** 2)


def other_network_of_keras_2():
    layers = [tf_keras.Input((3,)), tf_keras.layers.BatchNormalization()]
    other = tf_keras.Sequential(layers)
    return other.variables, lambda: tf.reduce_mean(other(X, training=True) ** 2)


def metric():
    mean = keras.metrics.Mean()

    def add():
        mean.update_state(X)
        return 0.0

    return mean.variables, add


def counter_in_a_loop():
    counter = tf.Variable(0)

    def add():
        for _ in tf.range(3):
            counter.assign_add(1)
        return 0.0

    return [counter], add


def counter_in_a_function():
    counter = tf.Variable(0.0, trainable=False)

    @tf.function
    def add():
        if counter < 100.0:
            counter.assign_add(1.0)
        return 0.0 * counter

    return [counter], add


def scattered():
    table = tf.Variable(tf.zeros([4, 2]), trainable=False)

    def add():
        table.scatter_nd_update([[1]], [[1.0, 1.0]])
        return tf.reduce_sum(table)

    return [table], add


def generator():
    numbers = tf.random.Generator.from_seed(3)
    return [numbers.state], lambda: 0.0 * numbers.normal([])


def seed_generator():
    seed = keras.random.SeedGenerator(3)
    return [seed.state], lambda: 0.0 * tf.reduce_sum(keras.random.normal((2,), seed=seed))


WRITERS = [
    *(other_network, other_network_of_keras_2, metric, counter_in_a_loop, counter_in_a_function),
    *(scattered, generator, seed_generator),
]


def values(variables):
    return [np.asarray(tf.convert_to_tensor(variable)).copy() for variable in variables]


@pytest.mark.parametrize("make", WRITERS, ids=lambda make: make.__name__)
def test_whatever_the_loss_writes_keeps_its_bits(make):
    variables, function = make()
    before = values(variables)
    hessian = quadratic(function)
    product = hessian @ np.array([1.0, -1.0])
    hessian.loss()
    hessian.gradient()
    for old, new in zip(before, values(variables), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_allclose(product, [2.0, -2.0], rtol=1e-6)


def test_a_generator_of_a_loss_of_a_model_stays_as_it_is():
    """The network that makes the examples of a GAN's discriminator has a state of its own."""
    keras.utils.set_random_seed(0)
    makes = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization()]
    )
    judges = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    before = makes.get_weights()
    hessian = sd.HessianOperator(
        judges, lambda model, z: tf.reduce_mean(model(makes(z, training=True)) ** 2), [X]
    )
    hessian @ np.ones(3)
    for old, new in zip(before, makes.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


class Clipped(keras.layers.Layer):
    """Writes its trainable weight in its call."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        self.scale.assign(tf.clip_by_value(self.scale, 0.0, 0.5))
        return x * self.scale


class ClippedOfKeras2(tf_keras.layers.Layer):
    """Writes its trainable weight in its call."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        self.scale.assign(tf.clip_by_value(self.scale, 0.0, 0.5))
        return x * self.scale


@pytest.mark.parametrize(
    ("package", "layer", "options", "names"),
    [
        (keras, lambda: Clipped(name="clips"), {}, "scale.*Clipped 'clips'"),
        (
            keras,
            lambda: keras.layers.SpectralNormalization(keras.layers.Dense(2), name="bounded"),
            {"training": True},
            "kernel.*SpectralNormalization 'bounded'",
        ),
        (tf_keras, lambda: ClippedOfKeras2(name="clips"), {}, "scale.*ClippedOfKeras2 'clips'"),
    ],
    ids=["clipped in call", "spectral normalization", "clipped in call, of Keras 2"],
)
@pytest.mark.parametrize("kind", [sd.HessianOperator, sd.GaussNewtonOperator])
def test_a_trainable_weight_that_is_written_is_refused_and_nothing_moved(
    kind, package, layer, options, names
):
    model = package.Sequential([package.Input((3,)), layer(), package.layers.Dense(1)])
    before = model.get_weights()
    with pytest.raises(ValueError, match=names):
        kind(model, "mse", [(X, Y)], **options)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_variable_that_is_differentiated_in_may_not_be_written():
    v = tf.Variable([1.0, 2.0], name="v")

    def loss(v):
        v.assign(v / tf.norm(v))
        return tf.reduce_sum(v**2)

    with pytest.raises(ValueError, match=r"trainable variable 'v'.*AssignVariableOp"):
        sd.HessianOperator.from_function(loss, v)
    np.testing.assert_array_equal(v.numpy(), [1.0, 2.0])


def test_a_table_that_the_loss_fills_is_refused():
    table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)

    def fill():
        table.insert(tf.constant([1], tf.int64), [2.0])
        return 0.0

    with pytest.raises(ValueError, match="LookupTableInsert"):
        quadratic(fill)
    assert int(table.size()) == 0


# What is read and not written --------------------------------------------------------------------


def test_a_check_looks_again_when_a_number_outside_of_the_model_changed():
    model, g = linear(), tf.Variable(0.0)

    def loss(model, batch):
        outputs = model(batch[0])
        return tf.reduce_mean((outputs - batch[1]) ** 2) + g * tf.reduce_mean(outputs) ** 2

    hessian = sd.HessianOperator(model, loss, [(X[:6], Y[:6]), (X[6:], Y[6:])])
    first = hessian.check()
    assert hessian.check() is first
    g.assign(5.0)
    with pytest.raises(sd.PreflightError, match="halves"):
        hessian.check()


def bfloat16_form(matrix, how):
    v = tf.Variable(np.ones(6), dtype=tf.bfloat16)
    constant = tf.constant(matrix, tf.float32)
    variable = tf.Variable(constant)

    def loss(u):
        u = tf.cast(u, tf.float32)
        a = {
            "constant": lambda: tf.constant(matrix, tf.float32),
            "closure": lambda: constant,
            "variable": lambda: variable,
            "rows": lambda: tf.stack([tf.constant(row, tf.float32) for row in matrix]),
        }[how]()
        return tf.reduce_sum(u * tf.linalg.matvec(a, u)) / 2

    return sd.HessianOperator.from_function(loss, v)


@pytest.mark.parametrize("how", ["constant", "closure", "variable", "rows"])
def test_a_checkpoint_of_another_matrix_is_refused_in_half_precision(how, tmp_path):
    q = np.random.default_rng(0).normal(size=(6, 6))
    sd.lanczos(bfloat16_form(q @ q.T, how), 2, checkpoint=tmp_path, progress=False, check=False)
    # The same loss made again goes on.
    sd.lanczos(bfloat16_form(q @ q.T, how), 3, checkpoint=tmp_path, progress=False, check=False)
    with pytest.raises(CheckpointError, match=r"of another problem: the (operations|variables)"):
        sd.lanczos(
            bfloat16_form(1.5 * q @ q.T, how), 4, checkpoint=tmp_path, progress=False, check=False
        )


def test_the_hash_of_a_graph_knows_numbers_and_operations_and_no_names():
    def traced(function):
        return tf.function(function).get_concrete_function(tf.TensorSpec([2, 2])).graph

    def named(x, name="here"):
        return tf.reduce_sum(tf.multiply(2.0, x, name=name))

    base = graph_hash(traced(named))
    assert graph_hash(traced(lambda x: named(x, "there"))) == base
    others = [
        lambda x: tf.reduce_sum(2.5 * x),
        lambda x: tf.reduce_sum(2.0 + x),
        lambda x: tf.reduce_sum(tf.matmul(x, x)),
        lambda x: tf.reduce_sum(tf.matmul(x, x, transpose_a=True)),
        lambda x: tf.reduce_sum(tf.nn.leaky_relu(x, 0.1)),
        lambda x: tf.reduce_sum(tf.nn.leaky_relu(x, 0.2)),
    ]
    hashes = {graph_hash(traced(function)) for function in others}
    assert len({base, *hashes}) == 1 + len(others)
