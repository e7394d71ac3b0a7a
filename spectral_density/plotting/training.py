"""Spectra over training: ridge plots and heat maps of densities, lines of eigenvalues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

from spectral_density.plotting.axes import (
    COLORMAP,
    DENSITY,
    EIGENVALUE,
    LINE_STYLES,
    color_bar,
    new_axes,
    set_scale,
    signed_log_grid,
    whole_numbers,
)
from spectral_density.plotting.densities import require_spectra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from spectral_density.spectrum.spectrum import Spectrum

_POINTS = 1_500
_DECADES = 5  # of density below the peak that a ridge or a heat map shows


def plot_ridge(
    spectra: Mapping[Any, Spectrum],
    ax: Axes | None = None,
    *,
    sigma: float | None = None,
    xscale: str = "linear",
    overlap: float = 0.6,
    colormap: Any = COLORMAP,
    ylabel: str = "",
) -> Axes:
    """Draw a ridge plot of densities, the first at the top.

    All rows have the same logarithmic scale, over five decades of density.

    Args:
        spectra: what to draw, by the names of the rows: epochs, for instance.
        ax: axes to draw on; None for new ones.
        sigma: kernel width of all; None for the largest of their own.
        xscale: "linear" or "symlog", see `plot_density`.
        overlap: fraction of its height by which a row overlaps the one above it.
        colormap: colours of the rows, from the first to the last.
        ylabel: what the names are.

    Raises:
        ValueError: if there is no spectrum.
    """
    ax = new_axes(ax)
    grid, values, sigma = _common_densities(spectra, sigma, xscale)
    peak = values.max()
    # Decades above the floor, from 0 to 1.
    heights = 1 + np.log10(np.maximum(values / peak, 10.0**-_DECADES)) / _DECADES
    count = len(spectra)
    colors = plt.get_cmap(colormap)(np.linspace(0, 0.85, count))
    spacing = 1 - overlap
    for row, (height, color) in enumerate(zip(heights, colors, strict=True)):
        base = spacing * (count - 1 - row)
        options: dict[str, Any] = {"zorder": 2 + row}
        ax.fill_between(grid, base, base + height, color=ax.get_facecolor(), linewidth=0, **options)
        ax.fill_between(grid, base, base + height, color=color, alpha=0.3, linewidth=0, **options)
        ax.plot(grid, base + height, color=color, linewidth=1, **options)
    set_scale(ax, "x", xscale, sigma)
    ax.set_xlim(grid[0], grid[-1])
    ax.set_ylim(-0.02, spacing * (count - 1) + 1.05)
    ax.set_yticks(spacing * np.arange(count)[::-1], [str(name) for name in spectra])
    ax.set_xlabel(EIGENVALUE)
    ax.set_ylabel(ylabel)
    low = rf"$10^{{{-_DECADES}}}$"
    title = f"each row: density on a log scale, from {low} of the peak up\nkernel width {sigma:.2g}"
    ax.set_title(title, fontsize="x-small")
    return ax


def plot_evolution(
    spectra: Mapping[float, Spectrum],
    ax: Axes | None = None,
    *,
    sigma: float | None = None,
    yscale: str = "linear",
    colormap: Any = COLORMAP,
    xlabel: str = "epoch",
) -> Axes:
    """Draw the density over training as a heat map: time across, eigenvalues upward.

    Args:
        spectra: what to draw, by epoch or step, a number.
        ax: axes to draw on; None for new ones. The colour bar is set beside them.
        sigma: kernel width of all; None for the largest of their own.
        yscale: "linear" or "symlog", see `plot_density`.
        colormap: colours of the density, which is on a logarithmic scale over five decades.
        xlabel: what the numbers are.

    Raises:
        ValueError: if there is no spectrum, or times are no numbers.
    """
    ax = new_axes(ax)
    grid, values, sigma = _common_densities(spectra, sigma, yscale)
    times, order = np.unique(_times(spectra), return_index=True)
    peak = values.max()
    mesh = ax.pcolormesh(
        _edges(times),
        _edges(grid),
        np.maximum(values[order].T, peak * 10.0**-_DECADES),
        norm=LogNorm(peak * 10.0**-_DECADES, peak),
        cmap=colormap,
        rasterized=True,  # a vector format would store each of thousands of cells
    )
    set_scale(ax, "y", yscale, sigma)
    ax.set_ylim(grid[0], grid[-1])
    whole_numbers(ax, times)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(EIGENVALUE)
    ax.set_title(f"kernel width {sigma:.2g}", fontsize="x-small")
    color_bar(ax, mesh, DENSITY)
    return ax


def plot_eigenvalues(
    times: Sequence[float] | np.ndarray,
    values: np.ndarray,
    ax: Axes | None = None,
    *,
    bounds: np.ndarray | None = None,
    threshold: float | None = None,
    xlabel: str = "epoch",
    **line_options: Any,
) -> Axes:
    """Draw eigenvalues over training, one line for each rank.

    Args:
        times: epochs or steps, shape (t,).
        values: eigenvalues, shape (t, k), largest first; NaN where none was measured.
        ax: axes to draw on; None for new ones.
        bounds: of their errors, shape (t, k), drawn as bands.
        threshold: a value to mark with a line, such as 2 / learning rate.
        xlabel: what the times are.
        **line_options: passed to `Axes.plot`.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    times, values = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or times.shape != values.shape[:1]:
        raise ValueError(f"times {times.shape} and values {values.shape} must be (t,) and (t, k).")
    ax = new_axes(ax)
    measured = np.isfinite(values).any(axis=1)
    count = values.shape[1]
    colors = plt.get_cmap(COLORMAP)(np.linspace(0, 0.85, count))
    for rank in range(count):
        options = {
            "marker": ".",
            "color": colors[rank],
            "linestyle": LINE_STYLES[rank % len(LINE_STYLES)],
            **line_options,
        }
        line = values[measured, rank]
        ax.plot(times[measured], line, label=f"$\\lambda_{{{rank + 1}}}$", **options)
        if bounds is not None:
            half = np.asarray(bounds)[measured, rank]
            ax.fill_between(
                times[measured], line - half, line + half, color=options["color"], alpha=0.2, lw=0
            )
    if threshold is not None:
        ax.axhline(threshold, color="gray", linewidth=1, label=f"{threshold:.3g}")
    whole_numbers(ax, times)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(EIGENVALUE)
    ax.legend(fontsize="small", ncols=min(3, count))
    return ax


