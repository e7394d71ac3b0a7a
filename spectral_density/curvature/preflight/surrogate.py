"""Does the model or the loss stop gradients on purpose? Then the matrix is that of a surrogate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density.curvature.graph_walk import STOP, deliberate_stops, differentiated
from spectral_density.curvature.preflight.report import Check
from spectral_density.curvature.refusals import faults
from spectral_density.curvature.tf_graphs import captured, handles_of

_SHOWN = 3


def surrogate(
    forward: Any,
    inputs: Sequence[tf.Tensor],
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
        inputs: those of the batch, flat.
        variables: with respect to which the matrix is.
        layers: of the model, to name them.
        compiled: makes a graph of a function, as for products.
        rounding: relative difference of products that is none.
    """
    found = deliberate_stops(forward.graph, variables, forward.outputs[:1], layers)
    if not found:
        message = "no gradient is stopped between the variables and the loss."
        return Check("surrogate", "passed", None, message)
    figure = _effect(forward, inputs, variables, [name for name, _ in found], compiled)
    shown = [f"StopGradient ({name}) in {place}" for name, place in found[:_SHOWN]]
    if len(found) > _SHOWN:
        shown.append(f"and {len(found) - _SHOWN} more")
    what = f"the model or the loss stops gradients itself: {', '.join(shown)}"
    if figure is not None and figure <= rounding:
        message = f"{what}, without an effect on the matrix."
        return Check("surrogate", "passed", figure, message)
    message = (
        f"{what}. The matrix is that of the surrogate that an optimizer sees, in which the stopped "
        "values are constants, and not that of the loss as it is computed."
    )
    return Check("surrogate", "doubtful", figure, message)


def _effect(
    forward: Any,
    inputs: Sequence[tf.Tensor],
    variables: Sequence[Any],
    names: Sequence[str],
    compiled: Callable[[Callable[..., Any]], Any],
) -> float | None:
    """Return how far gradient and product are others where nothing is stopped, relative.

    None where that is not to be had: for stops in loops, branches and functions, and where the
    derivative of what was stopped is missing.
    """
    stopped = forward.graph.as_graph_def()
    known = {node.name for node in stopped.node}
    if not known.issuperset(names) or len(inputs) + len(forward.captured_inputs) != len(
        forward.inputs
    ):
        return None
    free = type(stopped)()
    free.CopyFrom(stopped)
    for node in free.node:
        if node.name in names and node.op == STOP:
            node.op = "Identity"

    passed = [
        node
        for node in differentiated(
            forward.graph, variables, forward.outputs[:1], through_stops=True
        )
        if node.operation.type != STOP
    ]

    @tf.autograph.experimental.do_not_convert
    def both(*given: tf.Tensor) -> list[list[tf.Tensor]]:
        if any(faults(passed, order=2)):
            return []
        return [_derivatives(forward, graph, given, variables) for graph in (stopped, free)]

    parts = compiled(both)(*inputs)
    if not parts:
        return None
    a, b = (
        np.concatenate([np.ravel(part) for part in entry]).astype(np.float64) for entry in parts
    )
    size = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)))
    gap = float(np.linalg.norm(a - b))
    return gap / size if size else 0.0


def _derivatives(
    forward: Any, definition: Any, given: Sequence[tf.Tensor], variables: Sequence[Any]
) -> list[tf.Tensor]:
    """Return the gradient of the loss of a graph, and its derivative along the weights."""
    graph = tf.compat.v1.get_default_graph()
    outside = [graph.capture(tensor) for tensor in forward.captured_inputs]
    names = [tensor.name for tensor in forward.inputs]
    (sums,) = tf.graph_util.import_graph_def(
        definition,
        input_map=dict(zip(names, [*given, *outside], strict=True)),
        return_elements=[forward.outputs[0].name],
        name="",
    )
    gradient = _gradient(sums, graph, variables)
    along = [
        tf.reduce_sum(tf.reshape(part, [-1]) * tf.cos(tf.range(tf.size(part), dtype=part.dtype)))
        for part in gradient
    ]
    return [*gradient, *_gradient(along, graph, variables)]


def _gradient(values: Any, graph: Any, variables: Sequence[Any]) -> list[tf.Tensor]:
    """Return the gradient of the sum of some tensors, zero for variables that are not read."""
    read = {i: captured(graph, handles_of(variable)) for i, variable in enumerate(variables)}
    handles = {i: inside[0] for i, inside in read.items() if inside}
    found = dict(zip(handles, tf.gradients(values, list(handles.values())), strict=True))
    return [
        tf.zeros(variable.shape, variable.dtype)
        if found.get(i) is None
        else tf.convert_to_tensor(found[i])
        for i, variable in enumerate(variables)
    ]
