"""The operations of a traced graph that lie on the paths of a derivative.

They are those reachable forward from the sources (variables) and backward from the targets (a loss,
or a gradient) along differentiable edges: tensors of real and complex numbers, in the bodies of
loops, branches and functions too. Operations inside a `tf.custom_gradient` are skipped, since the
derivative uses the gradient function in their place. Operations whose outputs have no derivative
(integers, comparisons, stopped gradients) are left out.
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

# Attributes that hold the functions of an operation, and the number of inputs before the arguments.
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
"""Operations that call functions; the operations inside are examined in their place."""

_Positions = frozenset[int]


@dataclass(frozen=True)
class Node:
    """An operation on a path of a derivative.

    Attributes:
        operation: the TensorFlow operation.
        name: its name, preceded by those of the loops, branches and calls that contain it.
        inputs: positions of the inputs that the derivative is propagated to.
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
    """Return the operations on the paths of a derivative of targets with respect to sources.

    Args:
        graph: a `FuncGraph`, or the one that is being traced.
        sources: variables, or tensors of the graph.
        targets: tensors of the graph.
        through_stops: treat `tf.stop_gradient` as the identity.
    """
    passed = frozenset({STOP}) if through_stops else frozenset()
    return _Reachability(passed).between(graph, sources, targets)


def stops(graph: Any, sources: Iterable[Any], targets: Iterable[tf.Tensor]) -> list[Node]:
    """Return the `StopGradient` operations between sources and targets: see `differentiated`."""
    nodes = differentiated(graph, sources, targets, through_stops=True)
    return [node for node in nodes if node.operation.type == STOP]


@tf.autograph.experimental.do_not_convert
def deliberate_stops(
    graph: Any, sources: Iterable[Any], targets: Iterable[tf.Tensor], layers: Sequence[Any] = ()
) -> list[tuple[str, str]]:
    """Return the stopped gradients between sources and targets that are called by user code.

    Those inside functions of TensorFlow and Keras (`tf.reduce_logsumexp`) do not change the
    derivative. Those that a model or a loss calls change it on purpose.

    Returns:
        For each, the name of the operation, and the layer or else the name scope that contains it.
    """
    return [
        (node.name, place_of(node.name, layers))
        for node in stops(graph, sources, targets)
        if is_deliberate_stop(node.operation)
    ]


