"""The contract for data: datasets, batches, numbers and vectors of a framework, and devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np


class BatchInput(NamedTuple):
    """What is fixed while a batch is multiplied with vectors."""

    batch: Any  # as the dataset gives it, in tensors of the framework
    first_example: Any  # number of the batch's first example in the dataset
    weight: Any  # number of examples, or what `batch_weight` says
    scales: Any  # factor of each term of the loss, (num_terms,)


class BatchFunctions(Protocol):
    """How an engine opens datasets, and counts, joins, cuts and hashes batches."""

    EMPTY: str  # message for a dataset without an example
    HASHES: int  # hashes of examples are added up modulo this number
    PREFETCH: int  # batches made while others are computed with

    def opener(self, dataset: Any, prefetch: int = ..., /) -> Callable[[], Iterator[Any]]:
        """Return a function that starts a new pass over the dataset."""

    def to_tensors(self, batch: Any, /) -> Any:
        """Return a batch in tensors of the framework."""

    def length(self, dataset: Any, /) -> int:
        """Return how many batches a dataset says it has, 0 where it does not say."""

    def unsteady_stages(self, dataset: Any, /) -> tuple[str, ...]:
        """Return what in a pipeline may give other batches, or another order, at each pass."""

    def is_distributed(self, dataset: Any, /) -> bool:
        """Tell whether a dataset has its batches dealt to replicas."""

    def is_re_iterable(self, dataset: Any, /) -> bool:
        """Tell whether a dataset is known to be iterated again and again."""

    def is_empty(self, batch: Any, /) -> bool:
        """Tell whether all tensors of a batch have no rows."""

    def count_examples(self, batch: Any, /) -> int:
        """Return the number of examples in a batch."""

    def nbytes(self, batch: Any, /) -> int:
        """Return the bytes of all tensors of a batch."""

    def form_of(self, batch: Any, /) -> tuple[int, str]:
        """Return the number of rows of a batch, 0 for none in common, and all else of its form."""

    def join(self, batches: list[Any], /) -> Any:
        """Return batches of one form as one batch."""

    def split(self, joined: Any, sizes: list[int], /) -> Iterable[Any]:
        """Yield the batches of these sizes that one was made of by `join`."""

    def halves(self, batch: Any, /) -> list[tuple[Any, int, int]] | None:
        """Return two parts of a batch, each with its first example and the one after its last."""

    def batch_hash(self, batch: Any, /) -> str:
        """Return a hash of all tensors of a batch."""

    def examples_hash(self, batch: Any, /) -> int:
        """Return the sum of the hashes of a batch's examples, the same in any order."""


class Tensors(Protocol):
    """Numbers and vectors of a framework."""

    def number(self, value: float, /) -> Any:
        """Return a float64 scalar of the framework."""

    def integer(self, value: int, /) -> Any:
        """Return an int64 scalar of the framework."""

    def to_rows(self, rows: np.ndarray, dtype: Any, /) -> Any:
        """Return vectors, (k, n), as a tensor."""

    def to_array(self, tensor: Any, /) -> np.ndarray:
        """Return a tensor as an array, float64."""

    def on_device(self, rows: Sequence[Any], /) -> list[Any]:
        """Return copies of vectors on the device that is current."""


class Replicas(Protocol):
    """The devices and processes that add up a dataset together, and what they tell each other."""

    ids: list[int]
    num_replicas: int
    num_workers: int

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes files and shows progress."""

    def owner(self, position: int) -> int:
        """Return the number of the replica that computes a batch."""

    def place(self, batch: Any, position: int) -> Any:
        """Return a batch on the device of the replica of this process that computes it."""

    def dealt(self, elements: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield the batches of this process in a dataset that is dealt already, numbered."""

    def alone(self, local: int = 0, on_device: bool = False) -> AbstractContextManager[None]:
        """Compute as on a single device, with the variables of one replica of this process."""

    def each(self, function: Callable[[int], Any], one_by_one: bool = False) -> list[Any]:
        """Return `function(local)` for each replica of this process."""

    def sums(
        self,
        entries: Iterable[tuple[int, BatchInput]],
        begin: Callable[[int], tuple[Callable[[BatchInput, list[Any]], list[Any]], list[Any]]],
        shapes: Sequence[tuple[int, ...]],
        token: int,
        met: Callable[[], bool],
    ) -> tuple[list[np.ndarray], bool]:
        """Return sums over all batches of all replicas, and whether `met` holds on any."""

    def together(
        self, function: Callable[[], Any], token: Callable[[Any], int] | None = None
    ) -> Any:
        """Return `function()` when all workers have computed theirs; raise if one raised."""

    def add(self, array: np.ndarray) -> np.ndarray:
        """Return the sum of an array over the workers."""

    def gather(self, thing: Any) -> list[Any]:
        """Return what each worker passed, in the order of the workers."""

    def checksum(self, array: np.ndarray, label: str) -> int:
        """Return a number that is the same on every worker for the same array and label."""
