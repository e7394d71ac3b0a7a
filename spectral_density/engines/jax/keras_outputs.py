"""A Keras loss as a function of the outputs of its model, under the JAX backend."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from spectral_density._warnings import warn
from spectral_density.engines.data import BatchInput
from spectral_density.engines.jax import labels
from spectral_density.engines.jax.keras_objective import KerasObjective
from spectral_density.engines.jax.models import Arrays
from spectral_density.engines.jax.objectives import OutputsOfBatch, shape_of
from spectral_density.engines.jax.output_loss import (
    Linear,
    OutputLoss,
    activated,
    closed_form,
    num_averaged,
)
from spectral_density.engines.jax.terms import (
    OutputTerm,
    multiply_no_nan,
    term_values,
    value_weights,
    weighted_sum,
)
from spectral_density.engines.keras_shared.endings import OutputEnding, ending_of


class KerasOutputs(OutputLoss):
    """See `OutputLoss`.

    Attributes:
        endings: for each output that has a loss, its activation and distribution.
    """

    objective: KerasObjective
    endings: list[OutputEnding]

    def moved(self, activations: list[str | None], batch: Any) -> list[bool]:
        """See `OutputLoss`: those of cross-entropies whose output is their activation."""

        def terms(weights: Arrays, constants: Arrays, batch: Any) -> list[Any]:
            parts = self.objective.terms_at(
                self.objective.outputs(weights, constants, batch), batch
            )
            shapes[:] = [(part.position, part.term.loss, part.output.shape) for part in parts]
            return [term_values(part)[0] for part in parts]

        shapes: list[Any] = []
        values = shape_of(terms, self.objective.model, batch)
        self.endings = [
            ending_of(
                loss,
                activations[position],
                len(shape),
                partial(operator.eq, of.shape, shape[:-1]),
                self.warned,
            )
            for (position, loss, shape), of in zip(shapes, values, strict=True)
        ]
        if self.objective.adds_losses:
            warn(
                "the model's layers add losses in their call (activity regularization or "
                "add_loss). They are linear in themselves and no function of the outputs, so this "
                "matrix holds nothing of them: it is that of the loss at the outputs."
            )
        moved = [False] * len(activations)
        self._activations: list[str | None] = [None] * len(activations)
        for (position, *_), ending in zip(shapes, self.endings, strict=True):
            moved[position] = ending.activation is not None
            self._activations[position] = ending.activation
        return moved

    def at_model(self, outputs: OutputsOfBatch) -> OutputsOfBatch:
        """See `OutputLoss`."""
        pairs = zip(outputs.tensors, self._activations, strict=True)
        return outputs._replace(tensors=[activated(tensor, name) for tensor, name in pairs])

    def terms(
        self, outputs: OutputsOfBatch, at: BatchInput
    ) -> list[tuple[OutputTerm, OutputEnding]]:
        """Return the terms of the loss at outputs (or logits), and how these end."""
        parts = self.objective.terms_at(self.at_model(outputs), at.batch)
        return list(zip(parts, self.endings, strict=True))

    def hessian(self, outputs: OutputsOfBatch, constants: Arrays, at: BatchInput) -> Linear:
        """See `OutputLoss`: in closed form where there is one."""
        of_outputs: list[Any] = [None] * len(outputs.tensors)
        for part, ending in self.terms(outputs, at):
            tensor = outputs.tensors[part.position]
            if ending.distribution is None:
                linear = self._by_autodiff(part, ending, tensor, at)
            else:
                weights = value_weights(part, at.scales)
                linear = jax.tree_util.Partial(closed_form(ending.distribution), tensor, weights)
            of_outputs[part.position] = linear
        return jax.tree_util.Partial(_each, of_outputs)

    def _by_autodiff(
        self, part: OutputTerm, ending: OutputEnding, tensor: jax.Array, at: BatchInput
    ) -> Any:
        def value(z: jax.Array) -> jax.Array:
            moved = part._replace(output=activated(z, ending.activation))
            total, _ = weighted_sum(moved, at.weight)
            return total * jnp.asarray(at.scales[part.number], total.dtype)

        return jax.linearize(jax.grad(value), tensor)[1]

    def example_losses(
        self, outputs: OutputsOfBatch, constants: Arrays, at: BatchInput
    ) -> jax.Array:
        """See `OutputLoss`."""
        losses = []
        for part, ending in self.terms(outputs, at):
            values = term_values(part)[0]
            count = num_averaged(part.output, ending.distribution)
            roots = jnp.sqrt(value_weights(part, at.scales) * count)
            losses.append(multiply_no_nan(values, roots).reshape(len(values), -1).sum(axis=1))
        return sum(losses[1:], losses[0])

    def sampled_labels(
        self, outputs: OutputsOfBatch, at: BatchInput, num_samples: int, seed: int
    ) -> list[jax.Array]:
        """See `OutputLoss`."""
        return labels.sampled_labels(self, outputs, at, num_samples, seed)

    def sampled_gradients(
        self, outputs: OutputsOfBatch, at: BatchInput, drawn: list[jax.Array]
    ) -> list[jax.Array]:
        """See `OutputLoss`."""
        return labels.sampled_gradients(self, outputs, at, drawn)

    def sampled_losses(
        self, outputs: OutputsOfBatch, at: BatchInput, drawn: list[jax.Array]
    ) -> jax.Array:
        """See `OutputLoss`."""
        return labels.sampled_losses(self, outputs, at, drawn)


def _each(linears: list[Any], tangents: list[jax.Array]) -> list[jax.Array]:
    """Apply to each tangent what is of its output; zero where the output has no loss."""
    return [
        jnp.zeros_like(tangent) if linear is None else linear(tangent)
        for linear, tangent in zip(linears, tangents, strict=True)
    ]
