"""Every picture. Functions take and return matplotlib axes and leave the style to the user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np

from spectral_density.linalg.quadrature import WEIGHT_FLOOR

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from spectral_density.spectrum import Spectrum

# Densities fall over many decades between the outliers; what is lower than this share of the
# peak is the kernel's tail, not the spectrum.
_VISIBLE_DECADES = 9


def plot_density(
    spectrum: Spectrum,
    ax: Axes | None = None,
    *,
    sigma: float | None = None,
    deflate: bool = True,
    band: bool = True,
    label: str | None = None,
    **line_options: Any,
) -> Axes:
    """Draw the smoothed density with its 95 % band on a logarithmic axis.

    Args:
        spectrum: what to draw.
        ax: axes to draw on; None for new ones.
        sigma: kernel width, see `Spectrum.density`.
        deflate: use the known weight of simple outliers.
        band: draw the confidence band.
        label: entry in a legend.
        **line_options: passed to `Axes.plot`.
    """
    ax = _axes(ax)
    density = spectrum.density(sigma=sigma, deflate=deflate)
    (line,) = ax.semilogy(density.grid, density.values, label=label, **line_options)
    floor = density.values.max() * 10.0**-_VISIBLE_DECADES
    if band:
        ax.fill_between(
            density.grid,
            np.maximum(density.lower, floor),
            np.maximum(density.upper, floor),
            color=line.get_color(),
            alpha=0.25,
            linewidth=0,
        )
    # The peaks of all curves on these axes: an earlier spectrum must not be cut off.
    shown = [np.max(line.get_ydata(), initial=0.0) for line in ax.lines]
    peaks = [peak for peak in shown if peak > 0]
    ax.set_ylim(min(peaks) * 10.0**-_VISIBLE_DECADES, 5 * max(peaks))
    ax.set_xlabel("eigenvalue")
    ax.set_ylabel("density (per unit of eigenvalue)")
    if label is not None:
        ax.legend()
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
    ax = _axes(ax)
    weights = spectrum.deflated_weights if deflate else spectrum.weights
    carries = weights > WEIGHT_FLOOR
    nodes, heights = spectrum.nodes[carries], weights[carries]
    options = {"marker": ".", "linestyle": "none", **marker_options}
    (markers,) = ax.semilogy(nodes, heights, **options)
    lowest = [np.min(line.get_ydata(), initial=1.0) for line in ax.lines]
    bottom = min(height for height in lowest if height > 0) / 3
    ax.vlines(nodes, bottom, heights, color=markers.get_color(), linewidth=0.5, alpha=0.4)
    ax.set_ylim(bottom=bottom)
    ax.set_xlabel("eigenvalue (quadrature node)")
    ax.set_ylabel("weight (share of the eigenvalues)")
    return ax


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(layout="constrained")[1] if ax is None else ax
