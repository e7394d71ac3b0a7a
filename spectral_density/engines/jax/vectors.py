"""Vectors on a device of JAX."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec

from spectral_density.engines.jax.compensated import inner_product, sums_of_products
from spectral_density.linalg.memory import free_memory
from spectral_density.linalg.vectors import Rows, Vectors

# Full precision: the default of a GPU has ten bits, that of a TPU seven.
_EXACT = lax.Precision.HIGHEST


class JaxVectors(Vectors):
    """Vectors on a device of JAX: float64 where `jax_enable_x64` is set, and else float32.

    Nothing is moved without `jax.device_put` and `jax.device_get`, so that all runs under
    `jax.transfer_guard("disallow")`.
    """

    def __init__(self, size: int, *, dtype: Any = None, sharding: Any = None) -> None:
        """Describe vectors.

        Args:
            size: their length.
            dtype: float32 or float64; None for float64 where `jax_enable_x64` is set.
            sharding: a device, or a `NamedSharding` of one axis; None for JAX's default device.

        Raises:
            ValueError: if JAX does not have the dtype as it is set.
        """
        has_float64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
        self.size = size
        self.dtype = np.dtype(
            (np.float64 if has_float64 else np.float32) if dtype is None else dtype
        )
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(f"Vectors are float32 or float64, got {self.dtype}.")
        if self.dtype == np.float64 and not has_float64:
            raise ValueError("float64 vectors need jax_enable_x64; leave the dtype out.")
        self.sharding = sharding
        # Small arrays are on all devices that have a part of the vectors.
        spread = isinstance(sharding, NamedSharding)
        self._everywhere = NamedSharding(sharding.mesh, PartitionSpec()) if spread else sharding
        some = jax.device_put(np.zeros(size, self.dtype), sharding)
        self._device = min(some.devices(), key=lambda device: device.id)
        self.place = f"{self._device.platform} (JAX)"

    def to_engine(self, array: np.ndarray) -> Array:
        """Return an array of the host as one of the device."""
        return jax.device_put(np.asarray(array, self.dtype), self.sharding)

    def to_host(self, array: Array) -> np.ndarray:
        """Return an array of the device as one of NumPy."""
        return np.asarray(jax.device_get(array))

    def stack(self, vectors: Sequence[Array]) -> Array:
        """Return vectors as rows."""
        return _stack(*vectors)

    def unstack(self, rows: Array) -> list[Array]:
        """Return the rows."""
        return list(_unstack(rows))

    def inner(self, left: Array, right: Array) -> float:
        """Return left'right, by pairs of float32 numbers where there is no float64."""
        if self.dtype == np.float64:
            return float(jax.device_get(_inner64(left, right)))
        high, low, exponent = jax.device_get(inner_product(left, right))
        return float(np.ldexp(np.float64(high) + np.float64(low), int(exponent)))

    def subtract(self, vector: Array, factor: float, other: Array) -> Array:
        """Return vector - factor * other."""
        return _subtract(vector, other, *self._parts(factor))

    def scaled(self, vector: Array, factor: float) -> Array:
        """Return vector * factor."""
        return _scaled(vector, *self._parts(factor))

    def largest(self, rows: Array) -> np.ndarray:
        """Return the largest magnitude in each row."""
        return np.asarray(jax.device_get(_largest(rows)))

    def rows(self, capacity: int, dtype: Any = None) -> JaxRows:
        """Return rows on the device."""
        return JaxRows(self, capacity, np.dtype(dtype or self.dtype))

    def free_bytes(self) -> int | None:
        """Return the free memory of the device."""
        statistics = self._device.memory_stats()
        if statistics is None:
            return free_memory() if self._device.platform == "cpu" else None
        return int(statistics["bytes_limit"] - statistics["bytes_in_use"])

    def small(self, values: Any) -> Any:
        """Return scalars or short arrays of NumPy on the device."""
        return jax.device_put(values, self._everywhere)

    def _parts(self, factor: float) -> list[Array]:
        """Return a number as two of the dtype of the vectors, the second what the first rounds."""
        first = self.dtype.type(factor)
        return self.small([first, self.dtype.type(factor - float(first))])


