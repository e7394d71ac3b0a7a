"""Which update rule an optimizer has: of Keras, Optax, or a diagonal matrix by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spectral_density.engines.update_rule import ConstantRule, UpdateRule, refuse_hyperparameters


def update_rule_of(optimizer: Any, hyperparameters: Mapping[str, Any]) -> UpdateRule:
    """Return the update rule of an optimizer; neither Keras nor Optax is imported for it.

    Args:
        optimizer: of Keras 3 or tf_keras; a state of Optax; or the diagonal of P, as a vector or
            as one array for each variable.
        hyperparameters: of a state of Optax, by Optax's names.

    Raises:
        TypeError: if it is none of these, or is not known.
        ValueError: if its step is none of this form.
    """
    if _is_diagonal(optimizer):
        refuse_hyperparameters(hyperparameters, "P is given as it is")
        return ConstantRule(optimizer)
    if _of_package(optimizer, "keras", "tf_keras"):
        from spectral_density.engines.keras_shared.optimizers import KerasRule

        refuse_hyperparameters(hyperparameters, "a Keras optimizer has its own")
        return KerasRule(optimizer)
    if _is_optax_state(optimizer):
        from spectral_density.engines.jax.optax_states import OptaxRule

        return OptaxRule(optimizer, hyperparameters)
    raise TypeError(_unknown(optimizer))


def _unknown(optimizer: Any) -> str:
    name = type(optimizer).__name__
    if hasattr(optimizer, "opt_state"):
        return f"a {name} holds the state of its optimizer as opt_state: pass that."
    if callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None)):
        return (
            f"a {name} makes updates and holds no state: pass the state that its last update "
            "returned, and the hyperparameters by name (learning_rate=, b1=, b2=, eps=)."
        )
    if optimizer is None:
        return "the model has no optimizer: compile it with one, or pass P, a positive diagonal."
    if isinstance(optimizer, str):
        return (
            f"the optimizer is the name {optimizer!r}: pass the object that has trained the model, "
            "model.optimizer."
        )
    return (
        f"the update of a {name} is not known. There are Keras's SGD, RMSprop, Adam, AdamW and "
        "Adagrad, states of Optax, and any positive diagonal P of step = -learning_rate * m / P, "
        "as one vector."
    )


def _is_diagonal(thing: Any) -> bool:
    parts = thing if isinstance(thing, list) or type(thing) is tuple else [thing]
    return len(parts) > 0 and all(
        (hasattr(part, "shape") and hasattr(part, "dtype")) or isinstance(part, (int, float))
        for part in parts
    )


def _of_package(thing: Any, *packages: str) -> bool:
    return type(thing).__module__.partition(".")[0] in packages


def _is_optax_state(thing: Any) -> bool:
    """Tell states of Optax, and the tuples and dicts that chains of transformations have."""
    if isinstance(thing, tuple) and type(thing) is not tuple:  # named
        return _of_package(thing, "optax") and not hasattr(thing, "update")
    parts = thing.values() if isinstance(thing, dict) else thing
    return (
        isinstance(thing, (tuple, list, dict))
        and len(thing) > 0
        and all(map(_is_optax_state, parts))
    )
