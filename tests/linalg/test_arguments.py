"""Random streams of a key, independent of the user's own, and checked products with rows."""

import ast
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator

import spectral_density
from spectral_density import estimate_spectrum
from spectral_density.linalg import start_vector, trace
from spectral_density.linalg.arguments import random_direction, row_products, stream

PACKAGE = Path(spectral_density.__file__).parent
SEEDS = [0, 1, 42, 2**32, 2**70, 2**130]


def streams_of_a_user(seed):
    """Return what data made with the same seed may come from."""
    yield np.random.default_rng(seed)
    yield from np.random.default_rng(seed).spawn(2)
    for i in range(3):
        yield np.random.default_rng([seed, i])
        yield np.random.default_rng([seed, i, 0])
    yield from map(np.random.default_rng, np.random.SeedSequence(seed).spawn(3))
    yield np.random.Generator(np.random.Philox(seed))
    if seed < 2**32:
        yield np.random.RandomState(seed)
        yield np.random.Generator(np.random.MT19937(seed))


def correlation(a, b):
    return abs(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_stream_is_one_that_a_user_has(seed):
    n = 4000
    own = [stream(seed, *key).standard_normal(n) for key in [(), (0,), (0, 0), (1,), (2,)]]
    own.append(start_vector(n, seed))
    for other in streams_of_a_user(seed):
        data = other.standard_normal(n)
        assert max(correlation(vector, data) for vector in own) < 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_keys_that_differ_by_zeros_are_different_streams(seed):
    keys = [(), (0,), (0, 0), (0, 0, 0), (5,), (5, 0), (5, 0, 0), (0, 5), (0, 0, 5), (1, 2, 3)]
    vectors = [stream(seed, *key).standard_normal(4000) for key in keys]
    for i, a in enumerate(vectors):
        assert max([correlation(a, b) for b in vectors[:i]], default=0.0) < 0.1


def test_the_same_key_is_the_same_stream():
    for key in [(), (0,), (7, 1, 2)]:
        first, second = (stream(3, *key).standard_normal(10) for _ in range(2))
        np.testing.assert_array_equal(first, second)


def test_every_file_that_draws_numbers_has_a_key_of_its_own():
    keys = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["_KEY"]:
                keys[path] = ast.literal_eval(node.value)
    assert len(keys) >= 9
    assert len(set(keys.values())) == len(keys)


@pytest.mark.parametrize("seed", range(4))
def test_traces_of_data_made_with_the_same_seed_are_right(seed):
    for generator in streams_of_a_user(seed):
        u = generator.standard_normal(50)
        matrix, exact = np.outer(u, u), u @ u
        estimate = trace(matrix, num_products=6, seed=seed)
        assert abs(estimate.value - exact) <= 6 * estimate.standard_error + 1e-9 * exact
        # n times a chi-squared number with one degree of freedom; it was n for v along u.
        one_draw = estimate_spectrum(matrix, 5, 1, seed=seed, progress=False)
        assert one_draw.trace < 20 * exact


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_products_with_rows_are_float64_rows_of_their_own(count, dtype):
    buffer = np.empty((4, count), dtype)

    def multiply(block):
        buffer[:] = np.arange(4.0)[:, np.newaxis] * block.reshape(4, -1)
        return buffer if block.ndim == 2 else buffer[:, 0]

    # The dtype that the operator states is not that of its products.
    operator = LinearOperator((4, 4), matvec=multiply, matmat=multiply, dtype=float)
    products, eps = row_products(operator, np.ones((count, 4)))
    buffer[:] = 0
    np.testing.assert_array_equal(products, np.tile(np.arange(4.0), (count, 1)))
    assert products.dtype == np.float64 and products.flags.c_contiguous
    assert eps == np.finfo(dtype).eps


def test_the_first_row_whose_product_is_not_finite_is_named():
    operator = LinearOperator((3, 3), matvec=np.sqrt, matmat=np.sqrt, dtype=float)
    rows = np.array([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]])
    with np.errstate(invalid="ignore"):
        with pytest.raises(FloatingPointError, match=r"is not finite in row 2\. Check"):
            row_products(operator, rows, lambda index: f"in row {index + 1}")
        with pytest.raises(FloatingPointError, match=r"is not finite somewhere\. Check"):
            row_products(operator, rows[1:2], "somewhere")


def test_random_directions_are_unit_vectors_of_their_key():
    first, again, other = (random_direction(50, 3, *key) for key in ((7, 1), (7, 1), (7, 2)))
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-15)
    np.testing.assert_array_equal(first, again)
    assert abs(first @ other) < 0.6
