"""What TensorFlow does not say in public about its graphs: bodies of functions, gradients of types.

The one file of the graph walk that uses private names of TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from inspect import getclosurevars, isfunction
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import kernels, ops

_CUSTOM_GRADIENT = "_gradient_op_type"


class Derivative(Enum):
    """What TensorFlow's registry of gradients says of an operation."""

    REGISTERED = "a function"
    NONE = "declared not differentiable: its derivative is taken for zero without a word"
    MISSING = "unknown: asking for it raises a LookupError"


def body_of(operation: Any, function: Any) -> Any | None:
    """Return the graph of a function that an operation calls, or None if it is not to be had.

    Args:
        operation: a loop, a branch or a call.
        function: one of its attributes, a `NameAttrList`.
    """
    graph = operation.graph
    while graph is not None:
        defined = graph._get_function(function.name)
        if defined is not None:
            return getattr(defined, "graph", None)
        graph = getattr(graph, "outer_graph", None)
    return None


def handles_of(variable: Any) -> list[Any]:
    """Return the handles that graphs may read a variable by: one for each of its replicas."""
    if isinstance(variable, tf.distribute.DistributedValues):
        return [part.handle for part in variable.values]
    return [variable.handle]


def captured(graph: Any, outside: Iterable[Any]) -> list[tf.Tensor]:
    """Return the tensors of a graph that stand for tensors outside of it."""
    wanted = {id(tensor) for tensor in outside}
    return [inside for other, inside in graph.captures if id(other) in wanted]


def has_custom_gradient(operation: Any) -> bool:
    """Tell whether the gradient of an operation is another than that of its type."""
    return _CUSTOM_GRADIENT in operation.node_def.attr


def author_of_gradient(operation: Any) -> str:
    """Return the qualified name of the function that `tf.custom_gradient` takes a gradient from."""
    kind = tf.compat.as_str(operation.get_attr(_CUSTOM_GRADIENT))
    try:
        function = ops.gradient_registry.lookup(kind)
    except LookupError:
        return ""
    # The function that was registered calls one that calls the one that was written.
    for name in ("tape_grad_fn", "grad_fn"):
        function = getclosurevars(function).nonlocals.get(name) if isfunction(function) else None
    return getattr(function, "__qualname__", "")


def derivative_of(operation: Any) -> Derivative:
    """Return what the registry of gradients says of an operation."""
    kind = operation.type
    if has_custom_gradient(operation):
        kind = tf.compat.as_str(operation.get_attr(_CUSTOM_GRADIENT))
    return derivative_of_type(kind)


def derivative_of_type(kind: str) -> Derivative:
    """Return what the registry of gradients says of a type of operations."""
    try:
        function = ops.gradient_registry.lookup(kind)
    except LookupError:
        return Derivative.MISSING
    return Derivative.NONE if function is None else Derivative.REGISTERED


def unchanged_by_autograph(error: Exception) -> Exception:
    """Return an error that leaves a function which AutoGraph converted with its type and text."""
    error.ag_pass_through = True  # type: ignore[attr-defined]
    return error


def calls(operation: Any) -> list[tuple[str, str]]:
    """Return the file and the function of each call that led to an operation, the last first.

    There are none where a graph was loaded from a file.
    """
    frames = reversed(operation.traceback or ())
    return [(frame.filename.replace("\\", "/"), frame.name) for frame in frames]


def attributes_of(operation: Any, *names: str) -> dict[str, Any]:
    """Return attributes of an operation as `tf.raw_ops` takes them."""
    values = {name: operation.get_attr(name) for name in names}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}


def made_again(
    operation: Any, inputs: Sequence[tf.Tensor], attributes: Mapping[str, Any] | None = None
) -> list[tf.Tensor]:
    """Put an operation of another graph into the one that is being traced.

    Args:
        operation: whose type and, unless given, attributes are taken.
        inputs: of this graph.
        attributes: as in a `NodeDef`.
    """
    taken = operation.node_def.attr if attributes is None else attributes
    made = tf.compat.v1.get_default_graph().create_op(
        operation.type,
        list(inputs),
        # The class says with which operations of the other graph it shares a device.
        attrs={name: taken[name] for name in taken if name != "_class"},
        op_def=operation.op_def,
    )
    return list(made.outputs)


def runs_with(kind: str, types: Mapping[str, int]) -> bool:
    """Tell whether TensorFlow computes a type of operations with these dtypes on a CPU.

    Args:
        kind: type of the operation.
        types: enumerations of the dtypes that its attributes name.
    """
    return any(
        kernel.device_type in ("CPU", "DEFAULT")
        and all(
            constraint.name not in types
            or types[constraint.name] in constraint.allowed_values.list.type
            for constraint in kernel.constraint
        )
        for kernel in kernels.get_registered_kernels_for_op(kind).kernel
    )
