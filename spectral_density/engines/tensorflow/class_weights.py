"""Weights of the classes, as Keras's `fit` takes them, turned into weights of the examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spectral_density.engines.tensorflow.batches import one_pass
from spectral_density.engines.tensorflow.keras_objective import KerasObjective, unpack
from spectral_density.engines.tensorflow.objectives import Objective


def check_class_weight(
    class_weight: Mapping[int, float] | None, objective: Objective
) -> dict[int, float] | None:
    """Return the weights as a dict, None for none.

    Raises:
        TypeError: if they are no mapping from classes, integers, to numbers.
        ValueError: if a weight is negative or not finite, or the loss is no Keras loss.
    """
    if class_weight is None:
        return None
    if not isinstance(class_weight, Mapping):
        raise TypeError(
            "class_weight must be a dict from classes to weights, such as {0: 1.0, 1: 10.0}, got "
            f"{type(class_weight).__name__}."
        )
    if not isinstance(objective, KerasObjective):
        raise ValueError(
            "class_weight= needs a Keras loss: a function computes its loss itself, and weighs "
            "the examples there."
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


def with_class_weights(dataset: Any, class_weight: Mapping[int, float] | None) -> Any:
    """Return a dataset whose batches are (x, y, w), with the weight of its class in each w.

    As in Keras: labels are integers or one-hot, and a class without a weight has 1. Weights that
    the dataset gives are multiplied with it.

    Raises:
        ValueError: if the dataset is distributed, or has labels of several outputs.
    """
    if class_weight is None:
        return dataset
    if isinstance(dataset, tf.distribute.DistributedDataset):
        raise ValueError(
            "class_weight= takes no distributed dataset: pass the plain one, or its batches as "
            "(x, y, sample_weight)."
        )
    if isinstance(dataset, tf.data.Dataset):
        return dataset.map(lambda *batch: _weighted(batch, class_weight))
    return _WeightedBatches(dataset, class_weight)


class _WeightedBatches:
    """The batches of any iterable, weighted anew at each iteration."""

    def __init__(self, dataset: Any, class_weight: Mapping[int, float]):
        self._dataset = dataset
        self._class_weight = class_weight
        next(iter(self), None)  # says at once what is wrong with the dataset

    def __iter__(self) -> Iterator[Any]:
        for batch in one_pass(self._dataset):
            yield _weighted(batch, self._class_weight)


def _weighted(batch: Any, class_weight: Mapping[int, float]) -> tuple[Any, Any, tf.Tensor]:
    x, y, given = unpack(batch)
    if y is None or tf.nest.is_nested(y) or isinstance(y, (tf.RaggedTensor, tf.SparseTensor)):
        raise ValueError(
            "class_weight= is for models with one output, whose labels are one dense tensor. Give "
            "the batches sample weights instead: (x, y, sample_weight)."
        )
    weights = _of_examples(tf.convert_to_tensor(y), class_weight)
    if given is None:
        return x, y, weights
    given = tf.convert_to_tensor(given)
    rank = given.shape.rank or 0
    weights = tf.reshape(weights, [-1, *[1] * (rank - 1)])
    return x, y, given * tf.cast(weights, given.dtype)


def _of_examples(y: tf.Tensor, class_weight: Mapping[int, float]) -> tf.Tensor:
    """Return the weight of each example's class, shape (num_examples,), in Keras's float type."""
    shape = y.shape
    if shape.rank is not None and shape.rank > 1:
        y = tf.squeeze(y, -1) if shape[-1] == 1 else tf.argmax(y, -1)
    if y.shape.rank != 1:
        raise ValueError(
            f"class_weight= needs one class for each example, and the labels have shape {shape}. "
            "Give the batches sample weights instead: (x, y, sample_weight)."
        )
    labels = tf.cast(tf.round(y) if y.dtype.is_floating else y, tf.int64)
    known = tf.constant(list(class_weight), tf.int64)
    weights = tf.constant(list(class_weight.values()), keras.config.floatx())
    at = tf.minimum(tf.searchsorted(known, labels), len(class_weight) - 1)
    found = tf.equal(tf.gather(known, at), labels)
    return tf.where(found, tf.gather(weights, at), tf.ones([], weights.dtype))