def _common_densities(
    spectra: Mapping[Any, Spectrum], sigma: float | None, scale: str
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return a common grid (g,), densities (num_spectra, g), and the kernel width."""
    require_spectra(spectra)
    if sigma is None:
        sigma = max(spectrum.default_sigma for spectrum in spectra.values())
    grids = [spectrum.density(sigma=sigma).grid for spectrum in spectra.values()]
    low, high = min(grid[0] for grid in grids), max(grid[-1] for grid in grids)
    count = max(_POINTS, *(len(grid) for grid in grids))
    grid = np.linspace(low, high, count)
    if scale == "symlog":
        grid = np.union1d(grid, signed_log_grid(low, high, sigma / 10, count))
    return grid, np.stack([s.density(grid, sigma).values for s in spectra.values()]), sigma


def _times(spectra: Mapping[float, Spectrum]) -> np.ndarray:
    try:
        return np.array([float(time) for time in spectra])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the keys must be epochs or steps, numbers, got {list(spectra)[:3]!r}. "
            "plot_ridge takes any names."
        ) from error


def _edges(points: np.ndarray) -> np.ndarray:
    """Return the edges of cells around points: midpoints, and the outer edges by symmetry."""
    if len(points) == 1:
        return points[0] + np.array([-0.5, 0.5])
    middles = (points[1:] + points[:-1]) / 2
    return np.concatenate([[2 * points[0] - middles[0]], middles, [2 * points[-1] - middles[-1]]])
