"""What Keras's optimizers make of gradients, against their own updates, run.

Of whatever backend Keras has: tests/engines/jax/test_keras_optimizers.py runs this file under JAX.
"""

import keras
import numpy as np
import pytest
from keras import layers, optimizers
from scipy.optimize import brentq

import spectral_density as sd

N = 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, N)).astype(np.float32)  # what a layer in float64 is given, too
HESSIAN = 2 * X.T.astype(np.float64) @ X / len(X)  # of the mean squared error of X w
BATCHES = [(X[:5], np.zeros((5, 1))), (X[5:], np.zeros((11, 1)))]

# epsilon is 1: where it stands matters.
METHODS = {
    "sgd": lambda: optimizers.SGD(0.1),
    "sgd with weight decay": lambda: optimizers.SGD(0.1, weight_decay=0.3),
    "heavy ball": lambda: optimizers.SGD(0.1, momentum=0.9),
    "heavy ball with weight decay": lambda: optimizers.SGD(0.1, momentum=0.8, weight_decay=0.3),
    "nesterov": lambda: optimizers.SGD(0.1, momentum=0.875, nesterov=True),
    "nesterov with weight decay": lambda: optimizers.SGD(
        0.1, momentum=0.75, nesterov=True, weight_decay=0.3
    ),
    "rmsprop": lambda: optimizers.RMSprop(0.1, epsilon=1.0),
    "rmsprop with momentum": lambda: optimizers.RMSprop(0.1, momentum=0.9, epsilon=1.0),
    "centered rmsprop": lambda: optimizers.RMSprop(0.1, centered=True, epsilon=1.0),
    "adam": lambda: optimizers.Adam(0.1, epsilon=1.0),
    "adam with other averages": lambda: optimizers.Adam(0.1, beta_1=0.6, beta_2=0.95, epsilon=1.0),
    "amsgrad": lambda: optimizers.Adam(0.1, amsgrad=True, epsilon=1.0),
    "adamw": lambda: optimizers.AdamW(0.1, weight_decay=1e-3, epsilon=1.0),
    "adagrad": lambda: optimizers.Adagrad(0.1, epsilon=1.0),
}

# The others say nothing that these do not say together.
SELDOM = ("sgd", "heavy ball", "nesterov with weight decay", "rmsprop", "adam with other averages")
BY_NAME = [
    pytest.param(name, marks=[pytest.mark.exhaustive] if name in SELDOM else []) for name in METHODS
]


def linear_model(dtype="float64"):
    dense = layers.Dense(1, use_bias=False, dtype=dtype)
    return keras.Sequential([keras.Input((N,)), dense])


def apply(optimizer, model, gradient):
    (variable,) = model.trainable_variables
    array = keras.ops.convert_to_tensor(gradient.reshape(variable.shape), variable.dtype)
    optimizer.apply([array], [variable])


def host(variable):
    return np.asarray(keras.ops.convert_to_tensor(variable))


def weights(model):
    return host(model.trainable_variables[0]).ravel()


def set_weights(model, vector):
    model.trainable_variables[0].assign(np.reshape(vector, (N, 1)))


def variables_named(optimizer, *names):
    return [v for v in optimizer.variables if any(name in v.path for name in names)]


def trained(make, dtype="float64"):
    """Return a model and an optimizer that has made steps with gradients of several sizes."""
    model, optimizer = linear_model(dtype), make()
    for gradient in np.random.default_rng(1).normal(size=(12, N)) * [0.1, 0.5, 1.0, 3.0]:
        apply(optimizer, model, gradient)
    return model, optimizer


def operator_of(model):
    return sd.HessianOperator(model, "mse", BATCHES)


def mean_of(optimizer, gradient):
    """Return m, of one gradient and a momentum of zero, from the papers' definitions."""
    if isinstance(optimizer, optimizers.Adam):
        return (1 - optimizer.beta_1) * gradient
    if getattr(optimizer, "nesterov", False):
        return (1 + optimizer.momentum) * gradient
    return gradient