class _Reachability:
    """Forward and backward reachability in a graph and the graphs of the functions it calls.

    Results for the body of a function are kept for each set of arguments and outputs.
    """

    def __init__(self, passed: frozenset[str]):
        """Take the types of operations to traverse although their derivative is zero."""
        self._cut = (ZERO_DERIVATIVE | {STOP}) - passed
        self._forward_of: dict[tuple[int, _Positions], tuple[set[int], _Positions]] = {}
        self._backward_of: dict[
            tuple[int, _Positions, _Positions], tuple[_Positions, list[Node]]
        ] = {}
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
        reached = self._forward(starts)
        return self._backward(reached, ends)[1]

    # Forward from the sources --------------------------------------------------------------------

    def _forward(self, starts: list[Any], loop: Any = None) -> set[int]:
        """Return the ids of the tensors that depend on the given ones, and of these themselves.

        Args:
            starts: tensors of one graph.
            loop: the graph if it is the body of a loop, whose outputs are inputs of the next step.
        """
        following = _next_inputs(loop)
        reached = {id(tensor) for tensor in starts}
        pending = list(starts)
        deferred: dict[str, Any] = {}  # calls of functions, once all of their inputs are known
        while pending or deferred:
            if pending:
                tensor = pending.pop()
                new = list(following.get(id(tensor), ()))
                operations = []
                for operation in tensor.consumers():
                    if operation.type in _BODIES:
                        deferred[operation.name] = operation
                    else:
                        operations.append(operation)
            else:
                operations, new = [deferred.pop(next(iter(deferred)))], []
            for operation in operations:
                outputs = operation.outputs
                given = _input_positions(operation, reached)
                new += [outputs[i] for i in self._outputs_reached(operation, given)]
            for tensor in new:
                if id(tensor) not in reached:
                    reached.add(id(tensor))
                    pending.append(tensor)
        return reached

    def _outputs_reached(self, operation: Any, given: _Positions) -> Iterable[int]:
        """Return the positions of the outputs of an operation that depend on the given inputs."""
        if operation.type in self._cut:
            return ()
        bodies = _bodies(operation)
        if bodies:
            before = _BODIES[operation.type][1]
            inside = frozenset(position - before for position in given)
            outputs = [self._through(operation, body, inside)[1] for body in bodies]
            # A reverse pass adds outputs to the body of an operation that exists already.
            return frozenset().union(*outputs) & frozenset(range(len(operation.outputs)))
        numbers = [i for i, tensor in enumerate(operation.outputs) if _takes_derivatives(tensor)]
        if operation.type != "IdentityN":
            return numbers
        if has_custom_gradient(operation):
            results = self._num_results(operation)
            return [i for i in numbers if i < results] if max(given) >= results else ()
        return given.intersection(numbers)

    def _through(self, operation: Any, body: Any, given: _Positions) -> tuple[set[int], _Positions]:
        """Return the tensors (ids) and outputs of a body that depend on some arguments."""
        key = id(body), given
        if key not in self._forward_of:
            starts = [body.inputs[i] for i in given if 0 <= i < len(body.inputs)]
            reached = self._forward(starts, body if operation.type in _LOOPS else None)
            outputs = (i for i, tensor in enumerate(body.outputs) if id(tensor) in reached)
            self._forward_of[key] = reached, frozenset(outputs)
        return self._forward_of[key]

    # Backward from the targets -------------------------------------------------------------------

    def _backward(
        self, reached: set[int], targets: Iterable[Any], loop: Any = None
    ) -> tuple[set[int], list[Node]]:
        """Return the tensors reached that targets depend on, and the operations in between."""
        before = _previous_outputs(loop)
        pending = [tensor for tensor in targets if id(tensor) in reached]
        needed_tensors = {id(tensor) for tensor in pending}
        nodes: dict[str, list[Node]] = {}
        deferred: dict[str, Any] = {}  # calls of functions, once all of their outputs are known
        while pending or deferred:
            if pending:
                tensor = pending.pop()
                operation = tensor.op
                new = list(before.get(id(tensor), ()))
                if operation.type in _BODIES:
                    deferred[operation.name] = operation
                    operation = None
            else:
                operation, new = deferred.pop(next(iter(deferred))), []
            given = frozenset() if operation is None else _input_positions(operation, reached)
            if given:
                needed, inside = self._inputs_needed(operation, given, needed_tensors)
                own = Node(operation, operation.name, tuple(sorted(needed)))
                nodes[operation.name] = [own, *inside]
                new += [operation.inputs[position] for position in needed]
            for tensor in new:
                if id(tensor) in reached and id(tensor) not in needed_tensors:
                    needed_tensors.add(id(tensor))
                    pending.append(tensor)
        return needed_tensors, [node for entry in nodes.values() for node in entry]

    def _inputs_needed(
        self, operation: Any, given: _Positions, needed_tensors: set[int]
    ) -> tuple[_Positions, list[Node]]:
        """Return the given inputs that needed outputs depend on, and the operations inside."""
        requested = frozenset(
            i for i, tensor in enumerate(operation.outputs) if id(tensor) in needed_tensors
        )
        bodies = _bodies(operation)
        if bodies:
            offset = _BODIES[operation.type][1]
            inside = frozenset(position - offset for position in given)
            parts = [self._part(operation, body, inside, requested) for body in bodies]
            needed = frozenset(i + offset for arguments, _ in parts for i in arguments)
            nodes = [
                replace(node, name=f"{operation.name}/{node.name}")
                for _, inner in parts
                for node in inner
            ]
            return needed & given, nodes
        if operation.type != "IdentityN":
            return given, []
        if has_custom_gradient(operation):
            results = self._num_results(operation)
            return frozenset(i for i in given if i >= results), []
        return given & requested, []

    def _part(
        self, operation: Any, body: Any, given: _Positions, requested: _Positions
    ) -> tuple[_Positions, list[Node]]:
        """Return the arguments that some outputs of a body depend on, and what lies between."""
        key = id(body), given, requested
        if key not in self._backward_of:
            reached, _ = self._through(operation, body, given)
            ends = [body.outputs[i] for i in requested if i < len(body.outputs)]
            loop = body if operation.type in _LOOPS else None
            needed_tensors, nodes = self._backward(reached, ends, loop)
            needed = (i for i, tensor in enumerate(body.inputs) if id(tensor) in needed_tensors)
            self._backward_of[key] = frozenset(needed), nodes
        return self._backward_of[key]

    def _num_results(self, operation: Any) -> int:
        """Return the number of results among the inputs of the operation of a `tf.custom_gradient`.

        The operation takes the results followed by the arguments; its gradient function maps
        gradients of the results to gradients of the arguments. Its outputs for the arguments have
        no consumers.
        """
        ends = {id(tensor) for tensor in getattr(operation.graph, "outputs", ())} | self._targets
        used = [i for i, t in enumerate(operation.outputs) if id(t) in ends or t.consumers()]
        return max(used, default=-1) + 1


def _input_positions(operation: Any, tensors: set[int]) -> _Positions:
    return frozenset(i for i, tensor in enumerate(operation.inputs) if id(tensor) in tensors)


def _next_inputs(loop: Any) -> dict[int, list[Any]]:
    """Return, by the id of each output of a loop body, the inputs it becomes in the next step."""
    following: dict[int, list[Any]] = {}
    pairs = () if loop is None else zip(loop.inputs, loop.outputs, strict=False)
    for argument, output in pairs:
        following.setdefault(id(output), []).append(argument)
    return following


def _previous_outputs(loop: Any) -> dict[int, list[Any]]:
    """Return, by the id of each input of a loop body, the output of the step before."""
    if loop is None:
        return {}
    pairs = zip(loop.inputs, loop.outputs, strict=False)
    return {id(argument): [output] for argument, output in pairs}


def _bodies(operation: Any) -> list[Any]:
    """Return the graphs of the functions that an operation calls; none if one is unknown."""
    if operation.type not in _BODIES:
        return []
    functions: list[Any] = []
    for name in _BODIES[operation.type][0]:
        value = operation.get_attr(name)
        functions += value if isinstance(value, (list, tuple)) else [value]
    bodies = [body_of(operation, function) for function in functions]
    return [] if any(body is None for body in bodies) else bodies


def _takes_derivatives(tensor: tf.Tensor) -> bool:
    """Tell whether a tensor can have a derivative: numbers, lists of them, and variables."""
    dtype = tensor.dtype
    return dtype.is_floating or dtype.is_complex or dtype in (tf.variant, tf.resource)


def is_deliberate_stop(operation: Any, counts_own: bool = False) -> bool:
    """Tell whether an operation is a `tf.stop_gradient` that user code calls.

    One of unknown origin (a graph loaded from a file) is taken for one.

    Args:
        operation: of any type.
        counts_own: whether those of this package count too (labels that a Fisher matrix draws).
    """
    return operation.type == STOP and user_stopped_gradient(operation, counts_own)
