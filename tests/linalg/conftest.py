import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True, scope="module")
def one_blas_thread():
    """The matrices are small: on a busy machine, threads for them take a hundred times as long."""
    with threadpool_limits(1, "blas"):
        yield
