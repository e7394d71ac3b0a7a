"""A traced computation again, with its active sets and its stopped gradients held at a point.

ReLU, max-pooling, comparisons and sorting are piecewise: units cross their kinks between w - h u
and w + h u, so that differences of gradients do not converge in float32. With the piece that each
unit is on held fixed, the computation is smooth, has the same value and the same derivatives at the
point, and its differences converge.

Second derivatives are those of the pieces, as backpropagation takes them. Nothing is differentiated
here: the graph of a gradient is computed again as it was traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from spectral_density.engines.tensorflow.float64 import in_float64, of_weight, widen
from spectral_density.engines.tensorflow.graph_walk import is_deliberate_stop
from spectral_density.engines.tensorflow.keras_internals import (
    body_of,
    graphs_as_traced,
    made_again,
)
from spectral_density.engines.tensorflow.pieces import PIECES

# A list of tensors for each operation that is held: its inputs or its outputs at the point.
Held = list[tf.Tensor]

_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})

# Of these, and of all that gives integers or truth values, the output is held.
_PIECEWISE_CONSTANT = frozenset(
    {"Sign", "Floor", "Ceil", "Rint", "Round", "FloorDiv", "TruncateDiv"}
)

# Of these the inputs at these places are held, which say what piece is meant.
_SELECTING_INPUTS = {
    "ReluGrad": (1,),
    "Relu6Grad": (1,),
    "LeakyReluGrad": (1,),
    "MaxPoolGrad": (0, 1),
    "MaxPoolGradV2": (0, 1),
    "MaxPoolGradGrad": (0, 1),
    "MaxPool3DGrad": (0, 1),
    "MaxPool3DGradGrad": (0, 1),
}


_KINKED = frozenset({*PIECES, *_SELECTING_INPUTS})


class HeldGraph:
    """Some tensors of a traced graph as a function, whose active sets may be held.

    Attributes:
        has_kinks: whether anything is held; known, as the others, after the first call.
        in_loops: types of operations with kinks inside loops and branches, which are not held.
        kinds: types of the operations that depend on what is moved.
        dtypes: floating-point types that these give, as they were traced.
        rounds: types of those that have no float64, and round to float32 within it.
    """

    def __init__(
        self,
        graph: Any,
        outputs: Sequence[tf.Tensor],
        variables: Iterable[tf.Variable] = (),
        *,
        free: Sequence[tf.Tensor] = (),
        values: Sequence[tf.Tensor] = (),
        in_float64: bool = False,
    ):
        """Prepare the tensors of a concrete function's graph.

        Args:
            graph: that of a concrete function.
            outputs: tensors of it, wanted as functions of what it captures and of its arguments.
            variables: what will be moved: what does not depend on them is not held.
            free: tensors of it that are given as further arguments, and moved as well.
            values: gradients that are stopped on the way to these, by the user's own code, are
                held; none for the first of the outputs. Those that are stopped in a gradient
                are mistakes.
            in_float64: whether float32 is replaced by float64, and the values of the variables
                are given as further arguments.
        """
        self._graph = graph
        self._free = list(free)
        self._outputs = list(outputs)
        self._values = list(values) or self._outputs[:1]
        self._handles = [id(variable.handle) for variable in variables]
        self._in_float64 = in_float64
        captured = {inside.ref() for _, inside in graph.captures}
        self._arguments = [t for t in graph.inputs if t.ref() not in captured] + self._free
        self._record_fn: Any = None
        self._again_fn: Any = None
        self.has_kinks = False
        self.in_loops: set[str] = set()
        self.kinds: set[str] = set()
        self.dtypes: set[tf.DType] = set()
        self.rounds: set[str] = set()

    @graphs_as_traced()
    def record(
        self, arguments: Sequence[tf.Tensor], weights: Sequence[tf.Tensor] = ()
    ) -> tuple[list[tf.Tensor], Held]:
        """Return the outputs, and what is to be held at the point that the variables are at.

        Args:
            arguments: those of the concrete function, flat, without what it captures, and then
                the free tensors.
            weights: values of the variables, in float64 only.

        Raises:
            NoFloat64Error: if an operation takes a variable itself, in float64.
        """
        if self._record_fn is None:
            self._record_fn = _concrete(self._record, list(arguments), list(weights))
        return self._record_fn(list(arguments), list(weights))

    @graphs_as_traced()
    def again(
        self, arguments: Sequence[tf.Tensor], held: Held, weights: Sequence[tf.Tensor] = ()
    ) -> list[tf.Tensor]:
        """Return the outputs where the variables are now, on the pieces that were recorded."""
        if not held:
            return self.record(arguments, weights)[0]
        if self._again_fn is None:
            self._again_fn = _concrete(self._again, list(arguments), held, list(weights))
        return self._again_fn(list(arguments), held, list(weights))

    def _record(
        self, arguments: list[tf.Tensor], weights: list[tf.Tensor]
    ) -> tuple[list[tf.Tensor], Held]:
        copying = _Copy(None, self._in_float64)
        outputs = self._copied(copying, arguments, weights)
        self.has_kinks = bool(copying.recorded)
        self.in_loops = copying.in_loops
        self.kinds, self.dtypes = copying.kinds, copying.dtypes
        self.rounds = copying.rounds
        return outputs, copying.recorded

    def _again(
        self, arguments: list[tf.Tensor], held: Held, weights: list[tf.Tensor]
    ) -> list[tf.Tensor]:
        return self._copied(_Copy(list(held), self._in_float64), arguments, weights)

    def _copied(
        self, copying: _Copy, arguments: list[tf.Tensor], weights: list[tf.Tensor]
    ) -> list[tf.Tensor]:
        target = tf.compat.v1.get_default_graph()
        _take_functions(self._graph, target)
        given = {t.ref(): v for t, v in zip(self._arguments, arguments, strict=True)}
        given |= {inside.ref(): target.capture(outside) for outside, inside in self._graph.captures}
        if self._in_float64:
            given = {key: widen(tensor) for key, tensor in given.items()}
        moving = {tensor.ref() for tensor in self._free}
        for outside, inside in self._graph.captures:
            if id(outside) in self._handles:
                moving.add(inside.ref())
                if self._in_float64:
                    weight = weights[self._handles.index(id(outside))]
                    copying.weights[given[inside.ref()].ref()] = weight
        forward = set(_needed(self._graph, self._values, given))
        return copying.copied(self._graph, given, moving, self._outputs, forward)[0]


def _concrete(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the one graph of a function, which TensorFlow does not warn of making."""
    return tf.function(function, autograph=False).get_concrete_function(*arguments)


