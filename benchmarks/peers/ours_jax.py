"""This package on JAX, with functions of a list of arrays."""

from __future__ import annotations

import platform
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from child import Answer, serve
from jax_networks import LOSSES, NETWORKS
from ours_runs import Runs

import spectral_density as sd


class OursOnJax(Runs):
    """Functions of JAX."""

    def versions(self) -> Answer:
        """Return names and versions of what computes."""
        return {
            "spectral-density": sd.__version__,
            "JAX": jax.__version__,
            "Python": platform.python_version(),
        }

    def build(self) -> None:
        """Make the operator."""
        network = dict(self.problem.network)
        forward = partial(NETWORKS[network.pop("kind")], **network)
        of_examples = LOSSES[network["loss"]]

        def predict(weights: Any, batch: Any) -> jax.Array:
            return forward(weights, batch[0])

        def loss(outputs: jax.Array, batch: Any) -> jax.Array:
            losses = of_examples(outputs, batch[1])
            return jnp.mean(losses * batch[2] if len(batch) > 2 else losses)

        kind = {"hessian": sd.HessianOperator, "ggn": sd.GaussNewtonOperator}[self.matrix]
        weights = [jnp.asarray(weight) for weight in self.problem.weights]
        self.operator = kind(weights, (predict, loss), self.problem.batches)


if __name__ == "__main__":
    serve(OursOnJax())
