"""Datasets of no framework's own: how they are opened, and examples counted and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

HASHES = 1 << 128
"""Hashes of examples are added up modulo this number."""

EMPTY = "the dataset is empty: it gave no batch with an example in it."


def opener(dataset: Any, arrays: tuple[type, ...]) -> Callable[[], Iterator[Any]]:
    """Return a function that starts a new pass over a list, a `PyDataset`, an iterable or callable.

    Args:
        dataset: the batches.
        arrays: the framework's classes of arrays, beside NumPy's.

    Raises:
        TypeError: if it cannot be iterated.
        ValueError: if it is infinite or used up after one pass.
    """
    if isinstance(dataset, (dict, str, bytes, np.ndarray, *arrays)):
        raise TypeError(
            f"dataset must be an iterable of batches, got a single {type(dataset).__name__}. "
            "Wrap one batch in a list: [batch]."
        )
    if isinstance(dataset, (list, tuple)):
        if isinstance(dataset, tuple) and any(
            isinstance(part, (np.ndarray, *arrays)) or _is_of_numbers(part) for part in dataset
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


def _is_of_numbers(part: Any) -> bool:
    """Tell a list of numbers, such as labels, from a batch."""
    return isinstance(part, list) and bool(part) and isinstance(part[0], (int, float))


def length(dataset: Any) -> int:
    """Return how many batches a dataset says it has, 0 where it does not say."""
    try:
        return len(dataset)
    except TypeError:  # of unknown length, a callable, an iterable
        return 0


def common_size(sizes: set[int], of_x_and_y: set[int]) -> int:
    """Return the leading dimension that the arrays of a batch share.

    Args:
        sizes: the leading dimensions of all.
        of_x_and_y: those of the first two parts, which decide where they differ.

    Raises:
        ValueError: if there is no one dimension.
    """
    if len(sizes) > 1:
        sizes = of_x_and_y
    if not sizes:
        raise ValueError(
            "the examples of a batch cannot be counted: its tensors are of no size (all scalars). "
            "Is the dataset batched? Parts that are lists of numbers become arrays by "
            "np.asarray; or say how much a batch counts with batch_weight=lambda batch: ..."
        )
    if len(sizes) != 1:
        raise ValueError(
            "the examples of a batch cannot be counted: its tensors have leading dimensions "
            f"{sorted(sizes)}, which must be one number. Is the dataset batched (.batch(n))? Or "
            "say how much a batch counts with batch_weight=lambda batch: ..."
        )
    return next(iter(sizes))


def hash_of(parts: Sequence[Any]) -> str:
    """Return a hash of arrays, text and None included."""
    digest = hashlib.sha256()
    for part in parts:
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


def bytes_of_rows(array: np.ndarray) -> Any:
    """Return each row of an array as bytes."""
    if array.dtype == object:  # text
        return [repr(row).encode() for row in array.tolist()]
    flat = array.reshape(len(array), int(np.prod(array.shape[1:], dtype=np.int64)))
    return np.ascontiguousarray(flat).view(np.uint8)


def sum_of_hashes(form: str, columns: Sequence[Any]) -> int:
    """Return the sum of the hashes of examples, modulo 2^128: the same in any order.

    Args:
        form: of each example, which enters its hash.
        columns: for each array of a batch its rows, as bytes.
    """
    start = hashlib.blake2b(form.encode(), digest_size=16)
    total = 0
    for parts in zip(*columns, strict=True):
        digest = start.copy()
        for part in parts:
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        total += int.from_bytes(digest.digest(), "big")
    return total % HASHES
