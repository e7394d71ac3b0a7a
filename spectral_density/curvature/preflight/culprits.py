"""The layers of a model that make its products differ: those that draw numbers or write."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import tensorflow as tf

from spectral_density.curvature.frameworks import keras_module
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.curvature.preflight.halves import plain

_RANDOM_OPS = (
    *("Random", "Multinomial", "TruncatedNormal", "ParameterizedTruncatedNormal"),
    *("StatelessRandom", "StatelessMultinomial", "StatelessTruncatedNormal"),
    *("StatelessShuffle", "StatelessParameterizedTruncatedNormal"),
    *("StatefulRandom", "StatefulStandardNormal", "StatefulTruncatedNormal", "StatefulUniform"),
)
_WRITING_OPS = ("Assign", "ResourceScatter")


def culprits(operator: CurvatureOperator, entry: Any) -> tuple[list[str], list[str]]:
    """Return the layers (or operations) of the forward pass that draw numbers, and that write.

    The graph knows what is switched on: dropout in inference draws nothing.
    """
    batch = plain(operator, entry)
    weight = tf.constant(1.0, tf.float64)
    definition = operator._sums_fn.get_concrete_function(batch, weight).graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    random = [node for node in nodes if node.op.startswith(_RANDOM_OPS)]
    random = [node for node in random if "GetKeyCounter" not in node.op and "GetAlg" not in node.op]
    writing = [node for node in nodes if node.op.startswith(_WRITING_OPS)]
    layers = {layer.name: layer for layer in layers_of(operator) if getattr(layer, "name", None)}
    drawing = _named(random, layers)
    return drawing, [name for name in _named(writing, layers) if name not in drawing]


def layers_of(operator: CurvatureOperator) -> list[Any]:
    """Return the layers of the model, or its submodules; none where there is no model."""
    model = operator.objective.model
    if keras_module(model) is not None:
        return list(model._flatten_layers())
    return [model, *getattr(model, "submodules", ())] if model is not None else []


def batch_norms(model: Any) -> list[str]:
    """Return the batch normalizations of a Keras model, by kind and name."""
    if keras_module(model) is None:
        return []
    return [
        f"{type(layer).__name__} {layer.name!r}"
        for layer in model._flatten_layers()
        if "BatchNorm" in type(layer).__name__
    ]


def _named(nodes: list[Any], layers: dict[str, Any]) -> list[str]:
    """Return the innermost layers in whose scopes nodes lie, or else the operations."""
    found: Counter[str] = Counter()
    for node in nodes:
        inside = [
            layer for scope in node.name.split("/")[:-1] if (layer := _of_scope(scope, layers))
        ]
        if inside:
            found[f"{type(inside[-1]).__name__} {inside[-1].name!r}"] += 1
        else:
            found[f"the operation {node.op} ({node.name})"] += 1
    # Operations without a layer say no more where layers are known (copies in loops, seeds).
    named = [name for name in found if not name.startswith("the operation")]
    return named or list(found)[:3]


def _of_scope(scope: str, layers: dict[str, Any]) -> Any:
    """Return the layer that a name scope belongs to, or None.

    Keras 3 enters a scope once for itself and once for the layer, so that the second ends in _1,
    further calls in _2 and so on.
    """
    stem = re.sub(r"_\d+$", "", scope)
    return layers.get(stem if stem != scope and stem in layers else scope)
