"""Share of the training time that measurements take, and whether more is within a budget."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from spectral_density.linalg.arguments import number

# The costs of a first measurement are estimated from the first training step, most of which goes
# into building its graph. Of networks from two dense layers to a transformer and an LSTM the first
# pass over the probe set took 0.06 to 0.18 of it with TensorFlow, and 0.17 to 0.37 with JAX; the
# graph of a product 0.4 to 3.5 and 1.2 to 3.0 of it, and 5 to 20 and 4 to 15 of these passes. On a
# large probe set the passes dominate, those of a product too.
_FIRST_PASS_IN_STEPS = 0.4
_GRAPH_IN_STEPS = 4.0
_GRAPH_IN_FIRST_PASSES = 20.0
_PRODUCT_IN_FIRST_PASSES = 4.0
# Seconds that the first step takes at least: in a second `fit` it builds no graph.
_LEAST_FIRST_STEP = 0.3
# The budget holds although the next measurement may take longer than the last.
_SAFETY = 1.25


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

    def allows_first_pass(self) -> bool:
        """Tell whether a first pass over the probe set is likely to be within the limit."""
        return self.allows(_FIRST_PASS_IN_STEPS * max(self.first_step, _LEAST_FIRST_STEP))

    def allows_graph(self) -> bool:
        """Tell whether to build the graph of a product, after the "first pass"."""
        first_pass = self.last["first pass"]
        graph = _GRAPH_IN_STEPS * max(self.first_step, _LEAST_FIRST_STEP)
        graph += _PRODUCT_IN_FIRST_PASSES * first_pass
        return self.allows(min(graph, _GRAPH_IN_FIRST_PASSES * first_pass))

    def allows_products(self, count: float) -> bool:
        """Tell whether to make products like the last "product"."""
        return self.allows(_SAFETY * count * self.last["product"])

    def allows_another(self) -> bool:
        """Tell whether to make another "measurement" like the last; at first it costs nothing."""
        return self.allows(_SAFETY * self.last.get("measurement", 0.0))


def checked_share(budget: float | None) -> float | None:
    """Return the share of the training time that measurements may take, None for any.

    Raises:
        TypeError: if it is no real number.
        ValueError: if it is not above 0, or above 1.
    """
    if budget is None:
        return None
    share = number(budget, "budget", above=0.0)
    if share > 1:
        raise ValueError(f"budget is a share of the training time, at most 1, got {budget}.")
    return share
