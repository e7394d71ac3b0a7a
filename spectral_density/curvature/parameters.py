"""The flat vector of parameters and the tensors it is made of: names, shapes, selection."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density.curvature.frameworks import (
    keras_module,
    tf_variable,
    trainable_variables,
    variable_name,
)


class Parameters:
    """Variables laid end to end as one vector of length `size`.

    Attributes:
        variables: the `tf.Variable`s, in order.
        names: their paths, such as `dense_1/kernel`.
        shapes: their shapes, tuples of int.
        slices: where each lies in the flat vector.
        size: the number of parameters.
        dtype: NumPy dtype that holds every variable: the widest among them.
    """

    def __init__(self, variables: Sequence[Any], names: Sequence[str] | None = None):
        """Lay out `variables` (of TensorFlow or Keras) in the order given.

        Raises:
            ValueError: if there are none, one stands twice, or one is not floating point.
        """
        if not variables:
            raise ValueError(
                "variables is empty: name at least one, or pass None for all trainable variables."
            )
        self.variables = tuple(tf_variable(v) for v in variables)
        if len({id(v) for v in self.variables}) < len(self.variables):
            raise ValueError("variables names the same variable twice.")
        self.names = tuple(names or (variable_name(v) for v in variables))
        for name, variable in zip(self.names, self.variables, strict=True):
            if not variable.dtype.is_floating:
                raise ValueError(f"variable {name!r} is {variable.dtype.name}, not floating point.")
        self.shapes = tuple(tuple(v.shape.as_list()) for v in self.variables)
        self._sizes = [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes]
        ends = np.cumsum([0, *self._sizes]).tolist()
        self.slices = tuple(slice(a, b) for a, b in pairwise(ends))
        self.size: int = ends[-1]
        dtypes = [v.dtype.as_numpy_dtype for v in self.variables]
        widest = max(dtypes, key=lambda dtype: np.dtype(dtype).itemsize)
        self.dtype = np.dtype(widest)

    def __repr__(self) -> str:
        """List the variables with their shapes."""
        rows = [f"  {n}: {s}" for n, s in zip(self.names, self.shapes, strict=True)]
        return "\n".join([f"Parameters({self.size:,} in {len(rows)} variables)", *rows])

    def flatten(self, tensors: Sequence[Any]) -> np.ndarray:
        """Join one array for each variable into a float64 vector, shape (size,).

        Raises:
            ValueError: if their number or a shape is not the variables'.
        """
        if len(tensors) != len(self.shapes):
            raise ValueError(f"expected {len(self.shapes)} tensors, got {len(tensors)}.")
        flat = np.empty(self.size)
        for name, shape, where, tensor in zip(
            self.names, self.shapes, self.slices, tensors, strict=True
        ):
            array = np.asarray(tensor)
            if array.shape != shape:
                raise ValueError(
                    f"{name!r} has shape {shape}, got an array of shape {array.shape}."
                )
            flat[where] = array.reshape(-1)
        return flat

    def unflatten(self, vector: np.ndarray) -> list[np.ndarray]:
        """Cut a vector of shape (size,) into views, one for each variable, of its shape.

        Raises:
            ValueError: if the vector has another shape.
        """
        vector = np.asarray(vector)
        if vector.shape != (self.size,):
            raise ValueError(f"expected a vector of shape ({self.size},), got {vector.shape}.")
        return [vector[w].reshape(s) for w, s in zip(self.slices, self.shapes, strict=True)]

    def split(self, vector: tf.Tensor) -> list[tf.Tensor]:
        """Cut a tensor of shape (size,) into one tensor for each variable, of its dtype."""
        pieces = tf.split(vector, self._sizes)
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
            for tensor, size in zip(tensors, self._sizes, strict=True)
        ]
        # One copy of each piece: joining row by row and stacking the rows would make two.
        return tf.reshape(tf.concat(pieces, axis=0), [len(rows), self.size])


def select(model: Any, variables: Any = None) -> Parameters:
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
        return Parameters(available, names)
    chosen: dict[int, tuple[Any, str]] = {}
    for item in as_list(variables):
        item = layer_named(model, item) or item
        for variable, name in matches(item, available, names):
            chosen.setdefault(id(tf_variable(variable)), (variable, name))
    # The model's own order, whatever order they were named in; variables from elsewhere last.
    order = {id(tf_variable(v)): i for i, v in enumerate(available)}
    ranked = sorted(chosen.items(), key=lambda entry: order.get(entry[0], len(order)))
    pairs = [pair for _, pair in ranked]
    return Parameters([v for v, _ in pairs], [n for _, n in pairs])


def as_list(variables: Any) -> list[Any]:
    """Return a selection as a list of items: of one, unless it is a list or tuple."""
    if isinstance(variables, (str, re.Pattern)) or not isinstance(variables, Iterable):
        return [variables]
    if isinstance(variables, (list, tuple)):
        return list(variables)
    # A tf.Variable of rank > 0 can be iterated over, and is one item all the same.
    return [variables]


def layer_named(model: Any, name: Any) -> Any:
    """Return the one layer of that name in a Keras model, or None.

    A model used as a layer keeps the paths it was built with, so paths do not say who contains it.
    """
    if keras_module(model) is None or not isinstance(name, str):
        return None
    layers = [layer for layer in model._flatten_layers(include_self=False) if layer.name == name]
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
            raise ValueError(f"no variable matches {item.pattern!r}. {_listing(names)}")
        return found
    if isinstance(item, str):
        return _named(item, pairs, names)
    if hasattr(item, "trainable_variables"):
        found = [(v, variable_name(v)) for v in item.trainable_variables]
        if not found:
            raise ValueError(f"layer {item.name!r} has no trainable variables.")
        return found
    return [(item, variable_name(item))]


def _named(item: str, pairs: list[tuple[Any, str]], names: list[str]) -> list[tuple[Any, str]]:
    """Resolve an exact name: of a layer (a run of path components), or of a variable."""
    wanted = item.split("/")
    groups: dict[tuple[str, ...], list[tuple[Any, str]]] = {}
    for variable, name in pairs:
        path = name.split("/")
        for start in range(len(path) - len(wanted) + 1):
            if path[start : start + len(wanted)] == wanted:
                groups.setdefault(tuple(path[: start + len(wanted)]), []).append((variable, name))
                break
    if not groups:
        raise ValueError(f"no layer or trainable variable is named {item!r}. {_listing(names)}")
    exact = tuple(wanted)
    if exact in groups:
        return groups[exact]
    if len(groups) > 1:
        paths = ", ".join("/".join(path) for path in groups)
        raise ValueError(
            f"{item!r} names several layers or variables: {paths}. Give the whole path, "
            "a list of paths, or re.compile(...) for all of them."
        )
    return next(iter(groups.values()))


def _listing(names: list[str]) -> str:
    return "There are: " + ", ".join(names) + "."
