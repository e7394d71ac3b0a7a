"""The directory of a run: what an earlier process left there, and what this one writes."""

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

# Settings in which a run that goes on may differ: these may ask for more, the other only changes
# speed.
_GROWING = ("order", "draws", "tolerance", "max_products")
_FREE = {*_GROWING, "draws_at_once"}


@dataclass(frozen=True)
class Before:
    """What an earlier process left in the directory."""

    settings: Mapping[str, Any] = field(default_factory=dict)  # empty where there is no summary
    complete: bool = False
    checkpoint: bool = False

    def is_less_than(self, asked: Mapping[str, Any]) -> bool:
        """Tell whether steps or draws that are asked for are not there."""
        return any(_more(name, asked, self.settings) for name in _GROWING)


def _more(name: str, asked: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether a setting may ask for more steps or draws than another."""
    a, b = asked.get(name), other.get(name)
    if a is None or b is None:
        return a is not b  # how many there are without this bound, the run finds out
    return bool(a < b if name == "tolerance" else a > b)


def look(folder: Path, asked: Mapping[str, Any], *, resume: bool, use_checkpoint: bool) -> Before:
    """Return what the directory holds; refuse it where a run with these settings would spoil it.

    Args:
        folder: the directory, which need not be there.
        asked: the settings of the run.
        resume: whether the run may go on with what is there.
        use_checkpoint: whether it keeps a checkpoint.

    Raises:
        FileExistsError: if it holds a run and this one does not resume, or is another one.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: --out takes a directory.")
    names = (SPECTRUM, SUMMARY, *PICTURES, CHECKPOINT)
    there = [name for name in names if (folder / name).exists()]
    if not there:
        return Before()
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
    settings, complete = _recorded(folder / SUMMARY)
    before = Before(settings, complete, CHECKPOINT in there)
    _refuse_another(folder, before, asked)
    if before.checkpoint and not use_checkpoint:
        raise FileExistsError(
            f"{folder} holds a checkpoint, and --no-checkpoint cannot go on with it."
        )
    return before


def _recorded(path: Path) -> tuple[dict[str, Any], bool]:
    """Return the settings of a summary, and whether its run is complete."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content["settings"]), bool(content["complete"])
    except (ValueError, KeyError, TypeError) as error:
        raise FileExistsError(
            f"{path} is there and is no summary of a run: choose another --out."
        ) from error


def _refuse_another(folder: Path, before: Before, asked: Mapping[str, Any]) -> None:
    """Raise if the run asked for is neither the one there nor that one with more steps or draws.

    Raises:
        FileExistsError: naming what differs.
    """
    recorded = before.settings
    names = {name for name in {*recorded, *asked} - _FREE if recorded.get(name) != asked.get(name)}
    if (asked.get("tolerance") is None) != (recorded.get("tolerance") is None):
        names.add("tolerance")
    if "data" in names:
        names.discard("data_sha256")
    others = [
        f"the {name.removesuffix('_sha256')} file is another one"
        if name.endswith("_sha256")
        else f"{name} is {asked.get(name)} and was {recorded.get(name)}"
        for name in sorted(names)
    ]
    if others:
        raise FileExistsError(
            f"{folder} holds a run of other settings ({'; '.join(others)}): choose another --out."
        )
    less = [
        name
        for name in _GROWING
        if _more(name, recorded, asked) and not _more(name, asked, recorded)
    ]
    if less:
        raise FileExistsError(
            f"the run in {folder} was begun {_named(recorded, less)}, and this asks for less: "
            "choose another --out."
        )
    if before.complete and not before.checkpoint and before.is_less_than(asked):
        given = [name for name in _GROWING if recorded.get(name) is not None]
        raise FileExistsError(
            f"the run in {folder} is complete, {_named(recorded, given)}, and kept no checkpoint "
            "to add to (--keep-checkpoint does): choose another --out."
        )


def _named(settings: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return settings as options, such as "with --order 90 and --draws 10"."""
    return "with " + " and ".join(f"--{name.replace('_', '-')} {settings[name]}" for name in names)


@contextmanager
def begun(folder: Path, asked: Mapping[str, Any], before: Before) -> Iterator[None]:
    """Note the settings for whoever resumes; leave nothing of a run that made not even a step."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if not before.settings:
        start = {"format": FORMAT, "complete": False, "settings": asked, "versions": versions()}
        _write_json(folder / SUMMARY, start)
    try:
        yield
    except BaseException:
        if not before.settings and not has_steps(folder):
            (folder / SUMMARY).unlink(missing_ok=True)
            shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
            if made:
                with suppress(OSError):  # somebody else has put something there
                    folder.rmdir()
        raise


def has_steps(folder: Path) -> bool:
    """Tell whether the checkpoint in a directory holds a step."""
    return any((folder / CHECKPOINT).glob("draws-*/state.npz"))


def write(folder: Path, spectrum: Spectrum, summary: Mapping[str, Any]) -> list[Path]:
    """Write a spectrum, its pictures and its summary; each file appears whole or not at all.

    Returns:
        The files.
    """
    from spectral_density.command.figures import draw_one, save

    with _whole(folder / SPECTRUM) as path:
        spectrum.save(path)
    figure = draw_one(spectrum)
    for name in PICTURES:
        with _whole(folder / name) as path:
            save(figure, path)
    _write_json(folder / SUMMARY, {"format": FORMAT, "complete": True, **summary})
    return [folder / name for name in (SPECTRUM, *PICTURES, SUMMARY)]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with _whole(path) as beside:
        beside.write_text(to_json(content), encoding="utf-8")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Give a path to write to, of the same suffix, that takes the place of `path` at the end."""
    beside = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
