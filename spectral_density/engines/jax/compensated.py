"""Sums of float32 numbers in twice their precision, where JAX has no float64.

Without `jax_enable_x64` JAX has no float64. A sum is then a pair of float32 numbers, the second of
which is what rounds off in the first. For inner products each product of two entries is cut into
four that float32 holds exactly.

References:
    Ogita, Rump, Oishi (2005), SIAM J. Sci. Comput. 26:1955 (dot products in twice the precision).
    Dekker (1971), Numer. Math. 18:224 (exact products of halves, sums of pairs).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

# Partial sums of an inner product, and terms of one.
_LANES = 4096
_PIECE = 4096
# The twelve leading bits of a float32 number's significand, its sign and exponent.
_LEADING = -(2**12)
_EXPONENT_SHIFT = 23
_EXPONENT_BITS = 0xFF


@jax.jit
def inner_product(left: Array, right: Array) -> tuple[Array, Array, Array]:
    """Return left'right as a pair of float32 numbers and the power of two they are times of."""
    left, p = _unit_scaled(left)
    right, q = _unit_scaled(right)
    lanes = min(_LANES, left.size)
    padding = (0, -left.size % lanes)
    left, right = (jnp.pad(side, padding).reshape(-1, lanes) for side in (left, right))
    zero = jnp.float32(0)
    partial_sums = lax.reduce(_exact_products(left, right), (zero, zero), add_pairs, (0,))
    high, low = lax.reduce(partial_sums, (zero, zero), add_pairs, (0,))
    return high, low, p + q


def sums_of_products(rows: Array, vector: Array) -> tuple[Array, Array]:
    """Return the inner products of rows and a vector as pairs, from plain sums of a few thousand.

    What is lost are small terms that follow large ones, a few thousand at most. One plain sum
    loses all million of them.
    """
    return lax.platform_dependent(rows, vector, cpu=sums_by_pieces, default=sums_by_lanes)


def sums_by_lanes(rows: Array, vector: Array) -> tuple[Array, Array]:
    """Return `sums_of_products` in one pass, as a GPU reduces: each 4096th product into one sum."""
    whole = rows.shape[1] - rows.shape[1] % _LANES
    products = rows[:, :whole].reshape(len(rows), -1, _LANES) * vector[:whole].reshape(-1, _LANES)
    return add_pairs(
        _sums_of_rows(products.sum(axis=1)), _sums_of_rows(rows[:, whole:] * vector[whole:])
    )


def sums_by_pieces(rows: Array, vector: Array) -> tuple[Array, Array]:
    """Return `sums_of_products` from matrix products of pieces, which a CPU is fastest at."""
    count, size = rows.shape
    length = min(_PIECE, size)
    zeros = jnp.zeros(count, rows.dtype)

    def with_piece(
        total: tuple[Array, Array], begin: Array | int, length: int
    ) -> tuple[Array, Array]:
        block = lax.dynamic_slice(rows, (0, begin), (count, length))
        part = lax.dynamic_slice(vector, (begin,), (length,))
        return add_pairs(total, (jnp.dot(block, part, precision=lax.Precision.HIGHEST), zeros))

    whole, rest = divmod(size, length)
    total = lax.fori_loop(
        0, whole, lambda i, pair: with_piece(pair, i * length, length), (zeros, zeros)
    )
    return with_piece(total, whole * length, rest) if rest else total


def _sums_of_rows(rows: Array) -> tuple[Array, Array]:
    zero = jnp.float32(0)
    return lax.reduce((rows, jnp.zeros_like(rows)), (zero, zero), add_pairs, (1,))


def _unit_scaled(vector: Array) -> tuple[Array, Array]:
    """Return a vector times a power of two with its largest entry near one, and the exponent."""
    bits = lax.bitcast_convert_type(jnp.abs(vector).max(), jnp.int32)
    biased = jnp.clip((bits >> _EXPONENT_SHIFT) & _EXPONENT_BITS, 1, 253)
    factor = lax.bitcast_convert_type((254 - biased) << _EXPONENT_SHIFT, jnp.float32)
    return vector * factor, biased - 127


def _exact_products(left: Array, right: Array) -> tuple[Array, Array]:
    """Return entries' products as pairs, rounded in the last bit of the second.

    Every product here is exact, so a compiler may join it with a sum. None may be `left * right`:
    joined with one sum and not with another it would be two numbers.
    """
    a, b = _halves(left)
    c, d = _halves(right)
    total, first = two_sum(a * c, a * d)
    total, second = two_sum(total, b * c)
    total, third = two_sum(total, b * d)
    return total, first + second + third


def _halves(vector: Array) -> tuple[Array, Array]:
    """Return two float32 vectors of 12 significant bits an entry whose sum is the vector."""
    bits = lax.bitcast_convert_type(vector, jnp.int32)
    leading = lax.bitcast_convert_type(bits & jnp.int32(_LEADING), jnp.float32)
    return leading, vector - leading


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded sum and what was rounded off (Knuth)."""
    total = a + b
    shifted = total - a
    return total, (a - (total - shifted)) + (b - shifted)


def add_pairs(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return the sum of pairs, the second of which is small beside the first again."""
    total, rest = two_sum(a[0], b[0])
    rest = rest + (a[1] + b[1])
    high = total + rest
    return high, rest - (high - total)
