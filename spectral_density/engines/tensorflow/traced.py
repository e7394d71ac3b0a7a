"""Tensors of a graph that is being traced, noted by name to be found in it later."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

_PREFIX = "spectral_density/"


def note(name: str, tensor: tf.Tensor) -> tf.Tensor:
    """Note a tensor of the graph that is being traced, if one is, and return it."""
    if not tf.executing_eagerly():
        tf.compat.v1.get_default_graph().add_to_collection(f"{_PREFIX}{name}", tensor)
    return tensor


def noted(graph: Any, name: str) -> list[tf.Tensor]:
    """Return the tensors of that name in a graph, in the order in which they were noted."""
    return list(graph.get_collection_ref(f"{_PREFIX}{name}"))
