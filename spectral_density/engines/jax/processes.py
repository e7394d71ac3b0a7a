"""The processes of `jax.distributed`, and what they tell each other."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from spectral_density._progress import leave_to_the_chief

T = TypeVar("T")


class JaxProcesses:
    """The processes that compute together, each calling the same things in the same order."""

    def __init__(self) -> None:
        """Leave progress to the first."""
        if not self.is_chief:
            leave_to_the_chief()

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes files and shows progress."""
        return jax.process_index() == 0

    def __deepcopy__(self, memo: dict[int, Any]) -> JaxProcesses:
        """Return itself: there is one cluster."""
        return self

    def gather(self, thing: T) -> list[T]:
        """Return what each process passed, in their order."""
        content = np.frombuffer(pickle.dumps(thing, protocol=5), np.uint8)
        lengths = np.asarray(process_allgather(np.int32(content.size))).reshape(-1)
        padded = np.zeros(int(lengths.max()), np.uint8)
        padded[: content.size] = content
        rows = np.asarray(process_allgather(padded)).reshape(len(lengths), -1)
        return [
            pickle.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)
        ]

    def on_chief(self, function: Callable[[], T]) -> T:
        """Return to every process what `function()` returns to the first, or raise it there.

        Raises:
            Exception: what the function raised.
        """
        answer: Any = None
        if self.is_chief:
            try:
                answer = (True, function())
            except Exception as error:  # raised in every process
                answer = (False, error)
        good, result = self.gather(answer)[0]
        if not good:
            raise result
        return result

    def agree(self, value: Any, what: str) -> None:
        """Raise unless all processes pass the same value.

        Raises:
            RuntimeError: saying what differs.
        """
        if len(set(self.gather(value))) > 1:
            raise RuntimeError(
                f"the processes do not have the same {what}: each computes with a part of the "
                "data that it picks out by itself, so all of them pass the same whole dataset, "
                "weights and vectors."
            )
