"""Compiled functions of a loss: its sums, value and gradient on one batch, and its penalty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np

from spectral_density.engines.data import BatchInput
from spectral_density.engines.jax.batches import batch_hash
from spectral_density.engines.jax.jaxprs import deliberate_stops, reached_backward
from spectral_density.engines.jax.objectives import Objective, shape_of
from spectral_density.engines.jax.output_loss import OutputLoss
from spectral_density.engines.jax.parameters import Leaves
from spectral_density.engines.jax.precision import compiled, exactly
from spectral_density.engines.jax.sharding import devices_of
from spectral_density.engines.jax.verbs import Kept, TracedBatch


class LossFunctions:
    """A loss as compiled functions of weights, constants and batch.

    Attributes:
        objective: the loss.
        output_loss: the loss as a function of the outputs, None where a matrix has no need of it.
        parameters: what derivatives are taken in.
        devices: that products are computed on.
        sums: of weights, constants, batch and weight: `Objective.sums`.
        denominators: the same without the sums.
    """

    def __init__(self, objective: Objective, output_loss: OutputLoss | None):
        """Trace nothing yet."""
        self.objective = objective
        self.output_loss = output_loss
        self.parameters: Leaves = objective.model.leaves
        self.devices = devices_of(self.parameters.current())
        self._seen = 0
        self._placed: tuple[list[jax.Array], Any] = ([], None)
        self.sums = compiled(objective.sums)
        self.denominators = compiled(lambda *arguments: objective.sums(*arguments)[1])
        self._value = compiled(lambda *arguments: self.verbs(*arguments).loss())
        self._gradient = compiled(lambda *arguments: self.verbs(*arguments).gradient())
        self._penalty_products = compiled(self._traced_penalty_products)

    def arrays(self) -> tuple[list[jax.Array], list[jax.Array]]:
        """Return weights and constants, as they are now."""
        return self.parameters.current(), self.objective.model.constants()

    def arrays_everywhere(self) -> tuple[list[jax.Array], list[jax.Array]]:
        """Return the same on all devices that compute products; copied when they are others."""
        arrays = self.arrays()
        if self.devices.count == 1:
            return arrays
        now = [*arrays[0], *arrays[1]]
        if not same_arrays(now, self._placed[0]):
            self._placed = (now, self.devices.everywhere(arrays))
        return self._placed[1]

    def see(self, batch: Any) -> None:
        """Take note of a batch, where other processes have to have the same."""
        if self.devices.processes is not None:
            self._seen = crc32(batch_hash(batch).encode(), self._seen)

    def check_agreement(self) -> None:
        """Raise unless all processes have the same weights and saw the same batches."""
        if self.devices.processes is not None:
            weights = crc32(batch_hash(self.arrays()).encode())
            self.devices.processes.agree((weights, self._seen), "weights and data")

    def verbs(
        self, weights: Any, constants: Any, at: BatchInput, *, kept: Kept | None = None
    ) -> TracedBatch:
        """Return the verbs of a batch, in a trace."""
        return TracedBatch(self.objective, self.output_loss, weights, constants, at, kept=kept)

    def learn(self, batch: Any, weight: float) -> None:
        """Trace the loss until every array that it reads is an argument of it."""
        shape_of(
            lambda weights, constants, batch: self.objective.sums(
                weights, constants, batch, weight
            ),
            self.objective.model,
            batch,
        )

    def jaxpr(self, batch: Any, weight: float) -> Any:
        """Return the jaxpr of the sums of a batch."""
        return jax.make_jaxpr(exactly(self.objective.sums))(*self.arrays(), batch, weight)

    def are_weights(self, jaxpr: Any) -> list[bool]:
        """Return for each input of a jaxpr whether it is a weight: those come first."""
        num_weights = len(self.parameters.variables)
        return [position < num_weights for position in range(len(jaxpr.invars))]

    def deliberate_stops(self, batch: Any) -> list[Any]:
        """Return the equations by which a user's code stops gradients in the loss of a batch."""
        jaxpr = self.jaxpr(batch, 1.0).jaxpr
        return deliberate_stops(jaxpr, self.are_weights(jaxpr))

    def loss(self, at: BatchInput) -> float:
        """Return the share of a batch in the loss, times the scales."""
        return float(self._value(*self.arrays(), at))

    def gradient(self, at: BatchInput) -> np.ndarray:
        """Return the gradient of that, (num_params,), float64."""
        parts = self._gradient(*self.arrays(), at)
        return self.parameters.flatten([np.asarray(part, np.float64) for part in parts])

    def penalty(self) -> float | None:
        """Return what is added once to the loss, None for nothing."""
        found = self.objective.penalty(*self.arrays())
        return None if found is None else float(found)

    def penalty_products(self, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the products (k, num_params) and the gradient (num_params,) of the penalty."""
        return self._penalty_products(*self.arrays(), rows)

    def _traced_penalty_products(
        self, weights: Any, constants: Any, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def value(weights: list[jax.Array]) -> Any:
            return self.objective.penalty(weights, constants)

        gradient, linear = jax.linearize(jax.grad(value), list(weights))
        parameters = self.parameters
        products = parameters.join(jax.vmap(linear)(parameters.split(rows)))
        return products, parameters.join([part[None] for part in gradient])[0]


def same_arrays(some: Sequence[jax.Array], others: Sequence[jax.Array]) -> bool:
    """Tell whether these are the very same arrays: they do not change."""
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def reached(functions: LossFunctions, at: BatchInput) -> list[bool]:
    """Tell which leaves the loss of a batch, and what is added to it, depends on at all.

    As far as the jaxpr knows: a leaf whose gradient is zero all the same counts as reached.
    """

    def value(weights: Any) -> jax.Array:
        constants = functions.objective.model.constants()
        found = functions.verbs(weights, constants, at).value(weights)
        penalty = functions.objective.penalty(weights, constants)
        return found if penalty is None else found + jnp.asarray(penalty, found.dtype)

    jaxpr = jax.make_jaxpr(value)(functions.parameters.current()).jaxpr
    return reached_backward(jaxpr)[1]
