"""Private attributes of Keras, tf_keras and TensorFlow that are read or set, one a function.

Those of models and layers, of tensors, of losses, of `tf.data` and of strategies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

# Models and layers -------------------------------------------------------------------------------


class LayerCall(NamedTuple):
    """A call of a layer, or of an operation of `keras.ops`, in a functional model."""

    operation: Any
    inputs: list[Any]  # Keras tensors
    outputs: list[Any]  # Keras tensors
    args: Any
    kwargs: dict[str, Any]


def graph_calls(model: Any) -> list[LayerCall] | None:
    """Return the calls that a functional model is made of, outputs first; None for others.

    Other calls of the same layers, in other models, are not among them.
    """
    if not hasattr(model, "_nodes_by_depth"):
        return None
    return [_layer_call(node) for same in model._nodes_by_depth.values() for node in same]


def inbound_calls(operation: Any) -> list[LayerCall]:
    """Return all calls of a layer or operation with Keras tensors, in whatever model."""
    return [_layer_call(node) for node in operation._inbound_nodes]


def _layer_call(node: Any) -> LayerCall:
    outputs = tf.nest.flatten(node.outputs)
    if hasattr(node, "operation"):
        arguments = node.arguments
        return LayerCall(
            node.operation, list(node.input_tensors), outputs, arguments.args, arguments.kwargs
        )
    # Of tf_keras.
    return LayerCall(node.layer, list(node.keras_inputs), outputs, node.call_args, node.call_kwargs)


def operations_of(model: Any) -> list[Any] | None:
    """Return the layers and operations of a sequential or functional Keras 3 model.

    None for any other model, and for a sequential one that was never built.
    """
    return getattr(getattr(model, "_functional", None) or model, "operations", None)


def attention_axes(layer: Any) -> tuple[int, ...] | None:
    """Return the axes that a `MultiHeadAttention` attends along; None for others."""
    return getattr(layer, "_attention_axes", None)


# Tensors -----------------------------------------------------------------------------------------


def mask_of(tensor: tf.Tensor) -> tf.Tensor | None:
    """Return the mask that a Keras layer or loss left at a tensor, None for none."""
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor: tf.Tensor, mask: tf.Tensor) -> None:
    """Give a tensor a mask, where Keras's losses look for it."""
    tensor._keras_mask = mask


def marked_logits(tensor: tf.Tensor) -> tf.Tensor | None:
    """Return the logits that Keras's softmax or sigmoid left at its output, None for none."""
    return getattr(tensor, "_keras_logits", None)


def mark_logits(tensor: tf.Tensor, logits: tf.Tensor) -> None:
    """Leave logits at a tensor, where Keras's cross-entropies look for them."""
    tensor._keras_logits = logits


# Losses ------------------------------------------------------------------------------------------


def penalty_functions(layer: Any) -> list[Callable[[], tf.Tensor]]:
    """Return the functions that compute the weight regularization of a tf_keras layer alone."""
    return list(layer._callable_losses)


def losses_held(layer: Any) -> list[Any]:
    """Return copies of what a layer holds, itself alone, of the losses added in its calls."""
    return [container.copy() for container in _loss_containers(layer)]


def set_losses_held(layer: Any, copies: list[Any]) -> None:
    """Let a layer hold what `losses_held` returned."""
    if not isinstance(layer, keras.layers.Layer):
        layer._eager_losses = copies[0]
        return
    for container, contents in zip(_loss_containers(layer), copies, strict=True):
        container.clear()
        add = container.extend if isinstance(container, list) else container.update
        add(contents)


def _loss_containers(layer: Any) -> list[Any]:
    if isinstance(layer, keras.layers.Layer):
        return [layer._losses, layer._loss_ids]
    return [layer._eager_losses]


# Data, strategies and the console ----------------------------------------------------------------

# Where the attributes of the next two are not there, nothing is said of the stage.


def reshuffles(stage: tf.data.Dataset) -> bool:
    """Tell whether a stage of a `tf.data` pipeline shuffles anew at each pass."""
    return bool(getattr(stage, "_reshuffle_each_iteration", False))


def is_unordered(stage: tf.data.Dataset) -> bool:
    """Tell whether a stage of a `tf.data` pipeline was made with `deterministic=False`."""
    return getattr(stage, "_deterministic", None) == "false"


def stages_before(stage: tf.data.Dataset) -> list[Any]:
    """Return the datasets that a stage of a `tf.data` pipeline takes its elements from."""
    return list(stage._inputs())


def communication_timeout(strategy: tf.distribute.Strategy) -> float | None:
    """Return the seconds that a strategy was told to wait for other workers, None for none."""
    options = getattr(strategy.extended, "_communication_options", None)
    return getattr(options, "timeout_seconds", None)
