"""What a traced graph and a model say of layers, causes and mistakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from spectral_density.engines.data import BatchInput
from spectral_density.engines.engine import BesideWeights, Inspection
from spectral_density.engines.finite import cause
from spectral_density.engines.keras_shared.endings import correctly_classified, mistaken_outputs
from spectral_density.engines.keras_shared.filters import filter_axes
from spectral_density.engines.keras_shared.kinds import keras_module
from spectral_density.engines.keras_shared.objective import unpack
from spectral_density.engines.layout import last_axis
from spectral_density.engines.tensorflow.beside_weights import TracedBesideWeights
from spectral_density.engines.tensorflow.compiled_products import CompiledProducts, compiled
from spectral_density.engines.tensorflow.exact_gradients import exact_second_derivatives
from spectral_density.engines.tensorflow.finite import all_finite
from spectral_density.engines.tensorflow.frameworks import tf_variable, variable_name
from spectral_density.engines.tensorflow.graph_walk import deliberate_stops
from spectral_density.engines.tensorflow.keras_objective import KerasObjective
from spectral_density.engines.tensorflow.layers import positions_named, positions_of_layers
from spectral_density.engines.tensorflow.objectives import TRACING_ERRORS
from spectral_density.engines.tensorflow.scopes import named

if TYPE_CHECKING:
    from spectral_density.engines.tensorflow.derivatives import TensorFlowDerivatives

_RANDOM_OPS = (
    *("Random", "Multinomial", "TruncatedNormal", "ParameterizedTruncatedNormal"),
    *("StatelessRandom", "StatelessMultinomial", "StatelessTruncatedNormal"),
    *("StatelessShuffle", "StatelessParameterizedTruncatedNormal"),
    *("StatefulRandom", "StatefulStandardNormal", "StatefulTruncatedNormal", "StatefulUniform"),
)
_WRITING_OPS = ("Assign", "ResourceScatter")


class TensorFlowInspection(Inspection):
    """See `Inspection`."""

    tracing_errors = TRACING_ERRORS
    computing_errors = (ValueError, TypeError, tf.errors.OpError)

    def __init__(self, derivatives: TensorFlowDerivatives):
        """Look into nothing yet."""
        self._derivatives = derivatives

    def layers(self) -> dict[str, list[int]]:
        """See `Inspection`."""
        derivatives = self._derivatives
        return positions_of_layers(derivatives.parameters, derivatives.objective.model)

    def positions(self, item: Any) -> set[int]:
        """See `Inspection`."""
        derivatives = self._derivatives
        return positions_named(derivatives.parameters, derivatives.objective.model, item)

    def filter_axes(self) -> list[tuple[int, ...]]:
        """See `Inspection`."""
        derivatives = self._derivatives
        parameters, model = derivatives.parameters, derivatives.objective.model
        if keras_module(model) is None:
            return [last_axis(shape) for shape in parameters.shapes]
        return filter_axes(model, parameters.variables, tf_variable)

    def why_not_finite(self, what: str, at: BatchInput, local: int = 0) -> str:
        """See `Inspection`."""
        derivatives = self._derivatives
        parameters, model = derivatives.parameters, derivatives.objective.model
        weights = dict(zip(parameters.names, parameters.variables, strict=True))
        # Those of Keras without the states of metrics; a `tf.Module` has variables alone.
        for variable in getattr(model, "weights", getattr(model, "variables", ())):
            weights.setdefault(variable_name(variable), tf_variable(variable))
        steps = {
            "loss": lambda: derivatives.loss(at, local),
            "gradient": lambda: derivatives.gradient(at, local),
        }
        return cause(what, at.batch, weights, steps, all_finite)

    def nonfinite_variables(self) -> list[str]:
        """See `Inspection`."""
        parameters = self._derivatives.parameters
        pairs = zip(parameters.names, parameters.variables, strict=True)
        return [name for name, variable in pairs if not all_finite(variable)]

    def random_and_writing(self, batch: Any) -> tuple[list[str], list[str]]:
        """See `Inspection`; the graph knows what is switched on: no dropout in inference."""
        derivatives = self._derivatives
        definition = derivatives.graphs.forward_pass(batch).graph.as_graph_def()
        nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
        random = [node for node in nodes if node.op.startswith(_RANDOM_OPS)]
        random = [
            node for node in random if "GetKeyCounter" not in node.op and "GetAlg" not in node.op
        ]
        writing = [node for node in nodes if node.op.startswith(_WRITING_OPS)]
        layers = derivatives.layers_of_model
        drawing = named(random, layers)
        return drawing, [name for name in named(writing, layers) if name not in drawing]

    def stopped_gradients(self, batch: Any) -> list[tuple[str, str]]:
        """See `Inspection`."""
        derivatives = self._derivatives
        forward = derivatives.graphs.forward_pass(batch)
        return deliberate_stops(
            forward.graph,
            derivatives.parameters.variables,
            forward.outputs[:1],
            derivatives.layers_of_model,
        )

    def batch_normalizations(self) -> list[str]:
        """See `Inspection`."""
        derivatives = self._derivatives
        if keras_module(derivatives.objective.model) is None:
            return []
        return [
            f"{type(layer).__name__} {layer.name!r}"
            for layer in derivatives.layers_of_model
            if "BatchNorm" in type(layer).__name__
        ]

    def mistaken_outputs(self, batch: Any) -> tuple[list[str], float | None] | None:
        """See `Inspection`."""
        objective = self._derivatives.objective
        if not isinstance(objective, KerasObjective):
            return None

        return mistaken_outputs(objective.terms, lambda: _outputs(objective, batch))

    def correctly_classified(self, batch: Any) -> tuple[int, int] | None:
        """See `Inspection`."""
        objective = self._derivatives.objective
        if not isinstance(objective, KerasObjective):
            return None
        labels = [np.asarray(part) for part in tf.nest.flatten(unpack(batch)[1])]
        return correctly_classified(objective.terms, labels, lambda: _outputs(objective, batch))

    def reaches(self, at: BatchInput, positions: Sequence[int]) -> list[bool]:
        """See `Inspection`; as far as the graph knows."""
        derivatives = self._derivatives
        variables = [derivatives.parameters.variables[position] for position in positions]
        reached: list[bool] = []

        def trace(at: BatchInput) -> None:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                value = derivatives.graphs.value(at)
                penalty = derivatives.objective.penalty()
                if penalty is not None:
                    value += tf.cast(penalty, value.dtype)
            reached.extend(part is not None for part in tape.gradient(value, variables))

        compiled(trace, derivatives.objective).get_concrete_function(at)
        return reached[-len(variables) :]

    def beside_weights(
        self,
        products: CompiledProducts,
        at: BatchInput,
        rows: Any,
        move: Callable[[np.ndarray], None],
    ) -> BesideWeights:
        """See `Inspection`."""
        zeros = tf.zeros(rows.shape, tf.float64)
        concrete = products.whole(1).get_concrete_function(at, rows, zeros)
        return TracedBesideWeights(concrete, (at, rows, zeros), self._derivatives.parameters, move)


def _outputs(objective: KerasObjective, batch: Any) -> list[np.ndarray]:
    """Return the outputs for a batch, float64."""
    with exact_second_derivatives(objective.model):
        found = objective.outputs_of(batch)  # not traced, which would cost more
    return [np.asarray(tf.cast(output, tf.float64)) for output in tf.nest.flatten(found)]
