"""The layers of a Keras model and the variables that they own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from spectral_density.engines.keras_shared.kinds import keras_module

Owner = tuple[str, str, list[Any]]
"""Name of a layer, path of the model around it, and variables."""


def layers_and_variables(
    model: Any, own: Callable[[Any], Any] = lambda variable: variable
) -> list[Owner]:
    """Return the layers of a model with their variables, nested models last.

    Args:
        model: of Keras 3 or tf_keras.
        own: returns what stands for a variable of the model.
    """
    return list(_keras_layers(model, own))


def positions_by_owner(owners: list[Owner], variables: Any) -> dict[str, list[int]]:
    """Return the positions of each owner's variables, in order, by unique names.

    A variable that two share belongs to the first.
    """
    where = {id(v): position for position, v in enumerate(variables)}
    groups: dict[str, list[int]] = {}
    for name, theirs in _named_apart(owners):
        own = [position for v in theirs if (position := where.pop(id(v), None)) is not None]
        if own:
            groups[name] = sorted(own)
    return groups


def _named_apart(owners: list[Owner]) -> Iterator[tuple[str, list[Any]]]:
    taken: set[str] = set()
    names = [name for name, *_ in owners]
    for name, prefix, variables in owners:
        unique = f"{prefix}/{name}" if names.count(name) > 1 and prefix else name
        count = 1
        while unique in taken:
            count += 1
            unique = f"{name}_{count}"
        taken.add(unique)
        yield unique, variables


def _keras_layers(model: Any, own: Callable[[Any], Any], path: str = "") -> Iterator[Owner]:
    for layer in getattr(model, "layers", ()):
        if _is_model(layer):
            yield from _keras_layers(layer, own, f"{path}/{layer.name}".lstrip("/"))
        else:
            yield layer.name, path, [own(v) for v in layer.variables]
    # Weights of the model's own; those of its layers are theirs already.
    yield model.name, path, [own(v) for v in model.variables]


def _is_model(layer: Any) -> bool:
    module = keras_module(layer)
    return module is not None and isinstance(layer, module.Model)
