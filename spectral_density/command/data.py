"""Datasets of the command line: from a name, a file or a function, as batches of NumPy arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from spectral_density.command.before_loading import (
    check_exists,
    check_names,
    check_source,
    needs_tfds,
    split_name,
)
from spectral_density.command.imported import call
from spectral_density.command.quiet import absl_warnings_suppressed

DEFAULT_BATCH_SIZE = 128

# Images of uint8 whose largest pixel is below this are hardly on a scale that ends at 255.
_LEAST_LARGEST = 128

Batch = tuple[Any, ...]  # (x, y) or (x, y, w)


@dataclass(frozen=True)
class Examples:
    """Batches from a file or a named dataset; calling it starts a new pass.

    Attributes:
        source: as the user named it.
        stored: starts a pass over the batches as they are stored.
        transforms: applied to each batch in turn.
        notes: descriptions of the transforms, for the user.
    """

    source: str
    stored: Callable[[], Iterator[Batch]]
    transforms: tuple[Callable[[Batch], Batch], ...] = ()
    notes: tuple[str, ...] = ()

    def __call__(self) -> Iterator[Batch]:
        """Yield the batches."""
        for batch in self.stored():
            for transform in self.transforms:
                batch = transform(batch)
            yield batch

    def first(self) -> Batch:
        """Return the first batch.

        Raises:
            ValueError: if there is none.
        """
        for batch in self():
            return batch
        raise ValueError(f"{self.source} holds no examples.")

    def transformed(self, transform: Callable[[Batch], Batch], note: str | None = None) -> Examples:
        """Return these batches with one more transform, and a note about it."""
        notes = self.notes if note is None else (*self.notes, note)
        return replace(self, transforms=(*self.transforms, transform), notes=notes)

    def with_note(self, note: str) -> Examples:
        """Return these batches with one more note."""
        return replace(self, notes=(*self.notes, note))


def open_data(
    source: str, *, batch_size: int | None = None, scale: bool = True, download: bool = False
) -> Any:
    """Open what `--data` names.

    Args:
        source: `tfds:name[split]`, `file.npz`, or `module:function`.
        batch_size: examples in a batch of the first two; None for 128.
        scale: divide uint8 images by 255.
        download: fetch a dataset of TensorFlow Datasets that is not on the disk.

    Returns:
        `Examples`, or, of `module:function`, whatever the function returned.

    Raises:
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: if tensorflow_datasets is needed, and it or TensorFlow not installed.
        ValueError: if it is none of the three, or cannot be read.
    """
    check_source(source, batch_size, download)
    size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
    if source.startswith("tfds:"):
        return _scaled(_from_tfds(source, size, download), scale)
    if source.endswith(".npz"):
        return _scaled(_from_npz(source, size), scale)
    dataset = call(source)
    if dataset is None:
        raise ValueError(f"{source}() returned None, not a dataset.")
    return dataset


# Files -------------------------------------------------------------------------------------------


def _from_npz(source: str, batch_size: int) -> Examples:
    arrays = _read(Path(source))
    unknown = [name for name in arrays if name not in ("x", "y", "w")]
    check_names(source, list(arrays))
    parts = tuple(arrays[name] for name in ("x", "y", "w") if name in arrays)
    lengths = {name: len(arrays[name]) for name in ("x", "y", "w") if name in arrays}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{length:,} in {name}" for name, length in lengths.items())
        raise ValueError(f"{source} holds different numbers of examples: {listed}.")
    total = len(parts[0])

    def stored() -> Iterator[Batch]:
        for start in range(0, total, batch_size):
            yield tuple(part[start : start + batch_size] for part in parts)

    examples = Examples(source, stored)
    if unknown:
        examples = examples.with_note(f"of no use here and ignored: {', '.join(unknown)}")
    return examples


def _read(path: Path) -> dict[str, np.ndarray]:
    check_exists(path)
    try:
        # Opened here: `np.load` leaves a damaged archive open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        if "Object arrays" in str(error):
            raise ValueError(
                f"{path} holds arrays of Python objects; save arrays of numbers of one shape."
            ) from error
        raise ValueError(f"{path} is no npz file, or is damaged.") from error
    scalars = [name for name in ("x", "y", "w") if name in arrays and not arrays[name].shape]
    if scalars:
        raise ValueError(f"{path}: {', '.join(scalars)} must be an array with one row an example.")
    texts = [name for name in ("y", "w") if name in arrays and arrays[name].dtype.kind in "SU"]
    if texts:
        raise ValueError(f"{path}: {', '.join(texts)} must hold numbers, and holds text.")
    return arrays


# TensorFlow Datasets -----------------------------------------------------------------------------


def _from_tfds(source: str, batch_size: int, download: bool) -> Examples:
    name, split = split_name(source)
    try:
        import tensorflow_datasets as tfds

        import_module("tensorflow")  # which it imports only when it reads a file
    except ImportError as error:
        raise needs_tfds(source) from error
    try:
        with absl_warnings_suppressed():
            dataset = tfds.load(
                name, split=split, as_supervised=True, shuffle_files=False, download=download
            )
    except ModuleNotFoundError as error:  # a requirement of this dataset
        raise ModuleNotFoundError(
            f"tensorflow_datasets needs {error.name} to load {source}: pip install {error.name}"
        ) from error
    except Exception as error:  # of the builder, of the split, of the network
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        if not download:
            first += " (--download fetches what is not on the disk)"
        raise ValueError(f"tensorflow_datasets cannot load {source}: {first}") from error

    def stored() -> Iterator[Batch]:
        return iter(tfds.as_numpy(dataset.batch(batch_size)))

    return Examples(source, stored)


# Images ------------------------------------------------------------------------------------------


def _scaled(examples: Examples, scale: bool) -> Examples:
    """Convert uint8 images to float32, divided by 255 with `scale`."""
    x = examples.first()[0]
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8:
        return examples
    if x.ndim < 3:
        return examples.with_note("uint8 inputs left as they are: rows of numbers, not images")
    if not scale:
        return examples.transformed(
            lambda batch: (batch[0].astype(np.float32), *batch[1:]),
            "uint8 images left in [0, 255]",
        )
    scaled = examples.transformed(
        lambda batch: (batch[0].astype(np.float32) / np.float32(255), *batch[1:]),
        "uint8 images scaled to [0, 1] (--no-scale leaves them)",
    )
    largest = _largest_pixel(examples)
    if largest >= _LEAST_LARGEST:
        return scaled
    return scaled.with_note(
        f"doubtful: no pixel is above {largest}, and they were divided by 255. If the model was "
        "trained on another scale, save x as float32 on that scale, or pass --no-scale"
    )


def _largest_pixel(examples: Examples) -> int:
    """Return the largest pixel, or the first that is near the largest there can be."""
    largest = 0
    for x, *_ in examples():
        largest = max(largest, int(x.max(initial=0)))
        if largest >= _LEAST_LARGEST:
            break
    return largest


# Labels ------------------------------------------------------------------------------------------


def with_labels_for(examples: Examples, loss: str | None, num_outputs: int | None) -> Examples:
    """Convert labels to the form that a loss takes: class numbers, or one-hot rows.

    Args:
        examples: batches with labels y.
        loss: name of one of Keras's own losses, None for any other: labels stay as they are.
        num_outputs: size of the last axis of the model's output, None where it has several.

    Raises:
        ValueError: if a label in the first batch is no class of the model.
    """
    y = examples.first()[1]
    if loss is None or num_outputs is None or not isinstance(y, np.ndarray):
        return examples
    numbers = y.dtype.kind in "iub" and (y.ndim == 1 or y.shape[1:] == (1,))
    if loss.startswith("sparse_"):
        if numbers:
            return examples.transformed(lambda batch: _checked(batch, num_outputs, examples.source))
        if y.ndim == 2 and y.shape[1] == num_outputs and _is_one_hot(y):
            return examples.transformed(
                lambda batch: (batch[0], np.argmax(batch[1], axis=1), *batch[2:]),
                f"one-hot labels made class numbers for {loss}",
            )
        return examples
    if not numbers or num_outputs == 1:
        return examples

    def one_hot(batch: Batch) -> Batch:
        x, labels, *rest = _checked(batch, num_outputs, examples.source)
        return x, np.eye(num_outputs, dtype=np.float32)[labels.reshape(-1).astype(int)], *rest

    return examples.transformed(one_hot, f"labels made one-hot for {loss}")


def _checked(batch: Batch, num_classes: int, source: str) -> Batch:
    labels = batch[1]
    if labels.size and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise ValueError(
            f"{source} has labels from {labels.min()} to {labels.max()}, and the model has "
            f"{num_classes} outputs: classes are numbered from 0."
        )
    return batch


def _is_one_hot(labels: np.ndarray) -> bool:
    return bool(np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all())
