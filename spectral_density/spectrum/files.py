"""Spectrum files: a compressed npz archive of named arrays, with the number of its format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from spectral_density.spectrum.accuracy import Ending

FILE_FORMAT = 2
"""Version of the names and their meaning; 2 is that of blocks, which 1 does not know."""

T = TypeVar("T")


def write_file(path: str | Path, arrays: Mapping[str, Any]) -> Path:
    """Write named arrays to a file, and return its path, which ends in .npz."""
    path = _npz_path(path)
    # What an earlier version can read has the format of that.
    file_format = FILE_FORMAT if np.ndim(arrays["alpha"]) == 4 else 1
    np.savez_compressed(path, format=file_format, **arrays)
    return path


def read_file(path: str | Path, names: Sequence[str], make: Callable[..., T]) -> T:
    """Return the spectrum in a file; the suffix may be left out.

    Args:
        path: of the file.
        names: of the fields of a spectrum.
        make: called with the fields as keyword arguments.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is something else, is damaged, or of a newer format.
    """
    path = path if Path(path).exists() else _npz_path(path)
    content = _read_arrays(path)
    version = content.get("format", np.array(""))
    if version.shape or version.dtype.kind not in "iu":
        raise ValueError(f"{path} is not a spectrum file: it states no format.")
    if version > FILE_FORMAT:
        raise ValueError(
            f"{path} has format {version}; this version reads up to {FILE_FORMAT}. "
            "Install a newer spectral-density."
        )
    # Files of earlier versions, which do not have these, are of runs as planned, at full precision.
    content.setdefault("ended_by", np.array(Ending.PLAN.name))
    content.setdefault("product_error", np.array(0.0))
    content.setdefault("model_state", np.array("{}"))
    content.setdefault("choice", np.array(""))
    missing = set(names) - set(content)
    if missing:
        raise ValueError(f"{path} is not a spectrum file: it lacks {sorted(missing)}.")
    try:
        return make(
            alpha=content["alpha"],
            beta=content["beta"],
            residual_norms=content["residual_norms"],
            size=int(content["size"]),
            simple=content["simple"],
            seed=int(content["seed"]),
            description=str(content["description"]),
            precision=float(content["precision"]),
            ended_by=Ending[str(content["ended_by"])],
            product_error=float(content["product_error"]),
            model_state=json.loads(str(content["model_state"])),
            choice=str(content["choice"]),
        )
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a spectrum file: {error}") from error


def _npz_path(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".npz" else path.with_name(path.name + ".npz")


def _read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file by name."""
    with Path(path).open("rb") as stream:
        # A damaged archive fails in a dozen ways, from zlib's own error to NotImplementedError.
        try:
            with np.load(stream, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except Exception as error:
            raise ValueError(f"{path} is not a spectrum file, or is damaged.") from error
