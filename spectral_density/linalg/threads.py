"""How many threads BLAS may use beside an operator that has threads of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
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


def each_in_a_thread(work: Callable[..., None], size: int, *arguments: Iterable[Any]) -> None:
    """Call `work` with each of the arguments, on all cores, where BLAS itself has one thread.

    The calls must not touch each other's arrays: each then gives the same bits as by itself.
    Where `blas_threads` leaves BLAS its threads, the calls are made one after the other.
    """
    with blas_threads(size):
        if size >= ONE_THREAD_BELOW:
            list(map(work, *arguments))
            return
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(work, *arguments))


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
