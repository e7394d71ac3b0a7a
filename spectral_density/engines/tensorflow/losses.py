"""Whatever loss a user has, recognized: a Keras loss, a function of a batch, or a pair."""

from __future__ import annotations

import inspect
from typing import Any

import tensorflow as tf

from spectral_density.engines.tensorflow.batches import first_batch
from spectral_density.engines.tensorflow.exact_gradients import exact_second_derivatives
from spectral_density.engines.tensorflow.frameworks import is_keras_loss, trainable_variables
from spectral_density.engines.tensorflow.keras_internals import (
    compiled_loss_weights,
    is_of_keras,
    is_of_tf_keras,
)
from spectral_density.engines.tensorflow.keras_objective import KerasObjective
from spectral_density.engines.tensorflow.layer_losses import losses_put_back
from spectral_density.engines.tensorflow.objectives import (
    TRACING_ERRORS,
    FunctionObjective,
    Objective,
    PairObjective,
    describe,
    loss_shape,
)
from spectral_density.engines.tensorflow.own_code import refuse_own_training

REDUCTIONS = ("mean", "sum")

_ERROR_SHOWN = 300  # characters


def make_objective(
    model: Any,
    loss: Any,
    *,
    reduction: str | None = None,
    training: bool = False,
    examples: bool = False,
    dataset: Any = None,
) -> Objective:
    """Bring whatever loss the user has into one form.

    A function whose first parameter is neither `model` nor `y_true` is traced with the first batch:
    as `loss_fn(model, batch)`, and if that raises, as `loss(y_true, y_pred)`.

    Args:
        model: Keras model or `tf.Module`.
        loss: a Keras loss object, its name, a function from `keras.losses` or one whose first
            parameter is `y_true`, a list or dict of these, None for the compiled loss, a function
            `loss_fn(model, batch) -> scalar`, or a pair `(predict(model, batch),
            loss(outputs, batch))`.
        reduction: "mean" or "sum" over batches; None for a Keras loss's own, or the mean.
        training: mode in which a Keras loss calls the model.
        examples: whether the loss of a pair returns one value for each example, no scalar.
        dataset: whose first batch a function is tried with; None for a function of model and batch.

    Raises:
        ValueError: if there is no loss to be had, `reduction` is unknown, or `fit` minimizes
            something else than the loss says.
        TypeError: if `loss` is none of these, or a function that traces in neither way.
    """
    if reduction is not None and reduction not in REDUCTIONS:
        raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}.')
    if inspect.isclass(loss):
        raise TypeError(f"loss is the class {loss.__name__}: pass an object, {loss.__name__}().")
    if loss is None:
        loss, loss_weights = _compiled_loss(model)
        return KerasObjective(
            model, loss, loss_weights=loss_weights, reduction=reduction, training=training
        )
    if _is_per_example(loss) or isinstance(loss, (list, dict)):
        return KerasObjective(model, loss, reduction=reduction, training=training)
    shape = None
    if callable(loss) and dataset is not None and _first_parameter(loss) != "model":
        shape, of_outputs = traced_loss(
            model,
            loss,
            dataset,
            KerasObjective(model, loss, reduction=reduction, training=training),
        )
        if of_outputs is not None:
            return of_outputs
    if training:
        raise ValueError(
            "training= applies to Keras losses: a function calls the model itself, "
            "so pass training=True to the model there."
        )
    if isinstance(loss, tuple) and len(loss) == 2 and all(callable(part) for part in loss):
        return PairObjective(model, *loss, reduction or "mean", examples)
    if callable(loss):
        return FunctionObjective(
            lambda batch: loss(model, batch), reduction or "mean", describe(loss), model, shape
        )
    raise TypeError(
        "loss must be a Keras loss, its name, None for the compiled loss, a function "
        f"loss_fn(model, batch), or a pair (predict, loss), got {type(loss).__name__}."
    )


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
    if _first_parameter(loss) == "model":
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
        name = describe(loss)
        raise TypeError(
            f"{name} traces in neither of the two forms that a loss may have:\n"
            f"- loss_fn(model, batch) -> scalar: {_shown(of_batch)}\n"
            f"- loss(y_true, y_pred) -> one value per example: {_shown(error)}\n"
            f"Mend {name} in the form that is meant. A first parameter called model says that "
            "it is the first, one called y_true the second."
        ) from of_batch
    of_outputs.description += " as loss(y_true, y_pred)"
    return None, of_outputs


def _shown(error: Exception) -> str:
    """Return an error in one line, the end of it where it is long."""
    text = " ".join(str(error).split())
    if len(text) > _ERROR_SHOWN:
        text = f"... {text[-_ERROR_SHOWN:]}"
    return f"{type(error).__name__}: {text}"


def is_batch_function(loss: Any) -> bool:
    """Tell whether `loss` is a function `loss_fn(model, batch)`."""
    return callable(loss) and not _is_per_example(loss)


def _compiled_loss(model: Any) -> tuple[Any, Any]:
    loss = getattr(model, "loss", None)
    if loss is None:
        raise ValueError(
            "no loss was given and the model is not compiled with one. "
            "Pass loss=, or call model.compile(loss=...) first."
        )
    refuse_own_training(model)
    return loss, compiled_loss_weights(model)


def _is_per_example(loss: Any) -> bool:
    """Tell a Keras loss (object, name or function of y_true, y_pred) from a loss of a batch."""
    if isinstance(loss, str) or is_keras_loss(loss):
        return True
    if not callable(loss):
        return False
    if is_of_keras(loss, "losses") or is_of_tf_keras(loss, "losses"):
        return True
    return _first_parameter(loss) == "y_true"


def _first_parameter(function: Any) -> str | None:
    """Return the name of the first parameter of a function, None for none."""
    try:
        return next(iter(inspect.signature(function).parameters), None)
    except (TypeError, ValueError):
        return None
