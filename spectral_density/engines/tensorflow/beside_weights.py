"""The loss of one batch beside its weights, computed again from the graph of its product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density.engines.engine import BesideWeights, Precision
from spectral_density.engines.tensorflow.active_sets import Held, HeldGraph
from spectral_density.engines.tensorflow.linearization import flat
from spectral_density.engines.tensorflow.traced import noted
from spectral_density.engines.tensorflow.variables import Variables

# Losses whose values and derivatives near zero are rounding of numbers near one.
_SATURATING = frozenset(
    {"SparseSoftmaxCrossEntropyWithLogits", "SoftmaxCrossEntropyWithLogits", "Log", "Log1p"}
    | {"LogSoftmax"}
)
_SATURATED = 4.0  # roundings


class TracedBesideWeights(BesideWeights):
    """One batch, computed again from the graph of its product, on the pieces that it is on.

    Loss, gradient and outputs are in that graph: nothing is traced for them. They are computed in
    float64, of weights that are given; where an operation has none, as they are, of variables that
    are moved.

    Attributes:
        num_gradients: how many were computed.
        in_float64: whether in float64; known, as the next, after the first of them.
        loss: where the gradient was taken last.
    """

    def __init__(
        self,
        concrete: Any,
        arguments: Any,
        parameters: Variables,
        move: Callable[[np.ndarray], None],
    ):
        """Take the graph of a product.

        Args:
            concrete: the concrete function of products of a batch with one vector.
            arguments: of it: the batch, rows and a sum.
            parameters: the variables that are moved.
            move: moves them to their place plus a vector, (n,).
        """
        graph = concrete.graph
        self._concrete, self._parameters, self._move = graph, parameters, move
        self.outputs = noted(graph, "outputs")
        self._tensors = [*noted(graph, "loss")[-1:], *noted(graph, "gradient"), *self.outputs]
        self._with_rows = list(arguments)
        self._arguments = flat(arguments)
        self._graph: HeldGraph | None = None
        self._whole: HeldGraph | None = None
        self._held: Held = []
        self._unmoved: tuple[np.ndarray, np.ndarray] | None = None
        self.num_gradients = 0
        self.in_float64 = True
        self.loss = 0.0

    def at(self, displacement: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return gradient (and after it the outputs) and loss where weights are moved by a vector.

        The first time they are not moved; that is not computed again.
        """
        if self._unmoved is not None and not displacement.any():
            return self._unmoved
        self.num_gradients += 1
        loss, *others = (np.asarray(tf.cast(t, tf.float64)) for t in self._computed(displacement))
        self.loss = float(loss)
        found = _joined(others), np.array([self.loss])
        if self._unmoved is None:
            self._unmoved = found
        return found

    def _computed(self, displacement: np.ndarray) -> list[tf.Tensor]:
        graph = self._graph
        if graph is None:
            return self._recorded()
        if self.in_float64:
            return graph.again(self._arguments, self._held, self._weights(displacement))
        self._move(displacement)
        found = graph.again(self._arguments, self._held)
        self._move(0.0 * displacement)
        return found

    def _recorded(self) -> list[tf.Tensor]:
        variables = self._parameters.variables
        if all(variable.dtype in (tf.float32, tf.float64) for variable in variables):
            try:
                graph = HeldGraph(self._concrete, self._tensors, variables, in_float64=True)
                found, self._held = graph.record(self._arguments, self._weights())
            except (TypeError, ValueError, tf.errors.OpError):
                graph = None
        else:
            graph = None
        if graph is None:
            self.in_float64 = False
            graph = HeldGraph(self._concrete, self._tensors, variables)
            found, self._held = graph.record(self._arguments)
        self._graph = graph
        return found

    def _weights(self, displacement: np.ndarray | None = None) -> list[tf.Tensor]:
        variables = map(tf.convert_to_tensor, self._parameters.variables)
        weights = [tf.cast(variable, tf.float64) for variable in variables]
        if displacement is None:
            return weights
        pieces = self._parameters.unflatten(displacement)
        return [weight + piece for weight, piece in zip(weights, pieces, strict=True)]

    def precision(self, num_examples: float) -> Precision | None:
        """Return how well derivatives are known, None in half precision.

        Args:
            num_examples: that the loss is a sum over, 1 for a mean.
        """
        graph = self._graph
        if graph is None:
            raise RuntimeError("no gradient was computed")
        dtypes = graph.dtypes
        if dtypes & {tf.float16, tf.bfloat16}:
            return None
        precision = "float32" if tf.float32 in dtypes else "float64"
        saturation = 0.0
        if graph.kinds & _SATURATING:
            loss = abs(self.loss) / num_examples
            saturation = _SATURATED / loss if loss else np.inf
        differences = ""
        if self.in_float64:
            differences = "float32" if graph.rounds else "float64"
        return Precision(precision, saturation, bool(graph.in_loops), differences)

    # At the outputs ------------------------------------------------------------------------------

    def product(self, rows: tf.Tensor) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """Return the product with a row, what it gives at the outputs, and the matrix there."""
        graph = self._concrete
        names = ("product", "tangents", "cotangents")
        tensors = [noted(graph, name) for name in names]
        weights = self._weights() if self.in_float64 else []
        if self._whole is None:
            variables = self._parameters.variables if self.in_float64 else ()
            wanted = [t for part in tensors for t in part]
            self._whole = HeldGraph(graph, wanted, variables, in_float64=self.in_float64)
        at, _, *sums = self._with_rows
        found = self._whole.record(flat((at, rows, *sums)), weights)[0]
        values = [np.asarray(tf.cast(tensor, tf.float64)) for tensor in found]
        count = len(tensors[1])
        return values[0][0], values[1 : 1 + count], values[1 + count :]

    def at_outputs(self, what: str) -> Callable[[list[np.ndarray]], np.ndarray]:
        """Return tensors that were noted as a function of the outputs, all else held fixed."""
        tensors = noted(self._concrete, what)
        of_loss = what == "output gradients"
        values = noted(self._concrete, "loss")[-1:] if of_loss else tensors
        graph = HeldGraph(self._concrete, tensors, free=self.outputs, values=values)
        held: list[Held] = []

        def function(outputs: list[np.ndarray]) -> np.ndarray:
            values = [
                tf.cast(tf.convert_to_tensor(value), tensor.dtype)
                for value, tensor in zip(outputs, self.outputs, strict=True)
            ]
            arguments = [*self._arguments, *values]
            if not held:
                found, recorded = graph.record(arguments)
                held.append(recorded)
            else:
                found = graph.again(arguments, held[0])
            parts = [np.asarray(tf.cast(part, tf.float64)) for part in found]
            # The outputs of an example have one loss together.
            together = what == "example losses"
            return np.sum(parts, axis=0).reshape(-1) if together else _joined(parts)

        return function

    def knows(self, what: str) -> bool:
        """Tell whether tensors of a name were noted."""
        return bool(noted(self._concrete, what))


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([part.reshape(-1) for part in parts])
