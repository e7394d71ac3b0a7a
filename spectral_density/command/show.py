"""The command `show`: the numbers and the density of a spectrum file in the terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from spectral_density.command.messages import in_options
from spectral_density.command.summary import spectrum_numbers, to_json
from spectral_density.command.text_density import text_density
from spectral_density.spectrum.spectrum import Spectrum

_WIDEST = 100


def show_file(path: Path, show: Callable[[str], None], *, as_json: bool = False) -> None:
    """Show the numbers of a spectrum and its density, or the numbers as JSON.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no spectrum.
    """
    spectrum = load(path)
    if as_json:
        show(to_json(spectrum_numbers(spectrum)).rstrip())
        return
    show(in_text(spectrum))


def in_text(spectrum: Spectrum) -> str:
    """Return the numbers of a spectrum and its density, as wide as the terminal."""
    width = min(shutil.get_terminal_size((80, 24)).columns - 1, _WIDEST)
    picture = text_density(spectrum, width=width, encoding=sys.stdout.encoding)
    return f"{in_options(str(spectrum))}\n\n{picture}"


def load(path: Path) -> Spectrum:
    """Read a spectrum from its file, or from the directory of its run.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is something else.
    """
    inside = path / "spectrum.npz"
    if path.is_dir():
        if not inside.exists():
            raise FileNotFoundError(f"the directory {path} holds no spectrum.npz.")
        return Spectrum.load(inside)
    if not path.exists() and not path.with_name(path.name + ".npz").exists():
        raise FileNotFoundError(f"there is no spectrum file {path}.")
    return Spectrum.load(path)
