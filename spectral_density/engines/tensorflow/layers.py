"""The layers of a model and the variables that they own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from spectral_density.engines.layout import Parameters
from spectral_density.engines.tensorflow.frameworks import keras_module, tf_variable
from spectral_density.engines.tensorflow.variables import layer_named, matches


def positions_of_layers(parameters: Parameters, model: Any) -> dict[str, list[int]]:
    """Return the positions of each layer's variables, in the model's order, by unique names.

    A variable that two layers share belongs to the first.
    """
    where = {id(v): position for position, v in enumerate(parameters.variables)}
    groups: dict[str, list[int]] = {}
    for name, variables in _owners(parameters, model):
        own = [position for v in variables if (position := where.pop(id(v), None)) is not None]
        if own:
            groups[name] = sorted(own)
    return groups


def positions_named(parameters: Parameters, model: Any, item: Any) -> set[int]:
    """Return the positions of the variables that an item of a selection means; may be none."""
    where = {id(v): position for position, v in enumerate(parameters.variables)}
    pairs = matches(
        layer_named(model, item) or item, list(parameters.variables), list(parameters.names)
    )
    return {where[id(tf_variable(v))] for v, _ in pairs if id(tf_variable(v)) in where}


def _owners(parameters: Parameters, model: Any) -> Iterator[tuple[str, list[tf.Variable]]]:
    """Yield unique names of layers and what is theirs, in the model's order."""
    if keras_module(model) is None:
        found = _by_path(parameters)
    else:
        found = list(_keras_layers(model))
        inside = {id(v) for *_, variables in found for v in variables}
        pairs = zip(parameters.names, parameters.variables, strict=True)
        # A variable from outside the model stands alone, by its own name.
        found += [(name, "", [v]) for name, v in pairs if id(v) not in inside]
    taken: set[str] = set()
    names = [name for name, *_ in found]
    for name, prefix, variables in found:
        unique = f"{prefix}/{name}" if names.count(name) > 1 and prefix else name
        count = 1
        while unique in taken:
            count += 1
            unique = f"{name}_{count}"
        taken.add(unique)
        yield unique, variables


def _by_path(parameters: Parameters) -> list[tuple[str, str, list[tf.Variable]]]:
    """Join variables under one path; those with no path stay alone, even two of one name."""
    groups: dict[Any, tuple[str, str, list[tf.Variable]]] = {}
    pairs = zip(parameters.names, parameters.variables, strict=True)
    for position, (name, variable) in enumerate(pairs):
        path = name.rpartition("/")[0]
        groups.setdefault(path or position, (path or name, "", []))[2].append(variable)
    return list(groups.values())


def _keras_layers(model: Any, path: str = "") -> Iterator[tuple[str, str, list[tf.Variable]]]:
    """Yield name, path of the model around it, and variables of each layer, nested models last."""
    for layer in getattr(model, "layers", ()):
        if _is_model(layer):
            yield from _keras_layers(layer, f"{path}/{layer.name}".lstrip("/"))
        else:
            yield layer.name, path, [tf_variable(v) for v in layer.variables]
    # Weights of the model's own; those of its layers are theirs already.
    yield model.name, path, [tf_variable(v) for v in model.variables]


def _is_model(layer: Any) -> bool:
    module = keras_module(layer)
    return module is not None and isinstance(layer, module.Model)
