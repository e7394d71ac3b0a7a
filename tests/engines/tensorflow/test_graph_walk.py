import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from spectral_density import GaussNewtonOperator, HessianOperator, preflight
from spectral_density.engines.tensorflow.graph_walk import deliberate_stops, differentiated, stops
from spectral_density.engines.tensorflow.scopes import layers_of

X = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
Y = np.random.default_rng(2).normal(size=(6, 1)).astype(np.float32)


def traced(function, *values):
    """Return the graph of a function of variables, the variables, and its output in the graph."""
    variables = [tf.Variable(value) for value in values or ([0.3, -0.7],)]
    concrete = tf.function(lambda: function(*variables)).get_concrete_function()
    return concrete.graph, variables, concrete.outputs


def types(function, *values, wrt=None):
    graph, variables, outputs = traced(function, *values)
    chosen = variables if wrt is None else [variables[wrt]]
    return {node.operation.type for node in differentiated(graph, chosen, outputs)}


def loop(step, v):
    return tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, step(x)), [0, v])[1]


BODIES = {
    "while": lambda v: loop(tf.nn.softsign, v),
    "if": lambda v: tf.cond(tf.reduce_sum(v) > 0, lambda: tf.nn.softsign(v), lambda: v),
    "case": lambda v: tf.switch_case(
        tf.cast(v[0] > 0, tf.int32), [lambda: v, lambda: tf.nn.softsign(v)]
    ),
    "call": lambda v: tf.function(tf.nn.softsign)(v),
    "while in if": lambda v: tf.cond(
        tf.reduce_sum(v) > 0, lambda: loop(tf.nn.softsign, v), lambda: v
    ),
    "if in while": lambda v: loop(
        lambda x: tf.cond(x[0] > 0, lambda: tf.nn.softsign(x), lambda: x), v
    ),
    "call in while": lambda v: loop(lambda x: tf.function(tf.nn.softsign)(x), v),
    "map": lambda v: tf.map_fn(tf.nn.softsign, v),
    "scan": lambda v: tf.scan(lambda a, x: a + tf.nn.softsign(x), v),
}


@pytest.mark.parametrize("body", BODIES)
def test_operations_in_bodies_are_on_the_path(body):
    assert "Softsign" in types(lambda v: tf.reduce_sum(BODIES[body](v)))


DATA_ONLY = {
    "integers": lambda v: tf.gather(v, tf.argsort(tf.nn.softsign(v))),
    "comparisons": lambda v: tf.where(tf.nn.softsign(v) > 0, v, -v),
    "signs": lambda v: v * tf.sign(tf.nn.softsign(v)),
    "stopped": lambda v: v * tf.stop_gradient(tf.nn.softsign(v)),
    "shapes": lambda v: v * tf.ones_like(tf.nn.softsign(v)),
    "not used": lambda v: (tf.nn.softsign(v), v)[1],
    "of another variable of a loop": lambda v: tf.while_loop(
        lambda i, x, other: i < 3,
        lambda i, x, other: (i + 1, x * x, tf.nn.softsign(x)),
        [0, v, v],
    )[1],
}


@pytest.mark.parametrize("way", DATA_ONLY)
def test_what_only_makes_data_is_not_on_the_path(way):
    found = types(lambda v: tf.reduce_sum(DATA_ONLY[way](v)))
    assert "Softsign" not in found, found


def test_what_a_loop_carries_from_step_to_step_is_on_the_path():
    def rotate(a, b, c):
        return tf.while_loop(
            lambda i, *_: i < 4,
            lambda i, a, b, c: (i + 1, tf.tanh(b), tf.nn.softsign(c), a),
            [0, a, b, c],
        )[1]

    assert types(rotate, [1.0], [2.0], [3.0], wrt=2) >= {"Softsign", "Tanh"}


def test_only_the_chosen_variables_count():
    def function(a, b):
        return tf.reduce_sum(tf.nn.softsign(a) * tf.tanh(b))

    assert "Softsign" not in types(function, [1.0], [2.0], wrt=1)
    assert "Softsign" in types(function, [1.0], [2.0], wrt=0)


def test_a_custom_gradient_leads_around_the_function_that_it_belongs_to():
    @tf.custom_gradient
    def sine(x):
        return tf.py_function(tf.sin, [x], x.dtype), lambda g: g * tf.cos(x)

    found = types(lambda v: tf.reduce_sum(sine(tf.tanh(v))))
    assert "EagerPyFunc" not in found
    assert found >= {"IdentityN", "Tanh"}