class JaxRows(Rows):
    """Rows in arrays of one shape, allocated when the first row of each is written.

    Those with rows in use are multiplied in one compiled function: one a number of such arrays.
    """

    def __init__(self, vectors: JaxVectors, capacity: int, dtype: np.dtype) -> None:
        self.vectors: JaxVectors = vectors
        self.capacity = capacity
        self.dtype = dtype
        self._length = vectors.block_rows(capacity)
        self._blocks: list[Array] = []

    def read(self, index: int) -> Array:
        """Return a row."""
        block, row = divmod(index, self._length)
        number = self.vectors.small(np.int32(row))
        return _read(self._blocks[block], number, dtype=self.vectors.dtype)

    def write(self, index: int, vector: Array) -> None:
        """Store a row, one of those that are there or the next."""
        block, row = divmod(index, self._length)
        if block == len(self._blocks):
            self._blocks.append(_first_row(vector, length=self._length, dtype=self.dtype))
        number = self.vectors.small(np.int32(row))
        self._blocks[block] = _write(self._blocks[block], number, vector)

    def project(self, vector: Array, count: int) -> np.ndarray:
        """Return the inner products with the first rows."""
        high, low = jax.device_get(_project(self._used(count), vector))
        return (high.astype(np.float64) + low)[:count]

    def combine(self, weights: np.ndarray, first: int = 0) -> Array:
        """Return a combination of rows."""
        blocks = self._used(first + len(weights))
        padded = np.zeros(len(blocks) * self._length, self.dtype)
        padded[first : first + len(weights)] = weights
        return _combine(blocks, self.vectors.small(padded), dtype=self.vectors.dtype)

    def _used(self, count: int) -> tuple[Array, ...]:
        """Return the arrays of the first `count` rows."""
        return tuple(self._blocks[: -(-count // self._length)])


# Vectors


@jax.jit
def _inner64(left: Array, right: Array) -> Array:
    return jnp.dot(left, right, precision=_EXACT)


@jax.jit
def _stack(*vectors: Array) -> Array:
    return jnp.stack(vectors)


@jax.jit
def _unstack(rows: Array) -> list[Array]:
    return list(rows)


@jax.jit
def _subtract(vector: Array, other: Array, factor: Array, rest: Array) -> Array:
    return vector - (factor * other + rest * other)


@jax.jit
def _scaled(vector: Array, factor: Array, rest: Array) -> Array:
    return factor * vector + rest * vector


@jax.jit
def _largest(rows: Array) -> Array:
    return jnp.abs(rows).max(axis=1)


# Rows


@partial(jax.jit, static_argnames=("length", "dtype"))
def _first_row(vector: Array, *, length: int, dtype: np.dtype) -> Array:
    """Return rows that are zero but for the first, where the vector is."""
    return jnp.pad(vector.astype(dtype)[jnp.newaxis], ((0, length - 1), (0, 0)))


@partial(jax.jit, static_argnames="dtype")
def _read(block: Array, row: Array, *, dtype: np.dtype) -> Array:
    return lax.dynamic_index_in_dim(block, row, keepdims=False).astype(dtype)


@partial(jax.jit, donate_argnums=0)
def _write(block: Array, row: Array, vector: Array) -> Array:
    return lax.dynamic_update_index_in_dim(block, vector.astype(block.dtype), row, 0)


@jax.jit
def _project(blocks: tuple[Array, ...], vector: Array) -> tuple[Array, Array]:
    """Return the inner products with all rows as pairs of numbers."""
    vector = vector.astype(blocks[0].dtype)
    if vector.dtype == jnp.float64:
        sums = [jnp.dot(block, vector, precision=_EXACT) for block in blocks]
        return jnp.concatenate(sums), jnp.zeros((), vector.dtype)
    high, low = zip(*(sums_of_products(block, vector) for block in blocks), strict=True)
    return jnp.concatenate(high), jnp.concatenate(low)


@partial(jax.jit, static_argnames="dtype")
def _combine(blocks: tuple[Array, ...], weights: Array, *, dtype: np.dtype) -> Array:
    parts = zip(jnp.split(weights, len(blocks)), blocks, strict=True)
    sums = [jnp.dot(part, block, precision=_EXACT) for part, block in parts]
    return reduce(jnp.add, sums).astype(dtype)
