"""The directory of a run: what an earlier process has written there, and what this one writes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectral_density.command.summary import FORMAT, to_json, versions

if TYPE_CHECKING:
    from spectral_density.spectrum.spectrum import Spectrum

SPECTRUM, SUMMARY, CHECKPOINT = "spectrum.npz", "summary.json", "checkpoint"
PICTURES = ("spectrum.png", "spectrum.svg")

# Settings in which a resumed run may differ: these may ask for more, the other only changes speed.
_EXTENSIBLE = ("order", "draws", "tolerance", "max_products")
_CHANGEABLE = {*_EXTENSIBLE, "draws_at_once"}


@dataclass(frozen=True)
class PreviousRun:
    """The run that a directory holds, complete or not; all fields are empty where there is none."""

    settings: Mapping[str, Any] = field(default_factory=dict)  # empty where there is no summary
    complete: bool = False
    checkpoint: bool = False

    def is_less_than(self, settings: Mapping[str, Any]) -> bool:
        """Tell whether a run with these settings may have more steps or draws."""
        return any(_more(name, settings, self.settings) for name in _EXTENSIBLE)


def _more(name: str, settings: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether one setting may give more steps or draws than the same of another run."""
    a, b = settings.get(name), other.get(name)
    if a is None or b is None:
        return a is not b  # without a bound their number is known after the run only
    return bool(a < b if name == "tolerance" else a > b)


def previous_run(
    folder: Path, settings: Mapping[str, Any], *, resume: bool, use_checkpoint: bool
) -> PreviousRun:
    """Return the run that a directory holds, if a run with these settings may be written there.

    Args:
        folder: the directory, which need not exist.
        settings: of the run that is to be written.
        resume: whether that run may continue the one in the directory.
        use_checkpoint: whether it keeps a checkpoint.

    Raises:
        FileExistsError: if it holds a run that this one does not resume, or one of other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: --out takes a directory.")
    names = (SPECTRUM, SUMMARY, *PICTURES, CHECKPOINT)
    there = [name for name in names if (folder / name).exists()]
    if not there:
        return PreviousRun()
    if not resume:
        raise FileExistsError(
            f"{folder} holds a run already ({', '.join(there)}): choose another --out, or pass "
            "--resume to go on with it."
        )
    if SUMMARY not in there:
        raise FileExistsError(
            f"{folder} holds {', '.join(there)} and no {SUMMARY} that says of what: choose another "
            "--out."
        )
    previous = PreviousRun(*_recorded(folder / SUMMARY), CHECKPOINT in there)
    _check_settings(folder, previous, settings)
    if previous.checkpoint and not use_checkpoint:
        raise FileExistsError(
            f"{folder} holds a checkpoint, and --no-checkpoint cannot go on with it."
        )
    return previous


def _recorded(path: Path) -> tuple[dict[str, Any], bool]:
    """Return the settings of a summary, and whether its run is complete."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content["settings"]), bool(content["complete"])
    except (ValueError, KeyError, TypeError) as error:
        raise FileExistsError(
            f"{path} is there and is no summary of a run: choose another --out."
        ) from error


def _check_settings(folder: Path, previous: PreviousRun, settings: Mapping[str, Any]) -> None:
    """Check that a run is the one in the directory, or that one with more steps or draws.

    Raises:
        FileExistsError: if it is not, naming what differs.
    """
    recorded = previous.settings
    fixed = {*recorded, *settings} - _CHANGEABLE
    names = {name for name in fixed if recorded.get(name) != settings.get(name)}
    if (settings.get("tolerance") is None) != (recorded.get("tolerance") is None):
        names.add("tolerance")
    if "data" in names:
        names.discard("data_sha256")
    others = [
        f"the {name.removesuffix('_sha256')} file is another one"
        if name.endswith("_sha256")
        else f"{name} is {settings.get(name)} and was {recorded.get(name)}"
        for name in sorted(names)
    ]
    if others:
        raise FileExistsError(
            f"{folder} holds a run of other settings ({'; '.join(others)}): choose another --out."
        )
    less = [
        name
        for name in _EXTENSIBLE
        if _more(name, recorded, settings) and not _more(name, settings, recorded)
    ]
    if less:
        raise FileExistsError(
            f"the run in {folder} was begun {_named(recorded, less)}, and this asks for less: "
            "choose another --out."
        )
    if previous.complete and not previous.checkpoint and previous.is_less_than(settings):
        given = [name for name in _EXTENSIBLE if recorded.get(name) is not None]
        raise FileExistsError(
            f"the run in {folder} is complete, {_named(recorded, given)}, and kept no checkpoint "
            "to add to (--keep-checkpoint does): choose another --out."
        )


def _named(settings: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return settings as options, such as "with --order 90 and --draws 10"."""
    return "with " + " and ".join(f"--{name.replace('_', '-')} {settings[name]}" for name in names)


@contextmanager
def recorded_start(
    folder: Path, settings: Mapping[str, Any], previous: PreviousRun
) -> Iterator[None]:
    """Record the settings, for resuming; remove them if the run ends before its first step."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if not previous.settings:
        start = {"format": FORMAT, "complete": False, "settings": settings, "versions": versions()}
        _write_json(folder / SUMMARY, start)
    try:
        yield
    except BaseException:
        if not previous.settings and not has_steps(folder):
            (folder / SUMMARY).unlink(missing_ok=True)
            shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
            if made:
                with suppress(OSError):  # another process has written something there
                    folder.rmdir()
        raise


def has_steps(folder: Path) -> bool:
    """Tell whether the checkpoint in a directory holds a step."""
    return any((folder / CHECKPOINT).glob("draws-*/state.npz"))


def write(folder: Path, spectrum: Spectrum, summary: Mapping[str, Any]) -> list[Path]:
    """Write a spectrum, its pictures and its summary, each file atomically.

    Returns:
        The files.
    """
    from spectral_density.command.figures import draw_one, save

    with _atomic(folder / SPECTRUM) as path:
        spectrum.save(path)
    figure = draw_one(spectrum)
    for name in PICTURES:
        with _atomic(folder / name) as path:
            save(figure, path)
    _write_json(folder / SUMMARY, {"format": FORMAT, "complete": True, **summary})
    return [folder / name for name in (SPECTRUM, *PICTURES, SUMMARY)]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with _atomic(path) as temporary:
        temporary.write_text(to_json(content), encoding="utf-8")


@contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path of the same suffix, whose file replaces `path` at the end."""
    temporary = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
