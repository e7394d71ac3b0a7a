"""Graphs of a loss: its sums, value and gradient on one batch, and what is added once to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density.engines.data import BatchInput
from spectral_density.engines.tensorflow.compiled_products import compiled
from spectral_density.engines.tensorflow.objectives import Objective
from spectral_density.engines.tensorflow.refusals import refuse_without_derivatives
from spectral_density.engines.tensorflow.reverse_mode import hessian_products
from spectral_density.engines.tensorflow.traced import note
from spectral_density.engines.tensorflow.variables import Variables


class LossGraphs:
    """Compiled functions of one batch.

    Attributes:
        sums: of batch and weight: `Objective.sums`; refuses what has no derivatives.
        denominators: the same without the sums.
        penalty_products: of vectors: products and gradient of what is added once to the loss.
        depends: whether a gradient reaches any variable; known when one was traced.
    """

    def __init__(
        self, objective: Objective, parameters: Variables, layers: Sequence[Any], num_replicas: int
    ):
        """Trace nothing yet.

        Args:
            objective: the loss.
            parameters: with respect to which gradients are.
            layers: of the model, to name what has no derivative.
            num_replicas: of this process: TensorFlow warns of a function that is traced often, so
                that each replica has its own.
        """
        self._objective = objective
        self._parameters = parameters
        self._layers = layers
        replicas = range(num_replicas)
        self._losses = [compiled(self.value, objective) for _ in replicas]
        self._gradients = [compiled(self._traced_gradient, objective) for _ in replicas]
        self.sums = compiled(self._traced_sums, objective)
        self.denominators = compiled(self._traced_denominators, objective)
        self.penalty_products = compiled(self._traced_penalty_products, objective)
        self.depends = False

    def value(self, at: BatchInput) -> tf.Tensor:
        """Return the share of a batch in the loss, times the scales, as a scalar, in a graph."""
        sums, _ = self._objective.sums(at.batch, at.weight)
        return note("loss", tf.reduce_sum(sums * tf.cast(at.scales, sums.dtype)))

    def loss(self, at: BatchInput, local: int = 0) -> float:
        """Return the share of a batch in the loss, times the scales."""
        return float(self._losses[local](at))

    def gradient(self, at: BatchInput, local: int = 0) -> np.ndarray:
        """Return the gradient of that, (num_params,)."""
        return np.asarray(self._gradients[local](at))

    def refuse_penalty(self) -> None:
        """Raise if what is added once to the loss lacks a derivative that products need."""

        def trace() -> None:
            penalty = self._objective.penalty()
            if penalty is not None:
                self._refuse([penalty])

        compiled(trace, self._objective).get_concrete_function()

    def _refuse(self, tensors: Sequence[tf.Tensor]) -> None:
        refuse_without_derivatives(self._parameters.variables, tensors, self._layers, order=2)

    def _traced_sums(self, batch: Any, weight: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return `Objective.sums`; raise if they lack a derivative that products need."""
        sums, denominators = self._objective.sums(batch, weight)
        self._refuse([sums])
        return sums, denominators

    def _traced_denominators(self, batch: Any, weight: tf.Tensor) -> tf.Tensor:
        """Return the denominators alone: TensorFlow leaves out what they do not depend on."""
        return self._objective.sums(batch, weight)[1]

    def _traced_gradient(self, at: BatchInput) -> tf.Tensor:
        variables = self._parameters.variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            value = self.value(at)
        gradient = tape.gradient(value, variables)
        self.depends |= any(part is not None for part in gradient)
        return self._parameters.join(gradient)

    def _traced_penalty_products(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the products and the gradient of what is added once to the loss."""
        vectors = [self._parameters.split(row) for row in tf.unstack(rows)]
        products, gradient = hessian_products(
            self._objective.penalty, self._parameters.variables, vectors, self._layers
        )
        return self._parameters.stack(products), self._parameters.join(gradient)

    def forward_pass(self, batch: Any) -> Any:
        """Return the concrete function of the loss of a batch: its sums and their denominators."""
        return self.sums.get_concrete_function(batch, tf.constant(1.0, tf.float64))
