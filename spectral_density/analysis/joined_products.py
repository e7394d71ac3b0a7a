"""Algorithms on several matrices side by side, whose products are made together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Semaphore, Thread
from typing import Any

import numpy as np

Multiply = Callable[[np.ndarray], np.ndarray]
"""What an algorithm calls for the products with a block of vectors, (m, k)."""

MultiplyAll = Callable[[list[tuple[int, np.ndarray]]], list[np.ndarray]]
"""Returns the products of several blocks, each with the number of the algorithm that asks."""


class _CancelledError(BaseException):
    """Ends an algorithm that waits for products which will not come."""


def run_together(
    algorithms: Sequence[Callable[[Multiply], Any]], multiply: MultiplyAll
) -> list[Any]:
    """Run algorithms until all have ended, and return their results in order.

    Each is called with a function that returns products, and waits there until all others wait, or
    have ended: then the products of all are made in one call, in the thread of the caller. One of
    them runs at a time: the threads are no more than places to wait in.

    Args:
        algorithms: called once each.
        multiply: makes the products of all that wait.

    Raises:
        Exception: the first that an algorithm or `multiply` raises; the others are ended.
    """
    tasks = [_Task(algorithm) for algorithm in algorithms]
    try:
        for task in tasks:
            task.go_on(None)
        while waiting := [task for task in tasks if task.request is not None]:
            asked = [
                (number, task.request)
                for number, task in enumerate(tasks)
                if task.request is not None
            ]
            products = multiply(asked)
            for task, product in zip(waiting, products, strict=True):
                task.go_on(product)
    finally:
        for task in tasks:
            task.cancel()
    return [task.result for task in tasks]


class _Task:
    """An algorithm in a thread, which runs only while the caller waits for it.

    Attributes:
        request: the vectors that it waits for the products of; None when it has ended.
        result: what it has returned.
    """

    def __init__(self, algorithm: Callable[[Multiply], Any]):
        """Start nothing yet."""
        self.request: np.ndarray | None = None
        self.result: Any = None
        self._algorithm = algorithm
        self._answer: np.ndarray | None = None
        self._error: BaseException | None = None
        self._cancelled = False
        self._its_turn, self._callers_turn = Semaphore(0), Semaphore(0)
        self._thread = Thread(target=self._run, daemon=True)

    def go_on(self, answer: np.ndarray | None) -> None:
        """Let it run until it waits for products or has ended, and raise what it raised."""
        self._answer = answer
        if not self._thread.is_alive():
            self._thread.start()
        self._its_turn.release()
        self._callers_turn.acquire()
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """End it where it waits, or where it next asks for products."""
        self._cancelled = True
        self._its_turn.release()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        self._its_turn.acquire()
        try:
            self.result = self._algorithm(self._products)
        except _CancelledError:
            pass
        except BaseException as error:
            self._error = error
        self.request = None
        self._callers_turn.release()

    def _products(self, block: np.ndarray) -> np.ndarray:
        self.request = block
        self._callers_turn.release()
        self._its_turn.acquire()
        if self._cancelled:
            raise _CancelledError
        answer, self._answer = self._answer, None
        if answer is None:
            raise RuntimeError("it goes on without the products that it waits for.")
        return answer
