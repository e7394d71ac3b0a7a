"""A walk over a traced graph: the operations that a derivative passes.

An operation counts if it lies on a path from the sources (variables) to the targets (a loss, or a
gradient) that a derivative takes: through real and complex numbers, into the bodies of loops,
branches and functions, and around what `tf.custom_gradient` bridges. What only makes data
(integers, comparisons, stopped values) does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from spectral_density.engines.tensorflow.keras_internals import (
    body_of,
    captured,
    handles_of,
    has_custom_gradient,
    user_stopped_gradient,
)
from spectral_density.engines.tensorflow.scopes import place_of

_ZERO_DERIVATIVE = """
    ZerosLike OnesLike Sign Floor Ceil Round Rint FloorDiv TruncateDiv EditDistance
    LookupTableFind LookupTableFindV2 StatelessRandomBinomial StatelessRandomPoisson
"""
ZERO_DERIVATIVE = frozenset(_ZERO_DERIVATIVE.split())
"""Operations on real numbers whose derivative is zero wherever there is one."""

STOP = "StopGradient"

# Attributes with the functions of an operation, and the number of inputs before their arguments.
_BODIES = {
    "While": (("body",), 0),
    "StatelessWhile": (("body",), 0),
    "If": (("then_branch", "else_branch"), 1),
    "StatelessIf": (("then_branch", "else_branch"), 1),
    "Case": (("branches",), 1),
    "StatelessCase": (("branches",), 1),
    "PartitionedCall": (("f",), 0),
    "StatefulPartitionedCall": (("f",), 0),
}
_LOOPS = ("While", "StatelessWhile")

CALLS = frozenset(_BODIES)
"""Operations that run functions, whose operations count instead of them."""

_Positions = frozenset[int]


@dataclass(frozen=True)
class Node:
    """An operation that a derivative passes.

    Attributes:
        operation: itself.
        name: its name, after those of the loops, branches and calls that it is in.
        inputs: positions of the inputs through which the derivative goes.
    """

    operation: Any
    name: str
    inputs: tuple[int, ...]


def differentiated(
    graph: Any,
    sources: Iterable[Any],
    targets: Iterable[tf.Tensor],
    *,
    through_stops: bool = False,
) -> list[Node]:
    """Return the operations that a derivative of targets with respect to sources passes.

    Args:
        graph: a `FuncGraph`, or the one that is being traced.
        sources: variables, or tensors of the graph.
        targets: tensors of the graph.
        through_stops: go on through `tf.stop_gradient`, as if it were not there.
    """
    passed = frozenset({STOP}) if through_stops else frozenset()
    return _Walk(passed).between(graph, sources, targets)


def stops(graph: Any, sources: Iterable[Any], targets: Iterable[tf.Tensor]) -> list[Node]:
    """Return the `StopGradient` operations between sources and targets: see `differentiated`."""
    nodes = differentiated(graph, sources, targets, through_stops=True)
    return [node for node in nodes if node.operation.type == STOP]


@tf.autograph.experimental.do_not_convert
def deliberate_stops(
    graph: Any, sources: Iterable[Any], targets: Iterable[tf.Tensor], layers: Sequence[Any] = ()
) -> list[tuple[str, str]]:
    """Return the stopped gradients between sources and targets that are no library's own.

    Those inside functions of TensorFlow and Keras (`tf.reduce_logsumexp`) leave the derivative what
    it is. Those that a model or a loss calls itself make it another one, on purpose.

    Returns:
        For each the name of the operation, and the layer or else the name scope that it is in.
    """
    found = [node for node in stops(graph, sources, targets) if is_deliberate_stop(node.operation)]
    return [(node.name, place_of(node.name, layers)) for node in found]


class _Walk:
    """One walk over a graph and the graphs of the functions that it calls."""

    def __init__(self, passed: frozenset[str]):
        """Take the types that are passed though no derivative goes there."""
        self._cut = (ZERO_DERIVATIVE | {STOP}) - passed
        self._reached: dict[tuple[int, _Positions], tuple[set[int], _Positions]] = {}
        self._parts: dict[tuple[int, _Positions, _Positions], tuple[_Positions, list[Node]]] = {}
        self._targets: set[int] = set()

    def between(
        self, graph: Any, sources: Iterable[Any], targets: Iterable[tf.Tensor]
    ) -> list[Node]:
        ends = list(targets)
        self._targets = {id(tensor) for tensor in ends}
        starts: list[Any] = []
        for source in sources:
            if isinstance(source, tf.Variable):
                starts += captured(graph, handles_of(source))
            else:
                starts.append(source)
        reached = self._reached_from(starts)
        return self._back(reached, ends)[1]

    # From the sources ----------------------------------------------------------------------------

    def _reached_from(self, starts: list[Any], loop: Any = None) -> set[int]:
        """Return the ids of the tensors that depend on some, those included.

        Args:
            starts: the tensors, of one graph.
            loop: the graph if it is the body of a loop: what a step returns, the next one takes.
        """
        following = _next_step(loop)
        reached = {id(tensor) for tensor in starts}
        waiting = list(starts)
        later: dict[str, Any] = {}  # what runs functions, when all of its inputs are known
        while waiting or later:
            if waiting:
                tensor = waiting.pop()
                new = list(following.get(id(tensor), ()))
                operations = []
                for operation in tensor.consumers():
                    if operation.type in _BODIES:
                        later[operation.name] = operation
                    else:
                        operations.append(operation)
            else:
                operations, new = [later.pop(next(iter(later)))], []
            for operation in operations:
                outputs = operation.outputs
                given = _those_in(operation, reached)
                new += [outputs[i] for i in self._outputs_reached(operation, given)]
            for tensor in new:
                if id(tensor) not in reached:
                    reached.add(id(tensor))
                    waiting.append(tensor)
        return reached

    def _outputs_reached(self, operation: Any, given: _Positions) -> Iterable[int]:
        """Return which outputs depend on some of the inputs of an operation."""
        if operation.type in self._cut:
            return ()
        bodies = _bodies(operation)
        if bodies:
            before = _BODIES[operation.type][1]
            inside = frozenset(position - before for position in given)
            found = [self._through(operation, body, inside)[1] for body in bodies]
            # A reverse pass gives the body of an operation that was there before more outputs.
            return frozenset().union(*found) & frozenset(range(len(operation.outputs)))
        numbers = [i for i, tensor in enumerate(operation.outputs) if _takes_derivatives(tensor)]
        if operation.type != "IdentityN":
            return numbers
        if has_custom_gradient(operation):
            results = self._num_results(operation)
            return [i for i in numbers if i < results] if max(given) >= results else ()
        return given.intersection(numbers)

    def _through(self, operation: Any, body: Any, given: _Positions) -> tuple[set[int], _Positions]:
        """Return what depends on some arguments of a body: the ids of tensors, and the outputs."""
        key = id(body), given
        if key not in self._reached:
            starts = [body.inputs[i] for i in given if 0 <= i < len(body.inputs)]
            reached = self._reached_from(starts, body if operation.type in _LOOPS else None)
            outputs = (i for i, tensor in enumerate(body.outputs) if id(tensor) in reached)
            self._reached[key] = reached, frozenset(outputs)
        return self._reached[key]

    # Back from the targets -----------------------------------------------------------------------

    def _back(
        self, reached: set[int], targets: Iterable[Any], loop: Any = None
    ) -> tuple[set[int], list[Node]]:
        """Return what targets depend on among the tensors reached, and the operations between."""
        before = _step_before(loop)
        waiting = [tensor for tensor in targets if id(tensor) in reached]
        wanted = {id(tensor) for tensor in waiting}
        nodes: dict[str, list[Node]] = {}
        later: dict[str, Any] = {}  # what runs functions, when all that is wanted of it is known
        while waiting or later:
            if waiting:
                tensor = waiting.pop()
                operation = tensor.op
                new = list(before.get(id(tensor), ()))
                if operation.type in _BODIES:
                    later[operation.name] = operation
                    operation = None
            else:
                operation, new = later.pop(next(iter(later))), []
            given = frozenset() if operation is None else _those_in(operation, reached)
            if given:
                needed, inside = self._inputs_needed(operation, given, wanted)
                own = Node(operation, operation.name, tuple(sorted(needed)))
                nodes[operation.name] = [own, *inside]
                new += [operation.inputs[position] for position in needed]
            for tensor in new:
                if id(tensor) in reached and id(tensor) not in wanted:
                    wanted.add(id(tensor))
                    waiting.append(tensor)
        return wanted, [node for entry in nodes.values() for node in entry]

    def _inputs_needed(
        self, operation: Any, given: _Positions, wanted: set[int]
    ) -> tuple[_Positions, list[Node]]:
        """Return which of the inputs given the wanted outputs depend on, and what is between."""
        asked = frozenset(i for i, tensor in enumerate(operation.outputs) if id(tensor) in wanted)
        bodies = _bodies(operation)
        if bodies:
            offset = _BODIES[operation.type][1]
            inside = frozenset(position - offset for position in given)
            parts = [self._part(operation, body, inside, asked) for body in bodies]
            needed = frozenset(i + offset for found, _ in parts for i in found)
            nodes = [
                replace(node, name=f"{operation.name}/{node.name}")
                for _, found in parts
                for node in found
            ]
            return needed & given, nodes
        if operation.type != "IdentityN":
            return given, []
        if has_custom_gradient(operation):
            results = self._num_results(operation)
            return frozenset(i for i in given if i >= results), []
        return given & asked, []

    def _part(
        self, operation: Any, body: Any, given: _Positions, asked: _Positions
    ) -> tuple[_Positions, list[Node]]:
        """Return which arguments some outputs of a body depend on, and what is between."""
        key = id(body), given, asked
        if key not in self._parts:
            reached, _ = self._through(operation, body, given)
            ends = [body.outputs[i] for i in asked if i < len(body.outputs)]
            loop = body if operation.type in _LOOPS else None
            wanted, nodes = self._back(reached, ends, loop)
            needed = (i for i, tensor in enumerate(body.inputs) if id(tensor) in wanted)
            self._parts[key] = frozenset(needed), nodes
        return self._parts[key]

    def _num_results(self, operation: Any) -> int:
        """Return how many of its inputs are results in what `tf.custom_gradient` leaves behind.

        It is one operation on results and arguments together, whose gradient leads from the former
        to the latter; nothing reads what it gives for the latter.
        """
        ends = {id(tensor) for tensor in getattr(operation.graph, "outputs", ())} | self._targets
        used = [i for i, t in enumerate(operation.outputs) if id(t) in ends or t.consumers()]
        return max(used, default=-1) + 1


def _those_in(operation: Any, tensors: set[int]) -> _Positions:
    return frozenset(i for i, tensor in enumerate(operation.inputs) if id(tensor) in tensors)


def _next_step(loop: Any) -> dict[int, list[Any]]:
    """Return, by the id of what a step of a loop returns, what the next one takes for it."""
    following: dict[int, list[Any]] = {}
    for taken, returned in () if loop is None else zip(loop.inputs, loop.outputs, strict=False):
        following.setdefault(id(returned), []).append(taken)
    return following


def _step_before(loop: Any) -> dict[int, list[Any]]:
    """Return, by the id of what a step of a loop takes, what the one before returned."""
    if loop is None:
        return {}
    return {id(a): [b] for a, b in zip(loop.inputs, loop.outputs, strict=False)}


def _bodies(operation: Any) -> list[Any]:
    """Return the graphs of the functions that an operation runs; none where one is not known."""
    if operation.type not in _BODIES:
        return []
    functions: list[Any] = []
    for name in _BODIES[operation.type][0]:
        value = operation.get_attr(name)
        functions += value if isinstance(value, (list, tuple)) else [value]
    bodies = [body_of(operation, function) for function in functions]
    return [] if any(body is None for body in bodies) else bodies


def _takes_derivatives(tensor: tf.Tensor) -> bool:
    """Tell whether a derivative can go through a tensor: numbers, lists of them, and variables."""
    dtype = tensor.dtype
    return dtype.is_floating or dtype.is_complex or dtype in (tf.variant, tf.resource)


def is_deliberate_stop(operation: Any, counts_own: bool = False) -> bool:
    """Tell whether an operation is a `stop_gradient` that no function of a library called.

    One of unknown origin (a graph from a file) counts as deliberate.

    Args:
        operation: of any type.
        counts_own: whether those of this package count (labels that a Fisher matrix draws).
    """
    return operation.type == STOP and user_stopped_gradient(operation, counts_own)
