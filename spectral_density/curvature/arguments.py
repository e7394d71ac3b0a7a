"""Model, loss and dataset of an operator: each in its place, or a sentence that says so."""

from __future__ import annotations

import inspect
from typing import Any


def check_places(name: str, model: Any, loss: Any, dataset: Any) -> None:
    """Check that model, loss and dataset are given, and not one in the place of another.

    What cannot be told apart is left to the engine: a pytree of parameters may be a list.

    Args:
        name: of the operator, for the message.
        model: see `HessianOperator`.
        loss: see `HessianOperator`.
        dataset: see `HessianOperator`; None where none was given.

    Raises:
        TypeError: which says what to write.
    """
    right = f"{name}(model, loss, dataset)"
    if _is_model(loss) and not _is_model(model):
        raise TypeError(f"the loss is {_named(loss)}, a model, which comes first: {right}.")
    if _is_model(dataset) and not _is_model(model):
        raise TypeError(f"the dataset is {_named(dataset)}, a model, which comes first: {right}.")
    if _is_loss(model) or (inspect.isroutine(model) and not _is_model(model)):
        raise TypeError(
            f"the model is {_named(model)}: write {right} with a Keras model, a tf.Module or a "
            "pytree of JAX arrays, or HessianOperator.from_function(function, variables)."
        )
    if _is_data(loss):
        if dataset is None:
            raise TypeError(
                f"the loss is {_named(loss)} that looks like the dataset: write "
                f"{name}(model, dataset=...) for the compiled loss, or {right}."
            )
        if _is_loss(dataset):
            raise TypeError(
                f"the loss is {_named(loss)} and the dataset {_named(dataset)}: they belong the "
                f"other way round, {right}."
            )
        raise TypeError(
            f"the loss is {_named(loss)} that looks like data: inputs and labels are one batch "
            f"of the dataset, {name}(model, loss, [(x, y)])."
        )
    if dataset is None:
        raise TypeError(
            f"no dataset was given: {right}, or {name}(model, dataset=...) for the compiled loss."
        )
    if _is_loss(dataset):
        raise TypeError(f"the dataset is {_named(dataset)}, a loss: write {right}.")


def _named(thing: Any) -> str:
    name = type(thing).__name__
    return f"an {name}" if name.startswith(("nd", *"aeioAEIO")) else f"a {name}"


def _is_model(thing: Any) -> bool:
    return hasattr(thing, "trainable_variables") and not inspect.isclass(thing)


def _is_loss(thing: Any) -> bool:
    """Tell a name, a Keras loss or a function of one argument or more from a dataset."""
    if isinstance(thing, str):
        return True
    if _is_model(thing) or not callable(thing):
        return False
    if hasattr(thing, "get_config") and hasattr(thing, "reduction"):
        return True
    if not inspect.isroutine(thing):
        return False
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(
        parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        for parameter in parameters
    )


def _is_data(thing: Any) -> bool:
    """Tell an array, batches of them or a pipeline from a loss, or several in a list or dict."""
    if isinstance(thing, str) or callable(thing) or thing is None:
        return False
    if isinstance(thing, dict):
        return any(_is_data(part) for part in thing.values())
    if isinstance(thing, (list, tuple)):
        return any(isinstance(part, (list, tuple, dict)) or _is_data(part) for part in thing)
    return hasattr(thing, "shape") or hasattr(thing, "__iter__") or hasattr(thing, "__getitem__")
