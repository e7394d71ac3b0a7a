"""Weights of the classes, as Keras's `fit` takes them, turned into weights of the examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from spectral_density.engines.keras_shared import class_weights
from spectral_density.engines.keras_shared.class_weights import (
    NO_KERAS_LOSS,
    NOT_ONE_CLASS,
    NOT_ONE_OUTPUT,
)
from spectral_density.engines.keras_shared.objective import unpack
from spectral_density.engines.tensorflow.batches import one_pass
from spectral_density.engines.tensorflow.keras_objective import KerasObjective
from spectral_density.engines.tensorflow.objectives import Objective


def check_class_weight(
    class_weight: Mapping[int, float] | None, objective: Objective
) -> dict[int, float] | None:
    """Return the weights as a dict, None for none.

    Raises:
        TypeError: if they are no mapping from classes, integers, to numbers.
        ValueError: if a weight is negative or not finite, or the loss is no Keras loss.
    """
    if class_weight is not None and not isinstance(objective, KerasObjective):
        raise ValueError(NO_KERAS_LOSS)
    return class_weights.check_class_weight(class_weight)


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
        raise ValueError(NOT_ONE_OUTPUT)
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
        raise ValueError(NOT_ONE_CLASS.format(shape))
    labels = tf.cast(tf.round(y) if y.dtype.is_floating else y, tf.int64)
    known = tf.constant(list(class_weight), tf.int64)
    weights = tf.constant(list(class_weight.values()), keras.config.floatx())
    at = tf.minimum(tf.searchsorted(known, labels), len(class_weight) - 1)
    found = tf.equal(tf.gather(known, at), labels)
    return tf.where(found, tf.gather(weights, at), tf.ones([], weights.dtype))
