"""Objectives of Keras models under the JAX backend, made of a loss in one of its forms."""

from __future__ import annotations

from typing import Any

from spectral_density.engines.jax.batches import first_batch
from spectral_density.engines.jax.keras_model import KerasModel
from spectral_density.engines.jax.keras_objective import KerasObjective
from spectral_density.engines.jax.models import TRACING_ERRORS
from spectral_density.engines.jax.objectives import (
    FunctionObjective,
    PairObjective,
    check_loss,
    shape_of,
)
from spectral_density.engines.keras_shared.losses import in_neither_form
from spectral_density.engines.keras_shared.objective import describe


class KerasFactory:
    """See `ObjectiveFactory`."""

    def __init__(
        self,
        model: Any,
        dataset: Any,
        *,
        variables: Any,
        reduction: str | None,
        training: bool,
        examples: bool,
    ):
        """Take a model and the options of its operator."""
        self._model = KerasModel(model, variables)
        self._dataset = dataset
        self._reduction = reduction
        self._training = training
        self._examples = examples

    def of_outputs(self, loss: Any, loss_weights: Any = None) -> KerasObjective:
        """See `ObjectiveFactory`."""
        return KerasObjective(
            self._model,
            loss,
            loss_weights=loss_weights,
            reduction=self._reduction,
            training=self._training,
        )

    def of_batch(self, loss: Any, reduction: str, shape: Any) -> FunctionObjective:
        """See `ObjectiveFactory`."""
        del shape
        return FunctionObjective(self._model, loss, reduction, describe(loss))

    def of_pair(self, predict: Any, loss: Any, reduction: str) -> PairObjective:
        """See `ObjectiveFactory`."""
        return PairObjective(
            self._model, (predict, loss), reduction, describe(loss), self._examples
        )

    def recognized(self, loss: Any) -> tuple[Any, KerasObjective | None]:
        """See `ObjectiveFactory`."""
        batch = first_batch(self._dataset)
        function = self.of_batch(loss, "mean", None)
        try:
            shape = shape_of(function.value, self._model, batch)
            check_loss(shape, rank=len(getattr(shape, "shape", ())))
        except TRACING_ERRORS as error:
            of_batch = error
        else:
            return shape, None
        of_outputs = self.of_outputs(loss)
        try:
            of_outputs.validate(batch)
            shape_of(
                lambda weights, constants, batch: of_outputs.sums(weights, constants, batch, 1.0),
                self._model,
                batch,
            )
        except TRACING_ERRORS as error:
            with self._model.inputs_explained(batch):
                raise in_neither_form(describe(loss), of_batch, error) from of_batch
        of_outputs.description += " as loss(y_true, y_pred)"
        return None, of_outputs
