"""Any re-iterable of batches: its sizes, what is kept in memory, and what is no such thing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import tensorflow as tf

if TYPE_CHECKING:
    from spectral_density.curvature.replicas import Replicas

# Batches of a tf.data pipeline that are made while others are computed with, or as many as are
# computed at once: a fixed number, so that a pass takes constant memory.
PREFETCH = 2

# A dataset of unknown length that is longer than this is taken to be infinite.
MAX_BATCHES = 1_000_000

# Hashes of examples are added up modulo this number.
HASHES = 1 << 128

_EMPTY = "the dataset is empty: it gave no batch with an example in it."


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
        self._open = _opener(dataset)
        self.unsteady = unsteady_stages(dataset)
        self._replicas = replicas
        self._dealt = isinstance(dataset, tf.distribute.DistributedDataset)
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
        length = _length(dataset)
        self.num_batches, self.num_examples, self.nbytes = 0, 0.0, 0
        self._forms: list[tuple[int, str]] = []
        self.parcels: list[range] = []
        for position, batch in self._numbered():
            if position >= MAX_BATCHES:
                raise ValueError(
                    f"the dataset gave {MAX_BATCHES:,} batches and goes on: it looks infinite. "
                    "Pass a finite one, for instance dataset.take(n)."
                )
            weight = self._weight(batch)
            self.num_batches += 1
            self.num_examples += weight
            self.nbytes += _nbytes(batch)
            self._forms.append(form_of(batch))
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
            raise ValueError(_EMPTY)
        if not (self._dealt or isinstance(dataset, (list, tuple, tf.data.Dataset))):
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
        return list(_apart(joined, [self._forms[number][0] for number in numbers]))

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
            raise ValueError(_EMPTY)

    def of_replica(self, replica: int, places: Sequence[int]) -> Batches:
        """Return the batches of one replica: those at these places among the ones of here."""
        other = copy(self)
        other._mine = (replica,)
        other.parcels = [self.parcels[place] for place in places]
        if self._kept is not None:
            other._kept = [self._kept[place] for place in places]
        return other

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
            self._open = _opener(self._dataset, max([PREFETCH, *map(len, parcels)]))

    def in_parcels(self) -> Iterator[Any]:
        """Yield what is computed at once, as structures of tensors; raises as iteration does."""
        if self._kept is not None:
            yield from self._kept
        else:
            yield from self._joined(iter(self))

    def _joined(self, batches: Iterator[Any]) -> Iterator[Any]:
        for numbers in self.parcels:
            yield _join(list(islice(batches, len(numbers))))
        # A stream that gives more than before says so when it is asked for more.
        next(batches, None)

    def _stream(self) -> Iterator[Any]:
        for _, batch in self._numbered():
            yield batch

    def _numbered(self) -> Iterator[tuple[int, Any]]:
        """Yield the batches to be computed here with their numbers in the dataset."""
        if self._replicas is None:
            yield from enumerate(batch for batch in self._tensors() if not _is_empty(batch))
            return
        if self._dealt:
            numbered = self._replicas.dealt(self._open())
        else:
            numbered = enumerate(batch for batch in self._tensors() if not _is_empty(batch))
        for number, batch in numbered:
            if not self.parcels:
                self.sample = batch
            if self._replicas.owner(number) in self._mine and not _is_empty(batch):
                yield number, batch

    def _tensors(self) -> Iterator[Any]:
        for batch in self._open():
            yield tf.nest.map_structure(_to_tensor, batch)

    def _weight(self, batch: Any) -> float:
        if self._batch_weight is None:
            return float(count_examples(batch))
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


def one_pass(dataset: Any) -> Iterator[Any]:
    """Begin a pass over a dataset of any kind, batches as it gives them.

    Raises:
        TypeError: if it cannot be iterated.
        ValueError: if it is infinite or used up after one pass.
    """
    return _opener(dataset)()


def first_batch(dataset: Any) -> Any:
    """Return the first batch of a dataset with an example in it, as tensors.

    Raises:
        ValueError: if there is none.
    """
    for batch in _opener(dataset)():
        if isinstance(dataset, tf.distribute.DistributedDataset):
            batch = tf.nest.map_structure(_of_first_replica, batch)
        batch = tf.nest.map_structure(_to_tensor, batch)
        if not _is_empty(batch):
            return batch
    raise ValueError(_EMPTY)


def _of_first_replica(part: Any) -> Any:
    return part.values[0] if isinstance(part, tf.distribute.DistributedValues) else part


def count_examples(batch: Any) -> int:
    """Return the number of examples in a batch: the leading dimension its tensors share.

    Where the tensors of an `(x, y)` or `(x, y, w)` batch differ, x and y decide.

    Raises:
        ValueError: if no such dimension can be found.
    """
    sizes = _leading_sizes(batch)
    if len(sizes) > 1 and isinstance(batch, (list, tuple)):
        sizes = _leading_sizes(batch[:2])
    if len(sizes) != 1:
        raise ValueError(
            "the examples of a batch cannot be counted: its tensors have leading dimensions "
            f"{sorted(sizes) or 'of no size (all scalars)'}. Say how much a batch counts with "
            "batch_weight=lambda batch: ..."
        )
    return sizes.pop()


def _to_tensor(part: Any) -> Any:
    # Ragged and sparse tensors stay what they are; None says that there are no labels or weights.
    if part is None or isinstance(part, (tf.RaggedTensor, tf.SparseTensor)):
        return part
    return tf.convert_to_tensor(part)


def _leading_sizes(structure: Any) -> set[int]:
    sizes = set()
    for tensor in tf.nest.flatten(structure):
        if tensor is not None and tensor.shape.rank:
            sizes.add(int(tensor.shape[0]))
    return sizes


def _is_empty(batch: Any) -> bool:
    return _leading_sizes(batch) == {0}


def form_of(batch: Any) -> tuple[int, str]:
    """Return the number of rows that all tensors of a batch have, and all else of their form.

    The number is 0 where there is no such number, or where tensors are ragged or sparse.
    """
    leaves = [leaf for leaf in tf.nest.flatten(batch) if leaf is not None]
    if any(not isinstance(leaf, tf.Tensor) or not leaf.shape.rank for leaf in leaves):
        return 0, ""
    sizes = {int(leaf.shape[0]) for leaf in leaves}
    if len(sizes) != 1:
        return 0, ""
    form = tf.nest.map_structure(
        lambda leaf: None if leaf is None else (leaf.dtype.name, *leaf.shape[1:]), batch
    )
    return sizes.pop(), repr(form)


def _join(batches: list[Any]) -> Any:
    if len(batches) == 1:
        return batches[0]
    return tf.nest.map_structure(
        lambda *parts: None if parts[0] is None else tf.concat(parts, axis=0), *batches
    )


def _apart(parcel: Any, sizes: list[int]) -> Iterator[Any]:
    """Yield the batches that a parcel was made of."""
    ends = np.cumsum(sizes).tolist()
    for start, end in zip([0, *ends], ends, strict=False):
        yield tf.nest.map_structure(
            lambda leaf, start=start, end=end: None if leaf is None else leaf[start:end], parcel
        )


def _rows(batch: Any) -> tuple[str, list[Any]] | None:
    """Return the form of each example of a batch, and the rows of its tensors as bytes.

    None where the tensors have no common number of rows, or are sparse.
    """
    leaves = [leaf for leaf in tf.nest.flatten(batch) if leaf is not None]
    if any(isinstance(leaf, tf.SparseTensor) or not leaf.shape.rank for leaf in leaves):
        return None
    if len({int(leaf.shape[0]) for leaf in leaves}) != 1:
        return None
    form = tf.nest.map_structure(
        lambda leaf: None if leaf is None else (type(leaf).__name__, leaf.dtype.name), batch
    )
    shapes = [leaf.shape.as_list()[1:] for leaf in leaves]
    return f"{form!r}{shapes!r}", [_bytes_of_rows(leaf) for leaf in leaves]


def _bytes_of_rows(leaf: Any) -> Any:
    if isinstance(leaf, tf.RaggedTensor):
        return [repr(row).encode() for row in leaf.to_list()]
    array = np.asarray(leaf)
    if array.dtype == object:  # text
        return [repr(row).encode() for row in array.tolist()]
    flat = array.reshape(len(array), int(np.prod(array.shape[1:], dtype=np.int64)))
    return np.ascontiguousarray(flat).view(np.uint8)


def _nbytes(batch: Any) -> int:
    tensors = tf.nest.flatten(batch, expand_composites=True)
    return sum(
        t.dtype.size * int(np.prod(t.shape, dtype=np.int64)) for t in tensors if t is not None
    )


def _opener(dataset: Any, prefetch: int = PREFETCH) -> Callable[[], Iterator[Any]]:
    """Return a function that starts a new pass over the dataset.

    A tf.data pipeline makes so many batches ahead: its own choice would depend on timing.
    """
    if isinstance(dataset, tf.data.Dataset):
        if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError("the dataset is infinite: drop .repeat(), or add .take(n).")
        ahead = dataset.prefetch(prefetch)
        return lambda: iter(ahead)
    if isinstance(dataset, tf.distribute.DistributedDataset):
        return lambda: iter(dataset)
    if isinstance(dataset, (dict, str, bytes, np.ndarray, tf.Tensor)):
        raise TypeError(
            f"dataset must be an iterable of batches, got a single {type(dataset).__name__}. "
            "Wrap one batch in a list: [batch]."
        )
    if isinstance(dataset, (list, tuple)):
        if isinstance(dataset, tuple) and any(
            isinstance(part, (np.ndarray, tf.Tensor)) for part in dataset
        ):
            raise TypeError(
                "dataset is a tuple of arrays, which is one batch, not an iterable of batches. "
                "Wrap it in a list: [(x, y)]."
            )
        return lambda: iter(dataset)
    if hasattr(dataset, "__getitem__") and (
        hasattr(dataset, "num_batches") or hasattr(dataset, "__len__")
    ):
        # Keras's PyDataset says None where it has no end; tf_keras's Sequence has only a length.
        total = dataset.num_batches if hasattr(dataset, "num_batches") else len(dataset)
        if total is None:
            raise ValueError("the dataset is infinite: its num_batches is None.")
        return lambda: (dataset[i] for i in range(total))
    if hasattr(dataset, "__iter__"):
        if iter(dataset) is dataset:
            raise ValueError(
                "the dataset is an iterator, used up after one pass, and every product needs a "
                "pass of its own. Pass a list, a tf.data.Dataset, or a callable that returns a "
                "new iterator each time."
            )
        return lambda: iter(dataset)
    if callable(dataset):
        return lambda: iter(dataset())
    raise TypeError(
        f"dataset must be a tf.data.Dataset, a list of batches, a PyDataset or a callable that "
        f"returns an iterator, got {type(dataset).__name__}."
    )


def _length(dataset: Any) -> int:
    """Return how many batches a dataset says it has, 0 where it does not say."""
    try:
        return len(dataset)
    except TypeError:  # of unknown length, a callable, an iterable
        return 0


def unsteady_stages(dataset: Any) -> tuple[str, ...]:
    """Return what in a tf.data pipeline may give other batches, or another order, at each pass."""
    found: list[str] = []
    stages = [dataset]
    while stages:
        stage = stages.pop()
        if not isinstance(stage, tf.data.Dataset):
            continue
        kind = type(stage).__name__.strip("_").removesuffix("Dataset")
        # What a stage was given is not public: where these names are not there, nothing is said.
        if getattr(stage, "_reshuffle_each_iteration", False):
            found.append("shuffle without reshuffle_each_iteration=False")
        if getattr(stage, "_deterministic", None) == "false":
            found.append(f"{kind} with deterministic=False")
        stages += stage._inputs()
    if isinstance(dataset, tf.data.Dataset) and dataset.options().deterministic is False:
        found.append("options().deterministic = False")
    return tuple(dict.fromkeys(found))


def batch_hash(batch: Any) -> str:
    """Return a hash of all tensors of a batch: composite ones, text and None included."""
    digest = hashlib.sha256()
    for part in tf.nest.flatten(batch, expand_composites=True):
        if part is None:
            digest.update(b"None")
            continue
        array = np.asarray(part)
        digest.update(f"{array.dtype}{array.shape}".encode())
        # An array of text holds pointers.
        if array.dtype == object:
            digest.update(repr(array.tolist()).encode())
        else:
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def examples_hash(batch: Any) -> int:
    """Return the sum of the hashes of a batch's examples, modulo 2^128: the same in any order.

    An example is one row of every tensor: inputs, labels and sample weight together. A batch whose
    tensors have no such rows counts as one example.
    """
    rows = _rows(batch)
    if rows is None:
        return int(batch_hash(batch)[:32], 16)
    form, columns = rows
    start = hashlib.blake2b(form.encode(), digest_size=16)
    total = 0
    for parts in zip(*columns, strict=True):
        digest = start.copy()
        for part in parts:
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        total += int.from_bytes(digest.digest(), "big")
    return total % HASHES