def diagonal_by_a_step(optimizer, model):
    """Return P by step = -eta P^-1 m, from a step that the optimizer makes."""
    gradient = np.array([0.7, -1.3, 0.4, 2.0])
    for momentum in variables_named(optimizer, "momentum"):
        momentum.assign(np.zeros(momentum.shape))
    set_weights(model, np.zeros(N))  # the difference of weights is not rounded, nothing decays
    apply(optimizer, model, gradient)
    rate = float(host(optimizer.learning_rate))
    return -rate * mean_of(optimizer, gradient) / weights(model)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(pytest.param(*each.values, "float64", marks=each.marks) for each in BY_NAME),
        ("adam", "float32"),
    ],
)
def test_the_operator_is_that_of_the_step_which_the_optimizer_makes(name, dtype):
    model, optimizer = trained(METHODS[name], dtype)
    diagonal = diagonal_by_a_step(optimizer, model)
    root = np.sqrt(diagonal)
    found = sd.preconditioned(operator_of(model), optimizer)
    tolerance = 1e-5 if dtype == "float32" else 1e-10
    # The learning rate is a float32 number.
    np.testing.assert_allclose(found.diagonal, diagonal, rtol=max(tolerance, 1e-10))
    expected = HESSIAN / np.outer(root, root)
    np.testing.assert_allclose(
        found.to_dense(), expected, rtol=0, atol=tolerance * np.abs(expected).max()
    )


def run(optimizer, model, matrix, start, num_steps=60):
    """Return how much the weights have grown after steps on a quadratic, its state frozen."""
    frozen = variables_named(optimizer, "velocity", "average", "accumulator", "iteration")
    before = [host(v) for v in frozen]
    for momentum in variables_named(optimizer, "momentum"):
        momentum.assign(np.zeros(momentum.shape))
    set_weights(model, start)
    for _ in range(num_steps):
        for variable, value in zip(frozen, before, strict=True):
            variable.assign(value)
        apply(optimizer, model, matrix @ weights(model))
    return np.linalg.norm(weights(model)) / np.linalg.norm(start)


@pytest.mark.parametrize("name", BY_NAME)
def test_steps_are_stable_below_the_threshold_and_unstable_above(name):
    model, optimizer = trained(METHODS[name])
    # The P of the steps to come: what the state is after one that starts from it.
    state = [host(v) for v in optimizer.variables]
    apply(optimizer, model, np.full(N, 1e-6))
    operator = sd.preconditioned(operator_of(model), optimizer)
    dense = operator.to_dense()
    values, vectors = np.linalg.eigh((dense + dense.T) / 2)
    start = 1e-6 * vectors[:, -1] / np.sqrt(operator.diagonal)
    for ratio, is_stable in ((0.99, True), (1.01, False)):

        def beyond(rate, ratio=ratio):
            optimizer.learning_rate = rate
            return values[-1] - ratio * sd.stability_threshold(optimizer)

        most = 1.9 / (optimizer.weight_decay or 1e-4)  # more than that decay alone is unstable
        rate = brentq(beyond, 1e-4, most, rtol=1e-8)
        for variable, value in zip(optimizer.variables, state, strict=True):
            variable.assign(value)
        optimizer.learning_rate = rate
        growth = run(optimizer, model, HESSIAN, start)
        assert growth < 0.6 if is_stable else growth > 1.6, (ratio, growth)


