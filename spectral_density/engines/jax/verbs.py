"""The derivatives of one batch that matrices are composed of, while they are traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spectral_density.engines.data import BatchInput
from spectral_density.engines.engine import BatchVerbs
from spectral_density.engines.jax.models import Arrays
from spectral_density.engines.jax.objectives import Objective, OutputsOfBatch
from spectral_density.engines.jax.output_loss import OutputLoss, outer_products
from spectral_density.engines.jax.precision import exactly

Block = list[jax.Array]
"""For each leaf (or output) an array of which the first axis numbers the vectors."""

Kept = dict[str, Any]
"""What of the products of a batch no vector touches, by name: linear functions and arrays."""


class TracedBatch(BatchVerbs):
    """The verbs of one batch in a trace; what they have in common is computed once.

    What no vector touches is taken from what was kept of an earlier trace, where that is given.

    Attributes:
        kept: what was computed or given.
    """

    def __init__(
        self,
        objective: Objective,
        output_loss: OutputLoss | None,
        weights: Arrays,
        constants: Arrays,
        at: BatchInput,
        *,
        kept: Kept | None = None,
    ):
        """Compute nothing yet.

        Args:
            objective: the loss.
            output_loss: the loss as a function of the outputs, None where they are not apart.
            weights: what derivatives are taken in.
            constants: what is held constant.
            at: the batch.
            kept: of the batch.
        """
        self._objective = objective
        self._output_loss = output_loss
        self._weights = list(weights)
        self._constants = list(constants)
        self._at = at
        self.kept: Kept = {} if kept is None else dict(kept)

    def value(self, weights: Arrays) -> jax.Array:
        """Return the share of the batch in the loss, times the scales, as a scalar."""
        at = self._at
        sums, _ = self._objective.sums(weights, self._constants, at.batch, at.weight)
        return jnp.sum(sums * jnp.asarray(at.scales, sums.dtype))

    def loss(self) -> jax.Array:
        """Return that at the weights."""
        return self.value(self._weights)

    def gradient(self) -> Block:
        """Return the gradient of the loss, an array for each leaf."""
        return jax.grad(self.value)(self._weights)

    def hessian_products(self, vectors: Block) -> Block:
        """See `BatchVerbs`: forward mode over reverse mode."""

        def gradient(weights: Block) -> Block:
            # Up to version 0.6 JAX linearizes no output that depends on no input.
            parts = zip(jax.grad(self.value)(weights), weights, strict=True)
            return [jnp.where(False, weight, part) for part, weight in parts]

        def linear() -> Any:
            return jax.linearize(gradient, self._weights)[1]

        return jax.vmap(self._once("hessian", linear))(vectors)

    def jacobian_products(self, vectors: Block) -> Block:
        """See `BatchVerbs`."""
        return jax.vmap(self._jacobian())(vectors)

    def transposed_jacobian_products(self, cotangents: Block) -> Block:
        """See `BatchVerbs`."""
        shapes = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in self._weights]
        transposed = jax.linear_transpose(self._jacobian(), shapes)
        return jax.vmap(lambda each: transposed(each)[0])(cotangents)

    def output_hessian_products(self, tangents: Block) -> Block:
        """See `BatchVerbs`."""

        def linear() -> Any:
            return self._loss().hessian(self.outputs(), self._constants, self._at)

        return jax.vmap(self._once("output hessian", linear))(tangents)

    def example_gradients(self) -> Block:
        """See `BatchVerbs`."""

        def gradients() -> Block:
            found = self._loss().example_gradients(self.outputs(), self._constants, self._at)
            return [gradient[None] for gradient in found]

        return self._once("example gradients", gradients)

    def sampled_gradients(self, num_samples: int, seed: int) -> Block:
        """See `BatchVerbs`."""

        def gradients() -> Block:
            drawn = self.sampled_labels(num_samples, seed)
            return self._loss().sampled_gradients(self.outputs(), self._at, drawn)

        return self._once("sampled gradients", gradients)

    def outer_products(self, gradients: Block, tangents: Block) -> Block:
        """See `BatchVerbs`."""
        return jax.vmap(lambda tangent: outer_products(gradients, tangent))(tangents)

    def sampled_labels(self, num_samples: int, seed: int) -> Block:
        """See `BatchVerbs`."""

        def labels() -> Block:
            # Which labels there are must not depend on the precision of products.
            outputs = exactly(self._loss().outputs)
            found = outputs(self._weights, self._constants, self._at.batch)
            return self._loss().sampled_labels(found, self._at, num_samples, seed)

        return self._once("labels", labels)

    def outputs(self) -> OutputsOfBatch:
        """Return the outputs that the loss is a function of."""
        self._jacobian()
        return self._once("outputs", self._linearized_outputs)

    def _jacobian(self) -> Any:
        if "jacobian" not in self.kept:
            self._linearized_outputs()
        return self.kept["jacobian"]

    def _linearized_outputs(self) -> OutputsOfBatch:
        def tensors(weights: Block) -> tuple[Block, Any]:
            found = self._loss().outputs(weights, self._constants, self._at.batch)
            return found.tensors, found.rest

        found, self.kept["jacobian"], rest = jax.linearize(tensors, self._weights, has_aux=True)
        self.kept["outputs"] = OutputsOfBatch(found, rest)
        return self.kept["outputs"]

    def _loss(self) -> OutputLoss:
        if self._output_loss is None:
            raise ValueError(
                "this matrix takes derivatives at the outputs, and does not say so: "
                "Needs(outputs=True)."
            )
        return self._output_loss

    def _once(self, name: str, compute: Callable[[], Any]) -> Any:
        if name not in self.kept:
            self.kept[name] = compute()
        return self.kept[name]
