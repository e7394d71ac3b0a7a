"""Does the model or the loss stop gradients on purpose? Then the matrix is that of a surrogate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density.curvature.graph_walk import deliberate_stops, is_deliberate
from spectral_density.curvature.operator import hessian_products
from spectral_density.curvature.preflight.report import Check
from spectral_density.curvature.tf_graphs import stops_lifted, unchanged_by_autograph

_SHOWN = 3


def surrogate(
    forward: Any,
    sums: Callable[..., tuple[tf.Tensor, tf.Tensor]],
    inputs: Sequence[Any],
    variables: Sequence[Any],
    layers: Sequence[Any],
    *,
    compiled: Callable[[Callable[..., Any]], Any],
    rounding: float,
) -> Check:
    """Return whether gradients are stopped between the variables and the loss, and where.

    Stops that change neither the gradient nor a product of one batch (a maximum that is taken off
    before an exponential) leave the matrix what it is.

    Args:
        forward: concrete function of the loss of a batch, whose first output are its sums.
        sums: what it was traced from, see `Objective.sums`.
        inputs: a batch and its weight.
        variables: with respect to which the matrix is.
        layers: of the model, to name them.
        compiled: makes a graph of a function, as for products.
        rounding: relative difference of products that is none.
    """
    found = deliberate_stops(forward.graph, variables, forward.outputs[:1], layers)
    if not found:
        message = "no gradient is stopped between the variables and the loss."
        return Check("surrogate", "passed", None, message)
    shown = [f"StopGradient ({name}) in {place}" for name, place in found[:_SHOWN]]
    if len(found) > _SHOWN:
        shown.append(f"and {len(found) - _SHOWN} more")
    what = f"the model or the loss stops gradients itself: {', '.join(shown)}"
    figure = _effect(sums, inputs, variables, compiled)
    if figure is not None and figure <= rounding:
        message = f"{what}, without an effect on the matrix."
        return Check("surrogate", "passed", figure, message)
    message = (
        f"{what}. The matrix is that of the surrogate that an optimizer sees, in which the stopped "
        "values are constants, and not that of the loss as it is computed."
    )
    return Check("surrogate", "doubtful", figure, message)


def _effect(
    sums: Callable[..., tuple[tf.Tensor, tf.Tensor]],
    inputs: Sequence[Any],
    variables: Sequence[Any],
    compiled: Callable[[Callable[..., Any]], Any],
) -> float | None:
    """Return how far gradient and product are others where nothing is stopped, relative.

    None where that is not to be had: what was stopped has no derivatives.
    """

    def value(inputs: Sequence[Any]) -> tf.Tensor:
        return tf.reduce_sum(sums(*inputs)[0])

    def free_value(inputs: Sequence[Any]) -> tf.Tensor:
        with stops_lifted(is_deliberate):
            total = value(inputs)
        if deliberate_stops(total.graph, variables, [total]):
            raise unchanged_by_autograph(ValueError("a gradient is stopped in another way."))
        return total

    def both(*inputs: Any) -> list[tf.Tensor]:
        return [
            _derivatives(partial(function, inputs), variables) for function in (value, free_value)
        ]

    try:
        a, b = map(np.asarray, compiled(both)(*inputs))
    except ValueError:
        return None
    size = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)))
    gap = float(np.linalg.norm(a - b))
    return gap / size if size else 0.0


def _derivatives(value: Callable[[], tf.Tensor], variables: Sequence[Any]) -> tf.Tensor:
    """Return the gradient of a loss and a product of its Hessian, end to end."""
    steps = [
        tf.cast(tf.reshape(tf.cos(tf.range(float(np.prod(v.shape)))), v.shape), v.dtype)
        for v in variables
    ]
    (product,), gradient = hessian_products(value, variables, [steps])
    parts = [
        tf.zeros(v.shape, v.dtype) if part is None else tf.convert_to_tensor(part)
        for found in (gradient, product)
        for v, part in zip(variables, found, strict=True)
    ]
    return tf.concat([tf.cast(tf.reshape(part, [-1]), tf.float64) for part in parts], 0)
