"""Whatever loss a user has for a Keras model, recognized."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

from spectral_density.engines.keras_shared.attributes import (
    compiled_loss_weights,
    is_of_keras,
    is_of_tf_keras,
)
from spectral_density.engines.keras_shared.kinds import is_keras_loss, is_metric
from spectral_density.engines.keras_shared.own_code import refuse_own_training

REDUCTIONS = ("mean", "sum")

_ERROR_SHOWN = 300  # characters


class ObjectiveFactory(Protocol):
    """How an engine makes an objective of a loss in one of its forms."""

    def of_outputs(self, loss: Any, loss_weights: Any = None) -> Any:
        """Return that of a Keras loss, or of a function of labels and outputs."""

    def of_batch(self, loss: Any, reduction: str, shape: Any) -> Any:
        """Return that of a function of model and batch, whose shape may be known."""

    def of_pair(self, predict: Any, loss: Any, reduction: str) -> Any:
        """Return that of a function of model and batch, and one of outputs and batch."""

    def recognized(self, loss: Any) -> tuple[Any, Any]:
        """Return the shape of a function of model and batch, or None and its `of_outputs`."""


def make_objective(
    model: Any,
    loss: Any,
    factory: ObjectiveFactory,
    *,
    reduction: str | None = None,
    training: bool = False,
    tried: bool = True,
) -> Any:
    """Bring whatever loss the user has into one form.

    A function whose first parameter is neither `model` nor `y_true` is traced with the first batch:
    as `loss_fn(model, batch)`, and if that raises, as `loss(y_true, y_pred)`.

    Args:
        model: Keras model, or what else an engine takes.
        loss: a Keras loss object, its name, a function from `keras.losses` or one whose first
            parameter is `y_true`, a list or dict of these, None for the compiled loss, a function
            `loss_fn(model, batch) -> scalar`, or a pair `(predict(model, batch),
            loss(outputs, batch))`.
        factory: of the objective.
        reduction: "mean" or "sum" over batches; None for a Keras loss's own, or the mean.
        training: mode in which a Keras loss calls the model.
        tried: whether a function is tried with data; without, it is one of model and batch.

    Raises:
        ValueError: if there is no loss to be had, `reduction` is unknown, or `fit` minimizes
            something else than the loss says.
        TypeError: if `loss` is none of these, or a function that traces in neither way.
    """
    if reduction is not None and reduction not in REDUCTIONS:
        raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}.')
    if inspect.isclass(loss):
        raise TypeError(f"loss is the class {loss.__name__}: pass an object, {loss.__name__}().")
    if is_metric(loss):
        raise TypeError(
            f"loss is the metric {type(loss).__name__}, which keeps a state: pass the loss, as "
            f"keras.losses.{type(loss).__name__}() where there is one of that name."
        )
    if loss is None:
        return factory.of_outputs(*compiled_loss_of(model))
    if is_per_example(loss) or isinstance(loss, (list, dict)):
        return factory.of_outputs(loss)
    shape = None
    if callable(loss) and tried and first_parameter(loss) != "model":
        shape, of_outputs = factory.recognized(loss)
        if of_outputs is not None:
            return of_outputs
    if training:
        raise ValueError(
            "training= applies to Keras losses: a function calls the model itself, "
            "so pass training=True to the model there."
        )
    if isinstance(loss, tuple) and len(loss) == 2 and all(callable(part) for part in loss):
        return factory.of_pair(*loss, reduction or "mean")
    if callable(loss):
        return factory.of_batch(loss, reduction or "mean", shape)
    raise TypeError(
        "loss must be a Keras loss, its name, None for the compiled loss, a function "
        f"loss_fn(model, batch), or a pair (predict, loss), got {type(loss).__name__}."
    )


def in_neither_form(name: str, of_batch: Exception, of_outputs: Exception) -> TypeError:
    """Return the error for a function that traces in neither of the forms that a loss may have."""
    return TypeError(
        f"{name} traces in neither of the two forms that a loss may have:\n"
        f"- loss_fn(model, batch) -> scalar: {_shown(of_batch)}\n"
        f"- loss(y_true, y_pred) -> one value per example: {_shown(of_outputs)}\n"
        f"Mend {name} in the form that is meant. A first parameter called model says that "
        "it is the first, one called y_true the second."
    )


def is_batch_function(loss: Any) -> bool:
    """Tell whether `loss` is a function `loss_fn(model, batch)`."""
    return callable(loss) and not is_per_example(loss)


def compiled_loss_of(model: Any) -> tuple[Any, Any]:
    """Return the loss and the loss weights that a model was compiled with.

    Raises:
        ValueError: if it was not, or `fit` minimizes something else.
    """
    loss = getattr(model, "loss", None)
    if loss is None:
        raise ValueError(
            "no loss was given and the model is not compiled with one. "
            "Pass loss=, or call model.compile(loss=...) first."
        )
    refuse_own_training(model)
    return loss, compiled_loss_weights(model)


def is_per_example(loss: Any) -> bool:
    """Tell a Keras loss (object, name or function of y_true, y_pred) from a loss of a batch."""
    if isinstance(loss, str) or is_keras_loss(loss):
        return True
    if not callable(loss):
        return False
    if is_of_keras(loss, "losses") or is_of_tf_keras(loss, "losses"):
        return True
    return first_parameter(loss) == "y_true"


def first_parameter(function: Any) -> str | None:
    """Return the name of the first parameter of a function, None for none."""
    try:
        return next(iter(inspect.signature(function).parameters), None)
    except (TypeError, ValueError):
        return None


def _shown(error: Exception) -> str:
    """Return an error in one line, the end of it where it is long."""
    text = " ".join(str(error).split())
    if len(text) > _ERROR_SHOWN:
        text = f"... {text[-_ERROR_SHOWN:]}"
    return f"{type(error).__name__}: {text}"
