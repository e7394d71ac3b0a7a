"""Derivatives of one loss in one set of variables: graphs of a batch, and the state around them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density.engines.engine import BatchInput, BatchVerbs, Composition, Derivatives, Needs
from spectral_density.engines.tensorflow import batches
from spectral_density.engines.tensorflow.class_weights import check_class_weight, with_class_weights
from spectral_density.engines.tensorflow.compiled_products import (
    CompiledProducts,
    compiled,
    width_of_chunks,
)
from spectral_density.engines.tensorflow.frameworks import tf_variable
from spectral_density.engines.tensorflow.graph_state import GraphState
from spectral_density.engines.tensorflow.inspection import TensorFlowInspection
from spectral_density.engines.tensorflow.losses import FunctionObjective, Objective
from spectral_density.engines.tensorflow.merging import examples_are_separate, examples_at_once
from spectral_density.engines.tensorflow.needs import LossNeeds
from spectral_density.engines.tensorflow.precision import compute_dtype
from spectral_density.engines.tensorflow.refusals import refuse_without_derivatives
from spectral_density.engines.tensorflow.replicas import replicas_of
from spectral_density.engines.tensorflow.reverse_mode import hessian_products
from spectral_density.engines.tensorflow.scopes import layers_of
from spectral_density.engines.tensorflow.traced import note
from spectral_density.engines.tensorflow.variables import Variables
from spectral_density.engines.tensorflow.verbs import TracedBatch

# Batches of so many shapes are traced without a word.
_MANY_SHAPES = 8


class TensorFlowDerivatives(Derivatives):
    """The derivatives of a loss in `tf.Variable`s.

    Attributes:
        objective: the loss in one form.
        graphs: what the graphs of the loss read and write.
    """

    functions = batches
    parameters: Variables

    def __init__(self, objective: Objective, parameters: Variables, needs: Needs):
        """Build nothing yet.

        Raises:
            ValueError: if the loss cannot have what a matrix needs of it.
        """
        self.objective = objective
        self.parameters = parameters
        self.needs = needs
        self._loss_needs = LossNeeds(needs, objective, parameters)
        self.replicas = replicas_of(parameters.variables)
        self.description = objective.description
        self.is_function = isinstance(objective, FunctionObjective)
        self.product_dtype = parameters.dtype
        self.graphs = GraphState(parameters.variables, parameters.names, objective.model)
        self.layers_of_model = layers_of(objective.model)
        self.penalized = False  # known, as `width`, after the first batch
        self.width = 1
        self._written: list[Any] = []
        # TensorFlow warns of a function that is traced often: each replica has its own.
        num_replicas = 1 if self.replicas is None else len(self.replicas.ids)
        self._losses = [compiled(self.value, objective) for _ in range(num_replicas)]
        self._gradients = [compiled(self._traced_gradient, objective) for _ in range(num_replicas)]
        self._sums = compiled(self._traced_sums, objective)
        self._denominators = compiled(self._traced_denominators, objective)
        self._penalty_products = compiled(self._traced_penalty_products, objective)
        self._reaches_variables = False
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
    def stateful(self) -> bool:  # type: ignore[override]
        """Whether the loss writes variables."""
        return bool(self._written)

    # Batches -------------------------------------------------------------------------------------

    def survey(self, batch: Any, weight: Any, is_first_dataset: bool) -> np.ndarray:
        """See `Derivatives`: the loss of each batch of the first dataset is computed, too."""
        self._trace(batch, weight, is_first_dataset)
        with self.unchanged():
            found = (
                self._sums(batch, weight)[1]
                if is_first_dataset
                else self._denominators(batch, weight)
            )
        with self.unchanged():
            self._loss_needs.check(batch)
        return np.asarray(found, np.float64)

    def _trace(self, batch: Any, weight: Any, is_first_dataset: bool) -> None:
        """Trace the loss of a batch, and look into a graph that is new before any of it runs."""
        function = self._sums if is_first_dataset else self._denominators
        graphs = self.graphs
        if not graphs.num_graphs:
            self.objective.validate(batch)
            self._refuse_penalty()
        graph = function.get_concrete_function(batch, weight).graph
        if graphs.knows(graph):
            return
        if not graphs.num_graphs:
            self.penalized = self.objective.penalty() is not None
            self.width = width_of_chunks(graph)
            self.product_dtype = compute_dtype(graph, self.parameters.variables)
        graphs.add(graph)
        self._written = list(graphs.written)
        if self._written and self.replicas is not None:
            # The handles are those of one replica, and the model's variables those of all.
            self._written = [*self.objective.state(), *graphs.written_elsewhere()]
        if graphs.num_graphs == _MANY_SHAPES + 1:
            warnings.warn(
                f"the batches have more than {_MANY_SHAPES} shapes, and each shape builds graphs "
                "of its own, which takes most of the time. Pad or bucket: pad sequences to one "
                "length (or a few), with a mask, and give all batches the same number of examples.",
                UserWarning,
                stacklevel=2,
            )

    def _refuse_penalty(self) -> None:
        """Raise if what is added once to the loss lacks a derivative that products need."""

        def trace() -> None:
            penalty = self.objective.penalty()
            if penalty is not None:
                refuse_without_derivatives(
                    self.parameters.variables, [penalty], self.layers_of_model, order=2
                )

        compiled(trace, self.objective).get_concrete_function()

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
        graph = self._sums.get_concrete_function(batch, weight).graph
        return examples_at_once(graph, batches.count_examples(batch), self.objective.model)

    def check_class_weight(self, class_weight: Any) -> dict[int, float] | None:
        """See `Derivatives`."""
        return check_class_weight(class_weight, self.objective)

    def with_class_weight(self, dataset: Any, class_weight: Mapping[int, float] | None) -> Any:
        """See `Derivatives`."""
        return with_class_weights(dataset, class_weight)

    # Derivatives ---------------------------------------------------------------------------------

    def value(self, at: BatchInput) -> tf.Tensor:
        """Return the share of a batch in the loss, times the scales, as a scalar, in a graph."""
        sums, _ = self.objective.sums(at.batch, at.weight)
        return note("loss", tf.reduce_sum(sums * tf.cast(at.scales, sums.dtype)))

    def loss(self, at: BatchInput, local: int = 0) -> float:
        """See `Derivatives`."""
        return float(self._losses[local](at))

    def gradient(self, at: BatchInput, local: int = 0) -> np.ndarray:
        """See `Derivatives`."""
        return np.asarray(self._gradients[local](at))

    @property
    def depends(self) -> bool:  # type: ignore[override]
        """Whether a gradient reaches any variable; known when a gradient was traced."""
        return self._reaches_variables

    def products(self, matrix: Composition) -> CompiledProducts:
        """See `Derivatives`."""

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

        found = CompiledProducts(traced, self.objective)
        return found

    def evaluate(self, function: Callable[[BatchVerbs], Any]) -> Callable[[BatchInput], Any]:
        """See `Derivatives`."""
        graph = compiled(lambda at: function(self._verbs(at)), self.objective)
        return lambda at: tf.nest.map_structure(np.asarray, graph(at))

    def penalty(self) -> float | None:
        """See `Derivatives`."""
        penalty = self.objective.penalty()
        return None if penalty is None else float(penalty)

    def penalty_products(self, rows: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """See `Derivatives`."""
        products, gradient = self._penalty_products(rows)
        return np.asarray(products), np.asarray(gradient)

    def _verbs(self, at: BatchInput) -> TracedBatch:
        return TracedBatch(
            at,
            self.parameters.variables,
            self.layers_of_model,
            self.value,
            self._loss_needs.output_loss,
        )

    def _traced_sums(self, batch: Any, weight: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return `Objective.sums`; raise if they lack a derivative that products need."""
        sums, denominators = self.objective.sums(batch, weight)
        refuse_without_derivatives(self.parameters.variables, [sums], self.layers_of_model, order=2)
        return sums, denominators

    def _traced_denominators(self, batch: Any, weight: tf.Tensor) -> tf.Tensor:
        """Return the denominators alone: TensorFlow leaves out what they do not depend on."""
        return self.objective.sums(batch, weight)[1]

    def _traced_gradient(self, at: BatchInput) -> tf.Tensor:
        variables = self.parameters.variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            value = self.value(at)
        gradient = tape.gradient(value, variables)
        self._reaches_variables |= any(part is not None for part in gradient)
        return self.parameters.join(gradient)

    def _traced_penalty_products(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the products and the gradient of what is added once to the loss."""
        vectors = [self.parameters.split(row) for row in tf.unstack(rows)]
        products, gradient = hessian_products(
            self.objective.penalty, self.parameters.variables, vectors, self.layers_of_model
        )
        return self.parameters.stack(products), self.parameters.join(gradient)

    # State ---------------------------------------------------------------------------------------

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """See `Derivatives`."""
        with nullcontext() if self.replicas is None else self.replicas.alone():
            before = [tf.identity(variable.value()) for variable in self._written]
            try:
                yield
            finally:
                for variable, value in zip(self._written, before, strict=True):
                    variable.assign(value)

    @contextmanager
    def moved(self) -> Iterator[Callable[[np.ndarray], None]]:
        """See `Derivatives`."""
        variables = self.parameters.variables
        before = [tf.identity(variable) for variable in variables]
        start = self.read()

        def move(displacement: np.ndarray) -> None:
            pieces = self.parameters.unflatten(start + displacement)
            for variable, piece in zip(variables, pieces, strict=True):
                variable.assign(tf.cast(piece, variable.dtype))

        try:
            yield move
        finally:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)

    def read(self) -> np.ndarray:
        """See `Derivatives`."""
        variables = self.parameters.variables
        return self.parameters.flatten([tf.cast(v, tf.float64) for v in variables])

    def settings(self) -> dict[str, Any]:
        """See `Derivatives`."""
        return self.objective.settings()

    def hash_of_weights(self) -> str:
        """See `Derivatives`."""
        own = getattr(self.objective.model, "variables", ())
        return batches.batch_hash([*self.parameters.variables, *map(tf_variable, own)])

    def hash_of_other_variables(self) -> str:
        """See `Derivatives`."""
        return self.graphs.hash_of_others()

    def hash_of_graph(self) -> str:
        """See `Derivatives`."""
        return self.graphs.hash_of_graph()

    def forward_pass(self, batch: Any) -> Any:
        """Return the concrete function of the loss of a batch: its sums and their denominators."""
        return self._sums.get_concrete_function(batch, tf.constant(1.0, tf.float64))
