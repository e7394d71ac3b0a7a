"""Private names of TensorFlow's graphs: bodies of functions, registered gradients, kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import cache
from typing import Any

import tensorflow as tf
from tensorflow.python.autograph.impl.api import StagingError
from tensorflow.python.eager import context, record
from tensorflow.python.framework import kernels, ops

AUTOGRAPH_ERROR: type[Exception] = StagingError
"""What AutoGraph raises in place of an error that it cannot make anew, such as an `IndexError`."""

_CUSTOM_GRADIENT = "_gradient_op_type"

# Says with which other operations one shares a device.
_COLOCATION = "_class"


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


def gradient_type(operation: Any) -> str:
    """Return the name under which the gradient function of an operation is registered."""
    if has_custom_gradient(operation):
        return tf.compat.as_str(operation.get_attr(_CUSTOM_GRADIENT))
    return operation.type


def registered_gradient(kind: str) -> Any:
    """Return the gradient function of a type of operations, None if it is not differentiable.

    Raises:
        LookupError: if the registry does not know the type.
    """
    return ops.gradient_registry.lookup(kind)


def derivative_of(kind: str) -> Derivative:
    """Return what the registry of gradients says of a type of operations."""
    try:
        function = registered_gradient(kind)
    except LookupError:
        return Derivative.MISSING
    return Derivative.NONE if function is None else Derivative.REGISTERED


def linear(
    compute: Callable[[], Any], inputs: Sequence[tf.Tensor], adjoint: Callable[..., Any], name: str
) -> Any:
    """Return `compute()`, a linear function of `inputs`, recorded on tapes with its adjoint.

    For operations registered as not differentiable: tapes keep none of their inputs.

    Args:
        compute: makes the operations, of which tapes record none.
        inputs: what it is linear in.
        adjoint: takes the gradients with respect to what `compute` returns, and returns those with
            respect to the inputs.
        name: of the operation.
    """
    with record.stop_recording():
        outputs = compute()
    record.record_operation(name, tf.nest.flatten(outputs), list(inputs), adjoint)
    return outputs


def unchanged_by_autograph(error: Exception) -> Exception:
    """Return an error that leaves a function which AutoGraph converted with its type and text."""
    error.ag_pass_through = True  # type: ignore[attr-defined]
    return error


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
    # `create_op` without the check of its deprecated argument, which takes half of its time.
    made = tf.compat.v1.get_default_graph()._create_op_internal(
        operation.type,
        list(inputs),
        attrs={name: taken[name] for name in taken if name != _COLOCATION},
        op_def=operation.op_def,
    )
    return list(made.outputs)


def clear_colocation(node: Any) -> None:
    """Let a `NodeDef` share a device with no other: that may be in another graph."""
    if _COLOCATION in node.attr:
        del node.attr[_COLOCATION]


def runs_with(kind: str, types: Mapping[str, int]) -> bool:
    """Tell whether TensorFlow computes a type of operations with these dtypes on a CPU.

    Args:
        kind: type of the operation.
        types: enumerations of the dtypes that its attributes name.
    """
    return _runs_with(kind, frozenset(types.items()))


@cache
def _runs_with(kind: str, pairs: frozenset[tuple[str, int]]) -> bool:
    types = dict(pairs)
    return any(
        kernel.device_type in ("CPU", "DEFAULT")
        and all(
            constraint.name not in types
            or types[constraint.name] in constraint.allowed_values.list.type
            for constraint in kernel.constraint
        )
        for kernel in kernels.get_registered_kernels_for_op(kind).kernel
    )


@contextmanager
def graphs_as_traced() -> Iterator[None]:
    """Let this thread run graphs as they were traced, on a machine without GPUs.

    TensorFlow rewrites each graph before its first run (grappler). That takes as long as several
    products of a deep network: a graph that is run a hundred times is up to a tenth faster for it,
    one that is run once or twice a batch only waits. On a GPU the layout of images is chosen there.
    """
    own = context.context()
    before = own.function_call_options
    own.function_call_options = _as_traced(before.executor_type, before.config_proto_serialized)
    try:
        yield
    finally:
        own.function_call_options = before


@cache
def _as_traced(executor: str | None, configuration: bytes) -> Any:
    """Return options of calls without rewriting, from the type of executor and a `ConfigProto`."""
    config = tf.compat.v1.ConfigProto.FromString(configuration)
    if not tf.config.list_logical_devices("GPU"):
        config.graph_options.rewrite_options.disable_meta_optimizer = True
    return context.FunctionCallOptions(executor, config)
