"""Keras models from `.keras` and `.h5` files, and errors about other files."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spectral_density.command.imported import import_module
from spectral_density.command.quiet import absl_warnings_suppressed

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SAVE = "save the whole model with model.save('model.keras')"
# Keras's errors about a class or function that it cannot find, in its two file formats.
_UNKNOWN = re.compile(r"(?:Could not locate|Unknown) [a-z ]+:? '?([\w>.]+)'?")


def load_model(
    path: Path, *, custom_objects: str | None = None, compiled: bool = True, unsafe: bool = False
) -> Any:
    """Load a Keras model from a `.keras` or a whole-model `.h5` file.

    Args:
        path: the file.
        custom_objects: name of a module with the model's own classes and functions.
        compiled: whether the model's loss is needed.
        unsafe: load Lambda layers, whose code is in the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no model, holds weights only, or needs classes that are not known.
    """
    suffix = check_kind(path)
    objects = {} if custom_objects is None else _public_objects(custom_objects)
    keras = _keras_of(path) if suffix == ".keras" else _keras()
    try:
        with _optimizer_warnings_suppressed():
            return keras.models.load_model(
                path, custom_objects=objects, compile=compiled, safe_mode=not unsafe
            )
    except Exception as error:  # Keras raises whatever the classes of the model raise
        raise ValueError(_explained(path, error, compiled)) from error


@contextmanager
def _optimizer_warnings_suppressed() -> Iterator[None]:
    """Suppress Keras's warnings about optimizers and metrics, which are not used here."""
    with absl_warnings_suppressed(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
        yield


def check_kind(path: Path) -> str:
    """Return ".keras" or ".h5" for a file that holds a whole model.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything else.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no model file {path}.")
    if path.is_dir():
        kind = "a TensorFlow SavedModel" if (path / "saved_model.pb").exists() else "a directory"
        raise ValueError(f"{path} is {kind}, which Keras 3 does not load: {_SAVE}.")
    with path.open("rb") as file:
        start = file.read(len(_HDF5_SIGNATURE))
    if start == _HDF5_SIGNATURE:
        _check_hdf5(path)
        return _check_suffix(path, (".h5", ".hdf5"))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if "config.json" in archive.namelist():
                return _check_suffix(path, (".keras",))
    raise ValueError(f"{path} is no Keras model file: {_SAVE}.")


def _check_suffix(path: Path, suffixes: tuple[str, ...]) -> str:
    if path.suffix not in suffixes:
        raise ValueError(f"{path} holds a Keras model, and must end in {suffixes[0]}: rename it.")
    return suffixes[0]


def _check_hdf5(path: Path) -> None:
    import h5py  # type: ignore[import-untyped]

    with h5py.File(path, "r") as file:
        if "model_config" not in file.attrs:
            raise ValueError(
                f"{path} holds weights only, and no model that they belong to: {_SAVE}."
            )


def _keras() -> Any:
    import keras

    return keras


def _keras_of(path: Path) -> Any:
    """Return Keras 3, or tf_keras for a file that Keras 2 wrote, where it is installed."""
    with zipfile.ZipFile(path) as archive:
        try:
            written_by = json.loads(archive.read("metadata.json"))["keras_version"]
        except (KeyError, ValueError):
            return _keras()
    if str(written_by).startswith("2."):
        try:
            import tf_keras
        except ImportError:
            return _keras()
        return tf_keras
    return _keras()


def _public_objects(module_name: str) -> dict[str, Any]:
    """Return the classes and functions that a module defines or imports, by name."""
    module = import_module(module_name)
    return {
        name: value
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_")
    }


def _explained(path: Path, error: Exception, compiled: bool) -> str:
    """Return why a model does not load and what to do, in one line."""
    text = str(error)
    if "Lambda" in text and "safe_mode" in text:
        return (
            f"{path} has a Lambda layer, and loading it runs code from the file: if you trust it, "
            "pass --unsafe."
        )
    unknown = _UNKNOWN.search(text)
    if unknown:
        other = " Where it is the loss or a metric, --loss NAME does without." if compiled else ""
        return (
            f"{path} uses {unknown[1]!r}, which Keras does not know: name the module that defines "
            f"it with --custom-objects MODULE.{other}"
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"Keras cannot load {path}: {type(error).__name__}: {first}"
