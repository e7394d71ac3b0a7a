"""The parts of the objective that Keras's `fit` minimizes: batches, losses, outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import keras

from spectral_density.engines.keras_shared.attributes import loss_arguments
from spectral_density.engines.keras_shared.kinds import is_keras_loss, keras_module
from spectral_density.engines.keras_shared.own_code import is_second_order_model


class Term(NamedTuple):
    """One output's loss: values per example, how they reduce, and its weight."""

    values: Callable[[Any, Any], Any]
    reduction: str
    dtype: str
    coefficient: float
    loss: Any  # the object or function itself


def unpack(batch: Any) -> tuple[Any, Any, Any]:
    """Return x, y and sample_weight (or None) of a batch.

    Raises:
        ValueError: if the batch has another structure.
    """
    if isinstance(batch, (list, tuple)) and len(batch) in (2, 3):
        x, y, *rest = batch
        return x, y, (rest[0] if rest else None)
    if isinstance(batch, (list, tuple, dict)):
        found = f"a {type(batch).__name__} of {len(batch)}"
    else:
        found = f"a single array of shape {tuple(getattr(batch, 'shape', ()))}"
    raise ValueError(
        f"with a Keras loss a batch is (x, y) or (x, y, sample_weight), got {found}. A dataset of "
        "one batch is [(x, y)]; for other batches pass a function loss_fn(model, batch)."
    )


def align(values: Any, outputs: Any, names: Any, what: str) -> list[Any]:
    """Return one of `values` for each output, in the order of the flattened outputs."""
    num_outputs = len(keras.tree.flatten(outputs))
    shared = what in ("loss", "loss_weights", "sample_weight")
    if isinstance(values, dict):
        keys = list(outputs) if isinstance(outputs, dict) else list(names or ())
        unknown = sorted(set(values) - set(keys))
        if unknown:
            raise ValueError(f"{what} names outputs {unknown}; the model's are {sorted(keys)}.")
        # A dict is flattened in the order of its sorted keys.
        keys = sorted(keys) if isinstance(outputs, dict) else keys
        return [values.get(key) for key in keys]
    if isinstance(values, (list, tuple)):
        if len(values) != num_outputs:
            raise ValueError(
                f"{what} has {len(values)} entries and the model {num_outputs} outputs."
            )
        return list(values)
    if num_outputs > 1 and values is not None and not shared:
        raise ValueError(
            f"the model has {num_outputs} outputs, and {what} is a single tensor: pass a list with "
            "one for each, or a dict by the names of the outputs."
        )
    return [values] * num_outputs


def terms_of(
    losses: list[Any],
    weights: list[Any],
    reduction: str | None,
    keras_of_model: Any,
    with_ranks_matched: Callable[[Any], Any],
) -> list[Term | None]:
    """Return the term of each output, None for one without a loss.

    Args:
        losses: of the outputs, objects, names or functions.
        weights: of the outputs in the objective, None for 1.
        reduction: None for the losses' own; "mean" or "sum" to override it.
        keras_of_model: Keras 3 or tf_keras.
        with_ranks_matched: gives labels and outputs of a function one rank.

    Raises:
        ValueError: if a loss has no scalar, or no output has one.
    """
    if all(loss is None for loss in losses):
        raise ValueError("every output's loss is None: there is nothing to differentiate.")
    return [
        None if loss is None else _term(loss, weight, reduction, keras_of_model, with_ranks_matched)
        for loss, weight in zip(losses, weights, strict=True)
    ]


def _term(
    loss: Any,
    weight: Any,
    reduction: str | None,
    keras_of_model: Any,
    with_ranks_matched: Callable[[Any], Any],
) -> Term:
    if isinstance(loss, str):
        loss = _named(loss, keras_of_model)
    own = getattr(loss, "reduction", "sum_over_batch_size")
    if own in (None, "none"):
        raise ValueError(
            f"loss {describe(loss)} has reduction={own!r}, so it gives one value per example "
            "and no scalar. Use a loss with reduction='sum_over_batch_size' or 'sum'."
        )
    reduced = "sum" if "sum" in (own, reduction) else str(own)
    if reduction == "mean" and own == "sum":
        reduced = "sum_over_batch_size"
    values = loss.call if is_keras_loss(loss) else loss
    if not is_keras_loss(loss) or keras_of_model.__name__ == "tf_keras":
        values = with_ranks_matched(values)
    dtype = getattr(loss, "dtype", None) or keras_of_model.backend.floatx()
    coefficient = 1.0 if weight is None else float(weight)
    return Term(values, reduced, str(dtype), coefficient, loss)


def _named(name: str, keras_of_model: Any) -> Any:
    try:
        return keras_of_model.losses.get(name)
    except ValueError as error:
        raise ValueError(
            f"{name!r} is no loss of Keras: there are for instance sparse_categorical_crossentropy "
            "(class numbers), categorical_crossentropy (one-hot labels), binary_crossentropy, mse "
            "and huber; for outputs that are logits pass an object with from_logits=True."
        ) from error


def options_of(loss: Any) -> str:
    """Return what a Keras loss was made with, but for the name, which Keras may have numbered."""
    if not hasattr(loss, "get_config"):
        return describe(loss)
    named = {"config": loss.get_config(), "arguments": loss_arguments(loss)}
    return str({key: {k: v for k, v in part.items() if k != "name"} for key, part in named.items()})


def takes_training(model: Any) -> bool:
    """Tell whether a model is called with `training=`."""
    if keras_module(model) is not None:
        return True
    try:
        return "training" in inspect.signature(model).parameters
    except (TypeError, ValueError):
        return False


def l2_factor(model: Any) -> float:
    """Return the factor of the squares of all weights that `SecondOrderModel` adds to its loss."""
    return float(model.l2) if is_second_order_model(model) else 0.0


def describe(loss: Any) -> str:
    """Return what a loss is called."""
    if isinstance(loss, str):
        return loss
    if isinstance(loss, (list, tuple)):
        return ", ".join(describe(part) for part in loss)
    if isinstance(loss, dict):
        return ", ".join(f"{name}: {describe(part)}" for name, part in loss.items())
    return getattr(loss, "__name__", None) or type(loss).__name__
