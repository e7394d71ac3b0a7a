"""Checkpoints: a directory with the identity of a run, its vectors and its scalars.

A directory holds `problem.json` (the identity of the run, which a later run must match) and a
folder for each log of vectors: `vectors.bin`, to which every step appends, and `state.npz`, which
has the number of vectors that count. A step is made durable in this order: its vectors are written
and synchronized, then the state is written beside the old one and renamed over it. So a process may
end at any moment, and all vectors that the state counts are there.

Where several workers compute a run together, the chief alone reads and writes, and sends what it
reads, and its errors, to the others.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from spectral_density._warnings import warn

try:
    import fcntl
except ImportError:  # Windows: there a second run in the same directory is not noticed
    fcntl = None  # type: ignore[assignment]

FORMAT = 2
"""Version of the layout of the files, and of the random streams that their vectors came from."""

_CHECKSUMS = "checksums of vectors"

# Contents of the hashes of a problem, by their names.
_HASHED = {
    "operator hash": "entries of the matrix",
    "operator weights": "weights of the model",
    "operator other variables": "variables that the loss reads outside of the model",
    "operator graph": "operations or constants of the loss",
    "operator data": "data",
    "operator examples": "examples",
    "operator batch weights": "weights of the batches",
    "start": "start vectors",
}

# The format of an operator's fingerprint.
_OPERATOR_FORMAT = "operator format"

# With equal hashes of the examples, these differ by the order of the examples only.
_EXAMPLES = "operator examples"
_ORDERED = ("operator data", "operator batch weights")

T = TypeVar("T")


class CheckpointError(RuntimeError):
    """A checkpoint that is damaged, of another problem, in use, or cannot be written."""


class Workers(Protocol):
    """Processes that compute a run together, each calling the same things in the same order."""

    @property
    def is_chief(self) -> bool:
        """Whether this is the process that reads and writes."""
        ...

    def on_chief(self, function: Callable[[], T]) -> T:
        """Return to every worker what the function returns, or raises, on the chief."""
        ...


def workers_of(operator: Any) -> Workers | None:
    """Return the workers that compute the products of an operator, None for this process alone.

    They are the operator's `workers`, or those of the parts of a sum or multiple of operators.
    """
    workers = getattr(operator, "workers", None)
    parts = getattr(operator, "args", ()) if workers is None else ()
    for part in parts:
        workers = workers or workers_of(part)
    return workers


def open_run(
    path: str | os.PathLike[str], problem: Mapping[str, Any], workers: Workers | None = None
) -> RunDirectory:
    """Return the directory of a run, shared by all workers that compute it; see `RunDirectory`."""
    if workers is None:
        return RunDirectory(path, problem)
    return _SharedRunDirectory(path, problem, workers)


class RunDirectory:
    """The directory of one run, held by one process at a time; a context manager."""

    def __init__(self, path: str | os.PathLike[str], problem: Mapping[str, Any]):
        """Start a run in an empty or new directory, or continue one of the same problem.

        Args:
            path: the directory; made if it does not exist.
            problem: identity of the run, equal in all runs that share the directory.

        Raises:
            CheckpointError: if the directory holds a run of another problem (what differs is
                named), is in use by another process, is damaged, or cannot be written.
        """
        self.path = Path(path)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / "lock", "a")  # noqa: SIM115 - held until __exit__
        self._hold()
        try:
            problem = json.loads(json.dumps(problem))
            recorded = _read_problem(self.path)
            if recorded is None:
                self._refuse_other_files()
                recorded = {"format": FORMAT, "problem": problem}
                with writing(self.path):
                    _replace(self.path / "problem.json", json.dumps(recorded, indent=1).encode())
            _compare(self.path, recorded["problem"], problem)
        except BaseException:
            self._lock.close()
            raise

    def _hold(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise CheckpointError(
                f"the checkpoint {self.path} is in use by another process. Wait for it to end, "
                "or use another directory."
            ) from None

    def _refuse_other_files(self) -> None:
        others = sorted(entry.name for entry in self.path.iterdir() if entry.name != "lock")
        if others:
            raise CheckpointError(
                f"{self.path} is not empty and holds no checkpoint (it has {others[0]!r}). "
                "Use an empty or new directory."
            )

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.close()

    def log(self, name: str, size: int, dtype: Any, slots: int | None = None) -> VectorLog:
        """Return the log of that name, new or continued; see `VectorLog`."""
        return VectorLog(self.path / name, size, dtype, slots)

    def names(self, pattern: str) -> list[str]:
        """Return the names of the logs that match a pattern, such as "draws-*"."""
        return sorted(path.name for path in self.path.glob(pattern))


class VectorLog:
    """An append-only log of vectors, with a state of named arrays.

    Attributes:
        num_vectors: how many are durable.
        arrays: the state saved with the last of them.
    """

    def __init__(self, path: Path, size: int, dtype: Any, slots: int | None = None):
        """Open the log in a folder, which is made if it does not exist.

        Args:
            path: the folder.
            size: entries of each vector.
            dtype: their dtype.
            slots: keep the last so many vectors only; None keeps all.
        """
        self.path = path
        self._size = size
        self._dtype = np.dtype(dtype)
        self._slots = slots
        self._checksums = np.zeros(0, np.uint32)
        self.arrays: dict[str, np.ndarray] = {}
        with writing(path):
            path.mkdir(exist_ok=True)
            (path / "vectors.bin").touch()
            self._file = open(path / "vectors.bin", "r+b", buffering=0)  # noqa: SIM115 - see close
        if (path / "state.npz").exists():
            self._load()

    @property
    def num_vectors(self) -> int:
        """How many vectors are durable."""
        return len(self._checksums)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def remove(self) -> None:
        """Remove the log from the disk, the state first: without it the vectors do not count."""
        self.close()
        with writing(self.path):
            for name in ("state.npz", "vectors.bin"):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()

    def append(self, vectors: Iterable[np.ndarray], arrays: Mapping[str, np.ndarray]) -> None:
        """Make vectors and the arrays durable, all of them or none.

        Raises:
            CheckpointError: if they cannot be written; the state before stays valid.
        """
        before, checksums = self._checksums, []
        with writing(self.path):
            for index, vector in enumerate(vectors, self.num_vectors):
                view = np.ascontiguousarray(vector, self._dtype).view(np.uint8).data
                self._write(view, self._offset(index))
                checksums.append(zlib.crc32(view))
            os.fsync(self._file.fileno())
        self._checksums = np.concatenate([before, np.array(checksums, np.uint32)])
        try:
            self._save(arrays)
        except CheckpointError:
            self._checksums = before
            raise

    def read(self, index: int) -> np.ndarray:
        """Return a vector, shape (size,).

        Raises:
            CheckpointError: if it is damaged.
        """
        vector = np.empty(self._size, self._dtype)
        view = vector.view(np.uint8).data
        self._file.seek(self._offset(index))
        done = 0
        while done < len(view) and (count := self._file.readinto(view[done:])):
            done += count
        if done < len(view) or zlib.crc32(view) != self._checksums[index]:
            fault = "truncated" if done < len(view) else "damaged"
            raise CheckpointError(
                f"the checkpoint {self.path / 'vectors.bin'} is {fault} at vector {index}: what is "
                "there is not what was written. Restore the directory from a copy, or remove it "
                "and begin again."
            )
        return vector

    def _offset(self, index: int) -> int:
        slot = index if self._slots is None else index % self._slots
        return slot * self._size * self._dtype.itemsize

    def _write(self, view: memoryview, offset: int) -> None:
        self._file.seek(offset)
        done = 0
        while done < len(view):
            done += self._file.write(view[done:])

    def _save(self, arrays: Mapping[str, np.ndarray]) -> None:
        content = BytesIO()
        stored: dict[str, Any] = {_CHECKSUMS: self._checksums, **arrays}
        np.savez(content, **stored)
        with writing(self.path):
            _replace(self.path / "state.npz", content.getvalue())
        self.arrays = dict(arrays)

    def _load(self) -> None:
        path = self.path / "state.npz"
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            self._checksums = arrays.pop(_CHECKSUMS)
        except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, OSError) as error:
            self.close()
            raise CheckpointError(
                f"the checkpoint {path} cannot be read ({error}): it is truncated or damaged. "
                "Restore the directory from a copy, or remove it and begin again."
            ) from error
        self.arrays = arrays


class _SharedRunDirectory(RunDirectory):
    """The directory of a run that several workers compute; only the chief opens the files."""

    def __init__(
        self, path: str | os.PathLike[str], problem: Mapping[str, Any], workers: Workers
    ) -> None:
        self.path = Path(path)
        self._workers = workers
        self._real: RunDirectory | None = None

        def begin() -> None:
            self._real = RunDirectory(path, problem)

        workers.on_chief(begin)

    def __exit__(self, *error: object) -> None:
        if self._real is not None:
            self._real.__exit__(None, None, None)

    def log(self, name: str, size: int, dtype: Any, slots: int | None = None) -> VectorLog:
        return _SharedLog(self._workers, self.path / name, size, dtype, slots)

    def names(self, pattern: str) -> list[str]:
        return self._workers.on_chief(lambda: RunDirectory.names(self, pattern))


class _SharedLog(VectorLog):
    """A log whose files the chief has; every worker has its contents."""

    def __init__(
        self,
        workers: Workers,
        path: Path,
        size: int,
        dtype: Any,
        slots: int | None,
    ) -> None:
        self.path = path
        self._workers = workers
        self._real: VectorLog | None = None

        def begin() -> tuple[int, dict[str, np.ndarray]]:
            self._real = VectorLog(path, size, dtype, slots)
            return self._real.num_vectors, self._real.arrays

        self._count, self.arrays = workers.on_chief(begin)

    @property
    def num_vectors(self) -> int:
        return self._count

    def close(self) -> None:
        if self._real is not None:
            self._real.close()

    def remove(self) -> None:
        self._on_chief(VectorLog.remove)

    def append(self, vectors: Iterable[np.ndarray], arrays: Mapping[str, np.ndarray]) -> None:
        def write(log: VectorLog) -> int:
            log.append(vectors, arrays)
            return log.num_vectors

        self._count = self._on_chief(write)
        self.arrays = dict(arrays)

    def read(self, index: int) -> np.ndarray:
        return self._on_chief(lambda log: log.read(index))

    def _on_chief(self, function: Callable[[VectorLog], T]) -> T:
        # Only the chief calls it, and it has the files.
        return self._workers.on_chief(lambda: function(cast(VectorLog, self._real)))


def recorded_problem(
    path: str | os.PathLike[str], workers: Workers | None = None
) -> dict[str, Any] | None:
    """Return the problem of the run in a directory, None where there is none.

    Raises:
        CheckpointError: if it cannot be read, or was written by another version of the format.
    """

    def here() -> dict[str, Any] | None:
        recorded = _read_problem(Path(path))
        return None if recorded is None else recorded["problem"]

    return here() if workers is None else workers.on_chief(here)


def _read_problem(path: Path) -> dict[str, Any] | None:
    """Return the contents of `problem.json` in a directory, None where there is none.

    Raises:
        CheckpointError: if it cannot be read, or was written by another version of the format.
    """
    try:
        recorded = json.loads((path / "problem.json").read_text())
        version = recorded["format"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the checkpoint {path / 'problem.json'} cannot be read ({error}). Restore the "
            "directory from a copy, or remove it and begin again."
        ) from error
    if version != FORMAT:
        raise CheckpointError(
            f"the checkpoint {path} has format {version}, and this version reads {FORMAT}. "
            "Finish the run with the version that began it, or begin again elsewhere."
        )
    return recorded


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert an error of the file system to a `CheckpointError`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"cannot write the checkpoint {path}: {error.strerror or error}. What was written "
            "before is kept: make room or give access, and run again to go on from there."
        ) from error


def _replace(path: Path, content: bytes) -> None:
    """Replace a file atomically and durably: after an error it is the old one."""
    temporary = path.with_name(path.name + ".new")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _compare(path: Path, recorded: Mapping[str, Any], problem: Mapping[str, Any]) -> None:
    """Check that a recorded run is of the same problem, but for the order of the examples.

    Raises:
        CheckpointError: if it is not, naming what differs.
    """
    old, new = _flat(recorded), _flat(problem)
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if _OPERATOR_FORMAT in names:
        raise CheckpointError(
            f"the checkpoint {path} describes its operator in format "
            f"{old.get(_OPERATOR_FORMAT, 'none')}, and this version in format "
            f"{new.get(_OPERATOR_FORMAT, 'none')}: whether they are the same is not known. Finish "
            "the run with the version that began it, or begin again elsewhere."
        )
    reordered = False
    if _EXAMPLES in names and "operator data" in names:
        names.remove(_EXAMPLES)  # implied by the data
    elif new.get(_EXAMPLES) is not None:
        reordered = any(name in _ORDERED for name in names)
        names = [name for name in names if name not in _ORDERED]
    different = [_difference(name, old.get(name), new.get(name)) for name in names]
    if reordered and not different:
        warn(
            f"the checkpoint {path} was begun with the same examples in another order: the steps "
            "that follow differ by rounding from those of an undisturbed run."
        )
    if different:
        raise CheckpointError(
            f"the checkpoint {path} is of another problem: {'; '.join(different)}. "
            "Use another directory, or the same problem."
        )


def _flat(problem: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in problem.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name} ")
        else:
            flat[prefix + name] = value
    return flat


def _difference(name: str, old: Any, new: Any) -> str:
    """Return what differs, as text; of hashes only that they do."""
    if _is_hash(old) and _is_hash(new):
        return f"the {_HASHED.get(name, name)} differ"
    return f"{name} is {_short(new)} and was {_short(old)}"


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{32}|[0-9a-f]{64}", value) is not None


def _short(value: Any) -> str:
    if value is None or _is_hash(value):
        return "given" if value else "not given"
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
