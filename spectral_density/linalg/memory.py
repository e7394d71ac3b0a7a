"""Memory checks before a run, and arrays on disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import psutil


def free_memory() -> int:
    """Return the bytes of memory that are free on the host."""
    return psutil.virtual_memory().available


def check_memory(
    needed: Mapping[str, int], ways_out: str, *, free: int | None = None, place: str = ""
) -> None:
    """Raise if the bytes that a run needs are more than are free.

    Args:
        needed: bytes of each of the arrays that are in memory at the same time, by name.
        ways_out: what the user can do about it.
        free: bytes that are free; None for those of the host.
        place: said after them where they are not the host's, such as " on gpu (JAX)".

    Raises:
        MemoryError: with every figure, and the ways out.
    """
    total = sum(needed.values())
    free = free_memory() if free is None else free
    if total > free:
        parts = ", ".join(f"{name} {_gib(size)}" for name, size in needed.items() if size)
        raise MemoryError(
            f"the run would take {_gib(total)} ({parts}), and {_gib(free)} are free{place}. "
            f"{ways_out}"
        )


def on_disk(
    shape: tuple[int, ...], dtype: Any, directory: str | os.PathLike[str] | None = None
) -> np.ndarray:
    """Return an array whose entries are in an unnamed file, which is removed with the array.

    Args:
        shape: of the array.
        dtype: of its entries.
        directory: where the file is; None for that of temporary files (`TMPDIR`).

    Raises:
        OSError: if the file cannot be made.
    """
    with tempfile.TemporaryFile(dir=directory) as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
