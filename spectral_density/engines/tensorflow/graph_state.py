"""Variables that a traced graph reads and writes, and a hash of its operations and constants."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from spectral_density.engines.keras_shared.attributes import all_layers
from spectral_density.engines.keras_shared.kinds import keras_module
from spectral_density.engines.tensorflow.batches import batch_hash
from spectral_density.engines.tensorflow.frameworks import tf_variable, variable_name

# Operations that only read a variable.
_READING = frozenset(
    ["ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "VarIsInitializedOp"]
)
_FORWARDING = frozenset(("Identity", "IdentityN"))

# Operations on state that cannot be read and restored: tables, queues, iterators.
_IRREVERSIBLE = (
    *("LookupTableInsert", "LookupTableImport", "LookupTableRemove", "InitializeTable"),
    *("Queue", "Barrier", "Stack", "Iterator", "MutexLock"),
)
_QUERIES = ("QueueSize", "QueueIsClosed", "BarrierReadySize", "IteratorToString")

# Attributes that hold names, devices or seeds; the same computation traced again may have others.
_NOT_HASHED = frozenset(
    [
        "shared_name",
        "container",
        "config",
        "config_proto",
        "executor_type",
        "seed",
        "seed2",
        "token",
    ]
)


class StateVariable(NamedTuple):
    """A variable given by its handle, which is all that a graph has of it."""

    handle: tf.Tensor
    dtype: tf.DType

    def value(self) -> tf.Tensor:
        """Return the current value."""
        return tf.raw_ops.ReadVariableOp(resource=self.handle, dtype=self.dtype)

    def assign(self, value: tf.Tensor) -> None:
        """Set the value."""
        tf.raw_ops.AssignVariableOp(resource=self.handle, value=value)


class _Use(NamedTuple):
    """An operation that takes a captured resource."""

    operation: str
    dtype: int | None  # of the variable, as an enum value


class GraphState:
    """Variables that the graphs of one loss read and write.

    Attributes:
        written: variables that some graph writes, of the model or not.
        num_graphs: number of graphs examined.
    """

    def __init__(self, variables: Sequence[Any], names: Sequence[str], model: Any = None):
        """Begin without a graph.

        Args:
            variables: those that the loss is differentiated with respect to.
            names: their names.
            model: whose trainable variables must not be written either, or None.
        """
        self.written: list[StateVariable] = []
        self._model = model
        of_model = getattr(model, "trainable_variables", ())
        named = [*((v, variable_name(v)) for v in of_model), *zip(variables, names, strict=True)]
        self._trained = {id(h): name for variable, name in named for h in _handles([variable])}
        everything = [*variables, *getattr(model, "variables", ())]
        self._own = {id(handle) for handle in _handles(everything)}
        self._others: dict[int, StateVariable] = {}
        self._graphs: list[Any] = []

    @property
    def num_graphs(self) -> int:
        """Number of graphs examined."""
        return len(self._graphs)

    def knows(self, graph: Any) -> bool:
        """Tell whether a graph was examined before."""
        return any(graph is known for known in self._graphs)

    def add(self, graph: Any) -> None:
        """Examine a traced graph before it runs.

        Args:
            graph: of a concrete function.

        Raises:
            ValueError: if it writes to a variable that it is differentiated with respect to, to a
                trainable variable of the model, or to a table or queue, which cannot be restored.
        """
        for handle, uses in _resources(graph):
            changing = [use for use in uses if use.operation not in _READING]
            dtype = next((use.dtype for use in uses if use.dtype is not None), None)
            if dtype is None:
                _refuse_irreversible(changing)
                continue
            if changing and id(handle) in self._trained:
                self._refuse_trained(self._trained[id(handle)], changing[0].operation)
            variable = StateVariable(handle, tf.as_dtype(dtype))
            if changing and all(handle is not known.handle for known in self.written):
                self.written.append(variable)
            elif not changing and id(handle) not in self._own:
                self._others[id(handle)] = variable
        self._graphs.append(graph)

    def written_elsewhere(self) -> list[StateVariable]:
        """Return the variables written that do not belong to the model."""
        return [variable for variable in self.written if id(variable.handle) not in self._own]

    def hash_of_others(self) -> str:
        """Return a hash of the values of the variables outside the model that are only read."""
        written = {id(variable.handle) for variable in self.written}
        read = [variable for key, variable in self._others.items() if key not in written]
        return batch_hash([variable.value() for variable in read])

    def hash_of_graph(self) -> str:
        """Return a hash of the first graph: operations, constants and captured tensors, no names.

        It does not depend on the order in which TensorFlow lists functions, so that a loss that is
        traced again has the same hash.
        """
        return graph_hash(self._graphs[0]) if self._graphs else ""

    def _refuse_trained(self, name: str, operation: str) -> None:
        layers = _layers_with(self._model, name)
        where = f" of {layers}" if layers else ""
        raise ValueError(
            f"the forward pass writes to the trainable variable {name!r}{where} ({operation}): "
            "each product would change the weights, and the loss is no function of them. Use "
            "training=False, keep what is written in a variable with trainable=False, or make "
            "the change outside of the loss."
        )


@dataclass(frozen=True)
class _Library:
    """The functions that a graph calls, by name."""

    functions: Mapping[str, Any]

    def uses(self, nodes: Iterable[Any], sources: Mapping[str, int]) -> dict[int, list[_Use]]:
        """Return the uses of each source in the nodes and in all functions that they call.

        Args:
            nodes: of a graph or function.
            sources: number of each tensor to follow, by its name.
        """
        known = dict(sources)
        uses_of: dict[int, list[_Use]] = {number: [] for number in sources.values()}
        for node in nodes:
            inputs = [entry.split(":")[0] for entry in node.input if not entry.startswith("^")]
            taken = [(at, known[name]) for at, name in enumerate(inputs) if name in known]
            if not taken:
                continue
            if node.op in _FORWARDING:
                known[node.name] = taken[0][1]
                continue
            called = [self.functions[name] for name in _called(node) if name in self.functions]
            for function in called:
                # Inputs before the arguments are a condition or the index of a branch.
                before = len(inputs) - len(function.signature.input_arg)
                arguments = self.of_function(function)
                for at, number in taken:
                    uses_of[number] += arguments.get(at - before, [])
            if not called:
                for _, number in taken:
                    uses_of[number].append(_Use(node.op, _variable_dtype(node)))
        return uses_of

    def of_function(self, function: Any) -> dict[int, list[_Use]]:
        """Return the uses of each argument of a function."""
        sources = {arg.name: at for at, arg in enumerate(function.signature.input_arg)}
        resources = {
            arg.name: sources[arg.name]
            for arg in function.signature.input_arg
            if tf.as_dtype(arg.type) == tf.resource
        }
        return self.uses(function.node_def, resources)


def graph_hash(graph: Any) -> str:
    """Return a hash of a graph's operations, constants and captured tensors, without names."""
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    parts = sorted(_node_hash(node) for node in nodes if node.op != "Placeholder")
    values = [
        np.asarray(outer)
        for outer, _ in graph.captures
        if outer.dtype not in (tf.resource, tf.variant) and hasattr(outer, "numpy")
    ]
    digest = hashlib.sha256(b"".join(parts))
    digest.update(batch_hash(values).encode())
    return digest.hexdigest()


