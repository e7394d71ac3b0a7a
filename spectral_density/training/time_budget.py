"""Share of the training time that measurements take, and whether more is within a budget."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


def clock() -> float:
    """Return the time in seconds, from any origin."""
    return time.perf_counter()


class TimeBudget:
    """Time of a training, and of the parts of it that are spent measuring.

    Attributes:
        first_step: seconds of the first training step, which builds its graph.
        spent: seconds spent measuring.
        last: seconds of the last activity of each name.
    """

    def __init__(self, limit: float | None):
        """Start a training now.

        Args:
            limit: the largest share of the time for measuring, None for any.
        """
        self.first_step = 0.0
        self.spent = 0.0
        self.last: dict[str, float] = {}
        self._limit = limit
        self._start = clock()
        self._end: float | None = None
        self._step_start: float | None = None

    @property
    def share(self) -> float:
        """Share of the time so far, or of the whole training, that was spent measuring."""
        elapsed = (clock() if self._end is None else self._end) - self._start
        return self.spent / elapsed if elapsed > 0 else 0.0

    def allows(self, cost: float) -> bool:
        """Tell whether the share is within the limit right after an activity of this cost."""
        if self._limit is None:
            return True
        elapsed = clock() - self._start
        return self.spent + cost <= self._limit * (elapsed + cost)

    @contextmanager
    def spending(self, activity: str) -> Iterator[None]:
        """Count the time of an activity as spent."""
        start = clock()
        try:
            yield
        finally:
            self.last[activity] = clock() - start
            self.spent += self.last[activity]

    def step_begins(self) -> None:
        """Record when the first training step begins."""
        if self._step_start is None:
            self._step_start = clock()

    def step_ends(self) -> None:
        """Record how long the first training step took."""
        if not self.first_step and self._step_start is not None:
            self.first_step = clock() - self._step_start

    def stop(self) -> None:
        """End the training."""
        self._end = clock()
