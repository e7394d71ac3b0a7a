"""The loss along one or two directions, with its quadratic model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from spectral_density.plotting.axes import COLORMAP, color_bar, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from spectral_density.analysis.landscape import LossLandscape

_LEVELS = 12  # at most
_LABELS = 6  # on the colour bar, at most
_LOG_RATIO = 30  # levels are logarithmic above this ratio of the largest to the smallest loss
_STEPS = ((1.0, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))  # of a decade


def plot_loss_line(
    landscape: LossLandscape,
    ax: Axes | None = None,
    *,
    quadratic: bool = True,
    label: str = "loss",
    **line_options: Any,
) -> Axes:
    """Draw the loss along one direction, with its quadratic model.

    Args:
        landscape: of one direction, see `loss_landscape`.
        ax: axes to draw on; None for new ones.
        quadratic: draw the quadratic model, too.
        label: entry in the legend.
        **line_options: passed to `Axes.plot`.

    Raises:
        ValueError: if the landscape has two directions.
    """
    _require(landscape, 1, "plot_loss_surface")
    ax = new_axes(ax)
    (distances,) = landscape.coordinates
    (line,) = ax.plot(distances, landscape.losses, label=label, **line_options)
    ax.plot(0.0, landscape.loss, "o", color=line.get_color())
    finite = landscape.losses[np.isfinite(landscape.losses)]
    if quadratic:
        # The limits are those of the loss, which the model may exceed by far.
        limits = ax.get_ylim()
        curvature = float(landscape.curvature[0, 0])
        symbol = r"$\lambda$ =" if _is_top(landscape) else "curvature"
        name = f"quadratic model, {symbol} {curvature:.3g}"
        ax.plot(distances, landscape.quadratic_model(), "--", color="gray", label=name, zorder=1)
        low = min(limits[0], landscape.loss - 0.2 * float(np.ptp(finite)))
        ax.set_ylim(low, limits[1])
    ax.set_xlabel(_axis_label(landscape, "the top eigenvector", "$d_1$"))
    ax.set_ylabel("loss")
    ax.legend(fontsize="small")
    return ax


def plot_loss_surface(
    landscape: LossLandscape,
    ax: Axes | None = None,
    *,
    quadratic: bool = False,
    colormap: Any = COLORMAP,
) -> Axes:
    """Draw the loss in the plane of two directions as filled contours.

    Args:
        landscape: of two directions, see `loss_landscape`.
        ax: axes to draw on; None for new ones. The colour bar is set beside them.
        quadratic: draw the same contours of the quadratic model as dashed lines.
        colormap: colours of the losses.

    Raises:
        ValueError: if the landscape has one direction, or no finite loss.
    """
    _require(landscape, 2, "plot_loss_line")
    ax = new_axes(ax, square=True)
    first, second = landscape.coordinates
    if not np.isfinite(landscape.losses).any():
        raise ValueError("no loss of the landscape is finite: give loss_landscape a radius.")
    losses = np.where(np.isfinite(landscape.losses), landscape.losses, np.nan).T
    levels, norm = _levels(float(np.nanmin(losses)), float(np.nanmax(losses)))
    filled = ax.contourf(first, second, losses, levels=levels, norm=norm, cmap=colormap)
    lines: dict[str, Any] = {"levels": levels, "colors": "white"}
    ax.contour(first, second, losses, linewidths=0.4, alpha=0.6, **lines)
    if quadratic:
        style: dict[str, Any] = {"linewidths": 0.9, "linestyles": "dashed"}
        ax.contour(first, second, landscape.quadratic_model().T, **lines, **style)
        dashed = Line2D([], [], color="white", linewidth=0.9, linestyle="dashed")
        # Dark behind the white of the contours, whatever the colours of the style are.
        dark: dict[str, Any] = {"facecolor": "0.2", "labelcolor": "white"}
        legend = ax.legend([dashed], ["quadratic model"], fontsize="x-small", **dark)
        legend.set_in_layout(False)  # else its width decides on that of the axes
    ax.plot(0.0, 0.0, "*", color="white", markeredgecolor="black", markersize=10)
    ax.set_aspect("equal")
    ax.set_xlabel(_axis_label(landscape, "$v_1$", "$d_1$"))
    ax.set_ylabel(_axis_label(landscape, "$v_2$", "$d_2$"))
    bar = color_bar(ax, filled, "loss")
    shown = levels[:: -(-len(levels) // _LABELS)]
    bar.set_ticks(list(shown))
    if isinstance(norm, LogNorm):
        bar.set_ticklabels([f"{level:.4g}" for level in shown])
    return ax


def _levels(low: float, high: float) -> tuple[np.ndarray, Normalize]:
    """Return round levels from at most `low` to at least `high`, and the scale of their colours."""
    if low > 0 and high > _LOG_RATIO * low:
        levels = _round_decades(low, high)
        return levels, LogNorm(levels[0], levels[-1])
    if not high > low:
        low, high = low - 0.5, low + 0.5
    levels = np.array(MaxNLocator(_LEVELS, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
    return levels, Normalize(levels[0], levels[-1])


def _round_decades(low: float, high: float) -> np.ndarray:
    """Return round levels nearly a factor apart, as many as there is room for."""
    powers = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for steps in _STEPS:
        ticks = np.outer(10.0**powers, steps).ravel()
        first = int(np.searchsorted(ticks, low, side="right")) - 1
        levels = ticks[first : np.searchsorted(ticks, high) + 1]
        if len(levels) <= _LEVELS + 1:
            return levels
    last, stride = int(np.searchsorted(ticks, high)), -(-len(levels) // _LEVELS)
    levels = ticks[last : first - 1 if first else None : -stride][::-1]
    return levels if levels[0] <= low else np.insert(levels, 0, ticks[first])


def _is_top(landscape: LossLandscape) -> bool:
    """Tell whether directions are eigenvectors: normalized they are none."""
    return landscape.directions == "top" and landscape.normalize is None


def _axis_label(landscape: LossLandscape, top: str, other: str) -> str:
    """Return what a coordinate is, and its unit."""
    name = f"random {other}" if landscape.directions == "random" else other
    if landscape.normalize is not None:
        return f"{name} ({landscape.normalize} norms)"
    return f"distance along {top if _is_top(landscape) else name}"


def _require(landscape: LossLandscape, num_directions: int, other: str) -> None:
    if landscape.losses.ndim != num_directions:
        raise ValueError(
            f"this picture is of {num_directions} direction{'s' if num_directions > 1 else ''}, "
            f"and the landscape has {landscape.losses.ndim}: use {other}."
        )