def test_the_thresholds_are_those_of_the_papers():
    # Cohen et al. 2021, 2022; 38 / eta for Adam's defaults.
    assert sd.stability_threshold(optimizers.SGD(0.5)) == pytest.approx(4.0)
    assert sd.stability_threshold(optimizers.Adam(0.5)) == pytest.approx(76.0)
    assert sd.stability_threshold(optimizers.SGD(0.5, momentum=0.9)) == pytest.approx(7.6)
    nesterov = optimizers.SGD(0.5, momentum=0.9, nesterov=True)
    assert sd.stability_threshold(nesterov) == pytest.approx(3.8 / 2.8 / 0.5)
    assert sd.stability_threshold(optimizers.SGD(0.0)) == np.inf
    decayed = optimizers.AdamW(0.5, weight_decay=0.1)
    assert sd.stability_threshold(decayed) == pytest.approx(1.95 * 1.9 / 0.05)


# Options -----------------------------------------------------------------------------------------


def test_a_schedule_has_the_rate_of_the_next_step():
    schedule = optimizers.schedules.PiecewiseConstantDecay([2], [0.5, 0.25])
    model, optimizer = linear_model(), optimizers.SGD(schedule)
    assert sd.stability_threshold(optimizer) == pytest.approx(4.0)
    for _ in range(3):
        apply(optimizer, model, np.ones(N))
    assert sd.stability_threshold(optimizer) == pytest.approx(8.0)


@pytest.mark.skipif(keras.config.backend() == "jax", reason="Keras applies it within `fit` alone")
def test_of_a_loss_scale_it_is_the_inner_optimizer():
    model = linear_model()
    inner = optimizers.Adam(0.1)
    outer = optimizers.LossScaleOptimizer(inner, initial_scale=8.0)
    plain = optimizers.Adam(0.1)
    other = linear_model()
    for gradient in np.random.default_rng(2).normal(size=(3, N)):
        apply(outer, model, 8 * gradient)
        apply(plain, other, gradient)
    found = sd.preconditioned(operator_of(model), outer)
    expected = sd.preconditioned(operator_of(other), plain)
    np.testing.assert_allclose(found.diagonal, expected.diagonal, rtol=1e-12)
    assert sd.stability_threshold(outer) == sd.stability_threshold(plain)


def test_with_accumulation_it_is_that_of_the_mean_gradient():
    model, other = linear_model(), linear_model()
    optimizer = optimizers.Adam(0.1, gradient_accumulation_steps=2)
    plain = optimizers.Adam(0.1)
    pairs = np.random.default_rng(3).normal(size=(3, 2, N))
    for first, second in pairs:
        apply(optimizer, model, first)
        apply(optimizer, model, second)
        apply(plain, other, (first + second) / 2)
    apply(optimizer, model, pairs[0, 0])  # accumulated, and no step yet
    found = sd.preconditioned(operator_of(model), optimizer)
    expected = sd.preconditioned(operator_of(other), plain)
    np.testing.assert_allclose(found.diagonal, expected.diagonal, rtol=1e-12)


def test_an_average_beside_the_weights_changes_nothing():
    model, optimizer = trained(lambda: optimizers.Adam(0.1, use_ema=True))
    other, plain = trained(lambda: optimizers.Adam(0.1))
    found = sd.preconditioned(operator_of(model), optimizer)
    np.testing.assert_array_equal(
        found.diagonal, sd.preconditioned(operator_of(other), plain).diagonal
    )


# What is refused ---------------------------------------------------------------------------------


class Mine(optimizers.Adam):
    """Of a user's own: whatever it does."""


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: optimizers.SGD(0.1, clipnorm=1.0), ValueError, "SGD has clipnorm=1.0"),
        (lambda: optimizers.Adam(0.1, clipvalue=0.5), ValueError, "Adam has clipvalue=0.5"),
        (lambda: optimizers.Adam(0.1, global_clipnorm=2.0), ValueError, "global_clipnorm=2.0"),
        (
            lambda: optimizers.Adam(0.1, use_ema=True, ema_overwrite_frequency=5),
            ValueError,
            "ema_overwrite_frequency=5",
        ),
        (lambda: optimizers.Lion(0.1), ValueError, "step of Lion .* sign of a momentum"),
        (lambda: optimizers.Adafactor(0.1), ValueError, "step of Adafactor .* clipped"),
        (lambda: optimizers.Muon(0.1), ValueError, "step of Muon .* orthogonalized"),
        (lambda: optimizers.Nadam(0.1), ValueError, "step of Nadam"),
        (lambda: optimizers.Adadelta(0.1), ValueError, "step of Adadelta is not"),
        (lambda: Mine(0.1), TypeError, "update of a Mine is not known"),
        (lambda: "adam", TypeError, "the name 'adam'"),
        (lambda: None, TypeError, "no optimizer"),
        (lambda: object(), TypeError, "update of a object is not known"),
    ],
)
def test_what_has_no_such_step_is_refused_by_name(make, error, message):
    optimizer = make()
    for call in (sd.stability_threshold, lambda o: sd.preconditioned(HESSIAN, o)):
        with pytest.raises(error, match=message):
            call(optimizer)


