"""Arguments that are wrong whatever the model is: found before a framework is loaded."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import zipfile
from pathlib import Path

NO_SUCH_LOSS = (
    "--loss {name!r} is no loss of Keras. There are for instance sparse_categorical_crossentropy, "
    "categorical_crossentropy, binary_crossentropy, mse and huber; a loss of your own is --loss "
    "module:name."
)

# Names that Keras 3 and tf_keras know, functions; without underscores also those of classes.
LOSSES = frozenset(
    {
        "bce",
        "binary_crossentropy",
        "binary_focal_crossentropy",
        "categorical_crossentropy",
        "categorical_focal_crossentropy",
        "categorical_generalized_cross_entropy",
        "categorical_hinge",
        "circle",
        "cosine_similarity",
        "ctc",
        "dice",
        "hinge",
        "huber",
        "kl_divergence",
        "kld",
        "kullback_leibler_divergence",
        "log_cosh",
        "logcosh",
        "mae",
        "mape",
        "mean_absolute_error",
        "mean_absolute_percentage_error",
        "mean_squared_error",
        "mean_squared_logarithmic_error",
        "mse",
        "msle",
        "poisson",
        "sparse_categorical_crossentropy",
        "squared_hinge",
        "tversky",
    }
)
_CLASSES = frozenset(name.replace("_", "") for name in LOSSES)


def check_source(source: str, batch_size: int | None, download: bool) -> None:
    """Check what can be known of `--data` without loading it.

    Args:
        source: `tfds:name[split]`, `file.npz`, or `module:function`.
        batch_size: None for the default.
        download: whether a dataset that is not on the disk is fetched.

    Raises:
        FileNotFoundError: if the file or the dataset is not there.
        ModuleNotFoundError: if tensorflow_datasets is needed and not installed.
        ValueError: if it is none of the three, or what it names is not there.
    """
    if source.startswith("tfds:"):
        _check_tfds(source, download)
    elif source.endswith(".npz"):
        check_exists(Path(source))
        _check_npz(source)
    elif ":" in source:
        _check_module(source.partition(":")[0])
        if batch_size is not None:
            raise ValueError(
                f"--batch-size does not apply to {source}: the function returns batches."
            )
    else:
        raise ValueError(
            f"--data {source!r} is none of tfds:name[split], file.npz and module:function."
        )


def check_exists(path: Path) -> None:
    """Check that a file of data exists.

    Raises:
        FileNotFoundError: if there is none.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no data file {path}.")


def check_loss(name: str | None, from_logits: bool, custom_objects: str | None) -> None:
    """Check `--loss`, `--from-logits` and `--custom-objects`.

    Raises:
        ValueError: if there is no such loss or module, or the loss knows no logits.
    """
    if custom_objects is not None:
        _check_module(custom_objects)
    if from_logits and (name is None or ":" in name):
        raise ValueError("--from-logits belongs to a Keras loss: name it with --loss.")
    if name is None:
        return
    if ":" in name:
        _check_module(name.partition(":")[0])
        return
    # A name that custom objects register holds a package: "package>name".
    if name not in LOSSES and name.replace("_", "").lower() not in _CLASSES and ">" not in name:
        raise ValueError(NO_SUCH_LOSS.format(name=name))
    if from_logits and "crossentropy" not in name.lower() and name.lower() != "bce":
        raise ValueError(f"--loss {name} knows no logits: leave --from-logits out.")


def check_names(source: str, names: list[str]) -> None:
    """Check the names of the arrays in a file.

    Raises:
        ValueError: if x or y is not among them.
    """
    if "x" not in names or "y" not in names:
        listed = ", ".join(names) or "nothing"
        raise ValueError(
            f"{source} must hold arrays named x and y (and w for sample weights); it holds "
            f"{listed}."
        )


def _check_npz(source: str) -> None:
    try:
        with zipfile.ZipFile(source) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{source} is no npz file, or is damaged.") from error
    check_names(source, names)


def _check_module(name: str) -> None:
    """Raise if a module is neither in the current directory nor installed; it is not imported."""
    here = os.getcwd()
    top = name.partition(".")[0]
    if not top or top in sys.modules:
        return
    if (Path(here) / f"{top}.py").exists() or (Path(here) / top).is_dir():
        return
    if importlib.util.find_spec(top) is None:
        raise ValueError(
            f"there is no module {name!r} in the current directory ({here}), and none is installed."
        )


# TensorFlow Datasets -----------------------------------------------------------------------------


def split_name(source: str) -> tuple[str, str]:
    """Return the name and the split of `tfds:name[split]`; the split may have brackets itself.

    Raises:
        ValueError: if it is not of that form.
    """
    name, bracket, rest = source.removeprefix("tfds:").partition("[")
    if not name or not bracket or not rest.endswith("]") or not rest[:-1]:
        raise ValueError(
            f"--data {source!r} names no split: for instance tfds:mnist[train] or "
            "'tfds:mnist[train[:512]]'."
        )
    return name, rest[:-1]


def needs_tfds(source: str) -> ModuleNotFoundError:
    """Return the error for data of tensorflow_datasets where that is not installed."""
    return ModuleNotFoundError(
        f"{source} needs tensorflow_datasets, and TensorFlow to read its files: "
        'pip install tensorflow-datasets tensorflow (the former is in the extra "examples").'
    )


def tfds_directory() -> Path:
    """Return where TensorFlow Datasets has its files."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _can_be_found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # of a finder that refuses it
        return False


def _check_tfds(source: str, download: bool) -> None:
    name, split = split_name(source)
    if "tensorflow_datasets" not in sys.modules and not all(
        map(_can_be_found, ("tensorflow_datasets", "tensorflow"))
    ):
        raise needs_tfds(source)
    own = tfds_directory() / re.split(r"[/:]", name)[0]
    if not own.is_dir():
        if not download:
            raise FileNotFoundError(
                f"{own.name} is not among the TensorFlow Datasets on this disk ({own.parent}): "
                "pass --download to fetch it, or set TFDS_DATA_DIR to where it is."
            )
        return
    known = _splits_on_disk(own)
    asked = {part[0] for part in re.findall(r"([A-Za-z_][\w.-]*)(\[[^\]]*\])?", split)}
    unknown = sorted(asked - known - {"all"})
    if known and unknown:
        raise ValueError(
            f"{source}: there is no split {unknown[0]!r} in {own}, but {', '.join(sorted(known))}."
        )


def _splits_on_disk(directory: Path) -> set[str]:
    """Return the names of the splits of all versions of a dataset that are on the disk."""
    found: set[str] = set()
    for file in directory.glob("**/dataset_info.json"):
        try:
            found |= {split["name"] for split in json.loads(file.read_text()).get("splits", [])}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return set()  # of a form that is not known: what reads it will say
    return found
