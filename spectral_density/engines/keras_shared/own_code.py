"""Methods of a user's model or loss that Keras's `fit` runs in place of its own."""

from __future__ import annotations

from typing import Any

import keras

from spectral_density.engines.keras_shared.attributes import (
    is_of_keras,
    is_of_tf_keras,
    training_methods,
)
from spectral_density.engines.keras_shared.kinds import is_keras_loss, keras_module

# `SecondOrderModel` steps by methods of its own, and minimizes the loss it was compiled with.
_PACKAGE = "spectral_density."


def own_training_method(model: Any) -> tuple[str, str] | None:
    """Return the class and the name of a method that says what `fit` minimizes, None for Keras's.

    A model of this package has those of the model that it wraps.
    """
    if keras_module(model) is None:
        return None
    for name, method in training_methods(model).items():
        if not _is_known(method):
            return type(model).__name__, name
    return own_training_method(model.model) if is_second_order_model(model) else None


def is_second_order_model(model: Any) -> bool:
    """Tell whether a model is this package's own around a user's model."""
    return keras_module(model) is not None and any(
        kind.__module__.startswith(_PACKAGE) for kind in type(model).__mro__
    )


def refuse_own_training(model: Any) -> None:
    """Raise if `fit` minimizes something else than the compiled loss.

    Raises:
        ValueError: naming class and method.
    """
    own = own_training_method(model)
    if own is None:
        return
    raise ValueError(
        f"{own[0]} has a {own[1]} of its own, so its compiled loss is not all that fit "
        "minimizes. Pass that objective as a function loss_fn(model, batch), or, to have the "
        "matrix of another loss, that loss itself."
    )


def refuse_own_call(losses: Any) -> None:
    """Raise if a loss, or one of a list or dict, computes its value in `__call__`.

    Keras calls that, while sums over examples are made from `call`.

    Raises:
        ValueError: naming the class.
    """
    for loss in keras.tree.flatten(losses):
        if is_keras_loss(loss) and not _is_known(type(loss).__call__):
            raise ValueError(
                f"the loss {type(loss).__name__} has a __call__ of its own, whose value is more "
                "than the mean of call(y_true, y_pred) that sums over the data are made of. Write "
                "all of it in call, or pass a function loss_fn(model, batch), such as "
                "lambda model, batch: loss(batch[1], model(batch[0]))."
            )


def _is_known(method: Any) -> bool:
    function = getattr(method, "__func__", method)
    if is_of_keras(function) or is_of_tf_keras(function):
        return True
    return (getattr(function, "__module__", None) or "").startswith(_PACKAGE)
