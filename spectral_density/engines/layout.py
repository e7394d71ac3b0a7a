"""The flat vector of parameters and the arrays it is made of: names, shapes, slices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np


class Parameters:
    """Variables laid end to end as one vector of length `size`.

    Attributes:
        variables: the framework's variables, in order.
        names: their paths, such as `dense_1/kernel`.
        shapes: their shapes, tuples of int.
        slices: where each lies in the flat vector.
        sizes: number of entries of each.
        size: the number of parameters.
        dtype: NumPy dtype that holds every variable: the widest among them.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        names: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[Any],
    ):
        """Lay out variables in the order given."""
        self.variables = tuple(variables)
        self.names = tuple(names)
        self.shapes = tuple(shapes)
        self.sizes = [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes]
        ends = np.cumsum([0, *self.sizes]).tolist()
        self.slices = tuple(slice(a, b) for a, b in pairwise(ends))
        self.size: int = ends[-1]
        self.dtype = max(map(np.dtype, dtypes), key=lambda dtype: dtype.itemsize)

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


def last_axis(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axis that numbers the filters of a kernel of this shape: the last of several.

    So do Keras and Flax lay out the kernels of dense layers and convolutions.
    """
    return (len(shape) - 1,) if len(shape) > 1 else ()


def indices_of(parameters: Parameters, positions: Iterable[int]) -> np.ndarray:
    """Return the indices, in the flat vector, of the variables at these positions."""
    slices = [parameters.slices[position] for position in positions]
    return np.concatenate([np.arange(w.start, w.stop, dtype=np.intp) for w in slices])


def place_of(parameters: Parameters, positions: Sequence[int]) -> slice | np.ndarray:
    """Return where the variables at these positions are: as a slice if they follow each other."""
    first, last = positions[0], positions[-1]
    if list(positions) == list(range(first, last + 1)):
        return slice(parameters.slices[first].start, parameters.slices[last].stop)
    return indices_of(parameters, positions)


NOTHING_CHOSEN = (
    "variables is empty: name at least one layer or variable, or pass None for all that are "
    "trainable. What is frozen has no trainable_weights: set trainable = True on the layer or "
    "model first, and read them then."
)


def frozen(name: str) -> str:
    """Return the message for a layer without anything to take derivatives in."""
    return (
        f"layer {name!r} has no trainable variables: it has no weights, or is frozen. Set its "
        "trainable = True before the operator is made, or choose another."
    )


def as_list(variables: Any) -> list[Any]:
    """Return a selection as a list of items: of one, unless it is a list or tuple."""
    if isinstance(variables, (str, re.Pattern)) or not isinstance(variables, Iterable):
        return [variables]
    if isinstance(variables, (list, tuple)):
        return list(variables)
    # A tf.Variable of rank > 0 can be iterated over, and is one item all the same.
    return [variables]


def named_pairs(item: str, pairs: list[tuple[Any, str]], names: list[str]) -> list[tuple[Any, str]]:
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
        raise ValueError(f"no layer or trainable variable is named {item!r}. {listing(names)}")
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


def listing(names: list[str]) -> str:
    """Return the names there are, as the end of a message."""
    return "There are: " + ", ".join(names) + "."
