"""Whatever loss a user has, recognized: a Keras loss, a function of a batch, or a pair."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from spectral_density.engines.keras_shared import losses as keras_losses
from spectral_density.engines.keras_shared.inputs import inputs_explained
from spectral_density.engines.keras_shared.objective import describe
from spectral_density.engines.tensorflow.batches import first_batch
from spectral_density.engines.tensorflow.exact_gradients import exact_second_derivatives
from spectral_density.engines.tensorflow.frameworks import trainable_variables
from spectral_density.engines.tensorflow.keras_objective import KerasObjective
from spectral_density.engines.tensorflow.layer_losses import losses_put_back
from spectral_density.engines.tensorflow.objectives import (
    TRACING_ERRORS,
    FunctionObjective,
    Objective,
    PairObjective,
    loss_shape,
)


def make_objective(
    model: Any,
    loss: Any,
    *,
    reduction: str | None = None,
    training: bool = False,
    examples: bool = False,
    dataset: Any = None,
) -> Objective:
    """Bring whatever loss the user has into one form, see `keras_shared.losses.make_objective`.

    Args:
        model: Keras model or `tf.Module`.
        loss: of any form.
        reduction: "mean" or "sum" over batches; None for a Keras loss's own, or the mean.
        training: mode in which a Keras loss calls the model.
        examples: whether the loss of a pair returns one value for each example, no scalar.
        dataset: whose first batch a function is tried with; None for a function of model and batch.
    """
    factory = _Factory(
        model, reduction=reduction, training=training, examples=examples, dataset=dataset
    )
    return keras_losses.make_objective(
        model,
        loss,
        factory,
        reduction=reduction,
        training=training,
        tried=dataset is not None,
    )


class _Factory:
    """See `ObjectiveFactory`."""

    def __init__(
        self, model: Any, *, reduction: str | None, training: bool, examples: bool, dataset: Any
    ):
        self._model = model
        self._reduction = reduction
        self._training = training
        self._examples = examples
        self._dataset = dataset

    def of_outputs(self, loss: Any, loss_weights: Any = None) -> KerasObjective:
        return KerasObjective(
            self._model,
            loss,
            loss_weights=loss_weights,
            reduction=self._reduction,
            training=self._training,
        )

    def of_batch(
        self, loss: Any, reduction: str, shape: tf.TensorShape | None
    ) -> FunctionObjective:
        model = self._model
        return FunctionObjective(
            lambda batch: loss(model, batch), reduction, describe(loss), model, shape
        )

    def of_pair(self, predict: Any, loss: Any, reduction: str) -> PairObjective:
        return PairObjective(self._model, predict, loss, reduction, self._examples)

    def recognized(self, loss: Any) -> tuple[tf.TensorShape | None, KerasObjective | None]:
        return traced_loss(self._model, loss, self._dataset, self.of_outputs(loss))


def traced_loss(
    model: Any, loss: Any, dataset: Any, of_outputs: KerasObjective
) -> tuple[tf.TensorShape | None, KerasObjective | None]:
    """Find out by tracing what a function takes: a model and a batch, or labels and outputs.

    Args:
        model: to call it with.
        loss: the function.
        dataset: whose first batch it is called with.
        of_outputs: the objective that it is if it takes labels and outputs.

    Returns:
        The shape of `loss(model, batch)` and None, or None and `of_outputs`.

    Raises:
        TypeError: if it traces in neither way, with both errors.
    """
    trainable_variables(model)  # before the function calls a model that was never built
    batch = first_batch(dataset)
    if keras_losses.first_parameter(loss) == "model":
        return loss_shape(lambda batch: loss(model, batch), batch), None
    try:
        return loss_shape(lambda batch: loss(model, batch), batch), None
    except TRACING_ERRORS as error:
        of_batch = error
    try:
        of_outputs.validate(batch)
        sums = tf.function(lambda batch: of_outputs.sums(batch, 1.0), autograph=False)
        with exact_second_derivatives(model), losses_put_back(model):
            sums.get_concrete_function(batch)
    except TRACING_ERRORS as error:
        with inputs_explained(model, batch, TRACING_ERRORS):
            raise keras_losses.in_neither_form(describe(loss), of_batch, error) from of_batch
    of_outputs.description += " as loss(y_true, y_pred)"
    return None, of_outputs
