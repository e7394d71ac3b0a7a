import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

from spectral_density.linalg.norms import column_norms, euclidean_norm, inner
from spectral_density.linalg.threads import ONE_THREAD_BELOW, blas_threads


@pytest.mark.parametrize("scale", [0.0, 1e-320, 1e-200, 1e-40, 1.0, 1e200])
def test_norms_neither_overflow_nor_underflow(scale):
    vector = scale * np.array([3.0, -4.0])
    assert euclidean_norm(vector) == pytest.approx(5 * scale, rel=1e-3)
    np.testing.assert_allclose(column_norms(np.stack([vector, vector], axis=1)), 5 * scale)


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1.0, 1e20, 5e37])
def test_norms_of_single_precision_neither_overflow_nor_underflow(scale):
    vector = (scale * np.array([3.0, -4.0])).astype(np.float32)
    assert euclidean_norm(vector) == pytest.approx(5 * scale, rel=1e-3)


def test_norms_of_whole_numbers_of_nothing_and_of_nan():
    assert euclidean_norm(np.array([3, 4])) == 5.0
    assert euclidean_norm(np.zeros(0)) == 0.0
    assert np.isnan(euclidean_norm(np.array([np.nan, 1.0])))


def test_an_inner_product_is_that_of_the_vectors():
    assert inner(np.array([1.0, 2.0]), np.array([3.0, -1.0])) == 1.0


def threads():
    return [
        library.num_threads
        for library in ThreadpoolController().select(user_api="blas").lib_controllers
    ]


@pytest.fixture
def two_threads():
    """Give BLAS two threads, whatever it has in this run (see conftest.py)."""
    with threadpool_limits(2, "blas"):
        yield


def test_blas_has_one_thread_within_and_what_it_had_before_without(two_threads):
    before = threads()
    assert set(before) == {2}
    with blas_threads(10):
        assert set(threads()) == {1}
        with blas_threads(10):
            assert set(threads()) == {1}
        assert set(threads()) == {1}
    assert threads() == before
    with pytest.raises(KeyError), blas_threads(10):
        raise KeyError
    assert threads() == before
    with blas_threads(ONE_THREAD_BELOW):
        assert threads() == before
