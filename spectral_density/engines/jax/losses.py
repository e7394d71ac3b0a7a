"""Whatever loss a user has, recognized: for a Keras model, or for a pytree of parameters."""

from __future__ import annotations

import sys
from typing import Any

from spectral_density.engines.engine import Needs
from spectral_density.engines.jax.models import PytreeModel
from spectral_density.engines.jax.objectives import (
    FunctionObjective,
    Objective,
    PairObjective,
)
from spectral_density.engines.jax.output_loss import OutputLoss


def make_objective(
    model: Any,
    loss: Any,
    dataset: Any,
    *,
    variables: Any,
    reduction: str | None,
    training: bool,
    examples: bool,
) -> Objective:
    """Bring whatever loss the user has into one form.

    Args:
        model: Keras model, or a pytree of parameters.
        loss: of a Keras model any, see `keras_shared.losses.make_objective`; of a pytree a function
            `loss(params, batch) -> scalar`, or the pair `(predict(params, batch),
            loss(outputs, batch))`.
        dataset: whose first batch a function is tried with.
        variables: which variables, or leaves.
        reduction: "mean" or "sum" over batches; None for a Keras loss's own, or the mean.
        training: mode in which a Keras loss calls the model.
        examples: whether the loss of a pair returns one value for each example, no scalar.
    """
    if is_keras_model(model):
        return _of_keras_model(
            model,
            loss,
            dataset,
            variables=variables,
            reduction=reduction,
            training=training,
            examples=examples,
        )
    if training:
        raise ValueError("training= applies to Keras models: a function of params says it itself.")
    if reduction not in (None, "mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}.')
    params = PytreeModel(model, variables)
    name = _name(loss)
    if isinstance(loss, tuple) and len(loss) == 2 and all(callable(part) for part in loss):
        return PairObjective(params, loss, reduction or "mean", name, examples)
    if not callable(loss) or _is_of_keras(loss):
        raise TypeError(
            "the loss of a pytree of parameters must be a function loss(params, batch), or a pair "
            f"(predict(params, batch), loss(outputs, batch)), got {type(loss).__name__}."
        )
    return FunctionObjective(params, loss, reduction or "mean", name)


def make_output_loss(objective: Objective, needs: Needs) -> OutputLoss | None:
    """Return the loss as a function of the outputs, where a matrix needs it.

    Raises:
        ValueError: if outputs and loss cannot be separated.
    """
    if not needs.outputs:
        return None
    if objective.outputs_apart and not objective.is_function:
        from spectral_density.engines.jax.keras_outputs import KerasOutputs

        return KerasOutputs(objective, needs.logits)
    return OutputLoss(objective, needs.logits)


def is_keras_model(model: Any) -> bool:
    """Tell whether a model is one of Keras 3, which need not be installed."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, keras.layers.Layer)


def _is_of_keras(loss: Any) -> bool:
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(loss, keras.losses.Loss)


def _name(loss: Any) -> str:
    if isinstance(loss, tuple):
        return _name(loss[-1]) if loss else "()"
    return getattr(loss, "__name__", None) or type(loss).__name__


def _of_keras_model(model: Any, loss: Any, dataset: Any, **options: Any) -> Objective:
    from spectral_density.engines.jax.keras_factory import KerasFactory
    from spectral_density.engines.keras_shared.losses import make_objective as recognize

    factory = KerasFactory(model, dataset, **options)
    return recognize(
        model,
        loss,
        factory,
        reduction=options["reduction"],
        training=options["training"],
    )
