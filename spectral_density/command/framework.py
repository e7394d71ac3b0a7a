"""What the commands ask of the framework that Keras runs on: TensorFlow or JAX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spectral_density.engines import engine_name, engine_of


@dataclass(frozen=True)
class Framework:
    """Functions of a framework for datasets and the tensors of a batch.

    Attributes:
        first_batch: returns the first batch of a dataset, as tensors.
        flatten: returns the tensors of a structure in a list.
        errors: what a model or a loss raises that does not take its inputs.
        is_of_computation: tells whether such an error comes from the computation, and has no
            message for the user as yet.
    """

    first_batch: Callable[[Any], Any]
    flatten: Callable[[Any], list[Any]]
    errors: tuple[type[Exception], ...]
    is_of_computation: Callable[[Exception], bool]


def framework_of(model: Any) -> Framework:
    """Return the framework that computes a model.

    Raises:
        ValueError: if Keras runs on a backend without an engine.
        ModuleNotFoundError: if the framework cannot be imported.
    """
    first_batch = engine_of(model).first_batch
    return _jax(first_batch) if engine_name(model) == "jax" else _tensorflow(first_batch)


def _tensorflow(first_batch: Callable[[Any], Any]) -> Framework:
    import tensorflow as tf

    return Framework(
        first_batch,
        tf.nest.flatten,
        (ValueError, TypeError, tf.errors.OpError),
        lambda error: "{{node" in str(error),
    )


def _jax(first_batch: Callable[[Any], Any]) -> Framework:
    import jax

    return Framework(
        first_batch,
        jax.tree.leaves,
        (ValueError, TypeError, jax.errors.JaxRuntimeError),
        lambda error: "incompatible shapes" in str(error).lower(),
    )
