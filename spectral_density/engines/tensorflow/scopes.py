"""The layers that operations of a graph belong to, by their name scopes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from spectral_density.engines.keras_shared.attributes import all_layers
from spectral_density.engines.keras_shared.kinds import keras_module


def layers_of(model: Any) -> list[Any]:
    """Return the layers of a model, or its submodules; none where there is no model."""
    if keras_module(model) is not None:
        return all_layers(model)
    return [model, *getattr(model, "submodules", ())] if model is not None else []


def layer_of(name: str, layers: Iterable[Any]) -> Any | None:
    """Return the innermost layer in whose scope the operation of that name lies, or None."""
    by_name = {layer.name: layer for layer in layers if getattr(layer, "name", None)}
    inside = [layer for scope in name.split("/")[:-1] if (layer := _of_scope(scope, by_name))]
    return inside[-1] if inside else None


def place_of(name: str, layers: Iterable[Any]) -> str:
    """Return where the operation of that name lies: the layer, or else its name scope."""
    layer = layer_of(name, layers)
    if layer is not None:
        return f"layer {type(layer).__name__} {layer.name!r}"
    return f"scope {name.rpartition('/')[0]!r}" if "/" in name else "no layer"


def named(nodes: Iterable[Any], layers: Sequence[Any]) -> list[str]:
    """Return the innermost layers in whose scopes nodes lie, or else the operations.

    Args:
        nodes: `NodeDef`s.
        layers: of the model.
    """
    found: Counter[str] = Counter()
    for node in nodes:
        layer = layer_of(node.name, layers)
        if layer is not None:
            found[f"{type(layer).__name__} {layer.name!r}"] += 1
        else:
            found[f"the operation {node.op} ({node.name})"] += 1
    # Operations without a layer say no more where layers are known (copies in loops, seeds).
    of_layers = [name for name in found if not name.startswith("the operation")]
    return of_layers or list(found)[:3]


def _of_scope(scope: str, layers: dict[str, Any]) -> Any:
    """Return the layer that a name scope belongs to, or None.

    Keras 3 enters a scope once for itself and once for the layer, so that the second ends in _1,
    further calls in _2 and so on.
    """
    stem = re.sub(r"_\d+$", "", scope)
    return layers.get(stem if stem != scope and stem in layers else scope)
