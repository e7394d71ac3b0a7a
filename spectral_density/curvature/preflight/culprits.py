"""The layers of a model that make its products differ: those that draw numbers or write."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from spectral_density.curvature.frameworks import keras_module
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.curvature.preflight.halves import plain
from spectral_density.curvature.scopes import layers_of, named

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
    definition = forward_pass(operator, entry).graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    random = [node for node in nodes if node.op.startswith(_RANDOM_OPS)]
    random = [node for node in random if "GetKeyCounter" not in node.op and "GetAlg" not in node.op]
    writing = [node for node in nodes if node.op.startswith(_WRITING_OPS)]
    layers = layers_of(operator.objective.model)
    drawing = named(random, layers)
    return drawing, [name for name in named(writing, layers) if name not in drawing]


def forward_pass(operator: CurvatureOperator, entry: Any) -> Any:
    """Return the concrete function of the loss of a batch: its sums and their denominators."""
    weight = tf.constant(1.0, tf.float64)
    return operator._sums_fn.get_concrete_function(plain(operator, entry), weight)


def batch_norms(model: Any) -> list[str]:
    """Return the batch normalizations of a Keras model, by kind and name."""
    if keras_module(model) is None:
        return []
    return [
        f"{type(layer).__name__} {layer.name!r}"
        for layer in model._flatten_layers()
        if "BatchNorm" in type(layer).__name__
    ]
