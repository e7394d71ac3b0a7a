"""The loss along one or two directions, with its quadratic model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize

from spectral_density.plotting.axes import COLORMAP, color_bar, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from spectral_density.analysis.landscape import LossLandscape

_LEVELS = 12
_LOG_RATIO = 30  # levels are logarithmic above this ratio of the largest to the smallest loss


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
        name = rf"quadratic model, $\lambda$ = {curvature:.3g}"
        ax.plot(distances, landscape.quadratic_model(), "--", color="gray", label=name, zorder=1)
        low = min(limits[0], landscape.loss - 0.2 * float(np.ptp(finite)))
        ax.set_ylim(low, limits[1])
    ax.set_xlabel("distance along the eigenvector")
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
        ValueError: if the landscape has one direction.
    """
    _require(landscape, 2, "plot_loss_line")
    ax = new_axes(ax, square=True)
    first, second = landscape.coordinates
    losses = np.where(np.isfinite(landscape.losses), landscape.losses, np.nan).T
    low, high = float(np.nanmin(losses)), float(np.nanmax(losses))
    norm: Normalize
    if low > 0 and high > _LOG_RATIO * low:
        levels = np.geomspace(low, high, _LEVELS + 1)
        norm = LogNorm(low, high)
    else:
        levels = np.linspace(low, high if high > low else low + 1.0, _LEVELS + 1)
        norm = Normalize(levels[0], levels[-1])
    levels[-1] = np.nextafter(levels[-1], np.inf)
    filled = ax.contourf(first, second, losses, levels=levels, norm=norm, cmap=colormap)
    ax.contour(first, second, losses, levels=levels, colors="white", linewidths=0.4, alpha=0.6)
    if quadratic:
        model = landscape.quadratic_model().T
        ax.contour(
            first, second, model, levels=levels, colors="white", linewidths=0.9, linestyles="dashed"
        )
    ax.plot(0.0, 0.0, "*", color="white", markeredgecolor="black", markersize=10)
    ax.set_aspect("equal")
    ax.set_xlabel("distance along $v_1$")
    ax.set_ylabel("distance along $v_2$")
    bar = color_bar(ax, filled, "loss")
    shown = levels[:: _LEVELS // 4]
    bar.set_ticks(list(shown), labels=[f"{level:.2g}" for level in shown])
    return ax


def _require(landscape: LossLandscape, num_directions: int, other: str) -> None:
    if landscape.losses.ndim != num_directions:
        raise ValueError(
            f"this picture is of {num_directions} direction{'s' if num_directions > 1 else ''}, "
            f"and the landscape has {landscape.losses.ndim}: use {other}."
        )
