"""How derivatives of one loss on one batch are computed: one folder for each framework."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def engine_of(model: Any) -> Any:
    """Return the engine that takes a model, or variables; loaded when it is first needed.

    Raises:
        ValueError: if Keras runs on a backend without an engine.
        ModuleNotFoundError: if the framework of the engine cannot be imported.
    """
    name = engine_name(model)
    if name == "jax":
        from spectral_density.engines.jax import JaxEngine

        return JaxEngine()
    if name == "tensorflow":
        try:
            from spectral_density.engines.tensorflow import TensorFlowEngine
        except ImportError as error:
            raise ModuleNotFoundError(
                f"a {type(model).__name__} without an array in it is taken by TensorFlow, which "
                f"cannot be imported ({error}). Parameters for JAX are arrays: "
                "jax.tree.map(jax.numpy.asarray, params)."
            ) from error
        return TensorFlowEngine()
    raise ValueError(
        f"Keras runs on the {name!r} backend, and curvature is computed by TensorFlow or JAX. Set "
        "KERAS_BACKEND=tensorflow or KERAS_BACKEND=jax before Keras is imported."
    )


def engine_name(model: Any) -> str:
    """Return the name of the framework that computes the derivatives of a model, or variables.

    Keras models are taken by the backend that Keras runs on, pytrees with an array of JAX or NumPy
    by JAX where it was imported, and anything else by TensorFlow: a lone array of NumPy, too, where
    TensorFlow was imported, which says that a variable belongs there.
    """
    keras = sys.modules.get("keras")
    if keras is not None and isinstance(model, keras.layers.Layer):
        return keras.config.backend()
    return "jax" if _is_pytree_of_arrays(model) else "tensorflow"


def _is_pytree_of_arrays(params: Any) -> bool:
    """Tell whether some leaf is an array of JAX or NumPy, once JAX was imported."""
    jax = sys.modules.get("jax")
    if jax is None:
        return False
    if isinstance(params, np.ndarray):
        return "tensorflow" not in sys.modules
    return any(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in jax.tree.leaves(params))
