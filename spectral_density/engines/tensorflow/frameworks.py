"""Which framework an object comes from: Keras 3, tf_keras, or plain TensorFlow."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from spectral_density.engines.keras_shared.kinds import (
    NOTHING_TRAINABLE,
    keras_module,
    refuse_unbuilt,
)


def check_backend() -> None:
    """Raise unless Keras computes with TensorFlow, outside of graphs."""
    if keras.config.backend() != "tensorflow":
        raise ValueError(
            f"Keras runs on the {keras.config.backend()!r} backend, and curvature needs "
            "TensorFlow's. Set KERAS_BACKEND=tensorflow before Keras is imported."
        )
    check_eager()


def check_eager() -> None:
    """Raise where a graph is being traced.

    Raises:
        RuntimeError: since products are NumPy arrays, which a graph does not have.
    """
    if not tf.executing_eagerly():
        raise RuntimeError(
            "curvature was asked for while a graph is being traced (within tf.function, "
            "Dataset.map, a layer's call or TensorFlow's graph mode), and it computes NumPy "
            "arrays. Call it outside, or through tf.py_function."
        )


def tf_variable(variable: Any) -> tf.Variable:
    """Return the `tf.Variable` behind a Keras or TensorFlow variable.

    A Keras 3 variable holds one; `GradientTape` wants the latter.
    """
    if isinstance(variable, tf.Variable):
        return variable
    if isinstance(variable, keras.Variable):
        value = variable.value
        if isinstance(value, tf.Variable):
            return value
    raise TypeError(
        f"expected a tf.Variable or a Keras variable, got {type(variable).__name__}. "
        "Pass variables themselves, not their values; parameters of a function of JAX as arrays of "
        "JAX: jax.tree.map(jax.numpy.asarray, params)."
    )


def variable_name(variable: Any) -> str:
    """Return the path of a variable, such as `dense_1/kernel`."""
    path = getattr(variable, "path", None) or tf_variable(variable).name
    return str(path).removesuffix(":0")


def trainable_variables(model: Any) -> list[Any]:
    """Return the model's trainable variables, each once.

    Raises:
        TypeError: if `model` has none to offer.
        ValueError: if the model is not built, or everything in it is frozen.
    """
    if not hasattr(model, "trainable_variables"):
        raise TypeError(
            f"model must be a Keras model or a tf.Module, got {type(model).__name__}. "
            "For a plain function of tf.Variables use HessianOperator.from_function; parameters of "
            "a function of JAX are arrays of JAX: jax.tree.map(jax.numpy.asarray, params)."
        )
    if keras_module(model) is not None:
        refuse_unbuilt(model)
    unique = {id(tf_variable(v)): v for v in model.trainable_variables}
    if not unique:
        raise ValueError(NOTHING_TRAINABLE)
    return list(unique.values())
