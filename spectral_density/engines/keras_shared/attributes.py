"""Private attributes of models and losses of Keras and tf_keras, whatever they compute with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras.src.utils.io_utils import print_msg

# What decides, in `fit`, which function of the weights is minimized.
_OF_TRAINING = ("train_step", "make_train_function", "compute_loss", "_compute_loss")

# What optimizers keep for each variable; the last is the variable itself, of Keras 3 alone.
_OF_OPTIMIZERS = {
    "velocities": "_velocities",
    "velocity_hats": "_velocity_hats",
    "average_gradients": "_average_gradients",
    "accumulators": "_accumulators",
    "trainable_variables": "_trainable_variables",
}


def all_layers(model: Any, include_self: bool = True) -> list[Any]:
    """Return a Keras layer or model with all the layers in it, however deep.

    Args:
        model: layer or model of Keras 3 or tf_keras.
        include_self: whether it counts itself.
    """
    return list(model._flatten_layers(include_self=include_self))


def training_methods(model: Any) -> dict[str, Any]:
    """Return the methods of a Keras model that decide what `fit` minimizes, by name."""
    methods = {name: getattr(model, name, None) for name in _OF_TRAINING}
    return {name: method for name, method in methods.items() if method is not None}


def compiled_loss(model: Any) -> Any | None:
    """Return what a compiled Keras model calls with labels and outputs for its loss.

    None where the model is not compiled with a loss, or is no model.
    """
    if hasattr(model, "_compile_loss"):
        return model._compile_loss
    return getattr(model, "compiled_loss", None)  # of tf_keras


def compiled_loss_weights(model: Any) -> Any | None:
    """Return the `loss_weights` that a Keras model was compiled with, None for none."""
    return getattr(compiled_loss(model), "_user_loss_weights", None)


def loss_tracker(model: Any) -> Any:
    """Return the metric that averages the loss of a Keras 3 model over an epoch."""
    return model._loss_tracker


def loss_arguments(loss: Any) -> dict[str, Any]:
    """Return the keyword arguments that a Keras loss calls its function with."""
    return getattr(loss, "_fn_kwargs", None) or {}


def optimizer_state(optimizer: Any, name: str, variables: Sequence[Any]) -> list[Any]:
    """Return what an optimizer of Keras 3 or tf_keras keeps for each variable, None for nothing.

    Args:
        optimizer: whose update has been made at least once.
        name: of what it keeps, one of `_OF_OPTIMIZERS`.
        variables: those of an operator: of Keras, or the `tf.Variable`s in them.
    """
    kept = getattr(optimizer, _OF_OPTIMIZERS[name], None) or []
    places = _places(optimizer, variables)
    return [None if place is None or place >= len(kept) else kept[place] for place in places]


def trains(optimizer: Any, variables: Sequence[Any]) -> list[bool]:
    """Tell which variables an optimizer of Keras 3 or tf_keras was built for; all, before that.

    Args:
        optimizer: any.
        variables: those of an operator: of Keras, or the `tf.Variable`s in them.
    """
    is_built = hasattr(optimizer, "_index_dict") or getattr(optimizer, "built", False)
    if not is_built:
        return [True] * len(variables)
    return [place is not None for place in _places(optimizer, variables)]


def learning_rate_schedule(optimizer: Any) -> Any | None:
    """Return the schedule of an optimizer of tf_keras, None for a number.

    Its `learning_rate` is that of the last step, the schedule itself of the legacy optimizers.
    """
    rate = getattr(optimizer, "_learning_rate", None)
    if rate is None:
        rate = optimizer.learning_rate
    return rate if callable(rate) else None


def _places(optimizer: Any, variables: Sequence[Any]) -> list[int | None]:
    if hasattr(optimizer, "_index_dict"):  # of tf_keras
        return [optimizer._index_dict.get(optimizer._var_key(v)) for v in variables]
    places: dict[int, int] = {}
    for place, variable in enumerate(optimizer._trainable_variables):
        places[id(variable)] = place
        if isinstance(variable, keras.Variable):
            places[id(variable.value)] = place
    return [places.get(id(variable)) for variable in variables]


def is_of_keras(thing: Any, part: str = "") -> bool:
    """Tell whether a class or function is defined in the source of Keras 3.

    Args:
        thing: class, function or object.
        part: of the source, such as "losses"; "" for any.
    """
    return _module(thing).startswith(f"keras.src.{part}")


def is_of_tf_keras(thing: Any, part: str = "") -> bool:
    """Tell whether a class or function is defined in the source of tf_keras: see `is_of_keras`."""
    return _module(thing).startswith(f"tf_keras.src.{part}")


def _module(thing: Any) -> str:
    return getattr(thing, "__module__", None) or ""


@contextmanager
def twice_differentiable_kernels(layers: Sequence[Any]) -> Iterator[None]:
    """Switch off kernels of accelerators that have no second derivative, and restore the settings.

    Flash attention and cuDNN's recurrent kernels: Keras takes them by itself where it can.
    """
    settings = [
        (layer, name, getattr(layer, name))
        for layer in layers
        for name in ("_flash_attention", "use_cudnn")
        if hasattr(layer, name)
    ]
    try:
        for layer, name, _ in settings:
            setattr(layer, name, False)
        yield
    finally:
        for layer, name, before in settings:
            setattr(layer, name, before)


def print_message(text: str) -> None:
    """Print a line as Keras does: to its log where interactive logging is off."""
    print_msg(text)
