"""A table of gradient functions, and how they are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

EXACT: dict[str, Callable[..., Any]] = {}
"""Gradient functions by the name of the operation that they differentiate."""


def gradient_of(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function as the gradient of operations."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        EXACT.update(dict.fromkeys(names, function))
        return function

    return register


def by_autodiff(
    function: Callable[..., Any], inputs: Sequence[tf.Tensor], gradients: Sequence[Any]
) -> list[tf.Tensor]:
    """Return the gradient of an equal function in operations with all their derivatives."""
    # Watched in the graph that is current, which need not be that of the inputs.
    inputs = [tf.identity(tensor) for tensor in inputs]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(inputs)
        outputs = function(*inputs)
    return tape.gradient(
        outputs,
        inputs,
        output_gradients=gradients,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
