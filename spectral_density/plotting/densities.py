"""Densities with bands, quadrature nodes, outliers; several spectra together or by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgba

from spectral_density.linalg.eigen import Eigenpairs
from spectral_density.linalg.quadrature import WEIGHT_FLOOR
from spectral_density.plotting.axes import (
    DENSITY,
    EIGENVALUE,
    LINE_STYLES,
    mark_resolution,
    new_axes,
    set_scale,
    signed_log_grid,
)
from spectral_density.plotting.density_line import (
    density_line,
    density_lines,
    fit_density_limits,
    lowest_shown,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from spectral_density.spectrum.spectrum import Density, Spectrum

_LOG_POINTS = 1_000
_MORE_TAIL = 3.0  # kernel widths beyond the grid of a density


def plot_density(
    spectrum: Spectrum,
    ax: Axes | None = None,
    *,
    sigma: float | None = None,
    deflate: bool = True,
    band: bool = True,
    xscale: str = "linear",
    label: str | None = None,
    **line_options: Any,
) -> Axes:
    """Draw the smoothed density with its 95 % band on a logarithmic axis.

    What lies within one kernel width of zero, or the `resolution` of the run where that is more, is
    not told from zero: it is shaded, with the width beside it. Beyond the outermost nodes the curve
    is the tail of the kernel, and fades. The axis ends a little below the height of a single
    eigenvalue.

    Args:
        spectrum: what to draw.
        ax: axes to draw on; None for new ones.
        sigma: kernel width, see `Spectrum.density`.
        deflate: use the known weight of simple outliers.
        band: draw the confidence band.
        xscale: "linear", or "symlog" for a logarithmic axis that keeps the sign and is linear
            within one kernel width of zero.
        label: entry in a legend.
        **line_options: passed to `Axes.plot`.
    """
    ax = new_axes(ax)
    density = _density(spectrum, sigma, deflate, xscale)
    line = density_line(ax, spectrum, density, label=label, **line_options)
    if band:
        ax.fill_between(
            density.grid,
            np.maximum(density.lower, line.floor),
            np.maximum(density.upper, line.floor),
            color=line.get_color(),
            alpha=0.25,
            linewidth=0,
        )
    set_scale(ax, "x", xscale, density.sigma)
    curves = density_lines(ax)
    fit_density_limits(ax, min(curve.floor for curve in curves))
    mark_resolution(ax, max(density.sigma, spectrum.resolution))
    ax.set_xlabel(EIGENVALUE)
    ax.set_ylabel(DENSITY)
    if label is not None:
        ax.legend(fontsize="small")
    return ax


def plot_log_density(
    spectrum: Spectrum,
    ax: Axes | None = None,
    *,
    sigma: float = 0.25,
    floor: float | None = None,
    label: str | None = None,
    **line_options: Any,
) -> Axes:
    """Draw the density over the logarithm of the magnitude, negative eigenvalues to the left.

    The kernel has the same width in every decade, which resolves the bulk next to zero, where a
    fixed width shows one peak. Magnitudes below `floor`, zero included, are drawn at `floor`. What
    is within the `resolution` of zero is shaded: of it the run knows how much there is, and not
    where.

    Args:
        spectrum: what to draw.
        ax: axes to draw on; None for new ones.
        sigma: kernel width in ln |eigenvalue|.
        floor: smallest magnitude that differs from zero; None for that of the nodes.
        label: entry in a legend.
        **line_options: passed to `Axes.plot`.
    """
    ax = new_axes(ax)
    if floor is None:
        magnitudes = np.abs(spectrum.nodes[spectrum.weights > WEIGHT_FLOOR])
        floor = max(magnitudes.min(), 1e-9 * magnitudes.max()) or None
    density = spectrum.log_density(sigma=sigma, floor=floor, num_points=_LOG_POINTS)
    # The kernel at the floor extends below it: the axis is linear below that only.
    linthresh = density.magnitudes[0]
    signed = np.concatenate([-density.magnitudes[::-1], density.magnitudes])
    values = np.concatenate([density.negative[::-1], density.positive])
    # No line across zero, where the logarithm is not defined.
    signed = np.insert(signed, len(density.magnitudes), 0.0)
    values = np.insert(values, len(density.magnitudes), np.nan)
    bottom = lowest_shown(spectrum.size, sigma, float(np.nanmax(values)))
    added = not ax.lines
    ax.semilogy(signed, np.where(values > bottom / 10, values, np.nan), label=label, **line_options)
    set_scale(ax, "x", "symlog", linthresh)
    fit_density_limits(ax, bottom if added else min(bottom, ax.get_ylim()[0]))
    mark_resolution(ax, spectrum.resolution)
    ax.set_xlabel(EIGENVALUE)
    ax.set_ylabel(r"density (1 / $\ln|\lambda|$)")
    if label is not None:
        ax.legend(fontsize="small")
    return ax


def plot_stem(
    spectrum: Spectrum, ax: Axes | None = None, *, deflate: bool = False, **marker_options: Any
) -> Axes:
    """Draw the quadrature itself: weight against node, all draws, unsmoothed.

    Args:
        spectrum: what to draw.
        ax: axes to draw on; None for new ones.
        deflate: show the known weight 1/n of simple outliers instead of the drawn one.
        **marker_options: passed to `Axes.plot`.
    """
    ax = new_axes(ax)
    weights = spectrum.deflated_weights if deflate else spectrum.weights
    carries = weights > WEIGHT_FLOOR
    nodes, heights = spectrum.nodes[carries], weights[carries]
    options = {"marker": ".", "linestyle": "none", **marker_options}
    (markers,) = ax.semilogy(nodes, heights, **options)
    lowest = [np.min(line.get_ydata(), initial=1.0) for line in ax.lines]
    bottom = min(height for height in lowest if height > 0) / 3
    ax.vlines(nodes, bottom, heights, color=markers.get_color(), linewidth=0.5, alpha=0.4)
    ax.set_ylim(bottom=bottom)
    ax.set_xlabel("eigenvalue (node)")
    ax.set_ylabel("weight (share of 1)")
    return ax


def plot_outliers(
    outliers: Spectrum | Eigenpairs,
    ax: Axes | None = None,
    *,
    count: int | None = None,
    label: str | None = None,
    **bar_options: Any,
) -> Axes:
    """Mark eigenvalues above the horizontal axis, with the bounds of their errors as bars.

    Of a spectrum these are its converged simple eigenvalues, or, where none is known, its two ends.
    Bounds are mostly too small to be seen: the legend has the largest.

    Args:
        outliers: a spectrum, or the result of `top_eigenpairs`.
        ax: axes whose horizontal axis has eigenvalues; None for new ones.
        count: mark only those of largest magnitude.
        label: entry in the legend; None for one with the number and the largest bound.
        **bar_options: passed to `Axes.errorbar`.
    """
    created = ax is None
    ax = new_axes(ax)
    values, bounds = _with_bounds(outliers)
    first = np.argsort(-np.abs(values), kind="stable")[:count]
    values, bounds = values[first], bounds[first]
    if label is None:
        label = f"{len(values)} eigenvalue{'s' if len(values) != 1 else ''} $\\pm$ {_power(bounds)}"
    options: dict[str, Any] = {
        "fmt": "|",
        "markersize": 8,
        "linewidth": 1,
        "color": "black" if _is_light(ax) else "white",
        **bar_options,
    }
    heights = np.full(len(values), 0.04)
    ax.errorbar(
        values,
        heights,
        xerr=bounds,
        label=label,
        transform=ax.get_xaxis_transform(),
        **options,
    )
    if created:
        ax.set_yticks([])
    ax.set_xlabel(EIGENVALUE)
    ax.legend(fontsize="small")
    return ax


def plot_spectra(
    spectra: Mapping[str, Spectrum],
    ax: Axes | None = None,
    *,
    sigma: float | None = None,
    deflate: bool = True,
    band: bool = True,
    xscale: str = "linear",
    **line_options: Any,
) -> Axes:
    """Draw several densities over each other, all smoothed alike, with a legend.

    Args:
        spectra: what to draw, by the names in the legend.
        ax: axes to draw on; None for new ones.
        sigma: kernel width of all; None for the largest of their own.
        deflate: use the known weight of simple outliers.
        band: draw the confidence bands.
        xscale: "linear" or "symlog", see `plot_density`.
        **line_options: passed to `Axes.plot`.

    Raises:
        ValueError: if there is no spectrum.
    """
    require_spectra(spectra)
    ax = new_axes(ax)
    if sigma is None:
        sigma = max(spectrum.default_sigma for spectrum in spectra.values())
    for position, (name, spectrum) in enumerate(spectra.items()):
        plot_density(
            spectrum,
            ax,
            sigma=sigma,
            deflate=deflate,
            band=band,
            xscale=xscale,
            label=str(name),
            **{"linestyle": LINE_STYLES[position % len(LINE_STYLES)], **line_options},
        )
    return ax


def plot_layers(
    spectra: Mapping[str, Spectrum],
    axes: Sequence[Axes] | np.ndarray | None = None,
    *,
    columns: int = 1,
    xscale: str = "symlog",
    **options: Any,
) -> np.ndarray:
    """Draw the spectrum of each layer in a panel of its own, over the same eigenvalues.

    Args:
        spectra: what to draw, by the titles of the panels.
        axes: one for each spectrum; None for those of a new figure, `axes[0].figure`.
        columns: panels side by side, in a new figure.
        xscale: "symlog" or "linear", see `plot_density`.
        **options: passed to `plot_density`.

    Returns:
        The axes, one for each spectrum, in a one-dimensional array.

    Raises:
        ValueError: if there is no spectrum, or another number of axes.
    """
    require_spectra(spectra)
    count = len(spectra)
    if axes is None:
        columns = min(columns, count)
        rows = -(-count // columns)
        width = plt.rcParams["figure.figsize"][0]
        figure, grid = plt.subplots(
            rows,
            columns,
            sharex=True,
            sharey=True,
            squeeze=False,
            figsize=(width, 0.6 + width * rows / columns / 3),
            layout="constrained",
        )
        panels = grid.ravel()[:count]
        for spare in grid.ravel()[count:]:
            spare.remove()
        # One label for the whole figure: labels of each panel would overlap.
        figure.supxlabel(EIGENVALUE, fontsize=plt.rcParams["axes.labelsize"])
        figure.supylabel(DENSITY, fontsize=plt.rcParams["axes.labelsize"])
    else:
        panels = np.array(axes, dtype=object).ravel()
        if len(panels) != count:
            raise ValueError(f"there are {count} spectra and {len(panels)} axes to draw them on.")
    limits = []
    for panel, (name, spectrum) in zip(panels, spectra.items(), strict=True):
        limits.append(plot_density(spectrum, panel, xscale=xscale, **options).get_ylim())
        panel.set_title(str(name), fontsize="small")
        if axes is None:
            panel.set_xlabel("")
            panel.set_ylabel("")
            panel.tick_params(labelbottom=panel in _lowest(panels, columns))
    if axes is None:
        # Shared axes take the limits of the last panel; they must cover all panels.
        bottoms, tops = zip(*limits, strict=True)
        panels[0].set_ylim(min(bottoms), max(tops))
        ends = np.array([panel.lines[0].get_xdata()[[0, -1]] for panel in panels])
        panels[0].set_xlim(ends.min(), ends.max())
    for panel in panels:
        # The words are put where there is room now.
        mark_resolution(panel, 0.0)
    return panels


def require_spectra(spectra: Mapping[Any, Spectrum]) -> None:
    """Raise unless there is at least one spectrum."""
    if not spectra:
        raise ValueError("there is no spectrum to draw: the mapping is empty.")


def _lowest(panels: np.ndarray, columns: int) -> list[Axes]:
    """Return the panels that have no other below them."""
    return list(panels[-columns:])


def _density(spectrum: Spectrum, sigma: float | None, deflate: bool, xscale: str) -> Density:
    density = spectrum.density(sigma=sigma, deflate=deflate)
    if xscale != "symlog":
        return density
    # The uniform grid has too few points near zero, the logarithmic one too few near outliers.
    low, high = density.grid[0], density.grid[-1]
    near_zero = signed_log_grid(low, high, density.sigma / 10, _LOG_POINTS)
    # On a logarithmic axis the tails of the kernel are wide: they are drawn down to the floor.
    tail = density.sigma * np.linspace(0, _MORE_TAIL, 4 * round(_MORE_TAIL) + 1)[1:]
    grid = np.concatenate([low - tail, density.grid, near_zero, high + tail])
    return spectrum.density(np.unique(grid), density.sigma, deflate)


def _with_bounds(outliers: Spectrum | Eigenpairs) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues with bounds of their errors."""
    if isinstance(outliers, Eigenpairs):
        return outliers.values, outliers.residuals
    simple = outliers.simple[0]
    ends = outliers.extreme_eigenvalues
    if not simple.any():
        return (
            np.array([ends.smallest, ends.largest]),
            np.array([ends.smallest_bound, ends.largest_bound]),
        )
    # The bounds of the ends include rounding, which residuals do not.
    rounding = min(ends.smallest_bound, ends.largest_bound)
    return outliers.nodes[0][simple], outliers.residuals[0][simple] + rounding


def _power(bounds: np.ndarray) -> str:
    """Return the largest bound as text, rounded up to one digit."""
    largest = float(bounds.max(initial=0.0))
    if largest == 0:
        return "0"
    power = int(np.floor(np.log10(largest)))
    digit = int(np.ceil(largest / 10.0**power - 1e-9))
    if digit == 10:
        digit, power = 1, power + 1
    return f"{digit}" if power == 0 else rf"${digit} \times 10^{{{power}}}$"


def _is_light(ax: Axes) -> bool:
    red, green, blue, alpha = to_rgba(ax.get_facecolor())
    return alpha < 0.5 or 0.3 * red + 0.6 * green + 0.1 * blue > 0.5
