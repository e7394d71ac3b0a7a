"""Vectors on a device of TensorFlow, float64 or float32, with inner products in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density.linalg.memory import free_memory
from spectral_density.linalg.vectors import Rows, Vectors

# Entries of float32 vectors that are copied to float64, or multiplied, together.
_PIECE = 2**20


class TensorFlowVectors(Vectors):
    """Vectors on a device of TensorFlow.

    TensorFlow has float64 on CPUs and GPUs: inner products of float32 vectors are summed in it.
    """

    def __init__(self, size: int, *, dtype: Any = "float64", device: str | None = None) -> None:
        """Describe vectors.

        Args:
            size: their length.
            dtype: "float64" or "float32".
            device: name of the device; None for the first GPU, or the CPU where there is none.

        Raises:
            ValueError: if the dtype is another.
        """
        self.size = size
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(f"Vectors are float32 or float64, got {self.dtype}.")
        if device is None:
            device = "/GPU:0" if tf.config.list_logical_devices("GPU") else "/CPU:0"
        self.device = device
        self._on_cpu = "CPU" in device.upper()
        self.place = f"{'cpu' if self._on_cpu else 'gpu'} (TensorFlow)"

    def to_engine(self, array: np.ndarray) -> tf.Tensor:
        """Return an array of the host as a tensor."""
        with tf.device(self.device):
            return tf.identity(tf.constant(np.asarray(array, self.dtype)))

    def to_host(self, array: tf.Tensor) -> np.ndarray:
        """Return a tensor as an array of NumPy."""
        return array.numpy()

    def stack(self, vectors: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return vectors as rows."""
        with tf.device(self.device):
            return tf.stack(vectors)

    def unstack(self, rows: tf.Tensor) -> list[tf.Tensor]:
        """Return the rows."""
        with tf.device(self.device):
            return tf.unstack(rows)

    def inner(self, left: tf.Tensor, right: tf.Tensor) -> float:
        """Return left'right, summed in float64."""
        with tf.device(self.device):
            total = tf.zeros([], tf.float64)
            step = self.size if self.dtype == np.float64 else _PIECE
            for begin in range(0, self.size, step):
                piece = slice(begin, begin + step)
                wide = [tf.cast(side[piece], tf.float64) for side in (left, right)]
                total += tf.tensordot(*wide, 1)
        return float(total.numpy())

    def subtract(self, vector: tf.Tensor, factor: float, other: tf.Tensor) -> tf.Tensor:
        """Return vector - factor * other."""
        with tf.device(self.device):
            return vector - self.scaled(other, factor)

    def scaled(self, vector: tf.Tensor, factor: float) -> tf.Tensor:
        """Return vector * factor."""
        first = self.dtype.type(factor)
        rest = self.dtype.type(factor - float(first))
        with tf.device(self.device):
            return first * vector + rest * vector if rest else first * vector

    def largest(self, rows: tf.Tensor) -> np.ndarray:
        """Return the largest magnitude in each row, NaN where an entry is not finite."""
        with tf.device(self.device):
            largest = tf.reduce_max(tf.abs(rows), axis=1)
            # A maximum may pass over NaN.
            finite = tf.reduce_all(tf.math.is_finite(rows), axis=1)
        return np.where(finite.numpy(), largest.numpy(), np.nan)

    def rows(self, capacity: int, dtype: Any = None) -> TensorFlowRows:
        """Return rows on the device."""
        return TensorFlowRows(self, capacity, np.dtype(dtype or self.dtype))

    def free_bytes(self) -> int | None:
        """Return the free memory of a CPU; TensorFlow does not tell that of a GPU."""
        return free_memory() if self._on_cpu else None


class TensorFlowRows(Rows):
    """Rows in tensors: those of a full block in one, which a product with a vector does not copy.

    A variable would be copied as a whole by each read that follows a write of one row.
    """

    def __init__(self, vectors: TensorFlowVectors, capacity: int, dtype: np.dtype) -> None:
        self.vectors: TensorFlowVectors = vectors
        self.capacity = capacity
        self.dtype = dtype
        self._length = vectors.block_rows(capacity)
        self._blocks: list[tf.Tensor | list[tf.Tensor]] = []

    def read(self, index: int) -> tf.Tensor:
        """Return a row."""
        block, row = divmod(index, self._length)
        with tf.device(self.vectors.device):
            return tf.cast(self._blocks[block][row], self.vectors.dtype)

    def write(self, index: int, vector: tf.Tensor) -> None:
        """Store a row, one of those that are there or the next."""
        number, row = divmod(index, self._length)
        if number == len(self._blocks):
            self._blocks.append([])
        block = self._blocks[number]
        with tf.device(self.vectors.device):
            rows = block if isinstance(block, list) else tf.unstack(block)
            rows[row : row + 1] = [tf.cast(vector, self.dtype)]
        self._blocks[number] = rows

    def project(self, vector: tf.Tensor, count: int) -> np.ndarray:
        """Return the inner products with the first rows."""
        with tf.device(self.vectors.device):
            vector = tf.cast(vector, self.dtype)
            parts = [self._products(block, vector) for block in self._used(count)]
            return tf.concat(parts, 0).numpy()[:count]

    def _products(self, block: tf.Tensor, vector: tf.Tensor) -> tf.Tensor:
        """Return the inner products of a block's rows and a vector, float64."""
        if self.dtype == np.float64:
            return tf.linalg.matvec(block, vector)
        # A product of float32 matrices adds as many rounding errors as a row has entries.
        total = tf.zeros(len(block), tf.float64)
        for begin in range(0, self.vectors.size, _PIECE):
            piece = slice(begin, begin + _PIECE)
            sums = tf.reduce_sum(block[:, piece] * vector[piece], axis=1)
            total += tf.cast(sums, tf.float64)
        return total

    def combine(self, weights: np.ndarray, first: int = 0) -> tf.Tensor:
        """Return a combination of rows."""
        blocks = list(self._used(first + len(weights)))
        padded = np.zeros((len(blocks), self._length), self.dtype)
        padded.ravel()[first : first + len(weights)] = weights
        with tf.device(self.vectors.device):
            total = tf.zeros(self.vectors.size, self.dtype)
            for block, part in zip(blocks, padded, strict=True):
                total += tf.linalg.matvec(block, tf.constant(part), transpose_a=True)
            return tf.cast(total, self.vectors.dtype)

    def _used(self, count: int) -> Iterator[tf.Tensor]:
        """Yield the blocks that the first `count` rows are in, filled up with zeros."""
        for number in range(-(-count // self._length)):
            block = self._blocks[number]
            if isinstance(block, list):
                missing = self._length - len(block)
                rows = tf.stack(block + missing * [tf.zeros_like(block[0])])
                if not missing:
                    self._blocks[number] = rows
                block = rows
            yield block