def test_an_optimizer_without_state_is_refused():
    model, optimizer = linear_model(), optimizers.Adam(0.1)
    operator = operator_of(model)
    with pytest.raises(ValueError, match="Adam has made no step"):
        sd.preconditioned(operator, optimizer)
    optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match="Adam has made no step"):
        sd.preconditioned(operator, optimizer)
    assert sd.preconditioned(operator, optimizers.SGD(0.1)).diagonal == pytest.approx(1.0)


def test_an_optimizer_of_another_model_is_refused_with_the_variable():
    _, optimizer = trained(METHODS["adam"])
    other = linear_model()
    with pytest.raises(ValueError, match=r"Adam has no state for '.*kernel'.*another model"):
        sd.preconditioned(operator_of(other), optimizer)


def test_a_state_that_went_on_is_refused():
    model, optimizer = trained(METHODS["adam"])
    operator = sd.preconditioned(operator_of(model), optimizer)
    apply(optimizer, model, np.ones(N))
    with pytest.raises(ValueError, match="P is that of step 12, and Adam is at step 13"):
        operator @ np.ones(N)


def test_a_constraint_is_refused():
    dense = layers.Dense(1, use_bias=False, kernel_constraint="non_neg")
    model = keras.Sequential([keras.Input((N,)), dense])
    optimizer = optimizers.Adam(0.1)
    apply(optimizer, model, np.ones(N))
    with pytest.raises(ValueError, match="kernel' has a constraint"):
        sd.preconditioned(operator_of(model), optimizer)


def test_gradient_descent_is_checked_as_adam_is():
    model, other = linear_model(), linear_model()
    for options in ({}, {"momentum": 0.9}):
        optimizer = optimizers.SGD(0.1, **options)
        apply(optimizer, model, np.ones(N))
        assert sd.preconditioned(operator_of(model), optimizer).diagonal == pytest.approx(1.0)
        with pytest.raises(ValueError, match=r"SGD has no state for '.*kernel'.*another model"):
            sd.preconditioned(operator_of(other), optimizer)
    dense = layers.Dense(1, use_bias=False, kernel_constraint="non_neg")
    model = keras.Sequential([keras.Input((N,)), dense])
    apply(optimizer := optimizers.SGD(0.1), model, np.ones(N))
    with pytest.raises(ValueError, match="kernel' has a constraint"):
        sd.preconditioned(operator_of(model), optimizer)


def test_a_layer_unfrozen_later_is_not_trained_by_an_optimizer_that_is_built():
    frozen = layers.Dense(N, trainable=False, name="frozen")
    model = keras.Sequential([keras.Input((N,)), frozen, layers.Dense(1)])
    optimizer = optimizers.SGD(0.1)
    gradients = [keras.ops.ones(v.shape) for v in model.trainable_variables]
    optimizer.apply(gradients, model.trainable_variables)
    assert len(sd.preconditioned(operator_of(model), optimizer).diagonal) == N + 1
    frozen.trainable = True
    with pytest.raises(ValueError, match=r"'.*frozen.*was built before the layer was made"):
        sd.preconditioned(operator_of(model), optimizer)


