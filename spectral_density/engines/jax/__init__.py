"""The engine of JAX: functions of pytrees, and Keras models under the JAX backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spectral_density.engines.engine import Needs
from spectral_density.engines.jax.batches import first_batch
from spectral_density.engines.jax.derivatives import JaxDerivatives
from spectral_density.engines.jax.losses import make_objective, make_output_loss
from spectral_density.engines.jax.models import PytreeModel
from spectral_density.engines.jax.objectives import FunctionObjective


class JaxEngine:
    """Compiled functions, forward mode over reverse mode."""

    first_batch = staticmethod(first_batch)

    def derivatives(
        self,
        model: Any,
        loss: Any,
        dataset: Any,
        *,
        needs: Needs,
        variables: Any = None,
        reduction: str | None = None,
        training: bool = False,
    ) -> JaxDerivatives:
        """Return the derivatives of the loss of a Keras model, or of a pytree of parameters."""
        objective = make_objective(
            model,
            loss,
            dataset,
            variables=variables,
            reduction=reduction,
            training=training,
            examples=bool(needs.example_losses),
        )
        return JaxDerivatives(objective, needs, make_output_loss(objective, needs))

    def of_function(
        self, loss: Callable[..., Any], variables: Any, reduction: str | None = None
    ) -> JaxDerivatives:
        """Return the derivatives of `loss(params)`; with a reduction, `loss(params, batch)`."""
        name = getattr(loss, "__name__", "function")
        function = loss if reduction else lambda params, batch: loss(params)
        objective = FunctionObjective(PytreeModel(variables), function, reduction or "sum", name)
        return JaxDerivatives(objective, Needs(), None)