@dataclass
class _Copy:
    """Operations of one graph and of the functions it calls, put into another in their order."""

    held: Held | None  # None to record
    in_float64: bool = False
    weights: dict[Any, tf.Tensor] = field(default_factory=dict)  # by the handles of variables
    recorded: Held = field(default_factory=list)
    in_loops: set[str] = field(default_factory=set)
    kinds: set[str] = field(default_factory=set)
    dtypes: set[tf.DType] = field(default_factory=set)
    rounds: set[str] = field(default_factory=set)

    def copied(
        self,
        graph: Any,
        given: dict[Any, tf.Tensor],
        moving: set[Any],
        outputs: Sequence[tf.Tensor],
        forward: set[Any] | None,
    ) -> tuple[list[tf.Tensor], list[bool]]:
        """Return tensors computed again, and whether each depends on what is moved.

        `forward` are the operations that lead to the value, None for all.
        """
        given, moving = dict(given), set(moving)
        for operation in _needed(graph, outputs, given):
            inputs = [given[tensor.ref()] for tensor in operation.inputs]
            moves = [tensor.ref() in moving for tensor in operation.inputs]
            leads = forward is None or operation in forward
            if operation.type in _CALLS:
                results, depend = self._call(graph, operation, inputs, moves, leads)
            else:
                depend = [any(moves)] * len(operation.outputs)
                results = (
                    self._on_its_piece(operation, inputs, leads)
                    if any(moves)
                    else self._made(operation, inputs, is_moved=False)
                )
            for tensor, result, depends in zip(operation.outputs, results, depend, strict=True):
                given[tensor.ref()] = result
                if depends:
                    moving.add(tensor.ref())
                    self.kinds.add(operation.type)
                    self.dtypes |= {tensor.dtype} if tensor.dtype.is_floating else set()
        return [given[t.ref()] for t in outputs], [t.ref() in moving for t in outputs]

    def _call(
        self,
        graph: Any,
        operation: Any,
        inputs: list[tf.Tensor],
        moves: list[bool],
        leads: bool,
    ) -> tuple[list[tf.Tensor], list[bool]]:
        """Copy what a function does in place of a call to it."""
        body = body_of(operation, operation.get_attr("f"))
        if body is None or len(body.inputs) != len(inputs):
            raise ValueError(f"the function that the operation {operation.name} calls is not known")
        given = {t.ref(): value for t, value in zip(body.inputs, inputs, strict=True)}
        moving = {t.ref() for t, moved in zip(body.inputs, moves, strict=True) if moved}
        return self.copied(body, given, moving, body.outputs, None if leads else set())

    def _on_its_piece(
        self, operation: Any, inputs: list[tf.Tensor], leads: bool
    ) -> list[tf.Tensor]:
        kind = operation.type
        if kind in PIECES:
            held = self._hold(lambda: inputs)
            if self.held is None:
                return self._made(operation, inputs)
            return PIECES[kind](operation, inputs, held)
        if kind in _SELECTING_INPUTS:
            places = _SELECTING_INPUTS[kind]
            held = self._hold(lambda: [inputs[place] for place in places])
            fixed = dict(zip(places, held, strict=True))
            return self._made(operation, [fixed.get(i, value) for i, value in enumerate(inputs)])
        stops = leads and is_deliberate_stop(operation, counts_own=True)
        if stops or _is_constant_on_pieces(operation):
            return self._hold(lambda: self._made(operation, inputs), len(operation.outputs))
        self.in_loops |= _kinks_inside(operation)
        return self._made(operation, inputs)

    def _made(
        self, operation: Any, inputs: list[tf.Tensor], is_moved: bool = True
    ) -> list[tf.Tensor]:
        """Put the same operation into the graph that is being traced."""
        if not self.in_float64:
            return made_again(operation, inputs)
        weights = [w for tensor in inputs if (w := self.weights.get(tensor.ref())) is not None]
        if weights:
            return [of_weight(operation, inputs, weights[0])]
        outputs, rounds = in_float64(operation, inputs)
        self.rounds |= {operation.type} if rounds and is_moved else set()
        return outputs

    def _hold(self, tensors: Callable[[], list[tf.Tensor]], count: int = 0) -> list[tf.Tensor]:
        """Record tensors, or return those that were recorded in their place."""
        if self.held is None:
            found = tensors()
            self.recorded.extend(found)
            return found
        count = count or len(tensors())
        found, self.held = self.held[:count], self.held[count:]
        return found