def test_a_model_in_bfloat16_has_the_formula():
    model, optimizer = linear_model("bfloat16"), optimizers.Adam(0.1, beta_2=0.9, epsilon=0.25)
    apply(optimizer, model, np.array([0.5, 1.0, 2.0, 4.0]))
    found = sd.preconditioned(operator_of(model), optimizer).diagonal
    # Of one step m = (1 - b1) g and v = (1 - b2) g^2, eight bits each.
    root = np.sqrt(0.1)
    expected = 0.1 / root * (root * np.array([0.5, 1.0, 2.0, 4.0]) + 0.25)
    np.testing.assert_allclose(found, expected, rtol=0.02)
    default = optimizers.Adam(0.1)
    apply(default, model, np.ones(N))
    with pytest.raises(FloatingPointError, match=r"Adam is not finite in 4 of 4.*in bfloat16"):
        sd.preconditioned(operator_of(model), default)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -0.1}, "learning_rate must be finite and not negative, got -0.1"),
        ({"learning_rate": np.nan}, "learning_rate must be finite and not negative, got nan"),
        ({"beta_1": 1.0}, "coefficient of the momentum must be at least 0 and less than 1, got 1"),
        ({"weight_decay": 30.0}, r"0.1 \* 30: the decay alone is unstable"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and not negative, got -1"),
    ],
)
def test_numbers_without_a_threshold_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sd.stability_threshold(optimizers.AdamW(**{"learning_rate": 0.1, **options}))


@pytest.mark.parametrize("name", ["beta_1", "beta_2"])
def test_averages_that_are_none_have_no_p(name):
    model, optimizer = trained(METHODS["adam"])
    setattr(optimizer, name, 1.0)
    with pytest.raises(ValueError, match=f"{name} must be at least 0 and less than 1, got 1"):
        sd.preconditioned(operator_of(model), optimizer)


def test_hyperparameters_are_those_of_the_optimizer_alone():
    with pytest.raises(TypeError, match="b1 was passed, and a Keras optimizer has its own"):
        sd.stability_threshold(optimizers.Adam(0.1), b1=0.8)


def test_without_epsilon_what_had_no_gradient_is_refused():
    model, optimizer = linear_model(), optimizers.Adam(0.1, epsilon=0.0)
    apply(optimizer, model, np.array([1.0, 0.0, 2.0, 0.0]))
    with pytest.raises(ValueError, match="P must be positive, and 2 of its 4 entries"):
        sd.preconditioned(operator_of(model), optimizer)


# Selections --------------------------------------------------------------------------------------


def test_subsets_shared_layers_and_layers_frozen_later_keep_their_own_entries():
    first = layers.Dense(N, activation="tanh", name="twice", dtype="float64")
    inputs = keras.Input((N,))
    outputs = layers.Dense(1, name="last", dtype="float64")(first(first(inputs)))
    model = keras.Model(inputs, outputs)
    optimizer = optimizers.Adagrad(0.1, initial_accumulator_value=0.0, epsilon=0.0)
    gradients = [np.full(v.shape, i + 1.0) for i, v in enumerate(model.trainable_variables)]
    tensors = [keras.ops.convert_to_tensor(g, "float64") for g in gradients]
    optimizer.apply(tensors, model.trainable_variables)

    def diagonal(variables=None):
        operator = sd.HessianOperator(model, "mse", BATCHES, variables=variables)
        return sd.preconditioned(operator, optimizer).diagonal

    # Of one step P is |g|.
    whole = np.concatenate([g.ravel() for g in gradients])
    np.testing.assert_allclose(diagonal(), whole, rtol=1e-12)
    np.testing.assert_allclose(diagonal(["last", "twice/bias"]), whole[N * N :], rtol=1e-12)
    first.trainable = False
    np.testing.assert_allclose(diagonal(), whole[N * N + N :], rtol=1e-12)
