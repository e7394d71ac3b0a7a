"""The derivatives of one batch that matrices are composed of, while they are traced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from spectral_density.engines.data import BatchInput
from spectral_density.engines.engine import BatchVerbs
from spectral_density.engines.tensorflow.labels import (
    outer_products,
    sampled_gradients,
    sampled_labels,
)
from spectral_density.engines.tensorflow.output_loss import OutputLoss, OutputsOfBatch
from spectral_density.engines.tensorflow.refusals import (
    gradients_explained,
    refuse_without_derivatives,
)
from spectral_density.engines.tensorflow.reverse_mode import hessian_products, jacobian_products
from spectral_density.engines.tensorflow.traced import note

Tensors = list[tf.Tensor]
Vectors = list[Tensors]
"""One list for each vector, of a tensor for each variable (or each output)."""


class TracedBatch(BatchVerbs):
    """The verbs of one batch in a graph; what they have in common is computed once."""

    def __init__(
        self,
        at: BatchInput,
        variables: Sequence[tf.Variable],
        layers: Sequence[Any],
        value: Callable[[BatchInput], tf.Tensor],
        output_loss: OutputLoss | None,
    ):
        """Compute nothing yet.

        Args:
            at: the batch, in tensors of the graph.
            variables: with respect to which derivatives are taken.
            layers: of the model, to name what has no derivative.
            value: the share of the batch in the loss, a scalar.
            output_loss: the loss as a function of the outputs, None where they are not apart.
        """
        self._at = at
        self._variables = variables
        self._layers = layers
        self._value = value
        self._output_loss = output_loss
        self._gradient: list[Any] | None = None
        self._recorded: tuple[tf.GradientTape, OutputsOfBatch, tf.Tensor] | None = None

    def gradient(self) -> list[Any]:
        """Return the gradient of the loss, a tensor for each variable or None for zero."""
        if self._gradient is None:
            if self._recorded is None:
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(self._variables)
                    value = self._value(self._at)
            else:
                tape, _, value = self._recorded
            with gradients_explained():
                self._gradient = tape.gradient(value, self._variables)
        return self._gradient

    def hessian_products(self, vectors: Vectors) -> Vectors:
        """See `BatchVerbs`."""
        products, self._gradient = hessian_products(
            lambda: self._value(self._at), self._variables, vectors, self._layers
        )
        return products

    def jacobian_products(self, vectors: Vectors) -> Vectors:
        """See `BatchVerbs`."""
        tape, outputs, _ = self._record()
        self.gradient()
        tangents = jacobian_products(tape, outputs.tensors, self._variables, vectors, self._layers)
        _note_all("tangents", tangents[0])
        return tangents

    def transposed_jacobian_products(self, cotangents: Vectors) -> Vectors:
        """See `BatchVerbs`."""
        tape, outputs, value = self._record()
        # What is only noted is not computed in a product.
        zero = tf.UnconnectedGradients.ZERO
        slopes = tape.gradient(value, outputs.tensors, unconnected_gradients=zero)
        _note_all("outputs", outputs.tensors)
        _note_all("output gradients", slopes)
        _note_all("cotangents", cotangents[0])
        return [
            tape.gradient(outputs.tensors, self._variables, output_gradients=each)
            for each in cotangents
        ]

    def output_hessian_products(self, tangents: Vectors) -> Vectors:
        """See `BatchVerbs`."""
        _, outputs, _ = self._record()
        return outputs.hessian_products(self._at.weight, self._at.scales, tangents)

    def example_gradients(self) -> Tensors:
        """See `BatchVerbs`."""
        _, outputs, _ = self._record()
        at = self._at
        gradients = [g[None] for g in outputs.example_gradients(at.weight, at.scales)]
        note("example losses", outputs.example_losses(at.weight, at.scales))
        return gradients

    def sampled_gradients(self, num_samples: int, seed: int) -> Tensors:
        """See `BatchVerbs`."""
        _, outputs, _ = self._record()
        return sampled_gradients(outputs, self._at.scales, num_samples, seed)

    def outer_products(self, gradients: Tensors, tangents: Vectors) -> Vectors:
        """See `BatchVerbs`."""
        return [outer_products(gradients, tangent) for tangent in tangents]

    def sampled_labels(self, num_samples: int, seed: int) -> Tensors:
        """See `BatchVerbs`."""
        return sampled_labels(self._outputs(), num_samples, seed)

    def _outputs(self) -> OutputsOfBatch:
        if self._output_loss is None:
            raise ValueError(
                "this matrix takes derivatives at the outputs, and does not say so: "
                "Needs(outputs=True)."
            )
        return self._output_loss.at(self._at.batch, self._at.first_example)

    def _record(self) -> tuple[tf.GradientTape, OutputsOfBatch, tf.Tensor]:
        """Call the model, once, on a tape; refuse what has no derivative."""
        if self._recorded is None:
            at = self._at
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
                tape.watch(self._variables)
                outputs = self._outputs()
                value = note("loss", outputs.value(at.weight, at.scales))
            refuse_without_derivatives(
                self._variables, [value, *outputs.tensors], self._layers, order=2
            )
            self._recorded = tape, outputs, value
        return self._recorded


def _note_all(what: str, tensors: Sequence[tf.Tensor]) -> None:
    for tensor in tensors:
        note(what, tensor)
