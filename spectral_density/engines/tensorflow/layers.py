"""The layers of a model and the variables that they own."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from spectral_density.engines.keras_shared.kinds import keras_module
from spectral_density.engines.keras_shared.layers import (
    Owner,
    layers_and_variables,
    positions_by_owner,
)
from spectral_density.engines.layout import Parameters
from spectral_density.engines.tensorflow.frameworks import tf_variable
from spectral_density.engines.tensorflow.variables import layer_named, matches


def positions_of_layers(parameters: Parameters, model: Any) -> dict[str, list[int]]:
    """Return the positions of each layer's variables, in the model's order, by unique names.

    A variable that two layers share belongs to the first.
    """
    return positions_by_owner(_owners(parameters, model), parameters.variables)


def positions_named(parameters: Parameters, model: Any, item: Any) -> set[int]:
    """Return the positions of the variables that an item of a selection means; may be none."""
    where = {id(v): position for position, v in enumerate(parameters.variables)}
    pairs = matches(
        layer_named(model, item) or item, list(parameters.variables), list(parameters.names)
    )
    return {where[id(tf_variable(v))] for v, _ in pairs if id(tf_variable(v)) in where}


def _owners(parameters: Parameters, model: Any) -> list[Owner]:
    """Return the layers with what is theirs, in the model's order."""
    if keras_module(model) is None:
        return _by_path(parameters)
    found = layers_and_variables(model, tf_variable)
    inside = {id(v) for *_, variables in found for v in variables}
    pairs = zip(parameters.names, parameters.variables, strict=True)
    # A variable from outside the model stands alone, by its own name.
    return [*found, *((name, "", [v]) for name, v in pairs if id(v) not in inside)]


def _by_path(parameters: Parameters) -> list[tuple[str, str, list[tf.Variable]]]:
    """Join variables under one path; those with no path stay alone, even two of one name."""
    groups: dict[Any, tuple[str, str, list[tf.Variable]]] = {}
    pairs = zip(parameters.names, parameters.variables, strict=True)
    for position, (name, variable) in enumerate(pairs):
        path = name.rpartition("/")[0]
        groups.setdefault(path or position, (path or name, "", []))[2].append(variable)
    return list(groups.values())
