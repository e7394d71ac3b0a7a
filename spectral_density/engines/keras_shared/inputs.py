"""Inputs that a Keras model does not take, explained: unbatched datasets, and other shapes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from spectral_density.engines.keras_shared.kinds import keras_module

BATCHED = (
    "is the dataset batched? Add .batch(n) to a tf.data pipeline; a list has batches (x, y) of "
    "several examples"
)


@contextmanager
def inputs_explained(model: Any, batch: Any, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Explain an error of a framework where the model cannot take the inputs of a batch.

    Args:
        model: that is called.
        batch: whose first part is its inputs, or which is.
        errors: what the framework raises.

    Raises:
        ValueError: from such an error, where shapes say what is wrong; other errors stay.
    """
    try:
        yield
    except errors as error:
        x = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
        sentence = _mismatch(model, x)
        if sentence is None:
            raise
        raise ValueError(sentence) from error


def refuse_single_example(x: Any, y: Any) -> None:
    """Raise where labels without an axis show that a batch is one example.

    Raises:
        ValueError: which asks whether the dataset is batched.
    """
    labels = [part for part in keras.tree.flatten(y) if part is not None]
    inputs = [part for part in keras.tree.flatten(x) if part is not None]
    if labels and all(_rank(part) == 0 for part in labels) and any(map(_rank, inputs)):
        raise ValueError(
            f"the labels of a batch are a single number, for inputs of shape {_shapes(inputs)}: "
            f"{BATCHED}."
        )


def _mismatch(model: Any, x: Any) -> str | None:
    """Return how inputs differ from those that a model was built for, None where they do not."""
    if keras_module(model) is None:
        return None
    try:
        expected = list(model.inputs)
    except (AttributeError, TypeError, ValueError):  # a subclass of Model
        return None
    given = keras.tree.flatten(x)
    if len(given) != len(expected) or any(_rank(part) is None for part in given):
        return None
    pairs = [
        (tuple(part.shape), tuple(ref.shape)) for part, ref in zip(given, expected, strict=True)
    ]
    if all(_takes(shape, ref) for shape, ref in pairs):
        return None
    takes = ", ".join(map(str, (ref for _, ref in pairs)))
    found = ", ".join(map(str, (shape for shape, _ in pairs)))
    if all(_is_of(shape, ref[1:]) for shape, ref in pairs):
        return f"the model takes inputs of shape {takes}, and a batch has {found}: {BATCHED}."
    return (
        f"the model takes inputs of shape {takes}, and the first part of a batch has {found}: a "
        "batch is (x, y), with one row for each example."
    )


def _takes(shape: tuple[Any, ...], ref: tuple[Any, ...]) -> bool:
    """Tell whether a model takes a shape, which may leave out a last axis of size 1."""
    return _is_of(shape, ref) or (ref[-1:] == (1,) and _is_of((*shape, 1), ref))


def _is_of(shape: tuple[Any, ...], ref: tuple[Any, ...]) -> bool:
    return len(shape) == len(ref) and all(
        a is None or b is None or a == b for a, b in zip(shape, ref, strict=True)
    )


def _rank(part: Any) -> int | None:
    try:
        return len(part.shape)
    except (AttributeError, TypeError, ValueError):
        return None


def _shapes(parts: list[Any]) -> str:
    return ", ".join(str(tuple(part.shape)) for part in parts)
