"""Derivatives of one loss in one set of variables: graphs of a batch, and the state around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density._warnings import warn
from spectral_density.engines.data import BatchInput
from spectral_density.engines.engine import BatchVerbs, Composition, Derivatives, Needs
from spectral_density.engines.tensorflow import batches, tensors
from spectral_density.engines.tensorflow.class_weights import check_class_weight, with_class_weights
from spectral_density.engines.tensorflow.compiled_products import (
    CompiledProducts,
    compiled,
    width_of_chunks,
)
from spectral_density.engines.tensorflow.finite import all_finite
from spectral_density.engines.tensorflow.inspection import TensorFlowInspection
from spectral_density.engines.tensorflow.loss_graphs import LossGraphs
from spectral_density.engines.tensorflow.merging import examples_are_separate, examples_at_once
from spectral_density.engines.tensorflow.needs import LossNeeds
from spectral_density.engines.tensorflow.objectives import FunctionObjective, Objective, explained
from spectral_density.engines.tensorflow.precision import compute_dtype
from spectral_density.engines.tensorflow.replicas import TensorFlowReplicas, replicas_of
from spectral_density.engines.tensorflow.scopes import layers_of
from spectral_density.engines.tensorflow.state import TensorFlowState
from spectral_density.engines.tensorflow.traced import note
from spectral_density.engines.tensorflow.variables import Variables
from spectral_density.engines.tensorflow.verbs import TracedBatch

# Batches of so many shapes are traced without a word.
_MANY_SHAPES = 8


class TensorFlowDerivatives(Derivatives):
    """The derivatives of a loss in `tf.Variable`s.

    Attributes:
        objective: the loss in one form.
        graphs: of the loss.
    """

    framework = "tensorflow"
    functions = batches
    tensors = tensors
    parameters: Variables
    state: TensorFlowState

    def __init__(self, objective: Objective, parameters: Variables, needs: Needs):
        """Build nothing yet.

        Raises:
            ValueError: if the loss cannot have what a matrix needs of it.
        """
        self.objective = objective
        self.parameters = parameters
        self.needs = needs
        self._loss_needs = LossNeeds(needs, objective, parameters)
        self.replicas = self._replicas = replicas_of(parameters.variables)
        self.description = objective.description
        self.is_function = isinstance(objective, FunctionObjective)
        self.product_dtype = parameters.dtype
        self.penalized = False  # known, as `width`, after the first batch
        self.width = 1
        self.layers_of_model = layers_of(objective.model)
        self.state = TensorFlowState(objective, parameters, self.replicas)
        num_replicas = 1 if self.replicas is None else len(self.replicas.ids)
        self.graphs = LossGraphs(objective, parameters, self.layers_of_model, num_replicas)
        self.inspection = TensorFlowInspection(self)

    @property
    def coefficients(self) -> np.ndarray:  # type: ignore[override]
        """Weight of each term of the loss; known after the first batch."""
        return self.objective.coefficients

    @property
    def averaged(self) -> np.ndarray:  # type: ignore[override]
        """Whether each term is divided by its denominator; known after the first batch."""
        return self.objective.averaged

    @property
    def depends(self) -> bool:  # type: ignore[override]
        """Whether a gradient reaches any variable; known when one was traced."""
        return self.graphs.depends

    @property
    def devices(self) -> str:
        """See `Derivatives`."""
        return "" if self.replicas is None else repr(self.replicas)

    @property
    def workers(self) -> TensorFlowReplicas | None:
        """See `Derivatives`."""
        replicas = self._replicas
        return replicas if replicas is not None and replicas.num_workers > 1 else None

    # Batches -------------------------------------------------------------------------------------

    def survey(self, batch: Any, weight: Any, is_first_dataset: bool) -> np.ndarray:
        """See `Derivatives`: the loss of each batch of the first dataset is computed, too."""
        graphs = self.graphs
        function = graphs.sums if is_first_dataset else graphs.denominators
        self._trace(function, batch, weight)
        if is_first_dataset:
            self.objective.check_labels(batch)
        with self.state.unchanged(), explained(self.objective, batch):
            found = function(batch, weight)
        # An accelerator computes NaN where a CPU raises an error.
        if is_first_dataset and not all_finite(found[0]):
            sentence = self.objective.explanation(batch)
            if sentence:
                raise ValueError(sentence)
        with self.state.unchanged():
            self._loss_needs.check(batch)
        return np.asarray(found[1] if is_first_dataset else found, np.float64)

    def _trace(self, function: Any, batch: Any, weight: Any) -> None:
        """Trace the loss of a batch, and look into a graph that is new before any of it runs."""
        known = self.state.graphs
        if not known.num_graphs:
            self.objective.validate(batch)
            self.graphs.refuse_penalty()
        graph = function.get_concrete_function(batch, weight).graph
        if known.knows(graph):
            return
        if not known.num_graphs:
            self.penalized = self.objective.penalty() is not None
            self.width = width_of_chunks(graph)
            self.product_dtype = compute_dtype(graph, self.parameters.variables)
        self.state.add(graph)
        if known.num_graphs == _MANY_SHAPES + 1:
            warn(
                f"the batches have more than {_MANY_SHAPES} shapes, and each shape builds graphs "
                "of its own, which takes most of the time. Pad or bucket: pad sequences to one "
                "length (or a few), with a mask, and give all batches the same number of examples."
            )

    def num_labels(self, batch: Any) -> int:
        """See `Derivatives`."""
        return self.objective.num_labels(batch)

    def examples_together(self, batch: Any, weight: Any) -> int:
        """See `Derivatives`; what it depends on is the model alone."""
        # Of few parcels dealt to replicas most would get none. Samples are numbered by batch.
        if self.replicas is not None or self._loss_needs.outputs_of_examples:
            return 0
        if not examples_are_separate(self.objective):
            return 0
        graph = self.graphs.sums.get_concrete_function(batch, weight).graph
        return examples_at_once(graph, batches.count_examples(batch), self.objective.model)

    def check_class_weight(self, class_weight: Any) -> dict[int, float] | None:
        """See `Derivatives`."""
        return check_class_weight(class_weight, self.objective)

    def with_class_weight(self, dataset: Any, class_weight: Mapping[int, float] | None) -> Any:
        """See `Derivatives`."""
        return with_class_weights(dataset, class_weight)

    # Derivatives ---------------------------------------------------------------------------------

    def loss(self, at: BatchInput, local: int = 0) -> float:
        """See `Derivatives`."""
        return self.graphs.loss(at, local)

    def gradient(self, at: BatchInput, local: int = 0) -> np.ndarray:
        """See `Derivatives`."""
        return self.graphs.gradient(at, local)

    def products(
        self, matrix: Composition, matmul_precision: str | None = None
    ) -> CompiledProducts:
        """See `Derivatives`: the precision is TensorFlow's own, for all of a process."""
        if matmul_precision is not None:
            raise ValueError(
                f"matmul_precision={matmul_precision!r} is for models of JAX. TensorFlow has one "
                "switch for all that a process computes, "
                "tf.config.experimental.enable_tensor_float_32_execution, which is left as it is "
                "here: call that, and leave matmul_precision out."
            )

        def traced(at: BatchInput, rows: tf.Tensor, *sums: tf.Tensor) -> list[tf.Tensor]:
            verbs = self._verbs(at)
            parameters = self.parameters
            products = matrix(verbs, [parameters.split(row) for row in tf.unstack(rows)])
            gradient = verbs.gradient()
            found.depends |= any(part is not None for part in gradient)
            added = (parameters.stack(products), parameters.join(gradient))
            note("product", added[0])
            note("gradient", added[1])
            # The gradient is not computed where no sum of it was passed.
            pairs = zip(sums, added, strict=False)
            return [total + tf.cast(new, tf.float64) for total, new in pairs]

        found = CompiledProducts(traced, self.objective, self.parameters.dtype)
        return found

    def evaluate(self, function: Callable[[BatchVerbs], Any]) -> Callable[[BatchInput], Any]:
        """See `Derivatives`."""
        graph = compiled(lambda at: function(self._verbs(at)), self.objective)
        return lambda at: tf.nest.map_structure(np.asarray, graph(at))

    def penalty(self) -> float | None:
        """See `Derivatives`."""
        penalty = self.objective.penalty()
        return None if penalty is None else float(penalty)

    def penalty_products(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Derivatives`."""
        return self.graphs.penalty_products(rows)

    def _verbs(self, at: BatchInput) -> TracedBatch:
        return TracedBatch(
            at,
            self.parameters.variables,
            self.layers_of_model,
            self.graphs.value,
            self._loss_needs.output_loss,
        )

    def settings(self) -> dict[str, Any]:
        """See `Derivatives`."""
        return self.objective.settings()