def _needed(graph: Any, outputs: Iterable[tf.Tensor], given: dict[Any, tf.Tensor]) -> list[Any]:
    """Return the operations that tensors come from, each after those that it needs itself.

    The order in which they were made does not do: loops get inputs that were made after them.
    """
    done: set[Any] = set()
    ordered: list[Any] = []
    waiting = [(tensor.op, False) for tensor in outputs if tensor.ref() not in given]
    while waiting:
        operation, has_inputs = waiting.pop()
        if operation in done:
            continue
        if has_inputs:
            done.add(operation)
            ordered.append(operation)
            continue
        waiting.append((operation, True))
        needed = [tensor.op for tensor in operation.inputs if tensor.ref() not in given]
        # Reads of a variable wait for what wrote to it before.
        needed += [o for o in operation.control_inputs if o.op_def.is_stateful and o.inputs]
        waiting.extend((o, False) for o in reversed(needed) if o not in done)
    return ordered


def _is_constant_on_pieces(operation: Any) -> bool:
    if operation.type in _PIECEWISE_CONSTANT:
        return True
    kinds = [tensor.dtype for tensor in operation.outputs]
    return bool(kinds) and all(kind.is_integer or kind.is_bool for kind in kinds)


def _kinks_inside(operation: Any) -> set[str]:
    """Return the types of operations with kinks in the functions that an operation runs."""
    waiting = [operation]
    seen: set[str] = set()
    found: set[str] = set()
    while waiting:
        caller = waiting.pop()
        for value in caller.node_def.attr.values():
            functions = [value.func] if value.HasField("func") else list(value.list.func)
            for function in functions:
                if function.name in seen:
                    continue
                seen.add(function.name)
                body = body_of(caller, function)
                inside = [] if body is None else body.get_operations()
                found |= {inner.type for inner in inside} & _KINKED
                waiting.extend(inside)
    return found


def _take_functions(graph: Any, target: Any) -> None:
    """Let operations of another graph call the functions that those of this one call."""
    definition = graph.as_graph_def()
    if definition.library.function:
        library = type(definition)(versions=definition.versions, library=definition.library)
        with target.as_default():
            tf.graph_util.import_graph_def(library, name="")
