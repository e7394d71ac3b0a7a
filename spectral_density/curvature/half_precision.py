"""The precision of products: what a graph computes in, and vectors scaled to its range.

float16 holds numbers from 6e-8 to 65504, float32 from 1e-45 to 3e38. A product is linear in its
vector, so that a vector times a power of two, undone in float64 afterwards, has the same product to
the bit wherever neither vanishes nor overflows in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density.linalg.arguments import precision

# Vectors are scaled to a largest entry and a length of at most 2 to the power of these: between
# products of trained networks (means over thousands of examples), which vanish below 2^-8, and
# sums over the inputs of a layer, which overflow above 2^8 to 2^12.
_LARGEST, _LENGTH = 4, 8

# Where a product is not finite, its vector is taken this many powers of two smaller, twice.
_STEP, _TRIES = 6, 3

# In single and double precision only vectors whose largest entry is further from 1 than this power
# of two are scaled.
_MODERATE = 32

_HALF = (tf.float16, tf.bfloat16)


def is_half(dtype: Any) -> bool:
    """Tell whether a dtype has half precision, of either kind."""
    return tf.as_dtype(dtype) in _HALF


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


def scaled_product(
    multiply: Callable[[np.ndarray, bool], list[np.ndarray]], block: np.ndarray
) -> list[np.ndarray]:
    """Return what `multiply` returns for a block, of which each column is scaled by a power of two.

    A column whose product is not finite is multiplied again, smaller.

    Args:
        multiply: takes a block (n, k) and whether its products have to be finite; returns the
            products (n, k), and more that does not depend on the block.
        block: (n, k), float64.
    """
    exponents = _exponents(block)
    for attempt in range(_TRIES):
        products, *rest = multiply(np.ldexp(block, exponents), attempt == _TRIES - 1)
        lost = ~np.isfinite(products).all(axis=0)
        if not lost.any():
            break
        exponents[lost] -= _STEP
    return [np.ldexp(products, -exponents), *rest]


def moderated_product(
    multiply: Callable[[np.ndarray], list[np.ndarray]], block: np.ndarray
) -> list[np.ndarray]:
    """Return what `multiply` returns for a block, of which no column is very small or very large.

    Vectors are float64 whatever products are computed in. Columns whose largest entry is far from 1
    are scaled by a power of two.

    Args:
        multiply: takes a block (n, k); returns the products (n, k), and more that does not depend
            on the block.
        block: (n, k), float64.
    """
    # Without a copy of the block.
    largest = np.maximum(block.max(axis=0, initial=0.0), -block.min(axis=0, initial=0.0))
    exponents = np.frexp(largest)[1]
    exponents = np.where(np.abs(exponents) > _MODERATE, -exponents, 0)
    if not exponents.any():
        return multiply(block)
    products, *rest = multiply(np.ldexp(block, exponents))
    return [np.ldexp(products, -exponents), *rest]


def _exponents(block: np.ndarray) -> np.ndarray:
    """Return for each column the power of two that takes it into the range; 0 for zero."""
    largest = np.abs(block).max(axis=0, initial=0.0)
    # First, so that no square under- or overflows.
    exponents = -np.frexp(largest)[1]
    length = np.linalg.norm(np.ldexp(block, exponents), axis=0)
    return exponents + np.minimum(_LARGEST, _LENGTH - np.frexp(length)[1])


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
