"""Numbers, vectors and sums over batches as arrays of JAX.

Sums are float64 where JAX has it (`jax_enable_x64`), and two float32 numbers elsewhere: what is
lost by rounding in the first is kept in the second, so that their sum is what a float64 sum of the
same float32 numbers would be, to about 1e-12 (Knuth, TAOCP vol. 2, 4.2.2, theorem B).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_density.engines.jax.compensated import two_sum


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PairSum:
    """A sum as the two float32 numbers whose sum it is."""

    high: jax.Array
    low: jax.Array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the sum, float64."""
        del copy  # what is computed is new
        total = np.asarray(self.high, np.float64) + np.asarray(self.low, np.float64)
        return total if dtype is None else total.astype(dtype)


Sum = jax.Array | PairSum


def has_float64() -> bool:
    """Tell whether JAX computes in float64 where it is asked for."""
    return jax.dtypes.canonicalize_dtype(np.float64) == np.float64


def zero_sum(shape: tuple[int, ...]) -> Sum:
    """Return a sum to begin with."""
    if has_float64():
        return jnp.zeros(shape, jnp.float64)
    return PairSum(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))


def add(total: Sum, new: jax.Array) -> Sum:
    """Return a sum with one thing more, in a trace or outside."""
    if not isinstance(total, PairSum):
        return total + new
    high, lost = two_sum(total.high, new.astype(jnp.float32))
    return PairSum(high, total.low + lost)


def add_sum(summed: Sum, other: Sum) -> Sum:
    """Return the sum of two sums."""
    if not isinstance(other, PairSum):
        return add(summed, other)
    both = add(summed, other.high)
    return PairSum(both.high, both.low + other.low) if isinstance(both, PairSum) else both


def joined(sums: Sequence[Sum], join: Callable[[list[jax.Array]], jax.Array]) -> Sum:
    """Return sums, each of a part of something, as one."""
    pairs = [part for part in sums if isinstance(part, PairSum)]
    if pairs:
        return PairSum(join([part.high for part in pairs]), join([part.low for part in pairs]))
    return join([part for part in sums if not isinstance(part, PairSum)])


def total(summed: Sum) -> jax.Array:
    """Return a sum as one number, in the precision of its parts."""
    return summed.high + summed.low if isinstance(summed, PairSum) else summed


def number(value: float) -> float:
    """Return a float64 scalar: one of Python's, which takes the precision of what it meets."""
    return float(value)


def integer(value: int) -> int:
    """Return an integer."""
    return int(value)


def to_rows(rows: np.ndarray, dtype: Any) -> jax.Array:
    """Return vectors, (k, n), as an array of JAX."""
    return jnp.asarray(np.ascontiguousarray(rows, dtype=dtype).astype(_there_is(dtype)))


def to_array(tensor: Any) -> np.ndarray:
    """Return an array, float64."""
    return np.asarray(tensor, dtype=np.float64)


def to_host(array: Any) -> np.ndarray:
    """Return an array of any dtype as one of NumPy's; of random keys their data."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.asarray(jax.device_get(array))


def on_device(rows: Sequence[jax.Array]) -> list[jax.Array]:
    """Return vectors as they are: JAX computes where its arguments are."""
    return list(rows)


def _there_is(dtype: Any) -> np.dtype:
    """Return the dtype, float32 for float64 where JAX has none."""
    dtype = np.dtype(dtype)
    return np.dtype(np.float32) if dtype == np.float64 and not has_float64() else dtype
