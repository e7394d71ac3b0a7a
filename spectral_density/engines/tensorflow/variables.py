"""Variables of TensorFlow and Keras: layout, selection by name, and the layers that own them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from spectral_density.engines.keras_shared.attributes import all_layers
from spectral_density.engines.keras_shared.kinds import keras_module
from spectral_density.engines.layout import (
    NOTHING_CHOSEN,
    Parameters,
    as_list,
    frozen,
    listing,
    named_pairs,
)
from spectral_density.engines.tensorflow.frameworks import (
    tf_variable,
    trainable_variables,
    variable_name,
)


class Variables(Parameters):
    """`tf.Variable`s laid end to end as one vector, in graphs too."""

    def __init__(self, variables: Sequence[Any], names: Sequence[str] | None = None):
        """Lay out `variables` (of TensorFlow or Keras) in the order given.

        Raises:
            ValueError: if there are none, one stands twice, or one is not floating point.
        """
        if not variables:
            raise ValueError(NOTHING_CHOSEN)
        own = tuple(tf_variable(v) for v in variables)
        if len({id(v) for v in own}) < len(own):
            raise ValueError("variables names the same variable twice.")
        names = tuple(names or (variable_name(v) for v in variables))
        for name, variable in zip(names, own, strict=True):
            if not variable.dtype.is_floating:
                raise ValueError(f"variable {name!r} is {variable.dtype.name}, not floating point.")
        shapes = [tuple(v.shape.as_list()) for v in own]
        super().__init__(own, names, shapes, [v.dtype.as_numpy_dtype for v in own])

    def split(self, vector: tf.Tensor) -> list[tf.Tensor]:
        """Cut a tensor of shape (size,) into one tensor for each variable, of its dtype."""
        pieces = tf.split(vector, self.sizes)
        return [
            tf.cast(tf.reshape(piece, shape), variable.dtype)
            for piece, shape, variable in zip(pieces, self.shapes, self.variables, strict=True)
        ]

    def join(self, tensors: Sequence[tf.Tensor | tf.IndexedSlices | None]) -> tf.Tensor:
        """Join gradients into a tensor of shape (size,); None, no dependence, is zero."""
        return self.stack([tensors])[0]

    def stack(self, rows: Sequence[Sequence[tf.Tensor | tf.IndexedSlices | None]]) -> tf.Tensor:
        """Join k lists of gradients, as `join` does, into a tensor of shape (k, size)."""
        dtype = tf.as_dtype(self.dtype)
        pieces = [
            tf.zeros([size], dtype)
            if tensor is None
            else tf.cast(tf.reshape(tf.convert_to_tensor(tensor), [size]), dtype)
            for tensors in rows
            for tensor, size in zip(tensors, self.sizes, strict=True)
        ]
        # One copy of each piece: joining row by row and stacking the rows would make two.
        return tf.reshape(tf.concat(pieces, axis=0), [len(rows), self.size])


def select(model: Any, variables: Any = None) -> Variables:
    """Choose among the trainable variables of a model.

    Args:
        model: Keras model or `tf.Module`.
        variables: None for all; the exact name or path of a layer or variable; `re.compile(...)`,
            searched for in the paths; a variable; a layer; or a list of these.

    Raises:
        ValueError: if a name is unknown or ambiguous (the message lists the names there are),
            or nothing is chosen.
    """
    available = trainable_variables(model)
    names = [variable_name(v) for v in available]
    if variables is None:
        return Variables(available, names)
    chosen: dict[int, tuple[Any, str]] = {}
    for item in as_list(variables):
        item = layer_named(model, item) or item
        for variable, name in matches(item, available, names):
            chosen.setdefault(id(tf_variable(variable)), (variable, name))
    # The model's own order, whatever order they were named in; variables from elsewhere last.
    order = {id(tf_variable(v)): i for i, v in enumerate(available)}
    ranked = sorted(chosen.items(), key=lambda entry: order.get(entry[0], len(order)))
    pairs = [pair for _, pair in ranked]
    return Variables([v for v, _ in pairs], [n for _, n in pairs])


def layer_named(model: Any, name: Any) -> Any:
    """Return the one layer of that name in a Keras model, or None.

    A model used as a layer keeps the paths it was built with, so paths do not say who contains it.
    """
    if keras_module(model) is None or not isinstance(name, str):
        return None
    layers = [layer for layer in all_layers(model, include_self=False) if layer.name == name]
    return layers[0] if len(layers) == 1 else None


def matches(item: Any, available: list[Any], names: list[str]) -> list[tuple[Any, str]]:
    """Return the variables that an item of a selection means, each with its name.

    Raises:
        ValueError: if it means none, or a name is unknown or ambiguous.
    """
    pairs = list(zip(available, names, strict=True))
    if isinstance(item, re.Pattern):
        found = [(v, n) for v, n in pairs if item.search(n)]
        if not found:
            raise ValueError(f"no variable matches {item.pattern!r}. {listing(names)}")
        return found
    if isinstance(item, str):
        return named_pairs(item, pairs, names)
    if hasattr(item, "trainable_variables"):
        found = [(v, variable_name(v)) for v in item.trainable_variables]
        if not found:
            raise ValueError(frozen(item.name))
        return found
    return [(item, variable_name(item))]
