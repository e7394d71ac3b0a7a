"""Weights of the classes, as Keras's `fit` takes them, checked and turned into sample weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any

import keras
import numpy as np

from spectral_density.engines.keras_shared.objective import unpack

NO_KERAS_LOSS = (
    "class_weight= needs a Keras loss: a function computes its loss itself, and weighs the "
    "examples there."
)
NOT_ONE_OUTPUT = (
    "class_weight= is for models with one output, whose labels are one dense tensor. Give the "
    "batches sample weights instead: (x, y, sample_weight)."
)
NOT_ONE_CLASS = (
    "class_weight= needs one class for each example, and the labels have shape {}. "
    "Give the batches sample weights instead: (x, y, sample_weight)."
)


def check_class_weight(class_weight: Mapping[int, float] | None) -> dict[int, float] | None:
    """Return the weights as a dict, None for none.

    Raises:
        TypeError: if they are no mapping from classes, integers, to numbers.
        ValueError: if a weight is negative or not finite.
    """
    if class_weight is None:
        return None
    if not isinstance(class_weight, Mapping):
        raise TypeError(
            "class_weight must be a dict from classes to weights, such as {0: 1.0, 1: 10.0}, got "
            f"{type(class_weight).__name__}."
        )
    checked: dict[int, float] = {}
    for label, weight in class_weight.items():
        if not isinstance(label, (Real, np.number)) or not float(label).is_integer():
            raise TypeError(f"the classes of class_weight must be integers, got {label!r}.")
        if np.ndim(weight) or np.asarray(weight).dtype.kind not in "biuf":
            raise TypeError(f"class_weight of class {label} must be a number, got {weight!r}.")
        if not np.isfinite(weight) or weight < 0:
            raise ValueError(f"class_weight of class {label} must be finite and >= 0: {weight}.")
        checked[int(label)] = float(weight)
    return dict(sorted(checked.items())) or None


class WeightedBatches:
    """The batches of a dataset in NumPy, weighted anew at each iteration.

    Labels are integers or one-hot, and a class without a weight has 1. Weights that the dataset
    gives are multiplied with it.
    """

    def __init__(self, opened: Callable[[], Iterator[Any]], class_weight: Mapping[int, float]):
        """Take a function that starts a pass over a dataset, and checked weights."""
        self._opened = opened
        self._class_weight = class_weight
        next(iter(self), None)  # says at once what is wrong with the dataset

    def __iter__(self) -> Iterator[Any]:
        """Yield (x, y, sample_weight)."""
        for batch in self._opened():
            yield _weighted(batch, self._class_weight)


def _weighted(batch: Any, class_weight: Mapping[int, float]) -> tuple[Any, Any, np.ndarray]:
    x, y, given = unpack(batch)
    if y is None or keras.tree.is_nested(y):
        raise ValueError(NOT_ONE_OUTPUT)
    labels = np.asarray(y)
    shape = labels.shape
    if labels.ndim > 1:
        labels = labels.squeeze(-1) if shape[-1] == 1 else labels.argmax(-1)
    if labels.ndim != 1:
        raise ValueError(NOT_ONE_CLASS.format(shape))
    classes, places = np.unique(np.rint(labels).astype(np.int64), return_inverse=True)
    of_classes = np.array([class_weight.get(int(label), 1.0) for label in classes])
    weights = of_classes[places].astype(keras.config.floatx())
    if given is None:
        return x, y, weights
    given = np.asarray(given)
    return x, y, given * weights.reshape(-1, *[1] * (given.ndim - 1)).astype(given.dtype)
