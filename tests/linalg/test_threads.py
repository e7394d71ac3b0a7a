"""BLAS threads beside an operator."""

import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

from spectral_density.linalg.threads import ONE_THREAD_BELOW, blas_threads


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
