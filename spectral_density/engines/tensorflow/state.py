"""The variables around a loss: weights that are moved, and what the loss reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density.engines.engine import State
from spectral_density.engines.tensorflow.batches import batch_hash
from spectral_density.engines.tensorflow.frameworks import tf_variable
from spectral_density.engines.tensorflow.graph_state import GraphState
from spectral_density.engines.tensorflow.objectives import Objective
from spectral_density.engines.tensorflow.replicas import TensorFlowReplicas
from spectral_density.engines.tensorflow.variables import Variables
from spectral_density.engines.tensorflow.weights import Weights, restored


class TensorFlowState(State):
    """See `State`.

    Attributes:
        graphs: what the graphs of the loss read and write.
    """

    def __init__(
        self, objective: Objective, parameters: Variables, replicas: TensorFlowReplicas | None
    ):
        """Know of no graph yet."""
        self.graphs = GraphState(parameters.variables, parameters.names, objective.model)
        self._objective = objective
        self._parameters = parameters
        self._replicas = replicas
        self._written: list[Any] = []
        self.is_written = False

    def add(self, graph: Any) -> None:
        """Look into a traced graph, before anything of it has run.

        Raises:
            ValueError: if it writes what it must not, see `GraphState.add`.
        """
        self.graphs.add(graph)
        self._written = list(self.graphs.written)
        if self._written and self._replicas is not None:
            # The handles are those of one replica, and the model's variables those of all.
            self._written = [*self._objective.state(), *self.graphs.written_elsewhere()]
        self.is_written = bool(self._written)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """See `State`."""
        alone = nullcontext() if self._replicas is None else self._replicas.alone()
        with alone, restored(self._written):
            yield

    @contextmanager
    def moved(self) -> Iterator[Callable[[np.ndarray], None]]:
        """See `State`."""
        weights = Weights(self._parameters)
        held = weights.hold()
        try:
            yield partial(weights.move, held)
        finally:
            weights.restore(held)

    def read(self) -> np.ndarray:
        """See `State`."""
        variables = self._parameters.variables
        return self._parameters.flatten([tf.cast(v, tf.float64) for v in variables])

    def hash_of_weights(self) -> str:
        """See `State`."""
        own = getattr(self._objective.model, "variables", ())
        return batch_hash([*self._parameters.variables, *map(tf_variable, own)])

    def hash_of_other_variables(self) -> str:
        """See `State`."""
        return self.graphs.hash_of_others()

    def hash_of_graph(self) -> str:
        """See `State`."""
        return self.graphs.hash_of_graph()
