"""Sums over all replicas of a `tf.distribute` strategy, of what each of them computes alone.

Whole batches are dealt to the replicas in turn, batch i to replica i mod R, and each replica adds
up its own in float64. Nothing is communicated until the one all-reduce at the end, so the sum is
that of one device, for losses that couple the examples of a batch too.

Replicas do not compute inside `strategy.run`: there Keras divides its losses by their number,
layers that synchronize talk to each other, and all replicas must have a batch. Each has a thread
with its device and a replica context of the default strategy, in which a mirrored variable is read
where it is mirrored and everything else behaves as on a single device.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from spectral_density._progress import leave_to_the_chief
from spectral_density.engines.engine import BatchInput

T = TypeVar("T")

TIMEOUT = 1800.0
"""Seconds that a worker waits for the others in a sum, unless the strategy's options say so.

A process that was killed is noticed at once, and a machine that vanished by its missing heartbeats:
this is for one that is there and does not take part.
"""

_LANES = 4096

Adding = tuple[Callable[[BatchInput, list[Any]], list[Any]], list[Any]]
"""A function that adds what a batch gives to sums, and the sums it begins with."""


def replicas_of(variables: Iterable[Any]) -> Replicas | None:
    """Return the replicas that hold the variables, None for variables of one device.

    Raises:
        ValueError: if they are of several strategies, or of one that has no mirrored variables.
    """
    strategies = {
        id(variable.distribute_strategy): variable.distribute_strategy
        for variable in variables
        if isinstance(variable, tf.distribute.DistributedValues)
    }
    if not strategies:
        return None
    if len(strategies) > 1:
        raise ValueError("the variables belong to several strategies: build the model under one.")
    (strategy,) = strategies.values()
    known = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)
    if not isinstance(strategy, known):
        raise ValueError(
            f"the model was built under {type(strategy).__name__}, and products are made over the "
            "replicas of MirroredStrategy and MultiWorkerMirroredStrategy only. Build it under one "
            "of these, or under none."
        )
    return Replicas(strategy)


class Replicas:
    """The replicas of a strategy: those of this process, and how to add over all of them.

    What talks to other workers has to be called by all of them, in the same order.

    Attributes:
        strategy: theirs.
        num_replicas: how many there are in all workers together.
        ids: the numbers of those in this process.
        devices: theirs.
        worker: number of this process among the workers.
        num_workers: how many there are.
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
        options = getattr(strategy.extended, "_communication_options", None)
        self._timeout = getattr(options, "timeout_seconds", None) or TIMEOUT
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

    # Where something is computed -----------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> Replicas:
        """Return itself: there is one cluster."""
        return self

    def owner(self, position: int) -> int:
        """Return the number of the replica that computes a batch."""
        return position % self.num_replicas

    def place(self, batch: Any, position: int) -> Any:
        """Return a batch on the device of the replica of this process that computes it."""
        with tf.device(self.devices[self.ids.index(self.owner(position))]):
            return tf.nest.map_structure(
                lambda part: None if part is None else tf.identity(part), batch
            )

    def dealt(self, elements: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield the batches of this process in a `tf.distribute.DistributedDataset`, numbered."""
        end = object()
        with self.strategy.scope():
            iterator = iter(elements)
        for row in count():
            with self.strategy.scope():  # in which the workers ask each other for more
                element = next(iterator, end)
            if element is end:
                return
            for local, replica in enumerate(self.ids):
                batch = tf.nest.map_structure(lambda leaf, i=local: self._part(leaf, i), element)
                yield row * self.num_replicas + replica, batch

    def _part(self, leaf: Any, local: int) -> Any:
        if isinstance(leaf, tf.distribute.DistributedValues):
            return self.strategy.experimental_local_results(leaf)[local]
        return leaf

    @contextmanager
    def alone(self, local: int = 0, on_device: bool = False) -> Iterator[None]:
        """Compute as on a single device, with the variables of one replica of this process."""
        device = self.devices[local] if on_device else None
        with tf.distribute.ReplicaContext(self._default, local), tf.device(device):
            yield

    def each(self, function: Callable[[int], T], one_by_one: bool = False) -> list[T]:
        """Return `function(local)` for each replica of this process, computed at the same time."""

        def call(local: int) -> T:
            with self.alone(local, on_device=True):
                return function(local)

        if len(self.ids) == 1 or one_by_one:
            return [call(local) for local in range(len(self.ids))]
        with ThreadPoolExecutor(len(self.ids)) as pool:
            return list(pool.map(call, range(len(self.ids))))

    # Sums over a dataset -------------------------------------------------------------------------

    def sums(
        self,
        entries: Iterable[tuple[int, BatchInput]],
        begin: Callable[[int], Adding],
        shapes: Sequence[tuple[int, ...]],
        token: int,
        met: Callable[[], bool],
    ) -> tuple[list[np.ndarray], bool]:
        """Return sums over all batches of all replicas, with one all-reduce, and `met` of any.

        Args:
            entries: batches of this process with their weights and numbers.
            begin: called with the number of each replica of this process: how a batch is added,
                and to what.
            shapes: of the sums.
            token: what must be the same on every worker, such as a hash of the vectors.
            met: asked when the batches of this worker are computed.

        Raises:
            RuntimeError: if a worker failed, was lost, or computes something else.
        """
        size = sum(int(np.prod(shape)) for shape in shapes)
        notes = np.zeros((self.num_workers, 3))
        notes[self.worker, 1] = token
        failure: Exception | None = None
        try:
            local_sums = self._local_sums(entries, begin)
            notes[self.worker, 2] = met()
        except Exception as error:  # told to the other workers, which wait, and raised again
            failure = error
            notes[self.worker, 0] = 1
            local_sums = [[tf.zeros([size], tf.float64)] for _ in self.ids]
        packed = []
        for local, parts in enumerate(local_sums):
            with tf.device(self.devices[local]):
                note = tf.constant(notes if local == 0 else 0 * notes)
                flat = [tf.convert_to_tensor(part, tf.float64) for part in tf.nest.flatten(parts)]
                packed.append(tf.concat([tf.reshape(part, [-1]) for part in (*flat, note)], axis=0))
        del local_sums
        total = self._add(packed, failure)
        notes = total[size:].reshape(notes.shape)
        self._agree(notes)
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        parts = np.split(total[:size], ends[:-1])
        return (
            [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)],
            bool(notes[:, 2].any()),
        )

    def _local_sums(
        self, entries: Iterable[tuple[int, BatchInput]], begin: Callable[[int], Adding]
    ) -> list[list[Any]]:
        started = self.each(begin, one_by_one=True)
        adds, sums = [add for add, _ in started], [zeros for _, zeros in started]

        def step(local: int, at: BatchInput, before: list[Any]) -> list[Any]:
            with self.alone(local, on_device=True):
                return adds[local](at, before)

        if len(self.ids) == 1:
            for _, at in entries:
                sums[0] = step(0, at, sums[0])
            return sums
        # The next batch is read while these are computed; no more than one waits.
        running: dict[int, Future[list[Any]]] = {}
        with ThreadPoolExecutor(len(self.ids)) as pool:
            for position, at in entries:
                local = self.ids.index(self.owner(position))
                if local in running:
                    sums[local] = running.pop(local).result()
                running[local] = pool.submit(step, local, at, sums[local])
            for local, future in running.items():
                sums[local] = future.result()
        return sums

    # What the workers tell each other ------------------------------------------------------------

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
        self._agree(self.add(notes, failure))
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
        return self._add(parts, failure)

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

    def _agree(self, notes: np.ndarray) -> None:
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

    def _add(self, parts: list[tf.Tensor], failure: Exception | None) -> np.ndarray:
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
                    tf.distribute.experimental.CommunicationOptions(timeout_seconds=self._timeout),
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


def _lost(error: tf.errors.OpError, replicas: Replicas) -> str:
    why = (str(error.message).strip() or type(error).__name__).splitlines()[0][:300]
    if isinstance(error, tf.errors.InvalidArgumentError):
        return (
            f"the workers did not make the same call: {why}. Products, losses, checks and "
            "everything made of them must be computed on every worker, in the same order."
        )
    waited = (
        f"did not answer for {replicas._timeout:g} s"
        if isinstance(error, tf.errors.DeadlineExceededError)
        else "was lost"
    )
    return (
        f"a worker {waited} while the sums of {replicas!r} were added: {why}. No more can be "
        "computed here: end this process and start all workers again. A run with checkpoint= goes "
        "on after its last step."
    )
