"""Batches of TensorFlow: how datasets are opened, and batches counted, joined and hashed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density.engines import datasets
from spectral_density.engines.tensorflow.keras_internals import (
    is_unordered,
    reshuffles,
    stages_before,
)

PREFETCH = 2
"""Batches of a `tf.data` pipeline that are made while others are computed with.

Or as many as are computed together: a fixed number, so that a pass takes constant memory.
"""

EMPTY, HASHES, length = datasets.EMPTY, datasets.HASHES, datasets.length


def one_pass(dataset: Any) -> Iterator[Any]:
    """Begin a pass over a dataset of any kind, batches as it gives them.

    Raises:
        TypeError: if it cannot be iterated.
        ValueError: if it is infinite or used up after one pass.
    """
    return opener(dataset)()


def first_batch(dataset: Any) -> Any:
    """Return the first batch of a dataset with an example in it, as tensors.

    Raises:
        ValueError: if there is none.
    """
    for batch in opener(dataset)():
        if is_distributed(dataset):
            batch = tf.nest.map_structure(_of_first_replica, batch)
        batch = to_tensors(batch)
        if not is_empty(batch):
            return batch
    raise ValueError(EMPTY)


def _of_first_replica(part: Any) -> Any:
    return part.values[0] if isinstance(part, tf.distribute.DistributedValues) else part


def count_examples(batch: Any) -> int:
    """Return the number of examples in a batch: the leading dimension its tensors share.

    Where the tensors of an `(x, y)` or `(x, y, w)` batch differ, x and y decide.

    Raises:
        ValueError: if no such dimension can be found.
    """
    of_two = batch[:2] if isinstance(batch, (list, tuple)) else batch
    return datasets.common_size(_leading_sizes(batch), _leading_sizes(of_two))


def to_tensors(batch: Any) -> Any:
    """Return a batch with tensors in place of arrays and numbers."""
    return tf.nest.map_structure(_to_tensor, batch)


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


def is_empty(batch: Any) -> bool:
    """Tell whether all tensors of a batch have no rows."""
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


def join(batches: list[Any]) -> Any:
    """Return batches of one form as one batch."""
    if len(batches) == 1:
        return batches[0]
    return tf.nest.map_structure(
        lambda *parts: None if parts[0] is None else tf.concat(parts, axis=0), *batches
    )


def split(joined: Any, sizes: list[int]) -> Iterator[Any]:
    """Yield the batches of these sizes that one was made of by `join`."""
    ends = np.cumsum(sizes).tolist()
    for start, end in zip([0, *ends], ends, strict=False):
        yield tf.nest.map_structure(
            lambda leaf, start=start, end=end: None if leaf is None else leaf[start:end], joined
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
    return datasets.bytes_of_rows(np.asarray(leaf))


def nbytes(batch: Any) -> int:
    """Return the bytes of all tensors of a batch."""
    tensors = tf.nest.flatten(batch, expand_composites=True)
    return sum(
        t.dtype.size * int(np.prod(t.shape, dtype=np.int64)) for t in tensors if t is not None
    )


def opener(dataset: Any, prefetch: int = PREFETCH) -> Callable[[], Iterator[Any]]:
    """Return a function that starts a new pass over the dataset.

    A tf.data pipeline makes so many batches ahead: its own choice would depend on timing.
    """
    if isinstance(dataset, tf.data.Dataset):
        if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError("the dataset is infinite: drop .repeat(), or add .take(n).")
        ahead = dataset.prefetch(prefetch)
        return lambda: iter(ahead)
    if is_distributed(dataset):
        return lambda: iter(dataset)
    return datasets.opener(dataset, (tf.Tensor,))


def is_distributed(dataset: Any) -> bool:
    """Tell whether a dataset has its batches dealt to the replicas of a strategy."""
    return isinstance(dataset, tf.distribute.DistributedDataset)


def is_re_iterable(dataset: Any) -> bool:
    """Tell whether a dataset is known to be iterated again and again."""
    return isinstance(dataset, (list, tuple, tf.data.Dataset))


def unsteady_stages(dataset: Any) -> tuple[str, ...]:
    """Return what in a tf.data pipeline may give other batches, or another order, at each pass."""
    found: list[str] = []
    stages = [dataset]
    while stages:
        stage = stages.pop()
        if not isinstance(stage, tf.data.Dataset):
            continue
        kind = type(stage).__name__.strip("_").removesuffix("Dataset")
        if reshuffles(stage):
            found.append("shuffle without reshuffle_each_iteration=False")
        if is_unordered(stage):
            found.append(f"{kind} with deterministic=False")
        stages += stages_before(stage)
    if isinstance(dataset, tf.data.Dataset) and dataset.options().deterministic is False:
        found.append("options().deterministic = False")
    return tuple(dict.fromkeys(found))


def batch_hash(batch: Any) -> str:
    """Return a hash of all tensors of a batch: composite ones, text and None included."""
    return datasets.hash_of(tf.nest.flatten(batch, expand_composites=True))


def examples_hash(batch: Any) -> int:
    """Return the sum of the hashes of a batch's examples, modulo 2^128: the same in any order.

    An example is one row of every tensor: inputs, labels and sample weight together. A batch whose
    tensors have no such rows counts as one example.
    """
    rows = _rows(batch)
    if rows is None:
        return int(batch_hash(batch)[:32], 16)
    return datasets.sum_of_hashes(*rows)


def halves(batch: Any) -> list[tuple[Any, int, int]] | None:
    """Return two parts of a batch, each with its first example and the one after its last.

    None where there are no two examples that can be told apart.
    """
    leaves = [leaf for leaf in tf.nest.flatten(batch) if leaf is not None]
    sizes = {leaf.shape[0] for leaf in leaves if leaf.shape.rank}
    sparse = any(isinstance(leaf, tf.SparseTensor) for leaf in leaves)
    if sparse or len(sizes) != 1 or None in sizes or min(sizes) < 2:
        return None
    size = sizes.pop()
    middle = size // 2

    def part(start: int, stop: int) -> Any:
        def cut(leaf: Any) -> Any:
            return leaf if leaf is None or not leaf.shape.rank else leaf[start:stop]

        return tf.nest.map_structure(cut, batch)

    return [(part(start, stop), start, stop) for start, stop in ((0, middle), (middle, size))]
