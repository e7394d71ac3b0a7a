"""The engine of TensorFlow: Keras models, `tf.Module`s and functions of `tf.Variable`s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from spectral_density.engines.engine import Needs
from spectral_density.engines.tensorflow.batches import first_batch
from spectral_density.engines.tensorflow.derivatives import TensorFlowDerivatives
from spectral_density.engines.tensorflow.frameworks import check_backend, variable_name
from spectral_density.engines.tensorflow.losses import make_objective
from spectral_density.engines.tensorflow.objectives import FunctionObjective
from spectral_density.engines.tensorflow.variables import Variables, select


class TensorFlowEngine:
    """Compiled graphs, reverse mode over reverse mode."""

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
    ) -> TensorFlowDerivatives:
        """Return the derivatives of the loss of a model."""
        check_backend()
        objective = make_objective(
            model,
            loss,
            reduction=reduction,
            training=training,
            examples=bool(needs.example_losses),
            dataset=dataset,
        )
        return TensorFlowDerivatives(objective, select(model, variables), needs)

    def of_function(
        self, loss: Callable[..., Any], variables: Any, reduction: str | None = None
    ) -> TensorFlowDerivatives:
        """Return those of `loss(variables)`; with a reduction, of `loss(variables, batch)`."""
        check_backend()
        flat = tf.nest.flatten(variables)
        names = [
            f"{variable_name(v)}_{i}" if len(flat) > 1 else variable_name(v)
            for i, v in enumerate(flat)
        ]

        def of_nothing(batch: Any) -> Any:
            return loss(variables)

        def of_batch(batch: Any) -> Any:
            return loss(variables, batch)

        name = getattr(loss, "__name__", "function")
        objective = FunctionObjective(
            of_batch if reduction else of_nothing, reduction or "sum", name
        )
        return TensorFlowDerivatives(objective, Variables(flat, names), Needs())
