"""How many threads BLAS may use beside an operator that has threads of its own."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

# OpenBLAS's threads go on spinning for some 20 ms after a product, on the cores that the threads of
# the operator want next: at n = 100,000 a Lanczos step took half as long again. Vectors longer
# than this gain more by the threads than the operator loses.
ONE_THREAD_BELOW = 1_000_000


def blas_threads(size: int) -> AbstractContextManager[Any]:
    """Return a context in which BLAS works on vectors of this size between two products.

    It depends on the size alone, so that results repeat. What was set before is set again after.
    """
    if size >= ONE_THREAD_BELOW:
        return nullcontext()
    return _controller().limit(limits=1, user_api="blas")


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
