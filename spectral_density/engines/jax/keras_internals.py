"""Private names of Keras that its models on JAX are read through, one a function."""

from __future__ import annotations

from typing import Any

from keras.src.backend import get_keras_mask, set_keras_mask


def mask_of(array: Any) -> Any | None:
    """Return the mask that a Keras layer or loss left at an array, None for none."""
    return get_keras_mask(array)


def set_mask(array: Any, mask: Any) -> None:
    """Give an array a mask, where Keras's losses look for it."""
    set_keras_mask(array, mask)
