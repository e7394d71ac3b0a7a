"""A graph of products in two parts: what the vectors do not touch, and what is linear in them.

A product is a linear function of the vector. The forward pass, the first gradient and all else that
does not depend on the vector is the same for every vector, as long as the weights stay: computed
once for each batch and kept, it need not be computed again. Functional frameworks call this
partial evaluation a linearization.

References:
    Radul, Paszke, Frostig, Johnson, Maclaurin (2023), "You Only Linearize Once: Tangents Transpose
    to Gradients", POPL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density.engines.tensorflow.keras_internals import clear_colocation

# What one batch leaves behind. With less or more than this the graph is run as a whole: computing
# so little again takes no time, and keeping so much takes too much memory.
MIN_BATCH_BYTES, MAX_BATCH_BYTES = 2**16, 2**28

# Operations that read a variable: the only ones with a state that may be run at another time.
_READS = frozenset({"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape"})

# Operations that give the memory of their first input another shape, at no cost.
_VIEWS = frozenset({"Reshape", "ExpandDims", "Squeeze", "Identity", "StopGradient"})

_OF_A_SHAPE = frozenset({"Shape", "ShapeN"})


@dataclass(frozen=True)
class TracedProducts:
    """The graph of the products of one batch, and what is what in it."""

    fixed: list[tf.Tensor]  # batch, weight and scales, flat: the same for every vector
    changing: list[tf.Tensor]  # the vectors, and the sums that products are added to
    outputs: list[tf.Tensor]

    @property
    def graph(self) -> Any:
        """The graph that all of them are in."""
        return self.outputs[0].graph


@dataclass(frozen=True)
class VariableRead:
    """A variable, and the type that a graph reads it in."""

    handle: tf.Tensor
    dtype: tf.DType

    def value(self) -> np.ndarray:
        """Return a copy of the value that it has now."""
        return tf.raw_ops.ReadVariableOp(resource=self.handle, dtype=self.dtype).numpy()


@dataclass(frozen=True)
class Linearization:
    """The two parts of a graph of products.

    Attributes:
        names: of the residuals in the graph.
        nbytes: of the residuals of one batch.
        residuals: function of the batch, its weight and the scales, as one tuple: what the second
            part needs of the first.
        products: function of residuals, the same tuple, vectors and sums.
        variables: those that residuals depend on.
    """

    names: tuple[str, ...]
    nbytes: int
    residuals: Callable[[tuple[Any, ...]], list[tf.Tensor]]
    products: Callable[..., list[tf.Tensor]]
    variables: list[VariableRead]

    @classmethod
    def of_nothing(cls, whole: Callable[..., list[tf.Tensor]]) -> Linearization:
        """Return the graph that is not cut, as the second part."""
        return cls((), 0, lambda batch: [], lambda kept, batch, *others: whole(batch, *others), [])


def linearize(traced: TracedProducts) -> Linearization | None:
    """Return the graph in two parts; None where it cannot be cut, or need not be.

    Cut are graphs without side effects whose residuals are plain tensors of known shapes. Loops
    that only read their inputs stay whole.
    """
    graph = traced.graph
    if any(o.op_def.is_stateful and o.type not in _READS for o in graph.get_operations()):
        return None
    cut = _Cut(traced)
    if not all(map(_is_plain, cut.residuals)):
        return None
    nbytes = sum(tensor.dtype.size * tensor.shape.num_elements() for tensor in cut.residuals)
    if not MIN_BATCH_BYTES <= nbytes <= MAX_BATCH_BYTES:
        return None
    names = [tensor.name for tensor in cut.residuals]
    fixed = [tensor.name for tensor in traced.fixed]
    changing = [tensor.name for tensor in traced.changing]
    captured = {inside.name: outside for outside, inside in graph.captures}
    definition = graph.as_graph_def()
    first = _GraphPart(definition, captured, cut.known, names)
    outputs = [tensor.name for tensor in traced.outputs]
    second = _GraphPart(definition, captured, cut.linear, outputs)
    variables = first.variables()
    if variables is None:
        return None

    def residuals(inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return first.imported(dict(zip(fixed, inputs, strict=True)))

    def products(
        kept: Sequence[tf.Tensor], inputs: Sequence[tf.Tensor], *others: tf.Tensor
    ) -> list[tf.Tensor]:
        given = dict(zip(names, kept, strict=True))
        given = {alias: given[name] for alias, name in cut.aliases.items()}
        given.update((name, tf.constant(value)) for name, value in cut.constants.items())
        given.update(zip(fixed, inputs, strict=True))
        given.update(zip(changing, others, strict=True))
        return second.imported(given)

    inputs = [tf.TensorSpec.from_tensor(tensor) for tensor in traced.fixed]
    between = [tf.TensorSpec.from_tensor(tensor) for tensor in cut.residuals]
    others = [tf.TensorSpec.from_tensor(tensor) for tensor in traced.changing]
    compiled_residuals = _compiled(residuals, inputs)
    compiled_products = _compiled(products, between, inputs, *others)
    return Linearization(
        names=tuple(names),
        nbytes=nbytes,
        residuals=lambda batch: compiled_residuals(flat(batch)),
        products=lambda kept, batch, *others: compiled_products(kept, flat(batch), *others),
        variables=variables,
    )


def flat(structure: Any) -> list[tf.Tensor]:
    """Return the tensors of a structure: those of composite ones, and none for None."""
    leaves = tf.nest.flatten(structure, expand_composites=True)
    return [leaf for leaf in leaves if leaf is not None]


def _compiled(function: Callable[..., Any], *specs: Any) -> Any:
    """Return the graph of a function of tensors such as these.

    A `tf.function` finds out anew in each call which of its graphs to run, in half a millisecond.
    """
    return tf.function(function, autograph=False).get_concrete_function(*specs)


class _Cut:
    """Where a graph is cut: the residuals, and the operations on either side of them.

    Attributes:
        residuals: tensors of the first part that the second needs.
        aliases: names of tensors in the second part, with that of the residual they are equal to.
        constants: names of tensors in the second part that are the same in every run.
        known, linear: names of the operations of the two parts.
    """

    def __init__(self, traced: TracedProducts):
        graph = traced.graph
        self._inputs = {tensor.ref() for tensor in graph.inputs}
        self._linear = {tensor.ref() for tensor in traced.changing}
        self._of_data = {tensor.ref() for tensor in traced.fixed}
        for operation in graph.get_operations():
            for members in (self._linear, self._of_data):
                if any(tensor.ref() in members for tensor in operation.inputs):
                    members.update(tensor.ref() for tensor in operation.outputs)
        self._first = self._first_of_equals(graph)
        self.constants: dict[str, np.ndarray] = {}
        self.aliases: dict[str, str] = {}
        residuals: dict[str, tf.Tensor] = {}
        self.linear = self._upwards(traced.outputs, residuals)
        # In one order whatever the number of vectors.
        self.residuals = [residuals[name] for name in sorted(residuals)]
        self.known = self._upwards(self.residuals, None)

    def _first_of_equals(self, graph: Any) -> dict[Any, tf.Tensor]:
        """Return, for each tensor that no vector touches, the first one of the same computation.

        Each vector has its own second reverse pass, with the same helpers in all of them.
        """
        first: dict[Any, tf.Tensor] = {}
        operations: dict[Any, Any] = {}
        for operation in graph.get_operations():
            source = not operation.inputs and operation.type != "Const"
            if source or any(t.ref() in self._linear for t in operation.inputs):
                first.update((tensor.ref(), tensor) for tensor in operation.outputs)
                continue
            attributes = operation.node_def.attr
            key = (
                operation.type,
                *(
                    (name, attributes[name].SerializeToString(deterministic=True))
                    for name in sorted(attributes)
                    if not name.startswith("_")
                ),
                *(first[tensor.ref()].name for tensor in operation.inputs),
            )
            equal = operations.setdefault(key, operation)
            for tensor, other in zip(operation.outputs, equal.outputs, strict=True):
                first[tensor.ref()] = other
        return first

    def _upwards(
        self, tensors: Iterable[tf.Tensor], residuals: dict[str, tf.Tensor] | None
    ) -> set[str]:
        """Return the names of the operations that tensors come from, up to the residuals if any."""
        found: set[str] = set()
        waiting = [tensor.op for tensor in tensors if tensor.ref() not in self._inputs]
        while waiting:
            operation = waiting.pop()
            if operation.name in found:
                continue
            found.add(operation.name)
            for tensor in operation.inputs:
                if tensor.ref() in self._inputs:
                    continue
                if residuals is None or self._is_computed_again(tensor):
                    waiting.append(tensor.op)
                elif (value := _static_value(tensor)) is not None:
                    self.constants[tensor.name] = value
                else:
                    equal = self._first[tensor.ref()]
                    self.aliases[tensor.name] = equal.name
                    residuals[equal.name] = equal
        return found

    def _is_computed_again(self, tensor: tf.Tensor) -> bool:
        """Tell what is on the side of the vectors: it depends on them, not on data, or is a view.

        What comes of the weights alone would be kept once for each batch.
        """
        key = tensor.ref()
        return key in self._linear or key not in self._of_data or tensor.op.type in _VIEWS


class _GraphPart:
    """Some operations of a graph, to be imported into another."""

    def __init__(
        self, whole: Any, captured: dict[str, tf.Tensor], names: set[str], outputs: list[str]
    ):
        """Choose among the nodes of the definition of a graph, given the tensors it captures."""
        self._definition = type(whole)(versions=whole.versions, library=whole.library)
        for node in whole.node:
            if node.name in names:
                copied = self._definition.node.add()
                copied.CopyFrom(node)
                # Nothing here has side effects whose order matters.
                data = [name for name in node.input if not name.startswith("^")]
                del copied.input[:]
                copied.input.extend(data)
                clear_colocation(copied)
        used = {_full(name) for node in self._definition.node for name in node.input}
        self._used = {name for name in used if name.rsplit(":", 1)[0] not in names}
        self._captured = {name: captured[name] for name in self._used & captured.keys()}
        self._outputs = outputs

    def imported(self, given: dict[str, tf.Tensor]) -> list[tf.Tensor]:
        """Put the operations into the graph that is being traced, and return their outputs.

        Args:
            given: tensors in place of those that they need of the rest of the graph.
        """
        capture = tf.compat.v1.get_default_graph().capture
        given = given | {name: capture(tensor) for name, tensor in self._captured.items()}
        return tf.graph_util.import_graph_def(
            self._definition,
            input_map={name: given[name] for name in self._used},
            return_elements=self._outputs,
            name="",
        )

    def variables(self) -> list[VariableRead] | None:
        """Return the variables that are read; None where one is reached in another way."""
        read = {}
        for node in self._definition.node:
            if node.op in _READS:
                handle = self._captured.get(_full(node.input[0]))
                if handle is None:
                    return None
                if node.op != "VariableShape":
                    read[id(handle)] = VariableRead(handle, tf.as_dtype(node.attr["dtype"].type))
        return list(read.values())


def _full(name: str) -> str:
    return name if ":" in name else f"{name}:0"


def _is_plain(tensor: tf.Tensor) -> bool:
    return tensor.dtype not in (tf.variant, tf.resource, tf.string) and (
        tensor.shape.is_fully_defined()
    )


def _static_value(tensor: tf.Tensor) -> np.ndarray | None:
    """Return the value of a tensor that is the same in every run of its graph, else None."""
    if tensor.op.type in _OF_A_SHAPE:
        shape = tensor.op.inputs[tensor.value_index].shape
        if shape.is_fully_defined():
            return np.array(shape.as_list(), tensor.dtype.as_numpy_dtype)
    value = tf.get_static_value(tensor)
    return None if value is None else np.asarray(value, tensor.dtype.as_numpy_dtype)
