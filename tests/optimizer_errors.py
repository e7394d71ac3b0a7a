"""Optimizers that `preconditioned` and `stability_threshold` refuse: rows of docs/errors.md."""

from collections import namedtuple

import jax.numpy as jnp
import keras
import numpy as np
from keras import layers, optimizers

import spectral_density as sd

X, Y = np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)


class Mine(optimizers.Adam):
    """Of a user's own: whatever it does."""


def network(**options):
    return keras.Sequential([keras.Input((3,)), layers.Dense(1, use_bias=False, **options)])


def hessian(model):
    return sd.HessianOperator(model, "mse", [(X, Y)])


def stepped(model, gradient=1.0, **options):
    optimizer = optimizers.Adam(0.1, **options)
    variables = model.trainable_variables
    optimizer.apply([gradient * keras.ops.ones_like(v) for v in variables], variables)
    return optimizer


def after_another_step():
    model = network()
    operator = sd.preconditioned(hessian(model), stepped(model))
    operator._rule._optimizer.iterations.assign_add(1)
    return operator @ np.ones(3)


def of_itself(gradient=1.0, epsilon=1e-7, **options):
    model = network(**options)
    return sd.preconditioned(hessian(model), stepped(model, gradient, epsilon=epsilon))


def of_optax(name="weight", **hyperparameters):
    moments = {name: jnp.ones(3)}
    state = namedtuple("ScaleByAdamState", ["count", "mu", "nu"])
    state.__module__ = "optax.transforms"
    params = {"weight": jnp.ones(3)}
    operator = sd.HessianOperator.from_function(lambda p: jnp.sum(p["weight"] ** 2), params)
    return sd.preconditioned(operator, state(jnp.asarray(1), moments, moments), **hyperparameters)


def of_another_optax(name, hyperparameters, **fields):
    state = namedtuple(name, fields)
    state.__module__ = "optax.transforms"
    params = {"weight": jnp.ones(3)}
    operator = sd.HessianOperator.from_function(lambda p: jnp.sum(p["weight"] ** 2), params)
    sd.preconditioned(operator, state(**fields), eps=0.1)
    return sd.stability_threshold(state(**fields), **hyperparameters)


CASES = {
    "`Adam(clipnorm=1.0)`, or `clipvalue`, `global_clipnorm`": lambda: sd.stability_threshold(
        optimizers.Adam(0.1, clipnorm=1.0)
    ),
    "`Lion`, `Adafactor`, `Muon` and the like": lambda: sd.stability_threshold(
        optimizers.Lion(0.1)
    ),
    "an optimizer with `ema_overwrite_frequency`": lambda: sd.stability_threshold(
        optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=3)
    ),
    "a class of your own": lambda: sd.stability_threshold(Mine(0.1)),
    "an optimizer that has made no step": lambda: sd.preconditioned(
        hessian(network()), optimizers.Adam(0.1)
    ),
    "an optimizer of another model": lambda: sd.preconditioned(
        hessian(network()), stepped(network())
    ),
    "an operator kept while training went on": after_another_step,
    "a P with zeros": lambda: of_itself(0.0, 0.0),
    "weights with a constraint": lambda: of_itself(kernel_constraint="non_neg"),
    "a sum of operators, with an optimizer": lambda: sd.preconditioned(
        2 * hessian(network()), optimizers.SGD(0.1)
    ),
    "a state of Optax without its hyperparameters": lambda: of_optax(b2=0.9, eps=1e-8),
    "a state of Optax with momentum": lambda: of_another_optax(
        "TraceState", {"learning_rate": 0.1, "momentum": 0.9}, trace={"weight": jnp.ones(3)}
    ),
    "a state of Optax's adagrad with zeros": lambda: of_another_optax(
        "ScaleByRssState", {}, sum_of_squares={"weight": jnp.arange(3.0)}
    ),
    "a coefficient of 1, a learning rate below zero": lambda: sd.stability_threshold(
        optimizers.Adam(0.1, beta_1=1.0)
    ),
    "a weight decay that is unstable alone": lambda: sd.stability_threshold(
        optimizers.SGD(0.1, weight_decay=30.0)
    ),
    "a state of Optax for other parameters": lambda: of_optax("other", b1=0.9, b2=0.9, eps=1e-8),
}
