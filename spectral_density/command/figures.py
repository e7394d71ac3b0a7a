"""The command `plot`: one or several spectra on one figure, and its files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectral_density.command.show import load

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from spectral_density.spectrum.spectrum import Spectrum

SUFFIXES = (".png", ".svg", ".pdf")
_SIZE = (7.0, 4.0)  # inches


def plot_files(
    paths: Sequence[Path],
    out: Path,
    *,
    labels: Sequence[str] | None = None,
    xscale: str = "linear",
    force: bool = False,
) -> Path:
    """Draw the spectra of files on one figure and return where it was written.

    Args:
        paths: spectrum files, or directories of runs.
        out: a .png, .svg or .pdf file.
        labels: one for each file; None for their names.
        xscale: "linear" or "symlog".
        force: write over a file that is there.

    Raises:
        FileExistsError: if `out` is there, and `force` is off.
        FileNotFoundError: if a spectrum is not.
        ValueError: if a file is no spectrum, or the labels are of another number.
    """
    if out.suffix not in SUFFIXES:
        raise ValueError(f"--out {out} must end in one of {', '.join(SUFFIXES)}.")
    if out.exists() and not force:
        raise FileExistsError(
            f"{out} is there already: choose another --out, or pass --force to write over it."
        )
    if labels is not None and len(labels) != len(paths):
        need = "1 spectrum needs 1" if len(paths) == 1 else f"{len(paths)} spectra need as many"
        raise ValueError(f"{need} --label, got {len(labels)}.")
    names = file_labels(paths) if labels is None else list(labels)
    if len(set(names)) < len(names):
        raise ValueError(f"two spectra have the same label ({', '.join(names)}): use --label.")
    spectra = {name: load(path) for name, path in zip(names, paths, strict=True)}
    if len(spectra) > 1:
        figure = draw_several(spectra, xscale=xscale)
    else:
        figure = draw_one(*spectra.values(), label=names[0], xscale=xscale)
    out.parent.mkdir(parents=True, exist_ok=True)
    save(figure, out)
    return out


def file_labels(paths: Sequence[Path]) -> list[str]:
    """Return the shortest distinct names of files: the stem, with the last directories if needed.

    The spectrum.npz of a run has the name of its directory.
    """
    parts = [_named_parts(path) for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return ["/".join(part) for part in parts]


def _named_parts(path: Path) -> list[str]:
    whole = path.absolute()
    if whole.name == "spectrum.npz":
        whole = whole.parent
    elif whole.suffix == ".npz":
        whole = whole.with_suffix("")
    return list(whole.parts[1:])


def draw_one(spectrum: Spectrum, *, label: str | None = None, xscale: str = "linear") -> Figure:
    """Return a figure of a density with its outliers, titled with the kind of matrix."""
    from spectral_density.plotting import plot_density, plot_outliers

    figure, ax = _figure()
    plot_density(spectrum, ax=ax, label=label, xscale=xscale)
    plot_outliers(spectrum, ax=ax)
    ax.set_title(_title(spectrum), fontsize="medium")
    return figure


def _title(spectrum: Spectrum) -> str:
    """Return what a picture is of, in a few words: the summary has the rest."""
    draws = f"{spectrum.num_draws} draw{'s' if spectrum.num_draws != 1 else ''}"
    numbers = f"{spectrum.size:,} eigenvalues, {draws} of {spectrum.order} steps"
    kind = re.match(r"(\w+?)(Operator)?\b", spectrum.description)
    return f"{_spaced(kind[1])}: {numbers}" if kind else numbers


def _spaced(name: str) -> str:
    """Return the name of a class as words: GaussNewton as Gauss-Newton."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name)


def draw_several(spectra: Mapping[str, Spectrum], *, xscale: str = "linear") -> Figure:
    """Return a figure of several densities with a legend."""
    from spectral_density.plotting import plot_spectra

    figure, ax = _figure()
    plot_spectra(spectra, ax=ax, xscale=xscale)
    return figure


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    # Not pyplot's, which needs a screen and keeps every figure.
    figure = Figure(figsize=_SIZE, layout="constrained")
    return figure, figure.add_subplot()


def save(figure: Figure, path: Path) -> None:
    """Write a figure; the same figure gives the same bytes."""
    import matplotlib as mpl

    metadata: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(
        path.suffix, {}
    )
    with mpl.rc_context({"svg.hashsalt": "spectral_density"}):
        figure.savefig(path, dpi=150, metadata=metadata)
