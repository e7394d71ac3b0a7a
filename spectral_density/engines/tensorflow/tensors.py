"""Numbers and vectors as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def number(value: float) -> tf.Tensor:
    """Return a float64 scalar."""
    return tf.constant(value, tf.float64)


def integer(value: int) -> tf.Tensor:
    """Return an int64 scalar."""
    return tf.constant(value, tf.int64)


def to_rows(rows: np.ndarray, dtype: Any) -> tf.Tensor:
    """Return vectors, (k, n), as a tensor."""
    return tf.convert_to_tensor(np.ascontiguousarray(rows, dtype=dtype))


def to_array(tensor: tf.Tensor) -> np.ndarray:
    """Return a tensor in float64."""
    return np.asarray(tf.cast(tensor, tf.float64))


def on_device(rows: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Return copies of vectors on the device that is current."""
    return [tf.identity(part) for part in rows]