def _node_hash(node: Any) -> bytes:
    digest = hashlib.sha256(node.op.encode() if not node.op.startswith("__") else b"call")
    for name in sorted(node.attr):
        value = node.attr[name]
        kind = value.WhichOneof("value")
        named = name in _NOT_HASHED or name.startswith("_") or kind in ("func", "placeholder")
        # Strings hold names, as in the messages of assertions.
        text = kind == "tensor" and value.tensor.dtype == tf.string.as_datatype_enum
        if named or text or (kind == "list" and value.list.func):
            continue
        digest.update(name.encode() + value.SerializeToString(deterministic=True))
    return digest.digest()


def _resources(graph: Any) -> list[tuple[tf.Tensor, list[_Use]]]:
    """Return the captured resources of a graph, each with its uses."""
    captured = [(outer, inner) for outer, inner in graph.captures if inner.dtype == tf.resource]
    if not captured:
        return []
    definition = graph.as_graph_def()
    library = _Library({f.signature.name: f for f in definition.library.function})
    sources = {inner.op.name: number for number, (_, inner) in enumerate(captured)}
    uses = library.uses(definition.node, sources)
    return [(outer, uses[number]) for number, (outer, _) in enumerate(captured)]


def _called(node: Any) -> list[str]:
    """Return the names of the functions that a node calls."""
    names = [node.op]
    for value in node.attr.values():
        if value.WhichOneof("value") == "func":
            names.append(value.func.name)
        elif value.WhichOneof("value") == "list":
            names += [function.name for function in value.list.func]
    return names


def _variable_dtype(node: Any) -> int | None:
    """Return the dtype of the variable that a node takes, None if it takes no variable."""
    # The dtype attribute of a random generator is that of its numbers.
    if node.op.startswith(("Rng", "Stateful")):
        return tf.int64.as_datatype_enum
    if node.op.startswith(("ResourceApply", "ResourceSparseApply", "ResourceStrided")):
        return node.attr["T"].type
    is_variable = node.op in _READING or node.op.startswith(("Assign", "ResourceScatter"))
    return node.attr["dtype"].type if is_variable and "dtype" in node.attr else None


def _refuse_irreversible(uses: list[_Use]) -> None:
    for operation in (use.operation for use in uses):
        if operation.startswith(_IRREVERSIBLE) and not operation.startswith(_QUERIES):
            raise ValueError(
                f"the loss changes a table, queue or iterator ({operation}), whose contents cannot "
                "be restored: each product would see others. Pass what it gives in the batches."
            )


def _handles(variables: Iterable[Any]) -> list[Any]:
    """Return the handles of variables, those of all replicas where they are mirrored."""
    unwrapped = [tf_variable(variable) for variable in variables]
    return [v.handle for variable in unwrapped for v in getattr(variable, "values", [variable])]


def _layers_with(model: Any, name: str) -> str:
    """Return the layers of a model that hold a variable, the outermost first."""
    if keras_module(model) is None:
        return ""
    layers = [
        layer
        for layer in all_layers(model, include_self=False)
        if any(variable_name(variable) == name for variable in layer.variables)
    ]
    layers.sort(key=lambda layer: -len(layer.variables))
    return " > ".join(f"{type(layer).__name__} {layer.name!r}" for layer in layers)
