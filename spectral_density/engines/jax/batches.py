"""Batches as pytrees of arrays: how datasets are opened, batches counted, joined, hashed.

What is no array of JAX yet is one of NumPy, on the host, until it is computed with: a dataset may
be larger than the memory of a device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_density.engines import datasets
from spectral_density.engines.jax.arrays import to_host

EMPTY, HASHES, length = datasets.EMPTY, datasets.HASHES, datasets.length
PREFETCH = 2


def opener(dataset: Any, prefetch: int = PREFETCH) -> Callable[[], Iterator[Any]]:
    """Return a function that starts a new pass over the dataset.

    A `tf.data` pipeline makes so many batches ahead, and gives them as NumPy arrays.
    """
    if _is_of_tf_data(dataset):
        if dataset.cardinality() == sys.modules["tensorflow"].data.INFINITE_CARDINALITY:
            raise ValueError("the dataset is infinite: drop .repeat(), or add .take(n).")
        return dataset.prefetch(prefetch).as_numpy_iterator
    return datasets.opener(dataset, (jax.Array,))


def first_batch(dataset: Any) -> Any:
    """Return the first batch of a dataset with an example in it, as arrays.

    Raises:
        ValueError: if there is none.
    """
    for given in opener(dataset)():
        batch = to_tensors(given)
        if not is_empty(batch):
            return batch
    raise ValueError(EMPTY)


def to_tensors(batch: Any) -> Any:
    """Return a batch with arrays, of dtypes that JAX has, for what can be made one; None stays.

    Raises:
        TypeError: if a leaf is no array of numbers.
    """
    return jax.tree.map(_to_array, batch)


def _to_array(leaf: Any) -> jax.Array | np.ndarray:
    if isinstance(leaf, jax.Array):
        return leaf
    array = np.asarray(leaf)
    if array.dtype.kind in "OSU":
        raise TypeError(
            f"a batch holds a {type(leaf).__name__} that is no array of numbers, and JAX computes "
            "with numbers alone: turn text into integers, and ragged arrays into padded ones."
        )
    # A copy: batches that are kept must not change when the user's array does.
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))


def unsteady_stages(dataset: Any) -> tuple[str, ...]:
    """Return nothing: what a pipeline gives at each pass is compared, not known beforehand."""
    del dataset
    return ()


def is_distributed(dataset: Any) -> bool:
    """Return False: batches are dealt to devices by their sharding."""
    del dataset
    return False


def is_re_iterable(dataset: Any) -> bool:
    """Tell whether a dataset is known to be iterated again and again."""
    return isinstance(dataset, (list, tuple)) or _is_of_tf_data(dataset)


def is_empty(batch: Any) -> bool:
    """Tell whether all arrays of a batch have no rows."""
    return _leading_sizes(batch) == {0}


def count_examples(batch: Any) -> int:
    """Return the number of examples in a batch: the leading dimension its arrays share.

    Where the arrays of an `(x, y)` or `(x, y, w)` batch differ, x and y decide.

    Raises:
        ValueError: if no such dimension can be found.
    """
    of_two = batch[:2] if isinstance(batch, (list, tuple)) else batch
    return datasets.common_size(_leading_sizes(batch), _leading_sizes(of_two))


def nbytes(batch: Any) -> int:
    """Return the bytes of all arrays of a batch."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(batch))


def form_of(batch: Any) -> tuple[int, str]:
    """Return the number of rows that all arrays of a batch have, 0 for none, and all else."""
    leaves, structure = jax.tree.flatten(batch)
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    if len(sizes) != 1 or None in sizes:
        return 0, ""
    form = [(leaf.dtype.name, *leaf.shape[1:]) for leaf in leaves]
    return int(leaves[0].shape[0]), f"{structure}{form}"


def join(batches: list[Any]) -> Any:
    """Return batches of one form as one batch."""
    if len(batches) == 1:
        return batches[0]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *batches)


def split(joined: Any, sizes: list[int]) -> Iterator[Any]:
    """Yield the batches of these sizes that one was made of by `join`."""
    ends = np.cumsum(sizes).tolist()
    for start, end in zip([0, *ends], ends, strict=False):
        yield jax.tree.map(lambda leaf, start=start, end=end: leaf[start:end], joined)


def halves(batch: Any) -> list[tuple[Any, int, int]] | None:
    """Return two parts of a batch, each with its first example and the one after its last.

    None where there are no two examples that can be told apart.
    """
    sizes = _leading_sizes(batch)
    if len(sizes) != 1 or min(sizes) < 2:
        return None
    size = sizes.pop()
    middle = size // 2

    def part(start: int, stop: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[start:stop] if leaf.ndim else leaf, batch)

    return [(part(start, stop), start, stop) for start, stop in ((0, middle), (middle, size))]


def batch_hash(batch: Any) -> str:
    """Return a hash of all arrays of a batch, and of its structure where a part is None."""
    leaves = jax.tree.leaves(batch, is_leaf=lambda part: part is None)
    return datasets.hash_of([leaf if leaf is None else _on_host(leaf) for leaf in leaves])


def examples_hash(batch: Any) -> int:
    """Return the sum of the hashes of a batch's examples, modulo 2^128: the same in any order.

    A batch whose arrays have no common number of rows counts as one example.
    """
    rows, form = form_of(batch)
    if not rows:
        return int(batch_hash(batch)[:32], 16)
    columns = [datasets.bytes_of_rows(_on_host(leaf)) for leaf in jax.tree.leaves(batch)]
    return datasets.sum_of_hashes(form, columns)


def _on_host(leaf: Any) -> np.ndarray:
    return to_host(leaf) if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _leading_sizes(batch: Any) -> set[int]:
    return {int(leaf.shape[0]) for leaf in jax.tree.leaves(batch) if leaf.ndim}


def _is_of_tf_data(dataset: Any) -> bool:
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(dataset, tensorflow.data.Dataset)
