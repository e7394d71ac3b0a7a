"""BLAS threads beside an operator that has threads of its own, and work shared by threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

from threadpoolctl import LibController, ThreadpoolController

# OpenBLAS's threads go on spinning for some 20 ms after a product, on the cores that the threads of
# the operator want next: at n = 100,000 a Lanczos step took half as long again. Vectors longer
# than this gain more by the threads than the operator loses.
ONE_THREAD_BELOW = 1_000_000

# Starting threads takes longer than work on vectors shorter than this.
THREADS_FROM = 20_000


def blas_threads(size: int) -> AbstractContextManager[Any]:
    """Return a context in which BLAS works on vectors of this size between two products.

    It depends on the size alone, so that results repeat. What was set before is set again after.
    """
    return nullcontext() if size >= ONE_THREAD_BELOW else _OneThread()


def each_in_a_thread(work: Callable[..., None], size: int, *arguments: Iterable[Any]) -> None:
    """Call `work` with each of the arguments, on all cores, where BLAS itself has one thread.

    The calls must not touch each other's arrays: each then gives the same bits as by itself.
    Where `blas_threads` leaves BLAS its threads, and where vectors are short, the calls are made
    one after the other.
    """
    with blas_threads(size):
        if not THREADS_FROM <= size < ONE_THREAD_BELOW:
            list(map(work, *arguments))
            return
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(work, *arguments))


class _OneThread(AbstractContextManager[None]):
    """One thread for BLAS, as `ThreadpoolController.limit` sets it, at a quarter of its time.

    A step of training enters it between all products, for vector work that itself takes as long.
    """

    def __enter__(self) -> None:
        counts = [(library, library.get_num_threads()) for library in _blas_libraries()]
        self._before = [(library, count) for library, count in counts if count != 1]
        for library, _ in self._before:
            library.set_num_threads(1)

    def __exit__(self, *error: object) -> None:
        for library, count in self._before:
            library.set_num_threads(count)


@cache
def _blas_libraries() -> list[LibController]:
    return ThreadpoolController().select(user_api="blas").lib_controllers
