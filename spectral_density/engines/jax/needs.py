"""What a matrix needs of a loss, checked on the first batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from spectral_density.engines.engine import Needs
from spectral_density.engines.jax.jaxprs import reached_backward
from spectral_density.engines.jax.models import Arrays
from spectral_density.engines.jax.objectives import Objective, OutputsOfBatch, PairObjective
from spectral_density.engines.jax.output_loss import OutputLoss
from spectral_density.engines.loss_needs import (
    check_coefficients,
    check_distribution,
    check_example_losses,
    refuse_negative_weights,
    warn_of_variables_beyond_outputs,
)


def check_needs(needs: Needs, objective: Objective, loss: OutputLoss | None, batch: Any) -> None:
    """Check the loss on the first batch.

    Raises:
        ValueError: if a need is not met.
    """
    if loss is not None:
        loss.survey(batch)
        _warn_of_leaves_beyond_outputs(objective, batch)
    check_coefficients(needs, objective.coefficients)
    if needs.example_losses:
        shapes = objective.example_shapes(batch)
        if shapes is not None:
            check_example_losses(needs, shapes)
    if needs.distribution and loss is not None:
        check_distribution(needs, loss.endings, objective.description)


def check_weights(needs: Needs, objective: Objective, batch: Any) -> None:
    """Check the sample weights of a batch.

    Raises:
        ValueError: if one is negative where it must not be.
    """
    if needs.positive_weights:
        refuse_negative_weights(objective.sample_weights(batch))


def _warn_of_leaves_beyond_outputs(objective: Objective, batch: Any) -> None:
    """Warn where a user's loss reads weights itself, of which J knows nothing."""
    if not isinstance(objective, PairObjective):
        return

    def value(weights: Arrays) -> jax.Array:
        constants = objective.model.constants()
        outputs = objective.outputs(weights, constants, batch)
        cut = OutputsOfBatch([jax.lax.stop_gradient(z) for z in outputs.tensors], outputs.rest)
        return jnp.sum(objective.sums_at(cut, constants, batch, 1.0)[0])

    leaves = objective.model.leaves
    jaxpr = jax.make_jaxpr(value)(leaves.current()).jaxpr
    reached = reached_backward(jaxpr)[1]
    names = [name for name, is_one in zip(leaves.names, reached, strict=True) if is_one]
    if names:
        warn_of_variables_beyond_outputs(names)
