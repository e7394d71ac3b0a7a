"""Sums of pairs of float32 numbers, against float64 sums of the same numbers."""

from fractions import Fraction
from math import fsum

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_density.engines.jax.compensated import (
    add_pairs,
    inner_product,
    sums_by_lanes,
    sums_by_pieces,
    sums_of_products,
    two_sum,
)


def as_float(pair):
    high, low, exponent = pair
    return float(np.ldexp(np.float64(high) + np.float64(low), int(exponent)))


def exact_inner(x, y):
    return fsum(np.float64(a) * np.float64(b) for a, b in zip(x, y, strict=True))


def cancelling(n, seed=0):
    """Float32 vectors whose inner product is a millionth of what is summed."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, n)).astype(np.float32)
    half = n // 2
    x[half : 2 * half] = x[:half] * np.float32(1 + 1e-6)
    y[half : 2 * half] = -y[:half]
    order = rng.permutation(n)
    return x[order], y[order]


@pytest.mark.parametrize("n", [1, 2, 4095, 4097, 100_000, 1_000_003])
def test_an_inner_product_that_cancels_is_that_of_float64(n):
    x, y = cancelling(n)
    expected = exact_inner(x, y)
    found = as_float(inner_product(x, y))
    # Of what is summed some 2^-46 are rounded off.
    scale = np.abs(x.astype(np.float64) * y).sum()
    assert abs(found - expected) <= min(1e-6 * abs(expected), 1e-12 * scale)
    if n >= 100_000:
        plain = float(jnp.dot(x, y, precision="highest"))
        assert abs(plain - expected) > 1e-3 * abs(expected)


def test_a_sum_of_a_thousand_large_and_small_terms_is_that_of_float64():
    rng = np.random.default_rng(1)
    x = (rng.standard_normal(2000) * 10.0 ** rng.uniform(-3, 4, 2000)).astype(np.float32)
    x[1000:] = -x[:1000]
    x = np.concatenate([x, np.full(1000, 1e-4, np.float32)])
    ones = np.ones(3000, np.float32)
    expected = fsum(x.astype(np.float64))
    assert abs(as_float(inner_product(x, ones)) - expected) <= 1e-6 * expected
    assert abs(float(jnp.sum(jnp.asarray(x))) - expected) > 1e-3 * expected


def test_pairs_added_one_by_one_in_a_compiled_loop_are_the_sum_of_float64():
    rng = np.random.default_rng(2)
    batches = rng.standard_normal((1000, 50)).astype(np.float32)
    batches[1::2] = -batches[::2] * np.float32(1 + 1e-5)

    @jax.jit
    def total(batches):
        zero = jnp.zeros(50)
        return jax.lax.fori_loop(
            0, 1000, lambda i, pair: add_pairs(pair, (batches[i], zero)), (zero, zero)
        )

    high, low = map(np.float64, total(batches))
    expected = batches.astype(np.float64).sum(axis=0)
    np.testing.assert_allclose(high + low, expected, rtol=1e-6)
    plain = sum(jnp.asarray(batches), jnp.zeros(50))
    assert np.abs(np.float64(plain) / expected - 1).max() > 1e-4


@pytest.mark.parametrize("sums", [sums_by_lanes, sums_by_pieces, sums_of_products])
@pytest.mark.parametrize("n", [3, 4096, 10_001, 1_000_000])
def test_a_million_small_terms_after_large_ones_are_not_lost(sums, n):
    rng = np.random.default_rng(5)
    rows = np.abs(rng.standard_normal((3, n)).astype(np.float32)) * np.float32(1e-4)
    rows[:, :2] = 1
    vector = np.abs(rng.standard_normal(n).astype(np.float32)) * np.float32(1e-4)
    vector[:2] = 1
    expected = rows.astype(np.float64) @ vector.astype(np.float64)
    high, low = map(np.float64, jax.jit(sums)(rows, vector))
    # Those that share a sum with the large ones may be.
    np.testing.assert_allclose(high + low, expected, rtol=1e-5)
    if n == 1_000_000:
        plain = np.float64(jnp.dot(rows, vector, precision="highest"))
        assert np.abs(plain / expected - 1).max() > 1e-4


@pytest.mark.parametrize("powers", [(-60, -60), (-100, 10), (60, 60), (100, -100)])
def test_no_square_over_or_underflows(powers):
    x, y = cancelling(1000, seed=3)
    expected = exact_inner(x, y)
    scaled = [np.ldexp(side, power) for side, power in zip((x, y), powers, strict=True)]
    found = np.ldexp(as_float(inner_product(*scaled)), -sum(powers))
    scale = np.abs(x.astype(np.float64) * y).sum()
    assert abs(found - expected) <= 1e-13 * scale


def test_zeros_and_what_is_not_finite():
    zeros, ones = np.zeros(5, np.float32), np.ones(5, np.float32)
    assert as_float(inner_product(zeros, ones)) == 0
    for value in (np.nan, np.inf):
        assert not np.isfinite(as_float(inner_product(ones * np.float32(value), ones)))


def test_a_sum_and_what_it_rounds_off_are_the_exact_sum():
    rng = np.random.default_rng(4)
    a, b = (rng.standard_normal((2, 1000)) * 10.0 ** rng.uniform(-5, 5, (2, 1000))).astype("f")
    total, rest = jax.jit(two_sum)(a, b)
    for parts in zip(a, b, total, rest, strict=True):
        x, y, s, e = (Fraction(float(part)) for part in parts)
        assert x + y == s + e
