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

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from spectral_density.engines.data import BatchInput
from spectral_density.engines.tensorflow.workers import TensorFlowWorkers

T = TypeVar("T")

Adding = tuple[Callable[[BatchInput, list[Any]], list[Any]], list[Any]]
"""A function that adds what a batch gives to sums, and the sums it begins with."""


def replicas_of(variables: Iterable[Any]) -> TensorFlowReplicas | None:
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
    return TensorFlowReplicas(strategy)


class TensorFlowReplicas(TensorFlowWorkers):
    """The replicas of a strategy: those of this process, and how to add over all of them."""

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
        total = self.add_parts(packed, failure)
        notes = total[size:].reshape(notes.shape)
        self.agree(notes)
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
