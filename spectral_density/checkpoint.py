"""The on-disk form of a run in progress: whose it is, its vectors, and its scalars.

A directory holds `problem.json` (what the run is of, which a later run must match) and one folder
for each group of vectors that advance together: `vectors.bin`, to which every step appends, and
`state.npz`, which says how much of it counts. A step is durable in this order: its vectors are
written and synchronized, then the state is written beside the old one and renamed over it. So a
process may die at any moment, and what the state names is there.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

try:
    import fcntl
except ImportError:  # Windows: there a second run in the same directory is not noticed
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
"""Version of the layout of the files."""


_CHECKSUMS = "checksums of vectors"


class CheckpointError(RuntimeError):
    """A checkpoint that is damaged, of another problem, in use, or cannot be written."""


class RunDirectory:
    """The directory of one run, held by one process at a time; a context manager."""

    def __init__(self, path: str | os.PathLike[str], problem: Mapping[str, Any]):
        """Begin a run in an empty or new directory, or go on with one of the same problem.

        Args:
            path: the directory; made if it is not there.
            problem: what must be the same in every run that shares the directory.

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
            asked = json.loads(json.dumps(problem))
            recorded = _read_problem(self.path)
            if recorded is None:
                self._refuse_other_files()
                recorded = {"format": FORMAT, "problem": asked}
                with writing(self.path):
                    _replace(self.path / "problem.json", json.dumps(recorded, indent=1).encode())
            _compare(self.path, recorded["problem"], asked)
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

    def group(self, first: int, end: int, size: int, dtype: Any, slots: int | None) -> VectorLog:
        """Return the vectors of members `first` to `end` - 1, begun or gone on with."""
        return VectorLog(self.path / f"members-{first}-{end}", end - first, size, dtype, slots)


class VectorLog:
    """Vectors of k members appended one step at a time, with a state of named arrays.

    With `slots`, only the vectors of the last `slots` steps are kept.

    Attributes:
        num_steps: steps whose vectors are durable; step s is from 0 to `num_steps` - 1.
        arrays: what was saved with the last of them.
    """

    def __init__(self, path: Path, width: int, size: int, dtype: Any, slots: int | None):
        self.path = path
        self._shape = (width, size)
        self._dtype = np.dtype(dtype)
        self._slots = slots
        self._checksums = np.zeros((0, width), np.uint32)
        self.arrays: dict[str, np.ndarray] = {}
        with writing(path):
            path.mkdir(exist_ok=True)
            (path / "vectors.bin").touch()
            self._file = open(path / "vectors.bin", "r+b", buffering=0)  # noqa: SIM115 - see close
        if (path / "state.npz").exists():
            self._load()

    @property
    def num_steps(self) -> int:
        """Number of steps whose vectors are durable."""
        return len(self._checksums)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def append(self, vectors: Sequence[np.ndarray], arrays: Mapping[str, np.ndarray]) -> None:
        """Make the vectors of the next step and the arrays durable, or nothing of them.

        Raises:
            CheckpointError: if they cannot be written; the state before stays valid.
        """
        step = self.num_steps
        checksums = []
        with writing(self.path, f"step {step}"):
            for member, vector in enumerate(vectors):
                view = np.ascontiguousarray(vector, self._dtype).view(np.uint8).data
                self._write(view, self._offset(step, member))
                checksums.append(zlib.crc32(view))
            os.fsync(self._file.fileno())
        self._checksums = np.concatenate(
            [self._checksums, np.array(checksums, np.uint32).reshape(1, -1)]
        )
        self._save(arrays)

    def read(self, step: int, member: int) -> np.ndarray:
        """Return the vector of a member at a step, shape (size,).

        Raises:
            CheckpointError: if it is damaged.
        """
        vector = np.empty(self._shape[1], self._dtype)
        view = vector.view(np.uint8).data
        self._file.seek(self._offset(step, member))
        done = 0
        while done < len(view) and (count := self._file.readinto(view[done:])):
            done += count
        if done < len(view) or zlib.crc32(view) != self._checksums[step, member]:
            fault = "truncated" if done < len(view) else "damaged"
            raise CheckpointError(
                f"the checkpoint {self.path / 'vectors.bin'} is {fault} at step {step}: what is "
                "there is not what was written. Restore the directory from a copy, or "
                "remove it and begin again."
            )
        return vector

    def _offset(self, step: int, member: int) -> int:
        slot = step if self._slots is None else step % self._slots
        return (slot * self._shape[0] + member) * self._shape[1] * self._dtype.itemsize

    def _write(self, view: memoryview, offset: int) -> None:
        self._file.seek(offset)
        done = 0
        while done < len(view):
            done += self._file.write(view[done:])

    def _save(self, arrays: Mapping[str, np.ndarray]) -> None:
        content = BytesIO()
        stored: dict[str, Any] = {_CHECKSUMS: self._checksums, **arrays}
        np.savez(content, **stored)
        try:
            with writing(self.path, f"step {self.num_steps - 1}"):
                _replace(self.path / "state.npz", content.getvalue())
        except CheckpointError:
            self._checksums = self._checksums[:-1]
            raise
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


def groups_begun(path: str | os.PathLike[str] | None) -> dict[int, int]:
    """Return the groups of a directory: the number of the first member to that after the last."""
    if path is None:
        return {}
    found = (entry.name.split("-") for entry in Path(path).glob("members-*-*"))
    return {int(first): int(end) for _, first, end in found}


def _read_problem(path: Path) -> dict[str, Any] | None:
    """Return what `problem.json` of a directory says, None where there is none.

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
def writing(path: Path, what: str = "") -> Iterator[None]:
    """Turn an error of the file system into one that says what was lost: nothing before it."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"cannot write {what + ' of ' if what else ''}the checkpoint {path}: "
            f"{error.strerror or error}. What was written before is kept: make room or give "
            "access, and run again to go on from there."
        ) from error


def _replace(path: Path, content: bytes) -> None:
    """Write a file that is either the old one or the new one, whatever happens."""
    beside = path.with_name(path.name + ".new")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _compare(path: Path, recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    old, new = _flat(recorded), _flat(asked)
    different = [
        f"{name} is {_short(new.get(name))} and was {_short(old.get(name))}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
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


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
