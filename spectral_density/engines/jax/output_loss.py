"""The loss as a function of the model's outputs: where they end, and its Hessian there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from spectral_density._warnings import warn
from spectral_density.engines.data import BatchInput
from spectral_density.engines.jax.endings import ACTIVATIONS, activations_of, with_logits
from spectral_density.engines.jax.models import Arrays
from spectral_density.engines.jax.objectives import Objective, OutputsOfBatch, PairObjective

_NO_DISTRIBUTION = "{} has no distribution of its labels to draw from."

Linear = Callable[[list[jax.Array]], list[jax.Array]]


class OutputLoss:
    """An objective whose model and loss are apart, as a function of the model's outputs.

    The outputs are logits: where a model's output is a softmax or a sigmoid and its loss a
    cross-entropy, that activation counts to the loss. Other losses (a squared error of sigmoids)
    take the output as the model gives it. What the outputs of a Keras model are to its loss is said
    by `KerasOutputs`; those of a pair of functions stay as they are.
    """

    def __init__(self, objective: Objective, warned: bool):
        """Take an objective.

        Args:
            objective: what is differentiated.
            warned: whether it matters that the outputs are not logits.

        Raises:
            ValueError: if outputs and loss cannot be separated.
        """
        if not objective.outputs_apart:
            raise ValueError(
                f"the outputs of {objective.description} cannot be separated from its loss, which "
                "this matrix needs. Instead of loss_fn(model, batch) pass a Keras loss, or the "
                "pair (predict, loss) of functions predict(model, batch) -> outputs and "
                "loss(outputs, batch) -> scalar."
            )
        self.objective = objective
        self.warned = warned
        self.endings: list[Any] = []  # of the terms of a Keras loss
        self._moved: list[bool] = []  # of the outputs, known after `survey`

    def survey(self, batch: Any) -> None:
        """Find out how each output ends, in a trace of the model, and warn of what G is not."""
        model = self.objective.model
        found = activations_of(
            lambda *arguments: self.objective.outputs(*arguments).tensors,
            model.leaves.current(),
            model.constants(),
            batch,
        )
        self._moved = self.moved(found, batch)

    def moved(self, activations: list[str | None], batch: Any) -> list[bool]:
        """Return which outputs are replaced by their logits: none of a pair of functions."""
        del batch
        if self.warned and any(activations):
            warn(
                "the activation that the model ends in cannot be moved into the loss "
                f"({self.objective.description}). If that is a cross-entropy, G at probabilities "
                "is another matrix than G at logits (for softmax cross-entropy it is the empirical "
                "Fisher matrix). Let predict return logits."
            )
        return [False] * len(activations)

    def outputs(self, weights: Arrays, constants: Arrays, batch: Any) -> OutputsOfBatch:
        """Call the model on a batch; logits where an activation was moved into the loss."""
        if not any(self._moved):
            return self.objective.outputs(weights, constants, batch)

        def function(*arguments: Any) -> tuple[list[Any], Any]:
            found = self.objective.outputs(*arguments)
            return found.tensors, found.rest

        return OutputsOfBatch(
            *with_logits(function, self._moved, list(weights), list(constants), batch)
        )

    def at_model(self, outputs: OutputsOfBatch) -> OutputsOfBatch:
        """Return the outputs as the model gives them: activations put back."""
        return outputs

    def value(self, outputs: OutputsOfBatch, constants: Arrays, at: BatchInput) -> jax.Array:
        """Return the share of a batch in the objective, given its outputs (or logits)."""
        sums, _ = self.objective.sums_at(self.at_model(outputs), constants, at.batch, at.weight)
        return jnp.sum(sums * jnp.asarray(at.scales, sums.dtype))

    def hessian(self, outputs: OutputsOfBatch, constants: Arrays, at: BatchInput) -> Linear:
        """Return the Hessian of the loss at the outputs, as a function of a tangent: a pytree."""

        def gradient(tensors: list[jax.Array]) -> list[jax.Array]:
            return jax.grad(lambda z: self.value(OutputsOfBatch(z, outputs.rest), constants, at))(
                tensors
            )

        return jax.linearize(gradient, outputs.tensors)[1]

    def example_losses(
        self, outputs: OutputsOfBatch, constants: Arrays, at: BatchInput
    ) -> jax.Array:
        """Return `sum_u sqrt(a_iu) ell_iu` of each example i, (num_examples,).

        ell_iu are the losses of example i (several where it has steps or outputs), summed over
        what a squared error or a sigmoid cross-entropy averages; the objective is the sum of all
        a_iu ell_iu.
        """
        objective = self.objective
        if not isinstance(objective, PairObjective):
            raise TypeError(f"{objective.description} says nothing of single examples.")
        values = objective.examples_at(outputs, at.batch)
        scale = at.scales[0]
        if objective.averaged[0]:
            scale = scale * at.weight / values.size
        return values * jnp.sqrt(scale).astype(values.dtype)

    def example_gradients(
        self, outputs: OutputsOfBatch, constants: Arrays, at: BatchInput
    ) -> list[jax.Array]:
        """Return the gradients at the outputs of the sum of `example_losses`."""

        def total(tensors: list[jax.Array]) -> jax.Array:
            found = OutputsOfBatch(tensors, outputs.rest)
            return jnp.sum(self.example_losses(found, constants, at))

        return jax.grad(total)(outputs.tensors)

    def terms(self, outputs: OutputsOfBatch, at: BatchInput) -> list[Any]:
        """Return the terms of a Keras loss at outputs (or logits), and how these end."""
        raise TypeError(_NO_DISTRIBUTION.format(self.objective.description))

    def sampled_labels(
        self, outputs: OutputsOfBatch, at: BatchInput, num_samples: int, seed: int
    ) -> list[jax.Array]:
        """Return labels drawn for each output, see `labels`."""
        raise TypeError(_NO_DISTRIBUTION.format(self.objective.description))

    def sampled_gradients(
        self, outputs: OutputsOfBatch, at: BatchInput, drawn: list[jax.Array]
    ) -> list[jax.Array]:
        """Return the gradients of their losses, see `labels`."""
        raise TypeError(_NO_DISTRIBUTION.format(self.objective.description))

    def sampled_losses(
        self, outputs: OutputsOfBatch, at: BatchInput, drawn: list[jax.Array]
    ) -> jax.Array:
        """Return these losses, see `labels`."""
        raise TypeError(_NO_DISTRIBUTION.format(self.objective.description))


def outer_products(gradients: list[jax.Array], tangent: list[jax.Array]) -> list[jax.Array]:
    """Return the mean over samples s of r_si <r_si, u_i> for each example i.

    Gradients are of shape (num_samples, examples, ...), tangents of shape (examples, ...); the
    inner product is over all outputs of an example.
    """
    dtype = jnp.result_type(*gradients)
    pairs = list(zip(gradients, tangent, strict=True))
    inner = [jnp.sum(_flat(r) * _flat(u[None]), axis=-1).astype(dtype) for r, u in pairs]
    along = jnp.sum(jnp.stack(inner), axis=0)
    return [
        jnp.mean(_flat(r) * along[..., None].astype(r.dtype), axis=0).reshape(u.shape)
        for r, u in pairs
    ]


def _flat(array: jax.Array) -> jax.Array:
    return array.reshape(*array.shape[:2], -1)


def closed_form(distribution: str) -> Callable[..., jax.Array]:
    r"""Return the Hessian of `sum(weights * values)` at the outputs as a function.

    With p the softmax or sigmoid of the C outputs of a value: diag(p) - p p' for softmax
    cross-entropy, diag(p (1 - p)) / C for sigmoid cross-entropy, 2 I / C for the squared error.
    Labels, smoothed or not, do not enter. It takes logits or predictions (..., C), the weights of
    the values (...), and a tangent.
    """
    return partial(_closed_form, distribution)


def _closed_form(
    distribution: str, output: jax.Array, weights: jax.Array, tangent: jax.Array
) -> jax.Array:
    dtype = weights.dtype
    weights = weights[..., None] / num_averaged(output, distribution)
    z, u = output.astype(dtype), tangent.astype(dtype)
    if distribution == "categorical":
        p = jax.nn.softmax(z)
        product = p * (u - jnp.sum(p * u, axis=-1, keepdims=True))
    elif distribution == "bernoulli":
        product = jax.nn.sigmoid(z) * jax.nn.sigmoid(-z) * u
    else:
        product = 2.0 * u
    # What is masked counts for nothing, NaN included.
    return jnp.where(weights != 0, product * weights, 0).astype(tangent.dtype)


def num_averaged(output: jax.Array, distribution: str | None) -> int:
    """Return over how many outputs a value of the loss is a mean."""
    return output.shape[-1] if distribution in ("bernoulli", "normal") else 1


def activated(tensor: jax.Array, activation: str | None) -> jax.Array:
    """Return the output that a model gives at logits."""
    return tensor if activation is None else ACTIVATIONS[activation](tensor)
