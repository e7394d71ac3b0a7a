"""Truth: closed forms of the pieces, and the original computation at the point itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from spectral_density import HessianOperator
from spectral_density.engines.tensorflow.active_sets import HeldGraph

# Far from kinks at the point, so that the piece there is known, and beyond them elsewhere.
X = np.array([[-2.0, 0.5, 1.5, 7.0], [3.0, -0.5, 6.5, 0.25]])
AWAY = -X[::-1] + 0.3


def held(function, start, away, dtype="float64"):
    """Return a function of a variable and its gradient: there, held from there, and not held."""
    variable = tf.Variable(start, dtype=dtype)

    @tf.function(autograph=False)
    def both():
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(function(variable))
        return value, tf.convert_to_tensor(tape.gradient(value, variable))

    concrete = both.get_concrete_function()
    graph = HeldGraph(concrete.graph, concrete.graph.outputs, [variable])
    here, pieces = graph.record([])
    variable.assign(away)
    there = graph.again([], pieces)
    return [np.asarray(t) for t in here], [np.asarray(t) for t in there], graph


def cubed(function):
    """Make what is taken smooth, with slopes that depend on the place."""
    return lambda v: function(v) ** 3


PIECES = {
    # Name: the function, and what it is on the pieces that X is on.
    "relu": (tf.nn.relu, lambda v: np.where(X > 0, v, 0)),
    "relu6": (tf.nn.relu6, lambda v: np.where(X > 6, 6, np.where(X > 0, v, 0))),
    "leaky relu": (
        lambda v: tf.nn.leaky_relu(v, 0.125),
        lambda v: np.where(X > 0, v, 0.125 * v),
    ),
    "abs": (tf.abs, lambda v: np.sign(X) * v),
    "maximum": (lambda v: tf.maximum(v, v[::-1]), lambda v: np.where(X - X[::-1] > 0, v, v[::-1])),
    "minimum": (lambda v: tf.minimum(v, 1.0), lambda v: np.where(X < 1, v, 1)),
    "clip": (
        lambda v: tf.clip_by_value(v, -1.0, 5.0),
        lambda v: np.where(X > 5, 5, np.where(X < -1, -1, v)),
    ),
    "max": (lambda v: tf.reduce_max(v, -1), lambda v: v[[0, 1], X.argmax(-1)]),
    "min, kept": (
        lambda v: tf.reduce_min(v, 0, keepdims=True),
        lambda v: v[X.argmin(0), range(4)][None],
    ),
    "sort": (
        lambda v: tf.sort(v, -1) * [1.0, 2.0, 3.0, 4.0],
        lambda v: np.take_along_axis(v, X.argsort(-1), -1) * [1, 2, 3, 4],
    ),
    "where": (lambda v: tf.where(v > 1.0, v**2, v), lambda v: np.where(X > 1, v**2, v)),
    "argmax": (
        lambda v: tf.gather(v, tf.argmax(v, -1), batch_dims=1),
        lambda v: v[[0, 1], X.argmax(-1)],
    ),
    "round": (lambda v: v * tf.round(v), lambda v: v * np.round(X)),
    "own stop_gradient": (lambda v: v * tf.stop_gradient(v), lambda v: v * X),
    "own straight-through": (
        lambda v: v + tf.stop_gradient(tf.sign(v) - v),
        lambda v: v + np.sign(X) - X,
    ),
    "hinge of Keras": (
        lambda v: keras.losses.hinge(tf.ones_like(v), v),
        lambda v: np.where(X < 1, 1 - v, 0).mean(-1),
    ),
}


@pytest.mark.parametrize("name", PIECES)
def test_a_function_is_held_on_the_pieces_of_the_point(name):
    function, piece = PIECES[name]
    here, there, graph = held(cubed(function), X, AWAY)
    assert graph.has_kinks
    np.testing.assert_allclose(here[0], np.sum(piece(X) ** 3), rtol=1e-12)
    np.testing.assert_allclose(there[0], np.sum(piece(AWAY) ** 3), rtol=1e-12)


@pytest.mark.parametrize("name", sorted({*PIECES} - {"round", "own stop_gradient"}))
def test_the_gradient_is_that_of_the_pieces(name):
    function, piece = PIECES[name]
    _, there, _ = held(cubed(function), X, AWAY)
    step = 1e-5
    for place in np.ndindex(X.shape):
        ahead, behind = AWAY.copy(), AWAY.copy()
        ahead[place] += step
        behind[place] -= step
        slope = (np.sum(piece(ahead) ** 3) - np.sum(piece(behind) ** 3)) / (2 * step)
        np.testing.assert_allclose(there[1][place], slope, rtol=1e-6, atol=1e-6)


def test_what_a_framework_stops_is_not_held():
    _, there, _ = held(lambda v: tf.reduce_logsumexp(v, -1), X, AWAY)
    np.testing.assert_allclose(there[0], np.sum(np.log(np.sum(np.exp(AWAY), -1))), rtol=1e-12)
    _, there, _ = held(lambda v: tf.compat.v2.nn.moments(v, [0])[1], X, AWAY)
    np.testing.assert_allclose(there[0], np.sum(np.var(AWAY, 0)), rtol=1e-12)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_pooling_takes_from_where_the_largest_was(padding):
    rng = np.random.default_rng(0)
    x, away = rng.normal(size=(2, 2, 6, 6, 2))
    _, there, _ = held(lambda v: tf.nn.max_pool2d(v, 2, 2, padding) ** 2, x, away)
    windows = [
        a.reshape(2, 3, 2, 3, 2, 2).transpose(0, 1, 3, 5, 2, 4).reshape(2, 3, 3, 2, 4)
        for a in (x, away)
    ]
    taken = np.take_along_axis(windows[1], windows[0].argmax(-1)[..., None], -1)
    np.testing.assert_allclose(there[0], np.sum(taken**2), rtol=1e-12)


def test_pooling_in_three_dimensions_takes_from_where_the_largest_was():
    rng = np.random.default_rng(0)
    x, away = rng.normal(size=(2, 1, 2, 2, 4, 1))
    _, there, _ = held(lambda v: tf.nn.max_pool3d(v, 2, 2, "VALID") ** 2, x, away, "float32")
    parts = [a.reshape(2, 2, 2, 2).transpose(2, 0, 1, 3).reshape(2, 8) for a in (x, away)]
    taken = parts[1][[0, 1], parts[0].argmax(-1)]
    np.testing.assert_allclose(there[0], np.sum(taken**2), rtol=1e-5)


def test_kinks_inside_a_called_function_are_held():
    inner = tf.function(tf.nn.relu, autograph=False)
    _, there, graph = held(lambda v: inner(v) ** 2, X, AWAY)
    assert graph.has_kinks
    np.testing.assert_allclose(there[0], np.sum(np.where(X > 0, AWAY, 0) ** 2), rtol=1e-12)
    np.testing.assert_allclose(there[1], np.where(X > 0, 2 * AWAY, 0), rtol=1e-12)


def test_kinks_inside_a_loop_are_named():
    def loop(v):
        return tf.while_loop(
            lambda i, _: i < 3, lambda i, a: (i + 1, tf.nn.relu(a) - 0.1), (tf.constant(0), v)
        )[1]

    here, _, graph = held(loop, X, X)
    assert "Relu" in graph.in_loops
    np.testing.assert_allclose(here[0], np.sum(loop(tf.constant(X))), rtol=1e-12)


def test_a_smooth_function_holds_nothing_and_is_itself():
    _, there, graph = held(lambda v: tf.tanh(v) * v, X, AWAY)
    assert not graph.has_kinks and not graph.in_loops
    np.testing.assert_allclose(there[0], np.sum(np.tanh(AWAY) * AWAY), rtol=1e-12)


def test_tensors_may_be_given_in_place_of_what_they_come_from():
    variable = tf.Variable([1.0, 2.0], dtype=tf.float64)

    @tf.function(autograph=False)
    def loss(x):
        return tf.reduce_sum(tf.tanh(variable * x) ** 2)

    concrete = loss.get_concrete_function(tf.TensorSpec([2], tf.float64))
    graph = concrete.graph
    (tanh,) = [o.outputs[0] for o in graph.get_operations() if o.type == "Tanh"]
    function = HeldGraph(graph, graph.outputs, free=[tanh])
    z = tf.constant([0.3, -0.7], tf.float64)
    (found,), _ = function.record([tf.zeros(2, tf.float64), z])
    np.testing.assert_allclose(found, 0.3**2 + 0.7**2, rtol=1e-12)


def loop_of_a_function():
    """A loop whose function is known to another graph than the one that it is called in."""

    def powers(row):
        return tf.while_loop(
            lambda k, x: k < 3, lambda k, x: (k + 1, tf.nn.relu(x) * row), (0, row)
        )

    return lambda v: tf.reduce_sum(tf.vectorized_map(lambda row: powers(row)[1], v) ** 2)


def loop_with_accumulators():
    def steps(v):
        with tf.GradientTape() as tape:
            tape.watch(v)
            end = tf.while_loop(lambda k, x: k < 3, lambda k, x: (k + 1, tf.sin(x) * v), (0, v))[1]
        return tf.reduce_sum(tape.gradient(end, v) * end)

    return steps


@pytest.mark.parametrize("make", [loop_of_a_function, loop_with_accumulators])
def test_graphs_with_loops_in_functions_are_copied(make):
    variable = tf.Variable(np.linspace(0.3, 0.9, 6).reshape(2, 3))
    report = HessianOperator.from_function(make(), variable).check()
    assert report.verdict == "sound"