def test_names_begin_with_the_loops_and_branches_that_they_are_in():
    graph, variables, outputs = traced(lambda v: tf.reduce_sum(loop(tf.nn.softsign, v)))
    nodes = differentiated(graph, variables, outputs)
    (name,) = [node.name for node in nodes if node.operation.type == "Softsign"]
    assert name.startswith("while/")


# Stopped gradients -------------------------------------------------------------------------------


def deliberate(function, *values):
    graph, variables, outputs = traced(function, *values)
    return deliberate_stops(graph, variables, outputs)


@pytest.mark.parametrize(
    "function", [tf.reduce_logsumexp, lambda v: tf.reduce_max(tf.math.cumulative_logsumexp(v))]
)
def test_stops_of_tensorflow_itself_are_not_deliberate(function):
    assert not deliberate(function)


def test_those_of_logsumexp_are_seen_all_the_same():
    assert len(stops(*traced(tf.reduce_logsumexp))) == 1


def user_stop(v):
    if v.shape[0] > 1:  # so that AutoGraph converts it
        v = v * tf.stop_gradient(tf.tanh(v))
    return tf.reduce_sum(v)


DELIBERATE = {
    "tf": lambda v: tf.reduce_sum(v * tf.stop_gradient(v)),
    "keras": lambda v: tf.reduce_sum(v * keras.ops.stop_gradient(v)),
    "converted": user_stop,
    "straight-through": lambda v: tf.reduce_sum((v + tf.stop_gradient(tf.round(v) - v)) ** 2),
    "in a loop": lambda v: tf.reduce_sum(loop(lambda x: x * tf.stop_gradient(x), v)),
    "in a function": lambda v: tf.reduce_sum(tf.function(user_stop)(v)),
}


@pytest.mark.parametrize("way", DELIBERATE)
def test_stops_of_the_user_are_deliberate(way):
    (found,) = deliberate(DELIBERATE[way])
    assert "StopGradient" in found[0]


def test_stops_of_what_does_not_depend_on_the_variables_are_none():
    assert not deliberate(lambda v: tf.reduce_sum(v * tf.stop_gradient(tf.constant([1.0, 2.0]))))
    graph, (_, b), outputs = traced(
        lambda a, b: tf.reduce_sum(b * tf.stop_gradient(a)), [1.0], [2.0]
    )
    assert not deliberate_stops(graph, [b], outputs)


class Quantizer(layers.Layer):
    def call(self, x):
        return x + tf.stop_gradient(tf.round(x) - x)


def models():
    class Siamese(layers.Layer):
        def call(self, x):
            return x * tf.stop_gradient(keras.ops.flip(x, axis=0))

    inputs = keras.Input((3,))
    hidden = layers.Dense(2, activation="tanh")(inputs)
    symbolic = layers.Dense(1)(hidden * keras.ops.stop_gradient(hidden))
    return {
        "straight-through": keras.Sequential(
            [keras.Input((3,)), layers.Dense(2), Quantizer(name="codes"), layers.Dense(1)]
        ),
        "siamese": keras.Sequential(
            [keras.Input((3,)), layers.Dense(2), Siamese(name="pairs"), layers.Dense(1)]
        ),
        "Keras tensor": keras.Model(inputs, symbolic),
    }


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("straight-through", "codes"),
        ("siamese", "pairs"),
        ("Keras tensor", "Functional"),
    ],
)
def test_the_matrix_of_a_surrogate_is_doubtful_and_the_layer_named(name, place):
    operator = HessianOperator(models()[name], "mse", [(X, Y)])
    check = preflight(operator)["surrogate"]
    assert check.status == "doubtful"
    assert "StopGradient" in check.message
    assert place in check.message


def test_a_layer_behind_the_stop_has_no_surrogate():
    model = models()["straight-through"]
    operator = GaussNewtonOperator(model, "mse", [(X, Y)], variables=model.layers[-1])
    assert preflight(operator)["surrogate"].status == "passed"
    assert layers_of(model)


def test_bodies_that_a_reverse_pass_has_changed_are_walked():
    def function(v):
        with tf.GradientTape() as tape:
            tape.watch(v)
            value = tf.reduce_sum(tf.cond(v[0] > 0, lambda: tf.tanh(loop(tf.sin, v)), lambda: v))
        return value + tf.reduce_sum(tape.gradient(value, v) ** 2)

    assert types(function, [0.3, -0.7]) >= {"Sin", "Tanh"}
