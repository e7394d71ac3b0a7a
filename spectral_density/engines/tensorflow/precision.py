"""The precision that a graph computes in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density.linalg.arguments import precision

_HALF = (tf.float16, tf.bfloat16)


def compute_dtype(graph: tf.Graph, variables: Iterable[tf.Variable]) -> np.dtype:
    """Return the coarsest dtype in which a graph computes what depends on variables.

    Data that are stored in half precision and cast before they meet a variable do not count.

    Args:
        graph: of the loss.
        variables: those that it is differentiated by; gradients have their dtypes.
    """
    found = {variable.dtype.base_dtype for variable in variables}
    reached: set[int] = set()
    functions: set[str] = set()
    for op in graph.get_operations():
        if not any(t.dtype == tf.resource or id(t) in reached for t in op.inputs):
            continue
        functions |= _functions_of(op.node_def)
        for tensor in op.outputs:
            # What is no floating-point number has no derivative, and passes none on.
            if tensor.dtype.is_floating:
                reached.add(id(tensor))
                found.add(tensor.dtype)
    if functions:
        found |= _half_types(graph, functions)
    return np.dtype(max(found, key=precision_of).as_numpy_dtype)


def precision_of(dtype: tf.DType) -> float:
    """Return the relative spacing of a TensorFlow dtype."""
    return precision(dtype.name)


def _functions_of(node: Any) -> set[str]:
    """Return the names of the functions that a node calls."""
    values = node.attr.values()
    return {value.func.name for value in values if value.HasField("func")} | {
        each.name for value in values for each in value.list.func
    }


def _half_types(graph: tf.Graph, functions: set[str]) -> set[tf.DType]:
    """Return the kinds of half precision in functions of a graph, and in those that they call."""
    library = {each.signature.name: each for each in graph.as_graph_def().library.function}
    waiting, seen = [*functions], set(functions)
    found: set[tf.DType] = set()
    while waiting:
        definition = library.get(waiting.pop())
        for node in () if definition is None else definition.node_def:
            types = {value.type for value in node.attr.values() if value.HasField("type")}
            found |= {half for half in _HALF if half.as_datatype_enum in types}
            new = _functions_of(node) - seen
            waiting += new
            seen |= new
    return found
