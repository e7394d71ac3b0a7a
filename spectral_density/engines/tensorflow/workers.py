"""The processes of a `tf.distribute` strategy, and what they tell each other."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from spectral_density._progress import leave_to_the_chief
from spectral_density.engines.tensorflow.keras_internals import communication_timeout

T = TypeVar("T")

TIMEOUT = 1800.0
"""Seconds that a worker waits for the others in a sum, unless the strategy's options say so.

A process that was killed is noticed at once, and a machine that vanished by its missing heartbeats:
this is for one that is there and does not take part.
"""

_LANES = 4096


class TensorFlowWorkers:
    """The workers of a strategy, and its replicas in this process.

    What talks to other workers has to be called by all of them, in the same order.

    Attributes:
        strategy: theirs.
        num_replicas: how many there are in all workers together.
        ids: the numbers of those in this process.
        devices: theirs.
        worker: number of this process among the workers.
        num_workers: how many there are.
        timeout: seconds that a worker waits for the others.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        """Find out which replicas are here."""
        self.strategy = strategy
        self.num_replicas: int = strategy.num_replicas_in_sync
        ids: list[int] = []

        def note(context: Any) -> tf.Tensor:
            ids.append(int(context.replica_id_in_sync_group))
            return tf.zeros([])

        strategy.experimental_distribute_values_from_function(note)
        self.ids = ids
        self.devices: tuple[str, ...] = tuple(strategy.extended.worker_devices)
        self.num_workers = self.num_replicas // len(ids)
        self.worker = ids[0] // len(ids)
        with tf.Graph().as_default():  # in which no strategy is entered
            self._default = tf.distribute.get_strategy()
        self.timeout = communication_timeout(strategy) or TIMEOUT
        if not self.is_chief:
            leave_to_the_chief()

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes files and shows progress."""
        return self.worker == 0

    def __repr__(self) -> str:
        """Say how many there are."""
        text = f"{self.num_replicas} replica{'s' if self.num_replicas != 1 else ''}"
        return text if self.num_workers == 1 else f"{text} on {self.num_workers} workers"

    def __deepcopy__(self, memo: dict[int, Any]) -> TensorFlowWorkers:
        """Return itself: there is one cluster."""
        return self

    def together(self, function: Callable[[], T], token: Callable[[T], int] | None = None) -> T:
        """Return `function()` when all workers have computed theirs; raise if one of them raised.

        Args:
            function: called on every worker.
            token: of the result, which must be the same on every worker.

        Raises:
            RuntimeError: if another worker failed or was lost, or the tokens differ.
        """
        notes = np.zeros((self.num_workers, 2))
        failure: Exception | None = None
        try:
            result = function()
            notes[self.worker, 1] = 0 if token is None else token(result)
        except Exception as error:  # told to the other workers, which wait, and raised again
            failure = error
            notes[self.worker, 0] = 1
        self.agree(self.add(notes, failure))
        return result

    def add(self, array: np.ndarray, failure: Exception | None = None) -> np.ndarray:
        """Return the sum of an array over the workers (not the replicas)."""
        if self.num_workers == 1:
            if failure is not None:
                raise failure
            return array
        parts = []
        for local, device in enumerate(self.devices):
            with tf.device(device):
                parts.append(tf.constant(array if local == 0 else np.zeros_like(array)))
        return self.add_parts(parts, failure)

    def gather(self, thing: T) -> list[T]:
        """Return what each worker passed, in the order of the workers."""
        content = np.frombuffer(pickle.dumps(thing), np.uint8)
        lengths = np.zeros(self.num_workers, np.int64)
        lengths[self.worker] = len(content)
        lengths = self.add(lengths)
        # As whole words: collectives add no bytes.
        rows = np.zeros((self.num_workers, -(-int(lengths.max()) // 8) * 8), np.uint8)
        rows[self.worker, : len(content)] = content
        rows = self.add(rows.view(np.int64)).view(np.uint8)
        return [
            pickle.loads(row[:length].tobytes())
            for row, length in zip(rows, lengths.tolist(), strict=True)
        ]

    def on_chief(self, function: Callable[[], T]) -> T:
        """Return to every worker what `function()` returns to the chief, or raise it there.

        Raises:
            RuntimeError: if the chief was lost.
            Exception: what the function raised.
        """
        if self.num_workers == 1:
            return function()
        content, failure = b"", None
        if self.is_chief:
            try:
                content = pickle.dumps((True, function()), protocol=5)
            except Exception as error:  # raised on every worker
                failure = error
                content = pickle.dumps((False, error))
        length = int(self.add(np.array([len(content)], np.int64))[0])
        words = np.zeros(-(-length // 8), np.int64)
        words.view(np.uint8)[: len(content)] = np.frombuffer(content, np.uint8)
        words = self.add(words)
        if failure is not None:
            raise failure
        good, result = pickle.loads(words.view(np.uint8)[:length].data)
        if not good:
            raise result
        return result

    def checksum(self, array: np.ndarray, label: str) -> int:
        """Return 32 bits that tell float64 arrays apart, at the speed of reading them."""
        return checksum(array, label)

    def agree(self, notes: np.ndarray) -> None:
        """Raise if a worker failed, or has another token."""
        failed = np.flatnonzero(notes[:, 0])
        if len(failed):
            raise RuntimeError(
                f"{_workers(failed)} failed, so there is no sum over all: see the error there. "
                "Start all workers again; a run with checkpoint= goes on after its last step."
            )
        others = np.flatnonzero(notes[:, 1] != notes[0, 1])
        if len(others):
            raise RuntimeError(
                f"{_workers(others)} multiplied other vectors than the chief, has other weights, "
                "or made another call. Every worker must run the same script with the same seeds, "
                "weights and options, on the same kind of CPU and with the same NumPy."
            )

    def add_parts(self, parts: list[tf.Tensor], failure: Exception | None) -> np.ndarray:
        """Return the sum of one tensor of each replica; raise a failure when it has been told."""
        of_replica = dict(zip(self.ids, parts, strict=True))
        try:
            with self.strategy.scope():
                values = self.strategy.experimental_distribute_values_from_function(
                    lambda context: of_replica[int(context.replica_id_in_sync_group)]
                )
                total = self.strategy.extended.reduce_to(
                    tf.distribute.ReduceOp.SUM,
                    values,
                    self.devices[0],
                    tf.distribute.experimental.CommunicationOptions(timeout_seconds=self.timeout),
                )
            # A writable array, and no copy where TensorFlow's memory is the host's.
            found = np.array(self.strategy.experimental_local_results(total)[0])
        except tf.errors.OpError as error:
            if failure is not None:
                raise failure from None
            raise RuntimeError(_lost(error, self)) from error
        if failure is not None:
            raise failure
        return found


def checksum(array: np.ndarray, label: str) -> int:
    """Return 32 bits that tell float64 arrays apart, at the speed of reading them.

    Args:
        array: contiguous.
        label: what is done with it.
    """
    bits = array.reshape(-1).view(np.uint64)
    whole = len(bits) // _LANES * _LANES
    lanes = bits[:whole].reshape(-1, _LANES).sum(axis=0, dtype=np.uint64)
    start = zlib.crc32(f"{label}{array.shape}".encode())
    return zlib.crc32(bits[whole:].tobytes(), zlib.crc32(lanes.tobytes(), start))


def _workers(numbers: np.ndarray) -> str:
    return f"worker{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _lost(error: tf.errors.OpError, workers: TensorFlowWorkers) -> str:
    why = (str(error.message).strip() or type(error).__name__).splitlines()[0][:300]
    if isinstance(error, tf.errors.InvalidArgumentError):
        return (
            f"the workers did not make the same call: {why}. Products, losses, checks and "
            "everything made of them must be computed on every worker, in the same order."
        )
    waited = (
        f"did not answer for {workers.timeout:g} s"
        if isinstance(error, tf.errors.DeadlineExceededError)
        else "was lost"
    )
    return (
        f"a worker {waited} while the sums of {workers!r} were added: {why}. No more can be "
        "computed here: end this process and start all workers again. A run with checkpoint= goes "
        "on after its last step."
    )
