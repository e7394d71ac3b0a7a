"""A dataset as numbered, weighted batches, kept in memory where they fit, or streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from itertools import islice
from typing import Any

import numpy as np
import psutil

from spectral_density.engines.data import BatchFunctions, Replicas

# A dataset of unknown length that is longer than this is taken to be infinite.
MAX_BATCHES = 1_000_000


class Batches:
    """The batches of a dataset, the same examples at each iteration.

    Batches that fit into `memory_share` of the memory free at construction are kept as tensors,
    since iterating `tf.data` costs more than the products of a small network; larger datasets
    stream, a `tf.data` pipeline `PREFETCH` batches ahead. Batches without examples are left out.

    What is computed at once is a parcel: one batch, or several adjacent ones after `merge`.

    With replicas the batches are dealt to them in turn, and those of this process are iterated
    over. A `tf.distribute.DistributedDataset` has dealt them already.

    Attributes:
        num_batches: how many batches there are.
        parcels: the numbers of the batches in each parcel.
        num_examples: sum of their weights (numbers of examples, or what `batch_weight` says).
        kept: whether the batches are kept in memory.
        nbytes: bytes of one pass over the data.
        unsteady: what in a tf.data pipeline lets passes differ, as far as it says.
        sample: with replicas, a batch where none is computed here.
    """

    def __init__(
        self,
        dataset: Any,
        functions: BatchFunctions,
        *,
        batch_weight: Callable[[Any], float] | None = None,
        memory_share: float = 0.25,
        visit: Callable[[Any, float], None] | None = None,
        replicas: Replicas | None = None,
    ):
        """Pass once over the dataset.

        Args:
            dataset: `tf.data.Dataset`, list of batches, `keras.utils.PyDataset`, any iterable
                that can be iterated again, or a callable that returns an iterator.
            functions: how the engine opens datasets and handles batches.
            batch_weight: weight of a batch in the mean; default the number of its examples.
            memory_share: share of the free memory that kept batches may take, 0 to stream.
            visit: called with each batch and its weight during this first pass.
            replicas: to which the batches are dealt.

        Raises:
            TypeError: if the dataset cannot be iterated.
            ValueError: if it is empty, infinite or used up after one pass, or its examples
                cannot be counted.
        """
        if not 0 <= memory_share <= 1:
            raise ValueError(f"memory_share must be between 0 and 1, got {memory_share}.")
        self._dataset = dataset
        self._functions = functions
        self._open = functions.opener(dataset)
        self.unsteady = functions.unsteady_stages(dataset)
        self._replicas = replicas
        self._dealt = functions.is_distributed(dataset)
        if self._dealt and replicas is None:
            raise ValueError(
                "the dataset is distributed, and the variables are not: build the model under the "
                "strategy's scope, or pass the plain dataset."
            )
        self.sample: Any = None
        self._mine: Sequence[int] = () if replicas is None else replicas.ids
        self._batch_weight = batch_weight
        budget = memory_share * psutil.virtual_memory().available
        kept: list[Any] | None = []
        length = functions.length(dataset)
        self.num_batches, self.num_examples, self.nbytes = 0, 0.0, 0
        self._forms: list[tuple[int, str]] = []
        self.parcels: list[range] = []
        for position, batch in self._numbered():
            if position >= MAX_BATCHES:
                raise ValueError(
                    f"the dataset gave {MAX_BATCHES:,} batches and goes on: it looks infinite. "
                    "Pass a finite one, for instance dataset.take(n)."
                )
            weight = self.weight_of(batch)
            self.num_batches += 1
            self.num_examples += weight
            self.nbytes += functions.nbytes(batch)
            self._forms.append(functions.form_of(batch))
            self.parcels.append(range(position, position + 1))
            if visit is not None:
                visit(batch, weight)
            if kept is not None:
                kept.append(batch if replicas is None else replicas.place(batch, position))
                # Far more than there is room for is not even begun to be kept.
                hopeless = position == 0 and self.nbytes * length > 2 * budget
                if hopeless or self.nbytes > budget:
                    kept = None
        # Of several replicas some may have none; `add_up` tells whether all have.
        if not self.num_batches and replicas is None:
            raise ValueError(functions.EMPTY)
        if not (self._dealt or functions.is_re_iterable(dataset)):
            self._check_second_pass()
        self._kept = kept
        self.kept = kept is not None

    @property
    def dataset(self) -> Any:
        """Return the dataset that the batches are of."""
        return self._dataset

    def afresh(self) -> Iterator[Any]:
        """Yield the batches of a new pass over the dataset, whether they are kept or not."""
        return self._stream()

    def apart(self, joined: Any, numbers: range) -> list[Any]:
        """Return the batches of these numbers, which are computed together, one by one."""
        if len(numbers) == 1:
            return [joined]
        sizes = [self._forms[number][0] for number in numbers]
        return list(self._functions.split(joined, sizes))

    def add_up(self) -> None:
        """Count the batches and examples of all replicas.

        Raises:
            ValueError: if there are none.
        """
        if self._replicas is None:
            return
        found = self._replicas.add(np.array([self.num_batches, self.num_examples, self.nbytes]))
        self.num_batches, self.nbytes = int(found[0]), int(found[2])
        self.num_examples = float(found[1])
        if not self.num_batches:
            raise ValueError(self._functions.EMPTY)

    def of_replica(self, replica: int, places: Sequence[int]) -> Batches:
        """Return the batches of one replica: those at these places among the ones of here."""
        other = copy(self)
        other.restrict(replica, places)
        return other

    def restrict(self, replica: int, places: Sequence[int]) -> None:
        """Go on with the batches of one replica alone, see `of_replica`."""
        self._mine = (replica,)
        self.parcels = [self.parcels[place] for place in places]
        if self._kept is not None:
            self._kept = [self._kept[place] for place in places]

    def __len__(self) -> int:
        """Return the number of batches."""
        return self.num_batches

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches as structures of tensors.

        Raises:
            ValueError: if a streamed dataset gives another number of batches than before.
        """
        if self._kept is not None:
            for parcel, numbers in zip(self._kept, self.parcels, strict=True):
                yield from self.apart(parcel, numbers)
            return
        expected = sum(map(len, self.parcels))
        count = 0
        for batch in self._stream():
            count += 1
            if count > expected:
                break
            yield batch
        if count != expected:
            given = f"more than {expected}" if count > expected else str(count)
            raise ValueError(
                f"the dataset gave {given} batches on this pass and {expected} before. "
                "It must give the same examples at every iteration."
            )

    def merge(self, num_examples: Mapping[str, int]) -> None:
        """Make parcels of adjacent batches of one form, with at most so many examples of it."""
        parcels: list[range] = []
        filled, before = 0, ""
        for number, (size, form) in enumerate(self._forms):
            if size and form == before and filled + size <= num_examples.get(form, 0):
                parcels[-1] = range(parcels[-1].start, number + 1)
                filled += size
            else:
                parcels.append(range(number, number + 1))
                filled, before = size, form
        self.parcels = parcels
        if self._kept is not None:
            self._kept = list(self._joined(iter(self._kept)))
        else:
            # The next parcel is made while this one is computed with.
            ahead = max([self._functions.PREFETCH, *map(len, parcels)])
            self._open = self._functions.opener(self._dataset, ahead)

    def in_parcels(self) -> Iterator[Any]:
        """Yield what is computed at once, as structures of tensors; raises as iteration does."""
        if self._kept is not None:
            yield from self._kept
        else:
            yield from self._joined(iter(self))

    def _joined(self, batches: Iterator[Any]) -> Iterator[Any]:
        for numbers in self.parcels:
            yield self._functions.join(list(islice(batches, len(numbers))))
        # A stream that gives more than before says so when it is asked for more.
        next(batches, None)

    def _stream(self) -> Iterator[Any]:
        for _, batch in self._numbered():
            yield batch

    def _numbered(self) -> Iterator[tuple[int, Any]]:
        """Yield the batches to be computed here with their numbers in the dataset."""
        if self._replicas is None:
            yield from enumerate(
                batch for batch in self._tensors() if not self._functions.is_empty(batch)
            )
            return
        if self._dealt:
            numbered = self._replicas.dealt(self._open())
        else:
            numbered = enumerate(
                batch for batch in self._tensors() if not self._functions.is_empty(batch)
            )
        for number, batch in numbered:
            if not self.parcels:
                self.sample = batch
            if self._replicas.owner(number) in self._mine and not self._functions.is_empty(batch):
                yield number, batch

    def _tensors(self) -> Iterator[Any]:
        for batch in self._open():
            yield self._functions.to_tensors(batch)

    def weight_of(self, batch: Any) -> float:
        """Return how much a batch counts: its number of examples, or what `batch_weight` says.

        Raises:
            ValueError: if that is negative or not finite, or examples cannot be counted.
        """
        if self._batch_weight is None:
            return float(self._functions.count_examples(batch))
        weight = float(np.asarray(self._batch_weight(batch)))
        if not np.isfinite(weight) or weight < 0:
            raise ValueError(f"batch_weight must be finite and >= 0, got {weight}.")
        return weight

    def _check_second_pass(self) -> None:
        for _ in self._open():
            return
        raise ValueError(
            "the dataset is used up after one pass, and every product needs a pass of its own. "
            "Pass a list, a tf.data.Dataset, or a callable that returns a new iterator each time."
        )
